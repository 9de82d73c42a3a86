"""Questions to a pydantic model about a place in it: what may stand there, and in which kind of section."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Model = type[BaseModel]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a schema: the type that stands there, and its default."""

    annotation: Any = Any
    tag: str | None = None  # the key that chooses between several models, e.g. "kind"
    default: BaseModel | None = None  # what stands there when the settings say nothing
    nullable: bool = False  # whether null is a value here

    @classmethod
    def of(cls, annotation: Any, tag: str | None = None, default: BaseModel | None = None) -> Spot:
        """The spot of a type, freed of Annotated and of `| None`."""
        nullable = False
        while True:
            members = _union(annotation)
            rest = [kind for kind in members if kind is not types.NoneType]
            nullable = nullable or len(rest) < len(members)
            if get_origin(annotation) is Annotated:
                annotation, *extras = get_args(annotation)
                found = [extra.discriminator for extra in extras if isinstance(extra, FieldInfo)]
                tag = _word(found[0]) if found else tag
            elif len(rest) == 1 and rest[0] is not annotation:
                annotation = rest[0]
            else:
                return cls(annotation, tag, default, nullable)

    @property
    def alternatives(self) -> list[Any]:
        """The types of a union; a single one otherwise."""
        return [kind for kind in _union(self.annotation) if kind is not types.NoneType]

    @property
    def models(self) -> list[Model]:
        """The models that may stand here."""
        plain = [Spot.of(kind).annotation for kind in self.alternatives]
        return [kind for kind in plain if isinstance(kind, type) and issubclass(kind, BaseModel)]

    def of_kind(self, kind: object) -> Spot:
        """The spot narrowed to the model whose tag takes that value; itself where there is no choice."""
        chosen = [model for model in self.models if self.tag and kind in tags(model, self.tag)]
        return Spot(chosen[0], None, self.default, self.nullable) if chosen else self

    def child(self, step: str | int) -> Spot:
        """The spot one key or one list position further; any type where the schema does not say."""
        if len(self.models) == 1 and (field := self.models[0].model_fields.get(str(step))):
            return _field_spot(field)
        arguments = get_args(self.annotation)
        origin = get_origin(self.annotation)
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
            return Spot.of(arguments[1])
        if isinstance(origin, type) and issubclass(origin, Sequence | AbstractSet) and arguments:
            listed = isinstance(step, int) and step < len(arguments) and arguments[-1] is not ...
            return Spot.of(arguments[step if listed and isinstance(step, int) else 0])
        return Spot()

    @property
    def keys(self) -> list[str]:
        """The keys that a section here may have; empty where any key may stand."""
        return list(dict.fromkeys(name for model in self.models for name in model.model_fields))

    @property
    def length(self) -> int | None:
        """How many values a list here has, where the schema fixes it."""
        arguments = get_args(self.annotation)
        return len(arguments) if get_origin(self.annotation) is tuple and ... not in arguments else None


def tags(model: Model, tag: str) -> tuple[object, ...]:
    """The values of the discriminator by which a model is chosen."""
    field = model.model_fields.get(tag)
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def locate(schema: Model, location: Path) -> tuple[Path, Spot]:
    """The path and the spot of a pydantic error: its location without the labels of unions."""
    path: list[str | int] = []
    spot = Spot(schema)
    for step in location:
        if len(spot.alternatives) > 1:
            spot = _alternative(spot, step)
        elif step != "[key]":
            path.append(step)
            spot = spot.child(step)
    return tuple(path), spot


def paths(schema: Model, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every path of keys that a settings tree may have."""
    for name, field in schema.model_fields.items():
        path = (*above, name)
        yield path
        if len(path) < 6:  # a model that contains itself ends here
            for model in _field_spot(field).models:
                yield from paths(model, path)


def _field_spot(field: FieldInfo) -> Spot:
    default: Any = field.get_default(call_default_factory=True, validated_data={})
    tag = _word(field.discriminator)
    return Spot.of(field.annotation, tag, default if isinstance(default, BaseModel) else None)


def _alternative(spot: Spot, label: str | int) -> Spot:
    if spot.tag:
        return spot.of_kind(label)
    named = [kind for kind in spot.alternatives if getattr(kind, "__name__", "") == label]
    begun = [kind for kind in spot.alternatives if str(label).startswith(f"{_origin_name(kind)}[")]
    return Spot.of((named or begun or [Any])[0])


def _origin_name(kind: Any) -> str:
    return str(getattr(get_origin(kind), "__name__", kind))


def _word(discriminator: object) -> str | None:
    return discriminator if isinstance(discriminator, str) else None


def _union(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
