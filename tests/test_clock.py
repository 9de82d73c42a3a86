"""Deadlines are absolute, lateness is measured, and nobody catches up by hurrying."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot.clock import ManualClock, SystemClock, Ticker


@dataclass
class SleepyClock(ManualClock):
    """Wakes up late by what a test says, as an operating system does."""

    delays: list[float] = field(default_factory=list)

    def sleep_until(self, deadline: float) -> None:
        super().sleep_until(deadline)
        self.time += self.delays.pop(0) if self.delays else 0.0


def started(clock: ManualClock, period: float = 0.1) -> Ticker:
    ticker = Ticker(clock, period)
    ticker.start()
    return ticker


@given(st.lists(st.floats(0, 0.099), min_size=1, max_size=50))
def test_work_that_fits_the_period_never_shifts_the_schedule(work: list[float]) -> None:
    clock = ManualClock(5.0)
    ticker = started(clock)
    for n, duration in enumerate(work, start=1):
        clock.time += duration
        assert ticker.wait() == 0.0
        assert clock.now() == pytest.approx(5.0 + n * 0.1)
    assert ticker.late_total == 0


def test_late_wake_ups_do_not_add_up() -> None:
    clock = SleepyClock(delays=[0.003] * 100)
    ticker = started(clock)
    for _ in range(100):
        ticker.wait()
    assert clock.now() == pytest.approx(100 * 0.1 + 0.003)
    assert ticker.statistics()["jitter_max_ms"] == pytest.approx(3.0)


def test_an_overrun_is_reported_and_the_next_step_gets_its_whole_period() -> None:
    clock = ManualClock()
    ticker = started(clock)
    clock.time += 0.25
    assert ticker.wait() == pytest.approx(0.15)
    assert clock.now() == pytest.approx(0.25)
    assert ticker.wait() == 0.0
    assert clock.now() == pytest.approx(0.35)


def test_an_overrun_within_tolerance_is_caught_up_silently() -> None:
    clock = ManualClock()
    ticker = started(clock)
    clock.time += 0.105
    assert ticker.wait() == pytest.approx(0.005)
    assert ticker.late_total == 0
    ticker.wait()
    assert clock.now() == pytest.approx(0.2)


def test_late_steps_count_in_a_row_until_one_is_in_time() -> None:
    clock = ManualClock()
    ticker = started(clock)
    for expected in (1, 2, 3):
        clock.time += 0.2
        ticker.wait()
        assert ticker.late_in_a_row == expected
    ticker.wait()
    assert ticker.late_in_a_row == 0
    assert ticker.late_total == 3


def test_starting_again_forgets_the_pause_but_not_the_statistics() -> None:
    clock = ManualClock()
    ticker = started(clock)
    clock.time += 0.3
    ticker.wait()
    clock.time += 100.0
    ticker.start()
    assert ticker.late_in_a_row == 0
    assert ticker.wait() == 0.0
    assert ticker.statistics()["ticks"] == 2
    assert ticker.statistics()["late"] == 1


def test_statistics_of_no_ticks_are_zero() -> None:
    assert set(started(ManualClock()).statistics().values()) == {0.0}


def test_a_manual_clock_never_goes_back() -> None:
    clock = ManualClock(3.0)
    clock.sleep_until(1.0)
    assert clock.now() == 3.0


def test_the_system_clock_is_never_early_and_does_not_wait_for_the_past() -> None:
    clock = SystemClock()
    start = clock.now()
    clock.sleep_until(start + 0.002)
    assert clock.now() >= start + 0.002
    clock.sleep_until(start - 10.0)
    assert clock.now() < start + 5.0
