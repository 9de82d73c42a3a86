"""Resets as motions through `Robot.command`: the same lines for sim, emulated and real robots."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from pydantic import Field

from robot.clock import Ticker
from robot.registers import FINGER_SEGMENTS
from robot.types import Config, Floats, JointState, MotionFault, RobotState
from tasks.rewards import wrap_angle

if TYPE_CHECKING:
    from robot.rig import Rig

FingerPose = tuple[float, float, float]
T = TypeVar("T")


class MotionConfig(Config):
    """How a motion is interpolated and when it counts as arrived."""

    period: float = Field(0.05, gt=0)  # s; 20 Hz waypoints, as ROBEL's pose task
    # Time that a waypoint is granted, so how far ahead of the fingers it may be: soft servos (kp 2) follow at
    # 1.3 rad/s with one period and at 1.8 rad/s with two.
    reach: float = Field(0.1, gt=0)  # s
    speed: float = Field(2.0, gt=0)  # rad/s of the fastest joint, inside the safety filter's 2 pi / 3
    tolerance: float = Field(math.radians(5), gt=0)  # rad; ROBEL's GOOD_ERROR_TOL
    still: float = Field(0.1, gt=0)  # rad/s, 4 units of the velocity register
    # A motion counts as blocked when, after its last waypoint, all joints together come no nearer. Where they
    # are within tolerance, they may swing until the timeout.
    progress: float = Field(0.05, gt=0)  # rad
    stall: float = Field(0.5, gt=0)  # s
    timeout: float = Field(4.0, gt=0)  # s


class ResetConfig(Config):
    """Poses and patience of a reset; poses are (proximal, middle, distal) rad, alike for all fingers."""

    home: FingerPose = (0.0, -math.pi / 3, math.pi / 3)
    # Where the fingers are while the valve is driven. At home they are 29 mm away from it at every angle of
    # the valve (ROBEL's collision model). Straighter fingers are further away (distal 0.6: 58 mm), but get
    # there less well: of 120 random ends of episodes 20 hooked a valve arm on the way, to home none.
    clear: FingerPose = (0.0, -math.pi / 3, math.pi / 3)
    spread: float = 0.45  # rad; all proximal joints to one side frees interlocked fingers (ROBEL: pi / 4)
    rest: float = Field(0.5, ge=0)  # s without torque before disentangling, so that strain is released
    valve_tolerance: float = Field(0.02, gt=0)  # rad, for the valve servo
    valve_timeout: float = Field(5.0, gt=0)  # s
    start_tolerance: float = Field(0.05, gt=0)  # rad between wished and final valve angle
    attempts: int = Field(3, ge=1)
    budget: float = Field(60.0, gt=0)  # s after which no attempt is begun; three that fail took 8 to 11
    motion: MotionConfig = MotionConfig()


def fingers(pose: FingerPose, joints: int) -> Floats:
    """One finger's pose for all fingers, (J,) rad."""
    return np.tile(np.asarray(pose, np.float64), joints // len(pose))


def joint_name(index: int) -> str:
    """Where joint `index` sits: 'finger 1, distal'."""
    finger, joint = divmod(index, len(FINGER_SEGMENTS))
    return f"finger {finger + 1}, {FINGER_SEGMENTS[joint]}"


def move_to(rig: Rig, pose: Floats, motion: MotionConfig) -> RobotState:
    """Moves in a straight line in joint space from wherever the robot is, and waits until it stands there.

    pose: (J,) rad. Raises MotionFault naming the joints that did not arrive.
    """
    start = rig.robot.read().joints.position
    ticker = Ticker(rig.clock, motion.period)
    ticker.start()
    for waypoint in waypoints(start, pose, motion.speed * motion.period):
        rig.robot.command(waypoint, motion.reach)
        ticker.wait()
        rig.robot.read()  # safety measures the next step from here
    return _settle(rig, pose, motion, ticker)


def waypoints(start: Floats, end: Floats, stride: float) -> Floats:
    """(N, J) rad: equal steps from start (excluded) to end (included), no joint moving more than stride."""
    count = max(1, math.ceil(float(np.abs(end - start).max()) / stride))
    fractions = np.arange(1, count + 1)[:, None] / count
    return np.asarray(start + fractions * (end - start))


def _settle(rig: Rig, pose: Floats, motion: MotionConfig, ticker: Ticker) -> RobotState:
    began, nearest, since = rig.clock.now(), math.inf, 0.0
    while True:
        state = rig.robot.read()
        if _arrived(state.joints, pose, motion):
            return state
        away = float(np.abs(state.joints.position - pose).sum())
        if away < nearest - motion.progress or _near(state.joints, pose, motion):
            nearest, since = min(away, nearest), state.time  # who swings about the goal is not blocked
        if state.time > min(since + motion.stall, began + motion.timeout):
            raise MotionFault(_blocked(state.joints, pose, motion))
        rig.robot.command(pose, motion.reach)
        ticker.wait()


def _arrived(joints: JointState, pose: Floats, motion: MotionConfig) -> bool:
    return _near(joints, pose, motion) and bool(np.abs(joints.velocity).max() <= motion.still)


def _near(joints: JointState, pose: Floats, motion: MotionConfig) -> bool:
    return bool(np.abs(joints.position - pose).max() <= motion.tolerance)


def _blocked(joints: JointState, pose: Floats, motion: MotionConfig) -> str:
    away = np.abs(joints.position - pose)
    stuck = [i for i in range(len(pose)) if away[i] > motion.tolerance]
    if not stuck:
        speed = np.abs(joints.velocity).max()
        return f"The fingers do not come to rest: {speed:.2f} rad/s, at most {motion.still} is rest."
    seen = "; ".join(
        f"{joint_name(i)} is at {joints.position[i]:+.2f} rad, wanted {pose[i]:+.2f}" for i in stuck
    )
    return f"{len(stuck)} of {len(pose)} joints did not arrive within {motion.tolerance:.3f} rad: {seen}."


def disentangle(rig: Rig, config: ResetConfig) -> None:
    """Frees interlocked fingers as ROBEL does: rest, all to one side, then middle joints, then distal ones.

    Arriving is not demanded here: the attempt that follows finds out.
    """
    rig.robot.relax()
    rig.clock.sleep_until(rig.clock.now() + config.rest)
    rig.robot.engage()
    joints = np.arange(rig.robot.joints) % len(FINGER_SEGMENTS)
    target = rig.robot.read().joints.position.copy()
    for joint, angle in enumerate((config.spread, config.clear[1], config.clear[2])):
        target = np.where(joints == joint, angle, target)
        try:
            move_to(rig, target, config.motion)
        except MotionFault:
            continue  # the next joint may be what holds this one


def reset_valve(rig: Rig, angle: float, config: ResetConfig, pointer: float | None = None) -> float:
    """Fingers out of the way, valve to `angle` (rad) by its own servo, fingers home.

    Where there is a guide servo, it points at `pointer` (rad) by then. Returns the valve's measured angle at
    rest, rad in (-pi, pi]. Raises MotionFault, with the robot relaxed, when it fails `config.attempts` times
    or for longer than `config.budget`.
    """
    return _persist(rig, config, lambda: _attempt(rig, angle, config, pointer))


def reset_pose(rig: Rig, pose: Floats, valve: float, config: ResetConfig) -> None:
    """Fingers home, the valve to an angle (rad) at which it is not in their way, then the fingers to `pose`.

    pose: (J,) rad. Raises MotionFault as `reset_valve` does.
    """

    def attempt() -> None:
        _attempt(rig, valve, config, None)
        move_to(rig, pose, config.motion)

    _persist(rig, config, attempt)


def _persist(rig: Rig, config: ResetConfig, attempt: Callable[[], T]) -> T:
    """What the first attempt that succeeds returns; between attempts the fingers are disentangled."""
    rig.robot.engage()
    began, problems = rig.clock.now(), 0
    while True:
        try:
            return attempt()
        except MotionFault as fault:
            problems += 1
            spent = rig.clock.now() - began
            if problems >= config.attempts or spent > config.budget:
                rig.robot.relax()
                raise MotionFault(
                    f"Reset failed {problems} times in {spent:.0f} s, the robot is relaxed. {fault} Free the "
                    "fingers and the valve by hand."
                ) from fault
            disentangle(rig, config)


def _attempt(rig: Rig, angle: float, config: ResetConfig, pointer: float | None) -> float:
    joints = rig.robot.joints
    pointed = -math.inf if pointer is None else _point(rig, pointer)
    move_to(rig, fingers(config.clear, joints), config.motion)
    rig.robot.drive_object(angle, config.valve_tolerance, config.valve_timeout)
    state = move_to(rig, fingers(config.home, joints), config.motion)
    while state.time < pointed:
        rig.clock.sleep_until(rig.clock.now() + config.motion.period)
        state = rig.robot.read()
    final = wrap_angle(float(state.object.position[0]))
    speed = float(state.object.velocity[0])
    if abs(wrap_angle(final - angle)) > config.start_tolerance or abs(speed) > config.motion.still:
        raise MotionFault(
            f"The valve was driven to {angle:+.2f} rad, but with the fingers back home it is at {final:+.2f} "
            f"and turns at {speed:.2f} rad/s."
        )
    return final


def _point(rig: Rig, angle: float) -> float:
    """Sends the guide servo to an angle; returns when it has arrived even if it had to turn all around, s."""
    rig.robot.point(angle)
    dclaw = rig.config.dclaw
    return -math.inf if dclaw.guide_id is None else rig.clock.now() + math.tau / dclaw.object_velocity
