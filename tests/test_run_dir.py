from __future__ import annotations

import builtins
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent import files
from agent.episodes import EpisodeSummary
from agent.files import DiskError, write_atomic
from agent.run_dir import CheckpointCorrupt, RunBusy, RunDir, RunError, RunExists, RunMissing

CONFIG = "task:\n  kind: valve\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", CONFIG)


def summary(number: int, steps: int = 50) -> EpisodeSummary:
    return EpisodeSummary(
        index=number,
        file=f"episodes/{number:06d}.mcap",
        sha256="0" * 64,
        steps=steps,
        return_=-12.5,
        success=True,
        measures={"error": 0.05},
        terminated=False,
        truncated=True,
        fault=None,
        fault_message="",
        seed=3,
        robot_seconds=5.0,
        late=0,
    )


def test_run_remembers_its_configuration(run: RunDir) -> None:
    assert RunDir.open(run.path).config_text == CONFIG


def test_existing_run_is_refused_with_the_two_ways_on(run: RunDir) -> None:
    with pytest.raises(RunExists, match=r"--resume.*choose another --run"):
        RunDir.create(run.path, CONFIG)


def test_foreign_folder_is_never_made_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunExists, match="is not a run"):
        RunDir.create(tmp_path, CONFIG)


def test_missing_run_lists_those_beside_it(run: RunDir) -> None:
    with pytest.raises(RunMissing, match=str(run.path)):
        RunDir.open(run.path.parent / "runn")


def test_episodes_come_in_order_and_after_a_number(run: RunDir) -> None:
    for name in ("000010.mcap", "000002.mcap", "000011.mcap.part", "000003.mcap", "000004.mcap.bad"):
        (run.path / "episodes" / name).touch()
    assert [path.name for path in run.episodes()] == ["000002.mcap", "000003.mcap", "000010.mcap"]
    assert [RunDir.episode_index(path) for path in run.episodes(after=2)] == [3, 10]


def test_new_episode_never_takes_the_place_of_an_old_one(run: RunDir) -> None:
    assert run.next_episode() == 1
    for name in ("000002.mcap", "000007.mcap.bad", "000005.mcap.part"):
        (run.path / "episodes" / name).touch()
    assert run.next_episode() == 8


def test_index_survives_a_torn_line(run: RunDir) -> None:
    run.append_index("episodes", summary(1))
    with (run.path / "episodes.jsonl").open("ab") as file:
        file.write(b'{"index": 2, "fil')
    assert [row["index"] for row in run.index("episodes")] == [1]
    run.append_index("episodes", summary(3, steps=40))
    assert [(row["index"], row["steps"]) for row in run.index("episodes")] == [(1, 50), (3, 40)]
    assert all(json.loads(line) for line in (run.path / "episodes.jsonl").read_text().splitlines())


def test_index_counts_an_episode_once(run: RunDir) -> None:
    run.append_index("episodes", summary(1))
    run.append_index("episodes", summary(1))
    assert len(run.index("episodes")) == 1
    assert run.index("evaluation") == []


@pytest.mark.parametrize(
    "line", ['{"a": 1}', '{"steps": 1, "hours": 2, "episodes": [1]}', "[1]", '{"steps": 10', ""]
)
def test_a_damaged_evaluation_costs_its_own_point_of_the_curve(run: RunDir, line: str) -> None:
    run.append_evaluation(10, 0.1, [summary(1)])
    with (run.path / "evaluations.jsonl").open("a") as file:
        file.write(line + "\n")
    run.append_evaluation(20, 0.2, [summary(2)])
    assert [row["steps"] for row in run.evaluations()] == [10, 20]
    assert run.evaluations()[1]["episodes"] == [summary(2)]


def test_weights_arrive_with_their_version(run: RunDir) -> None:
    assert run.latest_weights() is None
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3).T, "layer.bias": torch.zeros(2)}
    run.publish_weights(weights, 4)
    assert run.latest_weights(after=4) is None
    newest = run.latest_weights(after=3)
    assert newest is not None
    assert newest[0] == 4
    assert all(torch.equal(newest[1][name], value) for name, value in weights.items())


def test_weights_stay_readable_while_newer_ones_replace_them(run: RunDir) -> None:
    run.publish_weights({"w": torch.ones(1000)}, 1)
    first = run.latest_weights()
    run.publish_weights({"w": torch.zeros(1000)}, 2)
    assert first is not None
    assert torch.equal(first[1]["w"], torch.ones(1000))


def test_a_disk_that_hangs_while_weights_are_read_holds_no_other_thread(run: RunDir) -> None:
    """A pipe that nobody fills is such a disk; what keeps servos alive is such a thread."""
    os.mkfifo(run.path / "policy.safetensors")
    beats: list[float] = []
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.01):
            beats.append(time.monotonic())

    late = f"import time; time.sleep(0.5); open({str(run.path / 'policy.safetensors')!r}, 'w')"
    with subprocess.Popen([sys.executable, "-S", "-c", late]):
        thread = threading.Thread(target=beat)
        thread.start()
        began = time.monotonic()
        with pytest.raises((RunError, OSError)):  # a pipe holds no weights
            run.latest_weights()
        ended = time.monotonic()
        over.set()
        thread.join()
    gaps = np.diff([began, *beats, ended])
    assert len(gaps) > 10
    assert gaps.max() < (ended - began) / 2


@pytest.mark.parametrize("kept", [0, 4, 8, 60, -1])
def test_weights_cut_anywhere_are_named(run: RunDir, kept: int) -> None:
    run.publish_weights({"w": torch.ones(100)}, 1)
    path = run.path / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunError, match=r"policy.safetensors is damaged .*--resume"):
        run.latest_weights()


def test_damaged_weights_are_named(run: RunDir) -> None:
    (run.path / "policy.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(RunError, match=r"policy\.safetensors is damaged.*--resume"):
        run.latest_weights()


def state(number: int) -> dict[str, Any]:
    moments = {"step": torch.tensor(9.0), "exp_avg": torch.ones(3)}
    optimiser = {"state": {0: moments}, "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.999), "params": [0]}]}
    return {
        "number": number,
        "agent": {"weights": torch.full((3,), float(number)), "optimiser": optimiser},
        "generator": torch.Generator().manual_seed(number).get_state(),
        "rng": np.random.default_rng(number).bit_generator.state,  # holds integers of 128 bits
        "nothing": None,
        "pair": (1, 2.5),
    }


def load_number(run: RunDir) -> int | None:
    saved = run.load_checkpoint()
    return None if saved is None else int(saved["number"])


def test_checkpoint_comes_back_as_it_was(run: RunDir) -> None:
    assert run.load_checkpoint() is None
    run.save_checkpoint(state(7))
    saved = run.load_checkpoint()
    assert saved is not None
    assert torch.equal(saved["agent"]["weights"], torch.full((3,), 7.0))
    assert saved["rng"] == np.random.default_rng(7).bit_generator.state
    assert torch.equal(saved["generator"], state(7)["generator"])


def test_two_checkpoints_are_kept(run: RunDir) -> None:
    for number in range(5):
        run.save_checkpoint(state(number))
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["000004.pt", "000004.sha256", "000005.pt", "000005.sha256"]
    assert load_number(run) == 4


def newest(run: RunDir) -> Path:
    return sorted((run.path / "checkpoints").glob("*.pt"))[-1]


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def remove_the_checksum(path: Path) -> None:
    path.with_suffix(".sha256").unlink()


@pytest.mark.parametrize("damage", [cut_in_half, flip_a_byte, remove_the_checksum])
def test_damaged_checkpoint_falls_back_and_says_so(run: RunDir, damage: Callable[[Path], None]) -> None:
    run.save_checkpoint(state(1))
    run.save_checkpoint(state(2))
    damage(newest(run))
    with pytest.warns(UserWarning, match=r"000002\.pt.*Going on from the one before"):
        assert load_number(run) == 1
    run.save_checkpoint(state(3))
    assert load_number(run) == 3


def test_no_good_checkpoint_says_how_to_go_on(run: RunDir) -> None:
    run.save_checkpoint(state(1))
    flip_a_byte(newest(run))
    with pytest.raises(CheckpointCorrupt, match=r"its checksum is wrong.*rm -r .*checkpoints.*--resume"):
        run.load_checkpoint()


def test_checkpoint_that_could_not_be_loaded_is_not_saved(run: RunDir) -> None:
    with pytest.raises(TypeError, match=r"state\['agent'\]\['scale'\] is float64"):
        run.save_checkpoint({"agent": {"scale": np.float64(1.0)}})
    assert list((run.path / "checkpoints").iterdir()) == []


def test_checkpoint_never_runs_code(run: RunDir) -> None:
    path = run.save_checkpoint(state(1))
    torch.save({"number": 2, "evil": builtins.print}, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointCorrupt):
        run.load_checkpoint()


@pytest.mark.parametrize(
    ("save", "names"),
    [
        (lambda run: run.save_checkpoint(state(1)), ["checkpoints/000001.pt", "checkpoints/000001.sha256"]),
        (lambda run: run.publish_weights({"w": torch.ones(2)}, 1), ["policy.safetensors"]),
        (lambda run: run.beat("learner"), []),
    ],
)
def test_what_a_power_cut_must_not_take_is_on_the_disk_before_it_has_its_name(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, save: Callable[[RunDir], object], names: list[str]
) -> None:
    fsync, synced = os.fsync, list[int]()

    def seen(handle: int) -> None:
        fsync(handle)
        synced.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", seen)
    save(run)
    assert synced == [
        at.stat().st_ino for name in names for at in (run.path / name, (run.path / name).parent)
    ]


class Died(BaseException):
    """A kill -9 as far as one process can play it: nothing after it happens."""


@pytest.mark.filterwarnings("ignore:.*Going on from the one before")
@pytest.mark.parametrize("call", range(16))
def test_dying_at_any_moment_leaves_a_loadable_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    run = RunDir.create(tmp_path / "run", CONFIG)
    for number in (1, 2):
        run.save_checkpoint(state(number))
        run.publish_weights({"w": torch.full((2,), float(number))}, number)
        run.append_index("episodes", summary(number))
    calls = 0

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            if calls == call:
                raise Died
            calls += 1
            return original(*arguments, **named)

        return wrapper

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "write"):
            patch.setattr(files.os, name, dying(getattr(os, name)))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            run.save_checkpoint(state(3))
            run.publish_weights({"w": torch.full((2,), 3.0)}, 3)
            run.append_index("episodes", summary(3))
        except Died:
            pass
    again = RunDir.open(run.path)
    assert load_number(again) in (2, 3)
    weights = again.latest_weights()
    assert weights is not None
    assert torch.equal(weights[1]["w"], torch.full((2,), float(weights[0])))
    assert [row["index"] for row in again.index("episodes")][:2] == [1, 2]


BUSY_LEARNER = """
import sys
import torch
from agent.run_dir import RunDir

run = RunDir.open(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    run.save_checkpoint({"number": number, "w": torch.full((50_000,), float(number))})
    run.publish_weights({"w": torch.full((50_000,), float(number))}, number)
    run.beat("learner", number=number)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Going on from the one before")
def test_killed_learner_leaves_a_loadable_run(run: RunDir) -> None:
    command = [sys.executable, "-c", BUSY_LEARNER, str(run.path)]
    for delay in np.random.default_rng().uniform(0.05, 0.4, 3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        saved, weights = run.load_checkpoint(), run.latest_weights()
        assert saved is not None
        assert torch.equal(saved["w"], torch.full((50_000,), float(saved["number"])))
        assert weights is not None
        assert torch.equal(weights[1]["w"], torch.full((50_000,), float(weights[0])))
        assert not run.alive("learner", timeout=60)


# Signs of life


class Dial:
    def __init__(self) -> None:
        self.time = 50.0

    def __call__(self) -> float:
        return self.time


def test_process_is_alive_as_long_as_it_says_so(tmp_path: Path) -> None:
    dial = Dial()
    run = RunDir(tmp_path, monotonic=dial)
    assert not run.alive("actor", timeout=1.0)
    run.beat("actor", steps=120, losses={"critic": 0.5})
    assert run.alive("actor", timeout=1.0)
    dial.time += 1.5
    assert not run.alive("actor", timeout=1.0)
    beat = run.last_beat("actor")
    assert beat is not None
    assert (beat["steps"], beat["losses"], beat["pid"]) == (120, {"critic": 0.5}, os.getpid())


def test_beat_from_before_a_restart_is_no_sign_of_life(tmp_path: Path) -> None:
    dial = Dial()
    run = RunDir(tmp_path, monotonic=dial)
    run.beat("actor")
    dial.time = 3.0  # the machine has started anew
    assert not run.alive("actor", timeout=1000.0)


def test_dead_process_is_not_alive_however_fresh_its_beat(run: RunDir) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run.beat("learner")
    row = run.last_beat("learner")
    assert row is not None
    write_atomic(run.path / "beats" / "learner.json", json.dumps(row | {"pid": process.pid}))
    assert not run.alive("learner", timeout=60.0)


def test_two_processes_of_one_role_never_share_a_run(run: RunDir) -> None:
    refused = pytest.raises(RunBusy, match=f"process {os.getpid()}")
    with run.lock("learner"), run.lock("actor"), refused, RunDir.open(run.path).lock("learner"):
        pass
    with run.lock("learner"):
        pass


def test_stop_is_asked_for_by_a_file(run: RunDir) -> None:
    assert not run.stop_requested()
    RunDir.open(run.path).request_stop()
    assert run.stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


# Atomic files


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, "old")

    def fail(file: Any) -> None:
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=r"No space left on device\. \d+\.\d MiB are free"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
