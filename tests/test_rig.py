"""Promises of the rig: one driver over three worlds, opened whole or not at all, closed in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot.camera import CameraConfig, deliver
from robot.dynamixel import DynamixelConfig
from robot.emulator import EmulatorConfig, EmulatorSetup, SerialLine
from robot.registers import RAD_PER_TICK, WATCHDOG_TRIPPED
from robot.rig import EmulatorProcess, Rig, RigConfig, build
from robot.sim import SimConfig, SimPlant
from robot.types import CameraFault, PortLost, StaleFrame

ROOT = Path(__file__).parents[1]
FAST = {"wire": False, "return_delay_us": 0, "linger": 0.5}
# On a busy machine answers, frames and we ourselves may be late; these tests are not about that.
PATIENT = {"bus": {"timeout_ms": 200, "retries": 4}, "dclaw": {"watchdog": 2.0}}
SEEN = 2.0  # s, as old as a frame may be


def emulated(**changes: object) -> RigConfig:
    return RigConfig.model_validate({"kind": "emulated", "emulator": {**FAST, **changes}, **PATIENT})


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.01)


def state_of(rig: Rig) -> dict[str, Any]:
    url = str(rig.config.camera.source).replace("/cam.mjpg", "/state")
    with urllib.request.urlopen(url) as answer:
        return dict(json.load(answer))


@pytest.fixture(scope="module")
def entered() -> Iterator[Rig]:
    with build(emulated()) as rig:
        yield rig


@pytest.fixture
def wired(entered: Rig) -> Rig:
    """An emulated rig under torque; its watchdog has tripped if the test before was long ago."""
    entered.robot.engage()
    return entered


def test_simulated_rig_reads_commands_and_sees_without_waiting() -> None:
    with build(RigConfig(kind="sim")) as rig:
        assert not rig.realtime
        start = rig.clock.now()
        before = rig.snapshot(0.1)
        rig.robot.command(before.joints.position + 0.1, 0.1)
        rig.clock.sleep_until(start + 0.1)
        after = rig.snapshot(0.1)
        assert after.frames["front"].image.shape == (64, 64, 3)
        assert after.frames["front"].time <= after.time
        assert np.abs(after.joints.position - before.joints.position).max() > 0.02
        assert rig.picture().shape == (320, 320, 3)


def test_emulated_rig_is_the_same_rig_in_real_time(wired: Rig) -> None:
    assert wired.realtime
    camera = wired.cameras["front"]
    before = wired.snapshot(SEEN)
    wired.robot.command(before.joints.position + 0.1, 0.1)
    wired.clock.sleep_until(wired.clock.now() + 0.1)
    wait_until(lambda: camera.latest(SEEN).sequence > before.frames["front"].sequence)
    after = wired.snapshot(SEEN)
    assert after.frames["front"].image.shape == (64, 64, 3)
    assert np.abs(after.joints.position - before.joints.position).max() > 0.02
    assert wired.picture().shape == (256, 256, 3)


def test_entered_robot_is_under_torque_with_its_watchdog_armed(wired: Rig) -> None:
    servos = state_of(wired)["servos"]
    assert {servos[str(id)]["torque_enable"] for id in wired.config.dclaw.joint_ids} == {1}
    assert servos["50"]["torque_enable"] == 0
    assert {servos[str(id)]["bus_watchdog"] for id in wired.config.dclaw.joint_ids} == {100}  # 2 s


def test_both_rigs_see_the_same_picture_through_the_same_lens(wired: Rig) -> None:
    plant = SimPlant(SimConfig())
    state = wired.robot.read()
    plant.teleport(state.joints.position, float(state.object.position[0]))
    camera, posed = wired.cameras["front"], wired.clock.now()
    wait_until(lambda: camera.latest(SEEN).time > posed + 0.2)  # drawn after, not only received
    seen = camera.latest(SEEN).image.astype(int)
    large = CameraConfig(source="plant", width=256, height=256)
    exact = deliver(plant.render(256, 256)[:, :, ::-1], large).astype(int)
    # JPEG costs about 1 of 255 on average; a shift of one pixel would cost more than 6.
    assert np.abs(seen - exact).mean() < 2.0
    assert np.abs(np.roll(seen, 1, axis=1) - exact).mean() > 4.0
    assert np.abs(seen - plant.latest(1.0).image).mean() < 4.0
    np.testing.assert_allclose(wired.cameras["front"].projection, plant.projection, atol=1e-9)
    plant.close()


@pytest.mark.parametrize("kind", ["sim", "emulated"])
def test_description_is_plain_data_that_a_log_can_hold(kind: str, wired: Rig) -> None:
    rig = wired if kind == "emulated" else build(RigConfig(kind="sim"))
    described = json.loads(json.dumps(rig.describe()))
    assert described["kind"] == kind
    assert np.shape(described["projections"]["front"]) == (3, 4)
    assert described["robot"]["calibration"]["joint_ids"][:3] == [10, 11, 12]
    assert "servo_stiffness" in described["sim"]
    if rig is not wired:
        rig.close()


def test_statistics_count_what_bus_and_camera_did(wired: Rig) -> None:
    before = wired.statistics()
    wired.robot.read()
    after = wired.statistics()
    assert after["bus_reads"] == before["bus_reads"] + 1
    assert after["front_frames"] > 0


def test_rig_without_camera_has_none_to_offer() -> None:
    with build(RigConfig(kind="sim"), cameras=False) as rig:
        assert not rig.cameras
        assert not rig.snapshot_without_images().frames


def test_close_may_be_repeated_and_leaves_no_process_port_or_link(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    rig = build(emulated(link=str(link)), cameras=False)
    assert rig.config.bus.port == str(link)
    with pytest.raises(CameraFault, match="without a camera"):
        rig.picture()
    rig.close()
    rig.close()
    assert not link.is_symlink()
    with pytest.raises(PortLost):
        rig.robot.read()


def test_missing_port_is_one_clear_error_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(PortLost, match="/dev/ttyNobody"):
        build(RigConfig.model_validate({"kind": "real", "bus": {"port": "/dev/ttyNobody"}}))
    assert time.monotonic() - start < 1.0


def test_missing_camera_is_a_clear_error_and_frees_the_port() -> None:
    line = SerialLine()
    real = {"kind": "real", "bus": {"port": line.port}, "camera": {"source": "/dev/video-nobody"}}
    config = RigConfig.model_validate(real)
    with pytest.raises(CameraFault, match="/dev/video-nobody does not exist"):
        build(config)
    build(config, cameras=False).close()  # the port is exclusive: it must be free
    line.close()


def test_emulator_that_cannot_start_says_why() -> None:
    setup = EmulatorSetup(emulator=EmulatorConfig(link="/nowhere/tty"), camera=False)
    with pytest.raises(PortLost, match=r"did not start: .*No such file or directory"):
        EmulatorProcess(setup)


def test_death_of_the_emulator_is_named_by_robot_and_camera() -> None:
    with build(emulated()) as rig:
        pid = int(state_of(rig)["pid"])
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(PortLost):
            rig.robot.read()
        time.sleep(0.5)
        with pytest.raises(StaleFrame):
            rig.cameras["front"].latest(0.2)


RUN_UNTIL_KILLED = """
import sys
from robot.rig import RigConfig, build
with build(RigConfig.model_validate_json(sys.argv[1])) as rig:
    print(rig.config.camera.source, flush=True)
    while True:
        state = rig.robot.read()
        rig.robot.command(state.joints.position, 0.1)
"""


@pytest.mark.slow
def test_kill_minus_nine_leaves_the_servos_stopped_and_no_emulator_behind() -> None:
    config = emulated(linger=1.5).model_copy(update={"dclaw": DynamixelConfig()})  # its usual watchdog
    command = [sys.executable, "-c", RUN_UNTIL_KILLED, config.model_dump_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    url = process.stdout.readline().strip().replace("/cam.mjpg", "/state")
    time.sleep(0.3)
    process.kill()
    process.wait()
    time.sleep(0.6)  # the watchdog's 0.3 s, and some
    with urllib.request.urlopen(url) as answer:
        state = json.load(answer)
    fingers = [servo for id, servo in state["servos"].items() if id != "50"]
    assert {servo["bus_watchdog"] for servo in fingers} == {WATCHDOG_TRIPPED}
    assert max(abs(servo["goal_position"] - servo["present_position"]) for servo in fingers) < 60
    status = Path(f"/proc/{state['pid']}/stat")
    deadline = time.monotonic() + 15
    while status.exists() and ") Z " not in status.read_text():  # a zombie only waits for init
        assert time.monotonic() < deadline, "the emulator outlived its parent"
        time.sleep(0.02)


def test_a_guide_servo_is_served_over_the_wire_where_it_has_an_id() -> None:
    config = emulated()
    config = config.model_copy(update={"dclaw": config.dclaw.model_copy(update={"guide_id": 60})})
    with build(config, cameras=False) as rig:
        rig.robot.point(0.5)
        goal = 2048 + round(0.5 / RAD_PER_TICK)

        def arrived() -> bool:
            rig.robot.read()  # so that no watchdog stops it
            return abs(state_of(rig)["servos"]["60"]["present_position"] - goal) <= 1

        wait_until(arrived)
