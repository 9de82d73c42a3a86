"""The simulated rig beneath the driver: one MuJoCo world that is bus, camera and clock at once.

The driver, its calibration and its fault paths run on it unchanged, because it speaks registers and ticks.
Physics advances only when someone sleeps on the clock (or calls `advance_to`), exactly as fast as the CPU
allows, in whole steps counted as an integer.
"""

from __future__ import annotations

import math
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import mujoco
import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from robot import registers as reg
from robot.events import EventLog
from robot.faults import (
    ERRORS,
    WIRE,
    Change,
    FaultConfig,
    FaultSchedule,
    Occurrence,
    refuse_camera,
    require_servos,
)
from robot.protocol import describe_refusal
from robot.randomise import DROPS, ENCODERS, EYES, Draw, RandomiseConfig, Variation, blurred
from robot.registers import RAD_PER_S_PER_UNIT, RAD_PER_TICK, Register, servo_name
from robot.servo import FirmwareConfig, Servo
from robot.types import (
    BusFault,
    Floats,
    Frame,
    Image,
    PortLost,
    Reading,
    ServoSilent,
    Snapshot,
    StaleFrame,
)
from robot.world import GUIDE_JOINT, JOINTS, VALVE_JOINT, CameraPose, Painter, WorldConfig, dclaw_model

Integers = NDArray[np.int64]

FINGER_SERVOS = (10, 11, 12, 20, 21, 22, 30, 31, 32)
VALVE_SERVO = 50
# Ticks at joint angle 0, such that ROBEL's calibration holds: angle = ticks * rad per tick + offset, with
# offset -pi/2 for the first joint of each finger and -pi for all others and the valve.
ROBEL_ZEROS = (1024, 2048, 2048) * 3 + (2048,)
GUIDE_ZERO = 2048  # ticks, as the valve's; a guide's servo is mounted with sign 1
_VALVE = len(JOINTS)  # the row of the valve's servo; a guide's follows
ZERO_TICKS = np.array(ROBEL_ZEROS, dtype=np.int64)
RESET_POSE = (0.0, -math.pi / 3, math.pi / 3) * 3  # rad, ROBEL's
_GOAL = reg.GOAL_POSITION.address
_NEVER = 1 << 62  # steps
# s between looks at what currents do to servos: they warm in minutes and overload in 5 s. A look costs 37 us,
# a tenth of what 0.1 s of physics cost.
ENDURANCE_PERIOD = 0.5
STUCK = 1e6  # Nm s/rad: a blocked joint, pressed with all its 2.5 Nm, creeps by 0.01 rad in an hour
TRIES = 3  # of a patient driver: what the wire spoils three times in a row is a servo's silence
CAPTURE_PERIOD = 0.0325  # s, of a camera that drops frames: 30 Hz in whole steps of 2.5 ms
# m by which a hand that was moved may reach into the valve. Random actions press it 2.4 mm deep in one step
# of 100, 3.3 at most (n = 2000; with the presets 4.4 and 6.8).
JOLT = 0.005
PATIENCE = 25.0  # ms after which such a driver takes a late answer for a lost one


class SimConfig(WorldConfig):
    """What the simulated rig is made of: physics, servos, delays, looks, camera."""

    servo_model: Literal[1000, 1010, 1020, 1030, 1040, 1050] = (
        1010  # XH430-W210, the servo whose factory values registers.py carries
    )
    torque_constant: PositiveFloat = 1.92  # Nm/A: XH430-W210 stalls at 2.5 Nm and 1.3 A (e-Manual, 12 V)
    command_delay: NonNegativeFloat = 0.0  # s from the packet to the motor
    frame_delay: NonNegativeFloat = 0.0  # s by which a frame's capture lies in the past
    # How the servos are mounted, joints first and the valve's last: angle = sign * (ticks - zero), in ticks.
    zero_ticks: tuple[int, ...] = ROBEL_ZEROS
    signs: tuple[Literal[1, -1], ...] = (1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    watchdog_hears_all: bool = False  # whether packets to other servos feed a watchdog (the manual is vague)
    firmware: FirmwareConfig = FirmwareConfig()
    thermal: bool = True  # whether currents warm servos, overheat and overload them
    camera: CameraPose = CameraPose()
    randomise: RandomiseConfig = RandomiseConfig()  # off, robel, sim2real, or ranges over one of these

    @model_validator(mode="after")
    def _mounts_every_servo(self) -> Self:
        for name in ("zero_ticks", "signs"):
            count = len(getattr(self, name))
            if count != len(ROBEL_ZEROS):
                raise ValueError(f"{name} has {count} entries for {len(ROBEL_ZEROS)} servos")
        return self

    @model_validator(mode="after")
    def _camera_stays_one(self) -> Self:
        ranges, camera = self.randomise.ranges, self.camera
        nearest = ranges.get("camera_distance", (0.0, 0.0))[0]
        if camera.distance + nearest <= 0:
            raise ValueError(
                f"randomise.camera_distance: from {camera.distance:g} m, {nearest:g} is too much"
            )
        low, high = ranges.get("camera_fovy", (0.0, 0.0))
        if not (camera.fovy + low > 0 and camera.fovy + high < 180):
            span = f"{low:g} to {high:g}"
            raise ValueError(f"randomise.camera_fovy: with {camera.fovy:g} deg, {span} leaves the 0 to 180")
        return self


@dataclass(frozen=True)
class _Wanted:
    """How to read a set of registers of many servos at once."""

    measured: list[tuple[int, Callable[[], Integers]]]  # columns that come straight from the physics
    stored: list[int]  # columns that come from the servos' tables
    moves: bool  # whether some of those change with the motor, so that tables must be brought up to date
    start: int  # the first byte of a table that is needed
    layout: np.dtype[Any]  # the bytes from there on, with a field for each column

    @staticmethod
    def of(
        registers: Sequence[tuple[int, int, bool]],
        sources: Mapping[tuple[int, int, bool], Callable[[], Integers]],
    ) -> _Wanted:
        """registers: address, size and sign of each column. sources: what the physics has for some."""
        measured = [(column, sources[key]) for column, key in enumerate(registers) if key in sources]
        stored = {column: key for column, key in enumerate(registers) if key not in sources}
        start = min((address for address, _, _ in stored.values()), default=0)
        end = max((address + size for address, size, _ in stored.values()), default=0)
        layout = np.dtype(
            {
                "names": [str(column) for column in stored],
                "formats": [f"<{'i' if signed else 'u'}{size}" for _, size, signed in stored.values()],
                "offsets": [address - start for address, _, _ in stored.values()],
                "itemsize": end - start,
            }
        )
        moves = any(_moves(address) for address, _, _ in stored.values())
        return _Wanted(measured, [*stored], moves, start, layout)


def _moves(address: int) -> bool:
    """Registers that the motor changes, and indirect data, which may show any other."""
    indirect = reg.INDIRECT_BLOCKS[0][0]
    return reg.REALTIME_TICK.address <= address < reg.PRESENT_INPUT_VOLTAGE.address or address >= indirect


def _spoils(fault: FaultConfig) -> bool:
    """True when a driver without a wire must not hear an answer."""
    if fault.kind == "late":
        return fault.amount > PATIENCE
    return fault.kind in WIRE and fault.kind != "duplicate"


class SimPlant:
    """A whole D'Claw rig in one object: pass it as bus, camera and clock.

    Bus: the registers of nine finger servos, the valve's and, if there is one, the guide's, byte-exact
    (`read_memory`, `write_memory`, as a wire emulator needs) and vectorised (`sync_read`, `sync_write`); both
    agree.
    Camera: renders the present when asked. Clock: `sleep_until` steps the physics.
    Bus and clock may be used from several threads; pictures must all be asked for from one thread.
    """

    def __init__(
        self,
        config: SimConfig,
        servos: Sequence[int] = FINGER_SERVOS,
        object_servo: int = VALVE_SERVO,
        image_size: tuple[int, int] = (64, 64),  # width, height
        guide_servo: int | None = None,  # id of the servo that points at a goal; None: there is none
    ) -> None:
        guides = () if guide_servo is None else (guide_servo,)
        ids = (*servos, object_servo, *guides)
        if len(servos) != len(JOINTS) or len({*ids}) != len(ids):
            raise ValueError(
                f"a D'Claw has {len(JOINTS)} finger servos and a valve, got ids {servos}, "
                + ", ".join(map(str, (object_servo, *guides)))
            )
        self.config = config
        self._lock = threading.RLock()
        self._model = dclaw_model(
            config, floor_texture=config.randomise.floor_texture is not None, guide=bool(guides)
        )
        self._data = mujoco.MjData(self._model)
        self._timestep = float(self._model.opt.timestep)
        self._step = 0
        self._servos = tuple(Servo(id, config.servo_model, config.firmware) for id in ids)
        self._signs = (*config.signs, *(1 for _ in guides))
        self._zero_ticks = (*config.zero_ticks, *(GUIDE_ZERO for _ in guides))
        self._servos[_VALVE].load(reg.OPERATING_MODE, reg.EXTENDED_POSITION_MODE)
        self._index_servos()
        self._prepare_motors()
        self._prepare_faults()
        self._image_size = image_size
        self._painter: Painter | None = None
        self._sequence = 0
        self._shown: Frame | None = None  # the latest one, of a camera that drops some
        self._repaint = False  # whether the painter has yet to see the latest draw
        self._prepare_variation()
        self.teleport(RESET_POSE, 0.0)

    # --- Clock ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Physics time, s: whole steps since the start."""
        return self._step * self._timestep

    def sleep_until(self, time: float) -> None:
        """Steps the physics to the first step at or after `time` (a millionth of a step is forgiven)."""
        self.advance_to(time)

    def advance_to(self, t: float) -> None:
        """`sleep_until` under the name that a real-time driver of the plant means."""
        end = self._steps_at(t)
        with self._lock:
            while self._step < end:
                self._settle()
                self._run(min(end, self._next_event()))
            self._meet_faults()
            self._trip_watchdogs()

    def _steps_at(self, t: float) -> int:
        return math.ceil(t / self._timestep - 1e-6)

    # --- Bus -----------------------------------------------------------------------------------------------

    @property
    def servos(self) -> Mapping[int, Servo]:
        """The firmware of each servo by id, for emulators and faults; call `refresh` after changing it."""
        return self._by_id

    def refresh(self) -> None:
        """Makes the motors follow registers that were changed past the bus."""
        with self._lock:
            self._index_servos()
            for row in range(len(self._servos)):
                self._suffer(row)

    def ping(self, ids: Sequence[int]) -> dict[int, int]:
        """The model number of each id that answers. Raises PortLost."""
        with self._lock:
            answering = [id for id in ids if self._answers(id)]
            _, silent = self._hear(answering)
            return {id: self._by_id[id].value(reg.MODEL_NUMBER) for id in answering if id not in silent}

    def read(self, register: Register, servo: int) -> int:
        """One register, in register units. Raises ServoSilent, PortLost."""
        raw = self.read_memory(servo, register.address, register.size)
        return register.decode(int.from_bytes(raw, "little"))

    def write(self, register: Register, servo: int, value: int) -> None:
        """Writes one register. Raises ServoSilent, PortLost, or BusFault when the servo refuses."""
        data = register.encode(value).to_bytes(register.size, "little")
        if number := self.write_memory(servo, register.address, data):
            raise BusFault(
                f"{servo_name(servo)} refused {register.name} = {value}: {describe_refusal(number)}. "
                "EEPROM needs torque off; goals need to lie within the limits and the watchdog not tripped."
            )

    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        """The same registers of several servos at this instant.

        Raises ServoSilent naming who is missing, with what the others answered; PortLost.
        """
        with self._lock:
            rows, silent = self._hear(ids)
            values = np.empty((len(rows), len(registers)), np.int64)
            if rows:
                self._fill(values, registers, rows)
            alerts = [self._servos[row].alert << 7 for row in rows]
            reading = Reading(self.now(), values, np.array(alerts, np.uint8))
            if silent:
                raise self._silence(silent, [id for id in ids if id not in silent], reading)
            return reading

    def gather(self, registers: Sequence[Register], ids: Sequence[int]) -> None:
        """Sets the servos' indirect addresses as a driver on a wire does; reading here needs none of it.

        Raises BusFault.
        """
        first, _, most = reg.INDIRECT_BLOCKS[0]
        targets = [entry.address + byte for entry in registers for byte in range(entry.size)]
        if len(targets) > most:
            raise ValueError(f"{len(targets)} bytes do not fit into the {most} of the first indirect block")
        for id in ids:
            if number := self.write_memory(id, first, struct.pack(f"<{len(targets)}H", *targets)):
                raise BusFault(f"{servo_name(id)} refused indirect addresses: {describe_refusal(number)}.")

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """One register of several servos; like the wire, it does not tell who refused or was absent.

        Raises PortLost.
        """
        with self._lock:
            self._trip_watchdogs()
            self._require_port()
            heard = [id for id in values if self._answers(id)]
            self._feed([self._row[id] for id in heard])
            for id in heard:
                if register.address == _GOAL:
                    self._write_goal(self._row[id], values[id])
                else:
                    data = register.encode(values[id]).to_bytes(register.size, "little")
                    self._write(self._row[id], register.address, data)

    def read_memory(self, servo: int, address: int, size: int) -> bytes:
        """Bytes of a control table. Raises ServoSilent, PortLost, or AccessError with the error number."""
        with self._lock:
            row = self._hear_one(servo)
            self._measure(row)
            return self._servos[row].read(address, size)

    def write_memory(self, servo: int, address: int, data: bytes) -> int:
        """Writes bytes into a control table; returns the error number. Raises ServoSilent, PortLost."""
        with self._lock:
            return self._write(self._hear_one(servo), address, data)

    def reboot(self, servo: int) -> None:
        """Restarts one servo: torque off, RAM forgotten, silent for a while. Raises ServoSilent, PortLost."""
        with self._lock:
            self._restart(self._hear_one(servo))

    def power(self, servo: int, on: bool) -> None:
        """Cuts or restores one servo's supply; restored, it boots as from factory RAM."""
        with self._lock:
            row = self._row[servo]
            self._servos[row].powered = on
            self._restart(row)

    def close(self) -> None:
        """Frees the graphics; the plant itself needs no release. Never raises."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    # --- Camera --------------------------------------------------------------------------------------------

    @property
    def projection(self) -> Floats:
        """(3, 4): base-frame metres to homogeneous pixels of the delivered image, for this draw's camera."""
        return self.projection_at(self._image_size)

    def projection_at(self, size: tuple[int, int]) -> Floats:
        """(3, 4): `projection` for pictures of another size (width, height) px."""
        return self._pose.projection(*size)

    def latest(self, max_age: float) -> Frame:
        """The newest picture: of the present less `frame_delay`, or of before if frames were dropped.

        Raises StaleFrame, or MissingPart without OpenGL.
        """
        time, qpos = self._fresh(max_age)
        if not self._drops:
            return self._photograph(time, qpos)
        if self._shown is None or self._shown.time != time:  # otherwise that one is still the newest
            self._shown = self._photograph(time, qpos)
        return replace(self._shown, image=self._shown.image.copy())

    def view(self, size: tuple[int, int], max_age: float) -> Frame:
        """The newest picture in another size (width, height) px; it changes nothing about those to come.

        Raises StaleFrame, or MissingPart without OpenGL.
        """
        time, qpos = self._fresh(max_age)
        image = self._paint(qpos, *size)
        return Frame(time, self._other_sensor.develop(image) if self._other_sensor else image, self._sequence)

    def _fresh(self, max_age: float) -> tuple[float, Floats]:
        """When the newest picture was taken, s, and of which joint positions. Raises StaleFrame."""
        with self._lock:
            step, qpos = self._seen()
        time = step * self._timestep
        if self.now() - time > max_age + 1e-9:
            raise StaleFrame(
                f"the simulated frame is {self.now() - time:.3f} s old, at most {max_age:.3f} s are allowed; "
                "lower frame_delay or frame_drops in hw.sim or hw.sim.randomise, or raise the allowed age"
            )
        return time, qpos

    def _photograph(self, time: float, qpos: Floats) -> Frame:
        """A new frame of joint positions of a time (s), by the camera's sensor."""
        self._sequence += 1
        image = self._paint(qpos, *self._image_size)
        return Frame(time, self._sensor.develop(image) if self._sensor else image, self._sequence)

    def render(self, width: int, height: int) -> Image:
        """The camera's present view in any size, (height, width, 3) uint8 RGB."""
        with self._lock:
            qpos = self._data.qpos.copy()
        return self._paint(qpos, width, height)

    def _paint(self, qpos: Floats, width: int, height: int) -> Image:
        if self._painter is None:
            config = self.config
            self._painter = Painter(self._model, self._pose, config.geoms, config.shadows)
        elif self._repaint:
            self._painter.aim(self._pose)
            self._painter.look_again()
        self._repaint = False
        return self._painter.draw(qpos, width, height)

    def _seen(self) -> tuple[int, Floats]:
        """The step and joint positions that the camera sees now."""
        return self._history[0] if self._history else (self._step, self._data.qpos.copy())

    # --- Randomisation -------------------------------------------------------------------------------------

    def vary(self, draw: Draw) -> None:
        """Becomes the plant of a draw; what it does not name is as configured.

        Time, pose and the servos' registers stay. If the hand would be set down into the valve, its fingers
        are opened, as whoever moves it would.
        """
        with self._lock:
            self._variation.apply(draw)
            self._vary_motors(draw)
            self._vary_senses(draw)
            self._forget()
            self._due.clear()  # of another delay; refreshing sends every goal anew
            self.refresh()
            mujoco.mj_forward(self._model, self._data)
            if "mount_offset" in draw.values and (self._data.contact.dist < -JOLT).any():
                self.teleport(RESET_POSE, self._valve_angle())

    def perceived(self, snapshot: Snapshot) -> Snapshot:
        """What the agent sees of a reading: all of it, or through the draw's observation noise."""
        return blurred(snapshot, self._blur, self._eyes) if self._blur else snapshot

    def _prepare_variation(self) -> None:
        """The nominal plant, in which none of this changes a bit."""
        self._variation = Variation(self._model)
        self._vary_senses(Draw())

    def _vary_motors(self, draw: Draw) -> None:
        config = self.config
        stiffness = draw.number("servo_stiffness", config.servo_stiffness)
        others = len(self._servos) - len(JOINTS)
        self._stiffness = [stiffness] * len(JOINTS) + [config.valve_stiffness] * others
        self._damping = self._model.dof_damping[self._qvel].copy()
        for row in {*self._suffering["stuck-joint"], *self._held}:
            self._model.dof_damping[self._qvel[row]] = STUCK
        self._play = [draw.number("backlash", 0.0) / 2] * len(JOINTS) + [0.0] * others
        self._delay = self._steps_at(draw.number("command_delay", config.command_delay))

    def _vary_senses(self, draw: Draw) -> None:
        self._misreading, self._misread = draw.number("encoder_noise", 0.0), draw.luck(ENCODERS)
        self._blur, self._eyes = draw.number("observation_noise", 0.0), draw.luck(EYES)
        self._frame_delay = self._steps_at(draw.number("frame_delay", self.config.frame_delay))
        self._drops, self._dropping = draw.number("frame_drops", 0.0), draw.luck(DROPS)
        self._pose, self._sensor = draw.pose(self.config.camera), draw.sensor()
        self._other_sensor = draw.sensor()  # the same one, with luck of its own, for `view`
        self._shown = None
        self._repaint = True

    # --- For tests and benchmarks --------------------------------------------------------------------------

    @property
    def truth(self) -> dict[str, Any]:
        """What no robot knows: exact angles (rad), velocities, ticks, torques (Nm), contacts, time."""
        data = self._data
        return {
            "time": self.now(),
            "qpos": data.qpos[self._qpos].copy(),
            "qvel": data.qvel[self._qvel].copy(),
            "encoders": self._encoders(data.qpos[self._qpos]),
            "torque": data.actuator_force.copy(),
            "setpoint": data.ctrl.copy(),
            "valve": self._valve_angle(),
            "contacts": int(data.ncon),
        }

    def twin(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """A copy of the physics as it is now, to try things out on: the plant does not notice."""
        with self._lock:
            return copy(self._model), copy(self._data)

    def teleport(self, joints: Sequence[float] | Floats, valve: float) -> None:
        """Puts joints (9,) and valve at angles (rad), all at rest, goals there; no robot can do this."""
        with self._lock:
            self._data.qpos[self._qpos[: _VALVE + 1]] = [*joints, valve]
            self._data.qvel[:] = 0
            self._data.ctrl[:] = self._data.qpos[self._qpos]
            self._due.clear()
            self._forget()
            for row, servo in enumerate(self._servos):
                self._measure(row)
                servo.load(reg.GOAL_POSITION, servo.value(reg.PRESENT_POSITION))
            self.refresh()
            if self._due:  # refreshed goals would come late, and motors be pulled to the old ones meanwhile
                self._due.clear()
                self._target[:] = self._ramp_from[:] = self._data.ctrl
            mujoco.mj_forward(self._model, self._data)

    def hold_by_hand(self, angles: Mapping[int, float]) -> None:
        """Somebody's hands turn these joints (servo id: rad) and hold them there; all others they let go.

        At a stop they get no further. Raises ValueError for a servo that is not there or under torque.
        """
        with self._lock:
            self._require_limp(angles)
            for row in self._held:
                self._model.dof_damping[self._qvel[row]] = self._resistance(row)
            self._held.clear()
            self._held.update(self._row[id] for id in angles)
            for id, angle in angles.items():
                self._put(self._row[id], angle)
            mujoco.mj_forward(self._model, self._data)

    def _require_limp(self, angles: Mapping[int, float]) -> None:
        for id, angle in angles.items():
            if id not in self._row or not math.isfinite(angle):
                known = ", ".join(map(str, sorted(self._by_id)))
                raise ValueError(f"no hand turns servo {id} to {angle} rad; there are {known}")
            if self._driven[self._row[id]]:
                raise ValueError(f"{servo_name(id)} is under torque: it does not yield to a hand")

    def _put(self, row: int, angle: float) -> None:
        joint = self._model.dof_jntid[self._qvel[row]]
        low, high = self._model.jnt_range[joint] if self._model.jnt_limited[joint] else (angle, angle)
        self._data.qpos[self._qpos[row]] = min(max(angle, float(low)), float(high))
        self._block(row, 0.0)

    def _resistance(self, row: int) -> float:
        """Nm s/rad of a joint that no hand holds."""
        return STUCK if row in self._suffering["stuck-joint"] else float(self._damping[row])

    # --- Servos and their table ----------------------------------------------------------------------------

    def _index_servos(self) -> None:
        self._by_id = {servo.id: servo for servo in self._servos}
        self._row = {servo.id: row for row, servo in enumerate(self._servos)}

    def _answers(self, id: int) -> bool:
        return id in self._by_id and self._by_id[id].answers(self.now())

    def _hear(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The rows of servos whose answer to a packet arrives, and the ids of the others.

        Whoever hears the packet has its watchdog fed, if its answer arrives or not. Raises PortLost.
        """
        self._trip_watchdogs()
        self._require_port()
        now = self.now()
        heard = [row for id in ids if (row := self._row.get(id, -1)) >= 0 and self._servos[row].answers(now)]
        self._feed(heard)
        rows = heard if self._losses is None else self._lucky(heard)
        if len(rows) == len(ids):
            return rows, []
        answered = {self._servos[row].id for row in rows}
        return rows, [id for id in ids if id not in answered]

    def _hear_one(self, id: int) -> int:
        rows, silent = self._hear((id,))
        if silent:
            raise self._silence(silent)
        return rows[0]

    def _silence(
        self, silent: Sequence[int], answered: Sequence[int] = (), reading: Reading | None = None
    ) -> ServoSilent:
        return ServoSilent(
            f"{', '.join(map(servo_name, silent))} did not answer; on the simulated bus are "
            f"{', '.join(map(str, sorted(self._by_id)))}, silent without power and while booting.",
            silent,
            answered,
            reading,
        )

    def _write(self, row: int, address: int, data: bytes) -> int:
        """The error number of a write that a servo has heard."""
        if address == _GOAL and len(data) == reg.GOAL_POSITION.size:  # most of all writes
            return self._write_goal(row, int.from_bytes(data, "little", signed=True))
        self._measure(row)
        number = self._servos[row].write(address, data, self.now())
        if address <= reg.ID.address:
            self._index_servos()
        self._follow(row)
        return number

    def _restart(self, row: int) -> None:
        """Power-on or reboot of one servo, from what its encoder shows now."""
        self._measure(row)
        self._servos[row].reboot(self.now())
        self._suffer(row)

    def _feed(self, rows: Sequence[int]) -> None:
        now = self.now()
        for row in range(len(self._servos)) if self.config.watchdog_hears_all else rows:
            self._servos[row].feed_watchdog(now)

    def _fill(self, values: Integers, registers: Sequence[Register], rows: Sequence[int]) -> None:
        """Registers of several servos, one per column: what moves from the physics, the rest from tables."""
        wanted = self._wanted(tuple((entry.address, entry.size, entry.signed) for entry in registers))
        for column, measure in wanted.measured:
            values[:, column] = measure()[rows]
        if wanted.stored:
            if wanted.moves:
                for row in rows:
                    self._measure(row)
            size = wanted.layout.itemsize
            tables = np.frombuffer(
                b"".join([self._servos[row].read(wanted.start, size) for row in rows]), wanted.layout
            )
            for column in wanted.stored:
                values[:, column] = tables[str(column)]

    def _wanted(self, registers: tuple[tuple[int, int, bool], ...]) -> _Wanted:
        if registers not in self._known_reads:
            self._known_reads[registers] = _Wanted.of(registers, self._measured)
        return self._known_reads[registers]

    def _measure(self, row: int) -> None:
        """Lets one servo's table show what its motor does: `_ticks` and its like for one row, much faster."""
        servo, data, slipped = self._servos[row], self._data, float(self._slipped[row])
        sign, zero = self._signs[row], self._zero_ticks[row]
        turned = (float(data.qpos[self._qpos[row]]) - slipped) / RAD_PER_TICK
        encoder = int(self._frozen.get(row, sign * round(turned) + zero))
        if self._misreading and row not in self._frozen:
            encoder += int(self._misreadings(1)[0])
        speed = sign * float(data.qvel[self._qvel[row]]) * float(self._seen_share[row])
        current = sign * round(float(data.actuator_force[row]) / self._torque_per_unit)
        servo.measure(encoder, round(speed / RAD_PER_S_PER_UNIT), current, self.now())
        turned = (float(data.ctrl[row]) - slipped) / RAD_PER_TICK
        servo.load(reg.POSITION_TRAJECTORY, round(sign * turned + zero + self._shift[row]))

    def _ticks(self) -> Integers:
        """Present positions as the registers show them."""
        ticks = self._encoders(self._data.qpos[self._qpos] - self._slipped)
        if self._misreading:
            ticks += self._misreadings(len(ticks))
        for row, stays in self._frozen.items():
            ticks[row] = stays
        return ticks + self._shift

    def _encoders(self, angles: Floats) -> Integers:
        """What encoders show, in ticks over all turns, where the servos stand at angles (servos,) rad."""
        return np.asarray(np.rint(angles / self._tick), dtype=np.int64) + self._zeros

    def _misreadings(self, count: int) -> Integers:
        """(count,) ticks by which encoders err this time."""
        errors = self._misread.uniform(-self._misreading, self._misreading, count)
        return np.asarray(np.rint(errors), dtype=np.int64)

    def _velocities(self) -> Integers:
        seen = self._data.qvel[self._qvel] * self._seen_share
        return np.asarray(np.rint(seen / self._speed_unit), dtype=np.int64)

    def _currents(self) -> Integers:
        return np.asarray(np.rint(self._data.actuator_force / self._torque_unit), dtype=np.int64)

    # --- Motors --------------------------------------------------------------------------------------------

    def _prepare_motors(self) -> None:
        """The arrays that carry register values into the physics, one row per servo."""
        names = (*JOINTS, VALVE_JOINT, GUIDE_JOINT)[: len(self._servos)]
        joints = [self._model.joint(name) for name in names]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._qvel = np.array([joint.dofadr[0] for joint in joints])
        config = self.config
        others = len(joints) - len(JOINTS)
        self._stiffness = [config.servo_stiffness] * len(JOINTS) + [config.valve_stiffness] * others
        self._torque_per_unit = reg.AMPERE_PER_UNIT[config.servo_model] * config.torque_constant  # Nm
        signs = np.array(self._signs, np.float64)
        self._zeros = np.array(self._zero_ticks, np.int64)
        self._tick, self._speed_unit = signs * RAD_PER_TICK, signs * RAD_PER_S_PER_UNIT  # rad, rad/s, each
        self._mounting = list(zip(self._zero_ticks, self._tick.tolist(), strict=True))  # quick to look up
        self._torque_unit = signs * self._torque_per_unit
        self._factory_gain = self._servos[0].value(reg.POSITION_P_GAIN)
        self._model.actuator_forcelimited[:] = 1
        self._shift = np.zeros(len(joints), np.int64)  # ticks, see Servo.shift
        self._target = np.zeros(len(joints))  # rad, where goal positions send the motors
        self._play = [0.0] * len(joints)  # rad, half the dead band between command and motion
        self._ramp = np.full(len(joints), np.inf)  # rad per step, from the profile velocity
        self._driven = [False] * len(joints)
        self._ramp_from = np.zeros(len(joints))  # rad, the setpoint when the present goal came
        self._ramp_start = np.zeros(len(joints), np.int64)  # the step at which it came
        self._delay = self._steps_at(config.command_delay)
        self._due: deque[tuple[int, int, float]] = deque()  # step, row, rad: goals on their way
        self._capture_steps = self._steps_at(CAPTURE_PERIOD)
        self._history: deque[tuple[int, Floats]] = deque()  # step and positions, oldest = what is seen now
        self._endurance_steps = self._steps_at(ENDURANCE_PERIOD) if config.thermal else _NEVER
        self._endurance_due = self._endurance_steps  # the step at which servos are next warmed
        self._known_reads: dict[tuple[tuple[int, int, bool], ...], _Wanted] = {}
        self._measured = {
            (entry.address, entry.size, entry.signed): measure
            for entry, measure in (
                (reg.PRESENT_CURRENT, self._currents),
                (reg.PRESENT_VELOCITY, self._velocities),
                (reg.PRESENT_POSITION, self._ticks),
            )
        }
        self._slipped = np.zeros(len(joints))  # rad by which the valve has turned more than its encoder
        self._slipping = 0.0  # the share of its motion by which it does now
        self._seen_share = np.ones(len(joints))  # of each joint's velocity, what its encoder sees
        self._frozen: dict[int, int] = {}  # row -> ticks that an encoder keeps showing
        self._hot: dict[int, float] = {}  # row -> deg C that it is kept at
        self._healthy_volts: dict[int, float] = {}  # row -> V before its supply dipped
        self._healthy_degrees: dict[int, float] = {}  # row -> deg C before it was heated
        self._damping = self._model.dof_damping[self._qvel].copy()
        self._held: set[int] = set()  # rows that somebody's hands hold

    def _follow(self, row: int) -> None:
        """Carries one servo's registers over into the physics."""
        servo = self._servos[row]
        was_driven, driven = self._driven[row], servo.torque and servo.powered
        if driven and not was_driven:
            self._data.ctrl[row] = self._data.qpos[self._qpos[row]]  # a trajectory starts at the present
        self._driven[row] = driven
        gain = self._stiffness[row] * servo.value(reg.POSITION_P_GAIN) / self._factory_gain if driven else 0.0
        self._model.actuator_gainprm[row, 0] = gain
        self._model.actuator_biasprm[row, 1] = -gain
        self._model.actuator_forcerange[row] = (
            np.array([-1, 1]) * self._current_limit(servo) * self._torque_per_unit
        )
        velocity = servo.value(reg.PROFILE_VELOCITY) * RAD_PER_S_PER_UNIT
        self._ramp[row] = velocity * self._timestep if velocity else math.inf
        self._start_ramp(row)
        self._shift[row] = servo.shift
        commanded = was_driven and driven and not servo.tripped  # the servo's own holds know no delay
        self._aim(row, servo.value(reg.GOAL_POSITION), self._delay if commanded else 0)

    def _current_limit(self, servo: Servo) -> int:
        """Register units."""
        limit = servo.value(reg.CURRENT_LIMIT)
        if servo.value(reg.OPERATING_MODE) == reg.CURRENT_POSITION_MODE:
            limit = min(limit, abs(servo.value(reg.GOAL_CURRENT)))
        return limit

    def _write_goal(self, row: int, ticks: int) -> int:
        error = self._servos[row].write_goal(ticks, self.now())
        if not error:
            self._aim(row, ticks, self._delay)
        return error

    def _aim(self, row: int, ticks: int, delay: int) -> None:
        """Sends a motor to a goal position in `delay` steps; at once also forgets goals on their way."""
        zero, tick = self._mounting[row]
        angle = float(ticks - self._shift[row] - zero) * tick
        if delay:
            self._due.append((self._step + delay, row, angle))
            return
        self._send(row, angle)
        if self._due:
            self._due = deque(item for item in self._due if item[1] != row)

    def _send(self, row: int, angle: float) -> None:
        """The motor sets out for an angle (rad); where there is play, it stops at the near edge of it."""
        wanted = angle + self._slipped[row]
        if play := self._play[row]:
            wanted = min(max(self._target[row], wanted - play), wanted + play)
        self._target[row] = wanted
        self._start_ramp(row)

    def _start_ramp(self, row: int) -> None:
        self._ramp_from[row] = self._data.ctrl[row]
        self._ramp_start[row] = self._step

    def _trip_watchdogs(self) -> None:
        now = self.now()
        for row, servo in enumerate(self._servos):
            if now >= servo.watchdog_deadline - 1e-9:
                self._measure(row)
                servo.tick(now)
                self._follow(row)

    def _endure(self) -> None:
        """Lets the currents of this moment do for a while to the servos what currents do."""
        self._endurance_due = self._step + self._endurance_steps
        for row, current in enumerate(self._currents().tolist()):
            servo = self._servos[row]
            if row in self._hot:
                servo.warm(self._hot[row])
            else:
                servo.endure(current, ENDURANCE_PERIOD)
            if self._driven[row] and not servo.torque:
                self._follow(row)

    # --- Faults --------------------------------------------------------------------------------------------

    def inject(self, schedule: FaultSchedule) -> None:
        """Lets happen what a schedule holds, counted from now, besides what was injected before.

        Without a wire its faults show as a driver of three tries sees them: what spoils all three is a
        servo's silence, an unplugged port is PortLost. Raises ValueError for servos that are not there.
        """
        require_servos(schedule.faults, self._by_id)
        refuse_camera(schedule.faults)
        with self._lock:
            self._luck = schedule.luck
            self._schedules.append(schedule.begin(self.now()))
            self._meet_faults()

    def heal(self) -> None:
        """Ends all faults; what they have done to tables and turns stays done."""
        with self._lock:
            self._schedules.clear()
            self._suffer_what_lasts()

    @property
    def faults(self) -> list[tuple[str, list[int]]]:
        """What is wrong at present: kinds, and the servos that suffer from them."""
        with self._lock:
            return [
                (happening.fault.kind, [self._servos[row].id for row in self._victims(happening)])
                for happening in self._active()
            ]

    def _active(self) -> list[Occurrence]:
        return [happening for schedule in self._schedules for happening in schedule.active]

    def _prepare_faults(self) -> None:
        self.events = EventLog(self)  # what faults begin and end
        self._schedules: list[FaultSchedule] = []
        self._luck = np.random.default_rng(0)  # until a schedule brings its own
        self._suffering: dict[str, dict[int, float]] = defaultdict(dict)  # kind -> row -> amount
        self._errors: dict[int, int] = {}  # row -> bits of register 70 whose cause persists
        self._losses: Floats | None = None  # (rows,) probability that an answer does not arrive
        self._unplugged = False
        self._effects: dict[str, tuple[Callable[[int, float], None], Callable[[int], None]]] = {
            "dead": (self._cut, self._feed_power),
            "voltage-dip": (self._dip, self._recover),
            "heat": (self._heat, self._cool),
            "stuck-joint": (self._block, self._free),
            "frozen-encoder": (self._freeze, self._thaw),
            "slipping-valve": (self._loosen, self._tighten),
        }

    def _meet_faults(self) -> None:
        """Has begin and end what is due."""
        changes = [change for schedule in self._schedules for change in schedule.changes(self.now())]
        if not changes:
            return
        for change in changes:
            self._tell(change)
            if change.begins:
                self._strike(change.occurrence)
        self._schedules = [schedule for schedule in self._schedules if not schedule.over]
        self._suffer_what_lasts()

    def _tell(self, change: Change) -> None:
        """Says what begins, and what is over if it took its time."""
        happening = change.occurrence
        whom = ", ".join(servo_name(self._servos[row].id) for row in self._victims(happening))
        if change.begins:
            self.events.emit(happening.fault.kind, f"{happening.fault.kind}: {whom}")
        elif happening.end > happening.start:
            self.events.emit("over", f"{happening.fault.kind} is over: {whom}", "info")

    def _strike(self, happening: Occurrence) -> None:
        """What happens at one moment, or begins with one."""
        for row in self._victims(happening):
            if happening.fault.kind == "reboot" and self._servos[row].powered:
                self._restart(row)
            elif bits := ERRORS.get(happening.fault.kind):
                self._servos[row].raise_hardware_error(bits)
                self._follow(row)

    def _suffer_what_lasts(self) -> None:
        """Begins and ends what is not, or no longer, as the active faults have it."""
        self._errors = self._lasting_errors()
        self._unplugged = any(happening.fault.kind == "unplug" for happening in self._active())
        self._losses = self._loss_probabilities()
        lasting: dict[str, dict[int, float]] = defaultdict(dict)
        for happening in self._active():
            kind = {"brown-out": "dead"}.get(happening.fault.kind, happening.fault.kind)
            lasting[kind].update(dict.fromkeys(self._victims(happening), happening.fault.amount))
        before, self._suffering = self._suffering, lasting
        for kind, (begin, end) in self._effects.items():
            for row in before[kind].keys() - lasting[kind].keys():
                end(row)
            for row in lasting[kind].keys() - before[kind].keys():
                begin(row, lasting[kind][row])

    def _victims(self, happening: Occurrence) -> list[int]:
        """The rows that a fault hits."""
        fault, everyone = happening.fault, list(range(len(self._servos)))
        if fault.kind == "slipping-valve":
            return [_VALVE]
        if fault.kind == "brown-out" or (fault.servo is None and fault.kind in WIRE | {"voltage-dip"}):
            return everyone
        joints = [servo.id for servo in self._servos[: len(JOINTS)]]
        id = happening.victim(joints if fault.kind == "stuck-joint" else [*self._by_id])
        return [self._row[id]] if id in self._row else []

    def _suffer(self, row: int) -> None:
        """Carries a servo's registers over, and with them what a restart does not cure."""
        if row in self._errors:
            self._servos[row].raise_hardware_error(self._errors[row])
        self._follow(row)

    def _lasting_errors(self) -> dict[int, int]:
        errors: dict[int, int] = defaultdict(int)
        for happening in self._active():
            for row in self._victims(happening):
                errors[row] |= ERRORS.get(happening.fault.kind, 0)
        return {row: bits for row, bits in errors.items() if bits}

    def _loss_probabilities(self) -> Floats | None:
        """(rows,) how probably all tries to hear a servo fail, or None where none can."""
        heard = np.ones(len(self._servos))
        for happening in self._active():
            if _spoils(happening.fault):
                heard[self._victims(happening)] *= 1 - happening.fault.probability
        lost = (1 - heard) ** TRIES
        return lost if lost.any() else None

    def _lucky(self, rows: list[int]) -> list[int]:
        """The rows whose answers arrive."""
        assert self._losses is not None
        arrives = self._luck.random(len(rows)) >= self._losses[rows]
        return [row for row, heard in zip(rows, arrives, strict=True) if heard]

    def _require_port(self) -> None:
        if self._unplugged:
            raise PortLost("an injected fault has unplugged the simulated port; it comes back when that ends")

    # --- What lasting faults do to one servo ----------------------------------------------------------------

    def _cut(self, row: int, _: float) -> None:
        self._servos[row].powered = False
        self._restart(row)

    def _feed_power(self, row: int) -> None:
        self._servos[row].powered = True
        self._restart(row)

    def _dip(self, row: int, volts: float) -> None:
        servo = self._servos[row]
        self._healthy_volts[row] = servo.value(reg.PRESENT_INPUT_VOLTAGE) * reg.VOLT_PER_UNIT
        servo.supply(volts)
        self._follow(row)

    def _recover(self, row: int) -> None:
        self._servos[row].supply(self._healthy_volts.pop(row))
        self._follow(row)

    def _heat(self, row: int, degrees: float) -> None:
        servo = self._servos[row]
        self._hot[row], self._healthy_degrees[row] = degrees, servo.temperature
        servo.warm(degrees)
        self._follow(row)

    def _cool(self, row: int) -> None:
        del self._hot[row]
        self._servos[row].warm(self._healthy_degrees.pop(row))

    def _block(self, row: int, _: float) -> None:
        dof = self._qvel[row]
        self._model.dof_damping[dof] = STUCK
        self._data.qvel[dof] = 0.0

    def _free(self, row: int) -> None:
        if row not in self._held:
            self._model.dof_damping[self._qvel[row]] = self._damping[row]

    def _freeze(self, row: int, _: float) -> None:
        self._frozen[row] = int(self._ticks()[row] - self._shift[row])
        self._seen_share[row] = 0.0

    def _thaw(self, row: int) -> None:
        del self._frozen[row]
        self._seen_share[row] = 1.0

    def _loosen(self, row: int, share: float) -> None:
        self._slipping, self._seen_share[row] = share, 1 - share

    def _tighten(self, row: int) -> None:
        self._slipping, self._seen_share[row] = 0.0, 1.0

    # --- Physics -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """What has to happen at this step before the physics goes on."""
        self._meet_faults()
        self._trip_watchdogs()
        if self._step >= self._endurance_due:
            self._endure()
        while self._due and self._due[0][0] <= self._step:
            _, row, angle = self._due.popleft()
            self._send(row, angle)

    def _next_event(self) -> int:
        """The step at which `_settle` has work again."""
        if self._slipping:
            return self._step + 1
        soonest = min([servo.watchdog_deadline for servo in self._servos])
        for schedule in self._schedules:
            soonest = min(soonest, schedule.next_time)
        event = self._steps_at(soonest) if soonest < math.inf else _NEVER
        goal = self._due[0][0] if self._due else _NEVER
        return max(self._step + 1, min(event, goal, self._endurance_due))

    def _run(self, end: int) -> None:
        """Steps to `end`: one by one while setpoints ramp or a delayed camera watches, then all at once."""
        ramped = np.ceil(np.abs(self._target - self._ramp_from) / self._ramp)
        singly = end if self._filmed else min(end, int((self._ramp_start + ramped).max()))
        before = self._valve_angle() if self._slipping else 0.0
        if singly > self._step:
            for setpoint in self._setpoints(singly):
                self._data.ctrl[:] = setpoint
                mujoco.mj_step(self._model, self._data)
                self._step += 1
                self._remember()
        if end > self._step:
            self._data.ctrl[:] = self._target
            mujoco.mj_step(self._model, self._data, end - self._step)
            self._step = end
        if self._slipping:
            self._slide(self._valve_angle() - before)

    def _valve_angle(self) -> float:
        return float(self._data.qpos[self._qpos[_VALVE]])

    def _slide(self, turned: float) -> None:
        """The valve has turned (rad) and its encoder with it, but for a share; goals are the encoder's."""
        slid = self._slipping * turned
        for angles in (self._slipped, self._target, self._ramp_from, self._data.ctrl):
            angles[_VALVE] += slid

    def _setpoints(self, end: int) -> Floats:
        """(steps, servos) rad: what profile velocities make of the goals in each step up to `end`."""
        elapsed = np.arange(self._step + 1, end + 1)[:, None] - self._ramp_start
        reach = self._ramp * elapsed
        missing = self._target - self._ramp_from
        arrived = np.abs(missing) <= reach
        return np.where(arrived, self._target, self._ramp_from + np.clip(missing, -reach, reach))

    def _remember(self) -> None:
        """Keeps the positions that a camera, which is late or drops frames, still has to show."""
        if not self._filmed:
            return
        if not self._drops or (self._step % self._capture_steps == 0 and self._frame_arrives()):
            self._history.append((self._step, self._data.qpos.copy()))
        while len(self._history) > 1 and self._history[1][0] <= self._step - self._frame_delay:
            self._history.popleft()

    @property
    def _filmed(self) -> bool:
        """Whether the camera shows something else than the present."""
        return bool(self._frame_delay or self._drops)

    def _frame_arrives(self) -> bool:
        return bool(self._dropping.random() >= self._drops)

    def _forget(self) -> None:
        """What the camera shows begins with the present."""
        self._history.clear()
        if self._filmed:
            self._history.append((self._step, self._data.qpos.copy()))
