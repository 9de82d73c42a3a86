"""Promises of the simulated guide servo: a needle that shows the goal to the camera, and to nobody else."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from robot import registers as reg
from robot.dynamixel import DynamixelConfig
from robot.faults import FaultConfig, FaultSchedule
from robot.randomise import RandomiseConfig
from robot.rig import Rig, RigConfig, build
from robot.sim import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, ZERO_TICKS, SimConfig, SimPlant
from robot.types import Floats, Image, ServoSilent, ValveGeometry
from robot.valve_vision import Sighting, ValveEye
from robot.world import GUIDE_JOINT
from tasks import RobotEnv, registration
from tasks.oracle import Oracle, OracleConfig
from tasks.valve import Valve

GUIDE = 60
GUIDED = DynamixelConfig(guide_id=GUIDE)
AROUND = math.tau / GUIDED.object_velocity  # s for a whole turn
SIZE = (128, 128)
EYE_ERROR = math.radians(2.0)  # what the eye promises without a needle


@pytest.fixture
def plant() -> Iterator[SimPlant]:
    plant = SimPlant(SimConfig(), guide_servo=GUIDE)
    yield plant
    plant.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with build(RigConfig(dclaw=GUIDED), cameras=False) as rig:
        yield rig


def plant_of(rig: Rig) -> SimPlant:
    assert isinstance(rig.clock, SimPlant)
    return rig.clock


def turn(plant: SimPlant, angle: float) -> None:
    """By its registers, at full speed; then it has settled."""
    plant.write(reg.TORQUE_ENABLE, GUIDE, 1)
    plant.write(reg.GOAL_POSITION, GUIDE, 2048 + round(angle / reg.RAD_PER_TICK))
    plant.sleep_until(plant.now() + 0.5)


def needle(plant: SimPlant) -> Floats:
    """(3,) m, where its middle is."""
    model, data = plant.twin()
    mujoco.mj_kinematics(model, data)
    return np.array(data.geom_xpos[model.geom(GUIDE_JOINT).id])


def green(image: Image) -> NDArray[np.bool_]:
    """(H, W)"""
    red, green, blue = np.moveaxis(image.astype(int), 2, 0)
    return np.asarray((green > red + 30) & (green > blue + 30))


def make(*settings: str) -> RobotEnv:
    return registration.make(
        "valve_random", settings=["task.cue=pointer", f"hw.dclaw.guide_id={GUIDE}", *settings]
    )


# --- the servo ---


@pytest.mark.parametrize("angle", [-math.pi, -2.0, 0.0, 1.0, 3.1, 7.0])
def test_the_needle_points_where_the_valves_pointer_does_at_that_angle(rig: Rig, angle: float) -> None:
    rig.robot.point(angle)
    for _ in range(math.ceil(AROUND / 0.1) + 3):  # a reading now and then, so that no watchdog stops it
        rig.clock.sleep_until(rig.clock.now() + 0.1)
        rig.robot.read()
    tip, middle = ValveGeometry().rim(angle), needle(plant_of(rig))
    across = np.cross(tip, middle)[2] / np.linalg.norm(tip[:2])
    assert abs(across) < 0.0002
    assert middle[:2] @ tip[:2] > tip[:2] @ tip[:2], "it stands outside of the arms"


def test_a_guide_turns_no_faster_than_the_driver_lets_it(rig: Rig) -> None:
    plant, before = plant_of(rig), 0.0
    rig.robot.point(3.0)
    for _ in range(20):
        rig.clock.sleep_until(rig.clock.now() + 0.05)
        rig.robot.read()
        now = float(plant.truth["qpos"][-1])
        assert 0 <= now - before <= 1.02 * 0.05 * GUIDED.object_velocity
        before = now
    assert before > 2.0


def test_relaxed_it_has_no_torque(rig: Rig) -> None:
    rig.robot.point(1.0)
    assert plant_of(rig).read(reg.TORQUE_ENABLE, GUIDE) == 1
    rig.robot.relax()
    assert plant_of(rig).read(reg.TORQUE_ENABLE, GUIDE) == 0


def test_without_an_id_there_is_neither_servo_nor_needle() -> None:
    plant = SimPlant(SimConfig())
    model, _ = plant.twin()
    assert (model.nq, model.nu) == (10, 10)
    assert sorted(plant.servos) == [*FINGER_SERVOS, VALVE_SERVO]
    with pytest.raises(ServoSilent):
        plant.read(reg.PRESENT_POSITION, GUIDE)


def test_an_id_that_another_servo_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got ids .* 50, 50"):
        SimPlant(SimConfig(), guide_servo=VALVE_SERVO)


def test_it_moves_neither_fingers_nor_valve(plant: SimPlant) -> None:
    """Also where it goes right through them."""
    alone, rng = SimPlant(SimConfig()), np.random.default_rng(0)
    for each in (alone, plant):
        each.sync_write(reg.TORQUE_ENABLE, dict.fromkeys(FINGER_SERVOS, 1))
    for _ in range(20):
        angles = rng.uniform(-1, 1, 9) * np.tile([0.48, 1.05, 1.57], 3)
        ticks = ZERO_TICKS[:9] + np.rint(angles / reg.RAD_PER_TICK).astype(int)
        goals = dict(zip(FINGER_SERVOS, ticks.tolist(), strict=True))
        for each in (alone, plant):
            each.sync_write(reg.GOAL_POSITION, goals)
        alone.sleep_until(alone.now() + 0.5)
        turn(plant, float(rng.uniform(-math.pi, math.pi)))
        np.testing.assert_allclose(plant.truth["qpos"][:10], alone.truth["qpos"], atol=1e-9)
    assert abs(alone.truth["valve"]) > 0.01, "the fingers must have met the valve"


def test_a_slipping_valve_is_the_valves_and_not_the_guides(plant: SimPlant) -> None:
    plant.inject(FaultSchedule([FaultConfig(kind="slipping-valve")], 0))
    assert plant.faults == [("slipping-valve", [VALVE_SERVO])]
    turn(plant, 1.0)
    assert plant.read(reg.PRESENT_POSITION, GUIDE) == pytest.approx(2048 + 1.0 / reg.RAD_PER_TICK, abs=1)


def test_an_expert_foresees_fingers_and_valve_beside_a_guide() -> None:
    env = make()
    env.reset(seed=3)
    assert isinstance(env.task, Valve)
    oracle = Oracle(env.rig, env.task, OracleConfig(timestep=0.0025))
    actions = np.random.default_rng(3).uniform(-1, 1, (1, 4, 9))
    for action, moments in zip(actions[0], list(oracle.foresee(actions, 0)), strict=True):
        env.step(action.astype(np.float32))
        truth = plant_of(env.rig).truth
        np.testing.assert_allclose(moments.joints[0], truth["qpos"][:9], atol=1e-6)
        assert moments.objects[0] == pytest.approx(truth["valve"], abs=1e-6)
    env.close()


# --- what it shows ---


def test_it_is_in_the_picture_at_every_angle_whatever_the_draw() -> None:
    """Fingers at home; under the widest looks that are drawn, and with the valve anywhere."""
    config, rng = SimConfig(randomise=RandomiseConfig.model_validate("sim2real")), np.random.default_rng(0)
    plant = SimPlant(config, guide_servo=GUIDE)
    for number, angle in enumerate(np.linspace(-math.pi, math.pi - 0.01, 24)):
        turn(plant, angle)
        if number % 2:  # every other one as configured
            plant.vary(config.randomise.draw(rng))
        plant.teleport(RESET_POSE, float(rng.uniform(-math.pi, math.pi)))
        assert green(plant.latest(1.0).image).sum() >= 4
    plant.close()


def test_the_eye_finds_the_valves_pointer_beside_the_needle(plant: SimPlant) -> None:
    eye = ValveEye(plant.projection_at(SIZE), SIZE)
    for angle in np.linspace(-math.pi, math.pi, 8, endpoint=False) + 0.1:
        for away in (0.0, 0.3, math.pi):
            turn(plant, math.remainder(angle + away, math.tau))
            plant.teleport(RESET_POSE, angle)
            found = eye.look(plant.view(SIZE, 1.0).image)
            assert isinstance(found, Sighting)
            assert abs(math.remainder(found.angle - angle, math.tau)) < EYE_ERROR


def test_two_goals_give_two_images_that_differ_in_the_needle_alone() -> None:
    """Same seed, same start: nothing else that the agent gets without the state tells the goal."""
    seen = []
    for goal in (-1.0, 0.4):
        env = make(f"task.goal={{kind: fixed, angle: {goal}}}")
        seen.append(env.reset(seed=5)[0])
        felt = env.task.joint_size
        env.close()
    (one, two), images = seen, [observation["image"] for observation in seen]
    assert set(one) == {"state", "image"}
    np.testing.assert_array_equal(one["state"][:felt], two["state"][:felt])
    different = (images[0] != images[1]).any(axis=2)
    assert different.sum() >= 12
    assert (different == (green(images[0]) ^ green(images[1]))).all()


def test_it_points_at_the_goal_until_the_episode_ends() -> None:
    env, rng = make(), np.random.default_rng(0)
    goal = env.reset(seed=1)[1]["parameters"]["goal"]
    for _ in range(15):
        env.step(rng.uniform(-1, 1, 9).astype(np.float32))
        at = float(plant_of(env.rig).truth["qpos"][-1])
        assert math.remainder(at - goal, math.tau) == pytest.approx(0.0, abs=0.002)
    env.close()
