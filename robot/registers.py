"""The control table of Dynamixel X-series servos as data: address, size, sign, unit, range, access, default.

Source: ROBOTIS e-Manual, control tables of XM430-W210/W350, XH430-W210/W350 and XH430-V210/V350. The
constants are the XH430-W210's, the servo of D'Claw; `control_table` has those of each model and firmware.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

TICKS_PER_TURN = 4096
RAD_PER_TICK = 2 * math.pi / TICKS_PER_TURN
RAD_PER_S_PER_UNIT = 0.229 * 2 * math.pi / 60  # velocity unit 0.229 rev/min
VOLT_PER_UNIT = 0.1
WATCHDOG_UNIT = 0.02  # s
WATCHDOG_TRIPPED = 255  # register 98 reads -1 (two's complement) once the servo has stopped itself
MULTI_TURN_LIMIT = 1_048_575  # ticks, operating modes 4 and 5
TABLE_SIZE = 662  # bytes

BAUD_CODES = {9600: 0, 57600: 1, 115200: 2, 1_000_000: 3, 2_000_000: 4, 3_000_000: 5, 4_000_000: 6}

POSITION_MODE = 3
EXTENDED_POSITION_MODE = 4
CURRENT_POSITION_MODE = 5


def servo_baud(baud: int) -> int:
    """The speed itself, in baud. Raises ValueError for one that servos do not speak."""
    if baud not in BAUD_CODES:
        raise ValueError(f"servos do not speak {baud} baud, but {', '.join(map(str, BAUD_CODES))}")
    return baud


@dataclass(frozen=True, slots=True)
class Unit:
    """What one count of a register means: `scale` of the SI unit `name` ("1": a plain number)."""

    name: str
    scale: float


ANGLE = Unit("rad", RAD_PER_TICK)
VELOCITY = Unit("rad/s", RAD_PER_S_PER_UNIT)
ACCELERATION = Unit("rad/s2", 214.577 * 2 * math.pi / 3600)  # 214.577 rev/min2
CURRENT_W = Unit("A", 2.69e-3)  # the 12 V models
CURRENT_V = Unit("A", 1.34e-3)  # the 24 V models
VOLTAGE = Unit("V", VOLT_PER_UNIT)
TEMPERATURE = Unit("deg C", 1.0)
PWM = Unit("1", 0.00113)  # of the supply voltage


@dataclass(frozen=True, slots=True)
class Register:
    """One entry of the control table; `eeprom` entries are writable only with torque off."""

    name: str
    address: int
    size: int  # bytes
    signed: bool = False
    writable: bool = True
    default: int = 0
    minimum: int | None = None  # None: all that fits
    maximum: int | None = None
    unit: Unit | None = None  # None: flags, codes and addresses have none
    choices: tuple[int, ...] = ()  # the only values, where not all between minimum and maximum are any
    bound: str = ""  # the register that further bounds the magnitude
    since: int = 0  # the first firmware that has it
    until: int = 255  # the last one

    @property
    def eeprom(self) -> bool:
        """True for the area that survives a power loss (addresses 0-63)."""
        return self.address < 64

    @property
    def low(self) -> int:
        """The smallest value that the manual allows."""
        return self._fitting[0] if self.minimum is None else self.minimum

    @property
    def high(self) -> int:
        """The largest value that the manual allows."""
        return self._fitting[1] if self.maximum is None else self.maximum

    def allows(self, value: int) -> bool:
        """True when the manual has this value for this register, other registers aside."""
        return self.low <= value <= self.high and (not self.choices or value in self.choices)

    def decode(self, data: bytes) -> int:
        """The value of a register's bytes (little endian, two's complement)."""
        return int.from_bytes(data, "little", signed=self.signed)

    def encode(self, value: int) -> bytes:
        """The bytes that mean a value. Raises ValueError when it does not fit into the register."""
        try:
            return value.to_bytes(self.size, "little", signed=self.signed)
        except OverflowError:
            low, high = self._fitting
            raise ValueError(f"{self.name} takes {low}..{high}, got {value}") from None

    def to_si(self, value: int) -> float:
        """A value in the SI unit of the register. Raises ValueError where there is none."""
        return value * self._unit.scale

    def from_si(self, quantity: float) -> int:
        """The value nearest to a quantity in SI units. Raises ValueError for one that the manual excludes."""
        if not math.isfinite(quantity):
            raise ValueError(f"{self.name} takes a finite number, got {quantity}")
        value = round(quantity / self._unit.scale)
        if not self.allows(value):
            name, least, most = self._unit.name, self.to_si(self.low), self.to_si(self.high)
            raise ValueError(f"{self.name} takes {least:.4g}..{most:.4g} {name}, got {quantity:.4g}")
        return value

    @property
    def _fitting(self) -> tuple[int, int]:
        """The values that the bits can hold."""
        bits = 8 * self.size
        return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if self.signed else (0, (1 << bits) - 1)

    @property
    def _unit(self) -> Unit:
        if self.unit is None:
            raise ValueError(f"{self.name} is a code or a set of flags: it has no unit")
        return self.unit


def _read_only(
    name: str, address: int, size: int, unit: Unit | None = None, *, signed: bool = False, since: int = 0
) -> Register:
    return Register(name, address, size, signed=signed, writable=False, unit=unit, since=since)


def _gain(name: str, address: int, divisor: int, default: int = 0) -> Register:
    return Register(name, address, 2, default=default, maximum=16383, unit=Unit("1", 1 / divisor))


# EEPROM: kept without power, writable only with torque off.
MODEL_NUMBER = _read_only("model_number", 0, 2)
MODEL_INFORMATION = _read_only("model_information", 2, 4)
FIRMWARE_VERSION = _read_only("firmware_version", 6, 1)
ID = Register("id", 7, 1, default=1, maximum=252)
BAUD_RATE = Register("baud_rate", 8, 1, default=1, maximum=7)
RETURN_DELAY_TIME = Register("return_delay_time", 9, 1, default=250, maximum=254, unit=Unit("s", 2e-6))
DRIVE_MODE = Register("drive_mode", 10, 1, maximum=13, choices=(0, 1, 4, 5, 8, 9, 12, 13), since=38)
OPERATING_MODE = Register("operating_mode", 11, 1, default=3, maximum=16, choices=(0, 1, 3, 4, 5, 16))
SECONDARY_ID = Register("secondary_id", 12, 1, default=255)  # above 252: none
PROTOCOL_TYPE = Register("protocol_type", 13, 1, default=2, minimum=1, maximum=2)
HOMING_OFFSET = Register(
    "homing_offset", 20, 4, signed=True, minimum=-1_044_479, maximum=1_044_479, unit=ANGLE
)
MOVING_THRESHOLD = Register("moving_threshold", 24, 4, default=10, maximum=1023, unit=VELOCITY)
TEMPERATURE_LIMIT = Register("temperature_limit", 31, 1, default=80, maximum=100, unit=TEMPERATURE)
MAX_VOLTAGE_LIMIT = Register("max_voltage_limit", 32, 2, default=160, minimum=95, maximum=160, unit=VOLTAGE)
MIN_VOLTAGE_LIMIT = Register("min_voltage_limit", 34, 2, default=95, minimum=95, maximum=160, unit=VOLTAGE)
PWM_LIMIT = Register("pwm_limit", 36, 2, default=885, maximum=885, unit=PWM)
CURRENT_LIMIT = Register("current_limit", 38, 2, default=648, maximum=648, unit=CURRENT_W)
# Gone from the manual's pages of firmware 42; which version dropped it first is not written anywhere.
ACCELERATION_LIMIT = Register(
    "acceleration_limit", 40, 4, default=32767, maximum=32767, unit=ACCELERATION, until=41
)
VELOCITY_LIMIT = Register("velocity_limit", 44, 4, default=210, maximum=1023, unit=VELOCITY)
MAX_POSITION_LIMIT = Register("max_position_limit", 48, 4, default=4095, maximum=4095, unit=ANGLE)
MIN_POSITION_LIMIT = Register("min_position_limit", 52, 4, maximum=4095, unit=ANGLE)
STARTUP_CONFIGURATION = Register("startup_configuration", 60, 1, maximum=3, since=45)
SHUTDOWN = Register("shutdown", 63, 1, default=0x34)

# RAM: back to these values after a restart.
TORQUE_ENABLE = Register("torque_enable", 64, 1, maximum=1)
LED = Register("led", 65, 1, maximum=1)
STATUS_RETURN_LEVEL = Register("status_return_level", 68, 1, default=2, maximum=2)
REGISTERED_INSTRUCTION = _read_only("registered_instruction", 69, 1)
HARDWARE_ERROR_STATUS = _read_only("hardware_error_status", 70, 1)
VELOCITY_I_GAIN = _gain("velocity_i_gain", 76, 65536, default=1920)
VELOCITY_P_GAIN = _gain("velocity_p_gain", 78, 128, default=100)
POSITION_D_GAIN = _gain("position_d_gain", 80, 16)
POSITION_I_GAIN = _gain("position_i_gain", 82, 65536)
POSITION_P_GAIN = _gain("position_p_gain", 84, 128, default=900)
FEEDFORWARD_2ND_GAIN = _gain("feedforward_2nd_gain", 88, 4)
FEEDFORWARD_1ST_GAIN = _gain("feedforward_1st_gain", 90, 4)
BUS_WATCHDOG = Register(  # reads 255 when tripped
    "bus_watchdog", 98, 1, maximum=127, unit=Unit("s", WATCHDOG_UNIT), since=38
)
GOAL_PWM = Register("goal_pwm", 100, 2, signed=True, unit=PWM, bound="pwm_limit")
GOAL_CURRENT = Register("goal_current", 102, 2, signed=True, unit=CURRENT_W, bound="current_limit")
GOAL_VELOCITY = Register("goal_velocity", 104, 4, signed=True, unit=VELOCITY, bound="velocity_limit")
# Profiles: 0 = unlimited; both count milliseconds instead in the time-based drive mode (bit 0x04).
PROFILE_ACCELERATION = Register("profile_acceleration", 108, 4, maximum=32767, unit=ACCELERATION)
PROFILE_VELOCITY = Register("profile_velocity", 112, 4, maximum=32767, unit=VELOCITY)
GOAL_POSITION = Register(  # in mode 3 further bounded by the position limits
    "goal_position", 116, 4, signed=True, minimum=-MULTI_TURN_LIMIT, maximum=MULTI_TURN_LIMIT, unit=ANGLE
)
REALTIME_TICK = _read_only("realtime_tick", 120, 2, Unit("s", 1e-3))
MOVING = _read_only("moving", 122, 1)
MOVING_STATUS = _read_only("moving_status", 123, 1)
PRESENT_PWM = _read_only("present_pwm", 124, 2, PWM, signed=True)
PRESENT_CURRENT = _read_only("present_current", 126, 2, CURRENT_W, signed=True)
PRESENT_VELOCITY = _read_only("present_velocity", 128, 4, VELOCITY, signed=True)
PRESENT_POSITION = _read_only("present_position", 132, 4, ANGLE, signed=True)
VELOCITY_TRAJECTORY = _read_only("velocity_trajectory", 136, 4, VELOCITY, signed=True)
POSITION_TRAJECTORY = _read_only("position_trajectory", 140, 4, ANGLE, signed=True)
PRESENT_INPUT_VOLTAGE = _read_only("present_input_voltage", 144, 2, VOLTAGE)
PRESENT_TEMPERATURE = _read_only("present_temperature", 146, 1, TEMPERATURE)
BACKUP_READY = _read_only("backup_ready", 147, 1, since=45)

# Indirect data N shows the byte at the address in indirect address N; both in order, N = 1 first.
INDIRECT_BLOCKS = ((168, 224, 28), (578, 634, 28))  # first address register, first data byte, how many
INDIRECT_ADDRESSES = tuple(
    Register(f"indirect_address_{n}", addresses + 2 * i, 2, default=data + i, minimum=64, maximum=661)
    for first, (addresses, data, count) in zip((1, 29), INDIRECT_BLOCKS, strict=True)
    for i, n in enumerate(range(first, first + count))
)
INDIRECT_DATA = tuple(
    Register(f"indirect_data_{n}", data + i, 1)
    for first, (_, data, count) in zip((1, 29), INDIRECT_BLOCKS, strict=True)
    for i, n in enumerate(range(first, first + count))
)

_NAMED = [entry for entry in list(globals().values()) if isinstance(entry, Register)]
TABLE: Mapping[str, Register] = MappingProxyType(
    {entry.name: entry for entry in (*_NAMED, *INDIRECT_ADDRESSES, *INDIRECT_DATA)}
)

# What a driver reads in every cycle, gathered into one block by indirect addresses: 16 bytes.
CYCLE = (
    PRESENT_CURRENT,
    PRESENT_VELOCITY,
    PRESENT_POSITION,
    TORQUE_ENABLE,
    HARDWARE_ERROR_STATUS,
    BUS_WATCHDOG,
    PRESENT_INPUT_VOLTAGE,
    PRESENT_TEMPERATURE,
)


@dataclass(frozen=True, slots=True)
class ServoModel:
    """What distinguishes the servos of one table: factory values in register units, the motor in V and A."""

    name: str
    current: Unit
    current_limit: int  # factory value and largest
    velocity_limits: tuple[int, int]  # factory values before firmware 42 and since
    position_p_gain: int
    voltage_limits: tuple[int, int]  # factory values and range, 0.1 V
    stall: tuple[float, float]  # V and A at stall, from the performance data


# Velocity limits: the manual's pages before and since firmware 42, which lowered them to the speed without
# load. Where no page of one age was found (XM430-W210, XH430-x350 old; V210 new), it is that speed.
MODELS = {
    1000: ServoModel("XH430-W350", CURRENT_W, 648, (130, 130), 900, (95, 160), (12.0, 1.3)),
    1010: ServoModel("XH430-W210", CURRENT_W, 648, (360, 210), 900, (95, 160), (12.0, 1.3)),
    1020: ServoModel("XM430-W350", CURRENT_W, 1193, (350, 200), 800, (95, 160), (12.0, 2.3)),
    1030: ServoModel("XM430-W210", CURRENT_W, 1193, (330, 330), 800, (95, 160), (12.0, 2.3)),
    1040: ServoModel("XH430-V350", CURRENT_V, 689, (135, 135), 800, (110, 300), (24.0, 0.7)),
    1050: ServoModel("XH430-V210", CURRENT_V, 689, (380, 227), 800, (110, 300), (24.0, 0.7)),
}
MODEL_NAMES = {number: model.name for number, model in MODELS.items()}
AMPERE_PER_UNIT = {number: model.current.scale for number, model in MODELS.items()}


@cache
def control_table(model: int, firmware: int) -> Mapping[str, Register]:
    """The registers that servos of a model number and firmware version have, by name, with their own values.

    They differ in defaults, ranges and units from the constants of this module, never in place, size or sign.
    Raises ValueError for a model that is not an XM430 or XH430.
    """
    if model not in MODELS:
        known = ", ".join(f"{number} ({name})" for number, name in sorted(MODEL_NAMES.items()))
        raise ValueError(f"no control table for model number {model}; there are {known}")
    changes = _of_model(MODELS[model], firmware) | {
        "model_number": {"default": model},
        "firmware_version": {"default": firmware},
        "drive_mode": _drive_modes(firmware),
    }
    return MappingProxyType(
        {
            name: replace(entry, **changes.get(name, {}))
            for name, entry in TABLE.items()
            if entry.since <= firmware <= entry.until
        }
    )


def _of_model(model: ServoModel, firmware: int) -> dict[str, dict[str, Any]]:
    low, high = model.voltage_limits
    volts = {"minimum": low, "maximum": high}
    return {
        "current_limit": {
            "default": model.current_limit,
            "maximum": model.current_limit,
            "unit": model.current,
        },
        "goal_current": {"unit": model.current},
        "present_current": {"unit": model.current},
        "velocity_limit": {"default": model.velocity_limits[firmware >= 42]},
        "position_p_gain": {"default": model.position_p_gain},
        "max_voltage_limit": volts | {"default": high},
        "min_voltage_limit": volts | {"default": low},
    }


def _drive_modes(firmware: int) -> dict[str, Any]:
    """Reverse; time-based profile since firmware 42; torque on by goal update since firmware 45."""
    bits = 0x01 | (0x04 if firmware >= 42 else 0) | (0x08 if firmware >= 45 else 0)
    return {"maximum": bits, "choices": tuple(mode for mode in range(16) if not mode & ~bits)}


HARDWARE_ERRORS = {
    0x01: "input voltage",
    0x04: "overheating",
    0x08: "encoder",
    0x10: "electrical shock",
    0x20: "overload",
}
VOLTAGE_ERROR, OVERHEATING, ENCODER_ERROR, ELECTRICAL_SHOCK, OVERLOAD = HARDWARE_ERRORS
CURABLE = OVERLOAD | VOLTAGE_ERROR  # what a restart may clear for good reason

FINGER_SEGMENTS = ("proximal", "middle", "distal")


def describe_hardware_error(status: int) -> str:
    """Register 70 in words: 'overload (0x20)'."""
    words = [text for bit, text in HARDWARE_ERRORS.items() if status & bit]
    return f"{' + '.join(words) or 'an unnamed error'} (0x{status:02x})"


def servo_name(servo: int) -> str:
    """A servo with its place on D'Claw: 'servo 12 (finger 1, distal)', 'servo 50 (valve)'."""
    finger, segment = divmod(servo, 10)
    if finger in (1, 2, 3) and segment < len(FINGER_SEGMENTS):
        return f"servo {servo} (finger {finger}, {FINGER_SEGMENTS[segment]})"
    place = {50: " (valve)", 60: " (goal pointer)"}.get(servo, "")
    return f"servo {servo}{place}"


def watchdog_units(seconds: float) -> int:
    """The value of register 98 that waits at least so long. Raises ValueError outside 0.02 to 2.54 s."""
    units = math.ceil(round(seconds / WATCHDOG_UNIT, 6))
    if not 1 <= units <= (BUS_WATCHDOG.maximum or 0):
        raise ValueError(f"the bus watchdog waits 0.02 to 2.54 s, not {seconds} s")
    return units
