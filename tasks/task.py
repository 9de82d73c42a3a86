"""What a task is: a reset, an observation, an action's meaning, a reward and a success."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from pydantic import Field

from robot.sawyer import SawyerConfig
from robot.types import Applied, CameraFault, Config, Floats, Image, JointState, Snapshot

if TYPE_CHECKING:
    from robot.rig import Rig

Action = NDArray[np.float32]
Observation = dict[str, NDArray[Any]]


class TaskConfig(Config):
    """What every task has: its kind, an episode's length and the control period."""

    kind: str
    horizon: int = Field(50, ge=1)  # steps; the time limit truncates, the value bootstraps
    period: float = Field(0.1, gt=0)  # s
    image_size: tuple[int, int] = (64, 64)  # height, width of the camera's delivered image


class RobotTaskConfig(TaskConfig):
    """What a task of a robot has besides: the camera that it looks through."""

    camera: str = "front"

    @property
    def sawyer(self) -> SawyerConfig | None:
        """The simulated Sawyer that the task needs, if it is for one; else it is for a D'Claw."""
        return None


class Task(ABC):
    """The meaning of an episode; RobotEnv does the sequencing. Only `reset` and `put_back` move anything."""

    Config: ClassVar[type[RobotTaskConfig]]  # what it is made from; its `kind` names the task

    def __init__(self, config: RobotTaskConfig) -> None:
        self._camera = config.camera
        self.horizon = config.horizon
        self.period = config.period
        self.image_size = config.image_size

    @property
    @abstractmethod
    def action_size(self) -> int:
        """A, the length of an action."""

    @property
    @abstractmethod
    def state_size(self) -> int:
        """N, the length of the state observation."""

    @property
    def joint_size(self) -> int:
        """How many numbers at the state's beginning are the robot's own joints, which it feels itself."""
        return 0

    @property
    @abstractmethod
    def parameters(self) -> dict[str, float]:
        """This episode's draw, as measured: enough to compute its rewards again from the log."""

    @abstractmethod
    def restore(self, parameters: Mapping[str, float]) -> None:
        """Takes over a logged episode's `parameters`. Raises KeyError when one is missing."""

    @abstractmethod
    def reset(self, rig: Rig, rng: np.random.Generator) -> None:
        """Draws an episode and moves the robot to its start. Raises MotionFault, BusFault."""

    @abstractmethod
    def target(self, action: Action, state: JointState) -> Floats:
        """(J,) rad: what action (A,) in [-1, 1] asks of the joints."""

    @abstractmethod
    def observe(self, snapshot: Snapshot, last_action: Action) -> Observation:
        """New arrays for the agent: 'state' (N,) float32, and 'image' (H, W, 3) uint8 if a frame is there."""

    @abstractmethod
    def reward(self, snapshot: Snapshot, applied: Applied) -> dict[str, float]:
        """Named terms; their sum is the reward."""

    @abstractmethod
    def success(self, snapshot: Snapshot) -> bool:
        """True while the goal is reached."""

    @abstractmethod
    def measures(self, snapshot: Snapshot) -> dict[str, float]:
        """Physical quantities that a report shows beside the reward."""

    @abstractmethod
    def put_back(self, rig: Rig, joints: Floats, thing: Floats) -> None:
        """Brings robot and object to where a logged episode began: joints (J,), object (K,).

        Raises MotionFault, BusFault.
        """

    joint_unit: str  # of joint readings and commands
    thing: str  # what the object is called, with the unit of `apart`

    @property
    @abstractmethod
    def joint_names(self) -> tuple[str, ...]:
        """What the first numbers of a joint reading are called."""

    @abstractmethod
    def apart(self, now: Floats, then: Floats) -> Floats:
        """(T,) how far the object was from where it was another time; both (T, K)."""

    @property
    @abstractmethod
    def labels(self) -> dict[str, str]:
        """What a report calls success and the measures, in its order."""

    @property
    @abstractmethod
    def hold(self) -> Action:
        """(A,): what keeps the pose in which resets end."""

    def failed(self, snapshot: Snapshot) -> bool:
        """True when the episode cannot go on; this is termination, not truncation."""
        return False

    def spaces(self, *, images: bool) -> dict[str, gymnasium.Space[Any]]:
        """The spaces of what `observe` returns, with or without the camera image."""
        return spaces(self.state_size, self.image_size if images else None)

    def frame(self, snapshot: Snapshot) -> Image | None:
        """What the task's camera saw, (H, W, 3) uint8, not a copy. Raises CameraFault for another size."""
        frame = snapshot.frames.get(self._camera)
        if frame is not None and frame.image.shape != (*self.image_size, 3):
            raise CameraFault(
                f"Camera '{self._camera}' delivers images of shape {frame.image.shape}, "
                f"the task expects {(*self.image_size, 3)}; set the camera's size or task.image_size."
            )
        return None if frame is None else frame.image


@dataclass(frozen=True, slots=True)
class Moments:
    """The same moment of N imagined courses of events."""

    step: int  # of the episode; goals that move have moved on by then
    joints: Floats  # (N, J) rad
    joint_velocities: Floats  # (N, J) rad/s
    objects: Floats  # (N,) rad, over all turns
    object_velocities: Floats  # (N,) rad/s


class DemonstratedTask(Task):
    """A task that somebody knows how to do from what its state says."""

    @abstractmethod
    def expert(self, state: Floats) -> Action:
        """(A,): what an expert does in a state (N,)."""


class ForeseeableTask(Task):
    """A task that can be planned: it says of many imagined moments at once what they are worth."""

    @abstractmethod
    def targets(self, actions: Floats, positions: Floats) -> Floats:
        """(N, J) rad: `target` for actions (N, A) of robots that stand at positions (N, J) rad."""

    @abstractmethod
    def rewards(self, moments: Moments) -> Floats:
        """(N,): what `reward` would sum up to."""

    @abstractmethod
    def guidance(self, moments: Moments) -> Floats:
        """(N,): what a planner of short sight is paid besides, so that the far end comes out well."""

    @abstractmethod
    def keeping(self, now: Moments, setpoint: Floats) -> Action | None:
        """(A,): what keeps joints at their setpoint (J,) rad where nothing is left to gain, else None.

        now: one moment, the present.
        """


def spaces(state_size: int, image_size: tuple[int, int] | None) -> dict[str, gymnasium.Space[Any]]:
    """Those of a state (N,) and, unless its (height, width) is None, of an image."""
    found: dict[str, gymnasium.Space[Any]] = {"state": Box(-np.inf, np.inf, (state_size,), np.float32)}
    if image_size is not None:
        found["image"] = Box(0, 255, (*image_size, 3), np.uint8)
    return found


def nothing(space: gymnasium.Space[Any]) -> Observation:
    """Zeros in the shape of an observation, where none was measured."""
    assert isinstance(space, gymnasium.spaces.Dict)
    return {name: np.zeros(part.shape or (), part.dtype) for name, part in space.items()}
