"""Keeps servos from stopping by themselves while the program computes, without the program's help."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class KeepAlive:
    """A thread that tends a robot now and then, from entering the context until leaving it."""

    def __init__(self, tend: Callable[[], None], interval: float) -> None:
        """tend: quick, and harmless while the program itself speaks to the robot. interval: s."""
        self._tend, self._interval = tend, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keep-alive", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._tend()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
