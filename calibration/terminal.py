"""A person at a terminal: Enter alone, or single keys and a part that is always up to date. Works by SSH."""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

ESCAPE = b"\x1b"  # with which arrow and function keys begin


class NoTerminal(Exception):
    """There is nobody at a terminal who could press keys."""


class Hangup(KeyboardInterrupt):
    """The terminal was closed."""


class Keys:
    """Notices that Enter was pressed, without waiting for it."""

    def __init__(self, stream: TextIO | None) -> None:
        """stream: the keyboard; None as `sys.stdin` is where a program was started without one."""
        self._stream = stream
        self.closed = stream is None  # nobody is there who could press it

    def pressed(self) -> bool:
        """Whether a line has come since the last time."""
        if self._stream is None or self.closed or not select.select([self._stream], [], [], 0)[0]:
            return False
        self.closed = not self._stream.readline()
        return not self.closed


class Terminal:
    """Keys as they are pressed, without Enter; what is shown below what has been printed.

    In its context the terminal neither waits for lines nor shows what is typed; Ctrl-C works as ever. However
    the context is left, the terminal is as it was before.
    """

    def __init__(self, stream: TextIO | None, console: Console) -> None:
        """Raises NoTerminal when the stream, or what `sys.stdin` then is, is none."""
        if stream is None or not stream.isatty():
            raise NoTerminal(
                "This needs a terminal, whose keys answer its questions; the standard input is none. By SSH: "
                "`ssh -t`, in a container: `docker run -it`"
            )
        self._descriptor, self._console = stream.fileno(), console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._live.stop()
        finally:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def pressed(self) -> list[str]:
        """What was pressed since the last time: letters, and `enter`. Raises Hangup."""
        if not select.select([self._descriptor], [], [], 0)[0]:
            return []
        try:
            typed = os.read(self._descriptor, 1024)
        except OSError as error:  # EIO: the other end is gone
            raise Hangup from error
        if not typed or b"\x04" in typed:
            raise Hangup
        letters = typed.split(ESCAPE)[0].decode(errors="ignore").lower()
        return ["enter" if letter in "\r\n" else letter for letter in letters]

    def print(self, text: str, style: str = "") -> None:
        """Says something that stays."""
        self._console.print(Text(text, style), soft_wrap=False)

    def show(self, lines: Sequence[tuple[str, str]]) -> None:
        """Replaces the part that is up to date by these lines and their styles."""
        if self._shown != [*lines]:  # a slow line is not to be filled with what is there already
            self._shown = [*lines]
            self._live.update(Group(*(Text(line, style) for line, style in lines)), refresh=True)
