"""The camera as a witness of the valve's encoder: a loose or slipping horn, of which the servo knows nothing.

An encoder tells how its own shaft has turned. Whether the valve has turned with it, only somebody who looks
can say. Every so often a sighting is held against the encoder, and a lasting difference is told as an event.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, PositiveInt

from robot.types import CameraFault, Config, Floats, Frame, Image, JointState, Snapshot, ValveGeometry
from robot.valve_vision import PITCH, NotVisible, Sighting, ValveEye, pitch

UNSEEN = 60  # looks in a row without an angle, a minute of control, until a person is told so
MOST_ZOOM = 8  # times the agent's picture; beyond it the camera is too far away


class ValveCheckConfig(Config):
    """Whether and how often the camera checks the valve's encoder."""

    mode: Literal["auto", "on", "off"] = "auto"  # auto: where time is real and the camera is good enough
    every: PositiveInt = 10  # control steps between two looks; a look costs about 1 ms
    looks: int = Field(5, ge=3, le=100)  # that are taken together: their median counts
    limit: float = Field(0.1, gt=0.035, lt=math.pi)  # rad; sightings themselves are good for 0.035
    fastest: float = Field(0.5, gt=0)  # rad/s, of a valve that is looked at: 10 ms are 0.005 rad then


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A lasting difference between camera and encoder, rad, worth to be told."""

    name: Literal["valve-offset", "valve-slips"]
    seen: float
    encoder: float
    apart: float  # seen less encoder, the median of the last looks
    first: float  # the same, of the first looks

    @property
    def text(self) -> str:
        """For the person at the bench: both angles, what it means and what to do."""
        angles = (self.seen, self.encoder, self.apart, self.first)
        seen, encoder, apart, first = (round(math.degrees(angle)) for angle in angles)
        both = f"the camera sees the valve at {seen:+d} deg, its encoder says {encoder:+d} deg"
        found = f"{both}; the last looks were {apart:+d} deg apart, "
        if self.name == "valve-offset":
            return (
                f"{found}as they were from the first on. Either its zero is wrong (add {self.apart:+.3f} rad "
                "to hw.dclaw.object_offset), or the horn was mounted turned, or the camera is not where "
                "hw.camera.projection says."
            )
        return (
            f"{found}the first ones {first:+d} deg. The valve slips on its horn, or the camera was moved. "
            "Ctrl-C; fasten the horn's screws, set the valve to its zero, look at hw.camera.projection. "
            "Rewards since then are off by as much."
        )


class EncoderWitness:
    """Holds sightings against an encoder; pure: what it says hangs on what it was told, and nothing else."""

    def __init__(self, config: ValveCheckConfig) -> None:
        self._config = config
        self._latest: deque[float] = deque(maxlen=config.looks)  # rad, seen less encoder
        self._first: float | None = None  # rad, the first median
        self._told: set[str] = set()

    def hears(self, time: float, encoder: JointState, sighting: Sighting) -> Disagreement | None:
        """What a sighting of a time (s) adds; a disagreement is told once by each name.

        The valve moves on between picture and reading; that is reckoned with, and a fast one is not judged.
        """
        velocity = float(encoder.velocity[0])
        if abs(velocity) > self._config.fastest:
            return None
        angle = float(encoder.position[0]) + velocity * (time - encoder.time)
        self._latest.append(math.remainder(sighting.angle - angle, math.tau))
        if len(self._latest) < self._config.looks:
            return None
        return self._judged(sighting.angle, math.remainder(angle, math.tau))

    def _judged(self, seen: float, encoder: float) -> Disagreement | None:
        apart = median_angle(np.array(self._latest))
        if self._first is None:
            self._first = apart
        changed = abs(math.remainder(apart - self._first, math.tau)) > self._config.limit
        if changed and "valve-slips" not in self._told:
            self._told.add("valve-slips")
            return Disagreement("valve-slips", seen, encoder, apart, self._first)
        if not changed and abs(apart) > self._config.limit and not self._told:
            self._told.add("valve-offset")
            return Disagreement("valve-offset", seen, encoder, apart, self._first)
        return None


def median_angle(angles: Floats) -> float:
    """The median of angles (N,) rad, wherever on the circle they lie."""
    around = float(np.angle(np.exp(1j * angles).sum()))
    turned = np.remainder(angles - around + math.pi, math.tau) - math.pi
    return math.remainder(around + float(np.median(turned)), math.tau)


@runtime_checkable
class SharpCamera(Protocol):
    """A camera that has more to show than what it delivers to the agent."""

    def view(self, size: tuple[int, int], max_age: float) -> Frame:
        """The newest picture in another size (width, height) px. Raises CameraFault, StaleFrame."""
        ...

    def projection_at(self, size: tuple[int, int]) -> Floats:
        """(3, 4): `projection` for pictures of another size. Raises CameraFault without calibration."""
        ...


class ValveCheck:
    """Looks at the valve every so many control steps, and says once when it does not believe the encoder."""

    def __init__(
        self,
        config: ValveCheckConfig,
        camera: SharpCamera,
        size: tuple[int, int],
        max_age: float,
        tell: Callable[[str, str], None],
    ) -> None:
        """size: px of the pictures to look at; max_age: s; tell: gets an event's name and its text."""
        self._config, self._camera, self._size, self._max_age = config, camera, size, max_age
        self._tell = tell
        self._witness = EncoderWitness(config)
        self._eye: ValveEye | None = None
        self._steps = 0
        self.looks = self.sightings = 0
        self._in_vain = 0  # looks since the last sighting

    def __call__(self, snapshot: Snapshot) -> None:
        """One control step's reading; most of them are let pass. Never raises a Fault."""
        self._steps += 1
        if self._steps % self._config.every:
            return
        with contextlib.suppress(CameraFault):  # a check must not end what it checks
            self._look(snapshot)

    def _look(self, snapshot: Snapshot) -> None:
        frame = self._camera.view(self._size, self._max_age)
        found = self._found(frame.image)
        self.looks += 1
        if isinstance(found, NotVisible):
            self._missed(found)
            return
        self.sightings += 1
        self._in_vain = 0
        if doubt := self._witness.hears(frame.time, snapshot.object, found):
            self._tell(doubt.name, doubt.text)

    def _found(self, image: Image) -> Sighting | NotVisible:
        try:
            return self._open_eye().look(image)
        except CameraFault as fault:  # a camera that was moved so far that the valve is not wholly in view
            return NotVisible(str(fault))

    def _missed(self, found: NotVisible) -> None:
        """Says so, once for each time that it lasts, where the check has become none."""
        self._in_vain += 1
        if self._in_vain == UNSEEN:
            self._tell(
                "valve-unseen",
                f"in {UNSEEN} looks the camera has not seen the valve's angle, so nobody checks its encoder "
                f"({found.reason}). Is the pointer red, lit and in view? --set hw.valve_check.mode=off does "
                "without.",
            )

    def _open_eye(self) -> ValveEye:
        """The eye for the camera as it stands now: in simulation it may be moved between episodes."""
        projection = self._camera.projection_at(self._size)
        if self._eye is None or not np.array_equal(projection, self._eye.projection):
            self._eye = ValveEye(projection, self._size)
        return self._eye


def sharp_enough(camera: SharpCamera, size: tuple[int, int], largest: tuple[int, int]) -> tuple[int, int]:
    """The smallest multiple of a picture's size (width, height) px in which sightings can be trusted.

    largest: px, what the camera has. Raises CameraFault where that is not enough, where the valve is not
    wholly in view, or without calibration.
    """
    for zoom in range(1, MOST_ZOOM + 1):
        wanted = (zoom * size[0], zoom * size[1])
        sharp = pitch(camera.projection_at(wanted), ValveGeometry()) <= PITCH
        if sharp and wanted[0] <= largest[0] and wanted[1] <= largest[1]:
            ValveEye(camera.projection_at(wanted), wanted)
            return wanted
    raise CameraFault(
        f"the camera shows the valve too small for its angle to be seen: {largest[0]}x{largest[1]} px are "
        f"not {PITCH * 1e3:g} mm for each at the valve. Raise hw.camera.width and .height, or go nearer; "
        "--set hw.valve_check.mode=off does without."
    )
