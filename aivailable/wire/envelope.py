"""`[kind, map]` in msgpack: which message a frame holds, decided by a closed registry.

msgspec reads what it can straight into the message. What it refuses, and what it may have taken too
easily, is judged by `wire.schema`, so that there is one verdict and one wording. The quick way
differs in one thing: it does not look into fields that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from aivailable.errors import SchemaError
from aivailable.wire.schema import SORTED, from_plain, pack, shape, unpack_plain

_ARRAY_OF_TWO: Final = 0x92
_TEXT: Final = 0xA0
_TEXT_MAX_CHARS: Final = 31
"""Of a kind's name, so that its length stands in the byte before it."""
_OUT_OF_RANGE: Final = (
    re.compile(rb"\xcf[\x80-\xff]").search,
    re.compile(rb"\xd3\x80\x00{7}").search,
)
"""How integers beyond ±(2^63 - 1) begin. Other bytes may look so, too. (Two, since each begins with
one byte, which is searched for quickly.)"""

_Read = Callable[[bytes], tuple[str, Any]]


def _no_guess(data: bytes) -> tuple[str, Any]:
    raise msgspec.DecodeError


class Registry:
    """A closed set of message kinds. Decoding never builds anything outside it."""

    def __init__(self, **kinds: type) -> None:
        self.kinds: Mapping[str, type] = kinds
        self._names = {kind: name for name, kind in kinds.items()}
        self._direct: dict[type, str] = {}
        """The names of those that msgspec writes as they are."""
        self._readers: dict[bytes, tuple[_Read, bool]] = {}
        """By the bytes that an envelope begins with, for kinds without a client's own objects; and
        whether they hold integers whose range is still to be checked."""
        self._guess: _Read = _no_guess
        """The reader of the last message: as a rule the next one is of the same kind, and a reader
        takes no other."""
        self._prepared = False

    def encode(self, message: Any) -> bytes:
        """Bytes of `[kind, map]`. Raises TypeError for a message outside the registry, and what
        `schema.pack` raises."""
        if not self._prepared:
            self._prepare()
        direct = self._direct.get(type(message))
        if direct is not None:
            return SORTED.encode((direct, message))
        name = self._names.get(type(message))
        if name is None:
            raise TypeError(f"{type(message).__name__} is not a message of this registry")
        return pack((name, message))

    def decode(self, data: bytes) -> Any | None:
        """The message, or None for a kind of a newer version (ignored by rule).

        Raises SchemaError when the bytes are not an envelope or the fields are wrong.
        """
        try:
            return self._guess(data)[1]
        except (msgspec.MsgspecError, RecursionError):
            return self._decode(data)

    def _decode(self, data: bytes) -> Any | None:
        if not self._prepared:
            self._prepare()
        length = (data[1] & _TEXT_MAX_CHARS) + 2 if len(data) > 1 else 0
        known = self._readers.get(data[:length])
        if known is None:
            return self._judge(data)
        read, ints = known
        if ints and any(search(data) is not None for search in _OUT_OF_RANGE):
            return self._judge(data)
        try:
            _, message = read(data)
        except (msgspec.MsgspecError, RecursionError):
            return self._judge(data)
        if not ints:
            self._guess = read
        return message

    def _judge(self, data: bytes) -> Any | None:
        value = unpack_plain(data)
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
            raise SchemaError("not a [kind, map] envelope")
        kind = self.kinds.get(value[0])
        return None if kind is None else from_plain(kind, value[1], value[0])

    def _prepare(self) -> None:
        """At the first message: dataclasses may name each other before they are all there."""
        for name, kind in self.kinds.items():
            if len(name) > _TEXT_MAX_CHARS or not name.isascii():
                raise TypeError(f"{name!r} does not fit the head of an envelope")
            found = shape(kind)
            if found.direct:
                self._direct[kind] = name
            if not found.free:
                head = bytes((_ARRAY_OF_TWO, _TEXT + len(name))) + name.encode()
                typed: Any = tuple[Literal[name], kind]  # type: ignore[valid-type]
                self._readers[head] = (msgspec.msgpack.Decoder(typed).decode, found.ints)
        self._prepared = True
