from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agent.display import Display
from agent.episodes import EpisodeSummary, Event
from agent.metrics import (
    MetricsLog,
    Recent,
    Stopwatch,
    read_metrics,
    render_summary,
    summarize,
    wilson,
    write_summary,
)


def episode(
    number: int,
    *,
    return_: float = -10.0,
    success: bool = True,
    fault: str | None = None,
    events: dict[str, int] | None = None,
) -> EpisodeSummary:
    return EpisodeSummary(
        index=number,
        file=f"episodes/{number:06d}.mcap",
        sha256="",
        steps=50,
        return_=return_,
        success=success,
        measures={"error": 0.05 if success else 0.2, "success_20deg": 1.0},
        terminated=False,
        truncated=True,
        fault=fault,
        fault_message="",
        seed=0,
        robot_seconds=5.0,
        late=1,
        events=events or {},
    )


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (0, 20, 0.0, 0.16113),
        (20, 20, 0.83887, 1.0),
        (10, 20, 0.29930, 0.70070),
        (1, 1, 0.20654, 1.0),
        (80, 100, 0.71117, 0.86663),
    ],
)
def test_wilson_agrees_with_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-5)


def test_nothing_seen_means_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_is_symmetric(case: tuple[int, int]) -> None:
    k, n = case
    low, high = wilson(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


def test_rows_repeat_with_the_seed_but_for_the_wall_clock(tmp_path: Path) -> None:
    contents = []
    for name, now in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        with MetricsLog(tmp_path / name, wall=lambda now=now: now) as log:  # type: ignore[misc]
            log.write(50, {"loss/critic": np.float32(0.5)}, {"update_ms": now})
            log.write(100, {"loss/critic": 0.25, "bad": math.nan})
        rows = read_metrics(tmp_path / name)
        assert rows[0]["wall"] == {"time": now, "update_ms": now}
        contents.append([{key: value for key, value in row.items() if key != "wall"} for row in rows])
    assert contents[0] == contents[1]
    assert contents[0][1] == {"step": 100, "loss/critic": 0.25, "bad": None}


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, writer="learner") as log:
        for step in (50, 100):
            log.write(step, {"loss/critic": step / 100})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "learner"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/critic")] == [(50, 0.5), (100, 1.0)]


def test_two_processes_share_one_file_and_a_torn_row_is_dropped(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as actor:
        actor.write(1, {"episode/return": -3.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "epis')
    with MetricsLog(tmp_path) as actor, MetricsLog(tmp_path, writer="learner") as learner:
        actor.write(3, {"episode/return": -2.0})
        learner.write(3, {"loss/critic": 0.1})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3, 3]


def test_recent_forgets_the_oldest() -> None:
    recent = Recent(3)
    assert math.isnan(recent.mean)
    assert recent.sd == 0.0
    for value in (100.0, 1.0, 2.0, 3.0):
        recent.add(value)
    assert (recent.mean, recent.sd) == (2.0, 1.0)


def test_stopwatch_shows_the_one_slow_lap() -> None:
    times = iter([t for lap in range(100) for t in (lap, lap + (0.5 if lap == 42 else 0.001))])
    watch = Stopwatch(monotonic=lambda: next(times))
    for _ in range(100):
        with watch("update"):
            pass
    row = watch.row()
    assert row["update_p50_ms"] == pytest.approx(1.0)
    assert row["update_max_ms"] == pytest.approx(500.0)
    assert 1.0 < row["update_p99_ms"] < 500.0


LABELS = {"success": "success at 0.1 rad", "success_20deg": "success at 20 degrees"}


def test_summary_counts_what_happened() -> None:
    training = [
        episode(1, return_=-20.0, success=False, events={"reboot": 1}),
        episode(2),
        episode(3, fault="servo-silent", events={"reboot": 2, "cooling": 1}),
    ]
    evaluation = [episode(number, success=number < 4) for number in range(5)]
    summary = summarize(
        training,
        evaluation,
        labels=LABELS,
        counters={"bus_errors": 3},
        log=Path("runs/x"),
        next_commands=["a"],
    )
    success = summary["evaluation"]["rates"]["success"]
    assert (success["k"], success["n"], success["label"]) == (4, 5, "success at 0.1 rad")
    assert (success["low"], success["high"]) == wilson(4, 5)
    assert summary["evaluation"]["rates"]["success_20deg"]["k"] == 5
    assert summary["training"]["episodes"] == 2
    assert summary["training"]["numbers"]["return"] == {
        "label": "return",
        "mean": -15.0,
        "sd": pytest.approx(7.0710678),
    }
    assert summary["rig"] == {
        "steps": 400,
        "episodes": 8,
        "robot_hours": pytest.approx(40 / 3600),
        "achieved_hz": 10.0,
        "late_steps": 8,
        "faults": {"servo-silent": 1},
        "events": {"reboot": 3, "cooling": 1},
        "bus_errors": 3,
    }


def test_score_is_0_for_chance_and_1_for_the_expert() -> None:
    anchors = {"random": -80.0, "expert": -20.0}
    returns = (-80.0, -20.0, -50.0, -110.0)
    episodes = [episode(number, return_=return_) for number, return_ in enumerate(returns)]
    summary = summarize([episodes[0]], episodes, anchors=anchors)
    score = summary["evaluation"]["numbers"]["normalised"]
    assert score["mean"] == pytest.approx((0 + 1 + 0.5 - 0.5) / 4)
    assert summary["training"]["numbers"]["normalised"]["mean"] == 0
    assert "normalised" not in summarize([], episodes)["evaluation"]["numbers"]
    console = Console(file=io.StringIO(), width=100)
    render_summary(summary, console)
    assert "score (0 random, 1 expert, both in simulation)  0.25 ±" in console.file.getvalue()  # type: ignore[attr-defined]


def test_summary_of_nothing_is_still_a_summary(tmp_path: Path) -> None:
    summary = summarize([])
    write_summary(tmp_path / "summary.json", summary)
    assert json.loads((tmp_path / "summary.json").read_text())["rig"]["steps"] == 0
    render_summary(summary, Console(file=io.StringIO()))
    all_faulted = summarize([episode(1, fault="late")])
    render_summary(all_faulted, Console(file=io.StringIO()))
    assert all_faulted["training"]["rates"]["success"]["rate"] is None


def test_person_reads_rates_effort_and_what_to_type_next() -> None:
    summary = summarize(
        [episode(1, events={"reboot": 2}), episode(2, fault="stale-frame", events={"cooling": 1})],
        [episode(number, success=number < 17) for number in range(20)],
        labels=LABELS,
        counters={"bus_errors": 3},
        log=Path("runs/x"),
        next_commands=["python run_robot.py evaluate --run runs/x --episodes 100"],
    )
    console = Console(file=io.StringIO(), width=90)
    render_summary(summary, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        "success at 0.1 rad",
        "17/20 = 85%, 95 % interval 64% to 95%",
        "success at 20 degrees",
        "20/20 = 100%, 95 % interval 84% to 100%",
        "10.00 Hz",
        "late steps",
        "1 x stale-frame",
        "2 x reboot, 1 x cooling",
        "bus errors",
        "everything is in runs/x",
        "python run_robot.py evaluate --run runs/x --episodes 100",
    ):
        assert words in text


def test_what_happens_on_the_rig_is_shown_as_it_is_with_the_time_of_the_day() -> None:
    console = Console(file=io.StringIO(), width=60)
    display = Display(100, console)
    display.event(
        Event(12.0, "cooling", "servo 12 [finger 1, distal] at 63 deg C, goes on at 55 " * 3, "warning")
    )
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert re.match(r"\d\d:\d\d:\d\d cooling: servo 12 \[finger 1, distal\] at 63 deg C", line)
