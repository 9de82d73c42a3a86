"""What counts as done: resets, observations, rewards and success."""

from tasks.catalogue import all_tasks, make_task
from tasks.env import RobotEnv
from tasks.pose import Pose, PoseConfig
from tasks.task import RobotTaskConfig, Task
from tasks.valve import Valve, ValveConfig

__all__ = [
    "Pose",
    "PoseConfig",
    "RobotEnv",
    "RobotTaskConfig",
    "Task",
    "Valve",
    "ValveConfig",
    "all_tasks",
    "make_task",
]
