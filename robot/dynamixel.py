"""D'Claw by its servos: radians above, ticks below; torque, limits, watchdog and faults in one place."""

from __future__ import annotations

import atexit
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from robot import registers as reg
from robot.protocol import ALERT
from robot.registers import RAD_PER_S_PER_UNIT, RAD_PER_TICK, TICKS_PER_TURN, Register, servo_name
from robot.safety import SafetyConfig, SafetyFilter
from robot.types import (
    Applied,
    Bus,
    BusFault,
    Clock,
    Config,
    Floats,
    InvalidCommand,
    JointState,
    MotionFault,
    Reading,
    RobotState,
    ServoAlert,
    ServoId,
    ServoSilent,
    TorqueLost,
    WatchdogTripped,
)

log = logging.getLogger(__name__)

Ticks = NDArray[np.int64]
Sign = Literal[1, -1]

BLOCK = (reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION)  # adjacent: one packet per cycle
CHECK = "`run_robot.py check --hw dclaw` shows what every servo answers"

POLL = 0.03  # s between looks at a moving object; feeds the fingers' watchdog too
STILL = 0.1  # rad/s, 4 units of the velocity register: an object slower than this has stopped
STALL = 1.5  # s without progress after which an object counts as stuck
PROGRESS = 0.005  # rad, 3 ticks: less than this is noise
LOAD_TICKS = 65  # 0.1 rad: further than this from its goal a joint is under way or blocked, not just loaded
RETURN = 0.5  # rad/s at which joints come back that are found outside their limits
RETURN_TIME = 4.0  # s for it: no finger can be 2 rad outside
LOOK = 1.0  # s between looks whether a servo has silently rebooted or stopped
UNWIND = 100  # turns of the object after which they are forgotten; servos take goals within 256


class PositionGains(Config):
    """Gains of the servo's own position loop, in register units (registers 84, 82, 80)."""

    p: int = Field(ge=0, le=16383)
    i: int = Field(0, ge=0, le=16383)
    d: int = Field(0, ge=0, le=16383)


class DynamixelConfig(Config):
    """Which servo is which joint, where its zero lies, what it may do; the defaults are ROBEL's D'Claw."""

    joint_ids: tuple[ServoId, ...] = (10, 11, 12, 20, 21, 22, 30, 31, 32)
    object_id: ServoId = 50
    offsets: tuple[float, ...] = (-math.pi / 2, -math.pi, -math.pi) * 3  # rad: angle = sign * servo + offset
    signs: tuple[Sign, ...] = (1,) * 9
    object_offset: float = -math.pi  # rad
    object_sign: Sign = 1
    safety: SafetyConfig = SafetyConfig()
    # The servos' own limits stand a little outside the software box, so that a joint pressed over the box's
    # edge can still be sent back: firmware refuses goals beyond its limits without a word.
    limit_margin: float = Field(0.05, ge=0, le=0.5)  # rad
    # Three control periods of 10 Hz. Longer than any healthy pause, short enough to stop before much happens.
    watchdog: float = Field(0.3, ge=0.06, le=2.54)  # s
    # rad/s at which a joint's set point runs to its goal; None: it jumps there, as on ROBEL's robots, and the
    # filter bounds how far that is. With a ramp of 4.2 the fingers get less far and are faster when a step
    # ends (0.161 rad and 1.13 rad/s after 0.2 rad in 0.1 s, against 0.181 rad and 0.58 rad/s).
    profile_velocity: float | None = Field(None, ge=0.03, le=20)
    object_velocity: float = Field(3.0, ge=0.03, le=20)  # rad/s, while the object is driven
    gains: PositionGains | None = None  # None: as the servos have them
    current_limit: float | None = Field(None, gt=0, le=4)  # A, fingers; None: as the servos have it
    allow_unknown_models: bool = False
    ampere_per_unit: float | None = Field(None, gt=0)  # None: by model number

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        joints = len(self.joint_ids)
        for name in ("offsets", "signs"):
            if len(getattr(self, name)) != joints:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {joints} joint_ids")
        if len(self.safety.lower) != joints:
            raise ValueError(
                f"safety.lower and upper have {len(self.safety.lower)} entries for {joints} joint_ids"
            )
        if len({*self.joint_ids, self.object_id}) != joints + 1:
            raise ValueError(f"servo ids must differ: joint_ids {self.joint_ids}, object_id {self.object_id}")
        for servo, (low, high) in zip(self.joint_ids, limit_ticks(self).tolist(), strict=True):
            if not 0 <= low < high < TICKS_PER_TURN:
                raise ValueError(
                    f"{servo_name(servo)}: its limits would be {low}..{high} ticks, a servo takes "
                    f"0..{TICKS_PER_TURN - 1}; correct its offset, sign or safety limits"
                )
        return self


def limit_ticks(config: DynamixelConfig) -> Ticks:
    """(J, 2): lowest and highest goal position that the firmware of each joint shall accept."""
    margin = np.array([[-config.limit_margin], [config.limit_margin]])
    box = np.array([config.safety.lower, config.safety.upper]) + margin
    edges = (box - np.array(config.offsets)) * np.array(config.signs) / RAD_PER_TICK
    return np.sort(np.rint(edges).astype(np.int64), axis=0).T


class Calibration:
    """The one place where register units become SI units and back; rounds, never truncates."""

    def __init__(self, config: DynamixelConfig, ampere_per_unit: Sequence[float]) -> None:
        signs = np.array([*config.signs, config.object_sign], np.float64)
        offsets = np.array([*config.offsets, config.object_offset])
        units = np.stack(
            [
                np.array(ampere_per_unit),
                np.full(len(signs), RAD_PER_S_PER_UNIT),
                np.full(len(signs), RAD_PER_TICK),
            ]
        )
        self._scale = units * signs  # rows: current, velocity, position, as in BLOCK
        self._offset = np.stack([np.zeros_like(offsets), np.zeros_like(offsets), offsets])
        self._joints = len(config.joint_ids)

    def state(self, reading: Reading) -> RobotState:
        """Joints and object in SI units, from a reading of BLOCK with the object in the last row."""
        si = reading.values.T * self._scale + self._offset
        joints, thing = si[:, : self._joints], si[:, self._joints :]
        return RobotState(
            JointState(reading.time, joints[2], joints[1], joints[0]),
            JointState(reading.time, thing[2], thing[1], thing[0]),
        )

    def ticks(self, angles: Floats) -> Ticks:
        """Joint angles (J,) rad to the nearest goal positions."""
        joints = slice(0, self._joints)
        turned: Floats = (angles - self._offset[2, joints]) / self._scale[2, joints]
        return np.rint(turned).astype(np.int64)

    def object_ticks(self, angle: float) -> int:
        """An object angle (rad, any number of turns) to the nearest goal position."""
        return round((angle - float(self._offset[2, -1])) / float(self._scale[2, -1]))


class DynamixelRobot:
    """Fingers on position servos and an object on an encoder servo, over any bus: simulated, emulated, real.

    Nothing moves until it is entered; then every joint is verified, holds its pose, and stops by itself when
    the program dies. Leaving the context, by whatever exception, switches all torque off.
    """

    def __init__(self, bus: Bus, config: DynamixelConfig, clock: Clock) -> None:
        self._bus, self._config, self._clock = bus, config, clock
        self._joint_ids = config.joint_ids
        self._ids = (*config.joint_ids, config.object_id)
        self._filter = SafetyFilter(config.safety)
        self._limits = limit_ticks(config)
        self._models: dict[int, int] = {}
        self._calibration = Calibration(config, [config.ampere_per_unit or 1e-3] * len(self._ids))
        self._latest: RobotState | None = None
        self._verified = False  # whether the servos are known to carry what the config wants
        self._engaged = False
        self._heard = -math.inf  # s, when we last asked all servos; they heard it then or later
        self._looked = -math.inf  # s, when all were last seen under torque and watching

    @property
    def joints(self) -> int:
        """J, the number of commanded joints."""
        return len(self._joint_ids)

    def read(self) -> RobotState:
        """Where everything is now: one bus cycle, strictly fresh. The object's angle counts turns, rad.

        Raises ServoSilent, ServoAlert, WatchdogTripped, TorqueLost, PortLost or another BusFault; never
        returns old data.
        """
        asked = self._clock.now()
        with self._distrust_on_fault():
            reading = self._bus.sync_read(BLOCK, self._ids)
            self._check_alerts(reading)
            if self._engaged:
                self._check_still_driven(asked - self._heard)
        self._heard = asked
        self._latest = self._calibration.state(reading)
        return self._latest

    def command(self, target: Floats, dt: float) -> Applied:
        """Sends the joints towards target (J,) rad for the next dt seconds, as far as safety allows.

        Safety measures the step from this tick's reading; an older one is taken again. Raises InvalidCommand
        before anything is sent, or BusFault.
        """
        if not self._engaged:
            raise InvalidCommand("the robot is relaxed; call engage() before command()")
        state = self._latest
        if state is None or not self._clock.now() - state.time <= min(dt, self._config.safety.max_period):
            state = self.read()
        applied = self._filter(target, state.joints, dt)
        ticks = self._calibration.ticks(applied.target).tolist()
        with self._distrust_on_fault():
            self._bus.sync_write(reg.GOAL_POSITION, dict(zip(self._joint_ids, ticks, strict=True)))
        return applied

    def hold(self) -> None:
        """Stays where it is, under torque, as far as the bus allows; never raises a BusFault.

        A servo that cannot be reached keeps its last goal, and its watchdog holds it there.
        """
        if not self._engaged:
            return
        try:
            goals = self._goals_to_stay(dict.fromkeys(self._joint_ids, 1))
            self._bus.sync_write(reg.GOAL_POSITION, goals)
        except BusFault as fault:
            self._verified = False
            log.warning("hold: %s The servos hold by their own watchdog.", fault)

    def engage(self) -> None:
        """Torque on at the present pose, without a lunge; clears a tripped watchdog and arms it again.

        Everything that the servos should carry is verified first, unless nothing has happened since it was.
        Raises BusFault, with all torque off.
        """
        units = reg.watchdog_units(self._config.watchdog)
        try:
            if not self._unchanged(units):
                self._configure()
            self._write_all(reg.BUS_WATCHDOG, dict.fromkeys(self._ids, 0))
            self._bus.write(reg.TORQUE_ENABLE, self._config.object_id, 0)
            self._torque_on(units)
        except BaseException:
            self.relax()
            raise
        self._engaged = True
        self._latest = None
        self._heard = self._looked = self._clock.now()

    def relax(self) -> None:
        """Torque off everywhere, tried on every servo even if some fail. Never raises a BusFault."""
        self._engaged = self._verified = False
        self._latest = None
        with suppress(BusFault):
            self._bus.sync_write(reg.TORQUE_ENABLE, dict.fromkeys(self._ids, 0))  # all at once, unconfirmed
        failed = {servo: fault for servo in self._ids if (fault := self._torque_off_fault(servo))}
        if failed:
            log.error(
                "relax: torque may still be on at %s. Their watchdog stops them at their present pose within "
                "%.2f s; switch the servo power off before you reach in. The last answer was: %s",
                ", ".join(map(servo_name, failed)),
                self._config.watchdog,
                list(failed.values())[-1],
            )

    def drive_object(self, angle: float, tolerance: float, timeout: float) -> float:
        """Turns the object by its own servo to angle (rad, mod 2 pi), the short way; fingers hold meanwhile.

        Returns its final angle, rad, measured at rest with its torque off again. Raises MotionFault that says
        where it stuck, InvalidCommand for numbers that are none, or BusFault.
        """
        if not (math.isfinite(angle) and tolerance > 0 and timeout > 0):
            raise InvalidCommand(f"cannot drive to {angle} rad within {tolerance} rad in {timeout} s")
        here = float(self.read().object.position[0])
        goal = here + math.remainder(angle - here, math.tau)
        try:
            self._write_object(reg.GOAL_POSITION, self._calibration.object_ticks(here))
            self._write_object(reg.TORQUE_ENABLE, 1)
            self._write_object(reg.GOAL_POSITION, self._calibration.object_ticks(goal))
            self._wait_for_object(goal, tolerance, timeout)
        finally:
            still_on = self._torque_off_fault(self._config.object_id)
            self._verified = self._verified and still_on is None
        if still_on:
            raise still_on
        return float(self.read().object.position[0])

    def describe(self) -> dict[str, Any]:
        """Calibration and limits in force, as plain data for the episode log."""
        return {
            "calibration": self._config.model_dump(mode="json"),
            "limit_ticks": dict(zip(map(str, self._joint_ids), self._limits.tolist(), strict=True)),
            "models": {str(servo): model for servo, model in self._models.items()},
            "watchdog_units": reg.watchdog_units(self._config.watchdog),
        }

    def __enter__(self) -> Self:
        self._verified = False
        atexit.register(self.relax)
        try:
            self.engage()
        except BaseException:
            atexit.unregister(self.relax)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.relax()
        except BaseException:  # a second Ctrl-C, impatient with the first
            self.relax()
            raise
        finally:
            atexit.unregister(self.relax)

    # --- Becoming ready ------------------------------------------------------------------------------------

    def _unchanged(self, units: int) -> bool:
        """True when all servos still carry what they were given, as far as that can have changed.

        Their watchdogs tell: a restart sets them to 0, tripping to 255. Without torque somebody may have
        switched the supply, after a fault anything may be; `_verified` is False then.
        """
        if not self._verified or {*self._values(reg.BUS_WATCHDOG, self._ids).values()} != {units}:
            return False
        return abs(self._bus.read(reg.PRESENT_POSITION, self._config.object_id)) <= UNWIND * TICKS_PER_TURN

    def _configure(self) -> None:
        """Everything that the servos should carry, verified by reading it back. Moves nothing."""
        self._identify()
        # Servos may be set to answer reads only; then no write could ever be confirmed.
        self._bus.sync_write(reg.STATUS_RETURN_LEVEL, dict.fromkeys(self._ids, 2))
        self._check_hardware_errors()
        self._unwind_object()
        for register, values in self._wanted_eeprom():
            self._write_eeprom(register, values)
        for register, values in self._wanted_ram():
            self._write_all(register, values)
        self._verified = True

    def _identify(self) -> None:
        self._models = self._bus.ping(self._ids)
        silent = [servo for servo in self._ids if servo not in self._models]
        if silent:
            names = ", ".join(servo_name(servo) for servo in silent)
            cause = "the servo power and the baud rate" if not self._models else "their cables and ids"
            raise ServoSilent(
                f"{names} did not answer; {len(self._models)} of {len(self._ids)} servos did. "
                f"Check {cause}; {CHECK}.",
                silent,
            )
        strangers = [servo for servo, model in self._models.items() if model not in reg.MODEL_NAMES]
        if strangers and not self._config.allow_unknown_models:
            self._refuse_models(strangers)
        self._calibration = Calibration(self._config, [self._ampere_per_unit(servo) for servo in self._ids])

    def _refuse_models(self, strangers: Sequence[int]) -> None:
        seen = ", ".join(f"{servo_name(servo)} is model {self._models[servo]}" for servo in strangers)
        known = ", ".join(f"{name} ({number})" for number, name in reg.MODEL_NAMES.items())
        raise BusFault(
            f"{seen}; this driver knows {known}. If its control table is the same (e-Manual), allow it with "
            "--set hw.dclaw.allow_unknown_models=true and give hw.dclaw.ampere_per_unit."
        )

    def _ampere_per_unit(self, servo: int) -> float:
        # 1 mA is the unit of the newer X models, which may be allowed without one of their own.
        return self._config.ampere_per_unit or reg.AMPERE_PER_UNIT.get(self._models[servo], 1e-3)

    def _wanted_eeprom(self) -> Iterator[tuple[Register, dict[int, int]]]:
        lowest, highest = self._limits.T.tolist()
        modes = dict.fromkeys(self._joint_ids, reg.POSITION_MODE)
        yield reg.RETURN_DELAY_TIME, dict.fromkeys(self._ids, 0)  # the factory's 500 us cost 5 ms per cycle
        yield reg.DRIVE_MODE, dict.fromkeys(self._ids, 0)  # signs are ours; profiles are velocities
        # At least what the factory says cuts the torque: overheating, electrical shock, overload.
        causes = self._values(reg.SHUTDOWN, self._ids)
        yield reg.SHUTDOWN, {servo: bits | reg.SHUTDOWN.default for servo, bits in causes.items()}
        yield reg.OPERATING_MODE, modes | {self._config.object_id: reg.EXTENDED_POSITION_MODE}
        yield reg.MIN_POSITION_LIMIT, dict(zip(self._joint_ids, lowest, strict=True))
        yield reg.MAX_POSITION_LIMIT, dict(zip(self._joint_ids, highest, strict=True))
        if self._config.current_limit is not None:
            limit = self._config.current_limit
            units = {servo: round(limit / self._ampere_per_unit(servo)) for servo in self._joint_ids}
            yield reg.CURRENT_LIMIT, units

    def _wanted_ram(self) -> Iterator[tuple[Register, dict[int, int]]]:
        yield reg.PROFILE_ACCELERATION, dict.fromkeys(self._ids, 0)
        yield reg.PROFILE_VELOCITY, self._profiles()
        if self._config.gains is not None:
            yield reg.POSITION_P_GAIN, dict.fromkeys(self._joint_ids, self._config.gains.p)
            yield reg.POSITION_I_GAIN, dict.fromkeys(self._joint_ids, self._config.gains.i)
            yield reg.POSITION_D_GAIN, dict.fromkeys(self._joint_ids, self._config.gains.d)

    def _profiles(self) -> dict[int, int]:
        """Profile velocities in register units: at least 1, as 0 means none; at most what firmware takes."""
        fastest = self._values(reg.VELOCITY_LIMIT, self._ids)
        wanted = dict.fromkeys(self._joint_ids, self._config.profile_velocity)
        wanted[self._config.object_id] = self._config.object_velocity
        return {
            servo: 0 if speed is None else max(1, min(round(speed / RAD_PER_S_PER_UNIT), fastest[servo]))
            for servo, speed in wanted.items()
        }

    def _write_eeprom(self, register: Register, values: Mapping[int, int]) -> None:
        """Only where it differs: the memory wears out, and it needs torque off."""
        before = self._values(register, tuple(values))
        different = {servo: value for servo, value in values.items() if before[servo] != value}
        for servo, value in different.items():
            self._bus.write(reg.TORQUE_ENABLE, servo, 0)
            self._bus.write(register, servo, value)
        if different:
            changes = ", ".join(f"{servo}: {before[servo]} -> {value}" for servo, value in different.items())
            log.info("%s written for good (servo: old -> new) %s", register.name, changes)
        self._require(register, different)

    def _write_all(self, register: Register, values: Mapping[int, int]) -> None:
        """One packet for all, then what did not arrive one by one, where a servo says why it refuses."""
        if not values:
            return
        self._bus.sync_write(register, values)
        for servo in self._differing(register, values):
            self._bus.write(register, servo, values[servo])
        self._require(register, values)

    def _torque_on(self, watchdog: int) -> None:
        """Torque on and watchdogs armed; joints that are outside their limits come back slowly."""
        goals = self._goals_to_stay(self._values(reg.TORQUE_ENABLE, self._joint_ids))
        outside = self._away_from(goals)
        # Firmware takes no goal out there, so the torque will pull them in: 0.5 rad with a jump of 7 rad/s.
        self._write_all(reg.PROFILE_VELOCITY, dict.fromkeys(outside, round(RETURN / RAD_PER_S_PER_UNIT)))
        self._write_all(reg.GOAL_POSITION, goals)
        self._write_all(reg.TORQUE_ENABLE, dict.fromkeys(self._joint_ids, 1))
        self._write_all(reg.BUS_WATCHDOG, dict.fromkeys(self._ids, watchdog))
        if outside:
            deadline = self._clock.now() + RETURN_TIME
            while self._away_from(goals) and self._clock.now() < deadline:
                self._clock.sleep_until(self._clock.now() + POLL)
            self._write_all(reg.PROFILE_VELOCITY, self._profiles())

    def _away_from(self, goals: Mapping[int, int]) -> list[int]:
        present = self._values(reg.PRESENT_POSITION, self._ids)  # of all, to feed all watchdogs
        return [servo for servo, goal in goals.items() if abs(present[servo] - goal) > LOAD_TICKS]

    def _require(self, register: Register, values: Mapping[int, int]) -> None:
        wrong = self._differing(register, values) if values else {}
        if wrong:
            seen = ", ".join(f"{servo_name(s)} has {has}, expected {values[s]}" for s, has in wrong.items())
            raise BusFault(f"{register.name} was written but reads back differently: {seen}; {CHECK}.")

    def _differing(self, register: Register, values: Mapping[int, int]) -> dict[int, int]:
        """What servos carry instead of the wanted values."""
        actual = self._values(register, tuple(values))
        return {servo: actual[servo] for servo, value in values.items() if actual[servo] != value}

    def _values(self, register: Register, servos: Sequence[int]) -> dict[int, int]:
        column = self._bus.sync_read((register,), servos).values[:, 0]
        return dict(zip(servos, column.tolist(), strict=True))

    # --- While it runs -------------------------------------------------------------------------------------

    def _goals_to_stay(self, driven: Mapping[int, int]) -> dict[int, int]:
        """Goals that keep the joints where they are; where that is beyond a firmware limit, at the limit.

        A driven joint that rests near its goal keeps it: the distance carries its load, and a goal set
        to the present position would let it sag by as much again, every time (0.03 rad on the nominal model).
        """
        present, goal = (
            self._values(register, self._joint_ids) for register in (reg.PRESENT_POSITION, reg.GOAL_POSITION)
        )
        stay = {
            servo: goal[servo] if driven[servo] and abs(goal[servo] - at) <= LOAD_TICKS else at
            for servo, at in present.items()
        }
        bounds = zip(self._joint_ids, self._limits.tolist(), strict=True)
        return {servo: min(max(stay[servo], low), high) for servo, (low, high) in bounds}

    def _check_still_driven(self, silence: float) -> None:
        """Finds servos that stopped by themselves: goals to them are refused or ignored without a word."""
        # A servo may hear a packet later than we ask, so trip while we ask: look a little too early.
        if silence <= 0.8 * self._config.watchdog and self._clock.now() - self._looked <= LOOK:
            return
        watchdogs = self._values(reg.BUS_WATCHDOG, self._ids)
        tripped = [servo for servo, value in watchdogs.items() if value == reg.WATCHDOG_TRIPPED]
        if tripped:
            raise WatchdogTripped(
                f"{len(tripped)} servos ({servo_name(tripped[0])} first) stopped by themselves after "
                f"{silence:.2f} s without a packet; they allow {self._config.watchdog:.2f} s. They hold "
                "their pose; engage() releases them. If the program was only slow, raise hw.dclaw.watchdog."
            )
        torque = self._values(reg.TORQUE_ENABLE, self._joint_ids)
        limp = [servo for servo in self._ids if not (torque.get(servo, 1) and watchdogs[servo])]
        if limp:
            raise TorqueLost(
                f"{', '.join(map(servo_name, limp))} lost torque without being told to: a reboot after a dip "
                "of the supply, or another program. Check power supply and cables; engage() configures the "
                "servos anew."
            )
        self._looked = self._clock.now()

    def _check_hardware_errors(self) -> None:
        errors = self._values(reg.HARDWARE_ERROR_STATUS, self._ids)
        pending = {servo: bits for servo, bits in errors.items() if bits}
        if pending:
            raise self._alert(pending)

    def _check_alerts(self, reading: Reading) -> None:
        rows = np.flatnonzero(reading.alerts & ALERT)
        if rows.size:
            alarmed = tuple(self._ids[row] for row in rows)
            raise self._alert(self._values(reg.HARDWARE_ERROR_STATUS, alarmed))

    def _alert(self, errors: Mapping[int, int]) -> ServoAlert:
        words = (
            f"{servo_name(id)} reports {reg.describe_hardware_error(bits)}" for id, bits in errors.items()
        )
        return ServoAlert(
            f"{', '.join(words)}. Such a servo has no torque until it is restarted: free what blocks it, "
            f"let it cool, switch the servo power off and on; {CHECK}."
        )

    def _unwind_object(self) -> None:
        """Forgets the object's full turns long before they leave the range of goals.

        Position mode knows no turns (e-Manual, Present Position); the mode that is wanted is set after it.
        """
        servo = self._config.object_id
        if abs(self._bus.read(reg.PRESENT_POSITION, servo)) > UNWIND * TICKS_PER_TURN:
            self._write_eeprom(reg.OPERATING_MODE, {servo: reg.POSITION_MODE})

    def _wait_for_object(self, goal: float, tolerance: float, timeout: float) -> None:
        deadline = self._clock.now() + timeout
        best, best_time = math.inf, self._clock.now()
        while True:
            thing = self.read().object
            error, speed = abs(float(thing.position[0]) - goal), abs(float(thing.velocity[0]))
            if error <= tolerance and speed <= STILL:
                return
            if error < best - PROGRESS:
                best, best_time = error, thing.time
            if thing.time > min(deadline, best_time + STALL):
                raise MotionFault(self._stuck(float(thing.position[0]), goal, tolerance))
            self._clock.sleep_until(self._clock.now() + POLL)

    def _stuck(self, angle: float, goal: float, tolerance: float) -> str:
        return (
            f"{servo_name(self._config.object_id)} stands at {math.remainder(angle, math.tau):+.3f} rad and "
            f"does not get to {math.remainder(goal, math.tau):+.3f} +- {tolerance:.3f} rad. Is a finger in "
            "its way?"
        )

    def _write_object(self, register: Register, value: int) -> None:
        with self._distrust_on_fault():
            self._bus.write(register, self._config.object_id, value)

    def _torque_off_fault(self, servo: int) -> BusFault | None:
        """Switches one servo's torque off, trying twice; None when it confirmed, else why it did not."""
        problem = None
        for _ in range(2):
            try:
                self._bus.write(reg.TORQUE_ENABLE, servo, 0)
                return None
            except BusFault as fault:
                problem = fault
        return problem

    @contextmanager
    def _distrust_on_fault(self) -> Iterator[None]:
        """After a bus fault nothing that was known about the servos counts any more."""
        try:
            yield
        except BusFault:
            self._verified = False
            self._latest = None
            raise
