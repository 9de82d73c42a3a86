"""Turning a three-armed valve to an angle: fixed goal, one of several goals, or any goal in a range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from robot.types import Applied, CameraFault, Config, Floats, Image, JointState, Snapshot, ValveGeometry
from tasks.resets import ResetConfig, fingers, reset_valve
from tasks.rewards import distance, distances, robel_turn, robel_turns, wrap_angle, wrap_angles
from tasks.task import Action, ForeseeableTask, Moments, Observation, TaskConfig

if TYPE_CHECKING:
    from robot.rig import Rig

FINGERS = 3
WIDE_SUCCESS = math.radians(20)  # the radius of Zhu et al. 2018, reported beside our own
GREEN = (30, 200, 60)  # neither the floor's grey nor the valve's blue and red is near it
DOT_RADIUS = 2.5 / 64  # of the image's height: 2.5 px of 64
# For planning: where the valve has arrived, and how its speed counts near the goal, where it is to stay.
ARRIVED, ARRIVED_SPEED = 0.03, 0.05  # rad, rad/s
BRAKING, BRAKING_RADIUS = 0.1, 0.3  # reward per rad/s at the goal; rad within which it fades in
# Reward per rad to the goal beside ROBEL's 5, which alone is less than what a second of pushing costs there.
HASTE = 20.0


class FixedAngle(Config):
    """Always the same angle."""

    kind: Literal["fixed"] = "fixed"
    angle: float  # rad

    def sample(self, rng: np.random.Generator) -> float:
        """The angle, rad."""
        return self.angle


class AngleChoices(Config):
    """One of a few angles, all equally likely."""

    kind: Literal["choices"] = "choices"
    angles: tuple[float, ...] = Field(min_length=1)  # rad

    def sample(self, rng: np.random.Generator) -> float:
        """One of the angles, rad."""
        return self.angles[int(rng.integers(len(self.angles)))]


class AngleRange(Config):
    """Any angle in [low, high), all equally likely."""

    kind: Literal["range"] = "range"
    low: float  # rad
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}; swap them")
        return self

    def sample(self, rng: np.random.Generator) -> float:
        """An angle of the range, rad."""
        return float(rng.uniform(self.low, self.high))


Angles = Annotated[FixedAngle | AngleChoices | AngleRange, Field(discriminator="kind")]


class ValveConfig(TaskConfig):
    """One valve setting: where it starts, where it shall go, what is rewarded and how the goal is shown."""

    kind: Literal["valve"] = "valve"
    goal: Angles
    start: Angles = AngleRange(low=-math.pi, high=math.pi)
    reward: Literal["distance", "robel_turn"] = "distance"
    success: float = Field(0.1, gt=0, lt=math.pi)  # rad
    cue: Literal["dot", "pointer", "vector", "none"] = "dot"  # drawn, shown by the guide servo, told, or not
    camera: str = "front"
    # rad per finger joint that an action of 1 asks for, about 0; ROBEL's ranges (dclaw/base_env.py)
    action_range: tuple[float, float, float] = (0.48, math.pi / 3, math.pi / 2)
    geometry: ValveGeometry = ValveGeometry()
    reset: ResetConfig = ResetConfig()


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled antialiased disc, ready to be blended into images of one size."""

    rows: slice
    columns: slice
    alpha: NDArray[np.float32]  # (h, w, 1) coverage
    paint: NDArray[np.float32]  # (h, w, 3) colour times coverage

    @classmethod
    def at(cls, centre: tuple[float, float], size: tuple[int, int]) -> Self:
        """A dot around `centre` px (u right, v down; whole numbers are pixel centres) of an (H, W) image.

        Raises CameraFault when a part of it would be outside of the image.
        """
        (u, v), (height, width) = centre, size
        radius = DOT_RADIUS * height
        reach = radius + 0.5
        if not (reach <= u <= width - 1 - reach and reach <= v <= height - 1 - reach):
            raise CameraFault(
                f"The goal dot would be at pixel ({u:.1f}, {v:.1f}), partly outside of {width}x{height} px. "
                "Point the camera at the valve or correct its calibrated projection."
            )
        rows = slice(math.floor(v - reach), math.ceil(v + reach) + 1)
        columns = slice(math.floor(u - reach), math.ceil(u + reach) + 1)
        y, x = np.mgrid[rows, columns]
        # Coverage of a pixel that the disc's edge crosses, to first order: no jagged dot at 5 px across.
        alpha = np.clip(reach - np.hypot(x - u, y - v), 0, 1).astype(np.float32)[..., None]
        return cls(rows, columns, alpha, alpha * np.asarray(GREEN, np.float32))

    def draw(self, image: Image) -> Image:
        """A copy of image (H, W, 3) with the dot over whatever is there."""
        drawn = image.copy()
        patch = drawn[self.rows, self.columns]
        drawn[self.rows, self.columns] = np.rint((1 - self.alpha) * patch + self.paint)
        return drawn


def project(projection: Floats, point: Floats) -> tuple[float, float]:
    """Pixel (u, v) of a point (3,) m seen through a (3, 4) projection."""
    u, v, w = projection @ np.append(point, 1.0)
    return float(u / w), float(v / w)


class Valve(ForeseeableTask):
    """Turn the valve until its pointer meets the goal, and keep it there."""

    def __init__(self, config: ValveConfig) -> None:
        super().__init__(config)
        self.config = config
        self.goal = 0.0  # rad
        self.start = 0.0  # rad, as measured after the reset
        self._range = fingers(config.action_range, self.action_size)
        self._home = fingers(config.reset.home, self.action_size)
        self._dot: Dot | None = None

    @property
    def action_size(self) -> int:
        """Three joints for each of three fingers."""
        return FINGERS * len(self.config.action_range)

    @property
    def state_size(self) -> int:
        """Joint positions, velocities, last action; the valve's and the error's direction; valve velocity."""
        return 3 * self.action_size + 5

    @property
    def joint_size(self) -> int:
        """Joint positions and velocities."""
        return 2 * self.action_size

    @property
    def parameters(self) -> dict[str, float]:
        """Goal and measured start angle of this episode, rad."""
        return {"goal": self.goal, "start": self.start}

    def restore(self, parameters: Mapping[str, float]) -> None:
        """Takes over the goal and the start of a logged episode."""
        self.goal, self.start = parameters["goal"], parameters["start"]

    def reset(self, rig: Rig, rng: np.random.Generator) -> None:
        """Draws goal and start, and drives the valve to the start with the fingers out of its way."""
        self.goal = self.config.goal.sample(rng)
        start = self.config.start.sample(rng)
        if self.config.cue == "dot" and rig.cameras:
            self.show_goal(rig.cameras[self.config.camera].projection)
        pointer = self.goal if self.config.cue == "pointer" else None
        self.start = reset_valve(rig, start, self.config.reset, pointer)

    def show_goal(self, projection: Floats) -> None:
        """Places the goal dot on the valve's rim for a camera of the given (3, 4) projection."""
        self._dot = Dot.at(project(projection, self.config.geometry.rim(self.goal)), self.image_size)

    def target(self, action: Action, state: JointState) -> Floats:
        """(J,) rad about zero, as ROBEL maps them; the velocity limit is the robot's safety filter."""
        return np.asarray(action, np.float64) * self._range

    def targets(self, actions: Floats, positions: Floats) -> Floats:
        """(N, J) rad about zero, wherever the joints are."""
        return actions * self._range

    def observe(self, snapshot: Snapshot, last_action: Action) -> Observation:
        """'state' (32,) float32; 'image' with the goal dot, given a frame; 'goal' (2,) for cue 'vector'."""
        observation: Observation = {"state": self._state(snapshot, last_action)}
        if self.config.camera in snapshot.frames:
            observation["image"] = self._image(snapshot.frames[self.config.camera].image)
        if self.config.cue == "vector":
            observation["goal"] = np.array([math.cos(self.goal), math.sin(self.goal)], np.float32)
        return observation

    def spaces(self, *, images: bool) -> dict[str, gymnasium.Space[Any]]:
        """As every task's, with 'goal' when the cue is a vector."""
        spaces = super().spaces(images=images)
        if self.config.cue == "vector":
            spaces["goal"] = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        return spaces

    def _state(self, snapshot: Snapshot, last_action: Action) -> NDArray[np.float32]:
        angle, error = float(snapshot.object.position[0]), self.error(snapshot)
        directions = (math.cos(angle), math.sin(angle), math.cos(error), math.sin(error))
        velocity = float(snapshot.object.velocity[0])
        joints = snapshot.joints
        parts = (joints.position, joints.velocity, directions, (velocity,), last_action)
        return np.concatenate(parts, dtype=np.float32, casting="same_kind")

    def _image(self, image: Image) -> Image:
        if image.shape != (*self.image_size, 3):
            raise CameraFault(
                f"Camera '{self.config.camera}' delivers images of shape {image.shape}, "
                f"the task expects {(*self.image_size, 3)}; set the camera's size or task.image_size."
            )
        if self.config.cue != "dot":
            return image.copy()
        assert self._dot is not None, "show_goal comes before observe"
        return self._dot.draw(image)

    def error(self, snapshot: Snapshot) -> float:
        """How far the valve is beyond its goal, rad in (-pi, pi]."""
        return wrap_angle(float(snapshot.object.position[0]) - self.goal)

    def reward(self, snapshot: Snapshot, applied: Applied) -> dict[str, float]:
        """The configured reward's terms."""
        if self.config.reward == "distance":
            return distance(self.error(snapshot))
        joints = snapshot.joints
        return robel_turn(self.error(snapshot), joints.position, joints.velocity, self._home)

    def rewards(self, moments: Moments) -> Floats:
        """The sums of the configured reward's terms."""
        errors = self._errors(moments)
        if self.config.reward == "distance":
            return distances(errors)
        return robel_turns(errors, moments.joints, moments.joint_velocities, self._home)

    def guidance(self, moments: Moments) -> Floats:
        """The valve is to slow down near its goal: what is fast there will be past it."""
        errors = self._errors(moments)
        nearness = np.exp(-np.square(errors / BRAKING_RADIUS))
        braking = -BRAKING * nearness * np.abs(moments.object_velocities)
        return braking if self.config.reward == "distance" else braking - HASTE * np.abs(errors)

    def keeping(self, now: Moments, setpoint: Floats) -> Action | None:
        """Where the valve stands at its goal, the fingers stay; ROBEL's reward would have them go home."""
        error, speed = abs(float(self._errors(now)[0])), abs(float(now.object_velocities[0]))
        if self.config.reward != "distance" or error > ARRIVED or speed > ARRIVED_SPEED:
            return None
        return self._asking_for(setpoint)

    def _errors(self, moments: Moments) -> Floats:
        return wrap_angles(moments.objects - self.goal)

    def success(self, snapshot: Snapshot) -> bool:
        """True within the configured angle of the goal."""
        return abs(self.error(snapshot)) < self.config.success

    @property
    def labels(self) -> dict[str, str]:
        """Success at two radii, and where the valve ended."""
        return {
            "success": f"success at {self.config.success:g} rad",
            "success_20deg": "success at 20 degrees",
            "error": "final error, rad",
            "angle": "final angle, rad",
        }

    @property
    def hold(self) -> Action:
        """The fingers at home."""
        return self._asking_for(self._home)

    def _asking_for(self, pose: Floats) -> Action:
        """The action (A,) whose target is nearest to a pose (J,) rad."""
        action = np.divide(pose, self._range, out=np.zeros_like(pose), where=self._range != 0)
        return action.clip(-1, 1).astype(np.float32)

    def measures(self, snapshot: Snapshot) -> dict[str, float]:
        """Distance to the goal and the valve's angle in rad, and success at 20 degrees."""
        error = abs(self.error(snapshot))
        angle = wrap_angle(float(snapshot.object.position[0]))
        return {"error": error, "angle": angle, "success_20deg": float(error < WIDE_SUCCESS)}
