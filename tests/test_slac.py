"""SLAC: the right indices, the right back-fill, and gradients that stay where they belong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from agent.build import build_agent, keep_freed_memory
from agent.config import LatentConfig, SacConfig, SlacConfig
from agent.pixels import shifted
from agent.replay import Batch, SequenceReplay
from agent.sac import Metrics, Transition
from agent.slac import SlacAgent, history, last_transition, psnr

SHAPE = (16, 16, 3)
A, T = 2, 8
SMALL = SlacConfig(
    sac=SacConfig(hidden=(32,), batch_size=12),
    model=LatentConfig(base_depth=2, features=12, z1=4, z2=6, hidden=16),
    model_batch=4,
)


def agent(config: SlacConfig = SMALL, seed: int = 0) -> SlacAgent:
    result = build_agent(config, image_shape=SHAPE, state_size=None, action_size=A, seed=seed)
    assert isinstance(result, SlacAgent)
    return result


def replay(episodes: int = 6, steps: int = 20) -> SequenceReplay:
    rng = np.random.default_rng(0)
    ring = SequenceReplay(1000, SHAPE, None, A)
    for _ in range(episodes):
        images = rng.integers(0, 256, (steps + 1, *SHAPE), dtype=np.uint8)
        actions = rng.uniform(-1, 1, (steps, A)).astype(np.float32)
        ring.add_episode(images, None, actions, rng.normal(size=steps).astype(np.float32), False)
    return ring


def batches(count: int, seed: int = 0) -> list[Batch]:
    rng, ring = np.random.default_rng(seed), replay()
    return [ring.sample(12, T, rng) for _ in range(count)]


def reference_history(features: Tensor, action: Tensor, first: Tensor) -> np.ndarray:
    """The published procedure, word by word: scan backwards, fill before a first frame."""
    rows = []
    for f, a, flags in zip(features.numpy().copy(), action.numpy().copy(), first.numpy(), strict=True):
        for k in range(len(flags) - 1, 0, -1):
            if flags[k]:
                f[:k], a[:k] = f[k], 0
                break
        rows.append(np.concatenate((f.ravel(), a.ravel())))
    return np.stack(rows)


def random_sequences() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    first = torch.rand(60, T, generator=g) < 0.15
    return torch.randn(60, T, 5, generator=g), torch.randn(60, T - 1, A, generator=g), first


def test_history_is_back_filled_as_published() -> None:
    features, action, first = random_sequences()
    assert first.sum(1).max() >= 2  # some windows hold two starts: the newest counts
    np.testing.assert_array_equal(
        history(features, action, first).numpy(), reference_history(features, action, first)
    )


def test_history_ignores_whatever_lies_before_a_first_flag() -> None:
    features, action, first = random_sequences()
    first[:] = False
    first[:, 3] = True
    before = history(features, action, first)
    features[:, :3], action[:, :3] = 9, 9
    assert torch.equal(history(features, action, first), before)


def test_actor_and_critic_learn_at_index_seven_and_bootstrap_from_index_eight() -> None:
    batch = batches(1)[0]
    clear = dataclasses.replace(batch, is_first=torch.zeros_like(batch.is_first))
    features, state = torch.randn(12, T + 1, 5), torch.randn(12, T + 1, 3)
    step = last_transition(clear, features, state)
    assert torch.equal(step.state, state[:, 7])
    assert torch.equal(step.next_state, state[:, 8])
    assert torch.equal(step.action, batch.action[:, 7])
    assert torch.equal(step.reward, batch.reward[:, 7])
    assert torch.equal(step.discount, batch.discount[:, 7])
    now = torch.cat((features[:, 0:8].flatten(1), batch.action[:, 0:7].flatten(1)), 1)
    after = torch.cat((features[:, 1:9].flatten(1), batch.action[:, 1:8].flatten(1)), 1)
    assert torch.equal(step.observation, now)
    assert torch.equal(step.next_observation, after)


def test_actor_and_critic_send_no_gradient_into_the_model() -> None:
    learner, batch = agent(), batches(1)[0]
    assert batch.image is not None
    features = learner.model.encode(batch.image)
    belief = learner.model.infer(features, batch.action, batch.is_first, learner.generator)
    assert belief.state.requires_grad
    step = last_transition(batch, features, belief.state)
    learner.core.update(step, learner.generator)
    target = learner.core.critic_target(step, learner.generator)
    learner.core.critic_loss(step, target)[0].backward()
    policy = learner.core.policy(step.observation)
    learner.core.actor_loss(step, policy, learner.generator).backward()
    assert all(p.grad is None for p in learner.model.parameters())


def test_model_learns_from_the_first_windows_and_the_rest_only_from_the_critic() -> None:
    batch = batches(1)[0]
    image = batch.image.clone()
    image[4:] = 0
    changed = dataclasses.replace(batch, image=image)
    one, other = agent(), agent()
    first, second = one.update(batch), other.update(changed)
    assert first["model_loss"] == second["model_loss"]
    assert first["critic_loss"] != second["critic_loss"]
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_reinforcement_learning_sees_the_samples_that_the_model_was_trained_on() -> None:
    # If every window is a model window, the update draws one posterior sample for both.
    config = SMALL.model_copy(update={"model_batch": 12})
    learner, batch = agent(config), batches(1)[0]
    drawn: list[Tensor] = []
    infer = learner.model.infer

    def counted(features: Tensor, *rest: Tensor) -> object:
        drawn.append(features)
        return infer(features, *rest)  # type: ignore[arg-type]

    learner.model.infer = counted  # type: ignore[assignment,method-assign]
    learner.update(batch)
    assert len(drawn) == 1


def test_pretraining_moves_the_model_alone() -> None:
    learner, batch = agent(), batches(1)[0]
    before = {name: w.clone() for name, w in learner.core.policy.state_dict().items()}
    weight = learner.model.encoder.last.weight.detach().clone()
    metrics = learner.pretrain(batch)
    assert set(metrics) == {"model_loss", "model_gradient", "psnr", "image_nll", "kl", "reward_nll"}
    assert not torch.equal(learner.model.encoder.last.weight, weight)
    assert all(torch.equal(w, before[name]) for name, w in learner.core.policy.state_dict().items())


def test_reward_after_an_episodes_end_is_not_learned() -> None:
    batch = batches(1)[0]
    reward = torch.where(batch.is_last[:, :-1], 1e3, batch.reward)
    assert not torch.equal(reward, batch.reward)
    poisoned = dataclasses.replace(batch, reward=reward)
    assert agent().pretrain(batch) == agent().pretrain(poisoned)


def test_model_step_does_not_leak_into_the_same_updates_actor_critic() -> None:
    batch = batches(1)[0]
    still = agent(SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"lr": 1e-12})}))
    moving = agent(SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"lr": 1e-1})}))
    a, b = still.update(batch), moving.update(batch)
    assert a["critic_loss"] == b["critic_loss"]
    assert a["actor_loss"] == b["actor_loss"]


@pytest.mark.parametrize("learn", [SlacAgent.pretrain, SlacAgent.update])
def test_shifted_images_are_both_what_is_seen_and_what_is_reconstructed(
    learn: Callable[[SlacAgent, Batch], dict[str, float]],
) -> None:
    learner, plain = agent(SMALL.model_copy(update={"random_shift": 3})), agent()
    for batch in batches(2):
        moved = shifted(batch, 3, plain.generator)
        assert learn(learner, batch) == learn(plain, moved)
    assert same(learner, plain)


def test_looking_shows_images_where_they_are() -> None:
    batch = batches(1)[0]
    learner, plain = agent(SMALL.model_copy(update={"random_shift": 3})), agent()
    np.testing.assert_array_equal(learner.represent(batch), plain.represent(batch))
    np.testing.assert_array_equal(learner.reconstruct(batch)["truth"], plain.reconstruct(batch)["truth"])


def weights(learner: SlacAgent) -> dict[str, Tensor]:
    value = learner.core.value.state_dict()
    return {**learner.model.state_dict(), **learner.core.policy.state_dict(), **value}


def same(a: SlacAgent, b: SlacAgent) -> bool:
    x, y = weights(a), weights(b)
    return all(torch.equal(x[name], y[name]) for name in x)


def test_same_seed_and_batches_give_bit_identical_agents() -> None:
    one, other, different = agent(), agent(), agent(seed=1)
    for batch in batches(4):
        assert one.update(batch) == other.update(batch)
    assert same(one, other)
    assert not same(one, different)


def test_restored_agent_continues_bit_for_bit() -> None:
    learner, restored = agent(), agent(seed=5)
    early, late = batches(3), batches(3, seed=1)
    for batch in early:
        learner.update(batch)
    restored.load_state_dict(learner.state_dict())
    for batch in late:
        assert learner.update(batch) == restored.update(batch)
    assert same(learner, restored)


def test_looking_does_not_disturb_training() -> None:
    one, other = agent(), agent()
    for batch in batches(3):
        one.represent(batch)
        one.reconstruct(batch)
        assert one.update(batch) == other.update(batch)


def test_strips_show_truth_and_three_kinds_of_imagination() -> None:
    learner, batch = agent(), batches(1)[0]
    strips = learner.reconstruct(batch)
    assert list(strips) == ["truth", "posterior", "conditional_prior", "prior"]
    within = ~batch.is_first[:, 1:].any(1)
    count = min(8, int(within.sum()))
    for strip in strips.values():
        assert strip.shape == (count, T + 1, *SHAPE)
        assert strip.dtype == np.uint8
    assert batch.image is not None
    truth = batch.image[within][:8].permute(0, 1, 3, 4, 2).numpy()
    np.testing.assert_array_equal(strips["truth"], truth)
    # Both start from the same latent.
    np.testing.assert_array_equal(strips["posterior"][:, 0], strips["conditional_prior"][:, 0])


def test_no_window_within_an_episode_gives_no_strips() -> None:
    batch = batches(1)[0]
    is_first = batch.is_first.clone()
    is_first[:, 3] = True
    strips = agent().reconstruct(dataclasses.replace(batch, is_first=is_first))
    assert all(len(strip) == 0 for strip in strips.values())


def test_keeping_freed_memory_changes_no_bit() -> None:
    batch = batches(1)[0]
    before = agent().update(batch)
    keep_freed_memory()
    assert agent().update(batch) == before


def test_representation_is_one_latent_per_window() -> None:
    latent = agent().represent(batches(1)[0])
    assert latent.shape == (12, 10)
    assert latent.dtype == np.float32


def test_bfloat16_convolutions_give_nearly_the_same_losses() -> None:
    batch = batches(1)[0]
    exact = agent().update(batch)
    rough = agent(SMALL.model_copy(update={"precision": "bf16"})).update(batch)
    for name in ("model_loss", "kl", "critic_loss", "actor_loss"):
        assert rough[name] == pytest.approx(exact[name], rel=0.05, abs=0.05)


def test_psnr_is_that_of_the_pictures() -> None:
    learner = agent()
    image = torch.full((2, 4, 3, 16, 16), 128, dtype=torch.uint8)
    state = torch.zeros(2, 4, sum(learner.model.sizes))
    with torch.no_grad():
        error = (learner.model.decoder(state.flatten(0, 1)) - 128 / 255).square().mean()
        told = psnr(
            learner.model.image_log_prob(image, state).sum(1), image[0].numel(), learner.model.variance
        )
    assert told.item() == pytest.approx(-10 * math.log10(error.item()), abs=1e-3)


def test_losses_come_with_the_length_of_their_gradients() -> None:
    learner, (batch,) = agent(), batches(1)
    losses = learner.update(batch)
    lengths = [
        torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]).norm().item()
        for part in (learner.model, learner.core.value, learner.core.policy)
    ]
    names = ("model_gradient", "critic_gradient", "actor_gradient")
    assert [losses[name] for name in names] == pytest.approx(lengths, rel=1e-5)


def test_features_are_what_the_encoder_makes_of_the_newest_frame() -> None:
    learner, (batch,) = agent(), batches(1)
    assert batch.image is not None
    with torch.no_grad():
        newest = learner.model.encoder(batch.image[:, -1])
    np.testing.assert_allclose(learner.features(batch), newest.numpy(), rtol=1e-5, atol=1e-6)


def test_further_critic_updates_reuse_the_encoded_batch() -> None:
    config = SMALL.model_copy(update={"sac": SMALL.sac.model_copy(update={"critic_updates": 3})})
    learner = agent(config)
    assert learner.batch_size == 12
    learner.update(batches(1)[0])
    steps = learner.core.state_dict()["critic_optimiser"]["state"].values()
    assert {int(s["step"]) for s in steps} == {3}


def test_batch_without_images_is_refused_by_name() -> None:
    batch = dataclasses.replace(batches(1)[0], image=None)
    with pytest.raises(ValueError, match="'image'"):
        agent().update(batch)


def test_model_batch_larger_than_the_batch_is_a_configuration_error() -> None:
    with pytest.raises(ValueError, match="model_batch 32 is more than"):
        SlacConfig(sac=SacConfig(batch_size=16))


# --- stored features

STORED = SMALL.model_copy(
    update={"feature_age": 10, "sac": SacConfig(hidden=(32,), batch_size=6, critic_updates=2)}
)


def stored(ring: SequenceReplay, learner: SlacAgent, seed: int = 1) -> Batch:
    """Windows without images, with features by the agent's encoder as it is."""
    image = ring.sample(8, T, np.random.default_rng(seed)).image
    assert image is not None
    windows = ring.sample(8, T, np.random.default_rng(seed), images=False)
    with torch.no_grad():
        return dataclasses.replace(windows, features=learner.model.encode(image.to(learner.device)))


def test_fresh_stored_features_give_the_transitions_that_images_give() -> None:
    ring, learner = replay(), agent(STORED)
    with_images = ring.sample(8, T, np.random.default_rng(1))
    before = learner.generator.get_state()
    expected = learner._last_transition(with_images)
    learner.generator.set_state(before)
    found = learner._last_transition(stored(ring, learner))
    for field in dataclasses.fields(expected):
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name))


def test_each_critic_step_has_windows_of_its_own_and_the_model_only_those_with_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring, learner = replay(), agent(STORED)
    assert (learner.batch_size, learner.encoded_batch_size) == (4, 8)
    steps = []
    update = learner.core.update

    def look(step: Transition, generator: torch.Generator, further: Sequence[Transition]) -> Metrics:
        steps.extend([step, *further])
        return update(step, generator, further)

    monkeypatch.setattr(learner.core, "update", look)
    batch = ring.sample(4, T, np.random.default_rng(0))
    encoded = stored(ring, learner)
    learner.update(batch, encoded)
    assert [len(step.reward) for step in steps] == [6, 6]
    rewards = torch.cat([step.reward for step in steps])
    assert torch.equal(rewards, torch.cat((batch.reward[:, -1], encoded.reward[:, -1])))

    other, again = agent(STORED), agent(STORED)
    other.pretrain(batch)
    again.update(batch, encoded)
    for one, two in zip(other.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two), "the stored windows reached the model"


def test_stored_features_and_shifted_images_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"feature_age 10 .* random_shift 4 .* set one of the two to 0"):
        SlacConfig(feature_age=10, random_shift=4)


# --- on a GPU


@pytest.mark.parametrize("config", [SMALL, STORED], ids=["published", "stored features"])
def test_one_recurrence_over_all_windows_computes_what_two_do(
    config: SlacConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, done here. Without noise, of which other numbers would be drawn for other shapes."""
    monkeypatch.setattr("agent.latent.noise_like", lambda x, generator: torch.zeros_like(x))
    ring, ends = replay(), []
    for one_loop in (False, True):
        learner = agent(config)
        learner._one_loop = one_loop
        metrics = []
        for seed in range(3):
            batch = ring.sample(learner.batch_size, T, np.random.default_rng(seed))
            encoded = stored(ring, learner, seed) if config.feature_age else None
            metrics.append(learner.update(batch, encoded))
        ends.append((metrics, learner))
    (apart, one), (together, other) = ends
    for left, right in zip(apart, together, strict=True):
        assert left == pytest.approx(right, rel=2e-4, abs=1e-4)
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_stored_features_are_for_windows_beside_the_models() -> None:
    with pytest.raises(ValueError, match=r"model_batch 8 leaves none of sac\.batch_size 8"):
        SlacConfig(feature_age=10, model_batch=8, sac=SacConfig(batch_size=8))


def test_a_cuda_graph_is_for_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"cuda_graph is for device cuda; it is cpu"):
        SlacConfig(cuda_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", [SMALL, STORED], ids=["published", "stored features"])
def test_a_recorded_update_computes_what_a_plain_one_does(config: SlacConfig) -> None:
    ring, ends = replay(), []
    for graph in (False, True):
        learner = agent(config.model_copy(update={"device": "cuda", "cuda_graph": graph}))
        metrics = []
        for seed in range(10):
            if seed == 7:  # a recording must not outlive what it was made of
                learner.load_state_dict(learner.state_dict())
            batch = ring.sample(learner.batch_size, T, np.random.default_rng(seed))
            encoded = stored(ring, learner, seed) if config.feature_age else None
            metrics.append(learner.update(batch, encoded))
        ends.append((metrics, learner.policy_weights()))
    for left, right in zip(ends[0][0], ends[1][0], strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-3)
    for name, tensor in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], tensor, rtol=1e-2, atol=1e-3)
