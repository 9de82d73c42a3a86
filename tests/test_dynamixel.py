"""The driver's promises on the simulated plant: real driver, real registers, real firmware rules, no wire."""

from __future__ import annotations

import atexit
import math
import os
import pty
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from agent.display import Display
from robot import registers as reg
from robot.bus import BusConfig
from robot.dynamixel import RESTARTS, Calibration, DynamixelRobot
from robot.emulator import EmulatorConfig
from robot.events import EventLog
from robot.registers import CYCLE, Register
from robot.safety import OUTSIDE_BOX, VELOCITY_LIMIT, SafetyConfig
from robot.servo import Servo
from robot.settings import DynamixelConfig, PositionGains, limit_ticks
from robot.sim import SimConfig, SimPlant
from robot.types import (
    BusFault,
    Floats,
    InvalidCommand,
    MotionFault,
    Reading,
    RobotState,
    ServoAlert,
    ServoHot,
    ServoSilent,
    SupplyFault,
    TorqueLost,
    WatchdogTripped,
)
from tests.line import VirtualLine, emulated, open_bus

CONFIG = DynamixelConfig(profile_velocity=4.0)
HOME = np.tile([0.0, -math.pi / 3, math.pi / 3], 3)
IDS = (*CONFIG.joint_ids, CONFIG.object_id)
PERIOD = 0.1


@pytest.fixture
def plant() -> Iterator[SimPlant]:
    plant = SimPlant(SimConfig())
    yield plant
    plant.close()


def torque(plant: SimPlant) -> dict[int, bool]:
    return {id: servo.torque for id, servo in plant.servos.items()}


def steps(robot: DynamixelRobot, plant: SimPlant, target: Floats, count: int) -> Floats:
    """Commands the target for `count` control periods; the measured positions, (count, J)."""
    measured = []
    for _ in range(count):
        robot.command(target, PERIOD)
        plant.sleep_until(plant.now() + PERIOD)
        measured.append(robot.read().joints.position)
    return np.array(measured)


def poll(robot: DynamixelRobot, plant: SimPlant, count: int) -> None:
    for _ in range(count):
        plant.sleep_until(plant.now() + PERIOD)
        robot.read()


class Tap:
    """A bus that records what is written and can be cut at a chosen call."""

    def __init__(self, bus: SimPlant) -> None:
        self._bus = bus
        self.written: list[tuple[Register, dict[int, int]]] = []
        self.mute: set[int] = set()  # servos that no longer confirm writes
        self.reads = 0

    def ping(self, ids: Sequence[int]) -> dict[int, int]:
        return self._bus.ping(ids)

    def read(self, register: Register, servo: int) -> int:
        return self._bus.read(register, servo)

    def write(self, register: Register, servo: int, value: int) -> None:
        if servo in self.mute:
            raise ServoSilent(f"servo {servo} did not answer", [servo])
        self.written.append((register, {servo: value}))
        self._bus.write(register, servo, value)

    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        self.reads += 1
        return self._bus.sync_read(registers, ids)

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        self.written.append((register, dict(values)))
        self._bus.sync_write(register, {id: value for id, value in values.items() if id not in self.mute})

    def gather(self, registers: Sequence[Register], ids: Sequence[int]) -> None:
        self._bus.gather(registers, ids)

    def reboot(self, servo: int) -> None:
        self._bus.reboot(servo)

    def close(self) -> None:
        self._bus.close()


def cycle(*rows: Sequence[int]) -> Reading:
    """A reading of CYCLE with these currents, velocities and positions, all servos well."""
    well = [1, 0, 15, 120, 30]
    return Reading(0.0, np.array([[*row, *well] for row in rows]), np.zeros(len(rows), np.uint8))


# --- Becoming ready ----------------------------------------------------------------------------------------


def test_entering_holds_the_pose_without_a_lunge(plant: SimPlant) -> None:
    pose = np.array([0.1, -0.5, 0.7] * 3)
    plant.teleport(pose, 1.0)
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        assert all(on for id, on in torque(plant).items() if id != CONFIG.object_id)
        assert not torque(plant)[CONFIG.object_id]
        deviation = 0.0
        for _ in range(50):
            plant.sleep_until(plant.now() + 0.02)
            deviation = max(deviation, float(np.abs(robot.read().joints.position - pose).max()))
        assert deviation < 0.05  # the nominal model's servos sag 0.03 rad under the fingers' weight


def test_fingers_found_outside_their_limits_come_back_slowly(plant: SimPlant) -> None:
    """Somebody moved them while they were limp; firmware takes no goal out there."""
    speeds: list[float] = []

    class Watched(Tap):
        def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
            speeds.append(float(np.abs(plant.truth["qvel"][:9]).max()))
            return super().sync_read(registers, ids)

    config = DynamixelConfig()
    plant.teleport([1.0, -1.6, 1.9] * 3, 0.0)
    with DynamixelRobot(Watched(plant), config, plant) as robot:
        assert max(speeds) < 2.0  # 7.5 if torque simply pulled them in
        margin = config.limit_margin + 0.1
        position = robot.read().joints.position
        assert (position < np.array(config.safety.upper) + margin).all()
        assert (position > np.array(config.safety.lower) - margin).all()
        assert plant.read(reg.PROFILE_VELOCITY, 10) == 0  # as configured
        poll(robot, plant, 3)


def test_servos_carry_what_the_config_says_after_entering(plant: SimPlant) -> None:
    gains = PositionGains(p=700, i=10, d=5)
    config = DynamixelConfig(
        gains=gains, current_limit=0.8, goal_current=0.6, watchdog=0.5, profile_velocity=3.0
    )
    with DynamixelRobot(plant, config, plant):
        for row, id in enumerate(config.joint_ids):
            servo = plant.servos[id]
            low, high = limit_ticks(config)[row]
            assert servo.value(reg.OPERATING_MODE) == reg.CURRENT_POSITION_MODE
            assert servo.value(reg.GOAL_CURRENT) == round(0.6 / 2.69e-3)
            assert servo.value(reg.TEMPERATURE_LIMIT) == config.temperature_limit
            assert (
                servo.value(reg.VELOCITY_LIMIT) == 210
            )  # XH430-W210's own, below the 6.3 rad/s that are wanted
            assert servo.value(reg.RETURN_DELAY_TIME) == 0
            assert servo.value(reg.MIN_POSITION_LIMIT) == low
            assert servo.value(reg.MAX_POSITION_LIMIT) == high
            assert servo.value(reg.BUS_WATCHDOG) == 25
            assert servo.value(reg.PROFILE_VELOCITY) == round(3.0 / reg.RAD_PER_S_PER_UNIT)
            assert servo.value(reg.CURRENT_LIMIT) == round(0.8 / 2.69e-3)
            assert servo.value(reg.POSITION_P_GAIN) == 700
        assert plant.servos[50].value(reg.OPERATING_MODE) == reg.CURRENT_POSITION_MODE


def test_without_a_goal_current_servos_control_position_alone(plant: SimPlant) -> None:
    with DynamixelRobot(plant, DynamixelConfig(goal_current=None), plant):
        assert {plant.servos[id].value(reg.OPERATING_MODE) for id in CONFIG.joint_ids} == {reg.POSITION_MODE}
        assert plant.servos[50].value(reg.OPERATING_MODE) == reg.EXTENDED_POSITION_MODE


def test_a_blocked_finger_presses_no_harder_than_the_goal_current(plant: SimPlant) -> None:
    config = DynamixelConfig(goal_current=0.1)
    with DynamixelRobot(plant, config, plant) as robot:
        currents = []
        for _ in range(10):
            robot.command(HOME + 0.3, PERIOD)
            plant.sleep_until(plant.now() + 0.02)
            currents.append(np.abs(robot.read().joints.current).max())
        assert 0.09 < max(currents) < 0.102


def test_nothing_changes_in_the_nominal_motion_by_the_goal_current(plant: SimPlant) -> None:
    """1 A is more than any step of the filter asks of the nominal servo."""
    paths = []
    for current in (None, 1.0):
        world = SimPlant(SimConfig())
        with DynamixelRobot(world, DynamixelConfig(goal_current=current), world) as robot:
            paths.append(steps(robot, world, HOME + [0.4, 0.4, 0.4] * 3, 10))
    assert (paths[0] == paths[1]).all()


def test_eeprom_is_written_once_and_never_again(plant: SimPlant) -> None:
    for expected in (True, False):
        tap = Tap(plant)
        with DynamixelRobot(tap, CONFIG, plant):
            pass
        assert any(register.eeprom for register, _ in tap.written) is expected


def test_wrong_operating_modes_are_corrected_even_with_torque_left_on(plant: SimPlant) -> None:
    plant.write(reg.OPERATING_MODE, 11, reg.EXTENDED_POSITION_MODE)
    plant.write(reg.TORQUE_ENABLE, 11, 1)
    with DynamixelRobot(plant, CONFIG, plant):
        assert plant.read(reg.OPERATING_MODE, 11) == reg.CURRENT_POSITION_MODE


def test_a_servo_that_answers_only_reads_is_told_to_answer_writes(plant: SimPlant) -> None:
    plant.write(reg.STATUS_RETURN_LEVEL, 30, 1)
    with DynamixelRobot(plant, CONFIG, plant):
        assert plant.read(reg.STATUS_RETURN_LEVEL, 30) == 2


def test_silent_servos_are_named_before_anything_moves(plant: SimPlant) -> None:
    plant.servos[12].powered = plant.servos[50].powered = False
    with pytest.raises(ServoSilent, match=r"servo 12 \(finger 1, distal\), servo 50 \(valve\)") as caught:
        DynamixelRobot(plant, CONFIG, plant).__enter__()
    assert caught.value.ids == (12, 50)
    assert "8 of 10" in str(caught.value)
    assert "run_robot.py check" in str(caught.value)
    assert not any(torque(plant).values())


def test_no_answer_at_all_points_at_power_and_baud(plant: SimPlant) -> None:
    for servo in plant.servos.values():
        servo.powered = False
    with pytest.raises(ServoSilent, match="power and the baud rate"):
        DynamixelRobot(plant, CONFIG, plant).__enter__()


def test_unknown_models_are_refused_unless_allowed(plant: SimPlant) -> None:
    plant.servos[21].load(reg.MODEL_NUMBER, 1060)
    with pytest.raises(BusFault, match=r"servo 21 \(finger 2, middle\) is model 1060; .*XM430-W210 \(1030\)"):
        DynamixelRobot(plant, CONFIG, plant).__enter__()
    allowed = DynamixelConfig(allow_unknown_models=True, ampere_per_unit=1e-3)
    with DynamixelRobot(plant, allowed, plant) as robot:
        assert robot.describe()["models"]["21"] == 1060


@pytest.mark.parametrize(("bits", "words"), [(0x04, "overheating"), (0x08, "encoder"), (0x10, "electrical")])
def test_an_error_that_no_restart_cures_prevents_engaging(plant: SimPlant, bits: int, words: str) -> None:
    plant.servos[12].raise_hardware_error(bits | 0x20)
    with pytest.raises(ServoAlert, match=rf"servo 12 \(finger 1, distal\) reports {words}") as caught:
        DynamixelRobot(plant, CONFIG, plant).__enter__()
    assert caught.value.errors == {12: bits | 0x20}
    assert not any(torque(plant).values())
    assert plant.servos[12].value(reg.HARDWARE_ERROR_STATUS) == bits | 0x20  # nobody restarted it


def test_a_register_that_does_not_keep_its_value_stops_the_start(plant: SimPlant) -> None:
    class Forgetful(Tap):
        def write(self, register: Register, servo: int, value: int) -> None:
            if register is not reg.MAX_POSITION_LIMIT:
                super().write(register, servo, value)

    with pytest.raises(BusFault, match=r"max_position_limit.*servo 10.* has 4095, expected 1370"):
        DynamixelRobot(Forgetful(plant), CONFIG, plant).__enter__()
    assert not any(torque(plant).values())


@pytest.mark.parametrize(("left", "wanted"), [(0, 0x34), (0x35, 0x35), (0x34, 0x34)])
def test_servos_cut_their_torque_at_overload_and_heat_whatever_was_set(
    plant: SimPlant, left: int, wanted: int
) -> None:
    plant.servos[12].load(reg.SHUTDOWN, left)
    with DynamixelRobot(plant, CONFIG, plant):
        assert plant.read(reg.SHUTDOWN, 12) == wanted


# --- Moving ------------------------------------------------------------------------------------------------


def test_it_moves_to_a_pose(plant: SimPlant) -> None:
    pose = np.array([0.3, -0.6, 0.8] * 3)
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        path = steps(robot, plant, pose, 30)
    assert np.abs(path[-1] - pose).max() < 0.06


def test_goals_never_outrun_the_measured_joints(plant: SimPlant) -> None:
    step = CONFIG.safety.max_velocity * PERIOD
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        for target in (HOME + 5, HOME - 5):
            for _ in range(10):
                before = robot.read().joints.position
                applied = robot.command(target, PERIOD)
                stand = np.clip(before, CONFIG.safety.lower, CONFIG.safety.upper)
                assert (np.abs(applied.target - stand) <= step + 1e-9).all()
                assert VELOCITY_LIMIT in applied.reasons or np.abs(before - target).max() < 5
                plant.sleep_until(plant.now() + PERIOD)


def test_the_servos_bound_their_own_velocity(plant: SimPlant) -> None:
    config = DynamixelConfig(profile_velocity=0.5)
    with DynamixelRobot(plant, config, plant) as robot:
        path = steps(robot, plant, HOME + [0.4, 0.4, 0.4] * 3, 5)
    speed = np.abs(np.diff(path, axis=0)).max() / PERIOD
    assert 0.3 < speed < 0.55


def test_a_joint_pressed_out_of_the_box_is_sent_back_in(plant: SimPlant) -> None:
    outside = HOME.copy()
    outside[0] = 0.48 + 0.2  # beyond the firmware's limit too
    plant.teleport(outside, 0.0)
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        applied = robot.command(outside, PERIOD)
        assert applied.target[0] == 0.48
        assert OUTSIDE_BOX in applied.reasons
        assert steps(robot, plant, outside, 10)[-1][0] < 0.53


def test_a_command_measures_from_this_ticks_reading_and_takes_an_old_one_again(plant: SimPlant) -> None:
    tap = Tap(plant)
    with DynamixelRobot(tap, CONFIG, plant) as robot:
        robot.read()
        count = tap.reads
        robot.command(HOME, PERIOD)
        assert tap.reads == count
        plant.sleep_until(plant.now() + 1.5 * PERIOD)
        robot.command(HOME, PERIOD)
        assert tap.reads == count + 1


def test_a_claim_of_a_long_period_does_not_make_an_old_reading_good(plant: SimPlant) -> None:
    tap = Tap(plant)
    with DynamixelRobot(tap, DynamixelConfig(watchdog=2.0), plant) as robot:
        robot.read()
        count = tap.reads
        plant.sleep_until(plant.now() + 0.3)  # more than safety.max_period
        robot.command(HOME, 5.0)
        assert tap.reads == count + 1


def test_one_tick_costs_one_read_and_one_write(plant: SimPlant) -> None:
    tap = Tap(plant)
    with DynamixelRobot(tap, CONFIG, plant) as robot:
        tap.reads, tap.written = 0, []
        robot.read()
        robot.command(HOME, PERIOD)
        assert (tap.reads, len(tap.written)) == (1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_command_that_is_no_number_moves_nothing(plant: SimPlant, bad: float) -> None:
    tap = Tap(plant)
    with DynamixelRobot(tap, CONFIG, plant) as robot:
        tap.written.clear()
        with pytest.raises(InvalidCommand):
            robot.command(np.full(9, bad), PERIOD)
        assert tap.written == []


def test_a_relaxed_robot_takes_no_commands(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        robot.relax()
        with pytest.raises(InvalidCommand, match="engage"):
            robot.command(HOME, PERIOD)
        robot.engage()
        robot.command(HOME, PERIOD)


def test_hold_stops_a_motion_where_it_is(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        robot.command(HOME + 0.2, PERIOD)
        plant.sleep_until(plant.now() + 0.03)
        robot.hold()
        held = robot.read().joints.position
        plant.sleep_until(plant.now() + 0.2)
        assert np.abs(robot.read().joints.position - held).max() < 0.05
        assert all(plant.servos[id].torque for id in CONFIG.joint_ids)


def test_holding_again_and_again_does_not_let_the_fingers_sag(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        start = steps(robot, plant, HOME, 5)[-1]
        for _ in range(20):
            robot.hold()
            robot.engage()
            plant.sleep_until(plant.now() + PERIOD)
        assert np.abs(robot.read().joints.position - start).max() < 0.01


# --- Reading -----------------------------------------------------------------------------------------------


def test_readings_are_in_si_units_with_robels_calibration(plant: SimPlant) -> None:
    pose = np.array([0.2, -0.4, 1.1, -0.3, 0.5, 0.9, 0.0, -1.0, -0.7])
    plant.teleport(pose, 2.5)
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        state = robot.read()
    assert state.joints.position == pytest.approx(pose, abs=reg.RAD_PER_TICK)
    assert state.object.position == pytest.approx([2.5], abs=reg.RAD_PER_TICK)
    assert state.joints.position.shape == state.joints.velocity.shape == state.joints.current.shape == (9,)
    assert state.time == plant.now()


def test_an_alert_is_told_in_words_and_never_becomes_a_number(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        plant.servos[12].raise_hardware_error(0x20)
        with pytest.raises(ServoAlert, match=r"servo 12 \(finger 1, distal\) reports overload \(0x20\)"):
            robot.read()
        with pytest.raises(ServoAlert):  # not even from the last good reading
            robot.command(HOME, PERIOD)
        robot.hold()


def test_a_silent_servo_fails_the_reading_and_engaging_finds_it_again(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        plant.servos[31].powered = False
        plant.refresh()
        with pytest.raises(ServoSilent):
            robot.read()
        robot.hold()  # a dead bus does not make a second error of the first
        plant.servos[31].powered = True
        plant.reboot(31)
        plant.sleep_until(plant.now() + 0.25)
        robot.engage()
        assert plant.read(reg.PROFILE_VELOCITY, 31) > 0
        assert steps(robot, plant, HOME, 5)[-1] == pytest.approx(HOME, abs=0.06)


def test_a_reboot_behind_our_back_is_noticed_within_one_cycle(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, HOME, 3)
        plant.reboot(22)
        plant.sleep_until(plant.now() + 0.25)  # it answers again before anyone asks
        with pytest.raises(TorqueLost, match=r"servo 22 \(finger 2, distal\) restarted and lost torque"):
            robot.read()
        robot.engage()
        assert plant.servos[22].torque
        poll(robot, plant, 11)


@pytest.mark.parametrize("servo", [22, 50])
@pytest.mark.parametrize("relaxed", [True, False])
def test_a_servo_that_was_switched_off_in_between_is_set_anew(
    plant: SimPlant, servo: int, relaxed: bool
) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        if relaxed:
            robot.relax()
        plant.power(servo, False)
        plant.power(servo, True)
        plant.sleep_until(plant.now() + 0.25)
        assert plant.read(reg.PROFILE_VELOCITY, servo) == 0  # unlimited
        robot.engage()
        assert plant.read(reg.PROFILE_VELOCITY, servo) > 0


# --- Restarting, cooling, supply ---------------------------------------------------------------------------


def overloaded(plant: SimPlant, servo: int = 12) -> None:
    plant.servos[servo].raise_hardware_error(0x20)
    plant.refresh()


def test_an_overloaded_servo_alone_is_restarted_and_set_anew_without_a_lunge(plant: SimPlant) -> None:
    events = EventLog(plant)
    with DynamixelRobot(plant, CONFIG, plant, events) as robot:
        steps(robot, plant, HOME + 0.2, 10)
        overloaded(plant)
        with pytest.raises(ServoAlert, match="overload"):
            robot.read()
        robot.hold()
        before = plant.truth["qpos"][:9].copy()
        robot.engage()
        after = plant.truth["qpos"][:9]
        moved = np.abs(after - before)
        assert moved[[0, 1, 3, 4, 5, 6, 7, 8]].max() < 0.05  # the others held on
        assert plant.servos[12].torque
        assert plant.servos[12].value(reg.PROFILE_VELOCITY) > 0
        assert plant.servos[12].value(reg.GOAL_CURRENT) == plant.servos[11].value(reg.GOAL_CURRENT)
        (event,) = events.drain()
        assert event.name == "reboot"
        assert "servo 12 (finger 1, distal) reported overload (0x20) and was restarted, 1 of 3" in event.text
        held = plant.truth["qpos"][:9].copy()
        plant.sleep_until(plant.now() + PERIOD)
        assert np.abs(robot.read().joints.position - held).max() < 0.05


def test_the_fourth_overload_within_five_minutes_is_left_to_a_person(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        for _ in range(RESTARTS):
            overloaded(plant)
            robot.relax()
            robot.engage()
        overloaded(plant)
        with pytest.raises(ServoAlert, match="after 3 restarts within 5 minutes: something blocks it"):
            robot.engage()
        assert not any(torque(plant).values())
        overloaded(plant, 21)  # each servo has its own account; 12 is still in error
        plant.sleep_until(plant.now() + 301)
        robot.engage()


def test_a_warm_servo_stops_the_program_long_before_itself(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, HOME, 3)
        plant.servos[20].load(reg.PRESENT_TEMPERATURE, 66)
        message = r"servo 20 \(finger 2, proximal\) is at 66 deg C; from 65 on it has to cool to 55, at 75"
        with pytest.raises(ServoHot, match=message):
            robot.read()
        with pytest.raises(ServoHot):
            robot.engage()
        assert not any(torque(plant).values())
        assert robot.read().health.hottest == (20, 66.0)  # relaxed, one may look how it cools
        plant.servos[20].load(reg.PRESENT_TEMPERATURE, 54)
        robot.engage()


def test_a_dip_of_the_supply_is_told_with_the_voltage(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        for servo in plant.servos.values():
            servo.load(reg.PRESENT_INPUT_VOLTAGE, 88)
        with pytest.raises(SupplyFault, match=r"has 8.8 V and allows 9.5 to 16.0, 9 others too"):
            robot.read()
        for servo in plant.servos.values():
            servo.load(reg.PRESENT_INPUT_VOLTAGE, 120)
        assert robot.read().health.voltage == pytest.approx(np.full(10, 12.0))


def test_a_brown_out_of_all_servos_is_noticed_within_one_cycle_and_overcome(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, HOME, 3)
        for id in IDS:
            plant.power(id, False)
            plant.power(id, True)
        plant.sleep_until(plant.now() + 0.25)
        with pytest.raises(TorqueLost, match="all servos restarted and lost torque: the supply dipped"):
            robot.read()
        robot.hold()  # nothing to hold: no goal is sent to a servo without torque that would jump later
        robot.engage()
        steps(robot, plant, HOME, 3)


def test_a_relaxed_robot_is_read_again_after_its_supply_was_switched(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        robot.relax()
        for id in IDS:
            plant.power(id, False)
        with pytest.raises(ServoSilent):
            robot.read()
        for id in IDS:
            plant.power(id, True)
        plant.sleep_until(plant.now() + 0.25)
        robot.read()
        assert not any(torque(plant).values())


def test_one_dead_servo_does_not_keep_the_others_from_holding(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        robot.command(HOME + 0.2, PERIOD)
        plant.sleep_until(plant.now() + 0.03)
        plant.power(31, False)
        with pytest.raises(ServoSilent):
            robot.read()
        robot.hold()
        held = plant.truth["qpos"][:7].copy()  # the third finger falls
        plant.sleep_until(plant.now() + 0.2)
        assert np.abs(plant.truth["qpos"][:7] - held).max() < 0.06


# --- Kept alive while the program computes -----------------------------------------------------------------


def test_tending_keeps_the_servos_awake_through_a_long_computation(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, HOME, 3)
        for _ in range(100):
            plant.sleep_until(plant.now() + 0.05)
            robot.tend()
        robot.read()


def test_tending_relaxes_a_robot_that_its_program_has_forgotten(plant: SimPlant) -> None:
    events = EventLog(plant)
    with DynamixelRobot(plant, DynamixelConfig(keep_alive=2.0), plant, events) as robot:
        steps(robot, plant, HOME, 3)
        while plant.now() < 3.0:
            plant.sleep_until(plant.now() + 0.05)
            robot.tend()
        assert not any(torque(plant).values())
        assert [event.name for event in events.drain()] == ["keep-alive"]
        with pytest.raises(InvalidCommand, match="relaxed"):
            robot.command(HOME, PERIOD)


@pytest.fixture
def stopped_terminal() -> Iterator[TextIO]:
    """As Ctrl-S leaves it: who writes to it waits."""
    master, slave = pty.openpty()
    termios.tcflow(slave, termios.TCOOFF)
    with os.fdopen(slave, "w") as terminal:
        yield terminal
        termios.tcflow(slave, termios.TCOON)
    os.close(master)


def test_a_stopped_terminal_keeps_no_torque_on(plant: SimPlant, stopped_terminal: TextIO) -> None:
    events = EventLog(plant)
    events.listen(Display(100, Console(file=stopped_terminal)).event)

    def forget() -> None:
        with DynamixelRobot(plant, DynamixelConfig(keep_alive=2.0), plant, events) as robot:
            steps(robot, plant, HOME, 3)
            while plant.now() < 3.0:
                plant.sleep_until(plant.now() + 0.05)
                robot.tend()
            forgotten.append(not any(torque(plant).values()))

    forgotten: list[bool] = []
    program = threading.Thread(target=forget, daemon=True)
    program.start()
    program.join(2)
    assert forgotten == [True]
    assert [event.name for event in events.drain()] == ["keep-alive"]


def test_a_restarted_servo_is_told_without_waiting_for_the_terminal(
    plant: SimPlant, stopped_terminal: TextIO
) -> None:
    events = EventLog(plant)
    events.listen(Display(100, Console(file=stopped_terminal)).event)

    def restart() -> None:
        with DynamixelRobot(plant, CONFIG, plant, events) as robot:
            plant.servos[12].raise_hardware_error(reg.OVERLOAD)
            with pytest.raises(ServoAlert):
                robot.read()
            robot.engage()
            robot.read()

    program = threading.Thread(target=restart, daemon=True)
    program.start()
    program.join(2)
    assert not program.is_alive()
    assert [event.name for event in events.drain()] == ["reboot"]


def test_tending_hides_no_fault_from_the_program(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, HOME, 3)
        plant.power(31, False)
        plant.sleep_until(plant.now() + 0.2)
        robot.tend()
        with pytest.raises(ServoSilent):
            robot.read()


# --- Watchdog ----------------------------------------------------------------------------------------------


def test_the_servos_stop_by_themselves_when_the_program_is_silent(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, HOME, 3)
        plant.sleep_until(plant.now() + 1.0)
        assert all(plant.servos[id].tripped for id in CONFIG.joint_ids)
        with pytest.raises(WatchdogTripped, match=r"9 servos .* allow 0.30 s"):
            robot.read()


def test_engage_clears_a_tripped_watchdog_without_a_jump_and_arms_it_again(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, HOME, 3)
        plant.sleep_until(plant.now() + 1.0)
        before = plant.truth["qpos"][:9]
        robot.engage()
        assert not any(servo.tripped for servo in plant.servos.values())
        plant.sleep_until(plant.now() + PERIOD)
        assert np.abs(robot.read().joints.position - before).max() < 0.05
        steps(robot, plant, HOME, 3)
        plant.sleep_until(plant.now() + 1.0)
        with pytest.raises(WatchdogTripped):
            robot.command(HOME, PERIOD)


def test_one_tripped_servo_is_found_within_one_cycle(plant: SimPlant) -> None:
    """Its cable may have lost packets that all others heard."""
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        plant.servos[31].load(reg.BUS_WATCHDOG, reg.WATCHDOG_TRIPPED)
        with pytest.raises(WatchdogTripped, match=r"servo 31 \(finger 3, middle\)"):
            robot.read()


def test_polling_alone_keeps_the_watchdog_fed(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        for _ in range(20):
            plant.sleep_until(plant.now() + 0.25)
            robot.read()


# --- Torque off on every way out ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_leaving_by_any_door_switches_the_torque_off(
    plant: SimPlant, error: type[BaseException] | None
) -> None:
    def leave() -> None:
        with DynamixelRobot(plant, CONFIG, plant):
            assert any(torque(plant).values())
            if error is not None:
                raise error

    if error is None:
        leave()
    else:
        with pytest.raises(error):
            leave()
    assert not any(torque(plant).values())


def test_a_second_interrupt_does_not_keep_the_torque_on(plant: SimPlant) -> None:
    class Interrupted(Tap):
        interrupts = 0

        def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
            if self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt
            super().sync_write(register, values)

    tap = Interrupted(plant)
    with pytest.raises(KeyboardInterrupt), DynamixelRobot(tap, CONFIG, plant):
        tap.interrupts = 1
    assert not any(torque(plant).values())


def test_relax_reaches_the_others_when_one_servo_is_gone(
    plant: SimPlant, caplog: pytest.LogCaptureFixture
) -> None:
    tap = Tap(plant)
    with DynamixelRobot(tap, CONFIG, plant) as robot:
        tap.mute = {10}
        robot.relax()
        assert [id for id, on in torque(plant).items() if on] == [10]
        assert "servo 10 (finger 1, proximal)" in caplog.text
        assert "switch the servo power off" in caplog.text
        tap.mute = set()
        robot.relax()
        assert not any(torque(plant).values())


class Stubborn(Servo):
    """Confirms that its torque is off, and keeps it on."""

    def write(self, address: int, data: bytes, now: float) -> int:
        if address == reg.TORQUE_ENABLE.address and data == b"\0":
            return 0
        return super().write(address, data, now)


def test_torque_that_was_confirmed_off_and_is_still_on_is_named(
    plant: SimPlant, caplog: pytest.LogCaptureFixture
) -> None:
    """Over the wire, after a fault: what counts is the register, not the answer to the write."""
    line = VirtualLine(emulated(EmulatorConfig(), plant))
    bus = open_bus(line, BusConfig())
    with DynamixelRobot(bus, CONFIG, line.clock) as robot:
        plant.servos[11].raise_hardware_error(reg.OVERLOAD)
        plant.servos[31].__class__ = Stubborn
        with pytest.raises(ServoAlert):
            robot.read()
        robot.relax()
        assert [id for id, on in torque(plant).items() if on] == robot.driven() == [31]
        assert "torque may still be on at servo 31 (finger 3, middle)." in caplog.text
        assert "switch the servo power off before you reach in" in caplog.text
        assert "servo 31 (finger 3, middle) confirmed that its torque is off, and has it on" in caplog.text
        plant.servos[31].__class__ = Servo
        robot.relax()
        assert robot.driven() == []
    bus.close()


def test_a_valve_that_keeps_its_torque_is_a_fault(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        plant.servos[50].__class__ = Stubborn
        with pytest.raises(BusFault, match=r"servo 50 .* confirmed that its torque is off, and has it on"):
            robot.drive_object(0.3, 0.05, 5.0)


def test_relax_may_be_repeated_and_called_before_entering(plant: SimPlant) -> None:
    robot = DynamixelRobot(plant, CONFIG, plant)
    robot.relax()
    robot.relax()


def test_an_exit_of_the_interpreter_relaxes_too(plant: SimPlant, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(atexit, "unregister", registered.remove)
    with DynamixelRobot(plant, CONFIG, plant):
        (at_exit,) = registered
        at_exit()
        assert not any(torque(plant).values())
    assert registered == []


def test_a_failed_engage_leaves_no_torque(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        plant.servos[20].raise_hardware_error(0x04)
        with pytest.raises(ServoAlert):
            robot.read()
        with pytest.raises(ServoAlert, match="overheating"):
            robot.engage()
        assert not any(torque(plant).values())


# --- The valve ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.7, -1.5, 3.0, -3.0, math.pi / 2])
def test_the_valve_is_driven_to_any_angle_and_let_go(plant: SimPlant, angle: float) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, np.array([0.0, -math.pi / 3, 0.6] * 3), 5)
        final = robot.drive_object(angle, 0.02, 5.0)
        assert abs(math.remainder(final - angle, math.tau)) < 0.03
        assert not torque(plant)[CONFIG.object_id]
        assert robot.read().joints.position == pytest.approx(np.array([0.0, -math.pi / 3, 0.6] * 3), abs=0.06)


def test_the_valve_takes_the_short_way_over_many_turns(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, np.array([0.0, -math.pi / 3, 0.6] * 3), 5)
        for turn in range(8):
            before = float(robot.read().object.position[0])
            after = robot.drive_object(turn * 3 * math.pi / 4, 0.02, 5.0)
            assert abs(after - before) < math.pi + 0.1
        assert abs(after) > math.tau


@pytest.mark.parametrize("turns", [300, -300])
def test_the_valve_is_driven_after_hundreds_of_turns_one_way(plant: SimPlant, turns: int) -> None:
    """Servos take goals within 256 turns: a policy that always turns one way gets there in an hour."""
    plant.teleport(HOME, turns * math.tau + 0.3)
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        assert plant.read(reg.PROFILE_VELOCITY, CONFIG.object_id) > 0
        before = float(robot.read().object.position[0])
        after = robot.drive_object(1.0, 0.02, 5.0)
        assert after - before == pytest.approx(0.7, abs=0.03)
        assert math.remainder(after, math.tau) == pytest.approx(1.0, abs=0.03)


def test_the_object_is_let_go_in_mid_turn_when_its_watcher_says_so(plant: SimPlant) -> None:
    robot = DynamixelRobot(plant, CONFIG, plant)
    seen: list[tuple[float, float]] = []

    def watch(state: RobotState) -> bool:
        seen.append((state.time, float(state.object.position[0])))
        return seen[-1][1] < 0.6

    with robot:
        began = plant.now()
        stopped = robot.drive_object(1.2, 0.02, 5.0, watch)
        assert not plant.servos[50].torque
        assert seen[0] == pytest.approx((began, 0.0), abs=1e-3)
        assert len(seen) >= 5
        assert seen[-2][1] < 0.6 <= seen[-1][1] == stopped < 0.9
        poll(robot, plant, 5)
        assert plant.truth["valve"] < 0.9  # it was on its way to 1.2


def test_a_blocked_valve_is_a_fault_that_says_where_it_stuck(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        steps(robot, plant, np.array([0.0, 0.0, 0.0] * 3), 10)  # fingers between the valve's arms
        with pytest.raises(MotionFault, match=r"servo 50 \(valve\) stands at .* does not get to \+2.000"):
            robot.drive_object(2.0, 0.02, 5.0)
        assert not torque(plant)[CONFIG.object_id]
        robot.read()


def test_a_fault_while_the_valve_turns_lets_it_go(plant: SimPlant) -> None:
    class Failing(Tap):
        def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
            if plant.servos[50].torque and plant.now() > 0.1:
                raise ServoSilent("servo 12 did not answer", [12])
            return super().sync_read(registers, ids)

    with DynamixelRobot(Failing(plant), CONFIG, plant) as robot:
        with pytest.raises(ServoSilent):
            robot.drive_object(2.0, 0.02, 5.0)
        assert not torque(plant)[CONFIG.object_id]


def test_an_impossible_angle_is_refused(plant: SimPlant) -> None:
    with DynamixelRobot(plant, CONFIG, plant) as robot, pytest.raises(InvalidCommand):
        robot.drive_object(math.nan, 0.02, 5.0)


# --- Units and configuration -------------------------------------------------------------------------------


@given(st.integers(0, 4095), st.sampled_from([1, -1]), st.floats(-math.pi, math.pi))
def test_ticks_to_radians_and_back_is_exact(ticks: int, sign: Any, offset: float) -> None:
    config = DynamixelConfig.model_construct(joint_ids=(1,), offsets=(offset,), signs=(sign,), object_id=2)
    calibration = Calibration(config, [1.0, 1.0])
    state = calibration.state(cycle([0, 0, ticks], [0, 0, ticks]))
    assert calibration.ticks(state.joints.position).tolist() == [ticks]
    assert calibration.object_ticks(float(state.object.position[0])) == ticks


def test_angles_are_rounded_to_the_nearest_tick_not_truncated() -> None:
    calibration = Calibration(CONFIG, [1e-3] * 10)
    angles = np.zeros(9) + 0.9 * reg.RAD_PER_TICK
    assert calibration.ticks(angles).tolist() == [1025, 2049, 2049] * 3
    assert calibration.ticks(-angles).tolist() == [1023, 2047, 2047] * 3


def test_a_reversed_joint_counts_backwards_in_all_three_measures() -> None:
    config = DynamixelConfig(signs=(-1,) * 9, offsets=(math.pi / 2, math.pi, math.pi) * 3)
    joints = Calibration(config, [2.69e-3] * 10).state(cycle(*[[100, 10, 2148]] * 10)).joints
    assert joints.position[1] == pytest.approx(-100 * reg.RAD_PER_TICK)
    assert joints.velocity[1] == pytest.approx(-10 * reg.RAD_PER_S_PER_UNIT)
    assert joints.current[1] == pytest.approx(-0.269)


def test_current_is_scaled_by_model(plant: SimPlant) -> None:
    plant.servos[10].load(reg.MODEL_NUMBER, 1050)  # XH430-V210: 1.34 mA per unit
    with DynamixelRobot(plant, CONFIG, plant) as robot:
        robot.command(HOME + 0.2, PERIOD)
        plant.sleep_until(plant.now() + 0.01)
        units = plant.sync_read(CYCLE, IDS).values[:, 0]
        current = robot.read().joints.current
    assert current[0] == pytest.approx(units[0] * 1.34e-3)
    assert current[1] == pytest.approx(units[1] * 2.69e-3)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"offsets": (0.0,)}, "offsets"),
        ({"signs": (2,) * 9}, "signs"),
        ({"joint_ids": (10,) * 9}, "differ"),
        ({"object_id": 10}, "differ"),
        ({"joint_ids": (254, 11, 12, 20, 21, 22, 30, 31, 32)}, "252"),  # 254 is everybody
        ({"object_offset": math.nan}, "finite"),
        ({"offsets": (9.0, 0.0, 0.0) * 3}, "ticks"),
        ({"safety": SafetyConfig(lower=(-1.0,), upper=(1.0,))}, "safety"),
        ({"watchdog": 0.0}, "watchdog"),
        ({"watchdog": 10.0}, "watchdog"),
        ({"profile_velocity": 0.0}, "profile_velocity"),
        ({"guide_id": 50}, "differ"),
        ({"warm": 80.0}, "cool 55 < warm 80 < temperature_limit 75"),
        ({"cool": 66.0}, "cool"),
    ],
)
def test_an_inconsistent_robot_is_refused_before_it_is_built(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        DynamixelConfig.model_validate(wrong)


def test_the_firmware_limits_enclose_the_software_box() -> None:
    calibration = Calibration(CONFIG, [1e-3] * 10)
    limits = limit_ticks(CONFIG)
    assert (limits[:, 0] <= calibration.ticks(np.array(CONFIG.safety.lower))).all()
    assert (limits[:, 1] >= calibration.ticks(np.array(CONFIG.safety.upper))).all()


def test_the_description_is_plain_data(plant: SimPlant) -> None:
    import json

    with DynamixelRobot(plant, CONFIG, plant) as robot:
        described = json.loads(json.dumps(robot.describe()))
    assert DynamixelConfig.model_validate(described["calibration"]) == CONFIG
    assert described["models"]["50"] == 1010
