"""A run from its first random step to its report, and every way in which it can end earlier."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run_robot
from agent import learner, train
from agent.actor import TooManyFaultsError
from agent.display import Display
from agent.episodes import read_episode
from agent.files import DiskError
from agent.learner import Learner, TrainingDivergedError
from agent.metrics import read_metrics
from agent.policy import RandomPolicy
from agent.run_dir import RunDir
from agent.train import LearnerDiedError, LocalLearner, RemoteLearner, evaluation_row
from robot.registers import GOAL_POSITION, TORQUE_ENABLE
from robot.sim import SimPlant
from robot.types import InvalidCommand, ServoSilent
from tests.learning import (
    PIXELS,
    SAC,
    SLAC,
    Toy,
    ToyFault,
    add_episode,
    make_run,
    make_training,
    reconfigure,
    same,
)

SHORT: dict[str, Any] = {
    "steps": 30,
    "random_steps": 10,
    "evaluate_every": 20,
    "evaluation_episodes": 2,
    "final_episodes": 3,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures() -> None:
    """For tests that look at the plots; all others do without, which halves their time."""


@pytest.fixture(autouse=True)
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(train, "learning_curve", lambda *_, **__: None)
        monkeypatch.setattr(learner, "strip", lambda *_, **__: None)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", **SHORT)


@pytest.fixture
def env() -> Toy:
    return Toy()


def index(run: RunDir) -> list[dict[str, Any]]:
    return run.index("episodes")


def summary(run: RunDir) -> dict[str, Any]:
    return dict(json.loads((run.path / "summary.json").read_text()))


def numbers(run: RunDir) -> list[dict[str, Any]]:
    """The metrics but for what the clock on the wall says."""
    return [{name: value for name, value in row.items() if name != "wall"} for row in read_metrics(run.path)]


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


# --- a whole run


def test_a_run_collects_learns_measures_and_reports(run: RunDir, env: Toy, pictures: None) -> None:
    training = make_training(run, env)
    training.picture = lambda: np.zeros((16, 16, 3), np.uint8)
    training.execute()
    assert sum(row["steps"] for row in index(run)) == 30
    assert [(row["steps"], len(row["episodes"])) for row in run.evaluations()] == [(20, 2), (30, 3)]
    told = summary(run)
    assert told["evaluation"]["episodes"] == 3
    assert told["rig"]["updates"] == 20
    assert told["rig"]["updates_per_step"] == 1
    assert told["rig"]["update_p50_ms"] > 0
    assert {"critic_loss", "alpha"} <= told["rig"].keys()
    for name in ("learning_curve.png", "evaluation.mp4", "policy.safetensors"):
        assert (run.path / name).stat().st_size > 0
    assert not (run.path / "stop").exists()


def test_a_run_with_a_model_pretrains_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: None
) -> None:
    run = make_run(tmp_path / "run", SLAC, **SHORT)
    make_training(run, Toy(images=True)).execute()
    assert (run.path / "reconstruction.png").exists()
    rig = summary(run)["rig"]
    assert (rig["model_updates"], rig["updates"]) == (4, 20)
    assert {"psnr", "kl", "reward_nll", "critic_loss"} <= rig.keys()
    shown = capsys.readouterr().out
    assert "pretraining 4/4" in shown
    assert "ms/update" in shown


def test_the_robot_rests_before_work_that_takes_long(
    run: RunDir, env: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    resting: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        work: Callable[..., None] = getattr(LocalLearner, name)

        def noted(*arguments: Any) -> None:
            resting.setdefault(name, env.relaxed)
            work(*arguments)

        return noted

    for name in ("prepare", "finish"):
        monkeypatch.setattr(LocalLearner, name, note(name))
    make_training(run, env).execute()
    assert resting == {"prepare": 1, "finish": 2}


@pytest.mark.parametrize("agent", [SAC, PIXELS, SLAC], ids=["sac_state", "sac_pixels", "slac"])
def test_two_runs_with_one_seed_write_the_same_numbers(agent: dict[str, Any], tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, agent, **SHORT) for name in ("a", "b")]
    for run in runs:
        make_training(run, Toy(images=agent is not SAC)).execute()
    assert numbers(runs[0]) == numbers(runs[1])
    assert len(numbers(runs[0])) > 10
    assert (runs[0].path / "policy.safetensors").read_bytes() == (
        runs[1].path / "policy.safetensors"
    ).read_bytes()


def test_another_seed_writes_other_numbers(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=seed, **SHORT) for name, seed in (("a", 0), ("b", 1))]
    for run in runs:
        make_training(run, Toy()).execute()
    assert numbers(runs[0]) != numbers(runs[1])


# --- resume


def test_a_resumed_run_does_what_was_left(tmp_path: Path) -> None:
    """Equivalent to a run in one piece: same steps, updates and starts; exploration draws other numbers."""
    whole, halved = (make_run(tmp_path / name, **SHORT) for name in ("whole", "halved"))
    make_training(whole, Toy()).execute()
    reconfigure(halved, steps=20)
    make_training(halved, Toy()).execute()
    reconfigure(halved, steps=30)
    make_training(halved, Toy()).execute()
    for key in ("index", "steps", "seed"):
        assert [row[key] for row in index(whole)] == [row[key] for row in index(halved)], key
    assert summary(whole)["rig"]["updates"] == summary(halved)["rig"]["updates"] == 20
    first = index(whole)[:4], index(halved)[:4]
    assert [row["return"] for row in first[0]] == [row["return"] for row in first[1]]


def test_a_resumed_learner_is_the_one_that_was_saved(run: RunDir, env: Toy) -> None:
    first = make_training(run, env)
    first.execute()
    second = make_training(run, env)
    assert isinstance(first.link, LocalLearner)
    assert isinstance(second.link, LocalLearner)
    assert same(first.link.learner.agent.state_dict(), second.link.learner.agent.state_dict())


def test_resuming_a_finished_run_measures_it_again(run: RunDir, env: Toy) -> None:
    for _ in range(2):
        make_training(run, env).execute()
    assert [row["steps"] for row in run.evaluations()] == [20, 30, 30]
    assert summary(run)["rig"]["updates"] == 20


def test_a_resumed_run_goes_on_with_what_it_has_learned(
    run: RunDir, env: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_training(run, env).execute()
    reconfigure(run, steps=40, random_steps=1000)  # half of 40 would be random in a new run
    monkeypatch.setattr(RandomPolicy, "act", interrupt)
    make_training(run, env).execute()
    assert summary(run)["rig"]["updates"] == 30


def test_steps_whose_episodes_are_gone_do_not_leave_the_run_waiting(run: RunDir, env: Toy) -> None:
    """The index counts them, the learner cannot: it asks for more instead of a policy."""
    reconfigure(run, steps=10)
    make_training(run, env, Silent()).execute()
    path = run.path / "episodes" / "000001.mcap"
    path.rename(path.with_suffix(".mcap.bad"))
    reconfigure(run, steps=20)
    make_training(run, env).execute()
    assert summary(run)["rig"]["updates"] == 15 - 10


class Silent:
    """A learner that never learns: the run ends while everything is still random."""

    def prepare(self, display: Display) -> None: ...

    def advance(self) -> None: ...

    def catch_up(self, display: Display, limit: float) -> None: ...

    def status(self) -> Mapping[str, Any]:
        return {}

    def finish(self) -> None: ...


# --- evaluation


def test_an_evaluation_is_done_once_even_if_the_next_resets_fail(run: RunDir, env: Toy) -> None:
    # Episodes 1 to 4 bring 20 steps, 5 and 6 are the evaluation, then two resets fail.
    env.fails = lambda episode, step: episode in (7, 8) and step == 0
    make_training(run, env).execute()
    assert [row["steps"] for row in run.evaluations()] == [20, 30]
    assert summary(run)["rig"]["failed_resets"] == 2


def test_faulted_evaluation_episodes_are_named_and_do_not_count(run: RunDir, env: Toy) -> None:
    env.fails = lambda episode, step: episode in (5, 10) and step == 2  # one of each evaluation
    make_training(run, env).execute()
    told = summary(run)
    assert told["evaluation"]["episodes"] == 2
    assert told["rig"]["faults"] == {"toy": 1}


def test_an_evaluation_in_which_every_episode_failed_says_so(
    run: RunDir, env: Toy, capsys: pytest.CaptureFixture[str], pictures: None
) -> None:
    env.fails = lambda episode, step: episode in (5, 6) and step == 2
    make_training(run, env).execute()
    assert "evaluation at 20 steps: no episode came to its end" in capsys.readouterr().out
    rows = [row for row in read_metrics(run.path) if "evaluation/episodes" in row]
    assert (rows[0]["evaluation/episodes"], rows[0]["evaluation/return"]) == (0, None)
    assert (run.path / "learning_curve.png").exists()


def test_no_evaluation_is_no_row_of_successes() -> None:
    row = evaluation_row([])
    assert (row["episodes"], row["success"]) == (0, 0)
    assert np.isnan(row["return"])


def test_a_picture_that_fails_does_not_cost_an_episode(run: RunDir, env: Toy) -> None:
    def broken() -> Any:
        raise ToyFault("no camera")

    training = make_training(run, env)
    training.picture = broken
    training.execute()
    assert summary(run)["evaluation"]["episodes"] == 3
    assert not (run.path / "evaluation.mp4").exists()


def test_faulted_episodes_do_not_blur_the_curves(run: RunDir, env: Toy) -> None:
    env.fails = lambda episode, step: episode == 2 and step == 3
    make_training(run, env).execute()
    returns = [row for row in read_metrics(run.path) if "episode/return" in row]
    assert len(returns) == len(index(run)) - 1
    assert sum(row["steps"] for row in index(run)) >= 30


# --- how a run can end earlier


@pytest.mark.parametrize(
    "place", ["episode", "reset", "pretraining", "training", "evaluation", "final evaluation"]
)
def test_an_interrupt_at_any_place_saves_reports_and_can_be_resumed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, env = make_run(tmp_path / "run", SLAC, **SHORT), Toy(images=True)
    calls = {"pretraining": ("pretrain", 2), "training": ("update", 7)}
    at = {"episode": (4, 2), "reset": (4, 0), "evaluation": (6, 2), "final evaluation": (10, 2)}
    training = make_training(run, env)
    if place in calls:
        assert isinstance(training.link, LocalLearner)
        interrupt_call(training.link.learner.agent, *calls[place], monkeypatch)
    else:
        env.fails = lambda episode, step: interrupt() if (episode, step) == at[place] else False
    with pytest.raises(KeyboardInterrupt):
        training.execute()

    assert env.relaxed
    assert not list(run.path.rglob("*.part"))
    assert run.load_checkpoint() is not None
    assert summary(run)["training"]["episodes"] == sum(row["fault"] is None for row in index(run))
    env.fails = lambda episode, step: False
    monkeypatch.undo()
    resumed = make_training(run, env)
    resumed.execute()
    assert isinstance(resumed.link, LocalLearner)
    counters = resumed.link.learner.counters
    assert counters.pretrained == 4
    assert counters.updates == counters.steps - 10 >= 20


def interrupt_call(agent: Any, name: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the given call of a method end with Ctrl-C after its work, as in the middle of an update."""
    work, calls = getattr(agent, name), []

    def torn(batch: Any) -> Any:
        calls.append(1)
        losses = work(batch)
        if len(calls) == call:
            raise KeyboardInterrupt
        return losses

    monkeypatch.setattr(agent, name, torn)


def test_three_faulted_episodes_stop_the_run_with_the_robot_relaxed(run: RunDir, env: Toy) -> None:
    env.fails = lambda episode, step: episode >= 4 and step == 1
    with pytest.raises(TooManyFaultsError, match="it broke"):
        make_training(run, env).execute()
    assert env.relaxed
    assert [row["fault"] for row in index(run)] == [None] * 3 + ["toy"] * 3
    assert summary(run)["rig"]["faults"] == {"toy": 3}
    assert Learner(run).restore()


def test_a_divergence_leaves_the_last_good_checkpoint(
    run: RunDir, env: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconfigure(run, checkpoint_every=20)
    training = make_training(run, env)
    assert isinstance(training.link, LocalLearner)
    agent = training.link.learner.agent
    work = agent.update
    good: list[dict[str, Any]] = []

    def poisoned(batch: Any) -> dict[str, float]:
        losses = work(batch)
        if training.steps >= 25:
            return losses | {"critic_loss": float("nan")}
        good[:] = [agent.state_dict()]
        return losses

    monkeypatch.setattr(agent, "update", poisoned)
    with pytest.raises(TrainingDivergedError, match="critic_loss"):
        training.execute()
    assert env.relaxed
    restored = Learner(run)
    assert restored.restore()
    assert restored.counters.steps == 20
    assert same(restored.agent.state_dict(), good[0])


class Failing(Silent):
    """A learner that cannot save."""

    def __init__(self, run: RunDir) -> None:
        self.path = run.path / "checkpoints"

    def finish(self) -> None:
        raise DiskError(self.path, OSError(28, "No space left on device"))


def test_a_checkpoint_that_cannot_be_saved_fails_the_run(run: RunDir, env: Toy) -> None:
    with pytest.raises(DiskError, match="No space left"):
        make_training(run, env, Failing(run)).execute()


def test_an_interrupt_whose_checkpoint_cannot_be_saved_is_a_failure(run: RunDir, env: Toy) -> None:
    env.fails = lambda episode, step: interrupt() if episode == 2 else False
    with pytest.raises(DiskError, match="No space left"):
        make_training(run, env, Failing(run)).execute()
    assert env.relaxed


def test_the_first_trouble_is_raised_and_the_second_told(
    run: RunDir, env: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    env.fails = lambda episode, step: step == 0
    with pytest.raises(TooManyFaultsError):
        make_training(run, env, Failing(run)).execute()
    assert "also: " in (shown := capsys.readouterr().out)
    assert "No space left" in shown


# --- the learner's process, played by a script


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Replaces the learner's program by a shell script; $3 is the run."""

    def play(script: str) -> None:
        path = tmp_path / "learner.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(path))

    return play


def ended(link: RemoteLearner) -> RemoteLearner:
    link.process.wait(10)
    return link


WAIT_FOR_STOP = 'while [ ! -e "$3/stop" ]; do sleep 0.01; done'


def test_a_dead_learner_is_named_with_its_last_words(run: RunDir, played: Callable[[str], None]) -> None:
    played("echo from an earlier session")
    ended(RemoteLearner(run)).finish()
    played('echo "first"; echo "the disk is full"; exit 1')
    link = ended(RemoteLearner(run))
    with pytest.raises(LearnerDiedError, match=r"ended with code 1: the disk is full\. .*--resume --run"):
        link.advance()
    link.finish()  # nothing is left to stop, and nothing more to say


def test_a_killed_learner_is_told_without_words_of_earlier_sessions(
    run: RunDir, played: Callable[[str], None]
) -> None:
    played("echo from an earlier session")
    ended(RemoteLearner(run)).finish()
    played("exec sleep 60")
    link = RemoteLearner(run)
    link.advance()
    link.process.kill()
    with pytest.raises(LearnerDiedError, match=r"was killed by signal 9\. The robot stopped"):
        ended(link).advance()


def test_a_learner_that_cannot_save_at_the_end_fails_the_run(
    run: RunDir, played: Callable[[str], None]
) -> None:
    played(f"{WAIT_FOR_STOP}; echo no space left; exit 1")
    link = RemoteLearner(run)
    with pytest.raises(LearnerDiedError, match="no space left"):
        link.finish()


def test_the_request_to_stop_is_gone_when_the_learner_is(run: RunDir, played: Callable[[str], None]) -> None:
    played(WAIT_FOR_STOP)
    link = RemoteLearner(run)
    link.finish()
    assert link.process.returncode == 0
    assert not run.stop_requested()
    link.finish()
    assert not run.stop_requested()


def test_a_request_to_stop_that_a_crash_left_behind_is_forgotten(
    run: RunDir, played: Callable[[str], None]
) -> None:
    run.request_stop()
    played(WAIT_FOR_STOP)
    link = RemoteLearner(run)
    time.sleep(0.1)
    link.advance()  # alive
    link.finish()


def test_a_learner_that_hangs_is_killed(
    run: RunDir, played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "STOP_TIMEOUT", 0.2)
    played("trap '' TERM INT; while true; do sleep 0.05; done")
    link = RemoteLearner(run)
    with pytest.raises(LearnerDiedError, match="signal 9"):
        link.finish()


def test_ctrl_c_in_the_terminal_does_not_reach_the_learner(
    run: RunDir, played: Callable[[str], None]
) -> None:
    played(WAIT_FOR_STOP)
    link = RemoteLearner(run)
    assert os.getpgid(link.process.pid) != os.getpgid(0)
    link.finish()


def test_a_learner_that_dies_while_the_actor_waits_for_its_first_policy_is_noticed(
    run: RunDir, env: Toy, played: Callable[[str], None]
) -> None:
    played('while [ ! -e "$3/episodes/000002.mcap" ]; do sleep 0.01; done; echo out of memory; exit 3')
    with pytest.raises(LearnerDiedError, match="code 3: out of memory"):
        make_training(run, env, RemoteLearner(run)).execute()
    assert env.relaxed
    assert [row["steps"] for row in index(run)] == [5, 5]
    assert summary(run)["training"]["episodes"] == 2


@pytest.mark.slow
def test_the_learner_catches_up_before_the_run_ends(run: RunDir, env: Toy) -> None:
    make_training(run, env, RemoteLearner(run)).execute()
    assert summary(run)["rig"]["updates"] == 30 - 10


@pytest.mark.slow
def test_what_the_learner_cannot_catch_up_with_is_told(
    run: RunDir, env: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    reconfigure(run, catch_up=0.0, updates_per_step=30.0)
    make_training(run, env, RemoteLearner(run)).execute()
    assert "updates are left undone: train.catch_up is 0 s" in capsys.readouterr().out
    assert summary(run)["rig"]["updates"] < 30 * 20


def test_an_interrupt_while_the_learner_pretrains_stops_it_in_order(
    run: RunDir, env: Toy, played: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    played(WAIT_FOR_STOP)
    monkeypatch.setattr(Display, "pretraining", interrupt)
    link = RemoteLearner(run)
    with pytest.raises(KeyboardInterrupt):
        make_training(run, env, link).execute()
    assert link.process.returncode == 0
    assert env.relaxed


def test_the_actor_collects_on_when_the_learner_needs_more(
    run: RunDir, played: Callable[[str], None]
) -> None:
    played(WAIT_FOR_STOP)
    add_episode(run, 1)
    link = RemoteLearner(run)
    assert not link._needs_more({})  # has said nothing yet
    assert not link._needs_more({"phase": "collecting", "episodes": 0})  # has not seen the last episode yet
    assert not link._needs_more({"phase": "pretraining", "episodes": 1})
    run.beat("learner", phase="collecting", episodes=1)
    link.prepare(Display(1))  # returns, though there are no weights
    link.finish()


def test_what_an_earlier_learner_said_of_itself_is_forgotten(
    run: RunDir, played: Callable[[str], None]
) -> None:
    run.beat("learner", phase="training", notes=["old"])
    played(WAIT_FOR_STOP)
    link = RemoteLearner(run)
    assert link.status() == {}
    link.finish()


def test_a_damaged_checkpoint_that_the_learner_found_is_shown_once(
    run: RunDir, env: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    class Noting(Silent):
        def status(self) -> Mapping[str, Any]:
            return {"notes": ["000002.pt: its checksum is wrong. Going on from the one before"]}

    make_training(run, env, Noting()).execute()
    assert capsys.readouterr().out.count("its checksum is wrong") == 1


# --- through the program, on the simulated robot

SETTINGS = (
    "task.horizon=3",
    "train.final_episodes=1",
    "train.random_steps=6",
    "train.replay_capacity=1000",
    "train.checkpoint_every=3",
    "agent.sac.hidden=[8]",
    "agent.sac.batch_size=4",
)
PROGRAM = ["--task", "valve_fixed", "--hw", "sim", "--agent", "sac_state", "--steps", "12"]
PROGRAM += [word for setting in SETTINGS for word in ("--set", setting)]


SLAC_SETTINGS = (
    "train.pretrain_updates=4",
    "agent.window=3",
    "agent.model_batch=2",
    *(f"agent.model.{size}" for size in ("base_depth=2", "features=8", "z1=4", "z2=8", "hidden=8")),
)
SLAC_FLAGS = ["--agent", "slac", *(word for setting in SLAC_SETTINGS for word in ("--set", setting))]


@pytest.fixture
def program() -> Iterator[Callable[..., int]]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def call(path: Path, *flags: str) -> int:
        return run_robot.main([*PROGRAM, "--run", str(path), *flags])

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("flags", [[], SLAC_FLAGS], ids=["states", "images"])
def test_the_simulated_robot_repeats_a_run_with_one_seed(
    flags: list[str], tmp_path: Path, program: Callable[..., int]
) -> None:
    runs = [RunDir(tmp_path / name) for name in ("a", "b")]
    for run in runs:
        assert program(run.path, *flags) == 0
    assert numbers(runs[0]) == numbers(runs[1])
    dated = ("sha256",)  # the header says when
    rows = [[{k: v for k, v in row.items() if k not in dated} for row in index(run)] for run in runs]
    assert rows[0] == rows[1]


def test_an_action_that_is_no_number_ends_the_run_readably(
    tmp_path: Path,
    program: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plants: list[SimPlant] = []
    made = SimPlant.__init__

    def remembered(plant: SimPlant, *arguments: Any, **options: Any) -> None:
        plants.append(plant)
        made(plant, *arguments, **options)

    def sick(*_: Any, **__: Any) -> tuple[None, np.ndarray]:
        goals.append([servo.value(GOAL_POSITION) for servo in plants[-1].servos.values()])
        return None, np.full(9, np.nan, np.float32)

    goals: list[list[int]] = []
    monkeypatch.setattr(SimPlant, "__init__", remembered)
    monkeypatch.setattr(RandomPolicy, "act", sick)
    assert program(tmp_path / "run") == 1
    assert "finite" in capsys.readouterr().err
    servos = plants[-1].servos.values()
    assert [servo.value(GOAL_POSITION) for servo in servos] == goals[0]
    assert not any(servo.value(TORQUE_ENABLE) for servo in servos)
    assert [row["fault"] for row in index(RunDir(tmp_path / "run"))] == [InvalidCommand.__name__]
    assert len(read_episode(tmp_path / "run" / "episodes" / "000001.mcap").actions) == 0


def test_a_bus_that_stays_silent_ends_the_run_readably(
    tmp_path: Path,
    program: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read, silent = SimPlant.sync_read, ServoSilent("servo 12 (finger 1, distal) did not answer", [12])

    def flaky(plant: SimPlant, *arguments: Any) -> Any:
        if plant.now() > 12:  # s: in the second or third episode
            raise silent
        return read(plant, *arguments)

    monkeypatch.setattr(SimPlant, "sync_read", flaky)
    assert program(tmp_path / "run", "--steps", "1000") == 1
    told = capsys.readouterr()
    assert "servo 12" in told.err
    assert "in a row failed" in told.err
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_run_readably_and_keeps_what_is_written(
    small_disk: Path, program: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert program(small_disk / "run", "--steps", "1000") == 1
    told = capsys.readouterr()
    assert str(small_disk / "run") in told.err
    assert re.search(r"No space left on device\. 0\.\d MiB are free .*--resume", told.err)
    assert "training" in told.out  # the summary, though it could not be written
    episodes = sorted((small_disk / "run" / "episodes").glob("*.mcap"))
    assert len(episodes) >= 3
    assert {len(read_episode(path).actions) for path in episodes} == {3}
