# ruff: noqa: E501 - messages stand here as they are printed
"""Settings: what is right loads exactly; what is wrong is told with its place, reason and way out."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from configs.document import ConfigError, CoreLoader, Layer, Reader
from configs.loader import Problem, choices, differences, dump, find, load
from configs.run import NO_GUIDE, RunConfig, cross_checks
from robot.bus import BusConfig
from robot.camera import delivered_projection
from robot.dynamixel import DynamixelConfig, limit_ticks
from robot.types import ValveGeometry
from robot.world import CameraPose


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mood(enum.Enum):
    CALM = "calm"
    BRISK = "brisk"


class Camera(Section):
    source: str | int = 0
    size: tuple[int, int] = (64, 64)
    crop: tuple[float, float, float, float] | None = None
    exposure: Literal["auto"] | float = "auto"


class Arm(Section):
    port: str = "/dev/ttyUSB0"
    baud: int = Field(1_000_000, gt=0)
    timeout: float = Field(0.1, gt=0, le=1)
    reverse: bool = False
    gains: dict[int, float] = {}
    camera: Camera = Camera()
    mood: Mood = Mood.CALM
    log: Path = Path("runs")

    @model_validator(mode="after")
    def in_time(self) -> Arm:
        if self.timeout == 0.5:
            raise ValueError("timeout 0.5 s and this arm never went together")
        return self


class Slac(Section):
    kind: Literal["slac"] = "slac"
    latent_dim: int = 32
    lr: float = 3e-4


class Sac(Section):
    kind: Literal["sac_state"] = "sac_state"
    hidden: tuple[int, ...] = (256, 256)
    lr: float = 3e-4


class Train(Section):
    steps: int = Field(1000, ge=1)
    seed: int | None = None


class Root(Section):
    name: str
    hw: Arm = Arm()
    agent: Annotated[Slac | Sac, Field(discriminator="kind")] = Slac(latent_dim=256)
    train: Train = Train(steps=500)
    waypoints: list[Camera] = []


def loaded(*texts: str, overrides: Sequence[str] = ()) -> Root:
    """The root model of YAML texts, called 0.yaml, 1.yaml ..., and overrides."""
    layers = [Layer.from_text(text, f"{i}.yaml") for i, text in enumerate(texts)]
    return load(Root, [*layers, Layer.from_overrides(overrides)])


def complaints(*texts: str, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(*texts, overrides=overrides)
    assert str(caught.value) == "\n".join(caught.value.messages)
    return caught.value.messages


def only_complaint(text: str) -> str:
    """The one message about a root that is right but for `text`, which begins in line 2."""
    (message,) = complaints(f"name: x\n{text}")
    return message


# --- what is right


def test_defaults_fill_what_no_layer_says() -> None:
    assert loaded("name: x") == Root(name="x")


def test_later_layers_win_key_by_key_and_lists_are_replaced() -> None:
    model = loaded(
        "name: a\nhw: {baud: 9600, camera: {size: [1, 2]}}\nagent: {kind: sac_state, hidden: [1, 2, 3]}",
        "hw: {timeout: 1, camera: {source: 2}}\nagent: {hidden: [4]}",
        overrides=["name=b", "hw.camera.source=http://127.0.0.1:80/cam", "name=c"],
    )
    assert (model.name, model.hw.baud, model.hw.timeout) == ("c", 9600, 1.0)
    assert model.hw.camera == Camera(source="http://127.0.0.1:80/cam", size=(1, 2))
    assert model.agent == Sac(hidden=(4,))


def test_a_section_given_in_part_keeps_the_schemas_own_defaults() -> None:
    model = loaded("name: x\nagent: {lr: 1}\ntrain: {seed: 4}")
    assert model.agent == Slac(latent_dim=256, lr=1.0)
    assert model.train == Train(steps=500, seed=4)


def test_an_empty_section_says_nothing() -> None:
    model = loaded("name: x\ntrain: {seed: 1}", "train:\nhw:")
    assert model.train == Train(steps=500, seed=1)
    assert model.hw == Arm()


def test_a_section_can_be_left_out_of_a_layer() -> None:
    layer = Layer.from_text("name: x\nhw: {baud: 9600, port: a}\ntrain: {steps: 7}", "run.yaml")
    above = Layer.from_overrides(["hw.timeout=0.2"])
    assert load(Root, [layer.without("hw"), above]) == Root(
        name="x", hw=Arm(timeout=0.2), train=Train(steps=7)
    )
    assert load(Root, [layer]).hw.baud == 9600
    assert Layer.from_text("", "empty.yaml").without("hw").root is None


def test_null_is_a_value_where_the_schema_allows_it() -> None:
    assert loaded("name: x\nhw: {camera: {crop: [0, 0, 1, 1]}}", overrides=["hw.camera.crop=null"]) == Root(
        name="x"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("0o17", 15),
        ("0x1F", 31),
        ("012", 12),
        ("+1", 1),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("'1'", "1"),
        ('"true"', "true"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    node = Reader("x").read(f"a: {text}")
    assert node is not None
    assert isinstance(node.value, dict)
    assert node.value["a"].value == value
    assert type(node.value["a"].value) is type(value)


def test_numbers_mean_what_they_say() -> None:
    model = loaded("name: x\nagent: {lr: 3e-4}\nhw: {timeout: 1}\ntrain: {steps: 1e5}")
    assert (model.agent.lr, model.hw.timeout, model.train.steps) == (3e-4, 1.0, 100_000)
    assert isinstance(model.hw.timeout, float)
    assert isinstance(model.train.steps, int)


def test_anchors_and_merges_work() -> None:
    model = loaded(
        "name: &n front\nhw: {port: *n, camera: &c {source: 1, size: [2, 2]}}\n"
        "waypoints:\n- *c\n- {<<: *c, source: 3}\n"
    )
    assert model.hw.port == "front"
    assert model.waypoints == [Camera(source=1, size=(2, 2)), Camera(source=3, size=(2, 2))]


def test_number_keys_paths_and_enums_load() -> None:
    hw = loaded("name: x\nhw: {gains: {10: 1, 11: 2.5}, mood: brisk, log: a/b}").hw
    assert (hw.gains, hw.mood, hw.log) == ({10: 1.0, 11: 2.5}, Mood.BRISK, Path("a/b"))


# --- the kind of a section


def test_another_kind_drops_what_was_written_for_the_old_one() -> None:
    model = loaded("name: x\nagent: {kind: slac, latent_dim: 8, lr: 1}", overrides=["agent.kind=sac_state"])
    assert model.agent == Sac()


def test_what_was_written_without_a_kind_stays_and_must_fit() -> None:
    assert loaded("name: x\nagent: {lr: 1}", "agent: {kind: sac_state}").agent == Sac(lr=1.0)
    (message,) = complaints("name: x\nagent: {latent_dim: 8}", "agent: {kind: sac_state}")
    assert message == (
        "0.yaml:2:9: agent.latent_dim: unknown key 'latent_dim' - it belongs to another kind of this section; "
        "known here: kind, hidden, lr"
    )


def test_the_same_kind_twice_merges() -> None:
    model = loaded("name: x\nagent: {kind: slac, latent_dim: 8}", "agent: {kind: slac, lr: 1}")
    assert model.agent == Slac(latent_dim=8, lr=1.0)


def test_an_unknown_kind_lists_the_kinds() -> None:
    assert only_complaint("agent: {kind: slack}") == (
        "0.yaml:2:15: agent.kind: expected one of 'slac' or 'sac_state', saw text 'slack' - did you mean 'slac'?"
    )


# --- what is wrong


def test_every_mistake_of_every_layer_is_told_at_once_in_order() -> None:
    assert complaints(
        "name: 3\nhw:\n  bad: 1\n  baud: 1.5\n",
        "tain: {}\ntrain: {steps: 0}",
        overrides=["train.seeed=1", "hw.reverse=yes"],
    ) == [
        '0.yaml:1:7: name: expected text, saw the number 3 - text that looks like this needs quotes: "3"',
        "0.yaml:3:3: hw.bad: unknown key 'bad' - did you mean 'baud'?",
        "0.yaml:4:9: hw.baud: expected a whole number, saw the number 1.5",
        "1.yaml:1:1: tain: unknown key 'tain' - did you mean 'train'?",
        "1.yaml:2:16: train.steps: must be at least 1, saw 0",
        "--set train.seeed=1: train.seeed: unknown key 'seeed' - did you mean 'seed'?",
        "--set hw.reverse=yes: hw.reverse: expected true or false, saw text 'yes' - did you mean true?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent: {latent_dmi: 1}", "2:9: agent.latent_dmi: unknown key 'latent_dmi' - did you mean 'latent_dim'?"),
        ("train: {PORT: 1}", "2:9: train.PORT: unknown key 'PORT' - known here: steps, seed"),
        ("steps: 4", "2:1: steps: unknown key 'steps' - did you mean 'train.steps'?"),
        ("train: {steps: many}", "2:16: train.steps: expected a whole number, saw text 'many'"),
        (
            "train: {steps: 1_000}",
            "2:16: train.steps: expected a whole number, saw text '1_000' - write numbers without separators",
        ),
        ("train: {steps: true}", "2:16: train.steps: expected a whole number, saw true"),
        ("train: {steps: null}", "2:16: train.steps: expected a whole number, saw nothing (null)"),
        ("train: 5", "2:8: train: expected a section (`key: value` lines), saw the number 5"),
        ("agent: 5", "2:8: agent: expected a section (`key: value` lines), saw the number 5"),
        ("hw: {timeout: fast}", "2:15: hw.timeout: expected a number, saw text 'fast'"),
        ("hw: {timeout: true}", "2:15: hw.timeout: expected a number, saw true"),
        ("hw: {timeout: 1.5}", "2:15: hw.timeout: must be at most 1, saw 1.5"),
        ("hw: {timeout: -0.5}", "2:15: hw.timeout: must be greater than 0, saw -0.5"),
        ("hw: {timeout: .nan}", "2:15: 'not a number' is not allowed as a setting"),
        ("hw: {timeout: 0.5}", "2:5: hw: timeout 0.5 s and this arm never went together"),
        ("hw: {reverse: 1}", "2:15: hw.reverse: expected true or false, saw the number 1"),
        ("hw: {reverse: off}", "2:15: hw.reverse: expected true or false, saw text 'off' - did you mean false?"),
        (
            "hw: {port: true}",
            '2:12: hw.port: expected text, saw true - text that looks like this needs quotes: "true"',
        ),
        ("hw: {mood: clam}", "2:12: hw.mood: expected one of 'calm' or 'brisk', saw text 'clam' - did you mean 'calm'?"),
        ("hw: {camera: {size: [1]}}", "2:21: hw.camera.size: expected 2 values, saw 1"),
        ("hw: {camera: {size: [1, 2, 3]}}", "2:21: hw.camera.size: expected 2 values, saw 3"),
        ("hw: {camera: {size: [1, x]}}", "2:25: hw.camera.size.1: expected a whole number, saw text 'x'"),
        ("hw: {camera: {size: 3}}", "2:21: hw.camera.size: expected a list, saw the number 3"),
        ("hw: {camera: {crop: [1]}}", "2:21: hw.camera.crop: expected 4 values, saw 1"),
        ("hw: {camera: {source: 1.5}}", "2:23: hw.camera.source: expected text or a whole number, saw the number 1.5"),
        (
            "hw: {camera: {exposure: atuo}}",
            "2:25: hw.camera.exposure: expected 'auto' or a number, saw text 'atuo' - did you mean 'auto'?",
        ),
        ("hw: {gains: {10: x}}", "2:18: hw.gains.10: expected a number, saw text 'x'"),
        ("waypoints: [{sauce: 1}]", "2:14: waypoints.0.sauce: unknown key 'sauce' - did you mean 'source'?"),
        ("name: y", "2:1: key 'name' stands here twice, first in line 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_place_reason_and_way_out(text: str, message: str) -> None:
    assert only_complaint(text) == f"0.yaml:{message}"


def test_missing_settings_are_told_with_their_section() -> None:
    class Needy(Section):
        inner: Train
        who: Slac | Sac = Field(discriminator="kind")
        name: str

    with pytest.raises(ConfigError) as caught:
        load(Needy, [Layer.from_text("who: {lr: 1}", "n.yaml")])
    assert caught.value.messages == [
        "n.yaml:1:1: who.kind: this setting is required, and nothing sets it: one of 'slac' or 'sac_state'",
        "inner: this setting is required, and nothing sets it",
        "name: this setting is required, and nothing sets it",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n\thw: 1", "1.yaml:2:1: not valid YAML: a tab in the indentation - YAML is indented with spaces"),
        ("hw:\n\tport: x", "1.yaml:2:1: not valid YAML: a tab in the indentation - YAML is indented with spaces"),
        ("hw: {port: x", "1.yaml:1:13: not valid YAML: expected ',' or '}', but got '<stream end>' "
         "while parsing a flow mapping"),
        ("a: b: c", "1.yaml:1:5: not valid YAML: a ':' that does not belong here - is the line before it complete, "
         "and the text quoted?"),
        ("hw: 1\nport", "1.yaml:2:5: not valid YAML: a key without ':' - write `key: value`"),
        ("hw:\n  port: x\n baud: 1", "1.yaml:3:2: not valid YAML: the indentation differs from the lines above"),
        ("a: \x07", "1.yaml:1:4: a character that YAML does not allow"),
        ("- name", "1.yaml:1:1: expected `section:` lines, saw a list of 1"),
        ("name: !!python/object/apply:os.system [ls]", "1.yaml:1:7: the tag "
         "'tag:yaml.org,2002:python/object/apply:os.system' is not allowed"),
        ("name: !secret x", "1.yaml:1:7: the tag '!secret' is not allowed: settings are plain numbers, words, "
         "lists and sections"),
        ("train: &t {seed: *t}", "1.yaml:1:8: this section contains itself through its own anchor"),
        ("train: {[1]: 2}", "1.yaml:1:9: a key must be a single word"),
    ],
)  # fmt: skip
def test_what_is_not_plain_yaml_is_told_with_its_place(text: str, message: str) -> None:
    assert message in complaints("name: x", text)


def test_an_unreadable_layer_does_not_raise_false_alarms_about_missing_settings() -> None:
    (message,) = complaints("name: [")
    assert "not valid YAML" in message


def test_duplicate_keys_in_one_file_are_mistakes_and_later_flags_win() -> None:
    assert only_complaint("hw: {baud: 1, baud: 2}") == (
        "0.yaml:2:15: key 'baud' stands here twice, first in line 2"
    )
    assert loaded("name: x", overrides=["hw.baud=1", "hw.baud=2"]).hw.baud == 2


@pytest.mark.parametrize("flag", ["steps", "=3", "train.=3", ".steps=3"])
def test_a_flag_without_name_or_value_says_how_to_write_it(flag: str) -> None:
    (message,) = complaints("name: x", overrides=[flag])
    assert message == f"--set {flag}: expected NAME=VALUE, for example --set train.steps=1000"


def test_a_flag_takes_lists_and_sections() -> None:
    model = loaded("name: x", overrides=["hw.camera={size: [3, 4], source: 1}", "hw.gains={10: 2}"])
    assert (model.hw.camera.size, model.hw.gains) == ((3, 4), {10: 2.0})


def test_a_mistake_within_a_flag_names_the_flag() -> None:
    (message,) = complaints("name: x", overrides=["hw.camera=[1"])
    assert message.startswith("--set hw.camera=[1: not valid YAML:")


def test_unreadable_files_are_told_beside_the_other_mistakes(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    layers = [
        Layer.from_file(tmp_path / "absent.yaml"),
        Layer.from_file(tmp_path),
        Layer.from_file(tmp_path / "binary.yaml"),
        Layer.from_overrides(["hw.bad=1"]),
    ]
    with pytest.raises(ConfigError) as caught:
        load(Root, layers)
    assert [message.replace(str(tmp_path), "DIR") for message in caught.value.messages] == [
        "DIR/absent.yaml: cannot be read: No such file or directory",
        "DIR: cannot be read: Is a directory",
        "DIR/binary.yaml: is not UTF-8 text",
        "--set hw.bad=1: hw.bad: unknown key 'bad' - did you mean 'baud'?",
    ]


def test_files_below_the_present_folder_are_shown_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "a.yaml").write_text("nam: x\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^tasks/a.yaml:1:1: nam: unknown key 'nam' - did you mean 'name'\?"
    ):
        load(Root, [Layer.from_file(tmp_path / "tasks" / "a.yaml")])


def test_cross_checks_run_on_the_finished_model_and_carry_the_place() -> None:
    def check(model: Root) -> Iterator[Problem]:
        if model.train.steps < 10:
            yield Problem("train.steps", "too few for this arm")
            yield Problem("hw.camera.size.1", "too high")
            yield Problem("hw.baud", "too slow")

    layers = [Layer.from_text("name: x\nhw: {camera: {size: [1, 2]}}", "0.yaml")]
    assert load(Root, layers, [check]).train.steps == 500
    with pytest.raises(ConfigError) as caught:
        load(Root, [*layers, Layer.from_overrides(["train.steps=3"])], [check])
    assert caught.value.messages == [
        "0.yaml:2:25: hw.camera.size.1: too high",
        "--set train.steps=3: train.steps: too few for this arm",
        "hw.baud: too slow",
    ]


# --- names


def test_an_unknown_name_lists_the_names_with_a_suggestion(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("valve_random", "valve_fixed"):
        (folder / f"{name}.yaml").touch()
    assert choices(folder) == ["valve_fixed", "valve_random"]
    assert find(folder, "valve_random") == folder / "valve_random.yaml"
    with pytest.raises(ConfigError) as caught:
        find(folder, "valve_rondom")
    assert caught.value.messages == [
        "unknown task 'valve_rondom' - did you mean 'valve_random'? Known: valve_fixed, valve_random"
    ]
    with pytest.raises(ConfigError, match=r"^unknown task 'zz' - known: valve_fixed, valve_random$"):
        find(folder, "zz")
    for path in ("../tasks/valve_fixed", "configs/tasks/valve_fixd.yaml"):
        with pytest.raises(ConfigError, match=r"^unknown task '.*' - did you mean 'valve_fixed'\? Known: "):
            find(folder, path)


# --- writing


FULL = Root(
    name="3e-4",
    hw=Arm(timeout=1e-05, gains={10: 1.0}, mood=Mood.BRISK, log=Path("a b"), camera=Camera(crop=(0, 0.5, 1, 1e22))),
    agent=Sac(hidden=(1,), lr=1e-7),
    train=Train(seed=0),
    waypoints=[Camera(source="1"), Camera(source=1, exposure=2.0)],
)  # fmt: skip


def test_a_dumped_model_loads_back_equal() -> None:
    assert load(Root, [Layer.from_text(dump(FULL), "dump")]) == FULL
    assert load(Root, [Layer.from_text(dump(FULL), "dump")], []).model_dump() == FULL.model_dump()


def test_a_dump_is_read_alike_by_yaml_1_1_and_1_2() -> None:
    ours = yaml.load(dump(FULL), Loader=yaml.SafeLoader)
    assert ours["hw"]["timeout"] == 1e-05
    assert isinstance(ours["hw"]["camera"]["crop"][2], float)
    assert ours["name"] == "3e-4"


@given(st.text(), st.floats(allow_nan=False), st.one_of(st.none(), st.integers()))
def test_any_text_and_number_survives_dump_and_load(text: str, number: float, seed: int | None) -> None:
    model = Root(name=text, agent=Sac(lr=number), train=Train(seed=seed))
    assert load(Root, [Layer.from_text(dump(model), "dump")]) == model


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", "\u2029", "a\rb", "\n\x85 ", "\ufeff", "\x07", "\U0001f916"]
)
def test_line_breaks_of_old_unicode_survive_dump_and_load(text: str) -> None:
    assert load(Root, [Layer.from_text(dump(Root(name=text)), "dump")]).name == text


LOOKALIKES = [
    "yes",
    "no",
    "on",
    "null",
    "~",
    "1",
    "1.5",
    "1e3",
    "0x1",
    "0o1",
    ".inf",
    "1:30",
    "<<",
    "=",
    "2024-01-01",
]


@pytest.mark.parametrize("word", LOOKALIKES)
def test_words_that_look_like_values_stay_words(word: str) -> None:
    assert load(Root, [Layer.from_text(dump(Root(name=word)), "dump")]).name == word


def test_differences_name_each_changed_setting() -> None:
    after = FULL.model_copy(update={"train": Train(steps=7, seed=None), "agent": Slac(lr=1e-7)})
    assert differences(FULL, FULL) == []
    assert differences(FULL, after) == [
        "agent.kind: sac_state -> slac",
        "agent.hidden: [1] -> (not set)",
        "train.steps: 1000 -> 7",
        "train.seed: 0 -> null",
        "agent.latent_dim: (not set) -> 32",
    ]


# --- this repository's own files


CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_repositorys_settings_are_well_formed(path: Path) -> None:
    layer = Layer.from_file(path)
    assert layer.readable
    assert not layer.flaws


def test_four_layers_load_within_50_ms_of_cpu(tmp_path: Path) -> None:
    lines = "\n".join(f"- {{source: {i}, size: [64, 64]}}  # camera {i}" for i in range(40))
    (tmp_path / "a.yaml").write_text(f"name: x\nhw:\n  baud: 1e6\nwaypoints:\n{lines}\n")

    def once() -> float:
        begin = time.process_time()
        load(Root, [*[Layer.from_file(tmp_path / "a.yaml")] * 3, Layer.from_overrides(["hw.baud=1"])])
        return time.process_time() - begin

    assert min(once() for _ in range(3)) < 0.05


def test_reading_never_constructs_objects() -> None:
    constructors: dict[Any, Any] = CoreLoader.yaml_constructors
    assert not [tag for tag in constructors if tag and "python" in tag]


NAMES = {folder: choices(CONFIGS / folder) for folder in ("tasks", "hw", "agent")}


@pytest.mark.parametrize("agent", NAMES["agent"])
@pytest.mark.parametrize("hw", NAMES["hw"])
@pytest.mark.parametrize("task", NAMES["tasks"])
def test_every_task_loads_with_every_rig_and_agent_and_dumps_back(task: str, hw: str, agent: str) -> None:
    files = [find(CONFIGS / folder, name) for folder, name in zip(NAMES, (task, hw, agent), strict=True)]
    if task.startswith(("dm_", "sawyer_")) and hw != "sim":
        with pytest.raises(ConfigError, match=r"hw\.kind: .* is simulated only: --hw sim"):
            load(RunConfig, [Layer.from_file(path) for path in files], [cross_checks])
        return
    config = load(RunConfig, [Layer.from_file(path) for path in files], [cross_checks])
    assert config.agent.kind == agent
    assert load(RunConfig, [Layer.from_text(dump(config), "dump")], [cross_checks]) == config


def settings(*overrides: str, hw: str = "dclaw", agent: str = "slac") -> RunConfig:
    files = (CONFIGS / "tasks/valve_random.yaml", CONFIGS / f"hw/{hw}.yaml", CONFIGS / f"agent/{agent}.yaml")
    layers = [*map(Layer.from_file, files), Layer.from_overrides(overrides)]
    return load(RunConfig, layers, [cross_checks])


def test_the_bench_file_states_the_drivers_defaults() -> None:
    """People adjust that file; what stands there before they do is ROBEL's D'Claw, to the tick."""
    hw = settings().hw
    assert limit_ticks(hw.dclaw).tolist() == limit_ticks(DynamixelConfig()).tolist()
    rounded, exact = (model.model_dump(mode="json") for model in (hw.dclaw, DynamixelConfig()))
    assert flat(rounded) == pytest.approx(flat(exact), abs=1e-4)
    assert hw.bus == BusConfig()


def flat(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in flat(tree[name])]
    return [leaf for item in tree for leaf in flat(item)] if isinstance(tree, list) else [tree]


def test_the_nominal_bench_camera_sees_what_the_simulated_one_does() -> None:
    """A policy from simulation finds pointer and goal dot where it learned to look for them."""
    camera = settings().hw.camera
    assert camera.projection is not None
    rim = [np.append(ValveGeometry().rim(angle), 1.0) for angle in np.linspace(-np.pi, np.pi, 24)]
    bench = delivered_projection(camera.projection, camera) @ np.transpose(rim)
    simulated = CameraPose().projection(*camera.size) @ np.transpose(rim)
    assert bench[:2] / bench[2] == pytest.approx(simulated[:2] / simulated[2], abs=0.01)  # px of 64


def test_every_value_of_the_bench_file_is_explained() -> None:
    text = (CONFIGS / "hw/dclaw.yaml").read_text()
    assert text.count("#") >= 25
    model = settings().hw.model_dump()
    for section in ("bus", "camera"):
        assert set(yaml.safe_load(text)["hw"][section]) >= set(model[section]) - {
            "open_timeout",
            "read_timeout",
        }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.period=0.04"], "task.period: this rig needs at least 0.05 s per step"),
        (["task.period=0.2"], "task.period: the servos stop after 0.3 s without a command (hw.dclaw.watchdog), so a step can take 0.15 s"),
        (["task.image_size=[32, 32]"], "hw.camera.size: the camera delivers 64x64, the task expects 32x32"),
        (["task.image_size=[40, 40]", "hw.camera.size=[40, 40]"], "task.image_size: the encoder needs multiples of 16 px, saw 40x40"),
        (["task.camera=side"], "task.camera: this rig has no camera 'side', only 'front'"),
        (["agent.window=100000"], "agent.window: a window of 100000 steps does not fit into the 10000 random steps to begin with"),
        (["hw.camera.fps=8"], "hw.camera.fps: no frame would be fresh enough: a step takes 0.1 s"),
        (["hw.camera.projection=null"], "hw.camera.projection: is needed to draw the goal into the image (task.cue: dot)"),
        *((["task.cue=pointer", f"hw.kind={kind}"], f"hw.dclaw.guide_id: {NO_GUIDE}") for kind in ("sim", "emulated", "real")),
        (["train.replay_capacity=5000"], "train.replay_capacity: holds less than the 10000 random steps to begin with"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_told_with_their_place(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(*overrides)
    (told,) = caught.value.messages
    assert told.endswith(message), told


def pose_settings(*overrides: str, agent: str = "slac") -> RunConfig:
    names = ("tasks/pose_fixed", "hw/dclaw", f"agent/{agent}")
    layers = [*(Layer.from_file(CONFIGS / f"{name}.yaml") for name in names), Layer.from_overrides(overrides)]
    return load(RunConfig, layers, [cross_checks])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.period=0.04"], "task.period: this rig needs at least 0.05 s per step"),
        (["hw.dclaw.watchdog=0.08"], "task.period: the servos stop after 0.08 s without a command (hw.dclaw.watchdog), so a step can take 0.04 s"),
        (["hw.camera.fps=15"], "hw.camera.fps: no frame would be fresh enough: a step takes 0.05 s"),
        (["hw.camera.projection=null"], "hw.camera.projection: is needed to draw the goal into the image (task.cue: dots)"),
        (["task.image_size=[32, 32]"], "hw.camera.size: the camera delivers 64x64, the task expects 32x32"),
        (["task.camera=side"], "task.camera: this rig has no camera 'side', only 'front'"),
        (["task.action_range=[0.5, 1.0, 1.0]"], "task.action_range: poses of it are outside of hw.dclaw.safety for joints [0, 3, 6]: narrow it"),
    ],
)  # fmt: skip
def test_settings_of_a_pose_that_do_not_fit_together_are_told_with_their_place(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        pose_settings(*overrides)
    assert any(told.endswith(message) for told in caught.value.messages), caught.value.messages


@pytest.mark.parametrize("task", ["sawyer_door", "dm_cheetah_run"])
def test_a_task_that_brings_its_robot_refuses_another(task: str) -> None:
    names = (f"tasks/{task}", "hw/sim", "agent/sac_state")
    layers = [Layer.from_file(CONFIGS / f"{name}.yaml") for name in names]
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, [*layers, Layer.from_overrides(["hw.robot=arm"])], [cross_checks])
    assert any(
        "hw.robot: a task of kind" in told and "brings its own" in told for told in caught.value.messages
    )


def test_a_pose_can_be_felt_beside_what_is_seen() -> None:
    assert pose_settings("agent.proprioception=true").agent.kind == "slac"


def test_an_agent_without_eyes_needs_no_camera() -> None:
    assert (
        settings("hw.camera.fps=8", "hw.camera.projection=null", agent="sac_state").agent.kind == "sac_state"
    )
