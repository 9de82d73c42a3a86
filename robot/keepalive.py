"""Keeps servos from stopping by themselves while the program computes, without the program's help."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def kept_alive(tend: Callable[[], None], interval: float) -> Iterator[None]:
    """Within the context a thread tends a robot every interval (s).

    tend: quick, and harmless while the program itself speaks to the robot.
    """
    over = threading.Event()

    def run() -> None:
        while not over.wait(interval):
            tend()

    thread = threading.Thread(target=run, name="keep-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
