"""What a replay or a new scoring found, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tasks.replay import Replay, Rescore
from tasks.task import Task

SAME_REWARD = 1e-9  # what adding the same numbers in another order may change


def show_rescore(result: Rescore) -> bool:
    """Prints whether the rewards computed again are the logged ones; True when they are."""
    steps, success = len(result.success), bool(result.success[-1])
    print(f"return {result.reward.sum():.4f} in {steps} steps, {'success' if success else 'no success'}")
    if result.difference < SAME_REWARD:
        print("every reward term is as in the log")
        return True
    print(f"a reward term differs from the log by {result.difference:.3g}: it was scored by other rules")
    return False


def show_replay(task: Task, result: Replay, telemetry: Mapping[str, Any]) -> None:
    """Prints how well the joints followed, and how far the motion was from the logged one."""
    log = result.against(telemetry["joint_position"][1:])
    names = task.joint_names
    parts = (result.tracking.rms, result.tracking.max, log.rms, log.max)
    lag_rms, lag_max, log_rms, log_max = (part[: len(names)] for part in parts)
    table = Table(task.joint_unit, "lag rms", "lag max", "log rms", "log max")
    for name, *row in zip(names, lag_rms, lag_max, log_rms, log_max, strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in row))
    table.add_section()
    whole = (np.sqrt(np.mean(lag_rms**2)), lag_max.max(), np.sqrt(np.mean(log_rms**2)), log_max.max())
    table.add_row("all", *(f"{value:.3f}" for value in whole))
    away = task.apart(result.object_position, telemetry["object_position"][1:])
    console = Console(highlight=False)
    console.print(table)
    console.print("lag: the joints behind their commands; log: the joints now and in the episode")
    console.print(
        f"{task.thing}, now and in the episode: {away[-1]:.3f} apart at the end, {away.max():.3f} at most"
    )
    console.print(f"{len(result.position)} steps, {result.late} late")
