"""Tasks of the DeepMind Control Suite, for comparison with published curves: no robot, one simulated body.

The learner sees what it sees on a robot: images of 64x64, actions in [-1, 1], episodes in the same log.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import mujoco
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pydantic import Field

from robot.canvas import Canvases
from robot.clock import ManualClock
from robot.events import EventLog
from robot.types import Fault, Image
from tasks.task import Action, Observation, TaskConfig, nothing, spaces

CAMERA = 0  # of the suite's model; what the published images show
PICTURE = 320  # px, for people
FULL = 0.9  # of the suite's reward, which is at most 1: as good as done


class SuiteConfig(TaskConfig):
    """One task of the suite; `period` over the suite's own step is the action repeat."""

    kind: Literal["dm_control"] = "dm_control"
    domain: str
    task: str
    horizon: int = Field(250, ge=1)
    period: float = Field(0.04, gt=0)  # s
    # As published; "fast" leaves out shadows, reflections and antialiasing: 20 times faster, other pictures.
    rendering: Literal["published", "fast"] = "published"


class NoSuite(Exception):
    """dm_control is not installed, or has no such task or period."""


class Unstable(Fault):
    """The simulated body's state is no longer a number."""

    name = "unstable"


def load_task(config: SuiteConfig) -> Any:
    """The suite's own environment. Raises NoSuite."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # its models use words that MuJoCo will drop one day
    try:
        with warnings.catch_warnings():  # of its own OpenGL, which is not used, about a missing screen
            warnings.simplefilter("ignore")
            from dm_control import suite
    except (ImportError, RuntimeError) as error:  # the latter for a MUJOCO_GL that it does not know
        raise NoSuite(
            f"task {config.domain} {config.task} is one of dm_control, which cannot be imported ({error}). "
            "Type: make setup, or: pip install 'dm_control>=1.0.30' 'mujoco<4'"
        ) from error
    try:
        return suite.load(config.domain, config.task)
    except ValueError as error:
        mine = sorted(task for domain, task in suite.ALL_TASKS if domain == config.domain)
        known = mine or sorted({domain for domain, _ in suite.ALL_TASKS})
        raise NoSuite(f"dm_control: {error} Known: {', '.join(known)}") from error


@functools.cache
def suite_sizes(config: SuiteConfig) -> dict[str, Any]:
    """The shapes that agent and policy are built for. Raises NoSuite."""
    env = load_task(config)
    return {
        "image_shape": (*config.image_size, 3),
        "state_size": _state_size(env),
        "action_size": int(env.action_spec().shape[0]),
    }


def _state_size(env: Any) -> int:
    return sum(int(np.prod(spec.shape)) for spec in env.observation_spec().values())


@dataclass
class SuiteWorld:
    """What a run must know of the world beneath a SuiteEnv, as of a rig."""

    config: SuiteConfig
    picture: Callable[[], Image]
    clock: ManualClock = field(default_factory=ManualClock)
    realtime: bool = False

    def __post_init__(self) -> None:
        self.events = EventLog(self.clock)

    def describe(self) -> dict[str, Any]:
        """What a log must hold to be understood without this machine."""
        return {"kind": "dm_control", "name": f"{self.config.domain} {self.config.task}", "realtime": False}

    def statistics(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}


class SuiteEnv(gymnasium.Env[dict[str, Any], Action]):
    """One agent step repeats the action over `period`, sums the rewards and stops at the episode's end.

    An episode ends by its time limit alone: `truncated`, and the value bootstraps. Success is a reward of 0.9
    or more, of at most 1, in the suite's last step.
    """

    def __init__(self, config: SuiteConfig, *, images: bool = True, seed: int | None = None) -> None:
        """Raises NoSuite, also for a period that is no multiple of the suite's own."""
        self.config, self.images = config, images
        self._env = load_task(config)
        own = float(self._env.control_timestep())
        self.repeat = round(config.period / own)
        if self.repeat < 1 or abs(self.repeat * own - config.period) > 1e-6:
            raise NoSuite(
                f"task.period is {config.period:g} s, which is no multiple of the {own:g} s of "
                f"dm_control's {config.domain} {config.task}"
            )
        spec = self._env.action_spec()
        self._low, self._high = np.asarray(spec.minimum), np.asarray(spec.maximum)
        self.action_space = Box(-1, 1, spec.shape, np.float32)
        size = config.image_size if images else None
        self.observation_space = gymnasium.spaces.Dict(spaces(_state_size(self._env), size))
        self.world = SuiteWorld(config, self.picture)
        model: mujoco.MjModel = self._env.physics.model.ptr
        self._canvases = Canvases(model)
        if config.rendering == "fast":
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if config.rendering == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, CAMERA
        self._steps: int | None = None  # of the present episode; None before the first and after the last
        self._start = 0.0  # s of the world's clock at its beginning
        if seed is not None:
            super().reset(seed=seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A fresh draw, which `seed` alone decides if one is given."""
        super().reset(seed=seed)
        self._env.task.random.seed(int(self.np_random.integers(2**32)))
        self._start = self.world.clock.now()
        step = self._env.reset()
        self._steps = 0
        return self._observation(step), {"parameters": {}, **self._facts(0.0)}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Applies action (A,) in [-1, 1] for one period. Raises ResetNeeded, ValueError."""
        from dm_control.rl.control import PhysicsError

        if self._steps is None:
            raise ResetNeeded("The episode is over or none has begun: call reset() before step().")
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or not (np.abs(action) <= 1 + 1e-6).all():
            raise ValueError(f"An action has shape {self.action_space.shape} within [-1, 1], got {action}.")
        control = self._low + (action.clip(-1, 1) + 1) / 2 * (self._high - self._low)
        reward, last = 0.0, False
        try:
            for _ in range(self.repeat):
                step = self._env.step(control)
                latest = float(step.reward)
                reward += latest
                if last := step.last():
                    break
        except PhysicsError as error:
            self._steps = None
            fault = Unstable(f"dm_control: {error}")
            told = {"fault": fault.name, "fault_message": str(fault)}
            return nothing(self.observation_space), 0.0, False, True, told
        self._steps += 1
        over = last or self._steps >= self.config.horizon
        info = {"terms": {"reward": reward}, **self._facts(latest)}
        info["telemetry"]["applied"] = control
        observation = self._observation(step)
        if over:
            self._steps = None
        return observation, reward, False, over, info

    def picture(self) -> Image:
        """The scene for people (320, 320, 3) uint8."""
        return self._drawn(PICTURE, PICTURE)

    def relax(self) -> None:
        """Nothing is under torque."""

    def timing(self) -> dict[str, float]:
        """Simulated steps are never late."""
        return {}

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        self._steps = None
        self._canvases.close()

    def _observation(self, step: Any) -> Observation:
        parts: list[NDArray[Any]] = [np.ravel(value) for value in step.observation.values()]
        observation: Observation = {"state": np.concatenate(parts).astype(np.float32)}
        if self.images:
            height, width = self.config.image_size
            observation["image"] = self._drawn(width, height)
        return observation

    def _drawn(self, width: int, height: int) -> Image:
        physics = self._env.physics
        model, data = physics.model.ptr, physics.data.ptr
        mujoco.mjv_updateScene(
            model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        return self._canvases.draw(self._scene, width, height)

    def _facts(self, latest: float) -> dict[str, Any]:
        now = self._start + float(self._env.physics.time())
        self.world.clock.sleep_until(now)
        return {"success": latest >= FULL, "measures": {}, "telemetry": {"time": now}}
