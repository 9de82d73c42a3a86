"""What the simulated D'Claw promises to the driver, the camera's user and the control loop."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from robot import registers as reg
from robot.faults import FaultConfig, FaultSchedule
from robot.registers import RAD_PER_S_PER_UNIT, RAD_PER_TICK
from robot.sim import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, ZERO_TICKS, SimConfig, SimPlant
from robot.types import (
    BusFault,
    Floats,
    Frame,
    Image,
    MissingPart,
    PortLost,
    ServoSilent,
    StaleFrame,
    ValveGeometry,
)
from robot.world import (
    JOINTS,
    VALVE_JOINT,
    WorldConfig,
    dclaw_model,
    decimated,
    find_robel,
    original_model,
    pointer_geom,
)

IDS = (*FINGER_SERVOS, VALVE_SERVO)
STATE = (reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION)
CYCLE = reg.CYCLE
ROBEL_OFFSETS = np.array([-np.pi / 2, -np.pi, -np.pi] * 3 + [-np.pi])  # rad, its hardware calibration


@pytest.fixture
def plant() -> Iterator[SimPlant]:
    plant = SimPlant(SimConfig())
    yield plant
    plant.close()


def torque_on(plant: SimPlant, ids: tuple[int, ...] = FINGER_SERVOS) -> None:
    for servo in ids:
        plant.write(reg.TORQUE_ENABLE, servo, 1)


def command(plant: SimPlant, angles: Floats) -> None:
    ticks = np.rint((angles - ROBEL_OFFSETS[:9]) / RAD_PER_TICK).astype(int)
    plant.sync_write(reg.GOAL_POSITION, dict(zip(FINGER_SERVOS, ticks.tolist(), strict=True)))


def wander(plant: SimPlant, seconds: float, seed: int = 0) -> None:
    """Random goals at 10 Hz, wide enough to hit the valve."""
    rng = np.random.default_rng(seed)
    for _ in range(round(seconds * 10)):
        command(plant, rng.uniform(-1, 1, 9) * np.tile([0.48, 1.05, 1.57], 3))
        plant.sleep_until(plant.now() + 0.1)


# --- model ----------------------------------------------------------------------------------------------


def trajectory(model: mujoco.MjModel, ctrl: Floats) -> Floats:
    """Joint and valve angles (T, 10) under commands (T, 9), each for 40 steps."""
    data = mujoco.MjData(model)
    joints = [model.joint(name).qposadr[0] for name in (*JOINTS, VALVE_JOINT)]
    data.qpos[joints[:9]] = RESET_POSE
    rows = []
    for row in ctrl:
        data.ctrl[:9] = row
        mujoco.mj_step(model, data, 40)
        rows.append(data.qpos[joints])
    return np.array(rows)


@pytest.mark.parametrize("geoms", ["fast", "meshes"])
def test_cut_model_moves_exactly_like_robels(geoms: str) -> None:
    ctrl = np.random.default_rng(1).uniform(-1, 1, (20, 9)) * np.tile([0.48, 1.05, 1.57], 3)
    model = dclaw_model(WorldConfig.model_validate({"geoms": geoms}))
    model.actuator_gainprm[:, 0] = [2] * 9 + [0]
    model.actuator_biasprm[:, 1] = [-2] * 9 + [0]
    cut, original = trajectory(model, ctrl), trajectory(original_model(), ctrl)
    assert np.abs(original[:, 9]).max() > 0.01, "the fingers must have met the valve"
    np.testing.assert_allclose(cut, original, atol=1e-9)


def test_reading_the_model_never_imports_robel() -> None:
    dclaw_model(WorldConfig())
    assert "robel" not in sys.modules


def test_absent_robel_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPart, match="make setup"):
        find_robel()


def test_identified_quantities_reach_the_physics() -> None:
    config = WorldConfig(joint_damping=0.3, valve_damping=0.02, friction=0.9, friction_loss=0.004)
    model = dclaw_model(config)
    assert model.dof_damping.tolist() == [0.3] * 9 + [0.02]
    assert model.dof_frictionloss.tolist() == [0.004] * 9 + [0.0]
    plastic = model.geom_friction[:, 0] == 0.9
    assert plastic.sum() == 3 * 2 + 4  # two geoms of each finger tip; three arms and the hub
    assert model.geom_friction[pointer_geom(model), 0] == 0.9


def test_default_valve_geometry_is_the_models() -> None:
    model = dclaw_model(WorldConfig())
    data = mujoco.MjData(model)
    for angle in (0.0, 1.0, -2.5):
        data.qpos[-1] = angle
        mujoco.mj_kinematics(model, data)
        arm = pointer_geom(model)
        axis = data.geom_xmat[arm].reshape(3, 3)[:, 2]
        reach = model.geom_size[arm, :2].sum()
        tips = [data.geom_xpos[arm] + side * reach * axis for side in (-1, 1)]
        tip = max(tips, key=lambda point: float(np.linalg.norm(point[:2])))
        np.testing.assert_allclose(ValveGeometry().rim(angle), tip, atol=2e-4)


def test_decimation_keeps_the_shape_with_fewer_faces() -> None:
    stl = (find_robel() / "robel-scenes/dclaw/meshes/xh_clamping_high_poly.stl").read_bytes()
    small = decimated(stl, 2.0)
    assert len(small) < len(stl) / 3
    face = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])
    before, after = (np.frombuffer(data, face, offset=84)["vertices"].reshape(-1, 3) for data in (stl, small))
    np.testing.assert_allclose(after.min(0), before.min(0), atol=1.0)
    np.testing.assert_allclose(after.max(0), before.max(0), atol=1.0)


# --- clock ----------------------------------------------------------------------------------------------


def test_sleeping_lands_exactly_and_never_drifts(plant: SimPlant) -> None:
    deadline = 0.0
    for tick in range(1, 301):
        deadline += 0.1  # as a control loop adds up its deadlines
        plant.sleep_until(deadline)
        assert plant.now() == (40 * tick) * 0.0025
    plant.sleep_until(1.0)
    assert plant.now() == 30.0


def test_sleeping_rounds_up_to_whole_steps(plant: SimPlant) -> None:
    plant.sleep_until(0.0026)
    assert plant.now() == 0.005


def test_same_commands_give_bitwise_the_same_world() -> None:
    worlds = []
    for _ in range(2):
        plant = SimPlant(SimConfig())
        torque_on(plant)
        wander(plant, 1.0)
        worlds.append(plant.truth["qpos"])
    assert worlds[0].tobytes() == worlds[1].tobytes()


def test_reading_and_drawing_do_not_touch_the_physics() -> None:
    watched, alone = SimPlant(SimConfig()), SimPlant(SimConfig())
    for plant in (watched, alone):
        torque_on(plant)
    for _ in range(5):
        wander(watched, 0.1)
        wander(alone, 0.1)
        watched.latest(0.0)
        watched.sync_read(STATE, IDS)
    assert watched.truth["qpos"].tobytes() == alone.truth["qpos"].tobytes()
    watched.close()


@pytest.mark.parametrize("profile", [0, 30])
@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_many_small_sleeps_equal_one_long_sleep(profile: int, delay: float) -> None:
    small, long = (SimPlant(SimConfig(command_delay=delay)) for _ in range(2))
    for plant in (small, long):
        torque_on(plant)
        plant.sync_write(reg.PROFILE_VELOCITY, dict.fromkeys(FINGER_SERVOS, profile))
        command(plant, np.full(9, 0.3))
    for step in range(1, 81):
        small.sleep_until(step * 0.0025)
    long.sleep_until(0.2)
    assert small.truth["qpos"].tobytes() == long.truth["qpos"].tobytes()


# --- bus ------------------------------------------------------------------------------------------------


def test_everyone_answers_a_ping_and_no_one_else(plant: SimPlant) -> None:
    assert plant.ping([1, *IDS]) == dict.fromkeys(IDS, 1010)


def test_robels_calibration_holds(plant: SimPlant) -> None:
    joints = np.linspace(-0.4, 0.5, 9)
    plant.teleport(joints, 1.0)
    ticks = plant.sync_read([reg.PRESENT_POSITION], IDS).values[:, 0]
    np.testing.assert_allclose(
        ticks * RAD_PER_TICK + ROBEL_OFFSETS, [*joints, 1.0], atol=RAD_PER_TICK / 2 + 1e-9
    )


def test_plant_starts_at_the_reset_pose_at_time_zero(plant: SimPlant) -> None:
    assert plant.now() == 0.0
    np.testing.assert_allclose(plant.truth["qpos"], [*RESET_POSE, 0.0])
    assert all(plant.read(reg.TORQUE_ENABLE, servo) == 0 for servo in IDS)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([reg.GOAL_POSITION, reg.TORQUE_ENABLE, reg.PROFILE_VELOCITY, reg.BUS_WATCHDOG]),
            st.sampled_from(IDS),
            st.integers(0, 4096),
            st.sampled_from([0.0, 0.0025, 0.1]),
        ),
        max_size=20,
    )
)
def test_vectorised_bus_agrees_with_byte_access(steps: list[tuple[reg.Register, int, int, float]]) -> None:
    fast, exact = SimPlant(SimConfig()), SimPlant(SimConfig())
    registers = (*CYCLE, reg.GOAL_POSITION, reg.ID, reg.POSITION_TRAJECTORY, reg.MOVING)
    for register, servo, value, pause in steps:
        value %= min(1 << 8 * register.size, (register.maximum or 4096) + 2)
        fast.sync_write(register, {servo: value})
        exact.write_memory(servo, register.address, value.to_bytes(register.size, "little"))
        for plant in (fast, exact):
            plant.sleep_until(plant.now() + pause)
        values = [
            [entry.decode(exact.read_memory(id, entry.address, entry.size))
             for entry in registers]
            for id in IDS
        ]  # fmt: skip
        assert fast.sync_read(registers, IDS).values.tolist() == values


def test_silent_servos_are_named_and_the_others_read(plant: SimPlant) -> None:
    with pytest.raises(ServoSilent, match="servo 13, servo 40 did not answer") as caught:
        plant.sync_read(CYCLE, (13, 11, 40, 10))
    assert caught.value.ids == (13, 40)
    assert caught.value.answered == (11, 10)
    assert caught.value.reading is not None
    assert caught.value.reading.values.tolist() == plant.sync_read(CYCLE, (11, 10)).values.tolist()
    with pytest.raises(ServoSilent) as caught:
        plant.sync_read(CYCLE, (13,))
    assert caught.value.answered == ()
    with pytest.raises(ServoSilent):
        plant.read(reg.TORQUE_ENABLE, 13)
    with pytest.raises(ServoSilent):
        plant.write_memory(13, 64, b"\x01")


def test_refused_write_is_a_bus_fault_in_words(plant: SimPlant) -> None:
    plant.write(reg.TORQUE_ENABLE, 10, 1)
    with pytest.raises(
        BusFault, match=r"servo 10 \(finger 1, proximal\) refused return_delay_time = 0: access"
    ):
        plant.write(reg.RETURN_DELAY_TIME, 10, 0)


def test_sync_write_is_silent_about_refusals_like_the_wire(plant: SimPlant) -> None:
    plant.sync_write(reg.GOAL_POSITION, {10: 5000, 13: 2000, 11: 2000})
    assert plant.read(reg.GOAL_POSITION, 10) == 1024
    assert plant.read(reg.GOAL_POSITION, 11) == 2000


def test_hardware_error_shows_in_bit_7_and_cuts_torque(plant: SimPlant) -> None:
    torque_on(plant)
    plant.servos[12].raise_hardware_error(0x20)
    plant.refresh()
    reading = plant.sync_read(STATE, IDS)
    assert reading.alerts.tolist() == [0x80 if servo == 12 else 0 for servo in IDS]
    plant.sleep_until(0.1)
    assert plant.truth["torque"][2] == 0.0


def test_rebooting_servo_is_silent_for_its_boot_time(plant: SimPlant) -> None:
    torque_on(plant)
    plant.reboot(12)
    assert 12 not in plant.ping(IDS)
    with pytest.raises(ServoSilent):
        plant.sync_read(STATE, IDS)
    plant.sleep_until(0.2)
    assert 12 in plant.ping(IDS)
    assert plant.read(reg.TORQUE_ENABLE, 12) == 0


def test_servo_without_power_is_limp_and_silent_until_power_returns(plant: SimPlant) -> None:
    torque_on(plant)
    plant.power(11, on=False)
    plant.sleep_until(0.3)
    assert 11 not in plant.ping(IDS)
    assert plant.truth["torque"][1] == 0.0
    plant.power(11, on=True)
    plant.sleep_until(0.5)
    assert plant.ping([11]) == {11: 1010}


def test_gathered_registers_stand_side_by_side_in_the_indirect_block(plant: SimPlant) -> None:
    plant.gather(CYCLE, IDS)
    plant.write(reg.BUS_WATCHDOG, 12, 77)
    block = plant.read_memory(12, 224, 16)
    gathered = b"".join(plant.read_memory(12, entry.address, entry.size) for entry in CYCLE)
    assert block == gathered
    plant.reboot(12)
    plant.sleep_until(0.2)
    assert plant.read_memory(12, 224, 16) == bytes(16)


def test_more_registers_than_fit_are_not_gathered(plant: SimPlant) -> None:
    with pytest.raises(ValueError, match="32 bytes do not fit into the 28"):
        plant.gather([reg.PRESENT_POSITION] * 8, IDS)
    with pytest.raises(ServoSilent):
        plant.gather(CYCLE, (13,))


def test_changed_id_is_the_id_that_answers(plant: SimPlant) -> None:
    plant.write(reg.ID, 12, 13)
    assert plant.ping([12, 13]) == {13: 1010}
    assert plant.sync_read(STATE, (13,)).values[0, 2] == plant.read(reg.PRESENT_POSITION, 13)


def test_wrong_number_of_servos_is_refused() -> None:
    with pytest.raises(ValueError, match="9 finger servos"):
        SimPlant(SimConfig(), servos=(10, 11, 12))


# --- motors ---------------------------------------------------------------------------------------------


def test_fingers_go_where_goals_send_them(plant: SimPlant) -> None:
    torque_on(plant)
    goal = np.tile([0.2, -0.9, 0.8], 3)
    command(plant, goal)
    plant.sleep_until(1.0)
    position = plant.sync_read([reg.PRESENT_POSITION], FINGER_SERVOS).values[:, 0] * RAD_PER_TICK
    np.testing.assert_allclose(position + ROBEL_OFFSETS[:9], goal, atol=0.06)  # gravity bends kp = 2


def test_finger_without_torque_falls_and_pulls_no_current(plant: SimPlant) -> None:
    plant.sleep_until(1.0)
    assert np.abs(plant.truth["qpos"][:9] - RESET_POSE).max() > 0.2
    assert not plant.sync_read([reg.PRESENT_CURRENT], IDS).values.any()


def test_torque_on_with_goal_at_present_does_not_lunge(plant: SimPlant) -> None:
    plant.sleep_until(0.5)
    for servo in FINGER_SERVOS:
        plant.write(reg.GOAL_POSITION, servo, plant.read(reg.PRESENT_POSITION, servo))
    torque_on(plant)
    before = plant.truth["qpos"]
    plant.sleep_until(0.6)
    np.testing.assert_allclose(plant.truth["setpoint"], before, atol=RAD_PER_TICK)


def test_teleported_fingers_are_at_rest_without_current(plant: SimPlant) -> None:
    torque_on(plant)
    plant.teleport(np.full(9, 0.3), 1.0)
    assert not plant.sync_read([reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY], IDS).values.any()


def test_current_register_is_motor_torque_over_torque_constant(plant: SimPlant) -> None:
    torque_on(plant)
    command(plant, np.full(9, 0.4))
    plant.sleep_until(0.05)
    units = plant.sync_read([reg.PRESENT_CURRENT], FINGER_SERVOS).values[:, 0]
    expected = plant.truth["torque"][:9] / 1.92  # A
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(units * 2.69e-3, expected, atol=2.69e-3 / 2 + 1e-9)


def test_velocity_register_is_the_joint_velocity(plant: SimPlant) -> None:
    torque_on(plant)
    command(plant, np.full(9, 0.4))
    plant.sleep_until(0.05)
    units = plant.sync_read([reg.PRESENT_VELOCITY], FINGER_SERVOS).values[:, 0]
    assert np.abs(units).max() > 20
    np.testing.assert_allclose(
        units * RAD_PER_S_PER_UNIT, plant.truth["qvel"][:9], atol=RAD_PER_S_PER_UNIT / 2 + 1e-9
    )


def test_valve_turns_freely_beyond_a_turn_and_its_register_counts_turns(plant: SimPlant) -> None:
    plant.teleport(RESET_POSE, 9 * math.pi)
    plant.sleep_until(0.5)
    assert plant.truth["valve"] == pytest.approx(9 * math.pi)
    assert plant.read(reg.PRESENT_POSITION, VALVE_SERVO) == 2048 + 9 * 2048
    assert plant.truth["torque"][9] == 0.0


@pytest.mark.parametrize("angle", [1.5, -2.5, 7.0])
def test_valve_servo_drives_the_valve(plant: SimPlant, angle: float) -> None:
    plant.write(reg.GOAL_POSITION, VALVE_SERVO, 2048 + round(angle / RAD_PER_TICK))
    plant.write(reg.TORQUE_ENABLE, VALVE_SERVO, 1)
    torque_on(plant)
    plant.sleep_until(1.0)
    plant.write(reg.TORQUE_ENABLE, VALVE_SERVO, 0)
    plant.sleep_until(1.5)
    assert plant.truth["valve"] == pytest.approx(angle, abs=2 * RAD_PER_TICK)


def test_profile_velocity_limits_the_speed_of_the_setpoint(plant: SimPlant) -> None:
    torque_on(plant)
    plant.write(reg.PROFILE_VELOCITY, 12, 20)  # 0.48 rad/s
    start = plant.truth["setpoint"][2]
    plant.write(reg.GOAL_POSITION, 12, plant.read(reg.PRESENT_POSITION, 12) - 400)
    plant.sleep_until(0.5)
    assert plant.truth["setpoint"][2] - start == pytest.approx(-0.5 * 20 * RAD_PER_S_PER_UNIT, abs=1e-3)
    plant.sleep_until(2.0)
    assert plant.truth["setpoint"][2] - start == pytest.approx(-400 * RAD_PER_TICK, abs=1e-3)


def test_current_limit_bounds_the_motor_torque() -> None:
    plant = SimPlant(SimConfig())
    plant.write(reg.CURRENT_LIMIT, 12, 50)
    torque_on(plant)
    plant.write(reg.GOAL_POSITION, 12, 4000)
    plant.sleep_until(0.05)
    assert plant.truth["torque"][2] == pytest.approx(50 * 2.69e-3 * 1.92)
    assert plant.read(reg.PRESENT_CURRENT, 12) == 50


def test_position_gain_scales_the_stiffness(plant: SimPlant) -> None:
    torque_on(plant)
    plant.write(reg.POSITION_P_GAIN, 12, 450)
    plant.write(reg.GOAL_POSITION, 12, 3000)
    error = (3000 - 2048) * RAD_PER_TICK - plant.truth["qpos"][2]
    plant.sleep_until(0.0025)
    assert plant.truth["torque"][2] == pytest.approx(0.5 * 2.0 * error)


# --- watchdog and delays --------------------------------------------------------------------------------


def test_watchdog_stops_the_fingers_in_plant_time(plant: SimPlant) -> None:
    torque_on(plant)
    for servo in FINGER_SERVOS:
        plant.write(reg.BUS_WATCHDOG, servo, 5)  # 0.1 s
        plant.write(reg.PROFILE_VELOCITY, servo, 20)
    command(plant, np.full(9, 0.45))
    plant.sleep_until(0.1)
    moved = plant.truth["setpoint"].copy()
    plant.sleep_until(0.5)
    assert plant.sync_read([reg.BUS_WATCHDOG], FINGER_SERVOS).values[:, 0].tolist() == [255] * 9
    assert np.abs(plant.truth["setpoint"][:9] - moved[:9]).max() < 0.06
    assert plant.truth["torque"][:9].any()
    command(plant, np.zeros(9))
    still = plant.sync_read([reg.GOAL_POSITION], FINGER_SERVOS).values[:, 0] * RAD_PER_TICK
    np.testing.assert_allclose(still + ROBEL_OFFSETS[:9], plant.truth["setpoint"][:9], atol=1e-6)


def test_talking_servos_never_trip(plant: SimPlant) -> None:
    torque_on(plant)
    plant.write(reg.BUS_WATCHDOG, 10, 6)
    for _ in range(10):
        plant.sleep_until(plant.now() + 0.1)
        plant.sync_read(STATE, IDS)
    assert plant.read(reg.BUS_WATCHDOG, 10) == 6


@pytest.mark.parametrize(("hears_all", "register"), [(True, 6), (False, 255)])
def test_whether_others_packets_feed_a_watchdog_is_a_setting(hears_all: bool, register: int) -> None:
    plant = SimPlant(SimConfig(watchdog_hears_all=hears_all))
    torque_on(plant)
    plant.write(reg.BUS_WATCHDOG, 10, 6)
    for _ in range(3):
        plant.sleep_until(plant.now() + 0.1)
        plant.sync_read(STATE, (11, 12))
    assert plant.read(reg.BUS_WATCHDOG, 10) == register


def test_command_delay_is_kept_to_the_step() -> None:
    plant = SimPlant(SimConfig(command_delay=0.02))
    torque_on(plant)
    before = plant.truth["setpoint"][:9]
    command(plant, np.full(9, 0.3))
    plant.sleep_until(0.02)
    np.testing.assert_allclose(plant.truth["setpoint"][:9], before, atol=RAD_PER_TICK)
    plant.sleep_until(0.0225)
    np.testing.assert_allclose(plant.truth["setpoint"][:9], 0.3, atol=RAD_PER_TICK)


# --- heat, overload, faults -----------------------------------------------------------------------------


def strain(plant: SimPlant, seconds: float, amperes: float = 3.0) -> None:
    """Servo 12 against a wall for so long, with so much current at most."""
    plant.write(reg.OPERATING_MODE, 12, reg.CURRENT_POSITION_MODE)
    plant.write(reg.GOAL_CURRENT, 12, min(round(amperes / 2.69e-3), 648))
    torque_on(plant)
    plant.inject(FaultSchedule([FaultConfig(kind="stuck-joint", servo=12)]))
    plant.write(reg.GOAL_POSITION, 12, 4000)
    plant.sleep_until(plant.now() + seconds)


def test_a_servo_that_strains_for_5_seconds_cuts_its_torque(plant: SimPlant) -> None:
    strain(plant, 4.9)
    assert plant.read(reg.HARDWARE_ERROR_STATUS, 12) == 0
    plant.sleep_until(6.0)
    assert plant.read(reg.HARDWARE_ERROR_STATUS, 12) == reg.OVERLOAD
    assert plant.truth["torque"][2] == 0.0
    assert plant.read(reg.TORQUE_ENABLE, 11) == 1


def test_a_goal_current_below_it_never_overloads_but_warms(plant: SimPlant) -> None:
    strain(plant, 60.0, amperes=0.9)
    assert plant.read(reg.HARDWARE_ERROR_STATUS, 12) == 0
    assert plant.read(reg.PRESENT_TEMPERATURE, 12) > plant.read(reg.PRESENT_TEMPERATURE, 22) + 3


def test_without_a_thermal_model_nothing_tires() -> None:
    plant = SimPlant(SimConfig(thermal=False))
    strain(plant, 10.0)
    assert plant.read(reg.HARDWARE_ERROR_STATUS, 12) == 0
    assert plant.read(reg.PRESENT_TEMPERATURE, 12) == plant.read(reg.PRESENT_TEMPERATURE, 22)


def test_what_does_not_overheat_moves_bitwise_as_if_nothing_could() -> None:
    worlds = []
    for thermal in (True, False):
        plant = SimPlant(SimConfig(thermal=thermal))
        torque_on(plant)
        wander(plant, 3.0)
        worlds.append(plant.truth["qpos"].tobytes())
    assert worlds[0] == worlds[1]


def inject(plant: SimPlant, *faults: FaultConfig, seed: int = 0) -> None:
    plant.inject(FaultSchedule(faults, seed))


TROUBLE = tuple(
    FaultConfig.model_validate({"every": 2.0, **settings})
    for settings in (
        {"kind": "overload"},
        {"kind": "reboot"},
        {"kind": "dead", "duration": 0.5},
        {"kind": "brown-out"},
        {"kind": "stuck-joint", "duration": 0.5},
        {"kind": "frozen-encoder", "duration": 0.5},
        {"kind": "slipping-valve", "duration": 1.0},
        {"kind": "voltage-dip", "duration": 0.3},
        {"kind": "heat", "duration": 0.7},
    )
)


def test_faults_leave_the_world_deterministic_however_time_is_cut() -> None:
    worlds = []
    for pieces in (400, 4, 4):
        plant = SimPlant(SimConfig())
        torque_on(plant)
        inject(plant, *TROUBLE, seed=5)
        command(plant, np.full(9, 0.3))
        for piece in range(pieces):
            plant.sleep_until(10.0 * (piece + 1) / pieces)
        worlds.append(plant.truth["qpos"].tobytes() + b"".join(s.read(0, 160) for s in plant.servos.values()))
    assert worlds[0] == worlds[1] == worlds[2]


def test_after_all_faults_the_world_is_whole_again() -> None:
    plant = SimPlant(SimConfig())
    inject(plant, *TROUBLE, seed=5)
    plant.sleep_until(10.0)
    plant.heal()
    assert plant.faults == []
    plant.sleep_until(10.5)
    for servo in IDS:
        plant.reboot(servo)
    plant.sleep_until(11.0)
    torque_on(plant)
    command(plant, np.tile([0.2, -0.9, 0.8], 3))
    plant.sleep_until(13.0)
    assert not plant.sync_read([reg.HARDWARE_ERROR_STATUS], IDS).values.any()
    np.testing.assert_allclose(plant.truth["qpos"][:9], np.tile([0.2, -0.9, 0.8], 3), atol=0.06)


@pytest.mark.parametrize("kind", ["lost", "corrupt", "short", "id-conflict", "late"])
def test_what_the_wire_would_spoil_is_a_silent_servo_without_one(plant: SimPlant, kind: str) -> None:
    settings = {"kind": kind, "servo": 12, "duration": 1.0, "value": 50 if kind == "late" else None}
    inject(plant, FaultConfig.model_validate(settings))
    with pytest.raises(ServoSilent) as caught:
        plant.sync_read(CYCLE, IDS)
    assert caught.value.ids == (12,)
    assert 12 not in plant.ping(IDS)
    for ask in (
        lambda: plant.read(reg.ID, 12),
        lambda: plant.write(reg.LED, 12, 1),
        lambda: plant.gather(CYCLE, (12,)),
    ):
        with pytest.raises(ServoSilent):
            ask()
    plant.sleep_until(1.0)
    assert len(plant.sync_read(CYCLE, IDS).values) == 10


@pytest.mark.parametrize("settings", [{"kind": "duplicate"}, {"kind": "late", "value": 10}])
def test_what_a_driver_puts_up_with_does_not_show_without_a_wire(
    plant: SimPlant, settings: dict[str, object]
) -> None:
    inject(plant, FaultConfig.model_validate(settings))
    assert len(plant.sync_read(CYCLE, IDS).values) == 10


def test_a_servo_is_silent_when_all_three_tries_fail(plant: SimPlant) -> None:
    inject(plant, FaultConfig(kind="lost", probability=0.5))
    silent = 0
    for _ in range(500):
        try:
            plant.sync_read(CYCLE, IDS)
        except ServoSilent as fault:
            silent += len(fault.ids)
    assert 500 < silent < 750  # 5000 / 2^3, five standard deviations


def test_an_unplugged_port_is_lost_to_every_access_until_it_is_back(plant: SimPlant) -> None:
    inject(plant, FaultConfig(kind="unplug", duration=1.0))
    for ask in (
        lambda: plant.sync_read(CYCLE, IDS),
        lambda: plant.sync_write(reg.GOAL_POSITION, {12: 2000}),
        lambda: plant.ping(IDS),
        lambda: plant.read(reg.ID, 12),
        lambda: plant.write(reg.LED, 12, 1),
        lambda: plant.gather(CYCLE, IDS),
        lambda: plant.reboot(12),
    ):
        with pytest.raises(PortLost, match="unplugged"):
            ask()
    plant.sleep_until(1.0)
    assert len(plant.ping(IDS)) == 10


def test_faults_begin_and_end_on_the_plants_clock(plant: SimPlant) -> None:
    plant.sleep_until(1.0)
    inject(plant, FaultConfig(kind="dead", servo=12, at=2.0, duration=1.0))
    plant.sleep_until(2.9975)
    assert plant.faults == []
    plant.sleep_until(3.0)
    assert plant.faults == [("dead", [12])]
    assert 12 not in plant.ping(IDS)
    plant.sleep_until(4.2)
    assert 12 in plant.ping(IDS)
    assert [event.name for event in plant.events.drain()] == ["dead", "over"]


def test_overlapping_faults_last_as_long_as_the_last_of_them(plant: SimPlant) -> None:
    inject(plant, *(FaultConfig(kind="dead", servo=12, duration=span) for span in (1.0, 3.0)))
    plant.sleep_until(2.0)
    assert 12 not in plant.ping(IDS)
    plant.sleep_until(3.3)
    assert 12 in plant.ping(IDS)


# --- camera ---------------------------------------------------------------------------------------------


def reddish(image: Image) -> np.ndarray:
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    return (red > 2 * green + 30) & (red > 2 * blue + 30)


def pixel(projection: Floats, point: Floats) -> tuple[int, int]:
    """Row and column of a point (3,) in the base frame."""
    u, v, w = projection @ [*point, 1.0]
    return round(v / w), round(u / w)


@pytest.mark.parametrize("size", [(64, 64), (200, 120)])
def test_projection_puts_the_pointer_tip_on_red_pixels(size: tuple[int, int]) -> None:
    plant = SimPlant(SimConfig(), image_size=size)
    geometry = ValveGeometry(radius=0.085)  # just inside the tip
    for angle in np.linspace(-np.pi, np.pi, 9):
        plant.teleport(RESET_POSE, angle)
        image = plant.latest(0.0).image
        assert image.shape == (size[1], size[0], 3)
        assert reddish(image)[pixel(plant.projection, geometry.rim(angle))]
        assert not reddish(image)[pixel(plant.projection, geometry.rim(angle + np.pi / 2))]
    plant.close()


def test_projection_is_exact_to_half_a_pixel() -> None:
    plant = SimPlant(SimConfig(), image_size=(640, 480))
    plant.teleport([0.0, -1.5, 0.5] * 3, 0.7)
    rows, columns = np.nonzero(reddish(plant.latest(0.0).image))
    model = dclaw_model(WorldConfig())
    data = mujoco.MjData(model)
    data.qpos[-1] = 0.7
    mujoco.mj_kinematics(model, data)
    outline = capsule_surface(model, data, pointer_geom(model))
    u, v, w = plant.projection @ np.vstack([outline, np.ones(outline.shape[1])])
    assert np.isclose((u / w).max(), columns.max(), atol=1.0)
    assert np.isclose((v / w).min(), rows.min(), atol=1.0)
    plant.close()


def capsule_surface(model: mujoco.MjModel, data: mujoco.MjData, geom: int) -> Floats:
    """Points (3, N) on a capsule's round ends, dense enough for its outline."""
    radius, half = model.geom_size[geom, :2]
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(3, 200_000))
    ball *= radius / np.linalg.norm(ball, axis=0)
    ball[2] += half * np.sign(ball[2])
    return np.asarray(data.geom_xmat[geom].reshape(3, 3) @ ball + data.geom_xpos[geom][:, None])


def test_frames_carry_time_of_capture_and_count_up(plant: SimPlant) -> None:
    first = plant.latest(0.0)
    plant.sleep_until(0.1)
    second = plant.latest(0.0)
    assert (first.time, second.time) == (0.0, 0.1)
    assert second.sequence == first.sequence + 1
    assert second.image.dtype == np.uint8
    assert not np.shares_memory(first.image, second.image)


def test_delayed_camera_shows_the_past_and_says_so() -> None:
    late, prompt = SimPlant(SimConfig(frame_delay=0.05)), SimPlant(SimConfig())
    for plant in (late, prompt):
        torque_on(plant)
        command(plant, np.full(9, 0.45))
    prompt.sleep_until(0.15)
    expected: Frame = prompt.latest(0.0)
    late.sleep_until(0.2)
    frame = late.latest(0.06)
    assert frame.time == pytest.approx(0.15)
    np.testing.assert_array_equal(frame.image, expected.image)
    with pytest.raises(StaleFrame, match=r"0\.050 s old"):
        late.latest(0.04)
    late.close()
    prompt.close()


def test_pictures_of_any_size_show_the_same_view(plant: SimPlant) -> None:
    plant.teleport(RESET_POSE, 1.0)
    small, large = plant.latest(0.0).image, plant.render(256, 256)
    blocks = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(blocks - small).mean() < 6


def test_meshes_show_the_pointer_too() -> None:
    plant = SimPlant(SimConfig(geoms="meshes"))
    assert 5 < reddish(plant.latest(0.0).image).sum() < 400
    plant.close()


def test_missing_graphics_names_the_packages(monkeypatch: pytest.MonkeyPatch, plant: SimPlant) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    plant.sync_read(STATE, IDS)  # nothing but a picture needs OpenGL
    with pytest.raises(MissingPart, match=r"libegl1 libopengl0 libgl1-mesa-dri.*libosmesa6"):
        plant.latest(0.0)


# --- mounting, and hands ---------------------------------------------------------------------------------


MOUNTED = SimConfig(
    zero_ticks=(1000, 2100, 1900, 1500, 2048, 2300, 1024, 1800, 2048, 2000),
    signs=(1, -1, 1, -1, -1, 1, 1, 1, -1, -1),
)


def test_servos_mounted_otherwise_show_other_ticks_of_the_same_motion() -> None:
    nominal, mounted = SimPlant(SimConfig()), SimPlant(MOUNTED)
    zeros, signs = np.array(MOUNTED.zero_ticks), np.array(MOUNTED.signs)
    angles = np.array([100, -300, 400] * 3 + [300])  # ticks
    for plant, goals in ((nominal, ZERO_TICKS + angles), (mounted, zeros + signs * angles)):
        torque_on(plant, IDS)
        plant.sync_write(reg.GOAL_POSITION, dict(zip(IDS, goals.tolist(), strict=True)))
        plant.sleep_until(0.1)
    assert nominal.truth["qpos"].tobytes() == mounted.truth["qpos"].tobytes()
    plain, seen = (plant.sync_read(STATE, IDS).values.T for plant in (nominal, mounted))
    np.testing.assert_array_equal(plain[:2], signs * seen[:2])
    np.testing.assert_array_equal(plain[2] - ZERO_TICKS, signs * (seen[2] - zeros))
    table = [[mounted.read(register, id) for id in IDS] for register in STATE]
    np.testing.assert_array_equal(table, seen)
    np.testing.assert_array_equal(mounted.truth["encoders"], seen[2])


@pytest.mark.parametrize("field", ["zero_ticks", "signs"])
def test_a_mounting_names_all_ten_servos(field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field} has 2 entries for 10 servos"):
        SimConfig.model_validate({field: (1, 1)})


def test_a_hand_holds_limp_joints_and_lets_go(plant: SimPlant) -> None:
    plant.hold_by_hand({12: 1.0, 10: 9.0})
    plant.sleep_until(1.0)
    held = plant.truth["qpos"]
    assert held[2] == pytest.approx(1.0, abs=1e-3)
    assert held[0] == pytest.approx(1.35, abs=1e-3), "a hand turns no joint beyond its stop"
    plant.hold_by_hand({})
    plant.sleep_until(3.0)
    assert plant.truth["qpos"][2] < 0.95


def test_a_hand_moves_no_joint_under_torque_and_none_that_is_not_there(plant: SimPlant) -> None:
    plant.write(reg.TORQUE_ENABLE, 12, 1)
    with pytest.raises(ValueError, match=r"servo 12 .* is under torque"):
        plant.hold_by_hand({12: 1.0})
    with pytest.raises(ValueError, match="no hand turns servo 13"):
        plant.hold_by_hand({13: 1.0})
