"""Policies: what turns observations into actions while the robot moves. The history is the caller's carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.config import ImageConfig, SacStateConfig
from agent.networks import Encoder, TanhGaussian, TanhGaussianPolicy

Observation = Mapping[str, NDArray[Any]]
Action = NDArray[np.float32]  # (A,) in [-1, 1]


class Policy(Protocol):
    """Chooses actions; all memory of the episode is in the carry, so a reset is a new carry."""

    def initial(self) -> Any:
        """The carry at an episode's start."""
        ...

    def act(self, carry: Any, observation: Observation, *, explore: bool) -> tuple[Any, Action]:
        """The next carry and the action (A,), drawn if `explore`, else the greedy one."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over what an agent's policy_weights() gave."""
        ...


class _Fixed:
    """What policies share that neither remember nor learn anything."""

    def initial(self) -> None:
        """Nothing to remember."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Has none."""


class RandomPolicy(_Fixed):
    """Uniform actions: the first data of every run."""

    def __init__(self, action_size: int, rng: np.random.Generator) -> None:
        self._size, self._rng = action_size, rng

    def act(self, carry: None, observation: Observation, *, explore: bool) -> tuple[None, Action]:
        """A uniform action in [-1, 1]^A, whatever is seen."""
        return None, self._rng.uniform(-1, 1, self._size).astype(np.float32)


class ConstantPolicy(_Fixed):
    """The same action always: zeros hold the rest pose, the floor that any learner must beat."""

    def __init__(self, action: Action) -> None:
        self._action = np.asarray(action, np.float32)

    def act(self, carry: None, observation: Observation, *, explore: bool) -> tuple[None, Action]:
        """A copy of the constant."""
        return None, self._action.copy()


class ScriptedPolicy(_Fixed):
    """What a function of the state says: an expert, for demonstrations."""

    def __init__(self, script: Callable[[NDArray[np.float64]], Action]) -> None:
        """script: state (N,) -> action (A,)."""
        self._script = script

    def act(self, carry: None, observation: Observation, *, explore: bool) -> tuple[None, Action]:
        """The function's answer to observation["state"] (N,)."""
        return None, self._script(observation["state"].astype(np.float64))


class StatePolicy:
    """Acts from the state vector with the actor that SacStateAgent trains."""

    def __init__(self, config: SacStateConfig, state_size: int, action_size: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        sac = config.sac
        self._policy = TanhGaussianPolicy(
            state_size, action_size, sac.hidden, self._generator, sac.actor_layer_norm
        )

    def initial(self) -> None:
        """Nothing to remember: the state says all."""

    @torch.no_grad()
    def act(self, carry: None, observation: Observation, *, explore: bool) -> tuple[None, Action]:
        """Acts on observation["state"] (N,) float32."""
        state = torch.as_tensor(observation["state"], dtype=torch.float32)
        return None, choose(self._policy(state[None]), explore, self._generator)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over SacStateAgent.policy_weights()."""
        self._policy.load_state_dict(part_of(weights, "policy"))


@dataclass(frozen=True, slots=True)
class History:
    """What an ImagePolicy remembers: the newest frames, their features, and the actions between them."""

    frames: Tensor  # (T, H, W, 3) uint8, oldest first
    joints: Tensor  # (T, J) what the robot felt then; J may be 0
    features: Tensor  # (T, F + J)
    actions: Tensor  # (T-1, A), the last one taken after the newest frame
    version: int  # of the weights that made the features


class ImagePolicy(ABC):
    """Acts from the newest T frames, encoding each once.

    Before an episode's first frame lie copies of it and zero actions, as in training.
    """

    def __init__(
        self,
        config: ImageConfig,
        image_shape: tuple[int, int, int],
        action_size: int,
        seed: int,
        joint_size: int = 0,
    ) -> None:
        self._joint_size = joint_size
        self._generator = torch.Generator().manual_seed(seed)
        self._window, self._action_size, self._version = config.window, action_size, 0
        self._encoder = slac_encoder(config, image_shape, self._generator)
        size = self.size(config.window, config.model.features + joint_size, action_size)
        sac = config.sac
        self._policy = TanhGaussianPolicy(
            size, action_size, sac.hidden, self._generator, sac.actor_layer_norm
        )

    @staticmethod
    @abstractmethod
    def size(window: int, features: int, action_size: int) -> int:
        """How many numbers seen() gives."""

    @abstractmethod
    def seen(self, history: History) -> Tensor:
        """What the actor sees of it (O,)."""

    def initial(self) -> History | None:
        """None: no frame has been seen."""
        return None

    @torch.no_grad()
    def act(
        self, carry: History | None, observation: Observation, *, explore: bool
    ) -> tuple[History, Action]:
        """Acts on observation["image"] (H, W, 3) uint8; with proprioception on the state's beginning, too."""
        frame = torch.from_numpy(np.array(observation["image"], np.uint8))
        felt = observation["state"][: self._joint_size] if self._joint_size else ()
        joints = torch.from_numpy(np.array(felt, np.float32))
        history = self._begin(frame, joints) if carry is None else self._advance(carry, frame, joints)
        action = choose(self._policy(self.seen(history)[None]), explore, self._generator)
        actions = torch.cat((history.actions[1:], torch.from_numpy(action)[None]))
        return replace(history, actions=actions), action

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over its agent's policy_weights(); features of older weights are made anew when next used."""
        self._encoder.load_state_dict(part_of(weights, "encoder"))
        self._policy.load_state_dict(part_of(weights, "policy"))
        self._version += 1

    def _begin(self, frame: Tensor, joints: Tensor) -> History:
        features = self._encode(frame[None], joints[None])
        return History(
            frames=frame.expand(self._window, *frame.shape),
            joints=joints.expand(self._window, -1),
            features=features.expand(self._window, -1),
            actions=torch.zeros(self._window - 1, self._action_size),
            version=self._version,
        )

    def _advance(self, history: History, frame: Tensor, joints: Tensor) -> History:
        frames = torch.cat((history.frames[1:], frame[None]))
        felt = torch.cat((history.joints[1:], joints[None]))
        if history.version == self._version:
            features = torch.cat((history.features[1:], self._encode(frame[None], joints[None])))
        else:
            features = self._encode(frames, felt)
        return History(frames, felt, features, history.actions, self._version)

    def _encode(self, frames: Tensor, joints: Tensor) -> Tensor:
        return torch.cat((self._encoder(frames.permute(0, 3, 1, 2)), joints), 1)


class SlacPolicy(ImagePolicy):
    """Acts from the newest T frames and the actions between them, with the actor that SlacAgent trains."""

    @staticmethod
    def size(window: int, features: int, action_size: int) -> int:
        """T features and the T-1 actions between them."""
        return history_size(window, features, action_size)

    def seen(self, history: History) -> Tensor:
        """Features and actions."""
        return torch.cat((history.features.flatten(), history.actions.flatten()))


class PixelsPolicy(ImagePolicy):
    """Acts from the newest T frames alone, with the actor that SacPixelsAgent trains."""

    @staticmethod
    def size(window: int, features: int, action_size: int) -> int:
        """T features."""
        return window * features

    def seen(self, history: History) -> Tensor:
        """Features."""
        return history.features.flatten()


def slac_encoder(
    config: ImageConfig, image_shape: tuple[int, int, int], generator: torch.Generator
) -> Encoder:
    """SLAC's encoder at the config's size; learner and actor share it."""
    model = config.model
    return Encoder(image_shape, model.base_depth, model.features, generator, config.precision == "bf16")


def history_size(window: int, features: int, action_size: int) -> int:
    """How many numbers the actor of SLAC sees: T features and the T-1 actions between them."""
    return window * features + (window - 1) * action_size


def choose(distribution: TanhGaussian, explore: bool, generator: torch.Generator) -> Action:
    """One action (A,) of a batch of one: a draw to explore, else the mode."""
    action = distribution.sample(generator)[0] if explore else distribution.mode
    result: Action = action[0].numpy()
    return result


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors named `part.x`, as `x`."""
    prefix = part + "."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
