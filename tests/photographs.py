"""Photographs of a calibration board, computed exactly: for each pixel the ray that the lens sends there."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from calibration.board import Board, BoardConfig, Sighting
from robot.types import Floats
from robot.world import CameraPose

FINE = 2  # rays along each side of a pixel
TEXTURE = 5000.0  # px per metre of the board, finer than any ray here
MARGIN = 0.015  # m of white paper around the pattern
TABLE = 150  # grey around the paper


@dataclass(frozen=True)
class Camera:
    """A known lens before a known sensor."""

    focal: tuple[float, float] = (612.0, 608.0)
    centre: tuple[float, float] = (327.3, 233.8)
    distortion: tuple[float, float, float, float, float] = (-0.16, 0.07, 0.0008, -0.0006, 0.0)
    resolution: tuple[int, int] = (640, 480)

    @property
    def matrix(self) -> Floats:
        (fx, fy), (cx, cy) = self.focal, self.centre
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])

    @cached_property
    def rays(self) -> Floats:
        """(FINE * H, FINE * W, 3): where each of the pixels' rays goes, undone by fixed-point iteration."""
        width, height = self.resolution
        offset = (FINE - 1) / 2
        u, v = np.meshgrid(
            (np.arange(FINE * width) - offset) / FINE, (np.arange(FINE * height) - offset) / FINE
        )
        x_seen = (u - self.centre[0]) / self.focal[0]
        y_seen = (v - self.centre[1]) / self.focal[1]
        k1, k2, p1, p2, k3 = self.distortion
        x, y = x_seen, y_seen
        for _ in range(12):  # each leaves at most a fifth of the error
            r2 = x * x + y * y
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            dx = 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
            dy = p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
            x, y = (x_seen - dx) / radial, (y_seen - dy) / radial
        return np.stack([x, y, np.ones_like(x)], axis=-1)

    def project(self, points: Floats) -> Floats:
        """(N, 2) px of points (N, 3) in the camera's frame, by the formula of the lens."""
        x, y = (points[:, :2] / points[:, 2:]).T
        k1, k2, p1, p2, k3 = self.distortion
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        bent = np.stack(
            [
                x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
                y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
            ]
        )
        return bent.T * np.array(self.focal) + np.array(self.centre)


@dataclass(frozen=True)
class Paper:
    """A printed board, ready to be photographed."""

    board: Board = field(default_factory=lambda: Board(BoardConfig()))

    @cached_property
    def texture(self) -> NDArray[np.uint8]:
        border = round(MARGIN * TEXTURE)
        return cv2.copyMakeBorder(
            self.board.draw(TEXTURE), *[border] * 4, cv2.BORDER_CONSTANT, value=255
        ).astype(np.uint8)

    def photograph(self, camera: Camera, pose: Floats) -> NDArray[np.uint8]:
        """(H, W) uint8: a board whose frame stands at `pose` (4, 4) in the camera's frame, flawless."""
        border = round(MARGIN * TEXTURE)
        to_texture = np.array([[TEXTURE, 0, border - 0.5], [0, TEXTURE, border - 0.5], [0, 0, 1.0]])
        from_ray = to_texture @ np.linalg.inv(pose[:3, [0, 1, 3]])
        at = camera.rays @ from_ray.T
        behind = at[..., 2:] <= 0
        at = np.where(behind, -1e6, at[..., :2] / np.where(behind, 1.0, at[..., 2:])).astype(np.float32)
        seen = cv2.remap(
            self.texture, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=TABLE
        )
        return cv2.resize(seen, camera.resolution, interpolation=cv2.INTER_AREA).astype(np.uint8)


@dataclass(frozen=True)
class Faults:
    """What a real photograph suffers from."""

    noise: float = 3.0  # of 255, rms
    blur: float = 0.7  # px
    contrast: float = 0.8
    hand: float = 0.0  # chance that a corner of the image is covered


def spoil(image: NDArray[np.uint8], faults: Faults, rng: Generator) -> NDArray[np.uint8]:
    """The photograph with faults."""
    grey = 30.0 + faults.contrast * image.astype(np.float64)
    height, width = image.shape
    if rng.random() < faults.hand:
        x, y = rng.choice([0, round(0.65 * width)]), rng.choice([0, round(0.6 * height)])
        grey[y : y + round(0.4 * height), x : x + round(0.35 * width)] = 110.0
    if faults.blur:
        grey = cv2.GaussianBlur(grey, (0, 0), faults.blur)
    return np.clip(np.round(grey + rng.normal(0, faults.noise, grey.shape)), 0, 255).astype(np.uint8)


def facing(
    board: Board, tilt: tuple[float, float], roll: float, centre: tuple[float, float, float]
) -> Floats:
    """(4, 4): board to camera; tilt (about x, about y) and roll in rad, the board's middle at `centre` m."""
    (cx, sx), (cy, sy), (cz, sz) = [(np.cos(a), np.sin(a)) for a in (*tilt, roll)]
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = about_x @ about_y @ about_z
    pose[:3, 3] = np.array(centre) - pose[:3, :3] @ (np.array([*board.config.size, 0.0]) / 2)
    return pose


def around(board: Board, count: int, rng: Generator) -> list[Floats]:
    """Poses (4, 4) as a person shows them who covers the whole image and tilts the board to all sides."""
    tilts = [
        (0.0, 0.0),
        (0.5, 0.0),
        (-0.5, 0.0),
        (0.0, 0.5),
        (0.0, -0.5),
        (0.4, 0.4),
        (-0.4, 0.4),
        (0.4, -0.4),
    ]
    tilts.append((-0.4, -0.4))
    poses = []
    for number in range(count):
        x, y = (-0.3, 0.0, 0.3)[number % 3], (-0.23, 0.0, 0.23)[number // 3 % 3]
        away = rng.uniform(0.28, 0.45)
        tilt = tilts[number % len(tilts)]
        jitter = rng.normal(0, 0.05, 2)
        leaning = (tilt[0] + float(jitter[0]), tilt[1] + float(jitter[1]))
        poses.append(facing(board, leaning, rng.uniform(-0.3, 0.3), (x * away, y * away, away)))
    return poses


def nominal_place() -> Floats:
    """(4, 4): base frame to a camera mounted as configs/hw/dclaw.yaml says."""
    pose = CameraPose()
    lens = np.linalg.inv(
        np.array([[1, 0, 319.5], [0, 1, 239.5], [0, 0, 1]]) @ np.diag([*[240 / np.tan(np.pi / 8)] * 2, 1])
    )
    return np.vstack([lens @ pose.projection(640, 480), [0.0, 0.0, 0.0, 1.0]])


def sighted(camera: Camera, board: Board, pose: Floats, rng: Generator, noise: float = 0.08) -> Sighting:
    """The corners that a photograph would show, without taking one; noise in px, rms."""
    pixels = camera.project(board.corners @ pose[:3, :3].T + pose[:3, 3])
    inside = ((pixels > 3) & (pixels < np.array(camera.resolution) - 4)).all(axis=1)
    seen = pixels[inside] + rng.normal(0, noise, (int(inside.sum()), 2))
    return Sighting(np.flatnonzero(inside), seen, camera.resolution)
