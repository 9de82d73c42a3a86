"""What the tasks of a D'Claw share: what an action asks of the fingers, where they rest, what is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, model_validator

from robot.types import CameraFault, Config, Floats, Image, JointState
from tasks.resets import ResetConfig, fingers, joint_name, move_to, reset_valve
from tasks.rewards import wrap_angle
from tasks.task import Action, RobotTaskConfig, Task

if TYPE_CHECKING:
    from robot.rig import Rig

FINGERS = 3
Reaches = tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]  # proximal, middle, distal
Colour = tuple[int, int, int]
GREEN: Colour = (30, 200, 60)  # neither the floor's grey nor the valve's blue and red is near it
DOT_RADIUS = 2.5 / 64  # of the image's height: 2.5 px of 64


class Interval(Config):
    """Any number in [low, high), all equally likely."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}; swap them")
        return self

    def sample(self, rng: np.random.Generator) -> float:
        """A number of the interval."""
        return float(rng.uniform(self.low, self.high))


class ClawConfig(RobotTaskConfig):
    """What every task of a D'Claw has."""

    # rad per finger joint that an action of 1 asks for, about 0; ROBEL's ranges (dclaw/base_env.py)
    action_range: Reaches = (0.48, math.pi / 3, math.pi / 2)
    reset: ResetConfig = ResetConfig()


class Claw(Task):
    """A task in which actions are position targets of nine finger joints."""

    joint_unit, thing = "rad", "valve, rad"

    def __init__(self, config: ClawConfig) -> None:
        super().__init__(config)
        self._reset = config.reset
        self._action_size = FINGERS * len(config.action_range)
        self._range = fingers(config.action_range, self._action_size)
        self._home = fingers(config.reset.home, self._action_size)

    @property
    def action_size(self) -> int:
        """Three joints for each of three fingers."""
        return self._action_size

    @property
    def joint_size(self) -> int:
        """Joint positions and velocities."""
        return 2 * self.action_size

    def target(self, action: Action, state: JointState) -> Floats:
        """(J,) rad about zero, as ROBEL maps them; the velocity limit is the robot's safety filter."""
        return np.asarray(action, np.float64) * self._range

    @property
    def hold(self) -> Action:
        """The fingers at home."""
        return self.asking_for(self._home)

    def asking_for(self, pose: Floats) -> Action:
        """The action (A,) whose target is nearest to a pose (J,) rad."""
        action = np.divide(pose, self._range, out=np.zeros_like(pose), where=self._range != 0)
        return action.clip(-1, 1).astype(np.float32)

    def put_back(self, rig: Rig, joints: Floats, thing: Floats) -> None:
        """Drives the valve to its angle and eases the fingers to theirs."""
        reset_valve(rig, float(thing[0]), self._reset)
        move_to(rig, joints, self._reset.motion)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """By finger."""
        return tuple(joint_name(index) for index in range(self.action_size))

    def apart(self, now: Floats, then: Floats) -> Floats:
        """The angle between two angles of the valve."""
        pairs = zip(now[:, 0].tolist(), then[:, 0].tolist(), strict=True)
        return np.array([abs(wrap_angle(one - other)) for one, other in pairs])


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled antialiased disc, ready to be blended into images of one size."""

    rows: slice
    columns: slice
    alpha: NDArray[np.float32]  # (h, w, 1) coverage
    paint: NDArray[np.float32]  # (h, w, 3) colour times coverage

    @classmethod
    def at(cls, centre: tuple[float, float], size: tuple[int, int]) -> Self:
        """A dot around `centre` px (u right, v down; whole numbers are pixel centres) of an (H, W) image.

        Raises CameraFault when a part of it would be outside of the image.
        """
        (u, v), (height, width) = centre, size
        reach = DOT_RADIUS * height + 0.5
        if not (reach <= u <= width - 1 - reach and reach <= v <= height - 1 - reach):
            raise CameraFault(
                f"The goal dot would be at pixel ({u:.1f}, {v:.1f}), partly outside of {width}x{height} px. "
                "Point the camera at the valve or correct its calibrated projection."
            )
        return cls.within(centre, size)

    @classmethod
    def within(cls, centre: tuple[float, float], size: tuple[int, int], colour: Colour = GREEN) -> Self:
        """As much of a dot as lies within the image, perhaps nothing."""
        (u, v), (height, width) = centre, size
        reach = DOT_RADIUS * height + 0.5
        rows, columns = _covered(v, reach, height), _covered(u, reach, width)
        y, x = np.mgrid[rows, columns]
        # Coverage of a pixel that the disc's edge crosses, to first order: no jagged dot at 5 px across.
        alpha = np.clip(reach - np.hypot(x - u, y - v), 0, 1).astype(np.float32)[..., None]
        return cls(rows, columns, alpha, alpha * np.asarray(colour, np.float32))

    def draw(self, image: Image) -> Image:
        """A copy of image (H, W, 3) with the dot over whatever is there."""
        drawn = image.copy()
        patch = drawn[self.rows, self.columns]
        drawn[self.rows, self.columns] = np.rint((1 - self.alpha) * patch + self.paint)
        return drawn


def _covered(centre: float, reach: float, size: int) -> slice:
    """The pixels of an axis of `size` px that lie within reach of the centre."""
    first, last = math.floor(centre - reach), math.ceil(centre + reach)
    return slice(min(max(first, 0), size), min(max(last + 1, 0), size))


def project(projection: Floats, point: Floats) -> tuple[float, float]:
    """Pixel (u, v) of a point (3,) m seen through a (3, 4) projection."""
    u, v, w = projection @ np.append(point, 1.0)
    return float(u / w), float(v / w)
