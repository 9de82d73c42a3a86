"""Preflight: looks at everything a run needs, moves nothing, and says for each failure what to type."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robot import registers as reg
from robot.bus import SerialBus
from robot.camera import OpenCvCamera
from robot.clock import SystemClock
from robot.dynamixel import BLOCK, limit_ticks
from robot.registers import Register, servo_name
from robot.rig import RigConfig, build, emulate
from robot.sim import SimPlant
from robot.types import BusFault, CameraFault, Fault, Floats, ValveGeometry
from robot.world import find_robel

Status = Literal["OK", "WARN", "FAIL"]
COLOURS: dict[Status, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red"}

USB_SERIAL = Path("/sys/bus/usb-serial/devices")
MEMORY_DEVICES = 1  # major number of /dev/null, /dev/zero and their like: character devices, but no ports
READS = 200  # of the whole robot, for error rate and speed
READ_TIME = 2.5  # s after which the measurement stops anyway
FILM_TIME = 1.0  # s of frames
HOT = 60  # deg C; the servo itself stops at 80
VOLTAGE_MARGIN = 0.5  # V to the servo's own limits
DARK, BRIGHT = 12.0, 243.0  # mean of 0..255 that no lit scene has
DISK_LOW, DISK_FULL = 2e9, 2e8  # bytes; a night of episodes is about 1e9
WIRING = "switch the servo power on, check the chain's cables from the silent servo backwards"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table: what was looked at, what was found, what to type if it is not well."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def check(config: RigConfig, console: Console, *, sysfs: Path = USB_SERIAL, folder: Path = Path()) -> bool:
    """Prints a table of checks; True when none failed. Nothing moves, no torque is switched on.

    sysfs: where the kernel shows USB serial adapters. folder: where runs will be written.
    """
    with console.status("checking, nothing will move"):
        results = list(inspect(config, sysfs, folder))
    table = Table("check", "", "found", title=f"{config.name}, {config.kind}", title_justify="left")
    for result in results:
        table.add_row(result.name, Text(result.status, COLOURS[result.status]), Text(result.detail))
    console.print(table)
    for result in results:
        if result.fix:  # below the table, where no column breaks what is to be typed
            console.print(f"{result.name}: {result.fix}", soft_wrap=True, markup=False, highlight=False)
    failed = sum(result.status == "FAIL" for result in results)
    console.print(Text(f"{failed} checks failed", "red") if failed else Text("ready", "green"))
    return not failed


def inspect(config: RigConfig, sysfs: Path = USB_SERIAL, folder: Path = Path()) -> Iterator[Result]:
    """The checks one by one, cheap and decisive ones first."""
    yield _disk(folder)
    if config.kind == "sim":
        yield from _simulation(config)
        return
    with ExitStack() as resources:
        if config.kind == "emulated":
            try:
                config = emulate(config, resources)
            except Fault as fault:
                yield Result("emulator", "FAIL", str(fault))
                return
            yield Result("emulator", "OK", f"{config.bus.port}, {config.camera.source}")
        yield from _port_and_servos(config, sysfs)
        yield from _camera(config)


def _disk(folder: Path) -> Result:
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free at {folder.resolve()}"
    if free < DISK_FULL:
        return Result("disk", "FAIL", detail, "free some space, or give another --run DIR")
    return Result("disk", "WARN" if free < DISK_LOW else "OK", detail)


# --- Simulation --------------------------------------------------------------------------------------------


def _simulation(config: RigConfig) -> Iterator[Result]:
    try:
        yield Result("model files", "OK", str(find_robel()))
    except FileNotFoundError as error:
        yield Result("model files", "FAIL", str(error), "make setup")
        return
    rig = build(config)
    plant = rig.clock
    assert isinstance(plant, SimPlant)
    start = time.perf_counter()
    plant.sleep_until(plant.now() + 1.0)
    speed = 1 / (time.perf_counter() - start)
    state = rig.snapshot_without_images()
    yield Result("plant", "OK", f"{state.joints.position.size} joints, {speed:.0f} times real time")
    yield _rendering(plant)
    rig.close()


def _rendering(plant: SimPlant) -> Result:
    try:
        plant.latest(np.inf)
    except RuntimeError as error:
        return Result("rendering", "FAIL", str(error), "apt-get install libegl1 libopengl0 libgl1-mesa-dri")
    start = time.perf_counter()
    for _ in range(20):
        frame = plant.latest(np.inf)
    pace = (time.perf_counter() - start) / 20
    height, width = frame.image.shape[:2]
    return Result("rendering", "OK", f"{width}x{height} px in {pace * 1e3:.1f} ms")


# --- Port --------------------------------------------------------------------------------------------------


def _port_and_servos(config: RigConfig, sysfs: Path) -> Iterator[Result]:
    """Stops at the first thing without which the rest cannot be looked at."""
    for look in (_exists, _permitted, _alone):
        result = look(Path(config.bus.port))
        yield result
        if result.status == "FAIL":
            return
    yield _latency_timer(Path(config.bus.port), sysfs)
    try:
        bus = SerialBus(config.bus, SystemClock())
    except BusFault as fault:
        yield Result("port opens", "FAIL", str(fault))
        return
    try:
        yield from _servos(config, bus)
    finally:
        bus.close()


def _exists(port: Path) -> Result:
    fix = "plug in adapter and servo power; `ls /dev/serial/by-id/`; then --set hw.bus.port=..."
    if not port.exists():
        return Result("port", "FAIL", f"{port} does not exist", fix)
    if not port.is_char_device() or os.major(port.stat().st_rdev) == MEMORY_DEVICES:
        kind = "a folder" if port.is_dir() else "something else"
        return Result("port", "FAIL", f"{port} is no serial port but {kind}", fix)
    return Result("port", "OK", f"{port}")


def _permitted(port: Path) -> Result:
    if os.access(port, os.R_OK | os.W_OK):
        return Result("permission", "OK", "may be read and written")
    try:
        owner, group = port.owner(), port.group()
    except KeyError:  # in containers the numbers often have no names
        owner, group = str(port.stat().st_uid), str(port.stat().st_gid)
    fix = f"sudo usermod -aG {group} $USER, then log in again"
    return Result("permission", "FAIL", f"{port} belongs to {owner}:{group}", fix)


def _alone(port: Path) -> Result:
    """Two programs on one port garble each other's packets."""
    if port.resolve().is_relative_to("/dev/pts"):
        return Result("port free", "OK", "not checkable here (an emulator holds its own end)")
    others = [pid for pid in holders(port) if pid != os.getpid()]
    if not others:
        return Result("port free", "OK", "no other program has it open")
    fix = f"end it in order: kill -INT {' '.join(map(str, others))}"
    return Result("port free", "FAIL", f"open in {', '.join(map(_command, others))}", fix)


def holders(port: Path, proc: Path = Path("/proc")) -> list[int]:
    """The processes that have a device open, as far as this user may see."""
    target = str(port.resolve())
    found = []
    for descriptor in proc.glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == target:
                found.append(int(descriptor.parts[-3]))
        except OSError:  # gone meanwhile, or another user's
            continue
    return sorted(set(found))


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({b' '.join(words[:3]).decode(errors='replace').strip()})"


def _latency_timer(port: Path, sysfs: Path) -> Result:
    """The adapter's timer: at its usual 16 ms no cycle is faster than 16 ms."""
    path = sysfs / port.resolve().name / "latency_timer"
    if not path.exists():
        return Result("USB latency", "OK", "not checkable here (no latency_timer in sysfs)")
    milliseconds = int(path.read_text())
    if milliseconds <= 2:
        return Result("USB latency", "OK", f"{milliseconds} ms")
    fix = f"echo 1 | sudo tee {path} (for good: a udev rule with ATTR{{latency_timer}}=1)"
    return Result("USB latency", "WARN", f"{milliseconds} ms, 1 is needed for fast cycles", fix)


# --- Servos ------------------------------------------------------------------------------------------------


def _servos(config: RigConfig, bus: SerialBus) -> Iterator[Result]:
    wanted = (*config.dclaw.joint_ids, config.dclaw.object_id)
    found = bus.ping(wanted)
    yield _all_found(config, bus, wanted, found)
    ids = [id for id in wanted if id in found]
    looks: tuple[Callable[[RigConfig, SerialBus, list[int]], Result], ...]
    looks = (_hardware_errors, _voltage, _temperature, _torque, _return_delay, _modes, _limits, _cycles)
    for look in looks if ids else ():
        try:
            yield look(config, bus, ids)
        except BusFault as fault:
            yield Result(look.__name__.strip("_").replace("_", " "), "FAIL", str(fault), WIRING)


def _all_found(config: RigConfig, bus: SerialBus, wanted: Sequence[int], found: dict[int, int]) -> Result:
    silent = [id for id in wanted if id not in found]
    if not silent:
        models = {reg.MODEL_NAMES.get(model, f"model {model}") for model in found.values()}
        return Result("servos", "OK", f"{len(found)} answer: {', '.join(sorted(models))}")
    if found:
        names = ", ".join(servo_name(id) for id in silent)
        return Result("servos", "FAIL", f"{names} silent, {len(found)} of {len(wanted)} answer", WIRING)
    bus.close()  # the port opens only once
    return _scan(config, wanted)


def _scan(config: RigConfig, wanted: Sequence[int]) -> Result:
    """Nobody answers: perhaps at another speed."""
    for baud in sorted(reg.BAUD_CODES, reverse=True):
        if baud == config.bus.baud or baud < 57_600:
            continue
        bus = SerialBus(config.bus.model_copy(update={"baud": baud, "retries": 0}), SystemClock())
        answering = bus.ping(wanted[:3])
        bus.close()
        if answering:
            detail = f"silent at {config.bus.baud} baud, but servo {next(iter(answering))} answers at {baud}"
            return Result("servos", "FAIL", detail, f"--set hw.bus.baud={baud}")
    return Result("servos", "FAIL", f"none of {len(wanted)} answers at any speed", WIRING)


def _values(bus: SerialBus, register: Register, ids: Sequence[int]) -> dict[int, int]:
    column = bus.sync_read((register,), ids).values[:, 0]
    return dict(zip(ids, column.tolist(), strict=True))


def _hardware_errors(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    errors = {id: bits for id, bits in _values(bus, reg.HARDWARE_ERROR_STATUS, ids).items() if bits}
    if not errors:
        return Result("hardware errors", "OK", "none")
    words = [f"{servo_name(id)}: {reg.describe_hardware_error(bits)}" for id, bits in errors.items()]
    fix = "free what blocks it, let it cool, switch the servo power off and on"
    return Result("hardware errors", "FAIL", "; ".join(words), fix)


def _voltage(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    volts, lowest, highest = (
        np.array(list(_values(bus, register, ids).values())) * reg.VOLT_PER_UNIT
        for register in (reg.PRESENT_INPUT_VOLTAGE, reg.MIN_VOLTAGE_LIMIT, reg.MAX_VOLTAGE_LIMIT)
    )
    room = float(np.minimum(volts - lowest, highest - volts).min())
    detail = (
        f"{volts.min():.1f} to {volts.max():.1f} V, servos allow {lowest.max():.1f} to {highest.min():.1f}"
    )
    status: Status = "OK" if room >= VOLTAGE_MARGIN else "WARN" if room >= 0 else "FAIL"
    return Result("supply", status, detail, "" if status == "OK" else "check power supply and thick cables")


def _temperature(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    heat = _values(bus, reg.PRESENT_TEMPERATURE, ids)
    hottest = max(heat, key=lambda id: heat[id])
    detail = f"up to {heat[hottest]} deg C ({servo_name(hottest)})"
    if heat[hottest] < HOT:
        return Result("temperature", "OK", detail)
    return Result("temperature", "WARN", detail, "let it cool; it stops by itself at its limit, usually 80")


def _torque(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    driven = [servo_name(id) for id, on in _values(bus, reg.TORQUE_ENABLE, ids).items() if on]
    if not driven:
        return Result("torque", "OK", "off everywhere")
    return Result(
        "torque", "WARN", f"on at {', '.join(driven)}", "another program left it on: power off and on"
    )


def _return_delay(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    slowest = max(_values(bus, reg.RETURN_DELAY_TIME, ids).values()) * 2
    return Result("return delay", "OK", f"{slowest} us" + "; the driver will set 0" * (slowest > 0))


def _modes(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    modes = _values(bus, reg.OPERATING_MODE, ids)
    wanted = dict.fromkeys(config.dclaw.joint_ids, reg.POSITION_MODE)
    wanted[config.dclaw.object_id] = reg.EXTENDED_POSITION_MODE
    other = [f"{id}: {mode} instead of {wanted[id]}" for id, mode in modes.items() if mode != wanted[id]]
    detail = f"the driver will change {', '.join(other)}" if other else "as configured"
    return Result("operating modes", "OK", detail)


def _limits(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    lowest, highest = (_values(bus, r, ids) for r in (reg.MIN_POSITION_LIMIT, reg.MAX_POSITION_LIMIT))
    wanted = dict(zip(config.dclaw.joint_ids, limit_ticks(config.dclaw).tolist(), strict=True))
    other = [id for id in ids if id in wanted and [lowest[id], highest[id]] != wanted[id]]
    detail = f"the driver will set them at {len(other)} servos" if other else "as configured"
    return Result("position limits", "OK", detail)


def _cycles(config: RigConfig, bus: SerialBus, ids: list[int]) -> Result:
    """Reads the whole robot as a run does, without the writes."""
    before = dict(bus.statistics())
    times = [time.perf_counter()]
    while len(times) <= READS and times[-1] - times[0] < READ_TIME:
        bus.sync_read(BLOCK, ids)
        times.append(time.perf_counter())
    failed = bus.statistics()["retries"] - before["retries"]
    cycle = float(np.median(np.diff(times)))
    detail = f"{cycle * 1e3:.1f} ms per cycle, {failed:.0f} repeats in {len(times) - 1} reads"
    if cycle > config.control_period / 4:
        status: Status = "FAIL" if cycle > config.control_period / 2 else "WARN"
        return Result("cycle", status, detail, "lower USB latency (above), return delay 0, 1 Mbps")
    if failed > 0.01 * len(times):
        return Result("cycle", "WARN", detail, "noise on the line: check plugs, ground and cable length")
    return Result("cycle", "OK", detail)


# --- Camera ------------------------------------------------------------------------------------------------


def _camera(config: RigConfig) -> Iterator[Result]:
    try:
        camera = OpenCvCamera(config.camera, SystemClock())
    except CameraFault as fault:
        yield Result("camera", "FAIL", str(fault), "plug it in, or --set hw.camera.source=...")
        return
    try:
        yield Result(
            "camera", "OK", f"{config.camera.source}, {config.camera.width}x{config.camera.height} px"
        )
        yield from _frames(config, camera)
        yield _view(config, camera)
    except CameraFault as fault:
        yield Result("frames", "FAIL", str(fault), "check the camera's cable; try another USB port")
    finally:
        camera.close()


def _frames(config: RigConfig, camera: OpenCvCamera) -> Iterator[Result]:
    """Rate, age as a run would see it, and whether there is anything to see."""
    first, start, ages = camera.latest(np.inf).sequence, time.monotonic(), []
    while (now := time.monotonic()) - start < FILM_TIME:
        ages.append(now - camera.latest(np.inf).time)
        time.sleep(0.02)
    frame = camera.latest(np.inf)
    rate, age = (frame.sequence - first) / (now - start), float(np.percentile(ages, 95))
    slow, stale = rate < 0.7 * config.camera.fps, age > config.camera.max_age
    yield Result(
        "frames",
        "FAIL" if stale else "WARN" if slow else "OK",
        f"{rate:.0f} per second, 95 % at most {age * 1e3:.0f} ms old",
        "more light (exposure limits the rate), another USB port, a free CPU" if slow or stale else "",
    )
    brightness = float(frame.image.mean())
    visible = DARK < brightness < BRIGHT
    fix = "" if visible else "take off the lens cap, switch on the light, lock the exposure"
    yield Result("brightness", "OK" if visible else "WARN", f"mean {brightness:.0f} of 255", fix)


def _view(config: RigConfig, camera: OpenCvCamera) -> Result:
    """Whether the calibration puts the whole valve into the image: there the goal will be drawn."""
    try:
        pixels = _project(camera.projection, np.linspace(0, 2 * np.pi, 12))
    except CameraFault as fault:
        return Result("view", "WARN", str(fault), "needed for tasks that draw the goal into the image")
    if (pixels >= 0).all() and (pixels <= np.array(config.camera.size) - 1).all():
        return Result("view", "OK", "the whole valve is in the image")
    fix = "point the camera at the valve, or correct hw.camera.projection and .crop"
    return Result("view", "WARN", "the valve's rim is partly outside of the image", fix)


def _project(projection: Floats, angles: Floats) -> Floats:
    """Pixels (N, 2) of the valve's rim at angles (N,)."""
    rim = np.array([ValveGeometry().rim(float(angle)) for angle in angles])
    homogeneous = np.column_stack([rim, np.ones(len(rim))]) @ projection.T
    pixels: Floats = homogeneous[:, :2] / homogeneous[:, 2:]
    return pixels
