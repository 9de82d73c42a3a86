"""The configuration in force: what was typed, over the files that it names or over what was made before."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from configs.document import ConfigError, Layer
from configs.loader import differences, find, load
from configs.run import FILES, BenchConfig, HwConfig, RunConfig, cross_checks, named, rig_checks

SAVED = "config.yaml"  # of a run, beside what it has learned
# What may change when a run goes on: the schedule, where things are plugged in, what computes.
MAY_CHANGE = (
    *("train.", "agent.device", "agent.matmul", "agent.cuda_graph"),
    *("hw.bus.", "hw.patience.", "hw.scene_check.", "hw.cameras."),
    *("hw.camera.source", "hw.camera.health", "hw.camera.record", "hw.camera.scene"),
)
LEARNED_WITH = ("agent.", "task.image_size", "task.action_range")  # which a policy is of no use without

WHY_NOT_SYNC = (
    "the servos would stand under torque, their watchdog tripped, while the actor's process learns. "
    "Leave it out: the learner then has a process of its own"
)


def compose(args: argparse.Namespace) -> RunConfig:
    """The configuration of a new session: task < hw < agent < --config < --set and short flags.

    Raises ConfigError.
    """
    config = _checked(args, named(args.task, args.hw, getattr(args, "agent", "slac")))
    if config.train.envs > 1 and config.hw.kind != "sim":
        raise ConfigError([f"train.envs: there is one {config.hw.kind} robot; several are for --hw sim"])
    return config


def compose_training(args: argparse.Namespace) -> RunConfig:
    """The configuration of a run that learns. Raises ConfigError."""
    config = compose(args)
    if config.train.sync and config.hw.kind != "sim":
        raise ConfigError([f"--sync is not for {config.hw.kind} hardware: {WHY_NOT_SYNC}"])
    return config


def recompose(args: argparse.Namespace, made: Layer) -> RunConfig:
    """The configuration that something was made with; --hw puts another rig in its place.

    As a whole: limits that were widened for a simulation must not reach a robot of metal. Raises ConfigError.
    """
    if not args.hw:
        return _checked(args, [made])
    return _checked(args, [made.without("hw"), Layer.from_file(find(FILES / "hw", args.hw))])


def compose_evaluation(args: argparse.Namespace, run: Path) -> RunConfig:
    """What a run's policy is measured with, perhaps on another rig. Raises ConfigError."""
    before, config = saved(run), recompose(args, Layer.from_file(run / SAVED))
    other = [f"  {line}" for line in differences(before, config) if line.startswith(LEARNED_WITH)]
    if other:
        raise ConfigError([f"{run} learned with other settings:", *other, "Leave them as they were."])
    return config


def saved(run: Path) -> RunConfig:
    """The configuration that a run was last started with. Raises ConfigError."""
    try:
        return load(RunConfig, [Layer.from_file(run / SAVED)])
    except ConfigError as error:
        news = f"{run} cannot be used; is it damaged, or of another version of this program?"
        raise ConfigError([news, *error.messages]) from error


def changes(run: Path, config: RunConfig) -> list[str]:
    """What is different when a run goes on. Raises ConfigError for another task, robot or agent."""
    lines = differences(saved(run), config)
    if forbidden := [f"  {line}" for line in lines if not line.startswith(MAY_CHANGE)]:
        way_out = "Resume it with the same ones, or choose another --run"
        raise ConfigError([f"{run} was made with other settings:", *forbidden, way_out])
    return lines


def rig_settings(args: argparse.Namespace) -> HwConfig:
    """The rig alone, for commands that know no task. Raises ConfigError."""
    return load(HwConfig, _rig_layers(args), [rig_checks])


def bench_settings(args: argparse.Namespace) -> BenchConfig:
    """The rig, and the board that its camera is calibrated with. Raises ConfigError."""
    return load(BenchConfig, _rig_layers(args))


def _checked(args: argparse.Namespace, layers: Sequence[Layer]) -> RunConfig:
    """The layers with --config, the short flags and --set over them."""
    given = {word: getattr(args, word, None) for word in ("steps", "seed", "sync", "envs")}
    short = [f"train.{word}={str(value).lower()}" for word, value in given.items() if value is not None]
    above = [Layer.from_file(path) for path in args.config]
    return load(RunConfig, [*layers, *above, Layer.from_overrides([*short, *args.overrides])], [cross_checks])


def _rig_layers(args: argparse.Namespace) -> list[Layer]:
    """What the command line says of the rig: its file < --config < --set."""
    layers = [Layer.from_file(path) for path in (find(FILES / "hw", args.hw), *args.config)]
    return [*layers, Layer.from_overrides(args.overrides)]
