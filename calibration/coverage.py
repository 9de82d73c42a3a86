"""What the views of a board tell of a lens so far, and which views are still missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import cv2
import numpy as np

from calibration.board import Board, Sighting
from robot.types import Floats

CELLS = (5, 4)  # across, down: a lens is told from where corners lay, its edges from corners near them
FEWEST_CORNERS = 8  # of a view; with fewer its own pose takes most of what it tells
TILT = math.radians(15)  # from which a view counts as tilted: without tilt, size and distance are one
ENOUGH_TILTS = 2  # views for each way to lean
FEWEST_VIEWS = 10
DIFFERENT = 0.06  # of the image's width, by which corners must have moved to make another view
MOVED = 0.0011  # of it, between two images (0.7 px of 640), above which a hand has moved the board
GUESSED_FOCAL = 1.1  # of the image's width: 49 degrees across, as many webcams; only to tell tilts
# Pictures are for a person who looks through the camera: "left" is the image's left.
ROWS, COLUMNS = (
    ("top", "upper middle", "lower middle", "bottom"),
    ("far left", "left", "middle", "right", "far right"),
)

# By the edge, as the image shows it, that is nearest to the camera.
Lean = Literal["left edge nearer", "right edge nearer", "upper edge nearer", "lower edge nearer"]


@dataclass(frozen=True)
class Cell:
    """A part of the image in which corners must have been."""

    column: int
    row: int

    def __str__(self) -> str:
        return f"{ROWS[self.row]}, {COLUMNS[self.column]}"


Target = Cell | Lean


@dataclass(frozen=True)
class Coverage:
    """The views taken so far of one board by one camera."""

    board: Board
    views: tuple[Sighting, ...] = ()

    def with_view(self, sighting: Sighting) -> Coverage:
        """One view more."""
        return Coverage(self.board, (*self.views, sighting))

    def adds(self, sighting: Sighting) -> bool:
        """Whether a view would tell something new: the same tilt in the same place is not."""
        if len(sighting.ids) < FEWEST_CORNERS:
            return False
        news = _targets(self.board, sighting).intersection(self.missing())
        return any(all(_differ(view, sighting) for view in self._showing(target)) for target in news) or (
            len(self.views) < FEWEST_VIEWS and all(_differ(view, sighting) for view in self.views)
        )

    def missing(self) -> list[Target]:
        """What no view has shown yet."""
        shown = [target for targets in self._shown for target in targets]
        cells = [Cell(column, row) for row in range(CELLS[1]) for column in range(CELLS[0])]
        leans: list[Target] = [lean for lean in get_args(Lean) if shown.count(lean) < ENOUGH_TILTS]
        return [*(cell for cell in cells if cell not in shown), *leans]

    @property
    def complete(self) -> bool:
        """Whether a lens can be told from these views as well as it will ever be."""
        return len(self.views) >= FEWEST_VIEWS and not self.missing()

    @property
    def share(self) -> float:
        """How much of the whole is done, 0 to 1."""
        every = CELLS[0] * CELLS[1] + len(get_args(Lean))
        return min((every - len(self.missing())) / every, len(self.views) / FEWEST_VIEWS, 1.0)

    def counts(self) -> list[list[int]]:
        """How many corners lay in each cell, rows from the top."""
        table = [[0] * CELLS[0] for _ in range(CELLS[1])]
        for view in self.views:
            for column, row in _cells(view):
                table[row][column] += 1
        return table

    @cached_property
    def _shown(self) -> list[set[Target]]:
        """What each view shows: 2 ms for each, and asked for several times for each image."""
        return [_targets(self.board, view) for view in self.views]

    def _showing(self, target: Target) -> list[Sighting]:
        return [view for view, targets in zip(self.views, self._shown, strict=True) if target in targets]


def _targets(board: Board, sighting: Sighting) -> set[Target]:
    return {*(Cell(column, row) for column, row in _cells(sighting)), *leans(board, sighting)}


def _cells(sighting: Sighting) -> Sequence[tuple[int, int]]:
    parts = (sighting.pixels + 0.5) / sighting.resolution * CELLS
    inside = np.clip(np.floor(parts), 0, np.array(CELLS) - 1).astype(int)
    return [(int(column), int(row)) for column, row in inside]


def normal(board: Board, sighting: Sighting) -> Floats:
    """(3,) into the paper, in the camera's frame, by a guess of the lens: good to a few degrees."""
    width, height = sighting.resolution
    focal = GUESSED_FOCAL * width
    matrix = np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])
    _, turn, _ = cv2.solvePnP(board.corners[sighting.ids], sighting.pixels, matrix, np.zeros(5))
    return np.asarray(cv2.Rodrigues(turn)[0][:, 2], np.float64)


def leans(board: Board, sighting: Sighting) -> list[Lean]:
    """The ways in which the board is tilted towards the camera."""
    x, y, z = normal(board, sighting)  # straight ahead when it is not tilted
    across, down = math.atan2(x, z), math.atan2(y, z)
    ways: list[Lean] = []
    if abs(across) > TILT:
        ways.append("right edge nearer" if across > 0 else "left edge nearer")
    if abs(down) > TILT:
        ways.append("upper edge nearer" if down < 0 else "lower edge nearer")
    return ways


def orientations(board: Board, views: Iterable[Sighting]) -> int:
    """In how many clearly different ways the board was held: parallel views tell nothing of focal length."""
    found: list[Floats] = []
    for view in views:
        here = normal(board, view)
        if all(np.dot(here, other) < math.cos(TILT) for other in found):
            found.append(here)
    return len(found)


def motion(before: Sighting, after: Sighting) -> float:
    """px by which the corners seen in both have moved on average; infinite when there are none."""
    common, first, second = np.intersect1d(before.ids, after.ids, return_indices=True)
    if len(common) == 0:
        return math.inf
    moved: Floats = np.linalg.norm(before.pixels[first] - after.pixels[second], axis=1)
    return float(moved.mean())


def at_rest(before: Sighting, after: Sighting) -> bool:
    """Whether nobody has moved the board between two images."""
    return motion(before, after) <= MOVED * after.resolution[0]


def _differ(one: Sighting, other: Sighting) -> bool:
    return motion(one, other) > DIFFERENT * one.resolution[0]
