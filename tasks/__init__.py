"""What counts as done: resets, observations, rewards and success."""

from tasks.env import RobotEnv
from tasks.pose import Pose, PoseConfig
from tasks.task import Task, TaskConfig
from tasks.valve import Valve, ValveConfig

# The kinds of task by the word that a configuration names them with; settings are files in configs/tasks.
TASKS: dict[str, type[Task]] = {"valve": Valve, "pose": Pose}


def make_task(config: TaskConfig) -> Task:
    """The task of a robot that a configuration describes."""
    return TASKS[config.kind](config)


__all__ = [
    "TASKS",
    "Pose",
    "PoseConfig",
    "RobotEnv",
    "Task",
    "TaskConfig",
    "Valve",
    "ValveConfig",
    "make_task",
]
