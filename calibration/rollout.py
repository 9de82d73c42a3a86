"""What MuJoCo says that a plant with given parameters would have measured, for a recording's own commands.

The same model as `SimPlant`'s, without buses and registers, so that a fit can afford hundreds of rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mujoco
import numpy as np
from mujoco import rollout

from calibration.recording import FingerMotion, ValveTurn
from robot import registers as reg
from robot.rig import RigConfig
from robot.sim import SimConfig
from robot.types import Floats
from robot.world import JOINTS, VALVE_JOINT, addresses, dclaw_model

_STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS)


class Rollouts:
    """Predicts positions of fingers and valve for any parameters of a plant."""

    def __init__(self, rig: RigConfig) -> None:
        """rig: what is known of the plant besides. Raises MissingPart without ROBEL's model files."""
        self._model = dclaw_model(rig.sim)
        # Nothing touches anything in these motions, which were checked for that: half the time of a step.
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        self._data = mujoco.MjData(self._model)
        self._step = float(self._model.opt.timestep)
        self._qpos, self._dof = addresses(self._model, (*JOINTS, VALVE_JOINT))
        self._limit_torque(rig)
        gains = rig.dclaw.gains
        self._gain = gains.p / reg.POSITION_P_GAIN.default if gains else 1.0  # stiffness goes with it
        profile = rig.dclaw.profile_velocity
        self._rate = round(profile / reg.RAD_PER_S_PER_UNIT) * reg.RAD_PER_S_PER_UNIT if profile else math.inf

    def fingers(self, plant: SimConfig, motions: Sequence[FingerMotion]) -> list[Floats]:
        """The positions (N, 3) rad of the moving finger of each motion, at the times of its readings.

        Fingers that do not touch know nothing of each other: motions of different fingers share one rollout.
        Raises ValueError when two motions are of the same finger.
        """
        if len({motion.finger for motion in motions}) < len(motions):
            raise ValueError("one rollout takes one motion of each finger")
        steps = max(math.ceil(np.ptp(motion.times) / self._step) + 1 for motion in motions)
        self._configure(plant, valve_driven=False)
        qpos, control = np.zeros(self._model.nq), np.zeros((steps, self._model.nu))
        for motion in motions:
            moving = motion.joints
            qpos[self._qpos[moving]] = motion.position[0, moving]
            control[:, moving] = self._setpoints(motion, steps, plant.command_delay)
        path = self._run(qpos, np.zeros(self._model.nv), control)[0]
        return [self._at(path[:, self._qpos[motion.joints]], motion.times) for motion in motions]

    def valve(self, plant: SimConfig, turn: ValveTurn, release_delay: float = 0.0) -> Floats:
        """The angle (N,) rad of the valve at the times of a turn's readings.

        release_delay: s from the last reading under torque until it is seen to be limp.
        """
        released = turn.released + release_delay
        driven, coasting = released - float(turn.times[0]), float(turn.times[-1]) - released
        self._configure(plant, valve_driven=True)
        qpos, control = (
            np.zeros(self._model.nq),
            np.zeros((math.ceil(driven / self._step) + 1, self._model.nu)),
        )
        qpos[self._qpos[-1]] = turn.position[0]
        ends = self._ends(len(control))
        control[:, -1] = setpoints(
            ends,
            np.array([plant.command_delay]),
            np.array([[turn.goal]]),
            turn.position[:1],
            turn.speed,
            self._step,
        )[:, 0]
        qvel = np.zeros(self._model.nv)
        qvel[self._dof[-1]] = turn.velocity[0]
        path, speeds = self._run(qpos, qvel, control)
        before = turn.times <= released
        angles = self._at(path[:, self._qpos[-1:]], turn.times[before], float(turn.times[0]))[:, 0]
        if coasting <= 0:
            return angles
        share = driven / self._step  # let go between two steps
        state = [_between(values, share) for values in (path, speeds)]
        self._configure(plant, valve_driven=False)
        free = np.zeros((math.ceil(coasting / self._step) + 1, self._model.nu))
        coast = self._run(state[0], state[1], free)[0]
        after = self._at(coast[:, self._qpos[-1:]], turn.times[~before], released)[:, 0]
        return np.concatenate([angles, after])

    def _limit_torque(self, rig: RigConfig) -> None:
        current = rig.dclaw.goal_current
        self._model.actuator_forcelimited[:] = current is not None
        if current is not None:
            self._model.actuator_forcerange[:] = np.array([-1, 1]) * current * rig.sim.torque_constant

    def _configure(self, plant: SimConfig, *, valve_driven: bool) -> None:
        """Writes the parameters into the model."""
        model, joints, valve = self._model, self._dof[:-1], self._dof[-1]
        model.dof_damping[joints], model.dof_damping[valve] = plant.joint_damping, plant.valve_damping
        model.dof_frictionloss[joints] = plant.friction_loss
        model.dof_frictionloss[valve] = plant.valve_friction_loss
        stiffness = np.full(model.nu, plant.servo_stiffness * self._gain)
        stiffness[-1] = plant.valve_stiffness if valve_driven else 0.0
        model.actuator_gainprm[:, 0], model.actuator_biasprm[:, 1] = stiffness, -stiffness

    def _setpoints(self, motion: FingerMotion, steps: int, delay: float) -> Floats:
        moving = motion.joints
        arrivals = motion.command_times - motion.times[0] + delay
        goals, start = motion.targets[:, moving], motion.start[moving]
        return setpoints(self._ends(steps), arrivals, goals, start, self._rate, self._step)

    def _ends(self, steps: int) -> Floats:
        """(S,) s: when each step ends."""
        return np.asarray(self._step * np.arange(1, steps + 1), np.float64)

    def _run(self, qpos: Floats, qvel: Floats, control: Floats) -> tuple[Floats, Floats]:
        """Positions (S+1, nq) and velocities (S+1, nv), the first the ones given."""
        initial = np.zeros(mujoco.mj_stateSize(self._model, _STATE))
        nq, nv = self._model.nq, self._model.nv
        initial[1 : 1 + nq], initial[1 + nq : 1 + nq + nv] = qpos, qvel  # after the time
        states, _ = rollout.rollout(self._model, self._data, initial[None], control[None])
        path = np.concatenate([initial[None], states[0]])
        return path[:, 1 : 1 + nq], path[:, 1 + nq : 1 + nq + nv]

    def _at(self, path: Floats, times: Floats, start: float | None = None) -> Floats:
        """A path (S, C) at the times (N,) s of readings, between steps by the straight line."""
        places = (times - (times[0] if start is None else start)) / self._step
        steps = np.arange(len(path))
        return np.stack([np.interp(places, steps, column) for column in path.T], axis=1)


def _between(path: Floats, place: float) -> Floats:
    """A path (S, C) at a place that need not be a whole step."""
    step = min(int(place), len(path) - 2)
    return np.asarray(path[step] + (place - step) * (path[step + 1] - path[step]))


def setpoints(
    ends: Floats, arrivals: Floats, goals: Floats, start: Floats, rate: float, step: float
) -> Floats:
    """(S, C) rad: what servos make of goals (K, C) that arrive at times (K,) s, for steps that end at (S,) s.

    Set points run at `rate` rad/s. One that jumps, within a step, counts for the share of the step that it
    had: a delay of any length has its effect, and a fit has something to go by.
    """
    values = np.tile(start, (len(ends), 1))
    bounds = [*np.searchsorted(ends, arrivals, side="right").tolist(), len(ends)]
    now = np.asarray(start, np.float64)
    for number, (arrival, goal) in enumerate(zip(arrivals, goals, strict=True)):
        missing = goal - now
        duration = np.maximum(np.abs(missing) / rate, step)
        rows = slice(bounds[number], bounds[number + 1])
        values[rows] = now + missing * np.minimum(1.0, (ends[rows, None] - arrival) / duration)
        if number + 1 < len(arrivals):
            now = now + missing * np.minimum(1.0, (arrivals[number + 1] - arrival) / duration)
    return values
