"""What an emulated camera sends of a drawn scene: a sensor's noise, JPEGs, and what faults make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.random import Generator

from robot.faults import FaultConfig
from robot.mjpeg import FrameFeed, encoded
from robot.types import Image

NOISES = 16  # pictures of noise that take turns; drawing one costs as much as the JPEG
HEADER = 700  # bytes before a JPEG's picture data, at least: what is lost is lost of the picture


class SensorNoise:
    """Noise that makes no two pictures alike, as every real sensor has it."""

    def __init__(self, sigma: float, shape: tuple[int, int, int], luck: Generator) -> None:
        """sigma: of 255; shape: (H, W, 3) of the pictures."""
        self._luck, self._turn = luck, 0
        noises = [np.rint(luck.normal(0, sigma, shape)) for _ in range(NOISES if sigma else 0)]
        self._noises = [[np.clip(sign * n, 0, 255).astype(np.uint8) for sign in (1, -1)] for n in noises]

    def __call__(self, image: Image) -> Image:
        """A picture (H, W, 3) uint8 with the next noise."""
        if not self._noises:
            return image
        self._turn += int(self._luck.integers(1, NOISES))  # never the same one again
        brighter, darker = self._noises[self._turn % NOISES]
        return np.asarray(cv2.subtract(cv2.add(image, brighter), darker), np.uint8)


class CameraSignal:
    """Sends pictures to a feed as its camera would, by the faults that are active at the moment."""

    def __init__(
        self,
        feed: FrameFeed,
        noise: SensorNoise,
        quality: int,
        luck: Generator,
        active: Callable[[], Sequence[FaultConfig]],
    ) -> None:
        self._feed, self._noise, self._quality, self._luck = feed, noise, quality, luck
        self._active = active
        self._last = b""
        self._sent = -math.inf  # s

    def attend(self) -> None:
        """Goes away and comes back as the active faults have it, whether somebody looks or not."""
        self._feed.hide(any(fault.kind == "camera-gone" for fault in self._active()))

    def show(self, time: float, image: Image) -> None:
        """A picture (H, W, 3) uint8 RGB as it is at a time (s)."""
        faults = [fault for fault in self._active() if self._strikes(fault, time)]
        kinds: set[str] = {fault.kind for fault in faults}
        if kinds & {"camera-stall", "camera-drop", "camera-slow"}:
            return
        self._sent = time
        if not ("camera-duplicate" in kinds and self._last):
            self._last = encoded(self._seen(image, kinds), self._quality)
        self._feed.send(self._damaged(self._last, faults))

    def _strikes(self, fault: FaultConfig, time: float) -> bool:
        """Whether an active fault concerns this picture."""
        if fault.kind == "camera-slow":
            return time - self._sent < 1 / fault.amount - 1e-6
        return bool(self._luck.random() < fault.probability)

    def _seen(self, image: Image, kinds: set[str]) -> Image:
        if "camera-black" in kinds:
            image = np.zeros_like(image)
        if "camera-white" in kinds:
            image = np.full_like(image, 255)
        image = self._noise(image)
        return np.ascontiguousarray(image[::2, ::2]) if "camera-size" in kinds else image

    def _damaged(self, jpeg: bytes, faults: Sequence[FaultConfig]) -> bytes:
        for fault in faults:
            if fault.kind == "camera-corrupt":
                header = min(HEADER, len(jpeg) // 2)  # a black picture may be no longer than that
                lost = int(fault.amount * (len(jpeg) - header))
                start = header + int(self._luck.integers(len(jpeg) - header - lost + 1))
                jpeg = jpeg[:start] + jpeg[start + lost :]
        return jpeg
