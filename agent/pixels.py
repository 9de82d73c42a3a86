"""Soft actor-critic from images alone: critic and actor see the features of the newest frames.

The critic's loss trains the encoder; there is no model and nothing to pretrain. What is told of windows of
images here serves every agent that sees.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.config import SacPixelsConfig
from agent.policy import slac_encoder
from agent.replay import Batch
from agent.sac import Transition, policy_tensors, restore_generator, soft_actor_critic, to_floats


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where it is learned from. Raises ValueError for one without images."""
    if batch.image is None:
        raise ValueError("This agent learns from 'image', but the batch has states only; store images too")
    return batch.to(device)


def with_joints(features: Tensor, joints: Tensor | None) -> Tensor:
    """Each frame's features with what the robot felt then, if that is known: (B, T, F), (B, T, J)."""
    return features if joints is None else torch.cat((features, joints), -1)


def shifted(batch: Batch, pixels: int, generator: torch.Generator) -> Batch:
    """The windows moved by up to `pixels` px in both directions, edges repeated; the same batch for 0.

    All frames of a window move alike: what moves between them is the robot.
    """
    if not pixels or batch.image is None:
        return batch
    frames = batch.image.permute(0, 1, 3, 4, 2)  # (B, T+1, H, W, 3), as it lies in memory
    size, steps, height, width, _ = frames.shape
    device = frames.device
    offset = torch.randint(-pixels, pixels + 1, (2, size, 1), generator=generator, device=device)
    row = (torch.arange(height, device=device) + offset[0]).clamp(0, height - 1)  # (B, H)
    column = (torch.arange(width, device=device) + offset[1]).clamp(0, width - 1)  # (B, W)
    window = torch.arange(size, device=device)[:, None, None, None]
    step = torch.arange(steps, device=device)[:, None, None]
    moved = frames[window, step, row[:, None, :, None], column[:, None, None, :]]
    return dataclasses.replace(batch, image=moved.permute(0, 1, 4, 2, 3))


def newest_start(is_first: Tensor) -> Tensor:
    """The step at which the newest episode of windows (B, T) starts: (B, 1), 0 where none does."""
    steps = torch.arange(is_first.shape[1], device=is_first.device)
    return torch.where(is_first, steps, 0).amax(1, keepdim=True)


def back_filled(features: Tensor, is_first: Tensor) -> Tensor:
    """Windows (B, T, F) with copies of the first frame's features before the newest first flag (B, T)."""
    start = newest_start(is_first)
    within = torch.arange(is_first.shape[1], device=is_first.device) >= start
    # One row per window: gathering copies instead would add up gradients in no fixed order on a GPU.
    first = features.gather(1, start[..., None].expand(-1, 1, features.shape[2]))
    return torch.where(within[..., None], features, first)


class SacPixelsAgent:
    """Learns from images with plain soft actor-critic: what a latent model must be better than."""

    def __init__(
        self,
        config: SacPixelsConfig,
        image_shape: tuple[int, int, int],
        action_size: int,
        seed: int,
        joint_size: int = 0,
    ) -> None:
        self.observations = config.observations
        self.joint_size = joint_size
        self.config = config
        self.window = config.window
        self.device = torch.device(config.device)
        initial = torch.Generator().manual_seed(seed)
        self.encoder = slac_encoder(config, image_shape, initial).to(self.device)
        seen = config.window * (config.model.features + joint_size)
        self.core = soft_actor_critic(
            config.sac,
            state_size=seen,
            observation_size=seen,
            action_size=action_size,
            generator=initial,
            device=self.device,
            trained_by_critic=self.encoder.parameters(),
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @property
    def batch_size(self) -> int:
        """Windows that one update wants: fresh ones for every critic step."""
        return self.config.sac.batch_size * self.config.sac.critic_updates

    def update(self, batch: Batch) -> dict[str, float]:
        """One gradient step of critic with encoder, actor and temperature; returns losses and diagnostics."""
        rest = shifted(on_device(batch, self.device), self.config.random_shift, self.generator)
        for _ in range(self.config.sac.critic_updates - 1):
            windows, rest = rest.split(self.config.sac.batch_size)
            # Each step changes the encoder, so the next one's windows are encoded only then.
            self.core.update_critic(self.representation(windows), self.generator)
        return to_floats(self.core.update(self.representation(rest), self.generator))

    def representation(self, batch: Batch) -> Transition:
        """The last step of each window, through features (B, T*F); s alone carries the encoder's gradient."""
        assert batch.image is not None
        joints = batch.state if self.joint_size else None
        before = self._encode(batch.image[:, :-1])  # (B, T, F)
        before = with_joints(before, None if joints is None else joints[:, :-1])
        with torch.no_grad():
            newest = self._encode(batch.image[:, -1:])
            newest = with_joints(newest, None if joints is None else joints[:, -1:])
            after = torch.cat((before[:, 1:], newest), 1)
        now = back_filled(before, batch.is_first[:, :-1]).flatten(1)
        after = back_filled(after, batch.is_first[:, 1:]).flatten(1)
        return Transition(
            state=now,
            next_state=after,
            observation=now.detach(),
            next_observation=after,
            action=batch.action[:, -1],
            reward=batch.reward[:, -1],
            discount=batch.discount[:, -1],
        )

    @property
    def pretrain_batch_size(self) -> int:
        """0: there is no model to train ahead of the actor-critic."""
        return 0

    def pretrain(self, batch: Batch) -> dict[str, float]:
        """Nothing to do."""
        return {}

    @torch.no_grad()
    def represent(self, batch: Batch) -> NDArray[np.float32]:
        """The features at the end of each window (B, T*F), as the critic sees them."""
        seen = self.representation(on_device(batch, self.device)).next_state
        result: NDArray[np.float32] = seen.cpu().numpy()
        return result

    @torch.no_grad()
    def features(self, batch: Batch) -> NDArray[np.float32]:
        """What the encoder makes of each window's newest frame (B, F), for probes."""
        image = on_device(batch, self.device).image
        assert image is not None
        result: NDArray[np.float32] = self._encode(image[:, -1:])[:, 0].cpu().numpy()
        return result

    @torch.no_grad()
    def judge(self, batch: Batch) -> NDArray[np.float32]:
        """What the critics expect of the last step of each window (B,)."""
        return self.core.judge(self.representation(on_device(batch, self.device)))

    def reconstruct(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """Nothing to see: features are not decoded."""
        return {}

    def policy_weights(self) -> dict[str, Tensor]:
        """What a PixelsPolicy of the same config loads."""
        return policy_tensors(encoder=self.encoder, policy=self.core.policy)

    def state_dict(self) -> dict[str, Any]:
        """A copy of weights, optimisers and the state of the random generator."""
        live = {
            "encoder": self.encoder.state_dict(),
            "core": self.core.state_dict(),
            "generator": self.generator.get_state(),
        }
        return copy.deepcopy(live)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues bit for bit where the state was taken."""
        self.encoder.load_state_dict(state["encoder"])
        self.core.load_state_dict(state["core"])
        restore_generator(self.generator, state["generator"])

    def _encode(self, image: Tensor) -> Tensor:
        features: Tensor = self.encoder(image.flatten(0, 1))
        return features.view(*image.shape[:2], self.encoder.features)
