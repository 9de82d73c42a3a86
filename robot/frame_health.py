"""Whether a captured picture is a sight of the scene: not black, white or torn, and not an old one again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from cv2.typing import MatLike
from pydantic import Field

from robot.types import BlackFrame, Config, FrozenFrame, Image, OverexposedFrame, TornFrame

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

SHARE = 0.99  # of the delivered values that must be dark, or bright, for a picture to show nothing
TAIL = 16  # px, rows of one block of a JPEG with halved colours
# Times the usual gap: after a longer one, either the source was silent or its pictures waited for us.
# Shorter ones happen on a busy machine all the time.
GAP = 4.0
WAITED = 0.5  # of the usual gap: who waits so long for a picture has found no older one ...
WAITS = 2  # ... if it happens in a row; once, the machine may have done something else meanwhile
BLINK = 0.003  # s, as long as no gap is known; a picture that is there comes within 1 ms
GAPS = 5  # of which the usual one is the median: a source may change its rate
BLUR_PERIOD = 1.0  # s between two looks at the sharpness
BLUR_LOOKS = 10  # that are taken together: a hand before the lens, or a fast finger, is no blurred lens
# What FFmpeg calls the errors that it would else conceal, by pixels of the picture before: old ones.
STRICT = {"err_detect": "+explode+bitstream+buffer+careful+aggressive"}


class HealthConfig(Config):
    """From where on a picture counts as none. The defaults hold for lit scenes and sensors with noise."""

    # Whether a sensor's noise makes no two pictures alike: then the same one again is an old one. auto: yes
    # for devices; no for streams and films, which may leave out what has not changed.
    noise: Literal["auto", "on", "off"] = "auto"
    black: int = Field(16, ge=0, le=254)  # of 255; many cameras send 16 for no light at all
    white: int = Field(250, ge=1, le=255)  # of 255, in all colours
    blurred: float = Field(0.4, ge=0, lt=1)  # of the sharpness at the start, below which it is told; 0: never


class FrameHealth:
    """Judges one camera's pictures one after the other."""

    def __init__(self, config: HealthConfig, *, noisy: bool) -> None:
        """noisy: whether no two pictures of this camera are alike, whatever they show."""
        self._config, self._noisy = config, noisy
        self._last: MatLike | None = None
        self._repeats = 0

    def judge(self, captured: MatLike, delivered: Image) -> None:
        """Returns for a picture that shows the scene; captured (H, W, 3) BGR, delivered as the agent sees it.

        Raises BlackFrame, OverexposedFrame, TornFrame or FrozenFrame.
        """
        dark, bright = self._config.black, self._config.white
        if np.count_nonzero(delivered <= dark) >= SHARE * delivered.size:
            raise BlackFrame(
                f"sends black pictures (nothing above {dark} of 255): take off the lens cap, switch on the "
                "light, or lock the exposure (hw.camera.controls)"
            )
        if np.count_nonzero(delivered >= bright) >= SHARE * delivered.size:
            raise OverexposedFrame(
                f"sends white pictures (nothing below {bright} of 255): less light, or a shorter exposure "
                "(hw.camera.controls)"
            )
        if self._noisy:
            self._judge_noise(captured)
            self._last = captured

    def _judge_noise(self, captured: MatLike) -> None:
        last = self._last
        if last is not None and last.shape == captured.shape and cv2.norm(last, captured, cv2.NORM_INF) == 0:
            self._repeats += 1
            raise FrozenFrame(
                f"repeats one picture, {self._repeats} times so far: it hangs. Unplug it and plug it in "
                "again (hw.camera.health.noise: off, if its pictures have no noise)"
            )
        self._repeats = 0
        # A decoder that runs out of data fills the rest of a picture with the last colour. What is dark or
        # bright may be so by itself: JPEGs have no noise in shadows, and bars beside smaller pictures none.
        tail = captured[-TAIL:]
        lit = self._config.black < int(tail[0, 0].max()) and int(tail[0, 0].min()) < self._config.white
        if lit and (tail == tail[0, 0]).all():
            raise TornFrame(
                "sends pictures whose lower part is missing: another cable or USB port, no hub "
                "(hw.camera.health.noise: off, if that part is of one colour by itself)"
            )


class Arrivals:
    """Tells pictures that have just come from those that lay in a queue while the program was held up.

    Sockets keep seconds of video. Whoever was away that long would get the oldest picture first, and date it
    now; dates are true again once pictures have to be waited for.
    """

    def __init__(self, *, queued: bool = False) -> None:
        """queued: whether pictures wait already, as FFmpeg has some once it knows what a stream is."""
        self._gaps: deque[float] = deque(maxlen=GAPS)  # s
        self._last: float | None = None  # s
        self._doubt = WAITS * queued  # how many pictures are still to be waited for

    def fresh(self, asked: float, came: float) -> bool:
        """Whether a picture that was asked for, and came (s), is as new as it looks."""
        gap = came - (asked if self._last is None else self._last)
        self._last = came
        usual = float(np.median(self._gaps)) if len(self._gaps) == GAPS else 0.0
        waited = came - asked >= (WAITED * usual or BLINK)
        if waited:
            self._gaps.append(gap)
        if self._doubt:
            self._doubt = self._doubt - 1 if waited else WAITS
        elif usual and gap > GAP * usual:
            self._doubt = WAITS
        return not self._doubt


class StrictJpeg:
    """Decodes JPEGs, and refuses those that are not whole.

    OpenCV's own readers show what they make of a damaged one: FFmpeg completes it with parts of the picture
    before, libjpeg with grey. Of JPEGs that lack half a kB or more, this one found all; a single wrong bit,
    which no USB or network cable lets pass, it seldom finds.
    """

    def __init__(self) -> None:
        self._codec = _mjpeg()

    def __call__(self, data: bytes) -> MatLike:
        """The picture (H, W, 3) uint8 BGR. Raises TornFrame."""
        import av

        try:
            (frame,) = self._codec.decode(av.Packet(data))
            return frame.to_ndarray(format="bgr24")
        except (av.error.FFmpegError, ValueError) as error:
            self._codec = _mjpeg()
            raise TornFrame(
                "sends damaged pictures: another cable or port, a better network "
                f"({type(error).__name__}, {len(data)} bytes)"
            ) from None


def _mjpeg() -> VideoCodecContext:
    import av

    codec = av.CodecContext.create("mjpeg", "r")
    codec.options = dict(STRICT)
    codec.thread_count = 1
    return codec


class Sharpness:
    """Tells, once, of a lens that has become smeared, fogged or turned out of focus since the start."""

    def __init__(self, limit: float, tell: Callable[[str, str], None]) -> None:
        """limit: share of the first sharpness below which it is told; tell: gets an event's name and text."""
        self._limit, self._tell = limit, tell
        self._latest: deque[float] = deque(maxlen=BLUR_LOOKS)
        self._first: float | None = None
        self._due = -np.inf  # s
        self._told = False

    def look(self, time: float, captured: MatLike) -> None:
        """One captured picture (H, W, 3) BGR and its time (s); most of them are let pass."""
        if time < self._due or self._told or not self._limit:
            return
        self._due = time + BLUR_PERIOD
        self._latest.append(sharpness(captured))
        if len(self._latest) < BLUR_LOOKS:
            return
        now = float(np.median(self._latest))
        self._first = now if self._first is None else self._first
        if now < self._limit * self._first:
            self._told = True
            self._tell(
                "blurred",
                f"the camera's pictures have {now / self._first:.0%} of the sharpness of the start: wipe the "
                "lens, look whether its focus was turned or its autofocus is on",
            )


def sharpness(image: MatLike) -> float:
    """How fine the finest of a picture is, whatever its contrast: edges against all that differs."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    edges = cv2.Laplacian(grey, cv2.CV_32F)
    return float(edges.var() / max(float(grey.var()), 1.0))
