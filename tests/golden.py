"""The golden episode: what one policy did on the simulated robot, kept to be replayed by every later version.

    python -m tests.golden        makes tests/data/golden.* anew: only when behaviour shall change

The policy is a SLAC of a few thousand weights, drawn from a fixed seed with a loud last layer, so that the
fingers move and meet the velocity limit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

import run_robot
from agent.build import build_agent, build_policy
from agent.episodes import EpisodeSummary
from agent.policy import Policy
from configs.command_line import parse
from configs.composition import compose
from configs.run import RunConfig
from robot.registers import GOAL_POSITION
from tasks.stage import sizes, stage

DATA = Path(__file__).parent / "data"
EPISODE, WEIGHTS, TICKS = (DATA / f"golden.{suffix}" for suffix in ("mcap", "safetensors", "json"))
STEPS = 8
LOUD = 6.0  # of the last layer: tanh of fresh weights alone hardly moves a finger
SETTINGS = [
    f"task.horizon={STEPS}",
    "agent.window=3",
    "agent.model_batch=2",
    "agent.sac.hidden=[16]",
    "agent.sac.batch_size=4",
    *(f"agent.model.{size}" for size in ("base_depth=2", "features=8", "z1=4", "z2=8", "hidden=8")),
]
COMMAND = ["--task", "valve_random", "--hw", "sim", "--agent", "slac", "--seed", "7"]


def composed() -> tuple[argparse.Namespace, RunConfig]:
    """The command behind the episode, and the configuration that it leads to."""
    args = parse([*COMMAND, *(word for setting in SETTINGS for word in ("--set", setting))])
    return args, compose(args)


def golden_policy() -> Policy:
    """The policy with the weights that are kept beside the episode."""
    _, config = composed()
    policy = build_policy(config.agent, seed=0, **sizes(config.task))
    policy.load_weights(load_file(WEIGHTS))
    return policy


def draw_weights(config: RunConfig) -> dict[str, Tensor]:
    """Fresh weights of the policy, the last layer loud."""
    agent = build_agent(config.agent, seed=7, **sizes(config.task))
    weights = {name: tensor.clone() for name, tensor in agent.policy_weights().items()}
    last = max(name for name in weights if name.startswith("policy.") and name.endswith("weight"))
    weights[last] *= LOUD
    return weights


def record() -> EpisodeSummary:
    """Makes all three files: the episode, the policy's weights, and the goal positions sent to the servos."""
    torch.set_num_threads(1)
    args, config = composed()
    DATA.mkdir(exist_ok=True)
    WEIGHTS.write_bytes(save(draw_weights(config)))
    EPISODE.unlink(missing_ok=True)
    closed: list[EpisodeSummary] = []
    ticks: list[list[int]] = []
    with stage(config.task, config.hw, config.train.seed, images=True) as scene:
        bus = scene.world.clock
        send = bus.sync_write  # type: ignore[attr-defined]

        def sync_write(register: Any, values: dict[int, int]) -> None:
            if register is GOAL_POSITION:
                ticks.append([values[servo] for servo in config.hw.dclaw.joint_ids])
            send(register, values)

        bus.sync_write = sync_write  # type: ignore[attr-defined]
        actor = run_robot.make_actor(config, scene, args)
        actor.header = {**actor.header, "wall_offset": 0.0, "commit": "golden", "versions": {}}
        actor.episode(golden_policy(), DATA, 7, explore=False, closed=closed.append)
    (DATA / "000007.mcap").rename(EPISODE)
    TICKS.write_text(json.dumps({"goal_ticks": ticks[-STEPS:]}) + "\n")
    return closed[0]


if __name__ == "__main__":
    print(record())
    print(np.array(json.loads(TICKS.read_text())["goal_ticks"]))
