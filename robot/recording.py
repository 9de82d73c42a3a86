"""Films of what cameras captured, in full size and with the time of each picture, beside an episode's log."""

from __future__ import annotations

import contextlib
import csv
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from cv2.typing import MatLike

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

QUEUE = 15  # pictures that may wait for the disk, half a second; what comes then is dropped and counted
ERRORS = (OSError, ValueError)  # of the disk; and PyAV's, which are one or the other
END_PATIENCE = 3.0  # s for a film to be whole; the robot holds its pose meanwhile
TICK = Fraction(1, 1000)  # s, the film's unit of time; exact times are in the table beside it
RATE = 30  # that players are told; pictures carry their own times
# H.264 because a night of JPEGs would take 40 GB; ultrafast costs 0.1 of a core at 640x480 and 30 per second.
ENCODER = {"preset": "ultrafast", "tune": "zerolatency", "crf": "18"}
# A program that is killed loses the last tenth of a second and no more.
CONTAINER = {"flush_packets": "1", "cluster_time_limit": "100"}


class _Disk:
    """A new file that PyAV writes through us.

    Opened by PyAV itself, a file on a disk that hangs would hold every thread of the program; and of an error
    of the disk PyAV says only that there was one, so it is kept here until it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._error: OSError | None = None
        self.name = str(path)
        self.seek, self.tell, self.seekable = self._file.seek, self._file.tell, self._file.seekable
        self.close = self._file.close

    def write(self, data: bytes) -> int:
        """Takes all of it; after an error to no purpose."""
        rest = memoryview(data)
        try:
            while self._error is None and rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def check(self) -> None:
        """Raises OSError when something could not be written."""
        if self._error is not None:
            raise self._error


class FilmFile:
    """A film on disk: PATH.mkv, and PATH.csv with number and time (s of the rig's clock) of each picture."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        self._closing = ExitStack()
        table = self._closing.enter_context(
            path.with_name(path.name + ".csv").open("w", encoding="ascii", newline="", buffering=1)
        )
        self._table = csv.writer(table)
        self._table.writerow(("picture", "time"))
        self._disk = self._closing.enter_context(closing(_Disk(path.with_name(path.name + ".mkv"))))
        self._film: OutputContainer = av.open(self._disk, "w", format="matroska", options=dict(CONTAINER))
        self._stream: VideoStream | None = None
        self._first = 0.0  # s
        self._count = 0

    def add(self, image: MatLike, time: float) -> None:
        """One captured picture (H, W, 3) uint8 BGR. Raises OSError."""
        import av

        if self._stream is None:
            self._stream, self._first = self._opened(image), time
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")  # type: ignore[arg-type]
        frame.pts, frame.time_base = round((time - self._first) / TICK), TICK
        self._film.mux(self._stream.encode(frame))
        self._disk.check()
        self._table.writerow((self._count, f"{time:.6f}"))
        self._count += 1

    def close(self) -> None:
        """Makes the film whole. Raises OSError."""
        with self._closing:
            try:
                if self._stream is not None:
                    self._film.mux(self._stream.encode())
            finally:
                self._film.close()
            self._disk.check()

    def _opened(self, image: MatLike) -> VideoStream:
        height, width = image.shape[:2]
        stream = self._film.add_stream("libx264", rate=RATE, options=dict(ENCODER))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
        stream.codec_context.time_base = TICK
        stream.codec_context.thread_count = 1
        return stream


class Recorder:
    """Films one camera without ever making it wait: pictures that the disk has no time for are dropped.

    A disk that fails ends the recording, not the episode, and is told once.
    """

    def __init__(
        self, name: str, tell: Callable[[str, str], None], *, patience: float = END_PATIENCE
    ) -> None:
        """tell: gets an event's name and its text; patience: s that `end` waits for the disk."""
        self.name, self._tell, self._patience = name, tell, patience
        self._queue: deque[tuple[MatLike, float]] = deque()
        self._wake = threading.Condition()
        self._filming = self._failed = False
        self._thread: threading.Thread | None = None
        self._written = self._dropped = 0

    def take(self, image: MatLike, time: float) -> None:
        """A captured picture (H, W, 3) uint8 BGR, which nobody changes any more, and its time (s)."""
        with self._wake:
            if not self._filming or self._failed:
                return
            if len(self._queue) >= QUEUE:
                self._dropped += 1
                return
            self._queue.append((image, time))
            self._wake.notify()

    def begin(self, path: Path) -> None:
        """From now on pictures go to PATH.mkv and PATH.csv; after a failure nothing happens. Never raises."""
        if self._failed:
            return
        self._filming, self._path = True, path
        self._thread = threading.Thread(
            target=self._write, args=(path,), name=f"film {path.name}", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Returns when the film is whole, or given up. May be repeated; never raises."""
        with self._wake:
            self._filming = False
            self._wake.notify()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(self._patience)
            if thread.is_alive():
                self._give_up(self._path, f"the disk hangs, for {self._patience:g} s")

    def statistics(self) -> dict[str, float]:
        """Pictures written, and pictures for which there was no time."""
        return {"recorded": float(self._written), "unrecorded": float(self._dropped)}

    def _write(self, path: Path) -> None:
        try:
            film = FilmFile(path)
            try:
                while (picture := self._next()) is not None:
                    film.add(*picture)
                    self._written += 1
            except ERRORS:
                with contextlib.suppress(*ERRORS):  # the same disk, once more
                    film.close()
                raise
            film.close()
        except ERRORS as error:
            self._give_up(path, (isinstance(error, OSError) and error.strerror) or str(error))

    def _next(self) -> tuple[MatLike, float] | None:
        with self._wake:
            self._wake.wait_for(lambda: self._queue or not self._filming)
            return self._queue.popleft() if self._queue else None

    def _give_up(self, path: Path, why: str) -> None:
        """Ends the recording for good; told once, however often."""
        with self._wake:
            before, self._failed = self._failed, True
            self._queue.clear()
        if not before:
            self._tell(
                "recording-stopped",
                f"the recording of camera {self.name} to {path}.mkv has stopped: {why}. "
                "Episodes go on without it. Free some space, or look at the disk; the next start "
                "records again",
            )
