"""The soft actor-critic core: its equations on fixed numbers, its fixed points, and a problem solved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agent.build import build_agent, build_policy
from agent.config import SacConfig, SacStateConfig
from agent.networks import EnsembleQ, TanhGaussian, TanhGaussianPolicy
from agent.policy import Policy
from agent.replay import Batch, SequenceReplay
from agent.sac import (
    AutomaticTemperature,
    EnsembleValue,
    FixedTemperature,
    SacStateAgent,
    SoftActorCritic,
    Transition,
    adam,
    shorten_gradients,
    soft_actor_critic,
    state_transition,
)

SMALL = SacConfig(hidden=(32, 32), batch_size=32)


def transition(rows: int = 16, seed: int = 0) -> Transition:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return Transition(
        state=normal(rows, 5),
        next_state=normal(rows, 5),
        observation=normal(rows, 4),
        next_observation=normal(rows, 4),
        action=normal(rows, 2).tanh(),
        reward=normal(rows),
        discount=(torch.rand(rows, generator=g) > 0.3).float(),
    )


def core(config: SacConfig = SMALL, seed: int = 0) -> SoftActorCritic:
    return soft_actor_critic(
        config,
        state_size=5,
        observation_size=4,
        action_size=2,
        generator=torch.Generator().manual_seed(seed),
        device=torch.device("cpu"),
    )


def numpy_q(parameters: list[np.ndarray], state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """(2, B), from the definition."""
    answers = []
    for member in range(2):
        x = np.concatenate((state, action), 1)
        for layer in range(3):
            x = x @ parameters[2 * layer][member] + parameters[2 * layer + 1][member]
            x = np.maximum(x, 0) if layer < 2 else x
        answers.append(x[:, 0])
    return np.stack(answers)


def test_critic_target_and_losses_equal_an_independent_computation() -> None:
    learner, step = core(), transition()
    value = learner.value
    assert isinstance(value, nn.Module)
    with torch.no_grad():
        for p in value.target.parameters():  # so that target and online critics differ
            p.add_(0.01)
    target = learner.critic_target(step, torch.Generator().manual_seed(5))
    action, log_prob = learner.policy(step.next_observation).sample(torch.Generator().manual_seed(5))
    slow = [p.numpy() for p in value.target.parameters()]
    q = numpy_q(slow, step.next_state.numpy(), action.detach().numpy()).min(0)
    alpha = 1.0
    expected = step.reward.numpy() + 0.99 * step.discount.numpy() * (q - alpha * log_prob.detach().numpy())
    np.testing.assert_allclose(target.numpy(), expected, rtol=1e-4, atol=1e-5)

    online = [p.detach().numpy() for p in value.parameters()]
    estimates = numpy_q(online, step.state.numpy(), step.action.numpy())
    loss, _ = learner.critic_loss(step, target)
    by_hand = 0.5 * np.mean((estimates[0] - expected) ** 2) + 0.5 * np.mean((estimates[1] - expected) ** 2)
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)

    policy = learner.policy(step.observation)
    actor = learner.actor_loss(step, policy, torch.Generator().manual_seed(6)).item()
    action, log_prob = policy.sample(torch.Generator().manual_seed(6))
    q = numpy_q(online, step.state.numpy(), action.detach().numpy()).min(0)
    assert actor == pytest.approx(float(np.mean(alpha * log_prob.detach().numpy() - q)), rel=1e-4, abs=1e-5)


def ensemble(members: int, subset: int | None = None) -> tuple[SoftActorCritic, EnsembleValue]:
    """A core whose target critics differ from the online ones."""
    learner = core(SMALL.model_copy(update={"critic_members": members, "critic_subset": subset}))
    value = learner.value
    assert isinstance(value, EnsembleValue)
    with torch.no_grad():
        for p in value.target.parameters():
            p.add_(0.01)
    return learner, value


@pytest.mark.parametrize("members", [1, 2, 5])
def test_without_a_subset_the_target_is_the_minimum_of_all_members_and_nothing_is_drawn(members: int) -> None:
    learner, value = ensemble(members)
    step, g = transition(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        policy = learner.policy(step.next_observation)
    seen = value.next_value(step.next_state, policy, torch.tensor(0.3), g)
    again = torch.Generator().manual_seed(5)
    action, log_prob = policy.sample(again)
    q = value.target(step.next_state, action)
    assert q.shape == (members, 16)
    assert torch.equal(seen, q.amin(0) - 0.3 * log_prob)
    assert torch.equal(g.get_state(), again.get_state())


def test_the_actor_climbs_the_minimum_of_two_and_the_mean_of_more() -> None:
    step = transition()
    for members, reduced in ((1, torch.amin), (2, torch.amin), (3, torch.mean), (10, torch.mean)):
        _, value = ensemble(members)
        q = value.estimates(step.state, step.action)
        assert q.shape == (members, 16)
        assert torch.equal(value.value_of(step.state, step.action), reduced(q, 0))


class Pair(nn.Module):
    """The published twin critics, written out: their minimum is both the target's value and the actor's."""

    def __init__(self, online: EnsembleQ) -> None:
        super().__init__()
        self.online, self.target = online, copy.deepcopy(online)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.online.parameters(recurse)

    def next_value(
        self, state: Tensor, policy: TanhGaussian, alpha: Tensor, generator: torch.Generator
    ) -> Tensor:
        action, log_prob = policy.sample(generator)
        result: Tensor = self.target(state, action).amin(0) - alpha * log_prob
        return result

    def estimates(self, state: Tensor, action: Tensor) -> Tensor:
        result: Tensor = self.online(state, action)
        return result

    def value_of(self, state: Tensor, action: Tensor) -> Tensor:
        return self.estimates(state, action).amin(0)

    @torch.no_grad()
    def track(self) -> None:
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), SMALL.polyak)


def test_two_critics_without_a_subset_are_the_published_pair_to_the_bit() -> None:
    default, other = core(), core()
    g = torch.Generator().manual_seed(0)
    policy = TanhGaussianPolicy(4, 2, SMALL.hidden, g)
    pair = SoftActorCritic(SMALL, policy, Pair(EnsembleQ(5, 2, SMALL.hidden, g)), other.temperature)
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    for seed in range(5):
        first, second = (
            c.update(transition(seed=seed), d) for c, d in zip((default, pair), draws, strict=True)
        )
        assert first == second
    ours, published = default.value.state_dict(), pair.value.state_dict()
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[name], published[name]) for name in ours)


def test_a_subset_is_drawn_anew_of_different_members() -> None:
    _, value = ensemble(10, subset=2)
    g = torch.Generator().manual_seed(0)
    drawn = [frozenset(value.drawn(g).tolist()) for _ in range(1000)]
    assert {len(members) for members in drawn} == {2}
    assert len(set(drawn)) == 45  # every pair of ten


def test_the_target_is_the_minimum_of_the_drawn_members() -> None:
    learner, value = ensemble(5, subset=2)
    step, g = transition(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        policy = learner.policy(step.next_observation)
    seen = value.next_value(step.next_state, policy, torch.tensor(0.3), g)
    g = torch.Generator().manual_seed(5)
    action, log_prob = policy.sample(g)
    one, other = value.drawn(g).tolist()
    q = value.target(step.next_state, action)
    assert torch.equal(seen, torch.minimum(q[one], q[other]) - 0.3 * log_prob)
    assert not torch.equal(seen, q.amin(0) - 0.3 * log_prob)


def test_every_member_of_an_ensemble_learns_at_every_update() -> None:
    learner, value = ensemble(6, subset=2)
    before = [p.detach().clone() for p in value.online.parameters()]
    learner.update(transition(), torch.Generator().manual_seed(0))
    for old, new in zip(before, value.online.parameters(), strict=True):
        moved = (old != new).flatten(1).any(1)
        assert len(moved) == 6
        assert moved.all()


def test_a_subset_larger_than_the_ensemble_is_a_configuration_error() -> None:
    with pytest.raises(ValueError, match="critic_subset 3 is more than critic_members 2"):
        SacConfig(critic_subset=3)


def test_failure_cuts_the_value_of_the_next_state() -> None:
    step = transition()
    target = core().critic_target(step, torch.Generator().manual_seed(0))
    ended = step.discount == 0
    assert ended.any()
    torch.testing.assert_close(target[ended], step.reward[ended])


def test_temperature_loss_is_log_alpha_times_entropy_gap() -> None:
    temperature = AutomaticTemperature(initial=0.5, target_entropy=-2.0)
    log_prob = torch.tensor([1.0, 3.0, -2.0])
    expected = np.log(0.5) * np.mean(-log_prob.numpy() + 2.0)
    assert temperature.loss(log_prob).item() == pytest.approx(expected)
    temperature.loss(torch.tensor([5.0])).backward()  # entropy -5, below the target
    assert temperature.log_alpha.grad is not None
    assert temperature.log_alpha.grad.item() < 0  # descent raises the price


def test_targets_follow_by_polyak_at_every_update() -> None:
    learner = core()
    value = learner.value
    assert isinstance(value, nn.Module)
    before = [p.clone() for p in value.target.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, value.online.parameters(), strict=True))
    learner.update(transition(), torch.Generator().manual_seed(0))
    for old, new, online in zip(before, value.target.parameters(), value.online.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.005 * (online - old))


def test_actor_gradient_leaves_critics_alone_and_critic_gradient_the_actor() -> None:
    learner, step, g = core(), transition(), torch.Generator().manual_seed(0)
    learner.actor_loss(step, learner.policy(step.observation), g).backward(
        inputs=list(learner.policy.parameters())
    )
    assert all(p.grad is None for p in learner.value.parameters())
    for p in learner.policy.parameters():
        p.grad = None
    learner.critic_loss(step, learner.critic_target(step, g))[0].backward()
    assert all(p.grad is None for p in learner.policy.parameters())
    assert all(p.grad is not None for p in learner.value.parameters())


def test_update_trains_a_representation_only_through_the_critic() -> None:
    layer = nn.Linear(5, 5)
    base = core()
    learner = SoftActorCritic(SMALL, base.policy, base.value, base.temperature, layer.parameters())
    plain = transition()
    features = layer(plain.state)
    step = Transition(
        features, features.detach(), plain.observation, plain.next_observation, *_outcome(plain)
    )
    before = layer.weight.detach().clone()
    learner.update(step, torch.Generator().manual_seed(0))
    assert not torch.equal(layer.weight, before)


def _outcome(step: Transition) -> tuple[Tensor, Tensor, Tensor]:
    return step.action, step.reward, step.discount


def test_critic_updates_take_that_many_critic_steps_and_one_actor_step() -> None:
    learner, g = core(), torch.Generator().manual_seed(0)
    learner.update(transition(), g, further=[transition(seed=1), transition(seed=2)])
    state = learner.state_dict()
    assert {int(s["step"]) for s in state["critic_optimiser"]["state"].values()} == {3}
    assert {int(s["step"]) for s in state["actor_optimiser"]["state"].values()} == {1}


class Bowl:
    """Q(s, a) = -1/2 (a - m)' H (a - m), known exactly: a value that needs no learning."""

    def __init__(self, centre: float, curvature: float) -> None:
        self.centre, self.curvature = centre, curvature
        self._unused = nn.Parameter(torch.zeros(()))

    def next_value(
        self, state: Tensor, policy: TanhGaussian, alpha: Tensor, generator: torch.Generator
    ) -> Tensor:
        return torch.zeros(len(state))

    def estimates(self, state: Tensor, action: Tensor) -> Tensor:
        return (self._unused - 0.5 * self.curvature * (action - self.centre).square().sum(-1))[None]

    def value_of(self, state: Tensor, action: Tensor) -> Tensor:
        return self.estimates(state, action)[0]

    def track(self) -> None:
        pass

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter([self._unused])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        pass


def bandit(
    temperature: AutomaticTemperature | FixedTemperature, centre: float, curvature: float
) -> TanhGaussian:
    """The policy after learning a one-step problem whose Q is known."""
    config = SacConfig(hidden=(16,), actor_lr=1e-2, temperature_lr=2e-2)
    g = torch.Generator().manual_seed(0)
    policy = TanhGaussianPolicy(1, 1, config.hidden, g)
    learner = SoftActorCritic(config, policy, Bowl(centre, curvature), temperature)
    one, none = torch.ones(256, 1), torch.zeros(256)
    step = Transition(one, one, one, one, torch.zeros(256, 1), none, none)
    for _ in range(600):
        learner.update(step, g)
    for group in learner._actor_optimiser.param_groups:
        group["lr"] = 1e-3  # settle
    for _ in range(200):
        learner.update(step, g)
    with torch.no_grad():
        result: TanhGaussian = policy(one)
    return result


def test_policy_in_a_quadratic_bowl_becomes_the_analytic_gaussian() -> None:
    # The optimum of E[Q] + alpha H is N(m, alpha / h); at std 0.05 squashing is linear to first order.
    alpha, centre, curvature = 0.02, 0.2, 8.0
    policy = bandit(FixedTemperature(alpha), centre, curvature)
    mean = policy.mode[0].item()
    std = policy.log_std[0].exp().item() * (1 - mean**2)
    assert mean == pytest.approx(centre, abs=0.01)
    assert std == pytest.approx(np.sqrt(alpha / curvature), rel=0.05)


@pytest.mark.parametrize("target", [-1.0, -2.0])
def test_automatic_temperature_brings_entropy_to_its_target_on_a_bandit(target: float) -> None:
    policy = bandit(AutomaticTemperature(1.0, target), 0.2, 8.0)
    _, log_prob = policy.sample(torch.Generator().manual_seed(1))
    assert -log_prob.mean().item() == pytest.approx(target, abs=0.1)


def test_state_agent_learns_from_the_last_step_of_a_window() -> None:
    batch = state_batch(rows=3)
    step = state_transition(batch)
    assert batch.state is not None
    assert torch.equal(step.state, batch.state[:, 0])
    assert torch.equal(step.next_state, batch.state[:, 1])
    with pytest.raises(ValueError, match="state"):
        state_transition(Batch(torch.zeros(1, 2, 3, 4, 4), None, *_columns(batch)))


def _columns(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return batch.action, batch.reward, batch.discount, batch.is_first, batch.is_last


def used_adam(steps: int = 20) -> tuple[nn.Linear, torch.optim.Adam]:
    """A layer whose optimiser has seen gradients of length 1 on average."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    optimiser = adam(layer.parameters(), 1e-3)
    for _ in range(steps):
        for parameter in layer.parameters():
            direction = torch.randn_like(parameter)
            parameter.grad = direction / direction.norm()
        optimiser.step()
    return layer, optimiser


def test_gradients_of_usual_length_are_left_alone_to_the_bit() -> None:
    layer, optimiser = used_adam()
    before = [parameter.grad.clone() for parameter in layer.parameters() if parameter.grad is not None]
    shorten_gradients(optimiser, 2.0)
    after = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
    assert len(before) == 2
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_gradient_beyond_the_limit_keeps_its_direction_and_the_others_their_length() -> None:
    layer, optimiser = used_adam()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    layer.weight.grad *= 300
    weight, bias = layer.weight.grad.clone(), layer.bias.grad.clone()
    shorten_gradients(optimiser, 2.0)
    assert float(layer.weight.grad.norm()) == pytest.approx(2.0, rel=1e-4)
    torch.testing.assert_close(layer.weight.grad / 2.0, weight / 300)
    assert torch.equal(layer.bias.grad, bias)


def test_a_limit_holds_back_neither_first_gradients_nor_bad_numbers() -> None:
    layer = nn.Linear(8, 8)
    optimiser = adam(layer.parameters(), 1e-3)
    layer(torch.ones(8)).sum().mul(1e6).backward()
    assert layer.weight.grad is not None
    first = layer.weight.grad.clone()
    shorten_gradients(optimiser, 2.0)
    assert torch.equal(layer.weight.grad, first)
    optimiser.step()
    layer.weight.grad[0, 0] = torch.nan
    shorten_gradients(optimiser, 2.0)
    assert layer.weight.grad.isnan().any()  # for the learner to see and to roll back


def test_a_parameter_that_had_no_gradient_so_far_is_not_frozen_by_the_limit() -> None:
    layer = nn.Linear(8, 8)
    optimiser = adam(layer.parameters(), 1e-3)
    for gradient in (0.0, 1.0):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        before = layer.weight.detach().clone()
        shorten_gradients(optimiser, 2.0)
        optimiser.step()
    assert float((layer.weight.detach() - before).abs().min()) > 1e-4  # a good part of the learning rate


def state_batch(rows: int = 32, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        image=None,
        state=torch.randn(rows, 2, 4, generator=g),
        action=torch.randn(rows, 1, 2, generator=g).tanh(),
        reward=torch.randn(rows, 1, generator=g),
        discount=torch.ones(rows, 1),
        is_first=torch.zeros(rows, 2, dtype=torch.bool),
        is_last=torch.zeros(rows, 2, dtype=torch.bool),
    )


def state_agent(config: SacConfig = SMALL, seed: int = 0) -> SacStateAgent:
    agent = build_agent(SacStateConfig(sac=config), image_shape=None, state_size=4, action_size=2, seed=seed)
    assert isinstance(agent, SacStateAgent)
    return agent


def same(a: SacStateAgent, b: SacStateAgent) -> bool:
    x, y = a.core.policy.state_dict(), b.core.policy.state_dict()
    p, q = a.core.value.state_dict(), b.core.value.state_dict()
    return all(torch.equal(x[k], y[k]) for k in x) and all(torch.equal(p[k], q[k]) for k in p)


def test_same_seed_and_batches_give_bit_identical_agents() -> None:
    one, other, different = state_agent(), state_agent(), state_agent(seed=1)
    for n in range(5):
        assert one.update(state_batch(seed=n)) == other.update(state_batch(seed=n))
    assert same(one, other)
    assert not same(one, different)


ENSEMBLE = SMALL.model_copy(update={"critic_members": 5, "critic_subset": 2})


@pytest.mark.parametrize("config", [SMALL, SMALL.model_copy(update={"temperature": "fixed"}), ENSEMBLE])
def test_restored_agent_continues_bit_for_bit(config: SacConfig) -> None:
    agent, restored = state_agent(config), state_agent(config, seed=9)
    for n in range(3):
        agent.update(state_batch(seed=n))
    restored.load_state_dict(agent.state_dict())
    for n in range(3, 6):
        assert agent.update(state_batch(seed=n)) == restored.update(state_batch(seed=n))
    assert same(agent, restored)


def test_options_compose() -> None:
    config = SMALL.model_copy(
        update={
            "critic_updates": 2,
            "critic_layer_norm": True,
            "actor_layer_norm": True,
            "critic_members": 5,
            "critic_subset": 2,
        }
    )
    agent = state_agent(config)
    assert agent.batch_size == 64
    metrics = agent.update(state_batch(64))
    assert all(np.isfinite(list(metrics.values())))


def test_missing_observation_is_named_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match="'state'"):
        build_agent(SacStateConfig(), image_shape=(64, 64, 3), state_size=None, action_size=2, seed=0)


class PointMass:
    """A mass on a line, pushed by the action, paid for being near zero: learnable in a thousand updates."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def episode(self, policy: Policy, explore: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state, carry = np.array([self.rng.uniform(-1, 1), 0.0], np.float32), policy.initial()
        states, actions, rewards = [state], [], []
        for _ in range(20):
            carry, action = policy.act(carry, {"state": state}, explore=explore)
            velocity = 0.8 * state[1] + 0.2 * action[0]
            state = np.array([state[0] + 0.5 * velocity, velocity], np.float32)
            states.append(state)
            actions.append(action)
            rewards.append(-abs(state[0]))
        return np.array(states), np.array(actions), np.array(rewards, np.float32)


def test_agent_learns_to_park_a_point_mass_in_seconds() -> None:
    sac = SacConfig(
        hidden=(64, 64), batch_size=64, actor_lr=1e-3, critic_lr=1e-3, temperature_lr=1e-3, discount=0.95
    )
    config = SacStateConfig(sac=sac)
    agent = build_agent(config, image_shape=None, state_size=2, action_size=1, seed=0)
    policy = build_policy(config, image_shape=None, state_size=2, action_size=1, seed=0)
    rng = np.random.default_rng(0)
    world, replay = PointMass(rng), SequenceReplay(5000, None, 2, 1)
    for episode in range(50):
        replay.add_episode(None, *world.episode(policy, explore=True), terminated=False)
        for _ in range(20 if episode >= 5 else 0):
            agent.update(replay.sample(agent.batch_size, agent.window, rng))
        policy.load_weights(agent.policy_weights())
    final = [abs(world.episode(policy, explore=False)[0][-1, 0]) for _ in range(10)]
    assert np.mean(final) < 0.1
