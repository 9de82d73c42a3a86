"""The ChArUco board: how it is drawn true to scale, found in an image, and where on the base it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray
from PIL import Image as Pictures
from pydantic import Field, model_validator

from calibration.recording import write_whole
from robot.types import Config, Floats

DictionaryName = Literal["4x4_50", "4x4_100", "4x4_250", "5x5_100", "5x5_250", "6x6_250"]
PaperName = Literal["a4", "letter"]
PAPERS: dict[PaperName, tuple[float, float]] = {"a4": (297.0, 210.0), "letter": (279.4, 215.9)}  # mm, wide
INK = 12  # px per mm of the sheet: 304.8 per inch, at which whole millimetres are whole pixels
EDGE = 5.0  # mm at the sheet's edges where many printers print nothing
RULER = 100  # mm
BELOW = 11.0  # mm that ruler and words need below the board
LEGEND = 210.0  # mm across, with the longest words that there can be
FEWEST_MARKERS = 4  # in an image; fewer can be a pattern of the background
STRAY = 0.05  # of the seen board's size, by which a marker may miss its place: a lens bends less
FITTING = 0.8  # share of the markers that must lie where the board has them
SQUARES = (0.005, 0.5)  # m, of boards that can be seen and held; beyond it somebody means millimetres

Numbers = NDArray[np.int64]
Near = Annotated[float, Field(ge=-2, le=2)]  # m, from the base


class CalibrationError(Exception):
    """Images that no camera can be calibrated from. Says what was seen, what was expected, what to do."""


class Place(Config):
    """Where the board lies while the camera's place is measured, printed side up."""

    centre: tuple[Near, Near, Near] = (0.0, 0.0, 0.0)  # m, base frame; z: of the printed surface
    turn: float = Field(0.0, ge=-360, le=360)  # deg about z, from the base's x axis to the sheet's arrow


class BoardConfig(Config):
    """The board as it was printed, sizes as measured on the paper: by them the world is measured."""

    squares: tuple[int, int] = (7, 5)  # along the sheet's long side, along its short side
    square: float = 0.035  # m
    marker: float = 0.026  # m, the black frame of a marker
    dictionary: DictionaryName = "4x4_50"
    paper: PaperName = "a4"
    place: Place = Place()

    @model_validator(mode="after")
    def _can_be_printed(self) -> Self:
        columns, rows = self.squares
        if not (3 <= columns <= 50 and 3 <= rows <= 50):
            raise ValueError(f"squares {self.squares}: expected 3 to 50 each way")
        if not SQUARES[0] <= self.square <= SQUARES[1]:
            low, high = SQUARES
            raise ValueError(f"square {self.square:g} m: expected {low:g} to {high:g} m; 35 mm are 0.035")
        if not 0.3 * self.square <= self.marker <= 0.9 * self.square:
            raise ValueError(
                f"marker {self.marker:g} m: expected 0.3 to 0.9 of a square of {self.square:g} m"
            )
        if self.markers > (room := len(_dictionary(self.dictionary).bytesList)):
            raise ValueError(f"{self.markers} markers are needed, dictionary {self.dictionary} has {room}")
        return self

    @property
    def markers(self) -> int:
        """How many markers there are: one in each white square."""
        return self.squares[0] * self.squares[1] // 2

    @property
    def size(self) -> tuple[float, float]:
        """(width, height) m of the pattern."""
        return self.squares[0] * self.square, self.squares[1] * self.square


@dataclass(frozen=True)
class Sighting:
    """The board's inner corners that were found in an image."""

    ids: Numbers  # (N,) which corners, ascending
    pixels: Floats  # (N, 2) px of the captured image; whole numbers are pixel centres
    resolution: tuple[int, int]  # (width, height) px


class Board:
    """A board that can be drawn and found."""

    def __init__(self, config: BoardConfig) -> None:
        self.config = config
        self._board = cv2.aruco.CharucoBoard(
            config.squares, config.square, config.marker, _dictionary(config.dictionary)
        )
        self._detector = cv2.aruco.CharucoDetector(self._board)

    @cached_property
    def corners(self) -> Floats:
        """(C, 3) m: the inner corners in the board's frame: x right, y down the sheet, z into the paper."""
        return np.asarray(self._board.getChessboardCorners(), np.float64)

    @cached_property
    def in_base(self) -> Floats:
        """(4, 4): from the board's frame to the base frame, while it lies in its place."""
        angle = math.radians(self.config.place.turn)
        x = np.array([math.cos(angle), math.sin(angle), 0.0])
        down = np.array([math.sin(angle), -math.cos(angle), 0.0])
        frame = np.eye(4)
        frame[:3, :3] = np.stack([x, down, [0.0, 0.0, -1.0]], axis=1)
        middle = np.array([*self.config.size, 0.0]) / 2
        frame[:3, 3] = np.array(self.config.place.centre) - frame[:3, :3] @ middle
        return frame

    def find(self, image: MatLike) -> Sighting | None:
        """The corners in a grey image (H, W) uint8; None when this board is not there."""
        corners, ids, marker_corners, marker_ids = self._detector.detectBoard(image)
        if ids is None or marker_ids is None or len(ids) < FEWEST_MARKERS:
            return None
        if self._misplaced(marker_corners, np.ravel(marker_ids)):
            return None
        if self._on_a_line(np.ravel(ids)):
            return None
        order = np.argsort(np.ravel(ids))
        pixels = np.asarray(corners, np.float64).reshape(-1, 2)[order]
        return Sighting(np.ravel(ids)[order].astype(np.int64), pixels, (image.shape[1], image.shape[0]))

    def why_not(self, image: MatLike) -> str:
        """Why a grey image shows no board of ours, in words for the person who holds it."""
        _, _, marker_corners, marker_ids = self._detector.detectBoard(image)
        ids = np.ravel(marker_ids) if marker_ids is not None else np.zeros(0, np.int64)
        if self.find(cv2.flip(image, 1)):
            return "the image is mirrored: switch that off in the camera's own settings"
        if other := self._other_dictionary(image, len(ids)):
            return f"it shows markers of dictionary {other}, not of {self.config.dictionary}: another board?"
        if (ids >= self.config.markers).any() or self._misplaced(marker_corners, ids):
            columns, rows = self.config.squares
            return (
                f"its markers do not lie as on a board of {columns}x{rows} squares: "
                "set board.squares to the board's, or print this one (--print-board)"
            )
        if len(ids) < FEWEST_MARKERS:
            return f"{len(ids)} of the board's {self.config.markers} markers are seen: nearer, more light?"
        return "too few corners between markers are seen sharply: hold it still, nearer, in better light"

    def _on_a_line(self, ids: NDArray[np.generic]) -> bool:
        """Whether all corners but one lie on a line, from which no pose can be told."""
        return any(
            self._board.checkCharucoCornersCollinear(np.delete(ids, index)) for index in range(len(ids))
        )

    def _other_dictionary(self, image: MatLike, here: int) -> str | None:
        """Another dictionary of which more markers are seen than of ours."""
        most, best = max(here, FEWEST_MARKERS - 1), None
        for name in get_args(DictionaryName):
            # 4x4_100 holds 4x4_50 as its beginning: which of the two it is, no marker tells.
            if name.partition("_")[0] != self.config.dictionary.partition("_")[0]:
                _, ids, _ = cv2.aruco.ArucoDetector(_dictionary(name)).detectMarkers(image)
                if ids is not None and len(ids) > most:
                    most, best = len(ids), name
        return best

    def _misplaced(self, marker_corners: object, ids: NDArray[np.generic]) -> bool:
        """Whether the markers lie otherwise than on this board."""
        if len(ids) < FEWEST_MARKERS:
            return False
        known = np.asarray(ids, np.int64) < self.config.markers
        if known.mean() < FITTING:
            return True
        places = np.asarray(self._board.getObjPoints(), np.float64)[ids[known], :, :2].reshape(-1, 2)
        seen = np.asarray(marker_corners, np.float64)[known].reshape(-1, 2)
        allowed = STRAY * float(np.linalg.norm(np.ptp(seen, axis=0)))
        homography, _ = cv2.findHomography(places, seen, cv2.RANSAC, allowed)
        if homography is None:
            return True
        moved = cv2.perspectiveTransform(places[None], homography)[0]
        return bool((np.linalg.norm(moved - seen, axis=1) <= allowed).mean() < FITTING)

    def draw(self, scale: float) -> NDArray[np.uint8]:
        """The pattern without margin, (H, W) uint8, scale in px per metre."""
        columns, rows = self.config.squares
        picture = np.full([round(length * scale) for length in self.config.size[::-1]], 255, np.uint8)
        number = 0
        for row in range(rows):
            for column in range(columns):
                if (row + column) % 2 == 0:
                    _fill(picture, np.zeros((1, 1), np.uint8), column, row, self.config.square, 0.0, scale)
                    continue
                cells = self._cells(number)
                margin = (self.config.square - self.config.marker) / 2
                _fill(picture, cells, column, row, self.config.square, margin, scale)
                number += 1
        return picture

    def _cells(self, number: int) -> NDArray[np.uint8]:
        """A marker with its black frame, one pixel for each of its cells."""
        dictionary = _dictionary(self.config.dictionary)
        side = dictionary.markerSize + 2
        return np.asarray(cv2.aruco.generateImageMarker(dictionary, number, side, borderBits=1), np.uint8)

    def print_to(self, path: Path) -> None:
        """Writes the sheet at true scale, as .pdf or .png. Raises CalibrationError, OSError."""
        kind = path.suffix.lower()
        if kind not in (".pdf", ".png"):
            raise CalibrationError(f"--print-board {path}: a board is written as .pdf or .png")
        # Of two colours: Pillow puts those into a PDF without loss, and greys as JPEG.
        sheet, inch = Pictures.fromarray(self.sheet() > 127), 25.4 * INK
        if kind == ".pdf":
            write_whole(path, lambda temporary: sheet.save(temporary, "PDF", resolution=inch))
        else:
            write_whole(path, lambda temporary: sheet.save(temporary, "PNG", dpi=(inch, inch)))

    def sheet(self) -> NDArray[np.uint8]:
        """The page with the board, a ruler, and what is written on it, (H, W) uint8, `INK` px per mm.

        Raises CalibrationError when the board does not fit on the paper.
        """
        width, height = PAPERS[self.config.paper]
        wide, high = (1e3 * length for length in self.config.size)
        if wide > width - 2 * EDGE or high > height - 2 * EDGE - BELOW:
            raise CalibrationError(
                f"a board of {wide:g} x {high:g} mm does not fit on {self.config.paper}, "
                f"which takes {width - 2 * EDGE:g} x {height - 2 * EDGE - BELOW:g} mm: lower board.squares"
            )
        page = np.full((round(height * INK), round(width * INK)), 255, np.uint8)
        left, top = (width - wide) / 2, (height - BELOW - high) / 2
        pattern = self.draw(1e3 * INK)
        row, column = round(top * INK), round(left * INK)
        page[row : row + pattern.shape[0], column : column + pattern.shape[1]] = pattern
        _legend(page, left, top + high, self.config)
        return page


def _fill(
    picture: NDArray[np.uint8],
    cells: NDArray[np.uint8],
    column: int,
    row: int,
    square: float,
    margin: float,
    scale: float,
) -> None:
    """Draws cells into a square, `margin` metres inside it; every edge is rounded by itself, none adds up."""
    edges = [
        np.round(scale * (index * square + np.linspace(margin, square - margin, count + 1))).astype(int)
        for index, count in ((row, cells.shape[0]), (column, cells.shape[1]))
    ]
    block = cells.repeat(np.diff(edges[0]), axis=0).repeat(np.diff(edges[1]), axis=1)
    picture[edges[0][0] : edges[0][-1], edges[1][0] : edges[1][-1]] = block


def _legend(page: NDArray[np.uint8], left: float, bottom: float, config: BoardConfig) -> None:
    """The ruler below the board's left half, the arrow and the sizes below its right half; mm.

    Below a narrow board further to the left: all of it must be on the paper.
    """
    left = min(left, page.shape[1] / INK - EDGE - LEGEND)
    y, stroke = bottom + 5.0, max(1, INK // 4)

    def line(start: tuple[float, float], end: tuple[float, float]) -> None:
        points = [(round(x * INK), round(v * INK)) for x, v in (start, end)]
        cv2.line(page, points[0], points[1], 0, stroke)

    def words(text: str, x: float, v: float) -> None:
        at = (round(x * INK), round(v * INK))
        cv2.putText(page, text, at, cv2.FONT_HERSHEY_SIMPLEX, INK / 12, 0, stroke // 2 + 1, cv2.LINE_AA)

    line((left, y), (left + RULER, y))
    for tick in range(RULER + 1):
        line((left + tick, y), (left + tick, y - (3.0 if tick % 10 == 0 else 1.5)))
    words(f"{RULER} mm: measure it. Print at 100 %, not fitted to the page.", left, y + 5)
    arrow = [(round(x * INK), round((y - 1.5) * INK)) for x in (left + RULER + 15, left + RULER + 40)]
    cv2.arrowedLine(page, arrow[0], arrow[1], 0, stroke, tipLength=0.15)
    words("x", left + RULER + 42, y)
    columns, rows = config.squares
    sizes = f"{columns}x{rows}, {1e3 * config.square:g}/{1e3 * config.marker:g} mm, {config.dictionary}"
    words(sizes, left + RULER + 50, y)


def _dictionary(name: DictionaryName) -> cv2.aruco.Dictionary:
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{name.upper()}"))
