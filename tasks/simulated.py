"""Simulated environments that worker processes build for themselves, for several robots side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from robot.rig import RigConfig, build
from robot.types import Fault
from tasks.env import RobotEnv
from tasks.suite import SuiteConfig, SuiteEnv
from tasks.task import Action, Observation
from tasks.valve import Valve, ValveConfig

Env = gymnasium.Env[dict[str, Any], Action]


@dataclass(frozen=True)
class Simulated:
    """What it takes to make one; may be sent to another process."""

    task: ValveConfig | SuiteConfig
    hw: RigConfig
    seed: int
    images: bool

    def __call__(self) -> Env:
        """A Boxed environment on a rig of its own, closed with it. Raises what either raises."""
        if isinstance(self.task, SuiteConfig):
            return Boxed(SuiteEnv(self.task, images=self.images, seed=self.seed))
        resources = ExitStack()
        rig = resources.enter_context(build(self.hw, cameras=self.images))
        env = RobotEnv(rig, Valve(self.task), images=self.images, seed=self.seed)
        return Boxed(env, resources.close)


@dataclass(frozen=True)
class Box:
    """Takes an info as it is through gymnasium, which would make arrays over all robots of what is in it."""

    info: dict[str, Any]


class Boxed(gymnasium.Wrapper[dict[str, Any], Action, dict[str, Any], Action]):
    """An environment with its infos in boxes, and whose process survives a fault at reset."""

    def __init__(self, env: Env, release: Callable[[], None] = lambda: None) -> None:
        """`release` closes what is beneath the environment."""
        super().__init__(env)
        self._release = release

    def close(self) -> None:
        """Closes the environment and what is beneath it."""
        super().close()
        self._release()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The first observation; after a fault zeros, and the box says what it was."""
        try:
            observation, info = super().reset(seed=seed, options=options)
        except Fault as fault:
            space = self.observation_space
            assert isinstance(space, gymnasium.spaces.Dict)
            observation = {name: np.zeros(box.shape or (), box.dtype) for name, box in space.items()}
            info = {"fault": str(fault)}
        return observation, {"box": Box(info)}

    def step(self, action: Action) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """The same with its info in a box."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {"box": Box(info)}
