"""D'Claw by its servos: radians above, ticks below; torque, watchdog and faults in one place."""

from __future__ import annotations

import atexit
import logging
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from robot import registers as reg
from robot.calibrated import require_calibrated
from robot.events import EventLog
from robot.protocol import ALERT
from robot.registers import (
    CURABLE,
    CYCLE,
    OVERLOAD,
    RAD_PER_S_PER_UNIT,
    RAD_PER_TICK,
    TICKS_PER_TURN,
    VOLT_PER_UNIT,
    VOLTAGE_ERROR,
    servo_name,
)
from robot.safety import Clearance, SafetyFilter
from robot.settings import CHECK, Difference, DynamixelConfig, ServoSettings, Ticks, limit_ticks
from robot.types import (
    Applied,
    Bus,
    BusFault,
    Clock,
    Floats,
    Health,
    InvalidCommand,
    JointState,
    MotionFault,
    Reading,
    RobotState,
    ServoAlert,
    ServoHot,
    ServoSilent,
    SupplyFault,
    TorqueLost,
    Watch,
    WatchdogTripped,
)

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

POSITION = CYCLE.index(reg.PRESENT_POSITION)
TORQUE, ERROR, WATCHDOG, VOLTAGE, TEMPERATURE = range(POSITION + 1, len(CYCLE))  # columns of a cycle

POLL = 0.03  # s between looks at a moving object; feeds the fingers' watchdog too
STILL = 0.1  # rad/s, 4 units of the velocity register: an object slower than this has stopped
STALL = 1.5  # s without progress after which an object counts as stuck
PROGRESS = 0.005  # rad, 3 ticks: less than this is noise
LOAD_TICKS = 65  # 0.1 rad: further than this from its goal a joint is under way or blocked, not just loaded
RETURN = 0.5  # rad/s at which joints come back that are found outside their limits
RETURN_TIME = 4.0  # s for it: no finger can be 2 rad outside
UNWIND = 100  # turns of the object after which they are forgotten; servos take goals within 256
RESTARTS = 3  # of one servo within RESTART_WINDOW: more often it does not overload by accident
RESTART_WINDOW = 300.0  # s
BOOT_LIMIT = 2.0  # s for a restarted servo to answer again; the manual says nothing, 0.2-0.5 is usual


class Calibration:
    """The one place where register units become SI units and back; rounds, never truncates."""

    def __init__(self, config: DynamixelConfig, ampere_per_unit: Sequence[float]) -> None:
        signs = np.array([*config.signs, config.object_sign], np.float64)
        offsets = np.array([*config.offsets, config.object_offset])
        units = np.stack(
            [
                np.array(ampere_per_unit[: len(signs)]),
                np.full(len(signs), RAD_PER_S_PER_UNIT),
                np.full(len(signs), RAD_PER_TICK),
            ]
        )
        self._scale = units * signs  # rows: current, velocity, position, as in CYCLE
        self._offset = np.stack([np.zeros_like(offsets), np.zeros_like(offsets), offsets])
        self._joints = len(config.joint_ids)
        self._ids = config.ids

    def state(self, reading: Reading) -> RobotState:
        """A cycle in SI units: joints first, then the object, then what only its health is known of."""
        moving = reading.values[: self._joints + 1, : POSITION + 1]
        si = moving.T * self._scale + self._offset
        joints, thing = si[:, : self._joints], si[:, self._joints :]
        temperature = reading.values[:, TEMPERATURE].astype(np.float64)
        return RobotState(
            JointState(reading.time, joints[2], joints[1], joints[0]),
            JointState(reading.time, thing[2], thing[1], thing[0]),
            Health(self._ids, temperature, reading.values[:, VOLTAGE].astype(np.float64) * VOLT_PER_UNIT),
        )

    def ticks(self, angles: Floats) -> Ticks:
        """Joint angles (J,) rad to the nearest goal positions."""
        joints = slice(0, self._joints)
        turned: Floats = (angles - self._offset[2, joints]) / self._scale[2, joints]
        return np.rint(turned).astype(np.int64)

    def object_ticks(self, angle: float) -> int:
        """An object angle (rad, any number of turns) to the nearest goal position."""
        return round((angle - float(self._offset[2, -1])) / float(self._scale[2, -1]))


def _exclusive(
    method: Callable[Concatenate[DynamixelRobot, P], T],
) -> Callable[Concatenate[DynamixelRobot, P], T]:
    """One thread at a time speaks to the servos: the program, or what keeps them alive while it computes."""

    @wraps(method)
    def locked(robot: DynamixelRobot, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with robot.lock:
            robot.asked = robot.clock.now()
            return method(robot, *args, **kwargs)

    return locked


class DynamixelRobot:
    """Fingers on position servos and an object on an encoder servo, over any bus: simulated, emulated, real.

    Nothing moves until it is entered; then every joint is verified, holds its pose, and stops by itself when
    the program dies. Leaving the context, by whatever exception, switches all torque off.
    """

    def __init__(
        self,
        bus: Bus,
        config: DynamixelConfig,
        clock: Clock,
        events: EventLog | None = None,
        clearance: Clearance | None = None,
    ) -> None:
        self._bus, self._config, self.clock = bus, config, clock
        self._events = events or EventLog(clock)
        self.lock = threading.RLock()
        self._joint_ids, self._ids = config.joint_ids, config.ids
        self._filter = SafetyFilter(config.safety, clearance)
        self._limits = limit_ticks(config)
        self._settings = ServoSettings(bus, config)
        self._table = self._settings.table
        self._calibration = Calibration(config, [config.ampere_per_unit or 1e-3] * len(self._ids))
        self._supply = np.array([[0.0, np.inf]] * len(self._ids))  # V, what each servo allows
        self._latest: RobotState | None = None
        self._gathered = False  # whether the servos collect a cycle's registers for us
        self._verified = False  # whether the servos are known to carry what the config wants
        self._engaged = False
        self.asked = -math.inf  # s, when the program last used the robot
        self._heard = -math.inf  # s, when we last asked all servos; they heard it then or later
        self._restarts: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=RESTARTS))

    @property
    def joints(self) -> int:
        """J, the number of commanded joints."""
        return len(self._joint_ids)

    @_exclusive
    def read(self) -> RobotState:
        """Where everything is now: one bus cycle, strictly fresh. The object's angle counts turns, rad.

        Raises ServoSilent, ServoAlert, SupplyFault, ServoHot, WatchdogTripped, TorqueLost, PortLost or
        another BusFault; never returns old data. Of a relaxed robot it asks no more than that all answer.
        """
        with self._distrust_on_fault():
            reading = self._cycle()
            if self._engaged:
                self._check(reading)
        self._latest = self._calibration.state(reading)
        return self._latest

    @_exclusive
    def command(self, target: Floats, dt: float) -> Applied:
        """Sends the joints towards target (J,) rad for the next dt seconds, as far as safety allows.

        Safety measures the step from this tick's reading; an older one is taken again. Raises InvalidCommand
        before anything is sent, or BusFault.
        """
        if not self._engaged:
            raise InvalidCommand("the robot is relaxed; call engage() before command()")
        state = self._latest
        if state is None or not self.clock.now() - state.time <= min(dt, self._config.safety.max_period):
            state = self.read()
        applied = self._filter(target, state.joints, dt)
        ticks = self._calibration.ticks(applied.target).tolist()
        with self._distrust_on_fault():
            self._bus.sync_write(reg.GOAL_POSITION, dict(zip(self._joint_ids, ticks, strict=True)))
        return applied

    @_exclusive
    def hold(self) -> None:
        """Stays where it is, under torque, every servo that can be reached; never raises a BusFault.

        A servo that cannot be reached keeps its last goal, and its watchdog holds it there.
        """
        if not self._engaged:
            return
        try:
            goals = self._goals_to_stay(self._joint_ids)
            self._bus.sync_write(reg.GOAL_POSITION, goals)
        except BusFault as fault:
            self._verified = False
            log.warning("hold: %s The servos hold by their own watchdog.", fault)

    @_exclusive
    def engage(self) -> None:
        """Torque on at the present pose, without a lunge; clears a tripped watchdog and arms it again.

        Everything that the servos should carry is verified first, unless nothing has happened since it was. A
        servo that has cut its torque by overload is restarted, at most 3 times in 5 minutes. Raises BusFault,
        with all torque off.
        """
        units = reg.watchdog_units(self._config.watchdog)
        try:
            if not self._unchanged(units):
                self._configure()
            self._table.write(reg.BUS_WATCHDOG, dict.fromkeys(self._ids, 0))
            self._bus.write(reg.TORQUE_ENABLE, self._config.object_id, 0)
            self._torque_on(units)
            self._check(self._cycle())
        except BaseException:
            self.relax()
            raise
        self._engaged = True
        self._latest = None

    @_exclusive
    def relax(self) -> None:
        """Torque off everywhere, tried on every servo even if some fail. Never raises a BusFault."""
        was_engaged, self._engaged, self._verified = self._engaged, False, False
        self._latest = None
        with suppress(BusFault):
            self._bus.sync_write(reg.TORQUE_ENABLE, dict.fromkeys(self._ids, 0))  # all at once, unconfirmed
        failed = {servo: fault for servo in self._ids if (fault := self._torque_off_fault(servo))}
        if failed and was_engaged:
            log.error(
                "relax: torque may still be on at %s. Their watchdog stops them at their present pose within "
                "%.2f s; switch the servo power off before you reach in. The last answer was: %s",
                ", ".join(map(servo_name, failed)),
                self._config.watchdog,
                list(failed.values())[-1],
            )

    @_exclusive
    def drive_object(
        self, angle: float, tolerance: float, timeout: float, watch: Watch | None = None
    ) -> float:
        """Turns the object by its own servo to angle (rad, mod 2 pi), the short way; fingers hold meanwhile.

        `watch` sees every reading on the way, the first as it sets out; the object is let go when it says no.
        Returns the object's angle, rad, with its torque off again. Raises MotionFault that says where it
        stuck, InvalidCommand for numbers that are none, or BusFault.
        """
        if not (math.isfinite(angle) and tolerance > 0 and timeout > 0):
            raise InvalidCommand(f"cannot drive to {angle} rad within {tolerance} rad in {timeout} s")
        servo = self._config.object_id
        here = float(self.read().object.position[0])
        goal = here + math.remainder(angle - here, math.tau)
        try:
            self._drive(servo, self._calibration.object_ticks(here), self._calibration.object_ticks(goal))
            self._wait_for_object(goal, tolerance, timeout, watch)
        finally:
            still_on = self._torque_off_fault(servo)
            self._verified = self._verified and still_on is None
        if still_on:
            raise still_on
        return float(self.read().object.position[0])

    @_exclusive
    def point(self, angle: float) -> None:
        """Sends the guide servo, where there is one, to point at an object angle (rad); does not wait for it.

        Raises InvalidCommand when the robot is relaxed or the angle is no number, or BusFault.
        """
        config = self._config
        if config.guide_id is None:
            return
        if not (self._engaged and math.isfinite(angle)):
            raise InvalidCommand(f"cannot point at {angle} rad; is the robot engaged?")
        turned = (angle - config.guide_offset) * config.guide_sign / RAD_PER_TICK
        present = self._table.values(reg.PRESENT_POSITION, (config.guide_id,))[config.guide_id]
        self._drive(config.guide_id, present, round(turned) % TICKS_PER_TURN)

    def tend(self) -> None:
        """Feeds the servos' watchdogs while the program is busy elsewhere; relaxes when that takes too long.

        For a thread of its own. Faults are left for the program's next call to find.
        """
        if not self._engaged or not self.lock.acquire(blocking=False):
            return  # somebody is speaking to the servos
        try:
            now, config = self.clock.now(), self._config
            if self._engaged and now - self.asked > config.keep_alive:
                self.relax()  # told after: a terminal may hang like the program
                words = f"the program was silent for {config.keep_alive:g} s: the robot was relaxed"
                self._events.emit_aside("keep-alive", words, "error")
            elif self._engaged and now - self._heard > config.watchdog / 3:
                self._feed(self._ids)
        finally:
            self.lock.release()

    @_exclusive
    def driven(self) -> list[int]:
        """The servos under torque, whoever switched it on. Raises BusFault."""
        states = self._table.values(reg.TORQUE_ENABLE, self._ids)
        return [servo for servo, on in states.items() if on]

    def differences(self) -> list[Difference]:
        """What the servos carry for good and should not; moves and writes nothing. Raises BusFault."""
        self._settings.identify()
        return self._settings.differences()

    def write_settings(self) -> None:
        """Writes what `differences` lists; torque is off where something was written. Raises BusFault."""
        self._settings.identify()
        self._settings.write_eeprom()

    def describe(self) -> dict[str, Any]:
        """Calibration and limits in force, as plain data for the episode log."""
        return {
            "calibration": self._config.model_dump(mode="json"),
            "limit_ticks": dict(zip(map(str, self._joint_ids), self._limits.tolist(), strict=True)),
            "models": {str(servo): model for servo, model in self._settings.models.items()},
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

    def __exit__(self, *error: object) -> None:
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
        if not self._verified:
            return False
        states = self._table.reachable((reg.BUS_WATCHDOG, reg.HARDWARE_ERROR_STATUS), self._ids)
        if len(states) < len(self._ids) or any(state != [units, 0] for state in states.values()):
            return False
        return abs(self._bus.read(reg.PRESENT_POSITION, self._config.object_id)) <= UNWIND * TICKS_PER_TURN

    def _configure(self) -> None:
        """Everything that the servos should carry, verified by reading it back. Moves nothing."""
        self._gathered = False
        self._settings.identify()
        # Servos may be set to answer reads only; then no write could ever be confirmed.
        self._bus.sync_write(reg.STATUS_RETURN_LEVEL, dict.fromkeys(self._ids, 2))
        if self._config.calibration:
            require_calibrated(self._config.calibration, self._bus)
        self._supply = self._settings.supply()
        self._clear_errors()
        self._unwind_object()
        self._settings.write_eeprom()
        self._settings.write_ram()
        units = [self._settings.ampere_per_unit(servo) for servo in self._ids]
        self._calibration = Calibration(self._config, units)
        self._bus.gather(CYCLE, self._ids)
        self._gathered = self._verified = True

    def _torque_on(self, watchdog: int) -> None:
        """Torque on and watchdogs armed; joints that are outside their limits come back slowly."""
        goals = self._goals_to_stay(self._joint_ids)
        if len(goals) < self.joints:
            raise self._silent([servo for servo in self._joint_ids if servo not in goals])
        outside = self._away_from(goals)
        # The torque will pull them in: by 0.5 rad with a jump of 7 rad/s.
        slow = dict.fromkeys(outside, round(RETURN / RAD_PER_S_PER_UNIT))
        self._table.write(reg.PROFILE_VELOCITY, slow)
        self._table.write(reg.GOAL_POSITION, goals)
        self._table.write(reg.TORQUE_ENABLE, dict.fromkeys(self._joint_ids, 1))
        self._table.write(reg.BUS_WATCHDOG, dict.fromkeys(self._ids, watchdog))
        if outside:
            deadline = self.clock.now() + RETURN_TIME
            while self._away_from(goals) and self.clock.now() < deadline:
                self.clock.sleep_until(self.clock.now() + POLL)
            self._table.write(reg.PROFILE_VELOCITY, self._settings.profiles())

    def _away_from(self, goals: Mapping[int, int]) -> list[int]:
        present = self._table.values(reg.PRESENT_POSITION, self._ids)  # of all, to feed all watchdogs
        return [servo for servo, goal in goals.items() if abs(present[servo] - goal) > LOAD_TICKS]

    def _clear_errors(self) -> None:
        """Restarts servos that a restart can cure. Raises ServoAlert for the others, SupplyFault."""
        errors = self._table.values(reg.HARDWARE_ERROR_STATUS, self._ids)
        pending = {servo: bits for servo, bits in errors.items() if bits}
        incurable = {servo: bits for servo, bits in pending.items() if bits & ~CURABLE}
        if incurable:
            raise self._alert(incurable)
        self._check_supply(self._bus.sync_read((reg.PRESENT_INPUT_VOLTAGE,), self._ids).values[:, 0])
        for servo, bits in pending.items():
            self._restart(servo, bits)

    def _restart(self, servo: int, bits: int) -> None:
        """Reboots one servo, if it may be, and waits until it answers; the others stay fed meanwhile."""
        now, words = self.clock.now(), reg.describe_hardware_error(bits)
        recent = [time for time in self._restarts[servo] if now - time < RESTART_WINDOW]
        if bits & OVERLOAD and len(recent) >= RESTARTS:  # a dip of the supply is nobody's effort
            raise ServoAlert(
                f"{servo_name(servo)} reports {words} again, after {RESTARTS} restarts within "
                f"{RESTART_WINDOW / 60:.0f} minutes: something blocks it. Free it, let it cool; {CHECK}.",
                {servo: bits},
            )
        if bits & OVERLOAD:
            self._restarts[servo].append(now)
        self._bus.reboot(servo)
        self._await_answer(servo)
        self._bus.write(reg.STATUS_RETURN_LEVEL, servo, 2)
        if still := self._bus.read(reg.HARDWARE_ERROR_STATUS, servo):
            raise self._alert({servo: still})
        count = f", {len(recent) + 1} of {RESTARTS} times in {RESTART_WINDOW / 60:.0f} minutes"
        told = f"{servo_name(servo)} reported {words} and was restarted{count if bits & OVERLOAD else ''}"
        self._events.emit_aside("reboot", told)

    def _await_answer(self, servo: int) -> None:
        deadline = self.clock.now() + BOOT_LIMIT
        while self.clock.now() < deadline:
            self.clock.sleep_until(self.clock.now() + POLL)
            self._feed([other for other in self._ids if other != servo])
            if self._bus.ping((servo,)):
                return
        raise ServoSilent(
            f"{servo_name(servo)} is silent {BOOT_LIMIT:g} s after its restart. Check its cable; {CHECK}.",
            [servo],
        )

    def _unwind_object(self) -> None:
        """Forgets the object's full turns long before they leave the range of goals.

        Position mode knows no turns (e-Manual, Present Position); the mode that is wanted is set after it.
        """
        servo = self._config.object_id
        if abs(self._bus.read(reg.PRESENT_POSITION, servo)) > UNWIND * TICKS_PER_TURN:
            self._table.write_eeprom(reg.OPERATING_MODE, {servo: reg.POSITION_MODE})

    # --- While it runs -------------------------------------------------------------------------------------

    def _cycle(self) -> Reading:
        """The registers of a cycle, of all servos, none of which has forgotten what they are."""
        self._heard = self.clock.now()
        reading = self._bus.sync_read(CYCLE, self._ids)
        forgetful = self._forgetful(reading)
        if forgetful and self._engaged:
            raise self._restarted(forgetful)
        if forgetful:  # somebody switched the supply of a relaxed robot: collect again
            self._verified = False
            self._bus.gather(CYCLE, self._ids)
            self._table.write(reg.BUS_WATCHDOG, dict.fromkeys(self._ids, self._watchdog_units))
            reading = self._bus.sync_read(CYCLE, self._ids)
            if forgetful := self._forgetful(reading):
                raise self._restarted(forgetful)
        return reading

    @property
    def _watchdog_units(self) -> int:
        return reg.watchdog_units(self._config.watchdog)

    def _forgetful(self, reading: Reading) -> list[int]:
        """Servos that have restarted: their watchdog is 0, and what they collect is no cycle any more."""
        if not self._gathered:
            return []
        return self._servos(reading.values[:, WATCHDOG] == 0)

    def _check(self, reading: Reading) -> None:
        """Raises what the servos say of themselves; none of it costs a packet of its own."""
        errors = reading.values[:, ERROR]
        if errors.any() or (reading.alerts & ALERT).any():
            self._raise_errors(reading)
        self._check_supply(reading.values[:, VOLTAGE])
        tripped = self._servos(reading.values[:, WATCHDOG] == reg.WATCHDOG_TRIPPED)
        if tripped:
            raise WatchdogTripped(
                f"{len(tripped)} servos ({servo_name(tripped[0])} first) stopped by themselves after a "
                f"silence; they allow {self._config.watchdog:.2f} s. They hold their pose; engage() releases "
                "them. If the program was only slow, raise hw.dclaw.watchdog."
            )
        limp = [servo for servo in self._servos(reading.values[:, TORQUE] == 0) if servo in self._joint_ids]
        if limp:
            raise TorqueLost(
                f"{', '.join(map(servo_name, limp))} lost torque without being told to: another program, or "
                "a hand on the switch. engage() configures the servos anew."
            )
        self._check_temperature(reading)

    def _servos(self, where: NDArray[np.bool_]) -> list[int]:
        return [self._ids[row] for row in np.flatnonzero(where)]

    def _raise_errors(self, reading: Reading) -> None:
        """Alerts carry no cause; register 70 does, in the same reading."""
        alarmed = self._servos((reading.values[:, ERROR] != 0) | (reading.alerts & ALERT != 0))
        errors = {servo: int(reading.values[self._ids.index(servo), ERROR]) for servo in alarmed}
        if {*errors.values()} == {VOLTAGE_ERROR}:
            volts = reading.values[:, VOLTAGE] * VOLT_PER_UNIT
            raise SupplyFault(
                f"{', '.join(map(servo_name, alarmed))} report input voltage (0x01); now {volts.min():.1f} "
                f"to {volts.max():.1f} V. Check power supply and thick cables; {CHECK}."
            )
        raise self._alert(errors)

    def _check_supply(self, units: Ticks) -> None:
        volts = units * VOLT_PER_UNIT
        wrong = self._servos((volts < self._supply[:, 0] - 1e-6) | (volts > self._supply[:, 1] + 1e-6))
        if wrong:
            row = self._ids.index(wrong[0])
            low, high = self._supply[row]
            raise SupplyFault(
                f"{servo_name(wrong[0])} has {volts[row]:.1f} V and allows {low:.1f} to {high:.1f}"
                f"{f', {len(wrong) - 1} others too' if len(wrong) > 1 else ''}. Check power supply and thick "
                f"cables; {CHECK}."
            )

    def _check_temperature(self, reading: Reading) -> None:
        warm = self._servos(reading.values[:, TEMPERATURE] >= self._config.warm)
        if warm:
            heat = {servo: int(reading.values[self._ids.index(servo), TEMPERATURE]) for servo in warm}
            seen = ", ".join(f"{servo_name(servo)} is at {degrees} deg C" for servo, degrees in heat.items())
            raise ServoHot(
                f"{seen}; from {self._config.warm:g} on it has to cool to {self._config.cool:g}, at "
                f"{self._config.temperature_limit} it would cut its torque by itself."
            )

    def _restarted(self, servos: Sequence[int]) -> TorqueLost:
        self._gathered = self._verified = False
        everyone = len(servos) == len(self._ids)
        who = "all servos" if everyone else ", ".join(map(servo_name, servos))
        cause = "the supply dipped" if everyone else "its supply dipped or its plug is loose"
        return TorqueLost(
            f"{who} restarted and lost torque: {cause}. Check power supply and cables; engage() configures "
            "the servos anew."
        )

    def _alert(self, errors: Mapping[int, int]) -> ServoAlert:
        words = (
            f"{servo_name(id)} reports {reg.describe_hardware_error(bits)}" for id, bits in errors.items()
        )
        return ServoAlert(
            f"{', '.join(words)}. Such a servo has no torque until it is restarted: free what blocks it, "
            f"let it cool, switch the servo power off and on; {CHECK}.",
            errors,
        )

    def _silent(self, servos: Sequence[int]) -> ServoSilent:
        names = ", ".join(map(servo_name, servos))
        return ServoSilent(f"{names} did not answer. Check cables and servo power; {CHECK}.", servos)

    def _goals_to_stay(self, servos: Sequence[int]) -> dict[int, int]:
        """Goals that keep joints where they are, of those that answer; beyond a firmware limit, at the limit.

        A driven joint that rests near its goal keeps it: the distance carries its load, and a goal set
        to the present position would let it sag by as much again, every time (0.03 rad on the nominal model).
        """
        registers = (reg.PRESENT_POSITION, reg.GOAL_POSITION, reg.TORQUE_ENABLE)
        limits = dict(zip(self._joint_ids, self._limits.tolist(), strict=True))
        goals = {}
        for servo, (at, goal, driven) in self._table.reachable(registers, servos).items():
            low, high = limits[servo]
            loaded = driven and abs(goal - at) <= LOAD_TICKS
            goals[servo] = min(max(goal if loaded else at, low), high)
        return goals

    def _feed(self, servos: Sequence[int]) -> None:
        """Lets servos hear something; who does not answer is found by the next reading."""
        self._heard = self.clock.now()
        try:
            self._bus.sync_read((reg.PRESENT_POSITION,), servos)
        except BusFault:
            self._verified = False

    def _drive(self, servo: int, present: int, goal: int) -> None:
        """A servo that is no joint, from where it is to a goal (ticks), at its bounded velocity."""
        with self._distrust_on_fault():
            self._bus.write(reg.GOAL_POSITION, servo, present)
            self._bus.write(reg.TORQUE_ENABLE, servo, 1)
            self._bus.write(reg.GOAL_POSITION, servo, goal)

    def _wait_for_object(self, goal: float, tolerance: float, timeout: float, watch: Watch | None) -> None:
        deadline = self.clock.now() + timeout
        best, best_time = math.inf, self.clock.now()
        while True:
            state = self.read()
            if watch is not None and not watch(state):
                return
            thing = state.object
            error, speed = abs(float(thing.position[0]) - goal), abs(float(thing.velocity[0]))
            if error <= tolerance and speed <= STILL:
                return
            if error < best - PROGRESS:
                best, best_time = error, thing.time
            if thing.time > min(deadline, best_time + STALL):
                raise MotionFault(self._stuck(float(thing.position[0]), goal, tolerance))
            self.clock.sleep_until(self.clock.now() + POLL)

    def _stuck(self, angle: float, goal: float, tolerance: float) -> str:
        return (
            f"{servo_name(self._config.object_id)} stands at {math.remainder(angle, math.tau):+.3f} rad and "
            f"does not get to {math.remainder(goal, math.tau):+.3f} +- {tolerance:.3f} rad. Is a finger in "
            "its way?"
        )

    def _torque_off_fault(self, servo: int) -> BusFault | None:
        """Switches one servo's torque off, trying twice; None when its register says so, else why."""
        problem = None
        for _ in range(2):
            try:
                self._bus.write(reg.TORQUE_ENABLE, servo, 0)
                if not self._bus.read(reg.TORQUE_ENABLE, servo):
                    return None
                problem = BusFault(
                    f"{servo_name(servo)} confirmed that its torque is off, and has it on: another program, "
                    f"or a damaged servo. Switch the servo power off; {CHECK}."
                )
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
