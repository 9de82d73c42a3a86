"""Simulated environments that worker processes build for themselves, for several robots side by side."""

from __future__ import annotations

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
        return Boxed(standalone(self.task, self.hw, images=self.images, seed=self.seed))


def standalone(task: RobotTaskConfig, hw: RigConfig, *, images: bool, **options: Any) -> RobotEnv:
    """An environment with a rig of its own, which is closed with it; options: as for RobotEnv.

    Raises what either raises, with the rig closed.
    """
    rig = build(hw, cameras=images or bool(options.get("render_mode")), arm=task.sawyer)
    try:
        return RobotEnv(rig.__enter__(), make_task(task), images=images, release=rig.close, **options)
    except BaseException:
        rig.close()
        raise


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

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._waiting: Observation | None = None  # what it answers with while it waits

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
