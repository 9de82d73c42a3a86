"""Promises of the guided capture: through a real camera driver, still and new views, none of them lost."""

from __future__ import annotations

import io
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from rich.console import Console

import run_robot
from calibration.board import Board, BoardConfig
from calibration.camera_report import watched
from calibration.capture import Progress, Session, Setup, Watch, read_folder
from calibration.terminal import Keys
from configs.document import Layer
from configs.loader import load
from configs.run import HwConfig
from robot.camera import CameraConfig, OpenCvCamera
from robot.clock import SystemClock
from robot.types import CameraFault, Image
from tests.broadcast import Broadcast
from tests.photographs import Camera, Faults, Paper, around, nominal_place, spoil

PERIOD = 0.15  # s between images: each costs the search for a board
BOARD = Board(BoardConfig())
CAMERA = Camera()


def coloured(grey: np.ndarray) -> Image:
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def scenes() -> list[Image]:
    """(H, W, 3) uint8: the board on the base, then held in seven ways."""
    rng, paper = np.random.default_rng(2), Paper(BOARD)
    poses = [nominal_place() @ BOARD.in_base, *around(BOARD, 7, rng)]
    return [coloured(spoil(paper.photograph(CAMERA, pose), Faults(), rng)) for pose in poses]


class Bench(Broadcast):
    """An emulated camera before which a person shows a board: the next scene once the last one was taken."""

    def __init__(self, scenes: list[Image], cameras: Path) -> None:
        self.scenes, self.cameras = scenes, cameras
        self.ended = threading.Event()  # all scenes were taken
        self.stream, self._out = os.pipe()
        super().__init__(PERIOD)

    def press_enter(self) -> None:
        os.write(self._out, b"\n")

    def close(self) -> None:
        super().close()
        os.close(self._out)

    def show(self) -> None:
        taken = self._taken()
        self.feed.publish(self.scenes[min(taken, len(self.scenes) - 1)], 95)
        if taken == len(self.scenes) and not self.ended.is_set():
            self.ended.set()
            self.press_enter()

    def _taken(self) -> int:
        """Scenes of which there is a photograph: the one of the base, then the others."""
        at_base = any(self.cameras.glob("*/base-5.png"))
        return at_base + len(list(self.cameras.glob("*/view-*.png"))) if at_base else 0


@pytest.fixture
def bench(scenes: list[Image], tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(scenes, tmp_path / "cameras")
    yield bench
    bench.close()


@pytest.fixture
def keyboard(bench: Bench) -> Iterator[TextIO]:
    with os.fdopen(bench.stream) as stream:
        yield stream


def session(bench: Bench, stream: TextIO, told: Callable[[Progress], None], camera: OpenCvCamera) -> Session:
    setup = Setup(name="dclaw", kind="real", identity="cam A", camera=camera.config, board=BOARD.config)
    watch = Watch(camera, SystemClock(), BOARD)
    return Session(watch, setup, bench.cameras / "session", Keys(stream), told)


def opened(bench: Bench) -> closing[OpenCvCamera]:
    return closing(OpenCvCamera(CameraConfig(source=bench.url), SystemClock()))


@pytest.mark.slow
def test_the_command_leads_from_a_camera_to_settings_for_it(
    bench: Bench,
    keyboard: TextIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", keyboard)
    bench.press_enter()  # the board lies on the base
    command = f"calibrate camera --hw dclaw --set hw.camera.source={bench.url}"
    assert run_robot.main(shlex.split(command)) == 0
    said = capsys.readouterr().out
    assert bench.ended.is_set()
    assert "taken: view 7" in said
    (path,) = (tmp_path / "cameras").glob("*.yaml")
    assert f"check --hw dclaw --config cameras/{path.name}" in said
    camera = load(HwConfig, [Layer.from_file(path)]).hw.camera
    assert camera.lens
    assert np.allclose(camera.lens.focal, CAMERA.focal, rtol=0.005)
    assert camera.calibration
    assert camera.calibration.camera == bench.url
    again = re.search(r"--from (cameras/\S+)", path.read_text())
    assert again
    assert run_robot.main(["calibrate", "camera", "--from", again[1]]) == 0  # without a camera


def test_ctrl_c_keeps_what_was_taken(bench: Bench, keyboard: TextIO) -> None:
    def interrupting(progress: Progress) -> None:
        if progress.stage == "free" and progress.taken == 3:
            raise KeyboardInterrupt

    bench.press_enter()
    with opened(bench) as camera:
        session(bench, keyboard, interrupting, camera).take()
    photographs = read_folder(bench.cameras / "session")
    assert len(photographs.views) == 3
    assert len(photographs.base) == 5
    assert photographs.setup.identity == "cam A"


def test_ctrl_c_before_the_base_was_seen_ends_the_program(bench: Bench, keyboard: TextIO) -> None:
    """Nobody said that the board lies in its place: nothing is taken, whatever is seen."""
    seen: list[str] = []

    def interrupting(progress: Progress) -> None:
        seen.append(progress.news)
        if len(seen) == 8:
            raise KeyboardInterrupt

    with opened(bench) as camera, pytest.raises(KeyboardInterrupt):
        session(bench, keyboard, interrupting, camera).take()
    assert seen[-1] == "24 of 24 corners seen"
    assert not list(bench.cameras.glob("*/*.png"))


def test_a_camera_that_is_pulled_out_is_a_fault(bench: Bench, keyboard: TextIO) -> None:
    def pulling(progress: Progress) -> None:
        bench.server.close()

    with opened(bench) as camera, pytest.raises(CameraFault, match=r"stopped sending|ms old"):
        session(bench, keyboard, pulling, camera).take()


def test_what_is_wrong_with_the_view_is_told_after_a_while(bench: Bench, keyboard: TextIO) -> None:
    bench.scenes = [np.ascontiguousarray(scene[:, ::-1]) for scene in bench.scenes]

    def reading(progress: Progress) -> None:
        if "mirrored" in progress.news:
            raise KeyboardInterrupt

    with opened(bench) as camera, pytest.raises(KeyboardInterrupt):
        session(bench, keyboard, reading, camera).take()


def test_a_terminal_shows_what_is_missing(scenes: list[Image]) -> None:
    import cv2

    from calibration.coverage import Coverage

    seen = BOARD.find(cv2.cvtColor(scenes[0], cv2.COLOR_RGB2GRAY))
    assert seen
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system=None)
    with watched(console) as told:
        told(Progress("base", Coverage(BOARD), "looking for the board", 0))
        told(Progress("free", Coverage(BOARD).with_view(seen), "taken: view 1", 1))
    text = written.getvalue()
    assert "Lay the board on the base" in text
    assert "[####]" in text
    assert "[    ]" in text
    assert "tilts missing: left edge nearer" in text
    assert "1 photographs" in text


def test_keys_tell_enter_from_nobody_there() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stream:
        keys = Keys(stream)
        assert not keys.pressed()
        os.write(writing, b"\n")
        assert keys.pressed()
        assert not keys.pressed()
        os.close(writing)
        assert not keys.pressed()
        assert keys.closed


def test_a_program_that_was_started_without_a_keyboard_waits_for_none() -> None:
    keys = Keys(None)  # as sys.stdin is then
    assert not keys.pressed()
    assert keys.closed
