"""The actor: episodes on the rig, each one logged, weights changing only between them.

It knows the rig only as a gymnasium environment; what counts as a fault of it, the caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from agent.episodes import EpisodeSummary, EpisodeWriter, RigEvent
from agent.policy import Policy

Closed = Callable[[EpisodeSummary], None]  # told of every log that was closed
EVALUATION_SEEDS = 1_000_000  # evaluation episodes are numbered from here, apart from the training ones


class TooManyFaultsError(RuntimeError):
    """The rig failed in several episodes in a row: it needs a person."""


def _nothing() -> None:
    pass


def _unfilmed(log: Path) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass
class Actor:
    """Runs episodes with a policy and writes each of them to disk while it happens."""

    env: gymnasium.Env[dict[str, Any], np.ndarray]
    header: Mapping[str, Any]  # what every episode's log says of its run
    faults: tuple[type[Exception], ...]
    seed: int
    max_faults_in_a_row: int = 3
    rest: Callable[[], None] = _nothing  # torque off: while there is nothing to do, and on every error
    timing: Callable[[], Mapping[str, float]] = dict  # how well the control step kept its deadlines
    events: Callable[[], Sequence[RigEvent]] = tuple  # on the rig since the last call
    filming: Callable[[Path], AbstractContextManager[None]] = _unfilmed  # films while a log is written
    faults_in_a_row: int = field(default=0, init=False)
    failed_resets: int = field(default=0, init=False)  # these leave no file: nothing was measured

    def episode(
        self,
        policy: Policy,
        folder: Path,
        index: int,
        *,
        explore: bool,
        closed: Closed,
        watch: Callable[[], None] | None = None,
    ) -> str | None:
        """One episode, logged as folder/INDEX.mcap; returns what failed on the rig, None for a whole one.

        `closed` is called with the summary of every file that was closed, whatever ended it; `watch` before
        each step, for pictures. The goal and start of episode `index` depend on the run's seed and on nothing
        else. What happened on the rig since the last log stands in this one. Raises TooManyFaultsError after
        `max_faults_in_a_row` faulted episodes, and whatever the policy or the disk raises, after the robot is
        relaxed and the log is closed.
        """
        with self._relaxed_on_error():
            try:
                observation, info = self.env.reset(seed=self.seed_of(index))
            except self.faults as fault:
                self.failed_resets += 1
                return self.count(str(fault))
            writer = self.writer(folder, index, explore=explore)
            try:
                # The robot first, the log after.
                with writer, self.filming(writer.path), self._relaxed_on_error():
                    writer.begin(observation, info["telemetry"], info["parameters"])
                    self._steps(policy, observation, writer, explore, watch)
                    log_events(writer, self.events())
            finally:
                report(writer, closed)
            return self.count(writer.summary.fault_message if writer.summary.fault else None)

    def round(
        self, policy: Policy, folder: Path, first: int, wanted: int, closed: Closed
    ) -> list[str | None]:
        """Episode `first`, exploring, one on one robot: what failed on the rig."""
        return [self.episode(policy, folder, first, explore=True, closed=closed)]

    def seed_of(self, index: int) -> int:
        """What decides goal and start of episode `index`."""
        return int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])

    def writer(self, folder: Path, index: int, *, explore: bool) -> EpisodeWriter:
        """The log of episode `index`, open. Raises EpisodeWriteError."""
        header = {**self.header, "index": index, "seed": self.seed_of(index), "explore": explore}
        return EpisodeWriter(folder / f"{index:06d}.mcap", header)

    def warm_up(self, policy: Policy) -> None:
        """Lets the policy act once: a first call can take longer than the servos' watchdog allows."""
        policy.act(policy.initial(), self.env.observation_space.sample(), explore=True)

    def _steps(
        self,
        policy: Policy,
        observation: Any,
        writer: EpisodeWriter,
        explore: bool,
        watch: Callable[[], None] | None,
    ) -> None:
        carry, over = policy.initial(), False
        while not over:
            log_events(writer, self.events())
            if watch is not None:
                watch()
            carry, action = policy.act(carry, observation, explore=explore)
            observation, reward, terminated, truncated, info = self.env.step(action)
            over = log_step(writer, observation, action, float(reward), terminated, truncated, info)

    @contextmanager
    def _relaxed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.rest()
            raise

    def count(self, fault: str | None) -> str | None:
        """Counts how an episode ended and says so again. Raises TooManyFaultsError."""
        self.faults_in_a_row = 0 if fault is None else self.faults_in_a_row + 1
        if self.faults_in_a_row >= self.max_faults_in_a_row:
            raise TooManyFaultsError(
                f"{self.faults_in_a_row} episodes in a row failed, the last with: {fault} "
                "`run_robot.py check` shows the state of the rig."
            )
        return fault


def log_step(
    writer: EpisodeWriter,
    observation: Mapping[str, Any],
    action: np.ndarray,
    reward: float,
    terminated: bool,
    truncated: bool,
    info: Mapping[str, Any],
) -> bool:
    """Logs what a step came to; True when it was the episode's last."""
    if "fault" in info:  # this step was never measured: the episode ends with the one before
        writer.fault(info["fault"], info["fault_message"])
        return True
    writer.step(observation, action, reward, info)
    if terminated or truncated:
        writer.done(terminated=terminated, truncated=truncated)
    return terminated or truncated


def log_events(writer: EpisodeWriter, events: Iterable[RigEvent]) -> None:
    """Logs what happened on the rig."""
    for event in events:
        writer.event(event.time, event.name, event.text, event.level)


def report(writer: EpisodeWriter, closed: Closed) -> None:
    """Hands the summary of a closed log over, if there is one."""
    if writer.kept:
        closed(writer.summary)
