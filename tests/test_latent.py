"""The sequence model: filtering that forgets what it must, a bound that adds up, two layers as published."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, distributions

from agent.config import LatentConfig, SlacConfig
from agent.latent import Belief, LatentModel, probe
from agent.networks import Gaussian
from agent.policy import slac_encoder
from agent.replay import Batch

A, T, B = 2, 8, 6
SHAPE = (16, 16, 3)
SMALL = LatentConfig(base_depth=2, features=12, z1=4, z2=6, hidden=16)


def model(config: LatentConfig = SMALL, seed: int = 0) -> LatentModel:
    generator = torch.Generator().manual_seed(seed)
    encoder = slac_encoder(SlacConfig(model=config), SHAPE, generator)
    return LatentModel(config, encoder, SHAPE, A, generator)


def batch(rows: int = B, first_at: int | None = None, seed: int = 0) -> Batch:
    """Random windows; with first_at, an episode ends at that step less one and the next starts there."""
    g = torch.Generator().manual_seed(seed)
    first, last = torch.zeros(2, rows, T + 1, dtype=torch.bool)
    if first_at is not None:
        first[:, first_at], last[:, first_at - 1] = True, True
    image = torch.randint(0, 256, (rows, T + 1, *SHAPE), generator=g, dtype=torch.uint8)
    return Batch(
        image=image.permute(0, 1, 4, 2, 3),
        state=None,
        action=torch.randn(rows, T, A, generator=g).tanh(),
        reward=torch.randn(rows, T, generator=g),
        discount=torch.ones(rows, T),
        is_first=first,
        is_last=last,
    )


def infer(m: LatentModel, b: Batch, seed: int = 3) -> Belief:
    assert b.image is not None
    generator = torch.Generator().manual_seed(seed)
    return m.infer(m.encode(b.image), b.action, b.is_first, generator)


@pytest.mark.parametrize(("action_size", "count"), [(6, 4_215_365), (9, 4_218_437)])
def test_model_has_the_published_parameter_count(action_size: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    encoder = slac_encoder(SlacConfig(), (64, 64, 3), generator)
    whole = LatentModel(LatentConfig(), encoder, (64, 64, 3), action_size, generator)
    assert sum(p.numel() for p in whole.parameters()) == count


def test_nothing_before_a_first_flag_changes_anything_after_it() -> None:
    m, b = model(), batch(first_at=4)
    image, action = b.image.clone(), b.action.clone()
    image[:, :4], action[:, :4] = 255 - image[:, :4], -action[:, :4]
    changed = dataclasses.replace(b, image=image, action=action)
    before, after = infer(m, b), infer(m, changed)
    assert torch.equal(before.state[:, 4:], after.state[:, 4:])
    assert not torch.equal(before.state[:, 3], after.state[:, 3])
    kl = [m.kl(belief, x.action, x.is_first) for belief, x in ((before, b), (after, changed))]
    assert torch.equal(kl[0][:, 4:], kl[1][:, 4:])


def test_flags_act_on_their_own_window_only() -> None:
    m, plain, flagged = model(), batch(), batch(first_at=4)
    mixed_first = plain.is_first.clone()
    mixed_first[::2] = flagged.is_first[::2]
    mixed = infer(m, dataclasses.replace(plain, is_first=mixed_first)).state
    torch.testing.assert_close(mixed[::2], infer(m, flagged).state[::2])
    torch.testing.assert_close(mixed[1::2], infer(m, plain).state[1::2])


def test_filtering_never_looks_ahead() -> None:
    m, b = model(), batch()
    image, action = b.image.clone(), b.action.clone()
    image[:, 5:], action[:, 5:] = 0, 0
    later = dataclasses.replace(b, image=image, action=action)
    assert torch.equal(infer(m, b).state[:, :5], infer(m, later).state[:, :5])
    assert not torch.equal(infer(m, b).state[:, 5], infer(m, later).state[:, 5])


def reference_infer(m: LatentModel, b: Batch, seed: int) -> Tensor:
    """Section by section as the paper writes it: one head call after another, no hoisting."""
    g = torch.Generator().manual_seed(seed)
    features = m.encode(b.image)
    noise1, noise2 = torch.randn(B, T + 1, 4, generator=g), torch.randn(B, T + 1, 6, generator=g)
    states: list[Tensor] = []
    for t in range(T + 1):
        fresh = m.z1_posterior_first(features[:, t])
        if t == 0:
            q1 = fresh
        else:
            z2 = states[-1][:, 4:]
            q1 = fresh.where(b.is_first[:, t, None], m.z1_posterior(features[:, t], b.action[:, t - 1], z2))
        z1 = q1.mean + q1.std * noise1[:, t]
        q2 = m.z2_first(z1)
        if t > 0:
            q2 = q2.where(b.is_first[:, t, None], m.z2_next(b.action[:, t - 1], z1, z2))
        states.append(torch.cat((z1, q2.mean + q2.std * noise2[:, t]), 1))
    return torch.stack(states, 1)


def test_filter_equals_the_papers_recursion() -> None:
    m, b = model(), batch(first_at=3)
    torch.testing.assert_close(infer(m, b, seed=5).state, reference_infer(m, b, seed=5))


def test_evidence_equals_an_independent_computation() -> None:
    m, b = model(), batch(first_at=5)
    with torch.no_grad():
        belief = infer(m, b)
        evidence = m.evidence(b, belief)
        state = belief.state
        mean = m.decoder(state.flatten(0, 1)).numpy().reshape(B, T + 1, -1)
        reward = m.reward(state[:, :-1], b.action, state[:, 1:])
        prior = m.z1_prior(belief.z2[:, :-1], b.action)
    truth = b.image.numpy().reshape(B, T + 1, -1) / 255.0
    pixels = -0.5 * (truth - mean) ** 2 / 0.1 - 0.5 * np.log(2 * np.pi * 0.1)
    np.testing.assert_allclose(evidence.image.numpy(), pixels.sum((1, 2)), rtol=1e-4)

    gap = (b.reward.numpy() - reward.mean[..., 0].numpy()) / reward.std[..., 0].numpy()
    likelihood = -0.5 * gap**2 - np.log(reward.std[..., 0].numpy()) - 0.5 * np.log(2 * np.pi)
    likelihood[:, 4] = 0  # the reward stored at an episode's last entry is none
    np.testing.assert_allclose(evidence.reward.numpy(), likelihood.sum(1), rtol=1e-4)

    kl = np.zeros(B)
    for t in range(T + 1):
        mean1, std1 = belief.posterior.mean[:, t], belief.posterior.std[:, t]
        standard = distributions.Normal(torch.zeros(B, 4), torch.ones(B, 4))
        learned = None if t == 0 else distributions.Normal(prior.mean[:, t - 1], prior.std[:, t - 1])
        target = standard if t in (0, 5) or learned is None else learned
        kl += distributions.kl_divergence(distributions.Normal(mean1, std1), target).sum(1).numpy()
    np.testing.assert_allclose(evidence.kl.numpy(), kl, rtol=1e-4)

    loss = -(pixels.sum((1, 2)) - kl + likelihood.sum(1)).mean()
    assert evidence.loss.item() == pytest.approx(loss, rel=1e-4)


def test_bound_of_a_window_is_the_sum_of_its_episodes() -> None:
    m, b = model(), batch(first_at=4)
    belief = infer(m, b)
    whole = m.evidence(b, belief)

    def part(lo: int, hi: int) -> tuple[Tensor, Tensor, Tensor]:
        window = Batch(
            image=b.image[:, lo:hi],
            state=None,
            action=b.action[:, lo : hi - 1],
            reward=b.reward[:, lo : hi - 1],
            discount=b.discount[:, lo : hi - 1],
            is_first=torch.zeros(B, hi - lo, dtype=torch.bool),
            is_last=b.is_last[:, lo:hi],
        )
        q = Gaussian(belief.posterior.mean[:, lo:hi], belief.posterior.std[:, lo:hi])
        evidence = m.evidence(window, Belief(belief.z1[:, lo:hi], belief.z2[:, lo:hi], q))
        return evidence.image, evidence.kl, evidence.reward

    for total, one, other in zip(
        (whole.image, whole.kl, whole.reward), part(0, 4), part(4, T + 1), strict=True
    ):
        torch.testing.assert_close(total, one + other, rtol=1e-4, atol=1e-4)


def test_kl_is_zero_when_the_posterior_is_the_prior_and_never_negative() -> None:
    m, b = model(), batch(first_at=3)
    belief = infer(m, b)
    assert (m.kl(belief, b.action, b.is_first) >= 0).all()
    prior = m.z1_prior(belief.z2[:, :-1], b.action)
    zero, one = torch.zeros(B, 1, 4), torch.ones(B, 1, 4)
    prior = Gaussian(zero, one).where(b.is_first[:, 1:, None], prior)
    matched = Gaussian(torch.cat((zero, prior.mean), 1), torch.cat((one, prior.std), 1))
    kl = m.kl(Belief(belief.z1, belief.z2, matched), b.action, b.is_first)
    torch.testing.assert_close(kl, torch.zeros(B, T + 1), atol=1e-6, rtol=0)


def test_second_layer_has_one_network_for_prior_and_posterior() -> None:
    m, b = model(), batch(first_at=4)
    names = {name.split(".")[0] for name, _ in m.named_parameters()}
    assert {name for name in names if name.startswith("z2")} == {"z2_first", "z2_next"}
    assert {name for name in names if name.startswith("z1")} == {
        "z1_posterior_first",
        "z1_posterior",
        "z1_prior",
    }
    m.evidence(b, infer(m, b)).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in m.parameters())


def test_chunked_encoding_without_gradient_equals_encoding_at_once() -> None:
    m, b = model(), batch(rows=20)  # 180 frames: three chunks
    whole = m.encode(b.image)
    with torch.no_grad():
        torch.testing.assert_close(m.encode(b.image), whole, atol=1e-6, rtol=1e-6)


def test_imagination_asks_the_prior_and_starts_from_the_given_latent() -> None:
    m, b = model(), batch()
    belief = infer(m, b)
    first = belief.z1[:, 0], belief.z2[:, 0]
    dream = m.imagine(*first, b.action, torch.Generator().manual_seed(1))
    assert torch.equal(dream[:, 0], belief.state[:, 0])
    with torch.no_grad():
        for p in (*m.z1_posterior.parameters(), *m.encoder.parameters()):
            p.zero_()
    assert torch.equal(m.imagine(*first, b.action, torch.Generator().manual_seed(1)), dream)
    assert dream.shape == belief.state.shape


def test_initial_std_narrows_posterior_and_second_layer_but_not_the_prior() -> None:
    m, b = model(SMALL.model_copy(update={"initial_std": 0.08})), batch()
    belief = infer(m, b)
    assert belief.posterior.std.mean().item() == pytest.approx(0.08, rel=0.2)
    assert m.z2_first(belief.z1[:, 0]).std.mean().item() == pytest.approx(0.08, rel=0.2)
    assert m.z1_prior(belief.z2[:, 0], b.action[:, 0]).std.mean().item() == pytest.approx(0.7, rel=0.3)


def test_descent_on_one_batch_raises_the_bound() -> None:
    m, b = model(), batch()
    optimiser = torch.optim.Adam(m.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = m.evidence(b, infer(m, b)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_probe_reads_an_angle_that_is_there_and_none_that_is_not() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(-np.pi, np.pi, 800)
    there = np.stack((np.cos(angle), np.sin(angle)), 1) @ rng.normal(size=(2, 20))
    noise = rng.normal(size=(800, 20))
    assert probe(there + 0.01 * noise, angle) < 2
    assert 75 < probe(noise, angle) < 105
    assert probe(there[:100].repeat(10, 1), angle[:100]) < 5  # more dimensions than rows
    with pytest.raises(ValueError, match="8 rows"):
        probe(noise[:4], angle[:4])
