"""The root of a run's configuration: its four sections, and how they must fit together.

The composition root of the settings: the only module here that knows the other packages, and of those only
their models. The loader works for any schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import BaseModel, ConfigDict, Field

from agent.config import AgentConfig
from agent.schedule import TrainConfig
from calibration.board import BoardConfig
from configs.document import Layer
from configs.loader import Problem, find
from robot.rig import CAMERA, OURS, RigConfig, unknown_robot
from tasks.catalogue import all_tasks
from tasks.claw import ClawConfig
from tasks.pose import PoseConfig
from tasks.suite import SuiteConfig
from tasks.task import RobotTaskConfig
from tasks.valve import ValveConfig

if TYPE_CHECKING:
    AnyTask = RobotTaskConfig | SuiteConfig
else:  # which kinds there are is known only once it runs: installed packages may bring their own
    CONFIGS = (SuiteConfig, *(task.Config for task in all_tasks().values()))
    AnyTask = Annotated[Union[CONFIGS], Field(discriminator="kind")]  # noqa: UP007 - a tuple has no `|`


class RunConfig(BaseModel):
    """Everything that a run was made of; saved with it as config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: AnyTask
    hw: RigConfig
    agent: AgentConfig
    train: TrainConfig = TrainConfig()

    @property
    def sees(self) -> bool:
        """Whether the agent learns from camera images."""
        return self.agent.kind != "sac_state"


FILES = Path(__file__).parent


def named(task: str, hw: str, agent: str) -> list[Layer]:
    """The files of three names, or of paths, the later over the earlier. Raises ConfigError."""
    folders = {"tasks": task, "hw": hw, "agent": agent}
    return [Layer.from_file(find(FILES / folder, name)) for folder, name in folders.items()]


ENCODER_STRIDE = 16  # px; the encoder halves images four times
ROUNDING = 1e-3  # rad; angles in files have four digits
NO_GUIDE = (
    "is needed to show the goal by a guide servo (task.cue: pointer); ROBEL's has id 60, and so has one in "
    "simulation with --set hw.dclaw.guide_id=60"
)


def cross_checks(config: RunConfig) -> Iterator[Problem]:
    """What is right by itself but not beside the rest: task against robot, agent against camera."""
    yield from rig_checks(config)
    mounted = isinstance(config.task, RobotTaskConfig) and config.task.sawyer is None
    if not mounted and config.hw.robot != OURS:
        yield Problem("hw.robot", f"a task of kind {config.task.kind} brings its own")
    if not mounted and config.hw.kind != "sim":
        yield Problem("hw.kind", f"a task of kind {config.task.kind} is simulated only: --hw sim")
    if isinstance(config.task, RobotTaskConfig) and mounted and config.hw.robot == OURS:
        yield from _joints_and_time(config.task, config.hw)
    if config.sees and isinstance(config.task, RobotTaskConfig):
        yield from _camera(config.task, config.hw)
    if config.hw.sim.randomise.ranges and (config.hw.kind != "sim" or not mounted or config.hw.robot != OURS):
        yield Problem("hw.sim.randomise", "is for the simulated D'Claw: --hw sim and a task of its own")
    if config.sees:
        yield from _halvings(config.task.image_size)
    if config.agent.kind != "sac_state" and config.agent.proprioception and config.task.kind == "dm_control":
        yield Problem("agent.proprioception", "is for a robot with joints of its own, not for dm_control")
    random_steps = config.train.scaled().random_steps
    if config.agent.kind != "sac_state" and config.agent.window >= random_steps:
        window = f"a window of {config.agent.window} steps"
        yield Problem(
            "agent.window", f"{window} does not fit into the {random_steps} random steps to begin with"
        )
    if config.train.replay_capacity < random_steps:
        yield Problem(
            "train.replay_capacity", f"holds less than the {random_steps} random steps to begin with"
        )


def rig_checks(config: RunConfig | HwConfig) -> Iterator[Problem]:
    """What a rig's section needs of what is installed."""
    if problem := unknown_robot(config.hw.robot):
        yield Problem("hw.robot", problem)
    if config.hw.robot == OURS and config.hw.settings:
        yield Problem("hw.settings", "is for robots of other packages (hw.robot); the D'Claw's is hw.dclaw")
    scene, joints = config.hw.camera.scene, len(config.hw.dclaw.joint_ids)
    if config.hw.robot == OURS and scene and len(scene.joints) != joints:
        seen = f"tells where {len(scene.joints)} joints stood, this robot has {joints} (hw.dclaw.joint_ids)"
        yield Problem(
            "hw.camera.scene.joints", f"{seen}: `run_robot.py calibrate scene` takes a new reference"
        )
    if config.hw.kind == "sim" and config.hw.cameras:
        yield Problem("hw.cameras", "the simulation has one camera: --hw emulated or --hw dclaw")
    if config.hw.kind == "sim" and config.hw.camera.record:
        yield Problem("hw.camera.record", "is for cameras that capture: --hw emulated or --hw dclaw")


def _joints_and_time(task: RobotTaskConfig, hw: RigConfig) -> Iterator[Problem]:
    period, dclaw = task.period, hw.dclaw
    if isinstance(task, ClawConfig) and (fingers := 3 * len(task.action_range)) != len(dclaw.joint_ids):
        yield Problem(
            "hw.dclaw.joint_ids", f"the task moves {fingers} joints, this robot has {len(dclaw.joint_ids)}"
        )
    if period < hw.control_period:
        yield Problem("task.period", f"this rig needs at least {hw.control_period:g} s per step")
    if isinstance(task, PoseConfig):
        yield from _within_reach(task, hw)
    if isinstance(task, ValveConfig) and task.cue == "pointer" and dclaw.guide_id is None:
        yield Problem("hw.dclaw.guide_id", NO_GUIDE)
    if 2 * period > dclaw.watchdog:
        limit = f"the servos stop after {dclaw.watchdog:g} s without a command"
        yield Problem(
            "task.period", f"{limit} (hw.dclaw.watchdog), so a step can take {dclaw.watchdog / 2:g} s"
        )


def _within_reach(task: PoseConfig, hw: RigConfig) -> Iterator[Problem]:
    """Poses are drawn from all that actions can ask for, so the robot must be allowed to go there."""
    safety, wanted = hw.dclaw.safety, task.action_range * (len(hw.dclaw.joint_ids) // len(task.action_range))
    box = zip(safety.lower, safety.upper, wanted, strict=False)
    outside = [joint for joint, (low, high, reach) in enumerate(box) if reach - min(-low, high) > ROUNDING]
    if outside:
        yield Problem(
            "task.action_range", f"poses of it are outside of hw.dclaw.safety for joints {outside}: narrow it"
        )


def _camera(task: RobotTaskConfig, hw: RigConfig) -> Iterator[Problem]:
    """What an agent that sees needs of the camera."""
    camera = hw.camera
    if task.camera != CAMERA:
        yield Problem("task.camera", f"this rig has no camera {task.camera!r}, only {CAMERA!r}")
    width, height = camera.size
    if task.image_size != (height, width):
        wanted = f"{task.image_size[1]}x{task.image_size[0]}"
        yield Problem("hw.camera.size", f"the camera delivers {width}x{height}, the task expects {wanted}")
    fps = hw.emulator.fps if hw.kind == "emulated" else camera.fps
    if hw.kind != "sim" and 1 / fps + camera.delay > task.period:
        path = "hw.emulator.fps" if hw.kind == "emulated" else "hw.camera.fps"
        yield Problem(path, f"no frame would be fresh enough: a step takes {task.period:g} s")
    cue = task.cue if isinstance(task, ValveConfig | PoseConfig) else "none"
    if hw.kind == "real" and cue in ("dot", "dots") and camera.projection is None:
        needed = f"is needed to draw the goal into the image (task.cue: {cue})"
        yield Problem("hw.camera.projection", needed)


def _halvings(size: tuple[int, int]) -> Iterator[Problem]:
    height, width = size
    if width % ENCODER_STRIDE or height % ENCODER_STRIDE:
        multiples = f"multiples of {ENCODER_STRIDE} px"
        yield Problem("task.image_size", f"the encoder needs {multiples}, saw {width}x{height}")


class HwConfig(BaseModel):
    """The robot's section alone, for commands that need no task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hw: RigConfig


class BenchConfig(HwConfig):
    """The robot's section, and the board that its camera is calibrated with."""

    board: BoardConfig = BoardConfig()
