"""D'Claw hardware without the hardware: servos on a pseudo-terminal and an MJPEG camera, in real time.

A `SimPlant` is the world behind both. `python -m robot.emulator` prints one JSON line with the port and the
camera's URL, and serves until its standard input closes; any Dynamixel program and any browser can connect.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from rich.console import Console

from robot import registers as reg
from robot.chain import Delivery, Faults, NoFaults, Reply, ServoChain
from robot.emulated_camera import CameraSignal, SensorNoise
from robot.faults import (
    ADAPTER,
    CAMERA,
    WIRE,
    Change,
    FaultConfig,
    FaultSchedule,
    mangled,
    require_servos,
    split,
)
from robot.mjpeg import CameraServer, FrameFeed
from robot.protocol import BITS_PER_BYTE, Parser
from robot.servo import Servo
from robot.sim import FINGER_SERVOS, VALVE_SERVO, SimConfig, SimPlant
from robot.types import Baud, Config, MissingPart

TICK = 0.02  # s; physics never lags further behind than this, so an idle bus still falls and trips watchdogs
WAKE = 2e-4  # s before an answer is due from which on its time is awaited without sleeping
WAKING = 5e-5  # s that we take at least to see what a driver wrote: 5th percentile of 600; the median is 1e-4
TICK_TIME = 1e-3  # s that it takes at most; answers that are due come first
IDLE = 0.1  # s of silence in the middle of a packet after which a servo waits for a new one
USB_CHUNK = 62  # bytes that an FTDI chip sends at once without waiting for its latency timer
USB_BUFFER = 384  # bytes that such a chip takes ahead of the line
BACKLOG = 0.004  # s that they take at 1 Mbps; while the line is busy for longer, the host has to wait
STATUS_PERIOD = 0.5  # s between looks at events and counters, for a terminal
SHOWN = (
    reg.OPERATING_MODE,
    reg.TORQUE_ENABLE,
    reg.BUS_WATCHDOG,
    reg.HARDWARE_ERROR_STATUS,
    reg.GOAL_POSITION,
)
HELD = TypeAdapter(dict[int, float])  # servo id -> rad
SPEEDS = {getattr(termios, name): int(name[1:]) for name in dir(termios) if re.fullmatch(r"B[1-9]\d*", name)}


class EmulatorConfig(Config):
    """How the emulated cable, adapter and camera behave."""

    link: str | None = None  # a stable path for the port, as a udev name would be; None: /dev/pts/N
    baud: Baud = 1_000_000  # of the servos when they are switched on
    return_delay_us: int = Field(500, ge=0, le=508)  # register 9 when switched on; 500 is the factory value
    wire: bool = True  # False: bytes move at memory speed, for fast tests
    usb_latency_ms: float = Field(1.0, ge=0, le=255)  # the adapter's latency timer; FTDI ships with 16
    latency_file: Path | None = None  # where clients find and set the timer, as sysfs has it for real ones
    faults: tuple[FaultConfig, ...] = ()
    fault_seed: int = Field(0, ge=0)  # another number, another run of bad luck
    width: int = Field(256, ge=16, le=1920)  # px; measured 0.15 of a core at 30 frames/s
    height: int = Field(256, ge=16, le=1080)
    fps: float = Field(30.0, gt=0, le=120)
    noise: float = Field(1.0, ge=0, le=50)  # of 255, of each value of each picture: a sensor has some
    jpeg_quality: int = Field(92, ge=10, le=100)
    http_port: int = Field(0, ge=0, le=65535)  # 0: any free one
    linger: float = Field(2.0, ge=0)  # s that it outlives its parent, for the servos' watchdogs to be seen


class Wire:
    """When bytes arrive: one half-duplex line at the baud rate, then a USB adapter that batches them."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._timed = config.wire
        self.latency = config.usb_latency_ms * 1e-3 if config.wire else 0.0  # s, the adapter's timer
        self._free = 0.0  # s, when the line is idle again
        self._arrived = 0.0  # s, when the last reply reached the adapter

    def backlog(self, now: float) -> float:
        """For how many seconds the line is still busy with what was asked."""
        return max(0.0, self._free - now)

    def schedule(
        self, now: float, request: int, baud: int, replies: Sequence[Reply]
    ) -> list[tuple[float, bytes]]:
        """The times (s) at which the host receives the replies to a request of so many bytes, sent now."""
        byte_time = BITS_PER_BYTE / baud if self._timed else 0.0
        time = max(now, self._free) + request * byte_time
        arrivals = []
        for reply in replies:
            time += (reply.delay if self._timed else 0.0) + len(reply.data) * byte_time
            self._arrived = max(self._arrived, time + reply.late)  # nothing overtakes what is late
            arrivals.append((self._arrived, reply.data))
        self._free = time
        return usb_batches(arrivals, self.latency)


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


class LatencyTimer:
    """The adapter's latency timer, which clients can read and set through a file as in sysfs."""

    def __init__(self, wire: Wire, path: Path | None) -> None:
        self._wire, self._path = wire, path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def set(self, milliseconds: float) -> None:
        """Sets it from the inside; the file then says so."""
        self._wire.latency = milliseconds * 1e-3
        if self._path is not None:
            self._path.write_text(f"{milliseconds:g}\n", encoding="ascii")

    def look(self) -> None:
        """Takes over what a client has written, if it is 1 to 255 ms, the range of FTDI's driver."""
        if self._path is None:
            return
        with suppress(OSError, ValueError):
            milliseconds = float(self._path.read_text(encoding="ascii"))
            if 1 <= milliseconds <= 255:
                self._wire.latency = milliseconds * 1e-3

    def close(self) -> None:
        """Removes the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class SerialLine:
    """A pseudo-terminal: this end is the adapter's wire, the other end a port that any driver can open."""

    def __init__(self, link: str | None = None) -> None:
        self._link = Path(link) if link else None
        self.device = ""
        self._plugged = False
        self.plug_in()

    @property
    def port(self) -> str:
        """The path to open."""
        return str(self._link or self.device)

    @property
    def plugged(self) -> bool:
        """True while there is a port."""
        return self._plugged

    @property
    def baud(self) -> int:
        """The speed that the driver chose, 0 when it is no standard one."""
        speed = termios.tcgetattr(self._master)[5] if self._plugged else 0
        return SPEEDS.get(speed, 0)

    def read(self, timeout: float) -> bytes:
        """What the driver wrote, or nothing after the timeout (s)."""
        if not self._plugged:
            time.sleep(timeout)
            return b""
        if not select.select([self._master], [], [], timeout)[0]:
            return b""
        with suppress(BlockingIOError):  # flushed by the driver in between
            return os.read(self._master, USB_BUFFER)
        return b""

    def write(self, data: bytes) -> None:
        """Sends to the driver; what does not fit into the terminal's buffer is lost, as in a real adapter."""
        if self._plugged:
            with suppress(BlockingIOError):
                os.write(self._master, data)

    def plug_in(self) -> None:
        """A new port, to which the link then leads. Raises OSError when the link cannot be made."""
        self._master, self._slave = os.openpty()  # our slave end keeps the port alive between clients
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.device = os.ttyname(self._slave)
        self._plugged = True
        try:
            self._point_link()
        except OSError:
            self.unplug()
            raise

    def unplug(self) -> None:
        """The port vanishes, and with it the link: reads and writes of who has it open fail."""
        if not self._plugged:
            return
        self._plugged = False
        if self._link and self._link.is_symlink() and os.readlink(self._link) == self.device:
            self._link.unlink()
        os.close(self._master)
        os.close(self._slave)

    def close(self) -> None:
        """Unplugs the port for good. May be repeated."""
        self.unplug()

    def _point_link(self) -> None:
        """Replaces the link in one step: a driver that is just opening it finds the old or the new port."""
        if self._link is None:
            return
        fresh = self._link.with_name(f".{self._link.name}.{os.getpid()}")
        fresh.symlink_to(self.device)
        fresh.replace(self._link)


class FaultyCable:
    """What the wire does to status packets: the schedule's faults, on top of another cable's."""

    def __init__(self, schedule: FaultSchedule, cable: Faults) -> None:
        self._schedule, self._cable = schedule, cable
        self.spoiled: Counter[str] = Counter()  # packets by kind of fault

    def filter(self, reply: bytes, servo: int) -> Sequence[Delivery]:
        """A servo's reply as it reaches the adapter."""
        deliveries = self._cable.filter(reply, servo)
        for fault in [happening.fault for happening in self._schedule.active]:
            hits = fault.kind in WIRE and fault.concerns(servo)
            if hits and self._schedule.luck.random() < fault.probability:
                self.spoiled[fault.kind] += 1
                deliveries = [spoiled for good in deliveries for spoiled in self._spoil(fault, good)]
        return deliveries

    def _spoil(self, fault: FaultConfig, good: Delivery) -> Iterator[Delivery]:
        late = fault.amount * 1e-3 if fault.kind == "late" else 0.0
        for data in mangled(fault.kind, good.data, self._schedule.luck):
            yield Delivery(data, good.delay + late)


class Emulator:
    """A plant that answers on a serial port and shows itself to a camera, in real time, until closed.

    Two threads share the plant: one serves the port and advances physics to the present on each packet and
    50 times a second; the other renders, only while somebody watches.
    """

    def __init__(
        self, config: EmulatorConfig, plant: SimPlant, faults: Faults | None = None, *, camera: bool = True
    ) -> None:
        """Port and camera are there on return, and the configured faults' time runs.

        Raises MissingPart when there is no OpenGL for the camera, ValueError for faults of unknown servos.
        """
        require_servos(config.faults, plant.servos)
        self.config = config
        self.events = plant.events
        self._plant = plant
        outside, inside = split(config.faults)
        self._faults = FaultSchedule(outside, config.fault_seed)
        self._cable = FaultyCable(self._faults, faults or NoFaults())
        self._chain = ServoChain(plant, self._cable)
        self._parser = Parser()
        self._wire = Wire(config)
        self._line = SerialLine(config.link)
        self._feed = FrameFeed()
        self._signal = self._camera_signal(config)
        self._plant_lock = threading.Lock()
        self._stop = threading.Event()
        self._epoch = time.monotonic() - plant.now()
        self._outbox: list[tuple[float, bytes]] = []  # (when the host receives, bytes), in order
        self._looked = 0.0  # s, when we last began to wait for bytes
        self._heard = 0.0  # s, the last byte from the host
        self._told: SimpleQueue[tuple[FaultConfig | None, threading.Event]] = SimpleQueue()
        self._slow: float | None = None  # ms of the latency timer by an active fault
        self._later = 0  # faults told at run time; each has a seed of its own
        self._counts = {"packets": 0, "corrupt": 0, "replies": 0, "frames": 0}
        self._power_on()
        try:
            self._timer = LatencyTimer(self._wire, config.latency_file)
            self._set_latency()
            self._server = CameraServer(
                self._feed, self.state, config.http_port, self._inject_json, self.heal, self._hold_json
            )
        except OSError:
            self._line.close()
            raise
        plant.inject(FaultSchedule(inside, config.fault_seed))
        self._faults.begin(plant.now())
        self._filming = threading.Event()  # the first picture is there, or why there is none
        self._film_problem = ""
        self._threads = [threading.Thread(target=self._serve, name="servos", daemon=True)]
        if camera:
            self._threads.append(threading.Thread(target=self._film, name="film", daemon=True))
        for thread in self._threads:
            thread.start()
        if camera and not (self._filming.wait() and not self._film_problem):
            self.close()
            raise MissingPart(self._film_problem)

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
            servos = {
                str(id): {**_registers(servo), "present_position": int(ticks) + servo.shift}
                for (id, servo), ticks in zip(self._plant.servos.items(), truth["encoders"], strict=True)
            }
            world = {"time": truth["time"], "valve": truth["valve"], "servos": servos}
        return {**self.ready(), "pid": os.getpid(), **world, **self._counts, "faults": self._all_faults()}

    @property
    def counts(self) -> dict[str, int]:
        """Packets heard and answered, pictures drawn, packets that faults spoiled."""
        return {**self._counts, **self._cable.spoiled}

    def inject(self, fault: FaultConfig) -> None:
        """Has something go wrong besides what was configured; on return it does, if it is due at once.

        Its times count from now. Raises ValueError for a servo that is not there.
        """
        require_servos((fault,), self._plant.servos)
        self._have_taken(fault)

    def heal(self) -> None:
        """Ends all faults; what they have done to servos stays done."""
        self._have_taken(None)

    def hold_by_hand(self, angles: Mapping[int, float]) -> None:
        """Somebody's hands turn these joints (servo id: rad) and hold them; all others they let go.

        Raises ValueError for a servo that is not there or under torque.
        """
        with self._plant_lock:
            self._plant.advance_to(self._now())
            self._plant.hold_by_hand(angles)

    def _have_taken(self, order: FaultConfig | None) -> None:
        """Returns when the thread that serves the port has taken a fault, or None, the end of all."""
        done = threading.Event()
        self._told.put((order, done))
        while not (done.wait(TICK) or self._stop.is_set()):
            pass

    def close(self) -> None:
        """Unplugs port and camera; the plant stays the caller's. May be repeated."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._server.close()
        self._timer.close()
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
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
        """A bug of ours must not look like dead servos: then the port vanishes."""
        try:
            self._serve_until_stopped()
        except BaseException:
            self._stop.set()
            self._line.unplug()
            raise

    def _serve_until_stopped(self) -> None:
        tick = 0.0
        while not self._stop.is_set():
            self._meet_faults()
            wake = min(tick, self._faults.next_time, self._due - WAKE)
            self._receive(self._read(max(0.0, wake - self._now())))
            self._send()
            if self._now() >= tick and self._due > self._now() + TICK_TIME:
                self._advance()
                self._timer.look()
                tick = self._now() + TICK

    def _read(self, timeout: float) -> bytes:
        """What the host sends; while more is waiting than an adapter keeps, the host has to wait."""
        self._looked = self._now()
        surplus = self._wire.backlog(self._looked) - BACKLOG
        if surplus <= 0:
            return self._line.read(timeout)
        time.sleep(min(timeout, surplus))
        return b""

    def _receive(self, data: bytes) -> None:
        if not data:
            return
        now = self._arrival()
        if self._parser.pending and now - self._heard > IDLE:
            self._parser.reset()
        self._heard = now
        for packet in self._parser.feed(data):
            self._counts["packets" if packet.intact else "corrupt"] += 1
            baud = self._line.baud
            with self._plant_lock:
                self._plant.advance_to(self._now())
                replies = self._chain.answer(packet, baud)
            self._counts["replies"] += len(replies)
            if replies or baud:
                self._outbox += self._wire.schedule(now, packet.size, baud, replies)

    def _arrival(self) -> float:
        """When what was just read came: waking takes time, and what came while we were busy has waited.

        A wire would have begun to carry it at once.
        """
        now = self._now()
        waited = now - self._looked
        return now - WAKING if waited > WAKING else self._looked

    @property
    def _due(self) -> float:
        """When the host receives something next, s."""
        return self._outbox[0][0] if self._outbox else math.inf

    def _send(self) -> None:
        while self._due <= self._now() + WAKE:
            while self._now() < self._due:
                pass
            self._line.write(self._outbox.pop(0)[1])

    # --- Faults ---------------------------------------------------------------------------------------------

    def _inject_json(self, body: bytes) -> dict[str, Any]:
        try:
            fault = FaultConfig.model_validate_json(body)
        except ValidationError as error:
            wrong = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
            raise ValueError("\n".join(f"{place or 'fault'}: {words}" for place, words in wrong)) from error
        self.inject(fault)
        return fault.model_dump(mode="json")

    def _hold_json(self, body: bytes) -> dict[str, Any]:
        try:
            angles = HELD.validate_json(body)
        except ValidationError as error:
            raise ValueError('expected angles in rad by servo id, such as {"12": 0.3}') from error
        self.hold_by_hand(angles)
        return {str(servo): angle for servo, angle in angles.items()}

    def _all_faults(self) -> list[dict[str, Any]]:
        """What is wrong at present, and whom it concerns; nobody means everybody."""
        outside = [(happening.fault.kind, happening.fault.servo) for happening in [*self._faults.active]]
        mine = [{"kind": kind, "servos": [] if servo is None else [servo]} for kind, servo in outside]
        return [*mine, *({"kind": kind, "servos": servos} for kind, servos in self._plant.faults)]

    def _meet_faults(self) -> None:
        """Has begin and end what is due of the cable and the adapter, and takes what was told."""
        told = list(self._newly_told())
        for order, _ in told:
            self._take(order)
        changes = self._faults.changes(self._now())
        for change in changes:
            self._tell(change)
        if told or changes:
            self._adapt()
        for _, done in told:
            done.set()

    def _newly_told(self) -> Iterator[tuple[FaultConfig | None, threading.Event]]:
        with suppress(Empty):
            while True:
                yield self._told.get_nowait()

    def _take(self, fault: FaultConfig | None) -> None:
        if fault is None:
            self._faults.clear()
            self._plant.heal()
            self.events.emit("over", "all faults are over", "info")
            return
        if fault.kind in WIRE | ADAPTER | CAMERA:
            self._faults.add(fault, self._now())
            return
        self._later += 1
        with self._plant_lock:
            self._plant.advance_to(self._now())
            self._plant.inject(FaultSchedule([fault], self.config.fault_seed + self._later))

    def _adapt(self) -> None:
        """Port and latency timer as the active faults have them."""
        active = [happening.fault for happening in self._faults.active]
        unplugged = any(fault.kind == "unplug" for fault in active)
        slow = max([fault.amount for fault in active if fault.kind == "usb-latency"], default=None)
        if slow != self._slow:
            self._slow = slow
            self._set_latency()
        if unplugged and self._line.plugged:
            self._line.unplug()
            self._outbox.clear()
            self._parser.reset()
        elif not (unplugged or self._line.plugged):
            self._line.plug_in()
            self._set_latency()

    def _set_latency(self) -> None:
        """As an active fault has it, or as after plugging in."""
        usual = self.config.usb_latency_ms if self.config.wire else 0.0
        self._timer.set(usual if self._slow is None else self._slow)

    def _tell(self, change: Change) -> None:
        fault = change.occurrence.fault
        whom = f" of {reg.servo_name(fault.servo)}" if fault.servo is not None else ""
        if change.begins:
            self.events.emit(fault.kind, f"{fault.kind}{whom}")
        else:
            self.events.emit("over", f"{fault.kind}{whom} is over", "info")

    # --- Camera ---------------------------------------------------------------------------------------------

    def _camera_signal(self, config: EmulatorConfig) -> CameraSignal:
        luck, shape = np.random.default_rng([config.fault_seed, 1]), (config.height, config.width, 3)
        noise = SensorNoise(config.noise, shape, np.random.default_rng(0))
        return CameraSignal(self._feed, noise, config.jpeg_quality, luck, self._camera_faults)

    def _camera_faults(self) -> list[FaultConfig]:
        """Those that are active; another thread changes what is."""
        return [happening.fault for happening in [*self._faults.active] if happening.fault.kind in CAMERA]

    def _film(self) -> None:
        """Draws from the first picture to the last, because an OpenGL context belongs to one thread."""
        try:
            self._show()
        except MissingPart as error:
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
            self._signal.attend()
            if self._feed.watched:
                self._show()

    def _show(self) -> None:
        self._advance()
        image = self._plant.render(self.config.width, self.config.height)
        self._signal.show(self._now(), image)
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
    guide_servo: int | None = None
    camera: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        """All servos on the bus."""
        guides = () if self.guide_servo is None else (self.guide_servo,)
        return (*self.servos, self.object_servo, *guides)

    def plant(self) -> SimPlant:
        """The world behind the wire. Raises MissingPart without ROBEL's model files."""
        return SimPlant(self.sim, self.servos, self.object_servo, guide_servo=self.guide_servo)


def emulate_forever(setup: EmulatorSetup, console: Console) -> None:
    """Serves an emulated D'Claw until KeyboardInterrupt: says how to connect, what happens, what happened.

    Raises MissingPart when there is no OpenGL for the camera, OSError when link or network port are taken.
    """
    plant = setup.plant()
    with Emulator(setup.emulator, plant, camera=setup.camera) as emulator:
        console.print(how_to_connect(emulator, setup), highlight=False, soft_wrap=True, markup=False)
        with suppress(KeyboardInterrupt), console.status("") as status:
            while True:
                _tell(emulator, console)
                status.update(_numbers(emulator))
                time.sleep(STATUS_PERIOD)
        _tell(emulator, console)
        console.print(_numbers(emulator), highlight=False)


def how_to_connect(emulator: Emulator, setup: EmulatorSetup) -> str:
    """What to type to reach an emulator's servos and camera, and to break something."""
    port, camera, config = emulator.port, emulator.camera, setup.emulator
    url = camera.removesuffix("/cam.mjpg")
    check = {
        "bus.port": port,
        "bus.baud": config.baud,
        "camera.source": camera,
        "camera.width": config.width,
        "camera.height": config.height,
        "camera.crop": "null",
    }
    if setup.guide_servo is not None:
        check["dclaw.guide_id"] = setup.guide_servo
    told = " ".join(f"--set hw.{name}={value}" for name, value in check.items())
    ids = ", ".join(map(str, setup.ids))
    return "\n".join(
        [
            f"servos  {port}: {ids} at {config.baud} baud",
            f"camera  {camera if setup.camera else 'none'}",
            f"look    {url}/ in a browser, {url}/state as JSON",
            f'break   curl -d \'{{"kind": "overload", "servo": 12}}\' {url}/faults',
            f"check   .venv/bin/python run_robot.py check --hw dclaw {told}",
            f'SDK     port = dynamixel_sdk.PortHandler("{port}"); port.setBaudRate({config.baud})',
            "docs/emulator.md tells more; Ctrl-C ends it.",
        ]
    )


def _tell(emulator: Emulator, console: Console) -> None:
    """A line for each fault that has begun or ended since the last look."""
    for event in emulator.events.drain():
        console.print(f"{event.time:9.2f} s  {event.text}", highlight=False, markup=False)


def _numbers(emulator: Emulator) -> str:
    return ", ".join(f"{count} {name}" for name, count in emulator.counts.items())


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
    with Emulator(setup.emulator, setup.plant(), camera=setup.camera) as emulator:
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
    try:
        main()
    except MissingPart as part:
        sys.exit(str(part))
