"""Servos of a plant as Protocol 2.0 slaves: instruction packets in, status packets out. No port, no time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from robot import protocol
from robot import registers as reg
from robot.protocol import ErrorNumber, Instruction, Packet
from robot.servo import AccessError, Servo
from robot.sim import SimPlant

RETURN_DELAY_UNIT = 2e-6  # s, register 9
Listeners = Mapping[int, Servo]  # who hears a packet, by the id that it was sent to


class Faults(Protocol):
    """What may go wrong on the wire."""

    def filter(self, reply: bytes, servo: int) -> bytes | None:
        """A servo's reply as it reaches the adapter: unchanged, garbled, or None when it is lost."""
        ...


class NoFaults:
    """A perfect cable."""

    def filter(self, reply: bytes, servo: int) -> bytes | None:
        """The reply unchanged."""
        return reply


@dataclass(frozen=True, slots=True)
class Reply:
    """One status packet and how long its servo waited on an idle line before sending it, s."""

    servo: int
    data: bytes
    delay: float


class ServoChain:
    """The servos of a plant as Protocol 2.0 slaves: an instruction packet in, status packets out.

    Registers decide as in the firmware: who hears (id 7, baud 8), who waits how long (return delay 9),
    who answers what (status return level 68), and the alert bit of every answer (hardware error 70).
    Not emulated, and refused as unknown instructions: factory reset, control table backup, fast reads.
    """

    def __init__(self, plant: SimPlant, faults: Faults) -> None:
        self._plant = plant
        self._faults = faults
        self._registered: dict[int, tuple[int, bytes]] = {}  # servo -> (address, data) that waits for Action
        self._handlers: dict[int, Callable[[Packet, Listeners], list[Reply]]] = {
            Instruction.PING: self._ping,
            Instruction.READ: self._read,
            Instruction.WRITE: self._write,
            Instruction.REG_WRITE: self._reg_write,
            Instruction.ACTION: self._action,
            Instruction.REBOOT: self._reboot,
            Instruction.CLEAR: self._clear,
            Instruction.SYNC_READ: self._sync_read,
            Instruction.SYNC_WRITE: self._sync_write,
            Instruction.BULK_READ: self._bulk_read,
            Instruction.BULK_WRITE: self._bulk_write,
        }

    def answer(self, packet: Packet, baud: int) -> list[Reply]:
        """What the servos send back, in the order on the wire; nothing at a baud rate that is not theirs."""
        heard_by = self._plant.servos if packet.servo == protocol.BROADCAST else (packet.servo,)
        listening = {id: self._plant.servos[id] for id in heard_by if self._hears(id, baud)}
        if not listening or packet.instruction == Instruction.STATUS:
            return []
        if not packet.intact:
            return self._each(packet, listening, lambda _: ErrorNumber.CHECKSUM_ERROR)
        handler = self._handlers.get(packet.instruction)
        if handler is None:
            return self._each(packet, listening, lambda _: ErrorNumber.INSTRUCTION_ERROR)
        return handler(packet, listening)

    # --- Instructions to one servo, or by broadcast to all without an answer --------------------------------

    def _ping(self, packet: Packet, listening: Listeners) -> list[Reply]:
        replies = []
        for id, servo in listening.items():
            identity = self._plant.read_memory(id, reg.MODEL_NUMBER.address, 2)
            firmware = self._plant.read_memory(id, reg.FIRMWARE_VERSION.address, 1)
            replies += self._status(id, servo, ErrorNumber.NONE, identity + firmware, level=0)
        return replies

    def _read(self, packet: Packet, listening: Listeners) -> list[Reply]:
        if packet.servo == protocol.BROADCAST or len(packet.parameters) != 4:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        return self._read_one(packet.servo, listening, *_words(packet.parameters))

    def _write(self, packet: Packet, listening: Listeners) -> list[Reply]:
        if len(packet.parameters) < 3:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        (address,), data = _words(packet.parameters[:2]), packet.parameters[2:]
        return self._each(packet, listening, lambda id: self._plant.write_memory(id, address, data))

    def _reg_write(self, packet: Packet, listening: Listeners) -> list[Reply]:
        if len(packet.parameters) < 3:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        (address,), data = _words(packet.parameters[:2]), packet.parameters[2:]
        self._registered.update(dict.fromkeys(listening, (address, data)))
        return self._each(packet, listening, lambda _: ErrorNumber.NONE)

    def _action(self, packet: Packet, listening: Listeners) -> list[Reply]:
        waiting = {id: servo for id, servo in listening.items() if id in self._registered}
        return self._each(packet, waiting, lambda id: self._plant.write_memory(id, *self._registered.pop(id)))

    def _reboot(self, packet: Packet, listening: Listeners) -> list[Reply]:
        replies = self._each(packet, listening, lambda _: ErrorNumber.NONE)  # the last word before the dark
        for id in listening:
            self._registered.pop(id, None)
            self._plant.reboot(id)
        return replies

    def _clear(self, packet: Packet, listening: Listeners) -> list[Reply]:
        if packet.parameters != protocol.MULTI_TURN_KEY:
            return self._each(packet, listening, lambda _: ErrorNumber.DATA_LENGTH_ERROR)
        return self._each(packet, listening, self._clear_turns)

    def _clear_turns(self, id: int) -> int:
        """Setting the operating mode anew has the same effect and, as Clear, needs a motor at rest."""
        mode = self._plant.servos[id].value(reg.OPERATING_MODE)
        refused = self._plant.write_memory(id, reg.OPERATING_MODE.address, bytes([mode]))
        return ErrorNumber.RESULT_FAIL if refused else ErrorNumber.NONE

    # --- Instructions that list their servos ----------------------------------------------------------------

    def _sync_read(self, packet: Packet, listening: Listeners) -> list[Reply]:
        if len(packet.parameters) < 5:
            return []
        address, size = _words(packet.parameters[:4])
        asked = [id for id in packet.parameters[4:] if id in listening]
        return [reply for id in asked for reply in self._read_one(id, listening, address, size)]

    def _sync_write(self, packet: Packet, listening: Listeners) -> list[Reply]:
        address, size = _words(packet.parameters[:4]) if len(packet.parameters) > 4 else (0, 0)
        entries = packet.parameters[4:]
        if size and len(entries) % (size + 1) == 0:
            for start in range(0, len(entries), size + 1):
                if entries[start] in listening:
                    data = entries[start + 1 : start + 1 + size]
                    self._plant.write_memory(entries[start], address, data)
        return []

    def _bulk_read(self, packet: Packet, listening: Listeners) -> list[Reply]:
        replies = []
        for start in range(0, len(packet.parameters) - 4, 5):
            id, place = packet.parameters[start], _words(packet.parameters[start + 1 : start + 5])
            if id in listening:
                replies += self._read_one(id, listening, *place)
        return replies

    def _bulk_write(self, packet: Packet, listening: Listeners) -> list[Reply]:
        rest = packet.parameters
        while len(rest) > 5:
            id, (address, size), rest = rest[0], _words(rest[1:5]), rest[5:]
            if id in listening and len(rest) >= size:
                self._plant.write_memory(id, address, rest[:size])
            rest = rest[size:]
        return []

    # --- One servo -----------------------------------------------------------------------------------------

    def _hears(self, id: int, baud: int) -> bool:
        """There, powered, booted, and at the speed of the line."""
        servo = self._plant.servos.get(id)
        if servo is None or not servo.answers(self._plant.now()):
            return False
        return servo.value(reg.BAUD_RATE) == reg.BAUD_CODES.get(baud)

    def _each(self, packet: Packet, listening: Listeners, act: Callable[[int], int]) -> list[Reply]:
        """Every listener acts and answers with the error number that comes of it; nobody to a broadcast."""
        replies = []
        for id, servo in listening.items():
            number = act(id)
            if packet.servo != protocol.BROADCAST:
                replies += self._status(id, servo, number, level=2)
        return replies

    def _read_one(self, id: int, listening: Listeners, address: int, size: int) -> list[Reply]:
        try:
            data = self._plant.read_memory(id, address, size)
        except AccessError as error:
            return self._status(id, listening[id], error.number, level=1)
        return self._status(id, listening[id], ErrorNumber.NONE, data, level=1)

    def _status(self, id: int, servo: Servo, number: int, data: bytes = b"", *, level: int) -> list[Reply]:
        """At most one status packet: a servo may be told to answer only pings (0), or reads as well (1)."""
        if servo.value(reg.STATUS_RETURN_LEVEL) < level:
            return []
        alert = protocol.ALERT if servo.alert else 0
        raw = self._faults.filter(protocol.build_status(id, number | alert, data), id)
        delay = servo.value(reg.RETURN_DELAY_TIME) * RETURN_DELAY_UNIT
        return [] if raw is None else [Reply(id, raw, delay)]


def _words(data: bytes) -> tuple[int, ...]:
    """Little-endian 16-bit numbers."""
    return struct.unpack(f"<{len(data) // 2}H", data)
