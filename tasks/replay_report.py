"""What a replay or a new scoring found, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tasks.replay import Replay, Rescore
from tasks.resets import joint_name

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


def show_replay(result: Replay, telemetry: Mapping[str, Any]) -> None:
    """Prints how well the joints followed, and how far the motion was from the logged one."""
    log = result.against(telemetry["joint_position"][1:])
    table = Table("rad", "lag rms", "lag max", "log rms", "log max")
    for number, row in enumerate(
        zip(result.tracking.rms, result.tracking.max, log.rms, log.max, strict=True)
    ):
        table.add_row(joint_name(number), *(f"{value:.3f}" for value in row))
    table.add_section()
    rms = [float(np.sqrt(np.mean(part.rms**2))) for part in (result.tracking, log)]
    worst = (rms[0], result.tracking.max.max(), rms[1], log.max.max())
    table.add_row("all", *(f"{value:.3f}" for value in worst))
    valve = result.object_against(telemetry["object_position"][1:, 0])
    console = Console(highlight=False)
    console.print(table)
    console.print("lag: the joints behind their commands; log: the joints now and in the episode")
    console.print(
        f"valve now and in the episode: {valve[-1]:.3f} rad apart at the end, {valve.max():.3f} at most"
    )
    console.print(f"{len(result.position)} steps, {result.late} late")
