"""The simulated D'Claw as a MuJoCo model: ROBEL's own files, repaired in memory, cut to what is needed.

ROBEL's XML does not load in any current MuJoCo because a licence comment precedes the XML declaration; it
also carries a second, ghostly hand (the "overlay") and 166,000 visual triangles. Files are read from the
installed `robel` distribution, which is never imported (it needs a gym that no longer exists).
"""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import mujoco
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat

from robot.canvas import Canvases
from robot.types import Config, Floats, Image, MissingPart, ValveGeometry

Element = ElementTree.Element
Colour = tuple[float, float, float, float]

SCENE = Path("dclaw/assets/dclaw3xh_valve3_v0.xml")
VALVE_JOINT = "valve_OBJRx"
GUIDE_JOINT = "guide"
JOINTS = ("FFJ10", "FFJ11", "FFJ12", "MFJ20", "MFJ21", "MFJ22", "THJ30", "THJ31", "THJ32")
COLLISION_GROUP = 4
TESTED_MUJOCO = ((3, 17), (4, 0))  # major and minor version: from, below
FLOOR_TEXTURE = "floor"
PATTERN = 0  # which blotches a table has whose looks are not drawn
_UNDRAWN = ("skybox", "texplane", "tmark", "S_grasp")
_STL_FACE = np.dtype([("normal", "<f4", 3), ("vertices", "<f4", (3, 3)), ("attribute", "<u2")])
_LEADING_COMMENT = re.compile(r"\A\s*(<!--.*?-->\s*)+", re.DOTALL)

POINTER_RED: Colour = (0.85, 0.05, 0.05, 1.0)
ARM_BLUE: Colour = (0.05, 0.08, 0.35, 1.0)
FINGER_BROWN: Colour = (0.45, 0.28, 0.14, 1.0)
FLOOR_GREY: Colour = (0.78, 0.78, 0.78, 1.0)
MOTOR_GREY: Colour = (0.35, 0.35, 0.35, 1.0)
GUIDE_GREEN: Colour = (0.1, 0.8, 0.2, 1.0)  # as the goal's dot: nothing else in the scene is near it
GUIDE_SPAN = (0.1, 0.13)  # m from the valve's axis: outside of the arms, which end at 0.094
# m above the arms' axes. At any two angles of needle and valve 6 pixels of 64x64 show it, fingers at home; at
# the height of the axes only 2 would, as an arm in front hides it.
GUIDE_RISE = 0.012
GUIDE_RADIUS = 0.006  # m; at its distance a pixel of such a picture is 5 mm wide


class WorldConfig(Config):
    """The physics that a rig's identification determines, and how the world looks.

    The defaults are ROBEL's nominal model. Published behaviour on the robot suggests a stiffer servo (5-8)
    and a lighter valve (damping 0.01, friction 0.8-1.2).
    """

    servo_stiffness: PositiveFloat = 2.0  # Nm/rad at the factory's position gain
    valve_stiffness: PositiveFloat = 2.0  # Nm/rad, the valve's servo while its torque is on
    joint_damping: NonNegativeFloat = 0.1  # Nm s/rad, each finger joint
    valve_damping: NonNegativeFloat = 0.1  # Nm s/rad
    friction: NonNegativeFloat = 0.2  # sliding friction of the plastic finger tips and of the valve
    friction_loss: NonNegativeFloat = 0.0  # Nm, dry friction in each finger joint
    valve_friction_loss: NonNegativeFloat = 0.0  # Nm, dry friction in the valve's joint
    geoms: Literal["fast", "meshes"] = "fast"  # collision primitives, or the decimated visual meshes
    mesh_cell: PositiveFloat = 0.002  # m: vertices closer than this are merged in "meshes"
    # Contrast of blotches on the table, as of wood or paper: by a plain table no camera's place can be told.
    floor_texture: float = Field(0.0, ge=0, le=1)
    shadows: bool = False
    msaa: Literal[0, 2, 4, 8] = 0  # samples per pixel


class CameraPose(Config):
    """Where the camera stands: at 240 degrees, between the fingers at 180 and 300 (the third is at 60)."""

    lookat: tuple[float, float, float] = (0.0, 0.0, 0.09)  # m, base frame
    distance: PositiveFloat = 0.42  # m
    azimuth: float = 60.0  # deg
    elevation: float = -35.0  # deg
    fovy: float = Field(45.0, gt=0, lt=180)  # deg, vertical field of view

    def projection(self, width: int, height: int) -> Floats:
        """(3, 4): base-frame metres to homogeneous pixels of a picture; pixel centres are whole numbers."""
        azimuth, elevation = math.radians(self.azimuth), math.radians(self.elevation)
        flat = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
        forward = math.cos(elevation) * flat + np.array([0.0, 0.0, math.sin(elevation)])
        right = np.array([math.sin(azimuth), -math.cos(azimuth), 0.0])
        rotation = np.stack([right, np.cross(forward, right), forward])  # x right, y down, z ahead
        position = np.array(self.lookat) - self.distance * forward
        focal = height / 2 / math.tan(math.radians(self.fovy) / 2)
        lens = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        return np.asarray(lens @ np.column_stack([rotation, -rotation @ position]), dtype=np.float64)


def find_robel() -> Path:
    """The folder of the installed robel distribution. Raises MissingPart with the cure."""
    return folder_of("robel", SCENE, "ROBEL's D'Claw model", "robel==0.1.2")


def folder_of(package: str, part: Path, name: str, requirement: str) -> Path:
    """The folder of an installed distribution, which is not imported, that has `part` in it.

    Raises MissingPart that says how to install it.
    """
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / part).exists():
            return Path(folder)
    raise MissingPart(
        f"{name} ({part}) was not found: the {package} distribution is not installed. "
        f"Run `make setup`, or `uv pip install --no-deps '{requirement}'`."
    )


def addresses(model: mujoco.MjModel, names: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(n,) each: where in `qpos`, and where in `qvel`, hinges and slides of these names are."""
    joints = [model.joint(name).id for name in names]
    return model.jnt_qposadr[joints].astype(np.intp), model.jnt_dofadr[joints].astype(np.intp)


def check_mujoco(version: str = mujoco.__version__) -> None:
    """Warns of a MuJoCo that this program was never tried with: contacts differ from version to version."""
    if not TESTED_MUJOCO[0] <= tuple(int(part) for part in version.split(".")[:2]) < TESTED_MUJOCO[1]:
        low, high = (".".join(map(str, bound)) for bound in TESTED_MUJOCO)
        warnings.warn(
            f"MuJoCo {version} was never tried here, tested are {low} up to {high}: motions and scores may "
            "differ. `make setup` installs a tested one.",
            stacklevel=2,
        )


def original_model() -> mujoco.MjModel:
    """ROBEL's scene as published, only made loadable: the yardstick for dynamics and for rendering cost."""
    path = find_robel() / SCENE
    return _compile(_read(path), path.parent, cell=None)


def dclaw_model(config: WorldConfig, *, floor_texture: bool = False, guide: bool = False) -> mujoco.MjModel:
    """The D'Claw over its valve, ready to simulate and draw; same dynamics as `original_model` by default.

    Nine finger actuators in the order of `JOINTS`, then the valve's servo; position control, unclamped
    (limits belong to the servo's firmware). The valve turns without end. `floor_texture` gives the floor a
    white texture, FLOOR_TEXTURE, to be drawn upon. `guide` adds a needle outside of the valve's arms, which
    touches nothing, and its servo as the last actuator.
    """
    check_mujoco()
    path = find_robel() / SCENE
    tree = _read(path)
    floor_texture = floor_texture or config.floor_texture > 0
    _drop_overlay(tree)
    _drop_unseen(tree, config.geoms)
    _add_valve_servo(tree)
    if guide:
        _add_guide(tree)
    if floor_texture:
        _add_floor_texture(tree)
    model = _compile(tree, path.parent, cell=config.mesh_cell)
    _set_physics(model, config)
    _paint(model, config)
    if floor_texture:
        model.geom_matid[model.geom("floor").id] = model.material(FLOOR_TEXTURE).id
    if config.floor_texture:
        blotch(model, config.floor_texture, np.random.default_rng(PATTERN))
    return model


def blotch(model: mujoco.MjModel, contrast: float, luck: np.random.Generator) -> None:
    """Darkens the floor's texture here and there by up to `contrast`, in blotches of two sizes."""
    texture = model.texture(FLOOR_TEXTURE)
    side = int(texture.width[0])
    coarse, fine = (np.kron(luck.random((n, n)), np.ones((side // n, side // n))) for n in (8, side // 2))
    shade = 255 * (1 - contrast * (coarse + fine) / 2)
    texture.data[...] = np.repeat(shade.ravel(), 3).reshape(texture.data.shape).astype(np.uint8)


def _read(path: Path) -> Element:
    """One XML file without its leading comment, with its includes resolved."""
    root = ElementTree.fromstring(_LEADING_COMMENT.sub("", path.read_text(encoding="utf-8")))
    for parent in list(root.iter()):
        for position, child in reversed(list(enumerate(list(parent)))):
            if child.tag == "include":
                parent.remove(child)
                for part in reversed(list(_read((path.parent / child.get("file", "")).resolve()))):
                    parent.insert(position, part)
    return root


def _drop_overlay(tree: Element) -> None:
    """Removes the second hand that shows desired poses: joints that start with an underscore."""
    for parent in list(tree.iter()):
        for child in list(parent):
            ghost = child.tag == "body" and child.get("childclass") == "overlay"
            if ghost or child.get("name", "").startswith("_"):
                parent.remove(child)


def _drop_unseen(tree: Element, geoms: str) -> None:
    """Removes what weighs nothing and is not drawn: pictures, goal marks and, for "fast", visual meshes."""
    for parent in list(tree.iter()):
        for child in list(parent):
            if child.get("name") in _UNDRAWN or (geoms == "fast" and _is_visual(child)):
                parent.remove(child)
            elif child.get("texture") in _UNDRAWN:
                child.attrib.pop("texture")
    used = {geom.get("mesh") for geom in tree.iter("geom")}
    for assets in tree.iter("asset"):
        for mesh in assets.findall("mesh"):
            if mesh.get("name") not in used:
                assets.remove(mesh)


def _is_visual(node: Element) -> bool:
    """Geoms that are drawn but neither collide nor weigh anything; the motor's hull does both."""
    return node.tag == "geom" and node.get("mesh") not in (None, "motor_hull")


def _add_valve_servo(tree: Element) -> None:
    actuators = ElementTree.SubElement(tree, "actuator")
    ElementTree.SubElement(actuators, "position", name=VALVE_JOINT, joint=VALVE_JOINT, kp="1")


def _add_guide(tree: Element) -> None:
    """A needle that turns about the valve's axis and points at an angle as the valve's pointer does."""
    geometry = ValveGeometry()
    x, y, z = geometry.centre
    place = {"pos": _text((x, y, z + GUIDE_RISE)), "euler": _text((0, 0, geometry.zero_angle))}
    world = ElementTree.SubElement(tree, "worldbody")
    body = ElementTree.SubElement(world, "body", {"name": GUIDE_JOINT, **place})
    # ROBEL's joints have this armature and damping: at a servo's 2 Nm/rad that settles without ringing.
    hinge = {"type": "hinge", "axis": "0 0 1", "damping": "0.1", "armature": "0.001", "limited": "false"}
    ElementTree.SubElement(body, "joint", {"name": GUIDE_JOINT, **hinge})
    ElementTree.SubElement(body, "inertial", pos="0 0 0", mass="0.01", diaginertia="1e-4 1e-4 1e-4")
    ends = _text((GUIDE_SPAN[0], 0, 0, GUIDE_SPAN[1], 0, 0))
    shape = {"type": "capsule", "fromto": ends, "size": str(GUIDE_RADIUS), "rgba": _text(GUIDE_GREEN)}
    touching = {"contype": "0", "conaffinity": "0", "group": "0"}  # group 0 is drawn with any `geoms`
    ElementTree.SubElement(body, "geom", {"name": GUIDE_JOINT, **shape, **touching})
    actuators = ElementTree.SubElement(tree, "actuator")
    ElementTree.SubElement(actuators, "position", name=GUIDE_JOINT, joint=GUIDE_JOINT, kp="1")


def _text(numbers: Iterable[float]) -> str:
    """As XML writes them."""
    return " ".join(map(str, numbers))


def _add_floor_texture(tree: Element) -> None:
    """A white square of 0.5 m that repeats itself: 8 mm per texel, which is what a small picture resolves."""
    assets = ElementTree.SubElement(tree, "asset")
    white = {"type": "2d", "builtin": "flat", "rgb1": "1 1 1", "width": "64", "height": "64"}
    ElementTree.SubElement(assets, "texture", {"name": FLOOR_TEXTURE, **white})
    repeat = {"texture": FLOOR_TEXTURE, "texrepeat": "2 2", "texuniform": "true"}
    ElementTree.SubElement(assets, "material", {"name": FLOOR_TEXTURE, **repeat})


def _compile(tree: Element, folder: Path, cell: float | None) -> mujoco.MjModel:
    """Compiles with all files in memory; visual meshes are decimated to `cell` metres when it is given."""
    for compiler in tree.iter("compiler"):
        compiler.attrib.pop("meshdir", None)
        compiler.attrib.pop("texturedir", None)
    files = folder.parent.parent / "robel-scenes" / "dclaw"  # what ROBEL's meshdir and texturedir mean
    assets: dict[str, bytes] = {}
    for node in (node for node in tree.iter() if node.get("file")):
        path = (files / node.get("file", "")).resolve()
        node.set("file", path.name)
        assets[path.name] = path.read_bytes()
        if cell is not None and path.suffix == ".stl" and "hull" not in path.stem:
            scale = float(node.get("scale", "1").split()[0])  # metres per unit of the file
            assets[path.name] = decimated(assets[path.name], cell / scale)
    return mujoco.MjModel.from_xml_string(ElementTree.tostring(tree, encoding="unicode"), assets)


def decimated(stl: bytes, cell: float) -> bytes:
    """A binary STL with vertices merged on a grid of `cell` file units and collapsed faces dropped."""
    faces = np.frombuffer(stl, _STL_FACE, offset=84)
    grid = np.round(faces["vertices"] / cell).astype(np.int64)  # (F, 3, 3)
    a, b, c = grid[:, 0], grid[:, 1], grid[:, 2]
    solid = (a != b).any(1) & (b != c).any(1) & (c != a).any(1)
    kept = np.unique(grid[solid].reshape(-1, 9), axis=0).reshape(-1, 3, 3)
    out = np.zeros(len(kept), _STL_FACE)
    out["vertices"] = kept * cell
    return bytes(80) + len(kept).to_bytes(4, "little") + out.tobytes()


def _set_physics(model: mujoco.MjModel, config: WorldConfig) -> None:
    """Writes the identified quantities, frees the valve and leaves command limits to the firmware."""
    for name in (*JOINTS, VALVE_JOINT):
        valve = name == VALVE_JOINT
        dof = model.joint(name).dofadr[0]
        model.dof_damping[dof] = config.valve_damping if valve else config.joint_damping
        model.dof_frictionloss[dof] = config.valve_friction_loss if valve else config.friction_loss
    model.jnt_limited[model.joint(VALVE_JOINT).id] = 0
    model.actuator_ctrllimited[:] = 0
    model.geom_friction[_plastic(model), 0] = config.friction


def _plastic(model: mujoco.MjModel) -> NDArray[np.bool_]:
    """Which geoms are finger tips or valve: ROBEL gives them, and only them, sliding friction 0.2."""
    return np.asarray((model.geom_friction[:, 0] == 0.2) & (model.geom_group == COLLISION_GROUP))


def _paint(model: mujoco.MjModel, config: WorldConfig) -> None:
    """Gives every drawn part a plain colour; the pointer arm is red, so that the valve's angle shows."""
    floor, valve = model.geom("floor").id, model.body("valve").id
    model.geom_matid[floor] = -1
    model.geom_rgba[floor] = FLOOR_GREY
    if config.geoms == "fast":
        primitive = model.geom_group == COLLISION_GROUP
        model.geom_matid[primitive] = -1
        model.geom_rgba[primitive] = FINGER_BROWN
        model.geom_rgba[model.geom_bodyid == model.body("valve_base").id] = MOTOR_GREY
        model.geom_rgba[primitive & (model.geom_bodyid == valve)] = ARM_BLUE
        model.geom_rgba[pointer_geom(model)] = POINTER_RED
    else:
        meshes = (model.geom_bodyid == valve) & (model.geom_group != COLLISION_GROUP)
        model.geom_matid[meshes] = -1
        model.geom_rgba[meshes] = ARM_BLUE
    mark = model.site("valve_mark").id
    model.site_rgba[mark] = POINTER_RED
    model.site_size[mark, 0] = 0.006  # m; ROBEL's 3 mm line is lost in a small picture
    model.vis.headlight.ambient[:] = 0.3
    model.vis.quality.offsamples = config.msaa
    model.vis.quality.shadowsize = 2048 if config.shadows else 0


def pointer_geom(model: mujoco.MjModel) -> int:
    """The collision capsule of the valve's pointer arm: the one under `valve_mark`."""
    arms = np.flatnonzero(
        (model.geom_bodyid == model.body("valve").id) & (model.geom_group == COLLISION_GROUP)
    )
    away = np.linalg.norm(model.geom_pos[arms, :2] - model.site("valve_mark").pos[:2], axis=1)
    return int(arms[np.argmin(away)])


class Painter:
    """Draws a model's state into pictures, off screen; all calls must come from one thread (OpenGL's rule).

    Raises MissingPart naming the missing system packages when there is no OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, pose: CameraPose, geoms: str, shadows: bool) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = shadows
        self._option = _visible(geoms)
        self._camera = mujoco.MjvCamera()
        self.aim(pose)
        self._canvases = Canvases(model)

    def aim(self, pose: CameraPose) -> None:
        """Puts the camera somewhere else."""
        self._camera.lookat[:] = pose.lookat
        self._camera.distance, self._camera.azimuth = pose.distance, pose.azimuth
        self._camera.elevation = pose.elevation
        self._model.vis.global_.fovy = pose.fovy

    def look_again(self) -> None:
        """Draws from now on with textures as they are in the model now; all else is always looked at."""
        self._canvases.upload_textures()

    def draw(self, qpos: Floats, width: int, height: int) -> Image:
        """The picture (height, width, 3) uint8 RGB of joint positions (nq,)."""
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        return self._canvases.draw(self._scene, width, height)

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        self._canvases.close()


def _visible(geoms: str) -> mujoco.MjvOption:
    """Geom group 0 (floor, mount) and either the collision primitives (4) or the visual meshes (1, 2)."""
    option = mujoco.MjvOption()
    groups = (0, 1, 2) if geoms == "meshes" else (0, COLLISION_GROUP)
    option.geomgroup[:] = [group in groups for group in range(6)]
    option.sitegroup[:] = [geoms == "meshes" and group == 2 for group in range(6)]  # 2: valve_mark
    return option
