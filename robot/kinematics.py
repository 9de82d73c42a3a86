"""Where the fingers' joints and tips are in space at a pose, by ROBEL's model."""

from __future__ import annotations

import itertools

import mujoco
import numpy as np

from robot.types import Floats
from robot.world import COLLISION_GROUP, JOINTS, VALVE_JOINT, WorldConfig, addresses, dclaw_model

TIPS = ("FFtip", "MFtip", "THtip")  # sites of the model, on the axis of each finger's last segment


class FingerPositions:
    """The distal joint and the tip of each finger at any pose: nothing is simulated.

    The two points of a finger determine its three joint angles.
    """

    def __init__(self) -> None:
        """Raises MissingPart without ROBEL's model files."""
        self._model = dclaw_model(WorldConfig())
        self._data = mujoco.MjData(self._model)
        self._qpos, _ = addresses(self._model, JOINTS)
        self._distal = np.array([self._model.joint(name).id for name in JOINTS[2::3]])
        self._tips = np.array([self._model.site(name).id for name in TIPS])

    def __call__(self, position: Floats) -> Floats:
        """(3, 2, 3) m in the base frame: of each finger distal joint and tip, at joint angles (J,) rad."""
        self._data.qpos[self._qpos] = position
        mujoco.mj_kinematics(self._model, self._data)
        points = (self._data.xanchor[self._distal], self._data.site_xpos[self._tips])
        return np.stack(points, axis=1, dtype=np.float64)


class MovingParts:
    """Where everything that joints and valve move may be in space: the boxes around its parts."""

    def __init__(self) -> None:
        """Raises MissingPart without ROBEL's model files."""
        self._model = dclaw_model(WorldConfig())
        self._data = mujoco.MjData(self._model)
        self._qpos, _ = addresses(self._model, (*JOINTS, VALVE_JOINT))
        moving = self._model.body_weldid[self._model.geom_bodyid] != 0
        self._geoms = np.flatnonzero(moving & (self._model.geom_group == COLLISION_GROUP))
        centre, half = np.split(self._model.geom_aabb[self._geoms], 2, axis=1)
        signs = np.array(list(itertools.product((-1, 1), repeat=3)))
        self._corners = centre[:, None] + half[:, None] * signs  # (G, 8, 3) m, in each part's own frame

    def __call__(self, position: Floats, valve: float) -> Floats:
        """(G, 8, 3) m in the base frame: the corners of each part's box, at joints (J,) and valve rad."""
        self._data.qpos[self._qpos] = [*position, valve]
        mujoco.mj_kinematics(self._model, self._data)
        turns = self._data.geom_xmat[self._geoms].reshape(-1, 3, 3)
        placed = np.einsum("gij,gkj->gki", turns, self._corners)
        return np.asarray(placed + self._data.geom_xpos[self._geoms, None], np.float64)
