"""What a simulated D'Claw is made of: physics, servos and how they are mounted, delays, looks, camera."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from robot.randomise import RandomiseConfig
from robot.servo import FirmwareConfig
from robot.world import CameraPose, WorldConfig

FINGER_SERVOS = (10, 11, 12, 20, 21, 22, 30, 31, 32)
VALVE_SERVO = 50
# Ticks at joint angle 0, such that ROBEL's calibration holds: angle = ticks * rad per tick + offset, with
# offset -pi/2 for the first joint of each finger and -pi for all others and the valve.
ROBEL_ZEROS = (1024, 2048, 2048) * 3 + (2048,)
GUIDE_ZERO = 2048  # ticks, as the valve's; a guide's servo is mounted with sign 1
ZERO_TICKS = np.array(ROBEL_ZEROS, dtype=np.int64)
RESET_POSE = (0.0, -math.pi / 3, math.pi / 3) * 3  # rad, ROBEL's


class SimConfig(WorldConfig):
    """What the simulated rig is made of: physics, servos, delays, looks, camera."""

    servo_model: Literal[1000, 1010, 1020, 1030, 1040, 1050] = (
        1010  # XH430-W210, the servo whose factory values registers.py carries
    )
    torque_constant: PositiveFloat = 1.92  # Nm/A: XH430-W210 stalls at 2.5 Nm and 1.3 A (e-Manual, 12 V)
    command_delay: NonNegativeFloat = 0.0  # s from the packet to the motor
    frame_delay: NonNegativeFloat = 0.0  # s by which a frame's capture lies in the past
    # How the servos are mounted, joints first and the valve's last: angle = sign * (ticks - zero), in ticks.
    zero_ticks: tuple[int, ...] = ROBEL_ZEROS
    signs: tuple[Literal[1, -1], ...] = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    watchdog_hears_all: bool = False  # whether packets to other servos feed a watchdog (the manual is vague)
    firmware: FirmwareConfig = FirmwareConfig()
    thermal: bool = True  # whether currents warm servos, overheat and overload them
    camera: CameraPose = CameraPose()
    randomise: RandomiseConfig = RandomiseConfig()  # off, robel, sim2real, or ranges over one of these

    @model_validator(mode="after")
    def _mounts_every_servo(self) -> Self:
        for name in ("zero_ticks", "signs"):
            count = len(getattr(self, name))
            if count != len(ROBEL_ZEROS):
                raise ValueError(f"{name} has {count} entries for {len(ROBEL_ZEROS)} servos")
        return self

    @model_validator(mode="after")
    def _camera_stays_one(self) -> Self:
        ranges, camera = self.randomise.ranges, self.camera
        nearest = ranges.get("camera_distance", (0.0, 0.0))[0]
        if camera.distance + nearest <= 0:
            raise ValueError(
                f"randomise.camera_distance: from {camera.distance:g} m, {nearest:g} is too much"
            )
        low, high = ranges.get("camera_fovy", (0.0, 0.0))
        if not (camera.fovy + low > 0 and camera.fovy + high < 180):
            span = f"{low:g} to {high:g}"
            raise ValueError(f"randomise.camera_fovy: with {camera.fovy:g} deg, {span} leaves the 0 to 180")
        return self
