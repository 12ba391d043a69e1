"""`[kind, map]` in msgpack: which message a frame holds, decided by a closed registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from aivailable.errors import SchemaError
from aivailable.wire.schema import from_plain, to_plain, unpack_plain


class Registry:
    """A closed set of message kinds. Decoding never builds anything outside it."""

    def __init__(self, **kinds: type) -> None:
        self.kinds: Mapping[str, type] = kinds
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
        kind = self.kinds.get(value[0])
        return None if kind is None else from_plain(kind, value[1], value[0])
