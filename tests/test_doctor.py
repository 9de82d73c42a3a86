"""Promises of the preflight: it finds each fault at its wire, names the cure, and moves nothing."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from robot import doctor
from robot import registers as reg
from robot.chain import Delivery
from robot.doctor import Options, Result
from robot.emulator import Emulator, EmulatorConfig
from robot.mjpeg import CameraServer, FrameFeed
from robot.motors import Range
from robot.rig import RigConfig
from robot.servo import FirmwareConfig
from robot.sim import SimConfig, SimPlant
from robot.types import Image

FAST = EmulatorConfig(wire=False, return_delay_us=500)
READS = 10  # of 1000
NEAR = Range(bauds=(57_600,), highest=51)  # of 7 and 252


@pytest.fixture
def plant() -> SimPlant:
    """Ten healthy servos fresh from the factory, but for their ids and baud rate."""
    return SimPlant(SimConfig())


@pytest.fixture
def emulator(plant: SimPlant) -> Iterator[Emulator]:
    """A port to them; no camera."""
    with Emulator(FAST, plant, camera=False) as emulator:
        yield emulator


@pytest.fixture
def port(emulator: Emulator) -> str:
    return emulator.port


def bench(port: str, source: str = "/dev/video-nobody") -> RigConfig:
    bus = {"port": port, "timeout_ms": 40}
    return RigConfig.model_validate({"kind": "real", "bus": bus, "camera": {"source": source}})


def options(*, fix: bool = False, reads: int = READS, **places: Path) -> Options:
    return Options(fix=fix, reads=reads, where=NEAR, **places)


def look(config: RigConfig, how: Options | None = None) -> dict[str, Result]:
    return {result.name: result for result in doctor.inspect(config, how or options())}


def find(config: RigConfig, name: str, how: Options | None = None) -> Result:
    """One result; what would come after it is not looked at."""
    with closing(doctor.inspect(config, how or options())) as results:
        return next(result for result in results if result.name == name)


def printed(config: RigConfig, how: Options | None = None) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=160)
    passed = doctor.check(config, console, how or options())
    assert isinstance(console.file, io.StringIO)
    return passed, console.file.getvalue()


# --- The rig as a whole


def test_simulated_rig_is_ready() -> None:
    passed, text = printed(RigConfig(kind="sim"))
    assert passed
    assert text.rstrip().endswith("ready")
    for name in ("model files", "plant", "rendering", "disk"):
        assert name in text


def test_emulated_rig_is_well_through_its_own_process_in_ten_seconds() -> None:
    start = time.monotonic()
    results = look(RigConfig.model_validate({"kind": "emulated", "emulator": FAST.model_dump()}))
    assert time.monotonic() - start < 10
    assert {name for name, result in results.items() if result.status != "OK"} == set(), results
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


def test_healthy_servos_pass_every_check(port: str) -> None:
    results = look(bench(port))
    assert results["servos"].detail == "10 answer: XH430-W210, firmware 45"
    assert results["answers"].detail == "0 of 100 lost (0.00%), 0 garbled, in 10 reads"
    assert results["cycle"].detail.endswith("fast reads")
    assert {name for name, result in results.items() if result.status != "OK"} == {"camera"}


def test_it_moves_nothing_and_writes_nothing(port: str, plant: SimPlant) -> None:
    def written() -> list[tuple[int, ...]]:
        writable = [register for register in reg.TABLE.values() if register.writable]
        return [tuple(servo.value(register) for register in writable) for servo in plant.servos.values()]

    plant.servos[12].load(reg.INDIRECT_ADDRESSES[0], 100)  # which another program collects
    before = written()
    look(bench(port))
    assert written() == before


def test_progress_of_the_thousand_reads_is_told(port: str) -> None:
    told: list[str] = []
    list(doctor.inspect(bench(port), options(reads=120), told.append))
    assert "reading all servos, 100 of 120 times" in told


# --- Port


@pytest.mark.parametrize("port", ["/dev/null", "/tmp", __file__, ""])
def test_what_is_no_serial_port_is_told_as_such(port: str) -> None:
    result = look(bench(port))
    assert result["port"].status == "FAIL"
    assert "is no serial port" in result["port"].detail
    assert "--set hw.bus.port=" in result["port"].fix


def test_a_missing_port_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "usb-FTDI_1").touch()
    result = find(bench("/dev/ttyNobody"), "port", options(by_id=tmp_path))
    assert result.fix.endswith(
        f"--set hw.bus.port={tmp_path}/usb-FTDI_1; plugged in are {tmp_path}/usb-FTDI_1"
    )


def test_a_name_that_a_replug_may_change_is_a_warning_with_the_stable_one(port: str, tmp_path: Path) -> None:
    stable = tmp_path / "usb-FTDI_USB__-__Serial_Converter_FT4NRU"
    stable.symlink_to(port)
    (tmp_path / "usb-other").symlink_to("/dev/null")
    result = find(bench(port), "port", options(by_id=tmp_path))
    assert (result.status, result.fix.endswith(f"--set hw.bus.port={stable}")) == ("WARN", True)
    assert find(bench(str(stable)), "port", options(by_id=tmp_path)).status == "OK"


def test_a_port_without_permission_names_the_group_to_join_and_the_udev_rule(
    monkeypatch: pytest.MonkeyPatch, port: str
) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_, **__: False)
    monkeypatch.setattr(Path, "group", lambda _: "dialout")
    result = find(bench(port), "permission")
    assert result.status == "FAIL"
    assert "sudo usermod -aG dialout $USER" in result.fix
    assert "| sudo tee /etc/udev/rules.d/" in result.fix


def test_nobody_is_told_to_join_root(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_, **__: False)
    monkeypatch.setattr(Path, "group", lambda _: "root")
    assert "usermod" not in find(bench(port), "permission").fix


@pytest.mark.parametrize(
    ("milliseconds", "writable", "timeout", "status"),
    [(1, True, 18, "OK"), (16, True, 18, "OK"), (16, False, 18, "WARN"), (16, False, 10, "FAIL")],
)
def test_latency_timer_of_the_adapter_is_shortened_or_told_with_the_rule_that_does_it(
    port: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    milliseconds: int,
    writable: bool,
    timeout: float,
    status: str,
) -> None:
    timer = tmp_path / "bus/usb-serial/devices" / Path(port).name / "latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text(f"{milliseconds}\n")
    if not writable:
        monkeypatch.setattr(Path, "write_text", refuse)
    config = bench(port)
    config = config.model_copy(update={"bus": config.bus.model_copy(update={"timeout_ms": timeout})})
    result = find(config, "USB latency", options(sysfs=tmp_path))
    assert result.status == status
    assert ('ATTR{latency_timer}="1"' in result.fix) == (status != "OK")
    assert ("--set hw.bus.timeout_ms=18" in result.fix) == (status == "FAIL")


def refuse(path: Path, text: str) -> int:
    raise PermissionError


def test_programs_that_hold_the_port_are_found(tmp_path: Path) -> None:
    port = tmp_path / "ttyUSB0"
    port.touch()
    for pid, file in ((7, port), (8, tmp_path / "other")):
        folder = tmp_path / "proc" / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder / "3").symlink_to(file)
    assert doctor.holders(port, tmp_path / "proc") == [7]


# --- Who answers


def test_silent_servo_is_named_with_its_place(port: str, plant: SimPlant) -> None:
    plant.servos[12].powered = False
    result = find(bench(port), "servos")
    assert result.status == "FAIL"
    assert result.detail == "servo 12 (finger 1, distal) silent at 1000000 baud, 9 of 10 answer"
    assert "cables" in result.fix


def test_the_servos_that_answer_are_examined_although_one_is_silent(port: str, plant: SimPlant) -> None:
    plant.servos[12].powered = False
    plant.servos[21].raise_hardware_error(0x20)
    results = look(bench(port))
    assert "overload" in results["hardware errors"].detail
    assert (results["settings"].status, results["settings"].detail) == (
        "WARN",
        "not compared while servos are silent",
    )
    assert "in 10 reads" in results["answers"].detail


def test_wrong_baud_rate_is_found_by_asking_at_the_others(port: str, plant: SimPlant) -> None:
    for servo in plant.servos.values():
        servo.load(reg.BAUD_RATE, reg.BAUD_CODES[57_600])
    result = find(bench(port), "servos")
    assert result.status == "FAIL"
    assert result.detail.startswith(
        "all 10 servos silent at 1000000 baud; there are 10 at 57600, 11 at 57600"
    )
    assert result.fix == "--set hw.bus.baud=57600"


def test_one_servo_as_it_comes_from_the_factory_is_found_and_told_how_to_get_its_id(
    port: str, plant: SimPlant
) -> None:
    plant.servos[12].load(reg.BAUD_RATE, reg.BAUD_CODES[57_600])
    plant.servos[12].load(reg.ID, 1)
    plant.refresh()
    result = find(bench(port), "servos")
    assert "servo 12 (finger 1, distal) silent" in result.detail
    assert result.detail.endswith("9 of 10 answer; there are 1 at 57600")
    assert "motors --set-id" in result.fix


def test_two_servos_with_one_id_are_told(port: str, plant: SimPlant) -> None:
    plant.servos[11].load(reg.ID, 12)
    plant.refresh()
    plant.servos[12].load(reg.FIRMWARE_VERSION, 44)  # else even their answers to a ping are the same
    result = find(bench(port), "servos")
    assert result.detail == "answers of servo 12 (finger 1, distal) are garbled"
    assert "two servos have one id" in result.fix


def test_a_servo_that_nobody_expects_is_told(port: str, plant: SimPlant) -> None:
    config = bench(port)
    dclaw = config.dclaw.model_copy(update={"object_id": 60})
    plant.servos[50].load(reg.ID, 51)
    plant.refresh()
    result = find(config.model_copy(update={"dclaw": dclaw}), "other servos")
    assert result.status == "WARN"
    assert result.detail == "on the bus but not in hw.dclaw: servo 51: XH430-W210, firmware 45"


@pytest.mark.slow
def test_unpowered_chain_says_so_within_five_seconds(port: str, plant: SimPlant) -> None:
    for servo in plant.servos.values():
        servo.powered = False
    start = time.monotonic()
    results = look(bench(port), Options(reads=READS))
    assert time.monotonic() - start < 5
    assert results["servos"].detail == "none of 10 answers at any speed"
    assert "power" in results["servos"].fix


def test_mixed_models_and_firmware_are_told_by_id(port: str, plant: SimPlant) -> None:
    plant.servos[12].load(reg.FIRMWARE_VERSION, 44)
    detail = find(bench(port), "servos").detail
    assert detail.startswith("10 answer: XH430-W210, firmware 45 (10, 11, 20, 21")
    assert detail.endswith("firmware 44 (12)")


@pytest.mark.parametrize(
    ("register", "value", "words"),
    [
        (reg.MODEL_NUMBER, 350, "unknown to this program: servo 30 (finger 3, proximal): model 350"),
        (reg.FIRMWARE_VERSION, 37, "no Bus Watchdog before 38: servo 30"),
    ],
)
def test_a_servo_that_cannot_be_trusted_fails(
    port: str, plant: SimPlant, register: reg.Register, value: int, words: str
) -> None:
    plant.servos[30].load(register, value)
    result = find(bench(port), "models")
    assert result.status == "FAIL"
    assert words in result.detail


# --- How they are


def test_hardware_error_is_told_in_words(port: str, plant: SimPlant) -> None:
    plant.servos[21].raise_hardware_error(0x20)
    result = find(bench(port), "hardware errors")
    assert result.status == "FAIL"
    assert result.detail == "servo 21 (finger 2, middle): overload (0x20)"


@pytest.mark.parametrize(
    ("register", "value", "name", "status"),
    [
        (reg.PRESENT_TEMPERATURE, 66, "temperature", "WARN"),
        (reg.PRESENT_INPUT_VOLTAGE, 97, "supply", "WARN"),
        (reg.PRESENT_INPUT_VOLTAGE, 80, "supply", "FAIL"),
        (reg.TORQUE_ENABLE, 1, "torque", "WARN"),
        (reg.BUS_WATCHDOG, reg.WATCHDOG_TRIPPED, "watchdog", "WARN"),
    ],
)
def test_unhealthy_servo_is_noticed(
    port: str, plant: SimPlant, register: reg.Register, value: int, name: str, status: str
) -> None:
    set_up: dict[reg.Register, Callable[[float], None]] = {reg.PRESENT_TEMPERATURE: plant.servos[30].warm}
    set_up.get(register, lambda value: plant.servos[30].load(register, int(value)))(value)
    result = find(bench(port), name)
    assert result.status == status
    assert result.fix


def test_registers_that_differ_from_the_configuration_are_listed_for_all_servos_that_share_them(
    port: str,
) -> None:
    _, text = printed(bench(port))
    (line,) = [line for line in text.splitlines() if "return_delay_time" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == [
        "return_delay_time",
        "10, 11, 12, 20, 21, 22, 30, 31, 32, 50",
        "250",
        "0",
    ]
    assert "settings: a run writes them when it starts; to write them now" in text


def test_fix_writes_what_differs_with_torque_off_and_says_so(port: str, plant: SimPlant) -> None:
    plant.servos[12].load(reg.TORQUE_ENABLE, 1)
    result = find(bench(port), "settings", options(fix=True))
    assert result.status == "OK"
    assert result.detail.endswith("of 10 servos written (below); torque is off there")
    assert plant.servos[12].value(reg.TORQUE_ENABLE) == 0
    assert {servo.value(reg.RETURN_DELAY_TIME) for servo in plant.servos.values()} == {0}
    again = find(bench(port), "settings")
    assert (again.status, again.detail) == ("OK", "registers are as configured")


def test_slow_cycles_are_measured_against_the_control_period(plant: SimPlant) -> None:
    with Emulator(EmulatorConfig(return_delay_us=0), plant, camera=False) as emulator:  # 3 ms a cycle
        config = bench(emulator.port).model_copy(update={"control_period": 0.004})
        result = find(config, "cycle")
    assert result.status == "FAIL"
    assert "USB latency" in result.fix


def test_firmware_without_fast_reads_is_a_warning() -> None:
    old = SimPlant(SimConfig(firmware=FirmwareConfig(version=44)))
    with Emulator(FAST, old, camera=False) as emulator:
        result = find(bench(emulator.port), "cycle")
    assert result.status == "WARN"
    assert result.detail.endswith("plain reads")
    assert "firmware from 45 on" in result.fix


class LooseCable:
    """Loses so many of the last servo's next answers."""

    def __init__(self) -> None:
        self.losing = 0

    def filter(self, reply: bytes, servo: int) -> Sequence[Delivery]:
        if servo == 50 and self.losing:
            self.losing -= 1
            return ()
        return (Delivery(reply),)


@pytest.mark.parametrize(
    ("losing", "status", "words"),
    [(2, "WARN", "2 of 400 lost (0.50%)"), (12, "FAIL", "silent after all tries: servo 50")],
)
def test_lost_answers_are_counted(plant: SimPlant, losing: int, status: str, words: str) -> None:
    cable = LooseCable()

    def loosen(doing: str) -> None:
        cable.losing = losing if doing.startswith("reading") else 0

    with Emulator(FAST, plant, cable, camera=False) as emulator:
        results = list(doctor.inspect(bench(emulator.port), options(reads=40), loosen))
    (result,) = [result for result in results if result.name == "answers"]
    assert result.status == status
    assert words in result.detail
    assert "noise on the line" in result.fix


# --- Camera


def look_at(port: str, picture: Image) -> dict[str, Result]:
    """The checks, with a camera that shows one picture."""
    feed, stop = FrameFeed(), threading.Event()
    server = CameraServer(feed, dict)

    def show() -> None:
        while not stop.wait(0.03):
            feed.publish(picture, 90)

    thread = threading.Thread(target=show)
    thread.start()
    config = bench(port, server.url + "/cam.mjpg")
    lenient = config.camera.model_copy(update={"fps": 5, "max_age": 2.0})  # a busy machine shows fewer
    results = look(config.model_copy(update={"camera": lenient}))
    stop.set()
    thread.join()
    server.close()
    return results


def test_dim_light_and_missing_calibration_are_warnings(port: str) -> None:
    dim = np.full((480, 640, 3), 3, dtype=np.uint8)
    dim[:40] = 60
    results = look_at(port, dim)
    assert (results["camera"].status, results["frames"].status) == ("OK", "OK")
    assert results["brightness"].status == "WARN"
    assert "lens cap" in results["brightness"].fix
    assert results["view"].status == "WARN"
    assert "hw.camera.projection" in results["view"].detail


@pytest.mark.parametrize(
    ("pauses", "settings", "cause"),
    [
        ([0.25], {}, "too slow a stream; more light"),
        pytest.param(
            [0.02] * 9 + [0.4],
            {},
            "in bursts, as from a buffer or a busy network; a cable for Wi-Fi",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [0.03],
            {"delay": 0.2},
            "hw.camera.delay dates each back by 200 ms; --set hw.camera.delay=0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_pictures_that_are_too_old_are_told_with_the_probable_cause(
    pauses: list[float], settings: dict[str, float], cause: str
) -> None:
    feed, stop = FrameFeed(), threading.Event()
    picture = np.random.default_rng(0).integers(40, 200, (480, 640, 3)).astype(np.uint8)

    def show() -> None:
        for pause in itertools.cycle(pauses):
            if stop.wait(pause):
                return
            feed.publish(picture, 50)

    server, thread = CameraServer(feed, dict), threading.Thread(target=show)
    thread.start()
    camera = {"source": server.url + "/cam.mjpg", "health": {"noise": "off"}, **settings}
    config = RigConfig.model_validate({"kind": "real", "bus": {"port": "/dev/nobody"}, "camera": camera})
    found = find(config, "frames")
    stop.set()
    thread.join()
    server.close()
    assert found.status == "FAIL"
    assert f"allowed are 150 ms (hw.camera.max_age): {cause}" in found.fix.replace("they come ", "")


@pytest.mark.slow
def test_lens_cap_is_a_failure_and_named(port: str) -> None:
    results = look_at(port, np.full((480, 640, 3), 3, dtype=np.uint8))
    assert results["camera"].status == "FAIL"
    assert "take off the lens cap" in results["camera"].detail
