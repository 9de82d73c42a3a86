"""The control table of Dynamixel X-series servos as data: address, size, sign, unit, memory and access.

Source: ROBOTIS e-Manual, control tables of XM430-W210/W350, XH430-W210/W350 and XH430-V210/V350.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TICKS_PER_TURN = 4096
RAD_PER_TICK = 2 * math.pi / TICKS_PER_TURN
RAD_PER_S_PER_UNIT = 0.229 * 2 * math.pi / 60  # velocity unit 0.229 rev/min
VOLT_PER_UNIT = 0.1
WATCHDOG_UNIT = 0.02  # s
WATCHDOG_TRIPPED = 255  # register 98 reads -1 (two's complement) once the servo has stopped itself

# Ampere per unit of present and goal current, by model number: 2.69 mA (W models), 1.34 mA (XH430-V).
AMPERE_PER_UNIT = {1020: 2.69e-3, 1030: 2.69e-3, 1000: 2.69e-3, 1010: 2.69e-3, 1040: 1.34e-3, 1050: 1.34e-3}
MODEL_NAMES = {
    1000: "XH430-W350",
    1010: "XH430-W210",
    1020: "XM430-W350",
    1030: "XM430-W210",
    1040: "XH430-V350",
    1050: "XH430-V210",
}
BAUD_CODES = {9600: 0, 57600: 1, 115200: 2, 1_000_000: 3, 2_000_000: 4, 3_000_000: 5, 4_000_000: 6}


def servo_baud(baud: int) -> int:
    """The speed itself, in baud. Raises ValueError for one that servos do not speak."""
    if baud not in BAUD_CODES:
        raise ValueError(f"servos do not speak {baud} baud, but {', '.join(map(str, BAUD_CODES))}")
    return baud


@dataclass(frozen=True, slots=True)
class Register:
    """One entry of the control table; `eeprom` entries are writable only with torque off."""

    name: str
    address: int
    size: int  # bytes
    signed: bool = False
    writable: bool = True
    default: int = 0
    minimum: int | None = None
    maximum: int | None = None

    @property
    def eeprom(self) -> bool:
        """True for the area that survives a power loss (addresses 0-63)."""
        return self.address < 64

    def decode(self, raw: int) -> int:
        """Unsigned bits to the value that they mean (exact two's complement)."""
        sign_bit = 1 << (8 * self.size - 1)
        return raw - (sign_bit << 1) if self.signed and raw & sign_bit else raw

    def encode(self, value: int) -> int:
        """A value to unsigned bits. Raises ValueError when it does not fit into the register."""
        bits = 8 * self.size
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if self.signed else (0, (1 << bits) - 1)
        if not low <= value <= high:
            raise ValueError(f"{self.name} takes {low}..{high}, got {value}")
        return value & ((1 << bits) - 1)


def _read_only(name: str, address: int, size: int, *, signed: bool = False) -> Register:
    return Register(name, address, size, signed=signed, writable=False)


MODEL_NUMBER = _read_only("model_number", 0, 2)
FIRMWARE_VERSION = _read_only("firmware_version", 6, 1)
ID = Register("id", 7, 1, default=1, minimum=0, maximum=252)
BAUD_RATE = Register("baud_rate", 8, 1, default=1, minimum=0, maximum=7)
RETURN_DELAY_TIME = Register("return_delay_time", 9, 1, default=250, minimum=0, maximum=254)  # 2 us
DRIVE_MODE = Register("drive_mode", 10, 1, maximum=13)
OPERATING_MODE = Register("operating_mode", 11, 1, default=3, maximum=16)
HOMING_OFFSET = Register("homing_offset", 20, 4, signed=True, minimum=-1_044_479, maximum=1_044_479)
TEMPERATURE_LIMIT = Register("temperature_limit", 31, 1, default=80, maximum=100)  # deg C
MAX_VOLTAGE_LIMIT = Register("max_voltage_limit", 32, 2, default=160, minimum=95, maximum=300)  # 0.1 V
MIN_VOLTAGE_LIMIT = Register("min_voltage_limit", 34, 2, default=95, minimum=95, maximum=300)  # 0.1 V
PWM_LIMIT = Register("pwm_limit", 36, 2, default=885, maximum=885)
CURRENT_LIMIT = Register("current_limit", 38, 2, default=648, maximum=1193)
VELOCITY_LIMIT = Register("velocity_limit", 44, 4, default=210, maximum=1023)
MAX_POSITION_LIMIT = Register("max_position_limit", 48, 4, default=4095, maximum=4095)
MIN_POSITION_LIMIT = Register("min_position_limit", 52, 4, maximum=4095)
SHUTDOWN = Register("shutdown", 63, 1, default=0x34)
TORQUE_ENABLE = Register("torque_enable", 64, 1, maximum=1)
LED = Register("led", 65, 1, maximum=1)
STATUS_RETURN_LEVEL = Register("status_return_level", 68, 1, default=2, maximum=2)
HARDWARE_ERROR_STATUS = _read_only("hardware_error_status", 70, 1)
POSITION_D_GAIN = Register("position_d_gain", 80, 2, maximum=16383)
POSITION_I_GAIN = Register("position_i_gain", 82, 2, maximum=16383)
POSITION_P_GAIN = Register("position_p_gain", 84, 2, default=900, maximum=16383)
BUS_WATCHDOG = Register("bus_watchdog", 98, 1, maximum=127)  # 20 ms; reads 255 when tripped
GOAL_CURRENT = Register("goal_current", 102, 2, signed=True)
GOAL_VELOCITY = Register("goal_velocity", 104, 4, signed=True)
PROFILE_ACCELERATION = Register("profile_acceleration", 108, 4, maximum=32767)
PROFILE_VELOCITY = Register("profile_velocity", 112, 4, maximum=32767)  # 0 = unlimited
GOAL_POSITION = Register("goal_position", 116, 4, signed=True)
REALTIME_TICK = _read_only("realtime_tick", 120, 2)
MOVING = _read_only("moving", 122, 1)
PRESENT_CURRENT = _read_only("present_current", 126, 2, signed=True)
PRESENT_VELOCITY = _read_only("present_velocity", 128, 4, signed=True)
PRESENT_POSITION = _read_only("present_position", 132, 4, signed=True)
PRESENT_INPUT_VOLTAGE = _read_only("present_input_voltage", 144, 2)  # 0.1 V
PRESENT_TEMPERATURE = _read_only("present_temperature", 146, 1)  # deg C

TABLE: dict[str, Register] = {
    entry.name: entry for entry in list(globals().values()) if isinstance(entry, Register)
}

HARDWARE_ERRORS = {
    0x01: "input voltage",
    0x04: "overheating",
    0x08: "encoder",
    0x10: "electrical shock",
    0x20: "overload",
}
POSITION_MODE = 3
EXTENDED_POSITION_MODE = 4


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
