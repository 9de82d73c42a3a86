"""Learn manipulation from camera images: parse the command line, compose rig, task and agent, exit.

Exit codes: 0 done, 1 the run failed (the fault is named), 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.command_line import parse
from configs.ending import MissingPart, exit_code, plainly, stoppable, told

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from agent.actor import Actor
    from agent.display import Display
    from agent.episodes import Episode
    from agent.policy import Policy
    from agent.run_dir import RunDir
    from agent.train import Collector, Training
    from calibration.capture import Setup
    from configs.document import Layer
    from configs.run import RunConfig
    from robot.rig import Rig, RigConfig
    from robot.sawyer import SawyerConfig
    from robot.types import Image
    from tasks.env import RobotEnv
    from tasks.oracle import OracleConfig
    from tasks.suite import SuiteConfig, SuiteEnv, SuiteWorld

ROOT = Path(__file__).parent
CONFIGS = ROOT / "configs"
PLANTS = Path("plants")  # beside runs/, where the program was started
CAMERAS = Path("cameras")  # there, too
JOINTS = Path("joints")  # and there
MINUTE = "%Y-%m-%d %H:%M"  # as settings tell when they were measured
HANDS_OFF = "{} moves for about {:.0f} s. Hands off; Ctrl-C lets it go limp."
MCAP_MAGIC = b"\x89MCAP"
WHY_NOT_SYNC = (
    "the servos would stand under torque, their watchdog tripped, while the actor's process learns. "
    "Leave it out: the learner then has a process of its own"
)
# MUJOCO_GL -> the library that MuJoCo then loads when it is imported, and its Debian packages.
GRAPHICS = {"egl": ("EGL", "libegl1 libopengl0 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}


# --- Settings


def compose(args: argparse.Namespace) -> RunConfig:
    """The configuration in force: task < hw < agent < --config < --set and short flags."""
    from configs.run import named

    return checked(args, named(args.task, args.hw, getattr(args, "agent", "slac")))


def recompose(args: argparse.Namespace, made: Layer) -> RunConfig:
    """The configuration that something was made with; --hw puts another rig in its place.

    As a whole: limits that were widened for a simulation must not reach a robot of metal.
    """
    from configs.document import Layer
    from configs.loader import find

    if not args.hw:
        return checked(args, [made])
    return checked(args, [made.without("hw"), Layer.from_file(find(CONFIGS / "hw", args.hw))])


def checked(args: argparse.Namespace, layers: Sequence[Layer]) -> RunConfig:
    """The layers with --config, the short flags and --set over them. Raises ConfigError."""
    from configs.document import Layer
    from configs.loader import load
    from configs.run import RunConfig, cross_checks

    given = {word: getattr(args, word, None) for word in ("steps", "seed", "sync", "envs")}
    short = [f"train.{word}={str(value).lower()}" for word, value in given.items() if value is not None]
    above = [Layer.from_file(path) for path in args.config]
    return load(RunConfig, [*layers, *above, Layer.from_overrides([*short, *args.overrides])], [cross_checks])


def rig_settings(args: argparse.Namespace) -> RigConfig:
    """The rig alone, for commands that know no task. Raises ConfigError."""
    from configs.loader import load
    from configs.run import HwConfig, rig_checks

    return load(HwConfig, rig_layers(args), [rig_checks]).hw


def rig_layers(args: argparse.Namespace) -> list[Layer]:
    """What the command line says of the rig: its file < --config < --set. Raises ConfigError."""
    from configs.document import Layer
    from configs.loader import find

    layers = [Layer.from_file(path) for path in (find(CONFIGS / "hw", args.hw), *args.config)]
    return [*layers, Layer.from_overrides(args.overrides)]


def check_envs(config: RunConfig) -> None:
    """Refuses several robots where there is one. Raises ConfigError."""
    from configs.document import ConfigError

    if config.train.envs > 1 and config.hw.kind != "sim":
        raise ConfigError([f"train.envs: there is one {config.hw.kind} robot; several are for --hw sim"])


def check_expert(config: RunConfig) -> None:
    """Refuses --policy expert where there is none, or none that can see. Raises ConfigError."""
    from configs.document import ConfigError
    from tasks import all_tasks
    from tasks.task import DemonstratedTask, ForeseeableTask

    task = all_tasks().get(config.task.kind, object)
    if not issubclass(task, DemonstratedTask | ForeseeableTask):
        raise ConfigError([f"--policy expert: tasks of kind {config.task.kind} have no expert"])
    if issubclass(task, DemonstratedTask):
        return
    if config.hw.kind != "sim":
        raise ConfigError(["--policy expert: the expert knows the true state of the simulation: --hw sim"])
    if config.train.envs > 1:
        raise ConfigError(["--policy expert: it looks into one simulation on all cores; leave out --envs"])


def check_learner(config: RunConfig) -> None:
    """Refuses --sync where it does harm, prior data and a device that are not there.

    Raises ConfigError, PriorDataError.
    """
    from configs.document import ConfigError

    if config.train.prior:
        from agent.intake import check_prior

        check_prior(config.train.prior, config.agent.observations, sizes(config))
    if config.train.sync and config.hw.kind != "sim":
        raise ConfigError([f"--sync is not for {config.hw.kind} hardware: {WHY_NOT_SYNC}"])
    if config.agent.device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=config.agent.device)
    except (RuntimeError, AssertionError) as error:
        usable = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        reason = str(error).splitlines()[0]
        raise ConfigError(
            [f"agent.device: {config.agent.device!r} fails ({reason}); usable here: {usable}"]
        ) from None


def sizes(config: RunConfig) -> dict[str, Any]:
    """The shapes that agent and policy are built for. Raises NoSuite."""
    from tasks import make_task
    from tasks.suite import SuiteConfig, suite_sizes

    if isinstance(config.task, SuiteConfig):
        return suite_sizes(config.task)
    task = make_task(config.task)
    return {
        "image_shape": (*task.image_size, 3),
        "state_size": task.state_size,
        "joint_size": task.joint_size,
        "action_size": task.action_size,
    }


def sees(config: RunConfig) -> bool:
    """Whether the agent learns from camera images."""
    return config.agent.kind != "sac_state"


def labels(config: RunConfig) -> dict[str, str]:
    """The task's measures as people call them."""
    from tasks import make_task
    from tasks.suite import SuiteConfig

    if isinstance(config.task, SuiteConfig):
        return {"success": "full reward at the end"}
    return make_task(config.task).labels


def anchors(config: RunConfig) -> dict[str, float] | None:
    """The mean returns of chance and expert with these settings of the task, where they were measured.

    They were in the nominal simulation: another plant, or one of metal, has another scale.
    """
    from robot.sim import SimConfig
    from tasks.anchors import find_anchors, read_anchors

    if config.hw.kind != "sim" or config.hw.sim != SimConfig():
        return None
    found = find_anchors(config.task, read_anchors())
    return None if found is None else {"random": found.random.mean, "expert": found.expert.mean}


# --- The rig


def check_graphics(wanted: str) -> None:
    """Refuses a MUJOCO_GL with which MuJoCo cannot even be imported. Raises MissingPart."""
    if wanted in ("", "glfw", "disable"):
        return
    if wanted not in GRAPHICS:
        raise MissingPart(f"MUJOCO_GL is {wanted!r}, expected egl, osmesa or glfw. Type: unset MUJOCO_GL")
    library, packages = GRAPHICS[wanted]
    if find_library(library) is None:
        way_out = f"Type `unset MUJOCO_GL`, or as root `apt-get install {packages}`"
        raise MissingPart(f"MUJOCO_GL is {wanted}, but there is no lib{library} here. {way_out}")


@dataclass(frozen=True)
class Stage:
    """An environment that is ready to move, and the world beneath it."""

    env: RobotEnv | SuiteEnv
    world: Rig | SuiteWorld

    @property
    def action_size(self) -> int:
        """A, the length of an action."""
        shape = self.env.action_space.shape
        assert shape is not None
        return shape[0]


@contextmanager
def stage(config: RunConfig, *, images: bool) -> Iterator[Stage]:
    """The rig, engaged; relaxed and closed on every way out. Raises MissingPart, Fault."""
    from tasks import RobotEnv, make_task
    from tasks.suite import SuiteConfig

    if isinstance(config.task, SuiteConfig):
        with closing(open_suite(config.task, config.train.seed, images=images)) as env:
            yield Stage(env, env.world)
        return
    with open_rig(config.hw, images=images, arm=config.task.sawyer) as rig:
        if images:
            picture_of(rig)
        yield Stage(RobotEnv(rig, make_task(config.task), images=images, seed=config.train.seed), rig)


def open_suite(config: SuiteConfig, seed: int, *, images: bool) -> SuiteEnv:
    """A task of dm_control, which needs no rig. Raises MissingPart, ConfigError."""
    from configs.document import ConfigError
    from tasks.suite import SuiteEnv

    try:
        env = SuiteEnv(config, images=images, seed=seed)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if images:
        picture_of(env.world)
    return env


def open_rig(config: RigConfig, *, images: bool, arm: SawyerConfig | None = None) -> Rig:
    """The rig, or a simulated Sawyer in its place, not yet engaged."""
    from configs.document import ConfigError
    from robot.rig import ForeignRobotError, build

    try:
        return build(config, cameras=images, arm=arm)
    except ForeignRobotError as error:
        raise ConfigError([f"hw.robot: {error}"]) from error
    except FileNotFoundError as error:  # a model's files; of everything else a rig raises its own faults
        raise MissingPart(str(error)) from error


def picture_of(world: Rig | SuiteWorld) -> Callable[[], Image] | None:
    """The view for people, where there is one; it was drawn once already. Raises MissingPart."""
    from robot.rig import Rig

    if isinstance(world, Rig) and world.realtime:
        return world.picture if world.cameras else None
    try:
        world.picture()
    except RuntimeError as error:  # no OpenGL
        raise MissingPart(str(error)) from error
    return world.picture


def film_of(world: Rig | SuiteWorld) -> Callable[[], Image] | None:
    """As `picture_of`, but a run is not to end, hours later, at its first film for want of OpenGL."""
    try:
        return picture_of(world)
    except MissingPart as part:
        print(f"There will be no video. {part}", file=sys.stderr)
        return None


# --- Runs


@contextmanager
def opened(args: argparse.Namespace, config: RunConfig, *, images: bool) -> Iterator[tuple[RunDir, Stage]]:
    """The run directory, ours alone, and the engaged rig. A run whose rig never came up leaves nothing."""
    from agent.run_dir import RunDir

    agent = getattr(args, "agent", args.command)
    words = [*(Path(word).stem for word in (args.task, agent, args.hw)), time.strftime("%Y%m%d-%H%M%S")]
    path = Path(args.run or f"runs/{'-'.join(words)}")
    run = RunDir.open(path) if args.resume else RunDir.vacant(path)
    try:
        with ExitStack() as stack:
            if args.resume:
                stack.enter_context(run.lock("actor"))
                make_whole(run, config)
            scene = stack.enter_context(stage(config, images=images))
            if not args.resume:
                create(run, config)
                stack.enter_context(run.lock("actor"))
            remember(run, args, config)
            yield run, scene
    except KeyboardInterrupt:
        if (run.path / "config.yaml").exists():
            print(f"To go on: the same command with --resume --run {run.path}", file=sys.stderr)
        raise


def create(run: RunDir, config: RunConfig) -> None:
    """The folder of a new run. Raises ConfigError when there can be none."""
    from configs.document import ConfigError
    from configs.loader import dump

    try:
        run.create(run.path, dump(config))
    except OSError as error:
        message = f"--run {run.path}: no run can be made there ({error.strerror}); choose another folder"
        raise ConfigError([message]) from error


# What may change when a run goes on: the schedule, where things are plugged in, what computes.
MAY_CHANGE = (
    *("train.", "hw.bus.", "hw.patience.", "hw.camera.source", "hw.camera.health", "hw.camera.record"),
    *(
        "hw.camera.scene",
        "hw.scene_check.",
        "hw.cameras.",
        "agent.device",
        "agent.matmul",
        "agent.cuda_graph",
    ),
)


def make_whole(run: RunDir, config: RunConfig) -> None:
    """Closes what a crash left open. Raises ConfigError for a run of another task, robot or agent."""
    from agent.recovery import recover
    from configs.document import ConfigError
    from configs.loader import differences

    changes = differences(made_with(run), config)
    forbidden = [f"  {line}" for line in changes if not line.startswith(MAY_CHANGE)]
    if forbidden:
        way_out = "Resume it with the same ones, or choose another --run"
        raise ConfigError([f"{run.path} was made with other settings:", *forbidden, way_out])
    found = recover(run.path)
    news = [f"recovered {summary.file}: {summary.steps} steps" for summary in found.recovered]
    news += [f"left out: {trouble}" for trouble in found.damaged]
    print(*[f"changed: {line}" for line in changes], *news, sep="\n", end="\n" * bool(changes or news))


def made_with(run: RunDir) -> RunConfig:
    """The configuration that a run was last started with. Raises ConfigError."""
    from configs.document import ConfigError, Layer
    from configs.loader import load
    from configs.run import RunConfig

    try:
        return load(RunConfig, [Layer.from_file(run.path / "config.yaml")])
    except ConfigError as error:
        news = f"{run.path} cannot be used; is it damaged, or of another version of this program?"
        raise ConfigError([news, *error.messages]) from error


def remember(run: RunDir, args: argparse.Namespace, config: RunConfig) -> None:
    """Writes what the learner reads, and by which command this session came about. Raises DiskError."""
    from agent.files import append_row, to_json, write_atomic
    from agent.provenance import provenance
    from configs.loader import dump

    write_atomic(run.path / "config.yaml", dump(config))
    write_atomic(run.path / "spaces.json", to_json(sizes(config)))
    row = {"time": time.time(), "argv": sys.argv, "task": args.task, "hw": args.hw, **provenance(ROOT)}
    append_row(run.path / "sessions.jsonl", row)


def make_actor(config: RunConfig, scene: Stage, args: argparse.Namespace) -> Actor:
    """The actor on a stage, with everything that each episode's log says of its run."""
    from agent.actor import Actor
    from agent.provenance import provenance
    from configs.loader import dump
    from robot.rig import Rig
    from robot.types import Fault

    header = {
        "task": args.task,
        "hw": args.hw,
        "agent": config.agent.kind,
        "period": config.task.period,
        "config": dump(config),
        "rig": scene.world.describe(),
        "anchors": anchors(config),
        "wall_offset": time.time() - scene.world.clock.now(),
        **provenance(ROOT),
    }
    actor = Actor(
        scene.env,
        header,
        (Fault,),
        config.train.seed,
        config.train.max_faults_in_a_row,
        rest=scene.env.relax,
        timing=scene.env.timing,
        events=scene.world.events.drain,
    )
    if isinstance(scene.world, Rig):
        actor.filming = scene.world.filming
    return actor


def make_collector(config: RunConfig, actor: Actor, stack: ExitStack, *, images: bool) -> Collector:
    """The actor itself, or with --envs a fleet, whose processes end with `stack`."""
    if config.train.envs == 1:
        return actor
    from agent.fleet import Fleet
    from tasks.simulated import Simulated

    make = Simulated(config.task, config.hw, config.train.seed, images=images)
    return stack.enter_context(Fleet(actor, make, config.train.envs))


def make_display(scene: Stage, steps: int) -> Display:
    """What a person sees: progress, and what happens on the rig when it happens."""
    from agent.display import Display

    display = Display(steps)
    scene.world.events.listen(display.event)
    return display


# --- Commands


def command_train(args: argparse.Namespace) -> int:
    """Learns a task and reports."""
    config = compose(args)
    check_envs(config)
    check_learner(config)
    if args.print_config:
        return print_config(config)
    if args.dry_run:
        return dry_run(config)
    with opened(args, config, images=sees(config)) as (run, scene), ExitStack() as stack:
        make_training(config, run, scene, args, stack).execute()
    return 0


def print_config(config: RunConfig) -> int:
    """Shows the values in force, as a file for --config."""
    from configs.loader import dump

    print(dump(config), end="")
    return 0


def dry_run(config: RunConfig) -> int:
    """Builds rig, task and agent and takes one random step; a real robot is looked at only."""
    from agent.build import build_agent

    agent = build_agent(config.agent, seed=config.train.seed, **sizes(config))
    weights = sum(tensor.numel() for tensor in agent.policy_weights().values())
    print(f"ok: {config.agent.kind} with a policy of {weights} weights")
    if config.hw.kind == "real":
        return check_rig(config.hw)
    with stage(config, images=sees(config)) as scene:
        observation, _ = scene.env.reset(seed=config.train.seed)
        *_, info = scene.env.step(scene.env.action_space.sample())
    if "fault" in info:
        print(f"{info['fault']}: {info['fault_message']}", file=sys.stderr)
        return 1
    shapes = ", ".join(f"{key} {'x'.join(map(str, value.shape))}" for key, value in observation.items())
    terms = ", ".join(f"{key} {value:.3f}" for key, value in info["terms"].items())
    print(f"ok: one step on {config.hw.kind} hardware: {shapes}; reward: {terms}")
    return 0


def make_training(
    config: RunConfig, run: RunDir, scene: Stage, args: argparse.Namespace, stack: ExitStack
) -> Training:
    """Actor, learner, policies and display of one run, put together."""
    import numpy as np

    from agent.build import build_policy, prepare_process
    from agent.metrics import MetricsLog
    from agent.policy import RandomPolicy
    from agent.train import LocalLearner, RemoteLearner, Training

    sync = not scene.world.realtime if config.train.sync is None else config.train.sync
    prepare_process(config.agent, config.train.learner_threads if sync else 1)  # acting needs one core
    seeds = np.random.SeedSequence([config.train.seed, len(run.index("episodes"))]).generate_state(2)
    metrics = MetricsLog(run.path)
    actor = make_actor(config, scene, args)
    return Training(
        run=run,
        config=config.train.scaled(),
        actor=actor,
        collector=make_collector(config, actor, stack, images=sees(config)),
        link=LocalLearner(run, metrics) if sync else RemoteLearner(run),
        policy=build_policy(config.agent, seed=int(seeds[0]), **sizes(config)),
        random_policy=RandomPolicy(scene.action_size, np.random.default_rng(seeds[1])),
        metrics=metrics,
        display=make_display(scene, config.train.steps),
        statistics=scene.world.statistics,
        picture=film_of(scene.world),
        labels=labels(config),
    )


def command_collect(args: argparse.Namespace) -> int:
    """Logs episodes of a fixed policy: first data, an expert's demonstrations, what chance does."""
    from agent.rollouts import Collection

    config, wanted = compose(args), args.episodes or 10
    check_envs(config)
    if args.policy == "expert":
        check_expert(config)
    if args.print_config:
        return print_config(config)
    with opened(args, config, images=True) as (run, scene), ExitStack() as stack:
        collection = Collection(run, make_display(scene, wanted * config.task.horizon))
        policy = fixed_policy(args.policy, config, scene, len(collection.done))
        actor = make_actor(config, scene, args)
        collector = make_collector(config, actor, stack, images=True)
        collection.fill(actor, collector, policy, wanted, labels(config))
    return 0


def fixed_policy(kind: str, config: RunConfig, scene: Stage, done: int) -> Policy:
    """Uniformly random actions, other ones in each session; the pose in which resets end; or an expert.

    A body of dm_control, which has no such pose, gets no command.
    """
    import numpy as np

    from agent.policy import ConstantPolicy, RandomPolicy
    from tasks import make_task
    from tasks.suite import SuiteConfig

    rng = np.random.default_rng([config.train.seed, done])
    if kind == "random":
        return RandomPolicy(scene.action_size, rng)
    if kind == "expert":
        return expert_policy(scene, rng)
    if isinstance(config.task, SuiteConfig):
        return ConstantPolicy(np.zeros(scene.action_size, np.float32))
    return ConstantPolicy(make_task(config.task).hold)


def expert_policy(scene: Stage, rng: np.random.Generator, oracle: OracleConfig | None = None) -> Policy:
    """What does the stage's task as well as we know how; `check_expert` says where there is one."""
    from agent.policy import ScriptedPolicy
    from agent.predictive import PredictiveConfig, PredictivePolicy
    from robot.rig import Rig
    from tasks import RobotEnv
    from tasks.oracle import Oracle
    from tasks.task import DemonstratedTask, ForeseeableTask

    assert isinstance(scene.env, RobotEnv)
    assert isinstance(scene.world, Rig)
    task = scene.env.task
    if isinstance(task, DemonstratedTask):
        return ScriptedPolicy(task.expert)
    assert isinstance(task, ForeseeableTask)
    model = Oracle(scene.world, task, oracle)
    return PredictivePolicy(PredictiveConfig(), task.hold, model.returns, rng, model.keeping)


def command_evaluate(args: argparse.Namespace) -> int:
    """Measures a run's newest policy on a fixed list of starts and goals."""
    from agent.run_dir import RunDir

    run, wanted = RunDir.open(args.run), args.episodes or 20
    config, policy = learned(args, run)

    from agent.files import read_rows
    from agent.rollouts import evaluate  # after what can be mistyped: with it comes torch

    made = read_rows(run.path / "sessions.jsonl")[:1] or [{}]
    args.task, args.hw = made[0].get("task", config.task.kind), args.hw or made[0].get("hw", config.hw.kind)
    folder = run.fresh_folder(f"evaluation/{time.strftime('%Y%m%d-%H%M%S')}")
    with stage(config, images=sees(config)) as scene, make_display(scene, wanted) as display:
        evaluate(make_actor(config, scene, args), policy, folder, wanted, labels(config), display)
    return 0


def learned(args: argparse.Namespace, run: RunDir) -> tuple[RunConfig, Policy]:
    """A run's configuration, perhaps on another rig, and its newest policy. Raises ConfigError, RunError."""
    from configs.document import ConfigError, Layer
    from configs.loader import differences

    before, config = made_with(run), recompose(args, Layer.from_file(run.path / "config.yaml"))
    fixed = ("agent.", "task.image_size", "task.action_range")
    other = [f"  {line}" for line in differences(before, config) if line.startswith(fixed)]
    if other:
        raise ConfigError([f"{run.path} learned with other settings:", *other, "Leave them as they were."])
    from agent.build import build_policy
    from agent.run_dir import RunError

    newest = run.latest_weights(after=0)
    if newest is None:
        raise RunError(
            f"{run.path} has no weights yet: nothing was learned. "
            f"To go on with it: the command that began it with --resume --run {run.path}"
        )
    policy = build_policy(config.agent, seed=config.train.seed, **sizes(config))
    policy.load_weights(newest[1])
    return config, policy


def command_replay(args: argparse.Namespace) -> int:
    """Moves as a logged episode did and reports the difference; with --rescore nothing moves."""
    from configs.document import ConfigError, Layer
    from robot.rig import Rig
    from tasks import make_task
    from tasks.replay import replay, rescore
    from tasks.replay_report import show_replay, show_rescore
    from tasks.suite import SuiteConfig

    episode = logged(args.episode)
    made = Layer.from_text(episode.header["config"], f"{args.episode} (config)")
    config, logged_as = recompose(args, made), made.value("task", "kind")
    telemetry = episode.telemetry
    if isinstance(config.task, SuiteConfig):
        way_out = "evaluate --run shows what its run has learned"
        raise ConfigError([f"{args.episode} is of dm_control, and replay is for robots; {way_out}"])
    task = make_task(config.task)
    if config.task.kind != logged_as:
        raise ConfigError([f"{args.episode} is of a task of kind {logged_as}, not {config.task.kind}"])
    with usable(args.episode):
        task.restore(episode.parameters)
    if args.rescore:
        steps = {column: values[1:] for column, values in telemetry.items()}
        with usable(args.episode):
            same = show_rescore(rescore(task, episode.parameters, steps, episode.terms))
        return 0 if same else 1
    with stage(config, images=False) as scene, usable(args.episode):
        assert isinstance(scene.world, Rig)
        scene.world.imitate(episode.parameters)
        result = replay(
            scene.world,
            task,
            telemetry["applied"][1:],
            start=telemetry["joint_position"][0],
            object_start=telemetry["object_position"][0],
        )
    show_replay(task, result, telemetry)
    return 0


def logged(path: str) -> Episode:
    """An episode that can be replayed, without its images. Raises ConfigError, EpisodeError."""
    from agent.episodes import read_episode
    from configs.document import ConfigError

    if not Path(path).is_file():
        what = "is no file" if Path(path).exists() else "does not exist"
        raise ConfigError([f"{path} {what}; `ls runs/*/episodes` shows the episodes that there are"])
    with open(path, "rb") as file:
        if file.read(len(MCAP_MAGIC)) not in (MCAP_MAGIC, b""):
            raise ConfigError(
                [f"{path} is no episode: expected an MCAP file, such as runs/*/episodes/*.mcap"]
            )
    episode = read_episode(Path(path), images=False)
    if "config" not in episode.header:
        raise ConfigError([f"{path} says nothing of its settings: it is no episode of this program"])
    if not len(episode.actions):
        raise ConfigError([f"{path} holds no step: it was interrupted before the first; choose another"])
    return episode


@contextmanager
def usable(path: str) -> Iterator[None]:
    """Arrays that do not fit robot or task are the episode's fault, not the program's."""
    from configs.document import ConfigError

    try:
        yield
    except KeyError as error:
        way_out = "score it with the settings that it was made with, without --set and --config"
        raise ConfigError([f"{path}: has no {error}; {way_out}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from error


def command_check(args: argparse.Namespace) -> int:
    """Tests the rig without moving it."""
    return check_rig(rig_settings(args), fix=args.fix)


def check_rig(config: RigConfig, *, fix: bool = False) -> int:
    """Prints the table of checks; nothing moves."""
    from rich.console import Console

    from robot.doctor import Options, check

    return 0 if check(config, Console(), Options(fix=fix)) else 1


def command_identify(args: argparse.Namespace) -> int:
    """Fits the simulated plant to the robot, from small motions of it or from a recording of such."""
    from rich.console import Console

    from calibration.identify import identify
    from calibration.plant_report import publish
    from calibration.progress import bar
    from calibration.recording import Recording
    from configs.document import ConfigError

    source = getattr(args, "from")
    if source and (args.hw or args.config or args.overrides):
        way_out = "it takes no --hw, --config or --set; without --from the robot moves again"
        raise ConfigError([f"--from fits what was recorded, on the rig that it was recorded on: {way_out}"])
    console = Console()
    try:
        path = Path(source) if source else record_plant(args, console)
        recording = Recording.load(path)
        with bar(console, "fitting") as told:
            found = identify(recording, told)
        plant = path.with_suffix(".yaml")
        if source:
            plant = path.with_name(f"{Path(recording.name).stem}-{time.strftime('%Y%m%d-%H%M%S')}.yaml")
        publish(found, path, plant, time.strftime(MINUTE), console)
    except FileNotFoundError as error:  # ROBEL's files
        raise MissingPart(str(error)) from error
    return 0


def record_plant(args: argparse.Namespace, console: Console) -> Path:
    """Moves the robot as an identification needs it; the file of what was measured, written at the end."""
    from calibration.excitation import Excitation, ExcitationConfig, plans, require_clear
    from calibration.plant_report import require_writable
    from calibration.progress import bar, say

    name, motions = Path(args.hw).stem, ExcitationConfig()
    path = PLANTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.npz"
    config = rig_settings(args)
    require_writable(path)
    require_clear(motions, config.dclaw, plans(motions, config.dclaw, config.control_period))
    with closing(open_rig(config, images=False)) as rig, bar(console, "moving") as told:
        excitation = Excitation(rig, motions, told)
        say(console, HANDS_OFF.format(name, excitation.duration))
        with rig:
            excitation.record(name).save(path)
    console.print(f"recorded: {path}", highlight=False, soft_wrap=True)
    return path


def command_calibrate(args: argparse.Namespace) -> int:
    """Measures what the configuration must know of the bench."""
    ways = {
        "camera": calibrate_camera,
        "joints": calibrate_joints,
        "scene": calibrate_scene,
        "valve": calibrate_valve,
        "overlay": show_overlay,
    }
    check_calibrate(args)
    return ways[args.what](args)


def check_calibrate(args: argparse.Namespace) -> None:
    """Refuses flags of another calibration. Raises ConfigError."""
    from configs.document import ConfigError

    users = {"from": "camera", "print_board": "camera", "from_fingers": "camera", "by_hand": "valve"}
    for word, user in users.items():
        if getattr(args, word) and args.what != user:
            flag = f"--{word.replace('_', '-')}"
            raise ConfigError([f"{flag} is for `calibrate {user}`, not for `calibrate {args.what}`"])
    if args.from_fingers and (getattr(args, "from") or args.print_board):
        raise ConfigError(["--from-fingers needs no board: it goes with neither --from nor --print-board"])


def result_path(folder: Path, args: argparse.Namespace, what: str = "") -> Path:
    """Where a procedure will write, known to be writable before anybody works for it. Raises OSError."""
    from calibration.plant_report import require_writable

    path = folder / f"{Path(args.hw).stem}{what}-{time.strftime('%Y%m%d-%H%M%S')}.yaml"
    require_writable(path)
    return path


def calibrate_joints(args: argparse.Namespace) -> int:
    """Zero, direction and stops of each joint, moved by somebody's hands."""
    from calibration.joints_session import calibrate_joints as calibrate
    from configs.document import ConfigError

    config = rig_settings(args)
    if config.kind == "sim":
        way_out = "--hw emulated and --hw dclaw have some"
        raise ConfigError([f"--hw {args.hw} has no joints that a hand could move: {way_out}"])
    try:
        done = calibrate(config, args.hw, result_path(JOINTS, args), time.strftime(MINUTE), sys.stdin)
    except FileNotFoundError as error:  # ROBEL's files
        raise MissingPart(str(error)) from error
    return 0 if done else 1


def show_overlay(args: argparse.Namespace) -> int:
    """Shows the model over the camera's picture, until Ctrl-C; nothing moves."""
    from rich.console import Console

    from calibration.overlay import Overlay, show
    from robot.clock import SystemClock

    path = result_path(CAMERAS, args, "-overlay").with_suffix(".png")
    try:
        with (
            suppress(KeyboardInterrupt),  # its usual end
            closing(open_rig(rig_settings(args), images=True)) as rig,
            closing(Overlay(rig)) as overlay,
        ):
            show(overlay, path, SystemClock(), Console(), lambda: True)
    except RuntimeError as error:  # no OpenGL
        raise MissingPart(str(error)) from error
    return 0


def calibrate_scene(args: argparse.Namespace) -> int:
    """Takes the picture by which later starts see whether the camera was moved."""
    from rich.console import Console

    from calibration import scene
    from calibration.progress import say

    console, config = Console(), rig_settings(args)
    config = config.model_copy(update={"camera": config.camera.model_copy(update={"scene": None})})
    path = result_path(CAMERAS, args, "-scene")
    with closing(open_rig(config, images=True)) as rig:
        say(console, HANDS_OFF.format(args.hw, 5))
        with rig:
            scene.calibrate_scene(rig, args.hw, path, time.strftime(MINUTE), console)
    return 0


def calibrate_valve(args: argparse.Namespace) -> int:
    """Finds zero and sign of the valve's encoder by its pointer in the picture."""
    from rich.console import Console

    from calibration.progress import say
    from calibration.terminal import Keys
    from calibration.valve import SLOW, by_hand, by_servo, fit, publish

    console, config = Console(), rig_settings(args)
    path = result_path(CAMERAS, args, "-valve")
    config = config.model_copy(update={"dclaw": config.dclaw.model_copy(update={"object_velocity": SLOW})})
    said = [""]

    def told(news: str) -> None:
        if news != said[-1]:
            say(console, news)
        said[:] = [news]

    with closing(open_rig(config, images=True)) as rig:
        if args.by_hand:
            sightings = by_hand(rig, Keys(sys.stdin), told)
        else:
            told(HANDS_OFF.format(args.hw, 40))
            with rig:
                sightings = by_servo(rig, told)
    found = fit(sightings, config.dclaw.object_offset)
    publish(found, args.hw, path, time.strftime(MINUTE), console)
    return 0


def calibrate_camera(args: argparse.Namespace) -> int:
    """Measures lens and place of the camera, with a board in somebody's hands or by photographs of it."""
    from rich.console import Console

    from calibration.board import Board
    from calibration.camera import calibrate
    from calibration.camera_report import publish
    from calibration.capture import read_folder
    from configs.document import ConfigError

    source, console = getattr(args, "from"), Console()
    if args.from_fingers:
        return camera_from_fingers(args, console)
    if args.print_board:
        return print_board(args, console)
    if not args.hw and (args.config or args.overrides):
        raise ConfigError(["--from takes --config and --set only with --hw, whose values they change"])
    given = camera_setup(args) if args.hw and source else None
    photographs = read_folder(Path(source) if source else photograph(args, console), given)
    found = calibrate(Board(photographs.setup.board), photographs.views, photographs.base)
    path = CAMERAS / f"{Path(photographs.setup.name).stem}-{time.strftime('%Y%m%d-%H%M%S')}.yaml"
    publish(found, photographs, path, time.strftime(MINUTE), console)
    return 0


def camera_from_fingers(args: argparse.Namespace, console: Console) -> int:
    """Measures the camera's place, without a board, by where the fingers move in its picture."""
    from calibration import fingers
    from calibration.finger_fit import beginning, fit
    from calibration.fingers_report import Report
    from calibration.progress import bar, say
    from robot.rig import camera_name
    from robot.world import WorldConfig

    given = rig_settings(args)
    config = given.model_copy(update={"camera": given.camera.model_copy(update={"scene": None})})
    path, poses = result_path(CAMERAS, args, "-fingers"), fingers.plan(given.dclaw.safety)
    with closing(open_rig(config, images=True)) as rig:
        say(console, HANDS_OFF.format(args.hw, fingers.DURATION))
        with rig, bar(console, "moving") as told:
            series = fingers.take(rig, poses, told)
        config = rig.config
    # What is drawn by the simulation is what is looked for; a real finger is nearest to its meshes.
    world = WorldConfig(geoms="meshes" if config.kind == "real" else config.sim.geoms)
    try:
        with bar(console, "fitting") as told:
            found = fit(series, config.camera, world, *beginning(given, config.camera), told)
        about = (args.hw, camera_name(config), time.strftime(MINUTE))
        Report(found, series, config.camera, world, *about).publish(path, console)
    except RuntimeError as error:  # no OpenGL
        raise MissingPart(str(error)) from error
    return 0


def print_board(args: argparse.Namespace, console: Console) -> int:
    """Writes the sheet with the board. Raises ConfigError, CalibrationError, OSError."""
    from calibration.board import Board
    from calibration.progress import say
    from configs.document import ConfigError

    if not args.hw:
        raise ConfigError(["--print-board needs --hw: with it come the board's settings"])
    Board(bench_setup(args).board).print_to(Path(args.print_board))
    say(console, f"{args.print_board}: print it at 100 %, then measure its ruler")
    return 0


def bench_setup(args: argparse.Namespace) -> Setup:
    """The camera as it is before it is calibrated, and the board. Raises ConfigError."""
    from calibration.capture import Setup
    from configs.loader import load
    from configs.run import BenchConfig
    from robot.camera import identity

    config = load(BenchConfig, rig_layers(args))
    camera = config.hw.camera.model_copy(update={"lens": None, "projection": None, "calibration": None})
    return Setup(
        name=args.hw,
        kind=config.hw.kind,
        identity=identity(camera.source),
        camera=camera,
        board=config.board,
    )


def camera_setup(args: argparse.Namespace) -> Setup:
    """The same, where there is a camera to calibrate. Raises ConfigError."""
    from configs.document import ConfigError

    setup = bench_setup(args)
    if setup.kind != "real":
        way_out = "its projection is known exactly; --hw dclaw has a camera to calibrate"
        raise ConfigError([f"--hw {args.hw} sees through a simulated camera: {way_out}"])
    return setup


def photograph(args: argparse.Namespace, console: Console) -> Path:
    """Photographs of the board, taken with the person who holds it; their folder."""
    from calibration.board import Board
    from calibration.camera_report import watched
    from calibration.capture import Session, Watch
    from calibration.progress import say
    from calibration.terminal import Keys
    from robot.camera import OpenCvCamera
    from robot.clock import SystemClock

    setup, clock = camera_setup(args), SystemClock()
    folder = CAMERAS / f"{Path(args.hw).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    with closing(OpenCvCamera(setup.camera, clock)) as camera, watched(console) as told:
        again = f"run_robot.py calibrate camera --from {folder}"
        say(console, f"photographs go to {folder}; however this ends, {again} evaluates them")
        Session(Watch(camera, clock, Board(setup.board)), setup, folder, Keys(sys.stdin), told).take()
    return folder


def command_motors(args: argparse.Namespace) -> int:
    """Lists the servos on the bus, or leads through giving them their ids."""
    from rich.console import Console

    from configs.document import ConfigError
    from robot.motors import name_servos, show

    config = rig_settings(args)
    if config.kind == "sim":
        raise ConfigError([f"--hw {args.hw} is no bus with servos on it; --hw emulated and --hw dclaw are"])
    whole = name_servos(config, answer_of, Console()) if args.set_id else show(config, Console())
    return 0 if whole else 1


def answer_of(question: str) -> str:
    """What the person types; when nobody is there, the word that ends the questions."""
    try:
        return input(question)
    except EOFError:
        return "q"


def command_emulate(args: argparse.Namespace) -> int:
    """Serves an emulated D'Claw to whatever program wants one."""
    from rich.console import Console

    from configs.document import ConfigError
    from robot.emulator import emulate_forever
    from robot.rig import emulator_setup

    args.hw = args.hw or "emulated"
    config = rig_settings(args)
    setup = emulator_setup(config, args.link or config.emulator.link)
    try:
        with suppress(KeyboardInterrupt):  # its usual end
            emulate_forever(setup, Console())
    except RuntimeError as error:  # no OpenGL
        raise MissingPart(str(error)) from error
    except OSError as error:
        if error.errno is None:  # ROBEL's files
            raise MissingPart(str(error)) from error
        raise ConfigError([f"--link, or hw.emulator.http_port: {error}; choose another one"]) from error
    return 0


def command_list(args: argparse.Namespace) -> int:
    """Prints what can be named on the command line."""
    from configs.loader import choices

    folders = {"--task": CONFIGS / "tasks", "--hw": CONFIGS / "hw", "--agent": CONFIGS / "agent"}
    for flag, folder in {**folders, "--config": CONFIGS}.items():
        print(flag)
        for word in choices(folder):
            path = folder / f"{word}.yaml"
            shown = os.path.relpath(path) if folder == CONFIGS else word
            print(f"  {shown:<20} {about(path)}")
    return 0


def about(path: Path) -> str:
    """The first sentence of a file's first line, which is a comment."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].lstrip("# ").partition(". ")[0].rstrip(".") if lines else "(empty)"


# --- The end


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": command_train,
    "collect": command_collect,
    "evaluate": command_evaluate,
    "replay": command_replay,
    "check": command_check,
    "identify": command_identify,
    "calibrate": command_calibrate,
    "motors": command_motors,
    "emulate": command_emulate,
    "list": command_list,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        if args.command != "list":
            check_graphics(os.environ.get("MUJOCO_GL", "").lower())
        with stoppable(), warnings.catch_warnings():
            warnings.showwarning = plainly
            return COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough; what else stands in its way is no success
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if args.command == "list" or getattr(args, "print_config", False) else 1
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        print(told(error), file=sys.stderr)
        return code


if __name__ == "__main__":
    raise SystemExit(main())
