"""Acting: what the policy sees on the robot is what it was trained on, at one encoded frame per step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from agent.build import Agent, build_agent, build_policy
from agent.config import EncoderConfig, LatentConfig, SacConfig, SacPixelsConfig, SacStateConfig, SlacConfig
from agent.pixels import SacPixelsAgent
from agent.policy import (
    ConstantPolicy,
    ImagePolicy,
    PixelsPolicy,
    Policy,
    RandomPolicy,
    SlacPolicy,
    StatePolicy,
)
from agent.replay import Batch, SequenceReplay
from agent.slac import SlacAgent, history

SHAPE = (16, 16, 3)
SMALL = SlacConfig(
    sac=SacConfig(hidden=(32,), batch_size=8),
    model=LatentConfig(base_depth=2, features=12, z1=4, z2=6, hidden=16),
    model_batch=4,
)

PIXELS = SacPixelsConfig(sac=SMALL.sac, model=EncoderConfig(base_depth=2, features=12))


def built(config: SlacConfig | SacPixelsConfig) -> tuple[Agent, Policy]:
    """An agent, and a policy of another seed that has its weights."""
    agent = build_agent(config, image_shape=SHAPE, state_size=None, action_size=2, seed=0)
    policy = build_policy(config, image_shape=SHAPE, state_size=None, action_size=2, seed=1)
    policy.load_weights(agent.policy_weights())
    return agent, policy


def slac() -> tuple[SlacAgent, SlacPolicy]:
    agent, policy = built(SMALL)
    assert isinstance(agent, SlacAgent)
    assert isinstance(policy, SlacPolicy)
    return agent, policy


def pixels() -> tuple[SacPixelsAgent, PixelsPolicy]:
    agent, policy = built(PIXELS)
    assert isinstance(agent, SacPixelsAgent)
    assert isinstance(policy, PixelsPolicy)
    return agent, policy


Pair = Callable[[], tuple[SlacAgent | SacPixelsAgent, ImagePolicy]]
both = pytest.mark.parametrize("pair", [slac, pixels], ids=["slac", "sac_pixels"])


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def play(policy: ImagePolicy, images: np.ndarray, explore: bool = False) -> np.ndarray:
    carry, actions = policy.initial(), []
    for image in images:
        carry, action = policy.act(carry, {"image": image}, explore=explore)
        actions.append(action)
    return np.array(actions)


@torch.no_grad()
def trained_actions(agent: SlacAgent | SacPixelsAgent, batch: Batch) -> np.ndarray:
    """The greedy actions (B, A) at the last step of each window, as an update computes them."""
    assert batch.image is not None
    if isinstance(agent, SacPixelsAgent):
        seen = agent.representation(batch).observation
    else:
        features = agent.model.encode(batch.image)
        seen = history(features[:, :-1], batch.action[:, :-1], batch.is_first[:, :-1])
    actions: np.ndarray = agent.core.policy(seen).mode.numpy()
    return actions


@both
def test_policy_sees_when_acting_what_it_sees_when_training_from_the_first_frame_on(pair: Pair) -> None:
    agent, policy = pair()
    previous, images = frames(10, seed=1), frames(14)
    actions = play(policy, images)
    replay = SequenceReplay(100, SHAPE, None, 2)
    # An episode before it, so that training windows of the first steps cross a boundary.
    replay.add_episode(previous, None, np.ones((9, 2), np.float32), np.zeros(9, np.float32), False)
    replay.add_episode(images, None, actions[:-1], np.zeros(13, np.float32), False)
    batch = replay.sample(400, agent.window, np.random.default_rng(0))
    assert batch.image is not None
    trained = trained_actions(agent, batch)
    now = batch.image[:, -2].permute(0, 2, 3, 1).numpy()
    checked = set()
    for row in range(len(batch)):
        step = np.flatnonzero((images == now[row]).all((1, 2, 3)))
        if len(step):
            checked.add(int(step[0]))
            np.testing.assert_allclose(trained[row], actions[step[0]], atol=1e-5)
    assert checked == set(range(13))


@pytest.mark.parametrize("config", [SMALL, PIXELS], ids=["slac", "sac_pixels"])
def test_policy_feels_when_acting_what_it_feels_when_training(config: SlacConfig | SacPixelsConfig) -> None:
    """Joints are the first three of the state's five numbers; the others it must never get."""
    config = config.model_copy(update={"proprioception": True})
    sizes: dict[str, Any] = {"image_shape": SHAPE, "state_size": 5, "action_size": 2, "joint_size": 3}
    agent, policy = build_agent(config, seed=0, **sizes), build_policy(config, seed=1, **sizes)
    assert isinstance(agent, SlacAgent | SacPixelsAgent)
    assert agent.observations == ("image", "joints")
    policy.load_weights(agent.policy_weights())
    rng, images = np.random.default_rng(3), frames(14)
    states = rng.normal(size=(14, 5)).astype(np.float32)

    def act(states: np.ndarray) -> np.ndarray:
        carry, actions = policy.initial(), []
        for step, (image, state) in enumerate(zip(images, states, strict=True)):
            if step == 6:  # re-encodes what it remembers, with what it felt then
                policy.load_weights(agent.policy_weights())
            carry, action = policy.act(carry, {"image": image, "state": state}, explore=False)
            actions.append(action)
        return np.array(actions)

    actions = act(states)
    np.testing.assert_array_equal(act(states * [1, 1, 1, 9, 9]), actions)
    assert not np.allclose(act(states * [1, 1, 2, 1, 1]), actions)
    replay = SequenceReplay(100, SHAPE, 3, 2)
    replay.add_episode(images, states[:, :3], actions[:-1], np.zeros(13, np.float32), False)
    batch = replay.sample(200, agent.window, rng)
    assert batch.image is not None
    with torch.no_grad():
        if isinstance(agent, SlacAgent):
            seen = agent._last_transition(batch).observation
        else:
            seen = agent.representation(batch).observation
        trained = agent.core.policy(seen).mode.numpy()
    for row, image in enumerate(batch.image[:, -2].permute(0, 2, 3, 1).numpy()):
        step = int(np.flatnonzero((images == image).all((1, 2, 3)))[0])
        if step >= agent.window:  # before, windows begin within the episode
            np.testing.assert_allclose(trained[row], actions[step], atol=1e-5)
    agent.update(replay.sample(8, agent.window, rng))


def test_proprioception_without_joints_is_refused() -> None:
    config = SMALL.model_copy(update={"proprioception": True})
    for build in (build_agent, build_policy):
        with pytest.raises(ValueError, match=r"agent\.proprioception needs a robot with joints"):
            build(config, image_shape=SHAPE, state_size=5, action_size=2, seed=0)


@both
def test_policy_encodes_one_frame_per_step(pair: Pair) -> None:
    _, policy = pair()
    sizes: list[int] = []
    policy._encoder.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    play(policy, frames(5))
    assert sizes == [1] * 5


@both
def test_new_weights_within_an_episode_re_encode_what_is_remembered(pair: Pair) -> None:
    agent, policy = pair()
    _, fresh = pair()
    images = frames(12)
    carry, other = policy.initial(), fresh.initial()
    for image in images[:6]:
        carry, _ = policy.act(carry, {"image": image}, explore=False)
        other, _ = fresh.act(other, {"image": image}, explore=False)
    assert carry is not None
    weights = agent.policy_weights()
    weights["encoder.last.bias"] += 0.5
    policy.load_weights(weights)
    carry, _ = policy.act(carry, {"image": images[6]}, explore=False)
    with torch.no_grad():
        expected = policy._encoder(carry.frames.permute(0, 3, 1, 2))
    torch.testing.assert_close(carry.features, expected)


@both
def test_acting_does_not_change_the_carry_it_was_given(pair: Pair) -> None:
    _, policy = pair()
    images = frames(3)
    carry, _ = policy.act(policy.initial(), {"image": images[0]}, explore=False)
    once = policy.act(carry, {"image": images[1]}, explore=False)[1]
    again = policy.act(carry, {"image": images[1]}, explore=False)[1]
    np.testing.assert_array_equal(once, again)


def test_policy_keeps_its_own_copy_of_a_frame_that_the_camera_overwrites() -> None:
    _, policy = slac()
    buffer = frames(1)[0]
    carry, _ = policy.act(policy.initial(), {"image": buffer}, explore=False)
    assert carry is not None
    before = carry.frames.clone()
    buffer[:] = 0
    assert torch.equal(carry.frames, before)


def test_initial_carry_forgets_the_episode_before() -> None:
    _, policy = slac()
    first = play(policy, frames(9))
    play(policy, frames(9, seed=4))
    np.testing.assert_array_equal(play(policy, frames(9)), first)


def test_exploring_draws_and_a_seed_repeats_the_draws() -> None:
    runs = []
    for _ in range(2):
        _, policy = slac()
        runs.append(play(policy, frames(4), explore=True))
    np.testing.assert_array_equal(runs[0], runs[1])
    _, policy = slac()
    assert (play(policy, frames(4)) != runs[0]).any()
    assert runs[0].dtype == np.float32
    assert (np.abs(runs[0]) <= 1).all()


def test_state_policy_acts_as_the_actor_that_was_trained() -> None:
    config = SacStateConfig(sac=SacConfig(hidden=(16,)))
    agent = build_agent(config, image_shape=None, state_size=3, action_size=2, seed=0)
    policy = build_policy(config, image_shape=None, state_size=3, action_size=2, seed=5)
    policy.load_weights(agent.policy_weights())
    assert isinstance(policy, StatePolicy)
    state = np.array([0.1, -0.2, 0.3], np.float32)
    _, action = policy.act(policy.initial(), {"state": state}, explore=False)
    with torch.no_grad():
        expected = agent.core.policy(torch.from_numpy(state)[None]).mode[0].numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(action, expected, atol=1e-6)


def test_published_weights_are_contiguous_copies() -> None:
    agent, _ = slac()
    weights = agent.policy_weights()
    assert all(w.is_contiguous() for w in weights.values())
    weights["encoder.last.bias"] += 1
    assert not torch.equal(weights["encoder.last.bias"], agent.policy_weights()["encoder.last.bias"])


def test_weights_of_another_size_are_refused() -> None:
    agent, _ = slac()
    wide = SMALL.model_copy(update={"sac": SacConfig(hidden=(64,), batch_size=8)})
    policy = build_policy(wide, image_shape=SHAPE, state_size=None, action_size=2, seed=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        policy.load_weights(agent.policy_weights())


def test_random_policy_covers_the_box_and_constant_policy_stays() -> None:
    policy = RandomPolicy(3, np.random.default_rng(0))
    actions = np.array([policy.act(None, {}, explore=True)[1] for _ in range(500)])
    assert actions.dtype == np.float32
    assert actions.min() < -0.95
    assert actions.max() > 0.95
    assert np.abs(actions).max() <= 1
    still = ConstantPolicy(np.zeros(3, np.float32))
    _, action = still.act(None, {}, explore=True)
    action += 1
    np.testing.assert_array_equal(still.act(None, {}, explore=False)[1], np.zeros(3))


def test_missing_observation_is_named_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="'image'"):
        build_policy(SMALL, image_shape=None, state_size=4, action_size=2, seed=0)


@pytest.mark.slow
def test_official_policy_acts_well_within_a_control_step() -> None:
    policy = build_policy(SlacConfig(), image_shape=(64, 64, 3), state_size=None, action_size=9, seed=0)
    carry = policy.initial()
    image = np.zeros((64, 64, 3), np.uint8)
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        carry, _ = policy.act(carry, {"image": image}, explore=True)
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 0.02  # 2 ms here; ten times less than the 0.1 s of a step leaves room anywhere
