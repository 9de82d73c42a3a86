"""Pictures of the fingers at known poses, one finger moving at a time, slowly and clear of everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.board import CalibrationError
from calibration.moving import OUT_OF_THE_WAY, ease, out_of_the_way
from calibration.progress import Told
from robot.collision import FullTurnClearance
from robot.registers import FINGER_SEGMENTS
from robot.rig import Rig
from robot.safety import SafetyConfig
from robot.scene import View
from robot.types import Floats

FINGERS = 3
# rad: around a finger's reach, away from the others and from the valve however it stands.
ROUND = (
    (0.45, -1.0, 1.0),
    (0.4, -0.5, 0.0),
    (0.0, -0.5, 0.0),
    (-0.4, -0.5, 0.0),
    (-0.45, -1.0, 1.0),
    (0.0, -1.0, -0.3),
    OUT_OF_THE_WAY,
)
CLEAR = 0.012  # m to other fingers and to the valve: soft servos hang by 2 degrees, 7 mm at a finger's tip
BETWEEN = 0.1  # rad between the poses of a way that are looked at
DURATION = 50.0  # s for all motions
FEWEST = 5  # poses of each finger, that what is behind it shows in one of the pictures


@dataclass(frozen=True)
class Series:
    """Pictures between which nothing but one finger has moved."""

    finger: int  # 0 to 2
    views: tuple[View, ...]


def plan(safety: SafetyConfig) -> list[tuple[int, Floats]]:
    """Which finger goes where (J,) rad, one after the other; what is not clear or not allowed is left out.

    Raises CalibrationError where too little is left.
    """
    clearance = FullTurnClearance()
    here = np.tile(OUT_OF_THE_WAY, FINGERS)
    found = []
    for finger in range(FINGERS):
        for wanted in ROUND:
            goal = here.copy()
            goal[finger * len(FINGER_SEGMENTS) :][: len(FINGER_SEGMENTS)] = wanted
            inside = (goal >= np.array(safety.lower) - 1e-3) & (goal <= np.array(safety.upper) + 1e-3)
            if inside.all() and all(clearance.keeps(pose, CLEAR) for pose in _way(here, goal)):
                found.append((finger, goal))
                here = goal
    _require_enough(found)
    return found


def _require_enough(poses: Sequence[tuple[int, Floats]]) -> None:
    for finger in range(FINGERS):
        if (count := sum(moved == finger for moved, _ in poses)) < FEWEST:
            raise CalibrationError(
                f"finger {finger + 1} may go to {count} of {len(ROUND)} poses without leaving the box or "
                f"coming within {1e3 * CLEAR:.0f} mm of others and the valve, expected at least {FEWEST}: "
                "widen hw.dclaw.safety.lower and .upper, or use a board"
            )


def _way(start: Floats, goal: Floats) -> Iterator[Floats]:
    count = max(1, int(np.ceil(np.abs(goal - start).max() / BETWEEN)))
    for step in range(1, count + 1):
        yield start + step / count * (goal - start)


def take(rig: Rig, poses: Sequence[tuple[int, Floats]], told: Told) -> list[Series]:
    """Moves the fingers of an engaged rig, one by one, and takes a picture at each rest. Raises Fault."""
    found = list[Series]()
    out_of_the_way(rig)
    view, taken = rig.view(), 0
    for finger in range(FINGERS):
        views = [view]
        for pose in (pose for moved, pose in poses if moved == finger):
            told(f"finger {finger + 1}", taken / len(poses))
            ease(rig, pose)
            views.append(rig.view())
            taken += 1
        found.append(Series(finger, tuple(views)))
        view = views[-1]
    return found
