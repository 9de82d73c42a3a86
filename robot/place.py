"""A camera's projection taken apart: its lens, where it stands, and what its pixels look at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from robot.types import Floats


@dataclass(frozen=True)
class Place:
    """A projection taken apart: the lens's matrix, and where the camera stands and looks."""

    matrix: Floats  # (3, 3): the camera's frame (x right, y down, z ahead) to px
    rotation: Floats  # (3, 3): base frame to the camera's
    translation: Floats  # (3,) m

    @classmethod
    def of(cls, projection: Floats) -> Self:
        """The only such parts of a projection (3, 4) whose focal lengths are positive."""
        # A RQ decomposition: the QR one of the matrix with its rows and columns in reverse order.
        q, r = np.linalg.qr(np.flipud(projection[:, :3]).T)
        matrix, rotation = np.flip(r.T), np.flipud(q.T)
        signs = np.diag(np.sign(np.diag(matrix)))
        matrix, rotation = matrix @ signs, signs @ rotation
        facing = float(np.sign(np.linalg.det(rotation)))  # a projection is as good with the other sign
        translation = facing * np.linalg.solve(matrix, projection[:, 3])
        return cls(matrix / matrix[2, 2], facing * rotation, translation)

    @property
    def projection(self) -> Floats:
        """(3, 4): base frame (m) to homogeneous px."""
        return np.asarray(self.matrix @ np.column_stack([self.rotation, self.translation]))

    @property
    def position(self) -> Floats:
        """(3,) m: where the lens is in the base frame."""
        return np.asarray(-self.rotation.T @ self.translation)

    def pixels(self, points: Floats) -> Floats:
        """(N, 2) px of points (N, 3) m in the camera's frame."""
        seen = points @ self.matrix.T
        return np.asarray(seen[:, :2] / seen[:, 2:])

    def points(self, pixels: Floats, depth: Floats) -> Floats:
        """(N, 3) m in the camera's frame of pixels (N, 2) that show something `depth` (N,) m ahead."""
        rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(self.matrix).T
        return np.asarray(rays * depth[:, None], np.float64)

    def moved(self, step: Floats) -> Self:
        """The place from which everything seen is turned by step[:3] rad, then shifted by step[3:6] m.

        Both in the camera's frame. A seventh number is added to the focal length's logarithm.
        """
        turn, matrix = cv2.Rodrigues(step[:3])[0], self.matrix.copy()
        if len(step) > 6:
            matrix[[0, 1], [0, 1]] *= math.exp(float(step[6]))
        return type(self)(matrix, turn @ self.rotation, turn @ self.translation + step[3:6])

    def slopes(self, points: Floats, count: int) -> Floats:
        """(N, 2, count) px: how pixels of points (N, 3) m in the camera's frame hang on a `moved` step."""
        x, y, z = points.T
        nil, (fx, fy) = np.zeros(len(points)), np.diag(self.matrix)[:2]
        across = np.stack([fx / z, nil, -fx * x / z**2], axis=1)
        down = np.stack([nil, fy / z, -fy * y / z**2], axis=1)
        shift = np.stack([across, down], axis=1)
        turn = np.cross(points[:, None], shift)  # a turn w moves a point by w x point
        zoom = np.stack([fx * x / z, fy * y / z], axis=1)[:, :, None]
        return np.asarray(np.concatenate([turn, shift, zoom], axis=2)[:, :, :count])

    def scaled(self, scale: float) -> Self:
        """The same for a picture `scale` times as large; pixel centres are whole numbers."""
        shift = (scale - 1) / 2  # the picture's edge, which size scales about, lies at -1/2
        resize = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1.0]])
        return type(self)(resize @ self.matrix, self.rotation, self.translation)

    def on_the_table(self, pixels: Floats, farthest: float = 2.0) -> Floats:
        """(N, 3) m in the camera's frame: where the lines of sight of pixels (N, 2) meet the table z = 0.

        Lines that do not meet it within `farthest` m end there.
        """
        rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(self.matrix).T
        falls = -(rays @ self.rotation)[:, 2]  # m down for each m ahead
        ahead = self.position[2] / np.where(falls > 0, falls, np.nan)
        return np.asarray(rays * np.fmin(ahead, farthest)[:, None])
