"""Promises of the preflight: it finds each fault at its wire, names the cure, and moves nothing."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from robot import doctor
from robot import registers as reg
from robot.doctor import Result
from robot.emulator import Emulator, EmulatorConfig
from robot.mjpeg import CameraServer, FrameFeed
from robot.rig import RigConfig
from robot.sim import SimConfig, SimPlant

FAST = EmulatorConfig(wire=False, return_delay_us=500)


@pytest.fixture(scope="module")
def plant() -> SimPlant:
    return SimPlant(SimConfig())


@pytest.fixture
def port(plant: SimPlant) -> Iterator[str]:
    """A port with ten healthy servos fresh from power-on; no camera."""
    for servo in plant.servos.values():
        servo.powered = True
        servo.load(reg.BAUD_RATE, 3)
        servo.reboot()
        servo.load(reg.HARDWARE_ERROR_STATUS, 0)
    plant.refresh()
    with Emulator(FAST, plant, camera=False) as emulator:
        yield emulator.port


def bench(port: str, source: str = "/dev/video-nobody") -> RigConfig:
    bus = {"port": port, "timeout_ms": 10}
    return RigConfig.model_validate({"kind": "real", "bus": bus, "camera": {"source": source}})


def look(config: RigConfig, **places: Path) -> dict[str, Result]:
    return {result.name: result for result in doctor.inspect(config, **places)}


def printed(config: RigConfig) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=160)
    passed = doctor.check(config, console)
    assert isinstance(console.file, io.StringIO)
    return passed, console.file.getvalue()


def test_simulated_rig_is_ready() -> None:
    passed, text = printed(RigConfig(kind="sim"))
    assert passed
    assert text.rstrip().endswith("ready")
    for name in ("model files", "plant", "rendering", "disk"):
        assert name in text


def test_emulated_rig_is_all_green_through_its_own_process() -> None:
    config = RigConfig.model_validate({"kind": "emulated", "emulator": FAST.model_dump()})
    results = look(config)
    assert {result.status for result in results.values()} == {"OK"}, results
    assert results["frames"].detail.endswith("ms old")
    assert results["view"].detail == "the whole valve is in the image"


def test_without_hardware_it_fails_readably_within_five_seconds() -> None:
    start = time.monotonic()
    passed, text = printed(RigConfig(kind="real", bus={"port": "/dev/ttyNobody"}))
    assert not passed
    assert time.monotonic() - start < 5
    assert "/dev/ttyNobody does not exist" in text
    assert "--set hw.bus.port=" in text
    assert "/dev/video0 does not exist" in text
    assert "Traceback" not in text
    assert "2 checks failed" in text


@pytest.mark.parametrize("port", ["/dev/null", "/tmp", __file__, ""])
def test_what_is_no_serial_port_is_told_as_such(port: str) -> None:
    result = look(bench(port))
    assert result["port"].status == "FAIL"
    assert "is no serial port" in result["port"].detail
    assert "--set hw.bus.port=" in result["port"].fix


def test_a_port_without_permission_names_the_group_to_join(
    monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    result = look(bench(port))["permission"]
    assert result.status == "FAIL"
    assert "usermod -aG" in result.fix


def test_healthy_servos_pass_every_check(port: str) -> None:
    results = look(bench(port))
    assert results["servos"].detail == "10 answer: XH430-W210"
    assert {name for name, result in results.items() if result.status != "OK"} == {"camera"}
    assert results["return delay"].detail == "500 us; the driver will set 0"


def test_it_moves_nothing_and_writes_nothing(port: str, plant: SimPlant) -> None:
    def written() -> list[tuple[int, ...]]:
        writable = [register for register in reg.TABLE.values() if register.writable]
        return [tuple(servo.value(register) for register in writable) for servo in plant.servos.values()]

    before = written()
    look(bench(port))
    assert written() == before


def test_silent_servo_is_named_with_its_place(port: str, plant: SimPlant) -> None:
    plant.servos[12].powered = False
    result = look(bench(port))["servos"]
    assert result.status == "FAIL"
    assert result.detail == "servo 12 (finger 1, distal) silent, 9 of 10 answer"
    assert "cables" in result.fix


def test_wrong_baud_rate_is_found_by_asking_at_the_others(port: str, plant: SimPlant) -> None:
    for servo in plant.servos.values():
        servo.load(reg.BAUD_RATE, reg.BAUD_CODES[57_600])
    result = look(bench(port))["servos"]
    assert result.status == "FAIL"
    assert "answers at 57600" in result.detail
    assert result.fix == "--set hw.bus.baud=57600"


def test_unpowered_chain_says_so_within_five_seconds(port: str, plant: SimPlant) -> None:
    for servo in plant.servos.values():
        servo.powered = False
    start = time.monotonic()
    results = look(bench(port))
    assert time.monotonic() - start < 5
    assert results["servos"].detail == "none of 10 answers at any speed"
    assert "power" in results["servos"].fix


def test_hardware_error_is_told_in_words(port: str, plant: SimPlant) -> None:
    plant.servos[21].raise_hardware_error(0x20)
    result = look(bench(port))["hardware errors"]
    assert result.status == "FAIL"
    assert result.detail == "servo 21 (finger 2, middle): overload (0x20)"


@pytest.mark.parametrize(
    ("register", "value", "name", "status"),
    [
        (reg.PRESENT_TEMPERATURE, 66, "temperature", "WARN"),
        (reg.PRESENT_INPUT_VOLTAGE, 97, "supply", "WARN"),
        (reg.PRESENT_INPUT_VOLTAGE, 80, "supply", "FAIL"),
        (reg.TORQUE_ENABLE, 1, "torque", "WARN"),
    ],
)
def test_unhealthy_servo_is_noticed(
    port: str, plant: SimPlant, register: reg.Register, value: int, name: str, status: str
) -> None:
    plant.servos[30].load(register, value)
    result = look(bench(port))[name]
    assert result.status == status
    assert result.fix


def test_slow_cycles_are_measured_against_the_control_period(plant: SimPlant, port: str) -> None:
    with Emulator(EmulatorConfig(return_delay_us=0), plant, camera=False) as emulator:  # 3 ms a cycle
        config = bench(emulator.port).model_copy(update={"control_period": 0.005})
        result = look(config)["cycle"]
    assert result.status == "FAIL"
    assert "USB latency" in result.fix


@pytest.mark.parametrize(("milliseconds", "status"), [(1, "OK"), (16, "WARN")])
def test_latency_timer_of_the_adapter_is_read(
    port: str, tmp_path: Path, milliseconds: int, status: str
) -> None:
    timer = tmp_path / Path(port).resolve().name / "latency_timer"
    timer.parent.mkdir()
    timer.write_text(f"{milliseconds}\n")
    result = look(bench(port), sysfs=tmp_path)["USB latency"]
    assert result.status == status
    assert (str(timer) in result.fix) == (status == "WARN")


def test_programs_that_hold_the_port_are_found(tmp_path: Path) -> None:
    port = tmp_path / "ttyUSB0"
    port.touch()
    for pid, file in ((7, port), (8, tmp_path / "other")):
        folder = tmp_path / "proc" / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder / "3").symlink_to(file)
    assert doctor.holders(port, tmp_path / "proc") == [7]


def test_lens_cap_and_missing_calibration_are_warnings(port: str) -> None:
    feed, stop = FrameFeed(), threading.Event()
    server = CameraServer(feed, dict)

    def show() -> None:
        while not stop.wait(0.03):
            feed.publish(np.full((480, 640, 3), 3, dtype=np.uint8), 90)

    thread = threading.Thread(target=show)
    thread.start()
    results = look(bench(port, server.url + "/cam.mjpg"))
    stop.set()
    thread.join()
    server.close()
    assert (results["camera"].status, results["frames"].status) == ("OK", "OK")
    assert results["brightness"].status == "WARN"
    assert "lens cap" in results["brightness"].fix
    assert results["view"].status == "WARN"
    assert "hw.camera.projection" in results["view"].detail
