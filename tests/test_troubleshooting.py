"""The page about errors quotes what the program says, and leaves no fault out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from robot import types

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")


class Entry(NamedTuple):
    """One error: the words to search for, what is named beside them, what was printed."""

    phrase: str
    names: tuple[str, ...]
    quoted: str


def plain(text: str) -> str:
    return " ".join(text.split())


def entries() -> list[Entry]:
    found = []
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        phrase, *names = re.findall(r"`([^`]+)`", heading)
        (quoted, *_) = re.findall(r"^```\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
        found.append(Entry(phrase, tuple(names), plain(quoted)))
    return found


def texts(path: Path) -> set[str]:
    """What a module can say: its texts, those between the values of an f-string one by one, no docstrings."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and node not in docstrings]
    return {plain(node.value) for node in constants if isinstance(node.value, str)}


@cache
def said() -> frozenset[str]:
    modules = [path for folder in ("robot", "tasks", "agent") for path in (ROOT / folder).glob("*.py")]
    return frozenset().union(*map(texts, modules))


def holds(phrase: str) -> bool:
    """Whether the program says these words, between two values."""
    return any(phrase in text for text in said())


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.phrase)
def test_the_program_still_says_what_the_page_quotes(entry: Entry) -> None:
    assert entry.phrase in entry.quoted
    assert holds(entry.phrase)


def test_words_that_the_program_does_not_say_are_noticed() -> None:
    assert not holds("the flux capacitor is empty")
    assert not holds("on it has to freeze")


def test_every_kind_of_fault_has_its_entry() -> None:
    kinds = {
        kind.name for kind in vars(types).values() if isinstance(kind, type) and issubclass(kind, types.Fault)
    }
    general = {"fault", "invalid-command"}  # the base class; a mistake in a program, not at the bench
    assert kinds - general == {name for entry in entries() for name in entry.names} & kinds
