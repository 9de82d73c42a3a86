"""The program in a terminal of its own, and a person before it who reads and presses keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
CTRL_C = "\x03"
PATIENCE = 120.0  # s for the program to get where it should, on a busy machine


class Screen:
    """The command in a terminal of its own, and what was printed there."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_robot.py"), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**os.environ, "COLUMNS": "110", "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its keys are signals
        )
        os.close(slave)
        self.text = ""

    def read(self) -> str:
        """What has been printed since the last time, without what only moves the cursor."""
        if not select.select([self._master], [], [], 0.05)[0]:
            return ""
        try:
            data = os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            return ""
        new = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", data)
        self.text += new
        return new

    def press(self, key: str) -> None:
        os.write(self._master, b"\n" if key == "enter" else key.encode())

    def read_until(self, happened: Callable[[], object]) -> None:
        """Reads while the program works, until something has happened."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            self.read()

    @property
    def whole_lines(self) -> str:
        """What was printed, without the breaks of a narrow terminal."""
        return " ".join(self.text.split())

    def interrupt_until_it_ends(self) -> None:
        """Ctrl-C, again and again, as somebody presses it who sees nothing happen."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self.press(CTRL_C)
            self.read()
        while self.read():
            pass

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed and waits for whole lines, as a shell expects it."""
        local: int = termios.tcgetattr(self._master)[3]
        return bool(local & termios.ECHO and local & termios.ICANON)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
