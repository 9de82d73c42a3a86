"""Slow motions of procedures at the bench: the fingers out of the camera's way, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from robot import registers as reg
from robot.clock import Ticker
from robot.dynamixel import DynamixelRobot
from robot.registers import FINGER_SEGMENTS, servo_name
from robot.rig import Rig
from robot.types import Floats, MotionFault

# rad, proximal, middle and distal: where fingers leave the view of valve and table free
OUT_OF_THE_WAY = (0.0, -math.pi / 3, math.pi / 3)
SPEED = 0.7  # rad/s, a third of what safety allows: a person is near
SETTLE = 1.0  # s
TOLERANCE = math.radians(8)  # rad; soft servos hang by 2 degrees


def out_of_the_way(rig: Rig) -> None:
    """Eases the fingers to where they hide least, the middle joints first, which lead them outwards.

    Raises MotionFault naming what is blocked, BusFault.
    """
    goal = np.tile(OUT_OF_THE_WAY, rig.robot.joints // len(OUT_OF_THE_WAY))
    here = rig.robot.read().joints.position
    middle = np.arange(len(here)) % len(FINGER_SEGMENTS) == 1
    ease(rig, np.where(middle, goal, here))
    ease(rig, goal)


def require_limp(rig: Rig) -> None:
    """Refuses a rig, not engaged, that hands cannot move, or whose servos count otherwise than in a run.

    Nothing is switched off here: fingers that somebody else's program left standing would fall. Raises
    MotionFault, BusFault.
    """
    robot = rig.robot
    if not isinstance(robot, DynamixelRobot):
        return
    if driven := robot.driven():
        raise MotionFault(
            f"{_named(driven)} under torque, which another program left on: hold what may fall, switch the "
            "servo power off and on, then try again."
        )
    if turned := [found.servo for found in robot.differences() if found.register == reg.DRIVE_MODE]:
        raise MotionFault(
            f"{_named(turned)} set to count otherwise than in a run (register 10, drive mode): "
            "`run_robot.py check --hw ... --fix` sets it right, then try again."
        )


def _named(servos: Sequence[int]) -> str:
    return f"{', '.join(map(servo_name, servos))} {'is' if len(servos) == 1 else 'are'}"


def ease(rig: Rig, pose: Floats) -> None:
    """Goes straight to a pose (J,) rad and rests there. Raises MotionFault naming what is blocked."""
    period = rig.config.control_period
    start = rig.robot.read().joints.position
    count = max(1, math.ceil(float(np.abs(pose - start).max()) / (SPEED * period)))
    ticker = Ticker(rig.clock, period)
    ticker.start()
    for step in range(1, count + 1 + round(SETTLE / period)):
        rig.robot.command(start + min(1.0, step / count) * (pose - start), period)
        ticker.wait()
        rig.robot.read()  # safety measures the next step from here
    away = rig.robot.read().joints.position - pose
    if (worst := float(np.abs(away).max())) > TOLERANCE:
        finger, joint = divmod(int(np.abs(away).argmax()), len(FINGER_SEGMENTS))
        raise MotionFault(
            f"finger {finger + 1}, {FINGER_SEGMENTS[joint]}, is {worst:.2f} rad from where it was sent. Free "
            "the fingers and the valve by hand, then try again."
        )
