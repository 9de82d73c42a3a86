"""What every servo of a D'Claw should carry, from the configuration; compared, written, read back."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from robot import registers as reg
from robot.calibrated import JointsRecord, fingerprint
from robot.registers import RAD_PER_S_PER_UNIT, RAD_PER_TICK, TICKS_PER_TURN, Register, servo_name
from robot.safety import SafetyConfig
from robot.types import Bus, BusFault, Config, ServoId, ServoSilent

log = logging.getLogger(__name__)

Ticks = NDArray[np.int64]
Sign = Literal[1, -1]

CHECK = "`run_robot.py check --hw dclaw` shows what every servo answers"


class PositionGains(Config):
    """Gains of the servo's own position loop, in register units (registers 84, 82, 80)."""

    p: int = Field(ge=0, le=16383)
    i: int = Field(0, ge=0, le=16383)
    d: int = Field(0, ge=0, le=16383)


class DynamixelConfig(Config):
    """Which servo is which joint, where its zero lies, what it may do; the defaults are ROBEL's D'Claw."""

    joint_ids: tuple[ServoId, ...] = (10, 11, 12, 20, 21, 22, 30, 31, 32)
    object_id: ServoId = 50
    guide_id: ServoId | None = (
        None  # a servo whose horn points at the goal (ROBEL's has id 60); None: there is none
    )
    offsets: tuple[float, ...] = (-math.pi / 2, -math.pi, -math.pi) * 3  # rad: angle = sign * servo + offset
    signs: tuple[Sign, ...] = (1,) * 9
    object_offset: float = Field(-math.pi, ge=-100, le=100)  # rad
    object_sign: Sign = 1
    guide_offset: float = Field(-math.pi, ge=-100, le=100)  # rad
    guide_sign: Sign = 1
    safety: SafetyConfig = SafetyConfig()
    # The servos' own limits stand a little outside the software box, so that a joint pressed over the box's
    # edge can still be sent back: in mode 3 firmware refuses goals beyond its limits without a word.
    limit_margin: float = Field(0.05, ge=0, le=0.5)  # rad
    # Three control periods of 10 Hz. Longer than any healthy pause, short enough to stop before much happens.
    watchdog: float = Field(0.3, ge=0.06, le=2.54)  # s
    # A program that computes for longer than the watchdog allows is kept alive for this long, then relaxed.
    keep_alive: float = Field(20.0, ge=0, le=600)  # s
    # rad/s at which a joint's set point runs to its goal; None: it jumps there, as on ROBEL's robots, and the
    # filter bounds how far that is. With a ramp of 4.2 the fingers get less far and are faster when a step
    # ends (0.161 rad and 1.13 rad/s after 0.2 rad in 0.1 s, against 0.181 rad and 0.58 rad/s).
    profile_velocity: float | None = Field(None, ge=0.03, le=20)
    object_velocity: float = Field(3.0, ge=0.03, le=20)  # rad/s, while the object or the guide is driven
    velocity_limit: float = Field(2 * math.pi, ge=0.1, le=20)  # rad/s, EEPROM; never above the model's own
    # A, fingers and object: current-based position control (mode 5), so that a blocked finger presses no
    # harder than this and seldom overloads. 1 A is 1.9 Nm on XH430-W210, three quarters of its stall torque.
    # None: position control (mode 3), in which the firmware knows position limits but none of current.
    goal_current: float | None = Field(1.0, ge=0.01, le=4)
    current_limit: float | None = Field(None, gt=0, le=4)  # A, EEPROM; None: as the servos have it
    temperature_limit: int = Field(75, ge=45, le=80)  # deg C, EEPROM: there the servo cuts its own torque
    warm: float = Field(65.0, ge=40, le=80)  # deg C at which the program stops to let it cool
    cool: float = Field(55.0, ge=30, le=80)  # deg C from which it goes on
    gains: PositionGains | None = None  # None: as the servos have them
    allow_unknown_models: bool = False
    calibration: JointsRecord | None = None  # what offsets and signs are of; other servos are then refused
    ampere_per_unit: float | None = Field(None, ge=1e-4, le=0.1)  # None: by model number

    @property
    def ids(self) -> tuple[int, ...]:
        """All servos: joints, object, and the guide if there is one."""
        guide = () if self.guide_id is None else (self.guide_id,)
        return (*self.joint_ids, self.object_id, *guide)

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
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"servo ids must differ: {', '.join(map(str, self.ids))}")
        if not self.cool < self.warm < self.temperature_limit:
            raise ValueError(
                f"cool {self.cool:g} < warm {self.warm:g} < temperature_limit {self.temperature_limit} must "
                "hold: the program stops before the servo does"
            )
        self._check_limits()
        self._check_calibration()
        return self

    def _check_limits(self) -> None:
        for servo, (low, high) in zip(self.joint_ids, limit_ticks(self).tolist(), strict=True):
            if not 0 <= low < high < TICKS_PER_TURN:
                raise ValueError(
                    f"{servo_name(servo)}: its limits would be {low}..{high} ticks, a servo takes "
                    f"0..{TICKS_PER_TURN - 1}; correct its offset, sign or safety limits"
                )

    def _check_calibration(self) -> None:
        """A calibration stands for numbers that were measured together, and for no others."""
        record = self.calibration
        if record is None:
            return
        ids = tuple(servo.id for servo in record.servos)
        if ids != self.joint_ids:
            raise ValueError(f"calibration is of servos {ids}, joint_ids are {self.joint_ids}")
        if fingerprint(zero_ticks(self).tolist(), self.signs, record.servos) != record.sha256:
            raise ValueError(
                f"offsets and signs are not those of the calibration of {record.date}: leave them as it "
                "wrote them, or set calibration: null to vouch for them yourself"
            )


def zero_ticks(config: DynamixelConfig) -> Ticks:
    """(J,): where each joint's servo stands at angle 0."""
    turned = -np.array(config.offsets) * np.array(config.signs) / RAD_PER_TICK
    return np.asarray(np.rint(turned), dtype=np.int64)


def limit_ticks(config: DynamixelConfig) -> Ticks:
    """(J, 2): lowest and highest goal position that the firmware of each joint shall accept."""
    margin = np.array([[-config.limit_margin], [config.limit_margin]])
    box = np.array([config.safety.lower, config.safety.upper]) + margin
    edges = (box - np.array(config.offsets)) * np.array(config.signs) / RAD_PER_TICK
    return np.sort(np.rint(edges).astype(np.int64), axis=0).T


class Difference(NamedTuple):
    """A register that does not hold what the configuration wants."""

    register: Register
    servo: int
    has: int
    wants: int


class ServoTable:
    """Registers of several servos at once, written so that it is known to have arrived."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def values(self, register: Register, servos: Sequence[int]) -> dict[int, int]:
        """One register of each servo, fresh. Raises BusFault."""
        column = self._bus.sync_read((register,), servos).values[:, 0]
        return dict(zip(servos, column.tolist(), strict=True))

    def reachable(self, registers: Sequence[Register], servos: Sequence[int]) -> dict[int, list[int]]:
        """The registers of those servos that answer, all fresh. Raises PortLost."""
        try:
            answered, reading = tuple(servos), self._bus.sync_read(registers, servos)
        except ServoSilent as silent:
            if silent.reading is None:
                return {}
            answered, reading = silent.answered, silent.reading
        return dict(zip(answered, reading.values.tolist(), strict=True))

    def write(self, register: Register, values: Mapping[int, int]) -> None:
        """One packet for all, then what did not arrive one by one, where a servo says why it refuses."""
        if not values:
            return
        self._bus.sync_write(register, values)
        for servo in self._differing(register, values):
            self._bus.write(register, servo, values[servo])
        self._require(register, values)

    def write_eeprom(self, register: Register, values: Mapping[int, int]) -> None:
        """Only where it differs: the memory wears out, and it needs torque off."""
        before = self._differing(register, values)
        different = {servo: values[servo] for servo in before}
        for servo, value in different.items():
            self._bus.write(reg.TORQUE_ENABLE, servo, 0)
            self._bus.write(register, servo, value)
        if different:
            changes = ", ".join(f"{servo}: {before[servo]} -> {value}" for servo, value in different.items())
            log.info("%s written for good (servo: old -> new) %s", register.name, changes)
            self._require(register, different)

    def _require(self, register: Register, values: Mapping[int, int]) -> None:
        wrong = self._differing(register, values)
        if wrong:
            seen = ", ".join(f"{servo_name(s)} has {has}, expected {values[s]}" for s, has in wrong.items())
            raise BusFault(f"{register.name} was written but reads back differently: {seen}; {CHECK}.")

    def _differing(self, register: Register, values: Mapping[int, int]) -> dict[int, int]:
        """What servos carry instead of the wanted values."""
        actual = self.values(register, tuple(values))
        return {servo: actual[servo] for servo, value in values.items() if actual[servo] != value}


class ServoSettings:
    """Every setting of the servos that the driver relies on: one list for start, preflight and repair."""

    def __init__(self, bus: Bus, config: DynamixelConfig) -> None:
        self._bus, self._config = bus, config
        self.table = ServoTable(bus)
        self.models: dict[int, int] = {}  # id -> model number, once identified

    def identify(self) -> None:
        """Finds all servos. Raises ServoSilent naming who is missing, BusFault for unknown models."""
        ids = self._config.ids
        self.models = self._bus.ping(ids)
        silent = [servo for servo in ids if servo not in self.models]
        if silent:
            names = ", ".join(servo_name(servo) for servo in silent)
            cause = "the servo power and the baud rate" if not self.models else "their cables and ids"
            raise ServoSilent(
                f"{names} did not answer; {len(self.models)} of {len(ids)} servos did. "
                f"Check {cause}; {CHECK}.",
                silent,
                tuple(self.models),
            )
        strangers = [servo for servo, model in self.models.items() if model not in reg.MODEL_NAMES]
        if strangers and not self._config.allow_unknown_models:
            self._refuse_models(strangers)

    def ampere_per_unit(self, servo: int) -> float:
        """A per unit of an identified servo's current registers."""
        # 1 mA is the unit of the newer X models, which may be allowed without one of their own.
        return self._config.ampere_per_unit or reg.AMPERE_PER_UNIT.get(self.models[servo], 1e-3)

    def differences(self) -> list[Difference]:
        """What identified servos carry for good that is not as configured. Raises BusFault."""
        found = []
        for register, wanted in self._eeprom():
            actual = self.table.values(register, tuple(wanted))
            found += [Difference(register, s, actual[s], v) for s, v in wanted.items() if actual[s] != v]
        return found

    def write_eeprom(self) -> None:
        """What survives a restart, where it differs; torque is off where it is written. Raises BusFault."""
        for register, values in self._eeprom():
            self.table.write_eeprom(register, values)

    def write_ram(self) -> None:
        """What a restart forgets. Raises BusFault."""
        for register, values in self._ram():
            self.table.write(register, values)

    def profiles(self) -> dict[int, int]:
        """Profile velocities in register units: at least 1, as 0 means none; at most what firmware takes."""
        config = self._config
        fastest = self.table.values(reg.VELOCITY_LIMIT, config.ids)
        wanted = dict.fromkeys(config.ids, config.object_velocity)
        wanted |= dict.fromkeys(config.joint_ids, config.profile_velocity or 0.0)
        return {
            servo: max(1, min(round(speed / RAD_PER_S_PER_UNIT), fastest[servo])) if speed else 0
            for servo, speed in wanted.items()
        }

    def supply(self) -> NDArray[np.float64]:
        """(N, 2): the lowest and highest voltage that each servo allows, V. Raises BusFault."""
        limits = (reg.MIN_VOLTAGE_LIMIT, reg.MAX_VOLTAGE_LIMIT)
        units = self._bus.sync_read(limits, self._config.ids).values
        return units.astype(np.float64) * reg.VOLT_PER_UNIT

    def _refuse_models(self, strangers: Sequence[int]) -> None:
        seen = ", ".join(f"{servo_name(servo)} is model {self.models[servo]}" for servo in strangers)
        known = ", ".join(f"{name} ({number})" for number, name in reg.MODEL_NAMES.items())
        raise BusFault(
            f"{seen}; this driver knows {known}. If its control table is the same (e-Manual), allow it with "
            "--set hw.dclaw.allow_unknown_models=true and give hw.dclaw.ampere_per_unit."
        )

    def _eeprom(self) -> Iterator[tuple[Register, dict[int, int]]]:
        config = self._config
        joints, ids = config.joint_ids, config.ids
        lowest, highest = limit_ticks(config).T.tolist()
        yield reg.RETURN_DELAY_TIME, dict.fromkeys(ids, 0)  # the factory's 500 us cost 5 ms per cycle
        yield reg.DRIVE_MODE, dict.fromkeys(ids, 0)  # signs are ours; profiles are velocities
        # At least what the factory says cuts the torque: overheating, electrical shock, overload.
        causes = self.table.values(reg.SHUTDOWN, ids)
        yield reg.SHUTDOWN, {servo: bits | reg.SHUTDOWN.default for servo, bits in causes.items()}
        yield reg.TEMPERATURE_LIMIT, dict.fromkeys(ids, config.temperature_limit)
        yield reg.OPERATING_MODE, self._modes()
        yield reg.MIN_POSITION_LIMIT, dict(zip(joints, lowest, strict=True))
        yield reg.MAX_POSITION_LIMIT, dict(zip(joints, highest, strict=True))
        yield reg.VELOCITY_LIMIT, {servo: self._velocity_limit(servo) for servo in ids}
        if config.current_limit is not None:
            yield reg.CURRENT_LIMIT, {servo: self._amperes(servo, config.current_limit) for servo in joints}

    def _modes(self) -> dict[int, int]:
        """Joints within one turn; the object's turns are counted (modes 4 and 5)."""
        config = self._config
        gentle = config.goal_current is not None
        modes = dict.fromkeys(config.ids, reg.POSITION_MODE)
        modes |= dict.fromkeys(config.joint_ids, reg.CURRENT_POSITION_MODE if gentle else reg.POSITION_MODE)
        modes[config.object_id] = reg.CURRENT_POSITION_MODE if gentle else reg.EXTENDED_POSITION_MODE
        return modes

    def _velocity_limit(self, servo: int) -> int:
        wanted = round(self._config.velocity_limit / RAD_PER_S_PER_UNIT)
        model = reg.MODELS.get(self.models[servo])
        return min(wanted, model.velocity_limits[1]) if model else wanted

    def _amperes(self, servo: int, amperes: float) -> int:
        return round(amperes / self.ampere_per_unit(servo))

    def _ram(self) -> Iterator[tuple[Register, dict[int, int]]]:
        config = self._config
        yield reg.PROFILE_ACCELERATION, dict.fromkeys(config.ids, 0)
        yield reg.PROFILE_VELOCITY, self.profiles()
        if config.goal_current is not None:
            servos = (*config.joint_ids, config.object_id)
            most = self.table.values(reg.CURRENT_LIMIT, servos)
            wanted = {servo: self._amperes(servo, config.goal_current) for servo in servos}
            yield reg.GOAL_CURRENT, {servo: min(units, most[servo]) for servo, units in wanted.items()}
        if config.gains is not None:
            yield reg.POSITION_P_GAIN, dict.fromkeys(config.joint_ids, config.gains.p)
            yield reg.POSITION_I_GAIN, dict.fromkeys(config.joint_ids, config.gains.i)
            yield reg.POSITION_D_GAIN, dict.fromkeys(config.joint_ids, config.gains.d)
