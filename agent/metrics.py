"""Numbers of a run: rows over time, intervals that say how sure they are, and the summary at the end."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.episodes import EpisodeSummary
from agent.files import disk_errors, drop_torn_line, read_rows, to_json, write_all, write_atomic

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

NORMALISED = "score (0 random, 1 expert, both in simulation)"
Z95 = 1.96  # standard deviations to either side that hold 95 % of a normal distribution


class MetricsLog:
    """Rows of numbers over control steps, in metrics.jsonl and for TensorBoard.

    Several processes may write to one run; each row is a single append. What depends on the clock of the
    wall stands under `wall`, so that the rest of two runs with one seed can be compared byte by byte.
    """

    def __init__(self, path: Path, writer: str = "actor", *, wall: Callable[[], float] = time.time) -> None:
        """Opens PATH/metrics.jsonl and PATH/tensorboard/WRITER. `wall` is seconds since 1970."""
        self._path = path / "metrics.jsonl"
        self._folder = path / "tensorboard" / writer
        self._wall = wall
        with disk_errors(self._path):
            self._handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            drop_torn_line(self._handle)
        self._events: EventFileWriter | None = None

    def write(
        self, step: int, values: Mapping[str, float], timings: Mapping[str, float] | None = None
    ) -> None:
        """One row: `values` repeat with the seed, `timings` depend on the machine. Raises DiskError."""
        now = self._wall()
        numbers = {name: float(value) for name, value in values.items()}
        clocked = {name: float(value) for name, value in (timings or {}).items()}
        row = {"step": int(step), **_finite(numbers), "wall": {"time": now, **_finite(clocked)}}
        with disk_errors(self._path):
            write_all(self._handle, (to_json(row) + "\n").encode())
            self._tensorboard(int(step), {**numbers, **clocked}, now)

    def close(self) -> None:
        """Flushes TensorBoard's file; the rows are on disk already."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _tensorboard(self, step: int, numbers: Mapping[str, float], now: float) -> None:
        """Without torch's own writer, which would bring torch into processes that only count."""
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._events is None:
            self._events = EventFileWriter(str(self._folder), flush_secs=5)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._events.add_event(Event(wall_time=now, step=step, summary=Summary(value=values)))


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no nan."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; the torn last row of a killed process is left out."""
    return read_rows(path / "metrics.jsonl")


def wilson(k: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval (low, high) of a rate of which k of n were seen; (0, 1) when n is 0.

    E. B. Wilson, 1927. Unlike k/n ± z sd it is honest at 0/20 and at 20/20. Raises ValueError.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a rate")
    if n == 0:
        return 0.0, 1.0
    p, spread = k / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


@dataclass
class Recent:
    """Mean and spread of the last `size` values, for a progress line."""

    size: int = 20
    values: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.values = deque(maxlen=self.size)

    def add(self, value: float) -> None:
        """Takes in a value; the oldest one leaves."""
        self.values.append(float(value))

    @property
    def mean(self) -> float:
        """nan before the first value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """The sample standard deviation; 0 with fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


class Stopwatch:
    """How long the phases of a loop take: percentiles, because means hide the step that was late."""

    def __init__(self, monotonic: Callable[[], float] = time.perf_counter, keep: int = 10_000) -> None:
        self._monotonic, self._keep = monotonic, keep
        self._laps: dict[str, deque[float]] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times a block."""
        start = self._monotonic()
        try:
            yield
        finally:
            laps = self._laps.setdefault(phase, deque(maxlen=self._keep))
            laps.append(self._monotonic() - start)

    def row(self) -> dict[str, float]:
        """Median, p99 and maximum of each phase, ms, over the last laps."""
        row: dict[str, float] = {}
        for phase, laps in self._laps.items():
            low, high = np.percentile(laps, (50, 99))
            row |= {
                f"{phase}_p50_ms": low * 1e3,
                f"{phase}_p99_ms": high * 1e3,
                f"{phase}_max_ms": max(laps) * 1e3,
            }
        return {name: float(value) for name, value in row.items()}


def summarize(
    training: Sequence[EpisodeSummary],
    evaluation: Sequence[EpisodeSummary] = (),
    *,
    labels: Mapping[str, str] | None = None,
    counters: Mapping[str, float] | None = None,
    log: Path | None = None,
    next_commands: Sequence[str] = (),
    anchors: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What a run comes to, for summary.json and `render_summary`.

    Success and every measure called success_* become rates with their Wilson interval, the return and the
    other measures mean and sd. `labels` gives them names for people; `counters` are further numbers of the
    run, such as bus errors. `anchors` are the mean returns of "random" and "expert": with them the summary
    holds the score that is 0 for the one and 1 for the other. Rates count every episode that was brought to
    its end; faulted ones are named.
    """
    return {
        "evaluation": _scores(evaluation, labels or {}, anchors) if evaluation else None,
        "training": _scores(training, labels or {}, anchors) if training else None,
        "rig": _effort([*training, *evaluation]) | dict(counters or {}),
        "log": None if log is None else str(log),
        "next": list(next_commands),
    }


def _scores(
    episodes: Sequence[EpisodeSummary], labels: Mapping[str, str], anchors: Mapping[str, float] | None
) -> dict[str, Any]:
    whole = [episode for episode in episodes if episode.fault is None]
    names = sorted({name for episode in whole for name in episode.measures})
    columns = {name: [e.measures[name] for e in whole if name in e.measures] for name in names}
    rates = {"success": [float(episode.success) for episode in whole]}
    rates |= {name: columns[name] for name in names if name.startswith("success_")}
    numbers = {"return": [episode.return_ for episode in whole]}
    if anchors is not None:
        numbers["normalised"] = [normalised(episode.return_, anchors) for episode in whole]
        labels = {"normalised": NORMALISED, **labels}
    numbers |= {name: columns[name] for name in names if not name.startswith("success_")}
    return {
        "episodes": len(whole),
        "rates": {name: _rate(values, labels.get(name, name)) for name, values in rates.items()},
        "numbers": {name: _spread(values, labels.get(name, name)) for name, values in numbers.items()},
    }


def normalised(return_: float, anchors: Mapping[str, float]) -> float:
    """A return on the scale where the mean of "random" is 0 and that of "expert" 1."""
    return (return_ - anchors["random"]) / (anchors["expert"] - anchors["random"])


def _rate(values: Sequence[float], label: str) -> dict[str, Any]:
    k, n = sum(value > 0.5 for value in values), len(values)
    low, high = wilson(k, n)
    return {"label": label, "k": k, "n": n, "rate": k / n if n else None, "low": low, "high": high}


def _spread(values: Sequence[float], label: str) -> dict[str, Any]:
    mean = statistics.fmean(values) if values else None
    return {"label": label, "mean": mean, "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def _effort(episodes: Sequence[EpisodeSummary]) -> dict[str, Any]:
    steps = sum(episode.steps for episode in episodes)
    seconds = sum(episode.robot_seconds for episode in episodes)
    return {
        "steps": steps,
        "episodes": len(episodes),
        "robot_hours": seconds / 3600,
        "achieved_hz": steps / seconds if seconds > 0 else None,
        "late_steps": sum(episode.late for episode in episodes),
        "faults": dict(Counter(episode.fault for episode in episodes if episode.fault)),
        "events": dict(sum((Counter(episode.events) for episode in episodes), Counter())),
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json whole or not at all. Raises DiskError."""
    write_atomic(path, json.dumps(summary, indent=2) + "\n")


def render_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Prints a summary for a person: the results, what they cost, where they lie, what to type next."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for part, title in (("evaluation", "evaluation"), ("training", "training")):
        if summary[part] is not None:
            table.add_section()
            _add_scores(table, title, summary[part])
    table.add_section()
    _add_effort(table, summary["rig"])
    console.print(table)
    if summary["log"]:
        console.print(f"everything is in [bold]{summary['log']}[/bold]", highlight=False, soft_wrap=True)
    for command in summary["next"]:
        console.print(f"  {command}", style="cyan", highlight=False, soft_wrap=True, markup=False)


def _add_scores(table: Table, title: str, scores: Mapping[str, Any]) -> None:
    table.add_row(f"[bold]{title}[/bold]", f"{scores['episodes']} episodes")
    for rate in scores["rates"].values():
        if rate["n"]:
            interval = f"95 % interval {rate['low']:.0%} to {rate['high']:.0%}"
            table.add_row(
                rate["label"], f"[bold]{rate['k']}/{rate['n']}[/bold] = {rate['rate']:.0%}, {interval}"
            )
    for number in scores["numbers"].values():
        if number["mean"] is not None:
            table.add_row(number["label"], f"{number['mean']:.3g} ± {number['sd']:.2g}")


def _add_effort(table: Table, rig: Mapping[str, Any]) -> None:
    known = ("steps", "episodes", "robot_hours", "achieved_hz", "late_steps", "faults", "events")
    table.add_row("[bold]rig[/bold]", f"{rig['steps']} steps in {rig['episodes']} episodes")
    table.add_row("robot time", f"{rig['robot_hours']:.2f} h")
    if rig["achieved_hz"] is not None:
        table.add_row("achieved rate", f"{rig['achieved_hz']:.2f} Hz")
    share = rig["late_steps"] / rig["steps"] if rig["steps"] else 0.0
    table.add_row("late steps", f"{rig['late_steps']} ({share:.1%})")
    faults = _times(rig["faults"])
    table.add_row("faulted episodes", f"[red]{faults}[/red]" if faults else "none")
    if rig["events"]:
        table.add_row("events", _times(rig["events"]))
    for name, value in rig.items():
        if name not in known:
            table.add_row(name.replace("_", " "), f"{value:g}")


def _times(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items())
