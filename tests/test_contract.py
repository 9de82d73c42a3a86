"""What every task promises, whoever wrote it: one suite over all files of configs/tasks, by gymnasium id."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from numpy.typing import NDArray

import run_robot
from configs.document import ConfigError, Layer
from configs.loader import choices, load
from configs.run import RunConfig, cross_checks
from robot.rig import build
from robot.types import InvalidCommand
from tasks import RobotEnv, RobotTaskConfig, make_task, registration
from tasks.replay import rescore

NAMES = [name for name in choices(run_robot.CONFIGS / "tasks") if not name.startswith("dm_")]
TOLD = ["task.cue=vector"]
POINTED_AT = ["task.cue=pointer", "hw.dclaw.guide_id=60"]
CASES: dict[str, tuple[str, list[str]]] = {
    **{name: (name, []) for name in NAMES},
    **{f"{name}, told": (name, TOLD) for name in ("turn_fixed", "pose_fixed")},
    "valve_random, pointed at": ("valve_random", POINTED_AT),
}
PARAMETERS = [
    pytest.param(name, marks=pytest.mark.slow if CASES[name][1] is POINTED_AT else []) for name in CASES
]
FIXED = {"turn_fixed", "turn_fixed, told", "screw_fixed"}  # ROBEL's: nothing is drawn
BOUNDS = {  # of every reward term that there is, per step
    "distance": (-5 * np.pi, 0.0),
    "pose": (-3 * 2 * np.pi, 0.0),  # nine joints, no more than a turn away each
    "speed": (-3 * 20.0, 0.0),
    "near": (0.0, 10.0),
    "at_goal": (0.0, 50.0),
    "angle": (-np.pi / 2 - 0.1, 0.0),  # a door's stop gives
    "hand_to_handle": (-2.0, 0.0),  # m^2; the workspace's diagonal is 1.3 m
    "drawer_to_goal": (-0.19, 0.0),  # as does a drawer's
    "reach": (0.0, 0.25),
    "lift": (0.0, 1.0),
}
MEASURED = [f"{who}_{what}" for who in ("joint", "object") for what in ("position", "velocity", "current")]
COLUMNS = ("time", "requested", "applied", *MEASURED)


@dataclass
class Case:
    """One task, ready to run."""

    name: str
    env: RobotEnv


def make(name: str) -> RobotEnv:
    task, settings = CASES[name]
    return registration.make(task, settings=settings)


@pytest.fixture(scope="module", params=PARAMETERS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    env = make(request.param)
    yield Case(request.param, env)
    env.close()


def actions(env: RobotEnv, count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, env.task.action_size).astype(np.float32) for _ in range(count)]


@functools.cache
def episode(name: str, seed: int, steps: int = 6) -> list[Any]:
    """The beginning of an episode in a world of its own: what `reset` and each `step` returned."""
    env = make(name)
    try:
        return [env.reset(seed=seed), *(env.step(action) for action in actions(env, steps))]
    finally:
        env.close()


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.filterwarnings("error::UserWarning", "ignore:.*infinity.*:UserWarning")
def test_gymnasiums_own_checker_accepts_it_by_its_id(name: str) -> None:
    task, settings = CASES[name]
    number = registration.id_of(task)
    env = gymnasium.make(number, disable_env_checker=True, images=False, settings=settings)
    try:
        check_env(env.unwrapped, skip_render_check=True)
    finally:
        env.close()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_seed_decides_everything_and_another_draws_another_start(name: str) -> None:
    first = episode(name, seed=3)
    again = episode.__wrapped__(name, seed=3)
    assert data_equivalence([step[0] for step in first], [step[0] for step in again], exact=True)
    assert [step[1] for step in first[1:]] == [step[1] for step in again[1:]]
    other = episode(name, seed=4)
    same = data_equivalence(first[0][0], other[0][0], exact=True)
    assert same is (name in FIXED)


def test_observations_lie_in_their_spaces_and_are_finite(case: Case) -> None:
    space = case.env.observation_space
    for step in episode(case.name, seed=3):
        observation = step[0]
        assert observation in space
        assert observation["state"].dtype == np.float32
        assert observation["image"].dtype == np.uint8
        assert np.isfinite(observation["state"]).all()
    assert case.env.task.joint_size <= case.env.task.state_size


def test_rewards_are_sums_of_bounded_terms(case: Case) -> None:
    for _, reward, _, _, info in episode(case.name, seed=3)[1:]:
        assert reward == pytest.approx(sum(info["terms"].values()))
        for name, value in info["terms"].items():
            low, high = BOUNDS[name]
            assert low <= value <= high, f"{name} is {value}"


def test_measures_have_labels_and_the_score_is_a_share(case: Case) -> None:
    for step in episode(case.name, seed=3):
        info = step[-1]
        assert set(info["measures"]) | {"success"} == set(case.env.task.labels)
        assert 0 <= info["measures"]["score"] <= 1
        assert isinstance(info["success"], bool)


def test_parameters_make_the_same_episode_of_another_task(case: Case) -> None:
    info = episode(case.name, seed=3)[0][-1]
    case.env.task.restore(info["parameters"])
    assert case.env.task.parameters == info["parameters"]


def test_a_log_scored_anew_gives_identical_terms(case: Case) -> None:
    first, *rest = episode(case.name, seed=3)
    infos = [step[-1] for step in rest]
    steps = {column: np.array([info["telemetry"][column] for info in infos]) for column in COLUMNS}
    terms = {name: np.array([info["terms"][name] for info in infos]) for name in infos[0]["terms"]}
    scored = rescore(case.env.task, first[-1]["parameters"], steps, terms)
    assert scored.difference == 0.0
    assert scored.success.tolist() == [info["success"] for info in infos]


def test_successive_observations_share_no_memory(case: Case) -> None:
    observations = [step[0] for step in episode(case.name, seed=3)]
    for one, two in itertools.pairwise(observations):
        assert not any(np.shares_memory(one[key], two[key]) for key in one)


def test_an_observation_is_a_copy_of_what_was_measured(case: Case) -> None:
    """Who changes its observation must not change the picture that the log or a second look gets."""
    env = case.env
    env.reset(seed=3)
    snapshot, action = env.rig.snapshot(1.0), np.zeros(env.task.action_size, np.float32)
    one, two = (env.task.observe(snapshot, action) for _ in range(2))
    measured = [frame.image for frame in snapshot.frames.values()]
    assert measured
    assert not any(np.shares_memory(value, image) for value in one.values() for image in measured)
    assert not any(np.shares_memory(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("task", "settings", "reason"),
    [
        ("valve_random", "hw.kind=emulated", "what gymnasium makes is simulated"),
        ("dm_cheetah_run", (), "is of dm_control"),
    ],
)
def test_an_id_is_for_simulated_robots_alone(task: str, settings: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        registration.make(task, images=False, settings=settings)


def test_the_time_limit_truncates_and_then_a_reset_is_needed() -> None:
    for name in ("valve_random", "pose_random", "sawyer_door"):
        env = registration.make(name, images=False, settings=["task.horizon=2"])
        env.reset(seed=0)
        one, two = actions(env, 2)
        assert env.step(one)[2:4] == (False, False)
        assert env.step(two)[2:4] == (False, True)
        with pytest.raises(ResetNeeded):
            env.step(one)
        env.close()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.01, -9.0])
def test_an_action_out_of_range_is_an_error_and_moves_nothing(case: Case, wrong: float) -> None:
    case.env.reset(seed=0)
    before = case.env.rig.robot.read().joints.position
    for action in (np.full(case.env.task.action_size, wrong), np.zeros(case.env.task.action_size + 1)):
        with pytest.raises(InvalidCommand):
            case.env.step(action.astype(np.float32))
    np.testing.assert_array_equal(case.env.rig.robot.read().joints.position, before)


def test_only_a_cue_that_is_meant_to_shows_the_goal_to_who_has_no_state(case: Case) -> None:
    """Image and felt joints are the same for two goals, except for what the configured cue draws."""
    env = case.env
    env.reset(seed=0)
    snapshot, rest = env.rig.snapshot(1.0), np.zeros(env.task.action_size, np.float32)
    seen = []
    for seed in (3, 4):
        parameters = episode(case.name, seed=seed)[0][-1]["parameters"]
        goals = {name: value for name, value in parameters.items() if name not in ("start", *"xyz")}
        env.task.restore({**env.task.parameters, **goals})
        seen.append(env.task.observe(snapshot, rest))
    felt = env.task.joint_size
    np.testing.assert_array_equal(seen[0]["state"][:felt], seen[1]["state"][:felt])
    config = getattr(env.task, "config", None)
    drawn = getattr(config, "cue", "none") in ("dot", "dots") and seen[0].keys() == seen[1].keys()
    if not drawn:
        np.testing.assert_array_equal(seen[0]["image"], seen[1]["image"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("sawyer")])
def test_it_keeps_its_promises_through_the_wire(name: str) -> None:
    """Serial driver and camera driver, in real time, against emulated devices."""
    config = load(
        RunConfig,
        [
            Layer.from_file(run_robot.CONFIGS / f"{path}.yaml")
            for path in (f"tasks/{name}", "hw/emulated", "agent/slac")
        ],
        [cross_checks],
    )
    assert isinstance(config.task, RobotTaskConfig)
    with build(config.hw) as rig:
        env = RobotEnv(rig, make_task(config.task))
        first, info = env.reset(seed=3)
        seen = [(first, info), *(env.step(action) for action in actions(env, 6))]
    assert all(step[0] in env.observation_space for step in seen)
    infos = [step[-1] for step in seen]
    assert not any("fault" in info for info in infos), infos[-1]
    steps = {column: np.array([info["telemetry"][column] for info in infos[1:]]) for column in COLUMNS}
    terms = {name: np.array([info["terms"][name] for info in infos[1:]]) for name in infos[1]["terms"]}
    assert rescore(make_task(config.task), info["parameters"], steps, terms).difference == 0.0


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", ["turn_random", "sawyer_pickup"])
def test_several_run_side_by_side_as_gymnasium_makes_them(name: str, mode: Any) -> None:
    envs = gymnasium.make_vec(registration.id_of(name), 2, mode, images=False)
    try:
        first, _ = envs.reset(seed=[3, 4])
        assert not (first["state"][0] == first["state"][1]).all()
        shape = envs.action_space.shape
        assert shape is not None
        second, rewards, *_ = envs.step(np.zeros(shape, np.float32))
        assert second["state"].shape == first["state"].shape
        assert np.isfinite(rewards).all()
    finally:
        envs.close()


def test_settings_and_names_that_are_none_are_refused_as_everywhere() -> None:
    with pytest.raises(ConfigError, match="did you mean 'horizon'"):
        registration.make("valve_fixed", settings=["task.horizn=3"])
    with pytest.raises(ConfigError, match="did you mean 'valve_fixed'"):
        registration.make("valve_fxed")
    with pytest.raises(ValueError, match="registers its tasks itself"):
        registration.make("dm_cartpole_swingup")
