"""Promises of the servos on their line: packets in, packets out, checked byte by byte and through the SDK."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import dynamixel_sdk as sdk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator

from robot import protocol
from robot import registers as reg
from robot.chain import Delivery, NoFaults, Reply, ServoChain
from robot.emulator import Emulator, EmulatorConfig
from robot.protocol import BROADCAST, ErrorNumber, Instruction, Packet, Parser, build, collide, crc16
from robot.registers import Register
from robot.servo import Servo
from robot.sim import FINGER_SERVOS, VALVE_SERVO, SimConfig, SimPlant

IDS = (*FINGER_SERVOS, VALVE_SERVO)
BAUD = 1_000_000


@dataclass
class Cable:
    """Does to the replies of some servos what a test says."""

    damage: dict[int, Callable[[bytes], Sequence[Delivery]]] = field(default_factory=dict)

    def filter(self, reply: bytes, servo: int) -> Sequence[Delivery]:
        return self.damage.get(servo, lambda whole: (Delivery(whole),))(reply)


@pytest.fixture
def plant() -> SimPlant:
    return SimPlant(SimConfig())


@pytest.fixture
def cable() -> Cable:
    return Cable()


@pytest.fixture
def chain(plant: SimPlant, cable: Cable) -> ServoChain:
    return ServoChain(plant, cable)


def packet(servo: int, instruction: int, parameters: bytes = b"") -> Packet:
    (found,) = Parser().feed(build(servo, instruction, parameters))
    return found


def ask(chain: ServoChain, servo: int, instruction: int, parameters: bytes = b"") -> list[Reply]:
    return chain.answer(packet(servo, instruction, parameters), BAUD)


def error(chain: ServoChain, servo: int, instruction: int, parameters: bytes = b"") -> int:
    """The error byte of the one answer."""
    (reply,) = ask(chain, servo, instruction, parameters)
    (status,) = Parser().feed(reply.data)
    assert status.intact
    return status.parameters[0]


def write(register: Register, value: int) -> bytes:
    """The parameters of a write."""
    return struct.pack("<H", register.address) + register.encode(value)


def sync(address: int, size: int, *ids: int) -> bytes:
    """The parameters of a sync read."""
    return struct.pack("<HH", address, size) + bytes(ids)


def bulk(*places: tuple[int, int, int]) -> bytes:
    """The parameters of a bulk read: (id, address, size) of each servo."""
    return b"".join(struct.pack("<BHH", *place) for place in places)


def wired(replies: Sequence[Reply]) -> bytes:
    return b"".join(reply.data for reply in replies)


# --- Fast reads --------------------------------------------------------------------------------------------


def in_the_manual(plant: SimPlant) -> ServoChain:
    """The three servos of the manual's examples for fast reads."""
    for before, after, position in ((10, 3, 166), (11, 7, 2079), (12, 4, 1023)):
        servo = plant.servos[before]
        servo.load(reg.ID, after)
        servo.load(reg.HOMING_OFFSET, position - servo.value(reg.PRESENT_POSITION))
    plant.refresh()
    return ServoChain(plant, NoFaults())


def test_fast_sync_read_is_the_manuals_example_byte_by_byte(plant: SimPlant) -> None:
    chain = in_the_manual(plant)
    assert build(BROADCAST, 0x8A, sync(132, 4, 3, 7, 4)).hex() == "fffffd00fe0a008a8400040003070420f2"
    first, second, third = ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(132, 4, 3, 7, 4))
    assert first.data.hex() == "fffffd00fe1900550003a60000008408"
    assert second.data.hex() == "00071f08000016ca"
    assert third.data.hex() == "0004ff030000d19e"


def test_fast_bulk_read_is_the_manuals_example_byte_by_byte(plant: SimPlant) -> None:
    chain = in_the_manual(plant)
    plant.servos[7].load(reg.PRESENT_PWM, 421)
    plant.servos[4].warm(31.0)
    places = bulk((3, 132, 4), (7, 124, 2), (4, 146, 1))
    first, second, third = ask(chain, BROADCAST, Instruction.FAST_BULK_READ, places)
    assert first.data.hex() == "fffffd00fe1400550003a600000067a4"
    assert second.data.hex() == "0007a5012474"
    assert third.data.hex() == "00041fd9c1"


def test_only_the_first_of_a_fast_read_waits_its_return_delay(chain: ServoChain, plant: SimPlant) -> None:
    for servo in plant.servos.values():
        servo.load(reg.RETURN_DELAY_TIME, 125)
    replies = ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(132, 4, *IDS))
    assert [reply.delay for reply in replies] == [pytest.approx(250e-6), *[0.0] * 9]
    slow = ask(chain, BROADCAST, Instruction.SYNC_READ, sync(132, 4, *IDS))
    assert [reply.delay for reply in slow] == [pytest.approx(250e-6)] * 10


def test_fast_read_is_not_stuffed(chain: ServoChain, plant: SimPlant) -> None:
    plant.servos[10].load(reg.GOAL_POSITION, -131_073)  # bytes FF FF FD FF
    (reply,) = ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(116, 4, 10))
    assert reply.data[10:14] == b"\xff\xff\xfd\xff"
    assert len(reply.data) == 8 + 8


def test_alert_and_refusal_ride_in_a_servos_own_part(chain: ServoChain, plant: SimPlant) -> None:
    plant.servos[11].raise_hardware_error(reg.OVERLOAD)
    parts = ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(132, 4, 10, 11))
    assert (parts[0].data[8], parts[1].data[0]) == (0, protocol.ALERT)
    (outside,) = ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(661, 4, 10))
    assert outside.data[8:14] == bytes([ErrorNumber.ACCESS_ERROR, 10, 0, 0, 0, 0])


@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("why", ["no power", "old firmware", "answers pings only", "other baud"])
def test_fast_read_ends_before_the_first_silent_servo(
    chain: ServoChain, plant: SimPlant, absent: int, why: str
) -> None:
    servo = plant.servos[IDS[absent]]
    servo.powered = why != "no power"
    if why == "old firmware":
        servo.load(reg.FIRMWARE_VERSION, 44)
    elif why == "answers pings only":
        servo.load(reg.STATUS_RETURN_LEVEL, 0)
    elif why == "other baud":
        servo.load(reg.BAUD_RATE, 1)
    replies = ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(132, 4, *IDS[:3]))
    assert [reply.servo for reply in replies] == list(IDS[:absent])


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda whole: (), 1),  # lost
        (lambda whole: (Delivery(whole[:-3]),), 2),  # shortened
        (lambda whole: (Delivery(whole[:-1] + b"?"),), 3),  # garbled
        (lambda whole: (Delivery(whole, 0.02),), 3),  # late
        (lambda whole: (Delivery(whole), Delivery(whole)), 4),  # repeated
    ],
)
def test_damage_to_one_part_of_a_fast_read_stops_those_that_wait_for_it(
    chain: ServoChain, cable: Cable, damage: Callable[[bytes], Sequence[Delivery]], parts: int
) -> None:
    cable.damage[11] = damage
    replies = ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(132, 4, 10, 11, 12))
    assert len(replies) == parts


def test_the_last_checksum_of_a_fast_read_gives_a_garbled_part_away(chain: ServoChain, cable: Cable) -> None:
    cable.damage[10] = lambda whole: (Delivery(whole[:12] + bytes([whole[12] ^ 4]) + whole[13:]),)
    raw = wired(ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(132, 4, 10, 11)))
    assert crc16(raw[:-2]) != int.from_bytes(raw[-2:], "little")


def test_fast_read_of_more_than_a_packet_holds_is_not_answered(chain: ServoChain) -> None:
    assert len(ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(0, 98, *IDS))) == 10
    assert ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(0, 99, *IDS)) == []
    assert ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(0, 65535, *IDS)) == []


# --- Servos with one id ------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4))
def test_colliding_packets_keep_what_they_share(packets: list[bytes]) -> None:
    mixed = collide(packets)
    assert len(mixed) == max(map(len, packets))
    for place, byte in enumerate(mixed):
        there = {raw[place] for raw in packets if place < len(raw)}
        assert byte in there if len(there) == 1 else byte <= min(there)


def test_twins_that_say_the_same_are_understood(chain: ServoChain) -> None:
    error(chain, 12, Instruction.WRITE, write(reg.ID, 11))
    assert error(chain, 11, Instruction.PING) == 0
    assert ask(chain, 12, Instruction.PING) == []


def test_twins_that_differ_garble_each_other(chain: ServoChain, plant: SimPlant) -> None:
    plant.servos[12].warm(40.0)
    error(chain, 12, Instruction.WRITE, write(reg.ID, 11))
    (reply,) = ask(chain, 11, Instruction.READ, struct.pack("<HH", 146, 1))
    (status,) = Parser().feed(reply.data)
    assert not status.intact
    raw = wired(ask(chain, BROADCAST, Instruction.FAST_SYNC_READ, sync(146, 1, 10, 11)))
    assert crc16(raw[:-2]) != int.from_bytes(raw[-2:], "little")


def test_twins_obey_together_until_one_of_them_is_taken_off(chain: ServoChain, plant: SimPlant) -> None:
    one, other = plant.servos[11], plant.servos[12]
    error(chain, 12, Instruction.WRITE, write(reg.ID, 11))
    assert error(chain, 11, Instruction.WRITE, write(reg.TORQUE_ENABLE, 1)) == 0
    assert (one.torque, other.torque) == (True, True)
    error(chain, 11, Instruction.WRITE, write(reg.TORQUE_ENABLE, 0))
    one.powered = False
    assert error(chain, 11, Instruction.WRITE, write(reg.ID, 12)) == 0
    one.powered = True
    assert error(chain, 11, Instruction.PING) == error(chain, 12, Instruction.PING) == 0
    assert plant.servos[11] is one
    assert plant.servos[12] is other


def test_factory_reset_of_all_makes_ten_twins_that_one_ping_finds_as_one(
    chain: ServoChain, plant: SimPlant
) -> None:
    assert ask(chain, BROADCAST, Instruction.FACTORY_RESET, b"\x01") == []  # keeps the ids
    plant.advance_to(plant.now() + 0.3)
    for id in IDS:
        chain.answer(packet(id, Instruction.FACTORY_RESET, b"\xff"), 57_600)
    plant.advance_to(plant.now() + 0.3)
    (reply,) = chain.answer(packet(BROADCAST, Instruction.PING), 57_600)
    assert (reply.servo, reply.data) == (1, protocol.build_status(1, 0, b"\xf2\x03\x2d"))


# --- Resets, clear, backup, registered writes --------------------------------------------------------------


def test_factory_reset_answers_as_it_was_and_then_goes_dark(chain: ServoChain, plant: SimPlant) -> None:
    error(chain, 10, Instruction.WRITE, write(reg.RETURN_DELAY_TIME, 0))
    assert error(chain, 10, Instruction.FACTORY_RESET, b"\x02") == 0
    assert ask(chain, 10, Instruction.PING) == []
    plant.advance_to(plant.now() + plant.servos[10].config.boot_time)
    assert error(chain, 10, Instruction.PING) == 0
    assert plant.servos[10].value(reg.RETURN_DELAY_TIME) == 250


def test_rebooted_servo_wakes_with_its_goal_where_it_stood(chain: ServoChain, plant: SimPlant) -> None:
    plant.teleport([0.0] * 9, 20.0)  # the valve's arms meet the fingers and are pushed away
    plant.advance_to(plant.now() + 0.02)
    stood = round(plant.truth["valve"] / reg.RAD_PER_TICK) % reg.TICKS_PER_TURN
    assert error(chain, 50, Instruction.REBOOT) == 0
    plant.advance_to(plant.now() + plant.servos[50].config.boot_time)
    assert (plant.read(reg.GOAL_POSITION, 50) - 2048 - stood) % reg.TICKS_PER_TURN == 0


def test_broadcast_reset_of_everything_is_not_executed_since_firmware_42(
    chain: ServoChain, plant: SimPlant
) -> None:
    plant.servos[10].load(reg.FIRMWARE_VERSION, 41)
    old = plant.servos[10]
    assert ask(chain, BROADCAST, Instruction.FACTORY_RESET, b"\xff") == []
    assert old.id == 1
    assert set(plant.servos) == {1, *IDS[1:]}


@pytest.mark.parametrize(
    ("instruction", "parameters", "number"),
    [
        (Instruction.FACTORY_RESET, b"\x03", ErrorNumber.DATA_RANGE_ERROR),
        (Instruction.FACTORY_RESET, b"", ErrorNumber.DATA_LENGTH_ERROR),
        (Instruction.CLEAR, b"\x01DXL", ErrorNumber.DATA_LENGTH_ERROR),
        (Instruction.CONTROL_TABLE_BACKUP, b"\x02CTRL", ErrorNumber.RESULT_FAIL),  # there is none
        (Instruction.CONTROL_TABLE_BACKUP, b"\x03CTRL", ErrorNumber.DATA_LENGTH_ERROR),
        (Instruction.ACTION, b"", ErrorNumber.INSTRUCTION_ERROR),  # without a registered write
        (Instruction.READ, b"\x84\x00\x04", ErrorNumber.DATA_LENGTH_ERROR),
        (Instruction.READ, b"\x84\x00\x00\x00", ErrorNumber.ACCESS_ERROR),
        (Instruction.WRITE, b"\x40\x00", ErrorNumber.DATA_LENGTH_ERROR),
        (Instruction.REG_WRITE, b"\x40\x00", ErrorNumber.DATA_LENGTH_ERROR),
        (0x0B, b"", ErrorNumber.INSTRUCTION_ERROR),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_protocols_number(
    chain: ServoChain, instruction: int, parameters: bytes, number: int
) -> None:
    assert error(chain, 10, instruction, parameters) == number


def test_clear_is_refused_in_motion_and_under_torque(chain: ServoChain, plant: SimPlant) -> None:
    plant.teleport([0.0] * 9, 20.0)  # the valve's arms meet the fingers and are pushed away
    plant.advance_to(plant.now() + 0.02)
    assert error(chain, 50, Instruction.CLEAR, protocol.MULTI_TURN_KEY) == ErrorNumber.RESULT_FAIL
    plant.advance_to(plant.now() + 0.5)
    assert error(chain, 50, Instruction.CLEAR, protocol.MULTI_TURN_KEY) == 0
    assert 0 <= plant.read(reg.PRESENT_POSITION, 50) < 4096
    plant.write(reg.TORQUE_ENABLE, 50, 1)
    assert error(chain, 50, Instruction.CLEAR, protocol.MULTI_TURN_KEY) == ErrorNumber.RESULT_FAIL


def test_backup_survives_what_was_changed_since(chain: ServoChain, plant: SimPlant) -> None:
    assert error(chain, 10, Instruction.CONTROL_TABLE_BACKUP, protocol.STORE_KEY) == 0
    error(chain, 10, Instruction.WRITE, write(reg.RETURN_DELAY_TIME, 0))
    assert error(chain, 10, Instruction.CONTROL_TABLE_BACKUP, protocol.RESTORE_KEY) == 0
    assert ask(chain, 10, Instruction.PING) == []
    assert plant.servos[10].value(reg.RETURN_DELAY_TIME) == 250


def test_old_firmware_knows_no_backup(chain: ServoChain, plant: SimPlant) -> None:
    plant.servos[10].load(reg.FIRMWARE_VERSION, 44)
    refusal = error(chain, 10, Instruction.CONTROL_TABLE_BACKUP, protocol.STORE_KEY)
    assert refusal == ErrorNumber.INSTRUCTION_ERROR


def test_action_carries_out_a_registered_write_once(chain: ServoChain, plant: SimPlant) -> None:
    assert error(chain, 10, Instruction.REG_WRITE, write(reg.LED, 1)) == 0
    assert plant.read(reg.REGISTERED_INSTRUCTION, 10) == 1
    assert ask(chain, BROADCAST, Instruction.ACTION) == []
    assert (plant.read(reg.LED, 10), plant.read(reg.REGISTERED_INSTRUCTION, 10)) == (1, 0)
    assert error(chain, 10, Instruction.ACTION) == ErrorNumber.INSTRUCTION_ERROR


# --- Who answers when --------------------------------------------------------------------------------------


def starts(replies: Sequence[Reply], baud: int) -> list[float]:
    """When each reply begins, s after the request, on a line that nobody else uses."""
    byte = protocol.BITS_PER_BYTE / baud
    ends = list(accumulate(reply.delay + reply.late + len(reply.data) * byte for reply in replies))
    return [end - len(reply.data) * byte for end, reply in zip(ends, replies, strict=True)]


@pytest.mark.parametrize("baud", [9600, 57_600, 1_000_000])
def test_broadcast_ping_is_answered_by_id_each_in_its_own_slot(plant: SimPlant, baud: int) -> None:
    plant.servos[50].load(reg.ID, 5)
    plant.refresh()
    for servo in plant.servos.values():
        servo.load(reg.BAUD_RATE, reg.BAUD_CODES[baud])
        servo.load(reg.STATUS_RETURN_LEVEL, 0)  # pings are answered all the same
    replies = ServoChain(plant, NoFaults()).answer(packet(BROADCAST, Instruction.PING), baud)
    assert [reply.servo for reply in replies] == sorted([5, *FINGER_SERVOS])
    for reply, start in zip(replies, starts(replies, baud), strict=True):
        assert start >= reply.servo * 3e-3 - 1e-9
    assert all(reply.delay >= 0 for reply in replies)
    for (first, begun), (_, next_begun) in pairwise(zip(replies, starts(replies, baud), strict=True)):
        assert next_begun >= begun + len(first.data) * 10 / baud


def test_replies_carry_return_delay_and_what_a_fault_adds(
    chain: ServoChain, cable: Cable, plant: SimPlant
) -> None:
    plant.servos[10].load(reg.RETURN_DELAY_TIME, 50)
    cable.damage[10] = lambda whole: (Delivery(whole, 0.02), Delivery(whole[:5]))
    late, short = ask(chain, 10, Instruction.PING)
    assert (late.delay, late.late, short.late) == (pytest.approx(1e-4), 0.02, 0.0)
    assert late.data[:5] == short.data


def test_sync_write_that_renames_a_servo_reaches_the_new_name_in_the_same_packet(
    chain: ServoChain, plant: SimPlant
) -> None:
    ask(chain, BROADCAST, Instruction.SYNC_WRITE, struct.pack("<HH6B", 7, 1, 10, 99, 10, 98, 99, 97))
    assert 97 in plant.servos
    assert not {10, 98, 99} & set(plant.servos)


# --- Through the unmodified SDK ----------------------------------------------------------------------------


class Client:
    """The SDK's port and packet handler, patient with a busy machine."""

    def __init__(self, port: str) -> None:
        self.port: Any = sdk.PortHandler(port)
        self.port.openPort()
        self.port.setBaudRate(BAUD)
        self.wait(800.0)
        self.packets = sdk.PacketHandler(2.0)

    def wait(self, milliseconds: float) -> None:
        self.port.setPacketTimeout = lambda _: self.port.setPacketTimeoutMillis(milliseconds)


@pytest.fixture
def client(plant: SimPlant) -> Iterator[Client]:
    with Emulator(EmulatorConfig(wire=False, return_delay_us=0), plant, camera=False) as emulator:
        client = Client(emulator.port)
        yield client
        client.port.closePort()


def test_sdk_fast_sync_read_gets_what_sync_read_gets(client: Client, plant: SimPlant) -> None:
    for id in IDS:
        plant.servos[id].load(reg.PROFILE_VELOCITY, 7 * id)
        plant.servos[id].load(reg.GOAL_POSITION, -131_073)  # FF FF FD FF: stuffed only in the slow read
    group = sdk.GroupSyncRead(client.port, client.packets, 112, 8)
    for id in IDS:
        group.addParam(id)
    for read in (group.fastSyncRead, group.txRxPacket):
        assert read() == sdk.COMM_SUCCESS
        assert [group.getData(id, 112, 4) for id in IDS] == [7 * id for id in IDS]
        assert {group.getData(id, 116, 4) for id in IDS} == {-131_073 & 0xFFFF_FFFF}


def test_sdk_fast_bulk_read_gets_different_places(client: Client, plant: SimPlant) -> None:
    plant.servos[10].load(reg.PROFILE_VELOCITY, 99)
    group = sdk.GroupBulkRead(client.port, client.packets)
    group.addParam(10, 112, 4)
    group.addParam(50, 146, 1)
    group.addParam(32, 84, 2)
    assert group.fastBulkRead() == sdk.COMM_SUCCESS
    assert [group.getData(id, *place) for id, place in ((10, (112, 4)), (50, (146, 1)))] == [99, 30]
    assert group.getData(32, 84, 2) == 900


def test_sdk_loses_a_whole_fast_read_to_one_silent_servo(client: Client, plant: SimPlant) -> None:
    group = sdk.GroupSyncRead(client.port, client.packets, 132, 4)
    for id in IDS:
        group.addParam(id)
    plant.servos[31].powered = False
    client.wait(60.0)
    assert group.fastSyncRead() == sdk.COMM_RX_CORRUPT


def test_sdk_resets_to_the_factory_and_finds_the_servo_again(client: Client, plant: SimPlant) -> None:
    plant.servos[10].load(reg.TEMPERATURE_LIMIT, 60)
    assert client.packets.factoryReset(client.port, 10, 0x02) == (sdk.COMM_SUCCESS, 0)
    client.wait(20.0)
    while client.packets.ping(client.port, 10)[1] != sdk.COMM_SUCCESS:
        pass  # booting; the test's own timeout bounds it
    assert client.packets.read1ByteTxRx(client.port, 10, 31)[0] == 80


# --- Noise -------------------------------------------------------------------------------------------------

NASTY = np.frombuffer(b"\xff\xff\xfd\x00\xfe\x0a\x01\x55\x80\x7f\xfd\x08", np.uint8)
ADDRESSES = (0, 7, 8, 11, 63, 64, 68, 98, 100, 116, 132, 146, 168, 224, 578, 634, 661, 662, 65_535)
INSTRUCTIONS = (*Instruction, 0x00, 0x0B, 0x9B, 0xFF)


def some_parameters(rng: Generator, instruction: int) -> bytes:
    """Half of them well formed for the instruction, so that noise reaches deep; the others any bytes."""
    address, size = int(rng.choice(ADDRESSES)), int(rng.integers(0, 20))
    if rng.random() < 0.5:
        return rng.bytes(size)
    match instruction:
        case Instruction.READ:
            return struct.pack("<HH", address, size)
        case Instruction.WRITE | Instruction.REG_WRITE:
            return struct.pack("<H", address) + rng.bytes(size)
        case Instruction.SYNC_READ | Instruction.FAST_SYNC_READ:
            return sync(address, size, *rng.choice(IDS, 4).tolist())
        case Instruction.SYNC_WRITE:
            body = b"".join(bytes([int(id)]) + rng.bytes(size) for id in rng.choice(IDS, 3))
            return struct.pack("<HH", address, size) + body
        case Instruction.BULK_READ | Instruction.FAST_BULK_READ:
            return bulk(*((int(id), address, size) for id in rng.choice(IDS, 3)))
        case Instruction.FACTORY_RESET:
            return bytes([int(rng.choice([1, 2, 255, 3]))])
        case Instruction.CLEAR:
            return protocol.MULTI_TURN_KEY
        case Instruction.CONTROL_TABLE_BACKUP:
            return (protocol.STORE_KEY, protocol.RESTORE_KEY)[int(rng.integers(2))]
        case _:
            return b""


def some_packet(rng: Generator) -> bytes:
    """A packet for somebody, in every second case mutated, sometimes plain noise."""
    instruction = int(rng.choice(INSTRUCTIONS))
    raw = bytearray(
        build(int(rng.choice([*IDS, BROADCAST, 1, 99, 255])), instruction, some_parameters(rng, instruction))
    )
    kind = rng.integers(10)
    place = int(rng.integers(len(raw)))
    if kind == 0:
        raw[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del raw[place:]
    elif kind == 2:
        raw[place:place] = rng.choice(NASTY, int(rng.integers(1, 9))).tobytes()
    elif kind == 3:
        raw += raw[place:]
    elif kind == 4:
        raw = bytearray(rng.choice(NASTY, int(rng.integers(1, 30))).tobytes())
    return bytes(raw)


def mend(plant: SimPlant, members: Sequence[Servo]) -> None:
    """Takes back what noise has set, so that the next noise is heard again."""
    for id, servo in zip(IDS, members, strict=True):
        servo.factory_reset(0xFF, plant.now() - 1.0)
        servo.load(reg.ID, id)
        servo.load(reg.BAUD_RATE, reg.BAUD_CODES[BAUD])
    plant.refresh()


def endure_noise(packets: int, seed: int) -> Counter[str]:
    """Feeds noise to parser and servos; counts what was heard and what they answered."""
    rng = np.random.default_rng(seed)
    plant = SimPlant(SimConfig())
    chain, parser, members = ServoChain(plant, NoFaults()), Parser(), tuple(plant.servos.values())
    counts: Counter[str] = Counter()
    for number in range(packets):
        if number % 100 == 0:
            plant.advance_to(plant.now() + 0.01)
            mend(plant, members)
        for found in parser.feed(some_packet(rng)):
            replies = chain.answer(found, BAUD)
            counts.update(heard=1, replies=len(replies))
            if len({servo.id for servo in members}) == len(IDS):  # twins garble each other
                check_replies(found, replies)
        assert parser.pending < protocol.MAX_LENGTH + 7
    return counts


def check_replies(found: Packet, replies: Sequence[Reply]) -> None:
    """Each is a whole packet; those to a fast read are parts of one that may end early."""
    fast = found.instruction in (Instruction.FAST_SYNC_READ, Instruction.FAST_BULK_READ)
    if found.intact and fast:
        assert wired(replies)[:5] in (b"", protocol.HEADER + bytes([BROADCAST]))
        return
    for reply in replies:
        (status,) = Parser().feed(reply.data)
        assert status.intact
        assert (status.instruction, status.servo) == (Instruction.STATUS, reply.servo)
        assert reply.delay >= 0


def test_no_noise_disturbs_parser_or_servos() -> None:
    counts = endure_noise(20_000, seed=1)
    assert counts["heard"] > 10_000
    assert counts["replies"] > 5_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_half_a_million_packets_of_noise_disturb_neither_parser_nor_servos() -> None:
    counts = endure_noise(500_000, seed=2)
    assert counts["heard"] > 250_000
    assert counts["replies"] > 100_000


@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=20))
def test_parser_takes_any_bytes_in_any_pieces(noise: bytes, cuts: list[int]) -> None:
    parser = Parser()
    for cut in [*cuts, len(noise)]:
        for found in parser.feed(noise[:cut]):
            assert 0 <= found.instruction <= 255
        noise = noise[cut:]
    parser.reset()
    assert [found.servo for found in parser.feed(build(7, Instruction.PING))] == [7]
