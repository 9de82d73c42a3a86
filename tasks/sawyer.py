"""A Sawyer arm at a table: open a door, close a drawer, pick up a block; rewards as SLAC prints them.

Equations are those of the SLAC paper's appendix on its manipulation tasks. It prints neither the desired
angle, nor the drawer's goal, nor the height that counts as lifted, nor horizon, camera and rate: those are
this project's choices, with their reasons beside them in the configurations.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from robot.sawyer import CLOSED, OPEN, SCENES, DoorArm, DrawerArm, PickupArm, Point, SawyerConfig, SawyerRobot
from robot.types import Applied, Floats, JointState, Snapshot
from tasks.task import Action, DemonstratedTask, Observation, RobotTaskConfig

if TYPE_CHECKING:
    from robot.rig import Rig

AXES = slice(0, 3)  # of a hand, or of a point
GRIP = 3
WAY, REACH = 8, slice(-7, -4)  # of a state: a hinged thing's way, and from the hand to the handle
LEAD = 0.05  # m by which the set-point may be ahead of the hand: what stops the hand does not wind it up


class ArmTaskConfig(RobotTaskConfig):
    """What the three tasks share: 5 s at 20 Hz; at 10 Hz the hand is too coarse to grasp."""

    arm: SawyerConfig
    horizon: int = Field(100, ge=1)
    period: float = Field(0.05, ge=0.0025)  # s, a step of the physics at least
    stride: float = Field(0.02, gt=0, le=0.05)  # m that an action of 1 moves the set-point in one step
    low: Point  # m, the thing is put anywhere between
    high: Point

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for axis, low, high in zip("xyz", self.low, self.high, strict=True):
            if low > high:
                raise ValueError(f"low {axis} = {low:g} m is above high {axis} = {high:g} m; swap them")
        return self

    @property
    def sawyer(self) -> SawyerConfig:
        """The arm in its scene."""
        return self.arm


class ArmTask(DemonstratedTask):
    """A hand that is sent by three coordinates and a grip to do something to one thing."""

    action_size = 4
    joint_unit = "m"
    joint_names = ("hand x", "hand y", "hand z")

    def __init__(self, config: ArmTaskConfig) -> None:
        super().__init__(config)
        self.arm = config.arm
        self.placed: Floats = np.array(config.low)  # m, where the thing is in this episode
        self._low, self._high, self._stride = np.array(config.low), np.array(config.high), config.stride
        self._setpoint: Floats = np.array(config.arm.hand)
        self._lead = min(LEAD, config.arm.max_velocity * config.period)

    @property
    def joint_size(self) -> int:
        """Position and velocity of hand and grip."""
        return 2 * self.action_size

    @property
    def parameters(self) -> dict[str, float]:
        """Where the thing was put, m."""
        return dict(zip("xyz", self.placed.tolist(), strict=True))

    def restore(self, parameters: Mapping[str, float]) -> None:
        """Takes over where the thing was."""
        self.placed = np.array([parameters[axis] for axis in "xyz"])

    @property
    def grip(self) -> float:
        """The fingers' effort at the start: they are open."""
        return OPEN

    @property
    def hold(self) -> Action:
        """Stays, fingers as they are at the start."""
        return np.array([0.0, 0.0, 0.0, self.grip], np.float32)

    def reset(self, rig: Rig, rng: np.random.Generator) -> None:
        """Puts the thing somewhere and the hand to its start. Raises ValueError on another robot."""
        robot = robot_of(rig)
        self.placed = rng.uniform(self._low, self._high)
        self._setpoint = self.start()
        robot.restart(self.placed, self._setpoint, self.grip)

    def put_back(self, rig: Rig, joints: Floats, thing: Floats) -> None:
        """The restart of that episode."""
        robot_of(rig).restart(self.placed, joints[AXES], self.grip)

    def apart(self, now: Floats, then: Floats) -> Floats:
        """The distance between two places of the handle."""
        return np.asarray(np.linalg.norm(now[:, -3:] - then[:, -3:], axis=1))

    def start(self) -> Floats:
        """(3,) m: where the tool centre is at an episode's beginning."""
        return np.array(self.arm.hand)

    def target(self, action: Action, state: JointState) -> Floats:
        """(4,): the set-point, moved on by the action's stride and never far from the hand, and the grip."""
        wish = np.asarray(action, np.float64)
        moved = self._setpoint + self._stride * wish[AXES]
        near = np.clip(moved, state.position[AXES] - self._lead, state.position[AXES] + self._lead)
        self._setpoint = np.clip(near, self.arm.lower, self.arm.upper)
        return np.append(self._setpoint, wish[GRIP])

    def observe(self, snapshot: Snapshot, last_action: Action) -> Observation:
        """'state' (N,) float32, and 'image' given a frame."""
        hand, thing = snapshot.joints, snapshot.object
        reach = self.handle(snapshot) - hand.position[AXES]
        parts = (hand.position, hand.velocity, *self.known(thing), reach, last_action)
        observation: Observation = {"state": np.concatenate(parts, dtype=np.float32, casting="same_kind")}
        image = self.frame(snapshot)
        if image is not None:
            observation["image"] = image.copy()
        return observation

    @abstractmethod
    def known(self, thing: JointState) -> tuple[Floats, Floats]:
        """What a state tells of the thing's own motion: where, and how fast."""

    def handle(self, snapshot: Snapshot) -> Floats:
        """(3,) m: the point of the thing that the hand is to reach."""
        return snapshot.object.position[-3:]

    def reach(self, snapshot: Snapshot) -> float:
        """Squared distance from the tool centre to the handle, m^2, as equations 13 and 14 have it."""
        return float(np.sum((snapshot.joints.position[AXES] - self.handle(snapshot)) ** 2))

    def towards(self, tip: Floats, goal: Floats, grip: float) -> Action:
        """The action that brings the tool centre to a point: half the way per step, at most one stride."""
        move = np.clip(0.5 * (goal - tip) / self._stride, -1, 1)
        return np.append(move, grip).astype(np.float32)


def robot_of(rig: Rig) -> SawyerRobot:
    """The rig's arm. Raises ValueError when it is another robot."""
    if not isinstance(rig.robot, SawyerRobot):
        raise ValueError("This task is for a Sawyer, and the robot is none: choose another --task.")
    return rig.robot


class HingedTask(ArmTask):
    """A thing with one way to move, by a handle, to where it is wanted."""

    state_size = 17  # hand and its velocity 8, the way and its speed 2, hand to handle 3, last action 4

    def __init__(self, config: ArmTaskConfig, wanted: float, radius: float) -> None:
        """wanted: rad of a door, m of a drawer; radius: within which it counts as there."""
        super().__init__(config)
        self._wanted, self._radius = wanted, radius
        self._whole = max(abs(SCENES[config.arm.scene].rest - wanted), 1e-3)  # of the way

    def known(self, thing: JointState) -> tuple[Floats, Floats]:
        """Its way and its speed."""
        return thing.position[:1], thing.velocity[:1]

    def way(self, snapshot: Snapshot) -> float:
        """How far it has moved: rad of a door, m of a drawer."""
        return float(snapshot.object.position[0])

    def error(self, snapshot: Snapshot) -> float:
        """How far it is from where it is wanted, unsigned."""
        return abs(self.way(snapshot) - self._wanted)

    def success(self, snapshot: Snapshot) -> bool:
        """True near where it is wanted."""
        return self.error(snapshot) <= self._radius

    def measures(self, snapshot: Snapshot) -> dict[str, float]:
        """Its distance from where it is wanted, and how much of the way is done."""
        error = self.error(snapshot)
        return {"error": error, "score": max(0.0, 1 - error / self._whole)}


# --- Door


class DoorConfig(ArmTaskConfig):
    """Open a door by its handle."""

    kind: Literal["sawyer_door"] = "sawyer_door"
    arm: DoorArm = DoorArm()
    low: Point = (0.0, 0.85, 0.15)  # m, of the door's frame; Metaworld's
    high: Point = (0.1, 0.95, 0.15)
    desired: float = Field(-math.pi / 2, ge=-2, lt=0)  # rad: wide open. It opens to the negative side, to -2
    success: float = Field(0.08, gt=0)  # rad
    # "handle": the finger is already behind the handle's bar. From "away" random actions never touch it, and
    # the reward says nothing before it moves.
    start: Literal["away", "handle"] = "away"


DOOR_HINGE = np.array([-0.185, -0.1, 0.0])  # m, in the frame that is placed
DOOR_HANDLE = np.array(SCENES["door"].handle[1][:2])  # m, from the hinge to the bar's middle, door closed
DOOR_HOOK = np.array([0.39, -0.06])  # m, from the hinge to where a finger is between bar and door
DOOR_PULL = np.array([0.39, -0.09])  # m, from the hinge to where it is aimed, so that it leans on the bar


class Door(HingedTask):
    """Hook the bar and pull it around the hinge."""

    Config = DoorConfig
    thing = "door's handle, m"

    def __init__(self, config: DoorConfig) -> None:
        super().__init__(config, config.desired, config.success)
        self.config = config

    def start(self) -> Floats:
        """In the arm's start pose, or behind the bar."""
        if self.config.start == "away":
            return super().start()
        return np.asarray(self.placed + DOOR_HINGE + np.append(DOOR_HOOK, 0.0))

    @property
    def grip(self) -> float:
        """Closed behind the bar, where there is no room for open fingers."""
        return OPEN if self.config.start == "away" else CLOSED

    def reward(self, snapshot: Snapshot, applied: Applied) -> dict[str, float]:
        """Equation 12."""
        return {"angle": -self.error(snapshot)}

    def measures(self, snapshot: Snapshot) -> dict[str, float]:
        """As of everything hinged, and the door's angle, rad."""
        return {**super().measures(snapshot), "angle": self.way(snapshot)}

    @property
    def labels(self) -> dict[str, str]:
        """Angles."""
        words = {"error": "final error, rad", "angle": "final angle, rad", "score": "final score"}
        return {"success": f"door within {self.config.success:g} rad", **words}

    def expert(self, state: Floats) -> Action:
        """Above the gap between bar and door, down into it, and around the hinge."""
        tip, angle, reach = state[AXES], float(state[WAY]), state[REACH]
        handle = tip + reach
        hinge = handle[:2] - _turned(DOOR_HANDLE, angle)
        place = _turned(tip[:2] - hinge, -angle)  # of the finger, as if the door were closed
        away = place - DOOR_HOOK
        hooked = np.abs(away).max() < 0.045 and abs(reach[2]) < 0.04
        if hooked:
            ahead = max(angle - 0.3, self.config.desired - 0.02)
            pulled = hinge + _turned(DOOR_PULL, ahead)
            return self.towards(tip, np.append(pulled, handle[2]), CLOSED)
        gap = hinge + _turned(DOOR_HOOK, angle)
        above = np.abs(away).max() < 0.02
        return self.towards(tip, np.append(gap, handle[2] - 0.01 if above else handle[2] + 0.09), CLOSED)


def _turned(point: Floats, angle: float) -> Floats:
    """A point (2,) of the plane, turned about the origin by an angle, rad."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([c * point[0] - s * point[1], s * point[0] + c * point[1]])


# --- Drawer


class DrawerConfig(ArmTaskConfig):
    """Close a drawer."""

    kind: Literal["sawyer_drawer"] = "sawyer_drawer"
    arm: DrawerArm = DrawerArm()
    low: Point = (-0.1, 0.9, 0.0)  # m, of the chest; Metaworld's
    high: Point = (0.1, 0.9, 0.0)
    goal: float = Field(0.0, ge=-0.16, le=0)  # m along the drawer's way, from -0.16, open, to 0, closed
    success: float = Field(0.02, gt=0)  # m


OVER, BEFORE = np.array([0.0, -0.07, 0.065]), np.array([0.0, -0.06, 0.0])  # m, from the handle


class Drawer(HingedTask):
    """Get before the handle and push."""

    Config = DrawerConfig
    thing = "drawer's handle, m"

    def __init__(self, config: DrawerConfig) -> None:
        super().__init__(config, config.goal, config.success)
        self.config = config

    def reward(self, snapshot: Snapshot, applied: Applied) -> dict[str, float]:
        """Equation 13."""
        return {"hand_to_handle": -self.reach(snapshot), "drawer_to_goal": -self.error(snapshot)}

    @property
    def labels(self) -> dict[str, str]:
        """Distances."""
        words = {"error": "final distance, m", "score": "final score"}
        return {"success": f"drawer within {self.config.success:g} m", **words}

    def expert(self, state: Floats) -> Action:
        """Back over the handle, down before it, and on until the drawer is closed."""
        tip, way, reach = state[AXES], float(state[WAY]), state[REACH]
        handle = tip + reach
        before = reach[1] > 0.01 and abs(reach[0]) < 0.04
        if not before:
            return self.towards(tip, handle + OVER, CLOSED)
        if reach[2] < -0.02:
            return self.towards(tip, handle + BEFORE, CLOSED)
        left = self.config.goal - way
        return self.towards(tip, np.array([handle[0], tip[1] + left + 0.01, handle[2]]), CLOSED)


# --- Pick-up


class PickupConfig(ArmTaskConfig):
    """Lift a block."""

    kind: Literal["sawyer_pickup"] = "sawyer_pickup"
    arm: PickupArm = PickupArm()
    low: Point = (-0.1, 0.6, 0.02)  # m, of the block's centre; Metaworld's
    high: Point = (0.1, 0.7, 0.02)
    # m above where it lay; robosuite's threshold, of the same reward's origin
    lift: float = Field(0.04, gt=0)


class Pickup(ArmTask):
    """Reach, grasp, lift, and keep it there."""

    Config = PickupConfig
    state_size = 21  # hand and its velocity 8, the block and its velocity 6, hand to block 3, last action 4
    thing = "block, m"

    def __init__(self, config: PickupConfig) -> None:
        super().__init__(config)
        self.config = config

    def known(self, thing: JointState) -> tuple[Floats, Floats]:
        """The block's centre and its velocity."""
        return thing.position, thing.velocity

    def reward(self, snapshot: Snapshot, applied: Applied) -> dict[str, float]:
        """Equation 14; the greater of two terms, of which the other is then none."""
        lifted = self.success(snapshot)
        near = 0.25 * (1 - math.tanh(10.0 * self.reach(snapshot)))
        return {"reach": 0.0 if lifted else near, "lift": float(lifted)}

    def height(self, snapshot: Snapshot) -> float:
        """Of the block above where it lay, m."""
        return float(snapshot.object.position[2] - self.placed[2])

    def success(self, snapshot: Snapshot) -> bool:
        """True while the block is lifted."""
        return self.height(snapshot) > self.config.lift

    def measures(self, snapshot: Snapshot) -> dict[str, float]:
        """The block's height, m, and how much of the lift is done."""
        height = self.height(snapshot)
        return {"height": height, "score": min(max(height / self.config.lift, 0.0), 1.0)}

    @property
    def labels(self) -> dict[str, str]:
        """Heights."""
        words = {"height": "final height, m", "score": "final score"}
        return {"success": f"lifted by {self.config.lift:g} m", **words}

    def expert(self, state: Floats) -> Action:
        """Above the block, down around it, close, up."""
        tip, opening, closing, reach = state[AXES], float(state[3]), -float(state[7]), state[REACH]
        block = tip + reach
        beside = float(np.hypot(*reach[:2]))
        if beside > 0.015:
            return self.towards(tip, np.append(block[:2], max(block[2] + 0.08, 0.1)), OPEN)
        if abs(reach[2]) > 0.015:
            return self.towards(tip, block, OPEN)
        grasped = opening < 0.07 and closing < 0.01
        return self.towards(tip, np.append(tip[:2], 0.2) if grasped else block, CLOSED)
