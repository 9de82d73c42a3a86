"""The picture by which every later start sees whether the camera was moved: taken, judged, written down."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.console import Console

from calibration.board import CalibrationError
from calibration.moving import OUT_OF_THE_WAY, out_of_the_way
from calibration.publishing import publish_settings
from calibration.recording import quoted, write_picture
from robot.camera import SceneRecord
from robot.rig import Rig, camera_name
from robot.scene import ENOUGH, SceneEye, View


def take(rig: Rig) -> View:
    """A reference by an engaged robot, its fingers out of the way. Raises CalibrationError, Fault."""
    out_of_the_way(rig)
    view = rig.view()
    patches = len(SceneEye(rig.config.camera).patches(view))
    if patches < ENOUGH:
        raise CalibrationError(
            f"{patches} places of the picture stand still and can be told from what is around them, expected "
            f"at least {ENOUGH}: by so few nobody can tell whether the camera was moved. Put something with "
            "a pattern onto the table in view, where no finger reaches, and fix it: a newspaper, the printed "
            "board, strips of tape"
        )
    return view


def record(rig: Rig, view: View, path: Path, when: str) -> SceneRecord:
    """Writes the picture, whole or not at all; what settings say of it. Raises OSError."""
    write_picture(path, view.image)
    return SceneRecord(
        path=str(path.absolute()),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        date=when,
        camera=camera_name(rig.config),
        resolution=(view.image.shape[1], view.image.shape[0]),
        joints=tuple(round(float(angle), 4) for angle in view.joints),
        valve=round(view.valve, 4),
    )


def settings(name: str, about: SceneRecord) -> str:
    """A file for --config."""
    home = ", ".join(f"{angle:.2f}" for angle in OUT_OF_THE_WAY)
    lines = [
        f"# The scene of --hw {name} on {about.date}, each finger at ({home}) rad: at each start the camera",
        "# is held against it (hw.scene_check). Take it anew: run_robot.py calibrate scene.",
        "hw:",
        "  camera:",
        "    scene:",
        f"      path: {quoted(about.path)}",
        f"      sha256: {quoted(about.sha256)}",
        f"      date: {quoted(about.date)}",
        f"      camera: {quoted(about.camera)}",
        f"      resolution: {list(about.resolution)}  # px",
        f"      joints: {list(about.joints)}  # rad",
        f"      valve: {about.valve}  # rad",
    ]
    return "\n".join(lines) + "\n"


def calibrate_scene(rig: Rig, name: str, path: Path, when: str, console: Console) -> None:
    """Takes the reference of an engaged rig, writes it and its settings, says what to type next.

    path: of the settings, .yaml; the picture lies beside. Raises CalibrationError, Fault, OSError.
    """
    about = record(rig, take(rig), path.with_suffix(".png"), when)
    publish_settings(settings(name, about), name, path, console, {"picture": Path(about.path)})
