"""The serial bus's promises, with the real SDK on a real (pseudo) terminal and faults made on the wire."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robot import registers as reg
from robot.bus import BusConfig, SerialBus, _blocks, _why_not_open
from robot.clock import SystemClock
from robot.dynamixel import BLOCK, DynamixelConfig, DynamixelRobot
from robot.emulator import Emulator, EmulatorConfig, SerialLine
from robot.protocol import Instruction, Packet, Parser, build, build_status
from robot.sim import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, SimConfig, SimPlant
from robot.types import BusFault, PortLost, ServoAlert, ServoSilent, WatchdogTripped

IDS = (*FINGER_SERVOS, VALVE_SERVO)
CLOCK = SystemClock()
FAST = EmulatorConfig(wire=False, return_delay_us=0)
PATIENT = 200.0  # ms; on a busy machine the emulator's thread may be late, and these tests count losses


class Cable:
    """Damages the replies that a test names: what happens to the next ones of each servo."""

    def __init__(self) -> None:
        self.lose: Counter[int] = Counter()
        self.garble: Counter[int] = Counter()
        self.replace: Callable[[bytes], bytes] | None = None
        self.seen: list[int] = []

    def filter(self, reply: bytes, servo: int) -> bytes | None:
        self.seen.append(servo)
        if self.lose[servo] > 0:
            self.lose[servo] -= 1
            return None
        if self.garble[servo] > 0:
            self.garble[servo] -= 1
            return reply[:-1] + bytes([reply[-1] ^ 0x55])
        return self.replace(reply) if self.replace else reply


class Slave:
    """A terminal whose answers a test scripts byte by byte: for every request a list of (delay s, bytes)."""

    def __init__(self, answer: Callable[[Packet], list[tuple[float, bytes]]]) -> None:
        self.line = SerialLine()
        self.heard = b""
        self._answer = answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Slave:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.line.close()

    def _serve(self) -> None:
        parser, due = Parser(), list[tuple[float, bytes]]()
        while not self._stop.is_set():
            data = self.line.read(0.001)
            self.heard += data
            for packet in parser.feed(data):
                due += [(time.monotonic() + delay, raw) for delay, raw in self._answer(packet)]
            for item in sorted(due):
                if item[0] <= time.monotonic():
                    self.line.write(item[1])
                    due.remove(item)


@pytest.fixture
def cable() -> Cable:
    return Cable()


@pytest.fixture
def plant() -> Iterator[SimPlant]:
    plant = SimPlant(SimConfig())
    yield plant
    plant.close()


@pytest.fixture
def emulator(plant: SimPlant, cable: Cable) -> Iterator[Emulator]:
    with Emulator(FAST, plant, cable, camera=False) as emulator:
        yield emulator


@pytest.fixture
def bus(emulator: Emulator) -> Iterator[SerialBus]:
    bus = SerialBus(BusConfig(port=emulator.port, timeout_ms=PATIENT), CLOCK)
    yield bus
    bus.close()


# --- Asking and telling ------------------------------------------------------------------------------------


def test_ping_tells_the_models_of_those_who_answer(bus: SerialBus) -> None:
    assert bus.ping((10, 50)) == {10: 1010, 50: 1010}
    quick = SerialBus.ping(bus, (12, 13))
    assert quick == {12: 1010}


def test_what_is_written_reads_back(bus: SerialBus, plant: SimPlant) -> None:
    bus.write(reg.PROFILE_VELOCITY, 21, 123)
    assert bus.read(reg.PROFILE_VELOCITY, 21) == 123
    bus.write(reg.GOAL_POSITION, VALVE_SERVO, -5)
    assert bus.read(reg.GOAL_POSITION, VALVE_SERVO) == -5
    assert plant.servos[VALVE_SERVO].value(reg.GOAL_POSITION) == -5


def test_a_group_reads_in_the_order_asked_whatever_the_addresses(bus: SerialBus, plant: SimPlant) -> None:
    registers = (reg.PRESENT_POSITION, reg.PROFILE_VELOCITY, reg.PRESENT_CURRENT, reg.ID)
    reading = bus.sync_read(registers, (50, 12, 10))
    assert reading.values.shape == (3, 4)
    assert reading.values[:, 3].tolist() == [50, 12, 10]
    assert reading.values[2, 0] == pytest.approx(plant.servos[10].value(reg.PRESENT_POSITION), abs=50)
    assert abs(CLOCK.now() - reading.time) < 1.0


def test_adjacent_registers_are_one_request_and_others_their_own() -> None:
    assert [(block.address, block.size) for block in _blocks(BLOCK)] == [(126, 10)]
    spread = (reg.TORQUE_ENABLE, reg.PRESENT_POSITION, reg.PRESENT_VELOCITY)
    assert [(block.address, block.size) for block in _blocks(spread)] == [(64, 1), (128, 8)]


def test_a_group_is_written_in_one_packet(bus: SerialBus, plant: SimPlant, cable: Cable) -> None:
    bus.sync_write(reg.PROFILE_VELOCITY, {id: id * 3 for id in IDS})
    assert bus.sync_read((reg.PROFILE_VELOCITY,), IDS).values[:, 0].tolist() == [id * 3 for id in IDS]
    assert Counter(cable.seen) == dict.fromkeys(IDS, 1)


def test_a_goal_that_looks_like_a_header_is_stuffed_on_the_wire() -> None:
    with Slave(lambda packet: [(0.0, build_status(packet.servo, 0))]) as slave:
        bus = SerialBus(BusConfig(port=slave.line.port, timeout_ms=PATIENT), CLOCK)
        bus.write(reg.GOAL_POSITION, 50, -131_073)  # FF FF FD FF
        bus.close()
        goal = (-131_073 & 0xFFFF_FFFF).to_bytes(4, "little")
        assert slave.heard == build(50, Instruction.WRITE, b"\x74\x00" + goal)
        assert b"\xff\xff\xfd\xfd\xff" in slave.heard


def test_stuffed_answers_are_understood(bus: SerialBus) -> None:
    bus.write(reg.GOAL_POSITION, VALVE_SERVO, -131_073)
    values = bus.sync_read((reg.PROFILE_VELOCITY, reg.GOAL_POSITION), (VALVE_SERVO, 10)).values
    assert values[0, 1] == -131_073


# --- Faults on the wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [IDS[0], 12, IDS[-1]])
def test_a_lost_answer_costs_one_servo_one_retry(bus: SerialBus, cable: Cable, victim: int) -> None:
    cable.lose[victim] = 1
    reading = bus.sync_read((reg.ID,), IDS)
    assert reading.values[:, 0].tolist() == list(IDS)
    assert Counter(cable.seen) == Counter(IDS) + Counter([victim])
    counts = bus.statistics()
    assert (counts["lost"], counts["retries"]) == (1, 1)


def test_a_garbled_answer_is_counted_and_asked_again(bus: SerialBus, cable: Cable) -> None:
    cable.garble[20] = 1
    assert bus.sync_read((reg.ID,), IDS).values[:, 0].tolist() == list(IDS)
    counts = bus.statistics()
    assert (counts["crc_errors"], counts["lost"], counts["retries"]) == (1, 1, 1)


def test_a_servo_that_stays_silent_is_named_and_the_others_are_not(bus: SerialBus, cable: Cable) -> None:
    cable.lose[12] = cable.lose[50] = 99
    with pytest.raises(ServoSilent) as caught:
        bus.sync_read((reg.ID,), IDS)
    assert caught.value.ids == (12, 50)
    message = str(caught.value)
    assert message.startswith("servo 12 (finger 1, distal), servo 50 (valve) did not answer on /dev/pts/")
    assert "at 1000000 baud after 3 tries" in message
    assert "run_robot.py check" in message
    assert Counter(cable.seen)[10] == 1


def test_two_servos_with_one_id_are_suspected_when_answers_are_garbled(bus: SerialBus, cable: Cable) -> None:
    cable.garble[12] = 99
    with pytest.raises(ServoSilent, match="two servos with one id"):
        bus.read(reg.ID, 12)


def test_single_reads_and_writes_are_retried_too(bus: SerialBus, cable: Cable, plant: SimPlant) -> None:
    cable.lose[11] = 1
    assert bus.read(reg.ID, 11) == 11
    cable.lose[11] = 1
    bus.write(reg.LED, 11, 1)
    assert plant.servos[11].value(reg.LED) == 1
    cable.lose[11] = 3
    with pytest.raises(ServoSilent, match=r"servo 11 \(finger 1, middle\)"):
        bus.write(reg.LED, 11, 0)


def test_alerts_ride_on_every_reading_and_hide_no_data(bus: SerialBus, plant: SimPlant) -> None:
    plant.servos[12].raise_hardware_error(0x20)
    reading = bus.sync_read((reg.ID,), IDS)
    assert reading.alerts.tolist() == [0x80 if id == 12 else 0 for id in IDS]
    assert reading.values[:, 0].tolist() == list(IDS)
    assert bus.read(reg.HARDWARE_ERROR_STATUS, 12) == 0x20
    bus.write(reg.LED, 12, 1)
    assert bus.statistics()["alerts"] == 3


def test_refusals_are_faults_in_words(bus: SerialBus) -> None:
    bus.write(reg.TORQUE_ENABLE, 10, 1)
    with pytest.raises(BusFault, match=r"servo 10 .* refused return_delay_time = 0: access error \(0x07\)"):
        bus.write(reg.RETURN_DELAY_TIME, 10, 0)
    with pytest.raises(BusFault, match=r"refused read beyond.*access error"):
        bus.read(reg.Register("beyond", 3000, 1), 10)
    with pytest.raises(BusFault, match=r"servo 10 .*refused read beyond"):
        bus.sync_read((reg.Register("beyond", 3000, 1),), IDS)
    assert bus.statistics()["refused"] == 3


def test_an_answer_of_the_wrong_length_is_no_answer() -> None:
    script = iter([b"", b"\x01", b"\x01\x02\x03", b"\x2a\x00"])
    with Slave(lambda packet: [(0.0, build_status(packet.servo, 0, next(script)))]) as slave:
        bus = SerialBus(BusConfig(port=slave.line.port, timeout_ms=PATIENT, retries=3), CLOCK)
        assert bus.read(reg.PRESENT_CURRENT, 10) == 42
        bus.close()


@pytest.mark.parametrize("asked_next", [reg.GOAL_CURRENT, reg.PRESENT_CURRENT])
def test_a_late_answer_to_one_question_never_answers_the_next(asked_next: reg.Register) -> None:
    """The first answer comes after its time-out, the retry's while the next question is already asked."""
    delays, asked = iter([0.08]), b"\x11\x11"

    def answer(packet: Packet) -> list[tuple[float, bytes]]:
        return [(next(delays, 0.03), build_status(packet.servo, 0, asked))]

    with Slave(answer) as slave:
        bus = SerialBus(BusConfig(port=slave.line.port, timeout_ms=40), CLOCK)
        assert bus.read(reg.PRESENT_CURRENT, 10) == 0x1111
        asked = b"\x22\x22"
        assert bus.read(asked_next, 10) == 0x2222
        bus.close()


def test_the_packet_timeout_is_ours_and_not_the_sdks(emulator: Emulator, cable: Cable) -> None:
    bus = SerialBus(BusConfig(port=emulator.port, timeout_ms=100, retries=0), CLOCK)
    cable.lose[10] = 1
    start, cpu = time.monotonic(), time.thread_time()
    with pytest.raises(ServoSilent):
        bus.read(reg.ID, 10)
    assert 0.1 <= time.monotonic() - start < 0.6  # the SDK's own would be 34 ms
    assert time.thread_time() - cpu < 0.05, "waiting must not spin"
    bus.close()


def test_a_line_that_never_falls_silent_does_not_catch_us_for_ever() -> None:
    noise = [(0.002 * n, b"\x55" * 2000) for n in range(1000)]
    with Slave(lambda packet: noise if packet.instruction == Instruction.READ else []) as slave:
        bus = SerialBus(BusConfig(port=slave.line.port, timeout_ms=10, retries=0), CLOCK)
        start = time.monotonic()
        with pytest.raises(ServoSilent):
            bus.read(reg.ID, 10)
        assert time.monotonic() - start < 1.0
        bus.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=24), keep=st.booleans(), length=st.sampled_from([0, 1, 3, 7, 200]))
def test_no_noise_crashes_the_driver_or_becomes_a_number(
    emulator: Emulator, cable: Cable, noise: bytes, keep: bool, length: int
) -> None:
    bus = SerialBus(BusConfig(port=emulator.port, timeout_ms=3, retries=0), CLOCK)
    header = b"\xff\xff\xfd\x00\x0a" + length.to_bytes(2, "little") + b"\x55"
    cable.replace = lambda reply: noise + header[: len(noise) % 9] + (reply if keep else b"")
    try:
        assert bus.read(reg.ID, 10) == 10
    except ServoSilent:
        pass
    finally:
        cable.replace = None
        bus.close()


# --- The port ----------------------------------------------------------------------------------------------


def test_a_port_has_one_owner(bus: SerialBus, emulator: Emulator) -> None:
    with pytest.raises(PortLost, match=r"in use by another program\. `fuser -v /dev/pts"):
        SerialBus(BusConfig(port=emulator.port), CLOCK)
    assert bus.read(reg.ID, 10) == 10
    bus.close()
    SerialBus(BusConfig(port=emulator.port), CLOCK).close()


def test_a_missing_port_says_which_ports_there_are_and_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(PortLost, match=r"no serial port .*; ports here: .*run_robot\.py check --hw dclaw"):
        SerialBus(BusConfig(port=str(tmp_path / "ttyUSB0")), CLOCK)


def test_a_file_is_no_port(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PortLost, match="Is it a serial port"):
        SerialBus(BusConfig(port=str(tmp_path / "file")), CLOCK)


def test_a_forbidden_port_names_the_group() -> None:
    message = _why_not_open("/dev/ttyUSB0", PermissionError(errno.EACCES, "Permission denied"))
    assert "dialout" in message
    assert "run_robot.py check --hw dclaw" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_forbidden_port_is_a_lost_port(tmp_path: Path, emulator: Emulator) -> None:
    locked = tmp_path / "ttyUSB0"
    locked.touch(mode=0o000)
    with pytest.raises(PortLost, match="dialout"):
        SerialBus(BusConfig(port=str(locked)), CLOCK)


def test_an_unplugged_port_is_a_fault_and_works_again_when_it_is_back(
    tmp_path: Path, plant: SimPlant
) -> None:
    config = FAST.model_copy(update={"link": str(tmp_path / "ttyDclaw")})
    with Emulator(config, plant, camera=False):
        bus = SerialBus(BusConfig(port=str(tmp_path / "ttyDclaw"), timeout_ms=PATIENT), CLOCK)
        assert bus.read(reg.ID, 10) == 10
    for request in (
        lambda: bus.read(reg.ID, 10),
        lambda: bus.sync_read((reg.ID,), IDS),
        lambda: bus.sync_write(reg.LED, {10: 1}),
        lambda: bus.write(reg.LED, 10, 1),
        lambda: bus.ping(IDS),
    ):
        with pytest.raises(PortLost):
            request()
    with Emulator(config, plant, camera=False):
        assert bus.read(reg.ID, 10) == 10
    assert bus.statistics()["port_losses"] == 1
    bus.close()


def test_a_closed_bus_stays_closed(bus: SerialBus) -> None:
    bus.close()
    bus.close()
    with pytest.raises(PortLost, match="closed by this program"):
        bus.read(reg.ID, 10)


def test_an_interrupted_request_does_not_block_the_bus(
    bus: SerialBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bus._packets, "rxPacket", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bus.sync_read((reg.ID,), IDS)
    assert bus.read(reg.MODEL_NUMBER, 10) == 1010


@pytest.mark.parametrize("wrong", [{"baud": 123}, {"baud": 4_500_000}, {"retries": -1}, {"timeout_ms": 0}])
def test_an_impossible_bus_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        BusConfig.model_validate(wrong)


# --- The robot on the wire ---------------------------------------------------------------------------------


def test_the_robot_works_through_the_wire_as_on_the_plant(bus: SerialBus, emulator: Emulator) -> None:
    config = DynamixelConfig(watchdog=1.0)
    target = np.array(RESET_POSE) + 0.1
    with DynamixelRobot(bus, config, CLOCK) as robot:
        for _ in range(20):
            state = robot.read()
            applied = robot.command(target, 0.1)
            CLOCK.sleep_until(CLOCK.now() + 0.02)
        assert state.joints.position == pytest.approx(target, abs=0.08)
        assert applied.target == pytest.approx(target, abs=1e-9)
        servos = emulator.state()["servos"]
        assert [servos[str(id)]["torque_enable"] for id in IDS] == [1] * 9 + [0]
    assert not any(servo["torque_enable"] for servo in emulator.state()["servos"].values())


def test_the_robot_keeps_working_while_packets_are_lost(emulator: Emulator, cable: Cable) -> None:
    bus = SerialBus(BusConfig(port=emulator.port, timeout_ms=30, retries=10), CLOCK)
    rng = np.random.default_rng(0)
    with DynamixelRobot(bus, DynamixelConfig(watchdog=2.0), CLOCK) as robot:
        for _ in range(6):
            cable.lose = Counter([int(rng.choice(IDS))])
            robot.read()
            robot.command(np.array(RESET_POSE), 0.1)
    assert bus.statistics()["lost"] >= 6
    bus.close()


def test_an_alert_reaches_the_robot_through_the_wire(bus: SerialBus, plant: SimPlant) -> None:
    with DynamixelRobot(bus, DynamixelConfig(), CLOCK) as robot:
        plant.servos[12].raise_hardware_error(0x20)
        with pytest.raises(ServoAlert, match=r"servo 12 \(finger 1, distal\) reports overload \(0x20\)"):
            robot.read()


def test_a_silent_program_is_stopped_and_told_so_in_real_time(bus: SerialBus) -> None:
    with DynamixelRobot(bus, DynamixelConfig(watchdog=0.5), CLOCK) as robot:
        robot.read()
        CLOCK.sleep_until(CLOCK.now() + 0.6)
        with pytest.raises(WatchdogTripped):
            robot.read()
        robot.engage()
        robot.command(np.array(RESET_POSE), 0.1)


def test_a_robot_whose_port_is_gone_can_still_be_left(tmp_path: Path, plant: SimPlant) -> None:
    config = FAST.model_copy(update={"link": str(tmp_path / "ttyDclaw")})
    emulator = Emulator(config, plant, camera=False)
    bus = SerialBus(BusConfig(port=str(tmp_path / "ttyDclaw"), timeout_ms=PATIENT), CLOCK)
    with DynamixelRobot(bus, DynamixelConfig(), CLOCK) as robot:
        emulator.close()
        with pytest.raises(PortLost):
            robot.read()
        robot.hold()
        with Emulator(config, plant, camera=False):
            robot.engage()
            robot.read()
        start = time.monotonic()
    assert time.monotonic() - start < 2.0
    bus.close()
