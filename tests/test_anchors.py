"""The scale for returns: it fits the tasks that it was measured on, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.metrics import wilson
from benchmarks.anchors import DOCUMENT, table, with_expert
from configs.command_line import parse
from configs.composition import compose
from configs.ending import exit_code
from configs.loader import choices
from run_robot import CONFIGS
from tasks.anchors import (
    Anchor,
    Anchors,
    AnchorsError,
    find_anchors,
    read_anchors,
    scale_of,
    write_anchors,
)
from tasks.valve import FixedAngle, ValveConfig

VALVES = [name for name in choices(CONFIGS / "tasks") if name.startswith("valve_")]


def anchor(mean: float) -> Anchor:
    return Anchor(mean=mean, sd=1.0, successes=1, episodes=2)


def measured_on(config: ValveConfig) -> Anchors:
    some = {name: anchor(mean) for mean, name in enumerate(("expert", "random", "zero", "hold"))}
    return Anchors(mujoco="1.2.3", **some, task=config.model_dump(mode="json"))


def test_table_comes_back_as_it_was_written_and_in_the_same_bytes(tmp_path: Path) -> None:
    table = {
        "b": measured_on(ValveConfig(goal=FixedAngle(angle=0.1))),
        "a": measured_on(valve("valve_three")),
    }
    write_anchors(table, tmp_path / "one.yaml")
    write_anchors(read_anchors(tmp_path / "one.yaml"), tmp_path / "two.yaml")
    assert read_anchors(tmp_path / "one.yaml") == table
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


@pytest.mark.parametrize("text", ["a: {", "[1, 2]", "a: 3", "a: {mujoco: 1}", "\xff"])
def test_a_table_that_was_edited_wrongly_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "anchors.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(AnchorsError, match=r"anchors.yaml is damaged \(.*git checkout") as raised:
        read_anchors(tmp_path / "anchors.yaml")
    assert exit_code(raised.value) == 1


def valve(name: str, *more: str) -> ValveConfig:
    task = compose(parse(["collect", "--task", name, "--hw", "sim", *more])).task
    assert isinstance(task, ValveConfig)
    return task


def test_anchors_are_those_of_the_very_same_task() -> None:
    table = {"goal": measured_on(ValveConfig(goal=FixedAngle(angle=0.1)))}
    assert find_anchors(ValveConfig(goal=FixedAngle(angle=0.1)), table) is table["goal"]
    assert find_anchors(ValveConfig(goal=FixedAngle(angle=0.2)), table) is None
    assert find_anchors(ValveConfig(goal=FixedAngle(angle=0.1), horizon=40), table) is None


def test_anchors_of_settings_that_are_no_more_are_nobodys() -> None:
    config = ValveConfig(goal=FixedAngle(angle=0.1))
    old = measured_on(config)
    older = old.model_copy(update={"task": {**old.task, "gravity": 9.81}})
    assert old.are_of(config)
    assert not older.are_of(config)


def test_every_task_with_an_expert_has_its_scale() -> None:
    for name in with_expert():
        config = compose(parse(["collect", "--task", name, "--hw", "sim"]))
        found = scale_of(config.task, config.hw)
        assert found is not None, f"type: python benchmarks/anchors.py {name} --write"
        assert found["expert"] > found["random"]


def test_tasks_without_a_scale_have_none() -> None:
    for words in ("valve_fixed --set task.horizon=3", "dm_cartpole_swingup"):
        config = compose(parse(["collect", "--hw", "sim", "--task", *words.split()]))
        assert scale_of(config.task, config.hw) is None


def test_expert_succeeds_where_chance_does_not() -> None:
    """What makes them the two ends of a scale."""
    for name, found in read_anchors().items():
        expert, random = found.expert, found.random
        assert expert.successes >= 0.9 * expert.episodes >= 27, name
        surely, at_most = wilson(expert.successes, expert.episodes), wilson(random.successes, random.episodes)
        assert surely[0] > 2 * at_most[1], name


def test_the_documents_table_is_the_measured_one() -> None:
    assert table(read_anchors()) in DOCUMENT.read_text(encoding="utf-8")
