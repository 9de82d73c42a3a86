"""Where the fingers' outlines are in the pictures, and where a camera at some place would see the model's.

Pictures between which one finger has moved tell what is finger and what is not, whatever else they show: what
the other pictures have in its place is what is behind it. Roughly: by which shift do the shapes of what has
changed cover each other. Finely: how far from each piece of the model's outline, along its normal, does the
picture change most steeply from finger to what is behind it. A piece of outline belongs to a known point of
space, the drawing's depth tells which; so how it hangs on the camera's place is plain projection, and nothing
has to be varied to see what happens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.fingers import Series
from calibration.overlay import Fingers, Ghost
from robot.camera import CameraConfig
from robot.delivery import straightened
from robot.place import Place
from robot.scene import View
from robot.types import Floats
from robot.world import WorldConfig

Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Unknowns: a place's turn and shift, the focal length's logarithm, the joints' zeros.
PLACE, FOCAL, ZEROS = slice(0, 6), 6, slice(7, 16)
UNKNOWNS = 16
LARGEST = 640  # px of width at which outlines are looked at; more costs time and tells no more
ROUGH = 160  # px of width at which shapes are
SOFT = 1.2  # px of blur: steps of single pixels, where nothing else smooths them, become slopes
FAINT = 10.0  # levels of 255 by which finger and background must differ; noise leaves 1 after blur and mean
STIRRED = 3 * FAINT  # levels; backlash moves edges by half a px, which is less
SIDE = 3.0  # px from an edge, beyond its blur, where its two sides are looked at
STEP = 0.5  # px between two looks along a normal
LEVEL = 0.4  # of the change inside an edge, what may be left of it outside
NEARER = 0.5  # of its strength, what an edge loses as far off as it is looked for at all
EVERY = 2  # pixels of an outline that are looked at; neighbours tell the same
SLOPE = 0.8  # per 8 px, as Sobel has it, of a blurred outline; less is a corner's, which has no normal
BORDER = 4  # px along the picture's border where nothing is looked for


@dataclass(frozen=True)
class Shifts:
    """By how much shapes that have changed are off, each for some motions of one finger."""

    off: Floats  # (N, 2) px of ROUGH width
    slopes: Floats  # (N, 2, 6) px
    covered: Floats  # (N,): how much of what was to change did, less what did not: -1 to 1


@dataclass(frozen=True)
class Edges:
    """How far pieces of outline are off, outwards."""

    off: Floats  # (N,) px
    slopes: Floats  # (N, UNKNOWNS) px
    finger: NDArray[np.intp]  # (N,)
    view: NDArray[np.intp]  # (N,): the number of the picture in its series
    looked_for: int  # pieces, found or not


class Outlines:
    """What pictures of moving fingers tell of a camera's place; all calls must come from one thread."""

    def __init__(self, series: Sequence[Series], camera: CameraConfig, world: WorldConfig) -> None:
        """Raises MissingPart without OpenGL or ROBEL's model files."""
        self.scale = min(1.0, LARGEST / camera.width)
        self._series = series
        self._size = round(camera.width * self.scale), round(camera.height * self.scale)
        self._small = ROUGH, round(ROUGH * camera.height / camera.width)
        self._pictures = [[self._soft(view, camera) for view in one.views] for one in series]
        self._changes = [
            [_changes(a, b, self._small) for a, b in itertools.pairwise(row)] for row in self._pictures
        ]
        nowhere = Place(np.eye(3), np.eye(3), np.zeros(3))
        self._rough = Ghost(nowhere, self._small, world)
        self._fine = Ghost(nowhere, self._size, world)

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        self._rough.close()
        self._fine.close()

    @property
    def seen(self) -> list[float]:
        """How much of the picture each finger's motions change, the mean over them."""
        return [float(np.mean([(change > 0).mean() for change in row])) for row in self._changes]

    @property
    def stirred(self) -> float:
        """How much of the picture differs between the first and the last, in which all stands the same."""
        apart = np.abs(self._pictures[-1][-1] - self._pictures[0][0]).max(axis=2)
        return float((apart > STIRRED).mean())

    def _soft(self, view: View, camera: CameraConfig) -> Picture:
        image = cv2.resize(
            straightened(view.image, camera.lens), self._size, interpolation=cv2.INTER_AREA
        ).astype(np.float32)
        return np.asarray(cv2.GaussianBlur(image, (0, 0), SOFT), np.float32)

    # --- Roughly

    def shifts(self, place: Place, reach: float) -> Shifts:
        """By how much shapes are off where a camera at `place` sees the model; reach: share of the width.

        Two for each finger, of its first and its last motions: three fingers in two directions just
        determine a place.
        """
        eye = place.scaled(ROUGH / self._size[0] * self.scale)
        self._rough.aim(eye)
        found = []
        for one, changes in zip(self._series, self._changes, strict=True):
            drawn = [self._rough.fingers(view.joints, view.valve) for view in one.views]
            motions = list(zip(itertools.pairwise(drawn), changes, strict=True))
            parts = motions[: len(motions) // 2], motions[len(motions) // 2 :]
            found += [self._shift(part, one.finger + 1, eye, round(reach * ROUGH)) for part in parts]
        known = [shift for shift in found if shift is not None]
        off, slopes, covered = zip(*known, strict=True) if known else ((), (), ())
        return Shifts(
            np.array(off, np.float64).reshape(-1, 2),
            np.array(slopes, np.float64).reshape(-1, 2, 6),
            np.array(covered, np.float64),
        )

    def _shift(
        self, motions: Sequence[tuple[tuple[Fingers, Fingers], Picture]], owner: int, eye: Place, reach: int
    ) -> tuple[Floats, Floats, float] | None:
        """(2,) px, (2, 6) px and the cover of one finger's motions; None where none is to be seen."""
        cover, area, slopes = np.zeros((2 * reach + 1, 2 * reach + 1)), 0.0, []
        for (before, after), change in motions:
            expected = ((before.owner == owner) != (after.owner == owner)).astype(np.float32)
            wide = cv2.copyMakeBorder(change, reach, reach, reach, reach, cv2.BORDER_CONSTANT)
            cover += cv2.matchTemplate(wide, expected, cv2.TM_CCORR)
            area += float(expected.sum())
            for one, other in ((before, after), (after, before)):
                v, u = np.nonzero((one.owner == owner) & (other.owner != owner))
                points = eye.points(np.column_stack([u, v]), one.depth[v, u].astype(np.float64))
                slopes.append(eye.slopes(points, 6))
        if not area:
            return None
        y, x = np.unravel_index(int(cover.argmax()), cover.shape)
        return np.array([x - reach, y - reach]), np.concatenate(slopes).mean(axis=0), cover[y, x] / area

    # --- Finely

    def edges(self, place: Place, zeros: Floats, reach: float) -> Edges:
        """How far outlines are off, at most `reach` px, where a camera at `place` sees the model's.

        zeros: (J,) rad, by which joints stand further than they say.
        """
        eye, found, asked = place.scaled(self.scale), list[tuple[Floats, ...]](), 0
        self._fine.aim(eye)
        for one, pictures in zip(self._series, self._pictures, strict=True):
            drawn = [self._fine.fingers(view.joints + zeros, view.valve) for view in one.views]
            masks = [picture.owner == one.finger + 1 for picture in drawn]
            changes = _changed_by(pictures, masks, reach)
            for number, (fingers, mask, (change, known)) in enumerate(
                zip(drawn, masks, changes, strict=True)
            ):
                pieces = _pieces(fingers, mask)
                pieces = pieces.only(_along(known, pieces, reach).min(axis=1) > 0.99)
                off = _steepest(_along(change, pieces, reach), reach)
                asked += len(off)
                pieces, off = pieces.only(np.isfinite(off)), off[np.isfinite(off)]
                of = np.full((2, len(off)), [[one.finger], [number]])
                found.append((off, _slopes(eye, fingers, pieces), *of))
        off, slopes, finger, view = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Edges(off, slopes, finger, view, asked)


def _changes(before: Picture, after: Picture, size: tuple[int, int]) -> Picture:
    """(h, w): 1 where two pictures differ, -1 where they do not."""
    apart = cv2.resize(np.abs(after - before).max(axis=2), size, interpolation=cv2.INTER_AREA)
    return np.where(apart > FAINT, 1, -1).astype(np.float32)


def _changed_by(
    pictures: Sequence[Picture], masks: Sequence[Mask], reach: float
) -> list[tuple[Picture, Picture]]:
    """By how much each picture (H, W, 3) differs from what is behind the finger; (H, W): 1 where known.

    What is behind is the mean of the series' other pictures, as far as the finger is far from there in them.
    """
    width = 2 * math.ceil(reach + SIDE + 2 * SOFT) + 1
    near = [cv2.dilate(mask.astype(np.uint8), np.ones((width, width), np.uint8)) for mask in masks]
    free = [(grown == 0).astype(np.float32) for grown in near]
    whole = np.sum([picture * one[..., None] for picture, one in zip(pictures, free, strict=True)], axis=0)
    count = np.sum(free, axis=0)
    found = []
    for picture, one in zip(pictures, free, strict=True):
        others = count - one
        behind = (whole - picture * one[..., None]) / np.maximum(others, 1)[..., None]
        found.append((picture - behind, (others > 0).astype(np.float32)))
    return found


def _slopes(eye: Place, fingers: Fingers, pieces: _Pieces) -> Floats:
    """(N, UNKNOWNS) px: how far outwards pieces move with the place, the focal length and the joints."""
    points = eye.points(pieces.at, pieces.depth)
    seen = np.einsum("ni,nip->np", pieces.normal, eye.slopes(points, 7))
    axes, anchors = fingers.axes @ eye.rotation.T, fingers.anchors @ eye.rotation.T + eye.translation
    turned = np.cross(axes, points[:, None] - anchors)  # (N, J, 3) m for each rad
    joint, last = np.arange(len(axes)), pieces.joint[:, None] - 1
    moves = (joint // 3 == last // 3) & (joint <= last)
    return np.column_stack([seen, moves * np.einsum("ni,nji->nj", seen[:, 3:6], turned)])


@dataclass(frozen=True)
class _Pieces:
    """Pieces of the model's outline, between pixels."""

    at: Floats  # (N, 2) px
    normal: Floats  # (N, 2), outwards
    depth: Floats  # (N,) m
    joint: NDArray[np.intp]  # (N,): 1 to 9, the last that moves it

    def only(self, which: Mask) -> _Pieces:
        return _Pieces(self.at[which], self.normal[which], self.depth[which], self.joint[which])


def _pieces(fingers: Fingers, mask: Mask) -> _Pieces:
    """The finger's outline, but for what something nearer hides and what is at the picture's border."""
    area = mask.astype(np.float32)
    rim = mask & (cv2.erode(area, np.ones((3, 3), np.uint8)) == 0)
    rim[:BORDER], rim[-BORDER:], rim[:, :BORDER], rim[:, -BORDER:] = False, False, False, False
    v, u = np.nonzero(rim)
    v, u = v[(u + v) % EVERY == 0], u[(u + v) % EVERY == 0]
    soft = np.asarray(cv2.GaussianBlur(area, (0, 0), SOFT), np.float32)
    down = -np.column_stack([cv2.Sobel(soft, cv2.CV_32F, *way)[v, u] for way in ((1, 0), (0, 1))])
    steep = np.linalg.norm(down, axis=1)
    normal = np.asarray(down / np.maximum(steep, 1e-9)[:, None], np.float64)
    corner = np.column_stack([u, v]).astype(np.float64)
    joint = fingers.joint[v, u].astype(np.intp)
    pieces = _Pieces(corner, normal, fingers.depth[v, u].astype(np.float64), joint)
    edge = _half(_along(soft, pieces, 0))
    x, y = np.rint(corner + 2 * SOFT * normal).astype(int).T  # never beyond the border, which is wider
    known = (steep > SLOPE) & np.isfinite(edge) & (fingers.depth[y, x] > pieces.depth)
    at = pieces.at + edge[:, None] * pieces.normal
    return _Pieces(at, pieces.normal, pieces.depth, joint).only(known)


def _ways(reach: float) -> Floats:
    """(S,) px along a normal, from inside to outside, at which pictures are looked at."""
    count = math.ceil((reach + SIDE) / STEP)
    return np.asarray(np.arange(-count, count + 1) * STEP, np.float64)


def _along(picture: Picture, pieces: _Pieces, reach: float) -> Picture:
    """(N, S) or (N, S, 3): the picture along each piece's normal."""
    ways = _ways(reach)
    if not len(pieces.at):
        return np.zeros((0, len(ways), *picture.shape[2:]), np.float32)
    u, v = ((pieces.at[:, i : i + 1] + pieces.normal[:, i : i + 1] * ways).astype(np.float32) for i in (0, 1))
    return np.asarray(cv2.remap(picture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _half(profiles: Picture) -> Floats:
    """(N,) px: where profiles (N, S) fall through a half, nearest to their middle; nan where they do not."""
    ways, rows = _ways(0), np.arange(len(profiles))
    falls = (profiles[:, :-1] >= 0.5) & (profiles[:, 1:] < 0.5)
    at = np.where(falls, np.abs(ways[:-1]), np.inf).argmin(axis=1)
    high, low = profiles[rows, at], profiles[rows, at + 1]
    between = STEP * (high - 0.5) / np.maximum(high - low, 1e-6)
    return np.asarray(np.where(falls.any(axis=1), ways[at] + between, np.nan), np.float64)


def _steepest(profiles: Picture, reach: float) -> Floats:
    """(N,) px: where along profiles (N, S, 3) what has changed ends; nan where no end is found."""
    rows, side, ways = np.arange(len(profiles)), round(SIDE / STEP), _ways(reach)
    inner, outer = profiles[:, : -2 * side], profiles[:, 2 * side :]
    inside, outside = np.linalg.norm(inner, axis=2), np.linalg.norm(outer, axis=2)
    far = np.abs(ways[side:-side]) / ways[-side - 1]
    ends = (inside > FAINT) & (outside < LEVEL * inside)
    strength = np.where(ends, (inside - outside) * (1 - (1 - NEARER) * far), 0.0)
    at = strength.argmax(axis=1)
    colour = inner[rows, at] - outer[rows, at]
    levels = np.einsum("nsc,nc->ns", profiles, colour / np.maximum(inside[rows, at], 1e-6)[:, None])
    slopes = levels[:, :-2] - levels[:, 2:]  # of STEP each way, of all but the first and the last
    window = at[:, None] + np.arange(2 * side - 1)
    peak, between = _peak(slopes[rows[:, None], window])
    found = ways[window[rows, peak] + 1] + STEP * between
    return np.where((strength[rows, at] > 0) & np.isfinite(between), found, np.nan)


def _peak(slopes: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Of each row (N, W) the largest, and how far off its neighbours say the peak is; nan at the ends."""
    rows, last = np.arange(len(slopes)), slopes.shape[1] - 1
    at = slopes.argmax(axis=1)
    middle = np.clip(at, 1, last - 1)
    left, top, right = (slopes[rows, middle + side] for side in (-1, 0, 1))
    bend = np.minimum(left - 2 * top + right, -1e-9)
    return at, np.where(at == middle, 0.5 * (left - right) / bend, np.nan)
