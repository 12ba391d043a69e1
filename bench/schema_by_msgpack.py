"""Packing and reading as the first version did it: dataclasses by the package `msgpack` alone.

Kept whole: `aivailable.wire.schema` and `envelope` before msgspec, with their code as it was. It is
the other side of `bench.wire`, and of every comparison in the tests. Nothing in here is to be
improved.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from aivailable.errors import SchemaError

T = TypeVar("T")
Plain = Any
"""None, bool, int, float, str, bytes, list and dict[str, Plain]."""

INT_MAX = 2**63 - 1

_Encode = Callable[[Any], Plain]
_Decode = Callable[[Plain, str], Any]
_SINCE = "since"


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


def to_plain(value: Any) -> Plain:
    """A dataclass (or tuple, mapping, scalar) as plain values.

    Mappings are sorted by key, so that equal values give equal bytes; but what is declared as Any
    belongs to a client (a JSON schema, template arguments) and keeps the order it came in.
    """
    return _to_plain(value, ordered=False)


def from_plain(kind: type[T], value: Plain, path: str = "", level: int = INT_MAX) -> T:
    """Rebuild a `kind` from plain values. Fields that came after `level` are ignored, as by the
    code of that time. Raises SchemaError naming the first wrong path."""
    return cast(T, _decoder(cast(Any, kind), level)(value, path or kind.__name__))


def pack(value: Any) -> bytes:
    """Canonical msgpack: the same value gives the same bytes on every node."""
    return cast(bytes, msgpack.packb(to_plain(value), use_bin_type=True))


def unpack(kind: type[T], data: bytes) -> T:
    """Decode canonical msgpack into a `kind`. Raises SchemaError on anything else."""
    return from_plain(kind, unpack_plain(data))


def unpack_plain(data: bytes) -> Plain:
    """Decode msgpack with string keys only; a length can never exceed the input's own size."""
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise SchemaError(f"not msgpack: {error}") from error


def _to_plain(value: Any, *, ordered: bool) -> Plain:
    if value is None or isinstance(value, (bool, int, float, bytes)):
        return value
    if isinstance(value, str):
        return str(value)
    if dataclasses.is_dataclass(value):
        kind = cast(type, type(value))
        late = late_fields(kind)
        return {
            name: _to_plain(getattr(value, name), ordered=free)
            for name, free in _fields(kind)
            if name not in late or getattr(value, name) != late[name][1]
        }
    if isinstance(value, Mapping):
        keys = value if ordered else sorted(value)
        return {key: _to_plain(value[key], ordered=ordered) for key in keys}
    if isinstance(value, (tuple, list)):
        return [_to_plain(item, ordered=ordered) for item in value]
    raise TypeError(f"cannot encode {type(value).__name__}")


@lru_cache(maxsize=512)
def _fields(kind: type) -> tuple[tuple[str, bool], ...]:
    """Each field's name and whether its mappings keep their order."""
    hints = get_type_hints(kind)
    return tuple((field.name, _has_any(hints[field.name])) for field in dataclasses.fields(kind))


def _has_any(annotation: Any) -> bool:
    return annotation is Any or any(_has_any(part) for part in get_args(annotation))


@lru_cache(maxsize=2048)
def _decoder(annotation: Any, level: int) -> _Decode:
    """One checked decoder for an annotation at a level, compiled once."""
    scalar = _scalar_decoder(annotation)
    if scalar is not None:
        return scalar
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _optional_decoder(annotation, args, level)
    if origin is Literal:
        return _literal_decoder(args)
    if origin is tuple:
        return _tuple_decoder(args, level)
    if origin in (Mapping, dict):
        return _mapping_decoder(args, level)
    if isinstance(annotation, type) and issubclass(annotation, enum.StrEnum):
        return _enum_decoder(annotation)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _dataclass_decoder(annotation, level)
    raise TypeError(f"unsupported annotation {annotation!r}")


def _wrong(path: str, want: str, value: Plain) -> SchemaError:
    return SchemaError(f"{path}: expected {want}, got {type(value).__name__}")


def _scalar_decoder(annotation: Any) -> _Decode | None:
    if annotation is Any:
        return lambda value, path: value
    if annotation is bool:
        return _exactly(bool, "true or false")
    if annotation is str:
        return _exactly(str, "text")
    if annotation is bytes:
        return _exactly(bytes, "bytes")
    if annotation is int:
        return _decode_int
    if annotation is float:
        return _decode_float
    return None


def _exactly(kind: type, name: str) -> _Decode:
    def decode(value: Plain, path: str) -> Any:
        if type(value) is not kind:
            raise _wrong(path, name, value)
        return value

    return decode


def _decode_int(value: Plain, path: str) -> int:
    if type(value) is not int:
        raise _wrong(path, "an integer", value)
    if not -INT_MAX <= value <= INT_MAX:
        raise SchemaError(f"{path}: integer out of range")
    return value


def _decode_float(value: Plain, path: str) -> float:
    if type(value) is float or type(value) is int:
        return float(value)
    raise _wrong(path, "a number", value)


def _optional_decoder(annotation: Any, args: tuple[Any, ...], level: int) -> _Decode:
    inner = [arg for arg in args if arg is not type(None)]
    if len(inner) != 1 or len(inner) == len(args):
        raise TypeError(f"unsupported union {annotation!r}")
    decode_inner = _decoder(inner[0], level)
    return lambda value, path: None if value is None else decode_inner(value, path)


def _literal_decoder(choices: tuple[Any, ...]) -> _Decode:
    def decode(value: Plain, path: str) -> Any:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise SchemaError(f"{path}: expected one of {', '.join(map(repr, choices))}")

    return decode


def _enum_decoder(kind: type[enum.StrEnum]) -> _Decode:
    def decode(value: Plain, path: str) -> Any:
        if type(value) is str:
            try:
                return kind(value)
            except ValueError:
                raise SchemaError(f"{path}: {value[:40]!r} is no {kind.__name__}") from None
        raise _wrong(path, kind.__name__, value)

    return decode


def _tuple_decoder(args: tuple[Any, ...], level: int) -> _Decode:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _decoder(args[0], level)

        def decode_many(value: Plain, path: str) -> Any:
            if not isinstance(value, (list, tuple)):
                raise _wrong(path, "a list", value)
            return tuple(item(entry, f"{path}[{index}]") for index, entry in enumerate(value))

        return decode_many
    items = tuple(_decoder(arg, level) for arg in args)

    def decode_fixed(value: Plain, path: str) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != len(items):
            raise _wrong(path, f"a list of {len(items)}", value)
        return tuple(
            decode(entry, f"{path}[{index}]")
            for index, (decode, entry) in enumerate(zip(items, value, strict=True))
        )

    return decode_fixed


def _mapping_decoder(args: tuple[Any, ...], level: int) -> _Decode:
    if not args or args[0] is not str:
        raise TypeError("only Mapping[str, X] can be encoded")
    decode_value = _decoder(args[1], level)

    def decode(value: Plain, path: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(path, "a map", value)
        for key in value:
            if type(key) is not str:
                raise _wrong(path, "text keys", key)
        return {key: decode_value(entry, f"{path}.{key}") for key, entry in value.items()}

    return decode


def _dataclass_decoder(kind: type, level: int) -> _Decode:
    # The plan is compiled at first use, so that dataclasses may refer to themselves.
    @lru_cache(maxsize=1)
    def plan() -> tuple[tuple[str, _Decode, bool], ...]:
        hints = get_type_hints(kind)
        return tuple(
            (
                field.name,
                _decoder(hints[field.name], level),
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING,
            )
            for field in dataclasses.fields(kind)
            if field.metadata.get(_SINCE, 0) <= level
        )

    def decode(value: Plain, path: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(path, f"a map ({kind.__name__})", value)
        found: dict[str, Any] = {}
        for name, decode_field, required in plan():
            if name in value:
                found[name] = decode_field(value[name], f"{path}.{name}")
            elif required:
                raise SchemaError(f"{path}.{name}: missing")
        try:
            return kind(**found)
        except (ValueError, TypeError) as error:
            raise SchemaError(f"{path}: {error}") from error

    return decode


class Registry:
    """A closed set of message kinds. Decoding never builds anything outside it."""

    def __init__(self, **kinds: type) -> None:
        self._kinds = kinds
        self._names = {kind: name for name, kind in kinds.items()}

    def encode(self, message: Any) -> bytes:
        """Bytes of `[kind, map]`. Raises TypeError for a message outside the registry."""
        name = self._names.get(type(message))
        if name is None:
            raise TypeError(f"{type(message).__name__} is not a message of this registry")
        packed = msgpack.packb([name, to_plain(message)], use_bin_type=True)
        assert isinstance(packed, bytes)
        return packed

    def decode(self, data: bytes) -> Any | None:
        """The message, or None for a kind of a newer version (ignored by rule).

        Raises SchemaError when the bytes are not an envelope or the fields are wrong.
        """
        value = unpack_plain(data)
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
            raise SchemaError("not a [kind, map] envelope")
        kind = self._kinds.get(value[0])
        return None if kind is None else from_plain(kind, value[1], value[0])
