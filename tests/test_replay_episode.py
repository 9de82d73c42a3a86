import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from robot.rig import Rig, RigConfig, build
from tasks import PoseConfig, RobotEnv, Valve, ValveConfig, make_task
from tasks.claw import Interval
from tasks.replay import Difference, replay, rescore
from tasks.valve import AngleRange

CONFIG = ValveConfig(goal=AngleRange(low=-math.pi / 2, high=math.pi / 2), horizon=30)
COLUMNS = ("time", "requested", "applied", "joint_position", "joint_velocity", "joint_current")
OBJECT_COLUMNS = ("object_position", "object_velocity", "object_current")


@dataclass
class Recorded:
    """An episode as plain arrays, as a log gives it back."""

    parameters: dict[str, float]
    start: NDArray[np.float64]
    object_start: float
    steps: dict[str, NDArray[Any]]
    terms: dict[str, NDArray[np.float64]]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with build(RigConfig(kind="sim", name="sim"), cameras=False) as rig:
        yield rig


def record(rig: Rig, config: ValveConfig | PoseConfig, seed: int = 0) -> Recorded:
    env = RobotEnv(rig, make_task(config), images=False, seed=seed)
    _, info = env.reset()
    object_start = float(info["telemetry"]["object_position"][0])
    start, parameters, rng = (
        info["telemetry"]["joint_position"],
        info["parameters"],
        np.random.default_rng(seed),
    )
    infos = [env.step(rng.uniform(-1, 1, 9).astype(np.float32))[4] for _ in range(config.horizon)]
    steps = {n: np.array([i["telemetry"][n] for i in infos]) for n in COLUMNS + OBJECT_COLUMNS}
    terms = {n: np.array([i["terms"][n] for i in infos]) for n in infos[0]["terms"]}
    return Recorded(parameters, start, object_start, steps, terms)


@pytest.fixture(scope="module")
def recorded(rig: Rig) -> Recorded:
    return record(rig, CONFIG)


def test_difference_is_rms_and_maximum_per_joint() -> None:
    difference = Difference.between(np.array([[0.0, 1.0], [0.0, -3.0]]), np.zeros((2, 2)))
    np.testing.assert_allclose(difference.rms, [0.0, math.sqrt(5)])
    np.testing.assert_allclose(difference.max, [0.0, 3.0])


def test_replay_repeats_the_motion_within_a_few_ticks(rig: Rig, recorded: Recorded) -> None:
    again = replay(
        rig,
        Valve(CONFIG),
        recorded.steps["applied"],
        start=recorded.start,
        object_start=np.array([recorded.parameters["start"]]),
    )
    assert again.late == 0
    assert again.position.shape == recorded.steps["joint_position"].shape
    assert again.against(recorded.steps["joint_position"]).rms.max() < 0.05
    assert Valve(CONFIG).apart(again.object_position, recorded.steps["object_position"])[:5].max() < 0.06
    assert 0 < again.tracking.rms.max() <= again.tracking.max.max() < 0.5


@pytest.mark.parametrize(
    ("targets", "start", "words"),
    [
        (np.zeros((5, 8)), np.zeros(8), "9 joints"),
        (np.zeros(9), np.zeros(9), "9 joints"),
        (np.zeros((0, 9)), np.zeros(9), "9 joints"),
        (np.full((5, 9), np.nan), np.zeros(9), "not all finite"),
    ],
)
def test_arrays_of_another_robot_are_refused_before_anything_moves(
    rig: Rig, targets: NDArray[np.float64], start: NDArray[np.float64], words: str
) -> None:
    began = rig.clock.now()
    with pytest.raises(ValueError, match=words):
        replay(rig, Valve(CONFIG), targets, start=start, object_start=np.zeros(1))
    assert rig.clock.now() == began


RESCORED = {
    "distance": CONFIG,
    "robel_turn": CONFIG.model_copy(update={"reward": "robel_turn"}),
    "moving": CONFIG.model_copy(
        update={"reward": "robel_turn", "goal_velocity": Interval(low=0.3, high=0.7)}
    ),
    "pose": PoseConfig(),
    "swinging": PoseConfig(goal="swinging"),
}


@pytest.mark.parametrize("config", RESCORED.values(), ids=RESCORED)
def test_rescoring_a_log_gives_exactly_the_logged_rewards(rig: Rig, config: ValveConfig | PoseConfig) -> None:
    config = config.model_copy(update={"horizon": 8})
    episode = record(rig, config, seed=2)
    scored = rescore(make_task(config), episode.parameters, episode.steps, episode.terms)
    assert scored.difference == 0.0
    assert scored.reward.shape == scored.success.shape == (8,)


def test_goals_that_move_are_scored_by_the_row_that_a_step_has_in_the_log(rig: Rig) -> None:
    config = RESCORED["moving"].model_copy(update={"horizon": 4})
    episode = record(rig, config, seed=2)
    velocity = episode.parameters["goal_velocity"]
    late = {name: column[1:] for name, column in episode.steps.items()}
    terms = {name: column[1:] for name, column in episode.terms.items()}
    scored = rescore(make_task(config), episode.parameters, late, terms)
    assert np.abs(scored.terms["distance"] - terms["distance"]) == pytest.approx([5 * velocity * 0.1] * 3)


def test_replay_takes_a_pose_episode_to_the_same_end(rig: Rig) -> None:
    config = PoseConfig(horizon=20)
    episode = record(rig, config, seed=4)
    valve, targets = np.array([episode.object_start]), episode.steps["applied"]
    again = replay(rig, make_task(config), targets, start=episode.start, object_start=valve)
    assert again.late == 0
    assert again.against(episode.steps["joint_position"]).rms.max() < 0.08


def test_rescoring_finds_a_forged_reward(recorded: Recorded) -> None:
    forged = {"distance": recorded.terms["distance"] + np.eye(30)[7]}
    scored = rescore(Valve(CONFIG), recorded.parameters, recorded.steps, forged)
    assert scored.difference == pytest.approx(1.0)


def test_rescoring_with_another_reward_says_so(recorded: Recorded) -> None:
    task = Valve(CONFIG.model_copy(update={"reward": "robel_turn"}))
    with pytest.raises(ValueError, match="attached to the episode"):
        rescore(task, recorded.parameters, recorded.steps, recorded.terms)


def test_rescoring_an_empty_episode_finds_nothing_wrong() -> None:
    empty = {name: np.zeros((0, 9)) for name in COLUMNS + OBJECT_COLUMNS}
    scored = rescore(Valve(CONFIG), {"goal": 0.0, "start": 0.0}, empty, {"distance": np.zeros(0)})
    assert scored.difference == 0.0
