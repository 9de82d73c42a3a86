"""What a Dynamixel servo promises on the wire, checked on the firmware model."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot import registers as reg
from robot.protocol import ErrorNumber
from robot.registers import MODELS, TABLE_SIZE, Register
from robot.servo import AccessError, FirmwareConfig, Servo, layout, realtime_tick

OVERLOAD, VOLTAGE = 0x20, 0x01
LAYOUT = layout(1010, 45)
BOOT_TIME = FirmwareConfig().boot_time
STALL = 1.3 / 2.69e-3  # register units, of an XH430-W210


@pytest.fixture
def servo() -> Servo:
    return Servo(12, 1010)


def put(servo: Servo, register: Register, value: int, now: float = 0.0) -> int:
    return servo.write(register.address, register.encode(value), now)


def get(servo: Servo, register: Register) -> int:
    return register.decode(servo.read(register.address, register.size))


def armed(servo: Servo, units: int, now: float = 0.0) -> Servo:
    assert put(servo, reg.TORQUE_ENABLE, 1, now) == 0
    assert put(servo, reg.BUS_WATCHDOG, units, now) == 0
    return servo


def test_new_servo_has_factory_values_of_its_model() -> None:
    servo = Servo(21, 1030, FirmwareConfig(version=48), baud_code=1)
    expected = {
        reg.MODEL_NUMBER: 1030,
        reg.FIRMWARE_VERSION: 48,
        reg.ID: 21,
        reg.BAUD_RATE: 1,
        reg.RETURN_DELAY_TIME: 250,
        reg.OPERATING_MODE: 3,
        reg.CURRENT_LIMIT: 1193,
        reg.VELOCITY_LIMIT: 330,
        reg.MAX_POSITION_LIMIT: 4095,
        reg.POSITION_P_GAIN: 800,
        reg.SHUTDOWN: 0x34,
        reg.TORQUE_ENABLE: 0,
        reg.PRESENT_POSITION: 2048,
        reg.GOAL_POSITION: 2048,
        reg.PRESENT_INPUT_VOLTAGE: 120,
    }
    assert {entry: get(servo, entry) for entry in expected} == expected


def test_registers_of_the_table_do_not_overlap() -> None:
    spans = sorted((entry.address, entry.address + entry.size) for entry in LAYOUT.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@given(st.sampled_from(sorted(LAYOUT)), st.binary(min_size=1, max_size=4), st.booleans())
def test_accepted_write_reads_back_and_refused_write_changes_nothing(
    address: int, data: bytes, torque: bool
) -> None:
    servo = Servo(12, 1010)
    put(servo, reg.TORQUE_ENABLE, torque)
    before = servo.read(0, TABLE_SIZE)
    error = servo.write(address, data, 0.0)
    if error == 0:
        assert servo.read(address, len(data)) == data
    else:
        assert servo.read(0, TABLE_SIZE) == before


def test_eeprom_is_locked_while_torque_is_on(servo: Servo) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    assert put(servo, reg.RETURN_DELAY_TIME, 0) == ErrorNumber.ACCESS_ERROR
    assert get(servo, reg.RETURN_DELAY_TIME) == 250
    put(servo, reg.TORQUE_ENABLE, 0)
    assert put(servo, reg.RETURN_DELAY_TIME, 0) == 0


def test_read_only_registers_refuse_writes(servo: Servo) -> None:
    assert put(servo, reg.PRESENT_POSITION, 0) == ErrorNumber.ACCESS_ERROR
    assert put(servo, reg.MODEL_NUMBER, 7) == ErrorNumber.ACCESS_ERROR


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (reg.TORQUE_ENABLE, 2),
        (reg.BUS_WATCHDOG, 128),
        (reg.OPERATING_MODE, 1),
        (reg.DRIVE_MODE, 1),
        (reg.GOAL_CURRENT, -649),
        (reg.CURRENT_LIMIT, 649),
        (reg.STARTUP_CONFIGURATION, 1),
        (reg.HOMING_OFFSET, -1_044_480),
    ],
)
def test_values_out_of_range_are_refused(servo: Servo, register: Register, value: int) -> None:
    assert put(servo, register, value) == ErrorNumber.DATA_RANGE_ERROR


@pytest.mark.parametrize(("goal", "error"), [(999, 4), (1000, 0), (3000, 0), (3001, 4)])
def test_position_mode_refuses_goals_outside_its_limits(servo: Servo, goal: int, error: int) -> None:
    put(servo, reg.MIN_POSITION_LIMIT, 1000)
    put(servo, reg.MAX_POSITION_LIMIT, 3000)
    assert put(servo, reg.GOAL_POSITION, goal) == error


@pytest.mark.parametrize("mode", [4, 5])
def test_multi_turn_modes_take_goals_over_many_turns(servo: Servo, mode: int) -> None:
    assert put(servo, reg.OPERATING_MODE, mode) == 0
    assert put(servo, reg.GOAL_POSITION, -1_048_575) == 0
    assert put(servo, reg.GOAL_POSITION, 1_048_576) == ErrorNumber.DATA_RANGE_ERROR


@given(st.integers(-(1 << 31), (1 << 31) - 1), st.sampled_from([3, 4, 5]), st.booleans())
def test_fast_goal_write_agrees_with_byte_write(ticks: int, mode: int, tripped: bool) -> None:
    one, other = Servo(12, 1010), Servo(12, 1010)
    for servo in (one, other):
        put(servo, reg.OPERATING_MODE, mode)
        if tripped:
            armed(servo, 5).tick(1.0)
    assert one.write_goal(ticks, 2.0) == put(other, reg.GOAL_POSITION, ticks, 2.0)
    assert one.read(0, TABLE_SIZE) == other.read(0, TABLE_SIZE)
    assert one.watchdog_deadline == other.watchdog_deadline


def test_another_operating_mode_forgets_gains_profile_and_goal_current(servo: Servo) -> None:
    """e-Manual, Operating Mode: gains are reset, profiles to 0 (no limit), goal PWM and current to limits."""
    put(servo, reg.POSITION_P_GAIN, 400)
    put(servo, reg.PROFILE_VELOCITY, 50)
    put(servo, reg.GOAL_CURRENT, 7)
    put(servo, reg.OPERATING_MODE, 3)
    assert get(servo, reg.PROFILE_VELOCITY) == 50
    put(servo, reg.OPERATING_MODE, 4)
    assert (get(servo, reg.PROFILE_VELOCITY), get(servo, reg.POSITION_P_GAIN)) == (0, 900)
    assert get(servo, reg.GOAL_CURRENT) == get(servo, reg.CURRENT_LIMIT)


def test_write_of_half_a_register_is_a_length_error(servo: Servo) -> None:
    assert servo.write(reg.GOAL_POSITION.address, b"\x00\x08", 0.0) == ErrorNumber.DATA_LENGTH_ERROR
    assert servo.write(reg.GOAL_POSITION.address + 1, b"\x08", 0.0) == ErrorNumber.ACCESS_ERROR


def test_one_write_spans_neighbouring_registers_all_or_none(servo: Servo) -> None:
    profile = (50).to_bytes(4, "little")
    assert servo.write(112, profile + (9999).to_bytes(4, "little"), 0.0) == ErrorNumber.DATA_RANGE_ERROR
    assert get(servo, reg.PROFILE_VELOCITY) == 0
    assert servo.write(112, profile + (3000).to_bytes(4, "little"), 0.0) == 0
    assert (get(servo, reg.PROFILE_VELOCITY), get(servo, reg.GOAL_POSITION)) == (50, 3000)


@pytest.mark.parametrize(("address", "size"), [(-1, 1), (TABLE_SIZE, 1), (TABLE_SIZE - 1, 2), (10, 0)])
def test_access_outside_the_table_is_an_access_error(servo: Servo, address: int, size: int) -> None:
    with pytest.raises(AccessError, match="access error") as caught:
        servo.read(address, size)
    assert caught.value.number == ErrorNumber.ACCESS_ERROR
    assert servo.write(address, bytes(size), 0.0) == ErrorNumber.ACCESS_ERROR


def test_watchdog_needs_torque_and_silence_to_trip(servo: Servo) -> None:
    put(servo, reg.BUS_WATCHDOG, 10)
    assert servo.watchdog_deadline == math.inf
    assert not servo.tick(100.0)
    put(servo, reg.TORQUE_ENABLE, 1, now=100.0)
    assert servo.watchdog_deadline == pytest.approx(100.2)
    servo.feed_watchdog(100.15)
    assert not servo.tick(100.3)
    assert servo.tick(100.35)


def test_tripped_watchdog_holds_and_refuses_goals_until_zero_is_written(servo: Servo) -> None:
    armed(servo, 10)
    put(servo, reg.GOAL_POSITION, 3000)
    servo.measure(2500, 20, 5, 0.2)
    assert servo.tick(0.2)
    assert get(servo, reg.BUS_WATCHDOG) == reg.WATCHDOG_TRIPPED
    assert get(servo, reg.GOAL_POSITION) == 2500
    assert servo.torque
    assert put(servo, reg.GOAL_POSITION, 2600) == ErrorNumber.DATA_RANGE_ERROR
    assert put(servo, reg.BUS_WATCHDOG, 10) == ErrorNumber.DATA_RANGE_ERROR
    assert put(servo, reg.BUS_WATCHDOG, 0) == 0
    assert put(servo, reg.GOAL_POSITION, 2600) == 0
    assert not servo.tick(100.0)


def test_shutdown_error_cuts_torque_until_reboot(servo: Servo) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    servo.raise_hardware_error(OVERLOAD)
    assert servo.alert
    assert not servo.torque
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == OVERLOAD
    assert put(servo, reg.TORQUE_ENABLE, 1) == ErrorNumber.RESULT_FAIL
    servo.reboot(1.0)
    assert not servo.alert
    assert put(servo, reg.TORQUE_ENABLE, 1) == 0


def test_error_outside_the_shutdown_mask_only_alerts(servo: Servo) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    servo.raise_hardware_error(VOLTAGE)
    assert servo.alert
    assert servo.torque


def test_reboot_keeps_eeprom_loses_ram_and_is_silent_for_a_while(servo: Servo) -> None:
    put(servo, reg.RETURN_DELAY_TIME, 0)
    armed(servo, 10)
    put(servo, reg.POSITION_P_GAIN, 400)
    servo.write(168, (126).to_bytes(2, "little"), 0.0)
    servo.reboot(5.0)
    assert not servo.answers(5.0 + BOOT_TIME - 1e-3)
    assert servo.answers(5.0 + BOOT_TIME)
    assert get(servo, reg.RETURN_DELAY_TIME) == 0
    assert (get(servo, reg.BUS_WATCHDOG), get(servo, reg.TORQUE_ENABLE)) == (0, 0)
    assert get(servo, reg.POSITION_P_GAIN) == 900
    assert servo.read(168, 2) == (224).to_bytes(2, "little")


def test_servo_without_power_does_not_answer(servo: Servo) -> None:
    assert servo.answers(0.0)
    servo.powered = False
    assert not servo.answers(10.0)


def test_turns_are_lost_at_reboot_and_goal_stands_at_present() -> None:
    servo = Servo(50, 1010)
    put(servo, reg.OPERATING_MODE, 4)
    servo.measure(2048 - 3 * 4096, 0, 0, 0.0)
    assert get(servo, reg.PRESENT_POSITION) == 2048 - 3 * 4096
    servo.reboot(1.0)
    assert get(servo, reg.PRESENT_POSITION) == 2048
    assert get(servo, reg.GOAL_POSITION) == 2048


def test_homing_offset_shifts_present_position(servo: Servo) -> None:
    put(servo, reg.HOMING_OFFSET, -100)
    assert get(servo, reg.PRESENT_POSITION) == 1948
    servo.measure(2100, 0, 0, 0.0)
    assert get(servo, reg.PRESENT_POSITION) == 2000


def test_negative_measurements_are_exact_twos_complement(servo: Servo) -> None:
    servo.measure(-1, -1, -100, 0.0)
    assert servo.read(126, 10) == b"\x9c\xff" + b"\xff" * 4 + b"\xff" * 4


def test_moving_flag_follows_the_threshold(servo: Servo) -> None:
    servo.measure(2048, 10, 0, 0.0)
    assert get(servo, reg.MOVING) == 0
    servo.measure(2048, -11, 0, 0.0)
    assert get(servo, reg.MOVING) == 1


def test_realtime_tick_wraps_like_the_register() -> None:
    assert realtime_tick(1.5) == 1500
    assert realtime_tick(32.767) == 32767
    assert realtime_tick(32.768) == 0


def test_indirect_data_reads_scattered_registers_in_one_go(servo: Servo) -> None:
    sources = [*range(126, 136), 64, 70, 98, 146]
    for index, source in enumerate(sources):
        assert servo.write(168 + 2 * index, source.to_bytes(2, "little"), 0.0) == 0
    servo.measure(3000, 7, -5, 0.0)
    armed(servo, 10)
    data = servo.read(224, len(sources))
    assert data[:10] == servo.read(126, 10)
    assert list(data[10:]) == [1, 0, 10, 30]


def test_indirect_write_obeys_the_rules_of_its_target(servo: Servo) -> None:
    for index in range(4):
        servo.write(578 + 2 * index, (116 + index).to_bytes(2, "little"), 0.0)
    assert servo.write(634, (3000).to_bytes(4, "little"), 0.0) == 0
    assert get(servo, reg.GOAL_POSITION) == 3000
    assert servo.write(634, (5000).to_bytes(4, "little"), 0.0) == ErrorNumber.DATA_RANGE_ERROR


def test_indirect_data_that_points_at_itself_is_plain_memory(servo: Servo) -> None:
    assert servo.write(224, b"\x05\x06", 0.0) == 0
    assert servo.read(224, 2) == b"\x05\x06"


# --- What only hardware can tell ---------------------------------------------------------------------------


def test_goals_beyond_a_limit_register_are_refused_as_configured() -> None:
    servo = Servo(12, 1010, FirmwareConfig(limit_error=6))
    assert put(servo, reg.GOAL_POSITION, 4096) == ErrorNumber.DATA_LIMIT_ERROR
    assert servo.write_goal(-1, 0.0) == ErrorNumber.DATA_LIMIT_ERROR
    assert put(servo, reg.GOAL_CURRENT, 649) == ErrorNumber.DATA_LIMIT_ERROR
    assert put(servo, reg.PROFILE_VELOCITY, 32768) == ErrorNumber.DATA_RANGE_ERROR


@pytest.mark.parametrize(("seeds", "goal"), [(False, 3000), (True, 2500)])
def test_torque_on_seeds_the_goal_only_if_so_configured(seeds: bool, goal: int) -> None:
    servo = Servo(12, 1010, FirmwareConfig(torque_on_seeds_goal=seeds))
    put(servo, reg.GOAL_POSITION, 3000)
    servo.measure(2500, 0, 0, 0.0)
    put(servo, reg.TORQUE_ENABLE, 1)
    assert get(servo, reg.GOAL_POSITION) == goal


@pytest.mark.parametrize(("clears", "velocity"), [(False, 50), (True, 0)])
def test_tripped_watchdog_clears_profiles_only_if_so_configured(clears: bool, velocity: int) -> None:
    servo = armed(Servo(12, 1010, FirmwareConfig(watchdog_clears_profiles=clears)), 10)
    put(servo, reg.PROFILE_VELOCITY, 50)
    assert servo.tick(1.0)
    assert get(servo, reg.PROFILE_VELOCITY) == velocity


def test_unmapped_indirect_data_reads_as_configured_after_a_restart() -> None:
    servo = Servo(12, 1010, FirmwareConfig(unmapped_indirect_data=7))
    servo.write(168, (126).to_bytes(2, "little"), 0.0)
    servo.reboot(1.0)
    assert servo.read(224, 28) + servo.read(634, 28) == bytes([7]) * 56


def test_old_firmware_lacks_what_came_later() -> None:
    old, new = (Servo(12, 1010, FirmwareConfig(version=version)) for version in (44, 45))
    assert put(old, reg.STARTUP_CONFIGURATION, 0) == ErrorNumber.ACCESS_ERROR
    assert put(new, reg.STARTUP_CONFIGURATION, 0) == 0
    assert (old.reads_fast, new.reads_fast) == (False, True)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model_starts_healthy_at_its_own_supply(model: int) -> None:
    servo = Servo(12, model)
    assert not servo.alert
    assert get(servo, reg.PRESENT_INPUT_VOLTAGE) == (240 if model in (1040, 1050) else 120)


# --- Supply ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("volts", "error"), [(9.4, VOLTAGE), (9.5, 0), (16.0, 0), (16.1, VOLTAGE)])
def test_voltage_outside_its_limits_is_an_error_that_leaves_the_torque(
    servo: Servo, volts: float, error: int
) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    servo.supply(volts)
    assert get(servo, reg.PRESENT_INPUT_VOLTAGE) == round(volts * 10)
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == error
    assert servo.torque


def test_voltage_error_cuts_the_torque_when_shutdown_names_it(servo: Servo) -> None:
    put(servo, reg.SHUTDOWN, 0x35)
    put(servo, reg.TORQUE_ENABLE, 1)
    servo.supply(8.0)
    assert not servo.torque
    assert put(servo, reg.TORQUE_ENABLE, 1) == ErrorNumber.RESULT_FAIL


@pytest.mark.parametrize(("latches", "error"), [(True, VOLTAGE), (False, 0)])
def test_voltage_error_outlives_its_cause_only_if_so_configured(latches: bool, error: int) -> None:
    servo = Servo(12, 1010, FirmwareConfig(voltage_error_latches=latches))
    servo.supply(8.0)
    servo.raise_hardware_error(OVERLOAD)
    servo.supply(12.0)
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == OVERLOAD | error


def test_reboot_under_a_bad_supply_reports_it_again(servo: Servo) -> None:
    servo.supply(8.0)
    servo.reboot(1.0)
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == VOLTAGE
    servo.supply(12.0)
    servo.reboot(2.0)
    assert not servo.alert


def test_narrower_voltage_limits_are_held_against_the_supply_at_once(servo: Servo) -> None:
    assert put(servo, reg.MIN_VOLTAGE_LIMIT, 125) == 0
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == VOLTAGE


def test_brown_out_leaves_no_error_but_a_clock_that_starts_anew(servo: Servo) -> None:
    armed(servo, 10)
    servo.measure(2048, 0, 0, 9.0)
    assert get(servo, reg.REALTIME_TICK) == 9000
    servo.reboot(9.0)
    servo.measure(2048, 0, 0, 9.0 + BOOT_TIME + 0.005)
    assert get(servo, reg.REALTIME_TICK) == 5
    assert (servo.alert, servo.torque, get(servo, reg.BUS_WATCHDOG)) == (False, False, 0)


# --- Heat and load -----------------------------------------------------------------------------------------


def test_idle_servo_stays_at_room_temperature(servo: Servo) -> None:
    servo.endure(0.0, 1e4)
    assert get(servo, reg.PRESENT_TEMPERATURE) == 30


@given(st.floats(0, 648), st.integers(1, 50))
def test_heat_does_not_depend_on_how_time_is_cut(current: float, steps: int) -> None:
    once, often = Servo(12, 1010), Servo(12, 1010)
    once.endure(current, 100.0)
    for _ in range(steps):
        often.endure(-current, 100.0 / steps)
    assert often.temperature == pytest.approx(once.temperature)


def test_stall_overheats_within_minutes_and_shutdown_cuts_the_torque(servo: Servo) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    seconds = 0
    while not get(servo, reg.HARDWARE_ERROR_STATUS) & reg.OVERHEATING:
        servo.endure(0.79 * STALL, 1.0)  # just not an overload
        seconds += 1
    assert 120 < seconds < 900
    assert get(servo, reg.PRESENT_TEMPERATURE) == 80
    assert not servo.torque


def test_overheated_servo_is_still_hot_after_a_reboot_and_cools_in_minutes(servo: Servo) -> None:
    servo.warm(85.0)
    servo.reboot(1.0)
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == reg.OVERHEATING
    servo.endure(0.0, 1200.0)
    assert servo.alert  # latched
    servo.reboot(2.0)
    assert not servo.alert
    assert 30 < servo.temperature < 40


@pytest.mark.parametrize("limit", [50, 70])
def test_temperature_limit_register_decides_what_is_too_hot(servo: Servo, limit: int) -> None:
    put(servo, reg.TEMPERATURE_LIMIT, limit)
    servo.warm(limit - 0.6)
    assert not servo.alert
    servo.warm(limit)
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == reg.OVERHEATING


@pytest.mark.parametrize(("load", "trips"), [(0.79, False), (0.81, True), (-0.81, True)])
def test_only_a_load_near_stall_trips_the_overload(servo: Servo, load: float, trips: bool) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    for _ in range(101):
        servo.endure(load * STALL, 0.05)
    assert servo.torque is not trips
    assert bool(get(servo, reg.HARDWARE_ERROR_STATUS) & OVERLOAD) is trips


def test_short_strains_with_equal_rests_never_trip(servo: Servo) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    for _ in range(20):
        servo.endure(STALL, 4.0)
        servo.endure(0.0, 4.0)
    assert not get(servo, reg.HARDWARE_ERROR_STATUS) & OVERLOAD


def test_rebooted_servo_may_strain_anew_before_it_trips(servo: Servo) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    servo.endure(STALL, 5.0)
    assert get(servo, reg.HARDWARE_ERROR_STATUS) == OVERLOAD
    servo.reboot(1.0)
    put(servo, reg.TORQUE_ENABLE, 1)
    servo.endure(STALL, 4.9)
    assert not servo.alert
    servo.endure(STALL, 0.2)
    assert servo.alert


def test_current_limit_at_half_of_stall_never_overloads(servo: Servo) -> None:
    put(servo, reg.TORQUE_ENABLE, 1)
    servo.endure(0.5 * STALL, 3600.0)
    assert not servo.alert


# --- Factory reset, clear, backup, registered writes -------------------------------------------------------


@pytest.mark.parametrize(("option", "id", "baud"), [(0xFF, 1, 1), (0x01, 12, 1), (0x02, 12, 3)])
def test_factory_reset_keeps_what_its_option_names_and_restarts(
    servo: Servo, option: int, id: int, baud: int
) -> None:
    put(servo, reg.RETURN_DELAY_TIME, 0)
    put(servo, reg.HOMING_OFFSET, -100)
    armed(servo, 10)
    servo.factory_reset(option, 5.0)
    assert (servo.id, get(servo, reg.BAUD_RATE)) == (id, baud)
    assert (get(servo, reg.RETURN_DELAY_TIME), get(servo, reg.HOMING_OFFSET)) == (250, 0)
    assert not servo.torque
    assert not servo.answers(5.0)
    assert (get(servo, reg.MODEL_NUMBER), get(servo, reg.FIRMWARE_VERSION)) == (1010, 45)


def test_clear_takes_whole_turns_off_and_only_at_rest(servo: Servo) -> None:
    put(servo, reg.OPERATING_MODE, 4)
    servo.measure(3 * 4096 + 100, 50, 0, 0.0)
    assert servo.clear_turns() == ErrorNumber.RESULT_FAIL  # moving
    servo.measure(3 * 4096 + 100, 0, 0, 0.1)
    put(servo, reg.TORQUE_ENABLE, 1)
    assert servo.clear_turns() == ErrorNumber.RESULT_FAIL  # held
    put(servo, reg.TORQUE_ENABLE, 0)
    assert servo.clear_turns() == 0
    assert (get(servo, reg.PRESENT_POSITION), get(servo, reg.GOAL_POSITION)) == (100, 100)


def test_clear_under_torque_is_allowed_if_so_configured() -> None:
    servo = Servo(12, 1010, FirmwareConfig(clear_needs_torque_off=False))
    servo.measure(3 * 4096 + 100, 0, 0, 0.0)
    put(servo, reg.TORQUE_ENABLE, 1)
    assert servo.clear_turns() == 0


def test_backup_brings_the_eeprom_back(servo: Servo) -> None:
    assert not servo.restorable
    put(servo, reg.RETURN_DELAY_TIME, 0)
    assert servo.back_up() == 0
    assert get(servo, reg.BACKUP_READY) == 1
    put(servo, reg.RETURN_DELAY_TIME, 99)
    put(servo, reg.POSITION_P_GAIN, 1)
    servo.restore(1.0)
    assert (get(servo, reg.RETURN_DELAY_TIME), get(servo, reg.POSITION_P_GAIN)) == (0, 900)
    assert get(servo, reg.BACKUP_READY) == 1
    assert not servo.answers(1.0)
    put(servo, reg.TORQUE_ENABLE, 1)
    assert servo.back_up() == ErrorNumber.RESULT_FAIL
    assert not servo.restorable


def test_registered_write_waits_once_and_a_restart_forgets_it(servo: Servo) -> None:
    servo.register(112, b"\x07\0\0\0")
    assert get(servo, reg.REGISTERED_INSTRUCTION) == 1
    assert servo.registered() == (112, b"\x07\0\0\0")
    assert servo.registered() is None
    assert get(servo, reg.REGISTERED_INSTRUCTION) == 0
    servo.register(112, b"\x07\0\0\0")
    servo.reboot(1.0)
    assert servo.registered() is None


def test_gaps_between_registers_read_zero_and_refuse_writes(servo: Servo) -> None:
    assert servo.read(14, 6) == bytes(6)
    assert servo.write(14, b"\0", 0.0) == ErrorNumber.ACCESS_ERROR
