"""The actor on the simulated robot: whatever ends an episode, the robot is relaxed, then the log closed."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.actor import Actor, TooManyFaultsError
from agent.episodes import EpisodeSummary, EpisodeWriteError, read_episode
from agent.policy import ConstantPolicy
from robot.dynamixel import DynamixelRobot
from robot.events import EventLog
from robot.registers import GOAL_POSITION, TORQUE_ENABLE, Register
from robot.rig import Rig, RigConfig
from robot.sim import SimPlant
from robot.types import Fault, InvalidCommand, Reading, ServoSilent
from tasks import RobotEnv, Valve, ValveConfig
from tasks.valve import AngleRange, FixedAngle

HORIZON = 4
CONFIG = ValveConfig(
    goal=AngleRange(low=-1.0, high=1.0), start=FixedAngle(angle=1.0), cue="none", horizon=HORIZON
)


class Bench(SimPlant):
    """The simulated servos, on a bus that fails when told to."""

    trouble: BaseException | None = None  # what the next readings end with

    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        if self.trouble is not None:
            raise self.trouble
        return super().sync_read(registers, ids)

    @property
    def torque(self) -> list[int]:
        return [servo.value(TORQUE_ENABLE) for servo in self.servos.values()]

    @property
    def goals(self) -> list[int]:
        return [servo.value(GOAL_POSITION) for servo in self.servos.values()]


class Script(ConstantPolicy):
    """Holds still; before its step `at` (0 is the first) of each episode it does `act_up`."""

    def __init__(self, at: int = 99, act_up: Callable[[], object] = lambda: None) -> None:
        super().__init__(np.zeros(9, np.float32))
        self._at, self._act_up, self._step = at, act_up, 0

    def initial(self) -> None:
        self._step = 0

    def act(self, carry: None, observation: Mapping[str, Any], *, explore: bool) -> Any:
        if self._step == self._at:
            self._act_up()
        self._step += 1
        return super().act(carry, observation, explore=explore)


class Sick(ConstantPolicy):
    """Wants what is not a number from its second step on."""

    def act(self, carry: Any, observation: Mapping[str, Any], *, explore: bool) -> Any:
        _, action = super().act(None, observation, explore=explore)
        return True, action * (np.nan if carry else 1.0)


@pytest.fixture(scope="module")
def plant() -> Bench:
    config = RigConfig()
    return Bench(config.sim, config.dclaw.joint_ids, config.dclaw.object_id)


@pytest.fixture
def events(plant: Bench) -> EventLog:
    return EventLog(plant)


@pytest.fixture
def actor(plant: Bench, events: EventLog) -> Iterator[Actor]:
    plant.trouble = None
    robot = DynamixelRobot(plant, RigConfig().dclaw, plant, events)
    with Rig(RigConfig(), robot, {}, plant, events, lambda: np.zeros((1, 1, 3), np.uint8)) as rig:
        env = RobotEnv(rig, Valve(CONFIG), images=False)
        yield Actor(env, {"task": "valve"}, (Fault,), seed=3, rest=robot.relax, events=events.drain)
        plant.trouble = None


class Closed(list[EpisodeSummary]):
    """The summaries of closed episodes, and whether the robot was relaxed when each was closed."""

    def __init__(self, plant: Bench) -> None:
        super().__init__()
        self._plant = plant
        self.relaxed: list[bool] = []

    def __call__(self, summary: EpisodeSummary) -> None:
        self.append(summary)
        self.relaxed.append(not any(self._plant.torque))


@pytest.fixture
def closed(plant: Bench) -> Closed:
    return Closed(plant)


def silence(plant: Bench) -> Callable[[], None]:
    def fail() -> None:
        plant.trouble = ServoSilent("servo 12 did not answer", [12])

    return fail


def test_a_whole_episode_is_logged_and_its_summary_handed_over(
    actor: Actor, closed: Closed, tmp_path: Path
) -> None:
    assert actor.episode(Script(), tmp_path, 7, explore=True, closed=closed) is None
    episode = read_episode(tmp_path / "000007.mcap")
    assert [summary.steps for summary in closed] == [HORIZON] == [len(episode.actions)]
    assert episode.truncated
    assert not episode.terminated
    assert episode.header["explore"] is True
    assert closed[0] == episode.summary(closed[0].sha256)


def test_goal_and_start_depend_on_seed_and_index_alone(actor: Actor, closed: Closed, tmp_path: Path) -> None:
    actor.episode(Script(), tmp_path / "a", 5, explore=True, closed=closed)
    actor.episode(Script(), tmp_path / "a", 6, explore=True, closed=closed)
    actor.episode(Script(), tmp_path / "b", 5, explore=False, closed=closed)
    goals = [
        read_episode(tmp_path / name).parameters["goal"]
        for name in ("a/000005.mcap", "a/000006.mcap", "b/000005.mcap")
    ]
    assert goals[0] == goals[2] != goals[1]


def test_a_fault_ends_the_episode_without_the_step_that_was_not_measured(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    fault = actor.episode(Script(2, silence(plant)), tmp_path, 1, explore=True, closed=closed)
    assert fault is not None
    assert "servo 12 did not answer" in fault
    episode = read_episode(tmp_path / "000001.mcap")
    assert len(episode.actions) == len(episode.rewards) == closed[0].steps == 2
    assert len(episode.observations["state"]) == 3
    assert closed[0].fault == "servo-silent"
    assert actor.faults_in_a_row == 1


def test_an_episode_whose_first_step_fails_has_no_steps(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    actor.episode(Script(0, silence(plant)), tmp_path, 1, explore=True, closed=closed)
    assert closed[0].steps == len(read_episode(tmp_path / "000001.mcap").actions) == 0


def test_three_faulted_episodes_in_a_row_stop_with_the_robot_relaxed(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    for index in (1, 2):
        actor.episode(Script(1, silence(plant)), tmp_path, index, explore=True, closed=closed)
        plant.trouble = None
    with pytest.raises(TooManyFaultsError, match=r"servo 12 did not answer.*run_robot\.py check"):
        actor.episode(Script(1, silence(plant)), tmp_path, 3, explore=True, closed=closed)
    assert not any(plant.torque)
    assert len(closed) == 3


def test_a_whole_episode_between_two_faults_starts_the_count_again(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    for index in range(1, 6):
        policy = Script(1, silence(plant)) if index % 2 else Script()
        actor.episode(policy, tmp_path, index, explore=True, closed=closed)
        plant.trouble = None
    assert actor.faults_in_a_row == 1


def test_resets_that_fail_leave_no_file_but_are_told_and_counted(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    silence(plant)()
    for index in (1, 2):
        assert "servo 12" in (actor.episode(Script(), tmp_path, index, explore=True, closed=closed) or "")
    with pytest.raises(TooManyFaultsError, match="servo 12"):
        actor.episode(Script(), tmp_path, 3, explore=True, closed=closed)
    assert actor.failed_resets == 3
    assert not closed
    assert not list(tmp_path.iterdir())
    assert not any(plant.torque)


def test_an_action_that_is_no_number_moves_nothing(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    with pytest.raises(InvalidCommand, match="nan"):
        actor.episode(Sick(np.full(9, 0.5, np.float32)), tmp_path, 1, explore=True, closed=closed)
    assert not any(plant.torque)
    episode = read_episode(tmp_path / "000001.mcap")
    assert len(episode.actions) == 1  # the one before
    assert np.isfinite(episode.actions).all()
    assert (closed[0].fault, closed.relaxed) == ("InvalidCommand", [True])


@pytest.mark.parametrize("steps", [0, 2])
def test_an_interrupt_relaxes_the_robot_before_the_log_is_closed_and_counted(
    steps: int, actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        actor.episode(Script(steps, interrupt), tmp_path, 1, explore=True, closed=closed)
    assert closed.relaxed == [True]
    assert (closed[0].steps, closed[0].fault) == (steps, "interrupted")
    assert len(read_episode(tmp_path / "000001.mcap").actions) == steps


def test_an_interrupt_during_the_reset_relaxes_the_robot(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    plant.trouble = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        actor.episode(Script(), tmp_path, 1, explore=True, closed=closed)
    assert not any(plant.torque)
    assert not closed


def test_an_interrupt_in_the_middle_of_a_bus_cycle_relaxes_the_robot(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    def interrupt() -> None:
        plant.trouble = KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        actor.episode(Script(1, interrupt), tmp_path, 1, explore=True, closed=closed)
    assert closed.relaxed == [True]


def test_a_log_that_cannot_begin_relaxes_the_robot(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    (tmp_path / "000001.mcap").write_bytes(b"taken")
    with pytest.raises(EpisodeWriteError, match="exists already"):
        actor.episode(Script(), tmp_path, 1, explore=True, closed=closed)
    assert not any(plant.torque)
    assert not closed


def test_a_full_disk_relaxes_the_robot_and_hands_over_no_summary(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    """A limit on file sizes fails a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    try:
        with pytest.raises(EpisodeWriteError, match="free"):
            actor.episode(Script(1, fill), tmp_path, 1, explore=True, closed=closed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(plant.torque)
    assert not closed


def test_what_happens_on_the_rig_stands_in_the_log_of_its_episode_or_of_the_next(
    actor: Actor, plant: Bench, closed: Closed, tmp_path: Path
) -> None:
    def overload() -> None:
        plant.servos[12].raise_hardware_error(0x20)
        plant.refresh()

    actor.episode(Script(2, overload), tmp_path, 1, explore=True, closed=closed)
    actor.episode(Script(), tmp_path, 2, explore=True, closed=closed)  # its reset restarts the servo
    assert [summary.events for summary in closed] == [{}, {"reboot": 1}]
    assert closed[0].fault == "servo-alert"
    (event,) = read_episode(tmp_path / "000002.mcap").events
    assert (event.name, event.level) == ("reboot", "warning")
    assert "servo 12 (finger 1, distal) reported overload" in event.text
    assert event.time < read_episode(tmp_path / "000002.mcap").telemetry["time"][0]


@pytest.mark.parametrize("step", [0, HORIZON - 1])
def test_an_event_of_a_step_stands_in_its_episode(
    step: int, actor: Actor, events: EventLog, closed: Closed, tmp_path: Path
) -> None:
    policy = Script(step, lambda: events.emit("cooling", "servo 12 is warm"))
    actor.episode(policy, tmp_path, 1, explore=True, closed=closed)
    actor.episode(Script(), tmp_path, 2, explore=True, closed=closed)
    assert [summary.events for summary in closed] == [{"cooling": 1}, {}]
    assert closed[0] == read_episode(tmp_path / "000001.mcap").summary(closed[0].sha256)


def test_the_picture_hook_is_called_before_each_step(actor: Actor, closed: Closed, tmp_path: Path) -> None:
    calls: list[int] = []
    actor.episode(Script(), tmp_path, 1, explore=False, closed=closed, watch=lambda: calls.append(1))
    assert len(calls) == HORIZON


def test_warming_up_moves_nothing(actor: Actor, plant: Bench) -> None:
    goals, time = plant.goals, plant.now()
    actor.warm_up(Script())
    assert (plant.goals, plant.now()) == (goals, time)
