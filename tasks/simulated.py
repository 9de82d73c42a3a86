"""Simulated environments that worker processes build for themselves, for several robots side by side."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gymnasium

from robot.events import RigEvent
from robot.rig import RigConfig, build
from robot.types import Fault
from tasks import RobotEnv, make_task
from tasks.suite import SuiteConfig, SuiteEnv
from tasks.task import Action, Observation, RobotTaskConfig, nothing

Env = gymnasium.Env[dict[str, Any], Action]


@dataclass(frozen=True)
class Simulated:
    """What it takes to make one; may be sent to another process."""

    task: RobotTaskConfig | SuiteConfig
    hw: RigConfig
    seed: int
    images: bool

    def __call__(self) -> Env:
        """A Boxed environment on a rig of its own, closed with it. Raises what either raises."""
        if isinstance(self.task, SuiteConfig):
            return Boxed(SuiteEnv(self.task, images=self.images, seed=self.seed))
        resources = ExitStack()
        rig = resources.enter_context(build(self.hw, cameras=self.images, arm=self.task.sawyer))
        env = RobotEnv(rig, make_task(self.task), images=self.images, seed=self.seed)
        return Boxed(env, resources.close)


@dataclass(frozen=True)
class Box:
    """What a call returned, as it is: gymnasium would make arrays over all robots of an info's parts."""

    info: dict[str, Any]
    terminated: bool = False
    truncated: bool = False
    events: tuple[RigEvent, ...] = ()


class Boxed(gymnasium.Wrapper[dict[str, Any], Action, dict[str, Any], Action]):
    """An environment that waits at an episode's end, and after a fault at reset, until it is reset again.

    Robots side by side take their steps together, so one whose episode is over gets steps, too; gymnasium's
    own answer, another reset, would cost time and draw an episode that nobody asked for.
    """

    def __init__(self, env: Env, release: Callable[[], None] = lambda: None) -> None:
        """`release` closes what is beneath the environment."""
        super().__init__(env)
        self._release = release
        self._waiting: Observation | None = None  # what it answers with while it waits

    def close(self) -> None:
        """Closes the environment and what is beneath it."""
        super().close()
        self._release()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The first observation; after a fault zeros, and the box says what it was."""
        self._waiting = None
        try:
            observation, info = super().reset(seed=seed, options=options)
        except Fault as fault:
            observation, info = nothing(self.observation_space), {"fault": str(fault)}
            self._waiting = observation
        return observation, {"box": Box(info, events=self._events())}

    def step(self, action: Action) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """The same with all but observation and reward in a box."""
        if self._waiting is not None:
            return self._waiting, 0.0, False, False, {"box": Box({})}
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            self._waiting = observation
        return observation, reward, False, False, {"box": Box(info, terminated, truncated, self._events())}

    def _events(self) -> tuple[RigEvent, ...]:
        """What happened on the rig since the last call."""
        inner = self.unwrapped
        if isinstance(inner, RobotEnv):
            return tuple(inner.rig.events.drain())
        return ()
