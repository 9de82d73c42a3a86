"""Whether the camera still is where it was: what stands still on the bench, then and now.

Small patches of a reference picture, of what no motor moves, are looked for in the picture of now. Each is
compared for itself and without regard to brightness, so that light, shadows and things put down spoil some
patches and not the answer. Where too few patches can tell, that is said, and nothing is guessed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robot.camera import CameraConfig, OpenCvCamera, SceneRecord
from robot.delivery import straightened
from robot.kinematics import MovingParts
from robot.place import Place
from robot.types import CameraFault, CameraMoved, Clock, Config, Floats, Image, ValveGeometry
from robot.valve_vision import pitch

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]
_Px = Callable[[float], int]  # a share of the image's width in px

PATCH = 1 / 32  # of the image's width: half a side of a patch, 20 px of 640
SOFT = 1.0  # px by which pictures are smoothed: the noise of single pixels is no detail
REACH = 1 / 14  # how far patches are looked for: 46 px of 640, 4.5 deg; beyond, the scene is not found again
MARGIN = 1 / 50  # around what can move: its shape is known to some mm, its shadow falls beside it
APART = 1 / 32  # between the middles of patches
MOST = 120  # patches; 4 would do, the rest is for what fingers and hands cover
FEWEST = 8  # patches in view from which anything is told
LEAST = 5  # that agree; a motion has 6 unknowns, and 3 patches determine it
CLEAR = 0.15  # of 1, by how much less a patch must resemble its own neighbourhood than itself
NEIGHBOUR = 1 / 64  # from how far on that counts, 10 px of 640: a straight edge resembles itself along it
ALIKE = 0.7  # correlation from which a patch counts as found; noise of 6 levels leaves 0.8 of a faint one
FAINTEST = 1.2  # levels of 255, rms, that a patch must vary by: less is noise and the grain of 8 bits
AGREED = 1 / 3  # share of the patches in view that must move as one, else it is another scene
ROUGHLY = 1 / 100  # how far depth bends the common motion: 6 px of 640 for 5 deg about the valve
TOGETHER = 1 / 320  # how far a patch may be off the common motion of the table: 2 px of 640
ROUNDS = 6  # of fitting and choosing who agrees; after three, nobody changes sides
SMALLEST = 0.1  # px, the least error of a patch that is reckoned with
SURE = 3.0  # standard errors
STALE = 2.0  # s without a picture, after which the camera counts as lost
NEXT = 0.02  # s between two looks for a new one
AVERAGED = 8  # pictures, which leaves a third of their noise
ENOUGH = 20  # patches that a reference must have, so that fingers and hands may cover most of them
DARK, FLAT = 12.0, 4.0  # levels: mean and spread of a picture that shows anything
NEW_ONE = "`run_robot.py calibrate scene --hw ...` takes a new reference"
PUT_BACK = (
    "Put it back until `run_robot.py calibrate overlay --hw ...` shows the robot on the robot; or calibrate "
    f"it anew (`run_robot.py calibrate camera`), then {NEW_ONE}."
)


class SceneCheckConfig(Config):
    """How far the camera may have moved since its reference picture was taken."""

    turn: float = Field(0.5, gt=0, le=90)  # deg about any axis; half a degree is 1 px of 64
    shift: float = Field(0.0025, gt=0, le=1)  # m in any direction


@dataclass(frozen=True, slots=True)
class Untold:
    """Nothing can be said about the camera's place, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drift:
    """How the camera has moved since the reference, by the patches that moved as one body."""

    turn: Floats  # (3,) rad about the camera's axes: right, down, ahead
    shift: Floats  # (3,) m along them
    turn_error: float  # rad, standard error in the worst direction
    shift_error: float  # m
    pixels: float  # by which the valve's middle moved in the picture
    apart: float  # m, the same at the valve
    patches: tuple[int, int]  # that agree, in view

    @property
    def degrees(self) -> float:
        """The angle by which the camera was turned."""
        return math.degrees(float(np.linalg.norm(self.turn)))

    @property
    def metres(self) -> float:
        """How far the lens was moved."""
        return float(np.linalg.norm(self.shift))

    def exceeds(self, limits: SceneCheckConfig) -> bool:
        """Whether the camera was moved too far, beyond doubt."""
        turned = self.degrees > max(limits.turn, SURE * math.degrees(self.turn_error))
        return turned or self.metres > max(limits.shift, SURE * self.shift_error)

    def tells(self, limits: SceneCheckConfig) -> bool:
        """Whether it is known well enough to say that it was not."""
        turn, shift = limits.turn / SURE, limits.shift / SURE
        return math.degrees(self.turn_error) <= turn and self.shift_error <= shift

    @property
    def text(self) -> str:
        """For the person at the bench."""
        about = ", ".join(f"{math.degrees(angle):+.2f}" for angle in self.turn)
        along = ", ".join(f"{1e3 * way:+.1f}" for way in self.shift)
        return (
            f"turned by {self.degrees:.2f} deg ({about} about its axes right, down, ahead), moved by "
            f"{1e3 * self.metres:.1f} mm ({along}); in the picture the valve's middle lies "
            f"{self.pixels:.1f} px from where it was, {1e3 * self.apart:.1f} mm at the valve"
        )


@dataclass(frozen=True)
class View:
    """A picture (H, W, 3) uint8 RGB of the whole captured image, and how the robot stood in it."""

    image: Image
    joints: Floats  # (J,) rad
    valve: float  # rad


class SceneEye:
    """Tells how one camera has moved between two of its pictures; knows which part of them robots fill."""

    def __init__(self, config: CameraConfig, geometry: ValveGeometry | None = None) -> None:
        """Raises CameraFault without a projection, MissingPart without ROBEL's model files."""
        if config.projection is None:
            raise CameraFault(
                f"{config.source} has no projection, so nobody knows where in the picture the robot is: "
                "`run_robot.py calibrate camera` measures it"
            )
        self._place = Place.of(np.asarray(config.projection, np.float64))
        self._lens, self._width = config.lens, config.width
        self._parts = MovingParts()
        self._geometry = geometry or ValveGeometry()

    def patches(self, view: View) -> NDArray[np.intp]:
        """(N, 2) px: the middles of patches that stand still and can be told from their surroundings."""
        grey = self._detail(view.image)
        return _distinct(grey, _corners(grey, self._still(view), self._px(APART)), self._px)

    def compare(self, reference: View, now: View) -> Drift | Untold:
        """How the camera has moved since the reference. Raises CameraMoved where nothing is found again."""
        middles, still = self.patches(reference), self._still(now)
        seen = np.array([m for m in middles if still[m[1], m[0]]], np.intp).reshape(-1, 2)
        if len(seen) < FEWEST:
            return Untold(f"{len(seen)} places that stand still are in view, {FEWEST} are needed")
        before, after = self._detail(reference.image), self._detail(now.image)
        found, moved = _found(before, after, seen, self._px)
        agree = _coarsely(found, moved, self._px(ROUGHLY))
        motion = _motion(self._place, found, moved, agree, self._px(TOGETHER)) if agree.any() else None
        if motion is None or motion.count < max(LEAST, AGREED * len(seen)):
            raise CameraMoved(
                f"the scene of the reference is not found again: {0 if motion is None else motion.count} of "
                f"{len(seen)} places that stand still. The camera was moved far, is covered, or the bench "
                f"was rearranged. {PUT_BACK}"
            )
        return self._drift(motion, len(seen))

    def _drift(self, motion: _Motion, seen: int) -> Drift:
        turn, shift = motion.pose[:3], motion.pose[3:]
        centre = self._place.rotation @ np.array(self._geometry.centre) + self._place.translation
        rotation = cv2.Rodrigues(turn)[0]
        pixels = self._place.pixels(centre[None]), self._place.pixels((rotation @ centre + shift)[None])
        apart = float(np.linalg.norm(pixels[1] - pixels[0]))
        return Drift(
            turn=-turn,  # the scene turns the other way
            shift=-rotation.T @ shift,
            turn_error=_largest(motion.covariance[:3, :3]),
            shift_error=_largest(motion.covariance[3:, 3:]),
            pixels=apart,
            apart=apart * pitch(self._place.projection, self._geometry),
            patches=(motion.count, seen),
        )

    def _detail(self, image: Image) -> Grey:
        """The straightened picture without what changes slowly across it: light and shading."""
        seen = cv2.cvtColor(straightened(image, self._lens), cv2.COLOR_RGB2GRAY)
        grey = cv2.GaussianBlur(seen.astype(np.float32), (0, 0), SOFT)
        return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), self._px(PATCH) / 2))

    def _px(self, share: float) -> int:
        return max(1, round(share * self._width))

    def _still(self, view: View) -> Mask:
        """(H, W): where a patch shows nothing that moves."""
        height, width = view.image.shape[:2]
        moving = np.zeros((height, width), np.uint8)
        for box in self._parts(view.joints, view.valve):
            _fill(moving, box, self._place.projection)
        reach = self._px(PATCH) + self._px(MARGIN)
        grown = cv2.dilate(moving, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        edge = self._px(PATCH) + 1
        grown[:edge], grown[-edge:], grown[:, :edge], grown[:, -edge:] = 1, 1, 1, 1
        return np.asarray(grown == 0)


def reference(config: CameraConfig, record: SceneRecord, camera: str) -> View:
    """The picture that a camera is held against, as it was taken.

    camera: which one is there now, as the record says it. Raises CameraFault where it is not to be had, was
    changed, or is another camera's.
    """
    try:
        stored = Path(record.path).read_bytes()
    except OSError as error:
        raise CameraFault(
            f"the reference of the scene, {record.path} (hw.camera.scene), cannot be read: {error.strerror}. "
            f"Put it back; or {NEW_ONE}; --set hw.camera.scene=null does without"
        ) from None
    if hashlib.sha256(stored).hexdigest() != record.sha256:
        raise CameraFault(
            f"the reference of the scene, {record.path}, is not the picture that was taken on {record.date}: "
            f"its SHA-256 is another one (hw.camera.scene). Put the file back; or {NEW_ONE}"
        )
    if record.camera != camera:
        raise CameraFault(
            f"the reference of the scene of {record.date} is of {record.camera!r}, but here is {camera!r}: "
            f"plug that one in; or {NEW_ONE}"
        )
    require_resolution(record.resolution, (config.width, config.height), record.date)
    image = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR_RGB) if stored else None
    if image is None or image.shape[1::-1] != record.resolution:
        raise CameraFault(
            f"the reference of the scene, {record.path} (hw.camera.scene), is no picture of "
            f"{record.resolution[0]}x{record.resolution[1]} px. Put the file back; or {NEW_ONE}"
        )
    return View(np.asarray(image, np.uint8), np.array(record.joints), record.valve)


def require_resolution(then: tuple[int, int], now: tuple[int, int], date: str) -> None:
    """Refuses to compare pictures of two sizes (width, height) px. Raises CameraFault."""
    if then != now:
        raise CameraFault(
            f"the reference of the scene of {date} has {then[0]}x{then[1]} px, the camera captures "
            f"{now[0]}x{now[1]}: set hw.camera.width and .height to the former; or {NEW_ONE}"
        )


def several(camera: OpenCvCamera, clock: Clock, count: int) -> list[Image]:
    """So many whole pictures (H, W, 3) uint8 RGB as they come, no two the same. Raises CameraFault."""
    pictures, seen = list[Image](), -1
    while len(pictures) < count:
        sequence = camera.latest(STALE).sequence
        if sequence != seen:
            pictures.append(camera.picture())
        seen = sequence
        clock.sleep_until(clock.now() + NEXT)
    return pictures


def averaged(pictures: Sequence[Image]) -> Image:
    """Several pictures of one scene as one of less noise. Raises CameraFault where nothing shows."""
    whole = np.mean([picture.astype(np.float32) for picture in pictures], axis=0)
    brightness, contrast = float(whole.mean()), float(whole.mean(axis=2).std())
    if brightness < DARK or contrast < FLAT:
        raise CameraFault(
            f"the camera shows nothing: brightness {brightness:.0f} of 255, contrast {contrast:.1f}. Take "
            "off the lens cap, switch on the light"
        )
    return np.asarray(np.rint(whole), np.uint8)


def check_scene(config: CameraConfig, limits: SceneCheckConfig, before: View, now: View) -> Drift | Untold:
    """How far the camera is from where its reference was taken, or why nobody can tell.

    Raises CameraMoved beyond the limits.
    """
    require_resolution((config.width, config.height), now.image.shape[1::-1], "now")
    found = SceneEye(config).compare(before, now)
    if isinstance(found, Untold):
        return found
    if found.exceeds(limits):
        raise CameraMoved(
            f"the camera was moved since its reference was taken: {found.text}. Allowed are {limits.turn:g} "
            f"deg and {1e3 * limits.shift:g} mm (hw.scene_check). {PUT_BACK}"
        )
    if not found.tells(limits):
        doubt = f"{math.degrees(found.turn_error):.2f} deg and {1e3 * found.shift_error:.1f} mm"
        return Untold(f"the {found.patches[0]} places that stand still tell it to {doubt} only")
    return found


def _fill(mask: NDArray[np.uint8], box: Floats, projection: Floats) -> None:
    """Marks where a box (8, 3) m is in the picture; what reaches behind the camera, as far as it is ahead."""
    u, v, w = projection @ np.column_stack([box, np.ones(len(box))]).T
    ahead = w > 1e-3
    if ahead.sum() >= 3:
        pixels = np.clip(np.stack([u[ahead] / w[ahead], v[ahead] / w[ahead]], axis=1), -1e4, 1e4)
        cv2.fillConvexPoly(mask, cv2.convexHull(pixels.astype(np.int32)), 1)


def _corners(grey: Grey, still: Mask, apart: int) -> NDArray[np.intp]:
    """(N, 2) px: the most telling places of what stands still, each some way from the others."""
    strength = np.where(still, cv2.cornerMinEigenVal(grey, apart | 1), 0.0)
    peaks = strength == cv2.dilate(strength, np.ones((apart | 1, apart | 1)))
    v, u = np.nonzero(peaks & (strength > 0))
    order = np.argsort(-strength[v, u])[:MOST]
    return np.stack([u[order], v[order]], axis=1)


def _distinct(grey: Grey, middles: NDArray[np.intp], px: _Px) -> NDArray[np.intp]:
    """Those of the places that can be told from all that is around them."""
    kept = [middle for middle in middles if _tells(grey, middle, px)]
    return np.array(kept, np.intp).reshape(-1, 2)


def _tells(grey: Grey, middle: NDArray[np.intp], px: _Px) -> bool:
    half = px(PATCH)
    patch, window, corner = _cut(grey, middle, half), *_window(grey, middle, half + px(REACH))
    if patch.std() < FAINTEST:
        return False
    likeness = cv2.matchTemplate(window, patch, cv2.TM_CCOEFF_NORMED)
    x, y = middle - half - corner
    near = px(NEIGHBOUR)
    likeness[max(0, y - near) : y + near + 1, max(0, x - near) : x + near + 1] = -1
    return bool(likeness.max() < 1 - CLEAR)


def _cut(grey: Grey, middle: NDArray[np.intp], half: int) -> Grey:
    x, y = middle
    return grey[y - half : y + half + 1, x - half : x + half + 1]


def _window(grey: Grey, middle: NDArray[np.intp], reach: int) -> tuple[Grey, NDArray[np.intp]]:
    """What lies around a place, and the pixel (x, y) of its upper left corner."""
    low = np.maximum(middle - reach, 0)
    high = middle + reach + 1
    return grey[low[1] : high[1], low[0] : high[0]], low


def _found(before: Grey, after: Grey, middles: NDArray[np.intp], px: _Px) -> tuple[Floats, Floats]:
    """(N, 2) px each: where patches were and where they are, of those that are found again."""
    half, pairs = px(PATCH), []
    for middle in middles:
        patch = _cut(before, middle, half)
        window, corner = _window(after, middle, half + px(REACH))
        likeness = cv2.matchTemplate(window, patch, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(likeness)
        if best >= ALIKE:
            pairs.append((middle, corner + half + _peak(np.asarray(likeness, np.float32), x, y)))
    table = np.array(pairs, np.float64).reshape(-1, 2, 2)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])


def _peak(likeness: Grey, x: int, y: int) -> Floats:
    """(x, y) of a maximum, between pixels, by a parabola along each axis."""
    return np.array([x + _vertex(likeness[y], x), y + _vertex(likeness[:, x], y)], np.float64)


def _vertex(values: Grey, at: int) -> float:
    if not 0 < at < len(values) - 1:
        return 0.0
    left, middle, right = (float(value) for value in values[at - 1 : at + 2])
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if bend < 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Motion:
    """How the scene moved in the camera's frame: a turn (3,) rad, then a shift (3,) m, with covariance."""

    pose: Floats  # (6,)
    covariance: Floats  # (6, 6)
    count: int  # patches


def _coarsely(before: Floats, after: Floats, tolerance: float) -> Mask:
    """(N,): which patches share one shift, turn and scale, as far as depth lets them."""
    if len(before) < LEAST:
        return np.zeros(len(before), bool)
    _, agree = cv2.estimateAffinePartial2D(before, after, ransacReprojThreshold=tolerance)
    return np.asarray(agree.ravel() > 0)


def _motion(place: Place, before: Floats, after: Floats, agree: Mask, tolerance: float) -> _Motion | None:
    """The motion that most patches share; patches are taken to lie on the table. None where too few do."""
    points, pose = place.on_the_table(before), np.zeros(6)
    for _ in range(ROUNDS):
        if agree.sum() < LEAST:
            return None
        off, slopes = _off(place, points, after, pose)
        pose = pose + np.linalg.lstsq(slopes[agree].reshape(-1, 6), off[agree].ravel(), rcond=None)[0]
        off, slopes = _off(place, points, after, pose)
        agree = np.asarray(np.linalg.norm(off, axis=1) < tolerance)
    count = int(agree.sum())
    if count < LEAST:
        return None
    noise = max(SMALLEST**2, float((off[agree] ** 2).sum()) / (2 * count - 6))
    chosen = slopes[agree].reshape(-1, 6)
    covariance = np.asarray(noise * np.linalg.pinv(chosen.T @ chosen), np.float64)
    return _Motion(pose, covariance, count)


def _off(place: Place, points: Floats, seen: Floats, pose: Floats) -> tuple[Floats, Floats]:
    """(N, 2) px by which points (N, 3) are off where a pose has them, and (N, 2, 6) how that hangs on it."""
    expected, slopes = cv2.projectPoints(points, pose[:3], pose[3:], place.matrix, np.zeros(5))
    off = seen - expected.reshape(-1, 2)
    return off, np.asarray(slopes[:, :6].reshape(-1, 2, 6), np.float64)


def _largest(covariance: Floats) -> float:
    """The standard error in the direction in which it is largest."""
    return math.sqrt(max(0.0, float(np.linalg.eigvalsh(covariance)[-1])))
