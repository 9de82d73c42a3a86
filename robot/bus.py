"""The serial bus of Dynamixel servos, Protocol 2.0, on the unmodified `dynamixel_sdk`.

The SDK builds, sends and parses packets. What it leaves open is closed here: exclusive ports, waiting without
spinning, one time-out that is ours, group reads that lose one servo and not all, error bytes that are never
dropped, and every failure of the operating system as one typed fault.
"""

from __future__ import annotations

import errno
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
import serial
from dynamixel_sdk.port_handler import PortHandler
from dynamixel_sdk.protocol2_packet_handler import Protocol2PacketHandler
from dynamixel_sdk.robotis_def import COMM_RX_CORRUPT, COMM_SUCCESS
from pydantic import Field
from serial.tools import list_ports

from robot.protocol import ALERT, STATUS_OVERHEAD, ErrorNumber, describe_refusal
from robot.registers import Register, servo_name
from robot.types import Baud, BusFault, Clock, Config, PortLost, Reading, ServoSilent

_ID, _ERROR, _DATA, _CRC = 4, 8, 9, -2  # where they start in a status packet
_BLOCKING_READ = 0.005  # s; the SDK polls, and a poll that sleeps in the kernel costs a tenth of the CPU
_WRITE_TIMEOUT = 0.2  # s; 250 bytes at 57600 baud take 0.04 s, so a port that takes longer is dead
_BABBLE = 50.0  # ms after the time-out at which a line that never falls silent is no longer listened to
_CHECK = "`run_robot.py check --hw dclaw` lists who answers"


class BusConfig(Config):
    """Where the servos are connected and how patiently they are asked."""

    port: str = "/dev/ttyUSB0"
    baud: Baud = 1_000_000
    retries: int = Field(2, ge=0, le=10)  # further tries for servos that did not answer
    # How long an answer may take beyond its bytes' time on the wire. An FTDI adapter at its default latency
    # timer needs 16 ms, and ten servos at the factory's return delay 5 ms.
    timeout_ms: float = Field(25.0, gt=0, le=500)


class _Port(PortHandler):  # type: ignore[misc]  # the SDK is untyped
    """The SDK's port, opened exclusively, read blockingly, timed by our clock and our time-out.

    The SDK's own time-out is a module constant (LATENCY_TIMER: 34 ms for every lost packet) that it computes
    anew with every request from the wall clock, which may jump.
    """

    def __init__(self, config: BusConfig, clock: Clock) -> None:
        super().__init__(config.port)
        self._clock = clock
        self._patience = config.timeout_ms
        self._sent = 0  # bytes of the last request
        self._window = 0.0  # ms that answers may take

    def setupPort(self, cflag_baud: int) -> bool:  # noqa: N802
        """Opens the port. Raises OSError or termios.error."""
        self.ser = serial.Serial(
            self.port_name,
            self.baudrate,
            timeout=_BLOCKING_READ,
            write_timeout=_WRITE_TIMEOUT,
            exclusive=True,
        )
        # Linux' FTDI driver then sends after 1 ms instead of 16. Other ports cannot and need not.
        with suppress(ValueError, OSError, NotImplementedError):
            self.ser.set_low_latency_mode(True)
        self.is_open = True
        self.ser.reset_input_buffer()
        self.tx_time_per_byte = 10_000.0 / self.baudrate  # ms: start bit, 8 bits, stop bit
        return True

    def writePort(self, packet: Sequence[int]) -> int:  # noqa: N802
        """Sends a packet and remembers how long it occupies the wire."""
        self._sent = len(packet)
        return self.ser.write(bytes(packet)) or 0

    def readPort(self, length: int) -> bytes:  # noqa: N802
        """Up to `length` bytes; none on a line that never falls silent, or the SDK would not return."""
        return b"" if self.elapsed > self._window + _BABBLE else bytes(self.ser.read(length))

    def setPacketTimeout(self, packet_length: int) -> None:  # noqa: N802
        """Starts the time that answers of so many bytes in all may take."""
        self._window = self.tx_time_per_byte * (self._sent + packet_length) + self._patience
        self.setPacketTimeoutMillis(self._window)

    def getCurrentTime(self) -> float:  # noqa: N802
        """Milliseconds of our clock."""
        return self._clock.now() * 1e3

    @property
    def elapsed(self) -> float:
        """Milliseconds since the last request."""
        return float(self.getCurrentTime() - self.packet_start_time)

    @property
    def expired(self) -> bool:
        """True when no answer is awaited any more."""
        return self.elapsed > self._window


class _Packets(Protocol2PacketHandler):  # type: ignore[misc]  # the SDK is untyped
    """The SDK's packets, with byte stuffing that reaches the wire.

    The SDK (4.1.0) stuffs a copy and sends the original: a goal of -131073 ticks, FF FF FD FF, would be taken
    for the start of a new packet.
    """

    def addStuffing(self, packet: list[int]) -> list[int]:  # noqa: N802
        """Stuffs the packet itself."""
        packet[:] = super().addStuffing(packet)
        return packet


class _Status(NamedTuple):
    """What one servo answered."""

    error: int  # error number, and ALERT
    data: bytes


class _Block(NamedTuple):
    """Adjacent registers that one request reads."""

    address: int
    size: int
    columns: tuple[tuple[int, Register], ...]  # column of the reading, register


class SerialBus:
    """Servos on a serial port: every answer is fresh and whole, or a fault with the servo's name.

    One bus owns its port; one thread uses the bus. A port that vanished is opened again by the next request.
    """

    def __init__(self, config: BusConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._packets = _Packets()
        self._port = _Port(config, clock)
        self._closed = False
        self._question: object = None  # what the last request asked
        self._quiet_at = 0.0  # s, when no late answer to it can arrive any more
        self._counts = dict.fromkeys(
            ("reads", "writes", "retries", "lost", "crc_errors", "alerts", "refused", "port_losses"), 0
        )
        self._open()

    def ping(self, ids: Sequence[int]) -> dict[int, int]:
        """The model number of each id that answers; silent ids are absent. Raises PortLost."""
        models = {}
        for servo in ids:
            for _ in range(self._config.retries + 1):
                with self._line("ping"):
                    model, result, _ = self._packets.ping(self._port, servo)
                if result == COMM_SUCCESS:
                    models[servo] = int(model)
                    break
        return models

    def read(self, register: Register, servo: int) -> int:
        """One register, in register units. Raises ServoSilent, PortLost, or BusFault when refused."""
        self._counts["reads"] += 1

        def send(missing: list[int]) -> int:
            return int(self._packets.readTx(self._port, servo, register.address, register.size))

        status = self._ask(send, (servo,), register.size)[servo]
        if status.error & ~ALERT:
            raise self._refused(f"read {register.name}", servo, status.error)
        return register.decode(int.from_bytes(status.data, "little"))

    def write(self, register: Register, servo: int, value: int) -> None:
        """Writes one register, confirmed. Raises ServoSilent, PortLost, or BusFault when refused."""
        self._counts["writes"] += 1
        data = list(register.encode(value).to_bytes(register.size, "little"))

        def send(missing: list[int]) -> int:
            return int(self._packets.writeTxOnly(self._port, servo, register.address, register.size, data))

        status = self._ask(send, (servo,), 0)[servo]
        if status.error & ~ALERT:
            raise self._refused(f"{register.name} = {value}", servo, status.error)

    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        """The same registers of several servos; adjacent registers share one request.

        Only servos that did not answer are asked again. Raises ServoSilent naming who is missing after all
        tries, PortLost, or BusFault when refused. `alerts` holds every servo's error byte.
        """
        self._counts["reads"] += 1
        values = np.empty((len(ids), len(registers)), np.int64)
        alerts = np.zeros(len(ids), np.uint8)
        for block in _blocks(registers):
            answers = self._read_block(block, ids)
            for row, servo in enumerate(ids):
                error, data = answers[servo]
                alerts[row] |= error
                for column, register in block.columns:
                    start = register.address - block.address
                    raw = data[start : start + register.size]
                    values[row, column] = int.from_bytes(raw, "little", signed=register.signed)
        return Reading(self._clock.now(), values, alerts)

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """One register of several servos in one packet; nobody answers, so refusals stay unseen.

        Raises PortLost.
        """
        self._counts["writes"] += 1
        data = bytearray()
        for servo, value in values.items():
            data.append(servo)
            data += register.encode(value).to_bytes(register.size, "little")
        with self._line(None):
            result = self._packets.syncWriteTxOnly(
                self._port, register.address, register.size, list(data), len(data)
            )
            self._require_sent(result)

    def statistics(self) -> dict[str, int]:
        """Counts since the start: calls, retried ids, lost and corrupt answers, alerts, refusals, ports."""
        return dict(self._counts)

    def close(self) -> None:
        """Releases the port. Never raises."""
        self._closed = True
        self._drop()

    # --- Asking --------------------------------------------------------------------------------------------

    def _read_block(self, block: _Block, ids: Sequence[int]) -> dict[int, _Status]:
        def send(missing: list[int]) -> int:
            place = (block.address, block.size)
            return int(self._packets.syncReadTx(self._port, *place, missing, len(missing), False))

        answers = self._ask(send, ids, block.size)
        for servo, status in answers.items():
            if status.error & ~ALERT:
                names = ", ".join(register.name for _, register in block.columns)
                raise self._refused(f"read {names}", servo, status.error)
        return answers

    def _ask(self, send: Callable[[list[int]], int], ids: Sequence[int], size: int) -> dict[int, _Status]:
        """The status of every id, each with `size` bytes of data, asking again those that stay silent."""
        question = object()  # the same registers asked for again are another question: old answers are old
        answers: dict[int, _Status] = {}
        missing = list(ids)
        garbled = self._counts["crc_errors"]
        for attempt in range(self._config.retries + 1):
            self._counts["retries"] += len(missing) if attempt else 0
            with self._line(question):
                self._require_sent(send(missing))
                answers |= self._receive(missing, size)
            missing = [servo for servo in missing if servo not in answers]
            if not missing:
                # An answer that was given up may still be on its way and must not answer the next question.
                self._quiet_at = self._clock.now() + self._config.timeout_ms * 1e-3 if attempt else 0.0
                return answers
            self._counts["lost"] += len(missing)
        raise self._silent(missing, self._counts["crc_errors"] > garbled)

    def _receive(self, servos: Sequence[int], size: int) -> dict[int, _Status]:
        """Whatever arrives in time, in any order: one lost answer costs one servo, not all behind it."""
        answers: dict[int, _Status] = {}
        self._port.setPacketTimeout((STATUS_OVERHEAD + size) * len(servos))
        while len(answers) < len(servos):
            packet, result = self._next_packet()
            if result == COMM_SUCCESS:
                status = _Status(packet[_ERROR], bytes(packet[_DATA:_CRC]))
                if packet[_ID] in servos and self._is_answer(status, size):
                    answers[packet[_ID]] = status
                    self._counts["alerts"] += bool(status.error & ALERT)
            elif self._port.expired:
                break
        return answers

    def _next_packet(self) -> tuple[list[int], int]:
        """The next status packet, or why there is none."""
        packet, result = self._packets.rxPacket(self._port, False)
        if result == COMM_SUCCESS:
            length = packet[5] + (packet[6] << 8)
            packet = packet[: length + 7]  # the SDK leaves the bytes that unstuffing freed
            if len(packet) < STATUS_OVERHEAD:  # the SDK accepts a shorter one whose checksum fits by chance
                result = COMM_RX_CORRUPT
        self._counts["crc_errors"] += result == COMM_RX_CORRUPT
        return packet, result

    @staticmethod
    def _is_answer(status: _Status, size: int) -> bool:
        """A refusal carries no data; anything else of the wrong length answers another question.

        A servo that received the request garbled says so; then asking again is right.
        """
        number = status.error & ~ALERT
        return number != ErrorNumber.CHECKSUM_ERROR and (number != 0 or len(status.data) == size)

    def _require_sent(self, result: int) -> None:
        if result != COMM_SUCCESS:
            raise OSError(errno.EIO, f"the port did not take the packet (SDK result {result})")

    def _refused(self, what: str, servo: int, error: int) -> BusFault:
        self._counts["refused"] += 1
        return BusFault(
            f"{servo_name(servo)} refused {what}: {describe_refusal(error)}. EEPROM (registers below 64) "
            f"needs torque off; goals must lie within the limits, the watchdog not be tripped; {_CHECK}."
        )

    def _silent(self, servos: Sequence[int], garbled: bool) -> ServoSilent:
        names = ", ".join(servo_name(servo) for servo in servos)
        cause = (
            "Answers came garbled: check for two servos with one id, for loose cables and for the baud rate"
            if garbled
            else "Check cables and servo power"
        )
        tries = self._config.retries + 1
        return ServoSilent(
            f"{names} did not answer on {self._config.port} at {self._config.baud} baud after {tries} tries. "
            f"{cause}; {_CHECK}.",
            servos,
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

    def _drop(self) -> None:
        with suppress(OSError, termios.error):
            if self._port.is_open:
                self._port.closePort()
        self._port.is_open = False
        self._port.is_using = False
        self._quiet_at = 0.0  # what was on its way is lost with the port


def _blocks(registers: Sequence[Register]) -> list[_Block]:
    """Runs of adjacent registers, whatever the order they are asked in."""
    runs: list[list[tuple[int, Register]]] = []
    end = None
    for column, register in sorted(enumerate(registers), key=lambda item: item[1].address):
        if register.address != end:
            runs.append([])
        runs[-1].append((column, register))
        end = register.address + register.size
    return [_block(run) for run in runs]


def _block(run: Sequence[tuple[int, Register]]) -> _Block:
    start, last = run[0][1].address, run[-1][1]
    return _Block(start, last.address + last.size - start, tuple(run))


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
