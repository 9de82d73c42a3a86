"""Layers of settings, combined in order and checked against a pydantic model.

Order: a later layer wins. Sections merge key by key; numbers, words and lists are replaced. A section whose
`kind` chooses its form takes the last kind that a layer sets, and layers that set another kind there do not
count in that section: what was written for one kind is never read as a setting of another. Layers that set no
kind there count always, so what they say must fit the kind chosen.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from configs.complaints import Complaint, complaints, suggestion
from configs.document import ConfigError, Flaw, Layer, Mark, Node, core_resolvers, walked, written
from configs.schema import Spot, tags

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a cross check found wrong: the dotted path of the setting concerned, and the message."""

    path: str
    message: str


def load(
    schema: type[M],
    layers: Sequence[Layer],
    cross_checks: Sequence[Callable[[M], Iterable[Problem]]] = (),
) -> M:
    """The model that the layers describe, later ones winning.

    cross_checks run on the finished model and yield what does not fit together. Raises ConfigError with every
    mistake of every layer, in the order of the layers and their lines.
    """
    root = combined(Spot(schema), [layer.root for layer in layers if layer.root])
    flaws = [flaw for layer in layers for flaw in layer.flaws]
    try:
        tree = root.plain() if root else {}
        model = schema.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        complete = all(layer.readable for layer in layers)
        told = {flaw.mark for flaw in flaws}  # where reading failed already, the value is a stand-in
        wrong = complaints(schema, error.errors(include_url=False), complete=complete)
        flaws += [flaw for flaw in (_flaw(complaint, root) for complaint in wrong) if flaw.mark not in told]
    else:
        problems = [problem for check in cross_checks for problem in check(model)]
        flaws += [_placed(problem, root) for problem in problems]
    if flaws:
        raise ConfigError(_in_order(flaws, [source for layer in layers for source in layer.sources]))
    return model


def combined(spot: Spot, nodes: Sequence[Node]) -> Node | None:
    """The layers' nodes at one place of the schema, united by the rules above; None when they say nothing."""
    if spot.models and not spot.nullable:  # a section without lines says nothing
        nodes = [node for node in nodes if node.value is not None]
    sections = _sections_on_top(nodes)
    if not sections:
        return nodes[-1] if nodes else None
    if default := _default_section(spot, sections[-1].mark):
        sections = [default, *sections]
    kind = _last_kind(spot, sections)
    if kind is not None:
        sections = [node for node in sections if _kind(node, spot) in (None, kind)]
        spot = spot.of_kind(kind)
    merged: dict[str, Node] = {}
    for key in dict.fromkeys(key for node in sections for key in _items(node)):
        parts = [_items(node)[key] for node in sections if key in _items(node)]
        if node := combined(spot.child(key), parts):
            merged[key] = node
    return Node(merged, sections[-1].mark, sections[-1].key)


def _sections_on_top(nodes: Sequence[Node]) -> list[Node]:
    """The sections after the last node that is something else: that one replaced all before it."""
    last = max((i for i, node in enumerate(nodes) if not isinstance(node.value, dict)), default=-1)
    return list(nodes[last + 1 :])


def _items(node: Node) -> dict[str, Node]:
    assert isinstance(node.value, dict)
    return node.value


def _default_section(spot: Spot, mark: Mark) -> Node | None:
    """What the schema itself sets in a section that the settings give in part: the layer below all layers."""
    return _as_node(_stated(spot.default), mark) if spot.default else None


def _stated(model: BaseModel) -> dict[str, Any]:
    """What was said on creation of a model, and its kind."""
    said = model.model_fields_set
    names = [name for name in type(model).model_fields if name in said or len(tags(type(model), name)) == 1]
    items = [(name, getattr(model, name)) for name in names]
    return {name: _stated(item) if isinstance(item, BaseModel) else _bare(item) for name, item in items}


def _bare(value: Any) -> Any:
    """Only what YAML can say: sections, lists, numbers, text."""
    match value:
        case BaseModel():
            return _bare(value.model_dump(serialize_as_any=True))
        case dict():
            return {str(_bare(key)): _bare(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_bare(item) for item in value]
        case enum.Enum():
            return _bare(value.value)
        case Path():
            return str(value)
    return value


def _as_node(value: Any, mark: Mark) -> Node:
    if isinstance(value, dict):
        value = {key: _as_node(item, mark) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_as_node(item, mark) for item in value]
    return Node(value, mark, mark)


def _last_kind(spot: Spot, sections: Sequence[Node]) -> object:
    kinds = [kind for node in sections if (kind := _kind(node, spot)) is not None]
    return kinds[-1] if kinds else None


def _kind(node: Node, spot: Spot) -> object:
    tagged = _items(node).get(spot.tag) if spot.tag else None
    return tagged.value if tagged and not isinstance(tagged.value, dict | list) else None


def _flaw(complaint: Complaint, root: Node | None) -> Flaw:
    """A complaint with the place of its setting, or of the section that lacks it."""
    nodes = list(walked(root, complaint.path))
    there = len(nodes) == len(complaint.path) + 1
    mark = None if len(nodes) < 2 else nodes[-1].mark if there and not complaint.about_key else nodes[-1].key
    path = ".".join(map(str, complaint.path))
    return Flaw(mark, f"{path}: {complaint}" if path else str(complaint))


def _placed(problem: Problem, root: Node | None) -> Flaw:
    """A problem with the place of its setting, if a layer sets it."""
    path = problem.path.split(".")
    nodes = list(walked(root, path))
    return Flaw(nodes[-1].mark if len(nodes) == len(path) + 1 else None, f"{problem.path}: {problem.message}")


def _in_order(flaws: Sequence[Flaw], sources: Sequence[str]) -> list[str]:
    """Messages by layer and line; those without a place at the end."""

    def place(flaw: Flaw) -> tuple[int, int, int]:
        if flaw.mark is None or flaw.mark.source not in sources:
            return len(sources), 0, 0
        return sources.index(flaw.mark.source), flaw.mark.line, flaw.mark.column

    return list(dict.fromkeys(str(flaw) for flaw in sorted(flaws, key=place)))


class Dumper(yaml.SafeDumper):
    """Writes YAML that any reader, of YAML 1.1 or 1.2, takes for the same values."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own declaration
        first: [*core_resolvers().get(first, []), *yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])]
        for first in {*core_resolvers(), *yaml.SafeDumper.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Equal values are written out each time: people read these files."""
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        """Long sections get a line per setting, so that differences between two files show."""
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = node.flow_style and len(node.value) <= 3
        return node

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quoted with escapes where PyYAML would write a line break of old Unicode as it is, and lose it."""
        style = '"' if re.search("[\r\x85\u2028\u2029]", text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, Dumper.represent_text)


def dump(model: BaseModel) -> str:
    """The model as YAML that loads back to an equal one; defaults are written out."""
    text: str = yaml.dump(
        _bare(model), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True
    )
    return text


def differences(before: BaseModel, after: BaseModel) -> list[str]:
    """What changed between two settings, one `a.b: old -> new` line per leaf."""
    old, new = (dict(_leaves(_bare(model))) for model in (before, after))
    changed = [path for path in {**old, **new} if old.get(path, ...) != new.get(path, ...)]
    return [f"{path}: {_side(old, path)} -> {_side(new, path)}" for path in changed]


def _side(leaves: dict[str, Any], path: str) -> str:
    return written(leaves[path]) if path in leaves else "(not set)"


def _leaves(tree: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, item in tree.items():
        yield from _leaves(item, f"{path}.{key}" if path else key)


def choices(folder: Path) -> list[str]:
    """The names for which the folder holds a YAML file, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def about(path: Path) -> str:
    """The first sentence of a file's first line, which is a comment."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].lstrip("# ").partition(". ")[0].rstrip(".") if lines else "(empty)"


def find(folder: Path, name: str) -> Path:
    """The file of a name in a folder such as configs/tasks, or a YAML file of one's own anywhere.

    Raises ConfigError that lists the known names.
    """
    known = choices(folder)
    if name in known:
        return folder / f"{name}.yaml"
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        return Path(name)
    hint = suggestion(Path(name).stem, known)  # a path to the file is what tab completion makes of a name
    noun, names = folder.name.removesuffix("s"), ", ".join(known) or "none"
    raise ConfigError([f"unknown {noun} {name!r}{hint}{' Known:' if hint else ' - known:'} {names}"])
