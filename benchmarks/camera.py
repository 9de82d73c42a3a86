"""What a camera costs: the image path of a control step, two cameras at 30 frames/s, and how old frames are.

The camera is an MJPEG server in a process of its own; each picture carries the time of its making, so that
ages are true ones. With `--soak SECONDS` one stream runs for so long, and a line a minute shows whether age
and memory grow.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from robot.camera import CameraConfig, Lens, OpenCvCamera
from robot.clock import SystemClock
from robot.delivery import Delivery
from robot.frame_health import FrameHealth, HealthConfig, StrictJpeg, sharpness
from robot.mjpeg import CameraServer, FrameFeed
from robot.types import CameraFault, Image

LENS = Lens(
    resolution=(640, 480), focal=(420, 415), centre=(330.5, 231), distortion=(-0.3, 0.09, 0.001, -0.002, 0)
)
SQUARE = (0.125, 0.0, 0.75, 1.0)  # the middle of 4:3, as in configs/hw/dclaw.yaml
QUALITY = 90  # of JPEG
FPS = 30.0
CELL, BITS = 16, 32  # px and number of the cells that carry a picture's time
POLL = 0.1  # s between two control steps
REPEATS = 100


def scene(rng: np.random.Generator) -> Image:
    """A cluttered picture (480, 640, 3) with fine texture."""
    texture = cv2.GaussianBlur(rng.normal(0, 255, (480, 640, 3)).astype(np.float32), (0, 0), 2.5)
    image = np.clip(128 + texture, 0, 255).astype(np.uint8)
    for x, y, width, height in rng.integers((0, 0, 5, 5), (600, 440, 150, 150), (60, 4)):
        colour = tuple(float(value) for value in rng.integers(0, 255, 3))
        cv2.rectangle(image, (int(x), int(y)), (int(x + width), int(y + height)), colour, -1)
    return image


def noisy(image: Image, rng: np.random.Generator) -> Image:
    """The picture as a sensor sees it."""
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


# --- True ages ---------------------------------------------------------------------------------------------


def stamp(image: Image, moment: float) -> None:
    """Writes a time (s) into the first rows of a picture, in ms, a bit a cell."""
    number = int(moment * 1e3) % 2**BITS
    for bit in range(BITS):
        image[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)


def stamped(image: Image) -> float:
    """The time (s) that was written into a picture."""
    bits = image[CELL // 2, CELL // 2 : BITS * CELL : CELL, 1] > 127
    return sum(1 << int(bit) for bit in np.flatnonzero(bits)) / 1e3


def serve(fps: float) -> None:
    """A camera in this process, until standard input closes; prints its address."""
    rng = np.random.default_rng(0)
    base = scene(rng)
    pictures = [noisy(base, rng) for _ in range(8)]
    feed = FrameFeed()
    with closing(CameraServer(feed, dict)) as server:
        print(server.url + "/cam.mjpg", flush=True)
        due, count = time.monotonic(), 0
        while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
            image = pictures[count % len(pictures)]
            stamp(image, time.monotonic())
            feed.publish(image, QUALITY)
            count, due = count + 1, max(due + 1 / fps, time.monotonic())


@contextmanager
def served() -> Iterator[str]:
    """The address of a camera in a process of its own."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait()


def age(camera: OpenCvCamera) -> float:
    """Of the newest picture, ms since it was made."""
    return (time.monotonic() - stamped(camera.picture())) * 1e3


def stale(camera: OpenCvCamera) -> bool:
    """Whether a control step would have to do without a frame now."""
    try:
        camera.latest(camera.config.max_age)
    except CameraFault:
        return True
    return False


def ages(cameras: list[OpenCvCamera], seconds: float) -> NDArray[np.float64]:
    """The true age (ms) of each picture that a control step of 10 Hz would see."""
    found: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found += [age(camera) for camera in cameras]
        time.sleep(POLL)
    return np.array(found)


# --- Tables ------------------------------------------------------------------------------------------------


def milliseconds(work: Callable[[], object]) -> float:
    """Of CPU, the median of single calls."""
    work()
    laps = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        laps.append(time.process_time() - start)
    return float(np.median(laps)) * 1e3


def exact(config: CameraConfig, image: Image) -> Image:
    """What a delivery comes to when every captured pixel is straightened before the crop is shrunk."""
    assert config.lens
    maps = cv2.initUndistortRectifyMap(
        config.lens.matrix, np.array(config.lens.distortion), np.eye(3), config.lens.matrix, (640, 480), 5
    )
    straight = cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Delivery(config.model_copy(update={"lens": None}))(straight)


def show_paths(image: Image) -> None:
    """The cost of each way from a captured to a delivered picture."""
    print(f"\n{'from 640x480 to 64x64':<34}{'ms':>8}{'differs from exact: mean':>28}{'p99':>6}  of 255")
    for label, lens, crop in (
        ("whole", None, None),
        ("middle square", None, SQUARE),
        ("whole, straightened", LENS, None),
        ("middle square, straightened", LENS, SQUARE),
    ):
        config = CameraConfig(lens=lens, crop=crop)
        delivery = Delivery(config)
        line = f"{label:<34}{milliseconds(lambda delivery=delivery: delivery(image)):>8.2f}"
        if lens:
            apart = np.abs(delivery(image).astype(int) - exact(config, image))
            line += f"{apart.mean():>28.2f}{np.percentile(apart, 99):>6.0f}"
        print(line)


def show_parts(image: Image) -> None:
    """What else each captured picture costs, in the capturing thread."""
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    decode, small = StrictJpeg(), Delivery(CameraConfig())(image)
    other = image.copy()
    other[-1, -1] += 1
    health, pictures = FrameHealth(HealthConfig(), noisy=True), [image, other]

    def judge() -> None:
        pictures.reverse()
        health.judge(pictures[0], small)

    print(f"\n{'for each captured picture':<34}{'ms':>8}")
    print(f"{f'decode {len(jpeg) / 1e3:.0f} kB strictly':<34}{milliseconds(lambda: decode(jpeg)):>8.2f}")
    print(f"{'judge':<34}{milliseconds(judge):>8.2f}")
    print(f"{'sharpness, once a second':<34}{milliseconds(lambda: sharpness(image)):>8.2f}")


def show_capture(count: int, config: CameraConfig, seconds: float) -> None:
    """Rate, CPU and age of so many cameras at once."""
    with ExitStack() as stack:
        urls = [stack.enter_context(served()) for _ in range(count)]
        cameras = [
            OpenCvCamera(config.model_copy(update={"source": url}), SystemClock(), tell=lambda *_: None)
            for url in urls
        ]
        for camera in cameras:
            stack.callback(camera.close)
        time.sleep(1.0)
        before, start, cpu = frames(cameras), time.monotonic(), time.process_time()
        time.sleep(seconds)
        took = time.monotonic() - start
        cores, rate = (time.process_time() - cpu) / took, (frames(cameras) - before) / took / count
        old = np.percentile(ages(cameras, seconds), (50, 95, 100))
    lens = ", straightened" if config.lens else ""
    print(
        f"{f'{count} x 640x480{lens}':<34}{rate:>8.1f}{cores:>8.3f}"
        + "".join(f"{part:>9.1f}" for part in old)
    )


def frames(cameras: list[OpenCvCamera]) -> float:
    """Captured so far, by all of them."""
    return sum(camera.statistics()["frames"] for camera in cameras)


def resident() -> float:
    """Memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(seconds: float, every: float) -> None:
    """One stream for a long time."""
    config = CameraConfig(lens=LENS, crop=SQUARE, health=HealthConfig(noise="on"))
    print(
        f"{'s':>7}{'fps':>7}{'age p50':>9}{'p95':>8}{'max ms':>9}{'MB':>8}{'stale':>7}{'lost':>6}{'unfit':>7}"
    )
    with ExitStack() as stack:
        url = stack.enter_context(served())
        camera = OpenCvCamera(config.model_copy(update={"source": url}), SystemClock(), tell=print)
        stack.callback(camera.close)
        begun = time.monotonic()
        while (now := time.monotonic()) - begun < seconds:
            before, old, refused = frames([camera]), [], 0
            while time.monotonic() - now < min(every, begun + seconds - now):
                refused += stale(camera)
                old.append(age(camera))
                time.sleep(POLL)
            rate, counts = (frames([camera]) - before) / (time.monotonic() - now), camera.statistics()
            unfit = sum(counts.values()) - counts["frames"] - counts["lost"]
            low, high, most = np.percentile(old, (50, 95, 100))
            print(
                f"{time.monotonic() - begun:>7.0f}{rate:>7.1f}{low:>9.1f}{high:>8.1f}{most:>9.1f}"
                f"{resident():>8.1f}{refused:>7}{counts['lost']:>6.0f}{unfit:>7.0f}",
                flush=True,
            )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each capture, twice")
    parser.add_argument("--soak", type=float, help="seconds of one stream, instead of the tables")
    parser.add_argument("--every", type=float, default=60.0, help="seconds a line of --soak")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(FPS)
    if options.soak:
        return soak(options.soak, options.every)
    rng = np.random.default_rng(0)
    cv2.setNumThreads(1)
    image = noisy(scene(rng), rng)
    show_paths(image)
    show_parts(image)
    print(f"\n{'capture':<34}{'fps':>8}{'cores':>8}{'age p50':>9}{'p95':>9}{'max ms':>9}")
    square = CameraConfig(crop=SQUARE, health=HealthConfig(noise="on"))
    for count, config in ((1, square), (2, square), (2, square.model_copy(update={"lens": LENS}))):
        show_capture(count, config, options.seconds)
    return None


if __name__ == "__main__":
    main()
