"""What injected faults do to a simulated rig: when they begin and end, whom they hit, what then happens."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np

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
from robot.registers import servo_name
from robot.sim_motors import VALVE, Motors, Physics
from robot.types import Floats, PortLost
from robot.world import JOINTS

TRIES = 3  # of a patient driver: what the wire spoils three times in a row is a servo's silence
PATIENCE = 25.0  # ms after which such a driver takes a late answer for a lost one


def _spoils(fault: FaultConfig) -> bool:
    """True when a driver without a wire must not hear an answer."""
    if fault.kind == "late":
        return fault.amount > PATIENCE
    return fault.kind in WIRE and fault.kind != "duplicate"


class SimFaults:
    """The faults of a rig without a wire, those of the wire as a driver of three tries sees them."""

    def __init__(self, physics: Physics, motors: Motors, events: EventLog) -> None:
        """events: what hears of faults that begin and end."""
        self._physics, self._motors, self._events = physics, motors, events
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
            "stuck-joint": (lambda row, _: motors.block(row), motors.free),
            "frozen-encoder": (lambda row, _: motors.freeze(row), motors.thaw),
            "slipping-valve": (lambda _, share: motors.slip(share), lambda _: motors.slip(0.0)),
        }
        self._healthy_volts: dict[int, float] = {}  # row -> V before its supply dipped
        self._healthy_degrees: dict[int, float] = {}  # row -> deg C before it was heated

    def inject(self, schedule: FaultSchedule) -> None:
        """Lets happen what a schedule holds, counted from now, besides what was injected before.

        Raises ValueError for servos that are not there, and for faults of a camera.
        """
        require_servos(schedule.faults, self._motors.by_id)
        refuse_camera(schedule.faults)
        with self._physics.lock:
            self._luck = schedule.luck
            self._schedules.append(schedule.begin(self._physics.now()))
            self.meet()

    def heal(self) -> None:
        """Ends all faults; what they have done to tables and turns stays done."""
        with self._physics.lock:
            self._schedules.clear()
            self._suffer_what_lasts()

    @property
    def present(self) -> list[tuple[str, list[int]]]:
        """What is wrong now: kinds, and the ids of the servos that suffer from them."""
        servos = self._motors.servos
        with self._physics.lock:
            return [
                (happening.fault.kind, [servos[row].id for row in self._victims(happening)])
                for happening in self._active()
            ]

    @property
    def next_time(self) -> float:
        """s: when one begins or ends, infinite if none will."""
        return min([schedule.next_time for schedule in self._schedules], default=math.inf)

    def require_port(self) -> None:
        """Raises PortLost while the port is unplugged."""
        if self._unplugged:
            raise PortLost("an injected fault has unplugged the simulated port; it comes back when that ends")

    def heard(self, rows: list[int]) -> list[int]:
        """Of the servos that answer, those whose answers arrive."""
        if self._losses is None:
            return rows
        arrives = self._luck.random(len(rows)) >= self._losses[rows]
        return [row for row, heard in zip(rows, arrives, strict=True) if heard]

    def restart(self, row: int) -> None:
        """Power-on or reboot of one servo, from what its encoder shows now."""
        self._motors.measure(row)
        self._motors.servos[row].reboot(self._physics.now())
        self.suffer(row)

    def _active(self) -> list[Occurrence]:
        return [happening for schedule in self._schedules for happening in schedule.active]

    def meet(self) -> None:
        """Has begin and end what is due."""
        changes = [change for schedule in self._schedules for change in schedule.changes(self._physics.now())]
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
        whom = ", ".join(servo_name(self._motors.servos[row].id) for row in self._victims(happening))
        if change.begins:
            self._events.emit(happening.fault.kind, f"{happening.fault.kind}: {whom}")
        elif happening.end > happening.start:
            self._events.emit("over", f"{happening.fault.kind} is over: {whom}", "info")

    def _strike(self, happening: Occurrence) -> None:
        """What happens at one moment, or begins with one."""
        for row in self._victims(happening):
            if happening.fault.kind == "reboot" and self._motors.servos[row].powered:
                self.restart(row)
            elif bits := ERRORS.get(happening.fault.kind):
                self._motors.servos[row].raise_hardware_error(bits)
                self._motors.follow(row)

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
        fault, everyone = happening.fault, list(range(len(self._motors.servos)))
        if fault.kind == "slipping-valve":
            return [VALVE]
        if fault.kind == "brown-out" or (fault.servo is None and fault.kind in WIRE | {"voltage-dip"}):
            return everyone
        joints = [servo.id for servo in self._motors.servos[: len(JOINTS)]]
        id = happening.victim(joints if fault.kind == "stuck-joint" else [*self._motors.by_id])
        return [self._motors.row[id]] if id in self._motors.row else []

    def suffer(self, row: int) -> None:
        """Carries a servo's registers over, and with them what a restart does not cure."""
        if row in self._errors:
            self._motors.servos[row].raise_hardware_error(self._errors[row])
        self._motors.follow(row)

    def _lasting_errors(self) -> dict[int, int]:
        errors: dict[int, int] = defaultdict(int)
        for happening in self._active():
            for row in self._victims(happening):
                errors[row] |= ERRORS.get(happening.fault.kind, 0)
        return {row: bits for row, bits in errors.items() if bits}

    def _loss_probabilities(self) -> Floats | None:
        """(rows,) how probably all tries to hear a servo fail, or None where none can."""
        heard = np.ones(len(self._motors.servos))
        for happening in self._active():
            if _spoils(happening.fault):
                heard[self._victims(happening)] *= 1 - happening.fault.probability
        lost = (1 - heard) ** TRIES
        return lost if lost.any() else None

    def _cut(self, row: int, _: float) -> None:
        self._motors.servos[row].powered = False
        self.restart(row)

    def _feed_power(self, row: int) -> None:
        self._motors.servos[row].powered = True
        self.restart(row)

    def _dip(self, row: int, volts: float) -> None:
        servo = self._motors.servos[row]
        self._healthy_volts[row] = servo.value(reg.PRESENT_INPUT_VOLTAGE) * reg.VOLT_PER_UNIT
        servo.supply(volts)
        self._motors.follow(row)

    def _recover(self, row: int) -> None:
        self._motors.servos[row].supply(self._healthy_volts.pop(row))
        self._motors.follow(row)

    def _heat(self, row: int, degrees: float) -> None:
        servo = self._motors.servos[row]
        self._motors.hot[row], self._healthy_degrees[row] = degrees, servo.temperature
        servo.warm(degrees)
        self._motors.follow(row)

    def _cool(self, row: int) -> None:
        del self._motors.hot[row]
        self._motors.servos[row].warm(self._healthy_degrees.pop(row))
