"""What an identification found, for a person and for the next program: table, pictures, settings."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from calibration.identify import UNITS, Comparison, Finding, Identification
from calibration.recording import Part, write_whole
from calibration.rollout import Rollouts
from robot.registers import FINGER_SEGMENTS
from robot.sim import SimConfig
from robot.types import Floats

WHAT = ("fingers", "valve")
LINES = (("nominal", "#999999", "--"), ("identified", "#c0392b", "-"))


def publish(found: Identification, recording: Path, plant: Path, when: str, console: Console) -> None:
    """Writes settings and picture, prints what was found and what to type next.

    recording: the file that it was found from; plant: the settings' path; when: date and time.
    Raises OSError.
    """
    text, picture = settings(found, when, str(recording)), plant.with_suffix(".png")
    draw(found, picture)
    write_whole(plant, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    show(found, console)
    for what, path in (("recording", recording), ("picture", picture), ("plant", plant)):
        console.print(f"{what:<10} {path}", highlight=False, soft_wrap=True)
    command = f"run_robot.py --task valve_random --hw sim --config {plant}"
    console.print(f"To learn on this plant: {command}", highlight=False, soft_wrap=True)


def require_writable(path: Path) -> None:
    """Raises OSError, before the robot has moved, where a file could not be written afterwards."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def show(found: Identification, console: Console) -> None:
    """Prints the parameters, and how far the simulated plant is from the measured one."""
    console.print(_parameters(found))
    console.print(_errors(found))
    for finding in found.findings:
        if not finding.determined:
            console.print(f"{finding.name}: {left_open(finding)}", highlight=False, soft_wrap=True)


def _parameters(found: Identification) -> Table:
    table = Table("hw.sim", "nominal", "identified", "standard error", "")
    for finding in found.findings:
        value, error = finding.estimate.value, finding.estimate.error
        known = (f"{value:.4g}", f"{error:.1g}") if finding.determined else ("open", "")
        table.add_row(finding.name, f"{finding.nominal:g}", *known, finding.unit)
    return table


def _errors(found: Identification) -> Table:
    table = Table("simulated against measured, rad rms", "nominal", "identified", "ratio")
    for what in WHAT:
        for part in get_args(Part):
            if error := found.errors(what, part):
                ratio = error.identified / error.nominal
                numbers = (f"{error.nominal:.5f}", f"{error.identified:.5f}", f"{ratio:.3f}")
                table.add_row(f"{what}, {'fitted' if part == 'fit' else 'held out'}", *numbers)
    return table


def left_open(finding: Finding) -> str:
    """Why a parameter keeps its nominal value, in one sentence."""
    stays = f"it stays at {finding.nominal:g} {finding.unit}"
    if np.isfinite(finding.upper):
        return f"not told from {finding.nominal:g}, at most {finding.upper:.2g} {finding.unit}; {stays}"
    return f"the recording does not determine it; {stays}"


def settings(found: Identification, when: str, source: str) -> str:
    """A file for --config: what was identified, and in comments how, and what stayed open.

    when: date and time; source: the recording's file.
    """
    rig, name = found.recording.rig, found.recording.name
    known = {finding.name: finding for finding in found.findings if finding.determined}
    lines = [
        f"# The plant of --hw {name} ({rig.kind}, {rig.name}), identified on {when}.",
        f"# Recording: {source}. The same fit again: run_robot.py identify --from {source}",
        "# Standard errors are behind the values; what the recording left open is not set here.",
        "# hw.sim.randomise would draw such quantities anew: set to null there what is to stay.",
        *(f"# {line}" for line in _error_lines(found)),
        *(f"# {item.name}: {left_open(item)}" for item in found.findings if not item.determined),
        "hw:",
        "  sim:" if known else "  sim: {}",
    ]
    for key, item in known.items():
        value = item.estimate.value
        lines.append(f"    {key}: {value:.5g}  # {UNITS[key]}, +- {item.estimate.error:.1g}")
    return "\n".join(lines) + "\n"


def _error_lines(found: Identification) -> list[str]:
    lines = []
    for what in WHAT:
        error: Comparison | None = found.errors(what, "held-out")
        if error:
            pair = f"{error.nominal:.5f} rad rms with the nominal model, {error.identified:.5f} with this one"
            lines.append(f"Held-out error of the {what}: {pair}.")
    return lines


def draw(found: Identification, path: Path) -> None:
    """Measured and simulated motions, fitted ones on the left, held-out ones on the right, as a PNG.

    Raises OSError.
    """
    from matplotlib.figure import Figure

    valve = 1 if found.recording.valve else 0
    figure = Figure(figsize=(13, 2.6 * (len(FINGER_SEGMENTS) + valve)), dpi=110, layout="constrained")
    grid = figure.subplots(len(FINGER_SEGMENTS) + valve, 2, squeeze=False)
    for column, part in enumerate(get_args(Part)):
        _draw_finger(found, part, [grid[row, column] for row in range(len(FINGER_SEGMENTS))])
        if valve:
            _draw_valve(found, part, grid[-1, column])
        grid[-1, column].set_xlabel("s")
    grid[0, 0].legend(loc="upper right", fontsize=8)
    figure.suptitle(f"Plant of {found.recording.name}: measured and simulated", fontweight="bold")
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def _plants(found: Identification) -> list[SimConfig]:
    return [found.nominal, found.plant]


def _draw_finger(found: Identification, part: Part, axes: Sequence[Any]) -> None:
    """The first finger's three joints, one below the other."""
    motions, rollouts = found.fingers(part), Rollouts(found.recording.rig)
    for joint, (segment, axis) in enumerate(zip(FINGER_SEGMENTS, axes, strict=True)):
        motion = max(motions, key=lambda one: np.ptp(one.targets[:, one.joints][:, joint]))
        times, measured = motion.times - motion.times[0], motion.position[:, motion.joints][:, joint]
        paths = [rollouts.fingers(plant, [motion])[0][:, joint] for plant in _plants(found)]
        _draw_lines(axis, times, measured, paths)
        title = "fitted" if part == "fit" else "held out"
        axis.set_title(f"finger {motion.finger + 1}, {segment}: {title}, rad", fontsize=9, loc="left")


def _draw_valve(found: Identification, part: Part, axis: Any) -> None:
    """All turns of the valve, one after the other, each from 0."""
    turns, offset, gap = found.turns(part), 0.0, 0.2
    series = zip(*(found.deviations(plant, "valve", part) for plant in _plants(found)), strict=True)
    for turn, deviations in zip(turns, series, strict=True):
        times, measured = turn.times - turn.times[0] + offset, turn.position - turn.position[0]
        _draw_lines(axis, times, measured, [measured + deviation for deviation in deviations])
        offset = float(times[-1]) + gap
    axis.set_title(f"valve: {'fitted' if part == 'fit' else 'held out'}, rad", fontsize=9, loc="left")


def _draw_lines(axis: Any, times: Floats, measured: Floats, paths: Sequence[Floats]) -> None:
    axis.plot(times, measured, ".", markersize=2.5, color="black", label="measured")
    for (label, colour, style), path in zip(LINES, paths, strict=True):
        axis.plot(times, path, style, color=colour, linewidth=1, label=label)
    axis.grid(alpha=0.3)
