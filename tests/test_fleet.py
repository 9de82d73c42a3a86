"""Several simulated robots at once: the same episodes as on one, and nothing lost when one of them fails."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from points import Point, point

import run_robot
from agent.actor import Actor, TooManyFaultsError
from agent.episodes import EpisodeSummary, read_episode, read_index
from agent.files import GrowingFile
from agent.fleet import Fleet, RobotProcessDied
from agent.metrics import read_metrics
from agent.policy import Policy
from robot.rig import RigConfig
from robot.types import Fault
from tasks.simulated import Simulated
from tasks.valve import AngleRange, FixedAngle, ValveConfig

CONFIG = ValveConfig(goal=FixedAngle(angle=0.0), start=AngleRange(low=-1.0, high=1.0), cue="none", horizon=4)
VALVE = Simulated(CONFIG, RigConfig(), seed=3, images=True)


class Mirror:
    """Does what it sees: the action depends on the observation, and on which step of the episode it is."""

    def initial(self) -> int:
        return 0

    def act(self, carry: int, observation: Any, *, explore: bool) -> tuple[int, np.ndarray]:
        state = np.resize(observation["state"], 9) + 0.01 * observation["image"].mean()
        return carry + 1, np.tanh(state + carry).astype(np.float32)

    def load_weights(self, weights: Any) -> None:
        pass


class Still:
    """Never moves."""

    def initial(self) -> None:
        pass

    def act(self, carry: None, observation: Any, *, explore: bool) -> tuple[None, np.ndarray]:
        return None, np.zeros(1, np.float32)

    def load_weights(self, weights: Any) -> None:
        pass


class Numbered(Actor):
    """An actor whose episodes have their number as seed."""

    def seed_of(self, index: int) -> int:
        return index


@pytest.fixture(scope="module")
def four_points() -> Iterator[Fleet]:
    with Fleet(Numbered(Point(), {"task": "point"}, (Fault,), seed=0), point, 4) as fleet:
        yield fleet


@pytest.fixture
def points(four_points: Fleet) -> Fleet:
    """A fleet of points that nothing has happened to yet."""
    four_points.actor.faults_in_a_row = four_points.actor.failed_resets = 0
    return four_points


def flown(
    fleet: Fleet, policy: Policy, folder: Path, first: int, wanted: int = 9
) -> tuple[list[EpisodeSummary], list[str | None]]:
    summaries: list[EpisodeSummary] = []
    faults = fleet.round(policy, folder, first, wanted, summaries.append)
    return summaries, faults


def test_episodes_are_those_that_one_robot_would_have_had(tmp_path: Path) -> None:
    """The first one of each robot: later ones start from the pose in which the one before ended."""
    header = {"task": "valve"}
    alone = {}
    for index in (1, 2):
        with closing(VALVE()) as env:
            actor = Actor(env.unwrapped, header, (Fault,), seed=5)
            actor.episode(Mirror(), tmp_path / "alone", index, explore=True, closed=lambda summary: None)
        alone[index] = read_episode(tmp_path / f"alone/{index:06d}.mcap")
    with Fleet(Actor(Point(), header, (Fault,), seed=5), VALVE, 2) as fleet:
        summaries, faults = flown(fleet, Mirror(), tmp_path / "fleet", 1)
    assert faults == [None, None]
    assert [summary.index for summary in summaries] == [1, 2]
    for index, one in alone.items():
        other = read_episode(tmp_path / f"fleet/{index:06d}.mcap")
        assert (one.parameters, one.header["seed"]) == (other.parameters, other.header["seed"])
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.rewards, other.rewards)
        assert one.images is not None
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.telemetry["applied"], other.telemetry["applied"])
        assert (other.truncated, other.fault, len(other.actions)) == (True, None, 4)


def test_only_as_many_episodes_as_wanted(points: Fleet, tmp_path: Path) -> None:
    summaries, faults = flown(points, Still(), tmp_path, 5, wanted=2)
    assert [summary.index for summary in summaries] == [5, 6]
    assert faults == [None, None]


def test_a_fault_ends_its_own_robots_episode_alone(points: Fleet, tmp_path: Path) -> None:
    summaries, faults = flown(points, Still(), tmp_path, 1, wanted=2)  # fails at reset; fails in a step
    assert faults == ["servo 12 did not answer", "servo 12 is silent"]
    assert [(summary.index, summary.steps, summary.fault) for summary in summaries] == [
        (2, 1, "servo-silent")
    ]
    assert points.actor.failed_resets == 1
    summaries, faults = flown(points, Still(), tmp_path, 5)
    assert faults == [None] * 4
    assert [summary.steps for summary in summaries] == [4] * 4
    assert points.actor.faults_in_a_row == 0


def test_logs_are_closed_first_to_last(
    points: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learner that has seen number 8 does not look for number 5 again."""
    published = []
    publish = GrowingFile.publish

    def look(file: GrowingFile, path: Path) -> None:
        published.append(path.name)
        publish(file, path)

    monkeypatch.setattr(GrowingFile, "publish", look)
    flown(points, Still(), tmp_path, 5)
    assert published == [f"{index:06d}.mcap" for index in (5, 6, 7, 8)]


def test_a_run_made_with_several_robots_can_be_used_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "collect --task valve_fixed --hw sim --envs 2 --episodes 2 --set task.horizon=2 --run run"
    assert run_robot.main(shlex.split(command)) == 0
    replayed = "replay run/episodes/000002.mcap --hw dclaw --set hw.bus.port=/dev/ttyNobody"
    assert run_robot.main(shlex.split(replayed)) == 1
    assert "/dev/ttyNobody" in capsys.readouterr().err


def test_too_many_faults_in_a_row_end_the_run_after_all_logs_are_closed(
    points: Fleet, tmp_path: Path
) -> None:
    summaries: list[EpisodeSummary] = []
    for index in (12, 22):
        points.round(Still(), tmp_path, index, 1, summaries.append)
    with pytest.raises(TooManyFaultsError, match="servo 12"):
        points.round(Still(), tmp_path, 32, 1, summaries.append)
    assert [summary.steps for summary in summaries] == [1, 1, 1]


def test_an_episode_that_ends_early_waits_for_the_others(points: Fleet, tmp_path: Path) -> None:
    summaries, faults = flown(points, Still(), tmp_path, 4, wanted=2)
    assert [summary.steps for summary in summaries] == [2, 4]
    assert faults == [None, None]


def test_a_killed_process_is_told_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    summaries: list[EpisodeSummary] = []
    actor = Numbered(Point(), {"task": "point"}, (Fault,), seed=0)
    with pytest.raises(RobotProcessDied, match="--resume"), Fleet(actor, point, 2) as fleet:
        fleet.round(Still(), tmp_path, 3, 2, summaries.append)
    assert [(summary.index, summary.fault) for summary in summaries] == [
        (3, "RobotProcessDied"),
        (4, "RobotProcessDied"),
    ]
    assert not list(tmp_path.glob("*.part"))


def test_a_policy_that_fails_leaves_closed_logs(points: Fleet, tmp_path: Path) -> None:
    class Sick(Still):
        calls = 0

        def act(self, carry: None, observation: Any, *, explore: bool) -> tuple[None, np.ndarray]:
            self.calls += 1
            if self.calls == 4:
                raise FloatingPointError("not a number")
            return super().act(carry, observation, explore=explore)

    summaries: list[EpisodeSummary] = []
    with pytest.raises(FloatingPointError):
        points.round(Sick(), tmp_path, 5, 2, summaries.append)
    assert [(summary.steps, summary.fault) for summary in summaries] == [(1, "FloatingPointError")] * 2


@pytest.mark.slow
def test_training_on_two_robots_is_the_same_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = (
        "--task valve_fixed --hw sim --agent sac_state --envs 2 --steps 18 --set task.horizon=3 "
        "--set train.final_episodes=1 --set train.random_steps=9 --set agent.sac.hidden=[8] "
        "--set agent.sac.batch_size=4 --set train.replay_capacity=1000"
    )
    rows = []
    for name in ("one", "two"):
        assert run_robot.main(shlex.split(f"{command} --run {name}")) == 0
        episodes = read_index(tmp_path / name / "episodes.jsonl")
        assert [episode.steps for episode in episodes] == [3] * 6
        metrics = read_metrics(tmp_path / name)
        rows.append([{key: value for key, value in row.items() if key != "wall"} for row in metrics])
    assert rows[0] == rows[1]
    assert any("loss/critic_loss" in row for row in rows[0])


def test_several_robots_are_for_simulation_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_robot.main(shlex.split("--task valve_fixed --hw dclaw --envs 2")) == 2
    assert "there is one real robot; several are for --hw sim" in capsys.readouterr().err
