"""Promises of the emulated hardware, each checked through the unmodified dynamixel_sdk or the raw wire."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, get_args
from urllib.error import HTTPError

import dynamixel_sdk as sdk
import numpy as np
import pytest
import serial
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from robot import protocol
from robot import registers as reg
from robot.chain import Delivery, Reply
from robot.emulator import (
    Emulator,
    EmulatorConfig,
    EmulatorSetup,
    SerialLine,
    Wire,
    emulate_forever,
    usb_batches,
)
from robot.faults import FaultConfig, FaultKind
from robot.protocol import Instruction, Parser, build, build_status
from robot.servo import FirmwareConfig
from robot.sim import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, SimConfig, SimPlant
from tests.client import Driver, wait_until

IDS = (*FINGER_SERVOS, VALVE_SERVO)
FAST = EmulatorConfig(wire=False, return_delay_us=0)
ROOT = Path(__file__).parents[1]


class Cable:
    """Loses or garbles the replies that a test names."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self.garbled: set[int] = set()

    def filter(self, reply: bytes, servo: int) -> Sequence[Delivery]:
        if servo in self.lost:
            return ()
        garbled = reply[:-1] + bytes([reply[-1] ^ 1])
        return (Delivery(garbled if servo in self.garbled else reply),)


@pytest.fixture(scope="module")
def plant() -> Iterator[SimPlant]:
    plant = SimPlant(SimConfig())
    yield plant
    plant.close()


@pytest.fixture
def cable() -> Cable:
    return Cable()


@pytest.fixture
def emulator(plant: SimPlant, cable: Cable) -> Iterator[Emulator]:
    plant.heal()
    for id, servo in plant.servos.items():
        servo.powered = True
        servo.reboot()
        assert servo.id == id
    plant.refresh()
    with Emulator(FAST, plant, cable, camera=False) as emulator:
        yield emulator


@pytest.fixture
def driver(emulator: Emulator) -> Iterator[Driver]:
    driver = Driver(emulator.port)
    yield driver
    driver.port.closePort()


# --- Packets -----------------------------------------------------------------------------------------------


def test_ping_packet_is_the_one_in_the_manual() -> None:
    assert build(1, Instruction.PING).hex() == "fffffd0001030001194e"


@given(st.integers(0, 252), st.binary(max_size=60))
def test_packets_survive_build_and_parse(servo: int, parameters: bytes) -> None:
    raw = build(servo, Instruction.WRITE, parameters)
    (packet,) = Parser().feed(raw)
    assert (packet.servo, packet.instruction, packet.parameters) == (servo, Instruction.WRITE, parameters)
    assert packet.intact
    assert packet.size == len(raw)


@given(st.lists(st.sampled_from([b"\xff", b"\xfd", b"\x00", b"\x01"]), max_size=40))
def test_no_body_looks_like_a_header(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    assert protocol.HEADER not in protocol.stuff(body)
    assert protocol.destuff(protocol.stuff(body)) == body


@given(st.binary(max_size=30), st.lists(st.integers(1, 20), max_size=10))
def test_parser_finds_packets_after_noise_and_in_pieces(noise: bytes, cuts: list[int]) -> None:
    # A header in the noise may swallow what follows; the manual's pause of the line then resets the parser.
    stream = noise.replace(b"\xff", b"\xfe") + build(7, Instruction.READ, b"\x84\x00\x04\x00") * 2
    parser, found = Parser(), []
    for cut in cuts:
        found += list(parser.feed(stream[:cut]))
        stream = stream[cut:]
    found += list(parser.feed(stream))
    assert [packet.servo for packet in found] == [7, 7]
    assert parser.pending == 0


def test_one_wrong_bit_is_noticed() -> None:
    raw = bytearray(build(7, Instruction.READ, b"\x84\x00\x04\x00"))
    raw[9] ^= 0x10
    (packet,) = Parser().feed(bytes(raw))
    assert not packet.intact


def test_unstuffed_packet_is_no_packet_as_to_the_firmware() -> None:
    goal = (-131_073 & 0xFFFF_FFFF).to_bytes(4, "little")  # FF FF FD FF; the SDK sends it like this
    body = bytes([Instruction.WRITE, 116, 0]) + goal
    raw = protocol.HEADER + bytes([50, len(body) + 2, 0]) + body
    raw += protocol.crc16(raw).to_bytes(2, "little")
    (packet,) = Parser().feed(raw + build(7, Instruction.PING))
    assert (packet.servo, packet.instruction) == (7, Instruction.PING)


def test_noise_never_makes_the_parser_hoard() -> None:
    parser = Parser()
    assert not list(parser.feed(b"\x00\xff\xff\xfd\x00\x01\xff\xff" + b"\x55" * 5000))
    assert parser.pending < 16


def test_refusals_are_told_in_words_with_or_without_an_alert() -> None:
    assert protocol.describe_refusal(0x07) == protocol.describe_refusal(0x87) == "access error (0x07)"
    assert protocol.describe_refusal(0x2A) == "unknown error (0x2a)"


# --- The SDK's instructions --------------------------------------------------------------------------------


def test_ping_finds_model_and_broadcast_ping_finds_everybody(driver: Driver) -> None:
    assert driver.ping(12) == (1010, 0, 0)
    assert driver.hears_nothing("ping", 13)
    found, result = driver.broadcastPing()
    assert result == 0
    assert found == {id: [1010, 45] for id in IDS}


def test_written_register_reads_back(driver: Driver) -> None:
    assert driver.write(reg.PROFILE_VELOCITY, 21, 123) == 0
    assert driver.read(reg.PROFILE_VELOCITY, 21) == 123


def test_negative_values_cross_the_wire_exactly(driver: Driver) -> None:
    assert driver.write(reg.GOAL_POSITION, VALVE_SERVO, -131_075) == 0
    assert driver.read(reg.GOAL_POSITION, VALVE_SERVO) == -131_075


def test_answer_that_looks_like_a_header_is_stuffed(driver: Driver, plant: SimPlant) -> None:
    plant.servos[VALVE_SERVO].load(reg.GOAL_POSITION, -131_073)  # bytes FF FF FD FF
    assert driver.read(reg.GOAL_POSITION, VALVE_SERVO) == -131_073


def test_refusals_carry_the_protocols_error_numbers(driver: Driver) -> None:
    assert driver.write(reg.GOAL_POSITION, 10, 5000) == 4  # beyond the position limit of mode 3
    assert driver.write(reg.PRESENT_POSITION, 10, 0) == 7  # read only
    driver.write(reg.TORQUE_ENABLE, 10, 1)
    assert driver.write(reg.RETURN_DELAY_TIME, 10, 0) == 7  # EEPROM with torque on
    assert driver.readTxRx(10, 2000, 4)[2] == 7
    assert driver.factoryReset(10, 0x03) == (0, 4)  # no such option


def test_alert_bit_rides_on_every_answer(driver: Driver, plant: SimPlant) -> None:
    plant.servos[12].raise_hardware_error(0x20)
    assert driver.ping(12) == (1010, 0, protocol.ALERT)
    assert driver.read4ByteTxRx(12, 132)[2] == protocol.ALERT
    assert driver.read4ByteTxRx(11, 132)[2] == 0


def test_sync_read_and_sync_write_reach_all(driver: Driver, plant: SimPlant) -> None:
    write = sdk.GroupSyncWrite(driver.port, driver.packets, 112, 4)
    read = sdk.GroupSyncRead(driver.port, driver.packets, 112, 4)
    for id in IDS:
        write.addParam(id, list((id * 7).to_bytes(4, "little")))
        read.addParam(id)
    assert write.txPacket() == 0
    assert read.txRxPacket() == 0
    assert [read.getData(id, 112, 4) for id in IDS] == [id * 7 for id in IDS]


def test_bulk_read_and_bulk_write_reach_different_registers(driver: Driver) -> None:
    write = sdk.GroupBulkWrite(driver.port, driver.packets)
    write.addParam(10, 84, 2, [0x2C, 0x01])
    write.addParam(50, 112, 4, [9, 0, 0, 0])
    assert write.txPacket() == 0
    read = sdk.GroupBulkRead(driver.port, driver.packets)
    read.addParam(10, 84, 2)
    read.addParam(50, 112, 4)
    assert read.txRxPacket() == 0
    assert (read.getData(10, 84, 2), read.getData(50, 112, 4)) == (300, 9)


def test_registered_write_waits_for_action(driver: Driver) -> None:
    assert driver.regWriteTxRx(11, 112, 4, [77, 0, 0, 0]) == (0, 0)
    assert driver.read(reg.PROFILE_VELOCITY, 11) == 0
    assert driver.action(protocol.BROADCAST) == 0
    assert driver.read(reg.PROFILE_VELOCITY, 11) == 77


def test_reboot_loses_ram_and_is_silent_while_booting(driver: Driver, plant: SimPlant) -> None:
    driver.write(reg.PROFILE_VELOCITY, 30, 50)
    assert driver.reboot(30) == (0, 0)
    booted = plant.servos[30].boot_end
    wait_until(lambda: not driver.hears_nothing("ping", 30))
    assert booted <= plant.now() < booted + 2
    assert driver.ping(30) == (1010, 0, 0)
    assert driver.read(reg.PROFILE_VELOCITY, 30) == 0


def test_clear_brings_the_position_back_into_one_turn(driver: Driver, plant: SimPlant) -> None:
    plant.teleport([0.0] * 9, 20.0)
    assert driver.read(reg.PRESENT_POSITION, VALVE_SERVO) > 10_000
    wait_until(lambda: driver.clearMultiTurn(VALVE_SERVO) == (0, 0))  # refused while it still moves
    assert 0 <= driver.read(reg.PRESENT_POSITION, VALVE_SERVO) < 4096
    driver.write(reg.TORQUE_ENABLE, VALVE_SERVO, 1)
    assert driver.clearMultiTurn(VALVE_SERVO) == (0, 1)
    plant.teleport([0.0] * 9, 0.0)


def test_status_return_level_silences_answers(driver: Driver) -> None:
    assert driver.hears_nothing("write1ByteTxRx", 22, 68, 0)  # effective at once
    assert driver.hears_nothing("write1ByteTxRx", 22, 65, 1)
    assert driver.hears_nothing("read1ByteTxRx", 22, 65)
    assert driver.ping(22)[1] == 0


def test_wrong_baud_is_silence_and_the_right_one_answers(emulator: Emulator) -> None:
    driver = Driver(emulator.port, 57_600)
    assert driver.hears_nothing("ping", 10)
    driver.port.setBaudRate(1_000_000)
    assert driver.ping(10)[1] == 0
    driver.port.closePort()


def test_servo_moves_to_another_baud_when_told(driver: Driver, plant: SimPlant) -> None:
    assert driver.write(reg.BAUD_RATE, 10, 4) == 0
    assert driver.hears_nothing("ping", 10)
    driver.port.setBaudRate(2_000_000)
    assert driver.ping(10)[1] == 0
    assert driver.hears_nothing("ping", 11)
    plant.servos[10].load(reg.BAUD_RATE, 3)


def test_servo_with_a_new_id_answers_to_it_at_once(driver: Driver, plant: SimPlant) -> None:
    assert driver.write(reg.ID, 10, 99) == 0
    assert driver.hears_nothing("ping", 10)
    assert driver.ping(99) == (1010, 0, 0)
    assert driver.write(reg.ID, 99, 10) == 0


def test_broadcast_write_is_obeyed_without_an_answer(driver: Driver) -> None:
    assert driver.write1ByteTxOnly(protocol.BROADCAST, 65, 1) == 0
    assert [driver.read(reg.LED, id) for id in IDS] == [1] * len(IDS)


def test_lost_and_garbled_replies_reach_the_driver_as_such(driver: Driver, cable: Cable) -> None:
    cable.lost, cable.garbled = {10}, {11}
    assert driver.hears_nothing("ping", 10)
    assert driver.ping(11)[1] == sdk.COMM_RX_CORRUPT
    assert driver.ping(12)[1] == 0


def test_unpowered_servo_is_silent(driver: Driver, plant: SimPlant) -> None:
    plant.servos[31].powered = False
    assert driver.hears_nothing("ping", 31)


def test_garbled_request_is_answered_with_a_checksum_error(driver: Driver) -> None:
    raw = bytearray(build(10, Instruction.READ, b"\x84\x00\x04\x00"))
    raw[-1] ^= 1
    driver.port.ser.timeout = 1.0
    driver.port.writePort(bytes(raw))
    assert driver.port.readPort(11) == build_status(10, 3)


def test_half_a_packet_is_forgotten_after_a_pause(driver: Driver) -> None:
    driver.port.writePort(build(10, Instruction.PING)[:6])
    time.sleep(0.3)
    assert driver.ping(10)[1] == 0


# --- Clients that are none ---------------------------------------------------------------------------------


@pytest.mark.parametrize("baud", [1_000_000, 57_600])
def test_no_client_spoils_the_port_for_the_next_one(emulator: Emulator, plant: SimPlant, baud: int) -> None:
    rng = np.random.default_rng(baud)
    for _ in range(10):
        with serial.Serial(emulator.port, baud, timeout=0) as client:
            client.write(rng.bytes(500))
            client.write(build(protocol.BROADCAST, Instruction.SYNC_READ, rng.bytes(30))[: rng.integers(40)])
    with serial.Serial(emulator.port, 123_456) as odd:  # a speed that no servo speaks
        odd.write(build(10, Instruction.PING))
    raw = os.open(emulator.port, os.O_RDWR | os.O_NOCTTY)  # who sets nothing at all
    os.write(raw, protocol.HEADER)
    os.close(raw)
    time.sleep(0.15)  # the pause that ends a packet
    driver = Driver(emulator.port)
    assert driver.ping(10)[1] == 0
    driver.port.closePort()


def test_who_only_talks_is_slowed_down_to_the_lines_speed() -> None:
    """Or the line would be busy for minutes with what was asked in a second."""
    plant = SimPlant(SimConfig())
    with Emulator(EmulatorConfig(return_delay_us=0, baud=57_600), plant, camera=False) as emulator:
        with serial.Serial(emulator.port, 57_600) as client:
            before, end = plant.now(), time.monotonic() + 0.3
            while time.monotonic() < end:
                with suppress(BlockingIOError):
                    os.write(client.fd, build(10, Instruction.PING) * 10)
        # A ping and its answer take 4.2 ms; as an FTDI chip does, the adapter holds 38 pings.
        assert emulator.counts["packets"] < 0.3 / 4.2e-3 + 38 + 1
        assert plant.now() >= before + 0.25


# --- Time --------------------------------------------------------------------------------------------------


def test_physics_follows_real_time_without_any_packet(emulator: Emulator, plant: SimPlant) -> None:
    before, start = plant.now(), time.monotonic()
    wait_until(lambda: plant.now() >= before + 0.1)
    assert plant.now() - before <= time.monotonic() - start + 0.04  # two ticks


def test_servo_moves_where_it_is_sent(driver: Driver) -> None:
    driver.write(reg.TORQUE_ENABLE, 10, 1)
    driver.write(reg.GOAL_POSITION, 10, 1100)
    wait_until(lambda: abs(driver.read(reg.PRESENT_POSITION, 10) - 1100) <= 30)


def test_silent_host_trips_the_watchdog_and_state_shows_it_without_feeding_it(
    driver: Driver, emulator: Emulator
) -> None:
    driver.write(reg.TORQUE_ENABLE, 20, 1)
    driver.write(reg.BUS_WATCHDOG, 20, 3)
    wait_until(lambda: emulator.state()["servos"]["20"]["bus_watchdog"] == reg.WATCHDOG_TRIPPED)
    assert driver.write(reg.GOAL_POSITION, 20, 2100) == 4
    assert driver.write(reg.BUS_WATCHDOG, 20, 0) == 0
    assert driver.write(reg.GOAL_POSITION, 20, 1100) == 0


def test_wire_takes_the_time_of_its_bytes_delays_and_adapter() -> None:
    wire = Wire(EmulatorConfig(usb_latency_ms=0))
    replies = [Reply(id, bytes(21), 0.0005) for id in IDS]
    times = [when for when, _ in wire.schedule(100.0, 24, 1_000_000, replies)]
    assert times[0] - 100 == pytest.approx(240e-6 + 500e-6 + 210e-6)
    assert times[-1] - 100 == pytest.approx(240e-6 + 10 * (500e-6 + 210e-6))
    # The line is half-duplex: a request sent while servos still talk comes after them.
    assert wire.schedule(100.0, 10, 1_000_000, replies[:1])[0][0] > times[-1]


@given(
    st.lists(st.tuples(st.floats(0, 0.003), st.integers(1, 80)), max_size=12),
    st.sampled_from([0.0, 0.001, 0.016]),
)
def test_adapter_keeps_order_and_bytes_and_adds_at_most_its_latency(
    gaps: list[tuple[float, int]], latency: float
) -> None:
    arrivals, now = [], 10.0
    for number, (gap, size) in enumerate(gaps):
        now += gap
        arrivals.append((now, bytes([number]) * size))
    batches = usb_batches(arrivals, latency)
    assert b"".join(data for _, data in batches) == b"".join(data for _, data in arrivals)
    assert [when for when, _ in batches] == sorted(when for when, _ in batches)
    for when, data in batches:
        first, last = arrivals[data[0]][0], arrivals[data[-1]][0]
        assert last <= when <= first + latency + 1e-9


# --- The port and the process ------------------------------------------------------------------------------


def test_link_leads_to_the_port_and_is_removed(tmp_path: Path) -> None:
    link = tmp_path / "ttyDclaw"
    link.symlink_to("/dev/null")  # left over from before a crash
    line = SerialLine(str(link))
    assert line.port == str(link)
    assert os.path.realpath(link) == line.device
    line.close()
    assert not link.is_symlink()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_emulator_takes_the_port_away_instead_of_the_answers(
    plant: SimPlant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EmulatorConfig(link=str(tmp_path / "tty"))
    with Emulator(config, plant, camera=False) as emulator:
        assert Path(emulator.port).exists()

        def fail(now: float) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(plant, "advance_to", fail)
        deadline = time.monotonic() + 5
        while Path(emulator.port).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(emulator.port).exists()
        monkeypatch.undo()


def test_a_speed_that_no_servo_speaks_is_refused() -> None:
    with pytest.raises(ValidationError, match="servos do not speak 123 baud, but 9600, 57600"):
        EmulatorConfig(baud=123)


def test_taken_camera_port_leaves_no_serial_port_behind(plant: SimPlant, tmp_path: Path) -> None:
    link, before = tmp_path / "tty", len(os.listdir("/proc/self/fd"))
    with Emulator(FAST, plant, camera=False) as emulator:
        taken = int(emulator.camera.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match="in use"):
            Emulator(FAST.model_copy(update={"link": str(link), "http_port": taken}), plant, camera=False)
    assert not link.is_symlink()
    assert len(os.listdir("/proc/self/fd")) == before


def start_process(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, "-m", "robot.emulator", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def read_state(ready: dict[str, Any]) -> dict[str, Any]:
    with urllib.request.urlopen(ready["camera"].replace("/cam.mjpg", "/state")) as answer:
        return dict(json.load(answer))


ARM_AND_HANG = """
import sys, time, dynamixel_sdk as sdk
port = sdk.PortHandler(sys.argv[1]); port.openPort(); packets = sdk.PacketHandler(2.0)
packets.write1ByteTxRx(port, 10, 64, 1)
packets.write1ByteTxRx(port, 10, 98, 25)
print("armed", flush=True)
while True:
    packets.read4ByteTxRx(port, 10, 132)
"""


def test_killed_client_leaves_the_servo_stopped_by_its_watchdog() -> None:
    process, ready = start_process("--config-json", '{"emulator": {"linger": 0.1}}')
    client = subprocess.Popen(
        [sys.executable, "-c", ARM_AND_HANG, ready["port"]], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "armed\n"
    assert read_state(ready)["servos"]["10"]["bus_watchdog"] == 25
    client.kill()
    client.wait()
    wait_until(lambda: read_state(ready)["servos"]["10"]["bus_watchdog"] != 25)
    servo = read_state(ready)["servos"]["10"]
    assert servo["bus_watchdog"] == reg.WATCHDOG_TRIPPED
    assert abs(servo["goal_position"] - servo["present_position"]) < 20
    process.communicate(timeout=20)  # closes standard input, as the death of a parent does
    assert process.returncode == 0


def test_keep_outlives_standard_input_and_sigterm_ends_it(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    process, ready = start_process("--config-json", '{"camera": false}', "--keep", "--link", str(link))
    assert process.stdin is not None
    process.stdin.close()
    time.sleep(0.15)
    assert process.poll() is None
    assert ready["port"] == str(link)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert not link.is_symlink()


# --- For people --------------------------------------------------------------------------------------------


def test_serving_says_how_to_connect_what_happens_and_what_happened(tmp_path: Path) -> None:
    faults = (FaultConfig(kind="overload", servo=12, at=0.01),)
    emulator = EmulatorConfig(link=str(tmp_path / "tty"), faults=faults)
    said = StringIO()

    def interrupt() -> None:
        wait_until(lambda: "overload:" in said.getvalue())
        os.kill(os.getpid(), signal.SIGINT)

    ctrl_c = threading.Thread(target=interrupt)
    ctrl_c.start()
    emulate_forever(EmulatorSetup(emulator=emulator, camera=False), Console(file=said, width=100))
    ctrl_c.join()
    assert (
        f"servos  {tmp_path}/tty: 10, 11, 12, 20, 21, 22, 30, 31, 32, 50 at 1000000 baud" in said.getvalue()
    )
    assert f"run_robot.py check --hw dclaw --set hw.bus.port={tmp_path}/tty" in said.getvalue()
    assert "0.01 s  overload: servo 12 (finger 1, distal)" in said.getvalue()
    assert said.getvalue().endswith("0 packets, 0 corrupt, 0 replies, 0 frames\n")


DOCUMENT = (ROOT / "docs/emulator.md").read_text(encoding="utf-8")


def examples(language: str, word: str = "") -> list[str]:
    """The blocks of the document that are in a language and hold a word."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    return [block for kind, block in blocks if kind == language and word in block]


def run_as_printed(code: str, emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> str:
    code = code.replace("/tmp/ttyDclaw", emulator.port)
    code = code.replace("http://127.0.0.1:8080/cam.mjpg", emulator.camera)
    exec(compile(code, "docs/emulator.md", "exec"), {})
    return capsys.readouterr().out


def test_the_example_for_the_sdk_runs_as_it_is_printed(
    plant: SimPlant, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    plant.teleport(RESET_POSE, 0.0)
    (code,) = examples("python", "dynamixel_sdk")
    found, positions = run_as_printed(code, emulator, capsys).splitlines()
    assert ast.literal_eval(found) == {id: [1010, 45] for id in IDS}
    assert ast.literal_eval(positions)[2] == pytest.approx(2400, abs=60)  # gravity bends the finger


def test_the_example_for_the_camera_runs_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples("python", "cv2")
    with Emulator(EmulatorConfig(), SimPlant(SimConfig())) as emulator:
        assert run_as_printed(code, emulator, capsys) == "(256, 256, 3)\n"


def test_the_example_for_tests_runs_as_it_is_printed(
    emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = examples("python", "SimPlant")
    assert run_as_printed(code, emulator, capsys).endswith(" [{'kind': 'dead', 'servos': [12]}]\n")


def test_every_fault_of_the_document_is_one_and_every_kind_has_an_example() -> None:
    shown = [yaml.safe_load(text) for text in re.findall(r"`(\{kind: .*?\})`", DOCUMENT)]
    (settings,) = examples("yaml")
    listed = yaml.safe_load(settings)["hw"]["emulator"]
    posted = [json.loads(text) for text in re.findall(r"curl -d '(.*?)'", DOCUMENT)]
    kinds = {FaultConfig.model_validate(fault).kind for fault in [*shown, *posted]}
    assert len(EmulatorConfig.model_validate(listed).faults) == 3
    assert set(get_args(FaultKind)) - kinds == {"overheat", "electrical", "encoder"}  # as `overload`
    assert all(f"`{kind}`" in DOCUMENT for kind in get_args(FaultKind))


def test_every_assumption_about_real_servos_is_in_the_document_with_its_value() -> None:
    for name in FirmwareConfig.model_fields:
        assert f"`firmware.{name}`" in DOCUMENT
    assert "30 deg C, 10 K/W, 60 J/K" in DOCUMENT
    config = FirmwareConfig()
    assert (config.ambient, config.thermal_resistance, config.heat_capacity) == (30, 10, 60)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The emulator, started as the document says but for the names, with the faults that it shows."""
    (command,) = examples("", "run_robot.py emulate")
    (settings,) = examples("yaml")
    (tmp_path / "faults.yaml").write_text(settings)
    words = command.replace(".venv/bin/python", sys.executable).replace("8080", "0")
    words = words.replace("/tmp/ttyDclaw", str(tmp_path / "tty"))
    arguments = [*words.split(), "--config", str(tmp_path / "faults.yaml")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_commands_of_the_document_work(served: subprocess.Popen[str], tmp_path: Path) -> None:
    assert served.stdout is not None
    assert served.stdout.readline().startswith(f"servos  {tmp_path}/tty: 10, 11, 12")
    url = served.stdout.readline().split()[1].removesuffix("/cam.mjpg")
    (commands,) = examples("", "curl -X DELETE")
    for command in commands.strip().splitlines():
        line = shlex.split(command.replace("http://127.0.0.1:8080", url))
        assert subprocess.run([*line, "--fail"], capture_output=True).returncode == 0
    served.terminate()
    assert "stuck-joint: servo 12" in served.stdout.read()
    assert served.wait(timeout=20) in (0, -signal.SIGTERM)


def test_hands_turn_limp_joints_over_http_and_nothing_else(emulator: Emulator, plant: SimPlant) -> None:
    url = emulator.camera.replace("/cam.mjpg", "/hands")

    def post(body: str) -> str:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body.encode()), timeout=5) as answer:
                return str(answer.read().decode())
        except HTTPError as error:
            return f"{error.code} {error.read().decode()}"

    assert post('{"12": 1.0}') == '{"12": 1.0}'
    assert emulator.state()["servos"]["12"]["present_position"] == 2048 + round(1 / reg.RAD_PER_TICK)
    assert post('{"12": "up"}').startswith("400 expected angles in rad by servo id")
    assert post('{"13": 1.0}').startswith("400 no hand turns servo 13")
    plant.write(reg.TORQUE_ENABLE, 12, 1)
    assert post('{"12": 1.0}').startswith("400 servo 12 (finger 1, distal) is under torque")
