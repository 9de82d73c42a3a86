"""Photographs for a calibration: taken with a person who holds the board, or read from a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
from pydantic import ValidationError

from calibration.board import Board, BoardConfig, CalibrationError, Sighting
from calibration.camera import BASE, FEWEST_AT_BASE, View
from calibration.coverage import Coverage, at_rest
from calibration.recording import write_picture, write_whole
from calibration.terminal import Keys
from robot.camera import CameraConfig, OpenCvCamera
from robot.types import Clock, Config, Image

STILL = 0.4  # s that the board must be at rest: a moving one is blurred, and skewed by a rolling shutter
AT_BASE = 5  # photographs of the board on the base, whose noise is averaged
PATIENCE = 2.0  # s without a board, after which is said why
STALE = 2.0  # s without an image, after which the camera counts as lost
NEXT = 0.02  # s between two looks for a new image
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
SETUP = "setup.json"


class Setup(Config):
    """What photographs were taken with; it lies beside them, so that they can be evaluated anew."""

    name: str  # of the rig, as on the command line
    kind: Literal["sim", "emulated", "real"]  # of the rig
    identity: str  # which camera it was
    camera: CameraConfig
    board: BoardConfig

    @property
    def resolution(self) -> tuple[int, int]:
        """(width, height) px of the captured image."""
        return self.camera.width, self.camera.height


@dataclass(frozen=True)
class Photographs:
    """The views of one calibration, and what they were taken with."""

    folder: Path
    setup: Setup
    views: tuple[View, ...]  # of the board held freely
    base: tuple[View, ...]  # of the board in its place on the base
    unusable: tuple[tuple[str, str], ...] = ()  # file, why


@dataclass(frozen=True)
class Progress:
    """What the person who holds the board must know."""

    stage: Literal["base", "free"]
    coverage: Coverage
    news: str  # what is seen at the moment, or why nothing is
    taken: int  # photographs


Told = Callable[[Progress], None]


@dataclass(frozen=True)
class Look:
    """One image of the camera, and what is on it."""

    image: Image
    sighting: Sighting | None
    at_rest: bool
    news: str


class Watch:
    """Looks for the board in each new image, and whether it is held still."""

    def __init__(self, camera: OpenCvCamera, clock: Clock, board: Board) -> None:
        self._camera, self._clock, self._board = camera, clock, board
        self._last: Sighting | None = None
        self._rests_since = self._missed_since = clock.now()
        self._sequence = -1
        self._reason = "looking for the board"

    def look(self) -> Look:
        """The next image. Raises CameraFault when none comes."""
        time = self._await_image()
        image = self._camera.picture()
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        sighting = self._board.find(grey)
        before, self._last = self._last, sighting
        if sighting is None:
            self._rests_since = time
            if time - self._missed_since > PATIENCE:
                self._missed_since, self._reason = time, f"no board: {self._board.why_not(grey)}"
            return Look(image, None, False, self._reason)
        self._missed_since, self._reason = time, "looking for the board"
        if before is None or not at_rest(before, sighting):
            self._rests_since = time
        rests = time - self._rests_since >= STILL
        seen = f"{len(sighting.ids)} of {len(self._board.corners)} corners seen"
        return Look(image, sighting, rests, seen if rests else f"{seen}, hold it still")

    def _await_image(self) -> float:
        while (frame := self._camera.latest(STALE)).sequence == self._sequence:
            self._clock.sleep_until(self._clock.now() + NEXT)
        self._sequence = frame.sequence
        return frame.time


@dataclass(frozen=True)
class Session:
    """Takes photographs of the board, each when the board is held still and shows something new."""

    watch: Watch
    setup: Setup
    folder: Path
    keys: Keys
    told: Told

    def take(self) -> None:
        """Fills the folder: first the board on the base, then held freely until enough was seen.

        Enter or Ctrl-C end the second part with what there is. Raises CameraFault, OSError; KeyboardInterrupt
        as long as nothing is worth keeping.
        """
        self.folder.mkdir(parents=True)
        text = self.setup.model_dump_json(indent=1)
        write_whole(self.folder / SETUP, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        coverage = Coverage(Board(self.setup.board))
        self._take_base(coverage)
        while self.keys.pressed():  # an Enter too many was not meant for what comes
            pass
        try:
            self._take_free(coverage)
        except KeyboardInterrupt:
            return

    def _take_base(self, coverage: Coverage) -> None:
        """Photographs in a row between which nothing moved, once the person has said that it lies there."""
        asked, images = False, list[Image]()
        while len(images) < AT_BASE:
            look = self.watch.look()
            asked = asked or self.keys.pressed() or self.keys.closed
            whole = look.sighting is not None and len(look.sighting.ids) >= FEWEST_AT_BASE
            images = [*images, look.image] if asked and whole and look.at_rest else []
            news = look.news if whole or look.sighting is None else f"{look.news}, too few"
            self.told(Progress("base", coverage, news, len(images)))
        for number, image in enumerate(images, 1):
            self._keep(image, f"{BASE}-{number}")

    def _take_free(self, coverage: Coverage) -> None:
        while not (coverage.complete or self.keys.pressed()):
            look, news = self.watch.look(), ""
            if look.sighting and look.at_rest:
                news = "nothing new: show it elsewhere, or tilt it"
                if coverage.adds(look.sighting):
                    coverage = coverage.with_view(look.sighting)
                    self._keep(look.image, f"view-{len(coverage.views):03d}")
                    news = f"taken: view {len(coverage.views)}"
            self.told(Progress("free", coverage, news or look.news, len(coverage.views)))

    def _keep(self, image: Image, name: str) -> None:
        write_picture(self.folder / f"{name}.png", image)


def read_folder(folder: Path, setup: Setup | None = None) -> Photographs:
    """The photographs in a folder, and what is seen on them; `base*` are those of the board on the base.

    Without a setup the folder's own counts. Raises CalibrationError.
    """
    if not folder.is_dir():
        raise CalibrationError(f"{folder} is no folder; `ls cameras` shows those of earlier calibrations")
    setup = _with_their_camera(setup, folder) if setup else read_setup(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise CalibrationError(f"{folder} holds no image: expected {', '.join(SUFFIXES)}")
    board, views, unusable = Board(setup.board), list[View](), list[tuple[str, str]]()
    for path in files:
        found = _read(path, board, setup)
        if isinstance(found, View):
            views.append(found)
        elif _at_base(path.name):
            raise CalibrationError(f"{path} does not show the board: {found}")
        else:
            unusable.append((path.name, found))
    if not views:
        (why, count), *_ = Counter(why for _, why in unusable).most_common(1)
        raise CalibrationError(f"no image in {folder} shows the board. Of {count}: {why}")
    base = tuple(view for view in views if _at_base(view.name))
    free = tuple(view for view in views if not _at_base(view.name))
    return Photographs(folder, setup, free, base, tuple(unusable))


def _at_base(name: str) -> bool:
    """Whether a photograph of that name is one of the board on the base; many cameras write capitals."""
    return name.lower().startswith(BASE)


def read_setup(folder: Path) -> Setup:
    """What the photographs of a folder were taken with. Raises CalibrationError."""
    try:
        return Setup.model_validate_json((folder / SETUP).read_bytes())
    except FileNotFoundError:
        way_out = "add --hw, the rig whose camera took these photographs"
        raise CalibrationError(f"{folder} holds no {SETUP}: {way_out}") from None
    except ValidationError:
        raise CalibrationError(
            f"{folder / SETUP} cannot be used: it is damaged; remove it and add --hw"
        ) from None


def _with_their_camera(setup: Setup, folder: Path) -> Setup:
    """Other settings for the photographs of a folder, which stay those of the camera that took them."""
    taken = read_setup(folder).identity if (folder / SETUP).exists() else setup.identity
    return setup.model_copy(update={"identity": taken})


def _read(path: Path, board: Board, setup: Setup) -> View | str:
    """The view, or why there is none. Raises CalibrationError for one of another camera."""
    try:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # it says to be larger than any image
        image = None
    if image is None:
        return "it cannot be read as an image"
    height, width = image.shape
    if (width, height) != setup.resolution:
        expected = "x".join(str(length) for length in setup.resolution)
        raise CalibrationError(
            f"{path} is {width}x{height} px, expected {expected} as this camera captures (hw.camera.width "
            "and .height): a lens is calibrated at the resolution that it is used with"
        )
    sighting = board.find(image)
    return View(path.stem, sighting) if sighting else board.why_not(image)
