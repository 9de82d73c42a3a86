import math
from collections import Counter

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from robot.types import Applied, CameraFault, Frame, Image, JointState, Snapshot
from robot.world import CameraPose, Painter, WorldConfig, dclaw_model, pointer_geom
from tasks.claw import Dot, Interval, project
from tasks.valve import AngleChoices, AngleRange, Angles, AtStart, FixedAngle, Valve, ValveConfig

FIXED = ValveConfig(goal=FixedAngle(angle=0.0))
REST = np.zeros(9, np.float32)
COMMAND = Applied(np.zeros(9), np.zeros(9))
# Looking straight down from 0.5 m above the valve's arms, 1 px for 4 mm: x right, y up in the image.
DOWN = np.array([[125.0, 0, -32, 32 * 0.6021], [0, -125.0, -32, 32 * 0.6021], [0, 0, -1, 0.6021]])
GREY = 200


def snapshot(angle: float, velocity: float = 0.0, image: Image | None = None, step: int = 0) -> Snapshot:
    joints = JointState(1.0, np.linspace(-0.4, 0.4, 9), np.linspace(-0.3, 0.9, 9), np.zeros(9))
    valve = JointState(1.0, np.array([angle]), np.array([velocity]), np.zeros(1))
    frames = {} if image is None else {"front": Frame(0.97, image, 3)}
    return Snapshot(1.0, joints, valve, frames, step=step)


def valve(goal: float = 0.0, config: ValveConfig = FIXED) -> Valve:
    task = Valve(config)
    task.restore({"goal": goal, "start": 0.0})
    return task


def floor() -> Image:
    return np.full((64, 64, 3), GREY, np.uint8)


def green_centre(image: Image) -> tuple[float, float]:
    weight = GREY - image[..., 0].astype(float)
    v, u = np.mgrid[:64, :64]  # whole numbers are pixel centres
    return float((weight * u).sum() / weight.sum()), float((weight * v).sum() / weight.sum())


# --- draws ---


def test_goal_settings_draw_what_they_say() -> None:
    rng = np.random.default_rng(0)
    assert {FixedAngle(angle=0.3).sample(rng) for _ in range(9)} == {0.3}
    counts = Counter(AngleChoices(angles=(-1.0, 0.0, 1.0)).sample(rng) for _ in range(600))
    assert set(counts) == {-1.0, 0.0, 1.0}
    assert min(counts.values()) > 150
    drawn = [AngleRange(low=-1.5, high=1.5).sample(rng) for _ in range(600)]
    assert -1.5 <= min(drawn) < -1.4
    assert 1.4 < max(drawn) < 1.5


def test_start_is_drawn_from_the_whole_circle_by_default() -> None:
    rng = np.random.default_rng(1)
    starts = [FIXED.start.sample(rng) for _ in range(400)]
    quadrants = Counter(math.floor(s / (math.pi / 2)) for s in starts)
    assert set(quadrants) == {-2, -1, 0, 1}
    assert min(quadrants.values()) > 70


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({"kind": "range", "low": 1.0, "high": -1.0}, "above high"),
        ({"kind": "choices", "angles": []}, "at least 1 item"),
        ({"kind": "sometimes", "angle": 0.0}, "'fixed', 'choices', 'range'"),
        ({"kind": "fixed", "angle": 0.0, "angel": 1.0}, "angel"),
        ({"kind": "fixed", "angle": float("nan")}, "finite"),
    ],
)
def test_wrong_goal_settings_are_refused(goal: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TypeAdapter[object](Angles).validate_python(goal)


# --- state ---


def test_state_is_positions_velocities_directions_valve_velocity_and_last_action() -> None:
    action = np.linspace(-1, 1, 9, dtype=np.float32)
    now = snapshot(2.0, velocity=0.7)
    state = valve(goal=0.5).observe(now, action)["state"]
    assert state.shape == (32,)
    assert state.dtype == np.float32
    np.testing.assert_allclose(state[:9], now.joints.position, rtol=1e-6)
    np.testing.assert_allclose(state[9:18], now.joints.velocity, rtol=1e-6)
    directions = [math.cos(2.0), math.sin(2.0), math.cos(1.5), math.sin(1.5), 0.7]
    np.testing.assert_allclose(state[18:23], directions, rtol=1e-6)
    np.testing.assert_array_equal(state[23:], action)


def test_what_the_robot_feels_of_itself_comes_first_and_says_nothing_of_the_valve() -> None:
    task, rest = valve(), np.zeros(9, np.float32)
    here, there = (
        task.observe(snapshot(angle, velocity), rest)["state"] for angle, velocity in ((0, 0), (2, 1))
    )
    own = task.joint_size
    joints = snapshot(0).joints
    np.testing.assert_array_equal(
        here[:own], np.concatenate((joints.position, joints.velocity)).astype(np.float32)
    )
    np.testing.assert_array_equal(here[:own], there[:own])
    assert (here[own:] != there[own:]).any()


@given(st.floats(-10, 10), st.floats(-math.pi / 2, math.pi / 2), st.integers(-3, 3))
def test_full_turns_of_the_valve_change_neither_state_nor_reward(
    angle: float, goal: float, turns: int
) -> None:
    task, turned = valve(goal), angle + turns * 2 * math.pi
    here, there = (task.observe(snapshot(a), REST)["state"] for a in (angle, turned))
    np.testing.assert_allclose(here, there, atol=1e-6)
    rewards = [task.reward(snapshot(a), COMMAND)["distance"] for a in (angle, turned)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-9)
    assert -math.pi <= rewards[0] <= 0


@pytest.mark.parametrize("goal", [0.0, math.pi / 2, -math.pi / 2, math.pi])
def test_state_and_reward_do_not_jump_at_the_far_side_of_the_goal(goal: float) -> None:
    task = valve(goal)
    before, after = snapshot(goal + math.pi - 1e-6), snapshot(goal + math.pi + 1e-6)
    states = [task.observe(s, REST)["state"] for s in (before, after)]
    np.testing.assert_allclose(states[0], states[1], atol=1e-5)
    terms = [task.reward(s, COMMAND)["distance"] for s in (before, after)]
    assert terms[0] == pytest.approx(terms[1], abs=1e-9)


# --- reward, success, action ---


def test_success_and_its_wide_version_are_judged_by_the_shorter_way() -> None:
    task = valve(goal=math.pi)
    assert task.success(snapshot(-math.pi + 0.099))
    assert not task.success(snapshot(-math.pi + 0.101))
    assert task.measures(snapshot(-math.pi + 0.34))["success_20deg"] == 1.0
    assert task.measures(snapshot(-math.pi + 0.36))["success_20deg"] == 0.0
    assert task.measures(snapshot(-3.0))["error"] == pytest.approx(math.pi - 3.0)


def test_robel_reward_is_a_choice_of_the_configuration() -> None:
    task = valve(config=ValveConfig(goal=FixedAngle(angle=0.0), reward="robel_turn"))
    assert set(task.reward(snapshot(1.0), COMMAND)) == {"distance", "pose", "speed", "near", "at_goal"}


def test_full_action_asks_for_robels_joint_ranges() -> None:
    target = valve().target(np.ones(9, np.float32), snapshot(0.0).joints)
    np.testing.assert_allclose(target, np.tile([0.48, math.pi / 3, math.pi / 2], 3))
    np.testing.assert_array_equal(valve().target(REST, snapshot(0.0).joints), np.zeros(9))


def test_valve_never_ends_an_episode_early() -> None:
    assert not any(valve().failed(snapshot(a)) for a in np.linspace(-9, 9, 30))


@pytest.mark.parametrize(
    ("angle", "score"),
    [
        (0.5, 1.0),
        (0.5 + math.pi, 0.0),
        (0.5 - math.pi, 0.0),
        (0.5 + math.pi / 2, 0.5),
        (0.6, 1 - 0.1 / math.pi),
    ],
)
def test_score_falls_from_one_at_the_goal_to_zero_opposite(angle: float, score: float) -> None:
    assert valve(0.5).measures(snapshot(angle))["score"] == pytest.approx(score, abs=1e-12)


@given(st.floats(-100, 100), st.floats(-4, 4), st.integers(0, 80))
def test_score_is_between_zero_and_one(angle: float, goal: float, step: int) -> None:
    assert 0 <= moving(goal).measures(snapshot(angle, step=step))["score"] <= 1


def test_every_measure_has_a_name_for_people() -> None:
    task = valve()
    assert set(task.labels) == {"success", *task.measures(snapshot(0.0))}


# --- a goal that moves ---

SCREW = ValveConfig(
    goal=AtStart(), goal_velocity=Interval(low=-0.75, high=0.75), reward="robel_turn", success=0.2, horizon=80
)


def moving(goal: float = 0.0, velocity: float = 0.5, config: ValveConfig = SCREW) -> Valve:
    task = Valve(config)
    task.restore({"goal": goal, "start": goal, "goal_velocity": velocity})
    return task


def test_goal_moves_by_velocity_and_period_with_every_step_and_is_never_wrapped() -> None:
    task = moving(3.0, 0.5)
    assert [task.goal_at(step) for step in (0, 1, 2, 80)] == pytest.approx([3.0, 3.05, 3.1, 7.0], abs=1e-12)


def test_error_state_success_and_score_are_about_where_the_goal_is_now() -> None:
    task = moving(0.0, 0.5)
    at_start, after, caught_up = (
        snapshot(0.0, step=0),
        snapshot(0.0, step=10),
        snapshot(0.5 + math.tau, step=10),
    )
    assert [task.error(s) for s in (at_start, after, caught_up)] == pytest.approx([0.0, -0.5, 0.0], abs=1e-12)
    assert [task.success(s) for s in (at_start, after, caught_up)] == [True, False, True]
    assert task.reward(after, COMMAND)["distance"] == pytest.approx(-2.5)
    assert task.measures(after)["score"] == pytest.approx(1 - 0.5 / math.pi)
    np.testing.assert_allclose(
        task.observe(after, REST)["state"][20:22], [math.cos(0.5), -math.sin(0.5)], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("behind", "success"), [(0.199, True), (0.2, False), (-0.199, True), (-0.201, False)]
)
def test_screw_succeeds_strictly_within_its_radius(behind: float, success: bool) -> None:
    assert moving(0.0, 0.0).success(snapshot(behind)) is success


def test_goal_at_the_start_is_drawn_with_it_from_the_whole_circle() -> None:
    task, rng = Valve(SCREW), np.random.default_rng(2)
    draws = np.array([(task.draw(rng), task.goal, task.goal_velocity) for _ in range(600)])
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert draws[:, 1].min() < -3.0 < 3.0 < draws[:, 1].max()
    assert -0.75 <= draws[:, 2].min() < -0.7
    assert 0.7 < draws[:, 2].max() < 0.75
    assert abs(np.corrcoef(draws[:, 1], draws[:, 2])[0, 1]) < 0.15


def test_goals_that_stay_draw_as_they_always_did() -> None:
    """Goal first, then start, and nothing for the velocity: a seed means the same episodes in old runs."""
    task = Valve(ValveConfig(goal=AngleRange(low=-1.0, high=1.0)))
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(3):
        start = task.draw(rng)
        assert (task.goal, start) == (again.uniform(-1.0, 1.0), again.uniform(-math.pi, math.pi))
    assert set(task.parameters) == {"goal", "start"}


def test_logged_goal_moves_as_it_did_and_its_velocity_is_needed() -> None:
    task = moving(1.0, -0.3)
    again = Valve(SCREW)
    again.restore(task.parameters)
    assert [again.goal_at(step) for step in range(81)] == [task.goal_at(step) for step in range(81)]
    with pytest.raises(KeyError, match="goal_velocity"):
        again.restore({"goal": 0.0, "start": 0.0})


def test_a_guide_servo_cannot_show_a_goal_that_moves() -> None:
    with pytest.raises(ValidationError, match="dot, vector or none"):
        ValveConfig(goal=AtStart(), goal_velocity=Interval(low=0.5, high=0.5), cue="pointer")


def test_a_valve_cannot_start_where_it_starts() -> None:
    with pytest.raises(ValidationError, match="'fixed', 'choices', 'range'"):
        ValveConfig.model_validate({"goal": {"kind": "start"}, "start": {"kind": "start"}})


# --- goal cue ---


def test_dot_and_vector_follow_a_goal_that_moves() -> None:
    task, told = moving(0.4, 0.5), moving(0.4, 0.5, SCREW.model_copy(update={"cue": "vector"}))
    task.show_goal(DOWN)
    for step in (0, 7, 80):
        goal = 0.4 + 0.05 * step
        now = snapshot(0.0, image=floor(), step=step)
        wanted = project(DOWN, SCREW.geometry.rim(goal))
        assert green_centre(task.observe(now, REST)["image"]) == pytest.approx(wanted, abs=0.1)
        np.testing.assert_allclose(
            told.observe(now, REST)["goal"], [math.cos(goal), math.sin(goal)], rtol=1e-6, atol=1e-7
        )


def test_dot_that_would_leave_the_image_on_its_way_is_a_camera_fault_before_anything_moves() -> None:
    aside = np.array([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]]) @ DOWN  # the rim's right end is out of view
    still = valve(math.pi)
    still.show_goal(aside)
    with pytest.raises(CameraFault, match="partly outside"):
        moving(math.pi, 0.5).show_goal(aside)


@pytest.mark.parametrize("goal", np.linspace(-math.pi, math.pi, 13))
def test_the_simulated_camera_sees_the_whole_rim(goal: float) -> None:
    valve(goal).show_goal(CameraPose().projection(64, 64))


@pytest.mark.parametrize("goal", np.linspace(-math.pi / 2, math.pi / 2, 7))
def test_goal_dot_is_where_the_camera_sees_the_rim_at_the_goal(goal: float) -> None:
    task = valve(goal)
    task.show_goal(DOWN)
    image = task.observe(snapshot(0.0, image=floor()), REST)["image"]
    wanted = 32 + 0.094 * 250 * math.cos(goal + 0.0008), 32 - 0.094 * 250 * math.sin(goal + 0.0008)
    assert project(DOWN, FIXED.geometry.rim(goal)) == pytest.approx(wanted, abs=1e-6)
    assert green_centre(image) == pytest.approx(wanted, abs=0.1)


def tip_seen(valve_angle: float, scale: int) -> tuple[float, float]:
    """Where the tip of the red arm is in a 64x64 picture, measured in one `scale` times as large."""
    model = dclaw_model(WorldConfig())
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    arm = pointer_geom(model)
    axis = data.geom_xmat[arm].reshape(3, 3)[:, 2]
    to_tip = model.geom_size[arm, :2].sum() * axis * np.sign(axis @ data.geom_xpos[arm])
    model.geom_pos[arm] += data.xmat[model.geom_bodyid[arm]].reshape(3, 3).T @ to_tip
    model.geom_type[arm] = mujoco.mjtGeom.mjGEOM_SPHERE  # of the arm only a bead at its tip is left
    model.geom_size[arm] = 0.002  # m
    qpos = np.zeros(model.nq)
    qpos[:9] = [0.0, -1.5, 0.5] * 3  # fingers out of the view
    qpos[-1] = valve_angle
    painter = Painter(model, CameraPose(), "fast", shadows=False)
    picture = painter.draw(qpos, 64 * scale, 64 * scale).astype(int)
    painter.close()
    red = (picture[..., 0] > 2 * picture[..., 1] + 30) & (picture[..., 0] > 2 * picture[..., 2] + 30)
    assert red.any()
    v, u = (float(np.mean(index)) for index in np.nonzero(red))
    return (u + 0.5) / scale - 0.5, (v + 0.5) / scale - 0.5


@pytest.mark.parametrize("goal", [-math.pi / 2, -0.8, 0.0, 0.5, math.pi / 2])
def test_goal_dot_is_on_the_painted_tip_when_the_valve_is_at_the_goal(goal: float) -> None:
    task = valve(goal)
    task.show_goal(CameraPose().projection(64, 64))
    dot = green_centre(task.observe(snapshot(goal, image=floor()), REST)["image"])
    assert dot == pytest.approx(tip_seen(goal, 16), abs=0.3)


def test_goal_dot_never_touches_the_cameras_frame() -> None:
    task, frame = valve(), floor()
    task.show_goal(DOWN)
    frame.flags.writeable = False
    image = task.observe(snapshot(0.0, image=frame), REST)["image"]
    assert (frame == GREY).all()
    assert (image != GREY).any()


def test_goal_dot_is_drawn_over_whatever_is_in_front() -> None:
    dot = Dot.at((20.3, 40.8), (64, 64))
    for background in (0, 90, 255):
        drawn = dot.draw(np.full((64, 64, 3), background, np.uint8))
        np.testing.assert_array_equal(drawn[40, 20], [30, 200, 60])


@given(st.floats(5, 59), st.floats(5, 59))
def test_goal_dot_has_the_same_weight_at_every_subpixel_place(u: float, v: float) -> None:
    dot = Dot.at((u, v), (64, 64))
    assert dot.alpha.sum() == pytest.approx(math.pi * 2.5**2, rel=0.06)


def test_goal_dot_outside_the_image_is_a_camera_fault() -> None:
    with pytest.raises(CameraFault, match="partly outside"):
        Dot.at((62.5, 30.0), (64, 64))


def test_goal_dot_scales_with_the_image() -> None:
    small, large = Dot.at((30, 30), (64, 64)), Dot.at((60, 60), (128, 128))
    assert large.alpha.sum() == pytest.approx(4 * small.alpha.sum(), rel=0.05)


def test_vector_cue_gives_the_goals_direction_and_leaves_the_image_alone() -> None:
    task = valve(0.7, ValveConfig(goal=FixedAngle(angle=0.7), cue="vector"))
    observation = task.observe(snapshot(0.0, image=floor()), REST)
    np.testing.assert_allclose(observation["goal"], [math.cos(0.7), math.sin(0.7)], rtol=1e-6)
    assert (observation["image"] == GREY).all()
    assert set(task.spaces(images=True)) == {"state", "image", "goal"}


def test_pointer_cue_is_shown_by_the_rig_and_not_in_the_image() -> None:
    task = valve(0.7, ValveConfig(goal=FixedAngle(angle=0.7), cue="pointer"))
    observation = task.observe(snapshot(0.0, image=floor()), REST)
    assert (observation["image"] == GREY).all()
    assert set(task.spaces(images=True)) == {"state", "image"}


def test_image_of_another_size_is_a_camera_fault() -> None:
    task = valve()
    task.show_goal(DOWN)
    with pytest.raises(CameraFault, match=r"\(48, 64, 3\)"):
        task.observe(snapshot(0.0, image=np.zeros((48, 64, 3), np.uint8)), REST)
