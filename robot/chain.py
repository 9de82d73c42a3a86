"""Servos of a plant as Protocol 2.0 slaves: instruction packets in, status packets out. No port, no time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from robot import protocol
from robot import registers as reg
from robot.protocol import ErrorNumber, Instruction, Packet
from robot.servo import BACKUP_FIRMWARE, FACTORY_RESETS, AccessError, Servo
from robot.sim import SimPlant

Servos = Sequence[Servo]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A status packet as it reaches the adapter, `delay` seconds later than a healthy one."""

    data: bytes
    delay: float = 0.0


class Faults(Protocol):
    """What may go wrong on the wire."""

    def filter(self, reply: bytes, servo: int) -> Sequence[Delivery]:
        """A servo's reply as it reaches the adapter: nothing when it is lost, several when it is repeated.

        Of a fast read each servo's part is a reply of its own; after one that is lost or shortened the
        servos behind it stay silent, because they wait for its bytes.
        """
        ...


class NoFaults:
    """A perfect cable."""

    def filter(self, reply: bytes, servo: int) -> Sequence[Delivery]:
        """The reply unchanged."""
        return (Delivery(reply),)


@dataclass(frozen=True, slots=True)
class Reply:
    """One status packet, or one servo's part of one, and when it is sent."""

    servo: int
    data: bytes
    delay: float  # s that the line was idle before, by the servo's own will
    late: float = 0.0  # s on top, by a fault


@dataclass(frozen=True, slots=True)
class Ask:
    """What a packet wants to read of one servo."""

    id: int
    address: int
    size: int


class ServoChain:
    """The servos of a plant as Protocol 2.0 slaves: an instruction packet in, status packets out.

    Registers decide as in the firmware: who hears (id 7, baud 8), who waits how long (return delay 9),
    who answers what (status return level 68), and the alert bit of every answer (hardware error 70).
    Servos with one id all obey; their answers collide as `protocol.collide` has it.
    """

    def __init__(self, plant: SimPlant, faults: Faults) -> None:
        """The ids of the plant's servos must differ now; later they may be told otherwise."""
        self._plant = plant
        self._faults = faults
        self._members: Servos = tuple(plant.servos.values())
        self._handlers: dict[int, Callable[[Packet, Servos], list[Reply]]] = {
            Instruction.PING: self._ping,
            Instruction.READ: self._read,
            Instruction.WRITE: self._write,
            Instruction.REG_WRITE: self._reg_write,
            Instruction.ACTION: self._action,
            Instruction.FACTORY_RESET: self._factory_reset,
            Instruction.REBOOT: self._reboot,
            Instruction.CLEAR: self._clear,
            Instruction.CONTROL_TABLE_BACKUP: self._back_up,
            Instruction.SYNC_READ: self._sync_read,
            Instruction.SYNC_WRITE: self._sync_write,
            Instruction.FAST_SYNC_READ: self._fast_sync_read,
            Instruction.BULK_READ: self._bulk_read,
            Instruction.BULK_WRITE: self._bulk_write,
            Instruction.FAST_BULK_READ: self._fast_bulk_read,
        }

    def answer(self, packet: Packet, baud: int) -> list[Reply]:
        """What the servos send back, in the order on the wire; nothing at a baud rate that is not theirs."""
        listening = [servo for servo in self._members if self._hears(servo, packet.servo, baud)]
        if not listening or packet.instruction == Instruction.STATUS:
            return []
        if not packet.intact:
            return self._each(packet, listening, lambda _: ErrorNumber.CHECKSUM_ERROR)
        handler = self._handlers.get(packet.instruction, self._unknown)
        replies = handler(packet, listening)
        broadcast_ping = packet.instruction == Instruction.PING and packet.servo == protocol.BROADCAST
        return list(self._take_turns(replies, baud)) if broadcast_ping else replies

    # --- Instructions to one servo, or by broadcast to all without an answer --------------------------------

    def _unknown(self, packet: Packet, listening: Servos) -> list[Reply]:
        return self._each(packet, listening, lambda _: ErrorNumber.INSTRUCTION_ERROR)

    def _ping(self, packet: Packet, listening: Servos) -> list[Reply]:
        replies = []
        for id in sorted({servo.id for servo in listening}):
            said = []
            for servo in _with_id(id, listening):
                identity = self._fetch(servo, reg.MODEL_NUMBER.address, 2)
                firmware = self._fetch(servo, reg.FIRMWARE_VERSION.address, 1)
                said.append((servo, _status(servo, id, ErrorNumber.NONE, identity + firmware)))
            replies += self._together(id, said)
        return replies

    def _read(self, packet: Packet, listening: Servos) -> list[Reply]:
        if packet.servo == protocol.BROADCAST or len(packet.parameters) != 4:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        address, size = _words(packet.parameters)
        return self._read_one(Ask(packet.servo, address, size), listening)

    def _write(self, packet: Packet, listening: Servos) -> list[Reply]:
        if len(packet.parameters) < 3:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        (address,), data = _words(packet.parameters[:2]), packet.parameters[2:]
        return self._each(packet, listening, lambda servo: self._store(servo, address, data))

    def _reg_write(self, packet: Packet, listening: Servos) -> list[Reply]:
        if len(packet.parameters) < 3:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        (address,), data = _words(packet.parameters[:2]), packet.parameters[2:]

        def keep(servo: Servo) -> int:
            servo.register(address, data)
            return ErrorNumber.NONE

        return self._each(packet, listening, keep)

    def _action(self, packet: Packet, listening: Servos) -> list[Reply]:
        def act(servo: Servo) -> int:
            waiting = servo.registered()
            return self._store(servo, *waiting) if waiting else ErrorNumber.INSTRUCTION_ERROR

        return self._each(packet, listening, act)

    def _reboot(self, packet: Packet, listening: Servos) -> list[Reply]:
        return self._restart(packet, listening, lambda servo, now: servo.reboot(now))

    def _factory_reset(self, packet: Packet, listening: Servos) -> list[Reply]:
        if len(packet.parameters) != 1:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        (option,) = packet.parameters
        if option not in FACTORY_RESETS:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_RANGE_ERROR)
        if packet.servo == protocol.BROADCAST and not FACTORY_RESETS[option]:
            listening = [servo for servo in listening if servo.firmware < 42]  # since then they refuse
        return self._restart(packet, listening, lambda servo, now: servo.factory_reset(option, now))

    def _clear(self, packet: Packet, listening: Servos) -> list[Reply]:
        if packet.parameters != protocol.MULTI_TURN_KEY:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        self._measure(listening)
        replies = self._each(packet, listening, Servo.clear_turns)
        self._plant.refresh()
        return replies

    def _back_up(self, packet: Packet, listening: Servos) -> list[Reply]:
        if any(servo.firmware < BACKUP_FIRMWARE for servo in listening):
            return self._unknown(packet, listening)
        if packet.parameters == protocol.STORE_KEY:
            return self._each(packet, listening, Servo.back_up)
        if packet.parameters != protocol.RESTORE_KEY:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        able = [servo for servo in listening if servo.restorable]
        unable = [servo for servo in listening if not servo.restorable]
        replies = self._each(packet, unable, lambda _: ErrorNumber.RESULT_FAIL)
        return replies + self._restart(packet, able, Servo.restore)

    def _restart(
        self, packet: Packet, listening: Servos, restart: Callable[[Servo, float], None]
    ) -> list[Reply]:
        """Servos say their last word before the dark, then restart."""
        replies = self._each(packet, listening, lambda _: ErrorNumber.NONE)
        self._measure(listening)
        for servo in listening:
            restart(servo, self._plant.now())
        self._plant.refresh()
        return replies

    # --- Instructions that list their servos ----------------------------------------------------------------

    def _sync_read(self, packet: Packet, listening: Servos) -> list[Reply]:
        return [reply for ask in _sync_asks(packet) for reply in self._read_one(ask, listening)]

    def _bulk_read(self, packet: Packet, listening: Servos) -> list[Reply]:
        return [reply for ask in _bulk_asks(packet) for reply in self._read_one(ask, listening)]

    def _fast_sync_read(self, packet: Packet, listening: Servos) -> list[Reply]:
        return self._read_fast(_sync_asks(packet), listening)

    def _fast_bulk_read(self, packet: Packet, listening: Servos) -> list[Reply]:
        return self._read_fast(_bulk_asks(packet), listening)

    def _read_fast(self, asks: Sequence[Ask], listening: Servos) -> list[Reply]:
        """One packet of which each servo sends its part; it ends before the first that is silent."""
        try:
            head = protocol.fast_header([ask.size for ask in asks])
        except ValueError:
            return []  # no servo can answer this
        replies: list[Reply] = []
        crc = protocol.crc16(head)
        for ask in asks:
            able = [servo for servo in _with_id(ask.id, listening) if _answers_fast(servo)]
            if not able:
                break
            part = protocol.collide([self._fast_part(servo, ask, crc) for servo in able])
            crc = protocol.crc16(part, crc)
            heard = self._deliver(ask.id, head + part, _return_delay(able) if head else 0.0)
            replies += heard
            # The next servo counts the bytes on the line. It heard them right even where the adapter does
            # not: only so does the last checksum, the one that hosts look at, give a garbled part away.
            if not any(len(reply.data) >= len(head + part) for reply in heard):
                break
            head = b""
        return replies

    def _fast_part(self, servo: Servo, ask: Ask, crc: int) -> bytes:
        """Error, id, data and the checksum of all that was sent so far; zeros for what cannot be read."""
        number, data = self._look(servo, ask)
        part = bytes([number | _alert(servo), ask.id]) + data.ljust(ask.size, b"\0")
        return part + protocol.crc16(part, crc).to_bytes(2, "little")

    def _sync_write(self, packet: Packet, listening: Servos) -> list[Reply]:
        address, size = _words(packet.parameters[:4]) if len(packet.parameters) > 4 else (0, 0)
        entries = packet.parameters[4:]
        if size and len(entries) % (size + 1) == 0:
            for start in range(0, len(entries), size + 1):
                data = entries[start + 1 : start + 1 + size]
                for servo in _with_id(entries[start], listening):
                    self._store(servo, address, data)
        return []

    def _bulk_write(self, packet: Packet, listening: Servos) -> list[Reply]:
        rest = packet.parameters
        while len(rest) > 5:
            id, (address, size), rest = rest[0], _words(rest[1:5]), rest[5:]
            if len(rest) >= size:
                for servo in _with_id(id, listening):
                    self._store(servo, address, rest[:size])
            rest = rest[size:]
        return []

    # --- Servos ---------------------------------------------------------------------------------------------

    def _hears(self, servo: Servo, id: int, baud: int) -> bool:
        """Meant, powered, booted, and at the speed of the line."""
        if id not in (servo.id, protocol.BROADCAST) or not servo.answers(self._plant.now()):
            return False
        return servo.value(reg.BAUD_RATE) == reg.BAUD_CODES.get(baud)

    def _each(self, packet: Packet, listening: Servos, act: Callable[[Servo], int]) -> list[Reply]:
        """Every listener acts and answers with the error number that comes of it; nobody to a broadcast."""
        numbers = [act(servo) for servo in listening]
        if packet.servo == protocol.BROADCAST:
            return []
        said = [
            (servo, _status(servo, packet.servo, number))
            for servo, number in zip(listening, numbers, strict=True)
            if servo.value(reg.STATUS_RETURN_LEVEL) == 2
        ]
        return self._together(packet.servo, said)

    def _read_one(self, ask: Ask, listening: Servos) -> list[Reply]:
        said = [
            (servo, _status(servo, ask.id, *self._look(servo, ask)))
            for servo in _with_id(ask.id, listening)
            if servo.value(reg.STATUS_RETURN_LEVEL) >= 1
        ]
        return self._together(ask.id, said)

    def _look(self, servo: Servo, ask: Ask) -> tuple[int, bytes]:
        """The error number and the data of a read."""
        try:
            return ErrorNumber.NONE, self._fetch(servo, ask.address, ask.size)
        except AccessError as error:
            return error.number, b""

    def _fetch(self, servo: Servo, address: int, size: int) -> bytes:
        """Bytes of a servo's table, fresh from the plant unless another servo has taken its id.

        Raises AccessError.
        """
        if self._known(servo):
            return self._plant.read_memory(servo.id, address, size)
        servo.feed_watchdog(self._plant.now())
        return servo.read(address, size)

    def _store(self, servo: Servo, address: int, data: bytes) -> int:
        """Writes to a servo's table and has its motor follow; returns the error number."""
        if self._known(servo):
            return self._plant.write_memory(servo.id, address, data)
        number = servo.write(address, data, self._plant.now())
        self._plant.refresh()
        return number

    def _measure(self, listening: Servos) -> None:
        """Has the plant bring tables up to date: what restarts forgets turns by what its encoder shows."""
        for servo in listening:
            self._fetch(servo, reg.PRESENT_POSITION.address, reg.PRESENT_POSITION.size)

    def _known(self, servo: Servo) -> bool:
        """True for a servo that the plant finds by its id; of several with one id it finds one."""
        return self._plant.servos.get(servo.id) is servo

    # --- Answers --------------------------------------------------------------------------------------------

    def _together(self, id: int, said: Sequence[tuple[Servo, bytes]]) -> list[Reply]:
        """The answers of all servos with one id, which come at one time."""
        if not said:
            return []
        delay = _return_delay([servo for servo, _ in said])
        return self._deliver(id, protocol.collide([raw for _, raw in said]), delay)

    def _deliver(self, id: int, raw: bytes, delay: float) -> list[Reply]:
        deliveries = self._faults.filter(raw, id)
        return [Reply(id, delivery.data, delay, delivery.delay) for delivery in deliveries]

    def _take_turns(self, replies: Sequence[Reply], baud: int) -> Iterator[Reply]:
        """The answers to a broadcast ping: each in the time slot of its id, or once the line is free."""
        slot = self._members[0].config.ping_slot
        now = 0.0
        for reply in replies:
            delay = max(reply.delay, reply.servo * slot - now)
            now += delay + reply.late + len(reply.data) * protocol.BITS_PER_BYTE / baud
            yield replace(reply, delay=delay)


def _with_id(id: int, listening: Servos) -> list[Servo]:
    return [servo for servo in listening if servo.id == id]


def _alert(servo: Servo) -> int:
    return protocol.ALERT if servo.alert else 0


def _status(servo: Servo, id: int, number: int, data: bytes = b"") -> bytes:
    return protocol.build_status(id, number | _alert(servo), data)


def _return_delay(servos: Servos) -> float:
    """Seconds on an idle line before the first of these servos answers."""
    return reg.RETURN_DELAY_TIME.to_si(min(servo.value(reg.RETURN_DELAY_TIME) for servo in servos))


def _answers_fast(servo: Servo) -> bool:
    return servo.reads_fast and servo.value(reg.STATUS_RETURN_LEVEL) >= 1


def _sync_asks(packet: Packet) -> list[Ask]:
    """The same place in each of the servos that a sync read lists."""
    if len(packet.parameters) < 5:
        return []
    address, size = _words(packet.parameters[:4])
    return [Ask(id, address, size) for id in packet.parameters[4:]]


def _bulk_asks(packet: Packet) -> list[Ask]:
    """A place of its own in each of the servos that a bulk read lists."""
    entries = struct.iter_unpack("<BHH", packet.parameters[: len(packet.parameters) // 5 * 5])
    return [Ask(*entry) for entry in entries]


def _words(data: bytes) -> tuple[int, ...]:
    """Little-endian 16-bit numbers."""
    return struct.unpack(f"<{len(data) // 2}H", data)
