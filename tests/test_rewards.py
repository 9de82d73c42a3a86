import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robot.types import Floats
from tasks.rewards import distance, pose_score, robel_pose, robel_turn, turn_score, wrap_angle

HOME = np.tile([0.0, -math.pi / 3, math.pi / 3], 3)
STILL = np.zeros(9)


@given(st.floats(-1e4, 1e4))
def test_wrapped_angle_points_in_the_same_direction_within_half_a_turn(angle: float) -> None:
    wrapped = wrap_angle(angle)
    assert -math.pi < wrapped <= math.pi
    assert math.cos(wrapped) == pytest.approx(math.cos(angle), abs=1e-9)
    assert math.sin(wrapped) == pytest.approx(math.sin(angle), abs=1e-9)


@pytest.mark.parametrize("angle", [math.pi, -math.pi, 3 * math.pi, -3 * math.pi])
def test_half_a_turn_has_one_representation(angle: float) -> None:
    assert wrap_angle(angle) == math.pi


@pytest.mark.parametrize("step", [1e-12, 1e-7, 1e-3])
def test_reward_is_continuous_across_the_far_side_of_the_goal(step: float) -> None:
    before = distance(wrap_angle(math.pi - step))["distance"]
    after = distance(wrap_angle(math.pi + step))["distance"]
    assert before == pytest.approx(after, abs=1e-12)
    assert before == pytest.approx(-math.pi + step, abs=1e-12)


def test_wrapping_a_wrapped_angle_changes_nothing() -> None:
    angles = np.random.default_rng(0).uniform(-20, 20, 200)
    assert all(wrap_angle(wrap_angle(a)) == wrap_angle(a) for a in angles)


def test_robel_turn_at_rest_at_home_far_from_goal_is_only_distance() -> None:
    terms = robel_turn(-2.0, HOME, STILL, HOME)
    assert terms == {"distance": -10.0, "pose": 0.0, "speed": 0.0, "near": 0.0, "at_goal": 0.0}


@pytest.mark.parametrize(
    ("error", "near", "at_goal"),
    [(0.25, 0.0, 0.0), (-0.2499, 10.0, 0.0), (0.1, 10.0, 0.0), (0.0999, 10.0, 50.0), (0.0, 10.0, 50.0)],
)
def test_robel_bonuses_start_strictly_inside_their_radius(error: float, near: float, at_goal: float) -> None:
    terms = robel_turn(error, HOME, STILL, HOME)
    assert (terms["near"], terms["at_goal"]) == (near, at_goal)


def test_robel_turn_counts_only_fast_joints_and_the_whole_pose() -> None:
    velocity = np.array([0.49, 0.5, -1.2, 0, 0, 0, 0, 0, 0])
    position = HOME + np.array([0.3, 0.4, 0, 0, 0, 0, 0, 0, 0])
    terms = robel_turn(1.0, position, velocity, HOME)
    assert terms["speed"] == pytest.approx(-1.3)
    assert terms["pose"] == pytest.approx(-0.5)


ERRORS = st.floats(-math.pi, math.pi)
VELOCITIES = arrays(np.float64, 9, elements=st.floats(-10, 10))
BOX = np.tile([0.48, math.pi / 3, math.pi / 2], 3)
SHARES = arrays(np.float64, 9, elements=st.floats(-1, 1))


@settings(max_examples=50, deadline=None)
@given(ERRORS, SHARES, VELOCITIES)
def test_terms_of_a_turn_stay_within_their_bounds(error: float, share: Floats, velocity: Floats) -> None:
    terms = robel_turn(error, share * BOX, velocity, HOME)
    widest = math.sqrt(3 * (0.48**2 + (2 * math.pi / 3) ** 2 + (5 * math.pi / 6) ** 2))
    assert -5 * math.pi <= terms["distance"] <= 0
    assert -widest - 1e-9 <= terms["pose"] <= 0
    assert -float(np.linalg.norm(velocity)) - 1e-9 <= terms["speed"] <= 0
    assert (terms["near"], terms["at_goal"]) in {(0, 0), (10, 0), (10, 50)}
    assert 0 <= turn_score(error) <= 1


@settings(max_examples=50, deadline=None)
@given(SHARES, SHARES, VELOCITIES)
def test_terms_of_a_pose_stay_within_their_bounds(share: Floats, other: Floats, velocity: Floats) -> None:
    error = (share - other) * BOX
    terms = robel_pose(error, velocity)
    assert set(terms) == {"pose", "speed"}
    assert -2 * float(np.linalg.norm(BOX)) - 1e-9 <= terms["pose"] <= 0
    assert -0.1 * float(np.linalg.norm(velocity)) - 1e-9 <= terms["speed"] <= 0
    assert 0 <= pose_score(error) <= 1


def test_pose_reward_at_rest_at_the_goal_is_nothing() -> None:
    assert robel_pose(STILL, STILL) == {"pose": 0.0, "speed": 0.0}
    assert pose_score(STILL) == 1.0


def test_pose_reward_is_the_length_of_the_error_and_a_tenth_of_the_racing_joints() -> None:
    error = np.array([0.3, 0, 0, 0, -0.4, 0, 0, 0, 0])
    velocity = np.array([math.pi, -4.0, 3.1415, 0, 0, 0, 0, 0, 0])  # the third is just below pi
    terms = robel_pose(error, velocity)
    assert terms["pose"] == pytest.approx(-0.5)
    assert terms["speed"] == pytest.approx(-0.1 * math.hypot(math.pi, 4.0))


@pytest.mark.parametrize(
    ("mean", "score"), [(0.0, 1.0), (math.pi / 8, 0.5), (math.pi / 4, 0.0), (math.pi / 3, 0.0)]
)
def test_pose_score_is_nothing_from_45_degrees_on(mean: float, score: float) -> None:
    uneven = np.array([3, -2, 1, 0, 0, -1, 2, 0, 0]) * mean  # its absolute mean is `mean`
    assert pose_score(uneven) == pytest.approx(score, abs=1e-12)
