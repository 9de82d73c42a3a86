# ruff: noqa: E501 - commands and messages stand here as they are typed and printed
"""The command line as a person meets it: one screen of help, exit codes, errors that say what to do next."""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import run_robot
from agent.episodes import EpisodeWriter, read_episode
from agent.policy import ConstantPolicy
from configs import command_line, ending
from configs.composition import compose, recompose
from configs.document import ConfigError, Layer
from configs.loader import about
from tasks.stage import stage

ROOT = Path(__file__).parents[1]
SMALL = (
    "--set task.horizon=3 --set train.final_episodes=1 --set train.random_steps=10 --set agent.sac.hidden=[8] "
    "--set agent.sac.batch_size=4 --set train.replay_capacity=1000"
)
PLAIN = "--task valve_fixed --hw sim --agent sac_state"
TRAIN = f"{PLAIN} --steps 18 {SMALL}"
NOBODY = "--set hw.bus.port=/dev/ttyNobody"


def program(command: str, *, limit: int | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own; `limit` bounds the bytes of any file that it writes."""

    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, str(ROOT / "run_robot.py"), *shlex.split(command)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        preexec_fn=confine,
    )


class Call:
    """Runs commands in this process, which spares each test seconds of imports; keeps what was printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, command: str) -> int:
        self._capsys.readouterr()
        try:
            code = run_robot.main(shlex.split(command))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        self.out, self.err = self._capsys.readouterr()
        assert "Traceback" not in self.err
        return code

    @property
    def told(self) -> str:
        return self.out + self.err

    @property
    def shown(self) -> str:
        """What was printed since, outside of a command."""
        return self._capsys.readouterr().out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """The program, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Call(capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 18 steps: episodes, weights, checkpoints. Tests that change it copy it first."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert run_robot.main(shlex.split(f"{TRAIN} --run {run}")) == 0
    return run


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The finished run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


# --- help


def test_help_fits_one_screen_and_is_there_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "run_robot.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    lines = done.stdout.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 100
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "mujoco", "cv2", "numpy", "pydantic", "yaml", "gymnasium", "rich"}


@pytest.mark.parametrize("command", run_robot.COMMANDS)
def test_every_command_is_in_the_help_and_has_one(command: str, call: Call) -> None:
    assert call(f"{command} --help") == 0
    assert re.search(rf"^  {command} ", call.out, re.MULTILINE)


def test_help_and_grammar_know_the_same_flags_and_commands() -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", command_line.USAGE)) - {"--no-sync"}
    assert named == set(command_line.FLAGS)
    assert set(command_line.NEEDED) == set(run_robot.COMMANDS)


def test_examples_of_the_help_are_commands_that_parse() -> None:
    examples = re.findall(r"^  run_robot\.py (.*?)(?:\s{2,}.*)?$", command_line.USAGE, re.MULTILINE)
    assert len(examples) >= 4
    for example in examples:
        assert command_line.parse(example.split()).command in run_robot.COMMANDS


def test_list_names_every_task_rig_and_agent_within_100_columns(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert call("list") == 0
    names = [path.stem for path in (ROOT / "configs").rglob("*.yaml")]
    assert len(names) >= 9
    assert not [name for name in names if name not in call.out]
    assert max(map(len, call.out.splitlines())) <= 100


def test_an_empty_settings_file_is_listed_too(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert about(tmp_path / "empty.yaml") == "(empty)"


# --- what the command line itself gets wrong: exit code 2, one clear line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ["usage: run_robot.py"]),
        ("trian --task valve_fixed", ["no such command", "did you mean train?"]),
        ("--task valve_fixed --hw sim --stps 3", ["'--stps'", "did you mean --steps?"]),
        ("--task valve_fixed --hw sim --stps=3", ["'--stps=3'", "did you mean --steps?"]),
        ("evaluate --run x --episode 3", ["'--episode'", "did you mean --episodes?"]),
        ("collect --task valve_fixed --hw sim --res", ["unknown argument '--res'"]),
        ("check --hw sim --task valve_fixed", ["check: takes no --task; these do: train, collect"]),
        ("--hw sim check", ["the command comes first: run_robot.py check"]),
        ("list everything", ["unknown argument 'everything'"]),
        ("--hw sim", ["needs --task", "`run_robot.py list` shows the names"]),
        ("train", ["needs --task and --hw"]),
        ("check", ["needs --hw"]),
        ("motors", ["needs --hw"]),
        ("motors --hw emulated --fix", ["takes no --fix; these do: check"]),
        ("motors --hw sim", ["--hw sim is no bus with servos on it", "--hw emulated"]),
        ("motors --hw dclaw --set hw.bus.baud=3", ["--set hw.bus.baud=3: hw.bus.baud: servos do not speak 3 baud"]),
        ("emulate --link no/such/folder/tty", ["--link", "no/such/folder", "choose another"]),
        ("calibrate", ["calibrate what? run_robot.py calibrate camera"]),
        ("calibrate valves --hw dclaw", ["invalid choice: 'valves'", "camera", "valve"]),
        ("calibrate scene --from x", ["--from is for `calibrate camera`, not for `calibrate scene`"]),
        ("calibrate valve --hw sim --from-fingers", ["--from-fingers is for `calibrate camera`"]),
        ("calibrate camera --hw sim --from-fingers --print-board b.pdf", ["goes with neither --from nor --print-board"]),
        ("calibrate camera --from-fingers", ["needs --hw"]),
        ("calibrate camera --hw sim --by-hand", ["--by-hand is for `calibrate valve`"]),
        ("calibrate scene --hw sim", ["0 places of the picture stand still", "Put something with a pattern"]),
        ("calibrate camera", ["needs --hw"]),
        ("calibrate camera --hw sim", ["--hw sim sees through a simulated camera", "--hw dclaw has a camera"]),
        ("calibrate camera --from nowhere", ["nowhere is no folder; `ls cameras`"]),
        ("calibrate camera --from x --set board.square=1", ["--from takes --config and --set only with --hw"]),
        ("calibrate camera --from x --hw sim", ["--hw sim sees through a simulated camera"]),
        ("calibrate camera --hw dclaw --print-board b.jpg", ["b.jpg: a board is written as .pdf or .png"]),
        ("calibrate camera --hw dclaw --print-board b.pdf --set board.square=0.05 --set board.marker=0.03", ["350 x 250 mm does not fit on a4"]),
        ("calibrate camera --hw dclaw --set board.sqare=1", ["unknown key 'sqare' - did you mean 'square'?"]),
        ("check --hw sim --print-board b.pdf", ["check: takes no --print-board; these do: calibrate"]),
        ("evaluate", ["needs --run", "`ls runs`"]),
        ("replay --hw sim", ["which EPISODE?"]),
        ("replay 1.mcap", ["needs --hw"]),
        ("--task", ["--task: expected one argument"]),
        ("--task valve_fixed --hw sim --set", ["--set: expected one argument"]),
        ('--task "" --hw sim', ["--task: expected a name, got nothing", "shell variable"]),
        ('--task valve_fixed --hw ""', ["--hw: expected a name, got nothing"]),
        ('--task valve_fixed --hw sim --run ""', ["--run: expected a name, got nothing"]),
        ('--task valve_fixed --hw sim --config ""', ["--config: expected a name, got nothing"]),
        ('replay "" --hw sim', ["episode: expected a name, got nothing"]),
        ("--task valve_fixed --hw sim --steps 0", ["--steps", "whole number above 0", "'0'"]),
        ("--task valve_fixed --hw sim --steps -5", ["--steps", "'-5'"]),
        ("--task valve_fixed --hw sim --steps many", ["--steps", "'many'"]),
        ("--task valve_fixed --hw sim --steps NaN", ["--steps", "'NaN'"]),
        ("--task valve_fixed --hw sim --steps inf", ["--steps", "'inf'"]),
        ("--task valve_fixed --hw sim --steps 1.5", ["--steps", "'1.5'"]),
        ("--task valve_fixed --hw sim --steps ²", ["--steps", "'²'"]),
        ("--task valve_fixed --hw sim --seed -1", ["--seed", "from 0 to 4294967295", "'-1'"]),
        ("--task valve_fixed --hw sim --seed 4294967296", ["--seed", "'4294967296'"]),
        ("--task valve_fixed --hw sim --seed ²", ["--seed", "'²'"]),
        ("evaluate --run x --episodes 0", ["--episodes", "'0'"]),
        ("collect --task valve_fixed --hw sim --policy dance", ["--policy", "'dance'", "'random', 'hold'"]),
        ("collect --task valve_fixed --hw emulated --policy expert", ["knows the true state", "--hw sim"]),
        ("collect --task valve_fixed --hw sim --policy expert --envs 2", ["--policy expert", "leave out --envs"]),
        ("collect --task dm_cartpole_swingup --hw sim --policy expert", ["tasks of kind dm_control have no expert"]),
        ("--task valve_fixed --hw sim --resume", ["--resume needs --run"]),
        ("--task valve_rondom --hw sim", ["unknown task 'valve_rondom'", "did you mean 'valve_random'", "valve_three"]),
        ("--task configs/tasks/valve_fixd.yaml --hw sim", ["did you mean 'valve_fixed'"]),
        ("--task ../valve_fixed --hw sim", ["unknown task"]),
        ("--task Ventil-ä --hw sim", ["unknown task 'Ventil-ä'", "valve_three"]),
        ("--task valve_fixed --hw simm", ["unknown hw 'simm'", "did you mean 'sim'", "emulated"]),
        ("--task valve_fixed --hw sim --agent slaac", ["unknown agent 'slaac'", "did you mean 'slac'", "sac_state"]),
        ("check --hw dclav", ["unknown hw 'dclav'", "did you mean 'dclaw'"]),
        ("evaluate --run no/such/run", ["no/such/run holds no run"]),
        ("evaluate --run /etc/passwd", ["/etc/passwd holds no run"]),
        (f"{PLAIN} --resume --run no/run", ["no/run holds no run"]),
        ("replay no/such/episode.mcap --hw sim", ["no/such/episode.mcap does not exist", "`ls runs/*/episodes`"]),
        ("replay / --hw sim", ["/ is no file"]),
        ("replay /dev/null --hw sim", ["/dev/null is no file"]),
        (f"replay {__file__} --hw sim", ["is no episode: expected an MCAP file"]),
        (f"{PLAIN} --run /proc", ["/proc exists and is not a run", "another --run"]),
        (f"{PLAIN} --run {__file__}", ["exists and is not a run"]),
        (f"{PLAIN} --run {__file__}/run", ["no run can be made there (Not a directory)", "another folder"]),
        (f"{PLAIN} --run /proc/run", ["/proc/run: no run can be made there"]),
        ("--task valve_random --hw emulated --sync", ["--sync is not for emulated hardware", "watchdog", "Leave it out"]),
        ("--task valve_random --hw dclaw --set train.sync=true", ["--sync is not for real hardware"]),
    ],
)  # fmt: skip
def test_a_wrong_command_says_what_was_meant(command: str, words: list[str], call: Call) -> None:
    assert call(command) == 2
    assert not [word for word in words if word not in call.told], call.told


SCENE = "{path: a.png, sha256: x, date: d, camera: c, resolution: [640, 480], joints: [0, 0], valve: 0}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("--set train.stps=3", "--set train.stps=3: train.stps: unknown key 'stps' - did you mean 'steps'?"),
        ("--set ''", "--set : expected NAME=VALUE, for example --set train.steps=1000"),
        ("--set =3", "--set =3: expected NAME=VALUE, for example --set train.steps=1000"),
        ("--set train.steps", "--set train.steps: expected NAME=VALUE, for example --set train.steps=1000"),
        ("--set 'train.steps: 3'", "--set train.steps: 3: expected NAME=VALUE, for example --set train.steps=1000"),
        ("--set train.steps=", "--set train.steps=: train.steps: expected a whole number, saw nothing (null)"),
        ("--set train.steps=nan", "--set train.steps=nan: train.steps: expected a whole number, saw text 'nan'"),
        ("--set task.success=.nan", "--set task.success=.nan: 'not a number' is not allowed as a setting"),
        ("--set task.success=1e400", "--set task.success=1e400: task.success: expected a finite number, saw the number inf"),
        ("--set task=3", "--set task=3: task: expected a section (`key: value` lines), saw the number 3"),
        ("--set agent.kind=ppo", "--set agent.kind=ppo: agent.kind: expected one of 'sac_state', 'sac_pixels' or 'slac', saw text 'ppo'"),
        ("--set hw.bus.baud=12345", "--set hw.bus.baud=12345: hw.bus.baud: servos do not speak 12345 baud"),
        ("--set 'task.goal={kind: fixed'", "not valid YAML"),
        (f"--set 'hw.camera.scene={SCENE}'", "hw.camera.scene.joints: tells where 2 joints stood, this robot has 9 (hw.dclaw.joint_ids): `run_robot.py calibrate scene` takes a new reference"),
        ("--set 'hw.camera.scene={path: a.png}'", "hw.camera.scene.sha256: this setting is required"),
        ("--set 'hw.camera.projection=[[0,0,0,0],[0,0,0,0],[0,0,0,0]]'", "projection is no camera's, its rows depend on each other"),
        ("--set 'hw.camera.projection=[[1,0,0,0],[0,x,0,0],[0,0,1,1]]'", "hw.camera.projection.1.1: expected a number, saw text 'x'"),
        ("--set 'hw.camera.projection=[[.nan,0,0,0],[0,1,0,0],[0,0,1,1]]'", "'not a number' is not allowed as a setting"),
        ("--set 'hw.dclaw.calibration={date: today}'", "hw.dclaw.calibration.servos: this setting is required"),
        ("--set hw.dclaw.object_offset=1e300", "hw.dclaw.object_offset"),
        ("--set agent.device=warp", "agent.device: 'warp' fails"),
        ("--config none.yaml", "none.yaml: cannot be read: No such file or directory"),
        ("--config /", "/: cannot be read: Is a directory"),
        (f"--config {sys.executable}", "is not UTF-8 text"),
        ("--config a.yaml --config b.yaml", "a.yaml: cannot be read: No such file or directory\nb.yaml: cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_with_its_place(settings: str, message: str, call: Call) -> None:
    assert call(f"{PLAIN} --dry-run {settings}") == 2
    assert message in call.err


def test_all_mistakes_of_files_and_flags_are_told_at_once(tmp_path: Path, call: Call) -> None:
    (tmp_path / "mine.yaml").write_text(
        "task:\n  horizn: 3\n  success: big\nagent:\n  sac:\n    discount: 1.5\n"
    )
    assert call(f"{PLAIN} --config mine.yaml --set train.stps=3 --set hw.bus.baud=fast") == 2
    assert call.err.splitlines() == [
        "mine.yaml:2:3: task.horizn: unknown key 'horizn' - did you mean 'horizon'?",
        "mine.yaml:3:12: task.success: expected a number, saw text 'big'",
        "mine.yaml:6:15: agent.sac.discount: must be at most 1, saw 1.5",
        "--set train.stps=3: train.stps: unknown key 'stps' - did you mean 'steps'?",
        "--set hw.bus.baud=fast: hw.bus.baud: expected a whole number, saw text 'fast'",
    ]


def test_a_task_that_does_not_fit_the_camera_is_told_with_its_place(call: Call) -> None:
    assert call("--task valve_random --hw sim --dry-run --set hw.camera.size=[32,48]") == 2
    assert "--set hw.camera.size=[32,48]: hw.camera.size: " in call.err


def test_misspelled_settings_leave_no_run_directory(tmp_path: Path, call: Call) -> None:
    assert call(f"{TRAIN} --run run --set train.stps=3") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hw", ["sim", "emulated", "dclaw"])
def test_the_settings_in_force_are_printed_and_load_again(hw: str, tmp_path: Path, call: Call) -> None:
    assert call(f"{TRAIN} --steps 1e5 --hw {hw} --print-config") == 0
    (tmp_path / "printed.yaml").write_text(call.out)
    first = call.out
    assert "steps: 100000" in first
    for command in ("", "collect"):
        assert call(f"{command} --task valve_random --hw sim --config printed.yaml --print-config") == 0
        assert call.out == first


def test_later_settings_files_win(tmp_path: Path, call: Call) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: 7, seed: 1}")
    (tmp_path / "b.yaml").write_text("train: {steps: 8}")
    assert call(f"{PLAIN} --config a.yaml --config b.yaml --set train.seed=2 --seed 1 --print-config") == 0
    assert re.search(r"^  steps: 8$", call.out, re.MULTILINE)
    assert re.search(r"^  seed: 2$", call.out, re.MULTILINE)


# --- the rig


def test_a_dry_run_takes_one_step_and_writes_nothing(tmp_path: Path, call: Call) -> None:
    assert call(f"{TRAIN} --dry-run --run run") == 0
    assert "one step on sim hardware" in call.out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_at_the_bench_looks_and_moves_nothing(tmp_path: Path, call: Call) -> None:
    assert call(f"--task valve_fixed --hw dclaw --agent sac_state --dry-run {NOBODY}") == 1
    assert "/dev/ttyNobody does not exist" in call.out
    assert "step" not in call.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["--agent sac_state --task valve_random", "--task valve_random", "collect --task valve_three", "check"])  # fmt: skip
def test_a_missing_port_is_named_with_the_way_out_and_can_be_typed_again(
    command: str, tmp_path: Path, call: Call
) -> None:
    run = "" if command == "check" else "--run run"
    for _ in range(2):
        assert call(f"{command} --hw dclaw {run} {NOBODY}") == 1
        assert "/dev/ttyNobody" in call.told
        assert "hw.bus.port=" in call.told
        assert not list(tmp_path.iterdir())


def test_motors_at_a_missing_port_name_it_with_the_way_out(call: Call) -> None:
    for command in ("motors", "motors --set-id"):
        assert call(f"{command} --hw dclaw {NOBODY}") == 1
        assert "/dev/ttyNobody" in call.err
        assert "hw.bus.port=" in call.err


def test_giving_ids_ends_in_order_when_nobody_answers(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert call("motors --set-id --hw emulated") == 1
    assert "1 of 10: servo 10 (finger 1, proximal)" in call.out
    assert "left: 10, 11" in call.out


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_emulator_serves_until_it_is_stopped_which_is_no_failure(
    number: signal.Signals, tmp_path: Path
) -> None:
    link = tmp_path / "ttyDclaw"
    process = subprocess.Popen(
        [sys.executable, "run_robot.py", "emulate", "--link", str(link)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    told = process.stdout.readline() + process.stdout.readline()
    assert link.is_char_device()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert str(link) in told
    assert "http://127.0.0.1:" in told
    assert not link.is_symlink()


def test_what_happens_on_the_rig_is_shown_at_once_and_stands_in_the_log(tmp_path: Path, call: Call) -> None:
    args = command_line.parse(shlex.split(TRAIN))
    config = compose(args)
    with stage(config.task, config.hw, config.train.seed, images=False) as scene:
        run_robot.make_display(scene, 3)
        actor, rest = run_robot.make_actor(config, scene, args), np.zeros(9, np.float32)
        scene.world.events.emit("reboot", "servo 12 reported overload and was restarted")
        assert "reboot: servo 12 reported overload" in call.shown
        actor.episode(ConstantPolicy(rest), tmp_path, 1, explore=False, closed=lambda summary: None)
    (event,) = read_episode(tmp_path / "000001.mcap").events
    assert (event.name, event.text) == ("reboot", "servo 12 reported overload and was restarted")


def test_missing_hardware_is_told_within_five_seconds_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = program(f"--task valve_random --hw dclaw {NOBODY}")
    assert done.returncode == 1
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [("osmesa", ["libosmesa6"]), ("warp", ["'warp'", "egl, osmesa", "unset MUJOCO_GL"])],
)
def test_a_useless_opengl_library_is_told_before_mujoco_fails_on_it(
    value: str, words: list[str], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setenv("MUJOCO_GL", value)
    monkeypatch.setattr("robot.opengl.find_library", lambda name: None)
    assert call("list") == 0
    assert call("check --hw sim") == 1
    assert not [word for word in words if word not in call.err]


@pytest.fixture
def without_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: str) -> None:
        raise RuntimeError(f"no OpenGL for {wanted!r}")

    monkeypatch.setattr("robot.opengl.load", refuse)


@pytest.mark.usefixtures("without_opengl")
def test_an_agent_that_sees_needs_opengl_and_says_so_before_it_begins(tmp_path: Path, call: Call) -> None:
    assert call("--task valve_random --hw sim --run run") == 1
    assert "apt-get install libegl1" in call.err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_opengl")
def test_an_agent_without_eyes_learns_without_opengl(tmp_path: Path, call: Call) -> None:
    assert call(f"{TRAIN} --steps 6 --run run") == 0
    assert "There will be no video" in call.err
    assert (tmp_path / "run/summary.json").exists()


def test_missing_model_files_are_told_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: Call
) -> None:
    monkeypatch.setattr("robot.world.importlib.util.find_spec", lambda name: None)
    assert call(f"{TRAIN} --run run") == 1
    assert "make setup" in call.err
    assert not list(tmp_path.iterdir())


# --- run directories


def test_an_existing_run_is_never_overwritten(trained: Path, call: Call) -> None:
    before = contents(trained)
    assert call(f"{TRAIN} --run {trained}") == 2
    assert "--resume" in call.err
    assert "another --run" in call.err
    assert contents(trained) == before


def test_resuming_with_another_task_or_robot_shows_the_difference(trained: Path, call: Call) -> None:
    before = contents(trained)
    assert call(f"{TRAIN} --run {trained} --resume --task valve_random --hw emulated") == 2
    assert "hw.kind: sim -> emulated" in call.err
    assert "task.goal.kind: fixed -> range" in call.err
    assert contents(trained) == before


@pytest.mark.parametrize("change", ["agent.sac.discount=0.5", "hw.dclaw.watchdog=0.5", "task.horizon=4"])
def test_resuming_with_other_settings_shows_them(change: str, trained: Path, call: Call) -> None:
    assert call(f"{TRAIN} --run {trained} --resume --set {change}") == 2
    assert f"{change.split('=')[0]}: " in call.err


def test_a_run_goes_on_with_more_steps_and_at_another_port(copy: Path, call: Call) -> None:
    assert (
        call(
            f"{TRAIN} --run {copy} --resume --steps 24 --set hw.bus.port=/dev/ttyUSB1 --set hw.scene_check.turn=1"
        )
        == 0
    )
    assert "changed: train.steps: 18 -> 24" in call.out
    assert "changed: hw.bus.port: /dev/ttyUSB0 -> /dev/ttyUSB1" in call.out
    assert "steps: 24" in (copy / "config.yaml").read_text()  # which the learner reads
    sessions = [json.loads(line) for line in (copy / "sessions.jsonl").read_text().splitlines()]
    assert [session["task"] for session in sessions] == ["valve_fixed", "valve_fixed"]


@pytest.mark.parametrize("spoil", [b"", os.urandom(99), b"future: {a: 1}\n"])
def test_a_damaged_or_newer_configuration_of_a_run_is_told(spoil: bytes, copy: Path, call: Call) -> None:
    path = copy / "config.yaml"
    path.write_bytes(path.read_bytes() + spoil if spoil.startswith(b"future") else spoil)
    for command in (f"{TRAIN} --run {copy} --resume", f"evaluate --run {copy}"):
        assert call(command) == 2
        assert f"{copy} cannot be used; is it damaged, or of another version" in call.err


def test_a_run_that_was_killed_while_it_was_made_can_go_on(copy: Path, call: Call) -> None:
    (copy / "spaces.json").unlink()
    assert call(f"{TRAIN} --run {copy} --resume") == 0


def test_a_damaged_episode_stops_a_resume_and_is_named(copy: Path, call: Call) -> None:
    shutil.rmtree(copy / "checkpoints")
    damage(copy / "episodes/000002.mcap")
    assert call(f"{TRAIN} --run {copy} --resume --steps 24") == 1
    assert "000002.mcap" in call.err


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(copy: Path, call: Call) -> None:
    assert call(f"{TRAIN} --run {copy} --resume --steps 21") == 0
    *_, before, newest = sorted((copy / "checkpoints").glob("*.pt"))
    damage(newest)
    assert call(f"{TRAIN} --run {copy} --resume --steps 24") == 0
    (warning,) = call.err.splitlines()
    assert warning.startswith(f"{newest}: its checksum is wrong")
    assert str(before) in warning


def test_a_run_whose_checkpoints_are_all_damaged_fails_and_keeps_its_episodes(copy: Path, call: Call) -> None:
    for checkpoint in (copy / "checkpoints").glob("*.pt"):
        damage(checkpoint)
    episodes = contents(copy / "episodes")
    assert call(f"{TRAIN} --run {copy} --resume --steps 24") == 1
    assert "no checkpoint of" in call.err
    assert contents(copy / "episodes") == episodes


def test_collecting_goes_on_up_to_the_wished_number(tmp_path: Path, call: Call) -> None:
    command = "collect --task valve_fixed --hw sim --set task.horizon=2 --run run"
    for wanted, more in ((1, ""), (1, "--resume"), (2, "--resume --policy hold")):
        assert call(f"{command} --episodes {wanted} {more}") == 0
        assert len(list((tmp_path / "run/episodes").glob("*.mcap"))) == wanted
    assert read_episode(tmp_path / "run/episodes/000001.mcap").images is not None


def test_an_expert_writes_demonstrations_as_anyone_writes_episodes(tmp_path: Path, call: Call) -> None:
    settings = "--set task.horizon=6 --set task.start.low=-1.0 --set task.start.high=-0.9"
    command = f"collect --task valve_fixed --hw sim {settings} --episodes 1"
    assert call(f"{command} --run still --policy hold") == 0
    assert call(f"{command} --run moved --policy expert") == 0
    still, moved = (read_episode(tmp_path / run / "episodes/000001.mcap") for run in ("still", "moved"))
    assert moved.images is not None
    assert moved.images.shape == (7, 64, 64, 3)
    assert moved.rewards.sum() > still.rewards.sum() + 0.1


def test_a_run_says_by_what_it_was_made_even_without_git(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: Call
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert call("collect --task valve_three --hw sim --set task.horizon=2 --episodes 1 --run run") == 0
    header = read_episode(tmp_path / "run/episodes/000001.mcap").header
    assert (header["task"], header["hw"], header["commit"]) == ("valve_three", "sim", "unknown")
    assert {"python", "torch", "mujoco", "robel"} <= set(header["versions"])


# --- evaluation


def test_an_evaluation_lands_in_a_folder_of_its_own_and_can_be_replayed(copy: Path, call: Call) -> None:
    assert call(f"evaluate --run {copy} --episodes 2") == 0
    (folder,) = {path.parent for path in copy.glob("evaluation/2*/summary.json")}
    episode, _ = sorted(folder.glob("*.mcap"))
    assert read_episode(episode).header["task"] == "valve_fixed"
    assert call(f"replay {episode} --hw sim") == 0
    assert call(f"replay {episode} --rescore") == 0


def test_evaluating_an_untrained_run_says_how_to_train_it(copy: Path, call: Call) -> None:
    (copy / "policy.safetensors").unlink()
    assert call(f"evaluate --run {copy}") == 2
    assert "no weights" in call.err
    assert "--resume" in call.err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--set agent.sac.hidden=[16]", "agent.sac.hidden: [8] -> [16]"),
        ("--set task.image_size=[32,32]", "task.image_size: [64, 64] -> [32, 32]"),
    ],
)
def test_a_policy_is_not_evaluated_as_what_it_is_not(
    change: str, told: str, trained: Path, call: Call
) -> None:
    assert call(f"evaluate --run {trained} {change}") == 2
    assert told in call.err


def test_evaluating_on_missing_hardware_is_told_like_training_on_it(trained: Path, call: Call) -> None:
    assert call(f"evaluate --run {trained} --hw dclaw {NOBODY}") == 1
    assert "/dev/ttyNobody" in call.err


def test_another_rig_brings_its_own_limits(trained: Path) -> None:
    """What was widened for a simulation must not reach a robot of metal."""
    made = Layer.from_text(
        (trained / "config.yaml").read_text().replace("max_velocity: 2.09", "max_velocity: 6.09"), "run"
    )
    args = command_line.parse(["evaluate", "--run", "x"])
    assert recompose(args, made).hw.dclaw.safety.max_velocity > 6
    args = command_line.parse(["evaluate", "--run", "x", "--hw", "dclaw"])
    hw = recompose(args, made).hw
    assert hw.kind == "real"
    assert hw.dclaw.safety.max_velocity == pytest.approx(2.0944)


# --- replay


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.8])
def test_a_damaged_episode_is_refused_with_what_is_readable(
    fraction: float, trained: Path, tmp_path: Path, call: Call
) -> None:
    whole = (trained / "episodes/000001.mcap").read_bytes()
    (tmp_path / "damaged.mcap").write_bytes(whole[: int(len(whole) * fraction)])
    for command in ("--hw sim", "--rescore"):
        assert call(f"replay damaged.mcap {command}") == 1
        assert "damaged.mcap" in call.err
        assert "readable" in call.err


Change = Callable[[dict[str, Any]], object]


def rewritten(
    source: Path, target: Path, *, steps: int, header: Change = dict, telemetry: Change = dict
) -> None:
    """A copy of an episode, cut to its first steps and changed."""
    episode = read_episode(source, images=False)
    heads = dict(episode.header)
    header(heads)

    def reading(number: int) -> dict[str, Any]:
        row = {name: values[number] for name, values in episode.telemetry.items()}
        telemetry(row)
        return row

    def observation(number: int) -> Mapping[str, Any]:
        return {name: values[number] for name, values in episode.observations.items()}

    with EpisodeWriter(target, heads) as writer:
        writer.begin(observation(0), reading(0), episode.parameters)
        for number in range(steps):
            terms = {name: values[number] for name, values in episode.terms.items()}
            info = {"success": False, "terms": terms, "telemetry": reading(number + 1)}
            writer.step(observation(number + 1), episode.actions[number], episode.rewards[number], info)
        writer.done(terminated=False, truncated=True)


def broken(name: str, value: Any) -> Change:
    return lambda row: row.update({name: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "holds no step"),
        ({"steps": 2, "header": lambda header: header.pop("config")}, "says nothing of its settings"),
        ({"steps": 2, "header": broken("config", "task: 3\nfuture: 4")}, "(config):2:1: future: unknown key"),
        ({"steps": 2, "telemetry": broken("applied", np.zeros(4))}, "replay it on the robot that it was recorded with"),
        ({"steps": 2, "telemetry": broken("applied", np.full(9, np.nan))}, "not all finite"),
    ],
)  # fmt: skip
def test_an_episode_that_cannot_be_replayed_says_why(
    changes: dict[str, Any], words: str, trained: Path, tmp_path: Path, call: Call
) -> None:
    rewritten(trained / "episodes/000001.mcap", tmp_path / "000001.mcap", **changes)
    assert call("replay 000001.mcap --hw sim") == 2
    assert words in call.err


def test_an_episode_is_of_one_kind_of_task_whatever_is_set(tmp_path: Path, call: Call) -> None:
    """Doors and drawers have the same settings and joints, so nothing else would stop them."""
    assert call("collect --task sawyer_door --hw sim --episodes 1 --run run --set task.horizon=2") == 0
    for what in ("--hw sim", "--rescore"):
        assert call(f"replay run/episodes/000001.mcap {what} --set task.kind=sawyer_drawer") == 2
        assert "is of a task of kind sawyer_door, not sawyer_drawer" in call.err


def test_replay_and_rescore_agree_with_the_log(trained: Path, call: Call) -> None:
    episode = trained / "episodes/000001.mcap"
    assert call(f"replay {episode} --rescore") == 0
    assert "every reward term is as in the log" in call.out
    assert call(f"replay {episode} --hw sim") == 0
    (total,) = re.findall(r"│ all +│ ([\d.]+) +│ [\d.]+ +│ ([\d.]+) ", call.out)
    assert 0 < float(total[0]) < 0.1  # rad behind the commands: soft servos
    assert float(total[1]) < 0.02  # rad from the log: the same simulation, started a little elsewhere


def test_rescoring_tells_a_reward_that_the_log_does_not_have(
    trained: Path, tmp_path: Path, call: Call
) -> None:
    episode = trained / "episodes/000001.mcap"
    assert call(f"replay {episode} --rescore --set task.reward=robel_turn") == 2
    assert "the log has ['distance']" in call.err
    rewritten(episode, tmp_path / "000001.mcap", steps=2, telemetry=broken("object_position", np.ones(1)))
    assert call("replay 000001.mcap --rescore") == 1
    assert "differs from the log" in call.out


def test_a_replay_fits_a_narrow_terminal(trained: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert call(f"replay {trained}/episodes/000001.mcap --hw sim") == 0
    assert max(map(len, call.out.splitlines())) <= 60
    assert "finger 3, distal" in call.out


# --- the end


@pytest.mark.parametrize("name", ending.EXIT_CODES)
def test_every_error_with_an_exit_code_exists(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), kind), Exception)


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `list` end with an exception."""

    def set_up(error: BaseException) -> None:
        def end(args: object) -> int:
            raise error

        monkeypatch.setitem(run_robot.COMMANDS, "list", end)

    return set_up


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate 9 TiB."), 1, "Not enough memory. Unable to allocate 9 TiB."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "Not enough memory."),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 1, "runs/x: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), 1, "runs/x: Read-only file system"),
        (ConfigError(["a.yaml:1:1: x: bad", "b.yaml:2:2: y: worse"]), 2, "bad\nb.yaml:2:2: y: worse\n"),
    ],
)
def test_what_ends_the_program_is_told_and_has_its_code(
    error: BaseException, code: int, words: str, ending: Callable[[BaseException], None], call: Call
) -> None:
    ending(error)
    assert call("list") == code
    assert words in call.err


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "gone", "x")])
def test_a_bug_of_ours_is_not_dressed_up_as_a_mistake_of_the_person(
    error: Exception, ending: Callable[[BaseException], None]
) -> None:
    ending(error)
    with pytest.raises(type(error)):
        run_robot.main(["list"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_way_to_stop_is_an_interrupt_in_order(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """The name SAFETY.md uses for one of them: `test_sigterm_is_an_interrupt`."""
    left = []

    def stopped(args: object) -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            left.append("in order")
        return 0

    before = signal.getsignal(number)
    monkeypatch.setitem(run_robot.COMMANDS, "list", stopped)
    assert call("list") == 130
    assert left == ["in order"]
    assert signal.getsignal(number) is before


def test_sigterm_is_an_interrupt(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    test_every_way_to_stop_is_an_interrupt_in_order(signal.SIGTERM, monkeypatch, call)


def test_an_impatient_second_interrupt_does_not_disturb_the_relaxing(
    monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    relaxed = []

    def stopped(args: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            relaxed.append(True)
        return 0

    monkeypatch.setitem(run_robot.COMMANDS, "list", stopped)
    assert call("list") == 130
    assert relaxed


def test_what_the_caller_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    """As nohup does with the signal of a closed terminal."""

    def hung_up(args: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setitem(run_robot.COMMANDS, "list", hung_up)
        assert call("list") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} {ROOT / 'run_robot.py'} list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- slow: whole programs


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_what_is_written(tmp_path: Path) -> None:
    """A limit on file sizes fails a write as a full disk does, in the middle of an episode."""
    run = tmp_path / "run"
    command = f"collect --task valve_fixed --hw sim --episodes 1 --run {run}"
    done = program(command, limit=100_000)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "free" in done.stderr
    assert list((run / "episodes").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_its_episodes_closed_and_can_go_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "run_robot.py", *shlex.split(f"{TRAIN} --run {run} --steps 100000")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(run.glob("episodes/00000[3-9].mcap")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"--resume --run {run}" in errors
    assert not list(run.glob("episodes/*.part"))
    assert (run / "summary.json").exists()
    steps = sum(json.loads(line)["steps"] for line in (run / "episodes.jsonl").read_text().splitlines())
    resumed = program(f"{TRAIN} --run {run} --resume --steps {steps + 6}")
    assert resumed.returncode == 0, resumed.stderr


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[str]:
    """Flags for `--hw dclaw` that lead to emulated hardware in a process of its own, as on a real bench."""
    size = json.dumps({"emulator": {"width": 640, "height": 480}})
    process = subprocess.Popen(
        [sys.executable, "-m", "robot.emulator", "--config-json", size, "--keep"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    mine = tmp_path / "bench.yaml"
    mine.write_text(f"hw: {{bus: {{port: {ready['port']}}}, camera: {{source: '{ready['camera']}'}}}}\n")
    yield f"--hw dclaw --config {mine}"
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_the_bench_file_trains_evaluates_and_replays_through_port_and_camera(
    bench: str, tmp_path: Path
) -> None:
    """The hardware path: `--hw dclaw` and its file as they are, only port and camera address changed."""
    run, laptop = tmp_path / "run", ROOT / "configs/laptop.yaml"
    short = "--set task.horizon=12 --set train.final_episodes=1 --set train.pretrain_updates=2"
    short += " --set agent.sac.batch_size=8 --set agent.model_batch=4"
    done = program(f"--task valve_random {bench} --config {laptop} --steps 36 {short} --run {run}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^faulted episodes +none", done.stdout, re.MULTILINE), done.stdout
    episodes = sorted((run / "episodes").glob("*.mcap"))
    assert len(episodes) == 3
    images = read_episode(episodes[0]).images
    assert images is not None
    green = (images[0] == (30, 200, 60)).all(-1)
    assert green.sum() >= 9  # the goal's dot, drawn by the projection in configs/hw/dclaw.yaml
    for rig in (bench, "--hw sim"):
        replayed = program(f"replay {episodes[0]} {rig}")
        assert replayed.returncode == 0, replayed.stderr


@pytest.mark.slow
def test_an_interrupt_in_the_middle_of_an_episode_relaxes_the_bench(bench: str, tmp_path: Path) -> None:
    command = f"collect --task valve_fixed {bench} --run {tmp_path / 'run'}"
    process = subprocess.Popen(
        [sys.executable, "run_robot.py", *shlex.split(command)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/episodes/*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert program(f"check {bench}").stdout.count("off everywhere") == 1  # the torque


@pytest.mark.slow
def test_two_processes_never_share_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = subprocess.Popen(
        [sys.executable, "run_robot.py", *shlex.split(f"{TRAIN} --run {run} --steps 100000")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(run.glob("episodes/*.mcap")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = program(f"{TRAIN} --run {run} --steps 100000 --resume")
    first.send_signal(signal.SIGINT)
    first.wait(60)
    assert second.returncode == 1
    assert str(first.pid) in second.stderr


def test_a_file_where_a_folder_is_wanted_is_told(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert call("calibrate camera --hw dclaw --print-board file/board.pdf") == 1
    assert call.err == "file: File exists\n"
