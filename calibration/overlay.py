"""The simulated robot over the camera's picture, at the measured angles: where they part, something lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mujoco
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from calibration.moving import require_limp
from calibration.recording import write_picture
from robot.camera import CameraConfig
from robot.canvas import Canvas
from robot.delivery import straightened
from robot.mjpeg import CameraServer, FrameFeed
from robot.place import Place
from robot.rig import Rig
from robot.types import CameraFault, Clock, Floats, Image
from robot.world import COLLISION_GROUP, JOINTS, VALVE_JOINT, WorldConfig, addresses, dclaw_model

NEAR, FAR = 0.02, 10.0  # m, what is drawn
SHARE = 0.45  # of the drawn robot in what is shown
OUTLINE = (0, 255, 255)  # no part of a D'Claw has this colour
PERIOD = 0.2  # s between two pictures of the page
QUALITY = 85
PAGE = b"""<!doctype html><title>Overlay</title><img src="/cam.mjpg" width="960">
<p>The model, half transparent and outlined, over the picture. They must lie on each other.
<a href="/state">joint angles</a></p>"""


@dataclass(frozen=True)
class Fingers:
    """What each pixel of a drawn robot shows."""

    joint: NDArray[np.uint8]  # (H, W): 1 to 9, the last joint by which it is moved; 0 for all else
    depth: NDArray[np.float32]  # (H, W) m ahead of the lens
    axes: Floats  # (J, 3): what each joint turns about, base frame
    anchors: Floats  # (J, 3) m: a point on it

    @property
    def owner(self) -> NDArray[np.uint8]:
        """(H, W): 1 to 3 for what that finger's joints move, 0 for all else."""
        return (self.joint + 2) // 3


class Ghost:
    """Draws the model's robot as a camera of any projection sees it; all calls must come from one thread."""

    def __init__(self, place: Place, size: tuple[int, int], world: WorldConfig) -> None:
        """size: (width, height) px. Raises MissingPart without OpenGL or model files."""
        self._model = dclaw_model(world)
        self._model.geom_rgba[self._model.geom("floor").id, 3] = 0
        self._data = mujoco.MjData(self._model)
        self._qpos, _ = addresses(self._model, (*JOINTS, VALVE_JOINT))
        self._scene = mujoco.MjvScene(self._model, maxgeom=1000)
        self._option = mujoco.MjvOption()
        groups = (0, 1, 2) if world.geoms == "meshes" else (0, COLLISION_GROUP)
        self._option.geomgroup[:] = [group in groups for group in range(6)]
        self._option.sitegroup[:] = 0
        self._place, self._size = place, size
        self._moved_by = _moved_by(self._model)
        self._joints = np.array([self._model.joint(name).id for name in JOINTS])
        self._canvas = Canvas(self._model, *size)

    def draw(self, joints: Floats, valve: float) -> tuple[Image, NDArray[np.bool_]]:
        """The robot (H, W, 3) uint8 RGB at joints (J,) and valve rad, and the pixels (H, W) that it fills."""
        self._pose(joints, valve)
        image = self._canvas.draw(self._scene)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        filled = np.asarray(self._canvas.draw(self._scene).any(axis=2))
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 0
        return image, filled

    def fingers(self, joints: Floats, valve: float) -> Fingers:
        """What of the fingers is to be seen where, and how far it is, at joints (J,) and valve rad."""
        self._pose(joints, valve)
        flags = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]
        self._scene.flags[flags] = 1
        image, depth = self._canvas.draw_depth(self._scene)
        self._scene.flags[flags] = 0
        joint = np.zeros(1 << 16, np.uint8)  # by the number that a part is drawn with
        for part in self._scene.geoms[: self._scene.ngeom]:
            if part.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                joint[part.segid + 1] = self._moved_by[part.objid]
        red, green, _ = np.moveaxis(image, 2, 0)
        ahead = NEAR / (1 - depth * (1 - NEAR / FAR))
        return Fingers(
            joint[red + 256 * green.astype(np.intp)],
            np.asarray(ahead, np.float32),
            self._data.xaxis[self._joints].copy(),
            self._data.xanchor[self._joints].copy(),
        )

    def aim(self, place: Place) -> None:
        """Draws from now on as a camera in another place, or with another lens."""
        self._place = place

    def _pose(self, joints: Floats, valve: float) -> None:
        """Puts the model's parts, and the eye, where they are to be drawn."""
        self._data.qpos[self._qpos] = [*joints, valve]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            mujoco.MjvCamera(),
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        self._look()

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._canvas.close()

    def _look(self) -> None:
        """Through the lens's matrix: its centre need not be the image's, nor its pixels square."""
        (fx, _, cx), (_, fy, cy), _ = self._place.matrix
        width, height = self._size
        left, right = NEAR * (-0.5 - cx) / fx, NEAR * (width - 0.5 - cx) / fx
        for eye in self._scene.camera:  # of a pair for stereo, whose mean is drawn
            eye.pos[:], eye.forward[:] = self._place.position, self._place.rotation[2]
            eye.up[:] = -self._place.rotation[1]
            eye.frustum_center, eye.frustum_width = (left + right) / 2, (right - left) / 2
            eye.frustum_top, eye.frustum_bottom = NEAR * (cy + 0.5) / fy, NEAR * (cy + 0.5 - height) / fy
            eye.frustum_near, eye.frustum_far = NEAR, FAR


def _moved_by(model: mujoco.MjModel) -> NDArray[np.uint8]:
    """(G,): the last joint, 1 to 9, by which each part is moved; 0 for all else."""
    bodies = [int(model.jnt_bodyid[model.joint(name).id]) for name in JOINTS]
    last = np.zeros(model.nbody, np.uint8)
    for body in range(1, model.nbody):  # parents come before their children
        last[body] = bodies.index(body) + 1 if body in bodies else last[model.body_parentid[body]]
    return np.asarray(last[model.geom_bodyid])


def ghost_of(rig: Rig) -> Ghost:
    """The ghost for a rig's camera. Raises CameraFault without a projection, MissingPart without OpenGL."""
    camera, sim = rig.config.camera, rig.config.sim
    if camera.projection is None:
        raise CameraFault(
            f"{camera.source} has no projection to look at the model through: `run_robot.py calibrate "
            "camera` measures it"
        )
    geoms = "meshes" if rig.config.kind == "real" else sim.geoms
    world = WorldConfig(geoms=geoms)
    return Ghost(Place.of(np.array(camera.projection)), (camera.width, camera.height), world)


def laid_over(picture: Image, camera: CameraConfig, robot: Image, filled: NDArray[np.bool_]) -> Image:
    """The straightened picture with the drawn robot half transparent over it, and its outline."""
    picture = straightened(picture, camera.lens)
    shown = picture.copy()
    shown[filled] = np.rint((1 - SHARE) * picture[filled] + SHARE * robot[filled])
    inside = filled.astype(np.uint8)
    shown[cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0] = OUTLINE
    return shown


class Overlay:
    """What a limp rig's camera shows, with the model over it."""

    def __init__(self, rig: Rig) -> None:
        """Raises CameraFault, MissingPart, MotionFault for servos under torque, BusFault."""
        require_limp(rig)
        self._rig, self._ghost = rig, ghost_of(rig)
        self._state: dict[str, Any] = {}

    def image(self) -> Image:
        """The newest picture with the robot at its present angles. Raises Fault."""
        (picture,) = self._rig.pictures(1)
        state = self._rig.robot.read()
        valve = float(state.object.position[0])
        self._state = {"joints": state.joints.position.tolist(), "valve": valve}
        return laid_over(picture, self._rig.config.camera, *self._ghost.draw(state.joints.position, valve))

    def state(self) -> dict[str, Any]:
        """The joint angles and the valve's, rad, of the latest picture."""
        return self._state

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._ghost.close()


def show(
    overlay: Overlay, path: Path, clock: Clock, console: Console, go_on: Callable[[], bool], port: int = 0
) -> None:
    """Writes one picture, then serves a page with ever newer ones for as long as `go_on` says.

    clock: the page's, of a person's time. Raises Fault, OSError.
    """
    feed = FrameFeed()
    server = CameraServer(feed, overlay.state, port, page=PAGE)
    try:
        write_picture(path, overlay.image())
        for line in (f"picture   {path}", f"live      {server.url}  (until Ctrl-C)"):
            console.print(line, highlight=False, soft_wrap=True)
        while go_on():
            feed.publish(overlay.image(), QUALITY)
            clock.sleep_until(clock.now() + PERIOD)
    finally:
        server.close()
