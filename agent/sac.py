"""The soft actor-critic update over four exchangeable parts, and the agent that learns from the state.

Representation: what critic and actor see.  Policy: how actions are drawn.  Value: what the next state is
worth.  Temperature: what entropy is worth.  Every agent is a composition of these; the update is one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.config import SacConfig, SacStateConfig
from agent.networks import EnsembleQ, TanhGaussian, TanhGaussianPolicy
from agent.replay import Batch

Metrics = dict[str, Tensor]  # scalars, still on the device


@dataclass(frozen=True, slots=True)
class Transition:
    """One step s, a, r, s' as critic and actor see it; B rows."""

    state: Tensor  # (B, S) for the critic; may carry the gradient of a representation that it trains
    next_state: Tensor  # (B, S)
    observation: Tensor  # (B, O) for the actor
    next_observation: Tensor  # (B, O)
    action: Tensor  # (B, A)
    reward: Tensor  # (B,)
    discount: Tensor  # (B,) 0 where the step ended in a true failure, else 1

    def detach(self) -> Transition:
        """The same numbers without gradients."""
        return Transition(*(getattr(self, field.name).detach() for field in fields(self)))

    def join(self, other: Transition) -> Transition:
        """The rows of both."""
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return Transition(*(torch.cat(pair) for pair in pairs))

    def split(self, parts: int) -> list[Transition]:
        """The rows dealt out to equal parts."""
        chunks = [getattr(self, field.name).chunk(parts) for field in fields(self)]
        return [Transition(*chunk) for chunk in zip(*chunks, strict=True)]


class Part(Protocol):
    """Something with weights that an optimiser trains and a checkpoint keeps."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimiser trains."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything it depends on."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Takes over what state_dict() gave."""
        ...


class Representation(Protocol):
    """Turns a batch of windows into what critic and actor see."""

    def __call__(self, batch: Batch) -> Transition:
        """The last step of every window."""
        ...


class StochasticPolicy(Part, Protocol):
    """pi(a | o) with reparameterised samples."""

    def __call__(self, observation: Tensor) -> TanhGaussian:
        """The distribution at each observation (B, O)."""
        ...


class SoftValue(Part, Protocol):
    """Estimates of soft Q, and of the value of the next state that they regress on."""

    def next_value(
        self, state: Tensor, policy: TanhGaussian, alpha: Tensor, generator: torch.Generator
    ) -> Tensor:
        """V(s') (B,) under the policy's distribution there, from slow copies."""
        ...

    def estimates(self, state: Tensor, action: Tensor) -> Tensor:
        """Each member's Q(s, a) (E, B)."""
        ...

    def value_of(self, state: Tensor, action: Tensor) -> Tensor:
        """The Q(s, a) (B,) that the actor climbs."""
        ...

    def track(self) -> None:
        """Lets the slow copies follow by one step."""
        ...


class Temperature(Part, Protocol):
    """The price of entropy."""

    @property
    def alpha(self) -> Tensor:
        """The present price, scalar, without gradient."""
        ...

    def loss(self, log_prob: Tensor) -> Tensor:
        """What to descend, given the log densities (B,) of fresh actions."""
        ...


class AutomaticTemperature(nn.Module):
    """Raises the price while the policy's entropy is below the target, lowers it while above."""

    def __init__(self, initial: float, target_entropy: float) -> None:
        super().__init__()
        self.target_entropy = target_entropy
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))

    @property
    def alpha(self) -> Tensor:
        """The present price."""
        return self.log_alpha.detach().exp()

    def loss(self, log_prob: Tensor) -> Tensor:
        """log alpha * (entropy - target): the step does not depend on alpha's own size."""
        return (self.log_alpha * (-log_prob.detach() - self.target_entropy)).mean()


class FixedTemperature(nn.Module):
    """A price that stays."""

    value: Tensor

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(alpha))

    @property
    def alpha(self) -> Tensor:
        """The price."""
        return self.value

    def loss(self, log_prob: Tensor) -> Tensor:
        """Nothing to descend."""
        return log_prob.new_zeros(())


class EnsembleValue(nn.Module):
    """A pessimistic ensemble of critics, with slowly following target copies."""

    def __init__(self, online: EnsembleQ, polyak: float, subset: int | None = None) -> None:
        super().__init__()
        self.polyak = polyak
        self.subset = subset
        self.online = online
        self.target = copy.deepcopy(online).requires_grad_(False)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The online critics': the targets follow and are not trained."""
        return self.online.parameters(recurse)

    @torch.no_grad()
    def next_value(
        self, state: Tensor, policy: TanhGaussian, alpha: Tensor, generator: torch.Generator
    ) -> Tensor:
        """min_i Qbar_i(s', a') - alpha log pi(a'), a' ~ pi  (B,), i over all members or a drawn subset."""
        action, log_prob = policy.sample(generator)
        q: Tensor = self.target(state, action)
        if self.subset is not None:
            q = q[self.drawn(generator)]
        return q.amin(0) - alpha * log_prob

    def drawn(self, generator: torch.Generator) -> Tensor:
        """`subset` different members (M,), one draw for the whole batch, as in REDQ."""
        members = torch.randperm(self.online.members, generator=generator, device=generator.device)
        return members[: self.subset]

    def estimates(self, state: Tensor, action: Tensor) -> Tensor:
        """Each member's Q(s, a) (E, B)."""
        q: Tensor = self.online(state, action)
        return q

    def value_of(self, state: Tensor, action: Tensor) -> Tensor:
        """The smaller Q(s, a) (B,) of a pair; the mean of more, as in REDQ and RLPD.

        The minimum of many is too low: the more members, the further below the truth.
        """
        q = self.estimates(state, action)
        return q.mean(0) if self.online.members > 2 else q.amin(0)

    @torch.no_grad()
    def track(self) -> None:
        """Moves the targets by `polyak` of the way."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), self.polyak)


def adam(parameters: Iterable[nn.Parameter], lr: float, *, graph: bool = False) -> torch.optim.Adam:
    """Adam as TensorFlow sets it, in one fused kernel; `graph`: fit to be part of a CUDA graph."""
    return torch.optim.Adam(parameters, lr=lr, eps=1e-8, fused=True, capturable=graph)


class SoftActorCritic:
    """One update for every agent: critic, actor and temperature from one set of parameters, then Polyak."""

    def __init__(
        self,
        config: SacConfig,
        policy: StochasticPolicy,
        value: SoftValue,
        temperature: Temperature,
        trained_by_critic: Iterable[nn.Parameter] = (),
        *,
        graph: bool = False,
    ) -> None:
        """`graph`: updates can be recorded as a CUDA graph."""
        self.config, self.policy, self.value, self.temperature = config, policy, value, temperature
        self._actor_parameters = list(policy.parameters())
        self._critic_parameters = [*value.parameters(), *trained_by_critic]
        self._actor_optimiser = adam(self._actor_parameters, config.actor_lr, graph=graph)
        self._critic_optimiser = adam(self._critic_parameters, config.critic_lr, graph=graph)
        prices = list(temperature.parameters())
        self._temperature_optimiser = adam(prices, config.temperature_lr, graph=graph) if prices else None

    def critic_target(self, step: Transition, generator: torch.Generator) -> Tensor:
        """y = r + gamma d V(s')  (B,), without gradient."""
        with torch.no_grad():
            policy = self.policy(step.next_observation)
            value = self.value.next_value(step.next_state, policy, self.temperature.alpha, generator)
            return step.reward + self.config.discount * step.discount * value

    def critic_loss(self, step: Transition, target: Tensor) -> tuple[Tensor, Tensor]:
        """sum_i 1/2 mean (Q_i - y)^2, and the mean Q."""
        estimates = self.value.estimates(step.state, step.action)
        return 0.5 * (estimates - target).square().mean(-1).sum(), estimates.detach().mean()

    def actor_loss(self, step: Transition, policy: TanhGaussian, generator: torch.Generator) -> Tensor:
        """mean [alpha log pi(a) - Q(s, a)], a ~ pi reparameterised."""
        action, log_prob = policy.sample(generator)
        value = self.value.value_of(step.state.detach(), action)
        return (self.temperature.alpha * log_prob - value).mean()

    def update(
        self, step: Transition, generator: torch.Generator, further: Sequence[Transition] = ()
    ) -> Metrics:
        """One step of everything on `step`, after critic-only steps on each of `further`."""
        for other in further:
            self.update_critic(other, generator)
        policy = self.policy(step.observation.detach())
        actor_loss = self.actor_loss(step, policy, generator)
        with torch.no_grad():
            _, log_prob = policy.sample(generator)
        # All gradients come from the parameters before any of the steps, as in the published code.
        self._actor_optimiser.zero_grad()
        actor_loss.backward(inputs=self._actor_parameters)  # type: ignore[no-untyped-call]
        gradient = gradient_norm(self._actor_parameters)
        metrics = self.update_critic(step, generator)
        temperature_loss = self._update_temperature(log_prob)
        self._actor_optimiser.step()
        return metrics | {
            "actor_loss": actor_loss.detach(),
            "actor_gradient": gradient,
            "temperature_loss": temperature_loss,
            "entropy": -log_prob.mean(),
            "alpha": self.temperature.alpha,
        }

    def update_critic(self, step: Transition, generator: torch.Generator) -> Metrics:
        """One step of the critics, of what they train, and of their slow copies."""
        target = self.critic_target(step, generator)
        loss, q = self.critic_loss(step, target)
        self._critic_optimiser.zero_grad()
        loss.backward(inputs=self._critic_parameters)  # type: ignore[no-untyped-call]
        gradient = gradient_norm(self._critic_parameters)
        self._critic_optimiser.step()
        self.value.track()
        return {
            "critic_loss": loss.detach(),
            "critic_gradient": gradient,
            "q": q,
            "target_q": target.mean(),
        }

    @torch.no_grad()
    def judge(self, step: Transition) -> NDArray[np.float32]:
        """What the critics expect of each step (B,): the discounted sum of rewards and entropy bonuses."""
        value: NDArray[np.float32] = self.value.value_of(step.state, step.action).cpu().numpy()
        return value

    def _update_temperature(self, log_prob: Tensor) -> Tensor:
        loss = self.temperature.loss(log_prob)
        if self._temperature_optimiser is not None:
            self._temperature_optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._temperature_optimiser.step()
        return loss.detach()

    def _parts(self) -> dict[str, Part | torch.optim.Optimizer]:
        parts: dict[str, Part | torch.optim.Optimizer] = {
            "policy": self.policy,
            "value": self.value,
            "temperature": self.temperature,
            "actor_optimiser": self._actor_optimiser,
            "critic_optimiser": self._critic_optimiser,
        }
        if self._temperature_optimiser is not None:
            parts["temperature_optimiser"] = self._temperature_optimiser
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Everything the update depends on."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where the state was taken, bit for bit."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def soft_actor_critic(
    config: SacConfig,
    *,
    state_size: int,
    observation_size: int,
    action_size: int,
    generator: torch.Generator,
    device: torch.device,
    trained_by_critic: Iterable[nn.Parameter] = (),
    graph: bool = False,
) -> SoftActorCritic:
    """The published composition: tanh-Gaussian policy, twin critics, automatic or fixed temperature.

    `generator` (CPU) draws the initial weights, so that they are the same on every device.
    `trained_by_critic`: on that device already.
    """
    policy = TanhGaussianPolicy(
        observation_size, action_size, config.hidden, generator, config.actor_layer_norm
    )
    layer_norm, members = config.critic_layer_norm, config.critic_members
    critics = EnsembleQ(state_size, action_size, config.hidden, generator, layer_norm, members)
    target_entropy = -float(action_size) if config.target_entropy is None else config.target_entropy
    temperature = (
        AutomaticTemperature(config.initial_temperature, target_entropy)
        if config.temperature == "automatic"
        else FixedTemperature(config.initial_temperature)
    )
    value = EnsembleValue(critics, config.polyak, config.critic_subset)
    return SoftActorCritic(
        config, policy.to(device), value.to(device), temperature.to(device), trained_by_critic, graph=graph
    )


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continues a stream of random numbers; where another kind of device made it, a fresh one goes on."""
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.cpu())


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The Euclidean length of the gradient of all parameters that have one."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


@torch.no_grad()
def shorten_gradients(optimiser: torch.optim.Adam, limit: float) -> None:
    """Shortens each tensor's gradient to `limit` times its usual length, that of Adam's second moment.

    Adam divides by what gradients were like over the last thousand updates: one that is a hundred times as
    long moves every weight thirty learning rates far before that shows. Here at most `limit` in a row.
    """
    for group in optimiser.param_groups:
        known = [p for p in group["params"] if p.grad is not None and "exp_avg_sq" in optimiser.state[p]]
        for parameter in known:
            memory = optimiser.state[parameter]
            square = memory["exp_avg_sq"].sum() / (1 - group["betas"][1] ** memory["step"])
            usual = square.sqrt() + group["eps"]  # where there was no gradient so far, one may begin
            parameter.grad.mul_((limit * usual / parameter.grad.norm()).clamp(max=1.0))


def to_floats(metrics: Metrics) -> dict[str, float]:
    """The metrics as plain numbers, with one transfer from the device."""
    values = torch.stack([value.float() for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def policy_tensors(**parts: Part) -> dict[str, Tensor]:
    """Copies of the weights that acting needs, on the CPU, named `part.parameter`."""
    return {
        f"{part}.{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def state_transition(batch: Batch) -> Transition:
    """The representation that changes nothing: critic and actor see the state vector."""
    if batch.state is None:
        raise ValueError(
            "This agent learns from 'state', but the batch has images only; store states as well"
        )
    now, after = batch.state[:, -2], batch.state[:, -1]
    return Transition(now, after, now, after, batch.action[:, -1], batch.reward[:, -1], batch.discount[:, -1])


class SacStateAgent:
    """Learns from the state vector with plain soft actor-critic: the baseline that others are judged by."""

    observations: tuple[str, ...] = ("state",)
    window = 1

    def __init__(self, config: SacStateConfig, state_size: int, action_size: int, seed: int) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.core = soft_actor_critic(
            config.sac,
            state_size=state_size,
            observation_size=state_size,
            action_size=action_size,
            generator=torch.Generator().manual_seed(seed),
            device=self.device,
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.representation: Representation = state_transition

    @property
    def batch_size(self) -> int:
        """Windows that one update wants: fresh ones for every critic step."""
        return self.config.sac.batch_size * self.config.sac.critic_updates

    def update(self, batch: Batch) -> dict[str, float]:
        """One gradient step of critic, actor and temperature; returns losses and diagnostics."""
        step = self.representation(batch.to(self.device))
        *further, last = step.split(self.config.sac.critic_updates)
        return to_floats(self.core.update(last, self.generator, further))

    @property
    def pretrain_batch_size(self) -> int:
        """0: there is no model to train ahead of the actor-critic."""
        return 0

    def pretrain(self, batch: Batch) -> dict[str, float]:
        """Nothing to do."""
        return {}

    def represent(self, batch: Batch) -> NDArray[np.float32]:
        """The last state of each window (B, N): what a probe of the latents is compared with."""
        result: NDArray[np.float32] = self.representation(batch).next_state.cpu().numpy()
        return result

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """The same: nothing is encoded."""
        return self.represent(batch)

    def judge(self, batch: Batch) -> NDArray[np.float32]:
        """What the critics expect of the last step of each window (B,)."""
        return self.core.judge(self.representation(batch.to(self.device)))

    def reconstruct(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """Nothing to see."""
        return {}

    def policy_weights(self) -> dict[str, Tensor]:
        """What a StatePolicy of the same config loads."""
        return policy_tensors(policy=self.core.policy)

    def state_dict(self) -> dict[str, Any]:
        """A copy of weights, optimisers and the state of the random generator."""
        return copy.deepcopy({"core": self.core.state_dict(), "generator": self.generator.get_state()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues bit for bit where the state was taken."""
        self.core.load_state_dict(state["core"])
        restore_generator(self.generator, state["generator"])
