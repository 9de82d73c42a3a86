"""How far a procedure at the bench has come: a bar on a terminal, a line for each stage in a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Told = Callable[[str, float], None]  # what is going on, and how much of all is done, 0 to 1


def say(console: Console, text: str) -> None:
    """Prints a line as it is: nothing in a path or a camera's name is taken for markup, none is broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(console: Console, title: str) -> Iterator[Told]:
    """A function that is told what is going on, and how much of all is done, 0 to 1."""
    columns = (
        TextColumn("{task.description:<36}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    stages: list[str] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=1.0)

        def told(what: str, share: float) -> None:
            progress.update(task, description=f"{title}: {what}", completed=share)
            if not console.is_terminal and what not in stages:
                stages.append(what)
                console.print(f"{title}: {what}", highlight=False)

        yield told
