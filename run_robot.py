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
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from configs.command_line import parse
from configs.ending import INTERRUPTED, exit_code, leave_at_ctrl_c, plainly, stoppable, told

if TYPE_CHECKING:
    import numpy as np

    from agent.actor import Actor
    from agent.display import Display
    from agent.episodes import Episode
    from agent.policy import Policy
    from agent.run_dir import RunDir
    from agent.train import Collector, Training
    from calibration.procedures import Site
    from configs.run import RunConfig
    from robot.rig import RigConfig
    from tasks.oracle import OracleConfig
    from tasks.stage import Stage
    from tasks.task import Task

ROOT = Path(__file__).parent
CONFIGS = ROOT / "configs"


# --- Settings


def check_learner(config: RunConfig) -> None:
    """Refuses prior data and a device that are not there. Raises PriorDataError, NoDevice."""
    if config.train.prior:
        from agent.intake import check_prior
        from tasks.stage import sizes

        check_prior(config.train.prior, config.agent.observations, sizes(config.task))
    if config.agent.device != "cpu":
        from agent.build import require_device

        require_device(config.agent.device)


# --- Runs


def opened(
    args: argparse.Namespace, config: RunConfig, *, images: bool
) -> AbstractContextManager[tuple[RunDir, Stage]]:
    """The run directory, ours alone, and the engaged rig."""
    from agent.provenance import provenance
    from agent.session import Session
    from configs.composition import changes
    from configs.loader import dump
    from tasks.stage import sizes, stage

    about = {"time": time.time(), "argv": sys.argv, "task": args.task, "hw": args.hw, **provenance(ROOT)}
    session = Session(dump(config), sizes(config.task), about)
    scene = stage(config.task, config.hw, config.train.seed, images=images)
    if args.resume:
        return session.resumed(Path(args.run), scene, lambda run: changes(run, config))
    agent = getattr(args, "agent", args.command)
    words = [*(Path(word).stem for word in (args.task, agent, args.hw)), time.strftime("%Y%m%d-%H%M%S")]
    return session.begun(Path(args.run or f"runs/{'-'.join(words)}"), scene)


def make_actor(config: RunConfig, scene: Stage, args: argparse.Namespace) -> Actor:
    """The actor on a stage, with everything that each episode's log says of its run."""
    from agent.actor import Actor
    from agent.provenance import provenance
    from configs.loader import dump
    from robot.rig import Rig
    from robot.types import Fault
    from tasks.anchors import scale_of

    header = {
        "task": args.task,
        "hw": args.hw,
        "agent": config.agent.kind,
        "period": config.task.period,
        "config": dump(config),
        "rig": scene.world.describe(),
        "anchors": scale_of(config.task, config.hw),
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
    from configs.composition import compose_training

    config = compose_training(args)
    check_learner(config)
    if args.print_config:
        return print_config(config)
    if args.dry_run:
        return dry_run(config)
    with opened(args, config, images=config.sees) as (run, scene), ExitStack() as stack:
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
    from tasks.stage import sizes, stage

    agent = build_agent(config.agent, seed=config.train.seed, **sizes(config.task))
    weights = sum(tensor.numel() for tensor in agent.policy_weights().values())
    print(f"ok: {config.agent.kind} with a policy of {weights} weights")
    if config.hw.kind == "real":
        return check_rig(config.hw)
    with stage(config.task, config.hw, config.train.seed, images=config.sees) as scene:
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
    from tasks.stage import labels, sizes

    sync = not scene.world.realtime if config.train.sync is None else config.train.sync
    prepare_process(config.agent, config.train.learner_threads if sync else 1)  # acting needs one core
    seeds = np.random.SeedSequence([config.train.seed, len(run.index("episodes"))]).generate_state(2)
    metrics = MetricsLog(run.path)
    actor = make_actor(config, scene, args)
    return Training(
        run=run,
        config=config.train.scaled(),
        actor=actor,
        collector=make_collector(config, actor, stack, images=config.sees),
        link=LocalLearner(run, metrics) if sync else RemoteLearner(run),
        policy=build_policy(config.agent, seed=int(seeds[0]), **sizes(config.task)),
        random_policy=RandomPolicy(scene.action_size, np.random.default_rng(seeds[1])),
        metrics=metrics,
        display=make_display(scene, config.train.steps),
        statistics=scene.world.statistics,
        picture=scene.film(),
        labels=labels(config.task),
    )


def command_collect(args: argparse.Namespace) -> int:
    """Logs episodes of a fixed policy: first data, an expert's demonstrations, what chance does."""
    from agent.rollouts import Collection
    from configs.composition import compose
    from tasks.oracle import require_expert
    from tasks.stage import labels

    config, wanted = compose(args), args.episodes or 10
    if args.policy == "expert":
        require_expert(config.task, config.hw, config.train.envs)
    if args.print_config:
        return print_config(config)
    with opened(args, config, images=True) as (run, scene), ExitStack() as stack:
        collection = Collection(run, make_display(scene, wanted * config.task.horizon))
        policy = fixed_policy(args.policy, config, scene, len(collection.done))
        actor = make_actor(config, scene, args)
        collector = make_collector(config, actor, stack, images=True)
        collection.fill(actor, collector, policy, wanted, labels(config.task))
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
    """What does the stage's task as well as we know how; `require_expert` says where there is one."""
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
    from tasks.stage import labels, stage

    run, wanted = RunDir.open(args.run), args.episodes or 20
    config, policy = learned(args, run)

    from agent.files import read_rows
    from agent.rollouts import evaluate  # after what can be mistyped: with it comes torch

    made = read_rows(run.path / "sessions.jsonl")[:1] or [{}]
    args.task, args.hw = made[0].get("task", config.task.kind), args.hw or made[0].get("hw", config.hw.kind)
    folder = run.fresh_folder(f"evaluation/{time.strftime('%Y%m%d-%H%M%S')}")
    with (
        stage(config.task, config.hw, config.train.seed, images=config.sees) as scene,
        make_display(scene, wanted) as display,
    ):
        evaluate(make_actor(config, scene, args), policy, folder, wanted, labels(config.task), display)
    return 0


def learned(args: argparse.Namespace, run: RunDir) -> tuple[RunConfig, Policy]:
    """A run's configuration, perhaps on another rig, and its newest policy. Raises ConfigError, RunError."""
    from configs.composition import compose_evaluation
    from tasks.stage import sizes

    config = compose_evaluation(args, run.path)

    from agent.build import load_policy  # after what can be mistyped: with it comes torch

    return config, load_policy(run, config.agent, seed=config.train.seed, **sizes(config.task))


def command_replay(args: argparse.Namespace) -> int:
    """Moves as a logged episode did and reports the difference; with --rescore nothing moves."""
    from agent.episodes import read_replayable
    from robot.rig import Rig
    from tasks.replay import replay_logged, rescore
    from tasks.replay_report import show_replay, show_rescore
    from tasks.stage import stage

    episode = read_replayable(Path(args.episode))
    config, task = replayed(args, episode)
    with usable(args.episode):
        task.restore(episode.parameters)
        if args.rescore:
            steps = {column: values[1:] for column, values in episode.telemetry.items()}
            return 0 if show_rescore(rescore(task, episode.parameters, steps, episode.terms)) else 1
    with stage(config.task, config.hw, config.train.seed, images=False) as scene, usable(args.episode):
        assert isinstance(scene.world, Rig)
        result = replay_logged(scene.world, task, episode.parameters, episode.telemetry)
    show_replay(task, result, episode.telemetry)
    return 0


def replayed(args: argparse.Namespace, episode: Episode) -> tuple[RunConfig, Task]:
    """The settings of an episode, perhaps on another rig, and its task. Raises ConfigError."""
    from configs.composition import recompose
    from configs.document import ConfigError, Layer
    from tasks import make_task
    from tasks.suite import SuiteConfig

    made = Layer.from_text(episode.header["config"], f"{args.episode} (config)")
    config, logged_as = recompose(args, made), made.value("task", "kind")
    if isinstance(config.task, SuiteConfig):
        way_out = "evaluate --run shows what its run has learned"
        raise ConfigError([f"{args.episode} is of dm_control, and replay is for robots; {way_out}"])
    if config.task.kind != logged_as:
        raise ConfigError([f"{args.episode} is of a task of kind {logged_as}, not {config.task.kind}"])
    return config, make_task(config.task)


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
    from configs.composition import rig_settings

    return check_rig(rig_settings(args).hw, fix=args.fix)


def check_rig(config: RigConfig, *, fix: bool = False) -> int:
    """Prints the table of checks; nothing moves."""
    from rich.console import Console

    from robot.doctor import Options, check

    return 0 if check(config, Console(), Options(fix=fix)) else 1


def command_identify(args: argparse.Namespace) -> int:
    """Fits the simulated plant to the robot, from small motions of it or from a recording of such."""
    from calibration.procedures import identify_again, identify_plant
    from configs.composition import rig_settings
    from configs.document import ConfigError

    source = getattr(args, "from")
    if source and (args.hw or args.config or args.overrides):
        way_out = "it takes no --hw, --config or --set; without --from the robot moves again"
        raise ConfigError([f"--from fits what was recorded, on the rig that it was recorded on: {way_out}"])
    if source:
        identify_again(site(args), Path(source))
    else:
        identify_plant(site(args), rig_settings(args).hw)
    return 0


def command_calibrate(args: argparse.Namespace) -> int:
    """Measures what the configuration must know of the bench."""
    from calibration import procedures
    from configs.composition import rig_settings

    check_calibrate(args)
    if args.what == "camera" and not args.from_fingers:
        return calibrate_camera(args)
    here, config = site(args), rig_settings(args).hw
    match args.what:
        case "camera":
            procedures.find_camera(here, config)
        case "joints":
            return 0 if procedures.calibrate_joints(here, config) else 1
        case "valve":
            procedures.calibrate_valve(here, config, by_hand=args.by_hand)
        case "scene":
            procedures.calibrate_scene(here, config)
        case "overlay":
            procedures.show_overlay(here, config)
    return 0


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


def site(args: argparse.Namespace) -> Site:
    """The bench, and who is at its terminal."""
    from rich.console import Console

    from calibration.procedures import Site

    return Site(args.hw or "", Console(), sys.stdin, time.strftime)


def calibrate_camera(args: argparse.Namespace) -> int:
    """Measures lens and place of the camera, with a board in somebody's hands or by photographs of it."""
    from calibration import procedures
    from configs.composition import bench_settings
    from configs.document import ConfigError

    here, source, setup = site(args), getattr(args, "from"), None
    if args.hw:
        bench = bench_settings(args)
        setup = procedures.camera_setup(here, bench.hw, bench.board)
    elif args.print_board:
        raise ConfigError(["--print-board needs --hw: with it come the board's settings"])
    elif args.config or args.overrides:
        raise ConfigError(["--from takes --config and --set only with --hw, whose values they change"])
    if args.print_board and setup:
        procedures.print_board(here, setup.board, Path(args.print_board))
    else:
        procedures.calibrate_camera(here, setup, Path(source) if source else None)
    return 0


def command_motors(args: argparse.Namespace) -> int:
    """Lists the servos on the bus, or leads through giving them their ids."""
    from rich.console import Console

    from configs.composition import rig_settings
    from configs.document import ConfigError
    from robot.motors import name_servos, show, typed

    config = rig_settings(args).hw
    if config.kind == "sim":
        raise ConfigError([f"--hw {args.hw} is no bus with servos on it; --hw emulated and --hw dclaw are"])
    whole = name_servos(config, typed, Console()) if args.set_id else show(config, Console())
    return 0 if whole else 1


def command_emulate(args: argparse.Namespace) -> int:
    """Serves an emulated D'Claw to whatever program wants one."""
    from rich.console import Console

    from configs.composition import rig_settings
    from configs.document import ConfigError
    from robot.emulator import emulate_forever
    from robot.rig import emulator_setup

    args.hw = args.hw or "emulated"
    config = rig_settings(args).hw
    setup = emulator_setup(config, args.link or config.emulator.link)
    try:
        with suppress(KeyboardInterrupt):  # its usual end
            emulate_forever(setup, Console())
    except OSError as error:
        raise ConfigError([f"--link, or hw.emulator.http_port: {error}; choose another one"]) from error
    return 0


def command_list(args: argparse.Namespace) -> int:
    """Prints what can be named on the command line."""
    from configs.loader import about, choices

    folders = {"--task": CONFIGS / "tasks", "--hw": CONFIGS / "hw", "--agent": CONFIGS / "agent"}
    for flag, folder in {**folders, "--config": CONFIGS}.items():
        print(flag)
        for word in choices(folder):
            path = folder / f"{word}.yaml"
            shown = os.path.relpath(path) if folder == CONFIGS else word
            print(f"  {shown:<20} {about(path)}")
    return 0


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
            from robot.opengl import require_importable

            require_importable(os.environ.get("MUJOCO_GL", "").lower())
        with stoppable(), warnings.catch_warnings():
            warnings.showwarning = plainly
            return COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
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
    leave_at_ctrl_c()
    raise SystemExit(main())
