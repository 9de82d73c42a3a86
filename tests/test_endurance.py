"""A learner that works for a day needs no more memory at its end than after its first minutes.

`pytest tests/test_endurance.py --learner-updates 864000` is the long version: 24 h at 10 control steps/s.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from agent.learner import Learner
from agent.metrics import MetricsLog
from tests.learning import SAC, SLAC, add_episode, make_run

PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20  # MiB
GROWTH = 8.0  # MiB that counters, caches and the allocator may still take
STEPS = 50


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("agent", [SAC, SLAC], ids=["sac_state", "slac"])
def test_memory_stays_flat_while_replay_and_learner_go_on(
    agent: dict[str, object], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    updates = pytestconfig.getoption("--learner-updates")
    torch.set_num_threads(1)
    run = make_run(tmp_path / "run", agent, random_steps=STEPS, pretrain_updates=10, probe_every=100)
    with MetricsLog(run.path) as metrics:
        learner, index, early = Learner(run, metrics), 0, 0.0
        while learner.counters.updates < updates:
            index += 1
            path = Path(add_episode(run, index, STEPS, images=agent is SLAC, angles=True).file)
            while learner.work(chunk=10):
                pass
            (run.path / "episodes" / path.name).unlink()  # the disk is not what is measured
            if not early and learner.counters.updates >= max(1000, updates // 10):  # the ring is full by then
                early = resident()
    assert early
    print(
        f"{learner.counters.updates} updates: {early:.0f} MiB after a tenth, {resident():.0f} MiB at the end"
    )
    assert resident() - early < GROWTH
