"""What is known of a camera: where its frames come from, what its lens does, what the agent sees of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from robot.frame_health import HealthConfig
from robot.types import Config, Floats

FLAT = 1e-9  # of the largest entry; pixels and metres make entries from 1 to 1e5
ControlName = Literal["auto_exposure", "exposure", "gain", "auto_wb", "wb_temperature", "autofocus", "focus"]
Row = tuple[float, float, float, float]


class Lens(Config):
    """How a camera's lens maps rays to pixels: a pinhole and the distortion that OpenCV calls k and p."""

    resolution: tuple[
        PositiveInt, PositiveInt
    ]  # (width, height) px of the captured image that it is true for
    focal: tuple[PositiveFloat, PositiveFloat]  # (fx, fy) px
    centre: tuple[float, float]  # (cx, cy) px; whole numbers are pixel centres
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)  # k1, k2, p1, p2, k3

    @property
    def matrix(self) -> Floats:
        """(3, 3): rays (x, y, 1) to px, without distortion."""
        (fx, fy), (cx, cy) = self.focal, self.centre
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


class CalibrationRecord(Config):
    """Which calibration lens and projection are of; it stands in each episode's log with them."""

    date: str
    camera: str  # make and serial number, or the address: as `identity` says
    views: PositiveInt
    error: NonNegativeFloat  # px rms between corners, or outlines of fingers, seen and expected
    sha256: str  # of what was seen, and of where it was: the same for the same measurement
    target: Literal["board", "fingers"] = "board"  # by which it was measured
    # Standard errors of the place in the worst direction, m and rad; null where they are not told.
    shift_error: NonNegativeFloat | None = None
    turn_error: NonNegativeFloat | None = None


class SceneRecord(Config):
    """A picture of what the camera saw when it was where it should be, and how the robot stood then."""

    path: str  # of a PNG
    sha256: str  # of that file
    date: str
    camera: str  # as `CalibrationRecord.camera`
    resolution: tuple[PositiveInt, PositiveInt]  # (width, height) px
    joints: tuple[float, ...]  # rad
    valve: float  # rad


class CameraConfig(Config):
    """Where frames come from, from when on they are none, and what the agent sees of them."""

    source: str | int = (
        "/dev/video0"  # device path or number, a URL (MJPEG over HTTP, RTSP), or a film's path
    )
    width: int = Field(640, ge=16, le=4096)  # px of the captured image
    height: int = Field(480, ge=16, le=4096)
    fps: float = Field(30.0, gt=0, le=240)  # asked of a device; a stream has its own
    crop: Row | None = None  # (x, y, width, height) as fractions of the captured image; None: all of it
    size: tuple[PositiveInt, PositiveInt] = (64, 64)  # (width, height) px of the delivered image
    max_age: float = Field(0.15, gt=0)  # s; about four periods at 30 frames/s
    open_timeout: float = Field(3.0, gt=0, le=4.0)  # s to the first frame
    read_timeout: float = Field(1.0, gt=0)  # s without a frame until the source counts as lost
    delay: float = Field(0.0, ge=0, le=0.5)  # s from exposure to arrival, as measured; frames are dated back
    health: HealthConfig = HealthConfig()
    record: bool = False  # every captured frame, in full size, to a film beside each episode's log
    controls: Mapping[ControlName, float] = {}  # locked at open and read back, in the driver's units
    # Base frame (m) -> px of the captured image, of the straightened one where there is a lens.
    projection: tuple[Row, Row, Row] | None = None
    lens: Lens | None = None  # what it bends is straightened in the delivered image; None: nothing is
    calibration: CalibrationRecord | None = None  # where projection and lens come from
    scene: SceneRecord | None = None  # what is compared at each start: was the camera moved since?

    @property
    def is_stream(self) -> bool:
        """Whether the source is an address on a network."""
        return isinstance(self.source, str) and "://" in self.source

    @property
    def is_device(self) -> bool:
        """Whether the source is a camera of this machine; a path elsewhere than in /dev is a film."""
        return isinstance(self.source, int) or (
            not self.is_stream and Path(self.source).is_relative_to("/dev")
        )

    @model_validator(mode="after")
    def _lens_of_this_resolution(self) -> Self:
        if self.lens and self.lens.resolution != (self.width, self.height):
            width, height = self.lens.resolution
            raise ValueError(
                f"the lens was calibrated at {width}x{height} px, this camera captures "
                f"{self.width}x{self.height}: set width and height to the former, or calibrate again"
            )
        return self

    @model_validator(mode="after")
    def _projects(self) -> Self:
        if self.projection is None:
            return self
        rows = np.array(self.projection)
        if np.linalg.matrix_rank(rows / max(np.abs(rows).max(), 1e-300), tol=FLAT) < 3:
            raise ValueError(
                "projection is no camera's, its rows depend on each other: copy all three from the file of "
                "its calibration, or calibrate it anew (`run_robot.py calibrate camera`)"
            )
        return self

    @model_validator(mode="after")
    def _crops_inside(self) -> Self:
        x, y, width, height = self.crop or (0.0, 0.0, 1.0, 1.0)
        inside = x >= 0 and y >= 0 and x + width <= 1 + 1e-9 and y + height <= 1 + 1e-9
        if not inside or min(crop_box(self)[2:]) < 1:
            raise ValueError(
                f"crop {self.crop} is no part of the image: x, y, width and height are fractions of it"
            )
        return self


def crop_box(config: CameraConfig) -> tuple[int, int, int, int]:
    """The crop (x, y, width, height) in px of the captured image."""
    x, y, w, h = config.crop or (0.0, 0.0, 1.0, 1.0)
    left, top = round(x * config.width), round(y * config.height)
    return left, top, round((x + w) * config.width) - left, round((y + h) * config.height) - top
