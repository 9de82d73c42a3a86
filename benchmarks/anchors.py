"""What an expert, chance, the action 0 and a still hand come to on each task: the scale for learned returns.

Without --write a quick look: as many episodes as fit into --seconds for each policy. With --write all of
them, and the table in tasks/anchors.yaml, from which every run's summary takes its normalised score.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agent.metrics import wilson
from agent.policy import ConstantPolicy, Policy
from configs.command_line import count, parse
from configs.composition import compose
from configs.ending import exit_code, told
from configs.loader import choices
from configs.run import RunConfig
from run_robot import CONFIGS, expert_policy, fixed_policy
from tasks import all_tasks
from tasks.anchors import Anchor, Anchors, read_anchors, write_anchors
from tasks.oracle import OracleConfig
from tasks.stage import Stage, stage
from tasks.task import DemonstratedTask, ForeseeableTask

SEEDS = {"expert": 100, "random": 100, "zero": 100, "hold": 100}
DOCUMENT = Path(__file__).parents[1] / "docs" / "tasks.md"
PLANNED = 30  # episodes of an expert that plans: a plan costs a thousand random steps
Episode = tuple[float, bool]  # return, success at the last step


def settings(task: str) -> RunConfig:
    """The simulated rig with a task. Raises ConfigError."""
    return compose(parse(["collect", "--task", task, "--hw", "sim"]))


def with_expert() -> list[str]:
    """The tasks that have one."""
    names, kinds = choices(CONFIGS / "tasks"), all_tasks()
    experts = (DemonstratedTask, ForeseeableTask)
    return [name for name in names if issubclass(kinds.get(settings(name).task.kind, object), experts)]


@dataclass(frozen=True)
class Effort:
    """How much is measured, and with what."""

    seeds: int | None  # episodes of each policy, or None for the usual number
    seconds: float  # for each policy, after which no episode is begun
    oracle: OracleConfig


def make(kind: str, config: RunConfig, scene: Stage, seed: int, effort: Effort) -> Policy:
    """One episode's policy, whatever was measured before."""
    if kind == "expert":
        return expert_policy(scene, np.random.default_rng([config.train.seed, seed]), effort.oracle)
    if kind == "zero":
        return ConstantPolicy(np.zeros(scene.action_size, np.float32))
    return fixed_policy(kind, config, scene, seed)


def episode(scene: Stage, policy: Policy, seed: int) -> Episode:
    """What a policy comes to from the start and to the goal that a seed draws."""
    observation, info = scene.env.reset(seed=seed)
    carry, total, over = policy.initial(), 0.0, False
    while not over:
        carry, action = policy.act(carry, observation, explore=False)
        observation, reward, terminated, truncated, info = scene.env.step(action)
        if "fault" in info:
            raise SystemExit(f"seed {seed}: {info['fault']}: {info['fault_message']}")
        total, over = total + float(reward), terminated or truncated
    return total, bool(info["success"])


def within(seconds: float, work: Callable[[int], Episode], seeds: int, title: str) -> Iterator[Episode]:
    """The episodes of seeds 0, 1, ... that begin in time, at least two."""
    end = time.monotonic() + seconds
    for seed in track(range(seeds), title, transient=True, disable=not sys.stdout.isatty()):
        if seed >= 2 and time.monotonic() > end:
            return
        yield work(seed)


def measured(kind: str, task: str, config: RunConfig, scene: Stage, effort: Effort) -> Anchor:
    """One policy on one task."""

    def work(seed: int) -> Episode:
        return episode(scene, make(kind, config, scene, seed, effort), seed)

    plans = kind == "expert" and not issubclass(all_tasks()[config.task.kind], DemonstratedTask)
    seeds = effort.seeds or (PLANNED if plans else SEEDS[kind])
    returns, successes = zip(*within(effort.seconds, work, seeds, f"{task} {kind}"), strict=True)
    mean, sd = round(float(np.mean(returns)), 3), round(float(np.std(returns, ddof=1)), 3)
    return Anchor(mean=mean, sd=sd, successes=sum(successes), episodes=len(returns))


def show(task: str, kind: str, anchor: Anchor) -> None:
    """One line of the table."""
    low, high = wilson(anchor.successes, anchor.episodes)
    rate = f"{anchor.successes}/{anchor.episodes}"
    interval = f"95 % interval {low:.0%} to {high:.0%}"
    print(f"{task:<16}{kind:<8}{anchor.mean:>10.2f} +- {anchor.sd:<8.2f}{rate:>8}  {interval}", flush=True)


def measure(task: str, effort: Effort) -> Anchors:
    """All policies on one task, shown as they come."""
    config, found = settings(task), {}
    with stage(config.task, config.hw, config.train.seed, images=False) as scene:
        for kind in SEEDS:
            found[kind] = measured(kind, task, config, scene, effort)
            show(task, kind, found[kind])
    return Anchors(mujoco=mujoco.__version__, **found, task=config.task.model_dump(mode="json"))


def table(found: Mapping[str, Anchors]) -> str:
    """The table of docs/tasks.md."""
    kinds = list(SEEDS)
    rows = [["task", *kinds], ["---"] * (1 + len(kinds))]
    rows += [
        [f"`{task}`", *(cell(getattr(anchors, kind)) for kind in kinds)] for task, anchors in found.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(anchor: Anchor) -> str:
    """Return and success of one policy."""
    low, high = wilson(anchor.successes, anchor.episodes)
    rate = f"{anchor.successes}/{anchor.episodes} ({low * 100:.0f} to {high * 100:.0f} %)"
    return f"{anchor.mean:.1f} ± {anchor.sd:.1f}; {rate}"


def document(found: Mapping[str, Anchors]) -> None:
    """Puts the table into docs/tasks.md."""
    begin, end = "<!-- anchors -->\n", "\n<!-- /anchors -->"
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(begin)
    after = rest[rest.index(end.strip()) :]
    DOCUMENT.write_text(f"{before}{begin}{table(found)}\n{after}", encoding="utf-8")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "tasks", nargs="*", metavar="TASK", help="files of configs/tasks; default: all with an expert"
    )
    parser.add_argument("--seeds", type=count, help="episodes of each policy; default: 100, of a planner 30")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each policy, without --write (10)")
    parser.add_argument("--threads", type=count, default=2, help="for the expert's foresight (2)")
    parser.add_argument("--write", action="store_true", help="measure them all, and keep the table")
    return parser.parse_args()


def main() -> None:
    """Prints the table, and keeps it if that is wished."""
    args = options()
    if args.write and args.seeds:
        raise SystemExit("--write keeps the table that ships: it takes the usual number of seeds, no --seeds")
    if unknown := set(args.tasks) - set(with_expert()):
        raise SystemExit(f"{', '.join(sorted(unknown))}: no expert; known: {', '.join(with_expert())}")
    if args.seeds is not None and args.seeds < 2:
        raise SystemExit(f"--seeds {args.seeds}: a spread needs at least 2")
    seconds = float("inf") if args.write else args.seconds
    effort = Effort(args.seeds, seconds, OracleConfig(threads=args.threads))
    print(f"MuJoCo {mujoco.__version__}; return, mean +- sd; success at the last step")
    for task in args.tasks or with_expert():
        anchors = measure(task, effort)
        if args.write:
            write_anchors({**read_anchors(), task: anchors})
    if args.write:
        document(read_anchors())


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        if exit_code(error) is None:
            raise
        raise SystemExit(told(error)) from None
