"""A serial line in virtual time at pyserial's seam: the real driver above, scripted bytes below."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import pytest
import serial

from robot import registers as reg
from robot.bus import BusConfig, SerialBus
from robot.chain import Faults, NoFaults, ServoChain
from robot.clock import ManualClock
from robot.emulator import EmulatorConfig, Wire
from robot.protocol import Parser
from robot.sim import SimPlant

PORT = "/dev/null"  # a device that is always there; nothing is read from it
GLANCE = 2e-6  # s that a look at the line takes at least, so that time passes for whoever polls it

Arrivals = Iterable[tuple[float, bytes]]  # when (s) the host receives what
Answer = Callable[[float, bytes], Arrivals]  # the time (s) and the bytes of a request to what comes back


class VirtualLine:
    """What `serial.Serial` returns, on a line where time passes only while somebody waits."""

    def __init__(self, answer: Answer) -> None:
        self.clock = ManualClock()
        self.requests: list[bytes] = []
        self._answer = answer
        self._coming: list[tuple[float, bytes]] = []
        self._buffer = b""
        self._timeout = 0.0
        self._device = Path(PORT).open()  # noqa: SIM115 - open as long as the line

    def __call__(self, port: str, baud: int, *, timeout: float, **_: Any) -> Self:
        self._timeout = timeout
        return self

    def set_low_latency_mode(self, on: bool) -> None:
        raise NotImplementedError

    def fileno(self) -> int:
        return self._device.fileno()

    def close(self) -> None:
        self._device.close()

    def reset_input_buffer(self) -> None:
        self._arrive()
        self._buffer = b""

    def write(self, data: bytes) -> int:
        self.requests.append(data)
        self._coming = sorted([*self._coming, *self._answer(self.clock.now(), data)])
        return len(data)

    @property
    def in_waiting(self) -> int:
        self._arrive()
        return len(self._buffer)

    def read(self, size: int = 1) -> bytes:
        taken, end = b"", self.clock.now() + self._timeout
        while len(taken) < size:
            self._arrive()
            wanted = size - len(taken)
            taken, self._buffer = taken + self._buffer[:wanted], self._buffer[wanted:]
            if len(taken) < size and not self._wait(end):
                break
        self.clock.time += GLANCE
        return taken

    def _wait(self, end: float) -> bool:
        """Until something arrives, at most until `end`; whether it did."""
        arrives = bool(self._coming) and self._coming[0][0] <= end
        self.clock.sleep_until(self._coming[0][0] if arrives else end)
        return arrives

    def _arrive(self) -> None:
        while self._coming and self._coming[0][0] <= self.clock.now():
            self._buffer += self._coming.pop(0)[1]


def open_bus(line: VirtualLine, config: BusConfig | None = None) -> SerialBus:
    """The real driver on that line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serial, "Serial", line)
        return SerialBus((config or BusConfig()).model_copy(update={"port": PORT}), line.clock)


def emulated(config: EmulatorConfig, plant: SimPlant, faults: Faults | None = None) -> Answer:
    """The emulator's servos and cable, as an answer to requests."""
    chain, wire = ServoChain(plant, faults or NoFaults()), Wire(config)
    for servo in plant.servos.values():
        servo.load(reg.RETURN_DELAY_TIME, config.return_delay_us // 2)

    def answer(now: float, request: bytes) -> Arrivals:
        plant.advance_to(now)
        (packet,) = Parser().feed(request)
        return wire.schedule(now, packet.size, config.baud, chain.answer(packet, config.baud))

    return answer
