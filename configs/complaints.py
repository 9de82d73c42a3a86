"""Pydantic's errors, retold: one message per setting, in plain words, with a suggestion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

from configs.document import described, written
from configs.schema import Model, Path, Spot, locate, paths, tags

EXPECTED = {  # pydantic's error types, as a person would say what belongs there
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "text",
    "path": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "a section (`key: value` lines)",
    "model": "a section (`key: value` lines)",
    "model_attributes": "a section (`key: value` lines)",
}
BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
    "multiple_of": ("multiple_of", "must be a multiple of"),
}
CHOICES = ("literal_error", "enum", "union_tag_invalid")
ABSENT = ("missing", "union_tag_not_found")
SPOKEN_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


@dataclass(slots=True)
class Complaint:
    """Everything that pydantic says about one setting; a union has several complaints about one value."""

    path: Path
    value: Any = None
    about_key: bool = False  # the key is wrong, not the value
    expected: list[str] = field(default_factory=list)  # types, of which none fits
    choices: list[str] = field(default_factory=list)  # words, of which none fits
    wrong: list[str] = field(default_factory=list)  # the type fits, the value does not

    def __str__(self) -> str:
        return (
            "; ".join(self.wrong) or f"expected {self._wanted()}, saw {described(self.value)}{self._hint()}"
        )

    def _wanted(self) -> str:
        one_of = ["one of " * (len(self.choices) > 1) + listed(self.choices)] if self.choices else []
        return " or ".join([*one_of, *dict.fromkeys(self.expected)])

    def _hint(self) -> str:
        if "true or false" in self.expected and (meant := SPOKEN_BOOLEANS.get(str(self.value).lower())):
            return f" - did you mean {meant}?"
        if self.expected == ["text"] and isinstance(self.value, bool | int | float):
            return f' - text that looks like this needs quotes: "{written(self.value)}"'
        if isinstance(self.value, str) and re.fullmatch(r"[-+]?\d+([_,]\d+)+(\.\d*)?", self.value):
            return " - write numbers without separators"
        return suggestion(self.value, self.choices) if isinstance(self.value, str) else ""


def complaints(schema: Model, errors: Sequence[ErrorDetails], *, complete: bool) -> list[Complaint]:
    """What is wrong, one complaint per setting, in the order in which pydantic met them.

    Unless the settings are complete, nothing is said of missing ones: they may stand in an unreadable part.
    """
    found: dict[Path, Complaint] = {}
    for error in errors:
        if not complete and error["type"] in ABSENT and not _too_few(error):
            continue
        path, spot = _place(schema, error)
        complaint = found.setdefault(path, Complaint(path))
        complaint.value = error.get("ctx", {}).get("tag", error["input"])
        complaint.about_key = complaint.about_key or error["type"] == "extra_forbidden"
        _add(complaint, schema, spot, error)
    return list(found.values())


def _place(schema: Model, error: ErrorDetails) -> tuple[Path, Spot]:
    """The setting that an error concerns."""
    path, spot = locate(schema, error["loc"])
    if error["type"].startswith("union_tag"):
        return (*path, spot.tag or "kind"), spot
    if _too_few(error):
        return locate(schema, error["loc"][:-1])
    return path, spot


def _too_few(error: ErrorDetails) -> bool:
    """Pydantic calls each value that a list lacks a missing field."""
    return error["type"] == "missing" and isinstance(error["loc"][-1], int)


def _add(complaint: Complaint, schema: Model, spot: Spot, error: ErrorDetails) -> None:
    kind, context = error["type"], error.get("ctx", {})
    stem = re.sub(r"_(type|parsing|parsing_size|from_float)$", "", kind)
    if kind in CHOICES:
        words = str(context.get("expected", context.get("expected_tags")))
        complaint.choices += re.findall(r"'([^']*)'", words) or [words]
    elif stem in EXPECTED and "[key]" not in error["loc"]:
        complaint.expected.append(EXPECTED[stem])
    elif (message := _message(schema, complaint.path, spot, error)) not in complaint.wrong:
        complaint.wrong.append(message)


def _message(schema: Model, path: Path, spot: Spot, error: ErrorDetails) -> str:
    """What is wrong with a value that is not merely of the wrong type."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        return f"{words} {written(context[name])}, saw {written(value)}"
    if kind in ("too_short", "too_long") or _too_few(error):
        return f"expected {_length(spot, context)} values, saw {len(value)}"
    if kind == "extra_forbidden":
        return unknown_key(schema, path, locate(schema, error["loc"][:-1])[1].keys)
    if kind in ABSENT:
        known = [str(tag) for model in spot.models for tag in tags(model, spot.tag or "")]
        one_of = f": one of {listed(known)}" if kind == "union_tag_not_found" else ""
        return f"this setting is required, and nothing sets it{one_of}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", error["msg"]))
    return f"{error['msg']}, saw {described(value)}"


def _length(spot: Spot, context: dict[str, Any]) -> str:
    if spot.length is not None:
        return str(spot.length)
    least = context.get("min_length")
    return f"at least {least}" if least is not None else f"at most {context.get('max_length')}"


def unknown_key(schema: Model, path: Path, known: Sequence[str]) -> str:
    """The message for a key that does not exist there: a similar one, or the place where it does exist."""
    key = str(path[-1])
    begin = f"unknown key {key!r}"
    if near := suggestion(key, known):
        return begin + near
    here = f"known here: {', '.join(known[:12])}{', ...' * (len(known) > 12)}"
    homes = [".".join(home) for home in paths(schema) if home[-1] == key]
    if ".".join(map(str, path)) in homes:
        return f"{begin} - it belongs to another kind of this section; {here}"
    return f"{begin} - did you mean {homes[0]!r}?" if homes else f"{begin} - {here}"


def suggestion(word: str, known: Sequence[str]) -> str:
    """` - did you mean 'x'?`, or nothing when no known word is near."""
    near = get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    meant = next((name for name in known if near and name.lower() == near[0]), None)
    return f" - did you mean {meant!r}?" if meant else ""


def listed(words: Sequence[str]) -> str:
    """`'a', 'b' or 'c'`; words that are no text (numbers of a Literal) as they are."""
    quoted = [repr(word) if len(words) > 1 or word.isidentifier() else word for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
