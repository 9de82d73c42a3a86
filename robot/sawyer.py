"""A simulated Sawyer arm over a table: Metaworld's scenes, moved by the position of the hand.

Scenes are read from the installed `metaworld` distribution, which is never imported: its classes reset and
render far slower, disturb each other's pictures, and accept actions that are no numbers. What is taken are
the model files; what moves the hand is the same mocap body, welded to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import mujoco
import numpy as np
from pydantic import Field, model_validator

from robot.safety import SafetyConfig, SafetyFilter
from robot.types import (
    Applied,
    Config,
    Floats,
    Frame,
    Image,
    InvalidCommand,
    JointState,
    MotionFault,
    RobotState,
    Watch,
)
from robot.world import CameraPose, Painter, addresses, check_mujoco, decimated, folder_of

Point = tuple[float, float, float]  # m: x right, y away from the arm's base, z up from the table

ASSETS = Path("assets/sawyer_xyz")
ARM = tuple(f"right_j{number}" for number in range(7))
HULLS = ("l6", "eGripperBase")  # meshes whose hulls collide; all others are drawn only
HULL_CELL = 0.002  # m: moves a hull's corners by a millimetre at most
ABOVE = np.array([0.0, 0.0, 0.045])  # m from the tool centre between the finger tips to the hand's body
POINTING_DOWN = (1.0, 0.0, 1.0, 0.0)  # quaternion of the mocap body, as Metaworld's; MuJoCo normalises it
# Metaworld's reset_mocap_welds: no offset between mocap body and hand, torque scale 5. Only the first eleven
# numbers of the row, which is why its own code fails from MuJoCo 3.17 on, where the row has twelve.
WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)
BLUE = (0.1, 0.25, 0.9, 1.0)  # as in the paper's pictures
SETTLED: Point = (0.0, 0.6, 0.155)  # m, of the tool centre: Metaworld's reset pose
SETTLING = 4.0  # s until the arm, dropped into its weld, moves by less than 1e-8 rad/s
IK_STEPS = 100  # 5 usually do; at a joint's limit it creeps
OPEN, CLOSED = -1.0, 1.0  # efforts of the fingers
IK_TOLERANCE = 1e-5  # m and rad
AXES = 3  # of a point, and of a turn
NOT_MEASURED: Floats = np.empty(0)
NO_SERVO = "A Sawyer has no servo on the things that it handles: they are put back by `restart`."


@dataclass(frozen=True)
class Scene:
    """One of Metaworld's scenes: what is moved at a restart, and where it is held."""

    file: str
    placed: str  # the body that a restart puts somewhere
    joint: str  # of the thing: door, drawer or block
    rest: float  # its start, in units of the joint; a block has none
    handle: tuple[str, Point]  # a body, and the point of it that a finger can hook or grasp, m in its frame

    @property
    def free(self) -> bool:
        """Whether the thing lies on the table and can be carried away."""
        return self.joint == "objjoint"


SCENES = {
    "door": Scene(
        "sawyer_door_pull.xml",
        placed="door",
        joint="doorjoint",
        rest=0.0,
        handle=("door_link", (0.381, -0.12, 0.0)),
    ),
    "drawer": Scene(
        "sawyer_drawer.xml",
        placed="drawer",
        joint="goal_slidey",
        rest=-0.15,  # open, as Metaworld has it: 1 cm from its stop
        handle=("drawer_link", (0.0, -0.15, 0.0)),
    ),
    "pickup": Scene(
        "sawyer_pick_place_v3.xml",
        placed="obj",
        joint="objjoint",
        rest=0.0,
        handle=("obj", (0.0, 0.0, 0.0)),
    ),
}


class SawyerConfig(Config):
    """The simulated arm: its scene, its workspace, its speed and what the camera sees."""

    scene: Literal["door", "drawer", "pickup"]
    hand: Point = SETTLED  # m, where the tool centre starts
    # Metaworld's box for its hand body, lowered to the finger tips, which may come 1 cm near the table.
    lower: Point = (-0.5, 0.4, 0.01)  # m
    upper: Point = (0.5, 1.0, 0.45)
    # m/s by which a target may be ahead of the hand. The weld follows 9.5 mm behind at 0.4 m/s.
    max_velocity: float = Field(1.0, gt=0, le=2)
    # Without it a held block creeps out of the fingers by 1 mm/s; three iterations cost a tenth of the speed.
    noslip_iterations: int = Field(3, ge=0)
    mesh_cell: float = Field(0.005, gt=0)  # m: vertices closer than this are merged, for pictures only
    camera: CameraPose = CameraPose()  # each scene's arm has its own

    @model_validator(mode="after")
    def _starts_inside(self) -> Self:
        rows = zip("xyz", self.lower, self.hand, self.upper, strict=True)
        for axis, low, start, high in rows:
            if not low <= start <= high or low == high:
                raise ValueError(
                    f"hand starts at {axis} = {start:g} m, outside of its box from {low:g} to {high:g}"
                )
        return self


def find_metaworld() -> Path:
    """The folder of the installed metaworld distribution. Raises MissingPart with the cure."""
    return folder_of("metaworld", ASSETS, "Metaworld's Sawyer scenes", "metaworld>=3.0")


def sawyer_model(config: SawyerConfig) -> mujoco.MjModel:
    """The arm in its scene, ready to simulate and draw: no goal marker, slip fixed, meshes decimated."""
    check_mujoco()
    path = find_metaworld() / ASSETS / SCENES[config.scene].file
    spec = mujoco.MjSpec.from_file(str(path))
    for site in [site for site in spec.sites if site.name == "goal"]:
        spec.delete(site)  # what is to be done is not to be read off the picture
    for body in spec.body("right_arm_base_link").find_all(mujoco.mjtObj.mjOBJ_BODY):
        body.gravcomp = 1.0  # as the real arm does; it would hang 4 mm below its target otherwise
    for mesh in spec.meshes:
        _decimate(spec, mesh, path.parent, HULL_CELL if mesh.name in HULLS else config.mesh_cell)
    if SCENES[config.scene].free:  # dark red wood on brown wood is hard to find in 64x64
        block = spec.geom("objGeom")
        block.material, block.rgba = "", BLUE
    spec.option.noslip_iterations = config.noslip_iterations
    spec.visual.quality.offsamples = spec.visual.quality.shadowsize = 0
    model = spec.compile()
    model.eq_data[0, : len(WELD)] = WELD
    return model


def _decimate(spec: Any, mesh: Any, folder: Path, cell: float) -> None:
    """Puts a coarser mesh, kept in memory, in the place of a file."""
    data = (folder / mesh.file).resolve().read_bytes()
    coarse = decimated(data, cell / float(mesh.scale[0]))
    if len(coarse) < len(data) and len(coarse) > 84:
        mesh.file = f"{mesh.name}.stl"
        spec.assets[mesh.file] = coarse


class DoorArm(SawyerConfig):
    """The arm before the door, with room to step back: the handle comes to y = 0.37 m."""

    scene: Literal["door"] = "door"
    lower: Point = (-0.5, 0.3, 0.01)
    camera: CameraPose = CameraPose(lookat=(-0.02, 0.68, 0.12), distance=1.0, azimuth=150.0, elevation=-40.0)


class DrawerArm(SawyerConfig):
    """The arm before the drawer."""

    scene: Literal["drawer"] = "drawer"
    camera: CameraPose = CameraPose(lookat=(0.0, 0.7, 0.1), distance=0.9, azimuth=140.0, elevation=-35.0)


class PickupArm(SawyerConfig):
    """The arm over a block."""

    scene: Literal["pickup"] = "pickup"
    camera: CameraPose = CameraPose(lookat=(0.0, 0.65, 0.07), distance=0.6, azimuth=140.0, elevation=-30.0)


class SawyerPlant:
    """The world beneath the arm: clock, camera, and a hand that follows where it is aimed."""

    def __init__(self, config: SawyerConfig, image_size: tuple[int, int] = (64, 64)) -> None:
        """image_size: (width, height) px. Raises MissingPart without Metaworld's files."""
        self.config, self.scene = config, SCENES[config.scene]
        self._camera = config.camera
        self._model = sawyer_model(config)
        self._data = mujoco.MjData(self._model)
        self._timestep = float(self._model.opt.timestep)
        self._step = 0
        self._image_size, self._sequence = image_size, 0
        self._painter: Painter | None = None
        self._index()
        self._opened = self._settle(OPEN)
        self._closed = self._settle(CLOSED)
        self.restart(self._model.body_pos[self._placed].copy(), config.hand)

    def _index(self) -> None:
        model = self._model
        self._hand = model.body("hand").id
        self._placed = model.body(self.scene.placed).id
        self._tips = [model.site(f"{side}EndEffector").id for side in ("right", "left")]
        self._claws = [model.joint(name).dofadr[0] for name in ("r_close", "l_close")]
        self._arm_qpos, self._arm = addresses(model, ARM)
        self._low, self._high = np.array([model.joint(name).range for name in ARM]).T
        thing = model.joint(self.scene.joint)
        self._thing_qpos, self._thing_dof = int(thing.qposadr[0]), int(thing.dofadr[0])
        body, self._bar = self.scene.handle
        self._thing = model.body(body).id

    # --- Clock ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Physics time, s: whole steps since the beginning, restarts included."""
        return self._step * self._timestep

    def sleep_until(self, time: float) -> None:
        """Steps the physics to the first step at or after `time` (a millionth of a step is forgiven)."""
        steps = math.ceil(time / self._timestep - 1e-6) - self._step
        if steps > 0:
            mujoco.mj_step(self._model, self._data, steps)
            mujoco.mj_forward(self._model, self._data)  # places of now, not of a step ago
            self._step += steps

    # --- Hand and thing ------------------------------------------------------------------------------------

    @property
    def tip(self) -> Floats:
        """(3,) m, the tool centre: midway between the finger tips."""
        return np.asarray(self._data.site_xpos[self._tips].mean(0))

    @property
    def hand(self) -> tuple[Floats, Floats]:
        """Position (4,) and velocity (4,): the tool centre in m and m/s, then the opening of the fingers."""
        data = self._data
        opening = float(np.linalg.norm(np.subtract(*data.site_xpos[self._tips])))
        closing = float(data.qvel[self._claws[0]] - data.qvel[self._claws[1]])
        velocity = np.mean([self._velocity(mujoco.mjtObj.mjOBJ_SITE, tip)[1] for tip in self._tips], axis=0)
        return np.append(self.tip, opening), np.append(velocity, -closing)

    @property
    def thing(self) -> tuple[Floats, Floats]:
        """Position and velocity: the angle of a door (rad) or the way of a drawer (m), then its handle's (m).

        (4,) each; of a block on the table its centre alone, (3,) m.
        """
        arm = self._data.xmat[self._thing].reshape(AXES, AXES) @ self._bar
        turning, moving = self._velocity(mujoco.mjtObj.mjOBJ_XBODY, self._thing)
        where, moves = self._data.xpos[self._thing] + arm, moving + np.cross(turning, arm)
        if self.scene.free:
            return where, moves
        way, speed = self._data.qpos[self._thing_qpos], self._data.qvel[self._thing_dof]
        return np.append(way, where), np.append(speed, moves)

    def _velocity(self, kind: mujoco.mjtObj, id: int) -> Floats:
        """(2, 3): how something turns, rad/s, and moves, m/s, along the axes of the table."""
        both = np.empty(2 * AXES)
        mujoco.mj_objectVelocity(self._model, self._data, kind, id, both, 0)
        return both.reshape(2, AXES)

    @property
    def grip(self) -> float:
        """The fingers' effort as last aimed."""
        return float(self._data.ctrl[0])

    def aim(self, tip: Floats, grip: float) -> None:
        """Where the tool centre (3,) m shall go, and the fingers' effort: from -1, open, to 1, closed."""
        self._data.mocap_pos[0] = tip + ABOVE
        self._data.ctrl[:] = grip, -grip

    def restart(self, placed: Floats, tip: Floats | Point, grip: float = OPEN) -> None:
        """The settled start again: the thing at `placed` (3,) m, the tool centre at `tip` (3,) m.

        The fingers are open or closed, as `grip` is below or above 0. Raises MotionFault for a place that the
        arm cannot reach.
        """
        data, settled = self._data, self._opened if grip <= 0 else self._closed
        mujoco.mj_setState(self._model, data, settled, mujoco.mjtState.mjSTATE_INTEGRATION)
        if self.scene.free:
            data.qpos[self._thing_qpos : self._thing_qpos + AXES] = placed
        else:
            self._model.body_pos[self._placed] = placed
            data.qpos[self._thing_qpos] = self.scene.rest
        self._reach(np.asarray(tip, np.float64))
        self.aim(np.asarray(tip, np.float64), grip)
        mujoco.mj_forward(self._model, data)

    def _settle(self, grip: float) -> Floats:
        """The whole state once the arm has come to rest in the middle of the workspace."""
        model, data = self._model, self._data
        data.mocap_quat[0] = POINTING_DOWN
        self.aim(np.array(SETTLED), grip)
        if not self.scene.free:
            data.qpos[self._thing_qpos] = self.scene.rest
        mujoco.mj_step(model, data, round(SETTLING / self._timestep))
        data.time = 0.0
        state = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)
        self._upright = data.xquat[self._hand].copy()
        return state

    def _reach(self, tip: Floats) -> None:
        """Bends the arm until the tool centre is at `tip`, pointing down: Newton steps on its Jacobian."""
        model, data = self._model, self._data
        jacobian, error = np.empty((2 * AXES, model.nv)), np.empty(2 * AXES)
        for _ in range(IK_STEPS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            error[:AXES] = tip + ABOVE - data.xpos[self._hand]
            mujoco.mju_subQuat(error[AXES:], self._upright, data.xquat[self._hand])
            error[AXES:] = data.xmat[self._hand].reshape(AXES, AXES) @ error[AXES:]
            if np.abs(error).max() < IK_TOLERANCE:
                return
            mujoco.mj_jacBody(model, data, jacobian[:AXES], jacobian[AXES:], self._hand)
            data.qpos[self._arm_qpos] = self._bent(jacobian[:, self._arm], error)
        raise MotionFault(
            f"The arm cannot bring its hand to {np.round(tip, 3).tolist()} m. Move "
            "task.arm.hand nearer to it, or task.low and task.high."
        )

    def _bent(self, jacobian: Floats, error: Floats) -> Floats:
        """(7,) rad: the arm after a Newton step; for joints that are at a limit the others make up."""
        angles, free = self._data.qpos[self._arm_qpos], np.ones(len(ARM), bool)
        while True:
            step = np.zeros(len(ARM))
            step[free] = np.linalg.lstsq(jacobian[:, free], error, rcond=1e-3)[0]
            beyond = ((angles <= self._low) & (step < 0)) | ((angles >= self._high) & (step > 0))
            if not (free & beyond).any():
                return np.asarray(np.clip(angles + step, self._low, self._high))
            free &= ~beyond

    # --- Camera --------------------------------------------------------------------------------------------

    @property
    def projection(self) -> Floats:
        """(3, 4): metres of the table's frame to homogeneous pixels of the delivered image."""
        return self._camera.projection(*self._image_size)

    def latest(self, max_age: float) -> Frame:
        """A picture of the present. Raises MissingPart without OpenGL."""
        self._sequence += 1
        return Frame(self.now(), self.render(*self._image_size), self._sequence)

    def render(self, width: int, height: int) -> Image:
        """The camera's present view in any size, (height, width, 3) uint8 RGB."""
        if self._painter is None:
            self._painter = Painter(self._model, self._camera, "meshes", shadows=False)
        return self._painter.draw(self._data.qpos, width, height)

    def close(self) -> None:
        """Frees the graphics. Never raises."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None


class SawyerRobot:
    """The arm as a robot of four coordinates: the tool centre's x, y, z in m, and the grip.

    A grip is commanded as an effort from -1 (open) to 1 (closed) and measured as the fingers' opening in m.
    """

    joints = 4

    def __init__(self, plant: SawyerPlant) -> None:
        self.plant = plant
        config = plant.config
        box = SafetyConfig(lower=config.lower, upper=config.upper, max_velocity=config.max_velocity)
        self._filter = SafetyFilter(box)

    def read(self) -> RobotState:
        """Hand and thing as they are now."""
        now = self.plant.now()
        hand, thing = self.plant.hand, self.plant.thing
        return RobotState(JointState(now, *hand, NOT_MEASURED), JointState(now, *thing, NOT_MEASURED))

    def command(self, target: Floats, dt: float) -> Applied:
        """Sends the hand to target (4,), inside its box and near where it is. Raises InvalidCommand."""
        target = np.array(target, np.float64)
        if target.shape != (self.joints,) or not np.isfinite(target).all():
            raise InvalidCommand(f"a Sawyer is sent to 4 finite numbers, got {target.tolist()}")
        hand = JointState(self.plant.now(), self.plant.tip, NOT_MEASURED, NOT_MEASURED)
        safe = self._filter(target[:AXES], hand, dt)
        grip = float(np.clip(target[AXES], -1.0, 1.0))
        self.plant.aim(safe.target, grip)
        return Applied(np.append(safe.target, grip), target, safe.reasons)

    def restart(self, placed: Floats, tip: Floats | Point, grip: float = OPEN) -> None:
        """Everything as at an episode's start; see `SawyerPlant.restart`."""
        self.plant.restart(placed, tip, grip)

    def hold(self) -> None:
        """Stays where it is."""
        self.plant.aim(self.plant.tip, float(self.plant.grip))

    def relax(self) -> None:
        """Nothing: the arm balances its own weight, and pushes nobody."""

    def engage(self) -> None:
        """Nothing: it is always ready."""

    def tend(self) -> None:
        """Nothing: it has no watchdog."""

    def drive_object(
        self, angle: float, tolerance: float, timeout: float, watch: Watch | None = None
    ) -> float:
        """Raises MotionFault: nothing but the hand moves things here."""
        raise MotionFault(NO_SERVO)

    def point(self, angle: float) -> None:
        """Raises MotionFault: there is no guide servo."""
        raise MotionFault(NO_SERVO)

    def describe(self) -> dict[str, Any]:
        """Scene, workspace and speed, as plain data."""
        return {"sawyer": self.plant.config.model_dump(mode="json"), "mujoco": mujoco.__version__}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass
