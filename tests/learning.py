"""What tests of actor and learner share: small runs, made of real parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import yaml
from rich.console import Console

from agent.actor import Actor
from agent.build import build_policy
from agent.display import Display
from agent.episodes import EpisodeSummary, EpisodeWriter
from agent.learner import load_sections
from agent.metrics import MetricsLog
from agent.policy import RandomPolicy
from agent.run_dir import RunDir
from agent.train import LearnerLink, LocalLearner, Training

STATE, ACTION, SIZE = 5, 2, 16
SAC = {"kind": "sac_state", "sac": {"hidden": [8], "batch_size": 4}}
SLAC = {
    "kind": "slac",
    "window": 3,
    "model_batch": 2,
    "sac": {"hidden": [8], "batch_size": 4},
    "model": {"base_depth": 2, "features": 8, "z1": 4, "z2": 8, "hidden": 8},
}
STORED = SLAC | {"feature_age": 3, "sac": {"hidden": [8], "batch_size": 4, "critic_updates": 2}}
PIXELS = {
    "kind": "sac_pixels",
    "window": 3,
    "sac": {"hidden": [8], "batch_size": 4},
    "model": {"base_depth": 2, "features": 8},
}
TRAIN = {"steps": 100, "random_steps": 6, "pretrain_updates": 4, "replay_capacity": 1000, "publish_every": 5}


def make_run(path: Path, agent: dict[str, Any] = SAC, **train: Any) -> RunDir:
    """An empty run of 16x16 images, 5 state numbers and 2 joints."""
    run = RunDir.create(path, yaml.safe_dump({"train": {**TRAIN, **train}, "agent": agent}))
    sizes = {"image_shape": [SIZE, SIZE, 3], "state_size": STATE, "action_size": ACTION, "joint_size": 2}
    (path / "spaces.json").write_text(json.dumps(sizes))
    return run


def reconfigure(run: RunDir, **train: Any) -> None:
    """Another schedule, as a resumed session leaves it."""
    sections = yaml.safe_load(run.config_text)
    sections["train"].update(train)
    (run.path / "config.yaml").write_text(yaml.safe_dump(sections))


def add_episode(
    run: RunDir,
    index: int,
    steps: int = 5,
    *,
    images: bool = False,
    fault: str | None = None,
    reward: float = -1.0,
    size: int = SIZE,
    angles: bool = False,
) -> EpisodeSummary:
    """A closed episode of random numbers in the run, which depend on its index alone.

    size: of its images, px. angles: whether an object's angle is known.
    """
    rng = np.random.default_rng(index)
    turned = np.random.default_rng([index, 1])

    def telemetry(time: float) -> dict[str, Any]:
        return {"time": time} | ({"object_position": turned.uniform(-3, 3, 1)} if angles else {})

    def observation() -> dict[str, Any]:
        state = {"state": rng.normal(size=STATE).astype(np.float32)}
        return state | ({"image": rng.integers(0, 256, (size, size, 3)).astype(np.uint8)} if images else {})

    with EpisodeWriter(run.path / "episodes" / f"{index:06d}.mcap", {"index": index}) as writer:
        writer.begin(observation(), telemetry(0.0))
        for number in range(1, steps + 1):
            info = {"success": False, "terms": {"distance": reward}, "telemetry": telemetry(0.1 * number)}
            action = rng.uniform(-1, 1, ACTION).astype(np.float32)
            writer.step(observation(), action, reward * rng.random(), info)
        if fault:
            writer.fault(fault, "told by the test")
        else:
            writer.done(terminated=False, truncated=True)
    return writer.summary


def same(a: Any, b: Any) -> bool:
    """Whether two trees of dicts, lists, tensors and numbers are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "shape"):
        return np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
    return bool(a == b)


class ToyFault(Exception):
    """The rig of the toy failed."""


class Toy(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Push a point to zero: as quick as an environment can be, with the infos of the robot's."""

    def __init__(self, horizon: int = 5, *, images: bool = False) -> None:
        spaces: dict[str, gymnasium.Space[Any]] = {"state": gymnasium.spaces.Box(-9, 9, (STATE,), np.float32)}
        if images:
            spaces["image"] = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)
        self.horizon, self.images = horizon, images
        self.episodes = 0
        self.fails: Callable[[int, int], bool] = lambda episode, step: False  # step 0 is the reset
        self.relaxed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.episodes += 1
        if self.fails(self.episodes, 0):
            raise ToyFault(f"no reset of episode {self.episodes}")
        self.steps, self.place = 0, self.np_random.uniform(-1, 1, STATE)
        return self._observation(), {"parameters": {}, **self._facts()}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.fails(self.episodes, self.steps):
            return self._observation(), 0.0, False, True, {"fault": "toy", "fault_message": "it broke"}
        self.place[:ACTION] += 0.3 * action
        reward = -float(np.abs(self.place).mean())
        info = {"terms": {"distance": reward}, **self._facts()}
        return self._observation(), reward, False, self.steps >= self.horizon, info

    def rest(self) -> None:
        self.relaxed += 1

    def _facts(self) -> dict[str, Any]:
        near = bool(abs(self.place[0]) < 0.5)
        measures = {"error": abs(float(self.place[0])), "success_wide": float(near)}
        return {"success": near, "measures": measures, "telemetry": {"time": 0.1 * self.steps}}

    def _observation(self) -> dict[str, Any]:
        state = {"state": self.place.astype(np.float32)}
        if not self.images:
            return state
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[:, int(np.clip(4 * self.place[0] + 8, 0, SIZE - 1))] = 255
        return state | {"image": image}


def make_training(run: RunDir, env: Toy, link: LearnerLink | None = None) -> Training:
    """A training of the toy, with the learner in this process unless another is given."""
    config, agent, sizes = load_sections(run)
    metrics = MetricsLog(run.path)
    seeds = np.random.SeedSequence([config.seed, run.next_episode()]).generate_state(2)
    header = {"period": 0.1, "task": "toy"}
    actor = Actor(env, header, (ToyFault,), config.seed, config.max_faults_in_a_row, rest=env.rest)
    return Training(
        run=run,
        config=config.scaled(),
        actor=actor,
        collector=actor,
        link=link or LocalLearner(run, metrics),
        policy=build_policy(agent, seed=int(seeds[0]), **sizes),
        random_policy=RandomPolicy(ACTION, np.random.default_rng(seeds[1])),
        metrics=metrics,
        display=Display(config.steps, Console(width=100)),
        statistics=dict,
        picture=None,
        labels={"success": "success", "success_wide": "success within 0.5"},
    )
