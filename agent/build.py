"""The one place that turns an agent's configuration into the agent that learns and the policy that acts."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent.config import AgentConfig, ImageConfig, SacPixelsConfig, SacStateConfig
from agent.pixels import SacPixelsAgent
from agent.policy import PixelsPolicy, Policy, SlacPolicy, StatePolicy
from agent.replay import Batch
from agent.run_dir import RunDir, RunError
from agent.sac import SacStateAgent, SoftActorCritic
from agent.slac import SlacAgent

T = TypeVar("T")


class NoDevice(Exception):
    """What is to compute is not there, or does not work."""


class Agent(Protocol):
    """Learns from batches of windows."""

    observations: tuple[str, ...]  # what it learns from: "image", "state", "joints"
    window: int  # steps per window
    device: torch.device
    core: SoftActorCritic

    @property
    def batch_size(self) -> int:
        """Windows per update."""
        ...

    def update(self, batch: Batch) -> dict[str, float]:
        """One gradient step of everything; returns losses and diagnostics."""
        ...

    def pretrain(self, batch: Batch) -> dict[str, float]:
        """One gradient step of what can learn before the actor-critic does; {} if nothing can."""
        ...

    @property
    def pretrain_batch_size(self) -> int:
        """Windows per pretraining step; 0 if nothing can be pretrained."""
        ...

    def represent(self, batch: Batch) -> NDArray[np.float32]:
        """What the critic sees at the end of each window (B, D), for probes."""
        ...

    def features(self, batch: Batch) -> NDArray[np.float32]:
        """What the encoder makes of each window's newest frame (B, F), for probes."""
        ...

    def judge(self, batch: Batch) -> NDArray[np.float32]:
        """What the critics expect of the last step of each window (B,)."""
        ...

    def reconstruct(self, batch: Batch) -> dict[str, NDArray[np.uint8]]:
        """Image strips (n, T+1, H, W, 3) of truth and model by name; {} without a model."""
        ...

    def policy_weights(self) -> dict[str, Tensor]:
        """The weights that acting needs, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that the next update depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues bit for bit where the state was taken."""
        ...


def require_device(device: str) -> None:
    """Tells a device that cannot compute before a run begins on it. Raises NoDevice naming those that can."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        usable = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        reason = str(error).splitlines()[0]
        raise NoDevice(f"agent.device: {device!r} fails ({reason}); usable here: {usable}") from None


def prepare_process(config: AgentConfig, threads: int) -> None:
    """Makes this process learn as fast as it can; call it once, where a process that learns begins.

    Sets PyTorch's threads and exactness of products, and keeps freed memory. Two threads halve an update on
    an idle machine and multiply it on a busy one, where they wait for each other.
    """
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(config.matmul)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Lets this process keep what tensors free instead of asking the kernel for fresh pages at every update.

    An update of SLAC on a CPU gains a tenth to a half; results stay the same to the bit. Returns False where
    the C library has no such switch (it is glibc's).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # M_MMAP_MAX 0, M_TRIM_THRESHOLD 1 GiB, M_TOP_PAD 64 MiB: numbers of malloc.h
    return all(mallopt(switch, value) == 1 for switch, value in ((-4, 0), (-1, 1 << 30), (-2, 64 << 20)))


def build_agent(
    config: AgentConfig,
    *,
    image_shape: tuple[int, int, int] | None,
    state_size: int | None,
    action_size: int,
    seed: int,
    joint_size: int = 0,
) -> Agent:
    """The learner. image_shape: (H, W, 3); joint_size: of the state's numbers the first, the robot's own.

    Raises ValueError when the observations it needs are missing.
    """
    if isinstance(config, SacStateConfig):
        return SacStateAgent(config, _needed(state_size, "state"), action_size, seed)
    shape, joint_size = _needed(image_shape, "image"), _felt(config, joint_size)
    if isinstance(config, SacPixelsConfig):
        return SacPixelsAgent(config, shape, action_size, seed, joint_size)
    return SlacAgent(config, shape, action_size, seed, joint_size)


def build_policy(
    config: AgentConfig,
    *,
    image_shape: tuple[int, int, int] | None,
    state_size: int | None,
    action_size: int,
    seed: int,
    joint_size: int = 0,
) -> Policy:
    """The actor, with fresh weights until load_weights. image_shape: (H, W, 3). Raises as build_agent."""
    if isinstance(config, SacStateConfig):
        return StatePolicy(config, _needed(state_size, "state"), action_size, seed)
    shape, joint_size = _needed(image_shape, "image"), _felt(config, joint_size)
    if isinstance(config, SacPixelsConfig):
        return PixelsPolicy(config, shape, action_size, seed, joint_size)
    return SlacPolicy(config, shape, action_size, seed, joint_size)


def load_policy(run: RunDir, config: AgentConfig, *, seed: int, **sizes: Any) -> Policy:
    """The newest policy that a run has learned; sizes as of `build_policy`. Raises RunError."""
    newest = run.latest_weights(after=0)
    if newest is None:
        raise RunError(
            f"{run.path} has no weights yet: nothing was learned. "
            f"To go on with it: the command that began it with --resume --run {run.path}"
        )
    policy = build_policy(config, seed=seed, **sizes)
    policy.load_weights(newest[1])
    return policy


def _felt(config: ImageConfig, joint_size: int) -> int:
    """How many numbers of its own joints an agent gets beside each image."""
    if config.proprioception and not joint_size:
        raise ValueError("agent.proprioception needs a robot with joints of its own, which this task has not")
    return joint_size if config.proprioception else 0


def _needed(size: T | None, key: str) -> T:
    if size is None:
        raise ValueError(f"This agent needs the observation '{key}', which the task does not give")
    return size
