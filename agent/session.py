"""One start of the program on a run: its directory, ours alone, for as long as the robot is engaged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agent.files import append_row, to_json, write_atomic
from agent.recovery import recover
from agent.run_dir import RunDir

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """What a run's directory keeps of one start."""

    config: str  # the settings in force, as a file
    spaces: Mapping[str, Any]  # the shapes that the learner builds for
    about: Mapping[str, Any]  # by which command it came about, a row

    def keep(self, run: RunDir) -> None:
        """Writes what the learner reads, and the row. Raises DiskError."""
        write_atomic(run.path / "config.yaml", self.config)
        write_atomic(run.path / "spaces.json", to_json(self.spaces))
        append_row(run.path / "sessions.jsonl", self.about)

    @contextmanager
    def begun(self, path: Path, stage: AbstractContextManager[T]) -> Iterator[tuple[RunDir, T]]:
        """A new run and the entered stage. A run whose stage never came up leaves nothing.

        Raises RunError, DiskError, and what the stage does.
        """
        run = RunDir.vacant(path)
        with _resumable(run), stage as scene:
            run.create(path, self.config)
            with run.lock("actor"):
                self.keep(run)
                yield run, scene

    @contextmanager
    def resumed(
        self, path: Path, stage: AbstractContextManager[T], changes: Callable[[Path], list[str]]
    ) -> Iterator[tuple[RunDir, T]]:
        """An earlier run, made whole after a crash, and the entered stage.

        changes: what is set otherwise than before; it may refuse. Raises RunError, DiskError, and what those
        two do.
        """
        run = RunDir.open(path)
        with _resumable(run), run.lock("actor"):
            _make_whole(run, changes(path))
            with stage as scene:
                self.keep(run)
                yield run, scene


@contextmanager
def _resumable(run: RunDir) -> Iterator[None]:
    """Tells whoever interrupts a run how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        if (run.path / "config.yaml").exists():
            print(f"To go on: the same command with --resume --run {run.path}", file=sys.stderr)
        raise


def _make_whole(run: RunDir, changes: list[str]) -> None:
    """Closes what a crash left open, and says what is new."""
    found, news = recover(run.path), [f"changed: {line}" for line in changes]
    news += [f"recovered {summary.file}: {summary.steps} steps" for summary in found.recovered]
    news += [f"left out: {trouble}" for trouble in found.damaged]
    print(*news, sep="\n", end="\n" * bool(news))
