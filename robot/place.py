"""A camera's projection taken apart: its lens, where it stands, and what its pixels look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

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

    def on_the_table(self, pixels: Floats, farthest: float = 2.0) -> Floats:
        """(N, 3) m in the camera's frame: where the lines of sight of pixels (N, 2) meet the table z = 0.

        Lines that do not meet it within `farthest` m end there.
        """
        rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(self.matrix).T
        falls = -(rays @ self.rotation)[:, 2]  # m down for each m ahead
        ahead = self.position[2] / np.where(falls > 0, falls, np.nan)
        return np.asarray(rays * np.fmin(ahead, farthest)[:, None])
