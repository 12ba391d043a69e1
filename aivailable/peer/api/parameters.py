"""Reading a client's JSON strictly: every value has a type and a range, every refusal a name.

Owns typed access to a JSON object by its declared fields (`fields`); it must not know any endpoint.
`bodies.reading` makes it of a request's body.

Not to be confused with `worker.sampling.parameters` (ranges) and `worker.llama.parameters` (sizes
for llama.cpp).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from aivailable.peer.api.description.fields import (
    INT_MAX,
    AnyOf,
    Field,
    Fields,
    Flag,
    Integer,
    Items,
    Number,
    Object,
    String,
)
from aivailable.peer.api.errors import ParameterError

VALUES_MAX = 8192
"""Values of every kind in one schema of a client, which are copied one by one on every link."""
TEXT_VALUE = 1024
"""Copying 1,024 characters or bytes costs as much as copying one value."""

Kind = TypeVar("Kind", bound=Field)


class RequestParameters:
    """One JSON object of a request; `path` names it in refusals. It remembers what it was asked
    for: what nobody read has no effect, and the client can be told so. Only what `fields` declares
    can be read; anything else is a mistake in our code (LookupError)."""

    def __init__(
        self, values: Mapping[str, Any], path: str = "", fields: Fields | None = None
    ) -> None:
        self._values = values
        self._path = path
        self._fields: Fields = {} if fields is None else fields
        self._read: dict[str, None] = {}

    def declared(self, fields: Fields) -> RequestParameters:
        """The same object, to be read by these fields."""
        return RequestParameters(self._values, self._path, fields)

    def name(self, key: str) -> str:
        """How a client finds this parameter: "messages[0].content"."""
        return f"{self._path}.{key}" if self._path else key

    def given(self, key: str) -> bool:
        return self.raw(key) is not None

    def raw(self, key: str) -> Any:
        if key not in self._fields:
            raise LookupError(f"{self.name(key)} is not declared")
        self._read[key] = None
        return self._values.get(key)

    def unread(self) -> tuple[str, ...]:
        """Names that were given and never asked for, in the client's order."""
        return tuple(
            key
            for key, value in self._values.items()
            if value is not None and key not in self._read
        )

    def plain(self) -> dict[str, Any]:
        """What was given, without nulls."""
        return {key: value for key, value in self._values.items() if value is not None}

    def text(self, key: str) -> str | None:
        value = self.raw(key)
        if value is None:
            return None
        return checked_text(value, self.name(key), chars_max=self.field(key, String).chars_max)

    def required_text(self, key: str) -> str:
        value = self.text(key)
        if value is None or value == "":
            raise ParameterError(
                self.name(key), f"'{self.name(key)}' is required", code="missing_parameter"
            )
        return value

    def flag(self, key: str) -> bool:
        value = self.raw(key)
        if value is None:
            return bool(self.field(key, Flag).default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def choice(self, key: str) -> str | None:
        """One of a few words."""
        value, words = self.text(key), self.field(key, String).words
        if value is not None and value not in words:
            raise ParameterError(
                self.name(key), f"'{self.name(key)}' must be one of {', '.join(words)}"
            )
        return value

    def integer(self, key: str) -> int | None:
        value, field = self.raw(key), self.field(key, Integer)
        low, high = field.low, field.high
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "an integer", value)
        if not low <= value <= high:
            open_ended = high == INT_MAX and value < low
            limit = f"at least {low}" if open_ended else f"from {low} to {high}"
            raise ParameterError(self.name(key), f"'{self.name(key)}' must be {limit}")
        return value

    def number(self, key: str) -> float | None:
        value, field = self.raw(key), self.field(key, Number)
        return None if value is None else checked_number(value, self.name(key), field)

    def items(self, key: str) -> tuple[Any, ...] | None:
        value = self.raw(key)
        self.field(key, Items)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._wrong(key, "a list", value)
        return tuple(value)

    def object(self, key: str) -> RequestParameters | None:
        value, field = self.raw(key), self.field(key, Object)
        return None if value is None else as_object(value, self.name(key), field.fields)

    def field(self, key: str, kind: type[Kind]) -> Kind:
        """What is declared, alone or among other kinds. LookupError: it is no `kind`."""
        found = self._fields.get(key)
        for one in found.options if isinstance(found, AnyOf) else (found,):
            if isinstance(one, kind):
                return one
        raise LookupError(f"{self.name(key)} is not declared as {kind.__name__}")

    def _wrong(self, key: str, want: str, value: Any) -> ParameterError:
        return wrong_type(self.name(key), want, value)


def wrong_type(name: str, want: str, value: Any) -> ParameterError:
    """The refusal of a value whose type is not the declared one."""
    got = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    kind = got.get(type(value), "a number")
    return ParameterError(name, f"'{name}' must be {want}, not {kind}", code="invalid_type")


def as_object(value: Any, name: str, fields: Fields | None = None) -> RequestParameters:
    if not isinstance(value, dict):
        raise wrong_type(name, "an object", value)
    return RequestParameters(value, name, fields)


def checked_number(value: Any, name: str, field: Number) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, "a number", value)
    if not (field.low <= value <= field.high and math.isfinite(value)):
        raise ParameterError(name, f"'{name}' must be from {field.low:g} to {field.high:g}")
    return float(value)


def checked_text(value: Any, name: str, *, chars_max: int | None = None) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, "text", value)
    if chars_max is not None and len(value) > chars_max:
        raise ParameterError(name, f"'{name}' is longer than {chars_max} characters")
    return value


def checked_json(
    value: Any, name: str, *, bytes_max: int, depth_max: int, values_max: int = VALUES_MAX
) -> str:
    """Any JSON as compact text in the client's own order. Raises ParameterError for what is too
    large or too deep, and for numbers that no other process would read."""
    layer: list[Any] = [value]
    depth = values = 0
    while layer:
        values += len(layer)
        if values > values_max:
            raise ParameterError(name, f"'{name}' has more than {values_max} values in it")
        depth += 1
        if depth > depth_max:
            raise ParameterError(name, f"'{name}' is nested deeper than {depth_max} levels")
        if not all(map(_portable, layer)):
            raise ParameterError(name, f"'{name}' contains a number that is too large")
        layer = [inner for one in layer for inner in _inside(one)]
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        length_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise ParameterError(name, f"'{name}' contains an unpaired surrogate") from None
    if length_bytes > bytes_max:
        raise ParameterError(name, f"'{name}' is longer than {bytes_max} bytes")
    return text


def values_of(value: Any) -> int:
    """How many values of every kind there are in it, itself included. A long text counts as
    several: that is what copying it costs."""
    layer: list[Any] = [value]
    values = 0
    while layer:
        values += len(layer)
        values += sum(len(one) for one in layer if isinstance(one, (str, bytes))) // TEXT_VALUE
        layer = [inner for one in layer for inner in _inside(one)]
    return values


def _portable(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) <= INT_MAX


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()
