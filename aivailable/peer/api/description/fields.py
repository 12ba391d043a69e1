"""What a JSON object of a request may hold, declared once: the parser reads by it, `/openapi.json`
is made from it.

Owns the kinds of fields, their ranges and their JSON Schema (draft 2020-12); it must not read any
value, which is `parameters`'. A field that is not declared cannot be read, so that no parameter is
missing in the document. null means "not given", so every field that is not required allows it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INT_MAX = 2**63 - 1

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field(ABC):
    """`text` tells a client what the field means; `default` is what it stands for when absent.
    `null`: it may be null instead of absent."""

    text: str = ""
    required: bool = False
    null: bool = True
    default: Any = None

    @abstractmethod
    def shape(self) -> Schema:
        """The schema of a value that is given."""

    def schema(self) -> Schema:
        """The whole schema, as a property of the object."""
        plain = self.required or not self.null
        found = self.shape() if plain else _or_null(self.shape())
        if self.text:
            found["description"] = self.text
        if self.default is not None:
            found["default"] = self.default
        return found


Fields = Mapping[str, Field]


@dataclass(frozen=True, slots=True)
class String(Field):
    """`words`: the only ones there are. A required text is never empty."""

    chars_max: int | None = None
    words: Sequence[str] = ()
    pattern: str = ""

    def shape(self) -> Schema:
        found: Schema = {"type": "string"}
        if self.required:
            found["minLength"] = 1
        if self.chars_max is not None:
            found["maxLength"] = self.chars_max
        if self.words:
            found["enum"] = list(self.words)
        if self.pattern:
            found["pattern"] = self.pattern
        return found


@dataclass(frozen=True, slots=True)
class Flag(Field):
    """true or false."""

    def shape(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Integer(Field):
    """`never`: values in the range that are refused all the same."""

    low: int
    high: int = INT_MAX
    never: Sequence[int] = ()

    def shape(self) -> Schema:
        found: Schema = {"type": "integer", "minimum": self.low, "maximum": self.high}
        if self.never:
            found["not"] = {"enum": list(self.never)}
        return found


@dataclass(frozen=True, slots=True)
class Number(Field):
    """A finite number."""

    low: float
    high: float

    def shape(self) -> Schema:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Items(Field):
    """A list; `item` None: of anything."""

    item: Field | None = None
    items_min: int = 0
    items_max: int | None = None

    def shape(self) -> Schema:
        found: Schema = {"type": "array"}
        if self.item is not None:
            found["items"] = self.item.shape()
        if self.items_min:
            found["minItems"] = self.items_min
        if self.items_max is not None:
            found["maxItems"] = self.items_max
        return found


@dataclass(frozen=True, slots=True)
class Object(Field):
    """`fields` None: of any names. `values`: what each value is, whatever its name. `closed`: a
    name that is not declared is refused, not ignored."""

    fields: Fields | None = None
    values: Field | None = None
    closed: bool = False
    members_max: int | None = None

    def shape(self) -> Schema:
        found: Schema = {"type": "object"}
        if self.fields is not None:
            found["properties"] = {name: one.schema() for name, one in self.fields.items()}
            required = [name for name, one in self.fields.items() if one.required]
            if required:
                found["required"] = required
        if self.values is not None:
            found["additionalProperties"] = self.values.shape()
        elif self.closed:
            found["additionalProperties"] = False
        if self.members_max is not None:
            found["maxProperties"] = self.members_max
        return found


@dataclass(frozen=True, slots=True)
class Only(Field):
    """A parameter that this service does not have: accepted with the values that change nothing."""

    values: Sequence[Any] = ()

    def shape(self) -> Schema:
        return {"enum": _distinct(self.values)}


@dataclass(frozen=True, slots=True)
class AnyOf(Field):
    """One of several kinds."""

    options: Sequence[Field]

    def shape(self) -> Schema:
        return {"anyOf": [option.shape() for option in self.options]}


def _or_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    found = dict(schema)
    if "enum" in found:
        found["enum"] = [*found["enum"], None]
    if "type" in found:
        found["type"] = [found["type"], "null"]
    return found


def _distinct(values: Sequence[Any]) -> list[Any]:
    """JSON knows one number 1, where Python has 1 and 1.0; true is no number in JSON."""
    found: list[Any] = []
    for value in values:
        if not any(_same(value, other) for other in found):
            found.append(value)
    return found


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
