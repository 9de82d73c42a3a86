"""The kinds of task that there are: our own, and those of installed packages.

A package offers a task by an entry point of the group `dclaw_slac.tasks` that leads to a subclass of Task
(docs/new_task.md). Settings are files: configs/tasks for our own, any path for those of others.
"""

from __future__ import annotations

import functools
import warnings
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import get_args

from tasks.pose import Pose
from tasks.sawyer import Door, Drawer, Pickup
from tasks.suite import SuiteConfig
from tasks.task import RobotTaskConfig, Task
from tasks.valve import Valve

GROUP = "dclaw_slac.tasks"
SUITE = SuiteConfig.model_fields["kind"].default
OURS: tuple[type[Task], ...] = (Valve, Pose, Door, Drawer, Pickup)


def kind_of(task: type[Task]) -> str:
    """The word by which a configuration names a kind of task."""
    return str(task.Config.model_fields["kind"].default)


@functools.cache
def all_tasks() -> MappingProxyType[str, type[Task]]:
    """Every kind of task by its word. One that cannot be used is left out with a warning that says why."""
    found = {kind_of(task): task for task in OURS}
    for entry in entry_points(group=GROUP):
        if problem := _problem(entry, found):
            warnings.warn(f"the task {entry.name!r} ({entry.value}) is left out: {problem}", stacklevel=2)
        else:
            found[kind_of(entry.load())] = entry.load()
    return MappingProxyType(found)


def _problem(entry: EntryPoint, taken: dict[str, type[Task]]) -> str:
    """Why an entry point is no task, or nothing."""
    try:
        task = entry.load()
    except (Exception, SystemExit) as error:  # whatever somebody else's module does when it is imported
        return f"it cannot be imported ({type(error).__name__}: {error})"
    if not (isinstance(task, type) and issubclass(task, Task)):
        return "it is no subclass of tasks.Task"
    config = getattr(task, "Config", None)
    if not (isinstance(config, type) and issubclass(config, RobotTaskConfig)):
        return "its Config is no subclass of tasks.RobotTaskConfig"
    field = config.model_fields["kind"]
    if not isinstance(field.default, str) or get_args(field.annotation) != (field.default,):
        return 'its Config has no `kind: Literal["WORD"] = "WORD"`'
    if lacking := sorted(getattr(task, "__abstractmethods__", ())):
        return f"it does not say {', '.join(lacking)}"
    return f"there is a task of kind {field.default!r} already" if field.default in {*taken, SUITE} else ""


def make_task(config: RobotTaskConfig) -> Task:
    """The task of a robot that a configuration describes."""
    return all_tasks()[config.kind](config)
