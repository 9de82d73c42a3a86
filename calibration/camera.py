"""A camera's lens and place, told from photographs of a board: held freely, and lying on the robot's base."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from calibration.board import Board, CalibrationError, Sighting
from calibration.coverage import FEWEST_CORNERS, motion, orientations
from robot.camera import Lens, Row
from robot.types import Floats

FEWEST_VIEWS = 6  # three determine a lens, but not which of them is bad
FEWEST_WAYS = 4  # to hold the board; one more than determine a lens
FEWEST_AT_BASE = 12  # corners of the board on the base: its pose becomes the camera's
OUTLYING = 3.0  # times the median error of all views, from which a view does not belong to them
HARMLESS = 0.3  # px; a view that fits as well as this stays, however good the others are
REJECTED = 1 / 3  # share of the views that may be bad, before the good ones may be the bad ones
WORST = 1.0  # px rms at 640 px of width, above which something is wrong with board or camera
UNCERTAIN = 0.005  # relative standard error of the focal length, above which views are too few or poor
DETERMINED = 3.0  # standard errors by which the third radial term must differ from 0 to be taken
AMBIGUOUS = 2.0  # times the error of the pose found, which its mirror image must exceed
APART = np.radians(2.0)  # by which the mirror image must be another pose, not the same found twice
DRIFT = 1.0  # px by which photographs of the board on the base may differ: nothing was to move
BASE = "base"  # how the names of photographs of the board on the base begin


@dataclass(frozen=True)
class View:
    """A photograph with the board in it."""

    name: str
    sighting: Sighting


@dataclass(frozen=True)
class Fit:
    """A view as the found lens explains it."""

    view: View
    residuals: Floats  # (N, 2) px, seen less expected

    @property
    def error(self) -> float:
        """px, rms over the view's corners of their distance from where they were expected."""
        return rms([self.residuals])


@dataclass(frozen=True)
class Intrinsics:
    """A lens, how well it is known, and which views say so."""

    lens: Lens
    focal_error: tuple[float, float]  # px, standard errors of fx and fy
    fits: tuple[Fit, ...]
    rejected: tuple[Fit, ...] = ()  # views that do not fit to the others

    @property
    def error(self) -> float:
        """px rms over all corners of the views that were used."""
        return rms([fit.residuals for fit in self.fits])


@dataclass(frozen=True)
class CameraCalibration:
    """Lens and place of a camera, and by which measurement."""

    intrinsics: Intrinsics
    base_to_camera: Floats  # (4, 4): base frame to the camera's: x right, y down, z ahead; m
    base: Fit
    sha256: str  # of what was measured

    @property
    def projection(self) -> tuple[Row, Row, Row]:
        """Base frame (m) to px of the captured, straightened image; a `CameraConfig.projection`."""
        first, second, third = (self.intrinsics.lens.matrix @ self.base_to_camera[:3]).tolist()
        return tuple(first), tuple(second), tuple(third)

    @property
    def position(self) -> Floats:
        """(3,) m: where the lens is in the base frame."""
        turn, shift = self.base_to_camera[:3, :3], self.base_to_camera[:3, 3]
        return np.asarray(-turn.T @ shift, np.float64)


def calibrate(board: Board, views: Sequence[View], base: Sequence[View]) -> CameraCalibration:
    """Lens and place of the camera that took these photographs.

    views: of the board held freely; base: of the board in its place on the base. The same photographs give
    the same numbers in all digits that matter (OpenCV sums in parallel). Raises CalibrationError when they
    cannot tell it well enough.
    """
    together = merged(base)
    intrinsics = solve(board, [*views, together])
    pose, fit = locate(board, together, intrinsics.lens)
    return CameraCalibration(
        intrinsics, pose @ np.linalg.inv(board.in_base), fit, _digest(board, [*views, *base])
    )


def merged(base: Sequence[View]) -> View:
    """All photographs of the board on the base as one, of less noise. Raises CalibrationError."""
    if not base:
        raise CalibrationError(
            f"no photograph of the board on the base ({BASE}*.png): without it the camera's place is unknown"
        )
    first, *others = base
    for other in others:
        if (moved := motion(first.sighting, other.sighting)) > DRIFT:
            raise CalibrationError(
                f"between {first.name} and {other.name} the board's corners moved by {moved:.1f} px: camera "
                "or board was touched. Take the photographs of the board on the base again"
            )
    ids = np.unique(np.concatenate([view.sighting.ids for view in base]))
    if len(ids) < FEWEST_AT_BASE:
        raise CalibrationError(
            f"{first.name} shows {len(ids)} corners of the board on the base, expected at least "
            f"{FEWEST_AT_BASE}: is it covered, or partly out of the image?"
        )
    every = [
        (corner, pixel)
        for view in base
        for corner, pixel in zip(view.sighting.ids, view.sighting.pixels, strict=True)
    ]
    seen = [np.mean([pixel for corner, pixel in every if corner == wanted], axis=0) for wanted in ids]
    return View(BASE, Sighting(ids, np.array(seen), first.sighting.resolution))


def solve(board: Board, views: Sequence[View]) -> Intrinsics:
    """The lens by which all views fit best, without those that do not fit. Raises CalibrationError."""
    kept = [view for view in views if len(view.sighting.ids) >= FEWEST_CORNERS]
    rejected: list[View] = []
    while True:
        _require_enough(board, kept, len(views))
        found = _bundle(board, kept)
        errors = [fit.error for fit in found.fits]
        worst = int(np.argmax(errors))
        if errors[worst] <= max(HARMLESS, OUTLYING * float(np.median(errors))):
            break
        rejected.append(kept.pop(worst))
        _require_few(rejected, len(views), errors[worst])
    _require_good(found)
    outliers = tuple(_poses(board, view, found.lens)[0][1] for view in rejected)
    return Intrinsics(found.lens, found.focal_error, found.fits, outliers)


def _require_enough(board: Board, usable: Sequence[View], taken: int) -> None:
    """Refuses views from which no lens can be told, before one is: least squares always find something."""
    if len(usable) < FEWEST_VIEWS:
        raise CalibrationError(
            f"{len(usable)} of {taken} views can be used, expected at least {FEWEST_VIEWS}, each with "
            f"{FEWEST_CORNERS} corners of the board: take more"
        )
    ways = orientations(board, [view.sighting for view in usable])
    if ways < FEWEST_WAYS:
        raise CalibrationError(
            f"the views are too much alike: the board was held in {ways} clearly different ways, expected at "
            f"least {FEWEST_WAYS}. Tilt it to all sides, by 30 degrees and more"
        )


def _require_few(rejected: Sequence[View], taken: int, error: float) -> None:
    """Refuses to leave out the view that matters most, or so many that the rest may be the bad ones."""
    if rejected[-1].name == BASE:
        raise CalibrationError(
            f"the photograph of the board on the base does not fit to the others ({error:.1f} px): did it "
            "lie flat, were camera and board at rest?"
        )
    if len(rejected) > REJECTED * taken:
        raise CalibrationError(
            f"{len(rejected)} of {taken} views do not fit to the others: is the board flat and stiff, was it "
            "held still?"
        )


def _require_good(found: Intrinsics) -> None:
    """Refuses a lens that the views do not determine, or that explains them badly."""
    if found.error > WORST * found.lens.resolution[0] / 640:
        raise CalibrationError(
            f"corners lie {found.error:.1f} px from where the best lens has them: is the board flat, are "
            "board.square and board.marker those of the print, does the camera focus or zoom by itself?"
        )
    uncertainty = max(error / focal for error, focal in zip(found.focal_error, found.lens.focal, strict=True))
    if not uncertainty <= UNCERTAIN:  # not a number, too
        raise CalibrationError(
            f"the focal length is uncertain by {100 * uncertainty:.1f} %, allowed are {100 * UNCERTAIN:g} %: "
            "take more views, nearer, and tilted to all sides by 30 degrees and more"
        )
    if not _invertible(found.lens):
        raise CalibrationError(
            "the lens found folds the image's corners over: they were not covered, or it is a fish-eye, "
            "which this model of a lens cannot describe. Take views with the board in the image's corners"
        )


def _invertible(lens: Lens) -> bool:
    """Whether the radial distortion grows steadily up to the image's farthest corner."""
    corners = np.array([[x, y] for x in (0, lens.resolution[0]) for y in (0, lens.resolution[1])], np.float64)
    reach = float(np.linalg.norm((corners - lens.centre) / lens.focal, axis=1).max())
    k1, k2, _, _, k3 = lens.distortion
    # The undistorted radius of the corner is not known beforehand: the ray goes out until it is reached.
    radius = np.linspace(0, 2 * reach, 400)
    bent = radius * (1 + k1 * radius**2 + k2 * radius**4 + k3 * radius**6)
    arrived = int(np.argmax(bent >= reach))
    return bool(arrived) and bool((np.diff(bent[: arrived + 1]) > 0).all())


def _bundle(board: Board, views: Sequence[View]) -> Intrinsics:
    """Lens and poses that explain the views, the third radial term only where they determine it."""
    full = _least_squares(board, views, 0)
    if full is not None:
        found, third_error = full
        if abs(found.lens.distortion[4]) > DETERMINED * third_error and _invertible(found.lens):
            return found
    simple = _least_squares(board, views, cv2.CALIB_FIX_K3)
    if simple is None:
        raise CalibrationError("no lens explains these views: are they photographs of one flat board?")
    return simple[0]


def _least_squares(board: Board, views: Sequence[View], flags: int) -> tuple[Intrinsics, float] | None:
    """The best lens, and the standard error of its third radial term; None when there is none."""
    resolution = views[0].sighting.resolution
    points = [board.corners[view.sighting.ids].astype(np.float32) for view in views]
    pixels = [view.sighting.pixels.astype(np.float32) for view in views]
    try:
        _, matrix, distortion, turns, shifts, errors, *_ = cv2.calibrateCameraExtended(
            points, pixels, resolution, np.eye(3), np.zeros(5), flags=flags
        )
    except cv2.error:
        return None
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        return None
    k1, k2, p1, p2, k3 = np.ravel(distortion)[:5].tolist()
    lens = Lens(
        resolution=resolution,
        focal=(float(matrix[0, 0]), float(matrix[1, 1])),
        centre=(float(matrix[0, 2]), float(matrix[1, 2])),
        distortion=(k1, k2, p1, p2, k3),
    )
    poses = [
        (np.asarray(turn, np.float64), np.asarray(shift, np.float64))
        for turn, shift in zip(turns, shifts, strict=True)
    ]
    fits = tuple(_fit(board, view, lens, *pose) for view, pose in zip(views, poses, strict=True))
    deviations = [float(error) for error in np.ravel(errors)]
    return Intrinsics(lens, (deviations[0], deviations[1]), fits), deviations[8]


def _fit(board: Board, view: View, lens: Lens, turn: Floats, shift: Floats) -> Fit:
    points = board.corners[view.sighting.ids]
    expected, _ = cv2.projectPoints(points, turn, shift, lens.matrix, np.array(lens.distortion))
    return Fit(view, view.sighting.pixels - expected.reshape(-1, 2))


def locate(board: Board, view: View, lens: Lens) -> tuple[Floats, Fit]:
    """(4, 4) from the board's frame to the camera's, and the view as that pose explains it.

    Raises CalibrationError where a pose that leans the other way would explain it nearly as well.
    """
    (pose, fit), *others = _poses(board, view, lens)
    for other, other_fit in others:
        turned = np.linalg.norm(cv2.Rodrigues(pose[:3, :3].T @ other[:3, :3])[0])
        if turned > APART and other_fit.error < AMBIGUOUS * max(fit.error, HARMLESS):
            raise CalibrationError(
                f"{view.name} fits to two places of the camera, {np.degrees(turned):.0f} degrees apart: the "
                "board is too small in the image. Print a larger one, or bring the camera nearer"
            )
    return pose, fit


def _poses(board: Board, view: View, lens: Lens) -> list[tuple[Floats, Fit]]:
    """The poses (4, 4) of a flat board that explain a view, the best first; two lean to both sides."""
    points, pixels, bent = board.corners[view.sighting.ids], view.sighting.pixels, np.array(lens.distortion)
    _, turns, shifts, _ = cv2.solvePnPGeneric(points, pixels, lens.matrix, bent, flags=cv2.SOLVEPNP_IPPE)
    found = []
    for turn, shift in zip(turns, shifts, strict=True):
        turn, shift = cv2.solvePnPRefineLM(points, pixels, lens.matrix, bent, turn, shift)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(turn)[0], np.ravel(shift)
        found.append((pose, _fit(board, view, lens, np.asarray(turn), np.asarray(shift))))
    return sorted(found, key=lambda item: item[1].error)


def rms(residuals: Sequence[Floats]) -> float:
    """px: the root of the mean squared length of (N, 2) residuals."""
    return float(np.sqrt((np.concatenate(residuals) ** 2).sum(axis=1).mean()))


def _digest(board: Board, views: Sequence[View]) -> str:
    """The name of a measurement: the same whenever the same corners were seen of the same board."""
    digest = hashlib.sha256(board.config.model_dump_json().encode())
    for view in views:
        digest.update(view.sighting.ids.tobytes() + np.round(view.sighting.pixels, 3).tobytes())
    return digest.hexdigest()
