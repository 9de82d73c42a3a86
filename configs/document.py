"""YAML 1.2 text, read into nodes that remember where they were written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml

Scalar = None | bool | int | float | str

# YAML 1.2 core schema, section 10.3.2. PyYAML's own patterns are YAML 1.1: there `3e-4` is text, `on` is true
# and `1:30` is ninety.
CORE_PATTERNS: tuple[tuple[str, str, str], ...] = (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN"),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"^<<$", "<"),
)

UNEVEN = "the indentation differs from the lines above"
# What PyYAML says, and what a person who never read its source can do about it.
PLAIN_WORDS = {
    "mapping values are not allowed here": "a ':' that does not belong here - "
    "is the line before it complete, and the text quoted?",
    "could not find expected ':'": "a key without ':' - write `key: value`",
    "found character '\\t' that cannot start any token": "a tab - YAML is indented with spaces",
    "expected <block end>, but found '<block mapping start>'": UNEVEN,
    "expected <block end>, but found '<block sequence start>'": UNEVEN,
}


class ConfigError(Exception):
    """The settings cannot be used. `messages` says everything that is wrong, one line per mistake."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = list(messages)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where something was written: a file with line and column (from 1), or a whole `--set` flag (line 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the places of the value and of the key that it stands under."""

    value: Scalar | dict[str, Node] | list[Node]
    mark: Mark
    key: Mark

    def plain(self) -> Any:
        """The bare value.

        Whole floats come out as int, so that `steps: 1e5` is a count; a float setting takes an int anyway.
        """
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        if isinstance(self.value, float) and self.value.is_integer() and abs(self.value) < 2**53:
            return int(self.value)
        return self.value


@dataclass(frozen=True, slots=True)
class Flaw:
    """A mistake with its place, if it has one."""

    mark: Mark | None
    message: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.message}" if self.mark else self.message


def core_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The table by which PyYAML finds a plain scalar's tag: first character -> [(tag, pattern)]."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, firsts in CORE_PATTERNS:
        for first in [*firsts, ""] if tag.endswith("null") else firsts:
            table.setdefault(first, []).append((tag, re.compile(pattern)))
    return table


class CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2; only its composer is used."""

    yaml_implicit_resolvers = core_resolvers()


def scalar(tag: str, text: str) -> Scalar:
    """The value of a scalar with a resolved tag. Raises ValueError for what is not of the core schema."""
    match tag.removeprefix("tag:yaml.org,2002:"):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        case "float":
            return _number(text)
        case "str":
            return text
    raise ValueError(f"the tag {tag!r} is not allowed: settings are plain numbers, words, lists and sections")


def _number(text: str) -> float:
    if text.lower() == ".nan":
        raise ValueError("'not a number' is not allowed as a setting")
    return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf"))


class Reader:
    """Turns the text of one source into a Node; what is wrong collects in `flaws`."""

    def __init__(self, source: str, *, lines: bool = True) -> None:
        self.source = source
        self.lines = lines
        self.flaws: list[Flaw] = []
        self._open: set[int] = set()  # mappings and lists being read: an alias to one of them never ends

    def read(self, text: str) -> Node | None:
        """The root node; None when the text is empty or is not YAML."""
        try:
            loader = CoreLoader(text)
            root = loader.get_single_node()
            return self._node(loader, root, self._mark(root.start_mark)) if root else None
        except yaml.MarkedYAMLError as error:
            place = error.problem_mark or error.context_mark
            self._flaw(self._mark(place), f"not valid YAML: {_in_plain_words(error, text)}")
        except yaml.reader.ReaderError as error:
            self._flaw(_place_in(self.source, text, error.position), "a character that YAML does not allow")
        return None

    def _mark(self, mark: yaml.Mark | None) -> Mark:
        return Mark(self.source, mark.line + 1, mark.column + 1) if mark and self.lines else Mark(self.source)

    def _flaw(self, mark: Mark, message: str) -> None:
        self.flaws.append(Flaw(mark, message))

    def _node(self, loader: CoreLoader, node: yaml.Node, key: Mark) -> Node:
        mark = self._mark(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            try:
                return Node(scalar(node.tag, node.value), mark, key)
            except ValueError as error:
                self._flaw(mark, str(error))
                return Node(None, mark, key)
        if id(node) in self._open:
            self._flaw(mark, "this section contains itself through its own anchor")
            return Node(None, mark, key)
        self._open.add(id(node))
        try:
            return Node(self._collection(loader, node), mark, key)
        finally:
            self._open.discard(id(node))

    def _collection(self, loader: CoreLoader, node: yaml.Node) -> dict[str, Node] | list[Node]:
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.split(":")[-1] not in ("map", "seq"):
            self._flaw(self._mark(node.start_mark), f"the tag {node.tag!r} is not allowed")
        if isinstance(node, yaml.SequenceNode):
            return [self._node(loader, item, self._mark(item.start_mark)) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        self._report_duplicates(node)
        loader.flatten_mapping(node)
        pairs = ((name, value) for name, value in node.value if self._is_word(name))
        return {name.value: self._node(loader, value, self._mark(name.start_mark)) for name, value in pairs}

    def _report_duplicates(self, node: yaml.MappingNode) -> None:
        first: dict[str, yaml.Node] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                continue
            if name.value in first:
                line = first[name.value].start_mark.line + 1
                self._flaw(
                    self._mark(name.start_mark), f"key {name.value!r} stands here twice, first in line {line}"
                )
            first.setdefault(name.value, name)

    def _is_word(self, name: yaml.Node) -> bool:
        if isinstance(name, yaml.ScalarNode):
            return True
        self._flaw(self._mark(name.start_mark), "a key must be a single word")
        return False


def _in_plain_words(error: yaml.MarkedYAMLError, text: str) -> str:
    place, problem = error.problem_mark, error.problem or "it ends too early"
    lines = text.splitlines()
    if place and place.line < len(lines) and "\t" in _indentation(lines[place.line]):
        return "a tab in the indentation - YAML is indented with spaces"
    return PLAIN_WORDS.get(problem, f"{problem} {error.context or ''}".strip())


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _place_in(source: str, text: str, position: int) -> Mark:
    before = text[:position]
    return Mark(source, before.count("\n") + 1, position - before.rfind("\n"))


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of settings, to be laid over the ones before it."""

    sources: tuple[str, ...]
    root: Node | None
    flaws: tuple[Flaw, ...] = ()
    readable: bool = True  # False: settings that are missing may stand in the part that could not be read

    @classmethod
    def from_file(cls, path: Path | str) -> Self:
        """The settings of a YAML file. Never raises: what is wrong with the file is told by `load`."""
        source = _shown(Path(path))
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            reason = error.strerror or str(error)
            return cls((source,), None, (Flaw(Mark(source), f"cannot be read: {reason}"),), readable=False)
        except UnicodeDecodeError:
            return cls((source,), None, (Flaw(Mark(source), "is not UTF-8 text"),), readable=False)
        return cls.from_text(text, source)

    @classmethod
    def from_text(cls, text: str, source: str) -> Self:
        """The settings of YAML text; `source` stands in messages where a file name would."""
        reader = Reader(source)
        root = reader.read(text)
        if root is not None and root.value is not None and not isinstance(root.value, dict):
            reader.flaws.append(Flaw(root.mark, f"expected `section:` lines, saw {described(root.plain())}"))
            root = None
        return cls((source,), root, tuple(reader.flaws), readable=root is not None or not reader.flaws)

    @classmethod
    def from_overrides(cls, assignments: Sequence[str]) -> Self:
        """The settings of `a.b=value` flags; values are YAML, and the last flag for a setting wins."""
        sources, flaws, root = [], [], None
        for assignment in assignments:
            source = f"--set {assignment}"
            node, wrong = _override(assignment, source)
            sources.append(source)
            flaws += wrong
            if node is not None:
                root = node if root is None else overlaid(root, node)
        return cls(tuple(sources), root, tuple(flaws), readable=not flaws)

    def value(self, *path: str) -> object:
        """What is set at a path, as plain data; None where nothing is."""
        nodes = list(walked(self.root, path))
        return nodes[-1].plain() if len(nodes) > len(path) else None

    def without(self, section: str) -> Layer:
        """The same settings without a top-level section; what is wrong elsewhere in them is still told."""
        if self.root is None or not isinstance(self.root.value, dict):
            return self
        rest = {key: node for key, node in self.root.value.items() if key != section}
        return replace(self, root=replace(self.root, value=rest))


def _override(assignment: str, source: str) -> tuple[Node | None, list[Flaw]]:
    path, equals, text = assignment.partition("=")
    keys = [key.strip() for key in path.split(".")]
    mark = Mark(source)
    if not equals or not all(keys):
        return None, [Flaw(mark, "expected NAME=VALUE, for example --set train.steps=1000")]
    reader = Reader(source, lines=False)
    node = reader.read(text) or Node(None, mark, mark)
    for key in reversed(keys):
        node = Node({key: node}, mark, mark)
    return (None, reader.flaws) if reader.flaws else (node, [])


def overlaid(below: Node, above: Node) -> Node:
    """`above` laid over `below`: sections merge key by key, anything else is replaced."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    merged = dict(below.value)
    for key, node in above.value.items():
        merged[key] = overlaid(merged[key], node) if key in merged else node
    return Node(merged, above.mark, above.key)


def walked(node: Node | None, path: Sequence[str | int]) -> Iterator[Node]:
    """The nodes met on the way along path, from the root, as far as it exists."""
    for step in [None, *path]:
        if step is not None:
            node = _child(node, step)
        if node is None:
            return
        yield node


def _child(node: Node | None, step: str | int) -> Node | None:
    value = node.value if node else None
    if isinstance(value, dict):
        return value.get(str(step))
    if isinstance(value, list) and str(step).isdigit() and int(step) < len(value):
        return value[int(step)]
    return None


def described(value: object) -> str:
    """A value as a person would call it: `text 'yes'`, `the number 1.5`, `a list of 3`, `nothing (null)`."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case str():
            return f"text {value!r}"
        case int() | float():
            return f"the number {written(value)}"
        case list():
            return f"a list of {len(value)}"
    return "a section"


def written(value: object) -> str:
    """A plain value as one would write it in YAML."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() if value.is_integer() and abs(value) < 1e6:
            return str(int(value))
    return str(value)


def _shown(path: Path) -> str:
    """The path as the person would type it: relative when it lies below the present folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
