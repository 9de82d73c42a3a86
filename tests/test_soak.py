"""Hours of unattended work with faults as a bench meets them: nothing gets stuck, no episode is lost.

`pytest tests/test_soak.py --soak-hours 10 --soak-minutes 30` is the long version.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.actor import Actor
from agent.episodes import EpisodeSummary, read_episode
from agent.policy import RandomPolicy
from robot.emulator import EmulatorConfig
from robot.faults import FaultConfig, FaultSchedule
from robot.patience import PatienceConfig
from robot.rig import Rig, RigConfig, build
from robot.sim import SimPlant
from robot.types import Fault
from tasks.env import RobotEnv
from tasks.valve import FixedAngle, Valve, ValveConfig

HOUR = 3600.0
PATIENCE = PatienceConfig(total=HOUR)


def field_faults(pace: float) -> tuple[FaultConfig, ...]:
    """What happens on a bench, `pace` times as often: packets get lost, plugs are loose, servos get warm."""

    def now_and_then(kind: str, every: float, **settings: Any) -> FaultConfig:
        return FaultConfig.model_validate({"kind": kind, "every": every / pace, **settings})

    return (
        FaultConfig(kind="lost", probability=1e-4),
        FaultConfig(kind="corrupt", probability=1e-5),
        FaultConfig(kind="short", probability=1e-5),
        now_and_then("overload", 0.5 * HOUR),
        now_and_then("reboot", HOUR),
        now_and_then("brown-out", 2 * HOUR),
        now_and_then("voltage-dip", HOUR, value=9.0, duration=1.0),
        now_and_then("heat", HOUR, value=66, duration=60.0 / pace),
        now_and_then("dead", HOUR, duration=5.0),
        now_and_then("unplug", HOUR, duration=3.0),
        now_and_then("stuck-joint", HOUR, duration=20.0),
    )


def unattended(rig: Rig, folder: Path, seconds: float) -> tuple[list[EpisodeSummary], float]:
    """Random episodes for so long by the rig's clock; their summaries, and the longest time for one, s."""
    env = RobotEnv(rig, Valve(ValveConfig(goal=FixedAngle(angle=0.0))), images=False, seed=0)
    actor = Actor(
        env, {}, (Fault,), 0, max_faults_in_a_row=1000, rest=rig.robot.relax, events=rig.events.drain
    )
    policy = RandomPolicy(9, np.random.default_rng(0))
    done: list[EpisodeSummary] = []
    told: Counter[str] = Counter()
    rig.events.listen(lambda event: told.update([event.name]))
    longest, start, index = 0.0, rig.clock.now(), 0
    while (began := rig.clock.now()) - start < seconds:
        index += 1
        actor.episode(policy, folder, index, explore=True, closed=done.append)
        longest = max(longest, rig.clock.now() - began)
    print(f"events {dict(told)}")
    return done, longest


def judge(rig: Rig, folder: Path, done: list[EpisodeSummary], longest: float, seconds: float) -> None:
    """Every episode is on disk and whole; the time was spent on episodes; what happened was told."""
    ends = Counter(summary.fault or "whole" for summary in done)
    steps = sum(summary.steps for summary in done)
    print(
        f"{seconds / HOUR:.2f} h, {len(done)} episodes, {steps} steps, at most {longest:.0f} s: {dict(ends)}"
    )
    print(dict(rig.statistics()))
    assert len(list(folder.glob("*.mcap"))) == len(done)
    assert not list(folder.glob("*.part"))
    for summary in done:
        assert len(read_episode(folder / Path(summary.file).name).actions) == summary.steps
    assert ends["whole"] > 0.7 * len(done)
    assert (
        longest < 15 * 60
    )  # a pause, a reset and its attempts; nothing waits for a person who does not come


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_simulated_hours_with_faults_need_no_person(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("--soak-hours") * HOUR
    with build(RigConfig(patience=PATIENCE), cameras=False) as rig:
        plant = rig.clock
        assert isinstance(plant, SimPlant)
        # A short test has to see faults, too; ten hours see them as often as a bench does.
        plant.inject(FaultSchedule(field_faults(max(1.0, 5 * HOUR / seconds)), seed=0))
        began = time.monotonic()
        done, longest = unattended(rig, tmp_path, seconds)
        print(f"{seconds / (time.monotonic() - began):.0f} times real time")
        judge(rig, tmp_path, done, longest, seconds)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_minutes_with_faults_over_the_wire_need_no_person(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds = request.config.getoption("--soak-minutes") * 60
    # Several hours' faults in half an hour; yet a short test must have room for episodes between them.
    faults = field_faults(min(max(10.0, 5 * HOUR / seconds), 60.0))
    emulator = EmulatorConfig(faults=faults)
    with build(RigConfig(kind="emulated", emulator=emulator, patience=PATIENCE), cameras=False) as rig:
        folder = tmp_path / "episodes"
        done, longest = unattended(rig, folder, seconds)
        judge(rig, folder, done, longest, seconds)
