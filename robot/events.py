"""What happened on the rig beside its readings: told to a person at once, kept for the episode's log."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from robot.types import Clock

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class RigEvent:
    """One thing that happened: a restarted servo, a pause to cool down, a cable that is back."""

    time: float  # s of the rig's clock
    name: str  # the word that logs and summaries use: "reboot", "cooling", "pause", "recovered", ...
    text: str  # for the person at the bench
    level: Level


class EventLog:
    """Where the parts of a rig say what happened. May be used from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending: deque[RigEvent] = deque()
        self._listeners: list[Callable[[RigEvent], None]] = []

    def emit(self, name: str, text: str, level: Level = "warning") -> None:
        """Keeps an event for the log and tells it to everybody who listens, in the caller's thread."""
        self._tell(self._kept(name, text, level))

    def emit_aside(self, name: str, text: str, level: Level = "warning") -> None:
        """As `emit`, for callers on whom servos wait: a terminal that is stopped does not stop them."""
        event = self._kept(name, text, level)
        threading.Thread(target=self._tell, args=(event,), name=f"tell {name}", daemon=True).start()

    def listen(self, listener: Callable[[RigEvent], None]) -> None:
        """Has `listener` called with every later event: a live line, a log file."""
        self._listeners.append(listener)

    def drain(self) -> list[RigEvent]:
        """The events since the last call, oldest first."""
        return [self._pending.popleft() for _ in range(len(self._pending))]

    def _kept(self, name: str, text: str, level: Level) -> RigEvent:
        event = RigEvent(self._clock.now(), name, text, level)
        self._pending.append(event)
        return event

    def _tell(self, event: RigEvent) -> None:
        for listener in self._listeners:
            listener(event)
