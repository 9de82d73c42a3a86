"""A camera server that a test shows pictures with, from a thread of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from robot.mjpeg import CameraServer, FrameFeed


class Broadcast(ABC):
    """Calls `show` every period until it is closed; subclasses publish to `feed`."""

    def __init__(self, period: float, port: int = 0) -> None:
        """Begins at once: what `show` needs has to be there before."""
        self.feed = FrameFeed()
        self.server = CameraServer(self.feed, dict, port)
        self._period = period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return self.server.url + "/cam.mjpg"

    @abstractmethod
    def show(self) -> None:
        """Publishes a picture, or none."""

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.server.close()

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self.show()
