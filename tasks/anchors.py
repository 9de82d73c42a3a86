"""What an expert and chance come to on each task, the scale for returns: 0 is chance, 1 the expert.

The table is measured by benchmarks/anchors.py, in the nominal simulation, and lies beside this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from robot.rig import RigConfig
from robot.sim import SimConfig
from robot.types import Config
from tasks.task import TaskConfig

TABLE = Path(__file__).with_name("anchors.yaml")
HEAD = """\
# Returns and successes of fixed policies in the nominal simulation; written by benchmarks/anchors.py --write.
"""


class AnchorsError(Exception):
    """The table is not what `write_anchors` writes."""


class Anchor(Config):
    """What the episodes of one policy came to."""

    mean: float  # return
    sd: float
    successes: int = Field(ge=0)  # at the last step
    episodes: int = Field(ge=1)


class Anchors(Config):
    """All of one task, and what they were measured with."""

    mujoco: str  # version
    expert: Anchor
    random: Anchor
    zero: Anchor  # the action 0
    hold: Anchor  # the pose in which resets end
    task: dict[str, Any]  # its settings then

    def are_of(self, task: TaskConfig) -> bool:
        """Whether they were measured with exactly these settings: no others give the same returns."""
        try:
            return self.task.get("kind") == task.kind and type(task).model_validate(self.task) == task
        except ValidationError:  # of a version with other settings
            return False


def read_anchors(path: Path = TABLE) -> dict[str, Anchors]:
    """The table: anchors by the name of a task's file. Raises AnchorsError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return {name: Anchors.model_validate(row) for name, row in rows.items()}
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError, AttributeError) as error:
        raise AnchorsError(
            f"{path} is damaged ({str(error).splitlines()[0]}); `git checkout {path}` brings it back, "
            "benchmarks/anchors.py --write measures it again"
        ) from error


def write_anchors(table: Mapping[str, Anchors], path: Path = TABLE) -> None:
    """The table, in the same bytes for the same numbers."""
    rows = {name: table[name].model_dump(mode="json") for name in sorted(table)}
    text = yaml.safe_dump(rows, sort_keys=False, default_flow_style=None, width=100)
    path.write_text(HEAD + text, encoding="utf-8")


def find_anchors(task: TaskConfig, table: Mapping[str, Anchors]) -> Anchors | None:
    """Those of a task with these settings, if they were measured."""
    return next((anchors for anchors in table.values() if anchors.are_of(task)), None)


def scale_of(task: TaskConfig, hw: RigConfig) -> dict[str, float] | None:
    """The mean returns of "random" and "expert" with these settings, where they were measured.

    They were in the nominal simulation: another plant, or one of metal, has another scale.
    """
    if hw.kind != "sim" or hw.sim != SimConfig():
        return None
    found = find_anchors(task, read_anchors())
    return None if found is None else {"random": found.random.mean, "expert": found.expert.mean}
