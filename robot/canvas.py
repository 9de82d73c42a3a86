"""Off-screen pictures of a MuJoCo scene, by whichever OpenGL library the machine has."""

from __future__ import annotations

import os

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot import opengl
from robot.types import Image


class Canvas:
    """An off-screen buffer of one size with its OpenGL context; all calls must come from one thread.

    Raises MissingPart naming the missing system packages when there is no OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        wanted = os.environ.get("MUJOCO_GL", "").lower()  # MuJoCo's own switch between libraries
        try:
            self._gl = opengl.load(wanted).GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except (ImportError, AttributeError, OSError, RuntimeError, mujoco.FatalError) as error:
            raise opengl.unusable(wanted, error) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)

    def draw(self, scene: mujoco.MjvScene) -> Image:
        """The picture (H, W, 3) uint8 RGB of a scene."""
        self._gl.make_current()
        mujoco.mjr_render(self._rectangle, scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return np.ascontiguousarray(self._pixels[::-1])  # OpenGL counts rows from the bottom

    def draw_depth(self, scene: mujoco.MjvScene) -> tuple[Image, NDArray[np.float32]]:
        """The picture of a scene, and the depth (H, W) of each pixel as OpenGL has it: 0 near, 1 far."""
        image, depth = self.draw(scene), np.empty(self._pixels.shape[:2], np.float32)
        mujoco.mjr_readPixels(None, depth, self._rectangle, self._context)
        return image, np.ascontiguousarray(depth[::-1])

    def upload_textures(self, model: mujoco.MjModel) -> None:
        """Takes over the model's textures, which otherwise stay those of when this was made."""
        self._gl.make_current()
        for texture in range(model.ntex):
            mujoco.mjr_uploadTexture(model, self._context, texture)

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


class Canvases:
    """Canvases of a model, one for each size that is asked for."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._canvases: dict[tuple[int, int], Canvas] = {}

    def draw(self, scene: mujoco.MjvScene, width: int, height: int) -> Image:
        """The picture (height, width, 3) uint8 RGB of a scene. Raises MissingPart as Canvas does."""
        if (width, height) not in self._canvases:
            self._canvases[width, height] = Canvas(self._model, width, height)
        return self._canvases[width, height].draw(scene)

    def upload_textures(self) -> None:
        """Takes over the model's textures as they are now."""
        for canvas in self._canvases.values():
            canvas.upload_textures(self._model)

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        for canvas in self._canvases.values():
            canvas.close()
        self._canvases.clear()
