"""What counts as done: resets, observations, rewards and success."""

from tasks.env import RobotEnv
from tasks.sawyer import Door, Drawer, Pickup
from tasks.task import Task, TaskConfig
from tasks.valve import Valve, ValveConfig

# The kinds of task by the word that a configuration names them with; settings are files in configs/tasks.
TASKS: dict[str, type[Task]] = {
    "valve": Valve,
    "sawyer_door": Door,
    "sawyer_drawer": Drawer,
    "sawyer_pickup": Pickup,
}


def make_task(config: TaskConfig) -> Task:
    """The task of a robot that a configuration describes."""
    return TASKS[config.kind](config)


__all__ = ["TASKS", "RobotEnv", "Task", "TaskConfig", "Valve", "ValveConfig", "make_task"]
