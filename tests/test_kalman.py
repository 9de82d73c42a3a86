"""The bound where the truth is known: a linear-Gaussian model, whose evidence the Kalman filter gives.

One dimension: z1 ~ N(0, 1) at first, then z1' ~ N(F z2 + G a, Q), z2 = z1, and x ~ N(z1, R).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agent.config import LatentConfig
from agent.latent import LatentModel
from agent.networks import LEAK, MIN_STD, Encoder, GaussianHead
from agent.replay import Batch

R, Q, G = 0.2, 0.3, 0.7  # variances of a frame's noise and of a step's; what an action adds
ROWS = 20_000  # samples of the posterior: the bound is an expectation
GREY = (77, 201, 120)  # the frames, each one pixel of so many 255ths
ACTIONS = (0.4, -0.9)


class OnePixel(nn.Module):
    """Encoder and decoder of an image that is the number itself."""

    features = 1

    def forward(self, x: Tensor) -> Tensor:
        """A frame (N, 1, 1, 1) uint8 -> (N, 1); a state (N, 2) -> (N, 1, 1, 1)."""
        return x.flatten(1).float() / 255 if x.dim() == 4 else x[:, :1, None, None]


def set_linear(head: GaussianHead, slopes: list[float], variance: float) -> None:
    """Makes of a head the Gaussian whose mean is slopes . inputs: leaky(x) - leaky(-x) = 1.2 x."""
    weights = torch.tensor(slopes) / (1 + LEAK) ** 2
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.first.weight[0], head.first.weight[1] = weights, -weights
        head.second.weight[:2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        head.last.weight[0, :2] = torch.tensor([1.0, -1.0])
        std = max(variance**0.5 - MIN_STD, 1e-9)
        head.last.bias[1] = float(np.log(np.expm1(std)))


def linear_model(memory: float) -> LatentModel:
    """The model above with its exact posteriors given the last latent; F is `memory`."""
    sizes = LatentConfig(z1=1, z2=1, features=1, hidden=4, base_depth=1, decoder_variance=R)
    generator = torch.Generator().manual_seed(0)
    model = LatentModel(sizes, Encoder((16, 16, 1), 1, 1, generator), (16, 16, 1), 1, generator)
    model.encoder, model.decoder = OnePixel(), OnePixel()  # type: ignore[assignment]
    first, gain = 1 / (1 + R), Q / (Q + R)
    set_linear(model.z1_posterior_first, [first], R * first)
    # E[z1' | x', a, z2] = m + gain (x' - m),  m = F z2 + G a
    set_linear(model.z1_posterior, [gain, (1 - gain) * G, (1 - gain) * memory], (1 - gain) * Q)
    set_linear(model.z1_prior, [memory, G], Q)
    set_linear(model.z2_first, [1.0], 0.0)
    set_linear(model.z2_next, [0.0, 1.0, 0.0], 0.0)
    return model


def windows(restarts: bool) -> Batch:
    """The same three frames in every row; with `restarts` each is the first of an episode of its own."""
    flags = torch.zeros(ROWS, len(GREY), dtype=torch.bool)
    flags[:, 1:] = restarts
    return Batch(
        image=torch.tensor(GREY, dtype=torch.uint8).view(1, -1, 1, 1, 1).expand(ROWS, -1, -1, -1, -1),
        state=None,
        action=torch.tensor(ACTIONS).view(1, -1, 1).expand(ROWS, -1, -1),
        reward=torch.zeros(ROWS, len(ACTIONS)),
        discount=torch.ones(ROWS, len(ACTIONS)),
        is_first=flags,
        is_last=torch.zeros_like(flags),
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its standard error."""

    mean: float
    error: float


@torch.no_grad()
def bound(model: LatentModel, batch: Batch) -> Estimate:
    """The evidence lower bound of the frames alone."""
    assert batch.image is not None
    features = model.encode(batch.image)
    belief = model.infer(features, batch.action, batch.is_first, torch.Generator().manual_seed(1))
    evidence = model.evidence(batch, belief)
    values = (evidence.image - evidence.kl).double().numpy()
    return Estimate(values.mean(), values.std() / len(values) ** 0.5)


def log_normal(x: float, mean: float, variance: float) -> float:
    """log N(x; mean, variance)"""
    return float(-0.5 * (np.log(2 * np.pi * variance) + (x - mean) ** 2 / variance))


def kalman_evidence(memory: float) -> float:
    """log p(x_1, x_2, x_3) by prediction and correction."""
    total, mean, variance = 0.0, 0.0, 1.0
    for t, x in enumerate(np.array(GREY) / 255):
        if t:
            mean, variance = memory * mean + G * ACTIONS[t - 1], memory**2 * variance + Q
        total += log_normal(x, mean, variance + R)
        gain = variance / (variance + R)
        mean, variance = mean + gain * (x - mean), (1 - gain) * variance
    return total


def filtering_bound(memory: float) -> float:
    """log p(x_1) + sum_t E log p(x_t | z_{t-1}), z_{t-1} drawn by the filter, in closed form.

    What the bound is when each posterior is exact given the latent before it: frames to come cannot correct
    a draw that was made.
    """
    frames = np.array(GREY) / 255
    total, first = log_normal(frames[0], 0.0, 1 + R), 1 / (1 + R)
    mean, variance, gain = first * frames[0], R * first, Q / (Q + R)
    for x, a in zip(frames[1:], ACTIONS, strict=True):
        ahead, spread = memory * mean + G * a, memory**2 * variance
        total += log_normal(x, ahead, Q + R) - 0.5 * spread / (Q + R)
        mean, variance = ahead + gain * (x - ahead), (1 - gain) ** 2 * spread + (1 - gain) * Q
    return total


def test_bound_of_single_frames_with_their_exact_posterior_is_the_evidence() -> None:
    evidence = sum(log_normal(x / 255, 0.0, 1 + R) for x in GREY)
    found = bound(linear_model(memory=0.8), windows(restarts=True))
    assert found.mean == pytest.approx(evidence, abs=4 * found.error + 1e-3)


def test_bound_of_a_sequence_without_memory_is_the_kalman_evidence() -> None:
    found = bound(linear_model(memory=0.0), windows(restarts=False))
    assert found.mean == pytest.approx(kalman_evidence(0.0), abs=4 * found.error + 1e-3)


@pytest.mark.parametrize("memory", [0.4, 0.9])
def test_bound_of_a_sequence_is_below_the_kalman_evidence_by_what_filtering_cannot_know(
    memory: float,
) -> None:
    found, evidence = bound(linear_model(memory), windows(restarts=False)), kalman_evidence(memory)
    assert found.mean == pytest.approx(filtering_bound(memory), abs=4 * found.error + 1e-3)
    assert found.mean < evidence - 4 * found.error


def test_a_worse_posterior_loosens_the_bound() -> None:
    exact, other = linear_model(0.0), linear_model(0.0)
    set_linear(other.z1_posterior_first, [0.5], R)
    batch = windows(restarts=False)
    assert bound(other, batch).mean < bound(exact, batch).mean - 0.01
