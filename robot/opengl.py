"""Which OpenGL library MuJoCo draws with: asked for before it is loaded, because it is bound for good."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from ctypes.util import find_library
from pathlib import Path
from types import ModuleType

from robot.types import MissingPart

# MUJOCO_GL -> the library that MuJoCo then loads when it is imported, and its Debian packages.
LIBRARIES = {"egl": ("EGL", "libegl1 libopengl0 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}


def require_importable(wanted: str) -> None:
    """Refuses a MUJOCO_GL with which MuJoCo cannot even be imported. Raises MissingPart."""
    if wanted in ("", "glfw", "disable"):
        return
    if wanted not in LIBRARIES:
        raise MissingPart(f"MUJOCO_GL is {wanted!r}, expected egl, osmesa or glfw. Type: unset MUJOCO_GL")
    library, packages = LIBRARIES[wanted]
    if find_library(library) is None:
        way_out = f"Type `unset MUJOCO_GL`, or as root `apt-get install {packages}`"
        raise MissingPart(f"MUJOCO_GL is {wanted}, but there is no lib{library} here. {way_out}")


def unusable(wanted: str, error: Exception) -> MissingPart:
    """What to install where no picture can be drawn."""
    (_, egl), (_, osmesa) = LIBRARIES.values()
    return MissingPart(
        f"No picture can be drawn: OpenGL ({wanted or 'egl or osmesa'}) is not usable ({error}). On Debian "
        f"or Ubuntu type `apt-get install {egl}`, or type `apt-get install {osmesa}` and run with "
        "MUJOCO_GL=osmesa."
    )


def load(wanted: str) -> ModuleType:
    """MuJoCo's module of the library, the best one here for "". Raises RuntimeError, ImportError, OSError."""
    _load_triton()
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
