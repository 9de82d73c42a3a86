"""Promises of the camera: newest frame, honest time, typed faults, no hanging."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from robot.camera import (
    CalibrationRecord,
    CameraConfig,
    Lens,
    OpenCvCamera,
    check_calibrated,
    crop_box,
    deliver,
    delivered_projection,
    identity,
    set_up,
)
from robot.clock import ManualClock, SystemClock
from robot.types import CameraFault, Image, StaleFrame
from tests.broadcast import Broadcast

WIDTH, HEIGHT = 96, 80


def picture(value: int) -> Image:
    return np.full((HEIGHT, WIDTH, 3), value, dtype=np.uint8)


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "condition did not come true in time"
        time.sleep(0.002)


class Projector(Broadcast):
    """A camera server that shows grey values at a rate until told to pause."""

    def __init__(self, period: float = 0.01, port: int = 0) -> None:
        self.value = 100
        self.shape = (HEIGHT, WIDTH, 3)
        self.playing = True
        super().__init__(period, port)

    def show(self) -> None:
        if self.playing:
            self.feed.publish(np.full(self.shape, self.value, dtype=np.uint8), 95)


@pytest.fixture
def projector() -> Iterator[Projector]:
    projector = Projector()
    yield projector
    projector.close()


def config(source: str | int, **changes: object) -> CameraConfig:
    values = {"width": WIDTH, "height": HEIGHT, "size": (32, 32), "read_timeout": 0.3, "open_timeout": 3.0}
    return CameraConfig.model_validate({"source": source, **values, **changes})


class ScriptedCapture:
    """A capture device that delivers what a test says, when it says so."""

    def __init__(self, images: list[Image | None], refuses: set[int] | None = None) -> None:
        self.images = images
        self.released = False
        self.properties: list[tuple[int, float]] = []
        self._refuses = refuses or set()
        self._values: dict[int, float] = {}

    def grab(self) -> bool:
        if not self.images:
            time.sleep(0.005)
            return False
        return self.images[0] is not None

    def retrieve(self) -> tuple[bool, Image]:
        image = self.images.pop(0)
        assert image is not None
        return True, image

    def set(self, propId: int, value: float) -> bool:  # noqa: N803
        self.properties.append((propId, value))
        if propId not in self._refuses:
            self._values[propId] = value
        return propId not in self._refuses

    def get(self, propId: int) -> float:  # noqa: N803
        return self._values.get(propId, 0.0)

    def release(self) -> None:
        self.released = True


def test_frames_arrive_through_http_in_the_size_and_colour_that_was_asked(projector: Projector) -> None:
    camera = OpenCvCamera(config(projector.url), SystemClock())
    frame = camera.latest(1.0)
    camera.close()
    assert frame.image.shape == (32, 32, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.flags.c_contiguous
    assert np.abs(frame.image.astype(int) - 100).max() <= 2


def test_slow_reader_gets_the_newest_frame(projector: Projector) -> None:
    clock = SystemClock()
    camera = OpenCvCamera(config(projector.url), clock)
    first = camera.latest(1.0)
    time.sleep(0.6)  # a queue would now hold 60 old frames
    projector.value = 200
    changed = clock.now()
    wait_until(lambda: camera.latest(1.0).image.mean() > 190)
    delay = clock.now() - changed
    second = camera.latest(1.0)
    camera.close()
    assert delay < 0.4
    assert second.sequence > first.sequence + 10
    assert clock.now() - second.time < 0.5


def test_stalled_stream_is_stale_and_says_how_old(projector: Projector) -> None:
    camera = OpenCvCamera(config(projector.url, read_timeout=5.0), SystemClock())
    projector.playing = False
    time.sleep(0.3)  # also the last frame on its way is 50 ms old then
    with pytest.raises(StaleFrame, match=r"cam\.mjpg is \d+ ms old, allowed are 50 ms"):
        camera.latest(0.05)
    projector.playing = True
    projector.value = 150
    wait_until(lambda: camera.latest(5.0).image.mean() > 140)
    camera.close()


def test_lost_stream_is_reopened(projector: Projector) -> None:
    port = projector.server.server_address[1]
    camera = OpenCvCamera(config(projector.url), SystemClock())
    before = camera.latest(1.0).sequence
    projector.close()
    wait_until(lambda: camera.statistics()["lost"] > 0)
    with pytest.raises(StaleFrame):
        camera.latest(1e-6)
    again = Projector(port=port)
    wait_until(lambda: camera.latest(60.0).sequence > before + 5)
    camera.close()
    again.close()


def test_nobody_at_the_address_fails_at_once_with_the_reason() -> None:
    start = time.monotonic()
    with pytest.raises(CameraFault, match=r"no camera at http://127\.0\.0\.1:9/.*refused"):
        OpenCvCamera(config("http://127.0.0.1:9/cam.mjpg"), SystemClock())
    assert time.monotonic() - start < 1.0


def test_page_that_is_no_video_is_a_camera_fault(projector: Projector) -> None:
    with pytest.raises(CameraFault, match="no video stream"):
        OpenCvCamera(config(projector.server.url + "/state"), SystemClock())


def test_silent_stream_fails_within_the_open_timeout(projector: Projector) -> None:
    projector.playing = False
    start = time.monotonic()
    with pytest.raises(CameraFault):
        OpenCvCamera(config(projector.url, open_timeout=0.4), SystemClock())
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("source", ["/dev/video-nobody", 97])
def test_missing_device_names_the_path_and_where_to_look(source: str | int) -> None:
    with pytest.raises(CameraFault, match=r"/dev/video.* does not exist.*by-id"):
        OpenCvCamera(config(source), SystemClock())


def test_wrong_image_size_is_a_fault_because_crop_and_calibration_would_be_wrong(
    projector: Projector,
) -> None:
    projector.shape = (HEIGHT // 2, WIDTH, 3)
    with pytest.raises(CameraFault, match="delivers 96x40 px, expected 96x80"):
        OpenCvCamera(config(projector.url), SystemClock())


def test_frame_time_is_that_of_its_capture_and_frames_are_the_callers_own() -> None:
    clock = ManualClock(5.0)
    capture = ScriptedCapture([picture(40)])
    camera = OpenCvCamera(config("fake", read_timeout=0.01), clock, lambda _: capture)
    frame = camera.latest(0.1)
    frame.image[:] = 0
    assert frame.time == 5.0
    assert camera.latest(0.1).image.max() == 40
    clock.time = 5.2
    with pytest.raises(StaleFrame, match="200 ms old, allowed are 100 ms"):
        camera.latest(0.1)
    camera.close()
    assert capture.released


def test_known_delay_of_a_camera_dates_its_frames_back() -> None:
    capture = ScriptedCapture([picture(40)])
    camera = OpenCvCamera(config("fake", delay=0.04), ManualClock(5.0), lambda _: capture)
    assert camera.latest(0.1).time == pytest.approx(4.96)
    camera.close()


def test_every_failed_grab_reopens_the_device() -> None:
    captures = [ScriptedCapture([picture(value)]) for value in (40, 50, 60)]
    opened: list[ScriptedCapture] = []

    def opener(_: CameraConfig) -> ScriptedCapture:
        opened.append(captures[min(len(opened), 2)])
        return opened[-1]

    camera = OpenCvCamera(config("fake"), ManualClock(), opener)
    wait_until(lambda: camera.latest(1.0).image.max() == 60)
    camera.close()
    assert all(capture.released for capture in captures)
    assert camera.latest(1.0).sequence == 2


def test_error_inside_opencv_is_a_lost_frame_and_not_the_end() -> None:
    class Broken(ScriptedCapture):
        def retrieve(self) -> tuple[bool, Image]:
            raise cv2.error("(-2:Unspecified error) corrupt data")

    captures: list[ScriptedCapture] = [
        ScriptedCapture([picture(40)]),
        Broken([picture(50)]),
        ScriptedCapture([picture(60)]),
    ]
    camera = OpenCvCamera(config("fake"), ManualClock(), lambda _: captures.pop(0))
    wait_until(lambda: camera.latest(1.0).image.max() == 60)
    camera.close()


@pytest.mark.parametrize("source", ["http://127.0.0.1:port/cam.mjpg", f"http://{'a' * 70}.local/cam.mjpg"])
def test_address_that_is_none_is_a_camera_fault(source: str) -> None:
    with pytest.raises(CameraFault, match="no camera at http://"):
        OpenCvCamera(config(source), SystemClock())


def test_close_ends_the_thread_and_may_be_repeated(projector: Projector) -> None:
    camera = OpenCvCamera(config(projector.url), SystemClock())
    camera.close()
    camera.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera ")]


def test_device_is_set_to_mjpg_before_size_and_to_one_buffer() -> None:
    capture = ScriptedCapture([])
    set_up(capture, config("fake", controls={"exposure": 156}))
    names = [name for name, _ in capture.properties]
    assert names[0] == cv2.CAP_PROP_FOURCC
    assert (cv2.CAP_PROP_BUFFERSIZE, 1) in capture.properties
    assert (cv2.CAP_PROP_EXPOSURE, 156) in capture.properties


def test_control_that_does_not_hold_is_a_fault() -> None:
    capture = ScriptedCapture([], refuses={cv2.CAP_PROP_EXPOSURE})
    with pytest.raises(CameraFault, match="does not take exposure=156: it stays at 0"):
        set_up(capture, config("fake", controls={"exposure": 156}))
    assert capture.released


def test_crop_takes_the_named_part_of_the_image() -> None:
    image = picture(0)
    image[20:60, 48:72] = (1, 2, 3)  # BGR
    cropped = config("fake", crop=(0.5, 0.25, 0.25, 0.5))
    assert crop_box(cropped) == (48, 20, 24, 40)
    assert (deliver(image, cropped) == (3, 2, 1)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"crop": (0.5, 0.0, 0.75, 1.0)}, {"crop": (0.0, -0.1, 1.0, 1.0)}, {"crop": (0.0, 0.0, 0.0, 1.0)}],
)
def test_crop_beyond_the_image_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="crop"):
        config("fake", **wrong)


def test_picture_for_people_is_the_whole_captured_image() -> None:
    image = picture(60)
    image[5, 7] = (1, 2, 3)  # BGR
    camera = OpenCvCamera(config("fake"), ManualClock(), lambda _: ScriptedCapture([image]))
    assert camera.picture().shape == (HEIGHT, WIDTH, 3)
    assert camera.picture()[5, 7].tolist() == [3, 2, 1]
    camera.close()


def test_projection_follows_crop_and_size() -> None:
    rows = ((100.0, 0.0, 48.0, 0.0), (0.0, 100.0, 40.0, 0.0), (0.0, 0.0, 1.0, 0.0))
    matrix = delivered_projection(rows, config("fake", crop=(0.5, 0.25, 0.25, 0.5)))
    u, v, w = matrix @ np.array([0.12, 0.05, 1.0, 1.0])  # captured at px (60, 45)
    # 12.5 px from the crop's left edge (pixel centres are whole numbers), times 32 / 24.
    assert (u / w, v / w) == pytest.approx((12.5 * 32 / 24 - 0.5, 25.5 * 32 / 40 - 0.5))


def test_another_size_shows_the_same_frame_with_its_own_projection() -> None:
    rows = ((100.0, 0.0, 48.0, 0.0), (0.0, 100.0, 40.0, 0.0), (0.0, 0.0, 1.0, 0.0))
    part = {"crop": (0.25, 0.2, 0.5, 0.6), "projection": rows}
    image = picture(60)
    image[30:40, 60:70] = (1, 2, 203)  # BGR
    camera = OpenCvCamera(config("fake", **part), ManualClock(), lambda _: ScriptedCapture([image]))
    wide, small = camera.view((48, 48), 1.0), camera.latest(1.0)
    assert (wide.time, wide.sequence, wide.image.shape) == (small.time, small.sequence, (48, 48, 3))
    larger = config("fake", **part, size=(48, 48))
    assert (wide.image == deliver(image, larger)).all()
    assert camera.projection_at((48, 48)) == pytest.approx(delivered_projection(rows, larger))
    assert camera.projection_at((32, 32)) == pytest.approx(camera.projection)
    with pytest.raises(StaleFrame):
        camera.view((48, 48), -1.0)
    camera.close()


def test_uncalibrated_camera_says_what_to_set() -> None:
    camera = OpenCvCamera(config("fake"), ManualClock(), lambda _: ScriptedCapture([picture(40)]))
    with pytest.raises(CameraFault, match=r"hw\.camera\.projection"):
        _ = camera.projection
    camera.close()


BENT = Lens(
    resolution=(640, 480), focal=(420, 415), centre=(330.5, 231), distortion=(-0.3, 0.09, 0.001, -0.002, 0)
)
POINTS = np.array(
    [[-0.2, -0.1, 0.5], [0.22, -0.09, 0.5], [0.15, 0.17, 0.5], [-0.12, 0.14, 0.5], [0.02, 0.01, 0.5]]
)


def spots(lens: Lens) -> Image:
    """White spots where a lens shows POINTS (N, 3) m of the camera's frame."""
    pixels, _ = cv2.projectPoints(POINTS, np.zeros(3), np.zeros(3), lens.matrix, np.array(lens.distortion))
    v, u = np.mgrid[:480, :640]
    away = [(u - x) ** 2 + (v - y) ** 2 for x, y in pixels[:, 0]]
    grey = np.clip(255 * np.exp(-np.min(away, axis=0) / 2 / 7**2), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def test_what_the_lens_bends_is_straight_in_the_delivered_image() -> None:
    """Points lie where the delivered projection has them, though crop and size come after the lens."""
    values = {"lens": BENT, "crop": (0.125, 0.05, 0.8, 0.9), "size": (128, 108)}
    camera = CameraConfig.model_validate({"source": "here", **values})
    delivered = deliver(spots(BENT), camera)[:, :, 0].astype(float)
    projection = delivered_projection(np.column_stack([BENT.matrix, np.zeros(3)]), camera)
    bent = cv2.projectPoints(POINTS, np.zeros(3), np.zeros(3), BENT.matrix, np.array(BENT.distortion))[0][
        :, 0
    ]
    straight = POINTS @ BENT.matrix.T
    assert np.abs(bent - straight[:, :2] / straight[:, 2:]).max() > 10  # px; the test would else show nothing
    for u, v, w in np.column_stack([POINTS, np.ones(len(POINTS))]) @ projection.T:
        x, y = round(u / w), round(v / w)
        part = delivered[y - 5 : y + 6, x - 5 : x + 6]
        down, across = np.mgrid[y - 5 : y + 6, x - 5 : x + 6]
        centre = (part * across).sum() / part.sum(), (part * down).sum() / part.sum()
        np.testing.assert_allclose(centre, (u / w, v / w), atol=0.1)


def test_frames_of_a_camera_with_a_lens_are_straightened(projector: Projector) -> None:
    """In the thread that captures, too: a grid's line is straight that was bent."""
    lens = Lens(resolution=(WIDTH, HEIGHT), focal=(60, 60), centre=(48, 40), distortion=(-0.3, 0, 0, 0, 0))
    bare = config("here", size=(WIDTH, HEIGHT))
    grid = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    grid[10:14] = 255
    straight = deliver(grid, bare.model_copy(update={"lens": lens}))
    assert np.abs(straight.astype(int) - deliver(grid, bare)).mean() > 5
    camera = OpenCvCamera(config(projector.url, lens=lens), SystemClock())
    assert np.abs(camera.latest(1.0).image.astype(int) - 100).max() <= 2  # no black rim
    camera.close()


def test_a_lens_of_another_resolution_is_refused() -> None:
    with pytest.raises(ValidationError, match="calibrated at 640x480 px, this camera captures 96x80"):
        config("here", lens=BENT)


def usb_camera(folder: Path, serial: str | None) -> Path:
    """A tree as Linux shows it in /sys for one camera."""
    usb = folder / "devices/usb1/1-4"
    node = usb / "1-4:1.0/video4linux/video0"
    node.mkdir(parents=True)
    files = {"idVendor": "046d", "idProduct": "0825", **({"serial": serial} if serial else {})}
    for name, text in files.items():
        (usb / name).write_text(f"{text}\n")
    (usb.parent / "serial").write_text("0000:00:14.0\n")  # of the root hub, not of the camera
    (usb.parent / "idVendor").write_text("1d6b\n")
    (node / "name").write_text("HD Webcam C270\n")
    (node / "device").symlink_to(usb / "1-4:1.0")
    (folder / "class").mkdir()
    (folder / "class/video4linux").symlink_to(node.parent)
    return folder


def test_a_camera_is_known_by_its_serial_number(tmp_path: Path) -> None:
    seen = identity(0, usb_camera(tmp_path, "ABC123"))
    assert seen == "HD Webcam C270 046d:0825 serial ABC123"


def test_a_camera_without_a_serial_number_is_not_given_its_hubs(tmp_path: Path) -> None:
    assert identity("/dev/video0", usb_camera(tmp_path, None)) == "HD Webcam C270 046d:0825 serial none"
    assert identity("/dev/video7", tmp_path) == "/dev/video7"


def test_a_stream_is_known_by_its_address_without_the_password() -> None:
    assert identity("rtsp://admin:secret@10.0.0.9:554/main") == "rtsp://10.0.0.9:554/main"


def test_another_camera_than_the_calibrated_one_is_refused() -> None:
    record = CalibrationRecord(date="2026-11-21", camera="cam A", views=20, error=0.1, sha256="0" * 64)
    check_calibrated(config("/dev/video0"), "cam B")  # nothing was calibrated
    check_calibrated(config("/dev/video0", calibration=record), "cam A")
    with pytest.raises(CameraFault, match="is 'cam B', but the calibration of 2026-11-21 is of 'cam A'"):
        check_calibrated(config("/dev/video0", calibration=record), "cam B")
