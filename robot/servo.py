"""The firmware of one Dynamixel X-series servo: control table, access rules, limits, watchdog, reboot.

It knows bytes, registers and time, and nothing of motors: a plant tells it what the encoder measures and
reads from it what the motor shall do. Source of the rules: ROBOTIS e-Manual (X series, Protocol 2.0).

Modelled are position control modes 3, 4 and 5. Other modes, reverse and time-based drive modes and start-up
configurations are refused as out of range, because a plant behind this servo would not act on them.
"""

from __future__ import annotations

import math
import struct

from robot import registers as reg
from robot.protocol import ErrorNumber, describe_refusal
from robot.registers import Register

CURRENT_POSITION_MODE = 5
POSITION_MODES = (reg.POSITION_MODE, reg.EXTENDED_POSITION_MODE, CURRENT_POSITION_MODE)
MULTI_TURN_LIMIT = 1_048_575  # ticks, modes 4 and 5
BOOT_TIME = 0.2  # s of silence after power-on or reboot
TABLE_SIZE = 662

# The rest of the control table: what nobody above needs by name but a byte-exact servo has.
GOAL_PWM = Register("goal_pwm", 100, 2, signed=True)
MOVING_THRESHOLD = Register("moving_threshold", 24, 4, default=10, maximum=1023)
POSITION_TRAJECTORY = Register("position_trajectory", 140, 4, signed=True, writable=False)
_UNNAMED = (
    Register("model_information", 2, 4, writable=False),
    Register("secondary_id", 12, 1, default=255),
    Register("protocol_type", 13, 1, default=2, minimum=2, maximum=2),
    MOVING_THRESHOLD,
    Register("startup_configuration", 60, 1, maximum=0),
    Register("registered_instruction", 69, 1, writable=False),
    Register("velocity_i_gain", 76, 2, default=1920, maximum=16383),
    Register("velocity_p_gain", 78, 2, default=100, maximum=16383),
    Register("feedforward_2nd_gain", 88, 2, maximum=16383),
    Register("feedforward_1st_gain", 90, 2, maximum=16383),
    GOAL_PWM,
    Register("moving_status", 123, 1, writable=False),
    Register("present_pwm", 124, 2, signed=True, writable=False),
    Register("velocity_trajectory", 136, 4, signed=True, writable=False),
    POSITION_TRAJECTORY,
    Register("backup_ready", 147, 1, writable=False),
)
_INDIRECT = ((168, 224, 28), (578, 634, 28))  # first address register, first data byte, number of bytes
_ADDRESSES = tuple(
    Register(f"indirect_address_{data + i}", pointers + 2 * i, 2, default=data + i, minimum=64, maximum=661)
    for pointers, data, count in _INDIRECT
    for i in range(count)
)
_DATA = tuple(
    Register(f"indirect_data_{data + i}", data + i, 1) for _, data, count in _INDIRECT for i in range(count)
)
LAYOUT: dict[int, Register] = {
    entry.address: entry for entry in (*reg.TABLE.values(), *_UNNAMED, *_ADDRESSES, *_DATA)
}
# Factory values that differ between models (e-Manual, control table of each).
MODEL_DEFAULTS: dict[int, dict[Register, int]] = {
    1000: {reg.CURRENT_LIMIT: 648},
    1010: {reg.CURRENT_LIMIT: 648, reg.VELOCITY_LIMIT: 210, reg.POSITION_P_GAIN: 900},
    1020: {reg.CURRENT_LIMIT: 1193, reg.VELOCITY_LIMIT: 200, reg.POSITION_P_GAIN: 800},
    1030: {reg.CURRENT_LIMIT: 1193, reg.VELOCITY_LIMIT: 330, reg.POSITION_P_GAIN: 800},
    1040: {reg.CURRENT_LIMIT: 689, reg.MAX_VOLTAGE_LIMIT: 300, reg.MIN_VOLTAGE_LIMIT: 110},
    1050: {
        reg.CURRENT_LIMIT: 689,
        reg.VELOCITY_LIMIT: 380,
        reg.MAX_VOLTAGE_LIMIT: 300,
        reg.MIN_VOLTAGE_LIMIT: 110,
    },
}
_GOALS = {GOAL_PWM.address, reg.GOAL_CURRENT.address, reg.GOAL_VELOCITY.address, reg.GOAL_POSITION.address}
_ROOM_TEMPERATURE = 30  # deg C
_INT32 = struct.Struct("<i")


class AccessError(Exception):
    """The servo refuses a read; `number` is the Protocol 2.0 error that its status packet carries."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"{describe_refusal(number)}: {message}")
        self.number = number


class Servo:
    """One servo as the bus sees it: read and write bytes, get the manual's error numbers back.

    `encoder` counts are absolute over all turns; registers show them shifted by homing offset and lost turns.
    """

    def __init__(self, id: int, model: int, firmware: int = 45, baud_code: int = 3) -> None:
        self.powered = True
        self.encoder = reg.TICKS_PER_TURN // 2  # ticks over all turns
        self.boot_end = -math.inf  # s
        self._heard = 0.0  # s, the last packet that fed the watchdog
        self._lost_turns = 0  # ticks, a multiple of a turn
        self._table = bytearray(TABLE_SIZE)
        self._defaults = {entry: entry.default for entry in LAYOUT.values()} | MODEL_DEFAULTS.get(model, {})
        made = {
            reg.MODEL_NUMBER: model,
            reg.FIRMWARE_VERSION: firmware,
            reg.ID: id,
            reg.BAUD_RATE: baud_code,
        }
        for entry, value in (self._defaults | made).items():
            self.load(entry, value)
        self._start()

    @property
    def id(self) -> int:
        """The bus address that it answers to now (register 7)."""
        return self._table[reg.ID.address]

    @property
    def torque(self) -> bool:
        """True while the motor is driven."""
        return bool(self._table[reg.TORQUE_ENABLE.address])

    @property
    def alert(self) -> bool:
        """A hardware error is pending: bit 7 of every status packet."""
        return bool(self._table[reg.HARDWARE_ERROR_STATUS.address])

    @property
    def tripped(self) -> bool:
        """The bus watchdog has stopped the motor."""
        return self._table[reg.BUS_WATCHDOG.address] == reg.WATCHDOG_TRIPPED

    @property
    def shift(self) -> int:
        """Ticks between the encoder's count and the position registers: homing offset less lost turns."""
        return self.value(reg.HOMING_OFFSET) - self._lost_turns

    @property
    def watchdog_deadline(self) -> float:
        """When the watchdog stops the motor if nothing is heard, s; infinite while it does not watch."""
        units = self._table[reg.BUS_WATCHDOG.address]
        if units == 0 or units == reg.WATCHDOG_TRIPPED or not self.torque:
            return math.inf
        return self._heard + units * reg.WATCHDOG_UNIT

    def answers(self, now: float) -> bool:
        """True with power and after booting."""
        return self.powered and now >= self.boot_end

    def value(self, register: Register) -> int:
        """A register's meaning, whoever may read or write it."""
        start = register.address
        return int.from_bytes(self._table[start : start + register.size], "little", signed=register.signed)

    def load(self, register: Register, value: int) -> None:
        """Sets a register from the inside, past all access rules: for plants and fault injection.

        Raises ValueError when the value does not fit into the register.
        """
        start = register.address
        self._table[start : start + register.size] = register.encode(value).to_bytes(register.size, "little")

    def measure(self, encoder: int, velocity: int, current: int, now: float) -> None:
        """Shows the motor's state in the table: encoder in ticks, velocity and current in register units."""
        self.encoder = encoder
        self.load(reg.PRESENT_POSITION, encoder + self.shift)
        self.load(reg.PRESENT_VELOCITY, velocity)
        self.load(reg.PRESENT_CURRENT, current)
        self.load(reg.REALTIME_TICK, realtime_tick(now))
        self.load(reg.MOVING, int(abs(velocity) > self.value(MOVING_THRESHOLD)))

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the control table; indirect data is followed. Raises AccessError outside the table."""
        if size < 1 or not 0 <= address <= TABLE_SIZE - size:
            outside = f"{size} bytes at {address} reach outside the control table"
            raise AccessError(ErrorNumber.ACCESS_ERROR, outside)
        if not _touches_indirect(address, size):
            return bytes(self._table[address : address + size])
        return bytes(self._table[target] for target in self._targets(address, size))

    def write(self, address: int, data: bytes, now: float) -> int:
        """Writes whole registers, all or none; returns the Protocol 2.0 error number, 0 = accepted."""
        self.feed_watchdog(now)
        if not data or not 0 <= address <= TABLE_SIZE - len(data):
            return ErrorNumber.ACCESS_ERROR
        error, entries = _split(self._runs(address, data))
        if error:
            return error
        for entry, value in entries:
            if error := self._objection(entry, value):
                return error
        for entry, value in entries:
            self._apply(entry, value)
        return 0

    def write_goal(self, ticks: int, now: float) -> int:
        """`write` of the goal position alone, fast enough for a training loop."""
        self._heard = now
        if error := self._goal_objection(ticks):
            return error
        _INT32.pack_into(self._table, 116, ticks)
        return 0

    def feed_watchdog(self, now: float) -> None:
        """Counts the watchdog's silence from now on."""
        self._heard = now

    def tick(self, now: float) -> bool:
        """Lets the watchdog look at the time; True when it now stops the motor at its present position."""
        if now < self.watchdog_deadline - 1e-9:
            return False
        self.load(reg.BUS_WATCHDOG, reg.WATCHDOG_TRIPPED)
        self.load(reg.GOAL_POSITION, self.encoder + self.shift)
        return True

    def raise_hardware_error(self, bits: int) -> None:
        """Latches errors of register 70; those that register 63 names cut the torque until a reboot."""
        self.load(reg.HARDWARE_ERROR_STATUS, self.value(reg.HARDWARE_ERROR_STATUS) | bits)
        if bits & self.value(reg.SHUTDOWN):
            self.load(reg.TORQUE_ENABLE, 0)

    def reboot(self, now: float = -math.inf) -> None:
        """Loses RAM, turns and torque, keeps EEPROM; silent for BOOT_TIME."""
        for entry, value in self._defaults.items():
            if not entry.eeprom:
                self.load(entry, value)
        self.boot_end = now + BOOT_TIME
        self._start()

    def _start(self) -> None:
        """Power-on: one turn is known, goals stand at the present position and at the limits."""
        self._reset_profile()
        self.load(reg.PRESENT_INPUT_VOLTAGE, 240 if self.value(reg.MAX_VOLTAGE_LIMIT) == 300 else 120)
        self.load(reg.PRESENT_TEMPERATURE, _ROOM_TEMPERATURE)
        self._forget_turns()

    def _reset_profile(self) -> None:
        """What power-on and another operating mode do to speeds and efforts: as much as there is."""
        self.load(reg.PROFILE_ACCELERATION, 0)
        self.load(reg.PROFILE_VELOCITY, 0)
        self.load(GOAL_PWM, self.value(reg.PWM_LIMIT))
        self.load(reg.GOAL_CURRENT, self.value(reg.CURRENT_LIMIT))

    def _forget_turns(self) -> None:
        self._lost_turns = self.encoder // reg.TICKS_PER_TURN * reg.TICKS_PER_TURN
        self.load(reg.PRESENT_POSITION, self.encoder + self.shift)
        self.load(reg.GOAL_POSITION, self.encoder + self.shift)

    def _targets(self, address: int, size: int) -> list[int]:
        """The real address behind each byte of a range."""
        return [self._pointed(byte) for byte in range(address, address + size)]

    def _pointed(self, address: int) -> int:
        for pointers, data, count in _INDIRECT:
            if data <= address < data + count:
                return self._table[pointers + 2 * (address - data)] | (
                    self._table[pointers + 2 * (address - data) + 1] << 8
                )
        return address

    def _runs(self, address: int, data: bytes) -> list[tuple[int, bytes]]:
        """The contiguous pieces that a write reaches once indirect data is followed."""
        if not _touches_indirect(address, len(data)):
            return [(address, data)]
        runs: list[tuple[int, bytes]] = []
        for target, byte in zip(self._targets(address, len(data)), data, strict=True):
            if runs and target == runs[-1][0] + len(runs[-1][1]):
                runs[-1] = (runs[-1][0], runs[-1][1] + bytes([byte]))
            else:
                runs.append((target, bytes([byte])))
        return runs

    def _objection(self, entry: Register, value: int) -> int:
        """The error number that refuses this value in this register now, 0 if none."""
        if not entry.writable or (entry.eeprom and self.torque):
            return ErrorNumber.ACCESS_ERROR
        if entry is reg.GOAL_POSITION:
            return self._goal_objection(value)
        if self.tripped and (entry.address in _GOALS or (entry is reg.BUS_WATCHDOG and value != 0)):
            return ErrorNumber.DATA_RANGE_ERROR
        low, high = self._range(entry)
        if not low <= value <= high:
            return ErrorNumber.DATA_RANGE_ERROR
        if entry is reg.TORQUE_ENABLE and value and self._shut_down():
            return ErrorNumber.RESULT_FAIL
        return 0

    def _goal_objection(self, ticks: int) -> int:
        if self.tripped:
            return ErrorNumber.DATA_RANGE_ERROR
        low, high = -MULTI_TURN_LIMIT, MULTI_TURN_LIMIT
        if self._table[reg.OPERATING_MODE.address] == reg.POSITION_MODE:
            (low,) = _INT32.unpack_from(self._table, 52)
            (high,) = _INT32.unpack_from(self._table, 48)
        return 0 if low <= ticks <= high else ErrorNumber.DATA_RANGE_ERROR

    def _shut_down(self) -> bool:
        return bool(self.value(reg.HARDWARE_ERROR_STATUS) & self.value(reg.SHUTDOWN))

    def _range(self, entry: Register) -> tuple[int, int]:
        """The values that a register takes, where others limit them too."""
        if entry is reg.OPERATING_MODE:
            return min(POSITION_MODES), max(POSITION_MODES)
        if entry is reg.DRIVE_MODE:
            return 0, 0
        limit = _LIMITED_BY.get(entry)
        if limit is not None:
            high = self.value(limit)
            return (-high if entry.signed else 0), high
        bits = 8 * entry.size - entry.signed
        low = entry.minimum if entry.minimum is not None else (-(1 << bits) if entry.signed else 0)
        return low, entry.maximum if entry.maximum is not None else (1 << bits) - 1

    def _apply(self, entry: Register, value: int) -> None:
        switched = entry is reg.OPERATING_MODE and value != self.value(entry)
        self.load(entry, value)
        if switched:
            self._reset_profile()
        if entry is reg.OPERATING_MODE:
            self._forget_turns()
        elif entry is reg.HOMING_OFFSET:
            self.load(reg.PRESENT_POSITION, self.encoder + self.shift)


_LIMITED_BY = {
    GOAL_PWM: reg.PWM_LIMIT,
    reg.GOAL_CURRENT: reg.CURRENT_LIMIT,
    reg.GOAL_VELOCITY: reg.VELOCITY_LIMIT,
}


def realtime_tick(now: float) -> int:
    """Register 120 at a time in seconds: milliseconds that wrap after 32.768 s."""
    return int(now * 1000 + 1e-6) % 32768


def _touches_indirect(address: int, size: int) -> bool:
    return any(address < data + count and data < address + size for _, data, count in _INDIRECT)


def _split(runs: list[tuple[int, bytes]]) -> tuple[int, list[tuple[Register, int]]]:
    """The registers and values in contiguous bytes, or the error number of what is no whole register."""
    entries = []
    for start, data in runs:
        offset = 0
        while offset < len(data):
            entry = LAYOUT.get(start + offset)
            if entry is None:
                return ErrorNumber.ACCESS_ERROR, []
            chunk = data[offset : offset + entry.size]
            if len(chunk) < entry.size:
                return ErrorNumber.DATA_LENGTH_ERROR, []
            entries.append((entry, int.from_bytes(chunk, "little", signed=entry.signed)))
            offset += entry.size
    return 0, entries
