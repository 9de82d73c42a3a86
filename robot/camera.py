"""Camera capture: the newest frame only, with the time of its capture, cropped and resized for the agent."""

from __future__ import annotations

import atexit
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, Self
from urllib.parse import urlsplit

import cv2
import numpy as np
from cv2.typing import MatLike
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from robot.types import CameraFault, Clock, Config, Floats, Frame, Image, StaleFrame

FIRST_BACKOFF = 0.05  # s; a stream that hiccups once is back within two frame periods
LAST_BACKOFF = 2.0  # s

ControlName = Literal["auto_exposure", "exposure", "gain", "auto_wb", "wb_temperature", "autofocus", "focus"]
CONTROLS: dict[ControlName, int] = {
    "auto_exposure": cv2.CAP_PROP_AUTO_EXPOSURE,
    "exposure": cv2.CAP_PROP_EXPOSURE,
    "gain": cv2.CAP_PROP_GAIN,
    "auto_wb": cv2.CAP_PROP_AUTO_WB,
    "wb_temperature": cv2.CAP_PROP_WB_TEMPERATURE,
    "autofocus": cv2.CAP_PROP_AUTOFOCUS,
    "focus": cv2.CAP_PROP_FOCUS,
}
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
    error: NonNegativeFloat  # px rms between corners seen and expected
    sha256: str  # of the corners seen, the board and its place: the same for the same measurement


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
    """Where frames come from and what the agent sees of them."""

    source: str | int = "/dev/video0"  # device path or number, or a URL (MJPEG over HTTP, RTSP)
    width: int = Field(640, ge=16, le=4096)  # px of the captured image
    height: int = Field(480, ge=16, le=4096)
    fps: float = Field(30.0, gt=0, le=240)  # asked of a device; a stream has its own
    crop: Row | None = None  # (x, y, width, height) as fractions of the captured image; None: all of it
    size: tuple[PositiveInt, PositiveInt] = (64, 64)  # (width, height) px of the delivered image
    max_age: float = Field(0.15, gt=0)  # s; about four periods at 30 frames/s
    open_timeout: float = Field(3.0, gt=0, le=4.0)  # s to the first frame
    read_timeout: float = Field(1.0, gt=0)  # s without a frame until the source counts as lost
    delay: float = Field(0.0, ge=0, le=0.5)  # s from exposure to arrival, as measured; frames are dated back
    controls: Mapping[ControlName, float] = {}  # locked at open and read back, in the driver's units
    # Base frame (m) -> px of the captured image, of the straightened one where there is a lens.
    projection: tuple[Row, Row, Row] | None = None
    lens: Lens | None = None  # what it bends is straightened in the delivered image; None: nothing is
    calibration: CalibrationRecord | None = None  # where projection and lens come from
    scene: SceneRecord | None = None  # what is compared at each start: was the camera moved since?

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
    def _crops_inside(self) -> Self:
        x, y, width, height = self.crop or (0.0, 0.0, 1.0, 1.0)
        inside = x >= 0 and y >= 0 and x + width <= 1 + 1e-9 and y + height <= 1 + 1e-9
        if not inside or min(crop_box(self)[2:]) < 1:
            raise ValueError(
                f"crop {self.crop} is no part of the image: x, y, width and height are fractions of it"
            )
        return self


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def grab(self) -> bool:
        """Waits for the next image."""
        ...

    def retrieve(self) -> tuple[bool, MatLike]:
        """The grabbed image, BGR."""
        ...

    def set(self, propId: int, value: float) -> bool:  # noqa: N803 - OpenCV's own parameter name
        """Asks for a property."""
        ...

    def get(self, propId: int) -> float:  # noqa: N803
        """Reads a property back."""
        ...

    def release(self) -> None:
        """Closes the device."""
        ...


def open_capture(config: CameraConfig) -> Capture:
    """The device or stream, open and set up. Raises CameraFault that says what is missing."""
    if isinstance(config.source, str) and "://" in config.source:
        return _open_stream(config.source, config)
    return _open_device(config)


def _open_stream(url: str, config: CameraConfig) -> Capture:
    _check_reachable(url, config.open_timeout)
    timeouts = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(config.open_timeout * 1e3)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(config.read_timeout * 1e3)),
    ]
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        raise CameraFault(
            f"{url} answers, but sends no video stream. Open it in a browser to see what it is."
        )
    return capture


def _check_reachable(url: str, timeout: float) -> None:
    """A refused connection gets a message of ours instead of a line on stderr from FFmpeg."""
    parts = urlsplit(url)
    try:
        port = parts.port or {"rtsp": 554, "https": 443}.get(parts.scheme, 80)
        socket.create_connection((parts.hostname or "", port), timeout).close()
    except (OSError, ValueError) as error:  # ValueError: the address is none
        raise CameraFault(f"no camera at {url} ({error}). Is it switched on, is the address right?") from None


def _device(source: str | int) -> Path:
    return Path(f"/dev/video{source}" if isinstance(source, int) else source)


def identity(source: str | int, sysfs: Path = Path("/sys")) -> str:
    """Which camera that is: make, USB numbers and serial number of a device; a stream's address."""
    if isinstance(source, str) and "://" in source:
        parts = urlsplit(source)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    node = sysfs / "class/video4linux" / _device(source).resolve().name
    made = _told(node / "name") or str(source)
    folder = (node / "device").resolve()
    usb = next((above for above in (folder, *folder.parents) if _told(above / "idVendor")), None)
    if usb is None or not node.exists():
        return made
    numbers = f"{_told(usb / 'idVendor')}:{_told(usb / 'idProduct')}"
    return f"{made} {numbers} serial {_told(usb / 'serial') or 'none'}"


def _told(path: Path) -> str:
    """What the kernel says in a file; nothing where it says nothing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def check_calibrated(config: CameraConfig, seen: str) -> None:
    """Refuses a device other than the one that was calibrated: its picture would be taken for another's.

    Raises CameraFault.
    """
    if config.calibration and config.calibration.camera != seen:
        raise CameraFault(
            f"{config.source} is {seen!r}, but the calibration of {config.calibration.date} is of "
            f"{config.calibration.camera!r}. Plug that one in, correct hw.camera.source, or calibrate this "
            "one (`run_robot.py calibrate camera`)"
        )


def _open_device(config: CameraConfig) -> Capture:
    path = _device(config.source)
    if not path.exists():
        raise CameraFault(
            f"{path} does not exist: no camera is connected there (hw.camera.source). "
            "`ls -l /dev/v4l/by-id/` lists the cameras that are."
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise CameraFault(f"no permission for {path}. Type: sudo usermod -aG video $USER; then log in again.")
    check_calibrated(config, identity(config.source))
    capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise CameraFault(f"{path} is no camera that can be opened; another program may be using it.")
    return set_up(capture, config)


def set_up(capture: Capture, config: CameraConfig) -> Capture:
    """Format, rate and controls of a device. Raises CameraFault for a control that it does not take."""
    # MJPG first: the raw format fits only a few frames per second through USB 2. One buffer: the driver's
    # default of four serves old frames.
    capture.set(cv2.CAP_PROP_FOURCC, float(cv2.VideoWriter.fourcc(*"MJPG")))
    for name, value in (
        (cv2.CAP_PROP_FRAME_WIDTH, config.width),
        (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
        (cv2.CAP_PROP_FPS, config.fps),
        (cv2.CAP_PROP_BUFFERSIZE, 1),
    ):
        capture.set(name, value)
    for control, wanted in config.controls.items():
        capture.set(CONTROLS[control], wanted)
        if not np.isclose(taken := capture.get(CONTROLS[control]), wanted, rtol=0.01):
            capture.release()
            raise CameraFault(
                f"{config.source} does not take {control}={wanted:g}: it stays at {taken:g}. "
                f"`v4l2-ctl -d {config.source} --list-ctrls` shows the allowed values."
            )
    return capture


def crop_box(config: CameraConfig) -> tuple[int, int, int, int]:
    """The crop (x, y, width, height) in px of the captured image."""
    x, y, w, h = config.crop or (0.0, 0.0, 1.0, 1.0)
    left, top = round(x * config.width), round(y * config.height)
    return left, top, round((x + w) * config.width) - left, round((y + h) * config.height) - top


class Delivery:
    """Turns captured images into what the agent sees: straightened, cropped, resized."""

    def __init__(self, config: CameraConfig) -> None:
        self.config = config
        self._maps = _straightening(config.lens, crop_box(config)) if config.lens else None

    def __call__(self, image: MatLike) -> Image:
        """A captured BGR image as the agent sees it: (H, W, 3) uint8 RGB, area-resized.

        Raises CameraFault when the image is not of the configured size: crop and calibration would be wrong.
        """
        config = self.config
        if image.shape != (config.height, config.width, 3):
            raise CameraFault(
                f"{config.source} delivers {image.shape[1]}x{image.shape[0]} px, expected "
                f"{config.width}x{config.height} (hw.camera.width and .height)"
            )
        small = cv2.resize(self._cut(image), config.size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[:, :, ::-1], dtype=np.uint8)

    def _cut(self, image: MatLike) -> MatLike:
        if self._maps is None:
            x, y, w, h = crop_box(self.config)
            return image[y : y + h, x : x + w]
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _straightening(lens: Lens, box: tuple[int, int, int, int]) -> tuple[MatLike, MatLike]:
    """Where in the captured image each pixel of the straightened crop lies; the focal length stays."""
    x, y, w, h = box
    cut = lens.matrix - np.array([[0.0, 0.0, x], [0.0, 0.0, y], [0.0, 0.0, 0.0]])
    # Fixed-point maps: half the time per image of floating-point ones.
    return cv2.initUndistortRectifyMap(
        lens.matrix, np.array(lens.distortion), np.eye(3), cut, (w, h), cv2.CV_16SC2
    )


def deliver(image: MatLike, config: CameraConfig) -> Image:
    """One captured BGR image as `Delivery` makes it; with a lens, many cost less there."""
    return Delivery(config)(image)


def delivered_projection(projection: Sequence[Sequence[float]], config: CameraConfig) -> Floats:
    """A projection (3, 4) to px of the captured image, turned into one to px of the delivered image."""
    x, y, w, h = crop_box(config)
    sx, sy = config.size[0] / w, config.size[1] / h
    # Pixel centres are whole numbers: the image's edge, which crop and size scale about, lies at -1/2.
    adapt = np.array([[sx, 0.0, (0.5 - x) * sx - 0.5], [0.0, sy, (0.5 - y) * sy - 0.5], [0.0, 0.0, 1.0]])
    delivered: Floats = adapt @ np.asarray(projection, dtype=np.float64)
    return delivered


class OpenCvCamera:
    """Frames of a V4L2 device or a network stream, never older than the caller allows.

    A thread takes every frame as it comes and keeps the newest: OpenCV's own queue would serve frames that
    are seconds old to a reader slower than the camera. A lost source is reopened with growing pauses.
    """

    def __init__(
        self, config: CameraConfig, clock: Clock, opener: Callable[[CameraConfig], Capture] = open_capture
    ) -> None:
        """Waits for the first frame. Raises CameraFault when none comes within `open_timeout`."""
        cv2.setNumThreads(1)  # 64x64 px do not pay for threads, and the cores belong to the learner
        self.config = config
        self._deliver = Delivery(config)
        self._clock = clock
        self._opener = opener
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._settled = threading.Event()  # the first frame or the first problem is known
        self._frame: Frame | None = None
        self._captured: MatLike | None = None  # BGR; each capture makes a new one
        self._problem = ""
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name=f"camera {config.source}", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread inside OpenCV when the interpreter ends aborts the program
        self._await_first_frame()

    @property
    def projection(self) -> Floats:
        """(3, 4): base-frame metres (x, y, z, 1) to homogeneous pixels of the delivered image.

        Raises CameraFault when the camera is not calibrated.
        """
        if self.config.projection is None:
            raise CameraFault(
                f"{self.config.source} is not calibrated: set hw.camera.projection (3x4, base frame in "
                "metres to pixels of the captured image); `run_robot.py calibrate camera` measures it"
            )
        return delivered_projection(self.config.projection, self.config)

    def projection_at(self, size: tuple[int, int]) -> Floats:
        """(3, 4): `projection` for images of another size (width, height) px. Raises CameraFault."""
        scale = np.append(np.divide(size, self.config.size), 1.0)
        shift = np.append((scale[:2] - 1) / 2, 0.0)  # the image's edge, which size scales about, is at -1/2
        scaled: Floats = (np.diag(scale) + np.outer(shift, [0, 0, 1])) @ self.projection
        return scaled

    def view(self, size: tuple[int, int], max_age: float) -> Frame:
        """The newest frame as `latest` has it, in another size (width, height) px.

        Raises StaleFrame or CameraFault.
        """
        frame, captured = self._newest(max_age)
        resized = self.config.model_copy(update={"size": size})
        return Frame(frame.time, deliver(captured, resized), frame.sequence)

    def latest(self, max_age: float) -> Frame:
        """The newest frame, a copy of the caller's own. Raises StaleFrame or CameraFault."""
        frame, _ = self._newest(max_age)
        return Frame(frame.time, frame.image.copy(), frame.sequence)

    def _newest(self, max_age: float) -> tuple[Frame, MatLike]:
        """The newest frame and the image (BGR) that it was made of."""
        with self._lock:
            frame, captured, problem = self._frame, self._captured, self._problem
        if frame is None or captured is None:
            raise CameraFault(problem or f"{self.config.source} sent no frame")
        age = self._clock.now() - frame.time
        if age > max_age:
            raise StaleFrame(
                f"the newest frame of {self.config.source} is {age * 1e3:.0f} ms old, allowed are "
                f"{max_age * 1e3:.0f} ms{'; ' * bool(problem) + problem}. Check the camera's cable; "
                "`run_robot.py check` measures its rate."
            )
        return frame, captured

    def picture(self) -> Image:
        """The newest captured image in full size, (H, W, 3) uint8 RGB; for people, of any age."""
        with self._lock:
            captured = self._captured
        if captured is None:
            raise CameraFault(f"{self.config.source} sent no frame")
        return np.ascontiguousarray(captured[:, :, ::-1], dtype=np.uint8)

    def statistics(self) -> dict[str, float]:
        """Frames received and times that the source was lost."""
        with self._lock:
            frames = self._frame.sequence + 1 if self._frame else 0
            return {"frames": float(frames), "lost": float(self._lost)}

    def close(self) -> None:
        """Stops the capture and releases the device. Never raises, may be repeated."""
        atexit.unregister(self.close)
        self._stop.set()
        self._thread.join(self.config.open_timeout + self.config.read_timeout + LAST_BACKOFF)

    def _await_first_frame(self) -> None:
        settled = self._settled.wait(self.config.open_timeout)
        if self._frame is not None:
            return
        self._stop.set()  # not joined: an open that hangs is the very fault to report
        late = f"{self.config.source} sent no frame within {self.config.open_timeout:g} s"
        raise CameraFault(self._problem if settled else late)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            before = self._frame
            self._capture_until_lost()
            backoff = FIRST_BACKOFF if self._frame is not before else min(2 * backoff, LAST_BACKOFF)
            self._stop.wait(backoff)

    def _capture_until_lost(self) -> None:
        try:
            capture = self._opener(self.config)
        except CameraFault as fault:
            self._note(str(fault))
            return
        try:
            while not self._stop.is_set():
                self._take(capture)
        except (CameraFault, cv2.error) as fault:
            self._note(str(fault))
        finally:
            capture.release()

    def _take(self, capture: Capture) -> None:
        """Waits for one frame and publishes it. Raises CameraFault when there is none."""
        if not capture.grab():
            raise CameraFault(f"{self.config.source} stopped sending frames")
        time = self._clock.now() - self.config.delay  # before decoding: the nearest to the exposure
        good, image = capture.retrieve()
        if not good:
            raise CameraFault(f"{self.config.source} sent a frame that cannot be decoded")
        delivered = self._deliver(image)
        with self._lock:
            sequence = self._frame.sequence + 1 if self._frame else 0
            self._frame, self._problem = Frame(time, delivered, sequence), ""
            self._captured = image
        self._settled.set()

    def _note(self, problem: str) -> None:
        with self._lock:
            self._problem = problem
            self._lost += 1
        self._settled.set()
