"""Bringing the fingers to a pose, or after one that moves: ROBEL's pose tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from robot.collision import FAR, FingerClearance, ValveClearance
from robot.kinematics import FingerPositions
from robot.types import Applied, Floats, Image, MotionFault, Snapshot
from tasks.claw import Claw, ClawConfig, Colour, Dot, Interval, project
from tasks.resets import reset_pose
from tasks.rewards import pose_score, robel_pose
from tasks.task import Action, DemonstratedTask, Observation

if TYPE_CHECKING:
    from robot.rig import Rig

MIDDLE = slice(1, None, 3)  # the middle joint of each finger
DRAWS = 100  # of which most are good; so many in a row that are not mean a wrong setting
VALVE_ANGLES = np.arange(16) * math.tau / 48  # rad, over a third of a turn: its three arms are alike
COLOURS: tuple[Colour, ...] = ((30, 200, 60), (230, 60, 220), (240, 200, 20))  # fingers 1, 2, 3
QUANTITIES = ("middle", "amplitude", "frequency")


class PoseConfig(ClawConfig):
    """One pose setting: whether the goal stays or swings, what is success and how the goal is shown."""

    kind: Literal["pose"] = "pose"
    horizon: int = Field(80, ge=1)
    period: float = Field(0.05, gt=0)  # s
    goal: Literal["still", "swinging"] = "still"
    frequency: Interval = Interval(low=0.5, high=2.0)  # rad/s, of each joint of a goal that swings
    goal_speed: float = Field(math.pi / 6, gt=0)  # rad/s that no joint of the goal exceeds
    success: float = Field(math.radians(10), gt=0, lt=math.pi)  # rad, mean over the joints
    # m between two fingers at starts and goals, and to the valve at starts; soft servos are 0.05 rad off
    clearance: float = Field(0.01, ge=0, lt=FAR)
    cue: Literal["dots", "vector", "none"] = "dots"

    @model_validator(mode="after")
    def _swings(self) -> Self:
        if self.frequency.low <= 0:
            raise ValueError(f"frequency is above 0 rad/s, got low {self.frequency.low:g}")
        return self


@dataclass(frozen=True)
class Swing:
    """A pose that swings, each joint for itself; still with an amplitude of 0. All (J,)."""

    middle: Floats  # rad
    amplitude: Floats  # rad
    frequency: Floats  # rad/s

    def at(self, time: float) -> Floats:
        """(J,) rad, `time` s after the reset."""
        return self.middle + self.amplitude * np.sin(self.frequency * time)


class Pose(Claw, DemonstratedTask):
    """Bring all joints to a pose and keep them there, or follow one that swings.

    Starts and goals in which fingers would come nearer than `clearance` to each other, or would hold the
    valve between them at each of its angles, are drawn again: they could not be reached. The valve is no part
    of the task: it begins `clearance` beside the start, and is then where the fingers push it. `hold`
    keeps the fingers at home: each episode starts in another pose, which no single action keeps.
    Images show the goal by two dots for each finger, where its distal joint and its tip shall be, as far as
    the camera sees there (cue: dots); the other cues leave images as they are.
    """

    Config = PoseConfig

    def __init__(self, config: PoseConfig) -> None:
        super().__init__(config)
        self.config = config
        still = np.zeros(self.action_size)
        self.goal = Swing(self._home, still, still)
        self._projection: Floats | None = None  # of the camera that the goal is shown to

    @property
    def state_size(self) -> int:
        """Joint positions, velocities, distances to the goal, last action."""
        return 4 * self.action_size

    @property
    def parameters(self) -> dict[str, float]:
        """The goal's motion: middle_0 and amplitude_0 in rad, frequency_0 in rad/s, and so for all joints."""
        columns = ((name, getattr(self.goal, name)) for name in QUANTITIES)
        return {f"{name}_{joint}": float(value) for name, row in columns for joint, value in enumerate(row)}

    def restore(self, parameters: Mapping[str, float]) -> None:
        """Takes over the goal of a logged episode."""
        joints = range(self.action_size)
        columns = {name: np.array([parameters[f"{name}_{joint}"] for joint in joints]) for name in QUANTITIES}
        self.goal = Swing(**columns)

    def reset(self, rig: Rig, rng: np.random.Generator) -> None:
        """Draws goal and start, and moves the fingers to the start."""
        self.goal, start, valve = self.draw(rng)
        if self.config.cue == "dots" and rig.cameras:
            self.show_goal(rig.cameras[self.config.camera].projection)
        reset_pose(rig, start, valve, self.config.reset)

    def draw(self, rng: np.random.Generator) -> tuple[Swing, Floats, float]:
        """Goal, start (J,) rad and the valve's angle, rad. Raises MotionFault when no draw can be reached."""
        for _ in range(DRAWS):
            one, other = self._random_pose(rng), self._random_pose(rng)
            if self.config.goal == "still":
                goal, start = Swing(other, np.zeros_like(other), np.zeros_like(other)), one
            else:
                goal = self._swing_between(one, other, rng)
                start = goal.middle
            valve = self._valve_beside(start, self.config.clearance)
            if valve is not None and all(self._can_be_met(pose) for pose in self._goals(goal)):
                return goal, start, valve
        raise MotionFault(
            f"In {DRAWS} random poses fingers came nearer than {self.config.clearance:g} m to each other or "
            "to the valve. Make task.clearance smaller."
        )

    def _can_be_met(self, pose: Floats) -> bool:
        """Whether it can be a goal: the valve gives way where it is touched, unless from two sides."""
        return self._valve_beside(pose, 0.0) is not None

    def _valve_beside(self, pose: Floats, margin: float) -> float | None:
        """Where the valve, rad, is `margin` m from all fingers; None if it never is, or if fingers meet."""
        if not self._clearance.keeps(pose, self.config.clearance):
            return None
        poses = (np.append(pose, angle) for angle in VALVE_ANGLES)
        return next((float(each[-1]) for each in poses if self._valve_clearance.keeps(each, margin)), None)

    def _random_pose(self, rng: np.random.Generator) -> Floats:
        """Uniform over what actions can ask for, middle joints outwards only, as ROBEL's. (J,) rad."""
        high = self._range.copy()
        high[MIDDLE] = 0.0
        return rng.uniform(-self._range, high)

    def _swing_between(self, one: Floats, other: Floats, rng: np.random.Generator) -> Swing:
        """From the middle of two poses, as far as them where `goal_speed` allows."""
        interval = self.config.frequency
        frequency = rng.uniform(interval.low, interval.high, self.action_size)
        amplitude = np.minimum(np.abs(other - one) / 2, self.config.goal_speed / frequency)
        return Swing((one + other) / 2, amplitude, frequency)

    def _goals(self, goal: Swing) -> Iterator[Floats]:
        """All that an episode asks for."""
        steps = range(self.horizon + 1) if goal.amplitude.any() else range(1)
        return (goal.at(step * self.period) for step in steps)

    @cached_property
    def _clearance(self) -> FingerClearance:
        return FingerClearance()

    @cached_property
    def _valve_clearance(self) -> ValveClearance:
        return ValveClearance()

    @cached_property
    def _fingers(self) -> FingerPositions:
        return FingerPositions()

    def show_goal(self, projection: Floats) -> None:
        """Draws the goal's dots from now on, for a camera of the given (3, 4) projection."""
        self._projection = projection

    def goal_at(self, step: int) -> Floats:
        """(J,) rad: the goal after so many steps."""
        return self.goal.at(step * self.period)

    def error(self, snapshot: Snapshot) -> Floats:
        """(J,) rad: how far each joint is beyond its goal."""
        return np.asarray(snapshot.joints.position - self.goal_at(snapshot.step))

    def observe(self, snapshot: Snapshot, last_action: Action) -> Observation:
        """'state' (36,) float32; 'image' with the goal's dots, given one; 'goal' (9,) for cue 'vector'."""
        observation: Observation = {"state": self._state(snapshot, last_action)}
        image = self.frame(snapshot)
        if image is not None:
            dotted = self.config.cue == "dots"
            observation["image"] = self._dotted(image, snapshot.step) if dotted else image.copy()
        if self.config.cue == "vector":
            observation["goal"] = self.goal_at(snapshot.step).astype(np.float32)
        return observation

    def spaces(self, *, images: bool) -> dict[str, gymnasium.Space[Any]]:
        """As every task's, with 'goal' in rad when the cue is a vector."""
        spaces = super().spaces(images=images)
        if self.config.cue == "vector":
            spaces["goal"] = gymnasium.spaces.Box(-np.inf, np.inf, (self.action_size,), np.float32)
        return spaces

    def _state(self, snapshot: Snapshot, last_action: Action) -> NDArray[np.float32]:
        joints = snapshot.joints
        parts = (joints.position, joints.velocity, self.error(snapshot), last_action)
        return np.concatenate(parts, dtype=np.float32, casting="same_kind")

    def _dotted(self, image: Image, step: int) -> Image:
        assert self._projection is not None, "show_goal comes before observe"
        for points, colour in zip(self._fingers(self.goal_at(step)), COLOURS, strict=True):
            for point in points:
                image = Dot.within(project(self._projection, point), self.image_size, colour).draw(image)
        return image

    def expert(self, state: Floats) -> Action:
        """Asks for the goal itself."""
        position, error = state[: self.action_size], state[2 * self.action_size : 3 * self.action_size]
        return self.asking_for(position - error)

    def reward(self, snapshot: Snapshot, applied: Applied) -> dict[str, float]:
        """ROBEL's terms."""
        return robel_pose(self.error(snapshot), snapshot.joints.velocity)

    def success(self, snapshot: Snapshot) -> bool:
        """True while the joints are on average within the configured angle of their goals."""
        return self._mean_error(snapshot) < self.config.success

    def _mean_error(self, snapshot: Snapshot) -> float:
        return float(np.abs(self.error(snapshot)).mean())

    @property
    def labels(self) -> dict[str, str]:
        """Success, how far joints were from their goals, and ROBEL's points."""
        return {
            "success": f"success at a mean of {math.degrees(self.config.success):g} degrees",
            "error": "final error, mean of the joints, rad",
            "worst": "final error, worst joint, rad",
            "score": "final score, 0 to 1",
        }

    def measures(self, snapshot: Snapshot) -> dict[str, float]:
        """The joints' mean and largest distance to the goal in rad, and ROBEL's points in [0, 1]."""
        error = self.error(snapshot)
        worst = float(np.abs(error).max())
        return {"error": self._mean_error(snapshot), "worst": worst, "score": pose_score(error)}
