"""The simulated rig beneath the driver: one MuJoCo world that is bus, camera and clock at once.

The driver, its calibration and its fault paths run on it unchanged, because it speaks registers and ticks.
Physics advances only when someone sleeps on the clock (or calls `advance_to`), exactly as fast as the CPU
allows, in whole steps counted as an integer.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat

from robot import registers as reg
from robot.protocol import describe_refusal
from robot.registers import RAD_PER_S_PER_UNIT, RAD_PER_TICK, Register, servo_name
from robot.servo import CURRENT_POSITION_MODE, POSITION_TRAJECTORY, Servo
from robot.types import BusFault, Floats, Frame, Image, Reading, ServoSilent, StaleFrame
from robot.world import JOINTS, VALVE_JOINT, CameraPose, Painter, WorldConfig, dclaw_model

Integers = NDArray[np.int64]

FINGER_SERVOS = (10, 11, 12, 20, 21, 22, 30, 31, 32)
VALVE_SERVO = 50
# Ticks at joint angle 0, such that ROBEL's calibration holds: angle = ticks * rad per tick + offset, with
# offset -pi/2 for the first joint of each finger and -pi for all others and the valve.
ZERO_TICKS = np.array([1024, 2048, 2048] * 3 + [2048], dtype=np.int64)
RESET_POSE = (0.0, -math.pi / 3, math.pi / 3) * 3  # rad, ROBEL's
_GOAL = reg.GOAL_POSITION.address
_NEVER = 1 << 62  # steps


class SimConfig(WorldConfig):
    """What the simulated rig is made of: physics, servos, delays, looks, camera."""

    servo_model: Literal[1000, 1010, 1020, 1030, 1040, 1050] = (
        1010  # XH430-W210, the servo whose factory values registers.py carries
    )
    torque_constant: PositiveFloat = 1.92  # Nm/A: XH430-W210 stalls at 2.5 Nm and 1.3 A (e-Manual, 12 V)
    command_delay: NonNegativeFloat = 0.0  # s from the packet to the motor
    frame_delay: NonNegativeFloat = 0.0  # s by which a frame's capture lies in the past
    watchdog_hears_all: bool = False  # whether packets to other servos feed a watchdog (the manual is vague)
    camera: CameraPose = CameraPose()


class SimPlant:
    """A whole D'Claw rig in one object: pass it as bus, camera and clock.

    Bus: the registers of nine finger servos and the valve's servo, byte-exact (`read_memory`,
    `write_memory`, as a wire emulator needs) and vectorised (`sync_read`, `sync_write`); both agree.
    Camera: renders the present when asked. Clock: `sleep_until` steps the physics.
    Bus and clock may be used from several threads; pictures must all be asked for from one thread.
    """

    def __init__(
        self,
        config: SimConfig,
        servos: Sequence[int] = FINGER_SERVOS,
        object_servo: int = VALVE_SERVO,
        image_size: tuple[int, int] = (64, 64),  # width, height
    ) -> None:
        if len(servos) != len(JOINTS) or len({*servos, object_servo}) != len(JOINTS) + 1:
            raise ValueError(
                f"a D'Claw has {len(JOINTS)} finger servos and a valve, got ids {servos}, {object_servo}"
            )
        self.config = config
        self._lock = threading.RLock()
        self._model = dclaw_model(config)
        self._data = mujoco.MjData(self._model)
        self._timestep = float(self._model.opt.timestep)
        self._step = 0
        self._servos = tuple(Servo(id, config.servo_model) for id in (*servos, object_servo))
        self._servos[-1].load(reg.OPERATING_MODE, reg.EXTENDED_POSITION_MODE)
        self._index_servos()
        self._prepare_motors()
        self._image_size = image_size
        self._painter: Painter | None = None
        self._sequence = 0
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
                self._follow(row)

    def ping(self, ids: Sequence[int]) -> dict[int, int]:
        """The model number of each id that answers."""
        with self._lock:
            return {id: self._by_id[id].value(reg.MODEL_NUMBER) for id in ids if self._answers(id)}

    def read(self, register: Register, servo: int) -> int:
        """One register, in register units. Raises ServoSilent."""
        raw = self.read_memory(servo, register.address, register.size)
        return register.decode(int.from_bytes(raw, "little"))

    def write(self, register: Register, servo: int, value: int) -> None:
        """Writes one register. Raises ServoSilent, or BusFault when the servo refuses."""
        data = register.encode(value).to_bytes(register.size, "little")
        if number := self.write_memory(servo, register.address, data):
            raise BusFault(
                f"{servo_name(servo)} refused {register.name} = {value}: {describe_refusal(number)}. "
                "EEPROM needs torque off; goals need to lie within the limits and the watchdog not tripped."
            )

    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        """The same registers of several servos at this instant. Raises ServoSilent naming who is missing."""
        with self._lock:
            rows = self._hear(ids)
            values = np.empty((len(rows), len(registers)), np.int64)
            for column, register in enumerate(registers):
                measured = self._measured.get(register.address)
                if measured is not None and measured[0] == register.size:
                    values[:, column] = measured[1]()[rows]
                else:
                    values[:, column] = [self.read(register, id) for id in ids]
            alerts = [self._servos[row].alert << 7 for row in rows]
            return Reading(self.now(), values, np.array(alerts, np.uint8))

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """One register of several servos; like the wire, it does not tell who refused or was absent."""
        with self._lock:
            self._trip_watchdogs()
            heard = [id for id in values if self._answers(id)]
            self._feed([self._row[id] for id in heard])
            for id in heard:
                if register.address == _GOAL:
                    self._write_goal(self._row[id], values[id])
                else:
                    data = register.encode(values[id]).to_bytes(register.size, "little")
                    self.write_memory(id, register.address, data)

    def read_memory(self, servo: int, address: int, size: int) -> bytes:
        """Bytes of a control table. Raises ServoSilent, or AccessError with the protocol's error number."""
        with self._lock:
            (row,) = self._hear((servo,))
            self._measure(row)
            return self._servos[row].read(address, size)

    def write_memory(self, servo: int, address: int, data: bytes) -> int:
        """Writes bytes into a control table; returns the protocol's error number. Raises ServoSilent."""
        with self._lock:
            (row,) = self._hear((servo,))
            self._measure(row)
            number = self._servos[row].write(address, data, self.now())
            if address <= reg.ID.address:
                self._index_servos()
            self._follow(row)
            return number

    def reboot(self, servo: int) -> None:
        """Restarts one servo: torque off, RAM at its defaults, silent for 0.2 s. Raises ServoSilent."""
        with self._lock:
            (row,) = self._hear((servo,))
            self._measure(row)
            self._servos[row].reboot(self.now())
            self._follow(row)

    def power(self, servo: int, on: bool) -> None:
        """Cuts or restores one servo's supply; restored, it boots as from factory RAM."""
        with self._lock:
            firmware, row = self._by_id[servo], self._row[servo]
            self._measure(row)
            firmware.powered = on
            firmware.reboot(self.now())
            self._follow(row)

    def close(self) -> None:
        """Frees the graphics; the plant itself needs no release. Never raises."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    # --- Camera --------------------------------------------------------------------------------------------

    @property
    def projection(self) -> Floats:
        """(3, 4): base-frame metres to homogeneous pixels of the delivered image."""
        return self.config.camera.projection(*self._image_size)

    def latest(self, max_age: float) -> Frame:
        """A picture of the present less `frame_delay`. Raises StaleFrame, or RuntimeError without OpenGL."""
        with self._lock:
            step, qpos = self._seen()
        time = step * self._timestep
        if self.now() - time > max_age + 1e-9:
            raise StaleFrame(
                f"the simulated frame is {self.now() - time:.3f} s old, at most {max_age:.3f} s are allowed; "
                "lower hw.sim.frame_delay or raise the allowed age"
            )
        self._sequence += 1
        return Frame(time, self._paint(qpos, *self._image_size), self._sequence)

    def render(self, width: int, height: int) -> Image:
        """The camera's present view in any size, (height, width, 3) uint8 RGB."""
        with self._lock:
            qpos = self._data.qpos.copy()
        return self._paint(qpos, width, height)

    def _paint(self, qpos: Floats, width: int, height: int) -> Image:
        if self._painter is None:
            config = self.config
            self._painter = Painter(self._model, config.camera, config.geoms, config.shadows)
        return self._painter.draw(qpos, width, height)

    def _seen(self) -> tuple[int, Floats]:
        """The step and joint positions that the camera sees now."""
        return self._history[0] if self._history else (self._step, self._data.qpos.copy())

    # --- For tests and benchmarks --------------------------------------------------------------------------

    @property
    def truth(self) -> dict[str, Any]:
        """What no robot knows: exact angles (rad), velocities, torques (Nm), contacts, time."""
        data = self._data
        return {
            "time": self.now(),
            "qpos": data.qpos[self._qpos].copy(),
            "qvel": data.qvel[self._qvel].copy(),
            "torque": data.actuator_force.copy(),
            "setpoint": data.ctrl.copy(),
            "valve": float(data.qpos[self._qpos[-1]]),
            "contacts": int(data.ncon),
        }

    def teleport(self, joints: Sequence[float] | Floats, valve: float) -> None:
        """Puts joints (9,) and valve at angles (rad), at rest, goals there; no robot can do this."""
        with self._lock:
            self._data.qpos[self._qpos] = [*joints, valve]
            self._data.qvel[:] = 0
            self._data.ctrl[:] = self._data.qpos[self._qpos]
            self._due.clear()
            self._history.clear()
            self._remember()
            for row, servo in enumerate(self._servos):
                self._measure(row)
                servo.load(reg.GOAL_POSITION, servo.value(reg.PRESENT_POSITION))
            self.refresh()
            mujoco.mj_forward(self._model, self._data)

    # --- Servos and their table ----------------------------------------------------------------------------

    def _index_servos(self) -> None:
        self._by_id = {servo.id: servo for servo in self._servos}
        self._row = {servo.id: row for row, servo in enumerate(self._servos)}

    def _answers(self, id: int) -> bool:
        return id in self._by_id and self._by_id[id].answers(self.now())

    def _hear(self, ids: Sequence[int]) -> list[int]:
        """The rows of servos that hear a packet addressed to them, their watchdogs fed."""
        self._trip_watchdogs()
        silent = [id for id in ids if not self._answers(id)]
        if silent:
            raise ServoSilent(
                f"{', '.join(map(servo_name, silent))} did not answer; on the simulated bus are "
                f"{', '.join(map(str, sorted(self._by_id)))}, silent without power and while booting.",
                silent,
            )
        rows = [self._row[id] for id in ids]
        self._feed(rows)
        return rows

    def _feed(self, rows: Sequence[int]) -> None:
        now = self.now()
        for row in range(len(self._servos)) if self.config.watchdog_hears_all else rows:
            self._servos[row].feed_watchdog(now)

    def _measure(self, row: int) -> None:
        """Lets one servo's table show what its motor does."""
        encoder = int(self._ticks()[row] - self._shift[row])
        servo = self._servos[row]
        servo.measure(encoder, int(self._velocities()[row]), int(self._currents()[row]), self.now())
        trajectory = self._data.ctrl[row] / RAD_PER_TICK + ZERO_TICKS[row] + self._shift[row]
        servo.load(POSITION_TRAJECTORY, round(trajectory))

    def _ticks(self) -> Integers:
        """Present positions as the registers show them."""
        turned = np.asarray(np.rint(self._data.qpos[self._qpos] / RAD_PER_TICK), dtype=np.int64)
        return turned + ZERO_TICKS + self._shift

    def _velocities(self) -> Integers:
        return np.asarray(np.rint(self._data.qvel[self._qvel] / RAD_PER_S_PER_UNIT), dtype=np.int64)

    def _currents(self) -> Integers:
        return np.asarray(np.rint(self._data.actuator_force / self._torque_per_unit), dtype=np.int64)

    # --- Motors --------------------------------------------------------------------------------------------

    def _prepare_motors(self) -> None:
        """The arrays that carry register values into the physics, one row per servo."""
        joints = [self._model.joint(name) for name in (*JOINTS, VALVE_JOINT)]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._qvel = np.array([joint.dofadr[0] for joint in joints])
        config = self.config
        self._stiffness = [config.servo_stiffness] * len(JOINTS) + [config.valve_stiffness]
        self._torque_per_unit = reg.AMPERE_PER_UNIT[config.servo_model] * config.torque_constant  # Nm
        self._factory_gain = self._servos[0].value(reg.POSITION_P_GAIN)
        self._model.actuator_forcelimited[:] = 1
        self._shift = np.zeros(len(joints), np.int64)  # ticks, see Servo.shift
        self._target = np.zeros(len(joints))  # rad, where goal positions send the motors
        self._ramp = np.full(len(joints), np.inf)  # rad per step, from the profile velocity
        self._driven = [False] * len(joints)
        self._ramp_from = np.zeros(len(joints))  # rad, the setpoint when the present goal came
        self._ramp_start = np.zeros(len(joints), np.int64)  # the step at which it came
        self._delay = self._steps_at(config.command_delay)
        self._due: deque[tuple[int, int, float]] = deque()  # step, row, rad: goals on their way
        self._frame_delay = self._steps_at(config.frame_delay)
        self._history: deque[tuple[int, Floats]] = deque()  # step and positions, oldest = what is seen now
        self._measured = {
            reg.PRESENT_CURRENT.address: (reg.PRESENT_CURRENT.size, self._currents),
            reg.PRESENT_VELOCITY.address: (reg.PRESENT_VELOCITY.size, self._velocities),
            reg.PRESENT_POSITION.address: (reg.PRESENT_POSITION.size, self._ticks),
        }

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
        if servo.value(reg.OPERATING_MODE) == CURRENT_POSITION_MODE:
            limit = min(limit, abs(servo.value(reg.GOAL_CURRENT)))
        return limit

    def _write_goal(self, row: int, ticks: int) -> None:
        if self._servos[row].write_goal(ticks, self.now()) == 0:
            self._aim(row, ticks, self._delay)

    def _aim(self, row: int, ticks: int, delay: int) -> None:
        """Sends a motor to a goal position in `delay` steps; at once also forgets goals on their way."""
        angle = float(ticks - self._shift[row] - ZERO_TICKS[row]) * RAD_PER_TICK
        if delay:
            self._due.append((self._step + delay, row, angle))
            return
        self._target[row] = angle
        self._start_ramp(row)
        if self._due:
            self._due = deque(item for item in self._due if item[1] != row)

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

    # --- Physics -------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """What has to happen at this step before the physics goes on: watchdogs and goals that are due."""
        self._trip_watchdogs()
        while self._due and self._due[0][0] <= self._step:
            _, row, angle = self._due.popleft()
            self._target[row] = angle
            self._start_ramp(row)

    def _next_event(self) -> int:
        """The step at which `_settle` has work again."""
        deadline = min(servo.watchdog_deadline for servo in self._servos)
        watchdog = self._steps_at(deadline) if deadline < math.inf else _NEVER
        return max(self._step + 1, min(watchdog, self._due[0][0] if self._due else _NEVER))

    def _run(self, end: int) -> None:
        """Steps to `end`: one by one while setpoints ramp or a delayed camera watches, then all at once."""
        ramped = np.ceil(np.abs(self._target - self._ramp_from) / self._ramp)
        singly = end if self._frame_delay else min(end, int((self._ramp_start + ramped).max()))
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

    def _setpoints(self, end: int) -> Floats:
        """(steps, servos) rad: what profile velocities make of the goals in each step up to `end`."""
        elapsed = np.arange(self._step + 1, end + 1)[:, None] - self._ramp_start
        reach = self._ramp * elapsed
        missing = self._target - self._ramp_from
        arrived = np.abs(missing) <= reach
        return np.where(arrived, self._target, self._ramp_from + np.clip(missing, -reach, reach))

    def _remember(self) -> None:
        """Keeps the positions that a delayed camera still has to show."""
        if not self._frame_delay:
            return
        self._history.append((self._step, self._data.qpos.copy()))
        while len(self._history) > 1 and self._history[1][0] <= self._step - self._frame_delay:
            self._history.popleft()
