"""An environment that is ready to move, and the world beneath it: a robot's rig, or a body of dm_control."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from robot.rig import Rig, RigConfig, build
from robot.types import Image, MissingPart
from tasks.catalogue import make_task
from tasks.env import RobotEnv
from tasks.suite import SuiteConfig, SuiteEnv, SuiteWorld, suite_sizes
from tasks.task import RobotTaskConfig


@dataclass(frozen=True)
class Stage:
    """An environment that is ready to move, and the world beneath it."""

    env: RobotEnv | SuiteEnv
    world: Rig | SuiteWorld

    @property
    def action_size(self) -> int:
        """A, the length of an action."""
        shape = self.env.action_space.shape
        assert shape is not None
        return shape[0]

    def film(self) -> Callable[[], Image] | None:
        """The view for people, or None where there is none: that is told now, not hours later at a film."""
        if isinstance(self.world, Rig) and self.world.realtime:
            return self.world.picture if self.world.cameras else None
        try:
            self.world.picture()
        except MissingPart as part:
            print(f"There will be no video. {part}", file=sys.stderr)
            return None
        return self.world.picture


@contextmanager
def stage(task: RobotTaskConfig | SuiteConfig, hw: RigConfig, seed: int, *, images: bool) -> Iterator[Stage]:
    """The rig, engaged; relaxed and closed on every way out. What cannot be drawn is told before it moves.

    Raises MissingPart, NoSuite, Fault.
    """
    if isinstance(task, SuiteConfig):
        with closing(SuiteEnv(task, images=images, seed=seed)) as env:
            if images:
                env.picture()
            yield Stage(env, env.world)
        return
    with build(hw, cameras=images, arm=task.sawyer) as rig:
        if images and not rig.realtime:
            rig.picture()
        yield Stage(RobotEnv(rig, make_task(task), images=images, seed=seed), rig)


def sizes(config: RobotTaskConfig | SuiteConfig) -> dict[str, Any]:
    """The shapes that agent and policy are built for. Raises NoSuite."""
    if isinstance(config, SuiteConfig):
        return suite_sizes(config)
    task = make_task(config)
    return {
        "image_shape": (*task.image_size, 3),
        "state_size": task.state_size,
        "joint_size": task.joint_size,
        "action_size": task.action_size,
    }


def labels(config: RobotTaskConfig | SuiteConfig) -> dict[str, str]:
    """The task's measures as people call them."""
    if isinstance(config, SuiteConfig):
        return {"success": "full reward at the end"}
    return make_task(config).labels
