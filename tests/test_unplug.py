"""What an episode promises when cable or camera fail in it: through the real drivers, in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence

from robot.emulator import Emulator, EmulatorConfig
from robot.mjpeg import CameraServer, FrameFeed
from robot.rig import RigConfig, build
from robot.sim import SimConfig, SimPlant
from robot.types import CameraFault, PortLost
from tasks import RobotEnv, ValveConfig, make_task
from tasks.valve import FixedAngle

REST = np.zeros(9, np.float32)
# The plant stands where an episode begins, so that resets are short; a slow machine is not late for 0.3 s.
TASK = ValveConfig(goal=FixedAngle(angle=0.5), start=FixedAngle(angle=0.0), cue="none", period=0.3)
WATCHDOG = 2.0  # s


class Bench:
    """A D'Claw whose serial cable can be pulled and whose camera can freeze or disappear."""

    def __init__(self, folder: Path) -> None:
        self.plant = SimPlant(SimConfig())
        self.link = folder / "ttyDclaw"
        self.plug_in()
        self.feed = FrameFeed()
        self.server = CameraServer(self.feed, dict)
        self.filming = True
        self._over = threading.Event()
        self._film = threading.Thread(target=self._publish, daemon=True)
        self._film.start()

    def plug_in(self) -> None:
        """The same servos on a new terminal under the old name."""
        config = EmulatorConfig(wire=False, return_delay_us=0, link=str(self.link))
        self.emulator = Emulator(config, self.plant, camera=False)

    def pull_out(self) -> None:
        """The port vanishes; for the servos time goes on."""
        self.emulator.close()
        self.plant.advance_to(self.plant.now() + WATCHDOG + 0.2)

    def camera_off(self) -> int:
        """Switches the camera off; the network port that it had."""
        port = int(self.server.server_address[1])
        self.server.close()
        return port

    def camera_on(self, port: int) -> None:
        self.feed = FrameFeed()
        self.server = CameraServer(self.feed, dict, port)

    def close(self) -> None:
        self._over.set()
        self._film.join()
        self.server.close()
        self.emulator.close()
        self.plant.close()

    def _publish(self) -> None:
        while not self._over.wait(0.01):
            if self.filming:
                self.feed.publish(np.full((64, 64, 3), 90, np.uint8), 95)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def env(bench: Bench) -> Iterator[RobotEnv]:
    config = {
        "kind": "real",
        "bus": {"port": str(bench.link), "timeout_ms": 200, "retries": 4},
        "dclaw": {"watchdog": WATCHDOG},
        "camera": {"source": bench.server.url + "/cam.mjpg", "width": 64, "height": 64, "max_age": 0.3},
    }
    with build(RigConfig.model_validate(config)) as rig:
        yield RobotEnv(rig, make_task(TASK))


def broken_step(env: RobotEnv, last: dict[str, Any]) -> dict[str, Any]:
    """Steps until the fault, three times at most, and sees that it became no number; its info."""
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(REST)
        if "fault" in info:
            break
        last = observation
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "telemetry" not in info
    assert "terms" not in info
    assert data_equivalence(observation, last, exact=True)
    with pytest.raises(ResetNeeded):
        env.step(REST)
    return info


def runs_again(env: RobotEnv) -> bool:
    """True once an episode begins and goes on; a camera is looked for again after a pause of its own."""
    for _ in range(20):
        try:
            env.reset()
            if "fault" not in env.step(REST)[4]:
                return True
        except CameraFault:
            time.sleep(0.1)
    return False


def test_a_pulled_cable_ends_the_episode_and_the_next_one_starts_when_it_is_back(
    bench: Bench, env: RobotEnv
) -> None:
    observation, _ = env.reset(seed=0)
    bench.pull_out()
    info = broken_step(env, observation)
    assert info["fault"] == "port-lost"
    assert str(bench.link) in info["fault_message"]
    assert all(bench.plant.servos[id].tripped for id in env.rig.config.dclaw.joint_ids)
    with pytest.raises(PortLost, match=str(bench.link)):
        env.reset()
    bench.plug_in()
    assert runs_again(env)


def test_a_frozen_camera_ends_the_episode_and_the_next_one_starts_when_it_films(
    bench: Bench, env: RobotEnv
) -> None:
    observation, _ = env.reset(seed=0)
    bench.filming = False
    info = broken_step(env, observation)
    assert info["fault"] == "stale-frame"
    assert "ms old" in info["fault_message"]
    with pytest.raises(CameraFault, match=r"cam\.mjpg"):
        env.reset()
    bench.filming = True
    assert runs_again(env)


def test_a_camera_switched_off_ends_the_episode_and_the_next_one_starts_when_it_is_on(
    bench: Bench, env: RobotEnv
) -> None:
    observation, _ = env.reset(seed=0)
    port = bench.camera_off()
    info = broken_step(env, observation)
    assert info["fault"] == "stale-frame"
    with pytest.raises(CameraFault, match=r"no camera at http://127\.0\.0\.1.*refused"):
        env.reset()
    bench.camera_on(port)
    assert runs_again(env)
