"""Tasks of dm_control: the suite's own numbers and pictures, behind the interface that robots have."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import PassiveEnvChecker

import run_robot
from agent.episodes import read_episode, read_index
from configs.document import Layer
from configs.loader import choices, load
from configs.run import RunConfig
from tasks.suite import NoSuite, SuiteConfig, SuiteEnv, load_task

TASKS = [name for name in choices(run_robot.CONFIGS / "tasks") if name.startswith("dm_")]
CHEETAH = SuiteConfig(domain="cheetah", task="run", period=0.04, horizon=250)
# Action repeats of the published curves, and control steps per second of the suite.
REPEATS = {
    "dm_ball_in_cup_catch": (4, 0.02),
    "dm_cartpole_swingup": (4, 0.01),
    "dm_cheetah_run": (4, 0.01),
    "dm_finger_spin": (1, 0.02),
    "dm_reacher_easy": (4, 0.02),
    "dm_walker_walk": (2, 0.025),
}
Make = Callable[..., SuiteEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    """Builds environments and closes them after the test."""
    made: list[SuiteEnv] = []

    def build(config: SuiteConfig = CHEETAH, **options: Any) -> SuiteEnv:
        made.append(SuiteEnv(config, **options))
        return made[-1]

    yield build
    for env in made:
        env.close()


def settings(name: str) -> RunConfig:
    files = (f"tasks/{name}.yaml", "hw/sim.yaml", "agent/slac.yaml")
    return load(RunConfig, [Layer.from_file(run_robot.CONFIGS / file) for file in files])


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_as_long_as_published_and_repeats_actions_as_published(name: str, make: Make) -> None:
    config = settings(name)
    assert isinstance(config.task, SuiteConfig)
    repeat, step = REPEATS[name]
    env = make(config.task, images=False)
    assert env.repeat == repeat
    assert config.task.period == pytest.approx(repeat * step)
    assert config.task.horizon * repeat == 1000
    assert config.train.random_steps == 10 * config.task.horizon  # ten episodes


def test_decoder_variance_is_the_tasks_own_and_no_other_agents_business() -> None:
    variances = {name: settings(name).agent.model.decoder_variance for name in TASKS}  # type: ignore[union-attr]
    assert variances["dm_walker_walk"] == 0.4
    assert variances["dm_reacher_easy"] == 0.01
    files = ("tasks/dm_walker_walk.yaml", "hw/sim.yaml", "agent/sac_state.yaml")
    config = load(RunConfig, [Layer.from_file(run_robot.CONFIGS / file) for file in files])
    assert config.agent.kind == "sac_state"


def test_an_agent_step_is_that_many_of_the_suites_with_their_rewards_added(make: Make) -> None:
    env, rng = make(images=False), np.random.default_rng(0)
    observation, _ = env.reset(seed=3)
    own = load_task(CHEETAH)
    own.reset()
    with own.physics.reset_context():
        own.physics.data.qpos[:] = env._env.physics.data.qpos
        own.physics.data.qvel[:] = env._env.physics.data.qvel
    for _ in range(5):
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        steps = [own.step(action) for _ in range(4)]
        observation, reward, terminated, truncated, info = env.step(action)
        assert reward == pytest.approx(sum(step.reward for step in steps), abs=1e-6)
        expected = np.concatenate([np.ravel(value) for value in steps[-1].observation.values()])
        np.testing.assert_allclose(observation["state"], expected, atol=1e-4)
        assert info["terms"] == {"reward": reward}
        assert not terminated
        assert not truncated


def test_an_episode_ends_by_its_time_limit_alone(make: Make) -> None:
    env = make(images=False)
    env.reset(seed=0)
    ends = []
    for _ in range(CHEETAH.horizon):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated
        ends.append(truncated)
    assert ends == [False] * 249 + [True]
    with pytest.raises(ResetNeeded):
        env.step(env.action_space.sample())


def test_a_shorter_horizon_ends_it_earlier(make: Make) -> None:
    env = make(CHEETAH.model_copy(update={"horizon": 2}), images=False)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(2)] == [False, True]


@pytest.mark.filterwarnings("error", "ignore:.*A Box observation space m:UserWarning")
def test_gymnasium_finds_nothing_wrong(make: Make) -> None:
    env = PassiveEnvChecker(make())
    env.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())


def test_one_seed_draws_one_episode_and_another_seed_another(make: Make) -> None:
    reacher = settings("dm_reacher_easy").task
    assert isinstance(reacher, SuiteConfig)
    env = make(reacher, images=False)
    first, again, other = (env.reset(seed=seed)[0]["state"] for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.filterwarnings("ignore:.*GLFW.*", "ignore:.*X11.*")  # which mujoco.Renderer tries first
def test_published_pictures_are_mujocos_own_to_the_byte(make: Make) -> None:
    env = make()
    seen, _ = env.reset(seed=0)
    seen, *_ = env.step(np.full(6, 0.5, np.float32))
    physics = env._env.physics
    with closing(mujoco.Renderer(physics.model.ptr, 64, 64)) as renderer:
        renderer.update_scene(physics.data.ptr, camera=0)
        np.testing.assert_array_equal(seen["image"], renderer.render())


def test_fast_pictures_show_the_same_without_shadows(make: Make) -> None:
    published, fast = make(), make(CHEETAH.model_copy(update={"rendering": "fast"}))
    one, other = (env.reset(seed=0)[0] for env in (published, fast))
    np.testing.assert_array_equal(one["state"], other["state"])
    difference = np.abs(one["image"].astype(int) - other["image"])
    assert difference.max() > 20
    assert difference.mean() < 15


def test_a_state_that_is_no_number_ends_the_episode_as_a_fault(make: Make) -> None:
    env = make(images=False)
    env.reset(seed=0)
    env._env.physics.data.qvel[0] = np.nan
    *_, terminated, truncated, info = env.step(np.zeros(6, np.float32))
    assert (terminated, truncated, info["fault"]) == (False, True, "unstable")
    assert "invalid" in info["fault_message"]
    env.reset(seed=1)  # goes on


@pytest.mark.parametrize("action", [np.zeros(5), np.full(6, 1.5), np.full(6, np.nan)])
def test_a_wrong_action_is_refused(action: np.ndarray, make: Make) -> None:
    env = make(images=False)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"An action has shape \(6,\) within \[-1, 1\]"):
        env.step(action)


def test_a_period_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(NoSuite, match=r"0\.033 s, which is no multiple of the 0\.01 s"):
        SuiteEnv(CHEETAH.model_copy(update={"period": 0.033}), images=False)


@pytest.mark.parametrize(("domain", "task", "known"), [("cheetah", "fly", "run"), ("bird", "fly", "cheetah")])
def test_an_unknown_task_is_told_with_those_that_there_are(domain: str, task: str, known: str) -> None:
    with pytest.raises(NoSuite, match=rf"does not exist.*Known: .*{known}"):
        load_task(SuiteConfig(domain=domain, task=task))


def test_without_dm_control_the_message_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dm_control", None)
    with pytest.raises(NoSuite, match="make setup"):
        load_task(CHEETAH)


@pytest.mark.slow
def test_slac_trains_on_it_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = "agent.model={base_depth: 2, features: 8, z1: 4, z2: 8, hidden: 8}"
    command = (
        "--task dm_ball_in_cup_catch --hw sim --run run --set task.horizon=12 --set task.rendering=fast "
        f"--steps 24 --set '{tiny}' --set agent.sac.batch_size=4 "
        "--set agent.model_batch=2 --set train.final_episodes=2"
    )
    assert run_robot.main(shlex.split(command)) == 0
    episodes = read_index(tmp_path / "run/episodes.jsonl")
    assert [episode.steps for episode in episodes] == [12, 12]
    assert [episode.fault for episode in episodes] == [None, None]
    episode = read_episode(tmp_path / "run/episodes/000001.mcap")
    assert episode.images is not None
    assert episode.images.shape == (13, 64, 64, 3)
    assert episode.header["rig"]["name"] == "ball_in_cup catch"
    assert "full reward at the end" in capsys.readouterr().out
    assert run_robot.main(shlex.split("evaluate --run run --episodes 1")) == 0
    assert run_robot.main(shlex.split("replay run/episodes/000001.mcap --hw sim")) == 2
    assert "replay is for robots" in capsys.readouterr().err
