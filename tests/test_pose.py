import math
from collections.abc import Iterator

import numpy as np
import pytest
from pydantic import ValidationError

from robot.collision import FingerClearance, ValveClearance
from robot.kinematics import FingerPositions
from robot.rig import Rig, RigConfig, build
from robot.types import Applied, Floats, Frame, Image, JointState, MotionFault, Snapshot
from robot.world import CameraPose
from tasks import Pose, PoseConfig, RobotEnv
from tasks.claw import Dot, Interval, project
from tasks.pose import COLOURS, Swing
from tasks.resets import fingers

STILL, SWINGING = PoseConfig(), PoseConfig(goal="swinging")
ZERO, REST = np.zeros(9), np.zeros(9, np.float32)
COMMAND = Applied(ZERO, ZERO)
HIGH = fingers((0.48, math.pi / 3, math.pi / 2), 9)
GREY = 200
VIEW = CameraPose().projection(64, 64)


def snapshot(
    position: Floats, velocity: Floats = ZERO, image: Image | None = None, step: int = 0
) -> Snapshot:
    joints = JointState(1.0, position, velocity, ZERO)
    valve = JointState(1.0, np.array([0.3]), np.zeros(1), np.zeros(1))
    frames = {} if image is None else {"front": Frame(0.97, image, 3)}
    return Snapshot(1.0, joints, valve, frames, step=step)


def at(goal: Floats, config: PoseConfig = STILL) -> Pose:
    task = Pose(config)
    task.goal = Swing(goal, ZERO, ZERO)
    return task


def floor() -> Image:
    return np.full((64, 64, 3), GREY, np.uint8)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with build(RigConfig(kind="sim", name="sim"), cameras=False) as rig:
        yield rig


# --- draws ---


def test_starts_and_goals_lie_in_the_command_range_with_middle_joints_outwards() -> None:
    task, rng = Pose(STILL), np.random.default_rng(0)
    draws = [task.draw(rng) for _ in range(200)]
    starts, goals = (
        np.array([start for _, start, _ in draws]),
        np.array([goal.at(0.0) for goal, _, _ in draws]),
    )
    for poses in (starts, goals):
        spread = poses.max(0) - poses.min(0)
        assert (np.abs(poses) <= HIGH).all()
        assert (poses[:, 1::3] <= 0).all()
        assert (spread[0::3] > 0.9).all()
        assert (spread[1::3] > 0.95).all()
        assert (spread[2::3] > 2.9).all()
        np.testing.assert_allclose(poses.mean(0), np.tile([0, -math.pi / 6, 0], 3), atol=0.25)
    assert np.abs(np.corrcoef(starts.T, goals.T)[:9, 9:]).max() < 0.3  # drawn apart from each other


def test_a_goal_that_stays_stays() -> None:
    goal, *_ = Pose(STILL).draw(np.random.default_rng(1))
    np.testing.assert_array_equal(goal.at(0.0), goal.at(3.7))


def test_a_goal_that_swings_starts_in_its_middle_below_30_degrees_per_second() -> None:
    task, rng = Pose(SWINGING), np.random.default_rng(2)
    for _ in range(30):
        goal, start, _ = task.draw(rng)
        np.testing.assert_array_equal(start, goal.at(0.0))
        assert ((goal.frequency >= 0.5) & (goal.frequency < 2.0)).all()
        assert (goal.amplitude * goal.frequency <= math.pi / 6 + 1e-12).all()
        path = np.array([goal.at(step * 0.05) for step in range(81)])
        assert np.abs(np.diff(path, axis=0)).max() <= math.pi / 6 * 0.05 + 1e-12
        assert (np.abs(path) <= HIGH + 1e-12).all()
        assert (path[:, 1::3] <= 1e-12).all()
        assert np.ptp(path, axis=0).max() > 0.2


@pytest.mark.parametrize("config", [STILL, SWINGING], ids=["still", "swinging"])
def test_fingers_never_have_to_come_near_each_other(config: PoseConfig) -> None:
    wide = config.model_copy(update={"clearance": 0.025})  # which more poses lack than 0.01
    clear, task, rng = FingerClearance(), Pose(wide), np.random.default_rng(3)
    for _ in range(25):
        goal, start, _ = task.draw(rng)
        assert clear.keeps(start, 0.025)
        assert all(clear.keeps(goal.at(step * 0.05), 0.025) for step in range(0, 81, 5))


def test_valve_begins_beside_the_start_and_no_goal_holds_it_from_two_sides() -> None:
    beside, task, rng = ValveClearance(), Pose(STILL), np.random.default_rng(8)
    angles = np.arange(48) * math.tau / 144
    for _ in range(300):
        goal, start, valve = task.draw(rng)
        assert beside.keeps(np.append(start, valve), 0.01)
        assert any(beside.keeps(np.append(goal.at(0.0), angle), 0.0) for angle in angles)


def test_start_that_would_hold_the_valve_is_not_drawn() -> None:
    """It was, once: fingers 1 and 3 stood against the valve from two sides, and no attempt got them there."""
    held = np.array([0.12, -0.05, 0.81, -0.2, -0.85, -1.0, -0.2, -0.51, 0.98])
    beside = ValveClearance()
    assert not any(beside.keeps(np.append(held, angle), 0.01) for angle in np.arange(16) * math.tau / 48)


def test_poses_in_which_fingers_touch_are_drawn_again() -> None:
    """Without a clearance some of these draws would have been taken."""
    clear, rng = FingerClearance(), np.random.default_rng(4)
    low, high = -HIGH, np.where(np.arange(9) % 3 == 1, 0.0, HIGH)
    refused = sum(not clear.keeps(rng.uniform(low, high), 0.01) for _ in range(2000))
    assert 20 <= refused <= 120


def test_a_clearance_that_no_pose_has_is_told_instead_of_drawn_for_ever() -> None:
    task = Pose(STILL.model_copy(update={"clearance": 1.0}))
    with pytest.raises(MotionFault, match=r"In 100 random poses .* Make task\.clearance smaller"):
        task.draw(np.random.default_rng(5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frequency": {"low": 0.0, "high": 1.0}}, "above 0 rad/s"),
        ({"frequency": {"low": 2.0, "high": 1.0}}, "above high"),
        ({"clearance": 0.05}, "less than 0.03"),
        ({"cue": "dot"}, "'dots', 'vector' or 'none'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PoseConfig.model_validate(settings)


# --- state, reward, success ---


def test_state_is_positions_velocities_errors_and_last_action() -> None:
    position, velocity, action = (np.linspace(low, 0.5, 9) for low in (-0.4, -0.3, -1.0))
    task = at(np.full(9, 0.1))
    state = task.observe(snapshot(position, velocity), action.astype(np.float32))["state"]
    assert (state.shape, state.dtype) == ((task.state_size,), np.float32)
    wanted = np.concatenate((position, velocity, position - 0.1, action))
    np.testing.assert_allclose(state, wanted, rtol=1e-5, atol=1e-7)
    assert task.joint_size == 18


def test_error_and_reward_are_about_where_the_goal_is_now() -> None:
    task = Pose(SWINGING)
    task.goal = Swing(np.full(9, -0.2), np.full(9, 0.3), np.full(9, 1.5))
    now = -0.2 + 0.3 * math.sin(1.5 * 0.05 * 12)
    assert task.reward(snapshot(ZERO, step=12), COMMAND)["pose"] == pytest.approx(-3 * abs(now))
    assert task.reward(snapshot(np.full(9, now), step=12), COMMAND)["pose"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("degrees", "success"), [(9.999, True), (10.001, False)])
def test_success_is_a_mean_below_ten_degrees(degrees: float, success: bool) -> None:
    position = np.array([3.0, -3.0, 3.0, 0, 0, 0, 0, 0, 0]) * math.radians(
        degrees
    )  # one joint alone may be far
    assert at(ZERO).success(snapshot(position)) is success


def test_measures_are_mean_and_largest_error_and_score_each_with_a_name() -> None:
    position = np.array([0.9, -0.45, 0, 0, 0, 0, 0, 0, 0])
    task = at(ZERO)
    measures = task.measures(snapshot(position))
    assert measures == pytest.approx({"error": 0.15, "worst": 0.9, "score": 1 - 0.15 / (math.pi / 4)})
    assert set(task.labels) == {"success", *measures}


def test_logged_goal_swings_as_it_did_and_nothing_of_it_may_be_missing() -> None:
    task, again = Pose(SWINGING), Pose(SWINGING)
    task.goal, *_ = task.draw(np.random.default_rng(6))
    parameters = task.parameters
    assert len(parameters) == 27
    again.restore(parameters)
    for step in range(81):
        np.testing.assert_array_equal(again.goal_at(step), task.goal_at(step))
    del parameters["frequency_8"]
    with pytest.raises(KeyError, match="frequency_8"):
        again.restore(parameters)


# --- goal cue ---


def test_dots_show_where_distal_joint_and_tip_of_each_finger_shall_be() -> None:
    home = fingers((0.0, -math.pi / 3, math.pi / 3), 9)
    task, seen = at(home), floor()
    task.show_goal(VIEW)
    image = task.observe(snapshot(ZERO, image=seen), REST)["image"]
    assert (seen == GREY).all()
    whole = 0
    for points, colour in zip(FingerPositions()(home), COLOURS, strict=True):
        for u, v in (project(VIEW, point) for point in points):
            if 4 <= min(u, v) <= max(u, v) <= 59:
                assert centre_of(image, u, v) == pytest.approx((u, v), abs=0.1)
                np.testing.assert_array_equal(image[round(v), round(u)], colour)
                whole += 1
    assert whole == 5  # the sixth is at the image's upper edge


def centre_of(image: Image, u: float, v: float) -> tuple[float, float]:
    """Of the one dot near (u, v) px."""
    rows, columns = slice(round(v) - 4, round(v) + 5), slice(round(u) - 4, round(u) + 5)
    weight = np.abs(image[rows, columns].astype(float) - GREY).sum(-1)
    y, x = np.mgrid[rows, columns]
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


def test_dots_follow_a_goal_that_swings() -> None:
    task = Pose(SWINGING)
    task.goal = Swing(fingers((0.0, -0.6, 0.6), 9), np.full(9, 0.3), np.full(9, 1.0))
    task.show_goal(VIEW)
    first, later = (task.observe(snapshot(ZERO, image=floor(), step=step), REST)["image"] for step in (0, 30))
    assert (first != later).any()


def test_dots_beyond_the_edge_are_cut_off_and_those_far_outside_draw_nothing() -> None:
    whole = Dot.within((30.5, 30.0), (64, 64)).alpha.sum()
    assert Dot.within((-0.5, 30.0), (64, 64)).alpha.sum() == pytest.approx(whole / 2, rel=1e-5)
    for outside in ((-40.0, 30.0), (30.0, 90.0), (200.0, -200.0)):
        np.testing.assert_array_equal(Dot.within(outside, (64, 64)).draw(floor()), floor())


def test_vector_cue_gives_the_goal_now_and_leaves_the_image_alone() -> None:
    task = at(np.linspace(-0.4, 0.4, 9), PoseConfig(cue="vector"))
    observation = task.observe(snapshot(ZERO, image=floor()), REST)
    np.testing.assert_allclose(observation["goal"], np.linspace(-0.4, 0.4, 9), rtol=1e-6)
    assert (observation["image"] == GREY).all()
    assert set(task.spaces(images=True)) == {"state", "image", "goal"}


# --- on the simulated robot ---


def test_resets_end_at_the_drawn_start_and_drawn_goals_are_reached(rig: Rig) -> None:
    env = RobotEnv(rig, Pose(STILL), images=False)
    task = env.task
    assert isinstance(task, Pose)
    for seed in range(2):
        _, info = env.reset(seed=seed)
        _, start, _ = Pose(STILL).draw(np.random.default_rng(seed))
        assert np.abs(info["telemetry"]["joint_position"] - start).max() <= math.radians(5)
        action = (task.goal_at(0) / HIGH).astype(np.float32)
        for _ in range(80):
            info = env.step(action)[4]
        assert info["success"]
        assert info["measures"]["worst"] < 0.1


def test_the_first_goal_that_swings_is_where_the_fingers_are(rig: Rig) -> None:
    env = RobotEnv(rig, Pose(SWINGING), images=False)
    _, info = env.reset(seed=0)
    assert info["success"]
    assert info["measures"]["worst"] <= math.radians(5)


def test_dots_are_on_the_fingers_that_are_at_the_goal() -> None:
    """The camera's own picture has a finger where the dots are drawn."""
    with build(RigConfig(kind="sim", name="sim")) as rig:
        task = Pose(STILL.model_copy(update={"cue": "none"}))
        env = RobotEnv(rig, task)
        env.reset(seed=1)
        for _ in range(60):
            observation, *_ = env.step((task.goal_at(0) / HIGH).astype(np.float32))
        points = FingerPositions()(task.goal_at(0)).reshape(-1, 3)
    image = observation["image"].astype(int)
    brown = (image[..., 0] > image[..., 2] + 40) & (image[..., 0] < 200) & (image[..., 1] > 30)
    seen = [(u, v) for u, v in (project(VIEW, point) for point in points) if 1 <= u <= 62 and 1 <= v <= 62]
    near = [brown[round(v) - 1 : round(v) + 2, round(u) - 1 : round(u) + 2].any() for u, v in seen]
    assert len(seen) >= 4
    assert sum(near) >= len(near) - 1  # the valve may hide one


def test_swinging_interval_of_one_frequency_is_allowed() -> None:
    config = PoseConfig(goal="swinging", frequency=Interval(low=1.0, high=1.0))
    goal, *_ = Pose(config).draw(np.random.default_rng(7))
    np.testing.assert_array_equal(goal.frequency, np.ones(9))
