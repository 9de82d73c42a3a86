"""Promises of a camera that knows when it does not see: no picture of nothing is ever taken for a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot.camera import CameraConfig, Lens, OpenCvCamera, deliver
from robot.clock import ManualClock, SystemClock
from robot.delivery import Delivery
from robot.frame_health import Arrivals, FrameHealth, HealthConfig, Sharpness, StrictJpeg
from robot.types import (
    BlackFrame,
    CameraFault,
    FilmOver,
    FrameSize,
    FrozenFrame,
    Image,
    OverexposedFrame,
    StaleFrame,
    TornFrame,
    UnfitFrame,
)
from tests.broadcast import Broadcast
from tests.test_camera import HEIGHT, WIDTH, ScriptedCapture, config, wait_until

RNG = np.random.default_rng(0)
SCENE = cv2.GaussianBlur(RNG.integers(20, 235, (HEIGHT, WIDTH, 3)).astype(np.uint8), (0, 0), 1.2)


def noisy(image: Image = SCENE, sigma: float = 3.0) -> Image:
    return np.clip(image + RNG.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


def flat(value: int) -> Image:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def jpeg(image: Image) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def seen(pictures: list[Image], clock: ManualClock, **changes: object) -> OpenCvCamera:
    """A camera that has taken all of the pictures, each at the next second."""

    class Ticking(ScriptedCapture):
        def grab(self) -> bool:
            clock.time += 1.0 * bool(self.images)
            return super().grab()

    capture = Ticking(list(pictures))
    opened: list[ScriptedCapture] = []

    def once(_: CameraConfig) -> ScriptedCapture:
        if opened:
            raise CameraFault("the script is at its end")
        opened.append(capture)
        return capture

    camera = OpenCvCamera(config("fake", **changes), clock, once)
    wait_until(lambda: capture.released)
    return camera


UNFIT: list[tuple[type[UnfitFrame], Image, str]] = [
    (BlackFrame, noisy(flat(8), 2), "black_frame"),
    (OverexposedFrame, flat(255), "overexposed_frame"),
    (FrameSize, SCENE[: HEIGHT // 2], "frame_size"),
]


@pytest.mark.parametrize(("fault", "picture", "counter"), UNFIT, ids=lambda value: getattr(value, "name", ""))
def test_picture_of_nothing_is_no_frame_and_the_one_before_gets_older(
    fault: type[UnfitFrame], picture: Image, counter: str
) -> None:
    clock = ManualClock(10.0)
    good = noisy()
    camera = seen([good, picture], clock)
    assert camera.statistics()[counter] == 1
    assert camera.latest(5.0).time == 11.0
    assert (camera.latest(5.0).image == deliver(good, camera.config)).all()
    with pytest.raises(StaleFrame):  # the source has ended since: that is what is told
        camera.latest(0.5)
    camera.close()


@pytest.mark.parametrize(("fault", "picture", "counter"), UNFIT[:2], ids=lambda v: getattr(v, "name", ""))
def test_camera_that_never_showed_anything_does_not_open(
    fault: type[UnfitFrame], picture: Image, counter: str
) -> None:
    with pytest.raises(fault, match=r"fake sends .* pictures"):
        OpenCvCamera(
            config("fake", open_timeout=0.2), SystemClock(), lambda _: ScriptedCapture([picture] * 9999)
        )


def test_exposure_that_settles_does_not_keep_a_camera_from_opening() -> None:
    camera = seen([flat(0), flat(0), noisy()], ManualClock())
    assert camera.latest(9.0).sequence == 0
    camera.close()


def test_same_picture_again_is_an_old_one_where_there_is_noise() -> None:
    clock, first, second = ManualClock(10.0), noisy(), noisy()
    health = {"health": {"noise": "on"}}
    camera = seen([first, second, second.copy(), second.copy()], clock, **health)
    assert camera.latest(9.0).time == 12.0
    assert camera.statistics()["frozen_frame"] == 2
    camera.close()


def test_same_picture_again_is_news_where_there_is_no_noise() -> None:
    camera = seen([SCENE, SCENE.copy()], ManualClock(10.0))
    assert camera.latest(9.0).time == 12.0
    camera.close()


@pytest.mark.parametrize(
    ("source", "noise", "repeats"),
    [
        *[("/dev/video0", "auto", 1), (0, "auto", 1), ("/dev/video0", "off", 0)],
        *[("http://host/cam.mjpg", "auto", 0), ("film.mp4", "auto", 0), ("http://host/cam.mjpg", "on", 1)],
    ],
)
def test_noise_is_expected_of_devices_and_of_whom_it_is_asked(
    source: str | int, noise: str, repeats: int
) -> None:
    capture = ScriptedCapture([SCENE, SCENE.copy(), noisy()])
    camera = OpenCvCamera(config(source, health={"noise": noise}), ManualClock(), lambda _: capture)
    wait_until(lambda: not capture.images)
    wait_until(lambda: camera.statistics()["frames"] == 3 - repeats)
    assert camera.statistics()["frozen_frame"] == repeats
    camera.close()


def test_lower_part_of_one_colour_is_a_torn_picture() -> None:
    torn, health = noisy(), FrameHealth(HealthConfig(), noisy=True)
    torn[HEIGHT // 2 :] = (128, 127, 129)
    with pytest.raises(TornFrame, match="lower part is missing"):
        health.judge(torn, deliver(torn, config("fake")))
    FrameHealth(HealthConfig(), noisy=False).judge(torn, deliver(torn, config("fake")))  # a plain table


@pytest.mark.parametrize("shade", [3, 16, 252])
def test_dim_scene_with_a_shadow_or_a_bar_below_is_a_frame(shade: int) -> None:
    """A sensor's noise does not get through a JPEG there."""
    health = FrameHealth(HealthConfig(), noisy=True)
    for _ in range(3):
        dim = np.clip(noisy(sigma=1.0) // 6 + 2, 0, 255).astype(np.uint8)
        dim[-32:] = shade
        health.judge(dim, deliver(dim, config("fake")))


@given(st.integers(30, 225), st.floats(0, 4), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_pictures_with_anything_lit_in_them_are_frames(value: int, sigma: float, lit: float) -> None:
    """Whatever the light: a dark scene with a lamp, a bright one with a shadow."""
    image = flat(0 if value < 128 else 255)
    image[: max(2, int(lit * HEIGHT))] = value
    image = noisy(image, sigma)
    FrameHealth(HealthConfig(), noisy=False).judge(image, deliver(image, config("fake")))


# --- Pictures that waited for us ---------------------------------------------------------------------------


def fresh(arrivals: Arrivals, pictures: list[tuple[float, float]]) -> list[bool]:
    """pictures: (when it was asked for, when it came), s."""
    return [arrivals.fresh(asked, came) for asked, came in pictures]


def steady(count: int, start: float = 0.0, period: float = 0.033) -> list[tuple[float, float]]:
    return [(start + (n - 0.9) * period, start + n * period) for n in range(count)]


@pytest.mark.parametrize("within", [True, False], ids=["while it waited", "while it decoded"])
def test_pictures_that_lay_in_a_queue_while_the_program_was_held_up_are_none(within: bool) -> None:
    arrivals = Arrivals()
    assert all(fresh(arrivals, steady(20)))
    first = (0.630 if within else 2.0, 2.001)
    drained = [first, *((2.001 + 0.003 * n, 2.002 + 0.003 * n) for n in range(9))]
    assert not any(fresh(arrivals, drained))
    assert fresh(arrivals, [(2.030, 2.050), (2.050, 2.051)]) == [False, False]  # something else was done
    assert fresh(arrivals, steady(20, 2.083)) == [False] + [True] * 19


def test_pictures_that_came_while_a_stream_was_opened_are_none() -> None:
    opened = [(0.300 + 0.001 * n, 0.301 + 0.001 * n) for n in range(8)]
    assert fresh(Arrivals(queued=True), [*opened, *steady(20, 0.330)]) == [False] * 9 + [True] * 19


def test_pictures_after_a_silence_and_at_another_rate_are_frames_again() -> None:
    arrivals = Arrivals()
    assert all(fresh(arrivals, steady(20)))
    assert fresh(arrivals, steady(9, 3.0)) == [False] * 2 + [True] * 7
    assert sum(fresh(arrivals, steady(20, 3.4, 0.2))) >= 17
    assert all(fresh(arrivals, steady(20, 7.4, 0.2)))


def test_pictures_that_come_in_pairs_or_unevenly_are_frames() -> None:
    pairs = [moment for n in range(20) for moment in ((0.06 * n - 0.05, 0.06 * n), (0.06 * n, 0.06 * n))]
    assert all(fresh(Arrivals(), pairs))
    rng = np.random.default_rng(0)
    came = np.cumsum(rng.uniform(0.02, 0.06, 200))
    assert all(fresh(Arrivals(), [(float(moment) - 0.015, float(moment)) for moment in came]))


class Backlog(ScriptedCapture):
    """A stream of a picture each 33 ms whose reader is held up after the twentieth, for a second."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__([noisy() for _ in range(60)])
        self.sent, self._clock = 0, clock
        self.taken: list[float] = []  # s

    def grab(self) -> bool:
        if self.sent == 20:
            self._clock.time += 1.0
        self._clock.time = max(self._clock.time + 0.001, self.sent * 0.033)
        self.taken.append(self.sent * 0.033)
        self.sent += 1
        return super().grab()


def test_no_picture_is_dated_much_later_than_it_was_taken() -> None:
    clock, late_by = ManualClock(), list[float]()
    capture = Backlog(clock)

    def taker(_: Image, dated: float) -> None:
        late_by.append(dated - capture.taken[-1])

    camera = OpenCvCamera(config("fake"), clock, lambda _: capture, taker=taker)
    wait_until(lambda: not capture.images)
    camera.close()
    assert max(late_by) < 0.04
    assert camera.statistics()["late"] > 25


# --- Damaged JPEGs -----------------------------------------------------------------------------------------


def test_whole_jpeg_is_decoded_as_opencv_does() -> None:
    large = cv2.resize(SCENE, (640, 480), interpolation=cv2.INTER_CUBIC)
    ours = StrictJpeg()(jpeg(large)).astype(int)
    theirs = cv2.imdecode(np.frombuffer(jpeg(large), np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(ours - theirs).mean() < 2
    small = CameraConfig()
    assert np.abs(deliver(ours.astype(np.uint8), small).astype(int) - deliver(theirs, small)).max() <= 3


@given(st.floats(0.02, 0.98), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_jpeg_that_lacks_something_is_refused_and_the_next_is_not(at: float, ends: bool, seed: int) -> None:
    """Cut off with and without an end marker, or with a hole of 600 bytes in its picture data."""
    data = jpeg(cv2.resize(noisy(), (320, 240), interpolation=cv2.INTER_CUBIC))
    start = data.index(b"\xff\xda") + 20
    place = start + int(at * (len(data) - start - 700))
    broken = data[:place] + (data[place + 600 :] if seed % 2 else b"\xff\xd9" * ends)
    decode = StrictJpeg()
    with pytest.raises(TornFrame, match="damaged"):
        decode(broken)
    assert decode(data).shape == (240, 320, 3)


@given(st.binary(max_size=2000))
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_no_jpeg_are_a_torn_frame(data: bytes) -> None:
    with pytest.raises(TornFrame):
        StrictJpeg()(data)


class Station(Broadcast):
    """A camera server whose next JPEG a test can make what it likes."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self.make = make
        super().__init__(0.01)

    def show(self) -> None:
        self.feed.send(self.make())


@pytest.fixture
def station() -> Iterator[Station]:
    station = Station(lambda: jpeg(noisy()))
    yield station
    station.close()


def test_damaged_jpegs_of_a_stream_are_never_shown_and_told_by_name(station: Station) -> None:
    """FFmpeg alone would complete them with what the picture before had there."""
    camera = OpenCvCamera(config(station.url, health={"noise": "on"}), SystemClock())
    station.make = lambda: jpeg(noisy())[:-900]
    wait_until(lambda: camera.statistics()["torn_frame"] > 3)
    with pytest.raises(
        TornFrame, match=r"cam\.mjpg sends damaged pictures.*last frame before it is \d+ ms old"
    ):
        camera.latest(0.001)
    assert camera.statistics()["lost"] == 0
    station.make = lambda: jpeg(noisy())
    before = camera.statistics()["frames"]
    wait_until(lambda: camera.statistics()["frames"] > before)
    camera.close()


@pytest.mark.parametrize(
    ("picture", "fault"),
    [(flat(0), BlackFrame), (flat(255), OverexposedFrame), (SCENE, FrozenFrame), (SCENE[:40], FrameSize)],
)
def test_what_came_instead_of_frames_names_the_fault(
    station: Station, picture: Image, fault: type[UnfitFrame]
) -> None:
    camera = OpenCvCamera(config(station.url, health={"noise": "on"}), SystemClock())
    frozen = jpeg(picture)
    station.make = lambda: frozen
    wait_until(lambda: camera.statistics()[fault.name.replace("-", "_")] > 2)
    with pytest.raises(fault, match="The last frame before it is"):
        camera.latest(0.001)
    camera.close()


# --- Sharpness ---------------------------------------------------------------------------------------------


def told_of(pictures: list[Image], limit: float = 0.4) -> list[str]:
    told: list[str] = []
    watch = Sharpness(limit, lambda name, text: told.append(f"{name}: {text}"))
    for second, picture in enumerate(pictures):
        watch.look(float(second), picture)
    return told


def test_lens_out_of_focus_is_told_once_with_how_much() -> None:
    soft = [cv2.GaussianBlur(noisy(), (0, 0), 2) for _ in range(40)]
    (told,) = told_of([noisy() for _ in range(20)] + soft)
    assert told.startswith("blurred: the camera's pictures have ")
    assert "% of the sharpness of the start: wipe the lens" in told


def test_short_blur_dim_light_and_another_scene_are_not_told() -> None:
    sharp = [noisy() for _ in range(20)]
    soft = [cv2.GaussianBlur(noisy(), (0, 0), 2) for _ in range(4)]
    dim = [noisy(SCENE // 2) for _ in range(20)]
    assert not told_of(sharp + soft + sharp + dim)
    assert not told_of(sharp + [np.ascontiguousarray(image[:, ::-1]) for image in sharp])
    assert not told_of(sharp + [flat(90)] * 40, limit=0.0)


# --- Films -------------------------------------------------------------------------------------------------


def film(path: Path, count: int, fps: int = 25) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height = WIDTH, HEIGHT
        for number in range(count):
            picture = np.roll(SCENE, 3 * number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())
    return path


def test_film_plays_at_its_own_rate_and_its_end_has_a_name(tmp_path: Path) -> None:
    clock = ManualClock(5.0)
    camera = OpenCvCamera(config(str(film(tmp_path / "film.mp4", 10))), clock)
    wait_until(lambda: camera.statistics()["lost"] == 1)
    assert camera.statistics()["frames"] == 10
    last = camera.latest(1.0)
    assert last.time == pytest.approx(5.0 + 9 / 25)
    clock.time += 1.0
    with pytest.raises(FilmOver, match=r"film\.mp4 is over after 10 pictures, 0\.4 s\..*\d+ ms old"):
        camera.latest(0.1)
    camera.close()


def test_film_that_is_not_there_and_one_that_is_none_say_so(tmp_path: Path) -> None:
    with pytest.raises(CameraFault, match=r"film\.mp4 does not exist: no film is there"):
        OpenCvCamera(config(str(tmp_path / "film.mp4")), SystemClock())
    (tmp_path / "notes.mp4").write_text("no film", encoding="ascii")
    with pytest.raises(CameraFault, match=r"notes\.mp4 is no film that can be read"):
        OpenCvCamera(config(str(tmp_path / "notes.mp4")), SystemClock())


# --- A cheaper lens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [None, (0.125, 0.0, 0.75, 1.0)])
@pytest.mark.parametrize("size", [(64, 64), (128, 96)])
def test_straightened_picture_is_that_of_straightening_every_pixel(
    crop: tuple[float, ...] | None, size: tuple[int, int]
) -> None:
    lens = Lens(
        resolution=(640, 480), focal=(420, 415), centre=(330.5, 231), distortion=(-0.3, 0.09, 0, 0, 0)
    )
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 255, (480, 640, 3)).astype(np.uint8), (0, 0), 2)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    straight = cv2.undistort(image, lens.matrix, np.array(lens.distortion))
    values = {"crop": crop, "size": size}
    exact = Delivery(CameraConfig.model_validate(values))(straight).astype(int)
    ours = Delivery(CameraConfig.model_validate({**values, "lens": lens}))(image)
    inner = np.s_[2:-2, 2:-2]  # at the rim one continues the picture where the other is black
    assert np.abs(ours - exact)[inner].mean() < 1.5
    assert np.abs(np.roll(ours, 1, axis=1) - exact)[inner].mean() > 8  # a shift of one pixel would show
