"""The serial bus's promises, with the real SDK on a real (pseudo) terminal and faults made on the wire."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import dynamixel_sdk as sdk
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robot import registers as reg
from robot.bus import BusConfig, SerialBus, _block, _blocks, _suspicion, _why_not_open
from robot.chain import Delivery
from robot.clock import SystemClock
from robot.dynamixel import DynamixelRobot
from robot.emulator import Emulator, EmulatorConfig, SerialLine
from robot.protocol import Instruction, Packet, Parser, build, build_status, crc16, fast_header
from robot.settings import DynamixelConfig
from robot.sim import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, SimConfig, SimPlant
from robot.types import BusFault, PortLost, ServoAlert, ServoSilent, WatchdogTripped
from tests.line import VirtualLine, emulated, open_bus

IDS = (*FINGER_SERVOS, VALVE_SERVO)
CLOCK = SystemClock()
FAST = EmulatorConfig(wire=False, return_delay_us=0)
PATIENT = 200.0  # ms; on a busy machine the emulator's thread may be late, and these tests count losses


class Cable:
    """Damages the replies that a test names: what happens to the next ones of each servo."""

    def __init__(self) -> None:
        self.lose: Counter[int] = Counter()
        self.garble: Counter[int] = Counter()
        self.repeat: Counter[int] = Counter()
        self.replace: Callable[[bytes], bytes] | None = None
        self.seen: list[int] = []

    def filter(self, reply: bytes, servo: int) -> tuple[Delivery, ...]:
        self.seen.append(servo)
        if self.lose[servo] > 0:
            self.lose[servo] -= 1
            return ()
        if self.garble[servo] > 0:
            self.garble[servo] -= 1
            reply = reply[:-3] + bytes([reply[-3] ^ 0x55]) + reply[-2:]
        if self.repeat[servo] > 0:
            self.repeat[servo] -= 1
            return (Delivery(reply), Delivery(reply))
        return (Delivery(self.replace(reply) if self.replace else reply),)


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
    together = (reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION)
    assert [(block.address, block.size) for block in _blocks(together)] == [(126, 10)]
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
    assert message.startswith(
        "servo 12 (finger 1, distal), behind servo 11; servo 50 (valve) did not answer on /dev/pts/"
    )
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


def test_what_the_others_answered_is_not_lost_with_a_silent_servo(bus: SerialBus, cable: Cable) -> None:
    cable.lose[12] = 99
    spread = (reg.ID, reg.PRESENT_POSITION, reg.TORQUE_ENABLE)
    with pytest.raises(ServoSilent) as caught:
        bus.sync_read(spread, IDS)
    others = tuple(id for id in IDS if id != 12)
    assert (caught.value.ids, caught.value.answered) == ((12,), others)
    reading = caught.value.reading
    assert reading is not None
    assert reading.values.shape == (9, 3)
    assert reading.values[:, 0].tolist() == list(others)
    assert abs(CLOCK.now() - reading.time) < 1.0
    assert 12 not in Counter(cable.seen) - Counter({12: 3}), (
        "who is silent is not asked for the next registers"
    )


@pytest.mark.parametrize(
    ("silent", "words"),
    [
        (IDS, "Nobody did: check the servo power, the cable from the adapter"),
        ((12,), r"Check the cable between servo 11 and servo 12, and the power of servo 12; `run"),
        ((11, 12), r"Check the cable between servo 10 and servo 11, and the power of servo 11; `run"),
        ((20, 21, 22), r"Check the cable to servo 20, and the power of servo 20; `run"),
        ((50,), "Check the cable to servo 50"),
        ((11,), "Servo 12 behind servo 11 answers, so the cables are whole: servo 11 may be restarting"),
        ((10, 11), r"Servo 12 behind servo 10 answers.*Servo 12 behind servo 11 answers"),
        ((12, 30), r"between servo 11 and servo 12.*; Servo 31 behind servo 30 answers"),
    ],
)
def test_who_is_silent_tells_where_to_look(silent: tuple[int, ...], words: str) -> None:
    answered = [id for id in IDS if id not in silent]
    assert re.search(words, _suspicion(silent, answered) + "; `run")


def test_a_repeated_answer_to_one_question_never_answers_the_next() -> None:
    """The copy arrives while the next question is asked, before all true answers."""

    def answer(now: float, request: bytes) -> list[tuple[float, bytes]]:
        copy = [(now + 0.0002, build_status(50, 0, b"\x63"))] if len(line.requests) == 1 else []
        true = [(now + 0.001 * n, build_status(id, 0, bytes([id]))) for n, id in enumerate(IDS, 1)]
        return copy + true

    line = VirtualLine(answer)
    bus = open_bus(line)
    assert bus.sync_read((reg.ID,), IDS).values[:, 0].tolist() == list(IDS)
    assert bus.statistics()["lost"] == 0


class Tape:
    """A port for the SDK on which nobody answers, and what was sent to it."""

    is_using = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def getBaudRate(self) -> int:  # noqa: N802
        return 1_000_000

    def writePort(self, packet: list[int]) -> int:  # noqa: N802
        self.is_using = False
        self.sent.append(bytes(packet))
        return len(packet)

    def clearPort(self) -> None:  # noqa: N802
        pass

    def setPacketTimeout(self, length: int) -> None:  # noqa: N802
        pass

    def setPacketTimeoutMillis(self, milliseconds: float) -> None:  # noqa: N802
        pass

    def isPacketTimeout(self) -> bool:  # noqa: N802
        return True

    def readPort(self, length: int) -> bytes:  # noqa: N802
        return b""


def test_requests_are_the_bytes_that_the_sdk_sends() -> None:
    line = VirtualLine(lambda now, request: [])
    bus = open_bus(line, BusConfig(retries=0))
    requests: list[Callable[[], object]] = [
        lambda: bus.ping((10,)),
        bus.broadcast_ping,
        lambda: bus.read(reg.PRESENT_POSITION, 10),
        lambda: bus.write(reg.GOAL_POSITION, 10, 2048),
        lambda: bus.reboot(12),
        lambda: bus.sync_read((reg.PRESENT_POSITION,), IDS),
        lambda: bus.sync_write(reg.GOAL_POSITION, {10: 1, 50: -2}),
    ]
    for ask in requests:
        with suppress(ServoSilent):
            ask()
    packets, port = sdk.PacketHandler(2.0), Tape()
    packets.ping(port, 10)
    packets.broadcastPing(port)
    packets.readTx(port, 10, 132, 4)
    packets.writeTxOnly(port, 10, 116, 4, [0, 8, 0, 0])
    packets.reboot(port, 12)
    packets.syncReadTx(port, 132, 4, list(IDS), len(IDS), False)
    packets.syncWriteTxOnly(port, 116, 4, [10, 1, 0, 0, 0, 50, 0xFE, 0xFF, 0xFF, 0xFF], 10)
    assert line.requests == port.sent


# --- Gathered registers ------------------------------------------------------------------------------------


def test_gathered_registers_are_one_packet_of_their_bytes_alone(bus: SerialBus, emulator: Emulator) -> None:
    apart = bus.sync_read(reg.CYCLE, IDS)
    bus.gather(reg.CYCLE, IDS)
    before = emulator.state()["packets"]
    together = bus.sync_read(reg.CYCLE, IDS)
    assert emulator.state()["packets"] == before + 1
    assert _block(224, list(enumerate(reg.CYCLE))).layout.size == 16
    assert together.values[:, 2] == pytest.approx(apart.values[:, 2], abs=300)  # the fingers fall meanwhile
    assert together.values[:, 3:].tolist() == apart.values[:, 3:].tolist() == [[0, 0, 0, 120, 30]] * 10


def test_values_with_signs_survive_gathering(bus: SerialBus) -> None:
    bus.write(reg.GOAL_POSITION, VALVE_SERVO, -131_073)  # FF FF FD FF, which plain packets must stuff
    wanted = (reg.PRESENT_TEMPERATURE, reg.GOAL_POSITION, reg.LED)
    bus.gather(wanted, (VALVE_SERVO, 10))
    assert bus.sync_read(wanted, (VALVE_SERVO, 10)).values[0, 1] == -131_073
    assert bus.sync_read(wanted, (VALVE_SERVO,)).values[0, 1] == -131_073
    assert bus.statistics()["fast_reads"] == 2  # gathering found out, the first reading profited


def test_what_is_not_gathered_is_read_where_it_lies(bus: SerialBus, plant: SimPlant) -> None:
    bus.gather(reg.CYCLE, (10, 11))
    swapped = (reg.BUS_WATCHDOG, reg.PRESENT_INPUT_VOLTAGE)
    for ids, registers in (((10, 12), reg.CYCLE), ((10, 11), swapped)):
        bus.write(reg.BUS_WATCHDOG, 10, 33)
        reading = bus.sync_read(registers, ids)
        assert reading.values[0, registers.index(reg.BUS_WATCHDOG)] == 33
        assert (reading.values[:, registers.index(reg.PRESENT_INPUT_VOLTAGE)] == 120).all()


def test_a_rebooted_servo_is_not_asked_for_what_it_has_forgotten(bus: SerialBus, plant: SimPlant) -> None:
    bus.gather(reg.CYCLE, IDS)
    bus.reboot(12)
    CLOCK.sleep_until(CLOCK.now() + 0.3)
    assert plant.servos[12].value(reg.INDIRECT_ADDRESSES[0]) == 224
    assert bus.sync_read(reg.CYCLE, IDS).values[2, 6] == 120
    bus.gather(reg.CYCLE, IDS)
    assert plant.servos[12].value(reg.INDIRECT_ADDRESSES[0]) == reg.PRESENT_CURRENT.address


def test_gathering_again_writes_to_nobody_who_still_collects(bus: SerialBus, cable: Cable) -> None:
    bus.gather(reg.CYCLE, IDS)
    writes = bus.statistics()["writes"]
    cable.seen.clear()
    bus.gather(reg.CYCLE, IDS)
    assert bus.statistics()["writes"] == writes + 1  # the call itself
    assert Counter(cable.seen) == dict.fromkeys(IDS, 3)  # who collects, who still does, who reads fast


def test_gathering_that_does_not_read_back_is_a_fault() -> None:
    def forgetful(packet: Packet) -> list[tuple[float, bytes]]:
        data = bytes(4) if packet.instruction == Instruction.SYNC_READ else b""
        return [(0.0, build_status(10, 0, data))]

    with Slave(forgetful) as slave:
        bus = SerialBus(BusConfig(port=slave.line.port, timeout_ms=PATIENT), CLOCK)
        with pytest.raises(BusFault, match=r"read back differently: servo 10 \(finger 1, proximal\)"):
            bus.gather((reg.PRESENT_CURRENT,), (10,))
        bus.close()


def test_a_silent_servo_stops_gathering(bus: SerialBus, cable: Cable) -> None:
    cable.lose[12] = 99
    with pytest.raises(ServoSilent, match="servo 12"):
        bus.gather(reg.CYCLE, IDS)


@pytest.mark.parametrize("impossible", [(reg.ID,), (reg.PRESENT_POSITION,) * 8])
def test_what_cannot_be_gathered_is_refused_in_words(
    bus: SerialBus, impossible: tuple[reg.Register, ...]
) -> None:
    with pytest.raises(ValueError, match=r"not id|more than the 28"):
        bus.gather(impossible, IDS)


# --- Fast reads --------------------------------------------------------------------------------------------


def fast_counts(bus: SerialBus) -> tuple[int, int, int]:
    counts = bus.statistics()
    return counts["fast_reads"], counts["retries"], counts["crc_errors"]


def test_servos_that_can_answer_in_one_packet(bus: SerialBus, emulator: Emulator) -> None:
    bus.gather(reg.CYCLE, IDS)
    for _ in range(3):
        bus.sync_read(reg.CYCLE, IDS)
    assert fast_counts(bus) == (4, 0, 0)


def test_servos_that_cannot_are_found_out_once_and_cost_nothing_later(
    plant: SimPlant, emulator: Emulator, bus: SerialBus
) -> None:
    plant.servos[21].load(reg.FIRMWARE_VERSION, 44)
    bus.gather(reg.CYCLE, IDS)
    assert bus.sync_read(reg.CYCLE, IDS).values[:, 6].tolist() == [120] * 10
    assert fast_counts(bus) == (1, 0, 1)  # the packet that ended before servo 21
    assert bus.sync_read(reg.CYCLE, (10, 11, 12, 20)).values[:, 6].tolist() == [120] * 4
    assert fast_counts(bus) == (2, 0, 1)


@pytest.mark.parametrize(("mode", "packets"), [("off", 0), ("on", 1)])
def test_fast_reads_can_be_chosen(emulator: Emulator, mode: str, packets: int) -> None:
    config = BusConfig.model_validate({"port": emulator.port, "timeout_ms": PATIENT, "fast_reads": mode})
    bus = SerialBus(config, CLOCK)
    bus.gather(reg.CYCLE, IDS)
    bus.sync_read(reg.CYCLE, IDS)
    assert fast_counts(bus) == (packets, 0, 0)
    bus.close()


@pytest.mark.parametrize("victim", [IDS[0], 21, IDS[-1]])
def test_a_garbled_part_of_a_fast_reply_costs_that_servo_alone(
    bus: SerialBus, cable: Cable, victim: int
) -> None:
    bus.gather(reg.CYCLE, IDS)
    cable.seen.clear()
    cable.garble[victim] = 1
    assert bus.sync_read(reg.CYCLE, IDS).values[:, 6].tolist() == [120] * 10
    assert Counter(cable.seen) == Counter(IDS) + Counter([victim])
    assert fast_counts(bus) == (2, 1, 1)


def test_a_fast_reply_that_breaks_off_is_used_up_to_there(bus: SerialBus, cable: Cable) -> None:
    bus.gather(reg.CYCLE, IDS)
    cable.seen.clear()
    cable.lose[20] = 1
    assert bus.sync_read(reg.CYCLE, IDS).values[:, 6].tolist() == [120] * 10
    assert Counter(cable.seen) == Counter((*IDS[:4], *IDS[3:]))


def test_the_answer_to_another_fast_read_is_no_answer() -> None:
    """It is whole, and begins as an answer to this one would."""
    stale = fast_header([6]) + bytes([0, 10, *range(6)])
    stale += crc16(stale).to_bytes(2, "little")
    registers = (reg.PRESENT_INPUT_VOLTAGE,)
    line = VirtualLine(lambda now, request: [(now, stale)])
    bus = open_bus(line)
    bus._gathered, bus._fast = dict.fromkeys((10, 11), registers), {10, 11}
    with pytest.raises(ServoSilent) as caught:
        bus.sync_read(registers, (10, 11))
    assert caught.value.ids == (10, 11)


def test_alerts_ride_on_fast_readings_too(bus: SerialBus, plant: SimPlant) -> None:
    bus.gather(reg.CYCLE, IDS)
    plant.servos[12].raise_hardware_error(0x20)
    reading = bus.sync_read(reg.CYCLE, IDS)
    assert reading.alerts.tolist() == [0x80 if id == 12 else 0 for id in IDS]
    assert reading.values[:, 4].tolist() == [0x20 if id == 12 else 0 for id in IDS]
    assert bus.statistics()["fast_reads"] == 2


# --- How long it takes, in virtual time --------------------------------------------------------------------


def virtual_bus(
    plant: SimPlant, usb: float, delay: int = 0, **settings: object
) -> tuple[VirtualLine, SerialBus]:
    config = EmulatorConfig(usb_latency_ms=usb, return_delay_us=delay)
    line = VirtualLine(emulated(config, plant))
    return line, open_bus(line, BusConfig.model_validate(settings))


@pytest.mark.parametrize("fast", ["auto", "off"])
@pytest.mark.parametrize("delay", [0, 500])
@pytest.mark.parametrize("usb", [1.0, 16.0])
def test_no_healthy_adapter_is_asked_twice_by_default(
    plant: SimPlant, usb: float, delay: int, fast: str
) -> None:
    line, bus = virtual_bus(plant, usb, delay, fast_reads=fast)
    bus.gather(reg.CYCLE, IDS)
    for _ in range(100):
        line.clock.time += 0.00123  # meets the adapter's timer at every phase
        bus.sync_read(reg.CYCLE, IDS)
    assert bus.statistics()["lost"] == 0


@pytest.mark.parametrize(
    ("dead", "fast", "most"),
    [((victim,), "auto", 0.062) for victim in (10, 21, 50)]
    + [((victim,), "off", 0.067) for victim in (10, 21, 50)]
    + [(IDS, "auto", 0.076), (IDS, "off", 0.081)],
)
@pytest.mark.parametrize("usb", [1.0, 16.0])
def test_dead_servos_are_told_in_the_time_that_is_documented(
    plant: SimPlant, usb: float, dead: tuple[int, ...], fast: str, most: float
) -> None:
    line, bus = virtual_bus(plant, usb, fast_reads=fast)
    bus.gather(reg.CYCLE, IDS)
    for servo in dead:
        plant.servos[servo].powered = False
    start = line.clock.now()
    with pytest.raises(ServoSilent) as caught:
        bus.sync_read(reg.CYCLE, IDS)
    assert caught.value.ids == dead
    assert line.clock.now() - start < most


@pytest.mark.parametrize("fast", ["auto", "off"])
def test_dead_servos_are_told_within_a_control_step_even_after_a_bad_one(plant: SimPlant, fast: str) -> None:
    cable = Cable()
    line = VirtualLine(emulated(EmulatorConfig(usb_latency_ms=16, return_delay_us=0), plant, cable))
    bus = open_bus(line, BusConfig.model_validate({"fast_reads": fast}))
    bus.gather(reg.CYCLE, IDS)
    cable.lose[50] = 1
    bus.sync_read(reg.CYCLE, IDS)
    for servo in plant.servos.values():
        servo.powered = False
    start = line.clock.now()
    with pytest.raises(ServoSilent, match=r"Nobody did"):
        bus.sync_read(reg.CYCLE, IDS)
    assert 0.085 < line.clock.now() - start < 0.1


def test_a_lost_answer_costs_hardly_more_than_asking_again(plant: SimPlant) -> None:
    cable = Cable()
    config = EmulatorConfig(usb_latency_ms=1, return_delay_us=0)
    line = VirtualLine(emulated(config, plant, cable))
    bus = open_bus(line, BusConfig(fast_reads="off"))
    bus.gather(reg.CYCLE, IDS)
    took = []
    for lost in (0, 1):
        cable.lose[21] = lost
        start = line.clock.now()
        bus.sync_read(reg.CYCLE, IDS)
        took.append(line.clock.now() - start)
    assert took[1] - took[0] < 0.006


@pytest.mark.parametrize("fast", ["auto", "off"])
def test_a_reading_ends_when_its_last_byte_arrives(plant: SimPlant, fast: str) -> None:
    cable, arrivals = emulated(EmulatorConfig(usb_latency_ms=1, return_delay_us=0), plant), list[float]()

    def answer(now: float, request: bytes) -> list[tuple[float, bytes]]:
        coming = list(cable(now, request))
        arrivals.extend(time for time, _ in coming)
        return coming

    line = VirtualLine(answer)
    bus = open_bus(line, BusConfig.model_validate({"fast_reads": fast}))
    bus.gather(reg.CYCLE, IDS)
    bus.sync_write(reg.GOAL_POSITION, dict.fromkeys(FINGER_SERVOS, 2048))
    bus.sync_read(reg.CYCLE, IDS)
    assert line.clock.now() - arrivals[-1] < 1e-4


def test_a_host_that_looks_late_loses_nothing(plant: SimPlant) -> None:
    line, bus = virtual_bus(plant, 1.0)
    read = line.read

    def late(size: int = 1) -> bytes:
        line.clock.time += 0.03  # the process was not scheduled
        return read(size)

    line.read = late  # type: ignore[method-assign]
    assert bus.sync_read((reg.ID,), IDS).values[:, 0].tolist() == list(IDS)
    assert bus.statistics()["lost"] == 0


# --- The whole bus -----------------------------------------------------------------------------------------


def test_a_broadcast_ping_finds_everybody(plant: SimPlant) -> None:
    line, bus = virtual_bus(plant, 1.0)
    plant.servos[50].load(reg.FIRMWARE_VERSION, 42)
    found = bus.broadcast_ping()
    assert found == {id: (1010, 42 if id == 50 else 45) for id in IDS}
    assert line.clock.now() < 0.85
    start = line.clock.now()
    assert bus.broadcast_ping(highest=60) == found
    assert line.clock.now() - start < 0.25


def test_a_reboot_is_confirmed_or_a_fault(bus: SerialBus, plant: SimPlant) -> None:
    bus.write(reg.TORQUE_ENABLE, 12, 1)
    bus.reboot(12)
    assert plant.servos[12].value(reg.TORQUE_ENABLE) == 0
    with pytest.raises(ServoSilent, match=r"servo 13 did not answer"):
        bus.reboot(13)


def test_two_threads_get_their_own_answers(bus: SerialBus) -> None:
    wrong: list[object] = []

    def look(servo: int) -> None:
        for _ in range(60):
            got = bus.read(reg.ID, servo), bus.sync_read((reg.ID,), (servo, 50)).values[:, 0].tolist()
            if got != (servo, [servo, 50]):
                wrong.append(got)

    threads = [threading.Thread(target=look, args=(servo,)) for servo in (10, 11, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bus.statistics()["lost"] == 0


# --- The port ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [("16", 1), ("1", 1), ("0", 0), ("none", None)])
def test_the_adapters_latency_is_made_short_and_told(
    emulator: Emulator, tmp_path: Path, before: str, after: int | None
) -> None:
    folder = tmp_path / "bus/usb-serial/devices" / Path(emulator.port).name
    folder.mkdir(parents=True)
    (folder / "latency_timer").write_text(f"{before}\n")
    link = tmp_path / "dclaw"
    link.symlink_to(emulator.port)
    bus = SerialBus(BusConfig(port=str(link)), CLOCK, sysfs=tmp_path)
    assert bus.latency_timer_ms == after
    bus.close()


def test_a_latency_that_may_not_be_changed_is_told_as_it_is(emulator: Emulator, tmp_path: Path) -> None:
    timer = tmp_path / "bus/usb-serial/devices" / Path(emulator.port).name / "latency_timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("16\n")

    def forbid(*_: object) -> int:
        raise PermissionError

    with pytest.MonkeyPatch.context() as patch:  # root may write anything
        patch.setattr(Path, "write_text", forbid)
        bus = SerialBus(BusConfig(port=emulator.port), CLOCK, sysfs=tmp_path)
    assert bus.latency_timer_ms == 16
    bus.close()


def test_an_adapter_that_the_kernel_knows_no_latency_of_is_no_problem(bus: SerialBus) -> None:
    assert bus.latency_timer_ms is None


def test_a_name_that_leads_to_another_device_is_followed(tmp_path: Path, plant: SimPlant) -> None:
    """The old device still takes requests and never answers, as a port does whose adapter was moved."""
    link = tmp_path / "ttyDclaw"
    with Slave(lambda packet: []) as old, Emulator(FAST, plant, camera=False) as new:
        link.symlink_to(old.line.port)
        bus = SerialBus(BusConfig(port=str(link)), CLOCK)
        with pytest.raises(ServoSilent):
            bus.read(reg.ID, 10)
        link.unlink()
        link.symlink_to(new.port)
        with pytest.raises(PortLost, match="another device has its name now"):
            bus.sync_read((reg.ID,), IDS)
        assert bus.sync_read((reg.ID,), IDS).values[:, 0].tolist() == list(IDS)
        bus.close()


def test_what_was_gathered_is_not_trusted_once_the_port_was_lost(tmp_path: Path, plant: SimPlant) -> None:
    config = FAST.model_copy(update={"link": str(tmp_path / "ttyDclaw")})
    with Emulator(config, plant, camera=False):
        bus = SerialBus(BusConfig(port=str(tmp_path / "ttyDclaw"), timeout_ms=PATIENT), CLOCK)
        bus.gather(reg.CYCLE, IDS)
    with pytest.raises(PortLost):
        bus.sync_read(reg.CYCLE, IDS)
    for servo in plant.servos.values():
        servo.reboot(plant.now() - 10.0)
    with Emulator(config, plant, camera=False):
        assert bus.sync_read(reg.CYCLE, IDS).values[:, 6].tolist() == [120] * 10
    bus.close()


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
