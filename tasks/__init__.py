"""What counts as done: resets, observations, rewards and success."""

from tasks.catalogue import all_tasks, make_task
from tasks.env import RobotEnv
from tasks.task import Task, TaskConfig
from tasks.valve import Valve, ValveConfig

__all__ = ["RobotEnv", "Task", "TaskConfig", "Valve", "ValveConfig", "all_tasks", "make_task"]
