"""What the expert foresees is what then happens, and what it is paid is what the task pays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.policy import ConstantPolicy, Policy
from agent.predictive import PredictiveConfig, PredictivePolicy
from robot.clock import ManualClock
from robot.rig import Rig, RigConfig, build
from robot.safety import SELF_COLLISION
from robot.sim import SimPlant
from robot.types import Applied, JointState, Snapshot
from tasks import RobotEnv, Valve, ValveConfig
from tasks.claw import Interval
from tasks.oracle import Oracle, OracleConfig
from tasks.task import Moments
from tasks.valve import FixedAngle

Floats = NDArray[np.float64]
REWARDS = ("distance", "robel_turn")
PLAIN = ValveConfig.model_validate(
    {
        "goal": {"kind": "fixed", "angle": 0.4},
        "start": {"kind": "fixed", "angle": -0.4},
        "horizon": 25,
        "cue": "none",
    }
)
EXACT = OracleConfig(timestep=0.0025, threads=1)  # the plant's own step


@contextmanager
def stage(config: ValveConfig = PLAIN) -> Iterator[tuple[RobotEnv, Valve, Rig]]:
    """A simulated rig at the start of an episode."""
    with build(RigConfig(), cameras=False) as rig:
        task = Valve(config)
        env = RobotEnv(rig, task, images=False)
        env.reset(seed=3)
        yield env, task, rig


def plant_of(rig: Rig) -> SimPlant:
    assert isinstance(rig.clock, SimPlant)
    return rig.clock


def strokes(count: int, steps: int, seed: int) -> Floats:
    """(N, H, A): every joint on its way between two random actions, as in a plan."""
    ends = np.random.default_rng(seed).uniform(-1, 1, (2, count, 1, 9))
    return np.asarray(ends[0] + np.linspace(0, 1, steps)[:, None] * (ends[1] - ends[0]))


# --- foresight ---


@pytest.mark.parametrize(("config", "tolerance"), [(EXACT, 1e-6), (OracleConfig(threads=1), 0.03)])
def test_what_is_foreseen_is_what_the_driver_then_does(config: OracleConfig, tolerance: float) -> None:
    with stage() as (env, task, rig):
        oracle, turned = Oracle(rig, task, config), 0.0
        for seed in range(4):  # from wherever the strokes before have led, finger and valve in motion
            actions = strokes(1, 6, seed)
            foreseen = list(oracle.foresee(actions, 0))
            for action, moments in zip(actions[0], foreseen, strict=True):
                *_, info = env.step(action.astype(np.float32))
                if SELF_COLLISION in info["telemetry"]["reasons"]:
                    break  # not foreseen, and the class says so
                truth = plant_of(rig).truth
                assert np.abs(moments.joints[0] - truth["qpos"][:-1]).max() < tolerance
                assert abs(moments.objects[0] - truth["valve"]) < tolerance
                turned += abs(truth["qvel"][-1])
        assert turned > 1.0


def test_trying_things_out_leaves_the_plant_as_it_was() -> None:
    with stage() as (_, task, rig):
        plant, oracle = plant_of(rig), Oracle(rig, task, EXACT)
        before = plant.truth
        oracle.returns(strokes(4, 3, seed=0), 0)
        model, data = plant.twin()
        model.opt.timestep, data.qpos[:] = 1.0, 9.0
        after = plant.truth
        assert all(np.array_equal(before[name], after[name]) for name in before)
        plant.advance_to(plant.now() + 0.01)
        assert plant.truth["time"] == pytest.approx(before["time"] + 0.01)


def test_foresight_is_the_same_on_one_core_and_on_two() -> None:
    with stage() as (_, task, rig):
        one, two = (Oracle(rig, task, OracleConfig(threads=threads)) for threads in (1, 2))
        actions = strokes(8, 4, seed=1)
        np.testing.assert_array_equal(one.returns(actions, 0), two.returns(actions, 0))


def test_foresight_is_refused_where_the_truth_is_not_known() -> None:
    with stage() as (_, task, rig):
        other = replace(rig, clock=ManualClock())
        with pytest.raises(ValueError, match="--hw sim"):
            Oracle(other, task)


# --- what it is paid ---


def imagined(count: int, rng: np.random.Generator) -> Moments:
    angles = np.concatenate((rng.uniform(-9, 9, count - 4), [0.4, 0.4 + math.pi, 0.499, 0.651]))
    joints = rng.uniform(-1, 1, (2, count, 9))
    return Moments(1, joints[0], joints[1], angles, rng.uniform(-2, 2, count))


def snapshot(moments: Moments, row: int) -> Snapshot:
    nothing = np.zeros(9)
    joints = JointState(0.0, moments.joints[row], moments.joint_velocities[row], nothing)
    thing = JointState(0.0, moments.objects[row, None], moments.object_velocities[row, None], nothing[:1])
    return Snapshot(0.0, joints, thing, {})


@pytest.mark.parametrize("reward", REWARDS)
def test_many_rewards_at_once_are_the_rewards_of_each(reward: str) -> None:
    task = Valve(ValveConfig.model_validate({**PLAIN.model_dump(), "reward": reward}))
    task.restore({"goal": 0.4, "start": 0.0})
    moments = imagined(200, np.random.default_rng(0))
    applied = Applied(np.zeros(9), np.zeros(9), ())
    each = [sum(task.reward(snapshot(moments, row), applied).values()) for row in range(200)]
    np.testing.assert_allclose(task.rewards(moments), each, atol=1e-9)


def test_many_targets_at_once_are_the_targets_of_each() -> None:
    task, rng = Valve(PLAIN), np.random.default_rng(0)
    actions, positions = rng.uniform(-1, 1, (5, 9)), rng.uniform(-1, 1, (5, 9))
    nothing = np.zeros(9)
    each = [
        task.target(action.astype(np.float32), JointState(0.0, position, nothing, nothing))
        for action, position in zip(actions, positions, strict=True)
    ]
    np.testing.assert_allclose(task.targets(actions, positions), each, atol=1e-7)


@pytest.mark.parametrize("reward", REWARDS)
def test_speed_is_guided_against_near_the_goal_alone(reward: str) -> None:
    task = Valve(ValveConfig.model_validate({**PLAIN.model_dump(), "reward": reward}))
    task.restore({"goal": 0.0, "start": 0.0})
    angles, still = np.array([0.0, 0.3, 2.0]), np.zeros((3, 9))
    slow, fast = (task.guidance(Moments(1, still, still, angles, np.full(3, v))) for v in (0.0, 1.0))
    cost = slow - fast
    assert cost[0] > cost[1] > cost[2] >= 0
    assert cost[2] < 1e-6


def test_fingers_stay_where_the_valve_has_arrived_and_only_there() -> None:
    task = Valve(PLAIN)
    task.restore({"goal": 0.4, "start": 0.0})
    setpoint, still = np.tile([0.2, -0.5, 0.6], 3), np.zeros((1, 9))

    def keeping(angle: float, speed: float) -> object:
        return task.keeping(Moments(0, still, still, np.array([angle]), np.array([speed])), setpoint)

    kept = keeping(0.41, 0.0)
    assert isinstance(kept, np.ndarray)
    np.testing.assert_allclose(task.targets(kept[None], still)[0], setpoint, atol=1e-6)
    assert keeping(0.41, 0.2) is None
    assert keeping(0.5, 0.0) is None


# --- the expert ---


def final_error(policy: Policy, env: RobotEnv) -> float:
    """How far from its goal the valve ends."""
    observation, _ = env.reset(seed=3)
    carry, over, info = policy.initial(), False, {}
    while not over:
        carry, action = policy.act(carry, observation, explore=False)
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return float(info["measures"]["error"])


def test_expert_turns_the_valve_that_a_still_hand_does_not() -> None:
    with stage() as (env, task, rig):
        oracle = Oracle(rig, task, OracleConfig(threads=1))
        rng = np.random.default_rng(0)
        small = PredictiveConfig(samples=32, horizon=8, knots=4)
        expert = PredictivePolicy(small, task.hold, oracle.returns, rng, oracle.keeping)
        assert final_error(ConstantPolicy(task.hold), env) > 0.7
        assert final_error(expert, env) < 0.1


def test_a_moving_goal_is_foreseen_where_it_will_be() -> None:
    task = Valve(ValveConfig(goal=FixedAngle(angle=0.2), goal_velocity=Interval(low=0.5, high=0.5)))
    task.restore({"goal": 0.2, "start": 0.2, "goal_velocity": 0.5})
    still = np.zeros((3, 9))
    angles = np.array([0.2, 0.7, 1.2])
    rewards = task.rewards(Moments(20, still, still, angles, np.zeros(3)))  # after 2 s the goal is at 1.2
    np.testing.assert_allclose(rewards, [-1.0, -0.5, 0.0], atol=1e-12)
