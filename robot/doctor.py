"""Preflight: looks at everything a run needs, moves nothing, and says for each failure what to type."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from serial.tools import list_ports

from robot import registers as reg
from robot.bus import BusConfig, SerialBus
from robot.calibrated import CALIBRATE, mismatches
from robot.camera import CameraConfig, OpenCvCamera, SceneRecord
from robot.clock import SystemClock
from robot.dynamixel import DynamixelRobot
from robot.motors import EVERYWHERE, Motor, Range, Tell, ask_each, listed, search
from robot.registers import CYCLE, INDIRECT_ADDRESSES, Register, servo_name
from robot.rig import CAMERA, RigConfig, build, camera_drift, emulate
from robot.scene import Untold, several
from robot.settings import Difference, ServoTable
from robot.sim import SimPlant
from robot.types import (
    BusFault,
    CameraFault,
    Fault,
    Floats,
    Image,
    MissingPart,
    PortLost,
    Robot,
    ServoSilent,
    ValveGeometry,
)
from robot.world import find_robel

Status = Literal["OK", "WARN", "FAIL"]
COLOURS: dict[Status, str] = {"OK": "green", "WARN": "yellow", "FAIL": "red"}

MEMORY_DEVICES = 1  # major number of /dev/null, /dev/zero and their like: character devices, but no ports
READ_TIME = 6.0  # s after which the measurement stops anyway: at 16 ms a cycle it gets 375 reads
TOLD = 50  # reads between two words on how far it is
# Answers lost that are too many. A servo is silent after three tries: at 0.1 % once in 115 days of 10 servos
# at 10 Hz, at 1 % once in 3 hours, at 5 % every minute and a half. In a fast read, a lost answer takes those
# behind it along, so that these are on the safe side.
LOSSY, LOSING = 0.001, 0.05
LATENCY_SPARE = 2.0  # ms beyond the USB latency that an answer may need: the next USB frame, a late host
FILM_TIME = 1.0  # s of frames
SLOW = 0.7  # of the pictures per second asked for
SPARSE = (
    1.3  # pictures within the allowed age, on average, that a steady stream needs for them not to be older
)
CALMER = "a cable for Wi-Fi, no server in between, another USB port, a free CPU"
VOLTAGE_MARGIN = 0.5  # V to the servo's own limits
DARK, BRIGHT = 12.0, 243.0  # mean of 0..255 that no lit scene has
DISK_LOW, DISK_FULL = 2e9, 2e8  # bytes; a night of episodes is about 1e9
WIRING = "switch the servo power on, check the chain's cables from the silent servo backwards"
SET_ID = "run_robot.py motors --set-id --hw ... (as here) gives servos their ids, one at a time"
FIX = "a run writes them when it starts; to write them now: the same command with --fix"
UPDATE = "DYNAMIXEL Wizard 2.0 updates firmware"
# FTDI's chip is in ROBOTIS' U2D2 and most other adapters.
UDEV = """\
echo 'SUBSYSTEM=="tty", ATTRS{idVendor}=="0403", MODE="0666"' | sudo tee /etc/udev/rules.d/99-dynamixel.rules
echo 'SUBSYSTEM=="usb-serial", DRIVER=="ftdi_sio", ATTR{latency_timer}="1"' | \
sudo tee -a /etc/udev/rules.d/99-dynamixel.rules
sudo udevadm control --reload && sudo udevadm trigger"""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table: what was looked at, what was found, what to type if it is not well."""

    name: str
    status: Status
    detail: str
    fix: str = ""
    rows: tuple[tuple[str, ...], ...] = ()  # register, servos, what they have, what they should have


@dataclass(frozen=True, slots=True)
class Options:
    """How thoroughly it looks, and where."""

    fix: bool = False  # whether servos are given the settings that they should have
    reads: int = 1000  # of the whole robot, for error rate and speed
    where: Range = EVERYWHERE  # servos are looked for
    sysfs: Path = Path("/sys")
    by_id: Path = Path("/dev/serial/by-id")  # names of ports that survive a replug
    folder: Path = Path()  # where runs will be written


def check(config: RigConfig, console: Console, options: Options | None = None) -> bool:
    """Prints a table of checks; True when none failed. Nothing moves, no torque is switched on."""
    with console.status("checking, nothing will move") as status:
        results = list(inspect(config, options or Options(), status.update))
    table = Table("check", "", "found", title=f"{config.name}, {config.kind}", title_justify="left")
    for result in results:
        table.add_row(result.name, Text(result.status, COLOURS[result.status]), Text(result.detail))
    console.print(table)
    for result in results:
        if result.rows:
            console.print(_rows(result.rows))
        if result.fix:  # below the table, where no column breaks what is to be typed
            console.print(f"{result.name}: {result.fix}", soft_wrap=True, markup=False, highlight=False)
    counts = Counter(result.status for result in results)
    console.print(_verdict(counts["FAIL"], counts["WARN"]))
    return not counts["FAIL"]


def _silently(text: str) -> None:
    pass


def _rows(rows: Sequence[Sequence[str]]) -> Table:
    table = Table("register", "servos", "has", "wants")
    for row in rows:
        table.add_row(*row)
    return table


def _verdict(failed: int, warnings: int) -> Text:
    if failed:
        return Text(f"{failed} check{'s' * (failed > 1)} failed", "red")
    if warnings:
        return Text(f"ready, {warnings} warning{'s' * (warnings > 1)}", "yellow")
    return Text("ready", "green")


def inspect(config: RigConfig, options: Options, tell: Tell = _silently) -> Iterator[Result]:
    """The checks one by one, cheap and decisive ones first. `tell` hears what is done at the moment."""
    yield _disk(options.folder)
    if config.kind == "sim":
        yield from _simulation(config)
        return
    with ExitStack() as resources:
        if config.kind == "emulated":
            tell("starting the emulator")
            try:
                config = emulate(config, resources)
            except Fault as fault:
                yield Result("emulator", "FAIL", str(fault))
                return
            yield Result("emulator", "OK", f"{config.bus.port}, {config.camera.source}")
        yield from _port_and_servos(config, options, tell)
        tell("looking through the cameras")
        yield from _cameras(config)
        if config.camera.scene is not None:
            yield _scene(config, config.camera.scene)


def _disk(folder: Path) -> Result:
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free at {folder.resolve()}"
    if free < DISK_FULL:
        return Result("disk", "FAIL", detail, "free some space, or give another --run DIR")
    fix = "a night of episodes takes about 1 GB: free some space" if free < DISK_LOW else ""
    return Result("disk", "WARN" if fix else "OK", detail, fix)


# --- Simulation --------------------------------------------------------------------------------------------


def _simulation(config: RigConfig) -> Iterator[Result]:
    try:
        yield Result("model files", "OK", str(find_robel()))
    except MissingPart as error:
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
    if config.camera.scene is not None:
        yield _drift(rig.config, config.camera.scene, rig.robot, rig.pictures)
    rig.close()


def _rendering(plant: SimPlant) -> Result:
    try:
        plant.latest(np.inf)
    except MissingPart as error:
        return Result("rendering", "FAIL", str(error), "apt-get install libegl1 libopengl0 libgl1-mesa-dri")
    start = time.perf_counter()
    for _ in range(20):
        frame = plant.latest(np.inf)
    pace = (time.perf_counter() - start) / 20
    height, width = frame.image.shape[:2]
    return Result("rendering", "OK", f"{width}x{height} px in {pace * 1e3:.1f} ms")


# --- Port --------------------------------------------------------------------------------------------------


def _port_and_servos(config: RigConfig, options: Options, tell: Tell) -> Iterator[Result]:
    """Stops at the first thing without which the rest cannot be looked at."""
    port = Path(config.bus.port)
    for look in (_exists, _permitted, _alone):
        result = look(port, options)
        yield result
        if result.status == "FAIL":
            return
    try:
        with closing(SerialBus(config.bus, SystemClock(), options.sysfs)) as bus:
            yield _latency(config.bus, bus.latency_timer_ms)
            tell("asking all ids")
            roll = _call_the_roll(config, bus, options.where.highest)
        yield from _roll_call(config, roll, options, tell)
        present = {id: motor for id, motor in roll.present.items() if id in config.dclaw.ids}
        if present:
            with closing(SerialBus(config.bus, SystemClock(), options.sysfs)) as bus:
                yield from _servos(_Chain(config, bus, present, options, tell))
    except PortLost as fault:
        yield Result("port opens", "FAIL", str(fault))


def _exists(port: Path, options: Options) -> Result:
    if not port.exists():
        return Result("port", "FAIL", f"{port} does not exist", _where_to_plug(options.by_id))
    if not port.is_char_device() or os.major(port.stat().st_rdev) == MEMORY_DEVICES:
        kind = "a folder" if port.is_dir() else "something else"
        return Result("port", "FAIL", f"{port} is no serial port but {kind}", _where_to_plug(options.by_id))
    better = [] if port.is_symlink() else _names(options.by_id, port)
    if better:
        fix = f"a name that survives a replug: --set hw.bus.port={better[0]}"
        return Result("port", "WARN", f"{port}, which may be another one after a replug", fix)
    return Result("port", "OK", f"{port}")


def _where_to_plug(by_id: Path) -> str:
    names = sorted(map(str, by_id.glob("*")))
    names += [] if names else sorted(info.device for info in list_ports.comports() if info.vid)
    here = f"; plugged in are {', '.join(names)}" if names else "; no adapter is plugged in at present"
    return f"plug in adapter and servo power, then --set hw.bus.port={names[0] if names else '...'}{here}"


def _names(by_id: Path, port: Path) -> list[str]:
    """The stable names of a device."""
    return sorted(str(link) for link in by_id.glob("*") if link.resolve() == port.resolve())


def _permitted(port: Path, options: Options) -> Result:
    if os.access(port, os.R_OK | os.W_OK, effective_ids=True):
        return Result("permission", "OK", "may be read and written")
    try:
        owner, group = port.owner(), port.group()
    except KeyError:  # in containers the numbers often have no names
        owner, group = str(port.stat().st_uid), str(port.stat().st_gid)
    join = f"sudo usermod -aG {group} $USER    # then log out and in again; or, for everybody:\n"
    fix = f"type\n{join if group not in ('root', '0') else ''}{UDEV}"
    return Result("permission", "FAIL", f"{port} belongs to {owner}:{group}, and not to you", fix)


def _alone(port: Path, options: Options) -> Result:
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


def _latency(bus: BusConfig, milliseconds: int | None) -> Result:
    """The adapter's timer, as it is once the bus has tried to shorten it: no cycle is faster than that."""
    if milliseconds is None:
        return Result("USB latency", "OK", "not checkable here (no latency_timer in sysfs)")
    least = milliseconds + LATENCY_SPARE
    if bus.timeout_ms < least:
        detail = (
            f"{milliseconds} ms: answers are given up after {bus.timeout_ms:g} ms, before they can arrive"
        )
        return Result("USB latency", "FAIL", detail, f"--set hw.bus.timeout_ms={least:g}; and\n{UDEV}")
    if milliseconds > 2:
        detail = f"{milliseconds} ms, which this program may not shorten; 1 is needed for fast cycles"
        return Result("USB latency", "WARN", detail, f"type\n{UDEV}")
    return Result("USB latency", "OK", f"{milliseconds} ms")


# --- Who is there ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Roll:
    """Who answered at the configured speed, and of whom there was only noise."""

    present: dict[int, Motor]
    garbled: tuple[int, ...]


def _call_the_roll(config: RigConfig, bus: SerialBus, highest: int) -> _Roll:
    """One question to all; then again and one by one to those who should have answered. Raises PortLost."""
    baud = config.bus.baud
    present = {id: Motor(id, *answer, baud) for id, answer in bus.broadcast_ping(highest).items()}
    more, garbled = ask_each(bus, [id for id in config.dclaw.ids if id not in present], baud)
    return _Roll(present | {motor.id: motor for motor in more}, tuple(garbled))


def _roll_call(config: RigConfig, roll: _Roll, options: Options, tell: Tell) -> Iterator[Result]:
    wanted = config.dclaw.ids
    silent = [id for id in wanted if id not in roll.present]
    strangers = [motor for id, motor in roll.present.items() if id not in wanted]
    if not silent:
        yield Result("servos", "OK", f"{len(wanted)} answer: {_kinds(list(roll.present.values()), wanted)}")
    elif roll.garbled:
        names = ", ".join(map(servo_name, roll.garbled))
        fix = f"two servos have one id, or a cable is loose: {SET_ID}"
        yield Result("servos", "FAIL", f"answers of {names} are garbled", fix)
    else:
        yield _missing(config, silent, strangers, options, tell)
    if strangers:
        yield _strangers(strangers)


def _kinds(motors: Sequence[Motor], wanted: Sequence[int]) -> str:
    """'XH430-W210, firmware 45'; of several kinds each with its ids."""
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for motor in motors:
        if motor.id in wanted:
            kinds[motor.kind].append(motor.id)
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{kind} ({', '.join(map(str, ids))})" for kind, ids in kinds.items())


def _missing(
    config: RigConfig, silent: Sequence[int], strangers: Sequence[Motor], options: Options, tell: Tell
) -> Result:
    """Silent servos: perhaps at another speed, or under another id."""
    wanted = config.dclaw.ids
    others = options.where.first_at(config.bus.baud).bauds[1:]
    # New servos have id 1; to ask all 253 at all speeds would take 10 s.
    elsewhere = search(config.bus, Range(others, max(wanted)), tell)
    silence = f"{listed(silent, wanted)} silent at {config.bus.baud} baud"
    if len(silent) < len(wanted):
        silence += f", {len(wanted) - len(silent)} of {len(wanted)} answer"
    if elsewhere.motors:
        seen = [f"{motor.id} at {motor.baud}" for motor in elsewhere.motors]
        whole = [baud for baud in others if elsewhere.ids(baud) >= set(wanted)]
        fix = f"--set hw.bus.baud={whole[0]}" if whole else SET_ID
        return Result("servos", "FAIL", f"{silence}; there are {', '.join(seen)}", fix)
    if strangers:
        return Result("servos", "FAIL", silence, f"if one of the other servos (below) is meant: {SET_ID}")
    if len(silent) == len(wanted):
        return Result("servos", "FAIL", f"none of {len(wanted)} answers at any speed", WIRING)
    return Result("servos", "FAIL", silence, WIRING)


def _strangers(strangers: Sequence[Motor]) -> Result:
    names = ", ".join(f"{servo_name(motor.id)}: {motor.kind}" for motor in strangers)
    fix = f"disconnect it, or say what it is (hw.dclaw.joint_ids, .object_id, .guide_id); {SET_ID}"
    return Result("other servos", "WARN", f"on the bus but not in hw.dclaw: {names}", fix)


# --- How they are ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Chain:
    """Servos that answer, and how they are looked at."""

    config: RigConfig
    bus: SerialBus
    motors: dict[int, Motor]
    options: Options
    tell: Tell

    @property
    def ids(self) -> list[int]:
        return list(self.motors)

    def values(self, register: Register) -> dict[int, int]:
        """One register of all. Raises BusFault."""
        return ServoTable(self.bus).values(register, self.ids)


def _servos(chain: _Chain) -> Iterator[Result]:
    """Raises PortLost."""
    looks: tuple[Callable[[_Chain], Result], ...]
    looks = (_models, _calibration, _hardware_errors, _supply, _temperature, _torque, _watchdog, _settings)
    for look in looks:
        try:
            yield look(chain)
        except PortLost:
            raise
        except BusFault as fault:
            name, fix = look.__name__.strip("_").replace("_", " "), _cure(fault)
            yield Result(name, "FAIL", str(fault), fix)
    try:
        yield from _cycles(chain)
    except PortLost:
        raise
    except BusFault as fault:
        yield Result("answers", "FAIL", str(fault), _cure(fault))


def _cure(fault: BusFault) -> str:
    """What to type, where the fault does not say so itself."""
    return WIRING if isinstance(fault, ServoSilent) else ""


def _models(chain: _Chain) -> Result:
    unknown = [motor for motor in chain.motors.values() if motor.model not in reg.MODEL_NAMES]
    old = [motor for motor in chain.motors.values() if motor.firmware < reg.BUS_WATCHDOG.since]
    if old:
        names = ", ".join(f"{servo_name(motor.id)}: {motor.kind}" for motor in old)
        return Result("models", "FAIL", f"no Bus Watchdog before {reg.BUS_WATCHDOG.since}: {names}", UPDATE)
    if unknown and not chain.config.dclaw.allow_unknown_models:
        names = ", ".join(f"{servo_name(motor.id)}: {motor.kind}" for motor in unknown)
        fix = "if their registers are the same: --set hw.dclaw.allow_unknown_models=true"
        return Result("models", "FAIL", f"unknown to this program: {names}", fix)
    return Result("models", "OK", "known, with Bus Watchdog")


def _calibration(chain: _Chain) -> Result:
    """Whether these are the servos whose zeros and directions the configuration has."""
    record = chain.config.dclaw.calibration
    if record is None:
        return Result("calibration", "OK", "of the joints: none, offsets and signs as configured")
    if not {servo.id for servo in record.servos} <= set(chain.ids):
        return Result("calibration", "WARN", "not compared while servos are silent", "see `servos` above")
    different = mismatches(record, chain.bus)
    if not different:
        return Result("calibration", "OK", f"of the joints on {record.date}, of these servos")
    servos: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for servo, what, wanted, found in different:
        servos[what, found, wanted].append(str(servo))
    rows = tuple((what, ", ".join(ids), found, wanted) for (what, found, wanted), ids in servos.items())
    detail = f"of {record.date}, but {len({servo for servo, *_ in different})} servos differ (below)"
    way_out = f"{CALIBRATE}; or give the --config file of this robot's own calibration"
    return Result("calibration", "FAIL", detail, way_out, rows)


def _hardware_errors(chain: _Chain) -> Result:
    errors = {id: bits for id, bits in chain.values(reg.HARDWARE_ERROR_STATUS).items() if bits}
    if not errors:
        return Result("hardware errors", "OK", "none")
    words = [f"{servo_name(id)}: {reg.describe_hardware_error(bits)}" for id, bits in errors.items()]
    fix = "free what blocks it, let it cool, switch the servo power off and on"
    return Result("hardware errors", "FAIL", "; ".join(words), fix)


def _supply(chain: _Chain) -> Result:
    volts, lowest, highest = (
        np.array(list(chain.values(register).values())) * reg.VOLT_PER_UNIT
        for register in (reg.PRESENT_INPUT_VOLTAGE, reg.MIN_VOLTAGE_LIMIT, reg.MAX_VOLTAGE_LIMIT)
    )
    room = float(np.minimum(volts - lowest, highest - volts).min())
    detail = (
        f"{volts.min():.1f} to {volts.max():.1f} V, servos allow {lowest.max():.1f} to {highest.min():.1f}"
    )
    status: Status = "OK" if room >= VOLTAGE_MARGIN else "WARN" if room >= 0 else "FAIL"
    return Result("supply", status, detail, "" if status == "OK" else "check power supply and thick cables")


def _temperature(chain: _Chain) -> Result:
    heat, config = chain.values(reg.PRESENT_TEMPERATURE), chain.config.dclaw
    hottest = max(heat, key=lambda id: heat[id])
    detail = f"up to {heat[hottest]} deg C ({servo_name(hottest)})"
    if heat[hottest] <= config.cool:
        return Result("temperature", "OK", detail)
    fix = f"let it cool: a run pauses at {config.warm:g}, the servo stops at {config.temperature_limit}"
    return Result("temperature", "WARN", detail, fix)


def _torque(chain: _Chain) -> Result:
    driven = [servo_name(id) for id, on in chain.values(reg.TORQUE_ENABLE).items() if on]
    if not driven:
        return Result("torque", "OK", "off everywhere")
    return Result(
        "torque", "WARN", f"on at {', '.join(driven)}", "another program left it on: power off and on"
    )


def _watchdog(chain: _Chain) -> Result:
    """Only looked at: without torque there is nothing that it could stop."""
    tripped = [id for id, value in chain.values(reg.BUS_WATCHDOG).items() if value == reg.WATCHDOG_TRIPPED]
    if not tripped:
        return Result("watchdog", "OK", "no servo has stopped by itself")
    names = ", ".join(map(servo_name, tripped))
    fix = "a program died while it held them; the next start releases them, without a jump"
    return Result("watchdog", "WARN", f"tripped at {names}", fix)


def _settings(chain: _Chain) -> Result:
    """What servos keep for good, against the configuration: the driver's own list."""
    if set(chain.ids) != set(chain.config.dclaw.ids):
        return Result("settings", "WARN", "not compared while servos are silent", "see `servos` above")
    record = chain.config.dclaw.calibration
    if record and mismatches(record, chain.bus):
        return Result("settings", "WARN", "not compared with another robot's", "see `calibration` above")
    chain.tell("comparing registers with the configuration")
    robot = DynamixelRobot(chain.bus, chain.config.dclaw, SystemClock())
    before = robot.differences()
    if not before:
        return Result("settings", "OK", "registers are as configured")
    rows, servos = _grouped(before), {difference.servo for difference in before}
    if not chain.options.fix:
        detail = f"{len(before)} registers of {len(servos)} servos are not as configured (below)"
        return Result("settings", "OK", detail, FIX, rows)  # a run mends it: no reason not to start one
    robot.write_settings()
    detail = f"{len(before)} registers of {len(servos)} servos written (below); torque is off there"
    return Result("settings", "OK", detail, "", rows)


def _grouped(differences: Sequence[Difference]) -> tuple[tuple[str, ...], ...]:
    """One row for all servos with the same difference, in register units."""
    servos: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
    for register, servo, has, wants in differences:
        servos[register.name, has, wants].append(servo)
    return tuple(
        (name, ", ".join(map(str, ids)), str(has), str(wants)) for (name, has, wants), ids in servos.items()
    )


def _cycles(chain: _Chain) -> Iterator[Result]:
    """Reads the whole robot as a run does, many times. Raises BusFault."""
    bus, collected = chain.bus, INDIRECT_ADDRESSES[: sum(register.size for register in CYCLE)]
    before = bus.sync_read(collected, chain.ids).values
    try:
        bus.gather(CYCLE, chain.ids)
        start = bus.statistics()
        times, silent = _read_often(chain)
        counts = {name: count - start[name] for name, count in bus.statistics().items()}
    finally:  # what other programs have the servos collect is theirs
        for register, column in zip(collected, before.T.tolist(), strict=True):
            bus.sync_write(register, dict(zip(chain.ids, column, strict=True)))
        with suppress(ServoSilent):  # answers come only after all that was written is done
            bus.sync_read(collected, chain.ids)
    yield _answers(chain, len(times), silent, counts)
    yield _cycle(chain, np.array(times), counts)


def _read_often(chain: _Chain) -> tuple[list[float], Counter[int]]:
    """How long each cycle took, s; how often a servo was silent after all tries. Raises PortLost."""
    times: list[float] = []
    silent: Counter[int] = Counter()
    now = begin = time.perf_counter()
    while len(times) < chain.options.reads and now - begin < READ_TIME:
        if len(times) % TOLD == 0:
            chain.tell(f"reading all servos, {len(times)} of {chain.options.reads} times")
        try:
            chain.bus.sync_read(CYCLE, chain.ids)
        except ServoSilent as fault:
            silent.update(fault.ids)
        now, before = time.perf_counter(), now
        times.append(now - before)
    return times, silent


def _answers(chain: _Chain, reads: int, silent: Counter[int], counts: Mapping[str, int]) -> Result:
    expected = reads * len(chain.ids)
    lost, garbled = counts["lost"] / expected, counts["crc_errors"]
    detail = f"{counts['lost']} of {expected:,} lost ({lost:.2%}), {garbled} garbled, in {reads:,} reads"
    noise = "noise on the line: check plugs, ground, cable length; lower hw.bus.baud"
    if silent:
        names = ", ".join(f"{servo_name(id)} {times} times" for id, times in silent.items())
        return Result("answers", "FAIL", f"{detail}; silent after all tries: {names}", noise)
    status: Status = "FAIL" if lost > LOSING else "WARN" if lost > LOSSY else "OK"
    return Result("answers", status, detail, noise if lost > LOSSY else "")


def _cycle(chain: _Chain, times: Floats, counts: Mapping[str, int]) -> Result:
    """Reading takes its time of every control step, and the bus bounds how fast that can be."""
    config, median = chain.config, float(np.median(times))
    detail = (
        f"{median * 1e3:.2f} ms (p99 {np.percentile(times, 99) * 1e3:.2f}, longest {times.max() * 1e3:.1f}), "
        f"{1 / median:.0f} per second, {'fast' if counts['fast_reads'] else 'plain'} reads"
    )
    if median > config.control_period / 4:
        status: Status = "FAIL" if median > config.control_period / 2 else "WARN"
        return Result("cycle", status, detail, "lower USB latency (above), return delay 0 (--fix), 1 Mbps")
    if not counts["fast_reads"] and config.bus.fast_reads == "auto" and len(chain.ids) > 1:
        fix = f"firmware from 45 on reads a quarter faster; {UPDATE}"
        return Result("cycle", "WARN", detail, fix)
    return Result("cycle", "OK", detail)


# --- Camera ------------------------------------------------------------------------------------------------


def _cameras(config: RigConfig) -> Iterator[Result]:
    """All at once, as in a run: several may be too much for one USB controller."""
    with ExitStack() as resources:
        opened = []
        for name, seen in config.all_cameras.items():
            try:
                camera = OpenCvCamera(seen, SystemClock())
            except CameraFault as fault:
                setting = "hw.camera.source" if name == CAMERA else f"hw.cameras.{name}.source"
                yield Result(_of("camera", name), "FAIL", str(fault), f"plug it in, or --set {setting}=...")
                continue
            resources.callback(camera.close)
            opened.append((name, camera))
            yield Result(_of("camera", name), "OK", f"{seen.source}, {seen.width}x{seen.height} px")
        for name, camera in opened:
            try:
                yield from _frames(name, camera)
                if name == CAMERA or camera.config.projection:
                    yield _view(name, camera)
            except CameraFault as fault:
                fix = "check the camera's cable; try another USB port"
                yield Result(_of("frames", name), "FAIL", str(fault), fix)


def _of(what: str, name: str) -> str:
    """What is looked at, and of which camera if it is not the agent's."""
    return what if name == CAMERA else f"{what} {name}"


def _frames(name: str, camera: OpenCvCamera) -> Iterator[Result]:
    """Rate, age as a run would see it, and whether there is anything to see."""
    first, start, ages = camera.latest(np.inf).sequence, time.monotonic(), []
    while (now := time.monotonic()) - start < FILM_TIME:
        ages.append(now - camera.latest(np.inf).time)
        time.sleep(0.02)
    frame = camera.latest(np.inf)
    rate, age = (frame.sequence - first) / (now - start), float(np.percentile(ages, 95))
    detail = f"{rate:.0f} per second, 95 % at most {age * 1e3:.0f} ms old"
    setting = "hw.camera" if name == CAMERA else f"hw.cameras.{name}"
    status, fix = _freshness(camera.config, setting, rate, age, min(ages))
    yield Result(_of("frames", name), status, detail, fix)
    brightness = float(frame.image.mean())
    visible = DARK < brightness < BRIGHT
    fix = "" if visible else "take off the lens cap, switch on the light, lock the exposure"
    yield Result(_of("brightness", name), "OK" if visible else "WARN", f"mean {brightness:.0f} of 255", fix)


def _freshness(
    config: CameraConfig, setting: str, rate: float, age: float, youngest: float
) -> tuple[Status, str]:
    """What pictures per second and their ages (s) say of a camera, and what is probably the matter with it.

    Ages count from arrival: what is buffered on the way here cannot be seen, but for its bursts.
    """
    more = "more light (exposure limits the rate), another USB port, a free CPU"
    if age <= config.max_age:
        return ("WARN", more) if rate < SLOW * config.fps else ("OK", "")
    allowed = f"allowed are {config.max_age * 1e3:.0f} ms ({setting}.max_age)"
    if config.delay > config.max_age / 2:
        early = f"{setting}.delay dates each back by {config.delay * 1e3:.0f} ms"
        return "FAIL", f"{allowed}: {early}; --set {setting}.delay=0 shows the rest, measure it again"
    if youngest > config.max_age / 2:
        late = f"even the newest is {youngest * 1e3:.0f} ms old once it can be used"
        way_out = f"free the CPU, or a smaller picture (--set {setting}.width=... {setting}.height=...)"
        return "FAIL", f"{allowed}: {late}, because decoding takes so long; {way_out}"
    if rate * config.max_age < SPARSE:
        return "FAIL", f"{allowed}: too slow a stream; {more}; `v4l2-ctl --list-formats-ext` shows its rates"
    return "FAIL", f"{allowed}: they come in bursts, as from a buffer or a busy network; {CALMER}"


def _view(name: str, camera: OpenCvCamera) -> Result:
    """Whether the calibration puts the whole valve into the image: there the goal will be drawn."""
    try:
        pixels = _project(camera.projection, np.linspace(0, 2 * np.pi, 12))
    except CameraFault as fault:
        return Result(
            _of("view", name), "WARN", str(fault), "needed for tasks that draw the goal into the image"
        )
    if (pixels >= 0).all() and (pixels <= np.array(camera.config.size) - 1).all():
        return Result(_of("view", name), "OK", "the whole valve is in the image")
    fix = "point the camera at the valve, or correct hw.camera.projection and .crop"
    return Result(_of("view", name), "WARN", "the valve's rim is partly outside of the image", fix)


def _scene(config: RigConfig, scene: SceneRecord) -> Result:
    """Whether the camera still is where its reference picture was taken."""
    clock = SystemClock()
    try:
        with (
            closing(SerialBus(config.bus, clock)) as bus,
            closing(OpenCvCamera(config.camera, clock)) as camera,
        ):
            robot = DynamixelRobot(bus, config.dclaw, clock)
            return _drift(config, scene, robot, lambda count: several(camera, clock, count))
    except Fault as fault:
        return Result("scene", "WARN", f"not compared: {fault}")


def _drift(
    config: RigConfig, scene: SceneRecord, robot: Robot, pictures: Callable[[int], list[Image]]
) -> Result:
    try:
        found = camera_drift(config, scene, robot, pictures)
    except BusFault as fault:
        return Result("scene", "WARN", f"not compared, where the fingers are is unknown: {fault}")
    except CameraFault as fault:
        return Result("scene", "FAIL", str(fault))
    if isinstance(found, Untold):
        return Result("scene", "WARN", f"whether the camera was moved cannot be told: {found.reason}")
    return Result("scene", "OK", f"the camera is where it was on {scene.date}: {found.text}")


def _project(projection: Floats, angles: Floats) -> Floats:
    """Pixels (N, 2) of the valve's rim at angles (N,)."""
    rim = np.array([ValveGeometry().rim(float(angle)) for angle in angles])
    homogeneous = np.column_stack([rim, np.ones(len(rim))]) @ projection.T
    pixels: Floats = homogeneous[:, :2] / homogeneous[:, 2:]
    return pixels
