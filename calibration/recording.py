"""What an identification measured, kept as it was: a fit can be repeated without the robot."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal, Self, get_args
from zipfile import BadZipFile

import numpy as np
from PIL import Image as Pictures
from pydantic import ValidationError

from robot.registers import FINGER_SEGMENTS
from robot.rig import RigConfig
from robot.types import Floats, Image

FORMAT = "dclaw-plant-1"
SHORTEST = 2.0  # s of a finger's motion; less holds no slow ramp and says nothing of friction
FEWEST = 3  # readings of a valve's turn, from which a speed can be told

# What NumPy and zipfile raise for a damaged file, each seen in files with wrong bytes.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError),
    *(BadZipFile, zlib.error, TokenError, ValidationError),
)

Part = Literal["fit", "held-out"]


class RecordingError(Exception):
    """A recording that no plant can be fitted to. Says what was found and what was expected."""


@dataclass(frozen=True)
class FingerMotion:
    """One finger moved while the others stood: what was sent, what was measured. J = 9 joints."""

    part: Part
    finger: int  # from 0
    start: Floats  # (J,) rad, the set points at the first reading
    command_times: Floats  # (K,) s
    targets: Floats  # (K, J) rad, as the servos got them: after the safety filter, on the grid of their ticks
    times: Floats  # (N,) s
    position: Floats  # (N, J) rad
    velocity: Floats  # (N, J) rad/s
    current: Floats  # (N, J) A

    @property
    def joints(self) -> slice:
        """Which joints moved."""
        count = len(FINGER_SEGMENTS)
        return slice(count * self.finger, count * (self.finger + 1))

    def problems(self) -> Iterator[str]:
        """What makes it useless."""
        joints, readings, commands = len(self.start), len(self.times), len(self.command_times)
        shapes = {(readings, joints)} ^ {self.position.shape, self.velocity.shape, self.current.shape}
        if shapes or self.targets.shape != (commands, joints) or not 0 <= self.finger < joints // 3:
            yield f"its arrays do not fit together: {readings} readings of {joints} joints expected"
        elif readings < FEWEST or np.ptp(self.times) < SHORTEST:
            yield f"it is too short: {readings} readings, at least {SHORTEST:g} s expected"


@dataclass(frozen=True)
class ValveTurn:
    """One turn of the valve by its own servo, perhaps let go on the way."""

    part: Part
    goal: float  # rad, on the grid of the servo's ticks
    speed: float  # rad/s at which the set point ran there
    released: float  # s, the last reading under torque; the servo was limp after it
    times: Floats  # (N,) s, the first as the valve set out
    position: Floats  # (N,) rad, turns counted
    velocity: Floats  # (N,) rad/s
    current: Floats  # (N,) A

    def problems(self) -> Iterator[str]:
        """What makes it useless."""
        readings = len(self.times)
        if {(readings,)} != {self.position.shape, self.velocity.shape, self.current.shape}:
            yield f"its arrays do not fit together: {readings} readings expected"
        elif readings < FEWEST:
            yield f"it is too short: {readings} readings, at least {FEWEST} expected"


Motion = FingerMotion | ValveTurn


@dataclass(frozen=True)
class Recording:
    """All motions of one identification, and the rig that they were made on."""

    name: str  # of the rig, as on the command line
    rig: RigConfig
    fingers: tuple[FingerMotion, ...]
    valve: tuple[ValveTurn, ...] = ()

    def require_usable(self) -> Self:
        """Itself. Raises RecordingError for what is incomplete, not finite, or of another robot."""
        joints = len(self.rig.dclaw.joint_ids)
        motions: list[Motion] = [*self.fingers, *self.valve]
        for number, motion in enumerate(motions, 1):
            for problem in (*_not_numbers(motion), *motion.problems()):
                raise RecordingError(f"motion {number} of the recording cannot be used: {problem}")
        if any(len(motion.start) != joints for motion in self.fingers):
            raise RecordingError(f"the recording is not of this robot, which has {joints} joints")
        for part in get_args(Part):
            if not any(motion.part == part for motion in self.fingers):
                raise RecordingError(f"the recording has no {part} motion of a finger; was it cut?")
        return self

    def save(self, path: Path) -> None:
        """Writes one file, whole or not at all. Raises OSError."""
        about = {"format": FORMAT, "name": self.name, "rig": self.rig.model_dump(mode="json")}
        arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
        for kind, motions in (("finger", self.fingers), ("valve", self.valve)):
            for number, motion in enumerate(motions):
                arrays |= {f"{kind}/{number}/{key}": value for key, value in vars(motion).items()}
        write_whole(path, lambda temporary: _write_arrays(temporary, arrays))

    @staticmethod
    def load(path: Path) -> Recording:
        """A saved recording that a plant can be fitted to. Raises RecordingError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return _unpacked(dict(file)).require_usable()
        except FileNotFoundError:
            raise RecordingError(f"{path} does not exist; `ls plants` shows what there is") from None
        except RecordingError as error:
            raise RecordingError(f"{path}: {error}") from None
        except DAMAGE:
            way_out = "expected the .npz file that `run_robot.py identify --hw H` wrote"
            raise RecordingError(f"{path} is no recording of an identification; {way_out}") from None


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _unpacked(arrays: Mapping[str, Any]) -> Recording:
    about = json.loads(str(arrays["about"]))
    if about["format"] != FORMAT:
        raise RecordingError(f"its format is {about['format']!r}, this program reads {FORMAT!r}")
    motions: dict[str, list[Any]] = {"finger": [], "valve": []}
    for kind, cls in (("finger", FingerMotion), ("valve", ValveTurn)):
        while f"{kind}/{len(motions[kind])}/times" in arrays:
            motions[kind].append(_motion(arrays, f"{kind}/{len(motions[kind])}/", cls))
    rig = RigConfig.model_validate_json(json.dumps(about["rig"]))
    return Recording(about["name"], rig, tuple(motions["finger"]), tuple(motions["valve"]))


def _motion(arrays: Mapping[str, Any], prefix: str, cls: type[Motion]) -> Motion:
    values = {field.name: arrays[prefix + field.name] for field in fields(cls)}
    return cls(**{key: value if value.ndim else value.item() for key, value in values.items()})


def _not_numbers(motion: Motion) -> Iterator[str]:
    for key, value in vars(motion).items():
        if key != "part" and not np.isfinite(value).all():
            yield f"its {key.replace('_', ' ')} holds something that is no number"
    for key in ("times", "command_times"):
        if (np.diff(getattr(motion, key, ())) < 0).any():
            yield f"its {key.replace('_', ' ')} run backwards"


def quoted(text: str) -> str:
    """Text in YAML that nothing in it can end."""
    return "'" + text.replace("'", "''") + "'"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file that then gets its name: nobody ever sees half of it.

    It would survive a power cut: what a person has worked for must not be an empty file the next morning.
    Raises OSError that names the file wanted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_picture(path: Path, image: Image) -> None:
    """A picture (H, W, 3) uint8 RGB as a PNG, whole or not at all. Raises OSError."""
    picture = Pictures.fromarray(image)
    write_whole(path, lambda temporary: picture.save(temporary, "PNG"))


def _sync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
