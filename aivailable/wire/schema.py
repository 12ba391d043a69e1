"""Typed dataclass ⇄ msgpack, plain values and JSON, for what crosses a process or a disk.

Owns: the one rule how a frozen dataclass becomes a map and back, with every value checked against
its annotation. Unknown fields are ignored (a newer writer), missing fields take their default (an
older one), anything else is a SchemaError that names the path. It must not do I/O. A field that
came later (`since`) is left out while it holds its default, so that old and new code write equal
bytes for as long as nobody uses it.

Two libraries, each with a task of its own:

* **msgspec** writes everything, and turns values into dataclasses. `wire.envelope` also lets it
  read typed messages straight from their bytes.
* **msgpack** reads bytes of which the type is not known yet. Such bytes are in logs and snapshots,
  and a log entry is refused by all members or by none. So their verdict must be the first
  version's for ever: on depth, double keys, extension types, and text that nobody looks at.

Supported annotations: bool, int, float, str, bytes, None, Literal, StrEnum, dataclass,
tuple[X, ...], tuple[X, Y], Mapping[str, X], X | None, and Any (plain values only).

Not to be confused with `worker.grammar.schema`, which reads a client's JSON schema.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgpack
import msgspec

from aivailable.errors import SchemaError

T = TypeVar("T")
Plain = Any
"""None, bool, int, float, str, bytes, list and dict[str, Plain]."""

DEPTH_MAX_LEVELS: Final = 96
"""Of what is declared as Any, a client's own objects: more than the API lets in (a tool's schema of
64 levels lies some levels deep in a request). What has a type is as deep as its type."""
INT_MAX: Final = 2**63 - 1
Int = Annotated[int, msgspec.Meta(ge=-INT_MAX, le=INT_MAX)]
"""An int whose bounds msgspec checks while it reads. An ordinary int has the same ones, checked
afterwards; messages that come with every token cannot wait for that."""

_SINCE = "since"
_SCALARS: Final = (bool, int, float, str, bytes)
_PLAIN: Final = frozenset({*_SCALARS, type(None)})
"""Types of values that are plain as they are; not those that inherit from them."""
_SIMPLE: Final = frozenset({str, bytes, bool, float, type(None)})
"""Types of values in which nothing is left to check."""


def since(level: int) -> Mapping[str, int]:
    """The `metadata` of a field, with a default, that came with this feature level
    (core.state.levels): `note: str = field(default="", metadata=since(2))`."""
    return {_SINCE: level}


@lru_cache(maxsize=512)
def late_fields(kind: type) -> Mapping[str, tuple[int, Any]]:
    """By name of each field of a dataclass that came later: its level and its default."""
    return {
        entry.name: (entry.metadata[_SINCE], _default(entry))
        for entry in dataclasses.fields(kind)
        if _SINCE in entry.metadata
    }


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


# What an annotation holds.


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What lies anywhere below an annotation."""

    level: int = 0
    """Of its latest field; 0 = none came later."""
    free: bool = False
    """Something is declared as Any."""
    ints: bool = False
    """It holds an int that is not an Int."""

    @property
    def direct(self) -> bool:
        """msgspec writes it as it is: no field is left out, and every mapping is sorted."""
        return not self.free and not self.level


@lru_cache(maxsize=2048)
def shape(annotation: Any) -> Shape:
    """Raises TypeError for an annotation that is not supported."""
    level = 0
    seen, waiting = {annotation}, [annotation]
    while waiting:
        one = waiting.pop()
        if dataclasses.is_dataclass(one):
            level = max(level, *(found for found, _ in late_fields(cast(type, one)).values()), 0)
        fresh = [part for part in _parts(one) if part not in seen]
        seen.update(fresh)
        waiting += fresh
    return Shape(level, Any in seen, int in seen)


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The annotations inside this one. Raises TypeError."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any or annotation in (*_SCALARS, Int) or origin is Literal:
        return ()
    if isinstance(annotation, type) and issubclass(annotation, enum.StrEnum):
        return ()
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return tuple(get_type_hints(annotation, include_extras=True).values())
    if origin in (Union, types.UnionType) and len(args) == 2 and type(None) in args:
        return (_inner(args),)
    if origin is tuple and args:
        return tuple(arg for arg in args if arg is not Ellipsis)
    if origin in (Mapping, dict) and args[0] is str:
        return (args[1],)
    raise TypeError(f"unsupported annotation {annotation!r}")


def _inner(args: tuple[Any, ...]) -> Any:
    """X of `X | None`."""
    return next(arg for arg in args if arg is not type(None))


@lru_cache(maxsize=512)
def _fields(kind: type) -> tuple[tuple[str, bool], ...]:
    """Each field's name and whether what it holds is a client's own (declared with Any)."""
    hints = get_type_hints(kind)
    return tuple((field.name, _has_any(hints[field.name])) for field in dataclasses.fields(kind))


def _has_any(annotation: Any) -> bool:
    return annotation is Any or any(_has_any(part) for part in get_args(annotation))


# Writing.


def _base(value: Any) -> Any:
    """What msgspec does not know, as the value that it is of: numpy's float, a read-only mapping.
    Raises TypeError."""
    for kind in _SCALARS:
        if isinstance(value, kind):
            return cast(Any, kind)(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, list)):
        return list(value)
    raise TypeError(f"cannot encode {type(value).__name__}")


SORTED: Final = msgspec.msgpack.Encoder(enc_hook=_base, order="deterministic")
"""Canonical bytes of what is `direct`: fields in their order, mappings by key."""
_IN_ORDER: Final = msgspec.msgpack.Encoder(enc_hook=_base)
_JSON: Final = msgspec.json.Encoder(enc_hook=_base)


def pack(value: Any) -> bytes:
    """Canonical msgpack: the same value gives the same bytes on every node.

    Raises SchemaError for a client's own object that is nested too deeply; TypeError, ValueError or
    OverflowError for what has no bytes.
    """
    return SORTED.encode(value) if _direct(value) else _IN_ORDER.encode(to_plain(value))


def to_json(value: Any) -> bytes:
    """JSON of dataclasses and plain values, in the order of their fields and keys. What is not a
    number in JSON (NaN, infinity) is null; half a surrogate pair, which is no text, is "?"."""
    try:
        return _JSON.encode(value)
    except UnicodeEncodeError:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=to_plain)
        return text.encode("utf-8", "replace")


def to_plain(value: Any) -> Plain:
    """A dataclass (or tuple, mapping, scalar) as plain values.

    Mappings are sorted by key, so that equal values give equal bytes; but what is declared as Any
    belongs to a client (a JSON schema, template arguments) and keeps the order it came in. Raises
    TypeError, and SchemaError as `pack`.
    """
    return _to_plain(value, None)


def _direct(value: Any) -> bool:
    if dataclasses.is_dataclass(value):
        return shape(cast(type, type(value))).direct
    if isinstance(value, (tuple, list)):
        return all(map(_direct, value))
    return value is None or type(value) in _SCALARS


def _to_plain(value: Any, levels: int | None) -> Plain:
    """`levels`: that a client's own value may still have; None = it is not one."""
    if value is None or isinstance(value, (bool, int, float, bytes)):
        return value
    if isinstance(value, str):
        return str(value)
    if levels is not None:
        levels = _one_level_down(levels)
    if dataclasses.is_dataclass(value):
        kind = cast(type, type(value))
        late = late_fields(kind)
        return {
            name: _to_plain(getattr(value, name), DEPTH_MAX_LEVELS if free else levels)
            for name, free in _fields(kind)
            if name not in late or getattr(value, name) != late[name][1]
        }
    if isinstance(value, Mapping):
        keys = sorted(value) if levels is None else value
        return {key: _to_plain(value[key], levels) for key in keys}
    if isinstance(value, (tuple, list)):
        if _PLAIN.issuperset(map(type, value)):
            return list(value)
        return [_to_plain(item, levels) for item in value]
    raise TypeError(f"cannot encode {type(value).__name__}")


def _one_level_down(levels: int) -> int:
    if levels == 0:
        raise SchemaError(f"nested deeper than {DEPTH_MAX_LEVELS} levels")
    return levels - 1


# Reading.


def unpack(kind: type[T], data: bytes) -> T:
    """Decode canonical msgpack into a `kind`. Raises SchemaError on anything else."""
    return from_plain(kind, unpack_plain(data))


def unpack_plain(data: bytes) -> Plain:
    """Decode msgpack with string keys only; a length can never exceed the input's own size."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise SchemaError(f"not msgpack: {error}") from error


def from_plain(kind: type[T], value: Plain, path: str = "", level: int = INT_MAX) -> T:
    """Rebuild a `kind` from plain values. Fields that came after `level` are ignored, as by the
    code of that time. Raises SchemaError naming the first wrong path."""
    where = path or kind.__name__
    if shape(cast(Any, kind)).level > level:
        value = _known(kind, value, where, level)
    try:
        found = _convert(value, kind)
    except msgspec.ValidationError:
        # Either a part is wrong, and is named now; or it is only what stands under names that are
        # no text, which is nobody's and is ignored like every unknown field.
        found = _convert(_known(kind, value, where, level), kind)
    wrong = _wrong(found)
    if wrong:
        raise SchemaError(f"{where}{wrong}")
    return cast(T, found)


def _convert(value: Plain, annotation: Any) -> Any:
    return msgspec.convert(value, annotation, builtin_types=(bytes,))


def _known(annotation: Any, value: Plain, path: str, level: int) -> Plain:
    """The value with no other fields than those known at `level`, each tried by itself.

    Raises SchemaError naming the first part that is wrong.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return None if value is None else _known(_inner(args), value, path, level)
    if isinstance(value, dict):
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            value = _known_fields(annotation, value, path, level)
        elif origin in (Mapping, dict):
            value = {
                key: _known(args[1], entry, f"{path}.{key}", level) for key, entry in value.items()
            }
    elif isinstance(value, (list, tuple)) and origin is tuple:
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        value = [
            _known(kinds[index], entry, f"{path}[{index}]", level) if index < len(kinds) else entry
            for index, entry in enumerate(value)
        ]
    try:
        _convert(value, annotation)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{path}: {str(error).partition(' - at `')[0]}") from error
    return value


def _known_fields(kind: Any, value: Plain, path: str, level: int) -> Plain:
    hints, found = get_type_hints(kind, include_extras=True), {}
    for field in dataclasses.fields(kind):
        if field.metadata.get(_SINCE, 0) > level:
            continue
        if field.name in value:
            where = f"{path}.{field.name}"
            found[field.name] = _known(hints[field.name], value[field.name], where, level)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{path}.{field.name}: missing")
    return found


def _wrong(value: Any) -> str:
    """What msgspec lets through in a typed value and we do not: where it is and why, or ""."""
    kind = type(value)
    if kind in _SIMPLE:
        return ""
    if kind is int:
        return "" if -INT_MAX <= value <= INT_MAX else ": integer out of range"
    if kind is tuple:
        # A long prompt as token ids: only which one is wrong is looked for one by one.
        ids = len(value) > 1 and set(map(type, value)) == {int}
        if ids and min(value) >= -INT_MAX and max(value) <= INT_MAX:
            return ""
        for index, item in enumerate(value):
            if type(item) not in _SIMPLE and (wrong := _wrong(item)):
                return f"[{index}]{wrong}"
    elif kind is dict:
        for key, item in value.items():
            if type(item) not in _SIMPLE and (wrong := _wrong(item)):
                return f".{key}{wrong}"
    elif dataclasses.is_dataclass(kind):
        for name, free in _fields(kind):
            item = getattr(value, name)
            if type(item) not in _SIMPLE and (
                wrong := _not_plain(item, DEPTH_MAX_LEVELS) if free else _wrong(item)
            ):
                return f".{name}{wrong}"
    return ""


def _not_plain(value: Any, levels: int) -> str:
    """The same for what is declared as Any."""
    kind = type(value)
    if kind in _SIMPLE or kind is int:
        return ""
    if levels == 0:
        return f": nested deeper than {DEPTH_MAX_LEVELS} levels"
    if kind is list or kind is tuple:
        parts = enumerate(value)
    elif kind is dict:
        parts = value.items()
    else:
        return f": {kind.__name__} is no plain value"
    return next(
        (f"[{key!r}]{told}" for key, item in parts if (told := _not_plain(item, levels - 1))), ""
    )
