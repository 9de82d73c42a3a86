"""Prior data: episodes of other runs in every batch, and clear words when they do not fit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run_robot
from agent.episodes import EpisodeWriter, read_episode
from agent.intake import PriorDataError, mixed, prior_files, take
from agent.learner import Learner
from agent.replay import Batch, SequenceReplay
from agent.run_dir import RunDir
from tests.learning import SAC, SLAC, add_episode, make_run, same

OWN, PRIOR = -1.0, +1.0  # signs of the rewards of either


@pytest.fixture
def demonstrations(tmp_path: Path) -> RunDir:
    run = make_run(tmp_path / "demonstrations")
    for index in (1, 2):
        add_episode(run, index, reward=PRIOR, images=True)
    return run


def learner(path: Path, prior: Path, agent: dict[str, Any] = SLAC, **train: Any) -> Learner:
    run = make_run(path, agent, prior=[str(prior)], **train)
    for index in (1, 2, 3):
        add_episode(run, index, reward=OWN, images=True)
    made = Learner(run)
    made.ingest()
    return made


def shares(learner: Learner, monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> list[list[bool]]:
    """Of each batch that reaches the agent, which windows are prior data."""
    seen = []
    own = getattr(learner.agent, kind)

    def look(batch: Batch) -> dict[str, float]:
        seen.append((batch.reward[:, -1] > 0).tolist())
        losses: dict[str, float] = own(batch)
        return losses

    monkeypatch.setattr(learner.agent, kind, look)
    (learner.pretrain if kind == "pretrain" else learner.train)(count)
    return seen


@pytest.mark.parametrize("kind", ["pretrain", "update"])
def test_half_of_every_batch_is_prior_data_also_where_the_model_learns(
    kind: str, demonstrations: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(tmp_path / "run", demonstrations.path)
    batches = shares(made, monkeypatch, kind, 3)
    assert len(batches) == 3
    for batch in batches:
        assert sum(batch) == len(batch) / 2
        assert sum(batch[:2]) == 1  # the model's windows are the first ones


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.01, 1), (0.99, 7)])
def test_the_share_can_be_set_and_neither_side_is_ever_left_out(
    share: float, count: int, demonstrations: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = SAC | {"sac": {"hidden": [8], "batch_size": 8}}
    made = learner(tmp_path / "run", demonstrations.path, agent, prior_share=share)
    assert [sum(batch) for batch in shares(made, monkeypatch, "update", 2)] == [count, count]


def test_prior_data_earn_no_updates_and_count_as_no_steps(demonstrations: RunDir, tmp_path: Path) -> None:
    made = learner(tmp_path / "run", demonstrations.path)
    assert (made.counters.steps, made.counters.episodes) == (15, 3)
    assert made.prior is not None
    assert (len(made.replay), len(made.prior)) == (18, 12)


def test_a_resumed_learner_goes_on_bit_for_bit(demonstrations: RunDir, tmp_path: Path) -> None:
    first = learner(tmp_path / "run", demonstrations.path)
    first.pretrain(4)
    first.train(2)
    first.checkpoint()
    resumed = Learner(first.run)
    assert resumed.restore()
    for one in (first, resumed):
        one.train(2)
    assert same(first.agent.state_dict(), resumed.agent.state_dict())


def test_without_prior_data_nothing_is_drawn_differently(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SAC)
    add_episode(run, 1)
    made = Learner(run)
    made.ingest()
    expected = made.replay.sample(4, 1, np.random.default_rng([0, 1]))
    drawn = made._drawn(4)
    assert torch.equal(drawn.action, expected.action)


@pytest.mark.parametrize(("own", "prior", "first"), [(4, 4, 2), (6, 2, 4), (1, 3, 4)])
def test_any_first_part_is_mixed_as_the_whole_is(own: int, prior: int, first: int) -> None:
    def batch(rows: int, reward: float) -> Batch:
        flags = torch.zeros(rows, 3, dtype=torch.bool)
        numbers = torch.full((rows, 2), reward)
        return Batch(None, torch.zeros(rows, 3, 1), numbers[..., None], numbers, numbers, flags, flags)

    both = mixed(batch(own, OWN), batch(prior, PRIOR))
    assert len(both) == own + prior
    share = (both.reward[:first, 0] > 0).float().mean().item()
    assert share == pytest.approx(prior / (own + prior), abs=1 / first)
    assert (both.reward[:, 0] > 0).sum() == prior


def test_joints_are_the_first_numbers_of_the_logged_state(demonstrations: RunDir) -> None:
    ring = SequenceReplay(100, (16, 16, 3), 2, 2)
    path = prior_files(demonstrations.path)[0]
    assert take(ring, path, ("image", "joints")) == 5
    episode = read_episode(path)
    assert episode.states is not None
    (windows,) = ring.newest_episodes(1, 5)
    assert windows.state is not None
    np.testing.assert_array_equal(windows.state[0], episode.states[:, :2])


def test_a_folder_of_episodes_will_do(demonstrations: RunDir) -> None:
    files = prior_files(demonstrations.path / "episodes")
    assert files == prior_files(demonstrations.path)
    assert len(files) == 2


def test_images_of_another_size_are_told_by_file(tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    add_episode(other, 1, images=True, size=32)
    with pytest.raises(PriorDataError, match=r"1\.mcap does not fit .*: images have shape \(6, 32, 32, 3\)"):
        learner(tmp_path / "run", other.path)


def test_actions_of_another_robot_are_told_even_where_they_would_broadcast(tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", SAC)
    with EpisodeWriter(other.path / "episodes/000001.mcap", {"index": 1}) as writer:
        writer.begin({"state": np.zeros(5, np.float32)}, {"time": 0.0})
        info = {"success": False, "terms": {}, "telemetry": {"time": 0.1}}
        writer.step({"state": np.zeros(5, np.float32)}, np.zeros(1, np.float32), -1.0, info)
        writer.done(terminated=False, truncated=True)
    with pytest.raises(PriorDataError, match=r"actions have shape \(1, 1\); \(1, 2\) is expected"):
        learner(tmp_path / "run", other.path, SAC)


def test_a_damaged_file_is_told_with_the_way_to_leave_it_out(demonstrations: RunDir, tmp_path: Path) -> None:
    path = demonstrations.path / "episodes/000002.mcap"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(PriorDataError, match=r"000002\.mcap cannot be read whole; .*mv .*000002\.mcap\.bad"):
        learner(tmp_path / "run", demonstrations.path)


def test_prior_data_without_a_single_window_are_told(tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    add_episode(other, 1, steps=2, images=True)
    with pytest.raises(PriorDataError, match=r"other are too short"):
        learner(tmp_path / "run", other.path)


def refused(prior: Path | str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a run with that prior data is told; it never begins."""
    command = f"--task valve_fixed --hw sim --agent sac_state --set train.prior=[{prior}] --run run"
    assert run_robot.main(shlex.split(command)) == 2
    assert not Path("run").exists()
    return capsys.readouterr().err


def test_what_cannot_be_trained_on_is_told_before_anything_moves(
    demonstrations: RunDir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "does not fit this run" in refused(demonstrations.path, capsys)
    expected = f"train.prior: {tmp_path / 'runs/nothing'} holds no episodes/*.mcap"
    assert expected in refused("runs/nothing", capsys)


def test_paths_are_those_of_the_commands_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "collect --task valve_fixed --hw sim --set train.prior=[demonstrations] --print-config"
    assert run_robot.main(shlex.split(command)) == 0
    assert str(tmp_path / "demonstrations") in capsys.readouterr().out
