import math
from collections.abc import Iterator

import numpy as np
import pytest

from robot import registers as reg
from robot.dynamixel import DynamixelConfig, DynamixelRobot
from robot.rig import Rig, RigConfig, build
from robot.sim import SimConfig, SimPlant
from robot.types import MotionFault
from tasks.resets import ResetConfig, fingers, joint_name, move_to, reset_pose, reset_valve, waypoints
from tasks.rewards import wrap_angle

RESET = ResetConfig()
HOME = fingers(RESET.home, 9)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with build(RigConfig(kind="sim", name="sim"), cameras=False) as rig:
        yield rig


def plant_of(rig: Rig) -> SimPlant:
    assert isinstance(rig.clock, SimPlant)
    return rig.clock


def weaken(rig: Rig, servo: int) -> None:
    """A servo that has torque but no force: a stripped gear."""
    plant_of(rig).servos[servo].load(reg.POSITION_P_GAIN, 0)
    plant_of(rig).refresh()


def test_waypoints_end_at_the_goal_in_equal_steps_below_the_stride() -> None:
    path = waypoints(np.zeros(2), np.array([1.0, -0.5]), 0.3)
    assert path.shape == (4, 2)
    np.testing.assert_array_equal(path[-1], [1.0, -0.5])
    np.testing.assert_allclose(np.diff(path, axis=0), [[0.25, -0.125]] * 3)
    np.testing.assert_array_equal(waypoints(np.ones(2), np.ones(2), 0.3), [[1.0, 1.0]])


def test_joint_names_say_finger_and_place() -> None:
    assert [joint_name(i) for i in (0, 4, 8)] == [
        "finger 1, proximal",
        "finger 2, middle",
        "finger 3, distal",
    ]


def test_motion_arrives_and_stands_still(rig: Rig) -> None:
    pose = fingers((0.2, -0.8, 0.2), 9)
    state = move_to(rig, pose, RESET.motion)
    assert np.abs(state.joints.position - pose).max() <= math.radians(5)
    assert np.abs(state.joints.velocity).max() <= RESET.motion.still


def test_fingers_that_swing_about_the_goal_are_waited_for_and_not_called_blocked() -> None:
    """The lightest dampings of ROBEL's randomisation ring for longer than a blocked finger is given."""
    ringing = SimConfig(servo_stiffness=3.0, joint_damping=0.005, friction_loss=0.001)
    with build(RigConfig(sim=ringing), cameras=False) as rig:
        for pose in (fingers((0.3, -0.5, 0.5), 9), HOME):
            state = move_to(rig, pose, RESET.motion)
            assert np.abs(state.joints.velocity).max() <= RESET.motion.still


def test_valve_turns_freely_beneath_the_clear_pose(rig: Rig) -> None:
    plant = plant_of(rig)
    for angle in np.linspace(0, 2 * math.pi / 3, 25):  # three alike arms
        plant.teleport(fingers(RESET.clear, 9), angle)
        assert plant.truth["contacts"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_reset_ends_at_the_start_angle_at_rest_at_home_from_any_pose(rig: Rig, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tangled = rng.uniform(-1, 1, 9) * fingers((0.4, 1.0, 1.5), 9)
    plant_of(rig).teleport(tangled, rng.uniform(-9, 9))
    start = float(rng.uniform(-math.pi, math.pi))
    began = rig.clock.now()
    final = reset_valve(rig, start, RESET)
    truth = plant_of(rig).truth
    assert abs(wrap_angle(final - start)) <= 0.05
    assert abs(wrap_angle(truth["valve"] - final)) < 2e-3  # measured, not assumed
    assert np.abs(truth["qvel"]).max() < 0.05
    assert np.abs(truth["qpos"][:9] - HOME).max() <= math.radians(5)
    assert rig.clock.now() - began <= 3.0


def test_reset_to_a_pose_ends_there_at_rest_with_the_valve_free(rig: Rig) -> None:
    tangled = np.random.default_rng(2).uniform(-1, 1, 9) * fingers((0.4, 1.0, 1.5), 9)
    plant_of(rig).teleport(tangled, 2.0)
    pose = np.array([0.3, -0.2, -1.0, -0.3, -0.8, 0.9, 0.1, -0.5, 0.3])
    reset_pose(rig, pose, 0.5, RESET)
    truth = plant_of(rig).truth
    assert np.abs(truth["qpos"][:9] - pose).max() <= math.radians(5)
    assert abs(wrap_angle(truth["valve"] - 0.5)) <= 0.1  # no finger reaches it in this pose
    assert not plant_of(rig).servos[50].torque


def test_joint_that_does_not_reach_a_pose_is_told_by_name_after_all_attempts(rig: Rig) -> None:
    plant_of(rig).teleport(HOME, 0.0)
    rig.robot.engage()
    weaken(rig, 21)
    with pytest.raises(MotionFault, match=r"failed 3 times.*finger 2, middle"):
        reset_pose(rig, np.zeros(9), 0.0, RESET)
    assert not any(servo.torque for servo in plant_of(rig).servos.values())


def test_valve_is_free_after_the_reset(rig: Rig) -> None:
    reset_valve(rig, 1.0, RESET)
    assert not plant_of(rig).servos[50].torque
    assert all(plant_of(rig).servos[i].torque for i in (10, 21, 32))


def test_start_on_the_seam_of_the_circle_is_reached(rig: Rig) -> None:
    for start in (math.pi, -math.pi, math.pi - 1e-3, -math.pi + 1e-3):
        assert abs(wrap_angle(reset_valve(rig, start, RESET) - start)) <= 0.05


def test_servo_without_torque_is_recovered_by_disentangling(rig: Rig) -> None:
    plant_of(rig).teleport(fingers((0.3, 0.2, 0.2), 9), 0.0)

    rig.robot.engage()
    plant_of(rig).servos[31].load(reg.TORQUE_ENABLE, 0)
    plant_of(rig).refresh()
    assert abs(wrap_angle(reset_valve(rig, 0.5, RESET) - 0.5)) <= 0.05


def test_blocked_joint_fails_by_name_after_all_attempts_and_relaxes(rig: Rig) -> None:
    plant_of(rig).teleport(fingers((0.3, 0.0, 0.2), 9), 0.0)
    weaken(rig, 21)
    with pytest.raises(MotionFault, match=r"failed 3 times.*finger 2, middle") as caught:
        reset_valve(rig, 0.5, RESET)
    assert "by hand" in str(caught.value)
    assert not any(servo.torque for servo in plant_of(rig).servos.values())


def test_reset_begins_no_further_attempt_after_its_budget(rig: Rig) -> None:
    plant_of(rig).teleport(fingers((0.3, 0.0, 0.2), 9), 0.0)
    weaken(rig, 21)
    began = rig.clock.now()
    with pytest.raises(MotionFault, match="failed 2 times in"):
        reset_valve(rig, 0.5, ResetConfig(budget=2.0))
    assert rig.clock.now() - began < 12.0
    assert not any(servo.torque for servo in plant_of(rig).servos.values())


class PointingRobot(DynamixelRobot):
    """Keeps what it was asked to point at."""

    pointed: tuple[float, ...] = ()

    def point(self, angle: float) -> None:
        super().point(angle)
        self.pointed += (angle,)


@pytest.fixture
def pointing() -> Iterator[tuple[Rig, PointingRobot]]:
    with build(RigConfig(dclaw=DynamixelConfig(guide_id=60)), cameras=False) as rig:
        robot = PointingRobot(plant_of(rig), rig.config.dclaw, rig.clock)
        rig.robot = robot
        yield rig, robot
        robot.relax()


def test_guide_points_at_the_goal_before_the_reset_ends(pointing: tuple[Rig, PointingRobot]) -> None:
    rig, robot = pointing
    reset_valve(rig, 1.0, RESET)
    assert robot.pointed == ()
    began = rig.clock.now()
    reset_valve(rig, 1.0, RESET, 1.5)  # the valve is there already, the horn may have to turn all around
    assert robot.pointed == (1.5,)
    assert plant_of(rig).truth["qpos"][-1] == pytest.approx(1.5, abs=math.radians(0.1))
    assert rig.clock.now() - began >= math.tau / rig.config.dclaw.object_velocity
    robot.command(robot.read().joints.position, 0.05)  # engaged, and no watchdog has tripped meanwhile


def test_guide_points_again_in_every_attempt(pointing: tuple[Rig, PointingRobot]) -> None:
    """Disentangling takes its torque off, too."""
    rig, robot = pointing
    weaken(rig, 50)
    with pytest.raises(MotionFault):
        reset_valve(rig, 2.0, ResetConfig(valve_timeout=0.5), 1.5)
    assert robot.pointed == (1.5, 1.5, 1.5)


def test_jammed_valve_fails_within_its_timeouts(rig: Rig) -> None:
    weaken(rig, 50)
    began = rig.clock.now()
    with pytest.raises(MotionFault, match="failed 3 times"):
        reset_valve(rig, 2.0, ResetConfig(valve_timeout=1.0))
    assert rig.clock.now() - began < 20.0
