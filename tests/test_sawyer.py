"""The simulated Sawyer: the arm, its three scenes, their rewards, and the experts that solve them."""

import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robot.rig import Rig, RigConfig, build
from robot.safety import POSITION_LIMIT, VELOCITY_LIMIT
from robot.sawyer import (
    SCENES,
    DoorArm,
    DrawerArm,
    PickupArm,
    SawyerConfig,
    SawyerPlant,
    SawyerRobot,
    find_metaworld,
    sawyer_model,
)
from robot.types import Applied, InvalidCommand, JointState, MissingPart, MotionFault, Snapshot
from robot.world import check_mujoco
from tasks import RobotEnv, make_task
from tasks.replay import replay, rescore
from tasks.sawyer import ArmTask, ArmTaskConfig, Door, DoorConfig, Drawer, DrawerConfig, Pickup, PickupConfig

TASKS: dict[str, ArmTaskConfig] = {
    "door": DoorConfig(),
    "door from the handle": DoorConfig(start="handle"),
    "drawer": DrawerConfig(),
    "pickup": PickupConfig(),
}
HOME = np.array(SawyerConfig(scene="door").hand)
MEASURED = [f"{who}_{what}" for who in ("joint", "object") for what in ("position", "velocity", "current")]
COLUMNS = ("time", "requested", "applied", *MEASURED)
UP, OBLIQUE = np.array([0.0, 0.0, 1.0]), np.array([0.01, 0.0, -0.01])
NO_COMMAND = Applied(np.zeros(4), np.zeros(4))


ARMS: dict[str, SawyerConfig] = {"door": DoorArm(), "drawer": DrawerArm(), "pickup": PickupArm()}


@pytest.fixture(scope="module", params=ARMS)
def plant(request: pytest.FixtureRequest) -> Iterator[SawyerPlant]:
    plant = SawyerPlant(ARMS[request.param])
    yield plant
    plant.close()


def rig_of(config: ArmTaskConfig, **changes: Any) -> Rig:
    return build(RigConfig(kind="sim", name="sim", **changes), cameras=False, arm=config.sawyer)


def middle(config: ArmTaskConfig) -> NDArray[np.float64]:
    return (np.array(config.low) + np.array(config.high)) / 2


def snapshot(hand: Any, thing: Any) -> Snapshot:
    def state(position: Any) -> JointState:
        values = np.asarray(position, np.float64)
        return JointState(0.0, values, np.zeros_like(values), np.empty(0))

    return Snapshot(0.0, state([*hand, 0.1]), state(thing), {})


# --- the arm ---


def test_the_hand_hangs_where_it_is_aimed_and_stays_there(plant: SawyerPlant) -> None:
    plant.restart(middle(TASKS[plant.config.scene]), HOME)
    for _ in range(40):
        plant.sleep_until(plant.now() + 0.05)
    np.testing.assert_allclose(plant.tip, HOME, atol=2e-4)


def test_the_hand_follows_a_set_point_at_full_speed_by_a_centimetre(plant: SawyerPlant) -> None:
    plant.restart(middle(TASKS[plant.config.scene]), HOME)
    goal = HOME.copy()
    for _ in range(10):
        goal[2] += 0.02
        plant.aim(goal, -1.0)
        plant.sleep_until(plant.now() + 0.05)
    assert 0.005 < goal[2] - plant.tip[2] < 0.015
    assert 0.2 < plant.hand[1][2] < 0.5


def test_a_restart_is_the_same_whatever_was_before(plant: SawyerPlant) -> None:
    placed = middle(TASKS[plant.config.scene])

    def episode() -> NDArray[np.float64]:
        plant.restart(placed, HOME)
        rows = []
        for step in range(10):
            plant.aim(HOME + step * OBLIQUE, 1.0)
            plant.sleep_until(plant.now() + 0.05)
            rows.append(np.concatenate([*plant.hand, *plant.thing]))
        return np.array(rows)

    first = episode()
    np.testing.assert_array_equal(episode(), first)


def test_a_restart_brings_the_hand_to_points_of_the_workspace_where_it_then_stays(plant: SawyerPlant) -> None:
    """A hand that hangs on joints beyond their limits would be thrown off at once."""
    rng, reached = np.random.default_rng(0), 0
    placed = middle(TASKS[plant.config.scene]) if not plant.scene.free else np.array([0.4, 0.9, 0.02])
    for _ in range(40):
        tip = rng.uniform([-0.3, 0.45, 0.25], [0.3, 0.75, 0.4])
        try:
            plant.restart(placed, tip)
        except MotionFault:
            continue
        np.testing.assert_allclose(plant.tip, tip, atol=1e-4)
        plant.sleep_until(plant.now() + 0.1)
        np.testing.assert_allclose(plant.tip, tip, atol=2e-3)
        reached += 1
    assert reached > 25


def test_a_start_out_of_reach_is_refused_by_name() -> None:
    plant = SawyerPlant(SawyerConfig(scene="drawer"))
    with pytest.raises(MotionFault, match=r"cannot bring its hand to \[3.0, 3.0, 3.0\]"):
        plant.restart(middle(TASKS["drawer"]), np.full(3, 3.0))


def test_fingers_open_and_close(plant: SawyerPlant) -> None:
    plant.restart(middle(TASKS[plant.config.scene]), HOME)
    opened = plant.hand[0][3]
    plant.aim(HOME, 1.0)
    plant.sleep_until(plant.now() + 1.0)
    assert opened == pytest.approx(0.1, abs=0.005)
    assert plant.hand[0][3] == pytest.approx(0.03, abs=0.005)


def test_velocities_are_what_positions_do(plant: SawyerPlant) -> None:
    config = TASKS[plant.config.scene]
    with rig_of(config) as rig:
        env = RobotEnv(rig, make_task(config), images=False, seed=0)
        env.reset()
        rng, dt = np.random.default_rng(0), 0.0025
        for _ in range(5):
            env.step(rng.uniform(-1, 1, 4).astype(np.float32))
            before = rig.robot.read()
            rig.clock.sleep_until(rig.clock.now() + dt)
            after = rig.robot.read()
            for one, other in ((before.joints, after.joints), (before.object, after.object)):
                mean = (one.velocity + other.velocity) / 2
                np.testing.assert_allclose((other.position - one.position) / dt, mean, atol=0.02)


def test_goal_markers_are_not_in_the_model() -> None:
    for scene in SCENES:
        model = sawyer_model(SawyerConfig.model_validate({"scene": scene}))
        assert "goal" not in {model.site(number).name for number in range(model.nsite)}


def test_the_picture_shows_the_thing_where_the_projection_says(plant: SawyerPlant) -> None:
    placed = middle(TASKS[plant.config.scene])
    plant.restart(placed, HOME)
    handle = plant.thing[0][-3:]
    u, v, w = plant.projection @ np.append(handle, 1.0)
    assert 12 < u / w < 52
    assert 12 < v / w < 52
    seen = plant.latest(0.0)
    plant.restart(placed, HOME + 0.15 * UP)
    assert seen.image.shape == (64, 64, 3)
    assert (seen.image != plant.latest(0.0).image).any()


def test_metaworld_is_read_and_never_imported() -> None:
    code = (
        "import sys; from robot.sawyer import SawyerConfig, SawyerPlant;"
        "SawyerPlant(SawyerConfig(scene='door')); print('metaworld' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_missing_metaworld_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPart, match="make setup"):
        find_metaworld()


# --- the robot ---


def test_no_target_leaves_the_box_or_runs_ahead_of_the_hand(plant: SawyerPlant) -> None:
    robot = SawyerRobot(plant)
    plant.restart(middle(TASKS[plant.config.scene]), HOME)
    rng = np.random.default_rng(1)
    config = plant.config
    for _ in range(100):
        applied = robot.command(rng.uniform(-2, 2, 4), 0.05)
        assert (applied.target[:3] >= config.lower).all()
        assert (applied.target[:3] <= config.upper).all()
        assert np.abs(applied.target[:3] - plant.tip).max() <= config.max_velocity * 0.05 + 1e-12
        assert abs(applied.target[3]) <= 1
        assert applied.reasons
        assert set(applied.reasons) <= {POSITION_LIMIT, VELOCITY_LIMIT}


@pytest.mark.parametrize("target", [np.zeros(3), np.full(4, np.nan), np.array([0, 0.6, np.inf, 0])])
def test_a_target_that_is_no_target_is_refused(plant: SawyerPlant, target: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidCommand):
        SawyerRobot(plant).command(target, 0.05)


def test_what_a_sawyer_has_not_got_is_told(plant: SawyerPlant) -> None:
    robot = SawyerRobot(plant)
    with pytest.raises(MotionFault, match="restart"):
        robot.drive_object(0.0, 0.1, 1.0)
    with pytest.raises(MotionFault, match="restart"):
        robot.point(0.0)


def test_it_is_simulated_only() -> None:
    with pytest.raises(ValueError, match="--hw sim"):
        build(RigConfig(kind="real"), arm=SawyerConfig(scene="door"))


def test_a_task_for_a_sawyer_refuses_another_robot() -> None:
    with build(RigConfig(kind="sim"), cameras=False) as rig, pytest.raises(ValueError, match="--task"):
        Door(DoorConfig()).reset(rig, np.random.default_rng(0))


# --- rewards, by hand ---


@pytest.mark.parametrize(
    ("angle", "reward"),
    [(0.0, -math.pi / 2), (-math.pi / 2, 0.0), (-2.0, math.pi / 2 - 2.0), (-1.0, 1.0 - math.pi / 2)],
)
def test_door_is_equation_12(angle: float, reward: float) -> None:
    door = Door(DoorConfig())
    seen = snapshot([0, 0.6, 0.1], [angle, 0.2, 0.7, 0.15])
    assert door.reward(seen, NO_COMMAND) == pytest.approx({"angle": reward})


@pytest.mark.parametrize(("angle", "done"), [(-1.49, False), (-1.4909, True), (-1.65, True), (-1.651, False)])
def test_door_is_open_within_its_radius(angle: float, done: bool) -> None:
    door = Door(DoorConfig())
    assert door.success(snapshot([0, 0.6, 0.1], [angle, 0.2, 0.7, 0.15])) is done


def test_drawer_is_equation_13() -> None:
    drawer = Drawer(DrawerConfig())
    seen = snapshot([0.1, 0.5, 0.2], [-0.15, 0.1, 0.7, 0.1])
    expected = {"hand_to_handle": -(0.2**2 + 0.1**2), "drawer_to_goal": -0.15}
    assert drawer.reward(seen, NO_COMMAND) == pytest.approx(expected)
    closed = snapshot([0.1, 0.7, 0.1], [0.0, 0.1, 0.7, 0.1])
    assert drawer.reward(closed, NO_COMMAND) == pytest.approx({"hand_to_handle": 0, "drawer_to_goal": 0})


@pytest.mark.parametrize(("way", "done"), [(-0.0201, False), (-0.0199, True), (0.0, True)])
def test_drawer_is_closed_within_two_centimetres(way: float, done: bool) -> None:
    assert Drawer(DrawerConfig()).success(snapshot([0, 0.6, 0.1], [way, 0.1, 0.7, 0.1])) is done


@pytest.mark.parametrize("distance", [0.0, 0.1, 0.3, 3.0])
def test_reaching_the_block_is_equation_14_with_the_square_inside(distance: float) -> None:
    pickup = Pickup(PickupConfig())
    pickup.restore({"x": 0.0, "y": 0.6, "z": 0.02})
    terms = pickup.reward(snapshot([distance, 0.6, 0.02], [0, 0.6, 0.02]), NO_COMMAND)
    assert terms == pytest.approx({"reach": 0.25 * (1 - math.tanh(10 * distance**2)), "lift": 0})
    assert 0 <= terms["reach"] <= 0.25


@pytest.mark.parametrize(("height", "lifted"), [(0.0399, False), (0.0401, True)])
def test_a_lifted_block_earns_one_and_nothing_for_the_reach(height: float, lifted: bool) -> None:
    pickup = Pickup(PickupConfig())
    pickup.restore({"x": 0.0, "y": 0.6, "z": 0.02})
    seen = snapshot([0, 0.6, 0.02 + height], [0, 0.6, 0.02 + height])
    assert pickup.success(seen) is lifted
    assert pickup.reward(seen, NO_COMMAND) == pytest.approx(
        {"reach": 0.25 * (not lifted), "lift": float(lifted)}
    )


# --- episodes ---


def episode(env: RobotEnv, task: ArmTask, seed: int) -> list[dict[str, Any]]:
    observation, info = env.reset(seed=seed)
    infos, done = [info], False
    while not done:
        observation, _, terminated, done, info = env.step(
            task.expert(observation["state"].astype(np.float64))
        )
        assert not terminated
        infos.append(info)
    return infos


@pytest.mark.parametrize("name", TASKS)
def test_the_expert_succeeds_where_holding_still_fails(name: str) -> None:
    config = TASKS[name]
    task = make_task(config)
    assert isinstance(task, ArmTask)
    with rig_of(config) as rig:
        env = RobotEnv(rig, task, images=False)
        for seed in (0, 1):
            assert episode(env, task, seed)[-1]["success"], f"seed {seed}"
        env.reset(seed=0)
        for _ in range(config.horizon):
            *_, info = env.step(task.hold)
        assert not info["success"]


@pytest.mark.parametrize("name", ["door", "drawer", "pickup"])
def test_a_log_gives_its_rewards_again_and_is_replayed_to_the_bit(name: str) -> None:
    config = TASKS[name].model_copy(update={"horizon": 40})
    task = make_task(config)
    assert isinstance(task, ArmTask)
    with rig_of(config) as rig:
        infos = episode(RobotEnv(rig, task, images=False), task, seed=5)
        steps = {column: np.array([info["telemetry"][column] for info in infos[1:]]) for column in COLUMNS}
        terms = {term: np.array([info["terms"][term] for info in infos[1:]]) for term in infos[1]["terms"]}
        again = make_task(config)
        assert rescore(again, infos[0]["parameters"], steps, terms).difference == 0.0
        first = infos[0]["telemetry"]
        result = replay(
            rig, again, steps["applied"], start=first["joint_position"], object_start=first["object_position"]
        )
    np.testing.assert_array_equal(result.position, steps["joint_position"])
    np.testing.assert_array_equal(result.object_position, steps["object_position"])


def widest(start: str, act: Callable[[np.random.Generator], NDArray[np.float32]]) -> float:
    """The furthest that the door is opened in a few episodes, rad."""
    config = DoorConfig.model_validate({"start": start})
    rng, angle = np.random.default_rng(0), 0.0
    with rig_of(config) as rig:
        env = RobotEnv(rig, make_task(config), images=False)
        for seed in range(4):
            env.reset(seed=seed)
            for _ in range(config.horizon):
                *_, info = env.step(act(rng))
                angle = min(angle, info["measures"]["angle"])
    return angle


def at_random(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(-1, 1, 4).astype(np.float32)


def test_random_actions_find_the_door_only_from_its_handle() -> None:
    assert widest("away", at_random) > -1e-3
    assert widest("handle", at_random) < -0.02


def test_a_hand_that_holds_still_behind_the_handle_moves_nothing() -> None:
    hold = Door(DoorConfig(start="handle")).hold
    assert widest("handle", lambda rng: hold) > -1e-3


@pytest.mark.parametrize("config", TASKS.values(), ids=TASKS)
def test_a_part_of_the_arms_settings_leaves_the_others_as_they_are(config: ArmTaskConfig) -> None:
    parts = {"arm": {**config.arm.model_dump(include={"scene"}), "mesh_cell": 0.004}}
    again = type(config).model_validate(parts)
    assert again.arm == config.arm.model_copy(update={"mesh_cell": 0.004})


def test_places_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low x = 0\.3 m is above high x = 0\.1 m; swap them"):
        DoorConfig(low=(0.3, 0.9, 0.15))


@pytest.mark.parametrize(("iterations", "slides"), [(3, False), (0, True)])
def test_a_grasped_block_stays_in_the_fingers_only_without_slip(iterations: int, slides: bool) -> None:
    config = PickupConfig(arm=PickupArm(noslip_iterations=iterations), horizon=140)
    with rig_of(config) as rig:
        infos = episode(RobotEnv(rig, Pickup(config), images=False), Pickup(config), seed=3)
    held = [i["telemetry"]["joint_position"][2] - i["telemetry"]["object_position"][2] for i in infos]
    assert bool(abs(held[-1] - held[60]) > 0.003) is slides


@pytest.mark.parametrize(
    ("version", "told"), [("3.17.0", False), ("3.99.1", False), ("3.3.0", True), ("4.0.0", True)]
)
def test_a_mujoco_that_was_never_tried_is_told(version: str, told: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_mujoco(version)
    assert [version in str(warning.message) for warning in caught] == [True] * told


def test_a_start_outside_of_the_workspace_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hand starts at z = 2 m, outside of its box from 0\.01 to 0\.45"):
        SawyerConfig(scene="drawer", hand=(0.0, 0.6, 2.0))
