"""The latent variable model of SLAC: two stochastic layers per step, trained by the evidence lower bound.

Notation: x image, z1 and z2 the two layers of the latent, a action, r reward; ' marks the next step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agent.config import LatentConfig
from agent.networks import LOG_2PI, Decoder, Encoder, Gaussian, GaussianHead, noise_like, squared_error
from agent.replay import Batch

ENCODE_CHUNK = 64  # frames: larger batches fall out of the cache (256 x 9 frames: 523 ms chunked, 1268 whole)


@dataclass(frozen=True, slots=True)
class Belief:
    """One posterior sample per window, and the distribution that z1 came from; t runs over T+1 steps."""

    z1: Tensor  # (B, T+1, Z1)
    z2: Tensor  # (B, T+1, Z2)
    posterior: Gaussian  # q(z1_t | ...)  (B, T+1, Z1)

    @property
    def state(self) -> Tensor:
        """What critic and decoder see (B, T+1, Z1 + Z2)."""
        return torch.cat((self.z1, self.z2), -1)

    def of_first(self, count: int) -> Belief:
        """That of the first `count` windows."""
        q = Gaussian(self.posterior.mean[:count], self.posterior.std[:count])
        return Belief(self.z1[:count], self.z2[:count], q)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The terms of the lower bound, each (B,), summed over pixels, steps and dimensions."""

    image: Tensor  # log p(x | z)
    kl: Tensor  # KL(q(z1) || p(z1))
    reward: Tensor  # log p(r | z, a, z')

    @property
    def loss(self) -> Tensor:
        """What to descend: the negative lower bound, mean over the batch."""
        return -(self.image - self.kl + self.reward).mean()


class LatentModel(nn.Module):
    """Infers, imagines and decodes latent states; z2's posterior is its prior, so only z1 has a KL."""

    def __init__(
        self,
        config: LatentConfig,
        encoder: Encoder,
        image_shape: tuple[int, int, int],
        action_size: int,
        generator: torch.Generator,
        bf16: bool = False,
        joint_size: int = 0,
    ) -> None:
        """`joint_size`: how many numbers of the robot's joints come with each frame's features."""
        super().__init__()
        self.variance = config.decoder_variance
        self.sizes = (config.z1, config.z2)
        z1, z2, state = config.z1, config.z2, config.z1 + config.z2
        features = config.features + joint_size

        def head(inputs: int, outputs: int, initial_std: float | None = None) -> GaussianHead:
            return GaussianHead(inputs, outputs, config.hidden, generator, initial_std)

        spread = config.initial_std
        self.encoder = encoder
        # q(z1 | x)  at an episode's first frame
        self.z1_posterior_first = head(features, z1, spread)
        # q(z1' | x', a, z2)
        self.z1_posterior = head(features + action_size + z2, z1, spread)
        # p(z1' | z2, a);  at the first frame N(0, I)
        self.z1_prior = head(z2 + action_size, z1)
        # p(z2 | z1) = q(z2 | z1)  at the first frame
        self.z2_first = head(z1, z2, spread)
        # p(z2' | a, z1', z2) = q(z2' | a, z1', z2)
        self.z2_next = head(action_size + z1 + z2, z2, spread)
        # p(x | z1, z2), fixed variance
        self.decoder = Decoder(image_shape, state, config.base_depth, generator, bf16)
        # p(r | z, a, z')
        self.reward = head(state + action_size + state, 1)

    def encode(self, image: Tensor) -> Tensor:
        """(B, T+1, C, H, W) uint8 -> (B, T+1, F); in cache-sized chunks when no gradient is wanted."""
        frames = image.flatten(0, 1)
        if torch.is_grad_enabled():
            features: Tensor = self.encoder(frames)
        else:
            chunks = torch.split(frames, ENCODE_CHUNK)
            features = torch.cat([self.encoder(chunk) for chunk in chunks])
        return features.view(*image.shape[:2], self.encoder.features)

    def infer(self, features: Tensor, action: Tensor, is_first: Tensor, generator: torch.Generator) -> Belief:
        """Filters through windows (B, T+1, F), actions (B, T, A); a first flag (B, T+1) starts anew."""
        size = features.shape[:2]
        noise1 = noise_like(features.new_empty(*size, self.sizes[0]), generator)
        noise2 = noise_like(features.new_empty(*size, self.sizes[1]), generator)
        first = is_first.clone()
        first[:, 0] = True  # whatever came before the window is not known
        # All that does not depend on the step before stays out of the recurrence: episodes' first frames, and
        # what features and actions add to the first layers.
        begun = self._begin(features, first, noise1, noise2)
        early1 = self.z1_posterior.early(features[:, 1:], action)  # (B, T, hidden)
        early2 = self.z2_next.early(action)  # (B, T, hidden)
        starts = first.any(0).tolist() if features.device.type == "cpu" else [True] * size[1]

        steps = [[part[:, 0] for part in begun]]  # mean and std of q(z1), z1, z2
        for t in range(1, size[1]):
            z2 = steps[-1][-1]
            # q(z1' | x', a, z2)  (B, Z1)
            q1 = self.z1_posterior.late(early1[:, t - 1], z2)
            z1 = q1.mean + q1.std * noise1[:, t]
            # q(z2' | a, z1', z2)  (B, Z2)
            q2 = self.z2_next.late(early2[:, t - 1], z1, z2)
            step = [q1.mean, q1.std, z1, q2.mean + q2.std * noise2[:, t]]
            if starts[t]:
                anew = [part[:, t] for part in begun]
                step = [torch.where(first[:, t, None], x, y) for x, y in zip(anew, step, strict=True)]
            steps.append(step)
        mean, std, z1, z2 = (torch.stack(parts, 1) for parts in zip(*steps, strict=True))
        return Belief(z1, z2, Gaussian(mean, std))

    def _begin(self, features: Tensor, first: Tensor, noise1: Tensor, noise2: Tensor) -> tuple[Tensor, ...]:
        """Mean and std of q(z1 | x), z1 and z2, each (B, T+1, n), where first (B, T+1) holds."""
        if features.device.type != "cpu":  # shapes that depend on numbers would make a GPU wait
            return self._filter_first(features, noise1, noise2)
        found = self._filter_first(features[first], noise1[first], noise2[first])
        where = first.nonzero(as_tuple=True)
        size = first.shape
        return tuple(part.new_zeros(*size, part.shape[-1]).index_put(where, part) for part in found)

    def _filter_first(self, features: Tensor, noise1: Tensor, noise2: Tensor) -> tuple[Tensor, ...]:
        # q(z1 | x)  (..., Z1)
        q1 = self.z1_posterior_first(features)
        z1 = q1.mean + q1.std * noise1
        # q(z2 | z1)  (..., Z2)
        q2 = self.z2_first(z1)
        return q1.mean, q1.std, z1, q2.mean + q2.std * noise2

    def evidence(self, batch: Batch, belief: Belief) -> Evidence:
        """The lower bound's terms for the windows that the belief was inferred from."""
        assert batch.image is not None
        return Evidence(
            image=self.image_log_prob(batch.image, belief.state).sum(1),
            kl=self.kl(belief, batch.action, batch.is_first).sum(1),
            reward=self._reward_log_prob(batch, belief.state).sum(1),
        )

    def image_log_prob(self, image: Tensor, state: Tensor) -> Tensor:
        """log p(x | z)  (B, T+1), summed over pixels."""
        mean: Tensor = self.decoder(state.flatten(0, 1))
        error = squared_error(mean, image.flatten(0, 1)).view(image.shape[:2])
        constant = 0.5 * mean[0].numel() * (LOG_2PI + math.log(self.variance))
        return -0.5 / self.variance * error - constant

    def kl(self, belief: Belief, action: Tensor, is_first: Tensor) -> Tensor:
        """KL(q(z1) || p(z1))  (B, T+1), analytic; the prior starts from posterior samples of z2."""
        # p(z1' | z2, a)  (B, T, Z1)
        prior = self.z1_prior(belief.z2[:, :-1], action)
        standard = Gaussian(torch.zeros_like(prior.mean), torch.ones_like(prior.std))
        prior = standard.where(is_first[:, 1:, None], prior)
        mean = torch.cat((standard.mean[:, :1], prior.mean), 1)
        std = torch.cat((standard.std[:, :1], prior.std), 1)
        prior = Gaussian(mean, std)
        return belief.posterior.kl(prior)

    def _reward_log_prob(self, batch: Batch, state: Tensor) -> Tensor:
        # p(r | z, a, z')  (B, T, 1)
        reward: Gaussian = self.reward(state[:, :-1], batch.action, state[:, 1:])
        # After an episode's last step comes a reset: the number stored there is no reward.
        return reward.log_prob(batch.reward[..., None]) * ~batch.is_last[:, :-1]

    def imagine(self, z1: Tensor, z2: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Rolls the prior from z1 (B, Z1), z2 (B, Z2) under actions (B, T, A): states (B, T+1, Z1+Z2)."""
        states = [torch.cat((z1, z2), -1)]
        for a in action.unbind(1):
            z1 = self.z1_prior(z2, a).sample(generator)
            z2 = self.z2_next(a, z1, z2).sample(generator)
            states.append(torch.cat((z1, z2), -1))
        return torch.stack(states, 1)

    def dream_start(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` first latents of the prior, before any image: z1 (B, Z1), z2 (B, Z2)."""
        z1 = noise_like(self.decoder.weight.new_empty(count, self.sizes[0]), generator)
        return z1, self.z2_first(z1).sample(generator)


def probe(latent: NDArray[np.floating], angle: NDArray[np.floating]) -> float:
    """How well a linear reading of the latent tells an angle: median error in degrees, 90 = not at all.

    latent: (N, D). angle: (N,) rad. Ridge regression to (cos, sin) on the first three quarters, error on
    the rest. Raises ValueError for fewer than 8 rows.
    """
    if len(latent) < 8 or len(latent) != len(angle):
        raise ValueError(f"A probe needs 8 rows or more, one angle for each; got {len(latent)}, {len(angle)}")
    cut = len(latent) * 3 // 4
    scale = latent[:cut].std(0) + 1e-6
    x = (latent - latent[:cut].mean(0)) / scale
    x = np.concatenate((x, np.ones((len(x), 1))), 1).astype(np.float64)
    y = np.stack((np.cos(angle), np.sin(angle)), 1)
    # The ridge keeps the fit determined when there are fewer rows than dimensions.
    gram = x[:cut].T @ x[:cut] + 1e-2 * cut * np.eye(x.shape[1])
    read = x[cut:] @ np.linalg.solve(gram, x[:cut].T @ y[:cut])
    error = np.arctan2(read[:, 1], read[:, 0]) - angle[cut:]
    return float(np.degrees(np.median(np.abs((error + np.pi) % (2 * np.pi) - np.pi))))
