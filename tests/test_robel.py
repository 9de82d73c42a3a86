"""The six tasks against ROBEL's own sources: read as text, and of them only pure functions run."""

from __future__ import annotations

import ast
import collections
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs.document import Layer
from configs.loader import load
from configs.run import RunConfig
from robot.types import Applied, JointState, Snapshot
from robot.world import find_robel
from tasks import Pose, PoseConfig, Valve, ValveConfig
from tasks.resets import fingers

CONFIGS = Path(__file__).parents[1] / "configs"
SOURCES = find_robel() / "dclaw"
NAMES = ("turn_fixed", "turn_random", "screw_fixed", "screw_random", "pose_fixed", "pose_random")
RANGE = fingers((0.48, math.pi / 3, math.pi / 2), 9)
COMMAND = Applied(np.zeros(9), np.zeros(9))


def task_of(name: str) -> Any:
    files = (f"tasks/{name}.yaml", "hw/sim.yaml", "agent/sac_state.yaml")
    return load(RunConfig, [Layer.from_file(CONFIGS / file) for file in files]).task


def source(file: str) -> ast.Module:
    return ast.parse((SOURCES / file).read_text(encoding="utf-8"))


def value(node: ast.expr) -> Any:
    """Of an expression of numbers and numpy."""
    return eval(compile(ast.Expression(node), "robel", "eval"), {"np": np})


def constants(file: str) -> dict[str, Any]:
    """The numbers that a module names."""
    assigned = [node for node in source(file).body if isinstance(node, ast.Assign)]
    kept = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    return {name: value(node) for name, node in kept.items() if name.isupper()}


def default(file: str, parameter: str) -> Any:
    """What the constructor that names a parameter first gives it by itself."""
    for node in ast.walk(source(file)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            named = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            found = dict(zip([argument.arg for argument in named], node.args.defaults, strict=True))
            if parameter in found:
                return value(found[parameter])
    raise LookupError(parameter)


def method(file: str, owner: str, name: str) -> Any:
    """One function of ROBEL's, alone: what it calls is the caller's to give by its `self`."""
    (owning,) = [node for node in source(file).body if isinstance(node, ast.ClassDef) and node.name == owner]
    (function,) = [node for node in owning.body if isinstance(node, ast.FunctionDef) and node.name == name]
    function.returns = None
    for argument in function.args.args:
        argument.annotation = None
    space: dict[str, Any] = {"np": np, "collections": collections} | constants(file)
    exec(compile(ast.Module([function], []), file, "exec"), space)
    return space[name]


def drawn(file: str, owner: str) -> list[tuple[float, float]]:
    """The intervals of all uniform draws in a class."""
    (owning,) = [node for node in source(file).body if isinstance(node, ast.ClassDef) and node.name == owner]
    calls = [node for node in ast.walk(owning) if isinstance(node, ast.Call)]
    uniform = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "uniform"]
    given = [{word.arg: word.value for word in node.keywords} for node in uniform]
    return [(float(value(words["low"])), float(value(words["high"]))) for words in given]


def no_safety(**_: Any) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("name", NAMES)
def test_period_and_length_of_an_episode_are_robels(name: str) -> None:
    config = task_of(name)
    family = name.partition("_")[0]
    file = "turn.py" if family == "screw" else f"{family}.py"  # Screw inherits Turn's
    assert config.horizon == constants("__init__.py")[f"_{family.upper()}_EPISODE_LEN"]
    assert config.period == pytest.approx(default(file, "frame_skip") * 0.0025)  # of the model's own step


def test_success_radii_pose_and_ranges_are_robels() -> None:
    assert task_of("turn_fixed").success == task_of("turn_random").success == 0.1
    assert default("turn.py", "success_threshold") == 0.1
    assert task_of("screw_fixed").success == task_of("screw_random").success == 0.2
    assert default("screw.py", "success_threshold") == 0.2
    numbers = constants("pose.py")
    assert task_of("pose_fixed").success == pytest.approx(numbers["SUCCESS_THRESHOLD"])
    assert task_of("pose_random").goal_speed == pytest.approx(numbers["MOTION_VELOCITY_LIMIT"])
    home = fingers(task_of("turn_fixed").reset.home, 9)
    np.testing.assert_allclose(home, constants("turn.py")["RESET_POSE"])


def test_starts_goals_and_velocities_are_drawn_from_robels_intervals() -> None:
    turn, screw, pose = task_of("turn_random"), task_of("screw_random"), task_of("pose_random")
    start, about_pi = drawn("turn.py", "DClawTurnRandom")
    assert (turn.start.low, turn.start.high) == pytest.approx(start)
    assert (turn.goal.low - math.pi, turn.goal.high - math.pi) == pytest.approx(about_pi)
    assert (task_of("turn_fixed").start.angle, task_of("turn_fixed").goal.angle) == (0, math.pi)
    start, velocity = drawn("screw.py", "DClawScrewRandom")
    assert (screw.start.low, screw.start.high) == pytest.approx(start)
    assert (screw.goal_velocity.low, screw.goal_velocity.high) == pytest.approx(velocity)
    fixed = task_of("screw_fixed")
    assert (fixed.start.angle, fixed.goal_velocity.low, fixed.goal_velocity.high) == (0, 0.5, 0.5)
    assert (screw.goal.kind, fixed.goal.kind) == ("start", "start")
    (frequency,) = drawn("pose.py", "DClawPoseRandom")
    assert (pose.frequency.low, pose.frequency.high) == pytest.approx(frequency)


@pytest.mark.parametrize("name", ["turn_fixed", "screw_random"])
def test_rewards_points_and_success_of_a_turn_are_robels(name: str) -> None:
    config = task_of(name)
    assert isinstance(config, ValveConfig)
    task, rng = Valve(config), np.random.default_rng(0)
    self = SimpleNamespace(
        _desired_claw_pos=constants("turn.py")["RESET_POSE"],
        _success_threshold=config.success,
        _get_safety_scores=no_safety,
    )
    reward, score = (method("turn.py", "BaseDClawTurn", f"get_{what}_dict") for what in ("reward", "score"))
    for spread in (0.15, 0.4, 4.0) * 20:
        goal, angle = rng.uniform(-4, 4), 0.0
        angle = goal + rng.uniform(-spread, spread)
        position, velocity = rng.uniform(-1, 1, 9) * RANGE, rng.normal(size=9)
        task.restore({"goal": goal, "start": 0.0, "goal_velocity": 0.0})
        snapshot = seen(position, velocity, angle)
        error = np.mod(goal - angle + np.pi, 2 * np.pi) - np.pi
        told = {"target_error": np.array([[error]]), "claw_qpos": position[None], "claw_qvel": velocity[None]}
        theirs, points = reward(self, None, told), score(self, told, None)
        ours = task.reward(snapshot, COMMAND)
        renamed = dict(zip(("distance", "pose", "speed", "near", "at_goal"), theirs.values(), strict=True))
        assert ours == pytest.approx({term: np.asarray(number).item() for term, number in renamed.items()})
        assert task.measures(snapshot)["score"] == pytest.approx(points["points"].item())
        assert task.success(snapshot) == points["success"].item()


def test_rewards_points_and_success_of_a_pose_are_robels() -> None:
    task, rng = Pose(task_of("pose_fixed")), np.random.default_rng(1)
    self = SimpleNamespace(_get_safety_scores=no_safety)
    reward, score = (method("pose.py", "BaseDClawPose", f"get_{what}_dict") for what in ("reward", "score"))
    succeeded = set()
    for spread in (0.1, 0.3, 1.0) * 20:
        position = task.goal_at(0) + rng.uniform(-1, 1, 9) * RANGE * spread
        velocity = rng.normal(size=9) * 3
        told = {
            "qpos_error": (task.goal_at(0) - position)[None],
            "qpos": position[None],
            "qvel": velocity[None],
        }
        theirs, points = reward(self, None, told), score(self, told, None)
        ours = task.reward(seen(position, velocity), COMMAND)
        assert list(ours.values()) == pytest.approx([float(number) for number in theirs.values()])
        assert task.measures(seen(position, velocity))["score"] == pytest.approx(points["points"].item())
        assert task.success(seen(position, velocity)) == points["success"].item()
        succeeded.add(points["success"].item())
    assert succeeded == {True, False}


def test_random_poses_are_robels_where_fingers_keep_apart() -> None:
    """One generator gives both the same numbers, one after the other."""
    limits = SimpleNamespace(qpos_range=np.stack([-RANGE, RANGE], axis=1))
    rng = np.random.default_rng(3)
    self = SimpleNamespace(robot=SimpleNamespace(get_config=lambda _: limits), np_random=rng)
    theirs = method("pose.py", "BaseDClawPose", "_make_random_pose")
    goal, start, _ = Pose(PoseConfig(clearance=0.0)).draw(np.random.default_rng(3))
    np.testing.assert_allclose(start, theirs(self), rtol=1e-12)
    np.testing.assert_allclose(goal.at(0.0), theirs(self), rtol=1e-12)


def test_a_swinging_pose_is_where_robel_has_it() -> None:
    task = Pose(task_of("pose_random"))
    task.goal, *_ = task.draw(np.random.default_rng(4))
    update = method("pose.py", "DClawPoseRandom", "_update_desired_pose")
    for step in (0, 1, 37, 80):
        self = SimpleNamespace(
            _initial_pos=task.goal.middle,
            _dynamic_range=task.goal.amplitude,
            _period=task.goal.frequency,  # which it is, in spite of its name
            robot=SimpleNamespace(time=step * 0.05),
            _update_overlay=lambda: None,
        )
        update(self)
        np.testing.assert_allclose(task.goal_at(step), self._desired_pos, rtol=1e-12)


def seen(position: Any, velocity: Any, angle: float = 0.0) -> Snapshot:
    joints = JointState(0.0, position, velocity, np.zeros(9))
    return Snapshot(0.0, joints, JointState(0.0, np.array([angle]), np.zeros(1), np.zeros(1)), {})
