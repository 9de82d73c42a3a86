"""The structure of the program, held by its import statements: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {  # package -> those of ours that it may know; run_robot.py knows all
    "robot": set(),
    "agent": set(),
    "configs": set(),
    "tasks": {"robot"},
    "calibration": {"robot"},
}
# The composition root of the settings: the models of all packages become sections of one.
# Registration gives others what run_robot.py composes: a task with the settings of its file.
MAY_IMPORT_MORE = {
    "configs/run.py": {"agent", "calibration", "robot", "tasks"},
    "tasks/registration.py": {"configs", "robot"},
}
OURS = {*MAY_IMPORT, "tests", "benchmarks", *(path.stem for path in ROOT.glob("*.py"))}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
PROGRAM = [*MODULES, *sorted(ROOT.glob("*.py"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere in it, also late or for types only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: relative import; write the full name"
            yield node.module or ""


def attributes(path: Path) -> set[str]:
    """Every name and attribute that a file mentions."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return used | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def those_that_import(module: str) -> set[str]:
    return {name(path) for path in PROGRAM if any(found.split(".")[0] == module for found in imported(path))}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    known = {module.split(".")[0] for module in imported(path)} & OURS
    allowed = MAY_IMPORT[package] | MAY_IMPORT_MORE.get(name(path), set())
    forbidden = known - allowed - {package}
    assert not forbidden, f"{name(path)} imports {forbidden}; it may import {allowed or 'none'}"


def test_only_the_program_and_its_ids_import_the_settings() -> None:
    """A package that read them itself could not be used, or tested, without this repository's files."""
    users = those_that_import("configs") - {name(path) for path in (ROOT / "configs").rglob("*.py")}
    assert users == {"run_robot.py", "tasks/registration.py"}


def test_composing_the_settings_needs_no_torch() -> None:
    """A wrong setting, or a cable that is out, is told before the seconds that torch takes to import."""
    code = "import configs.run, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("package", [package for package in MAY_IMPORT if (ROOT / package).glob("*.py")])
def test_every_folder_of_modules_is_a_package(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert not [name(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_only_the_bus_speaks_to_the_dynamixel_sdk() -> None:
    assert those_that_import("dynamixel_sdk") <= {"robot/bus.py"}


def test_only_the_camera_captures_with_opencv() -> None:
    users = {name(path) for path in PROGRAM if "VideoCapture" in attributes(path)}
    assert users <= {"robot/camera.py"}


def test_robel_and_metaworld_are_never_imported_as_code() -> None:
    """robel needs a gym that is long dead; of both only model files are read."""
    assert not those_that_import("robel")


def test_behaviour_never_hangs_on_environment_variables() -> None:
    readers = {name(path) for path in PROGRAM if attributes(path) & {"environ", "getenv", "putenv"}}
    allowed = {"run_robot.py", "robot/canvas.py"}  # the command line, and which OpenGL MuJoCo draws with
    assert readers <= allowed


def test_robot_imports_without_torch_and_with_no_output() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "robot").rglob("*.py")
        if path.stem != "__main__"
    ]
    code = f"import {', '.join(sorted(modules))}, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)
