"""Promises of recording: every captured picture with its time, and a disk that never holds anybody up."""

from __future__ import annotations

import csv
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import ValidationError

import run_robot
from agent.actor import Actor
from agent.episodes import read_episode
from agent.policy import RandomPolicy
from robot.camera import CameraConfig, OpenCvCamera
from robot.clock import SystemClock
from robot.recording import QUEUE, Recorder
from robot.rig import RigConfig, build
from robot.types import CameraFault, Fault, Image
from tasks.env import RobotEnv
from tasks.valve import FixedAngle, Valve, ValveConfig
from tests.test_camera import config, wait_until
from tests.test_frame_health import SCENE, Station, jpeg, noisy

ROOT = Path(__file__).parents[1]


class Told:
    """What a recorder has told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __call__(self, name: str, text: str) -> None:
        self.events.append((name, text))


def pictures(path: Path) -> list[tuple[float, Image]]:
    """Time (s since the first one) and image (BGR) of each picture of a film."""
    with av.open(f"{path}.mkv") as film:
        return [(float(frame.time or 0), frame.to_ndarray(format="bgr24")) for frame in film.decode(video=0)]


def table(path: Path) -> list[float]:
    """The times (s) beside a film."""
    with open(f"{path}.csv", encoding="ascii", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["picture"]) for row in rows] == list(range(len(rows)))
    return [float(row["time"]) for row in rows]


def write_all(recorder: Recorder, images: list[Image], times: list[float]) -> None:
    for image, moment in zip(images, times, strict=True):
        before = recorder.statistics()["recorded"]
        recorder.take(image, moment)
        wait_until(lambda before=before: recorder.statistics()["recorded"] > before)  # type: ignore[misc]


@pytest.mark.parametrize("shape", [(80, 96), (45, 61)])
def test_a_film_holds_every_picture_with_its_own_time(tmp_path: Path, shape: tuple[int, int]) -> None:
    scene = np.ascontiguousarray(SCENE[: shape[0], : shape[1]])
    images = [np.roll(scene, 5 * number, axis=1) for number in range(12)]
    times = [100 + 0.0333 * number + 0.2 * (number > 6) for number in range(12)]
    recorder = Recorder("front", Told())
    recorder.begin(tmp_path / "episodes" / "000001.front")
    write_all(recorder, images, times)
    recorder.end()
    assert table(tmp_path / "episodes/000001.front") == pytest.approx(times, abs=1e-6)
    film = pictures(tmp_path / "episodes/000001.front")
    assert [moment for moment, _ in film] == pytest.approx([moment - 100 for moment in times], abs=1e-3)
    for (_, seen), image in zip(film, images, strict=True):
        assert np.abs(seen.astype(int) - image).mean() < 8
        assert np.abs(np.roll(seen, 5, axis=1).astype(int) - image).mean() > 12


def test_films_follow_each_other_and_between_them_nothing_is_kept(tmp_path: Path) -> None:
    recorder = Recorder("front", Told())
    for number in range(2):
        recorder.take(SCENE, 1.0)
        recorder.begin(tmp_path / str(number))
        write_all(recorder, [SCENE] * (number + 1), [2.0, 3.0][: number + 1])
        recorder.end()
        recorder.end()
    assert (len(pictures(tmp_path / "0")), len(pictures(tmp_path / "1"))) == (1, 2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("film")]


def test_a_disk_that_hangs_costs_pictures_and_no_time(tmp_path: Path) -> None:
    """A pipe that nobody reads is such a disk."""
    os.mkfifo(tmp_path / "film.mkv")
    recorder, told = Recorder("front", Told()), Told()
    recorder.begin(tmp_path / "film")
    for number in range(QUEUE + 25):
        recorder.take(SCENE, float(number))
    assert recorder.statistics() == {"recorded": 0.0, "unrecorded": 25.0}
    with subprocess.Popen(["cat", tmp_path / "film.mkv"], stdout=subprocess.DEVNULL):
        recorder.end()
    assert recorder.statistics()["recorded"] == QUEUE
    assert table(tmp_path / "film") == list(range(QUEUE))
    assert not told.events


def test_a_disk_that_hangs_ends_the_recording_and_not_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "film.mkv")
    told = Told()
    recorder = Recorder("front", told, patience=0.2)
    recorder.begin(tmp_path / "film")
    recorder.take(SCENE, 1.0)
    recorder.end()
    recorder.begin(tmp_path / "next")
    recorder.end()
    ((name, text),) = told.events
    assert name == "recording-stopped"
    assert "film.mkv has stopped: the disk hangs" in text
    assert not (tmp_path / "next.mkv").exists()
    with subprocess.Popen(["cat", tmp_path / "film.mkv"], stdout=subprocess.DEVNULL):
        wait_until(lambda: not [one for one in threading.enumerate() if one.name.startswith("film")])
    assert len(told.events) == 1


@pytest.fixture
def small_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_told_once_and_ends_the_recording_alone(tmp_path: Path) -> None:
    told = Told()
    recorder = Recorder("front", told)
    recorder.begin(tmp_path / "film")
    for number in range(4000):
        recorder.take(noisy(), float(number))
        time.sleep(0)
        if told.events:
            break
    wait_until(lambda: bool(told.events))  # while it films, not when it is over
    recorder.end()
    recorder.begin(tmp_path / "next")
    recorder.take(SCENE, 5000.0)
    recorder.end()
    ((name, text),) = told.events
    assert name == "recording-stopped"
    assert "camera front" in text
    assert "File too large" in text
    assert not (tmp_path / "next.mkv").exists()
    assert len(pictures(tmp_path / "film")) > 0


def test_a_folder_that_cannot_be_written_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "episodes").write_text("a file", encoding="ascii")
    told = Told()
    recorder = Recorder("front", told)
    recorder.begin(tmp_path / "episodes" / "film")
    recorder.end()
    assert [name for name, _ in told.events] == ["recording-stopped"]


KILLED = """
import os, signal, sys, time
import numpy as np
from pathlib import Path
from robot.recording import Recorder
recorder, rng = Recorder("front", print), np.random.default_rng(0)
recorder.begin(Path(sys.argv[1]))
for number in range(60):
    before = recorder.statistics()["recorded"]
    recorder.take(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), number / 30)
    while recorder.statistics()["recorded"] == before:
        time.sleep(0.001)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_program_leaves_its_film_but_for_the_last_moment(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "film")], cwd=ROOT, timeout=60)
    assert done.returncode == -9
    assert len(pictures(tmp_path / "film")) >= 60 - 6
    assert len(table(tmp_path / "film")) >= 60 - 1


def test_a_camera_hands_over_every_frame_with_its_time(tmp_path: Path) -> None:
    recorder = Recorder("front", Told())
    station = Station(lambda: jpeg(noisy()))
    camera = OpenCvCamera(config(station.url), SystemClock(), taker=recorder.take)
    recorder.begin(tmp_path / "film")
    wait_until(lambda: recorder.statistics()["recorded"] > 10)
    camera.close()
    recorder.end()
    station.close()
    times = table(tmp_path / "film")
    assert times[-1] == pytest.approx(camera.latest(60.0).time, abs=1e-5)
    assert (np.diff(times) > 0).all()


# --- Several cameras ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["front", "Wrist", "two words", ""])
def test_a_further_camera_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValidationError, match="no name for a further camera"):
        RigConfig(cameras={name: CameraConfig()})


@pytest.mark.parametrize("setting", ["hw.cameras={wrist: {source: 1}}", "hw.camera.record=true"])
def test_the_simulation_says_that_it_has_one_camera_and_records_nothing(
    setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_robot.main(["check", "--hw", "sim", "--set", setting]) == 2
    assert "--hw emulated or --hw dclaw" in capsys.readouterr().err


def test_a_further_camera_that_is_missing_is_named_with_its_own_setting_and_nothing_stays_open() -> None:
    before = {thread.name for thread in threading.enumerate()}
    wrist = {"source": "no/film.mp4"}
    with pytest.raises(CameraFault, match=r"^wrist: no/film\.mp4 .*\(hw\.cameras\.wrist\.source"):
        build(RigConfig.model_validate({"kind": "emulated", "cameras": {"wrist": wrist}}))
    wait_until(lambda: {thread.name for thread in threading.enumerate()} <= before)


@pytest.mark.slow
def test_two_cameras_are_seen_logged_and_filmed_together(tmp_path: Path) -> None:
    station = Station(lambda: jpeg(noisy()))
    settings = {
        "kind": "emulated",
        "bus": {"timeout_ms": 150},
        "dclaw": {"watchdog": 1.5},
        "camera": {"max_age": 0.3, "record": True},
        "cameras": {"wrist": {"source": station.url, "width": 96, "height": 80, "record": True}},
    }
    with build(RigConfig.model_validate(settings)) as rig:
        env = RobotEnv(rig, Valve(ValveConfig(goal=FixedAngle(angle=0.0), period=0.2, horizon=5)), seed=0)
        actor = Actor(env, {}, (Fault,), 0, rest=rig.robot.relax, filming=rig.filming)
        policy = RandomPolicy(9, np.random.default_rng(0))
        actor.episode(policy, tmp_path, 1, explore=True, closed=lambda _: None)
        counts = rig.statistics()
        assert (*rig.cameras,) == ("front", "wrist")
    station.close()
    episode = read_episode(tmp_path / "000001.mcap")
    assert (episode.fault, len(episode.actions)) == (None, 5)
    assert (episode.telemetry["wrist_frame_age"] < 0.25).all()
    assert (np.diff(episode.telemetry["wrist_frame_time"]) > 0).all()
    for name, shape in (("front", (256, 256, 3)), ("wrist", (80, 96, 3))):
        film, times = pictures(tmp_path / f"000001.{name}"), table(tmp_path / f"000001.{name}")
        assert film[0][1].shape == shape
        assert len(film) == len(times) == counts[f"{name}_recorded"] > 15
        assert times[0] < episode.telemetry["time"][1]
        assert times[-1] > episode.telemetry["time"][-2]
