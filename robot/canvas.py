"""Off-screen pictures of a MuJoCo scene, by whichever OpenGL library the machine has."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.types import Image


class Canvas:
    """An off-screen buffer of one size with its OpenGL context; all calls must come from one thread.

    Raises RuntimeError naming the missing system packages when there is no OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        _load_triton()
        wanted = os.environ.get("MUJOCO_GL", "").lower()  # MuJoCo's own switch between libraries
        try:
            self._gl = _gl_library(wanted).GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except (ImportError, AttributeError, OSError, RuntimeError, mujoco.FatalError) as error:
            raise RuntimeError(_no_graphics(wanted, error)) from error
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
        """The picture (height, width, 3) uint8 RGB of a scene. Raises RuntimeError as Canvas does."""
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


def _no_graphics(wanted: str, error: Exception) -> str:
    return (
        f"No picture can be drawn: OpenGL ({wanted or 'egl or osmesa'}) is not usable ({error}). On Debian "
        "or Ubuntu type `apt-get install libegl1 libopengl0 libgl1-mesa-dri`, or type "
        "`apt-get install libosmesa6` and run with MUJOCO_GL=osmesa."
    )


def _gl_library(wanted: str) -> ModuleType:
    """Asks the system what can be loaded before PyOpenGL binds itself to one library for good."""
    if not wanted:
        wanted = "egl" if _loads("libEGL.so.1") and _loads("libOpenGL.so.0") else "osmesa"
    if wanted not in ("egl", "osmesa", "glfw"):
        raise RuntimeError(f"MUJOCO_GL is {wanted!r}, expected egl, osmesa or glfw")
    return importlib.import_module(f"mujoco.{wanted}")


@functools.cache
def _load_triton() -> None:
    """Loads the library of triton, which comes with builds of PyTorch for GPUs, before Mesa's.

    Both bring an LLVM of their own. When Mesa's is there first, the process dies of a segmentation fault at
    the first optimiser, for which PyTorch imports triton; the other way round they get along.
    """
    found = importlib.util.find_spec("triton")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for library in Path(folder).glob("_C/libtriton*.so"):
            _loads(str(library))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
