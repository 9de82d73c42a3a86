"""Tasks and robots that installed packages bring: what docs/new_task.md shows, installed and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from robot.rig import ForeignRobotError, RigConfig, build

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "new_task.md").read_text(encoding="utf-8")
ARM = '''
from robot.rig import build


def arm(config, *, cameras):
    """A D'Claw under another name."""
    return build(config.model_copy(update={"robot": "dclaw"}), cameras=cameras)


def broken(config, *, cameras):
    return config.settings["port"]
'''


def task(kind: str, base: str = "Valve") -> str:
    """A module with a task whose settings say `kind`."""
    return (
        "from typing import Literal\nfrom tasks import RobotTaskConfig, Task, Valve, ValveConfig\n"
        f"class C({'ValveConfig' if base == 'Valve' else 'RobotTaskConfig'}):\n    {kind}\n"
        f"class T({base}):\n    Config = C\n"
    )


def block(language: str) -> str:
    """The first block of a language in the guide."""
    found = re.search(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    return found[1]


def installed(folder: Path, points: str, **modules: str) -> dict[str, str]:
    """An environment in which a package of these modules and entry points is installed."""
    metadata = folder / "guest-0.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text(points)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(line: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run_robot.py", *line.split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture
def guest(tmp_path: Path) -> dict[str, str]:
    """The guide's package as it is installed: setuptools makes its entry points of these lines."""
    points = re.search(r'\[project\.entry-points\."(.*?)"\]\n(.*)', block("toml"), re.DOTALL)
    assert points is not None
    (tmp_path / "spin.yaml").write_text(block("yaml"))
    return installed(tmp_path, f"[{points[1]}]\n{points[2].replace(chr(34), '')}", spin=block("python"))


@pytest.mark.slow
def test_the_guides_task_runs_from_its_file(guest: dict[str, str], tmp_path: Path) -> None:
    done = run(f"--task {tmp_path}/spin.yaml --hw sim --agent sac_state --dry-run", guest)
    assert done.returncode == 0, done.stderr
    assert "reward: speed" in done.stdout


def test_its_settings_are_checked_like_our_own(guest: dict[str, str], tmp_path: Path) -> None:
    done = run(f"--task {tmp_path}/spin.yaml --hw sim --dry-run --set task.sped=3", guest)
    assert done.returncode == 2
    assert "did you mean 'speed'" in done.stderr


def test_the_guide_is_as_short_as_it_says() -> None:
    lines = sum(block(language).count("\n") for language in ("toml", "python", "yaml"))
    said = re.search(r"(\d+) lines:", GUIDE)
    assert said is not None
    assert lines == int(said[1]) < 60


@pytest.mark.parametrize(
    ("point", "module", "words"),
    [
        ("gone:Task", "", "cannot be imported (ModuleNotFoundError"),
        ("guest:thing", "thing = 3", "no subclass of tasks.Task"),
        ("guest:T", "from tasks import Valve\nclass T(Valve): pass", "kind 'valve' already"),
        ("guest:T", task("kind: str = 'spin'"), 'has no `kind: Literal["WORD"] = "WORD"`'),
        ("guest:T", task("kind: Literal['a', 'valve'] = 'a'"), 'has no `kind: Literal["WORD"] = "WORD"`'),
        ("guest:T", task("kind: Literal['dm_control'] = 'dm_control'"), "kind 'dm_control' already"),
        ("guest:T", task("kind: Literal['t'] = 't'", "Task"), "it does not say action_size, apart"),
        ("guest:T", "import sys; sys.exit(3)", "cannot be imported (SystemExit: 3)"),
    ],
)
def test_a_task_that_is_none_is_left_out_and_told(
    point: str, module: str, words: str, tmp_path: Path
) -> None:
    guest = installed(tmp_path, f"[dclaw_slac.tasks]\nmine = {point}\n", guest=module)
    done = run("--task valve_fixed --hw sim --print-config", guest)
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_robot_of_a_package_is_driven_like_our_own(tmp_path: Path) -> None:
    points = "[dclaw_slac.robots]\narm = guest:arm\nbroken = guest:broken\nnowhere = nowhere:arm\n"
    guest = installed(tmp_path, points, guest=ARM)
    line = "--task valve_fixed --hw sim --agent sac_state --dry-run --set hw.robot="
    done = run(line + "arm", guest)
    assert done.returncode == 0, done.stderr
    assert "ok: one step" in done.stdout
    unknown = run(line + "leg", guest)
    assert unknown.returncode == 2
    assert "no installed package brings a robot 'leg'; known: dclaw, arm, broken, nowhere" in unknown.stderr


@pytest.mark.parametrize(("name", "words"), [("broken", "guest:broken"), ("nowhere", "ModuleNotFoundError")])
def test_a_robot_that_cannot_be_built_is_told(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "[dclaw_slac.robots]\nbroken = guest:broken\nnowhere = nowhere:arm\n", guest=ARM)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ForeignRobotError, match=words):
        build(RigConfig(robot=name))
