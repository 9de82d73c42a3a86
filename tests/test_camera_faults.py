"""Every fault of the emulated camera, met by cv2.VideoCapture as it is, the driver and the control step.

What a fault spoils is noticed at once: at most two good pictures come after it is in force, which were on
their way. By its name it is told when the last good picture is too old.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.actor import Actor
from agent.episodes import read_episode
from agent.policy import RandomPolicy
from robot.camera import OpenCvCamera
from robot.clock import SystemClock
from robot.emulated_camera import CameraSignal, SensorNoise
from robot.faults import CAMERA, FaultConfig
from robot.mjpeg import FrameFeed
from robot.rig import Rig, RigConfig, build
from robot.sim import SimConfig, SimPlant
from robot.types import CameraFault, Fault
from tasks.env import RobotEnv
from tasks.valve import FixedAngle, Valve, ValveConfig
from tests.broadcast import Broadcast
from tests.test_camera import config, wait_until
from tests.test_frame_health import SCENE

ON_THEIR_WAY = 2  # pictures
OLD = 0.06  # s, six pictures


@dataclass(frozen=True)
class Row:
    """One fault and what must come of it."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    ends_with: str = ""  # the name of the fault that ends an episode; none: it goes on
    counter: str = ""  # of the camera, that counts what was spoiled; none: nothing comes that could be

    def __str__(self) -> str:
        return "-".join([self.kind, *(f"{key}={value}" for key, value in self.settings.items())])

    @property
    def fault(self) -> FaultConfig:
        return FaultConfig.model_validate({"kind": self.kind, **self.settings})


SOME = {"probability": 0.1}
TABLE = [
    Row("camera-stall", {}, "stale-frame"),
    Row("camera-drop", {}, "stale-frame"),
    Row("camera-drop", SOME),
    Row("camera-slow", {"value": 1.0}, "stale-frame"),
    Row("camera-slow", {"value": 20.0}),
    Row("camera-duplicate", {}, "frozen-frame", "frozen_frame"),
    Row("camera-duplicate", SOME, counter="frozen_frame"),
    Row("camera-corrupt", {}, "torn-frame", "torn_frame"),
    Row("camera-corrupt", SOME, counter="torn_frame"),
    Row("camera-size", {}, "frame-size", "frame_size"),
    Row("camera-black", {}, "black-frame", "black_frame"),
    Row("camera-white", {}, "overexposed-frame", "overexposed_frame"),
    Row("camera-gone", {}, "stale-frame", "lost"),
]


def test_the_table_has_every_kind() -> None:
    assert {row.kind for row in TABLE} == CAMERA


class Studio(Broadcast):
    """An emulated camera with a scene that does not move."""

    def __init__(self) -> None:
        self.faults: list[FaultConfig] = []
        self.signal: CameraSignal | None = None
        super().__init__(0.01)

    def show(self) -> None:
        if self.signal is None:
            rng = np.random.default_rng(0)
            self.signal = CameraSignal(
                self.feed, SensorNoise(1.0, SCENE.shape, rng), 90, rng, lambda: self.faults
            )
        self.signal.attend()
        self.signal.show(time.monotonic(), SCENE)


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    yield studio
    studio.close()


@pytest.fixture
def camera(studio: Studio) -> Iterator[OpenCvCamera]:
    camera = OpenCvCamera(config(studio.url, health={"noise": "on"}, read_timeout=1.0), SystemClock())
    yield camera
    camera.close()


def trouble(camera: OpenCvCamera, age: float = OLD) -> str:
    """The name of the fault that a control step would meet now; nothing if it would get a frame."""
    try:
        camera.latest(age)
    except CameraFault as fault:
        return fault.name
    return ""


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_spoiled_pictures_are_noticed_at_once_told_by_name_and_overcome(
    studio: Studio, camera: OpenCvCamera, row: Row
) -> None:
    before = camera.statistics()
    studio.faults = [row.fault]
    if row.ends_with:
        wait_until(lambda: trouble(camera) == row.ends_with)
        slow = 1 if row.kind == "camera-slow" else 0  # one a second may come while we look
        assert camera.statistics()["frames"] <= before["frames"] + ON_THEIR_WAY + slow
    else:
        wait_until(lambda: camera.statistics()["frames"] > before["frames"] + 20)
    if row.counter:
        wait_until(lambda: camera.statistics()[row.counter] > before[row.counter])
    studio.faults = []
    frames = camera.statistics()["frames"]
    wait_until(lambda: camera.statistics()["frames"] > frames + 2)
    assert not trouble(camera, 5.0)


def test_the_emulated_scene_at_rest_is_never_taken_for_a_camera_that_hangs(
    studio: Studio, camera: OpenCvCamera
) -> None:
    wait_until(lambda: camera.statistics()["frames"] > 60)
    counts = camera.statistics()
    del counts["frames"], counts["late"]  # the latter of pictures that came while the stream was opened
    assert not any(counts.values())


def test_a_picture_shorter_than_a_jpegs_header_can_be_damaged_too() -> None:
    rng, feed = np.random.default_rng(0), FrameFeed()
    fault = FaultConfig(kind="camera-corrupt")
    signal = CameraSignal(feed, SensorNoise(0.0, (16, 16, 3), rng), 10, rng, lambda: [fault])
    for moment in range(20):
        signal.show(float(moment), np.zeros((16, 16, 3), np.uint8))


def test_a_simulation_without_a_camera_cable_refuses_its_faults() -> None:
    from robot.faults import FaultSchedule

    with pytest.raises(ValueError, match="camera-black is for an emulated camera"):
        SimPlant(SimConfig()).inject(FaultSchedule([FaultConfig(kind="camera-black")]))


# --- The whole rig -----------------------------------------------------------------------------------------

PERIOD = 0.2  # s; on a busy machine pictures, too, are late


class Bench:
    """An emulated robot with its camera, acted on at random, and a log of every episode."""

    def __init__(self, folder: Path) -> None:
        patient = {"bus": {"timeout_ms": 150}, "dclaw": {"watchdog": 1.5}, "camera": {"max_age": 0.3}}
        self.rig: Rig = build(RigConfig.model_validate({"kind": "emulated", **patient}))
        self.rig.resources.enter_context(self.rig.robot)
        self.url = str(self.rig.config.camera.source).rpartition("/")[0]
        self.task = Valve(ValveConfig(goal=FixedAngle(angle=0.0), period=PERIOD, horizon=8))
        self.env = RobotEnv(self.rig, self.task, seed=0)
        self.actor = Actor(self.env, {}, (Fault,), 0, 100, rest=self.rig.robot.relax)
        self.folder, self.count = folder, 0

    def tell(self, body: bytes | None) -> None:
        method = "DELETE" if body is None else "POST"
        request = urllib.request.Request(f"{self.url}/faults", body, method=method)
        urllib.request.urlopen(request, timeout=5).close()

    def episode(self, row: Row) -> Path:
        """One episode, in which the fault begins with the third step; its log."""
        steps = iter(range(100))

        def watch() -> None:
            if next(steps) == 2:
                self.tell(row.fault.model_dump_json().encode())

        self.count += 1
        policy = RandomPolicy(9, np.random.default_rng(self.count))
        self.actor.episode(policy, self.folder, self.count, explore=True, closed=lambda _: None, watch=watch)
        self.tell(None)
        wait_until(lambda: not trouble(self.rig.cameras["front"], 0.2))  # type: ignore[arg-type]
        return self.folder / f"{self.count:06d}.mcap"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("episodes"))
    yield bench
    bench.rig.close()


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_no_old_picture_gets_into_a_log_and_episodes_end_by_the_faults_name(bench: Bench, row: Row) -> None:
    episode = read_episode(bench.episode(row))
    assert episode.fault == (row.ends_with or None)
    steps = len(episode.actions)
    assert 2 <= steps <= 4 if row.ends_with else steps == 8
    taken, read = episode.telemetry["frame_time"], episode.telemetry["time"]
    assert (read - taken <= PERIOD + 0.05).all()  # the reading comes a moment before the frame is asked for
    assert (np.diff(taken) > 0).all(), "a picture that was seen before"
    assert (np.diff(episode.telemetry["frame_sequence"]) > 0).all()
    assert episode.images is not None
    assert (episode.images.max(axis=(1, 2, 3)) > 60).all()
    assert (episode.images.min(axis=(1, 2, 3)) < 240).all()
