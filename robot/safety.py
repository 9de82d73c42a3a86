"""The last thing between a wish and a motor: finite, inside the box, not too fast. It cannot be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from robot.types import Applied, Config, Floats, InvalidCommand, JointState

# ROBEL's joint ranges of one D'Claw finger: top, middle and bottom servo, rad.
_FINGER = (0.48, math.pi / 3, math.pi / 2)

POSITION_LIMIT = "position-limit"  # the wish was outside the box
VELOCITY_LIMIT = "velocity-limit"  # the wish was too far from where the joint is
OUTSIDE_BOX = "outside-box"  # the joint itself was found outside the box
SELF_COLLISION = "self-collision"  # two fingers would have come too near each other
SHARES = (1.0, 0.5, 0.25)  # of a finger's step, tried one after the other until the fingers keep apart


class SafetyConfig(Config):
    """The box that joints may be sent into, and how fast; the defaults are ROBEL's for D'Claw."""

    lower: tuple[float, ...] = tuple(-limit for limit in _FINGER) * 3  # rad, per joint
    upper: tuple[float, ...] = _FINGER * 3  # rad, per joint
    max_velocity: float = Field(2 * math.pi / 3, gt=0, le=2 * math.pi)  # rad/s
    # A target stands for one control period; a caller that claims a longer one still gets this long a step.
    max_period: float = Field(0.25, gt=0, le=0.5)  # s
    # m by which commands may ask fingers to overlap, so to press on each other.
    overlap: float = Field(0.0, ge=0, le=0.01)

    @model_validator(mode="after")
    def _is_a_box(self) -> Self:
        if len(self.lower) != len(self.upper):
            raise ValueError(f"lower has {len(self.lower)} joints, upper has {len(self.upper)}")
        for joint, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if not low < high:
                raise ValueError(f"joint {joint}: lower {low} must be below upper {high}")
        return self


class Clearance(Protocol):
    """Knows how near the fingers come to each other."""

    @property
    def fingers(self) -> Sequence[slice]:
        """Which joints are one finger."""
        ...

    def __call__(self, position: Floats) -> float:
        """The smallest distance between two fingers at joint angles (J,) rad: m, negative if they overlap."""
        ...

    def keeps(self, position: Floats, margin: float) -> bool:
        """Whether all fingers are at least `margin` m apart at joint angles (J,) rad."""
        ...


class SafetyFilter:
    """Turns any wish into a target that is safe to send, and says what it changed. Pure: no state."""

    def __init__(self, config: SafetyConfig, clearance: Clearance | None = None) -> None:
        """clearance: None for a robot whose parts cannot touch each other."""
        self._clearance, self._overlap = clearance, config.overlap
        self._lower = np.array(config.lower, np.float64)
        self._upper = np.array(config.upper, np.float64)
        self._max_velocity = config.max_velocity
        self._max_period = config.max_period

    def __call__(self, target: Floats, state: JointState, dt: float) -> Applied:
        """The nearest target inside the box and within max_velocity * dt of the measured joints.

        Where two fingers would overlap by more than `overlap`, a finger makes a part of its step, or none;
        fingers that overlap already may only go where they do so no more.
        target: (J,) rad, wished for the next dt seconds. A joint that is measured outside the box counts as
        standing on the box's edge, so it is always sent back inside, never further out; how fast it returns
        is then bounded by the servo alone (its velocity limit, its profile velocity).

        Raises InvalidCommand, with nothing sent, for anything that is not finite, has the wrong shape or
        claims no positive period.
        """
        requested = self._validated(target, state, dt)
        boxed, stand = self._boxed(requested), self._boxed(state.position)
        near = self.bounded(requested, state.position, dt)
        sent = self._apart(stand, near)
        reasons = (
            (POSITION_LIMIT, boxed, requested),
            (VELOCITY_LIMIT, near, boxed),
            (SELF_COLLISION, sent, near),
            (OUTSIDE_BOX, stand, state.position),
        )
        return Applied(sent, requested, tuple(word for word, a, b in reasons if (a != b).any()))

    def bounded(self, target: Floats, position: Floats, dt: float) -> Floats:
        """(..., J) rad: what box and speed alone leave of wishes, for one robot or many imagined ones.

        target, position: (..., J) rad, finite. Nothing but a call of the filter itself may be sent: here
        fingers may still meet.
        """
        step = self._max_velocity * min(dt, self._max_period)
        stand = self._boxed(position)
        return np.minimum(np.maximum(self._boxed(target), stand - step), stand + step)

    def _boxed(self, angles: Floats) -> Floats:
        return np.minimum(np.maximum(angles, self._lower), self._upper)

    def _apart(self, stand: Floats, target: Floats) -> Floats:
        """As much of the way from `stand` to `target` as keeps the fingers apart, each finger for itself."""
        clearance = self._clearance
        if clearance is None or clearance.keeps(target, -self._overlap):
            return target
        pose = stand
        for finger in clearance.fingers:
            for share in SHARES:
                trial = pose.copy()
                trial[finger] += share * (target[finger] - stand[finger])
                if clearance.keeps(trial, -self._overlap) or clearance(trial) >= clearance(pose):
                    pose = trial
                    break
        return pose

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
