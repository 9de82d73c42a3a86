"""The last thing between a wish and a motor: finite, inside the box, not too fast. It cannot be off."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from robot.types import Applied, Config, Floats, InvalidCommand, JointState

# ROBEL's joint ranges of one D'Claw finger: top, middle and bottom servo, rad.
_FINGER = (0.48, math.pi / 3, math.pi / 2)

POSITION_LIMIT = "position-limit"  # the wish was outside the box
VELOCITY_LIMIT = "velocity-limit"  # the wish was too far from where the joint is
OUTSIDE_BOX = "outside-box"  # the joint itself was found outside the box


class SafetyConfig(Config):
    """The box that joints may be sent into, and how fast; the defaults are ROBEL's for D'Claw."""

    lower: tuple[float, ...] = tuple(-limit for limit in _FINGER) * 3  # rad, per joint
    upper: tuple[float, ...] = _FINGER * 3  # rad, per joint
    max_velocity: float = Field(2 * math.pi / 3, gt=0, le=2 * math.pi)  # rad/s
    # A target stands for one control period; a caller that claims a longer one still gets this long a step.
    max_period: float = Field(0.25, gt=0, le=0.5)  # s

    @model_validator(mode="after")
    def _is_a_box(self) -> Self:
        if len(self.lower) != len(self.upper):
            raise ValueError(f"lower has {len(self.lower)} joints, upper has {len(self.upper)}")
        for joint, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if not low < high:
                raise ValueError(f"joint {joint}: lower {low} must be below upper {high}")
        return self


class SafetyFilter:
    """Turns any wish into a target that is safe to send, and says what it changed. Pure: no state."""

    def __init__(self, config: SafetyConfig) -> None:
        self._lower = np.array(config.lower, np.float64)
        self._upper = np.array(config.upper, np.float64)
        self._max_velocity = config.max_velocity
        self._max_period = config.max_period

    def __call__(self, target: Floats, state: JointState, dt: float) -> Applied:
        """The nearest target that is inside the box and within max_velocity * dt of the measured joints.

        target: (J,) rad, wished for the next dt seconds. A joint that is measured outside the box counts as
        standing on the box's edge, so it is always sent back inside, never further out; how fast it returns
        is then bounded by the servo alone (its velocity limit, its profile velocity).

        Raises InvalidCommand, with nothing sent, for anything that is not finite, has the wrong shape or
        claims no positive period.
        """
        requested = self._validated(target, state, dt)
        step = self._max_velocity * min(dt, self._max_period)
        boxed = np.minimum(np.maximum(requested, self._lower), self._upper)
        stand = np.minimum(np.maximum(state.position, self._lower), self._upper)
        sent = np.minimum(np.maximum(boxed, stand - step), stand + step)
        reasons = (
            (POSITION_LIMIT, boxed, requested),
            (VELOCITY_LIMIT, sent, boxed),
            (OUTSIDE_BOX, stand, state.position),
        )
        return Applied(sent, requested, tuple(word for word, a, b in reasons if (a != b).any()))

    def _validated(self, target: Floats, state: JointState, dt: float) -> Floats:
        requested = np.array(target, np.float64)
        if requested.shape != self._lower.shape:
            raise InvalidCommand(
                f"target has shape {requested.shape}, expected {self._lower.shape} joint angles"
            )
        if not np.isfinite(requested).all():
            raise InvalidCommand(f"target is not finite: {_numbers(requested)}; nothing was sent")
        if state.position.shape != requested.shape or not np.isfinite(state.position).all():
            raise InvalidCommand(
                f"measured position is unusable: {_numbers(state.position)}; nothing was sent"
            )
        if not (math.isfinite(dt) and dt > 0):
            raise InvalidCommand(f"dt must be a positive number of seconds, got {dt}; nothing was sent")
        return requested


def _numbers(values: Floats) -> str:
    return np.array2string(np.asarray(values), precision=3, separator=", ")
