"""Promises of the calibration board: true to scale on paper, found exactly, and no other taken for it."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pictures
from pydantic import ValidationError

from calibration.board import INK, PAPERS, Board, BoardConfig, CalibrationError, Place
from tests.photographs import Camera, Faults, Paper, around, facing, spoil

BOARD = Board(BoardConfig())
STRAIGHT = facing(BOARD, (0.3, -0.2), 0.1, (0.0, 0.0, 0.42))


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera()


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper(BOARD)


def test_the_board_drawn_is_the_one_that_opencv_describes() -> None:
    config = BOARD.config
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    theirs = cv2.aruco.CharucoBoard(config.squares, config.square, config.marker, dictionary)
    np.testing.assert_array_equal(BOARD.draw(12000), theirs.generateImage((7 * 420, 5 * 420)))


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_a_sheet_on_paper_is_true_to_scale(paper: str, tmp_path: Path) -> None:
    board = Board(BoardConfig.model_validate({"paper": paper}))
    for kind in ("pdf", "png"):
        board.print_to(tmp_path / f"board.{kind}")
    width, height = PAPERS[paper]  # type: ignore[index]
    box = re.search(rb"MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", (tmp_path / "board.pdf").read_bytes())
    assert box
    assert [float(points) / 72 * 25.4 for points in box.groups()] == pytest.approx([width, height], abs=0.05)
    picture = Pictures.open(tmp_path / "board.png")
    per_mm = picture.info["dpi"][0] / 25.4
    assert picture.size == (pytest.approx(width * per_mm, abs=1), pytest.approx(height * per_mm, abs=1))
    page = np.asarray(picture.convert("L"))
    top = np.flatnonzero((page < 128).any(axis=1))[0]
    edges = np.flatnonzero(np.diff((page[top + 2] < 128).astype(int)))  # through the frame squares' tops
    assert (edges[-1] - edges[0]) / per_mm == pytest.approx(7 * 35, abs=0.1)


def test_the_ruler_on_the_sheet_is_as_long_as_it_says() -> None:
    page = BOARD.sheet() < 128
    below = page[round((210 - 11 + 175) / 2 * INK) + 10 :, :]
    longest = max(_runs(row) for row in below)
    assert longest / INK == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_what_is_written_below_a_narrow_board_is_on_the_paper(paper: str) -> None:
    narrow = {"squares": (3, 3), "square": 0.0123, "marker": 0.00923, "dictionary": "5x5_250", "paper": paper}
    page = Board(BoardConfig.model_validate(narrow)).sheet() < 128
    assert page.shape[1] - np.flatnonzero(page.any(axis=0))[-1] > 5 * INK


def _runs(row: np.ndarray) -> int:
    """The longest run of ink in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return int(np.diff(edges)[::2].max(initial=0))


def test_corners_are_found_to_a_tenth_of_a_pixel(camera: Camera, paper: Paper) -> None:
    rng, misses = np.random.default_rng(3), []
    for pose in around(BOARD, 5, rng):
        seen = BOARD.find(spoil(paper.photograph(camera, pose), Faults(), rng))
        assert seen
        points = BOARD.corners[seen.ids] @ pose[:3, :3].T + pose[:3, 3]
        misses.append(seen.pixels - camera.project(points))
    missed = np.concatenate(misses)
    assert np.sqrt((missed**2).mean()) < 0.1
    assert np.abs(missed.mean(axis=0)).max() < 0.03  # half a pixel would be another meaning of its centre


def test_a_board_that_is_partly_covered_is_found_in_part(camera: Camera, paper: Paper) -> None:
    image = spoil(paper.photograph(camera, STRAIGHT), Faults(hand=1.0), np.random.default_rng(1))
    seen = BOARD.find(image)
    assert seen
    assert 8 <= len(seen.ids) < len(BOARD.corners)


def test_a_row_of_corners_and_one_beside_it_is_not_taken_for_a_view() -> None:
    """No pose can be told from them, and the search for a lens would break on them."""
    board = Board(BoardConfig(squares=(12, 8), square=0.02, marker=0.015))
    whole = cv2.copyMakeBorder(board.draw(2500), *[40] * 4, cv2.BORDER_CONSTANT, value=255).astype(np.uint8)
    rows = whole.copy()
    rows[143:] = 255  # two rows of squares are left, and one row of corners between them
    assert board.find(rows) is None
    rows[143:193, 580:] = whole[143:193, 580:]  # a corner below it
    assert board.find(rows) is None
    rows[143:193, 490:] = whole[143:193, 490:]  # and more of them
    assert board.find(rows)


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ({"dictionary": "5x5_100"}, r"dictionary 5x5_\d+, not of 4x4_50: another board\?"),
        ({"squares": (7, 8), "square": 0.03, "marker": 0.022}, "do not lie as on a board of 7x5 squares"),
        ({"squares": (6, 5)}, "do not lie as on a board of 7x5 squares: set board.squares"),
        ({"squares": (9, 7), "square": 0.025, "marker": 0.0185}, "do not lie as on a board of 7x5 squares"),
    ],
)
def test_another_board_is_not_taken_for_ours(printed: dict[str, object], reason: str, camera: Camera) -> None:
    other = Board(BoardConfig.model_validate(printed))
    image = Paper(other).photograph(camera, facing(other, (0.3, -0.2), 0.1, (0.0, 0.0, 0.42)))
    assert other.find(image)
    assert BOARD.find(image) is None
    assert re.search(reason, BOARD.why_not(image))


def test_a_mirrored_image_is_told_as_one(camera: Camera, paper: Paper) -> None:
    mirrored = np.ascontiguousarray(paper.photograph(camera, STRAIGHT)[:, ::-1])
    assert BOARD.find(mirrored) is None
    assert "the image is mirrored" in BOARD.why_not(mirrored)


def test_an_image_without_a_board_says_how_much_of_it_is_seen() -> None:
    empty = np.full((480, 640), 120, np.uint8)
    assert BOARD.find(empty) is None
    assert "0 of the board's 17 markers are seen" in BOARD.why_not(empty)


def test_the_board_lies_where_its_place_says() -> None:
    place = Place(centre=(0.02, -0.01, 0.003), turn=90)
    board = Board(BoardConfig(place=place))
    wide, high = board.config.size
    corners = np.array([[0, 0, 0, 1], [wide, 0, 0, 1], [0, high, 0, 1], [wide, high, 0, 1]])
    top_left, top_right, bottom_left, bottom_right = (corners @ board.in_base.T)[:, :3]
    np.testing.assert_allclose((top_left + bottom_right) / 2, place.centre, atol=1e-12)
    np.testing.assert_allclose(top_right - top_left, [0, wide, 0], atol=1e-12)  # its arrow, along y
    np.testing.assert_allclose(top_left - bottom_left, [-high, 0, 0], atol=1e-12)  # up the sheet
    np.testing.assert_allclose(board.in_base[:3, :3] @ [0, 0, -1], [0, 0, 1], atol=1e-12)  # printed side up


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"squares": (2, 5)}, "expected 3 to 50 each way"),
        ({"marker": 0.034}, "expected 0.3 to 0.9 of a square"),
        ({"square": 35, "marker": 26}, r"square 35 m: expected 0\.005 to 0\.5 m; 35 mm are 0\.035"),
        ({"place": {"centre": (20, 0, 0)}}, "less than or equal to 2"),
        ({"squares": (12, 9)}, "54 markers are needed, dictionary 4x4_50 has 50"),
    ],
)
def test_a_board_that_cannot_be_is_refused(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        BoardConfig.model_validate(values)


def test_a_board_larger_than_the_paper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="350 x 250 mm does not fit on a4, which takes 287 x 189 mm"):
        Board(BoardConfig(square=0.05, marker=0.036)).print_to(tmp_path / "board.pdf")
    with pytest.raises(CalibrationError, match=r"board\.jpg: a board is written as \.pdf or \.png"):
        BOARD.print_to(tmp_path / "board.jpg")
    assert not list(tmp_path.iterdir())


def test_a_sheet_that_cannot_be_written_is_told_by_its_own_name_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken.pdf").mkdir()
    with pytest.raises(IsADirectoryError, match=r"/taken\.pdf'$"):
        BOARD.print_to(tmp_path / "taken.pdf")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # bytes: a full disk ends a write likewise
    try:
        for name in ("board.pdf", "board.png"):
            with pytest.raises(OSError, match=rf"File too large: '.*/{name}'$"):
                BOARD.print_to(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.pdf"]
