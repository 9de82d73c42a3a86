"""The valve's angle from a picture of its red pointer; "not visible" where it cannot be told, never a guess.

The calibrated camera says which outline the pointer has at which angle. Fingers hide red and add none, so
every angle is possible whose outline holds all the red that there is. Where both flanks of the pointer show,
these angles are one; where a finger hides a flank, they are a range, and its width is the error that is told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot.types import CameraFault, Floats, Image, ValveGeometry

# m at the valve for a pixel. With 2.7 mm (128 px of the simulated camera) every sighting is right within 2
# degrees; with 5.4 (64 px) few pictures allow one, and some are off by 2.6 degrees: benchmarks/valve_eye.py.
PITCH = 0.003
# By what share of its red a pixel of the pointer leads over green and blue, at least. With the colours of the
# sim2real preset the pointer leads by 0.93 under the worst white balance, the reddest arm by 0.72 under the
# best. Below 40 levels of 255 noise rules.
REDNESS = 0.75
LEAST_LEAD = 40.0
# Of the greatest lead nearby, from no pointer to all pointer; between, what an edge pixel holds. The middle
# is below a half because a round rod is darker at its outline than inside of it: with (0.15, 0.85) and 2 px
# JPEG pictures, whose colours are blurred, gave an angle in 46 % of 500 scenes, with these values in 74 %.
EDGE = (0.2, 0.6)
NEARBY = 1  # px on each side
LEAST_SHARE = 0.15  # of the pointer; less is too short to have a direction
# px of red outside of the outline, for each px of a flank's length: pixels cut by the outline come to 0.35;
# from LOST on it is not a pointer. Where it rises through LOW and HIGH, the outline has left the pointer.
LOST, LOW, HIGH = 0.6, 0.6, 1.2
MOST_ERROR = math.radians(2.0)
# Of the angle between LOW and HIGH: the shorter a flank, the flatter the rise, and the further do pixels that
# are counted wrongly move its beginning. With 0.25, 3 of 5000 pictures are further off than they tell.
UNSURE = 0.25
# rad, where the pointer is looked for at first, and then about the best of these
CIRCLE: Floats = np.arange(72, dtype=np.float64) * (math.tau / 72)
WINDOW: Floats = np.arange(-18, 19, dtype=np.float64) * math.radians(1)
THINNED = 4  # at first, of so many red pixels one is enough


@dataclass(frozen=True, slots=True)
class PointerShape:
    """The pointer's body: a rod with round ends that lies in the valve's plane."""

    inner: float = 0.003  # m from the valve's axis to where the rod's own axis begins
    radius: float = 0.021  # m, half of its thickness


@dataclass(frozen=True, slots=True)
class Sighting:
    """The valve's angle as seen, rad in (-pi, pi], with the error that is to be expected at most."""

    angle: float
    error: float  # rad
    confidence: float  # 0 to 1, the share of the pointer that shows


@dataclass(frozen=True, slots=True)
class NotVisible:
    """The angle cannot be told from this picture, and why."""

    reason: str


@dataclass(frozen=True)
class _Rays:
    """Lines of sight of N pixels, as far as their distance from the pointer's axis hangs on them.

    The valve's centre lies at `away` from a line; u and v are the parts of `away` along x and y, direction
    (N, 2) those of the line itself.
    """

    squared: Floats  # (N,) m2, |away|^2
    away: Floats  # (N, 2) m
    direction: Floats  # (N, 2)

    @classmethod
    def through(cls, projection: Floats, pixels: Floats, centre: Floats) -> _Rays:
        """Those of pixels (N, 2) of a camera (3, 4)."""
        inverse = _inverse(projection)
        eye = -inverse @ projection[:, 3]
        lines = np.column_stack([pixels, np.ones(len(pixels))]) @ inverse.T
        lines /= np.linalg.norm(lines, axis=1, keepdims=True)
        gap = centre - eye
        away = gap - (lines @ gap)[:, None] * lines
        return cls(np.square(away).sum(1), away[:, :2], lines[:, :2])

    def of(self, chosen: NDArray[np.intp]) -> _Rays:
        """The lines of some of the pixels."""
        return _Rays(self.squared[chosen], self.away[chosen], self.direction[chosen])

    def distances(self, angles: Floats, inner: float, outer: float) -> Floats:
        """(N, K) m from rods at angles (K,), which begin and end so far from the centre."""
        heading = np.stack([np.cos(angles), np.sin(angles)])
        slope = self.away @ heading
        bend = 1 - np.square(self.direction @ heading)
        nearest = np.clip(-slope / bend, inner, outer)
        squared = self.squared[:, None] + nearest * (2 * slope + nearest * bend)
        return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


class ValveEye:
    """Finds the valve's pointer in pictures of one calibrated camera; knows nothing of encoders.

    projection: (3, 4), base-frame metres to homogeneous pixels; size: (width, height) px of the pictures.
    Raises CameraFault when the valve is not wholly in such a picture, or the projection is none of a camera.
    """

    def __init__(
        self,
        projection: Floats,
        size: tuple[int, int],
        geometry: ValveGeometry | None = None,
        shape: PointerShape | None = None,
    ) -> None:
        self._geometry, self._shape = geometry or ValveGeometry(), shape or PointerShape()
        self.projection, self.size = np.asarray(projection, np.float64), size
        self.pitch = pitch(self.projection, self._geometry)
        self._rows, self._columns = self._around_the_valve()
        v, u = np.mgrid[self._rows, self._columns]
        pixels = np.column_stack([u.ravel(), v.ravel()]).astype(np.float64)
        self._rays = _Rays.through(self.projection, pixels, np.array(self._geometry.centre))
        self._flank = (self._geometry.radius - self._shape.radius) / self.pitch  # px

    def look(self, image: Image) -> Sighting | NotVisible:
        """The valve's angle in a picture (H, W, 3) uint8 RGB. Raises ValueError for another size."""
        if image.shape != (self.size[1], self.size[0], 3):
            raise ValueError(f"the eye is for {self.size[0]}x{self.size[1]} px, got an image {image.shape}")
        red = redness(image[self._rows, self._columns]).ravel()
        chosen = np.flatnonzero(red)
        rays, weights = self._rays.of(chosen), red[chosen]
        if weights.sum() < LEAST_SHARE * self._largest:
            return NotVisible("no red pointer shows: it is hidden, unlit or not red")
        start = self._roughly(rays.of(np.arange(0, len(chosen), THINNED)), weights[::THINNED])
        if start is None:
            return NotVisible("too little of the pointer shows to have a direction")
        return self._closely(start + WINDOW, rays, weights)

    @property
    def _largest(self) -> float:
        """px of a pointer that is seen from above."""
        return 2 * self._shape.radius / self.pitch * self._flank

    def _roughly(self, rays: _Rays, weights: Floats) -> float | None:
        """The middle of all angles that are possible at first sight, rad; None if they are no short range."""
        outside = self._outside(CIRCLE, rays, weights) * THINNED
        possible = np.exp(1j * CIRCLE[outside <= outside.min() + HIGH * self._flank])
        middle = float(np.angle(possible.sum()))
        spread = np.abs(np.angle(possible * np.exp(-1j * middle))).max()
        return middle if spread < WINDOW[-1] else None

    def _closely(self, angles: Floats, rays: _Rays, weights: Floats) -> Sighting | NotVisible:
        outside = self._outside(angles, rays, weights) / self._flank
        best = int(outside.argmin())
        if outside[best] > LOST:
            return NotVisible("red where the pointer cannot be: is the camera where its calibration says?")
        above = _limit(angles[best:], outside[best:])
        below = _limit(angles[best::-1], outside[best::-1])
        if above is None or below is None:
            return NotVisible("a flank of the pointer is hidden")
        error = abs(above.angle - below.angle) / 2 + UNSURE * max(above.blur, below.blur)
        if error > MOST_ERROR:
            return NotVisible(f"too much of the pointer is hidden: +-{math.degrees(error):.0f} deg")
        angle = (above.angle + below.angle) / 2
        return Sighting(math.remainder(angle, math.tau), error, self._share(angle, weights.sum()))

    def _outside(self, angles: Floats, rays: _Rays, weights: Floats) -> Floats:
        """(K,) px of red that the pointer's outline at angles (K,) rad does not hold."""
        return np.asarray(weights @ (1 - self._cover(angles, rays)))

    def _cover(self, angles: Floats, rays: _Rays) -> Floats:
        """(N, K): how much of each pixel lies within the outline at angles (K,) rad."""
        geometry, radius = self._geometry, self._shape.radius
        headings = angles + geometry.zero_angle
        gaps = rays.distances(headings, self._shape.inner, geometry.radius - radius)
        return np.clip(0.5 + (radius - gaps) / self.pitch, 0.0, 1.0)

    def _share(self, angle: float, seen: float) -> float:
        """How much of the pointer's outline is red."""
        return float(min(1.0, seen / self._cover(np.array([angle]), self._rays).sum()))

    def _around_the_valve(self) -> tuple[slice, slice]:
        """The rows and columns that the pointer may be in."""
        circle = np.array([self._geometry.rim(float(angle)) for angle in CIRCLE])
        thick = np.array([0.0, 0.0, self._shape.radius])
        points = np.column_stack([np.concatenate([circle + thick, circle - thick]), np.ones(2 * len(circle))])
        u, v, w = self.projection @ points.T
        columns, rows = u / w, v / w
        width, height = self.size
        if min(columns.min(), rows.min()) < 0 or columns.max() > width - 1 or rows.max() > height - 1:
            raise CameraFault(
                f"the valve's circle is partly outside of the {width}x{height} px picture: point the camera "
                "at the valve, or correct hw.camera.projection and .crop"
            )
        return (
            slice(int(rows.min()), math.ceil(rows.max()) + 1),
            slice(int(columns.min()), math.ceil(columns.max()) + 1),
        )


def pitch(projection: Floats, geometry: ValveGeometry) -> float:
    """Metres at the valve, across the line of sight, that a pixel of a camera (3, 4) shows.

    Raises CameraFault for a projection that is none of a camera.
    """
    inverse = _inverse(projection)
    u, v, w = projection @ np.append(geometry.centre, 1.0)
    lines = np.array([[u / w, v / w, 1.0], [u / w + 1, v / w, 1.0], [u / w, v / w + 1, 1.0]]) @ inverse.T
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    steps = np.linalg.norm(lines[1:] - lines[0], axis=1)  # rad
    distance = np.linalg.norm(np.array(geometry.centre) + inverse @ projection[:, 3])
    return float(distance * math.sqrt(steps[0] * steps[1]))


def _inverse(projection: Floats) -> Floats:
    """(3, 3): from pixels (u, v, 1) to their lines of sight. Raises CameraFault."""
    try:
        return np.asarray(np.linalg.inv(projection[:, :3]))
    except np.linalg.LinAlgError:
        raise CameraFault(
            "hw.camera.projection is not that of a camera: every picture would show one line or one point. "
            "`run_robot.py calibrate camera` measures it"
        ) from None


def redness(image: Image) -> Floats:
    """(H, W), 0 to 1: how much of each pixel is pointer, whatever the light's brightness."""
    levels = image.astype(np.float32)
    lead = levels[..., 0] - np.maximum(levels[..., 1], levels[..., 2])
    clear = (lead >= LEAST_LEAD) & (lead >= REDNESS * levels[..., 0])
    pure = _widened(np.where(clear, lead, 0.0))
    low, high = EDGE
    share = np.clip((lead / np.maximum(pure, 1.0) - low) / (high - low), 0.0, 1.0)
    return np.asarray(np.where(pure > 0, share, 0.0), dtype=np.float64)


def _widened(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest of each pixel's neighbourhood."""
    height, width = values.shape
    padded = np.pad(values, NEARBY)
    rows = np.max([padded[i : i + height] for i in range(2 * NEARBY + 1)], axis=0)
    return np.asarray(np.max([rows[:, i : i + width] for i in range(2 * NEARBY + 1)], axis=0))


@dataclass(frozen=True, slots=True)
class _Limit:
    """The last possible angle on one side, rad, and how far the outline had to go on to tell, rad."""

    angle: float
    blur: float


def _limit(angles: Floats, outside: Floats) -> _Limit | None:
    """The last possible angle on the way along angles (K,) on which red comes to lie outside.

    The rise is that of a flank that the outline leaves behind: the line through two points of it meets zero
    where the flank is. Something that hides a part of the flank bends the rise and moves this point away.
    """
    if outside[-1] < HIGH or len(angles) < 2:
        return None
    low, high = np.interp([LOW, HIGH], np.maximum.accumulate(outside), angles)
    return _Limit(float(low - (high - low) * LOW / (HIGH - LOW)), float(abs(high - low)))
