"""How the program ends: which mistake is whose, what a person is told, and which signals end it in order.

Imports nothing but the standard library: it is there before anything that may fail.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
STUBBORN = 1.0  # s after a first Ctrl-C in which others do not count: the robot is being relaxed

# By name, because importing them to compare would cost a mistyped command the seconds that torch takes.
# 2 is what the person can correct in the command, 1 a run that failed; everything else is a bug of ours.
EXIT_CODES = {
    "configs.document.ConfigError": 2,
    "agent.run_dir.RunError": 2,
    "agent.run_dir.RunBusy": 1,
    "agent.run_dir.CheckpointCorrupt": 1,
    "agent.actor.TooManyFaultsError": 1,
    "agent.build.NoDevice": 2,
    "agent.episodes.EpisodeError": 1,
    "agent.episodes.NotReplayable": 2,
    "agent.files.DiskError": 1,
    "agent.fleet.RobotProcessDied": 1,
    "agent.intake.PriorDataError": 2,
    "agent.learner.CheckpointMismatch": 1,
    "agent.learner.TooLittleMemory": 1,
    "agent.learner.TrainingDivergedError": 1,
    "agent.replay.ReplayTooSmall": 1,
    "agent.train.LearnerDiedError": 1,
    "calibration.board.CalibrationError": 2,
    "calibration.joints_session.JointsError": 1,
    "calibration.recording.RecordingError": 2,
    "calibration.terminal.NoTerminal": 2,
    "robot.rig.ForeignRobotError": 2,
    "robot.types.Fault": 1,
    "robot.types.MissingPart": 1,
    "tasks.anchors.AnchorsError": 1,
    "tasks.oracle.NoExpert": 2,
    "tasks.suite.NoSuite": 2,
    "builtins.MemoryError": 1,
    "torch.OutOfMemoryError": 1,
}
TORCH_MEMORY = "DefaultCPUAllocator"  # by which alone PyTorch's plain RuntimeError is known
# Of the file system: what a path on the command line can lead to.
PATH_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.EFBIG),
}


def exit_code(error: Exception) -> int | None:
    """What the program ends with; None for a bug of ours."""
    if isinstance(error, OSError) and error.errno in PATH_ERRORS:
        return 1
    if isinstance(error, RuntimeError) and TORCH_MEMORY in str(error):
        return 1
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((EXIT_CODES[kind] for kind in kinds if kind in EXIT_CODES), None)


def told(error: Exception) -> str:
    """The error for the person at the bench."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError) or TORCH_MEMORY in str(error):
        return f"Not enough memory. {error} Lower train.replay_capacity or the agent's sizes."
    return str(error)


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, kill and a closed terminal all end the program in the same order: as a KeyboardInterrupt."""
    first = -STUBBORN

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if time.monotonic() - first < STUBBORN:
            return
        first = time.monotonic()
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM]  # what the caller chose to ignore (nohup, &) stays ignored
    numbers += [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_at_ctrl_c() -> None:
    """Lets Ctrl-C outside of `stoppable` end the process without a word: nothing is to be put in order there.

    For the program's last line: Python takes half a second to end, and would answer with a traceback.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        with suppress(OSError, ValueError, RuntimeError):
            sys.stdout.flush()
        os._exit(INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


def plainly(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning of ours without the line of code that it comes from."""
    whole = warnings.formatwarning(message, category, filename, lineno, line)
    print(message if category is UserWarning else whole, file=file or sys.stderr)
