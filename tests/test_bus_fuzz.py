"""Whatever comes over the wire, the driver returns what a servo sent or raises a fault, and in bounded time.

Damaged and forged status packets meet the real SDK and the real driver at pyserial's seam, in virtual time:
over a terminal as many would take hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
import serial
from dynamixel_sdk.protocol2_packet_handler import Protocol2PacketHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from robot import registers as reg
from robot.bus import BusConfig, SerialBus, _Packets, _Port
from robot.protocol import (
    BROADCAST,
    HEADER,
    Instruction,
    Packet,
    Parser,
    build,
    build_status,
    crc16,
    fast_header,
)
from robot.sim import FINGER_SERVOS, VALVE_SERVO
from robot.types import Fault, ServoSilent
from tests.line import PORT, Arrivals, VirtualLine, open_bus

IDS = (*FINGER_SERVOS, VALVE_SERVO)
MODEL = (1010).to_bytes(2, "little") + b"\x2d"
LONGEST = 0.2  # s that any one call may take: all tries of two blocks, and the wait for old answers before it
CHANCE = 1e-4  # of damaged packets that may pass for whole: 2^-16 do by the design of the checksum


def memory(servo: int) -> bytes:
    """All that a servo holds: any bytes, but FF and FD more often than their share."""
    likely = [0xFF, 0xFF, 0xFF, 0xFD, 0xFD, *range(0, 256, 16)]
    return bytes(np.random.default_rng(servo).choice(likely, reg.TABLE_SIZE).astype(np.uint8))


MEMORY = {servo: memory(servo) for servo in IDS}


def look(servo: int, address: int, size: int) -> bytes:
    return MEMORY[servo][address : address + size]


def answers(packet: Packet) -> list[bytes]:
    """The status packets of healthy servos."""
    words = [int.from_bytes(packet.parameters[i : i + 2], "little") for i in (0, 2)]
    match packet.instruction:
        case Instruction.PING:
            asked = IDS if packet.servo == BROADCAST else (packet.servo,)
            return [build_status(servo, 0, MODEL) for servo in asked]
        case Instruction.READ:
            return [build_status(packet.servo, 0, look(packet.servo, *words))]
        case Instruction.SYNC_READ:
            return [build_status(servo, 0, look(servo, *words)) for servo in packet.parameters[4:]]
        case Instruction.FAST_SYNC_READ:
            return [fast_answer(packet.parameters[4:], *words)]
        case Instruction.SYNC_WRITE:
            return []
        case _:
            return [build_status(packet.servo, 0)]


def fast_answer(servos: bytes, address: int, size: int) -> bytes:
    """The one status packet of a fast read."""
    packet = fast_header([size] * len(servos))
    for servo in servos:
        packet += bytes([0, servo]) + look(servo, address, size)
        packet += crc16(packet).to_bytes(2, "little")
    return packet


@dataclass
class Trouble:
    """Damages status packets; `forged` ones carry the checksum that fits, so that the parser goes on."""

    rng: np.random.Generator
    share: float = 0.5  # of packets that are damaged
    forged: bool = False
    packets: int = 0
    kinds: list[Callable[[bytearray], object]] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = [self._flip, self._cut, self._drop, self._insert, self._resize, self._overwrite]

    def answer(self, now: float, request: bytes) -> Arrivals:
        """What comes back instead of what was sent: the same bytes in pieces, delayed, repeated, damaged."""
        (packet,) = Parser().feed(request)
        healthy = answers(packet)
        self.packets += len(healthy)
        damaged = [piece for raw in healthy for piece in self._suffer(raw)]
        return list(self._deliver(now, damaged))

    def _deliver(self, now: float, packets: list[bytes]) -> Iterator[tuple[float, bytes]]:
        for raw in packets:
            now += len(raw) * 1e-5 + (self.rng.random() < 0.01) * self.rng.exponential(0.02)
            yield now, raw

    def _suffer(self, raw: bytes) -> list[bytes]:
        if self.rng.random() > self.share:
            return [raw]
        how = self.rng.integers(len(self.kinds) + 3)
        if how < len(self.kinds):
            damaged = bytearray(raw)
            for _ in range(self.rng.integers(1, 4)):
                self.kinds[how](damaged)
            return [self._forge(damaged) if self.forged else bytes(damaged)]
        return [[], [raw, raw], [self._noise(), raw]][how - len(self.kinds)]

    def _forge(self, packet: bytearray) -> bytes:
        """The same with a true length, now and then, and the right checksum."""
        if len(packet) >= 9 and self.rng.random() < 0.7:
            packet[5:7] = (len(packet) - 7).to_bytes(2, "little")
        return bytes(packet[:-2]) + crc16(bytes(packet[:-2])).to_bytes(2, "little")

    def _noise(self) -> bytes:
        """Random bytes among which headers are frequent."""
        pieces = [HEADER, HEADER[:3], b"\xff\xff", b"\xff", b"\xfd", b"\x55", b"\x00", b"\x0a\x04\x00\x55"]
        chosen = self.rng.integers(len(pieces) + 1, size=self.rng.integers(1, 12))
        return b"".join([*pieces, self.rng.bytes(3)][n] for n in chosen)

    def _place(self, packet: bytearray) -> int:
        return int(self.rng.integers(len(packet) + 1))

    def _flip(self, packet: bytearray) -> None:
        if packet:
            packet[self._place(packet) - 1] ^= 1 << self.rng.integers(8)

    def _cut(self, packet: bytearray) -> None:
        del packet[self._place(packet) :]

    def _drop(self, packet: bytearray) -> None:
        start = self._place(packet)
        del packet[start : start + self.rng.integers(1, 4)]

    def _insert(self, packet: bytearray) -> None:
        start = self._place(packet)
        packet[start:start] = self._noise()

    def _resize(self, packet: bytearray) -> None:
        sizes = (0, 1, 2, 3, 4, 5, 7, 20, 255, 1017, 1018, 1024, 1025, 65535)
        packet[5:7] = int(self.rng.choice(sizes)).to_bytes(2, "little")

    def _overwrite(self, packet: bytearray) -> None:
        start = self._place(packet)
        noise = self._noise()
        packet[start : start + len(noise)] = noise


Values = list[tuple[int, int]]  # what was returned, and what is true


def ask(bus: SerialBus, rng: np.random.Generator) -> Values:
    """One random request. Raises Fault."""
    servo = int(rng.choice(IDS))
    match rng.integers(10):
        case 0:
            return [(model, 1010) for model in bus.ping((servo,)).values()]
        case 1:
            return [(bus.read(reg.PRESENT_POSITION, servo), truth(reg.PRESENT_POSITION, servo))]
        case 2:
            bus.write(reg.LED, servo, 1)
        case 3:
            bus.reboot(servo)
        case 4 | 5:
            return ask_all(bus, (reg.LED, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION))
        case _:
            bus._gathered = dict.fromkeys(IDS, reg.CYCLE)
            bus._fast = set(IDS) if rng.random() < 0.5 else set()
            return ask_all(bus, reg.CYCLE)
    return []


def ask_all(bus: SerialBus, registers: tuple[reg.Register, ...]) -> Values:
    try:
        servos, reading = IDS, bus.sync_read(registers, IDS)
    except ServoSilent as silent:
        servos, reading = silent.answered, silent.reading
    assert reading is not None
    true = [value for servo in servos for value in true_row(registers, servo)]
    return list(zip(reading.values.ravel().tolist(), true, strict=True))


def true_row(registers: tuple[reg.Register, ...], servo: int) -> list[int]:
    if registers != reg.CYCLE:
        return [truth(register, servo) for register in registers]
    place = reg.INDIRECT_DATA[0].address
    row = []
    for register in registers:
        row.append(truth(register, servo, place))
        place += register.size
    return row


def truth(register: reg.Register, servo: int, place: int | None = None) -> int:
    raw = look(servo, register.address if place is None else place, register.size)
    return register.decode(raw)


def fuzz(trouble: Trouble, packets: int) -> tuple[SerialBus, Values]:
    """Asks until so many packets have come back; returns what was wrong among the values."""
    line = VirtualLine(trouble.answer)
    bus = open_bus(line)
    wrong = []
    while trouble.packets < packets:
        start = line.clock.now()
        with suppress(Fault):
            wrong += [(seen, true) for seen, true in ask(bus, trouble.rng) if seen != true]
        assert line.clock.now() - start < LONGEST
        assert not bus.statistics()["port_losses"]
    return bus, wrong


PACKETS = [4_000, pytest.param(250_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


@pytest.mark.parametrize("packets", PACKETS)
def test_no_damage_makes_a_number_or_catches_the_driver(packets: int) -> None:
    bus, wrong = fuzz(Trouble(np.random.default_rng(1)), packets)
    assert len(wrong) <= CHANCE * packets
    counts = bus.statistics()
    assert counts["crc_errors"] > packets / 50
    assert counts["lost"] > packets / 50
    assert counts["fast_reads"] > packets / 100


@pytest.mark.parametrize("packets", PACKETS)
def test_no_forgery_raises_anything_but_faults_or_catches_the_driver(packets: int) -> None:
    bus, _ = fuzz(Trouble(np.random.default_rng(2), forged=True), packets)
    assert bus.statistics()["retries"] > packets / 50


class SdkAlone(_Packets):
    """The SDK's own parser for every packet."""

    rxPacket = Protocol2PacketHandler.rxPacket  # noqa: N815


def parsed(packets: _Packets, arrivals: Arrivals, fast: bool) -> list[tuple[bytes, int]]:
    """All that comes, with the SDK's results."""
    line = VirtualLine(lambda now, request: arrivals)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serial, "Serial", line)
        port = _Port(BusConfig(port=PORT, timeout_ms=500), line.clock)
        port.setBaudRate(1_000_000)
    port.send(b"?")
    port.await_answers(0, 0.0)
    found = []
    while not port.silent:
        packet, result = packets.rxPacket(port, fast)
        found.append((bytes(packet), result))
    return found


@pytest.mark.parametrize("instruction", [Instruction.SYNC_READ, Instruction.FAST_SYNC_READ])
@pytest.mark.parametrize("forged", [False, True], ids=["damaged", "forged"])
def test_whole_packets_are_found_as_the_sdk_finds_them(instruction: Instruction, forged: bool) -> None:
    trouble = Trouble(np.random.default_rng(3), forged=forged)
    request = build(BROADCAST, instruction, bytes([100, 0, 16, 0, *IDS]))
    for _ in range(40):
        arrivals = trouble.answer(0.0, request)
        for fast in (False, True):
            assert parsed(_Packets(), arrivals, fast) == parsed(SdkAlone(), arrivals, fast)


@settings(max_examples=300, deadline=None)
@given(data=st.lists(st.sampled_from([0xFF, 0xFD, 0x00]), min_size=10, max_size=10))
def test_any_bytes_of_a_servo_arrive_as_they_are(data: list[int]) -> None:
    """Stuffed or not: also two stuffed places in one packet, and what only looks stuffed behind one."""
    raw = bytes(data)
    line = VirtualLine(lambda now, request: [(now, build_status(10, 0, raw))])
    bus = open_bus(line, BusConfig(retries=0))
    reading = bus.sync_read((reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION), (10,))
    parts = (raw[0:2], raw[2:6], raw[6:10])
    assert reading.values.tolist() == [[int.from_bytes(part, "little", signed=True) for part in parts]]
