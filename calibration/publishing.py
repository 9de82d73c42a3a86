"""How every calibration ends: its settings in a file, and what to type to use them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from calibration.progress import say
from calibration.recording import write_whole


def publish_settings(
    text: str, name: str, path: Path, console: Console, beside: Mapping[str, Path] | None = None
) -> None:
    """Writes a file for --config, whole or not at all, and says where it is and what to type next.

    name: of --hw; beside: what else was written, and where. Raises OSError.
    """
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for what, written in {**(beside or {}), "settings": path}.items():
        say(console, f"{what:<11} {written}")
    command = f"run_robot.py check --hw {shlex.quote(name)} --config {shlex.quote(str(path))}"
    say(console, f"To use it: {command}")
