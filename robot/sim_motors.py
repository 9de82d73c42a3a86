"""The servos of a simulated D'Claw and what their motors do: registers on one side, physics on the other."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot import registers as reg
from robot.randomise import ENCODERS, Draw
from robot.registers import RAD_PER_S_PER_UNIT, RAD_PER_TICK, Register, servo_name
from robot.servo import Servo
from robot.sim_config import GUIDE_ZERO, SimConfig
from robot.types import Floats
from robot.world import GUIDE_JOINT, JOINTS, VALVE_JOINT, addresses

Integers = NDArray[np.int64]

VALVE = len(JOINTS)  # the row of the valve's servo; a guide's follows
NEVER = 1 << 62  # steps
# s between looks at what currents do to servos: they warm in minutes and overload in 5 s. A look costs 37 us,
# a tenth of what 0.1 s of physics cost.
ENDURANCE_PERIOD = 0.5
STUCK = 1e6  # Nm s/rad: a blocked joint, pressed with all its 2.5 Nm, creeps by 0.01 rad in an hour
_GOAL = reg.GOAL_POSITION.address


class Physics:
    """A MuJoCo world and its time, in whole steps counted as an integer."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self.timestep = float(model.opt.timestep)
        self.step = 0
        self.lock = threading.RLock()  # of all that steps it, or looks at it from another thread

    def now(self) -> float:
        """s: whole steps since the start."""
        return self.step * self.timestep

    def steps_at(self, time: float) -> int:
        """The first step at or after a time (s); a millionth of a step is forgiven."""
        return math.ceil(time / self.timestep - 1e-6)

    def forward(self) -> None:
        """Brings all that follows from positions and velocities up to date with them."""
        mujoco.mj_forward(self.model, self.data)


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


class Motors:
    """All servos of a rig, one row each: joints first, then the valve's and, if there is one, the guide's."""

    def __init__(self, physics: Physics, config: SimConfig, ids: Sequence[int]) -> None:
        """ids: of the servos, in the order of the rows."""
        self._physics, self._model, self._data, self._config = physics, physics.model, physics.data, config
        self.servos = tuple(Servo(id, config.servo_model, config.firmware) for id in ids)
        self.servos[VALVE].load(reg.OPERATING_MODE, reg.EXTENDED_POSITION_MODE)
        guides = len(ids) - len(config.signs)
        self._signs = (*config.signs, *[1] * guides)
        self._zero_ticks = (*config.zero_ticks, *[GUIDE_ZERO] * guides)
        self.index_servos()
        self._prepare_motors()
        self._prepare_senses()
        self.vary(Draw())

    # --- Registers --------------------------------------------------------------------------------------

    def index_servos(self) -> None:
        """Takes note of the servos' ids; to be called when one may have changed."""
        self.by_id = {servo.id: servo for servo in self.servos}
        self.row = {servo.id: row for row, servo in enumerate(self.servos)}

    def write(self, row: int, address: int, data: bytes) -> int:
        """The error number of a write that a servo has heard."""
        if address == _GOAL and len(data) == reg.GOAL_POSITION.size:  # most of all writes
            return self.write_goal(row, int.from_bytes(data, "little", signed=True))
        self.measure(row)
        number = self.servos[row].write(address, data, self._physics.now())
        if address <= reg.ID.address:
            self.index_servos()
        self.follow(row)
        return number

    def answering(self, ids: Sequence[int]) -> list[int]:
        """The rows of those that have power and are awake."""
        now, servos = self._physics.now(), self.servos
        return [row for id in ids if (row := self.row.get(id, -1)) >= 0 and servos[row].answers(now)]

    def feed(self, rows: Sequence[int]) -> None:
        """Feeds the watchdogs of those who have heard a packet."""
        now = self._physics.now()
        for row in range(len(self.servos)) if self._config.watchdog_hears_all else rows:
            self.servos[row].feed_watchdog(now)

    def fill(self, values: Integers, registers: Sequence[Register], rows: Sequence[int]) -> None:
        """Registers of several servos, one per column: what moves from the physics, the rest from tables."""
        wanted = self._wanted(tuple((entry.address, entry.size, entry.signed) for entry in registers))
        for column, measure in wanted.measured:
            values[:, column] = measure()[rows]
        if wanted.stored:
            if wanted.moves:
                for row in rows:
                    self.measure(row)
            size = wanted.layout.itemsize
            tables = np.frombuffer(
                b"".join([self.servos[row].read(wanted.start, size) for row in rows]), wanted.layout
            )
            for column in wanted.stored:
                values[:, column] = tables[str(column)]

    def _wanted(self, registers: tuple[tuple[int, int, bool], ...]) -> _Wanted:
        if registers not in self._known_reads:
            self._known_reads[registers] = _Wanted.of(registers, self._measured)
        return self._known_reads[registers]

    def measure(self, row: int) -> None:
        """Lets one servo's table show what its motor does: `_ticks` and its like for one row, much faster."""
        servo, data, slipped = self.servos[row], self._data, float(self._slipped[row])
        sign, zero = self._signs[row], self._zero_ticks[row]
        turned = (float(data.qpos[self.qpos[row]]) - slipped) / RAD_PER_TICK
        encoder = int(self._frozen.get(row, sign * round(turned) + zero))
        if self._misreading and row not in self._frozen:
            encoder += int(self._misreadings(1)[0])
        speed = sign * float(data.qvel[self.qvel[row]]) * float(self._seen_share[row])
        current = sign * round(float(data.actuator_force[row]) / self._torque_per_unit)
        servo.measure(encoder, round(speed / RAD_PER_S_PER_UNIT), current, self._physics.now())
        turned = (float(data.ctrl[row]) - slipped) / RAD_PER_TICK
        servo.load(reg.POSITION_TRAJECTORY, round(sign * turned + zero + self._shift[row]))

    def _ticks(self) -> Integers:
        """Present positions as the registers show them."""
        ticks = self.encoders(self._data.qpos[self.qpos] - self._slipped)
        if self._misreading:
            ticks += self._misreadings(len(ticks))
        for row, stays in self._frozen.items():
            ticks[row] = stays
        return ticks + self._shift

    def encoders(self, angles: Floats) -> Integers:
        """What encoders show, in ticks over all turns, where the servos stand at angles (servos,) rad."""
        return np.asarray(np.rint(angles / self._tick), dtype=np.int64) + self._zeros

    def _misreadings(self, count: int) -> Integers:
        """(count,) ticks by which encoders err this time."""
        errors = self._misread.uniform(-self._misreading, self._misreading, count)
        return np.asarray(np.rint(errors), dtype=np.int64)

    def _velocities(self) -> Integers:
        seen = self._data.qvel[self.qvel] * self._seen_share
        return np.asarray(np.rint(seen / self._speed_unit), dtype=np.int64)

    def _currents(self) -> Integers:
        return np.asarray(np.rint(self._data.actuator_force / self._torque_unit), dtype=np.int64)

    # --- Motors -----------------------------------------------------------------------------------------

    def _prepare_motors(self) -> None:
        """The arrays that carry register values into the physics, one row per servo."""
        names = (*JOINTS, VALVE_JOINT, GUIDE_JOINT)[: len(self.servos)]
        self.qpos, self.qvel = addresses(self._model, names)
        config, signs = self._config, np.array(self._signs, np.float64)
        self._torque_per_unit = reg.AMPERE_PER_UNIT[config.servo_model] * config.torque_constant  # Nm
        self._zeros = np.array(self._zero_ticks, np.int64)
        self._tick, self._speed_unit = signs * RAD_PER_TICK, signs * RAD_PER_S_PER_UNIT  # rad, rad/s, each
        self._mounting = list(zip(self._zero_ticks, self._tick.tolist(), strict=True))  # quick to look up
        self._torque_unit = signs * self._torque_per_unit
        self._factory_gain = self.servos[0].value(reg.POSITION_P_GAIN)
        self._model.actuator_forcelimited[:] = 1
        self._shift = np.zeros(len(names), np.int64)  # ticks, see Servo.shift
        self._target = np.zeros(len(names))  # rad, where goal positions send the motors
        self._ramp = np.full(len(names), np.inf)  # rad per step, from the profile velocity
        self._driven = [False] * len(names)
        self._ramp_from = np.zeros(len(names))  # rad, the setpoint when the present goal came
        self._ramp_start = np.zeros(len(names), np.int64)  # the step at which it came
        self._due: deque[tuple[int, int, float]] = deque()  # step, row, rad: goals on their way
        self._endurance_steps = self._physics.steps_at(ENDURANCE_PERIOD) if config.thermal else NEVER
        self._endurance_due = self._endurance_steps  # the step at which servos are next warmed

    def _prepare_senses(self) -> None:
        """What encoders show, and what hands and faults may change of it."""
        self._known_reads: dict[tuple[tuple[int, int, bool], ...], _Wanted] = {}
        self._measured = {
            (entry.address, entry.size, entry.signed): measure
            for entry, measure in (
                (reg.PRESENT_CURRENT, self._currents),
                (reg.PRESENT_VELOCITY, self._velocities),
                (reg.PRESENT_POSITION, self._ticks),
            )
        }
        self._slipped = np.zeros(len(self.servos))  # rad by which the valve has turned more than its encoder
        self.slipping = 0.0  # the share of its motion by which it does now
        self._seen_share = np.ones(len(self.servos))  # of each joint's velocity, what its encoder sees
        self._frozen: dict[int, int] = {}  # row -> ticks that an encoder keeps showing
        self.hot: dict[int, float] = {}  # row -> deg C that it is kept at
        self._held: set[int] = set()  # rows that somebody's hands hold
        self._blocked: set[int] = set()  # rows whose joints are stuck

    def vary(self, draw: Draw) -> None:
        """Becomes the servos of a draw, whose plant the physics is already; goals on their way are lost."""
        config, others = self._config, len(self.servos) - len(JOINTS)
        stiffness = draw.number("servo_stiffness", config.servo_stiffness)
        self._stiffness = [stiffness] * len(JOINTS) + [config.valve_stiffness] * others
        self._damping = self._model.dof_damping[self.qvel].copy()
        for row in self._held | self._blocked:
            self._brake(row)
        # rad, half the dead band between command and motion
        self._play = [draw.number("backlash", 0.0) / 2] * len(JOINTS) + [0.0] * others
        self._delay = self._physics.steps_at(draw.number("command_delay", config.command_delay))
        self._misreading, self._misread = draw.number("encoder_noise", 0.0), draw.luck(ENCODERS)
        self._due.clear()

    def follow(self, row: int) -> None:
        """Carries one servo's registers over into the physics."""
        servo = self.servos[row]
        was_driven, driven = self._driven[row], servo.torque and servo.powered
        if driven and not was_driven:
            self._data.ctrl[row] = self._data.qpos[self.qpos[row]]  # a trajectory starts at the present
        self._driven[row] = driven
        gain = self._stiffness[row] * servo.value(reg.POSITION_P_GAIN) / self._factory_gain if driven else 0.0
        self._model.actuator_gainprm[row, 0] = gain
        self._model.actuator_biasprm[row, 1] = -gain
        self._model.actuator_forcerange[row] = (
            np.array([-1, 1]) * self._current_limit(servo) * self._torque_per_unit
        )
        velocity = servo.value(reg.PROFILE_VELOCITY) * RAD_PER_S_PER_UNIT
        self._ramp[row] = velocity * self._physics.timestep if velocity else math.inf
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

    def write_goal(self, row: int, ticks: int) -> int:
        """The error number of a goal position that a servo has heard."""
        error = self.servos[row].write_goal(ticks, self._physics.now())
        if not error:
            self._aim(row, ticks, self._delay)
        return error

    def _aim(self, row: int, ticks: int, delay: int) -> None:
        """Sends a motor to a goal position in `delay` steps; at once also forgets goals on their way."""
        zero, tick = self._mounting[row]
        angle = float(ticks - self._shift[row] - zero) * tick
        if delay:
            self._due.append((self._physics.step + delay, row, angle))
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
        self._ramp_start[row] = self._physics.step

    def trip_watchdogs(self) -> None:
        """Lets servos stop that have not been spoken to for too long."""
        now = self._physics.now()
        for row, servo in enumerate(self.servos):
            if now >= servo.watchdog_deadline - 1e-9:
                self.measure(row)
                servo.tick(now)
                self.follow(row)

    def _endure(self) -> None:
        """Lets the currents of this moment do for a while to the servos what currents do."""
        self._endurance_due = self._physics.step + self._endurance_steps
        for row, current in enumerate(self._currents().tolist()):
            servo = self.servos[row]
            if row in self.hot:
                servo.warm(self.hot[row])
            else:
                servo.endure(current, ENDURANCE_PERIOD)
            if self._driven[row] and not servo.torque:
                self.follow(row)

    # --- Steps ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """What has to happen at this step before the physics goes on."""
        self.trip_watchdogs()
        if self._physics.step >= self._endurance_due:
            self._endure()
        while self._due and self._due[0][0] <= self._physics.step:
            _, row, angle = self._due.popleft()
            self._send(row, angle)

    def next_event(self, at_latest: float) -> int:
        """The step at which `settle` has work again, or the one of a time (s) before that."""
        if self.slipping:
            return self._physics.step + 1
        soonest = min([at_latest, *[servo.watchdog_deadline for servo in self.servos]])
        event = self._physics.steps_at(soonest) if soonest < math.inf else NEVER
        goal = self._due[0][0] if self._due else NEVER
        return max(self._physics.step + 1, min(event, goal, self._endurance_due))

    def run(self, end: int, watch: Callable[[], None] | None) -> None:
        """Steps to `end`: one by one while setpoints ramp or somebody watches each step, then all at once."""
        ramped = np.ceil(np.abs(self._target - self._ramp_from) / self._ramp)
        singly = end if watch else min(end, int((self._ramp_start + ramped).max()))
        before = self.valve_angle() if self.slipping else 0.0
        if singly > self._physics.step:
            for setpoint in self._setpoints(singly):
                self._data.ctrl[:] = setpoint
                mujoco.mj_step(self._model, self._data)
                self._physics.step += 1
                if watch:
                    watch()
        if end > self._physics.step:
            self._data.ctrl[:] = self._target
            mujoco.mj_step(self._model, self._data, end - self._physics.step)
            self._physics.step = end
        if self.slipping:
            self._slide(self.valve_angle() - before)

    def valve_angle(self) -> float:
        """rad: the true one, whatever the encoder shows."""
        return float(self._data.qpos[self.qpos[VALVE]])

    def _slide(self, turned: float) -> None:
        """The valve has turned (rad) and its encoder with it, but for a share; goals are the encoder's."""
        slid = self.slipping * turned
        for angles in (self._slipped, self._target, self._ramp_from, self._data.ctrl):
            angles[VALVE] += slid

    def _setpoints(self, end: int) -> Floats:
        """(steps, servos) rad: what profile velocities make of the goals in each step up to `end`."""
        elapsed = np.arange(self._physics.step + 1, end + 1)[:, None] - self._ramp_start
        reach = self._ramp * elapsed
        missing = self._target - self._ramp_from
        arrived = np.abs(missing) <= reach
        return np.where(arrived, self._target, self._ramp_from + np.clip(missing, -reach, reach))

    # --- What hands and faults do -----------------------------------------------------------------------

    def teleport(self, joints: Sequence[float] | Floats, valve: float) -> None:
        """Puts joints (9,) and valve at angles (rad), at rest, goals there; `arrive` then makes that true."""
        self._data.qpos[self.qpos[: VALVE + 1]] = [*joints, valve]
        self._data.qvel[:] = 0
        self._data.ctrl[:] = self._data.qpos[self.qpos]
        self._due.clear()
        for row, servo in enumerate(self.servos):
            self.measure(row)
            servo.load(reg.GOAL_POSITION, servo.value(reg.PRESENT_POSITION))

    def arrive(self) -> None:
        """Goals that are still on their way are where the motors stand, which no old ones pull elsewhere."""
        if self._due:
            self._due.clear()
            self._target[:] = self._ramp_from[:] = self._data.ctrl

    def hold(self, angles: Mapping[int, float]) -> None:
        """Hands turn joints (servo id: rad) and hold them there, and let go all others.

        Raises ValueError for a servo that is not there or under torque.
        """
        self._require_limp(angles)
        released, self._held = self._held, {self.row[id] for id in angles}
        for row in released | self._held:
            self._brake(row)
        for id, angle in angles.items():
            self._put(self.row[id], angle)

    def _require_limp(self, angles: Mapping[int, float]) -> None:
        for id, angle in angles.items():
            if id not in self.row or not math.isfinite(angle):
                known = ", ".join(map(str, sorted(self.by_id)))
                raise ValueError(f"no hand turns servo {id} to {angle} rad; there are {known}")
            if self._driven[self.row[id]]:
                raise ValueError(f"{servo_name(id)} is under torque: it does not yield to a hand")

    def _put(self, row: int, angle: float) -> None:
        joint = self._model.dof_jntid[self.qvel[row]]
        low, high = self._model.jnt_range[joint] if self._model.jnt_limited[joint] else (angle, angle)
        self._data.qpos[self.qpos[row]] = min(max(angle, float(low)), float(high))
        self._data.qvel[self.qvel[row]] = 0.0

    def _brake(self, row: int) -> None:
        """A joint moves as freely as hands and faults let it."""
        stuck = row in self._held or row in self._blocked
        self._model.dof_damping[self.qvel[row]] = STUCK if stuck else self._damping[row]

    def block(self, row: int) -> None:
        """A joint is stuck where it is."""
        self._blocked.add(row)
        self._brake(row)
        self._data.qvel[self.qvel[row]] = 0.0

    def free(self, row: int) -> None:
        """It is no longer stuck."""
        self._blocked.remove(row)
        self._brake(row)

    def freeze(self, row: int) -> None:
        """An encoder shows what it shows now, from now on."""
        self._frozen[row] = int(self._ticks()[row] - self._shift[row])
        self._seen_share[row] = 0.0

    def thaw(self, row: int) -> None:
        """It shows again where its joint is."""
        del self._frozen[row]
        self._seen_share[row] = 1.0

    def slip(self, share: float) -> None:
        """The valve turns under its encoder by a share of its motion; 0: it no longer does."""
        self.slipping, self._seen_share[VALVE] = share, 1.0 - share
