"""Several simulated robots at once, an episode on each: for training without a robot."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv

from agent.actor import Actor
from agent.episodes import EpisodeSummary, EpisodeWriter
from agent.policy import Observation, Policy

Env = gymnasium.Env[dict[str, Any], np.ndarray]


class RobotProcessDied(RuntimeError):
    """The process of a simulated robot is gone."""


@dataclass
class _Flight:
    """One robot's episode while it goes on."""

    writer: EpisodeWriter
    carry: Any
    observation: Observation


@dataclass
class Fleet:
    """Runs episodes side by side and logs each as an Actor would; frames come through shared memory.

    The policy acts for one robot after another, always in the same order: what happens depends on the seed
    and on the number of robots alone. Use as a context manager.
    """

    actor: Actor  # for the log's header, the seeds and the count of faults
    # Makes a robot in each worker process: an environment whose every info is {"box": box} with the real one
    # as `box.info`, because gymnasium would make arrays over all robots of it; a fault at reset is one, too.
    make: Callable[[], Env]
    count: int
    _envs: AsyncVectorEnv = field(init=False)

    def __enter__(self) -> Fleet:
        """Starts the processes; not by forking, which copies neither threads nor OpenGL."""
        # What all of them import is imported once.
        multiprocessing.get_context("forkserver").set_forkserver_preload([type(self.make).__module__])
        self._envs = AsyncVectorEnv([self.make] * self.count, context="forkserver")
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:  # a step may be under way; gymnasium would wait for its answer
            for process in self._envs.processes:
                process.kill()
                process.join()
            self._envs.closed = True
        self._envs.close()

    def round(
        self,
        policy: Policy,
        folder: Path,
        first: int,
        *,
        explore: bool,
        closed: Callable[[EpisodeSummary], None],
        wanted: int,
    ) -> list[str | None]:
        """Episodes FIRST, FIRST + 1, ... on up to `wanted` of the robots; for each what failed on its rig.

        `closed` gets the summaries in the order of their numbers. Raises as `Actor.episode` does.
        """
        indices = range(first, first + min(wanted, self.count))
        seeds = [self.actor.seed_of(index) for index in indices]
        spare = [seeds[0]] * (self.count - len(seeds))  # robots without an episode have to be reset, too
        with _of_the_living():
            observations, infos = self._envs.reset(seed=[*seeds, *spare])
        faults: dict[int, str | None] = {}
        flights: dict[int, _Flight] = {}
        with ExitStack() as stack:
            stack.callback(_report, flights, closed)  # last, when all logs are closed
            for i, index in enumerate(indices):
                info = infos["box"][i].info
                if "fault" in info:  # nothing was measured: it leaves no file
                    self.actor.failed_resets += 1
                    faults[i] = info["fault"]
                    continue
                writer = stack.enter_context(self.actor.writer(folder, index, explore=explore))
                flights[i] = _Flight(writer, policy.initial(), _of(observations, i))
                writer.begin(flights[i].observation, info["telemetry"], info["parameters"])
            self._fly(policy, flights, explore)
        faults |= {i: flight.writer.summary.fault_message or None for i, flight in flights.items()}
        return [self.actor.count(faults[i]) for i in range(len(indices))]

    def _fly(self, policy: Policy, flights: dict[int, _Flight], explore: bool) -> None:
        up = dict(flights)
        shape = self._envs.single_action_space.shape
        assert shape is not None
        while up:
            actions = np.zeros((self.count, *shape), np.float32)
            for i, flight in up.items():
                flight.carry, actions[i] = policy.act(flight.carry, flight.observation, explore=explore)
            with _of_the_living():
                observations, rewards, terminated, truncated, infos = self._envs.step(actions)
            for i, flight in list(up.items()):
                info = infos["box"][i].info
                if "fault" in info:  # this step was never measured: the episode ends with the one before
                    flight.writer.fault(info["fault"], info["fault_message"])
                    del up[i]
                    continue
                flight.observation = _of(observations, i)
                flight.writer.step(flight.observation, actions[i], float(rewards[i]), info)
                if terminated[i] or truncated[i]:
                    flight.writer.done(terminated=bool(terminated[i]), truncated=bool(truncated[i]))
                    del up[i]


@contextmanager
def _of_the_living() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise RobotProcessDied(
            "the process of a simulated robot is gone; was it killed, for want of memory? What was measured "
            "is kept. Go on with the same command, --resume and perhaps fewer --envs."
        ) from error


def _report(flights: Mapping[int, _Flight], closed: Callable[[EpisodeSummary], None]) -> None:
    for flight in flights.values():
        if flight.writer.path.exists():  # not when it holds no observation, nor when the disk refused it
            closed(flight.writer.summary)


def _of(observations: Any, i: int) -> Observation:
    """The i-th robot's share."""
    return {name: values[i] for name, values in cast(dict[str, Any], observations).items()}
