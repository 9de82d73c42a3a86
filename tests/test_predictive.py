"""Acting by foresight, on a model that is all arithmetic: a point that an action pushes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from agent.predictive import Plan, PredictiveConfig, PredictivePolicy

Floats = NDArray[np.float64]
GOAL = np.array([0.6, -0.4])
REST = np.zeros(2, np.float32)
PUSH, DT = 2.0, 0.1  # m/s2 of a full action, s
SMALL = PredictiveConfig(samples=32, horizon=8, knots=4)


class Point:
    """A mass in the plane: its position follows its velocity, its velocity the action."""

    def __init__(self) -> None:
        self.position, self.velocity = np.zeros(2), np.zeros(2)
        self.path: list[Floats] = []
        self.asked: list[Floats] = []

    def moved(self, position: Floats, velocity: Floats, action: Floats) -> tuple[Floats, Floats]:
        velocity = 0.9 * velocity + PUSH * DT * action
        return position + DT * velocity, velocity

    def step(self, action: Floats) -> None:
        self.position, self.velocity = self.moved(self.position, self.velocity, action)
        self.path.append(self.position)

    def returns(self, actions: Floats, step: int = 0) -> Floats:
        """What the distances to the goal come to."""
        self.asked.append(actions)
        position, velocity = self.position, self.velocity
        total = np.zeros(len(actions))
        for action in actions.swapaxes(0, 1):
            position, velocity = self.moved(position, velocity, action)
            total -= np.linalg.norm(position - GOAL, axis=1)
        return total


def driven(seed: int, steps: int = 40) -> tuple[Point, list[Floats]]:
    """A point that a policy has driven, and all its actions."""
    point = Point()
    policy = PredictivePolicy(SMALL, REST, point.returns, np.random.default_rng(seed))
    carry, actions = policy.initial(), []
    for _ in range(steps):
        carry, action = policy.act(carry, {}, explore=False)
        point.step(action.astype(np.float64))
        actions.append(action)
    return point, actions


def test_planner_brings_a_mass_to_its_goal_and_keeps_it_there() -> None:
    for seed in range(3):
        point, _ = driven(seed)
        away = np.linalg.norm(np.array(point.path) - GOAL, axis=1)
        assert away[0] > 0.7
        assert away[-10:].max() < 0.1


def test_plans_depend_on_the_seed_alone() -> None:
    _, one = driven(seed=1, steps=8)
    _, again = driven(seed=1, steps=8)
    _, other = driven(seed=2, steps=8)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_candidates_are_actions_and_the_plan_is_one_of_them() -> None:
    point = Point()
    policy = PredictivePolicy(SMALL, REST, point.returns, np.random.default_rng(0))
    carry, action = policy.act(policy.initial(), {}, explore=True)
    policy.act(carry, {}, explore=True)
    assert action.dtype == np.float32
    assert point.asked[1].shape == (32, 8, 2)
    assert np.abs(point.asked[1]).max() <= 1
    np.testing.assert_array_equal(point.asked[1][0], carry.actions)


def test_plan_is_only_left_for_a_better_one() -> None:
    point = Point()
    policy = PredictivePolicy(SMALL, REST, point.returns, np.random.default_rng(0))
    plan = policy.initial()
    for _ in range(5):  # in a world that stands still, so that plans can be compared
        before = point.returns(plan.actions[None])[0]
        carry, action = policy.act(plan, {}, explore=False)
        plan = Plan(0, np.concatenate((action[None].astype(np.float64), carry.actions[:-1])))
        assert point.returns(plan.actions[None])[0] >= before - 1e-6


def test_what_is_kept_is_not_planned() -> None:
    def never(actions: Floats, step: int) -> Floats:
        raise AssertionError("no plan is needed")

    kept = np.array([0.3, -0.2], np.float32)
    keeping: Callable[[int], NDArray[np.float32]] = lambda step: kept  # noqa: E731
    policy = PredictivePolicy(SMALL, REST, never, np.random.default_rng(0), keeping)
    carry, action = policy.act(policy.initial(), {}, explore=False)
    np.testing.assert_array_equal(action, kept)
    np.testing.assert_allclose(carry.actions, np.tile(kept, (8, 1)))


def test_knots_beyond_the_horizon_are_refused() -> None:
    with pytest.raises(ValidationError, match="9 knots do not fit into a horizon of 8"):
        PredictiveConfig(horizon=8, knots=9)


def test_planner_and_keeper_are_told_the_step_of_the_episode() -> None:
    told: list[tuple[str, int]] = []

    def returns(actions: Floats, step: int) -> Floats:
        told.append(("returns", step))
        return np.zeros(len(actions))

    def keeping(step: int) -> None:
        told.append(("keeping", step))

    policy = PredictivePolicy(SMALL, REST, returns, np.random.default_rng(0), keeping)
    carry = policy.initial()
    for _ in range(2):
        carry, _ = policy.act(carry, {}, explore=False)
    assert told == [("keeping", 0), ("returns", 0), ("keeping", 1), ("returns", 1)]
