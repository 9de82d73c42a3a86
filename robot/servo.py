"""The firmware of one Dynamixel X-series servo: control table, access rules, limits, watchdog, errors.

It knows bytes, registers and time, and of its motor only how warm a current makes it: a plant tells it what
the encoder measures and reads from it what the motor shall do. Source of the rules: ROBOTIS e-Manual (X
series, Protocol 2.0); what the manual leaves open is a field of `FirmwareConfig`.

Modelled are position control modes 3, 4 and 5. Other modes, reverse and time-based drive modes and start-up
configurations are refused as out of range, because a plant behind this servo would not act on them; the
secondary id is stored and not obeyed; present PWM, moving status and velocity trajectory read 0.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import cache
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from robot import registers as reg
from robot.protocol import ErrorNumber, describe_refusal
from robot.registers import MULTI_TURN_LIMIT, TABLE_SIZE, Register, ServoModel
from robot.types import Config

# What factory reset keeps, by its parameter (e-Manual, Protocol 2.0).
FACTORY_RESETS = {0xFF: (), 0x01: (reg.ID,), 0x02: (reg.ID, reg.BAUD_RATE)}
BACKUP_FIRMWARE = 45  # e-Manual, Protocol 2.0: control table backup
_EEPROM = slice(0, 64)
_RAM = slice(64, TABLE_SIZE)
_GAINS = slice(reg.VELOCITY_I_GAIN.address, reg.FEEDFORWARD_1ST_GAIN.address + 2)
_GOALS = {entry.address for entry in (reg.GOAL_PWM, reg.GOAL_CURRENT, reg.GOAL_VELOCITY, reg.GOAL_POSITION)}
_MODES = (reg.POSITION_MODE, reg.EXTENDED_POSITION_MODE, reg.CURRENT_POSITION_MODE)
_MODELLED = {  # the values, of those that the manual allows, on which a plant acts
    reg.DRIVE_MODE.address: (0,),
    reg.OPERATING_MODE.address: _MODES,
    reg.PROTOCOL_TYPE.address: (2,),
    reg.STARTUP_CONFIGURATION.address: (0,),
}
_INT32 = struct.Struct("<i")


class FirmwareConfig(Config):
    """What only a servo on the bench can tell: every field says what we assume and why."""

    version: int = Field(45, ge=38, le=255)  # the first with fast reads; register 6
    boot_time: PositiveFloat = 0.2  # s of silence; others report 0.3 s from reboot to torque
    # Whether register 70 keeps the voltage bit once the voltage is good again. Seen with a slow supply: the
    # error stayed until a reboot.
    voltage_error_latches: bool = True
    # Whether torque on makes the goal the present position. The manual is silent: assume the dangerous way.
    torque_on_seeds_goal: bool = False
    # Clear needs a motor at rest; the manual does not say whether one that holds its position is at rest.
    clear_needs_torque_off: bool = True
    # Tripping, profiles "are applied as 0": whether registers 108 and 112 show it is open.
    watchdog_clears_profiles: bool = False
    # The answer to a goal beyond a limit register: the manual has Data Range (4) and Data Limit (6) for it.
    limit_error: Literal[4, 6] = 4
    unmapped_indirect_data: int = Field(0, ge=0, le=255)  # read where nobody set an indirect address
    fast_read_firmware: int = 45  # e-Manual, Protocol 2.0: X430 from this version on; older ones stay silent
    # s per id between the answers to a broadcast ping: the SDK grants 3 ms for each of the 253 ids.
    ping_slot: NonNegativeFloat = 3e-3
    ambient: float = 30.0  # deg C, a closed room with a lamp
    # Case to air, K/W: 0.0078 m2 of surface at 10 W/(m2 K) are 13, a bracket takes some of it away.
    thermal_resistance: PositiveFloat = 10.0
    heat_capacity: PositiveFloat = 60.0  # J/K: 82 g of metal and plastic, 0.7 J/(g K); time constant 10 min
    # Overload: so much of the stall current ("persistent load that exceeds maximum output") ...
    overload_current: float = Field(0.8, gt=0, le=1)
    overload_time: PositiveFloat = 5.0  # ... for so long, s: reported trips came after 5 s


class AccessError(Exception):
    """The servo refuses a read; `number` is the Protocol 2.0 error that its status packet carries."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"{describe_refusal(number)}: {message}")
        self.number = number


class Endurance:
    """How warm a servo is and how long it has been straining, from the current through its winding.

    One time constant: the whole servo warms by the winding's loss and cools to the room's air. At stall the
    supply is all loss, which gives the winding's resistance.
    """

    def __init__(self, model: ServoModel, config: FirmwareConfig) -> None:
        volts, amperes = model.stall
        self.temperature = config.ambient  # deg C
        self._ambient = config.ambient
        self._rise = volts / amperes * model.current.scale**2 * config.thermal_resistance  # K per unit2
        self._time_constant = config.thermal_resistance * config.heat_capacity  # s
        self._hard = config.overload_current * amperes / model.current.scale  # register units
        self._patience = config.overload_time
        self._strained = 0.0  # s

    @property
    def overloaded(self) -> bool:
        """True once the load was too high for too long."""
        return self._strained >= self._patience

    def endure(self, current: float, dt: float) -> None:
        """A current in register units for dt seconds; time without strain counts against time with it."""
        end = self._ambient + self._rise * current * current
        self.temperature = end + (self.temperature - end) * math.exp(-dt / self._time_constant)
        strained = self._strained + (dt if abs(current) >= self._hard else -dt)
        self._strained = min(max(strained, 0.0), self._patience)

    def rest(self) -> None:
        """Forgets the strain, as firmware does when it restarts; the heat stays."""
        self._strained = 0.0


class Servo:
    """One servo as the bus sees it: read and write bytes, get the manual's error numbers back.

    `encoder` counts are absolute over all turns; registers show them shifted by homing offset and lost turns.
    """

    def __init__(self, id: int, model: int, config: FirmwareConfig | None = None, baud_code: int = 3) -> None:
        """As it comes from the factory but for id and baud rate. Raises ValueError for an unknown model."""
        self.config = config or FirmwareConfig()
        self.powered = True
        self.encoder = reg.TICKS_PER_TURN // 2  # ticks over all turns
        self.boot_end = -math.inf  # s
        self._heard = 0.0  # s, the last packet that fed the watchdog
        self._lost_turns = 0  # ticks, a multiple of a turn
        self._registered: tuple[int, bytes] | None = None  # address and data that wait for Action
        self._backup: bytes | None = None  # an EEPROM area
        self._layout = layout(model, self.config.version)
        self._factory = _factory_table(model, self.config.version)
        self._table = bytearray(self._factory)
        self._endurance = Endurance(reg.MODELS[model], self.config)
        self._voltage = reg.MODELS[model].stall[0]  # V, the supply that the model is made for
        self.load(reg.ID, id)
        self.load(reg.BAUD_RATE, baud_code)
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

    @property
    def firmware(self) -> int:
        """The version of the firmware (register 6)."""
        return self._table[reg.FIRMWARE_VERSION.address]

    @property
    def reads_fast(self) -> bool:
        """True when the firmware knows fast sync read and fast bulk read."""
        return self.firmware >= self.config.fast_read_firmware

    @property
    def temperature(self) -> float:
        """Of the case, deg C; register 146 shows it in whole degrees."""
        return self._endurance.temperature

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
        self._table[start : start + register.size] = register.encode(value)

    # --- What the plant tells ------------------------------------------------------------------------------

    def measure(self, encoder: int, velocity: int, current: int, now: float) -> None:
        """Shows the motor's state in the table: encoder in ticks, velocity and current in register units."""
        self.encoder = encoder
        self.load(reg.PRESENT_POSITION, encoder + self.shift)
        self.load(reg.PRESENT_VELOCITY, velocity)
        self.load(reg.PRESENT_CURRENT, current)
        self.load(reg.REALTIME_TICK, realtime_tick(now - max(self.boot_end, 0.0)))
        self.load(reg.MOVING, int(abs(velocity) > self.value(reg.MOVING_THRESHOLD)))

    def endure(self, current: float, dt: float) -> None:
        """Lets a current (register units) flow for dt seconds: it warms, and may overheat or overload.

        Costs 1.3 us, so that a plant may call it in every step that it measures.
        """
        self._endurance.endure(current, dt)
        if self._endurance.overloaded and self.torque:
            self.raise_hardware_error(reg.OVERLOAD)
        self._show_temperature()

    def warm(self, temperature: float) -> None:
        """Makes the case so warm (deg C), from where it cools by itself; overheats it beyond its limit."""
        self._endurance.temperature = temperature
        self._show_temperature()

    def supply(self, voltage: float) -> None:
        """The supply has changed to so many volts: shown in register 144, an error outside the limits."""
        self._voltage = voltage
        self.load(reg.PRESENT_INPUT_VOLTAGE, round(voltage / reg.VOLT_PER_UNIT))
        units = self.value(reg.PRESENT_INPUT_VOLTAGE)
        if not self.value(reg.MIN_VOLTAGE_LIMIT) <= units <= self.value(reg.MAX_VOLTAGE_LIMIT):
            self.raise_hardware_error(reg.VOLTAGE_ERROR)
        elif not self.config.voltage_error_latches:
            self._table[reg.HARDWARE_ERROR_STATUS.address] &= ~reg.VOLTAGE_ERROR

    def raise_hardware_error(self, bits: int) -> None:
        """Latches errors of register 70; those that register 63 names cut the torque until a reboot."""
        self._table[reg.HARDWARE_ERROR_STATUS.address] |= bits
        if bits & self._table[reg.SHUTDOWN.address]:
            self._table[reg.TORQUE_ENABLE.address] = 0

    # --- Reads and writes ----------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the control table; indirect data is followed. Raises AccessError outside the table.

        Gaps between registers read 0, as real servos have it.
        """
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
        error, entries = _split(self._runs(address, data), self._layout)
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

    def register(self, address: int, data: bytes) -> None:
        """Keeps a write for the next Action."""
        self._registered = address, data
        self.load(reg.REGISTERED_INSTRUCTION, 1)

    def registered(self) -> tuple[int, bytes] | None:
        """Address and data that waited for this Action, None if there were none."""
        waiting, self._registered = self._registered, None
        self.load(reg.REGISTERED_INSTRUCTION, 0)
        return waiting

    # --- Watchdog ------------------------------------------------------------------------------------------

    def feed_watchdog(self, now: float) -> None:
        """Counts the watchdog's silence from now on."""
        self._heard = now

    def tick(self, now: float) -> bool:
        """Lets the watchdog look at the time; True when it now stops the motor at its present position."""
        if now < self.watchdog_deadline - 1e-9:
            return False
        self.load(reg.BUS_WATCHDOG, reg.WATCHDOG_TRIPPED)
        self.load(reg.GOAL_POSITION, self.encoder + self.shift)
        if self.config.watchdog_clears_profiles:
            self._unlimit_profiles()
        return True

    # --- Restarts ------------------------------------------------------------------------------------------

    def reboot(self, now: float = -math.inf) -> None:
        """Loses RAM, turns, errors and torque, keeps EEPROM; silent for the boot time.

        A brown-out does the same: nothing in the table tells them apart.
        """
        self._table[_RAM] = self._factory[_RAM]
        self.boot_end = now + self.config.boot_time
        self._start()

    def factory_reset(self, option: int, now: float) -> None:
        """Everything as in the factory but what `FACTORY_RESETS` keeps for this option; then restarts."""
        kept = [(entry, self.value(entry)) for entry in FACTORY_RESETS[option]]
        self._table[_EEPROM] = self._factory[_EEPROM]
        for entry, value in kept:
            self.load(entry, value)
        self.reboot(now)

    def clear_turns(self) -> int:
        """Brings the position back into one turn; returns the error number, Result Fail unless at rest."""
        held = self.torque and self.config.clear_needs_torque_off
        if held or self.value(reg.MOVING):
            return ErrorNumber.RESULT_FAIL
        self._forget_turns()
        return 0

    def back_up(self) -> int:
        """Keeps the EEPROM for `restore`; returns the error number.

        Real servos keep gains, profiles and indirect addresses too, for a start-up that is not modelled.
        """
        if self.torque:
            return ErrorNumber.RESULT_FAIL
        self._backup = bytes(self._table[_EEPROM])
        self.load(reg.BACKUP_READY, 1)
        return 0

    @property
    def restorable(self) -> bool:
        """True when there is a backup, and no torque that forbids to bring it back."""
        return self._backup is not None and not self.torque

    def restore(self, now: float) -> None:
        """Brings the EEPROM of the backup back and restarts."""
        assert self._backup is not None
        self._table[_EEPROM] = self._backup
        self.reboot(now)

    def _start(self) -> None:
        """Power-on: one turn is known, goals stand at the present position and at the limits."""
        self._registered = None
        self._endurance.rest()
        for _, data, count in reg.INDIRECT_BLOCKS:
            self._table[data : data + count] = bytes([self.config.unmapped_indirect_data]) * count
        if self._backup is not None:
            self.load(reg.BACKUP_READY, 1)
        self._reset_control()
        self._forget_turns()
        self._show_temperature()
        self.supply(self._voltage)

    def _show_temperature(self) -> None:
        shown = min(max(round(self._endurance.temperature), 0), 255)
        self._table[reg.PRESENT_TEMPERATURE.address] = shown
        if shown >= self._table[reg.TEMPERATURE_LIMIT.address]:
            self.raise_hardware_error(reg.OVERHEATING)

    def _reset_control(self) -> None:
        """What power-on and another operating mode do: factory gains, speeds and efforts without limit."""
        self._table[_GAINS] = self._factory[_GAINS]
        self._unlimit_profiles()
        self.load(reg.GOAL_PWM, self.value(reg.PWM_LIMIT))
        self.load(reg.GOAL_CURRENT, self.value(reg.CURRENT_LIMIT))

    def _unlimit_profiles(self) -> None:
        self.load(reg.PROFILE_ACCELERATION, 0)
        self.load(reg.PROFILE_VELOCITY, 0)

    def _forget_turns(self) -> None:
        self._lost_turns = self.encoder // reg.TICKS_PER_TURN * reg.TICKS_PER_TURN
        self.load(reg.PRESENT_POSITION, self.encoder + self.shift)
        self.load(reg.GOAL_POSITION, self.encoder + self.shift)

    # --- Inside the table ----------------------------------------------------------------------------------

    def _targets(self, address: int, size: int) -> list[int]:
        """The real address behind each byte of a range."""
        return [self._pointed(byte) for byte in range(address, address + size)]

    def _pointed(self, address: int) -> int:
        for pointers, data, count in reg.INDIRECT_BLOCKS:
            if data <= address < data + count:
                start = pointers + 2 * (address - data)
                return int.from_bytes(self._table[start : start + 2], "little")
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
        address = entry.address
        if address == reg.GOAL_POSITION.address:
            return self._goal_objection(value)
        if self.tripped and (address in _GOALS or (address == reg.BUS_WATCHDOG.address and value)):
            return ErrorNumber.DATA_RANGE_ERROR
        if not entry.allows(value) or value not in _MODELLED.get(address, (value,)):
            return ErrorNumber.DATA_RANGE_ERROR
        if entry.bound and abs(value) > self.value(reg.TABLE[entry.bound]):
            return self.config.limit_error
        if address == reg.TORQUE_ENABLE.address and value and self._shut_down():
            return ErrorNumber.RESULT_FAIL
        return 0

    def _goal_objection(self, ticks: int) -> int:
        if self.tripped or not -MULTI_TURN_LIMIT <= ticks <= MULTI_TURN_LIMIT:
            return ErrorNumber.DATA_RANGE_ERROR
        if self._table[reg.OPERATING_MODE.address] != reg.POSITION_MODE:
            return 0
        (low,) = _INT32.unpack_from(self._table, 52)
        (high,) = _INT32.unpack_from(self._table, 48)
        return 0 if low <= ticks <= high else self.config.limit_error

    def _shut_down(self) -> bool:
        return bool(self.value(reg.HARDWARE_ERROR_STATUS) & self.value(reg.SHUTDOWN))

    def _apply(self, entry: Register, value: int) -> None:
        before = self.value(entry)
        self.load(entry, value)
        match entry.address:
            case reg.OPERATING_MODE.address:
                if value != before:
                    self._reset_control()
                self._forget_turns()
            case reg.HOMING_OFFSET.address:
                self.load(reg.PRESENT_POSITION, self.encoder + self.shift)
            case reg.TORQUE_ENABLE.address:
                if value and not before and self.config.torque_on_seeds_goal:
                    self.load(reg.GOAL_POSITION, self.encoder + self.shift)
            case reg.MIN_VOLTAGE_LIMIT.address | reg.MAX_VOLTAGE_LIMIT.address:
                self.supply(self._voltage)


@cache
def layout(model: int, firmware: int) -> Mapping[int, Register]:
    """The registers of a model and firmware by address. Raises ValueError for an unknown model."""
    return {entry.address: entry for entry in reg.control_table(model, firmware).values()}


@cache
def _factory_table(model: int, firmware: int) -> bytes:
    """All bytes of a control table as the factory leaves it."""
    table = bytearray(TABLE_SIZE)
    for address, entry in layout(model, firmware).items():
        table[address : address + entry.size] = entry.encode(entry.default)
    return bytes(table)


def realtime_tick(running: float) -> int:
    """Register 120 so many seconds after the start: milliseconds that wrap after 32.768 s."""
    return int(max(running, 0.0) * 1000 + 1e-6) % 32768


def _touches_indirect(address: int, size: int) -> bool:
    return any(address < data + count and data < address + size for _, data, count in reg.INDIRECT_BLOCKS)


def _split(
    runs: list[tuple[int, bytes]], known: Mapping[int, Register]
) -> tuple[int, list[tuple[Register, int]]]:
    """The registers and values in contiguous bytes, or the error number of what is no whole register."""
    entries = []
    for start, data in runs:
        offset = 0
        while offset < len(data):
            entry = known.get(start + offset)
            if entry is None:
                return ErrorNumber.ACCESS_ERROR, []
            chunk = data[offset : offset + entry.size]
            if len(chunk) < entry.size:
                return ErrorNumber.DATA_LENGTH_ERROR, []
            entries.append((entry, int.from_bytes(chunk, "little", signed=entry.signed)))
            offset += entry.size
    return 0, entries
