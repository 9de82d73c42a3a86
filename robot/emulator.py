"""D'Claw hardware without the hardware: servos on a pseudo-terminal and an MJPEG camera, in real time.

A `SimPlant` is the world behind both. `python -m robot.emulator` prints one JSON line with the port and the
camera's URL, and serves until its standard input closes; any Dynamixel program and any browser can connect.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic import Field

from robot import registers as reg
from robot.chain import Faults, NoFaults, Reply, ServoChain
from robot.mjpeg import CameraServer, FrameFeed
from robot.protocol import Parser
from robot.servo import Servo
from robot.sim import FINGER_SERVOS, VALVE_SERVO, ZERO_TICKS, SimConfig, SimPlant
from robot.types import Baud, Config

TICK = 0.02  # s; physics never lags further behind than this, so an idle bus still falls and trips watchdogs
IDLE = 0.1  # s of silence in the middle of a packet after which a servo waits for a new one
USB_CHUNK = 62  # bytes that an FTDI chip sends at once without waiting for its latency timer
BITS_PER_BYTE = 10  # start, 8 data, stop
SHOWN = (
    reg.OPERATING_MODE,
    reg.TORQUE_ENABLE,
    reg.BUS_WATCHDOG,
    reg.HARDWARE_ERROR_STATUS,
    reg.GOAL_POSITION,
)
SPEEDS = {getattr(termios, name): int(name[1:]) for name in dir(termios) if re.fullmatch(r"B[1-9]\d*", name)}


class EmulatorConfig(Config):
    """How the emulated cable, adapter and camera behave."""

    link: str | None = None  # a stable path for the port, as a udev name would be; None: /dev/pts/N
    baud: Baud = 1_000_000  # of the servos when they are switched on
    return_delay_us: int = Field(500, ge=0, le=508)  # register 9 when switched on; 500 is the factory value
    wire: bool = True  # False: bytes move at memory speed, for fast tests
    usb_latency_ms: float = Field(1.0, ge=0, le=255)  # the adapter's latency timer; FTDI ships with 16
    width: int = Field(256, ge=16, le=1920)  # px; measured 0.15 of a core at 30 frames/s
    height: int = Field(256, ge=16, le=1080)
    fps: float = Field(30.0, gt=0, le=120)
    jpeg_quality: int = Field(92, ge=10, le=100)
    http_port: int = Field(0, ge=0, le=65535)  # 0: any free one
    linger: float = Field(2.0, ge=0)  # s that it outlives its parent, for the servos' watchdogs to be seen


class Wire:
    """When bytes arrive: one half-duplex line at the baud rate, then a USB adapter that batches them."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._timed = config.wire
        self._latency = config.usb_latency_ms * 1e-3
        self._free = 0.0  # s, when the line is idle again

    def schedule(
        self, now: float, request: int, baud: int, replies: Sequence[Reply]
    ) -> list[tuple[float, bytes]]:
        """The times (s) at which the host receives the replies to a request of so many bytes, sent now."""
        if not self._timed:
            return [(now, b"".join(reply.data for reply in replies))] if replies else []
        byte_time = BITS_PER_BYTE / baud
        time = max(now, self._free) + request * byte_time
        arrivals = []
        for reply in replies:
            time += reply.delay + len(reply.data) * byte_time
            arrivals.append((time, reply.data))
        self._free = time
        return usb_batches(arrivals, self._latency)


def usb_batches(arrivals: Sequence[tuple[float, bytes]], latency: float) -> list[tuple[float, bytes]]:
    """Groups what arrives at an adapter as it hands it to the host: by 62 bytes, or when its timer ticks."""
    if latency == 0:
        return list(arrivals)
    batches: list[tuple[float, bytes]] = []
    pending, due = b"", 0.0
    for arrival, data in arrivals:
        if pending and due <= arrival:
            batches.append((due, pending))
            pending = b""
        if not pending:
            due = (arrival // latency + 1) * latency
        pending += data
        if len(pending) >= USB_CHUNK:
            batches.append((arrival, pending))
            pending = b""
    return [*batches, (due, pending)] if pending else batches


class SerialLine:
    """A pseudo-terminal: this end is the adapter's wire, the other end a port that any driver can open."""

    def __init__(self, link: str | None = None) -> None:
        self.master, self._slave = os.openpty()  # our slave end keeps the port alive between clients
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.device = os.ttyname(self._slave)
        self._closed = False
        self._link = Path(link) if link else None
        try:
            self._point_link()
        except OSError:
            self.close()
            raise

    @property
    def port(self) -> str:
        """The path to open."""
        return str(self._link or self.device)

    @property
    def baud(self) -> int:
        """The speed that the driver chose, 0 when it is no standard one."""
        speed = termios.tcgetattr(self.master)[5]
        return SPEEDS.get(speed, 0)

    def read(self, timeout: float) -> bytes:
        """What the driver wrote, or nothing after the timeout (s)."""
        if not select.select([self.master], [], [], timeout)[0]:
            return b""
        with suppress(BlockingIOError):  # flushed by the driver in between
            return os.read(self.master, 4096)
        return b""

    def write(self, data: bytes) -> None:
        """Sends to the driver; what does not fit into the terminal's buffer is lost, as in a real adapter."""
        with suppress(BlockingIOError):
            os.write(self.master, data)

    def close(self) -> None:
        """Unplugs the port. May be repeated."""
        if self._closed:
            return
        self._closed = True
        if self._link and self._link.is_symlink() and os.readlink(self._link) == self.device:
            self._link.unlink()
        os.close(self.master)
        os.close(self._slave)

    def _point_link(self) -> None:
        """Replaces the link in one step: a driver that is just opening it finds the old or the new port."""
        if self._link is None:
            return
        fresh = self._link.with_name(f".{self._link.name}.{os.getpid()}")
        fresh.symlink_to(self.device)
        fresh.replace(self._link)


class Emulator:
    """A plant that answers on a serial port and shows itself to a camera, in real time, until closed.

    Two threads share the plant: one serves the port and advances physics to the present on each packet and
    50 times a second; the other renders, only while somebody watches.
    """

    def __init__(
        self, config: EmulatorConfig, plant: SimPlant, faults: Faults | None = None, *, camera: bool = True
    ) -> None:
        """Port and camera are there on return. Raises RuntimeError when there is no OpenGL for the camera."""
        self.config = config
        self._plant = plant
        self._chain = ServoChain(plant, faults or NoFaults())
        self._parser = Parser()
        self._wire = Wire(config)
        self._line = SerialLine(config.link)
        self._feed = FrameFeed()
        self._plant_lock = threading.Lock()
        self._stop = threading.Event()
        self._epoch = time.monotonic() - plant.now()
        self._outbox: list[tuple[float, bytes]] = []  # (when the host receives, bytes), in order
        self._heard = 0.0  # s, the last byte from the host
        self._counts = {"packets": 0, "corrupt": 0, "replies": 0, "frames": 0}
        self._power_on()
        try:
            self._server = CameraServer(self._feed, self.state, config.http_port)
        except OSError:
            self._line.close()
            raise
        self._filming = threading.Event()  # the first picture is there, or why there is none
        self._film_problem = ""
        self._threads = [threading.Thread(target=self._serve, name="servos", daemon=True)]
        if camera:
            self._threads.append(threading.Thread(target=self._film, name="film", daemon=True))
        for thread in self._threads:
            thread.start()
        if camera and not (self._filming.wait() and not self._film_problem):
            self.close()
            raise RuntimeError(self._film_problem)

    @property
    def port(self) -> str:
        """The serial port to open."""
        return self._line.port

    @property
    def camera(self) -> str:
        """The URL of the video stream."""
        return self._server.url + "/cam.mjpg"

    def ready(self) -> dict[str, Any]:
        """Where to connect, and the camera's true projection: what a rig needs to know."""
        view = self._plant.config.camera.projection(self.config.width, self.config.height)
        return {"port": self.port, "camera": self.camera, "projection": view.tolist()}

    def state(self) -> dict[str, Any]:
        """What is true in the world behind the wire: servos, the valve's angle (rad), counters.

        Looking does not count as a packet: it feeds no watchdog.
        """
        with self._plant_lock:
            self._plant.advance_to(self._now())
            truth = self._plant.truth
            angles = np.rint(truth["qpos"] / reg.RAD_PER_TICK).astype(int) + ZERO_TICKS
            servos = {
                str(id): {**_registers(servo), "present_position": int(ticks) + servo.shift}
                for (id, servo), ticks in zip(self._plant.servos.items(), angles, strict=True)
            }
            world = {"time": truth["time"], "valve": truth["valve"], "servos": servos}
            return {**self.ready(), "pid": os.getpid(), **world, **self._counts}

    def close(self) -> None:
        """Unplugs port and camera; the plant stays the caller's. May be repeated."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._server.close()
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _power_on(self) -> None:
        """Servos as they come out of the box, or as the configuration says that they were left."""
        for servo in self._plant.servos.values():
            servo.load(reg.RETURN_DELAY_TIME, self.config.return_delay_us // 2)
            servo.load(reg.BAUD_RATE, reg.BAUD_CODES[self.config.baud])

    def _now(self) -> float:
        return time.monotonic() - self._epoch

    def _advance(self) -> None:
        with self._plant_lock:
            self._plant.advance_to(self._now())

    def _serve(self) -> None:
        tick = 0.0
        while not self._stop.is_set():
            wake = min([tick, *(when for when, _ in self._outbox[:1])])
            self._receive(self._line.read(max(0.0, wake - self._now())))
            self._send()
            if self._now() >= tick:
                self._advance()
                tick = self._now() + TICK

    def _receive(self, data: bytes) -> None:
        now = self._now()
        if self._parser.pending and now - self._heard > IDLE:
            self._parser.reset()
        self._heard = now if data else self._heard
        for packet in self._parser.feed(data):
            self._counts["packets" if packet.intact else "corrupt"] += 1
            baud = self._line.baud
            with self._plant_lock:
                self._plant.advance_to(self._now())
                replies = self._chain.answer(packet, baud)
            self._counts["replies"] += len(replies)
            if replies or baud:
                self._outbox += self._wire.schedule(now, packet.size, baud, replies)

    def _send(self) -> None:
        while self._outbox and self._outbox[0][0] <= self._now():
            self._line.write(self._outbox.pop(0)[1])

    def _film(self) -> None:
        """Draws from the first picture to the last, because an OpenGL context belongs to one thread."""
        try:
            self._show()
        except RuntimeError as error:
            self._film_problem = str(error)
            return
        finally:
            self._filming.set()
        self._film_while_watched()
        self._plant.close()

    def _film_while_watched(self) -> None:
        due = self._now()
        while not self._stop.is_set():
            due = max(due + 1 / self.config.fps, self._now())
            self._stop.wait(due - self._now())
            if self._feed.watched:
                self._show()

    def _show(self) -> None:
        self._advance()
        image = self._plant.render(self.config.width, self.config.height)
        self._feed.publish(image, self.config.jpeg_quality)
        self._counts["frames"] += 1


def _registers(servo: Servo) -> dict[str, int]:
    """The registers that tell whether a servo acts, and on what."""
    return {register.name: servo.value(register) for register in SHOWN}


class EmulatorSetup(Config):
    """All that the emulator's process must know."""

    emulator: EmulatorConfig = EmulatorConfig()
    sim: SimConfig = SimConfig()
    servos: tuple[int, ...] = FINGER_SERVOS
    object_servo: int = VALVE_SERVO
    camera: bool = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Emulates a D'Claw until standard input closes (then lingers), or until SIGTERM or Ctrl-C."""
    options = _parse_arguments(arguments)
    setup = EmulatorSetup.model_validate_json(options.config_json)
    if options.link:
        setup = setup.model_copy(
            update={"emulator": setup.emulator.model_copy(update={"link": options.link})}
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    plant = SimPlant(setup.sim, setup.servos, setup.object_servo)
    with Emulator(setup.emulator, plant, camera=setup.camera) as emulator:
        print(json.dumps(emulator.ready()), flush=True)
        if options.keep:
            stop.wait()
        else:
            _wait_for_parent(stop)
            stop.wait(setup.emulator.linger)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m robot.emulator", description=main.__doc__)
    parser.add_argument("--config-json", default="{}", help='{"emulator": {...}, "sim": {...}}')
    parser.add_argument("--link", help="a stable path for the serial port, for example /tmp/ttyDclaw")
    parser.add_argument("--keep", action="store_true", help="stay when standard input closes")
    return parser.parse_args(arguments)


def _wait_for_parent(stop: threading.Event) -> None:
    """Returns when standard input closes, which happens when the parent ends in whatever way."""
    while not stop.is_set():
        if select.select([sys.stdin], [], [], 0.1)[0] and not os.read(sys.stdin.fileno(), 4096):
            return


if __name__ == "__main__":
    main()
