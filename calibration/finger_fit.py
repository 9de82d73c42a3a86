"""A camera's place by the outlines of moving fingers, and whether it can be believed.

The joints' zeros are fitted along: by hands they are good to a degree, which would move the camera by 10 mm.
A small residual alone is no proof: a lens of another focal length moves the camera by more than it shows in
the outlines. So pictures taken apart, and fingers taken apart, must tell the same place, and the lens must be
the one that the outlines themselves ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibration.board import CalibrationError
from calibration.fingers import FINGERS, Series
from calibration.outline import FOCAL, UNKNOWNS, ZEROS, Edges, Outlines
from calibration.progress import Told
from robot.camera import CameraConfig
from robot.place import Place
from robot.rig import RigConfig
from robot.types import Floats
from robot.world import CameraPose, WorldConfig

Mask = NDArray[np.bool_]
Unknown = Literal["place", "place and focal length"]

ROUGHLY = (0.19, 0.13, 0.08, 0.05)  # of the width, how far shapes are looked for, one step after the other
FINELY = ((0.02, 4.0, 3), (0.007, 3.0, 5))  # the same for edges: of the width, at least px, steps at most
SETTLED = 3e-5  # rad, m, share: a step that ends a stage, 0.02 px
OUTLYING = 4.7  # standard deviations from which an edge counts nothing (Tukey's 95 % efficiency)
SMALLEST = 0.1  # px, the least deviation that is reckoned with
WEIGHINGS = 8  # after which weights change no more
JOINTS = 9
# px squared for each unknown: against what nothing is known of; what is known has 1e6. Joints' zeros are
# taken to be good to a degree, where edges are good to half a px and hang together by tens.
RIDGE, ZERO = 1e-3, 20 * (0.5 / math.radians(1)) ** 2
PRIOR = np.concatenate([np.full(FOCAL + 1, RIDGE), np.full(JOINTS, ZERO)])

LEAST = 1 / 1500  # share of the picture that a finger's motion must change: 200 px of 640x480
# Share of the picture by which the last may differ from the first: where nothing had moved it was 0.2 % at
# most (backlash, noise); a camera that is turned by 0.3 degrees about the valve makes 0.5 %, by 1 degree 2 %.
STILL = 0.006
EACH = 60  # edges of each finger; at 640x480 there are 400 and more
FOUND = (
    0.7  # share of the outline's pieces that must be found; at right places 0.94 to 0.99, at wrong ones 0.2
)
# px rms at 640 px of width, and in any picture; right models leave 0.16 to 0.33, other shapes 1.5.
WORST, FINEST = 0.6, 0.4
UNCERTAIN = 0.001, math.radians(0.15)  # m, rad: the largest standard errors
# m, rad: between places by halves of the pictures, or with and without a finger; the place itself was never
# as wrong as these were apart.
APART = 0.003, math.radians(0.5)
# Share by which the outlines' own focal length may differ: the camera is then 2 mm off. A standard error does
# not excuse more, as a wrong lens makes it larger, too.
LENS = 0.005


@dataclass(frozen=True)
class Gap:
    """How far two estimates of one camera's place are from each other."""

    of: str
    shift: float  # m
    turn: float  # rad


@dataclass(frozen=True)
class FingerFit:
    """A camera's place by its robot's fingers, and how well it is known."""

    place: Place
    unknown: Unknown
    pictures: int
    error: float  # px rms of the captured picture, between outlines seen and expected
    found: float  # share of the model's outline that was found
    shift_error: float  # m, standard error in the worst direction
    turn_error: float  # rad
    gaps: tuple[Gap, ...]
    zoom: float  # share by which the outlines ask for another focal length than the place has
    zoom_error: float
    zeros: Floats  # (J,) rad: by how much joints stand further than their servos say
    zeros_error: float

    @property
    def widest(self) -> Gap:
        """The two estimates that are farthest apart, as limits have it."""
        return max(self.gaps, key=lambda gap: max(gap.shift / APART[0], gap.turn / APART[1]))


def fit(
    series: Sequence[Series],
    camera: CameraConfig,
    world: WorldConfig,
    start: Place,
    unknown: Unknown = "place",
    told: Told = lambda what, share: None,
) -> FingerFit:
    """Where the camera is that took these pictures, from `start` on, whose lens is taken as known or not.

    Raises CalibrationError where the pictures do not tell it, MissingPart without OpenGL.
    """
    with closing(Outlines(series, camera, world)) as outlines:
        _require_seen(outlines.seen)
        _require_still(outlines.stirred)
        told("finding the fingers", 0.0)
        place = _roughly(outlines, start)
        told("aligning outlines", 0.3)
        free = np.ones(UNKNOWNS, bool)
        free[FOCAL] = unknown != "place"
        found = _finely(outlines, place, camera.width, free)
    return _believed(found, camera, len({id(view) for one in series for view in one.views}), unknown)


def beginning(config: RigConfig, opened: CameraConfig) -> tuple[Place, Unknown]:
    """Where the search for a rig's camera begins, and what of it is unknown.

    config: as it was given; opened: the camera as the open rig has it. It stands where its projection says,
    or where the simulated camera does by default. A real lens is known if it was calibrated, a simulated one
    always.
    """
    size = opened.width, opened.height
    nominal = config.camera.projection or CameraPose().projection(*size)
    stands = Place.of(np.asarray(nominal, np.float64))
    if opened.lens is not None:
        return Place(opened.lens.matrix, stands.rotation, stands.translation), "place"
    if config.kind == "real":
        return stands, "place and focal length"
    drawn = Place.of(np.asarray(opened.projection, np.float64))
    return Place(drawn.matrix, stands.rotation, stands.translation), "place"


# --- Towards the place


def _roughly(outlines: Outlines, place: Place) -> Place:
    """Within a finger's width, by shapes of what has changed."""
    for reach in ROUGHLY:
        shifts = outlines.shifts(place, reach)
        if len(shifts.off) < FINGERS:
            raise _lost(0.0)
        slopes, step = shifts.slopes.reshape(-1, 6), np.zeros(6)
        for _ in range(WEIGHINGS):
            away = np.linalg.norm(shifts.off - shifts.slopes @ step, axis=1)
            near = np.maximum(1.0, 1.5 * float(np.median(away))) / np.maximum(away, 1e-9)
            weights = np.repeat(np.maximum(shifts.covered, 0.05) * np.minimum(near, 1), 2)
            step = _solve(slopes, shifts.off.ravel(), weights, np.ones(6), np.zeros(6))
        place = place.moved(step)
    return place


@dataclass(frozen=True)
class _Fit:
    """Edges as seen from the place that explains them best."""

    place: Place
    zeros: Floats  # (J,) rad
    edges: Edges
    weights: Floats  # (N,)
    free: Mask  # (UNKNOWNS,): what is unknown
    scale: float  # of the pictures that were looked at

    def part(self, which: Mask | slice) -> Floats:
        """(UNKNOWNS,): the step from here to what some of the edges ask for."""
        edges, weights = self.edges, self.weights
        return _step(edges.slopes[which], edges.off[which], weights[which], self.zeros, self.free)

    def covariance(self, free: Mask) -> Floats:
        """(UNKNOWNS, UNKNOWNS), each picture once: what a model gets wrong hangs together within one."""
        slopes, pulled = self.edges.slopes[:, free], self.weights * self.edges.off
        inverse = np.linalg.inv(slopes.T @ (self.weights[:, None] * slopes) + np.diag(PRIOR[free]))
        picture = self.edges.finger * (self.edges.view.max() + 1) + self.edges.view
        numbers = np.unique(picture)
        pulls = np.stack([slopes[picture == one].T @ pulled[picture == one] for one in numbers])
        few = len(numbers) / max(len(numbers) - slopes.shape[1], 1)
        whole = np.zeros((UNKNOWNS, UNKNOWNS))
        whole[np.ix_(free, free)] = few * inverse @ (pulls.T @ pulls) @ inverse
        return whole


def _finely(outlines: Outlines, place: Place, width: int, free: Mask) -> _Fit:
    width, zeros = round(width * outlines.scale), np.zeros(JOINTS)
    for share, least, most in FINELY:
        for _ in range(most):
            edges = outlines.edges(place, zeros, max(least, share * width))
            _require_edges(edges)
            step, _ = _weigh(edges, zeros, free)
            place, zeros = place.moved(step[: FOCAL + 1]), zeros + step[ZEROS]
            if np.abs(step).max() < SETTLED:
                break
    edges = outlines.edges(place, zeros, max(least, share * width))
    _require_edges(edges)
    return _Fit(place, zeros, edges, _weigh(edges, zeros, free)[1], free, outlines.scale)


def _weigh(edges: Edges, zeros: Floats, free: Mask) -> tuple[Floats, Floats]:
    """(UNKNOWNS,) the step that edges ask for, (N,) how much each counts: shadows and hands nothing."""
    step, weights = np.zeros(UNKNOWNS), np.ones(len(edges.off))
    for _ in range(WEIGHINGS):
        rest = edges.off - edges.slopes @ step
        spread = max(1.4826 * float(np.median(np.abs(rest))), SMALLEST)
        weights = np.square(np.maximum(1 - np.square(rest / (OUTLYING * spread)), 0))
        step = _step(edges.slopes, edges.off, weights, zeros, free)
    return step, weights


def _step(slopes: Floats, off: Floats, weights: Floats, zeros: Floats, free: Mask) -> Floats:
    here = np.zeros(UNKNOWNS)
    here[ZEROS] = zeros
    step = np.zeros(UNKNOWNS)
    step[free] = _solve(slopes[:, free], off, weights, PRIOR[free], here[free])
    return step


def _solve(slopes: Floats, off: Floats, weights: Floats, prior: Floats, here: Floats) -> Floats:
    """The step by which edges are met best, and unknowns, which are at `here`, stay near 0."""
    curve = slopes.T @ (weights[:, None] * slopes) + np.diag(prior)
    return np.asarray(np.linalg.solve(curve, slopes.T @ (weights * off) - prior * here))


# --- Whether it can be believed


def _believed(found: _Fit, camera: CameraConfig, pictures: int, unknown: Unknown) -> FingerFit:
    """The result, or CalibrationError with what speaks against it."""
    every = np.ones(UNKNOWNS, bool)
    edges, used, focal = found.edges, found.weights > 0, found.covariance(every)
    covariance = found.covariance(found.free)
    result = FingerFit(
        place=found.place,
        unknown=unknown,
        pictures=pictures,
        error=float(np.sqrt(np.square(edges.off[used]).mean())) / found.scale,
        found=float(used.sum()) / edges.looked_for,
        shift_error=_largest(covariance[3:6, 3:6]),
        turn_error=_largest(covariance[:3, :3]),
        gaps=tuple(_gaps(found)),
        zoom=float(_weigh(edges, found.zeros, every)[0][FOCAL]),
        zoom_error=math.sqrt(max(0.0, float(focal[FOCAL, FOCAL]))),
        zeros=found.zeros,
        zeros_error=float(np.sqrt(covariance.diagonal()[ZEROS].max())),
    )
    _require_found(result)
    _require_close(result, camera)
    _require_agreed(result)
    if unknown == "place":
        _require_lens(result)
    return result


def _gaps(found: _Fit) -> Iterator[Gap]:
    """Between halves of the pictures, and between all and all but one finger."""
    odd = found.edges.view % 2 == 1
    yield _gap("odd and even pictures", found.part(odd) - found.part(~odd))
    whole = found.part(slice(None))
    for finger in range(FINGERS):
        others = found.edges.finger != finger
        yield _gap(f"with and without finger {finger + 1}", found.part(others) - whole)


def _gap(of: str, step: Floats) -> Gap:
    return Gap(of, float(np.linalg.norm(step[3:6])), float(np.linalg.norm(step[:3])))


def _largest(covariance: Floats) -> float:
    """The standard error in the direction in which it is largest."""
    return math.sqrt(max(0.0, float(np.linalg.eigvalsh(covariance)[-1])))


def _require_seen(shares: Sequence[float]) -> None:
    if unseen := [str(finger + 1) for finger, share in enumerate(shares) if share < LEAST]:
        raise CalibrationError(
            f"the picture does not change when finger {' or '.join(unseen)} moves, expected is a change of "
            f"{100 * LEAST:.2g} % of it: is every finger in view, is there light, does the table differ from "
            "the fingers in colour?"
        )


def _require_still(share: float) -> None:
    if share > STILL:
        raise CalibrationError(
            f"{100 * share:.1f} % of the picture changed from the first to the last, in which the fingers "
            f"stand the same, allowed are {100 * STILL:g} %: was the camera bumped, did light or valve "
            "change? Leave all as it is, and try again"
        )


def _require_edges(edges: Edges) -> None:
    counts = np.bincount(edges.finger, minlength=FINGERS)
    if (few := int(counts.min())) < EACH:
        raise CalibrationError(
            f"{few} pieces of the outline of finger {int(counts.argmin()) + 1} were found, expected at least "
            f"{EACH}: turn the camera so that each finger is in view with what is around it; {_NEARER}"
        )


_NEARER = (
    "or the search began too far from where the camera is: it may be some 20 mm and 5 degrees off, so set "
    "hw.camera.projection to about where it stands"
)


def _lost(share: float) -> CalibrationError:
    return CalibrationError(
        f"{100 * share:.0f} % of the model's outline was found in the pictures, expected at least "
        f"{100 * FOUND:.0f} %: did anybody reach in or bump the camera, are the joints' zeros right "
        f"(`calibrate joints`)? {_NEARER[0].upper()}{_NEARER[1:]}"
    )


def _require_found(result: FingerFit) -> None:
    if result.found < FOUND:
        raise _lost(result.found)


def _require_close(result: FingerFit, camera: CameraConfig) -> None:
    allowed = max(FINEST, WORST * camera.width / 640)
    if result.error > allowed:
        raise CalibrationError(
            f"picture and model have outlines {result.error:.2f} px rms apart, allowed are {allowed:.2f}: "
            "are the joints' zeros right (`calibrate joints`), is hw.camera.lens of this camera, is nothing "
            "fixed to the fingers that the model does not have?"
        )
    if result.shift_error > UNCERTAIN[0] or result.turn_error > UNCERTAIN[1]:
        raise CalibrationError(
            f"the place is uncertain by {_said(result.shift_error, result.turn_error)} (standard error), "
            f"allowed are {_said(*UNCERTAIN)}: a lighter, sharper or larger picture of the fingers tells more"
        )


def _require_agreed(result: FingerFit) -> None:
    gap = result.widest
    if gap.shift > APART[0] or gap.turn > APART[1]:
        raise CalibrationError(
            f"{gap.of} tell places that are {_said(gap.shift, gap.turn)} apart, allowed are {_said(*APART)}: "
            "was the camera moved meanwhile, is the zero of a joint far off (`calibrate joints`)?"
        )


def _require_lens(result: FingerFit) -> None:
    if abs(result.zoom) > LENS:
        raise CalibrationError(
            f"the outlines ask for a focal length {100 * result.zoom:+.1f} % off the configured one, allowed "
            f"are {100 * LENS:g} %: is hw.camera.lens of this camera, zoom and resolution? With "
            "hw.camera.lens=null and hw.camera.projection=null the focal length is fitted, too"
        )


def _said(shift: float, turn: float) -> str:
    return f"{1e3 * shift:.1f} mm, {math.degrees(turn):.2f} degrees"
