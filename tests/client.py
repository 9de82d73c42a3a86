"""Other people's clients of an emulated bus: the unmodified dynamixel_sdk, and bare bytes by pyserial."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import dynamixel_sdk as sdk
import serial

from robot import registers as reg
from robot.protocol import Instruction, Packet, Parser, build


class Driver:
    """The SDK as its documentation uses it, only more patient: its 34 ms are not enough on a busy machine."""

    def __init__(self, port: str, baud: int = 1_000_000) -> None:
        self.port = sdk.PortHandler(port)
        self.port.openPort()
        self.port.setBaudRate(baud)
        self.patience = 800.0  # ms
        self.port.setPacketTimeout = lambda _: self.port.setPacketTimeoutMillis(self.patience)
        self.packets = sdk.PacketHandler(2.0)

    def hears_nothing(self, name: str, *arguments: int) -> bool:
        """True when the SDK's method of that name gets no answer in the SDK's usual time."""
        usual, self.patience = self.patience, 34.0
        result = getattr(self, name)(*arguments)
        self.patience = usual
        return sdk.COMM_RX_TIMEOUT in result

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.packets, name)
        return lambda *arguments: method(self.port, *arguments)

    def read(self, register: reg.Register, servo: int) -> int:
        data, result, _ = self.packets.readTxRx(self.port, servo, register.address, register.size)
        assert result == sdk.COMM_SUCCESS
        return register.decode(bytes(data))

    def write(self, register: reg.Register, servo: int, value: int) -> int:
        """The error byte of the status packet."""
        data = list(register.encode(value))
        result, error = self.packets.writeTxRx(self.port, servo, register.address, register.size, data)
        assert result == sdk.COMM_SUCCESS
        return int(error)


def wait_until(condition: Callable[[], bool], timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.002)


class Bare:
    """A client that only sends and listens, whatever comes."""

    def __init__(self, port: str, baud: int = 1_000_000) -> None:
        self.serial = serial.Serial(port, baud, timeout=0.002)

    def ping(self, servo: int) -> None:
        self.serial.write(build(servo, Instruction.PING))

    def read(self, register: reg.Register, servo: int) -> None:
        parameters = register.address.to_bytes(2, "little") + register.size.to_bytes(2, "little")
        self.serial.write(build(servo, Instruction.READ, parameters))

    def hear(self, size: int, timeout: float = 5.0) -> bytes:
        """So many bytes, or what came within the timeout (s)."""
        heard, deadline = b"", time.monotonic() + timeout
        while len(heard) < size and time.monotonic() < deadline:
            heard += self.serial.read(size - len(heard))
        return heard

    def packets(self, size: int) -> list[Packet]:
        """What so many bytes hold."""
        return list(Parser().feed(self.hear(size)))

    def close(self) -> None:
        self.serial.close()
