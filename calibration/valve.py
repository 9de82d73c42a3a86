"""The valve's zero and sense of turning: its encoder held against its pointer, all around the circle."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from calibration.board import CalibrationError
from calibration.moving import out_of_the_way, require_limp
from calibration.publishing import publish_settings
from calibration.terminal import Keys
from robot.camera import crop_box
from robot.rig import CAMERA, NO_LIMIT, Rig
from robot.types import CameraFault, Floats, JointState, ValveGeometry
from robot.valve_check import SharpCamera, median_angle, sharp_enough
from robot.valve_vision import NotVisible, ValveEye

ANGLES = 12  # to which the servo turns the valve
FEWEST = 6  # at which the pointer must be seen
GAP = math.radians(150)  # the widest part of the circle without a sighting: a wrong camera shows somewhere
AGREE = math.radians(2)  # by which the picture may be off encoder and fit, as sightings promise
LOOKS = 5  # pictures for each angle, of which the median counts
FRAME = 0.035  # s from one to the next, of a camera of 30 Hz
SETTLE = 0.3  # s after a turn: the arms swing, and pictures are some frames old
SLOW = 1.0  # rad/s, while a person is near
TOLERANCE, TIMEOUT = 0.03, 12.0  # rad and s for a turn, of half the circle at most
SOON = 1e-4  # s; a simulated clock stops at whole steps, a millionth of one early
STILL = 0.03  # rad that the encoder may move while it is looked at
APART = math.radians(20)  # between angles that a hand turns to
TURN = "Turn the valve by hand, by about 30 deg, and let go. Enter ends it with what there is."

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ValveSighting:
    """The valve at rest: what its servo said, without any zero or sign, and what was seen, rad."""

    servo: float
    seen: float


@dataclass(frozen=True)
class ValveCalibration:
    """angle = sign * servo + offset, rad, by all sightings together."""

    offset: float
    sign: Literal[1, -1]
    sightings: tuple[ValveSighting, ...]
    residuals: Floats  # (K,) rad, seen less expected


def fit(sightings: Sequence[ValveSighting], near: float) -> ValveCalibration:
    """Offset and sign by which encoder and picture agree; `near` (rad) picks among offsets of whole turns.

    Raises CalibrationError where there are too few sightings, or where they do not agree.
    """
    seen = np.array([sighting.seen for sighting in sightings])
    _require_around(seen)
    signs: tuple[Literal[1, -1], ...] = (1, -1)
    found = min((_fit(sightings, sign, near) for sign in signs), key=_mean_square)
    worst = int(np.abs(found.residuals).argmax())
    if abs(found.residuals[worst]) > AGREE:
        raise CalibrationError(
            f"with the valve at {math.degrees(seen[worst]):+.0f} deg, picture and encoder differ by "
            f"{math.degrees(found.residuals[worst]):+.1f} deg from what fits to the other {len(seen) - 1} "
            f"angles; {math.degrees(AGREE):g} are allowed. Is the camera where hw.camera.projection says "
            "(`run_robot.py calibrate overlay`), is the horn fast on its servo?"
        )
    return found


def _require_around(seen: Floats) -> None:
    """Refuses sightings by which the camera's own mistakes could be taken for the valve's zero."""
    if len(seen) < FEWEST:
        raise CalibrationError(
            f"the pointer was seen at {len(seen)} angles, expected at least {FEWEST}: is it red, lit and in "
            "view, are the fingers out of the way?"
        )
    around = np.sort(np.remainder(seen, math.tau))
    gap = float(np.diff(np.append(around, around[0] + math.tau)).max())
    if gap > GAP:
        raise CalibrationError(
            f"the pointer was seen nowhere in {math.degrees(gap):.0f} deg of the circle, at most "
            f"{math.degrees(GAP):.0f} may be missing: what hides it there?"
        )


def _fit(sightings: Sequence[ValveSighting], sign: Literal[1, -1], near: float) -> ValveCalibration:
    apart = np.array([sighting.seen - sign * sighting.servo for sighting in sightings])
    offset = float(np.angle(np.exp(1j * apart).mean()))
    residuals = np.angle(np.exp(1j * (apart - offset)))
    return ValveCalibration(near + math.remainder(offset - near, math.tau), sign, (*sightings,), residuals)


def _mean_square(found: ValveCalibration) -> float:
    return float(np.square(found.residuals).mean())


class ValveWatch:
    """Looks at the resting valve of one rig, by camera and encoder at once."""

    def __init__(self, rig: Rig) -> None:
        """Raises CameraFault for a camera that is not calibrated, or shows the valve too small."""
        config, camera = rig.config, rig.cameras[CAMERA]
        if not isinstance(camera, SharpCamera):
            raise CameraFault(f"the camera of {config.name} has no larger picture than the agent's")
        largest = NO_LIMIT if config.kind == "sim" else crop_box(config.camera)[2:]
        self._size = sharp_enough(camera, config.camera.size, largest)
        self._rig, self._camera, self._dclaw = rig, camera, config.dclaw
        self._eye = ValveEye(camera.projection_at(self._size), self._size, ValveGeometry())

    def look(self) -> ValveSighting | NotVisible:
        """Where the valve is, by the median of some pictures. Raises CameraFault, BusFault."""
        before, angles = self.encoder(), list[float]()
        for _ in range(LOOKS):
            found = self._eye.look(self._camera.view(self._size, self._rig.config.camera.max_age).image)
            if isinstance(found, NotVisible):
                return found
            angles.append(found.angle)
            self.wait(FRAME)
        after = self.encoder()
        if abs(float(after.position[0] - before.position[0])) > STILL:
            return NotVisible("the valve is in motion")
        # Back to what the servo said: angle = sign * servo + offset.
        servo = (float(after.position[0]) - self._dclaw.object_offset) * self._dclaw.object_sign
        return ValveSighting(servo, median_angle(np.array(angles)))

    def encoder(self) -> JointState:
        """The valve's reading. Raises BusFault."""
        return self._rig.robot.read().object

    def wait(self, seconds: float) -> None:
        """Lets time pass; the readings keep the fingers' watchdogs awake."""
        until = self._rig.clock.now() + seconds
        while (now := self._rig.clock.now()) < until - SOON:
            self._rig.clock.sleep_until(min(until, now + FRAME))
            self._rig.robot.read()


def by_servo(rig: Rig, told: Told) -> list[ValveSighting]:
    """Turns the valve of an engaged rig around by its servo; where the pointer was seen. Raises Fault."""
    watch, found = ValveWatch(rig), list[ValveSighting]()
    out_of_the_way(rig)
    start = float(watch.encoder().position[0])
    for number in range(ANGLES):
        rig.robot.drive_object(start + math.tau * number / ANGLES, TOLERANCE, TIMEOUT)
        watch.wait(SETTLE)
        look = watch.look()
        told(f"{number + 1} of {ANGLES}: {_said(look)}")
        if isinstance(look, ValveSighting):
            found.append(look)
    return found


def by_hand(rig: Rig, keys: Keys, told: Told) -> list[ValveSighting]:
    """Watches a person turn the valve of a limp rig; where it rested and its pointer was seen.

    `told` hears what each look has found, mostly the same as before. Ends by Enter, or when there are
    as many angles as the servo would have turned to. Raises Fault.
    """
    require_limp(rig)
    watch, found = ValveWatch(rig), list[ValveSighting]()
    told(TURN)
    while len(found) < ANGLES and not keys.pressed():
        look, said = watch.look(), "known already, turn it further"
        if isinstance(look, NotVisible):
            said = _said(look)
        elif all(_apart(look, other) > APART for other in found):
            found.append(look)
            said = _said(look)
        told(f"{len(found)} of {ANGLES}: {said}")
    return found


def _apart(one: ValveSighting, other: ValveSighting) -> float:
    return abs(math.remainder(one.seen - other.seen, math.tau))


def _said(look: ValveSighting | NotVisible) -> str:
    if isinstance(look, NotVisible):
        return f"not seen, {look.reason}"
    return f"seen at {math.degrees(look.seen):+.1f} deg"


def publish(found: ValveCalibration, name: str, path: Path, when: str, console: Console) -> None:
    """Prints how well encoder and picture agree, writes the settings, says what to type. Raises OSError."""
    table = Table("servo, deg", "seen, deg", "off, deg")
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    publish_settings(settings(found, name, when), name, path, console)


def _rows(found: ValveCalibration) -> Iterator[tuple[str, str, str]]:
    for sighting, off in zip(found.sightings, found.residuals, strict=True):
        degrees = (sighting.servo, sighting.seen, float(off))
        servo, seen, away = (f"{math.degrees(angle):+.1f}" for angle in degrees)
        yield servo, seen, away


def settings(found: ValveCalibration, name: str, when: str) -> str:
    """A file for --config."""
    off = np.degrees(np.abs(found.residuals))
    lines = [
        f"# The valve of --hw {name} on {when}: its pointer as the camera saw it at {len(off)} angles.",
        f"# Encoder and picture agree within {off.max():.2f} deg, {np.sqrt(np.square(off).mean()):.2f} rms.",
        "hw:",
        "  dclaw:",
        f"    object_offset: {found.offset:.5f}  # rad",
        f"    object_sign: {found.sign}",
    ]
    return "\n".join(lines) + "\n"
