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

from agent.actor import Actor, Closed, log_events, log_step, report
from agent.episodes import EpisodeWriter
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

    What happens on a rig stands in its episode's log and in the counts; the live line shows only the actor's.

    The policy acts for one robot after another, always in the same order: what happens depends on the seed
    and on the number of robots alone. Use as a context manager.
    """

    actor: Actor  # for the log's header, the seeds and the count of faults
    # Makes a robot in each worker process: an environment whose every info is {"box": box}, see
    # tasks.simulated.Box, and that waits at an episode's end.
    make: Callable[[], Env]
    count: int
    _envs: AsyncVectorEnv = field(init=False)

    def __enter__(self) -> Fleet:
        """Starts the processes; not by forking, which copies neither threads nor OpenGL."""
        # What all of them import is imported once.
        multiprocessing.get_context("forkserver").set_forkserver_preload([type(self.make).__module__])
        with _of_the_living():
            self._envs = AsyncVectorEnv([self.make] * self.count, context="forkserver")
        return self

    def __exit__(self, *error: object) -> None:
        # Without gymnasium's farewell: a step may be under way, or a process gone, and neither would answer.
        for process in self._envs.processes:
            process.kill()
            process.join()
        self._envs.closed = True

    def round(
        self, policy: Policy, folder: Path, first: int, wanted: int, closed: Closed
    ) -> list[str | None]:
        """Episodes FIRST, FIRST + 1, ... on up to `wanted` of the robots; for each what failed on its rig.

        The policy explores. `closed` gets the summaries in the order of their numbers. Raises as
        `Actor.episode` does.
        """
        indices = range(first, first + min(wanted, self.count))
        seeds = [self.actor.seed_of(index) for index in indices]
        spare = [seeds[0]] * (self.count - len(seeds))  # robots without an episode have to be reset, too
        with _of_the_living():
            observations, infos = self._envs.reset(seed=[*seeds, *spare])
        faults: dict[int, str | None] = {}
        flights: dict[int, _Flight] = {}
        with ExitStack() as stack:
            stack.callback(_report_all, flights, closed)  # last, when all logs are closed
            # Last first, so that logs are closed first to last: a learner that has seen a number does not
            # look for lower ones again.
            for i, index in reversed(list(enumerate(indices))):
                box = infos["box"][i]
                if "fault" in box.info:  # nothing was measured: it leaves no file
                    self.actor.failed_resets += 1
                    faults[i] = box.info["fault"]
                    continue
                writer = stack.enter_context(self.actor.writer(folder, index, explore=True))
                flights[i] = _Flight(writer, policy.initial(), _of(observations, i))
                writer.begin(flights[i].observation, box.info["telemetry"], box.info["parameters"])
                log_events(writer, box.events)
            self._fly(policy, flights)
        faults |= {i: flight.writer.summary.fault_message or None for i, flight in flights.items()}
        return [self.actor.count(faults[i]) for i in range(len(indices))]

    def _fly(self, policy: Policy, flights: Mapping[int, _Flight]) -> None:
        up = dict(sorted(flights.items()))
        shape = self._envs.single_action_space.shape
        assert shape is not None
        while up:
            actions = np.zeros((self.count, *shape), np.float32)
            for i, flight in up.items():
                flight.carry, actions[i] = policy.act(flight.carry, flight.observation, explore=True)
            with _of_the_living():
                observations, rewards, _, _, infos = self._envs.step(actions)
            for i, flight in list(up.items()):
                box, flight.observation = infos["box"][i], _of(observations, i)
                log_events(flight.writer, box.events)
                came_to = (flight.observation, actions[i], float(rewards[i]), box.terminated, box.truncated)
                if log_step(flight.writer, *came_to, box.info):
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


def _report_all(flights: Mapping[int, _Flight], closed: Closed) -> None:
    for _, flight in sorted(flights.items()):
        report(flight.writer, closed)


def _of(observations: Any, i: int) -> Observation:
    """The i-th robot's share."""
    return {name: values[i] for name, values in cast(dict[str, Any], observations).items()}
