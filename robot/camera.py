"""Camera capture: the newest frame only, with the time of its capture, and never one that shows nothing."""

from __future__ import annotations

import atexit
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from cv2.typing import MatLike

from robot.camera_settings import (
    CalibrationRecord,
    CameraConfig,
    ControlName,
    Lens,
    Row,
    SceneRecord,
    crop_box,
)
from robot.delivery import Delivery, deliver, delivered_projection
from robot.frame_health import Arrivals, FrameHealth, Sharpness, StrictJpeg
from robot.types import (
    BlackFrame,
    CameraFault,
    Clock,
    FilmOver,
    Floats,
    Frame,
    FrameSize,
    FrozenFrame,
    Image,
    OverexposedFrame,
    StaleFrame,
    TornFrame,
    UnfitFrame,
)

# What there is to know of cameras, from one place.
__all__ = [
    "CalibrationRecord",
    "CameraConfig",
    "Capture",
    "Lens",
    "OpenCvCamera",
    "Row",
    "SceneRecord",
    "check_calibrated",
    "crop_box",
    "deliver",
    "delivered_projection",
    "identity",
    "open_capture",
    "set_up",
]

FIRST_BACKOFF = 0.05  # s; a stream that hiccups once is back within two frame periods
LAST_BACKOFF = 2.0  # s

CONTROLS: dict[ControlName, int] = {
    "auto_exposure": cv2.CAP_PROP_AUTO_EXPOSURE,
    "exposure": cv2.CAP_PROP_EXPOSURE,
    "gain": cv2.CAP_PROP_GAIN,
    "auto_wb": cv2.CAP_PROP_AUTO_WB,
    "wb_temperature": cv2.CAP_PROP_WB_TEMPERATURE,
    "autofocus": cv2.CAP_PROP_AUTOFOCUS,
    "focus": cv2.CAP_PROP_FOCUS,
}
UNFIT: tuple[type[UnfitFrame], ...] = (BlackFrame, OverexposedFrame, FrozenFrame, TornFrame, FrameSize)
MJPG = float(cv2.VideoWriter.fourcc(*"MJPG"))
Taker = Callable[[MatLike, float], None]  # gets every good captured image (BGR) and its time, s
Teller = Callable[[str, str], None]  # gets an event's name and its text


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


def open_capture(config: CameraConfig, clock: Clock) -> Capture:
    """The device, stream or film, open and set up. Raises CameraFault that says what is missing."""
    if config.is_stream:
        return _open_stream(str(config.source), config)
    return _open_device(config) if config.is_device else Film(config, clock)


def _open_stream(url: str, config: CameraConfig) -> Capture:
    _check_reachable(url, config.open_timeout)
    timeouts = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(config.open_timeout * 1e3)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(config.read_timeout * 1e3)),
    ]
    # A stream of JPEGs is decoded by us: OpenCV would not say which of them were damaged.
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, [*timeouts, cv2.CAP_PROP_FORMAT, -1])
    if capture.isOpened() and capture.get(cv2.CAP_PROP_FOURCC) == MJPG:
        return JpegCapture(capture)
    if capture.isOpened():
        capture.release()
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        raise CameraFault(
            f"{url} answers, but sends no video stream. Open it in a browser to see what it is."
        )
    return capture


class JpegCapture:
    """A capture whose images are JPEGs as they were sent, decoded only if they are whole."""

    def __init__(self, encoded: Capture) -> None:
        self._encoded, self._decode = encoded, StrictJpeg()
        self.grab, self.set, self.get, self.release = encoded.grab, encoded.set, encoded.get, encoded.release

    def retrieve(self) -> tuple[bool, MatLike]:
        """The grabbed image, BGR. Raises TornFrame."""
        good, data = self._encoded.retrieve()
        return (True, self._decode(data.tobytes())) if good else (False, data)


class Film:
    """A recorded film as a camera: a picture comes when it is due, as often as the film has pictures."""

    def __init__(self, config: CameraConfig, clock: Clock) -> None:
        """Begins at once. Raises CameraFault when there is no such film."""
        path = Path(str(config.source))
        if not path.is_file():
            raise CameraFault(
                f"{path} does not exist: no film is there (hw.camera.source; cameras are under /dev)"
            )
        self._film = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self._film.isOpened():
            raise CameraFault(f"{path} is no film that can be read. ffprobe {path} says what it is.")
        self._path, self._clock = path, clock
        self._period = 1 / (self._film.get(cv2.CAP_PROP_FPS) or config.fps)
        self._start, self._count = clock.now(), 0
        self.retrieve, self.set, self.get = self._film.retrieve, self._film.set, self._film.get
        self.release = self._film.release

    def grab(self) -> bool:
        """Waits for the next picture. Raises FilmOver."""
        if not self._film.grab():
            raise FilmOver(
                f"{self._path} is over after {self._count} pictures, {self._count * self._period:.1f} s. "
                "Start again for it to begin anew, or give hw.camera.source a camera"
            )
        self._clock.sleep_until(self._start + self._count * self._period)
        self._count += 1
        return True


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
    if CameraConfig(source=source).is_stream:
        parts = urlsplit(str(source))
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


class OpenCvCamera:
    """Frames of a V4L2 device, a network stream or a film, never older than the caller allows.

    A thread takes every frame as it comes and keeps the newest that is fit to be seen: OpenCV's own queue
    would serve frames that are seconds old to a reader slower than the camera. A black, white, damaged or
    repeated picture is no frame: the one before it gets older, and once it is too old the fault has the name
    of what came since. A lost source is reopened with growing pauses.
    """

    def __init__(
        self,
        config: CameraConfig,
        clock: Clock,
        opener: Callable[[CameraConfig], Capture] | None = None,
        *,
        tell: Teller | None = None,
        taker: Taker | None = None,
    ) -> None:
        """Waits for the first frame. Raises CameraFault when none comes within `open_timeout`.

        `tell` hears of what is only a warning; `taker` is called for each frame, in the capturing thread.
        """
        cv2.setNumThreads(1)  # 64x64 px do not pay for threads, and the cores belong to the learner
        # What OpenCV warns of when a stream is not there, our faults say better.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self.config = config
        self._deliver = Delivery(config)
        self._views: dict[tuple[int, int], Delivery] = {}
        self._health = FrameHealth(config.health, noisy=_noisy(config))
        self._sharpness = Sharpness(config.health.blurred, tell) if tell else None
        self._taker = taker
        self._clock = clock
        self._queues = config.is_stream and opener is None
        self._open = opener or (lambda config: open_capture(config, clock))
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._settled = threading.Event()  # the first frame, or a problem that waiting does not solve
        self._frame: Frame | None = None
        self._captured: MatLike | None = None  # BGR; each capture makes a new one
        self._problem: CameraFault | None = None  # of what came after the newest frame
        self._lost = self._late = 0
        self._unfit = Counter({kind.name: 0 for kind in UNFIT})
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
        if size not in self._views:  # a lens is costly to prepare for
            self._views[size] = Delivery(self.config.model_copy(update={"size": size}))
        return Frame(frame.time, self._views[size](captured), frame.sequence)

    def latest(self, max_age: float) -> Frame:
        """The newest frame, a copy of the caller's own. Raises StaleFrame or CameraFault."""
        frame, _ = self._newest(max_age)
        return Frame(frame.time, frame.image.copy(), frame.sequence)

    def _newest(self, max_age: float) -> tuple[Frame, MatLike]:
        """The newest frame and the image (BGR) that it was made of."""
        with self._lock:
            frame, captured, problem = self._frame, self._captured, self._problem
        if frame is None or captured is None:
            raise CameraFault(str(problem or f"{self.config.source} sent no frame"))
        age = self._clock.now() - frame.time
        if age > max_age:
            raise self._too_old(age, max_age, problem)
        return frame, captured

    def _too_old(self, age: float, allowed: float, problem: CameraFault | None) -> CameraFault:
        """By the name of what came instead of frames, where that is known."""
        ages = f"{age * 1e3:.0f} ms old, allowed are {allowed * 1e3:.0f} ms"
        if isinstance(problem, UnfitFrame | FilmOver):
            return type(problem)(f"{problem}. The last frame before it is {ages}.")
        why = str(problem or "").rstrip(".")
        return StaleFrame(
            f"the newest frame of {self.config.source} is {ages}{'; ' * bool(problem)}{why}. "
            "Check the camera's cable; `run_robot.py check` measures its rate."
        )

    def picture(self) -> Image:
        """The newest captured image in full size, (H, W, 3) uint8 RGB; for people, of any age."""
        with self._lock:
            captured = self._captured
        if captured is None:
            raise CameraFault(f"{self.config.source} sent no frame")
        return np.ascontiguousarray(captured[:, :, ::-1], dtype=np.uint8)

    def statistics(self) -> dict[str, float]:
        """Frames received, times the source was lost, pictures that came late or were none by their fault."""
        with self._lock:
            frames = self._frame.sequence + 1 if self._frame else 0
            unfit = {name.replace("-", "_"): float(count) for name, count in self._unfit.items()}
            return {
                "frames": float(frames),
                "lost": float(self._lost),
                "late": float(self._late),
                **unfit,
            }

    def close(self) -> None:
        """Stops the capture and releases the device. Never raises, may be repeated."""
        atexit.unregister(self.close)
        self._stop.set()
        self._thread.join(self.config.open_timeout + self.config.read_timeout + LAST_BACKOFF)

    def _await_first_frame(self) -> None:
        self._settled.wait(self.config.open_timeout)
        if self._frame is not None:
            return
        self._stop.set()  # not joined: an open that hangs is the very fault to report
        late = f"{self.config.source} sent no frame within {self.config.open_timeout:g} s"
        raise self._problem or CameraFault(late)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while not self._stop.is_set():
            before = self._frame
            self._capture_until_lost()
            if isinstance(self._problem, FilmOver):
                return
            backoff = FIRST_BACKOFF if self._frame is not before else min(2 * backoff, LAST_BACKOFF)
            self._stop.wait(backoff)

    def _capture_until_lost(self) -> None:
        try:
            capture = self._open(self.config)
        except CameraFault as fault:
            self._note(fault)
            return
        arrivals = Arrivals(queued=self._queues)
        try:
            while not self._stop.is_set():
                self._take(capture, arrivals)
        except (CameraFault, cv2.error) as fault:
            self._note(fault if isinstance(fault, CameraFault) else CameraFault(str(fault)))
        finally:
            capture.release()

    def _take(self, capture: Capture, arrivals: Arrivals) -> None:
        """Waits for one picture and publishes it if it is a sight. Raises CameraFault when there is none."""
        asked = self._clock.now()
        if not capture.grab():
            raise CameraFault(f"{self.config.source} stopped sending frames")
        came = self._clock.now()  # before decoding: the nearest to the exposure
        if not arrivals.fresh(asked, came):
            self._late += 1
            return
        try:
            self._publish(capture, came - self.config.delay)
        except UnfitFrame as fault:
            self._refuse(fault)

    def _publish(self, capture: Capture, time: float) -> None:
        good, image = capture.retrieve()
        if not good:
            raise CameraFault(f"{self.config.source} sent a frame that cannot be decoded")
        delivered = self._deliver(image)
        self._health.judge(image, delivered)
        with self._lock:
            sequence = self._frame.sequence + 1 if self._frame else 0
            self._frame, self._problem = Frame(time, delivered, sequence), None
            self._captured = image
        self._settled.set()
        if self._sharpness:
            self._sharpness.look(time, image)
        if self._taker:
            self._taker(image, time)

    def _refuse(self, fault: UnfitFrame) -> None:
        with self._lock:
            self._problem = type(fault)(f"{self.config.source} {fault}")
            self._unfit[fault.name] += 1
        if isinstance(fault, FrameSize):  # light and exposure may become better, a size does not
            self._settled.set()

    def _note(self, problem: CameraFault) -> None:
        with self._lock:
            self._problem = problem
            self._lost += 1
        self._settled.set()


def _noisy(config: CameraConfig) -> bool:
    """Whether no two pictures are alike, whatever they show."""
    return config.is_device if config.health.noise == "auto" else config.health.noise == "on"
