"""Replaying and re-scoring episodes: did the robot do the same again, and was the reward right?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robot.clock import Ticker
from robot.types import Applied, Floats, JointState, Snapshot
from tasks.task import Task

if TYPE_CHECKING:
    from robot.rig import Rig

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Difference:
    """How far two series of joint positions lie apart, each (J,)."""

    rms: Floats
    max: Floats

    @classmethod
    def between(cls, measured: Floats, wanted: Floats) -> Difference:
        """Of two (T, J) series, over time."""
        error = measured - wanted
        return cls(np.sqrt(np.mean(error**2, axis=0)), np.abs(error).max(axis=0))


@dataclass(frozen=True)
class Replay:
    """What a replay did: T steps, J joints."""

    position: Floats  # (T, J), measured at the end of each step
    object_position: Floats  # (T, K)
    applied: Floats  # (T, J), what the safety filter let through this time
    tracking: Difference  # measured against commanded
    late: int  # steps that overran their period

    def against(self, position: Floats) -> Difference:
        """Joint by joint against the logged (T, J) positions."""
        return Difference.between(self.position, position)


def replay(rig: Rig, task: Task, targets: Floats, *, start: Floats, object_start: Floats) -> Replay:
    """Runs an episode's applied targets again, through the same robot path and safety filter.

    First the task puts the object to `object_start` (K,) and the robot to `start` (J,). targets: (T, J), one
    every period. Raises ValueError for arrays of another robot, MotionFault, BusFault.
    """
    targets, start = np.asarray(targets, np.float64), np.asarray(start, np.float64)
    _check(targets, start, rig.robot.joints)
    task.put_back(rig, start, np.asarray(object_start, np.float64))
    ticker = Ticker(rig.clock, task.period)
    ticker.start()
    steps = [_step(rig, target, task.period, ticker) for target in targets]
    position, thing, applied = (np.array(column) for column in zip(*steps, strict=True))
    tracking = Difference.between(position, targets)
    return Replay(position, thing, applied, tracking, ticker.late_total)


def replay_logged(rig: Rig, task: Task, parameters: Mapping[str, float], telemetry: Arrays) -> Replay:
    """Runs a logged episode again, from its start and on a rig that is drawn as it was then.

    telemetry: by name, the first row that of the start. Raises KeyError for a missing column, and as `replay`
    does.
    """
    rig.imitate(parameters)
    start, object_start = telemetry["joint_position"][0], telemetry["object_position"][0]
    return replay(rig, task, telemetry["applied"][1:], start=start, object_start=object_start)


def _step(rig: Rig, target: Floats, period: float, ticker: Ticker) -> tuple[Floats, Floats, Floats]:
    applied = rig.robot.command(target, period)
    ticker.wait()
    state = rig.robot.read()
    return state.joints.position, state.object.position, applied.target


def _check(targets: Floats, start: Floats, joints: int) -> None:
    if targets.ndim != 2 or not len(targets) or targets.shape[1] != joints or start.shape != (joints,):
        raise ValueError(
            f"The episode has targets {targets.shape} and start {start.shape}, this robot {joints} joints: "
            "replay it on the robot that it was recorded with."
        )
    if not (np.isfinite(targets).all() and np.isfinite(start).all()):
        raise ValueError(
            "The episode's targets are not all finite; `replay --rescore` shows what is wrong with it."
        )


@dataclass(frozen=True)
class Rescore:
    """Rewards computed again from a log of T steps."""

    terms: dict[str, Floats]  # (T,) per term
    success: NDArray[np.bool_]  # (T,)
    difference: float  # largest, over terms and steps, to the logged terms

    @property
    def reward(self) -> Floats:
        """(T,) sum of the terms."""
        return np.asarray(np.sum(list(self.terms.values()), axis=0))


def rescore(
    task: Task, parameters: Mapping[str, float], steps: Arrays, logged: Mapping[str, Floats]
) -> Rescore:
    """Computes an episode's reward terms again from what was measured.

    parameters: as `Task.parameters` logged them. steps: telemetry by name, each with T rows, from the
    episode's first step on: time, joint_ and object_ position, velocity and current, requested, applied.
    logged: (T,) per term.
    Raises KeyError for a missing column, ValueError when the terms' names differ.
    """
    task.restore(parameters)
    snapshots = [snapshot_of(steps, i) for i in range(len(steps["time"]))]
    commands = [
        Applied(target, wish) for target, wish in zip(steps["applied"], steps["requested"], strict=True)
    ]
    rows = [task.reward(*pair) for pair in zip(snapshots, commands, strict=True)]
    success = np.array([task.success(snapshot) for snapshot in snapshots], bool)
    terms = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else logged)}
    return Rescore(terms, success, _largest_difference(terms, logged))


def snapshot_of(steps: Arrays, index: int) -> Snapshot:
    """The snapshot, without frames, that row `index` of the logged steps' telemetry describes."""
    time = float(steps["time"][index])
    joints, thing = (_group(steps, name, index, time) for name in ("joint", "object"))
    return Snapshot(time, joints, thing, {}, step=index + 1)


def _group(steps: Arrays, name: str, index: int, time: float) -> JointState:
    columns = (steps[f"{name}_{quantity}"][index] for quantity in ("position", "velocity", "current"))
    position, velocity, current = (np.atleast_1d(np.asarray(column, np.float64)) for column in columns)
    return JointState(time, position, velocity, current)


def _largest_difference(terms: Mapping[str, Floats], logged: Mapping[str, Floats]) -> float:
    if set(terms) != set(logged):
        raise ValueError(
            f"The task gives the terms {sorted(terms)}, the log has {sorted(logged)}: "
            "re-score with the configuration that is attached to the episode."
        )
    differences = [np.abs(terms[name] - np.asarray(logged[name], np.float64)) for name in terms]
    return float(max((column.max(initial=0.0) for column in differences), default=0.0))
