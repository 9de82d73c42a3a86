"""Stochastic latent actor-critic: the soft actor-critic core on latents that a sequence model infers.

The critic sees one posterior sample, the actor the features and actions of the last T steps; both are cut off
from the model's gradient, which comes from the evidence lower bound alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.config import SlacConfig
from agent.latent import Belief, LatentModel
from agent.networks import LOG_2PI
from agent.pixels import back_filled, newest_start, on_device, shifted, with_joints
from agent.policy import history_size, slac_encoder
from agent.recorded import Recorded
from agent.replay import Batch
from agent.sac import (
    Metrics,
    Transition,
    adam,
    gradient_norm,
    policy_tensors,
    restore_generator,
    shorten_gradients,
    soft_actor_critic,
    to_floats,
)

STRIP_WINDOWS = 8


def history(features: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
    """What the actor sees of windows (B, T, F), (B, T-1, A), (B, T): (B, T*F + (T-1)*A), oldest first.

    Before the newest first flag lie copies of the first frame's features and zero actions.
    """
    steps = torch.arange(action.shape[1], device=action.device)
    valid = (steps >= newest_start(is_first))[..., None]
    return torch.cat((back_filled(features, is_first).flatten(1), (action * valid).flatten(1)), 1)


def last_transition(batch: Batch, features: Tensor, state: Tensor) -> Transition:
    """The last step of each window, seen through features (B, T+1, F) and latents (B, T+1, Z)."""
    return Transition(
        state=state[:, -2],
        next_state=state[:, -1],
        observation=history(features[:, :-1], batch.action[:, :-1], batch.is_first[:, :-1]),
        next_observation=history(features[:, 1:], batch.action[:, 1:], batch.is_first[:, 1:]),
        action=batch.action[:, -1],
        reward=batch.reward[:, -1],
        discount=batch.discount[:, -1],
    ).detach()


def psnr(log_prob: Tensor, values: int, variance: float) -> Tensor:
    """Peak signal-to-noise ratio (dB) of images in [0, 1], of whose `values` numbers that is log p (B,)."""
    constant = 0.5 * values * (LOG_2PI + math.log(variance))
    error = -2 * variance / values * (log_prob + constant)  # mean square
    return -10 * error.mean().log10()


class SlacAgent:
    """Learns from images: sequence model and soft actor-critic from the same windows."""

    def __init__(
        self,
        config: SlacConfig,
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
        encoder = slac_encoder(config, image_shape, initial)
        bf16 = config.precision == "bf16"
        model = LatentModel(config.model, encoder, image_shape, action_size, initial, bf16, joint_size)
        self.model = model.to(self.device)
        self._model_optimiser = adam(self.model.parameters(), config.model.lr, graph=config.cuda_graph)
        self.core = soft_actor_critic(
            config.sac,
            state_size=config.model.z1 + config.model.z2,
            observation_size=history_size(config.window, config.model.features + joint_size, action_size),
            action_size=action_size,
            generator=initial,
            device=self.device,
            graph=config.cuda_graph,
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._one_loop = self.device.type == "cuda"  # there a second loop costs as much time as the first
        self._recorded = Recorded(self._compute, self.generator) if config.cuda_graph else None

    @property
    def batch_size(self) -> int:
        """Windows with images that one update wants."""
        return self.config.model_batch if self.config.feature_age else self.config.sac.batch_size

    @property
    def pretrain_batch_size(self) -> int:
        """Windows that one pretraining step wants."""
        return self.config.model_batch

    @property
    def encoded_batch_size(self) -> int:
        """Windows with stored features in place of images that one update wants beside the model's own."""
        sac = self.config.sac
        return sac.batch_size * sac.critic_updates - self.config.model_batch if self.config.feature_age else 0

    def update(self, batch: Batch, encoded: Batch | None = None) -> dict[str, float]:
        """One gradient step of model, critic, actor and temperature; returns losses and diagnostics.

        The first windows of `batch` train the model, all of them and those of `encoded`, which have features
        in place of images, actor and critics.
        """
        batch = on_device(batch, self.device)
        encoded = None if encoded is None else encoded.to(self.device)
        return to_floats((self._recorded or self._compute)(batch, encoded))

    def _compute(self, batch: Batch, encoded: Batch | None) -> Metrics:
        """An update that waits for nothing: on a GPU it can be recorded."""
        modelled, rest = self._shifted(batch).split(self.config.model_batch)
        others = [part for part in (rest, encoded) if part is not None and len(part)]
        infer = self._infer_at_once if self._one_loop else self._infer_apart
        belief, step = infer(modelled, others)
        # The model steps only now: all losses see one set of parameters, as in the published code.
        metrics = self._descend_model(modelled, belief)
        updates = self.config.sac.critic_updates
        steps = [step] * updates if encoded is None else step.split(updates)
        return metrics | self.core.update(steps[0], self.generator, steps[1:])

    def _infer_apart(self, modelled: Batch, others: Sequence[Batch]) -> tuple[Belief, Transition]:
        """The model's belief, and the last step of all windows; no gradient is kept of those of `others`."""
        features, belief = self._infer(modelled, self.generator)
        step = last_transition(modelled, features, belief.state)
        for part in others:
            step = step.join(self._last_transition(part))
        return belief, step

    def _infer_at_once(self, modelled: Batch, others: Sequence[Batch]) -> tuple[Belief, Transition]:
        """The same in one recurrence over all windows: fewer kernels, more arithmetic."""
        features, windows = [self._seen(modelled)], modelled.without_observations()
        for part in others:
            with torch.no_grad():
                features.append(self._seen(part))
            windows = windows.join(part.without_observations())
        every = torch.cat(features)
        belief = self.model.infer(every, windows.action, windows.is_first, self.generator)
        return belief.of_first(len(modelled)), last_transition(windows, every, belief.state)

    def pretrain(self, batch: Batch) -> dict[str, float]:
        """One gradient step of the model alone, on the first windows of the batch."""
        modelled, _ = self._shifted(batch).split(self.config.model_batch)
        _, belief = self._infer(modelled, self.generator)
        return to_floats(self._descend_model(modelled, belief))

    def represent(self, batch: Batch) -> NDArray[np.float32]:
        """The last latent of each window (B, Z), for probes; leaves the training's randomness alone."""
        with torch.no_grad():
            _, belief = self._infer(on_device(batch, self.device), self._aside())
        result: NDArray[np.float32] = belief.state[:, -1].cpu().numpy()
        return result

    @torch.no_grad()
    def features(self, batch: Batch) -> NDArray[np.float32]:
        """What the encoder makes of each window's newest frame (B, F), for probes."""
        image = on_device(batch, self.device).image
        assert image is not None
        result: NDArray[np.float32] = self.model.encode(image[:, -1:])[:, 0].cpu().numpy()
        return result

    @torch.no_grad()
    def judge(self, batch: Batch) -> NDArray[np.float32]:
        """What the critics expect of the last step of each window (B,)."""
        batch = on_device(batch, self.device)
        features, belief = self._infer(batch, self._aside())
        return self.core.judge(last_transition(batch, features, belief.state))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """The features (N, F) of frames (N, H, W, 3), where these are, for the replay's store of them."""
        images = frames.to(self.device).permute(0, 3, 1, 2)
        return self.model.encode(images[:, None])[:, 0].to(frames.device)

    def reconstruct(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """What the model sees and imagines: up to 8 strips (n, T+1, H, W, 3) of each kind.

        "truth"; "posterior": decoded from what was inferred; "conditional_prior": imagined from the first
        frame's posterior and the true actions; "prior": imagined from nothing. Windows across the end of an
        episode are left out.
        """
        batch, generator = on_device(batch, self.device), self._aside()
        batch = batch.select(~batch.is_first[:, 1:].any(1)).split(STRIP_WINDOWS)[0]
        _, belief = self._infer(batch, generator)
        z1, z2 = self.model.dream_start(len(batch), generator)
        states = {
            "posterior": belief.state,
            "conditional_prior": self.model.imagine(
                belief.z1[:, 0], belief.z2[:, 0], batch.action, generator
            ),
            "prior": self.model.imagine(z1, z2, batch.action, generator),
        }
        assert batch.image is not None
        truth: NDArray[np.uint8] = batch.image.permute(0, 1, 3, 4, 2).cpu().numpy()
        return {"truth": truth} | {name: self._decode(state) for name, state in states.items()}

    def policy_weights(self) -> dict[str, Tensor]:
        """What a SlacPolicy of the same config loads."""
        return policy_tensors(encoder=self.model.encoder, policy=self.core.policy)

    def state_dict(self) -> dict[str, Any]:
        """A copy of weights, optimisers and the state of the random generator."""
        live = {
            "model": self.model.state_dict(),
            "model_optimiser": self._model_optimiser.state_dict(),
            "core": self.core.state_dict(),
            "generator": self.generator.get_state(),
        }
        return copy.deepcopy(live)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues bit for bit where the state was taken."""
        self.model.load_state_dict(state["model"])
        self._model_optimiser.load_state_dict(state["model_optimiser"])
        self.core.load_state_dict(state["core"])
        restore_generator(self.generator, state["generator"])
        if self._recorded is not None:
            self._recorded.forget()

    def _shifted(self, batch: Batch) -> Batch:
        """On the device; what the encoder sees is also what the decoder has to reconstruct."""
        return shifted(on_device(batch, self.device), self.config.random_shift, self.generator)

    def _aside(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)

    def _infer(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Belief]:
        features = self._seen(batch)
        return features, self.model.infer(features, batch.action, batch.is_first, generator)

    def _seen(self, batch: Batch) -> Tensor:
        """Features of every frame (B, T+1, F), with what the robot felt then if it feels."""
        features = batch.features if batch.image is None else self.model.encode(batch.image)
        assert features is not None
        return with_joints(features, batch.state if self.joint_size else None)

    @torch.no_grad()
    def _last_transition(self, batch: Batch) -> Transition:
        features, belief = self._infer(batch, self.generator)
        return last_transition(batch, features, belief.state)

    def _descend_model(self, batch: Batch, belief: Belief) -> Metrics:
        evidence = self.model.evidence(batch, belief)
        loss = evidence.loss
        self._model_optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = gradient_norm(self.model.parameters())
        if (limit := self.config.model.gradient_limit) is not None:
            shorten_gradients(self._model_optimiser, limit)
        self._model_optimiser.step()
        assert batch.image is not None
        return {
            "model_loss": loss.detach(),
            "model_gradient": gradient,
            "psnr": psnr(evidence.image.detach(), batch.image[0].numel(), self.model.variance),
            "image_nll": -evidence.image.detach().mean(),
            "kl": evidence.kl.detach().mean(),
            "reward_nll": -evidence.reward.detach().mean(),
        }

    def _decode(self, state: Tensor) -> NDArray[np.uint8]:
        mean = self.model.decoder(state.flatten(0, 1)).unflatten(0, state.shape[:2])
        pixels = (mean.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2)
        result: NDArray[np.uint8] = pixels.contiguous().cpu().numpy()
        return result
