"""The serial bus of Dynamixel servos, Protocol 2.0, on the unmodified `dynamixel_sdk`.

The SDK's parser finds packets in whatever arrives. Closed here is what it leaves open: exclusive ports,
waiting without spinning, time-outs that are ours, byte stuffing that reaches the wire and comes off it whole
(the SDK 4.1.0 stuffs a copy and sends the original), group reads that lose one servo and not all, error bytes
that are never dropped, registers from all over the table in one packet, and every failure of the operating
system as one typed fault. What costs time in every cycle does not go through it: requests are built, and
answers that are whole taken, in a few calls instead of some for every byte.
"""

from __future__ import annotations

import errno
import os
import struct
import termios
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np
import serial
from dynamixel_sdk.port_handler import PortHandler
from dynamixel_sdk.protocol2_packet_handler import Protocol2PacketHandler
from dynamixel_sdk.robotis_def import COMM_RX_CORRUPT, COMM_SUCCESS, MAX_ID
from pydantic import Field
from serial.tools import list_ports

from robot.protocol import (
    ALERT,
    BITS_PER_BYTE,
    BROADCAST,
    HEADER,
    MAX_LENGTH,
    STATUS_OVERHEAD,
    ErrorNumber,
    Instruction,
    build,
    crc16,
    describe_refusal,
    destuff,
)
from robot.registers import (
    FINGER_SEGMENTS,
    INDIRECT_BLOCKS,
    Register,
    servo_name,
)
from robot.types import Baud, BusFault, Clock, Config, PortLost, Reading, ServoSilent

P = ParamSpec("P")
T = TypeVar("T")

_ID, _BODY, _ERROR, _DATA, _CRC = 4, 7, 8, 9, -2  # where they start in a status packet
_HEAD = struct.Struct("<BHB")  # of a packet, behind its header: id, length, instruction
_PLACE = struct.Struct("<HH")  # address and size of what is read or written
_POLL = 0.001  # s that a read blocks in the kernel before it looks at the clock again
# s; the kernel keeps 4096 bytes, so a port that does not take a packet is dead. pyserial counts the time that
# our process did not run, too: with 0.05 s a busy machine had healthy ports fail.
_WRITE_TIMEOUT = 0.2
_RETURN_DELAY = 508e-6  # s, the longest that register 9 can tell a servo to wait before it answers
_FIRST_PART = _BODY + 1  # where a fast reply's first servo begins
_FAST_OVERHEAD = 4  # bytes of each servo's part of a fast reply without data: error, id, checksum
_PING_SLOT = 3e-3  # s that each id has to answer a broadcast ping, by the SDK's own window
_PING_DATA = 3  # bytes: model number and firmware version
_GAP = 0.002  # s of silence behind the last servo's answer after which no other one is coming
_INDIRECT_ADDRESS, _INDIRECT_DATA, _INDIRECT_COUNT = INDIRECT_BLOCKS[0]
_COUNTED = (
    "reads",
    "fast_reads",
    "writes",
    "retries",
    "lost",
    "crc_errors",
    "alerts",
    "refused",
    "port_losses",
)
_CHECK = "`run_robot.py check --hw dclaw` lists who answers"


class BusConfig(Config):
    """Where the servos are connected and how patiently they are asked.

    A group read of n servos takes at most, for each of its blocks and each try, the time of its bytes on the
    wire + 0.5 ms x n + timeout_ms + 1 ms, where later tries count only who is missing; and timeout_ms once
    more if the read before it needed a retry, so that no old answer is taken for a new one. By default, for a
    gathered cycle of 10 servos at 1 Mbps: 62 ms when one is silent, 76 ms when all are; 67 and 81 ms without
    fast reads.
    """

    port: str = "/dev/ttyUSB0"
    baud: Baud = 1_000_000
    retries: int = Field(2, ge=0, le=10)  # further tries for servos that did not answer
    # How long an answer may take beyond its bytes' time on the wire and its return delay: 16 ms in an FTDI
    # adapter at its default latency timer, 1 ms until the next USB frame, 1 ms to spare. A busy host needs
    # none: what has arrived when it gets to look counts.
    timeout_ms: float = Field(18.0, gt=0, le=500)
    # Gathered registers of all servos in one status packet, a quarter fewer bytes: "auto" asks who can.
    fast_reads: Literal["auto", "on", "off"] = "auto"


class _Port(PortHandler):  # type: ignore[misc]  # the SDK is untyped
    """The SDK's port, opened exclusively, read blockingly, timed by our clock and our time-out.

    The SDK's own time-out is a module constant (LATENCY_TIMER: 34 ms for every lost packet) that it computes
    anew with every request from the wall clock, which may jump.
    """

    def __init__(self, config: BusConfig, clock: Clock) -> None:
        super().__init__(config.port)
        self._clock = clock
        self._patience = config.timeout_ms * 1e-3
        self._sent = 0  # bytes of the last request
        self._limit = self._deadline = 0.0  # s, until when answers are awaited, at most and as things are
        self._arrived = b""  # what the SDK has not asked for yet
        self._over = False  # whether nothing more is taken: the deadline has passed

    def setupPort(self, cflag_baud: int) -> bool:  # noqa: N802
        """Opens the port. Raises OSError or termios.error."""
        self.ser = serial.Serial(
            self.port_name,
            self.baudrate,
            timeout=_POLL,
            write_timeout=_WRITE_TIMEOUT,
            exclusive=True,
        )
        # Linux' FTDI driver then sends after 1 ms instead of 16. Other ports cannot and need not.
        with suppress(ValueError, OSError, NotImplementedError):
            self.ser.set_low_latency_mode(True)
        self.is_open = True
        self.ser.reset_input_buffer()
        return True

    def send(self, packet: bytes) -> None:
        """Sends a packet; what arrived before it is no answer to it. Raises OSError."""
        self._arrived = b""
        self.ser.reset_input_buffer()
        self._sent = len(packet)
        if self.ser.write(packet) != len(packet):
            raise OSError(errno.EIO, "the port did not take the packet")

    def readPort(self, length: int) -> bytes:  # noqa: N802
        """Up to `length` bytes; after the deadline what had arrived by then and no more.

        So a line that never falls silent does not catch us, and a host that looks late loses nothing.
        """
        if len(self._arrived) < length:
            self._listen(length)
        return self._take(max(0, length))  # the SDK asks for fewer than none behind a short packet

    def intact_packet(self, fast: bool) -> bytes | None:
        """The next status packet, if it is whole and no noise comes before it; else nothing is taken.

        What is stuffed is left to the SDK, too; fast replies never are.
        """
        self._await(STATUS_OVERHEAD)
        if len(self._arrived) < STATUS_OVERHEAD or not self._arrived.startswith(HEADER):
            return None
        servo, length, instruction = _HEAD.unpack_from(self._arrived, _ID)
        possible = servo <= (BROADCAST if fast else MAX_ID) and length <= MAX_LENGTH
        end = length + _BODY
        if not possible or end < STATUS_OVERHEAD or instruction != Instruction.STATUS:
            return None
        self._await(end)
        packet = self._arrived[:end]
        signed = len(packet) == end and crc16(packet[:_CRC]) == int.from_bytes(packet[_CRC:], "little")
        stuffed = not fast and HEADER[:3] in packet[_BODY:]
        return self._take(end) if signed and not stuffed else None

    def _await(self, size: int) -> None:
        while len(self._arrived) < size and not self._over:
            self._listen(size)

    def _listen(self, size: int) -> None:
        """Waits a moment for so many bytes, and takes all that are there: looking costs more than parsing."""
        if self._over:
            return
        self._over = self._clock.now() > self._deadline
        waiting = self.ser.in_waiting
        self._arrived += self.ser.read(waiting if self._over else max(waiting, size - len(self._arrived)))

    def _take(self, size: int) -> bytes:
        taken, self._arrived = self._arrived[:size], self._arrived[size:]
        return taken

    def await_answers(self, size: int, delay: float) -> None:
        """Starts the time that answers of `size` bytes may take, which servos delay by `delay` s in all."""
        wire = (self._sent + size) * BITS_PER_BYTE / self.baudrate
        self._limit = self._deadline = self._clock.now() + wire + delay + self._patience
        self._over = False

    def hurry(self, size: int) -> None:
        """Only waits for an answer of `size` bytes that follows without a gap."""
        self._deadline = min(self._limit, self._clock.now() + _GAP + size * BITS_PER_BYTE / self.baudrate)

    def be_patient(self) -> None:
        """Waits as long as at first, after all."""
        self._deadline = self._limit

    @property
    def silent(self) -> bool:
        """True when no answer is awaited any more and all that came is read."""
        return self._over and not self._arrived

    def isPacketTimeout(self) -> bool:  # noqa: N802
        """The SDK's way to ask whether to give up."""
        return self.silent

    def require_its_name(self) -> None:
        """Raises OSError when the name leads elsewhere by now: the adapter was plugged out and in."""
        if os.stat(self.port_name).st_rdev != os.fstat(self.ser.fileno()).st_rdev:
            raise OSError(errno.ENODEV, "another device has its name now")


class _Packets(Protocol2PacketHandler):  # type: ignore[misc]  # the SDK is untyped
    """The SDK's parser, which does not look at every byte of packets that are whole."""

    def rxPacket(self, port: _Port, fast_option: bool) -> tuple[Sequence[int], int]:  # noqa: N802
        """The next status packet or what is left of it, and the SDK's result."""
        if packet := port.intact_packet(fast_option):
            return packet, COMM_SUCCESS
        found: tuple[Sequence[int], int] = super().rxPacket(port, fast_option)
        return found

    def removeStuffing(self, packet: list[int]) -> list[int]:  # noqa: N802
        """The packet without stuffing, shortened.

        The SDK (4.1.0) moves bytes in place while it still looks for stuffing among them: behind a first
        stuffed place it takes FF FD FD for a second one.
        """
        end = packet[5] + (packet[6] << 8) + _BODY
        body = list(destuff(bytes(packet[_BODY : end + _CRC])))
        length = len(body) - _CRC
        return [*packet[:5], length & 0xFF, length >> 8, *body, *packet[end + _CRC : end]]


class _Status(NamedTuple):
    """What one servo answered."""

    error: int  # error number, and ALERT
    data: bytes


class _Block(NamedTuple):
    """Registers side by side that one request reads."""

    address: int
    names: str
    columns: list[int]  # of the reading, in the order of the block
    layout: struct.Struct

    @property
    def size(self) -> int:
        """Bytes."""
        return self.layout.size


_Part = tuple[int, int, bytes, int]  # of a fast reply: error, id, data, checksum of all bytes so far
_Answers = dict[int, _Status]
_Try = Callable[[list[int]], _Answers]  # asks those servos once; who answered what


def _exclusive(method: Callable[Concatenate[SerialBus, P], T]) -> Callable[Concatenate[SerialBus, P], T]:
    """One thread at a time has the line, from its question to the last answer."""

    @wraps(method)
    def locked(bus: SerialBus, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with bus.lock:
            return method(bus, *args, **kwargs)

    return locked


class SerialBus:
    """Servos on a serial port: every answer is fresh and whole, or a fault with the servo's name.

    One bus owns its port; any thread may use the bus. A port that vanished is opened again by the next
    request, whatever device has its name then.
    """

    def __init__(self, config: BusConfig, clock: Clock, sysfs: Path = Path("/sys")) -> None:
        """Opens the port. Raises PortLost."""
        self._config, self._clock, self._sysfs = config, clock, sysfs
        self.lock = threading.RLock()
        self._packets = _Packets()
        self._port = _Port(config, clock)
        self._closed = False
        self._question: object = None  # what the last request asked
        self._quiet_at = 0.0  # s, when no late answer to it can arrive any more
        self._gathered: dict[int, tuple[Register, ...]] = {}  # what each servo collects in its indirect data
        self._cycle: tuple[tuple[Register, ...], _Block] | None = None  # gathered registers last read
        self._fast: set[int] = set()  # servos that are asked by fast reads
        self._latency: int | None = None
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._crc_errors_before = 0  # this call
        self._open()

    @property
    def latency_timer_ms(self) -> int | None:
        """How long the USB adapter keeps answers back, ms; None where the kernel does not tell."""
        return self._latency

    @_exclusive
    def ping(self, ids: Sequence[int]) -> dict[int, int]:
        """The model number of each id that answers; silent ids are absent. Raises PortLost."""
        models = {}
        for servo in ids:
            status = self._ask(servo, _PING_DATA, partial(self._instruct, Instruction.PING)).get(servo)
            if status and not status.error & ~ALERT:
                models[servo] = int.from_bytes(status.data[:2], "little")
        return models

    @_exclusive
    def broadcast_ping(self, highest: int = 252) -> dict[int, tuple[int, int]]:
        """Model number and firmware version of every servo at this baud rate, by id. Raises PortLost.

        Servos answer in turn, each id in its slot, and nobody tells the end: it takes 3 ms for each id up to
        `highest`, 0.8 s for all at 1 Mbps. That is longer than watchdogs wait: not for a robot under torque.
        """
        found = {}
        with self._line(object()):
            self._instruct(Instruction.PING, BROADCAST)
            size = STATUS_OVERHEAD + _PING_DATA
            self._port.await_answers(size * (highest + 1), _PING_SLOT * (highest + 1))
            while not self._port.silent:
                servo, status = self._next_status()
                if status and self._is_answer(status, _PING_DATA) and len(status.data) == _PING_DATA:
                    found[servo] = (int.from_bytes(status.data[:2], "little"), status.data[2])
        return found

    @_exclusive
    def read(self, register: Register, servo: int) -> int:
        """One register, in register units. Raises ServoSilent, PortLost, or BusFault when refused."""
        self._begin("reads")

        def send(servo: int) -> None:
            self._instruct(Instruction.READ, servo, _PLACE.pack(register.address, register.size))

        status = self._obtain(servo, register.size, f"read {register.name}", send)
        return register.decode(status.data)

    @_exclusive
    def write(self, register: Register, servo: int, value: int) -> None:
        """Writes one register, confirmed. Raises ServoSilent, PortLost, or BusFault when refused."""
        data = register.encode(value)
        self._write(servo, register.address, data, f"{register.name} = {value}")

    @_exclusive
    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        """The same registers of several servos; adjacent ones share one request, gathered ones all do.

        Only servos that did not answer are asked again. Raises ServoSilent naming who is missing after all
        tries, with the reading of the others; PortLost; or BusFault when refused. `alerts` holds every
        servo's error byte.
        """
        self._begin("reads")
        answered, collected = list(ids), []
        for block in self._blocks(tuple(registers), ids):
            if answered:
                collected.append((block, self._read_block(block, answered)))
                answered = [servo for servo in answered if servo in collected[-1][1]]
        reading = self._reading(len(registers), collected, answered)
        silent = [servo for servo in ids if servo not in answered]
        if silent:
            raise self._silent(silent, answered, reading)
        return reading

    @_exclusive
    def gather(self, registers: Sequence[Register], ids: Sequence[int]) -> None:
        """Lets later `sync_read`s of exactly these registers of these servos travel as one packet.

        The servos collect them in their indirect data, 28 bytes at most, until they restart. Raises
        ServoSilent, PortLost, BusFault when they do not read back, ValueError for what cannot be collected.
        """
        self._begin("writes")
        self._forget(ids)
        wanted = _indirect_addresses(registers)
        for servo in self._collecting_otherwise(wanted, ids):
            self._write(servo, _INDIRECT_ADDRESS, wanted, "indirect addresses")
        if wrong := self._collecting_otherwise(wanted, ids):
            names = ", ".join(map(servo_name, wrong))
            raise BusFault(f"indirect addresses were written but read back differently: {names}; {_CHECK}.")
        self._gathered.update(dict.fromkeys(ids, tuple(registers)))
        if self._config.fast_reads != "off":
            size = sum(register.size for register in registers)
            self._fast |= set(ids) if self._config.fast_reads == "on" else self._who_reads_fast(size, ids)

    @_exclusive
    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """One register of several servos in one packet; nobody answers, so refusals stay unseen.

        Raises PortLost.
        """
        self._begin("writes")
        data = b"".join(bytes((servo,)) + register.encode(value) for servo, value in values.items())
        with self._line(None):
            place = _PLACE.pack(register.address, register.size)
            self._instruct(Instruction.SYNC_WRITE, BROADCAST, place + data)

    @_exclusive
    def reboot(self, servo: int) -> None:
        """Restarts one servo: torque off, all RAM registers forgotten, silent for about 0.3 s.

        Raises ServoSilent when it does not confirm, PortLost, or BusFault when refused.
        """
        self._begin("writes")
        self._forget((servo,))
        self._obtain(servo, 0, "reboot", partial(self._instruct, Instruction.REBOOT))

    def statistics(self) -> dict[str, int]:
        """Counts since the start: calls, retried ids, lost and corrupt answers, alerts, refusals, ports."""
        return dict(self._counts)

    @_exclusive
    def close(self) -> None:
        """Releases the port. Never raises."""
        self._closed = True
        self._drop()

    # --- Asking one servo ----------------------------------------------------------------------------------

    def _begin(self, kind: str) -> None:
        self._counts[kind] += 1
        self._crc_errors_before = self._counts["crc_errors"]

    def _instruct(self, instruction: Instruction, servo: int, parameters: bytes = b"") -> None:
        self._port.send(build(servo, instruction, parameters))

    def _write(self, servo: int, address: int, data: bytes, what: str) -> None:
        self._begin("writes")

        def send(servo: int) -> None:
            self._instruct(Instruction.WRITE, servo, address.to_bytes(2, "little") + data)

        self._obtain(servo, 0, what, send)

    def _obtain(self, servo: int, size: int, what: str, send: Callable[[int], None]) -> _Status:
        """The servo's status with `size` bytes of data. Raises ServoSilent, PortLost, or BusFault."""
        status = self._ask(servo, size, send).get(servo)
        if status is None:
            raise self._silent((servo,))
        if status.error & ~ALERT:
            raise self._refusal(what, servo, status)
        return status

    def _ask(self, servo: int, size: int, send: Callable[[int], None]) -> _Answers:
        def attempt(missing: list[int]) -> _Answers:
            send(servo)
            return self._receive(missing, size)

        return self._collect([attempt] * (self._config.retries + 1), (servo,))

    # --- Asking several servos -----------------------------------------------------------------------------

    def _blocks(self, registers: tuple[Register, ...], ids: Sequence[int]) -> list[_Block]:
        if all(self._gathered.get(servo) == registers for servo in ids):
            if self._cycle is None or self._cycle[0] != registers:
                self._cycle = registers, _block(_INDIRECT_DATA, list(enumerate(registers)))
            return [self._cycle[1]]
        return _blocks(registers)

    def _collecting_otherwise(self, wanted: bytes, ids: Sequence[int]) -> list[int]:
        """Servos whose indirect addresses are others. Raises ServoSilent, PortLost, or BusFault."""
        layout = struct.Struct(f"<{len(wanted)}s")
        answers = self._read_block(_Block(_INDIRECT_ADDRESS, "indirect addresses", [], layout), ids)
        if silent := [servo for servo in ids if servo not in answers]:
            raise self._silent(silent, list(answers))
        return [servo for servo in ids if answers[servo].data != wanted]

    def _who_reads_fast(self, size: int, ids: Sequence[int]) -> set[int]:
        """Who answers a fast read: asked, because no list tells which firmware of which model does.

        A servo whose answer is lost here is read plainly until it is gathered again.
        """
        with self._line(object()):
            able = set(self._read_fast(_INDIRECT_DATA, size, list(ids)))
        if len(able) == len(ids):
            self._quiet_at = 0.0  # nothing is on its way any more
        return able

    def _read_block(self, block: _Block, ids: Sequence[int]) -> _Answers:
        """What those who answer have there. Raises PortLost, or BusFault when one refuses."""
        place = (block.address, block.size)
        plain: _Try = partial(self._read_plainly, *place)
        tries = [plain] * (self._config.retries + 1)
        if block.address == _INDIRECT_DATA and len(ids) > 1 and self._fast.issuperset(ids):
            fast: _Try = partial(self._read_fast, *place)
            tries = [fast, *tries[1:]] if tries[1:] else [fast, plain]
        answers = self._collect(tries, ids)
        for servo, status in answers.items():
            if status.error & ~ALERT:
                raise self._refusal(f"read {block.names}", servo, status)
        return answers

    def _collect(self, tries: Sequence[_Try], ids: Sequence[int]) -> _Answers:
        """What those answer who do, asking again those that stay silent. Raises PortLost."""
        question = object()  # the same registers asked for again are another question: old answers are old
        answers: _Answers = {}
        missing = list(ids)
        for number, attempt in enumerate(tries):
            self._counts["retries"] += len(missing) if number else 0
            with self._line(question):
                answers |= attempt(missing)
                if not answers:
                    self._port.require_its_name()
            missing = [servo for servo in missing if servo not in answers]
            if not missing:
                # An answer that was given up may still be on its way and must not answer the next question.
                self._quiet_at = self._clock.now() + self._config.timeout_ms * 1e-3 if number else 0.0
                break
            self._counts["lost"] += len(missing)
        return answers

    def _read_plainly(self, address: int, size: int, servos: list[int]) -> _Answers:
        self._instruct(Instruction.SYNC_READ, BROADCAST, _PLACE.pack(address, size) + bytes(servos))
        return self._receive(servos, size)

    def _receive(self, servos: list[int], size: int) -> _Answers:
        """Whatever arrives in time: one lost answer costs one servo, not all behind it.

        Servos answer in the order asked. So behind the last one's answer nothing more can come, and what came
        from a later servo before one from an earlier was no answer to this request.
        """
        answers: _Answers = {}
        furthest = -1
        self._port.await_answers((STATUS_OVERHEAD + size) * len(servos), _RETURN_DELAY * len(servos))
        while len(answers) < len(servos) and not self._port.silent:
            servo, status = self._next_status()
            if status is None or servo not in servos or not self._is_answer(status, size):
                continue
            place = servos.index(servo)
            if place < furthest:
                for later in servos[place + 1 :]:
                    if answers.pop(later, None):
                        self._port.be_patient()
            furthest = place
            answers[servo] = status
            self._counts["alerts"] += bool(status.error & ALERT)
            if place == len(servos) - 1:
                self._port.hurry(STATUS_OVERHEAD + size)
        return answers

    def _next_status(self) -> tuple[int, _Status | None]:
        """The next status packet and who sent it; None for what is none, and in the end."""
        packet, result = self._packets.rxPacket(self._port, False)
        # The SDK accepts one without an error byte whose checksum fits by chance.
        if result == COMM_SUCCESS and len(packet) >= STATUS_OVERHEAD:
            return packet[_ID], _Status(packet[_ERROR], bytes(packet[_DATA:_CRC]))
        self._counts["crc_errors"] += result in (COMM_RX_CORRUPT, COMM_SUCCESS)
        return BROADCAST, None

    @staticmethod
    def _is_answer(status: _Status, size: int) -> bool:
        """A refusal carries no data; anything else of the wrong length answers another question.

        A servo that received the request garbled says so; then asking again is right.
        """
        number = status.error & ~ALERT
        return number != ErrorNumber.CHECKSUM_ERROR and (number != 0 or len(status.data) == size)

    def _read_fast(self, address: int, size: int, servos: list[int]) -> _Answers:
        """The intact parts of the one packet in which all servos answer."""
        self._instruct(Instruction.FAST_SYNC_READ, BROADCAST, _PLACE.pack(address, size) + bytes(servos))
        length = _FIRST_PART + len(servos) * (size + _FAST_OVERHEAD)
        self._port.await_answers(length, _RETURN_DELAY)
        while not self._port.silent:
            packet, result = self._packets.rxPacket(self._port, True)
            if bytes(packet[: _ID + 1]) == HEADER + bytes([BROADCAST]):
                self._counts["fast_reads"] += 1
                self._counts["crc_errors"] += result != COMM_SUCCESS
                whole = result == COMM_SUCCESS and len(packet) == length
                return self._accept((_parts if whole else _intact_parts)(bytes(packet), size), servos)
        return {}

    def _accept(self, parts: Iterable[_Part], servos: list[int]) -> _Answers:
        """Which servos answered in these parts of a fast reply; who refused is asked again, plainly."""
        answers = {servo: _Status(error, data) for error, servo, data, _ in parts if not error & ~ALERT}
        self._counts["alerts"] += sum([status.error != 0 for status in answers.values()])
        return {servo: answers[servo] for servo in servos if servo in answers}

    def _reading(
        self, width: int, collected: Sequence[tuple[_Block, _Answers]], ids: Sequence[int]
    ) -> Reading:
        values = np.empty((len(ids), width), np.int64)
        alerts = np.zeros(len(ids), np.uint8)
        for block, answers in collected if ids else ():
            statuses = [answers[servo] for servo in ids]
            rows = np.array([block.layout.unpack(status.data) for status in statuses], np.int64)
            errors = np.array([status.error for status in statuses], np.uint8)
            if block.columns == [*range(width)]:  # as in every cycle
                return Reading(self._clock.now(), rows, errors)
            values[:, block.columns] = rows
            alerts |= errors
        return Reading(self._clock.now(), values, alerts)

    # --- Words ---------------------------------------------------------------------------------------------

    def _refusal(self, what: str, servo: int, status: _Status) -> BusFault:
        self._counts["refused"] += 1
        return BusFault(
            f"{servo_name(servo)} refused {what}: {describe_refusal(status.error)}. EEPROM (registers "
            "below 64) needs torque off; goals must lie within the limits, the watchdog not be tripped; "
            f"{_CHECK}."
        )

    def _silent(
        self, silent: Sequence[int], answered: Sequence[int] = (), reading: Reading | None = None
    ) -> ServoSilent:
        garbled = self._counts["crc_errors"] > self._crc_errors_before
        cause = (
            "Answers came garbled: check for two servos with one id, for loose cables and for the baud rate"
            if garbled
            else _suspicion(silent, answered)
        )
        tries = self._config.retries + 1
        return ServoSilent(
            f"{'; '.join(map(_where, silent))} did not answer on {self._config.port} at {self._config.baud} "
            f"baud after {tries} tries. {cause}; {_CHECK}.",
            silent,
            answered,
            reading,
        )

    # --- The port ------------------------------------------------------------------------------------------

    @contextmanager
    def _line(self, question: object) -> Iterator[None]:
        """The open port for one request; what the operating system reports becomes PortLost.

        `question` tells requests apart, because a late answer to another one must not be taken for ours; None
        asks nothing.
        """
        if not self._port.is_open:
            self._open()
        if question is not None:
            self._await_quiet(question)
        self._port.is_using = False  # an interrupted request leaves the SDK's flag set for ever
        try:
            yield
        except (OSError, termios.error) as error:
            self._drop()
            self._counts["port_losses"] += 1
            raise PortLost(
                f"{self._config.port} failed: {error}. Was the adapter unplugged? Plug it in; {_CHECK}."
            ) from error

    def _await_quiet(self, question: object) -> None:
        if question != self._question:
            self._clock.sleep_until(self._quiet_at)
            self._question = question
        # Until this request is answered in full, something may still be on its way.
        self._quiet_at = self._clock.now() + self._config.timeout_ms * 1e-3

    def _open(self) -> None:
        if self._closed:
            raise PortLost(f"{self._config.port} was closed by this program.")
        try:
            self._port.setBaudRate(self._config.baud)
        except (OSError, termios.error) as error:
            raise PortLost(_why_not_open(self._config.port, error)) from error
        self._latency = _shorten_latency(self._config.port, self._sysfs)

    def _drop(self) -> None:
        with suppress(OSError, termios.error):
            if self._port.is_open:
                self._port.closePort()
        self._port.is_open = False
        self._port.is_using = False
        self._quiet_at = 0.0  # what was on its way is lost with the port
        self._forget(tuple(self._gathered))  # other servos may be behind it when it is back

    def _forget(self, ids: Sequence[int]) -> None:
        self._fast.difference_update(ids)
        for servo in ids:
            self._gathered.pop(servo, None)


def _blocks(registers: Sequence[Register]) -> list[_Block]:
    """Runs of adjacent registers, whatever the order they are asked in."""
    runs: list[list[tuple[int, Register]]] = []
    end = None
    for column, register in sorted(enumerate(registers), key=lambda item: item[1].address):
        if register.address != end:
            runs.append([])
        runs[-1].append((column, register))
        end = register.address + register.size
    return [_block(run[0][1].address, run) for run in runs]


def _block(address: int, run: Sequence[tuple[int, Register]]) -> _Block:
    """Registers that lie side by side from that address on, each with its column."""
    codes = ({1: "b", 2: "h", 4: "i"}[register.size] for _, register in run)
    layout = "".join(
        code if register.signed else code.upper() for code, (_, register) in zip(codes, run, strict=True)
    )
    names = ", ".join(register.name for _, register in run)
    return _Block(address, names, [column for column, _ in run], struct.Struct(f"<{layout}"))


def _parts(packet: bytes, size: int) -> Iterator[_Part]:
    """Each servo's part of a fast reply that has come as far as its end."""
    whole = (len(packet) - _FIRST_PART) // (size + _FAST_OVERHEAD) * (size + _FAST_OVERHEAD)
    return struct.iter_unpack(f"<BB{size}sH", packet[_FIRST_PART : _FIRST_PART + whole])


def _intact_parts(packet: bytes, size: int) -> Iterator[_Part]:
    """The parts of a damaged fast reply that are not.

    The checksum that one servo sent is the state from which the next one went on: with it a damaged part
    costs only its own servo.
    """
    crc = crc16(packet[:_FIRST_PART])
    for part in _parts(packet, size):
        error, servo, data, sent = part
        if crc16(bytes([error, servo]) + data, crc) == sent:
            yield part
        crc = crc16(sent.to_bytes(2, "little"), sent)


def _indirect_addresses(registers: Sequence[Register]) -> bytes:
    """The addresses of all bytes of these registers, as indirect addresses hold them.

    Raises ValueError for more than fit, or for EEPROM, which cannot be collected.
    """
    if any(register.eeprom for register in registers):
        names = ", ".join(register.name for register in registers if register.eeprom)
        raise ValueError(f"indirect data shows RAM alone (addresses from 64 on), not {names}")
    places = [register.address + byte for register in registers for byte in range(register.size)]
    if len(places) > _INDIRECT_COUNT:
        raise ValueError(f"{len(places)} bytes are more than the {_INDIRECT_COUNT} of an indirect data block")
    return b"".join(place.to_bytes(2, "little") for place in places)


def _ahead(servo: int) -> int | None:
    """The wire neighbour towards the adapter: each finger is a chain from its proximal servo on."""
    finger, segment = divmod(servo, 10)
    return servo - 1 if finger in (1, 2, 3) and 0 < segment < len(FINGER_SEGMENTS) else None


def _where(servo: int) -> str:
    """A servo with its places on D'Claw and on the wire: 'servo 12 (finger 1, distal), behind servo 11'."""
    ahead = _ahead(servo)
    return servo_name(servo) + (f", behind servo {ahead}" if ahead is not None else "")


def _suspicion(silent: Sequence[int], answered: Sequence[int]) -> str:
    """Where to look first, from who is silent and who is not."""
    if len(silent) > 1 and not answered:
        return (
            "Nobody did: check the servo power, the cable from the adapter to the servos, and the baud rate"
        )
    return "; ".join(hint for servo in silent if (hint := _suspect(servo, silent, answered)))


def _suspect(servo: int, silent: Sequence[int], answered: Sequence[int]) -> str:
    """Empty for a servo that hangs behind another silent one."""
    ahead = _ahead(servo)
    behind = [
        other for other in answered if _ahead(other) is not None and 0 < other - servo < 10 - servo % 10
    ]
    if behind:
        return (
            f"Servo {behind[0]} behind servo {servo} answers, so the cables are whole: servo {servo} may be "
            "restarting, or have another id or baud rate"
        )
    if ahead in silent:
        return ""
    cable = f"between servo {ahead} and servo {servo}" if ahead is not None else f"to servo {servo}"
    return f"Check the cable {cable}, and the power of servo {servo}"


def _shorten_latency(port: str, sysfs: Path) -> int | None:
    """Sets the USB adapter's latency timer to 1 ms where that is allowed; what it is then, ms, if known."""
    timer = sysfs / "bus/usb-serial/devices" / Path(port).resolve().name / "latency_timer"
    try:
        if int(timer.read_text()) > 1:
            with suppress(PermissionError):
                timer.write_text("1")
        return int(timer.read_text())
    except (OSError, ValueError):
        return None


def _why_not_open(port: str, error: Exception) -> str:
    """What is wrong with a port that does not open, and what to do about it."""
    number = getattr(error, "errno", None)
    then = "then run `run_robot.py check --hw dclaw`."
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        others = ", ".join(sorted(info.device for info in list_ports.comports())) or "none"
        return (
            f"There is no serial port {port}; ports here: {others}. Plug in the adapter, or name the port "
            f"with --set hw.bus.port=/dev/..., {then}"
        )
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"No permission to open {port}. Add yourself to its group with `sudo usermod -aG dialout $USER`, "
            f"log in again, {then}"
        )
    if number in (errno.EAGAIN, errno.EBUSY):
        return f"{port} is in use by another program. `fuser -v {port}` names it; stop it, {then}"
    return f"{port} does not open: {error}. Is it a serial port? If so plug it out and in, {then}"
