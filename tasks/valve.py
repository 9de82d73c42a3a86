"""Turning a three-armed valve to an angle: fixed, one of several, any in a range, or one that moves on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from robot.types import Applied, Config, Floats, Snapshot, ValveGeometry
from tasks.claw import Claw, ClawConfig, Dot, Interval, project
from tasks.resets import reset_valve
from tasks.rewards import distance, distances, robel_turn, robel_turns, turn_score, wrap_angle, wrap_angles
from tasks.task import Action, ForeseeableTask, Moments, Observation

if TYPE_CHECKING:
    from robot.rig import Rig

WIDE_SUCCESS = math.radians(20)  # the radius of Zhu et al. 2018, reported beside our own
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


class AngleRange(Interval):
    """Any angle in [low, high) rad, all equally likely."""

    kind: Literal["range"] = "range"


class AtStart(Config):
    """The angle at which the valve is to start."""

    kind: Literal["start"] = "start"


Angles = Annotated[FixedAngle | AngleChoices | AngleRange, Field(discriminator="kind")]
Goals = Annotated[FixedAngle | AngleChoices | AngleRange | AtStart, Field(discriminator="kind")]


class ValveConfig(ClawConfig):
    """One valve setting: where it starts, where it shall go, what is rewarded and how the goal is shown."""

    kind: Literal["valve"] = "valve"
    goal: Goals  # at the reset
    goal_velocity: Interval = Interval(low=0.0, high=0.0)  # rad/s, drawn for each episode
    start: Angles = AngleRange(low=-math.pi, high=math.pi)
    reward: Literal["distance", "robel_turn"] = "distance"
    success: float = Field(0.1, gt=0, lt=math.pi)  # rad
    cue: Literal["dot", "pointer", "vector", "none"] = "dot"  # drawn, shown by the guide servo, told, or not
    geometry: ValveGeometry = ValveGeometry()

    @property
    def moves(self) -> bool:
        """Whether the goal goes on during an episode."""
        return (self.goal_velocity.low, self.goal_velocity.high) != (0.0, 0.0)

    @model_validator(mode="after")
    def _cue_can_follow(self) -> Self:
        if self.moves and self.cue == "pointer":
            raise ValueError(
                "the guide servo (cue: pointer) shows a goal that stays; with goal_velocity set cue to dot, "
                "vector or none"
            )
        return self


class Valve(Claw, ForeseeableTask):
    """Turn the valve until its pointer meets the goal, and keep it there; the goal may move on."""

    Config = ValveConfig

    def __init__(self, config: ValveConfig) -> None:
        super().__init__(config)
        self.config = config
        self.goal = 0.0  # rad, at the reset; goals that move are not wrapped
        self.goal_velocity = 0.0  # rad/s
        self.start = 0.0  # rad, as measured after the reset
        self._projection: Floats | None = None  # of the camera that the goal is shown to

    @property
    def state_size(self) -> int:
        """Joint positions, velocities, last action; the valve's and the error's direction; valve velocity."""
        return 3 * self.action_size + 5

    @property
    def parameters(self) -> dict[str, float]:
        """Goal and measured start of this episode, rad, and the velocity of a goal that moves, rad/s."""
        still = {"goal": self.goal, "start": self.start}
        return {**still, "goal_velocity": self.goal_velocity} if self.config.moves else still

    def restore(self, parameters: Mapping[str, float]) -> None:
        """Takes over the goal and the start of a logged episode."""
        self.goal, self.start = parameters["goal"], parameters["start"]
        self.goal_velocity = parameters["goal_velocity"] if self.config.moves else 0.0

    def reset(self, rig: Rig, rng: np.random.Generator) -> None:
        """Draws goal and start, and drives the valve to the start with the fingers out of its way."""
        start = self.draw(rng)
        if self.config.cue == "dot" and rig.cameras:
            self.show_goal(rig.cameras[self.config.camera].projection)
        pointer = self.goal if self.config.cue == "pointer" else None
        self.start = reset_valve(rig, start, self.config.reset, pointer)

    def draw(self, rng: np.random.Generator) -> float:
        """Draws the goal and its velocity; returns where the valve is to start, rad."""
        goal = self.config.goal
        drawn = None if isinstance(goal, AtStart) else goal.sample(rng)
        start = self.config.start.sample(rng)
        self.goal = start if drawn is None else drawn
        self.goal_velocity = self.config.goal_velocity.sample(rng) if self.config.moves else 0.0
        return start

    def show_goal(self, projection: Floats) -> None:
        """Draws the goal dot from now on, on the valve's rim, for a camera of the given (3, 4) projection.

        Raises CameraFault when the dot would leave the image at any step of this episode.
        """
        self._projection = projection
        for step in range(self.horizon + 1) if self.config.moves else (0,):
            self._dot(step)

    def _dot(self, step: int) -> Dot:
        assert self._projection is not None, "show_goal comes before observe"
        rim = self.config.geometry.rim(self.goal_at(step))
        return Dot.at(project(self._projection, rim), self.image_size)

    def goal_at(self, step: int) -> float:
        """The goal after so many steps, rad, not wrapped; it moves before each step, as ROBEL's does."""
        return self.goal + self.goal_velocity * self.period * step

    def targets(self, actions: Floats, positions: Floats) -> Floats:
        """(N, J) rad about zero, wherever the joints are."""
        return actions * self._range

    def observe(self, snapshot: Snapshot, last_action: Action) -> Observation:
        """'state' (32,) float32; 'image' with the goal dot, given a frame; 'goal' (2,) for cue 'vector'."""
        observation: Observation = {"state": self._state(snapshot, last_action)}
        image = self.frame(snapshot)
        if image is not None:
            dotted = self.config.cue == "dot"
            observation["image"] = self._dot(snapshot.step).draw(image) if dotted else image.copy()
        if self.config.cue == "vector":
            goal = self.goal_at(snapshot.step)
            observation["goal"] = np.array([math.cos(goal), math.sin(goal)], np.float32)
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

    def error(self, snapshot: Snapshot) -> float:
        """How far the valve is beyond its goal, rad in (-pi, pi]."""
        return wrap_angle(float(snapshot.object.position[0]) - self.goal_at(snapshot.step))

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
        settled = error < ARRIVED and speed < ARRIVED_SPEED
        if self.config.reward != "distance" or self.config.moves or not settled:
            return None
        return self.asking_for(setpoint)

    def _errors(self, moments: Moments) -> Floats:
        return wrap_angles(moments.objects - self.goal_at(moments.step))

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
            "score": "final score, 0 to 1",
        }

    def measures(self, snapshot: Snapshot) -> dict[str, float]:
        """Distance to the goal and the valve's angle in rad, success at 20 degrees, ROBEL's points."""
        error = abs(self.error(snapshot))
        angle = wrap_angle(float(snapshot.object.position[0]))
        wide = float(error < WIDE_SUCCESS)
        return {"error": error, "angle": angle, "success_20deg": wide, "score": turn_score(error)}
