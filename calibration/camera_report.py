"""What a calibration of the camera found, for a person and for the next program: table, picture, settings."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from calibration.camera import CameraCalibration
from calibration.capture import Photographs, Progress, Told
from calibration.coverage import Cell, Coverage
from calibration.progress import say
from calibration.publishing import publish_settings
from calibration.recording import quoted, write_whole
from robot.camera import CalibrationRecord, Lens

ENLARGED = 40.0  # times, so that residuals of a tenth of a pixel can be seen in the picture
LAY = (
    "Lay the board on the base, in its place, the printed side up; see board.place. Let go of it, then press "
    "Enter."
)
HOLD = (
    "Now show it to the camera, which must stay where it is: everywhere in the image, near and far, tilted "
    "to all sides. Each photograph is taken when you hold the board still. Enter ends it with what there is."
)


@contextmanager
def watched(console: Console) -> Iterator[Told]:
    """Shows the person who holds the board what is seen and what is missing; in a log, what was taken."""
    if not console.is_terminal:
        yield _Teller(console).told
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda progress: live.update(_shown(progress), refresh=True)


class _Teller:
    """A line whenever something has changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage, self._news = "", ""

    def told(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            say(self._console, LAY if progress.stage == "base" else HOLD)
        if progress.news != self._news and progress.news.startswith(("taken", "no board")):
            self._news = progress.news
            say(self._console, f"{progress.news}; {100 * progress.coverage.share:.0f} % covered")


def _shown(progress: Progress) -> Group:
    """The state of things on a terminal: what to do, where corners were, what is missing, what is seen."""
    if progress.stage == "base":
        return Group(Text(LAY, "bold"), Text(progress.news))
    missing = progress.coverage.missing()
    leans = [str(target) for target in missing if not isinstance(target, Cell)]
    return Group(
        Text(HOLD, "bold"),
        _map(progress.coverage),
        Text(f"tilts missing: {', '.join(leans)}" if leans else "tilts: all seen"),
        Text(f"{progress.taken} photographs, {100 * progress.coverage.share:.0f} % covered"),
        Text(progress.news, "green" if progress.news.startswith("taken") else ""),
    )


def _map(coverage: Coverage) -> Text:
    """The image as the camera sees it: where corners of the board have been, and where not yet."""
    text = Text()
    for row in coverage.counts():
        for count in row:
            text.append("[####]" if count else "[    ]", "green" if count else "red")
        text.append("\n")
    return text


def publish(
    found: CameraCalibration, photographs: Photographs, path: Path, when: str, console: Console
) -> None:
    """Writes settings and picture, prints what was found and what to type next.

    path: the settings', .yaml; when: date and time. Raises OSError.
    """
    picture, text = path.with_suffix(".png"), settings(found, photographs, when)
    draw(found, picture)
    show(found, photographs, console)
    beside = {"photographs": photographs.folder, "picture": picture}
    publish_settings(text, photographs.setup.name, path, console, beside)


def show(found: CameraCalibration, photographs: Photographs, console: Console) -> None:
    """Prints lens and place with their errors, and which photographs were not used and why."""
    table = Table("camera", "found", "", title=Text(photographs.setup.identity), title_justify="left")
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)
    for name, why in _left_out(found, photographs):
        say(console, f"{name} was left out: {why}")


def _rows(found: CameraCalibration) -> Iterator[tuple[str, str, str]]:
    inner = found.intrinsics
    for axis, focal, error in zip(("x", "y"), inner.lens.focal, inner.focal_error, strict=True):
        yield f"focal length {axis}", f"{focal:.1f} +- {error:.1f}", "px"
    yield "centre", "{:.1f}, {:.1f}".format(*inner.lens.centre), "px"
    yield "distortion", ", ".join(f"{term:.4f}" for term in inner.lens.distortion), "k1 k2 p1 p2 k3"
    yield f"error of {len(inner.fits)} views", f"{inner.error:.3f}", "px rms"
    yield "error of the board on the base", f"{found.base.error:.3f}", "px rms"
    yield "lens at", ", ".join(f"{length:.4f}" for length in found.position), "m, base frame"
    yield "looking down", f"{_elevation(found):.1f}", "deg"


def _elevation(found: CameraCalibration) -> float:
    """deg below the horizon."""
    return math.degrees(math.asin(float(np.clip(-found.base_to_camera[2, 2], -1, 1))))


def _left_out(found: CameraCalibration, photographs: Photographs) -> Iterator[tuple[str, str]]:
    yield from photographs.unusable
    for fit in found.intrinsics.rejected:
        yield fit.view.name, f"it misses the other views' lens by {fit.error:.1f} px rms"


def record(found: CameraCalibration, photographs: Photographs, when: str) -> CalibrationRecord:
    """What episodes will tell of this calibration."""
    return CalibrationRecord(
        date=when,
        camera=photographs.setup.identity,
        views=len(found.intrinsics.fits),
        error=round(found.intrinsics.error, 4),
        sha256=found.sha256,
    )


def settings(found: CameraCalibration, photographs: Photographs, when: str) -> str:
    """A file for --config: lens and projection, and in comments how they were found."""
    about = record(found, photographs, when)
    rows = [f"      - [{', '.join(f'{number:.7g}' for number in row)}]" for row in found.projection]
    lines = [
        *(f"# {' '.join(line.split())}" for line in _how(found, photographs, when)),
        "hw:",
        "  camera:",
        *lens_lines(found.intrinsics.lens),
        "    # Base frame (m) to px of the captured image, once it is straightened by this lens.",
        "    projection:",
        *rows,
        "    calibration:",
        f"      date: {quoted(about.date)}",
        f"      camera: {quoted(about.camera)}",
        f"      views: {about.views}",
        f"      error: {about.error:g}  # px rms",
        f"      sha256: {quoted(about.sha256)}",
    ]
    return "\n".join(lines) + "\n"


def _how(found: CameraCalibration, photographs: Photographs, when: str) -> Iterator[str]:
    """For comments, how it was found and how well."""
    setup, again = photographs.setup, f"--from {shlex.quote(str(photographs.folder))}"
    place = ", ".join(f"{length:.4f}" for length in found.position)
    yield f"The camera of --hw {setup.name}, calibrated on {when}."
    yield f"Photographs: {photographs.folder}. The same again: run_robot.py calibrate camera {again}"
    yield f"The lens is at ({place}) m in the base frame and looks {_elevation(found):.1f} degrees down."
    yield f"Focal lengths are known to {max(found.intrinsics.focal_error):.2f} px."
    yield f"The board on the base fits to {found.base.error:.3f} px rms."
    for name, why in _left_out(found, photographs):
        yield f"Left out: {name}: {why}."


def lens_lines(lens: Lens) -> Iterator[str]:
    """A lens as settings have it, below `hw.camera`."""
    yield "    lens:"
    yield f"      resolution: [{lens.resolution[0]}, {lens.resolution[1]}]  # px of the captured image"
    yield f"      focal: [{lens.focal[0]:.7g}, {lens.focal[1]:.7g}]  # px"
    yield f"      centre: [{lens.centre[0]:.7g}, {lens.centre[1]:.7g}]  # px"
    yield f"      distortion: [{', '.join(f'{term:.7g}' for term in lens.distortion)}]  # k1, k2, p1, p2, k3"


def draw(found: CameraCalibration, path: Path) -> None:
    """Where corners were seen in the image and by how much they miss, and each view's error, as a PNG.

    Raises OSError.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_residuals(found, left)
    _draw_errors(found, right)
    figure.suptitle("Calibration of the camera", fontweight="bold")
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_residuals(found: CameraCalibration, axis: Any) -> None:
    width, height = found.intrinsics.lens.resolution
    for fit in found.intrinsics.fits:
        (u, v), (du, dv) = fit.view.sighting.pixels.T, ENLARGED * fit.residuals.T
        axis.quiver(u, v, du, dv, angles="xy", scale_units="xy", scale=1, width=0.0015, color="#c0392b")
        axis.plot(u, v, ".", markersize=2, color="#2c3e50")
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axis.set_title(f"corners seen, and by how much they miss, {ENLARGED:g} times", fontsize=9, loc="left")


def _draw_errors(found: CameraCalibration, axis: Any) -> None:
    fits = [*found.intrinsics.fits, *found.intrinsics.rejected]
    used = len(found.intrinsics.fits)
    colours = ["#2c3e50"] * used + ["#c0392b"] * (len(fits) - used)
    axis.barh([fit.view.name for fit in fits], [fit.error for fit in fits], color=colours)
    axis.axvline(found.intrinsics.error, color="#999999", linestyle="--")
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=6)
    axis.set_title("error of each view, px rms; red: left out", fontsize=9, loc="left")
