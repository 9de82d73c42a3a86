"""Unattended: a run waits for its rig with the torque off, goes on when it is well again, and not before."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot import registers as reg
from robot.clock import SystemClock
from robot.dynamixel import DynamixelRobot
from robot.events import EventLog, RigEvent
from robot.faults import FaultConfig, FaultSchedule
from robot.patience import Hand, Patience, PatienceConfig
from robot.rig import CAMERA, Rig, RigConfig
from robot.settings import DynamixelConfig
from robot.sim import SimPlant
from robot.types import (
    CameraFault,
    Fault,
    FilmOver,
    Frame,
    Health,
    InvalidCommand,
    JointState,
    MotionFault,
    PortLost,
    RobotState,
    ServoAlert,
    ServoSilent,
    SupplyFault,
    TorqueLost,
)
from tasks.env import RobotEnv
from tasks.valve import AngleRange, Valve, ValveConfig

HOUR = 3600.0
REST = np.zeros(9, np.float32)
SINKING = 20.0  # s; simulated fingers know no dry friction and sink for 15 s when they are let go
TASK = ValveConfig(goal=AngleRange(low=-1.0, high=1.0), cue="none", horizon=4)


class Bench(SimPlant):
    """A simulated bench at which things happen at their time, and that sees every pause."""

    def __init__(self, config: RigConfig) -> None:
        super().__init__(config.sim, config.dclaw.joint_ids, config.dclaw.object_id)
        self.plans: list[tuple[float, Callable[[], object]]] = []
        self.limp: list[bool] = []  # at the end of each pause, whether no servo could move
        self.blind_until = -math.inf

    def at(self, time: float, act: Callable[[], object]) -> None:
        """Plans something for so many seconds from now."""
        self.plans = sorted([*self.plans, (self.now() + time, act)], key=lambda plan: plan[0])

    def inject_now(self, kind: str, **settings: Any) -> None:
        fault = FaultConfig.model_validate({"kind": kind, **settings})
        self.inject(FaultSchedule([fault]))

    def sleep_until(self, time: float) -> None:
        pause = time - self.now() > 0.9  # control, resets and the rest before disentangling sleep for less
        while self.plans and self.plans[0][0] <= time:
            when, act = self.plans.pop(0)
            super().sleep_until(when)
            act()
        super().sleep_until(time)
        if pause:
            self.limp.append(not any(servo.torque and not servo.tripped for servo in self.servos.values()))

    def latest(self, max_age: float) -> Frame:
        if self.now() < self.blind_until:
            raise CameraFault("camera 'front' delivers no frames. Is it plugged in?")
        return Frame(self.now(), np.zeros((64, 64, 3), np.uint8), 1)

    @property
    def torque(self) -> bool:
        return any(servo.torque for servo in self.servos.values())


class Scene:
    """A control step on a bench, and what was told to its person."""

    def __init__(self, images: bool, **patience: float) -> None:
        config = RigConfig(
            patience=PatienceConfig.model_validate({"total": HOUR, **patience}),
            dclaw=DynamixelConfig(warm=65.0, cool=60.0),
        )
        self.bench = Bench(config)
        events = EventLog(self.bench)
        self.told: list[RigEvent] = []
        events.listen(self.told.append)
        robot = DynamixelRobot(self.bench, config.dclaw, self.bench, events)
        views = {CAMERA: self.bench} if images else {}
        self.rig = Rig(config, robot, views, self.bench, events, lambda: np.zeros((1, 1, 3), np.uint8))
        self.env = RobotEnv(self.rig, Valve(TASK), images=images)

    def names(self) -> list[str]:
        return [event.name for event in self.told]

    def words(self, name: str) -> str:
        return " / ".join(event.text for event in self.told if event.name == name)

    def fault_of_a_step(self) -> str | None:
        """The name of the fault with which the next step ends the episode."""
        return self.env.step(REST)[4].get("fault")

    def time_to_reset(self, seed: int = 1) -> float:
        """s that the reset took, which must have paused without torque alone."""
        began = self.bench.now()
        self.env.reset(seed=seed)
        assert all(self.bench.limp), "something was under torque in a pause"
        return self.bench.now() - began


@contextmanager
def scene(images: bool = False, **patience: float) -> Iterator[Scene]:
    opened = Scene(images, **patience)
    with opened.rig:
        yield opened


# --- it goes on by itself, and not before ---


@pytest.mark.parametrize(
    ("kind", "settings", "ends_with", "words"),
    [
        ("dead", {"servo": 21}, "servo-silent", "servo 21 (finger 2, middle) did not answer"),
        ("unplug", {}, "port-lost", "unplugged"),
        ("heat", {"servo": 12, "value": 66}, "servo-hot", "servo 12"),
        ("voltage-dip", {"value": 8.5}, "supply", "Check power supply"),
    ],
)
def test_run_goes_on_once_the_fault_is_over_and_not_before(
    kind: str, settings: dict[str, Any], ends_with: str, words: str
) -> None:
    with scene() as now:
        now.env.reset(seed=0)
        now.bench.inject_now(kind, duration=20.0, **settings)
        assert now.fault_of_a_step() == ends_with
        assert 20.0 - TASK.period <= now.time_to_reset() <= 20.0 + 15.0  # looks and tries get rarer
        assert now.bench.limp
        assert words in now.words("pause") + now.words("cooling") + now.words("retry")
        assert "well again after" in now.words("recovered")
        assert now.fault_of_a_step() is None


def test_servos_that_kept_their_torque_while_the_cable_was_out_lose_it_when_it_is_back() -> None:
    with scene() as now:
        now.env.reset(seed=0)
        now.bench.inject_now("unplug", duration=10.0)
        now.bench.inject_now("dead", servo=21, duration=30.0)
        assert now.fault_of_a_step() == "port-lost"
        torque: list[bool] = []
        for second in (5.0, 18.0):
            now.bench.at(second, lambda: torque.append(now.bench.torque))
        now.time_to_reset()
        assert torque == [True, False]


@pytest.mark.parametrize(("kind", "settings"), [("brown-out", {}), ("reboot", {"servo": 32})])
def test_lost_torque_is_overcome_within_seconds(kind: str, settings: dict[str, Any]) -> None:
    with scene() as now:
        now.env.reset(seed=0)
        now.bench.inject_now(kind, **settings)
        assert now.fault_of_a_step() in ("torque-lost", "servo-silent")
        assert now.time_to_reset() < 10.0
        assert now.fault_of_a_step() is None


def test_camera_that_comes_back_is_waited_for() -> None:
    with scene(images=True) as now:
        now.env.reset(seed=0)
        now.bench.blind_until = now.bench.now() + 20.0
        assert now.fault_of_a_step() == "camera"
        assert 19.8 <= now.time_to_reset() <= 35.0
        assert "delivers no frames" in now.words("pause")


def test_servo_that_stopped_for_its_heat_cools_further_than_to_where_it_stopped() -> None:
    """Cooling by the servo's own thermal model: from 66 deg C in half a minute to 64, in 95 s to 60.7."""
    with scene(tell=20.0) as now:
        now.env.reset(seed=0)
        now.bench.servos[12].warm(66.0)
        assert now.fault_of_a_step() == "servo-hot"
        while now.bench.servos[12].value(reg.PRESENT_TEMPERATURE) >= now.rig.config.dclaw.warm:
            now.bench.sleep_until(now.bench.now() + 0.5)
        assert 50.0 < now.time_to_reset() < 90.0
        assert now.bench.servos[12].temperature <= now.rig.config.dclaw.cool + 0.5
        assert now.names().count("cooling") == 1
        first, second, *_ = [event for event in now.told if event.name == "waiting"]
        assert "cooling: servo 12 (finger 1, distal) at 6" in first.text
        assert "goes on at 60" in first.text
        assert second.time - first.time == pytest.approx(20.0, abs=6.0)


def test_port_is_looked_for_every_second_at_first_and_every_five_later() -> None:
    with scene() as now:
        now.env.reset(seed=0)
        now.bench.inject_now("unplug", duration=26.0)
        now.fault_of_a_step()
        now.time_to_reset()
        assert len(now.bench.limp) == 7  # 1 + 2 + 4 + 5 + 5 + 5 + 5 s


# --- what a person has to free ---


def blocked(now: Scene, duration: float) -> None:
    """A middle joint stuck away from where resets need it."""
    now.rig.robot.relax()
    now.bench.teleport([0.0, 0.3, 0.5] * 3, 0.0)
    now.bench.inject_now("stuck-joint", servo=21, duration=duration)


def test_blocked_finger_is_told_and_the_run_goes_on_when_a_hand_has_freed_it() -> None:
    with scene() as now:
        now.env.reset(seed=0)
        blocked(now, 40.0)
        now.bench.at(40.0, lambda: now.bench.teleport([0.0, -0.5, 0.5] * 3, 0.4))
        took = now.time_to_reset()
        assert 40.0 + 5.0 <= took < 40.0 + 5.0 + SINKING
        assert "finger 2, middle" in now.words("pause")
        assert "5 s after something was moved by hand" in now.words("pause")
        assert "somebody moved something" in now.words("retry")


def test_hand_that_is_still_at_work_is_not_interrupted() -> None:
    with scene(retry=30.0) as now:
        now.env.reset(seed=0)
        blocked(now, 25.0)
        for second in range(25, 45):
            angle = 0.3 * math.sin(second)
            now.bench.at(float(second), lambda angle=angle: now.bench.teleport([0.0, -0.5, 0.5] * 3, angle))
        # Without the hand there is a try after 30 s.
        assert 44.0 + 5.0 <= now.time_to_reset() < 44.0 + 5.0 + SINKING


def test_blocked_finger_is_tried_again_without_anybody_ever_more_seldom() -> None:
    with scene(retry=25.0, retry_at_most=40.0) as now:
        now.env.reset(seed=0)
        blocked(now, 125.0)
        now.time_to_reset()
        pauses = [event.time for event in now.told if event.name == "pause"]
        tries = [event.time for event in now.told if event.name == "retry"]
        waits = np.array(tries) - pauses
        np.testing.assert_allclose(waits, [25, 40, 40], atol=2.0)
        assert "nobody came" in now.words("retry")


def test_jammed_valve_pauses_until_it_is_loose() -> None:
    with scene() as now:
        now.env.reset(seed=0)
        damping, valve = now.bench._physics.model.dof_damping, now.bench._motors.qvel[-1]
        free, damping[valve] = damping[valve], 1e6  # something is in it

        def loosen() -> None:
            damping[valve] = free
            now.bench.teleport([0.0, -1.0, 1.0] * 3, 1.0)

        now.bench.at(50.0, loosen)
        assert 50.0 + 5.0 <= now.time_to_reset() < 50.0 + 5.0 + SINKING
        assert "servo 50 (valve) stands at" in now.words("pause")


def reading(time: float, valve: float) -> RobotState:
    zeros = np.zeros(9)
    group = JointState(time, zeros, zeros, zeros)
    thing = JointState(time, np.array([valve]), zeros[:1], zeros[:1])
    return RobotState(group, thing, Health((), zeros, zeros))


def felt(angles: Iterable[float]) -> list[bool]:
    """What a hand that is looked for every second is said to do, with the valve at these angles."""
    hand = Hand(0.1, 5.0)
    return [hand.freed(reading(float(second), angle)) for second, angle in enumerate(angles)]


@given(st.lists(st.one_of(st.floats(-3, 3), st.just(None)), min_size=1, max_size=60))
@settings(deadline=None)
def test_hand_is_felt_only_between_two_rests(moves: list[float | None]) -> None:
    """Each second the valve is somewhere else, or still where it was."""
    angles: list[float] = []
    for angle in moves:
        angles.append(angle if angle is not None else angles[-1] if angles else 0.0)
    for second in [second for second, freed in enumerate(felt(angles)) if freed]:
        steps = np.abs(np.diff(angles[: second + 1]))
        assert (steps[-5:] < 0.02).all()
        assert len(steps) >= 11
        assert steps[5:-5].max() > 0.1


def test_hand_is_felt_when_it_has_let_go_for_five_seconds() -> None:
    turned = [0.0] * 10 + [0.4, 0.8, 1.2] + [1.2] * 10
    assert felt(turned).index(True) == 12 + 5


def test_sinking_slipping_and_forgotten_turns_are_no_hand() -> None:
    assert not any(felt(-0.4 * min(second, 3) for second in range(30)))  # right after the torque was cut
    assert not any(felt(0.06 * second for second in range(60)))  # a finger slips along the valve
    assert not any(felt(0.0 if second < 20 else 4 * math.pi for second in range(40)))  # its servo restarted


# --- not too often, not for ever, not at all ---


@pytest.mark.slow
def test_servo_that_overloads_again_and_again_waits_until_it_may_be_restarted() -> None:
    with scene() as now:
        now.env.reset(seed=0)
        began = now.bench.now()
        for _ in range(3):
            now.bench.servos[12].raise_hardware_error(0x20)
            now.bench.refresh()
            assert now.fault_of_a_step() == "servo-alert"
            assert now.time_to_reset() < 10.0
        now.bench.servos[12].raise_hardware_error(0x20)
        now.bench.refresh()
        assert now.fault_of_a_step() == "servo-alert"
        now.time_to_reset()
        assert 300.0 <= now.bench.now() - began < 340.0
        assert "servo 12 (finger 1, distal) reports overload" in now.words("pause")
        assert now.fault_of_a_step() is None


@pytest.mark.parametrize("kind", ["overheat", "electrical", "encoder"])
def test_damage_stops_the_run_at_once_with_the_robot_relaxed(kind: str) -> None:
    with scene() as now:
        now.env.reset(seed=0)
        now.bench.inject_now(kind, servo=31)
        assert now.fault_of_a_step() == "servo-alert"
        began = now.bench.now()
        with pytest.raises(ServoAlert, match="servo 31"):
            now.env.reset()
        assert now.bench.now() - began < 1.0
        assert not now.bench.torque


def test_patience_that_is_spent_raises_the_fault_with_the_robot_relaxed() -> None:
    with scene(total=30.0) as now:
        now.env.reset(seed=0)
        now.bench.inject_now("dead", servo=12)
        now.fault_of_a_step()
        began = now.bench.now()
        with pytest.raises(ServoSilent, match="servo 12"):
            now.env.reset()
        assert now.bench.now() - began == pytest.approx(30.0, abs=1.0)
        assert not any(servo.torque for servo in now.bench.servos.values() if servo.powered)
        assert "waited 30 s in vain" in now.words("gave-up")


def test_patience_is_whole_again_after_a_reset_that_succeeded() -> None:
    with scene(total=30.0) as now:
        for _ in range(2):
            now.env.reset(seed=0)
            now.bench.inject_now("dead", servo=12, duration=20.0)
            now.fault_of_a_step()
            now.time_to_reset()
        assert "gave-up" not in now.names()


def test_without_patience_a_reset_that_fails_raises_at_once() -> None:
    with scene(total=0.0) as now:
        now.env.reset(seed=0)
        now.bench.inject_now("dead", servo=12, duration=20.0)
        now.fault_of_a_step()
        began = now.bench.now()
        with pytest.raises(ServoSilent):
            now.env.reset()
        assert now.bench.now() == began
        assert not now.told


def test_mistake_of_the_program_is_not_waited_for() -> None:
    with scene() as now, pytest.raises(InvalidCommand):
        now.env.patience.await_fixed(InvalidCommand("target is not finite"))


def test_film_that_is_over_is_not_waited_for() -> None:
    with scene() as now, pytest.raises(FilmOver):
        now.env.patience.await_fixed(FilmOver("film.mp4 is over"))


@pytest.mark.parametrize(
    "fault",
    [
        PortLost("gone"),
        SupplyFault("low"),
        MotionFault("blocked"),
        CameraFault("dark"),
        TorqueLost("limp"),
        ServoAlert("overload", {12: 0x20}),
    ],
    ids=lambda fault: fault.name,
)
def test_a_fault_that_comes_back_at_once_is_no_busy_loop(fault: Fault) -> None:
    """Attempts that fail although nothing is seen to be wrong get rare, and none moves anything."""
    with scene(images=True, retry=10.0, retry_at_most=10.0, window=30.0) as now:
        for _ in range(10):
            now.env.patience.await_fixed(fault)
            assert not now.bench.torque
        assert now.bench.now() > 60.0
        assert all(now.bench.limp)


def test_every_attempt_goes_to_the_episode_that_was_drawn() -> None:
    def drawn(disturb: bool) -> list[dict[str, float]]:
        with scene() as now:
            if disturb:
                now.bench.inject_now("dead", servo=12, duration=10.0)
            return [now.env.reset(seed=5)[1]["parameters"], now.env.reset()[1]["parameters"]]

    quiet, disturbed = drawn(False), drawn(True)
    for one, other in zip(quiet, disturbed, strict=True):
        assert one["goal"] == other["goal"]
        assert one["start"] == pytest.approx(other["start"], abs=0.05)


def test_an_interrupt_ends_the_waiting_at_once_in_real_time() -> None:
    with scene(total=HOUR) as now:
        patience = Patience(
            Rig(now.rig.config, now.rig.robot, {}, SystemClock(), now.rig.events, now.rig.picture),
            now.rig.config.patience,
        )
        now.bench.inject_now("unplug")

        def interrupt(number: int, frame: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        clock = SystemClock()
        began = clock.now()
        try:
            with pytest.raises(KeyboardInterrupt):
                patience.await_fixed(PortLost("gone"))
        finally:
            signal.signal(signal.SIGALRM, before)
        assert clock.now() - began < 0.9
        now.bench.inject(FaultSchedule())
