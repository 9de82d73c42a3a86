"""What a person sees of a run: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from agent.episodes import EpisodeSummary, RigEvent
from agent.files import DiskError
from agent.schedule import TrainConfig

LOG_INTERVAL = 15.0  # s between two lines when the output is not a terminal
RECENT = 20  # episodes in the running success rate
RATE_INTERVAL = 0.5  # s over which steps are counted, at least
# The losses that tell whether learning goes well, in the order of the display, with their short names.
LOSSES = {
    "kl": "kl",
    "psnr": "psnr",
    "reward_nll": "reward",
    "critic_loss": "critic",
    "actor_loss": "actor",
    "alpha": "alpha",
}


class _Bars(Progress):
    """Bars with one line of numbers below, which a column beside them would squeeze on 80 characters."""

    numbers = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text.from_markup(self.numbers)


class Display:
    """Progress of collecting, pretraining, training and evaluation."""

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.live = self.console.is_terminal
        columns = (
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = _Bars(*columns, console=self.console, disable=not self.live)
        self.total = total_steps
        self.bars: dict[str, Any] = {}
        self.recent: deque[EpisodeSummary] = deque(maxlen=RECENT)
        self.late = 0
        self._printed = -LOG_INTERVAL
        self._counted: tuple[float, int] | None = None  # when the rate was measured, and the steps by then
        self._rate = 0.0

    def __enter__(self) -> Self:
        """Starts the live bar."""
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the terminal as it was."""
        self.progress.stop()

    def begin(self, steps: int, config: TrainConfig) -> None:
        """Says what the run is about to do, after `steps` control steps of earlier sessions."""
        self._counted = (time.monotonic(), steps)
        plan = f"{config.steps} control steps, the first {config.random_steps} random"
        if config.pretrain_updates:
            plan += f", then {config.pretrain_updates} updates of the model if the agent has one"
        self.note(f"going on after {steps} of {plan}" if steps else plan)

    def episode(self, steps: int, summary: EpisodeSummary, status: Mapping[str, Any]) -> None:
        """Shows an episode that has just ended; a faulted one does not count for the success rate."""
        if summary.fault is None:
            self.recent.append(summary)
        self.late += summary.late
        self._measure_rate(steps)
        successes = sum(item.success for item in self.recent)
        parts = [
            f"return {summary.return_:7.1f}",
            f"success {successes}/{len(self.recent)}",
            f"{self._rate:.0f} Hz" if self._rate >= 20 else f"{self._rate:.1f} Hz",
        ]
        parts += [f"late {self.late}"] if self.late else []
        parts += [f"[red]{escape(summary.fault)}[/red]"] if summary.fault else []
        phase = str(status.get("phase", "collecting"))
        self._show(phase, steps, self.total, "  ".join(parts + _learning(status)))

    def pretraining(self, status: Mapping[str, Any]) -> None:
        """Shows model-only updates, from what the learner says of itself; nothing before it speaks."""
        done, total = status.get("pretrained", 0), status.get("pretrain_updates", 0)
        if total:
            self._show("pretraining", done, total, "  ".join(_learning(status)), own_bar=True)

    def catching_up(self, status: Mapping[str, Any]) -> None:
        """Shows updates that are still due after the last step."""
        done, due = status.get("updates", 0), status.get("due", 0)
        self._show("catching up", done, done + due, "  ".join(_learning(status)), own_bar=True)

    def evaluation(self, done: int, total: int) -> None:
        """Shows greedy episodes."""
        self._show("evaluating", done, total, "", own_bar=True)

    def event(self, event: RigEvent) -> None:
        """Prints at what time of the day what happened on the rig: a listener of its events."""
        style = {"warning": "yellow", "error": "red"}.get(event.level, "")
        line = Text(f"{time.strftime('%H:%M:%S')} {event.name}: {event.text}", style)
        self.console.print(line, soft_wrap=True, highlight=False)

    def note(self, text: str) -> None:
        """Prints a line above the bar, as it is."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def stopping(self, error: BaseException) -> None:
        """Says why a run ends before it is saved, where the cause may keep that from ever being done."""
        if isinstance(error, DiskError):
            self.note(
                f"{error}. The robot is relaxed. Saving what can be saved; Ctrl-C does not wait for it."
            )

    def _measure_rate(self, steps: int) -> None:
        now = time.monotonic()
        then, before = self._counted or (now, steps)
        if self._counted is None or now - then > RATE_INTERVAL:
            self._rate = (steps - before) / (now - then) if now > then else 0.0
            self._counted = (now, steps)

    def _show(self, phase: str, done: int, total: int, text: str, *, own_bar: bool = False) -> None:
        if self.live:
            key = phase if own_bar else "run"
            if key not in self.bars:
                self.bars[key] = self.progress.add_task(phase, total=total)
            self.progress.numbers = text or self.progress.numbers
            self.progress.update(self.bars[key], description=phase, completed=done, total=total)
            if own_bar and done >= total:
                self.progress.remove_task(self.bars.pop(key))
        elif time.monotonic() - self._printed > LOG_INTERVAL or 0 < total <= done:
            self._printed = time.monotonic()
            self.console.print(f"{phase:<11} {done}/{total}  {text}", soft_wrap=True, highlight=False)


def chosen_losses(status: Mapping[str, Any]) -> dict[str, float]:
    """The losses that tell whether learning goes well, of what a learner says of itself."""
    losses = status.get("losses") or {}
    return {name: float(losses[name]) for name in LOSSES if name in losses}


def update_times(status: Mapping[str, Any]) -> dict[str, float]:
    """How long one update of each kind takes, median and p99 in ms, of what a learner says of itself."""
    times = status.get("times") or {}
    return {name: float(value) for name, value in times.items() if not name.endswith("_max_ms")}


def _learning(status: Mapping[str, Any]) -> list[str]:
    parts = [f"{LOSSES[name]} {value:.3g}" for name, value in chosen_losses(status).items()]
    medians = {name: ms for name, ms in update_times(status).items() if name.endswith("_p50_ms")}
    latest = list(medians.values())[-1:]  # of updates once there are any, of pretraining before
    parts += [f"probe {status['probe']:.0f} deg"] if status.get("probe") is not None else []
    return parts + [f"{ms:.3g} ms/update" for ms in latest]
