"""What an expert knows: how the true simulation will answer, asked for many courses of action at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import mujoco
import numpy as np
from mujoco.rollout import Rollout
from pydantic import Field

from robot.registers import RAD_PER_TICK
from robot.safety import SafetyFilter
from robot.sim import SimPlant
from robot.types import Config, Floats
from robot.world import JOINTS, VALVE_JOINT, addresses
from tasks.catalogue import all_tasks
from tasks.task import Action, DemonstratedTask, ForeseeableTask, Moments, TaskConfig

if TYPE_CHECKING:
    from robot.rig import Rig, RigConfig

STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS  # time, then positions, then velocities
# How often the last moment of a plan counts: what comes after it, which nobody computed, is mostly like it.
LAST = 5


class NoExpert(Exception):
    """Nobody knows how to do a task well, or cannot see it from here."""


def require_expert(task: TaskConfig, hw: RigConfig, envs: int) -> None:
    """Refuses --policy expert where there is none, or none that can see. Raises NoExpert.

    envs: robots side by side.
    """
    kind = all_tasks().get(task.kind, object)
    if issubclass(kind, DemonstratedTask):
        return
    if not issubclass(kind, ForeseeableTask):
        raise NoExpert(f"--policy expert: tasks of kind {task.kind} have no expert")
    if hw.kind != "sim":
        raise NoExpert("--policy expert: the expert knows the true state of the simulation: --hw sim")
    if envs > 1:
        raise NoExpert("--policy expert: it looks into one simulation on all cores; leave out --envs")


class OracleConfig(Config):
    """How exactly the future is computed, and on how many cores."""

    # s, rounded to divide the control period. Twice the plant's own 2.5 ms: half the cost, and plans that are
    # made anew in every step bear the difference (valve_random: 12 of 12 with 5 and with 10 ms).
    timestep: float = Field(0.005, gt=0, le=0.01)
    threads: int = Field(2, ge=1)


class Oracle:
    """Tells what a task would pay for actions, from the present state of the simulated rig that it is on.

    It does what the driver would: the task's targets, box and speed of the safety filter about the encoders'
    positions, goals in whole ticks, held for a period. Not foreseen are a command's delay, the ramp of a
    profile velocity, and that the filter keeps two fingers apart (in about 3 of 50 steps): the next plan
    starts from what came of it.
    """

    def __init__(self, rig: Rig, task: ForeseeableTask, config: OracleConfig | None = None) -> None:
        """task: the one whose episodes run on the rig. Raises ValueError for a rig that is not simulated."""
        if not isinstance(rig.clock, SimPlant):
            raise ValueError("the expert knows the true state of the simulation: --hw sim")
        config = config or OracleConfig()
        self._plant, self._task = rig.clock, task
        self._filter = SafetyFilter(rig.config.dclaw.safety)
        self._steps = max(1, round(task.period / config.timestep))  # of physics in a control step
        self._rollout = Rollout(nthread=config.threads if config.threads > 1 else 0)
        model, _ = self._plant.twin()
        self._scratch = [mujoco.MjData(model) for _ in range(config.threads)]
        positions, velocities = addresses(model, (*JOINTS, VALVE_JOINT))
        self._positions, self._velocities = 1 + positions, 1 + model.nq + velocities  # columns of a state

    def returns(self, actions: Floats, step: int) -> Floats:
        """(N,): what N courses of H actions (N, H, A) in [-1, 1] come to, as a planner should see it.

        step: how many steps of the episode there were already.
        """
        total, worth = np.zeros(len(actions)), np.zeros(len(actions))
        for moments in self.foresee(actions, step):
            worth = self._task.rewards(moments) + self._task.guidance(moments)
            total += worth
        return total + (LAST - 1) * worth

    def foresee(self, actions: Floats, now: int) -> Iterator[Moments]:
        """What comes of N courses of H actions (N, H, A) in [-1, 1], one control step after the other."""
        model, data = self._plant.twin()
        model.opt.timestep = self._task.period / self._steps
        count = len(actions)
        states = np.tile(_state(model, data), (count, 1))
        controls = np.tile(data.ctrl, (count, 1))
        warmstart = np.tile(data.qacc_warmstart, (count, 1))
        for step in range(actions.shape[1]):
            controls[:, : len(JOINTS)] = self._setpoints(actions[:, step], states)
            states = self._advanced(model, states, controls, warmstart if step == 0 else None)
            yield self._moments(now + step + 1, states)

    def keeping(self, step: int) -> Action | None:
        """(A,): what keeps the present where the task has nothing left to gain, else None."""
        model, data = self._plant.twin()
        now = self._moments(step, _state(model, data)[None])
        return self._task.keeping(now, data.ctrl[: len(JOINTS)].copy())

    def _setpoints(self, actions: Floats, states: Floats) -> Floats:
        """(N, J) rad: the goal positions that the driver would send."""
        measured = _in_ticks(states[:, self._positions[:-1]])
        wished = self._task.targets(actions, measured)
        return _in_ticks(self._filter.bounded(wished, measured, self._task.period))

    def _advanced(
        self, model: mujoco.MjModel, states: Floats, controls: Floats, warmstart: Floats | None
    ) -> Floats:
        """(N, S): states (N, S) a control period later under controls (N, U)."""
        after, _ = self._rollout.rollout(
            model,
            self._scratch,
            states,
            controls[:, None],
            nstep=self._steps,
            initial_warmstart=warmstart,
        )
        return np.asarray(after[:, -1], np.float64)

    def _moments(self, step: int, states: Floats) -> Moments:
        positions, velocities = states[:, self._positions], states[:, self._velocities]
        return Moments(step, positions[:, :-1], velocities[:, :-1], positions[:, -1], velocities[:, -1])


def _state(model: mujoco.MjModel, data: mujoco.MjData) -> Floats:
    state = np.empty(mujoco.mj_stateSize(model, STATE))
    mujoco.mj_getState(model, data, state, STATE)
    return state


def _in_ticks(angles: Floats) -> Floats:
    """What encoders and goal registers can say of angles, rad."""
    return np.asarray(np.rint(angles / RAD_PER_TICK) * RAD_PER_TICK)
