"""Dynamixel Protocol 2.0 packets: build, parse, checksum, byte stuffing. No input or output.

Source: ROBOTIS e-Manual, "Protocol 2.0". A packet on the wire is, little endian,
`FF FF FD 00 | id | length (2) | instruction | parameters ... | CRC (2)`; length counts from the instruction
to the CRC. A status packet has instruction 0x55 and an error byte before its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import fastcrc

HEADER = b"\xff\xff\xfd\x00"
BROADCAST = 0xFE
MAX_LENGTH = 1024  # bytes; a longer length field is noise (the SDK refuses to send more)
STATUS_OVERHEAD = 11  # bytes without data: header 4, id 1, length 2, instruction 1, error 1, CRC 2
ALERT = 0x80  # bit of the error byte: the servo has a pending hardware error
BITS_PER_BYTE = 10  # on the wire: start, 8 data, stop
MULTI_TURN_KEY = b"\x01DXL\x22"  # parameters that a Clear instruction must carry
STORE_KEY, RESTORE_KEY = b"\x01CTRL", b"\x02CTRL"  # parameters of a Control Table Backup


class Instruction(IntEnum):
    """What a packet asks for; STATUS is the answer."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    FACTORY_RESET = 0x06
    REBOOT = 0x08
    CLEAR = 0x10
    CONTROL_TABLE_BACKUP = 0x20
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A
    BULK_READ = 0x92
    BULK_WRITE = 0x93
    FAST_BULK_READ = 0x9A


class ErrorNumber(IntEnum):
    """Why a servo refused; the low seven bits of a status packet's error byte."""

    NONE = 0
    RESULT_FAIL = 1
    INSTRUCTION_ERROR = 2
    CHECKSUM_ERROR = 3
    DATA_RANGE_ERROR = 4
    DATA_LENGTH_ERROR = 5
    DATA_LIMIT_ERROR = 6
    ACCESS_ERROR = 7


def describe_refusal(error: int) -> str:
    """The error byte of a status packet in words, alert bit aside: 'access error (0x07)'."""
    number = error & ~ALERT
    names = {member.value: member.name for member in ErrorNumber}
    words = names.get(number, "UNKNOWN_ERROR").lower().replace("_", " ")
    return f"{words} (0x{number:02x})"


def crc16(data: bytes, crc: int = 0) -> int:
    """The checksum of the protocol (CRC-16/UMTS: polynomial 0x8005, start 0, not reflected)."""
    return fastcrc.crc16.umts(data, crc)


def stuff(body: bytes) -> bytes:
    """Keeps FF FF FD out of a packet's body by a fourth byte FD, so that no body looks like a header."""
    return body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")


def destuff(body: bytes) -> bytes:
    """Takes the stuffing out again."""
    return body.replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")


def _is_stuffed(body: bytes) -> bool:
    """False for a body with a bare FF FF FD: firmware takes that for the start of the next packet."""
    return stuff(destuff(body)) == body


def build(servo: int, instruction: int, parameters: bytes = b"") -> bytes:
    """One packet, ready for the wire."""
    body = stuff(bytes([instruction]) + parameters)
    packet = HEADER + bytes([servo]) + (len(body) + 2).to_bytes(2, "little") + body
    return packet + crc16(packet).to_bytes(2, "little")


def build_status(servo: int, error: int, data: bytes = b"") -> bytes:
    """One answer of a servo, ready for the wire."""
    return build(servo, Instruction.STATUS, bytes([error]) + data)


def fast_header(sizes: Sequence[int]) -> bytes:
    """The head of the one status packet that answers a fast read of so many data bytes from each servo.

    The first servo sends it; then each in turn sends error, id, data and the checksum of all bytes so far.
    Nothing is stuffed. Raises ValueError when the answer is longer than a packet may be.
    """
    length = 1 + sum(size + 4 for size in sizes)
    if length > MAX_LENGTH:
        raise ValueError(f"a fast read answers at most {MAX_LENGTH} bytes, not {length}; ask for less")
    return HEADER + bytes([BROADCAST]) + length.to_bytes(2, "little") + bytes([Instruction.STATUS])


def collide(packets: Sequence[bytes]) -> bytes:
    """What a line carries while several servos send at once, from the same moment on.

    A line idles high and any of its drivers can pull it low: bits are ANDed where packets overlap, so that
    equal bytes survive and others become noise; the longest one's end stays. Real edges are not aligned to
    the bit, which leaves noise as well, only another one.
    """
    if len(packets) == 1:
        return packets[0]
    mixed = bytearray(max(packets, key=len))
    for packet in packets:
        for place, byte in enumerate(packet):
            mixed[place] &= byte
    return bytes(mixed)


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet off the wire, stuffing removed. `intact` is False when its checksum is wrong."""

    servo: int
    instruction: int
    parameters: bytes
    size: int  # bytes on the wire
    intact: bool = True


class Parser:
    """Finds packets in a stream of bytes that may start, stop or be garbled anywhere."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an unfinished packet."""
        return len(self._buffer)

    def reset(self) -> None:
        """Forgets an unfinished packet; for the pause that ends every packet on a real wire."""
        self._buffer.clear()

    def feed(self, data: bytes) -> Iterator[Packet]:
        """The packets that these bytes complete; skips what is no packet."""
        self._buffer += data
        while (size := self._frame()) is not None:
            raw = bytes(self._buffer[:size])
            del self._buffer[:size]
            yield _parse(raw)

    def _frame(self) -> int | None:
        """Drops noise, then tells the size of the packet at the buffer's start, or None if incomplete."""
        while True:
            start = self._buffer.find(HEADER)
            if start < 0:
                del self._buffer[: max(0, len(self._buffer) - len(HEADER) + 1)]
                return None
            del self._buffer[:start]
            if len(self._buffer) < 7:
                return None
            length = int.from_bytes(self._buffer[5:7], "little")
            if 3 <= length <= MAX_LENGTH:
                if len(self._buffer) < length + 7:
                    return None
                if _is_stuffed(bytes(self._buffer[7 : length + 5])):
                    return length + 7
            del self._buffer[:1]


def _parse(raw: bytes) -> Packet:
    body = destuff(raw[7:-2])
    intact = crc16(raw[:-2]) == int.from_bytes(raw[-2:], "little")
    return Packet(raw[4], body[0], body[1:], len(raw), intact)
