"""What the fingers told of the camera's place: settings, the model over the picture, a table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calibration.camera_report import lens_lines
from calibration.finger_fit import FingerFit
from calibration.fingers import Series
from calibration.overlay import Ghost, laid_over
from calibration.publishing import publish_settings
from calibration.recording import quoted, write_picture
from robot.camera import CalibrationRecord, CameraConfig
from robot.world import WorldConfig


@dataclass(frozen=True)
class Report:
    """A camera's place by fingers, and of which camera, when."""

    found: FingerFit
    series: Sequence[Series]
    camera: CameraConfig
    world: WorldConfig
    name: str  # as in --hw
    identity: str
    when: str

    @property
    def record(self) -> CalibrationRecord:
        """What episodes will tell of this calibration."""
        digest = hashlib.sha256()
        for view in (view for one in self.series for view in one.views):
            digest.update(view.image.tobytes() + view.joints.tobytes())
        return CalibrationRecord(
            date=self.when,
            camera=self.identity,
            views=self.found.pictures,
            error=round(self.found.error, 4),
            sha256=digest.hexdigest(),
            target="fingers",
            shift_error=round(self.found.shift_error, 6),
            turn_error=round(self.found.turn_error, 6),
        )

    def settings(self) -> str:
        """A file for --config: the projection, and in comments how it was found."""
        about, place = self.record, self.found.place
        lines = [
            f"# The camera of --hw {self.name}, by its robot's fingers on {self.when}.",
            *(f"# {what}: {' '.join(said)}" for what, *said in self._rows()),
            "hw:",
            "  camera:",
            *(lens_lines(self.camera.lens) if self.camera.lens else ()),
            f"    # Base frame (m) to px of the captured image, {self._lens()}.",
            "    projection:",
            *(f"      - [{', '.join(f'{number:.7g}' for number in row)}]" for row in place.projection),
            "    calibration:",
            f"      date: {quoted(about.date)}",
            f"      camera: {quoted(about.camera)}",
            f"      views: {about.views}",
            f"      error: {about.error:g}  # px rms, between outlines",
            f"      sha256: {quoted(about.sha256)}",
            f"      target: {about.target}",
            f"      shift_error: {about.shift_error:g}  # m",
            f"      turn_error: {about.turn_error:g}  # rad",
        ]
        return "\n".join(lines) + "\n"

    def publish(self, path: Path, console: Console) -> None:
        """Writes settings (path, .yaml) and picture, prints what was found. Raises OSError, MissingPart."""
        picture = path.with_suffix(".png")
        self.draw(picture)
        table = Table("camera", "found", "", title=Text(self.identity), title_justify="left")
        for row in self._rows():
            table.add_row(*row)
        console.print(table)
        publish_settings(self.settings(), self.name, path, console, {"picture": picture})

    def draw(self, path: Path) -> None:
        """The model over the last picture, as a PNG. Raises OSError, MissingPart."""
        view, size = self.series[-1].views[-1], (self.camera.width, self.camera.height)
        with closing(Ghost(self.found.place, size, self.world)) as ghost:
            drawn = ghost.draw(view.joints + self.found.zeros, view.valve)
            image = laid_over(view.image, self.camera, *drawn)
        write_picture(path, image)

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        found, gap = self.found, self.found.widest
        place = found.place
        down = math.degrees(math.asin(float(np.clip(-place.rotation[2, 2], -1, 1))))
        yield "lens at", ", ".join(f"{length:.4f}" for length in place.position), "m, base frame"
        yield "looking down", f"{down:.1f}", "deg"
        yield "focal length", f"{place.matrix[0, 0]:.1f}", self._known()
        yield "standard error", _both(found.shift_error, found.turn_error), "in the worst direction"
        yield "agreement", _both(gap.shift, gap.turn), f"of {gap.of}, the worst"
        zeros = ", ".join(f"{math.degrees(zero):+.1f}" for zero in found.zeros)
        yield "joints further by", zeros, f"deg than servos say, +- {math.degrees(found.zeros_error):.1f}"
        yield "distance of outlines", f"{found.error:.2f}", "px rms"
        yield "outlines found", f"{100 * found.found:.0f}", f"% in {found.pictures} pictures"

    def _known(self) -> str:
        if self.found.unknown == "place":
            return f"px, known; outlines ask for {100 * self.found.zoom:+.2f} %"
        return f"px, fitted, +- {100 * self.found.zoom_error:.2f} %"

    def _lens(self) -> str:
        return "once it is straightened by this lens" if self.camera.lens else "through a pinhole"


def _both(shift: float, turn: float) -> str:
    return f"{1e3 * shift:.2f} mm, {math.degrees(turn):.3f} deg"
