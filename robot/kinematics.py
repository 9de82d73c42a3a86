"""Where the fingers' joints and tips are in space at a pose, by ROBEL's model."""

from __future__ import annotations

import mujoco
import numpy as np

from robot.types import Floats
from robot.world import JOINTS, WorldConfig, dclaw_model

TIPS = ("FFtip", "MFtip", "THtip")  # sites of the model, on the axis of each finger's last segment


class FingerPositions:
    """The distal joint and the tip of each finger at any pose: nothing is simulated.

    The two points of a finger determine its three joint angles.
    """

    def __init__(self) -> None:
        """Raises FileNotFoundError without ROBEL's model files."""
        self._model = dclaw_model(WorldConfig())
        self._data = mujoco.MjData(self._model)
        self._qpos = np.array([self._model.joint(name).qposadr[0] for name in JOINTS])
        self._distal = np.array([self._model.joint(name).id for name in JOINTS[2::3]])
        self._tips = np.array([self._model.site(name).id for name in TIPS])

    def __call__(self, position: Floats) -> Floats:
        """(3, 2, 3) m in the base frame: of each finger distal joint and tip, at joint angles (J,) rad."""
        self._data.qpos[self._qpos] = position
        mujoco.mj_kinematics(self._model, self._data)
        points = (self._data.xanchor[self._distal], self._data.site_xpos[self._tips])
        return np.stack(points, axis=1, dtype=np.float64)
