"""By which program something was made: what every log says, so that its numbers can be made again."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

NUMBERS_DEPEND_ON = (
    *("torch", "mujoco", "numpy", "robel", "dynamixel-sdk"),
    *("opencv-python-headless", "opencv-python"),  # one of the two
)


def provenance(root: Path) -> dict[str, Any]:
    """The commit of the program in `root` and the versions of what numbers depend on."""
    versions = {"python": sys.version.split()[0]}
    for part in NUMBERS_DEPEND_ON:
        try:
            versions[part] = importlib.metadata.version(part)
        except importlib.metadata.PackageNotFoundError:
            continue
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    return {"versions": versions, "commit": commit or "unknown"}
