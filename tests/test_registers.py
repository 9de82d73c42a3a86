"""The control table as data: encode and decode are exact inverses over every register's whole range."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot import registers as reg
from robot.registers import TABLE, Register

REGISTERS = sorted(TABLE.values(), key=lambda register: register.address)
ANY_REGISTER = st.sampled_from(REGISTERS)


def representable(register: Register) -> tuple[int, int]:
    bits = 8 * register.size
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if register.signed else (0, (1 << bits) - 1)


@given(register=ANY_REGISTER, data=st.data())
def test_every_value_survives_the_wire(register: Register, data: st.DataObject) -> None:
    value = data.draw(st.integers(*representable(register)))
    raw = register.encode(value).to_bytes(register.size, "little")
    assert register.decode(int.from_bytes(raw, "little")) == value
    assert int.from_bytes(raw, "little", signed=register.signed) == value


@given(register=ANY_REGISTER, data=st.data())
def test_every_bit_pattern_means_one_value(register: Register, data: st.DataObject) -> None:
    raw = data.draw(st.integers(0, (1 << 8 * register.size) - 1))
    assert register.encode(register.decode(raw)) == raw


@given(register=ANY_REGISTER, beyond=st.integers(1, 1 << 40), below=st.booleans())
def test_what_does_not_fit_is_refused_by_name(register: Register, beyond: int, below: bool) -> None:
    low, high = representable(register)
    with pytest.raises(ValueError, match=register.name):
        register.encode(low - beyond if below else high + beyond)


@pytest.mark.parametrize(("value", "raw"), [(-1, 0xFFFF_FFFF), (-2, 0xFFFF_FFFE), (-100, 0xFFFF_FF9C)])
def test_negative_goals_are_exact_where_robel_was_off_by_one(value: int, raw: int) -> None:
    assert reg.GOAL_POSITION.encode(value) == raw
    assert reg.PRESENT_POSITION.decode(raw) == value


def test_registers_do_not_overlap() -> None:
    for before, after in itertools.pairwise(REGISTERS):
        assert before.address + before.size <= after.address, f"{before.name} reaches into {after.name}"


def test_defaults_lie_within_their_own_limits() -> None:
    for register in REGISTERS:
        low, high = representable(register)
        assert (register.minimum if register.minimum is not None else low) <= register.default
        assert register.default <= (register.maximum if register.maximum is not None else high)


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
