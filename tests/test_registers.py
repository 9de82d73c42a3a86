"""The control table as data: encode and decode are exact inverses over every register's whole range."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot import registers as reg
from robot.registers import MODELS, TABLE, Register, control_table

REGISTERS = sorted(TABLE.values(), key=lambda register: register.address)
ANY_REGISTER = st.sampled_from(REGISTERS)
MEASURED = [register for register in REGISTERS if register.unit]
SMALL = [register for register in REGISTERS if register.size < 4]
# Of each kind one: the 56 indirect addresses differ in nothing but name, place and default.
KINDS = list({(r.size, r.signed, r.minimum, r.maximum, r.choices, r.unit): r for r in SMALL}.values())
VERSIONS = st.tuples(st.sampled_from(sorted(MODELS)), st.integers(38, 60))


def representable(register: Register) -> range:
    bits = 8 * register.size
    return range(-(1 << (bits - 1)), 1 << (bits - 1)) if register.signed else range(1 << bits)


def name(register: Register) -> str:
    return register.name


@pytest.mark.parametrize("register", KINDS, ids=name)
def test_all_values_and_all_bit_patterns_of_small_registers_are_one_to_one(register: Register) -> None:
    values = representable(register)
    patterns = [register.encode(value) for value in values]
    assert sorted(int.from_bytes(pattern, "little") for pattern in patterns) == list(range(len(values)))
    assert [register.decode(pattern) for pattern in patterns] == list(values)
    for beyond in (values[0] - 1, values[-1] + 1):
        with pytest.raises(ValueError, match=register.name):
            register.encode(beyond)


@given(register=ANY_REGISTER, data=st.data())
def test_every_value_survives_the_wire(register: Register, data: st.DataObject) -> None:
    values = representable(register)
    value = data.draw(st.integers(values[0], values[-1]))
    raw = register.encode(value)
    assert register.decode(raw) == value
    assert int.from_bytes(raw, "little", signed=register.signed) == value


@given(register=ANY_REGISTER, data=st.data())
def test_every_bit_pattern_means_one_value(register: Register, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=register.size, max_size=register.size))
    assert register.encode(register.decode(raw)) == raw


@given(register=ANY_REGISTER, beyond=st.integers(1, 1 << 40), below=st.booleans())
def test_what_does_not_fit_is_refused_by_name(register: Register, beyond: int, below: bool) -> None:
    values = representable(register)
    with pytest.raises(ValueError, match=register.name):
        register.encode(values[0] - beyond if below else values[-1] + beyond)


# --- SI units ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("register", [kind for kind in KINDS if kind.unit], ids=name)
def test_all_values_of_small_registers_come_back_from_si_units(register: Register) -> None:
    allowed = range(register.low, register.high + 1)
    assert [register.from_si(register.to_si(value)) for value in allowed] == list(allowed)


@given(register=st.sampled_from(MEASURED), data=st.data())
def test_a_quantity_comes_back_within_half_a_unit(register: Register, data: st.DataObject) -> None:
    assert register.unit is not None
    quantity = data.draw(st.floats(register.to_si(register.low), register.to_si(register.high)))
    error = register.to_si(register.from_si(quantity)) - quantity
    assert abs(error) <= register.unit.scale * (0.5 + 1e-6)


@given(register=st.sampled_from(MEASURED), units=st.floats(0.51, 1e6), below=st.booleans())
def test_a_quantity_beyond_the_manuals_range_is_refused(
    register: Register, units: float, below: bool
) -> None:
    assert register.unit is not None
    end, sign = (register.low, -1) if below else (register.high, 1)
    with pytest.raises(ValueError, match=rf"{register.name} takes .* {register.unit.name}, got"):
        register.from_si(register.to_si(end) + sign * units * register.unit.scale)


@pytest.mark.parametrize("quantity", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(quantity: float) -> None:
    with pytest.raises(ValueError, match="goal_position takes a finite number"):
        reg.GOAL_POSITION.from_si(quantity)


def test_a_register_of_flags_has_no_unit() -> None:
    with pytest.raises(ValueError, match="drive_mode is a code or a set of flags"):
        reg.DRIVE_MODE.to_si(1)
    with pytest.raises(ValueError, match="drive_mode"):
        reg.DRIVE_MODE.from_si(1.0)


def test_rounding_goes_to_the_nearest_where_others_truncate() -> None:
    assert reg.GOAL_POSITION.from_si(-1.6 * reg.RAD_PER_TICK) == -2
    assert reg.GOAL_POSITION.from_si(1.6 * reg.RAD_PER_TICK) == 2


@pytest.mark.parametrize(("value", "raw"), [(-1, 0xFFFF_FFFF), (-2, 0xFFFF_FFFE), (-100, 0xFFFF_FF9C)])
def test_negative_goals_are_exact_where_robel_was_off_by_one(value: int, raw: int) -> None:
    assert reg.GOAL_POSITION.encode(value) == raw.to_bytes(4, "little")
    assert reg.PRESENT_POSITION.decode(raw.to_bytes(4, "little")) == value


def test_registers_do_not_overlap() -> None:
    for before, after in itertools.pairwise(REGISTERS):
        assert before.address + before.size <= after.address, f"{before.name} reaches into {after.name}"


@given(VERSIONS)
def test_factory_values_lie_within_their_own_limits(version: tuple[int, int]) -> None:
    for register in control_table(*version).values():
        assert register.allows(register.default), register
        assert register.low in representable(register)
        assert register.high in representable(register)


# --- Models and firmware -----------------------------------------------------------------------------------


@given(VERSIONS)
def test_models_differ_in_values_never_in_places(version: tuple[int, int]) -> None:
    for key, register in control_table(*version).items():
        base = TABLE[key]
        assert (register.name, register.address, register.size) == (key, base.address, base.size)
        assert (register.signed, register.writable) == (base.signed, base.writable)


def test_the_constants_are_those_of_the_claws_servo() -> None:
    assert {**control_table(1010, 45), "model_number": 0, "firmware_version": 0} == {
        **{key: entry for key, entry in TABLE.items() if key != "acceleration_limit"},
        "model_number": 0,
        "firmware_version": 0,
    }


@pytest.mark.parametrize(
    ("model", "milliamperes", "current", "velocity", "gain", "volts"),
    [
        (1000, 2.69, 648, 130, 900, (9.5, 16)),
        (1010, 2.69, 648, 210, 900, (9.5, 16)),
        (1020, 2.69, 1193, 200, 800, (9.5, 16)),
        (1030, 2.69, 1193, 330, 800, (9.5, 16)),
        (1040, 1.34, 689, 135, 800, (11, 30)),
        (1050, 1.34, 689, 227, 800, (11, 30)),
    ],
)
def test_each_model_has_the_manuals_factory_values(
    model: int, milliamperes: float, current: int, velocity: int, gain: int, volts: tuple[float, float]
) -> None:
    table = control_table(model, 45)
    for key in ("current_limit", "goal_current", "present_current"):
        assert table[key].to_si(1000) == pytest.approx(milliamperes)
    assert (table["current_limit"].default, table["current_limit"].high) == (current, current)
    assert (table["velocity_limit"].default, table["position_p_gain"].default) == (velocity, gain)
    for key, volt in zip(("min_voltage_limit", "max_voltage_limit"), volts, strict=True):
        assert table[key].to_si(table[key].default) == pytest.approx(volt)


@pytest.mark.parametrize(
    ("firmware", "present", "drive_modes", "velocity"),
    [
        (41, {"acceleration_limit"}, (0, 1), 350),
        (42, set(), (0, 1, 4, 5), 200),
        (44, set(), (0, 1, 4, 5), 200),
        (45, {"startup_configuration", "backup_ready"}, (0, 1, 4, 5, 8, 9, 12, 13), 200),
    ],
)
def test_each_firmware_has_what_the_manual_gives_it(
    firmware: int, present: set[str], drive_modes: tuple[int, ...], velocity: int
) -> None:
    table = control_table(1020, firmware)
    assert {"acceleration_limit", "startup_configuration", "backup_ready"} & {*table} == present
    assert table["drive_mode"].choices == drive_modes
    assert table["velocity_limit"].default == velocity


def test_firmware_38_brought_the_watchdog_and_drive_modes() -> None:
    assert {*control_table(1020, 38)} - {*control_table(1020, 37)} == {"bus_watchdog", "drive_mode"}


def test_a_servo_of_another_family_has_no_table_here() -> None:
    with pytest.raises(
        ValueError, match=r"no control table for model number 12; there are 1000 \(XH430-W350\)"
    ):
        control_table(12, 45)


def test_operating_modes_between_the_manuals_are_none() -> None:
    assert [mode for mode in range(20) if reg.OPERATING_MODE.allows(mode)] == [0, 1, 3, 4, 5, 16]


def test_indirect_addresses_point_at_their_own_data_in_the_factory() -> None:
    assert len(reg.INDIRECT_ADDRESSES) == len(reg.INDIRECT_DATA) == 56
    for pointer, data in zip(reg.INDIRECT_ADDRESSES, reg.INDIRECT_DATA, strict=True):
        assert pointer.default == data.address
    assert (reg.INDIRECT_ADDRESSES[28].address, reg.INDIRECT_DATA[28].address) == (578, 634)


def test_what_a_driver_reads_in_every_cycle_fits_into_the_first_indirect_block() -> None:
    assert sum(register.size for register in reg.CYCLE) == 16
    assert reg.CYCLE[:3] == (reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION)


def test_the_cycle_block_is_adjacent_so_that_one_packet_reads_it() -> None:
    current, velocity, position = reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION
    assert current.address + current.size == velocity.address
    assert velocity.address + velocity.size == position.address


def test_only_the_area_below_64_is_eeprom() -> None:
    assert reg.SHUTDOWN.eeprom
    assert reg.OPERATING_MODE.eeprom
    assert not reg.TORQUE_ENABLE.eeprom


def test_units_are_the_manuals() -> None:
    assert pytest.approx(0.0879, abs=1e-4) == math.degrees(reg.RAD_PER_TICK)
    assert pytest.approx(0.0239808, abs=1e-6) == reg.RAD_PER_S_PER_UNIT
    assert set(reg.AMPERE_PER_UNIT) == set(reg.MODEL_NAMES)


@pytest.mark.parametrize(
    ("servo", "name"),
    [
        (10, "servo 10 (finger 1, proximal)"),
        (21, "servo 21 (finger 2, middle)"),
        (12, "servo 12 (finger 1, distal)"),
        (50, "servo 50 (valve)"),
        (60, "servo 60 (goal pointer)"),
        (13, "servo 13"),
        (1, "servo 1"),
    ],
)
def test_messages_tell_where_a_servo_sits(servo: int, name: str) -> None:
    assert reg.servo_name(servo) == name


def test_hardware_errors_are_told_in_words() -> None:
    assert reg.describe_hardware_error(0x20) == "overload (0x20)"
    assert reg.describe_hardware_error(0x24) == "overheating + overload (0x24)"
    assert reg.describe_hardware_error(0x40) == "an unnamed error (0x40)"


@given(st.floats(0.001, 2.54))
def test_the_watchdog_waits_at_least_as_long_as_asked_and_at_most_one_unit_longer(seconds: float) -> None:
    units = reg.watchdog_units(seconds)
    assert seconds - 1e-6 <= units * reg.WATCHDOG_UNIT < seconds + reg.WATCHDOG_UNIT + 1e-6


def test_watchdog_units_of_round_numbers_are_round() -> None:
    assert [reg.watchdog_units(seconds) for seconds in (0.1, 0.14, 0.3, 2.54)] == [5, 7, 15, 127]


@pytest.mark.parametrize("seconds", [0.0, -1.0, 2.6])
def test_a_watchdog_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="watchdog"):
        reg.watchdog_units(seconds)
