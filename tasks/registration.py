"""Every task of a robot under a gymnasium id, for other people's training code.

    import gymnasium
    import tasks.registration  # registers, as gymnasium's own packages do when they are imported

    env = gymnasium.make("dclaw/ValveRandom-v0")
    envs = gymnasium.make_vec("dclaw/SawyerDoor-v0", num_envs=4, images=False)

An environment comes with a simulated rig of its own and closes it. `settings` are what --set takes, such as
"task.horizon=20"; the program itself runs as `run_robot.py` and needs none of this.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium

from configs.document import Layer
from configs.loader import choices, load
from configs.run import FILES, RunConfig, cross_checks, named
from tasks.env import RobotEnv
from tasks.simulated import standalone
from tasks.task import RobotTaskConfig

NAMESPACE = "dclaw"


def make(
    task: str, *, images: bool = True, render_mode: str | None = None, settings: str | Sequence[str] = ()
) -> RobotEnv:
    """The task of a file of configs/tasks, or of another YAML file, in simulation.

    Raises ConfigError for settings that are none, MissingPart for a model that is not installed.
    """
    settings = (settings,) if isinstance(settings, str) else settings
    agent = "slac" if images else "sac_state"  # what the checks of cameras and sizes are for
    layers = [*named(task, "sim", agent), Layer.from_overrides(settings)]
    config = load(RunConfig, layers, [cross_checks])
    if config.hw.kind != "sim":
        raise ValueError("hw.kind: what gymnasium makes is simulated; run_robot.py drives robots")
    if not isinstance(config.task, RobotTaskConfig):
        raise ValueError(f"{task} is of dm_control, which registers its tasks itself")
    return standalone(config.task, config.hw, images=images, render_mode=render_mode)


def id_of(task: str) -> str:
    """The gymnasium id of a task's name: valve_random is dclaw/ValveRandom-v0."""
    return f"{NAMESPACE}/{''.join(word.capitalize() for word in task.split('_'))}-v0"


def register() -> None:
    """Tells gymnasium of all tasks; what it knows already stays."""
    for name in choices(FILES / "tasks"):
        if not name.startswith("dm_") and id_of(name) not in gymnasium.registry:
            # Resets of a D'Claw are motions: a second one ends in the same place, not in the same bits. And
            # the time of a reading, which infos hold, is of a clock that goes on.
            gymnasium.register(
                id_of(name), "tasks.registration:make", kwargs={"task": name}, nondeterministic=True
            )


register()
