"""From captured images to what the agent sees: straightened, cropped, resized."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from cv2.typing import MatLike

from robot.camera_settings import CameraConfig, Lens, crop_box
from robot.types import Floats, FrameSize, Image

STRIDE = 2.0  # px of the captured image, at most, between two that a lens is straightened at


class Delivery:
    """Turns captured images into what the agent sees: straightened, cropped, resized."""

    def __init__(self, config: CameraConfig) -> None:
        self.config = config
        self._box = crop_box(config)
        self._maps = _straightening(config.lens, self._box, config.size) if config.lens else None

    def __call__(self, image: MatLike) -> Image:
        """A captured BGR image as the agent sees it: (H, W, 3) uint8 RGB, area-resized.

        Raises FrameSize when the image is not of the configured size: crop and calibration would be wrong.
        """
        config = self.config
        if image.shape != (config.height, config.width, 3):
            raise FrameSize(
                f"delivers {image.shape[1]}x{image.shape[0]} px, expected "
                f"{config.width}x{config.height} (hw.camera.width and .height)"
            )
        small = cv2.resize(self._cut(image), config.size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[:, :, ::-1], dtype=np.uint8)

    def _cut(self, image: MatLike) -> MatLike:
        if self._maps is None:
            x, y, w, h = self._box
            return _halved(image[y : y + h, x : x + w], self.config.size)
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _halved(image: MatLike, size: tuple[int, int]) -> MatLike:
    """Half as wide and high where much more is to go: quick for areas of 2 x 2 px, slow for fractions."""
    height, width = image.shape[:2]
    if width % 2 or height % 2 or width < 4 * size[0] or height < 4 * size[1]:
        return image
    return cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


def _straightening(
    lens: Lens, box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[MatLike, MatLike]:
    """Where in the captured image each pixel of the straightened crop lies, in a multiple of `size`.

    Straightening every captured pixel costs five times as much, and the delivered image differs by less than
    a sensor's noise (`benchmarks/camera.py`): a bilinear look at every second pixel sees both.
    """
    x, y, w, h = box
    width, height = (
        part * max(1, math.ceil(side / part / STRIDE)) for part, side in zip(size, (w, h), strict=True)
    )
    # Pixel centres are whole numbers, so edges, which scaling is about, lie at -1/2.
    sx, sy = width / w, height / h
    scale = np.array([[sx, 0.0, sx / 2 - 0.5 - sx * x], [0.0, sy, sy / 2 - 0.5 - sy * y], [0.0, 0.0, 1.0]])
    # Fixed-point maps: half the time per image of floating-point ones.
    return cv2.initUndistortRectifyMap(
        lens.matrix, np.array(lens.distortion), np.eye(3), scale @ lens.matrix, (width, height), cv2.CV_16SC2
    )


def straightened(image: MatLike, lens: Lens | None) -> Image:
    """A whole captured image (H, W, 3) as a lens without distortion would have made it, of the same size."""
    if lens is None:
        return np.asarray(image, np.uint8)
    return np.asarray(cv2.undistort(image, lens.matrix, np.array(lens.distortion)), np.uint8)


def deliver(image: MatLike, config: CameraConfig) -> Image:
    """One captured BGR image as `Delivery` makes it; with a lens, many cost less there."""
    return Delivery(config)(image)


def delivered_projection(projection: Sequence[Sequence[float]], config: CameraConfig) -> Floats:
    """A projection (3, 4) to px of the captured image, turned into one to px of the delivered image."""
    x, y, w, h = crop_box(config)
    sx, sy = config.size[0] / w, config.size[1] / h
    # Pixel centres are whole numbers: the image's edge, which crop and size scale about, lies at -1/2.
    adapt = np.array([[sx, 0.0, (0.5 - x) * sx - 0.5], [0.0, sy, (0.5 - y) * sy - 0.5], [0.0, 0.0, 1.0]])
    delivered: Floats = adapt @ np.asarray(projection, dtype=np.float64)
    return delivered
