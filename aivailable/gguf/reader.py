"""The raw structure of a GGUF header: key/values and tensor descriptions, every length checked.

Owns: the format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3,
little-endian), and limits for the header as a whole: what it may take of memory and time. It must
not know what the keys mean (header does) nor touch weights. Token arrays are skipped, not read:
14–40 ms a file instead of seconds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

from aivailable.errors import GgufError
from aivailable.gguf.tensors import TENSOR_TYPES

Value: TypeAlias = int | float | bool | str | tuple[int | float | bool, ...] | None
"""None stands for an array that was skipped."""

KEYS_MAX: Final = 1 << 14
TENSORS_MAX: Final = 1 << 17
KEY_MAX_BYTES: Final = (1 << 16) - 1
STRING_MAX_BYTES: Final = 4 << 20
ARRAY_MAX_ITEMS: Final = 8 << 20
KEPT_MAX_BYTES: Final = 16 << 20
"""Of all texts that are kept, together. The longest real ones are chat templates, some 20 KiB."""
TEXTS_SKIPPED_MAX: Final = 2 << 20
"""Texts in all arrays, together. The largest vocabularies have 262,144 tokens and about twice as
many merges. Each costs a step of a loop, also an empty one."""
ARRAY_KEPT_MAX_ITEMS: Final = 4096
"""Arrays by layer are kept; token tables are longer and are skipped."""
ARRAY_DEPTH_MAX: Final = 2
TENSOR_MAX_VALUES: Final = 1 << 50
ALIGNMENT_DEFAULT_BYTES: Final = 32
ALIGNMENT_MAX_BYTES: Final = 1 << 16
_PREFIX: Final = struct.Struct("<4sIQQ")
_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING: Final = 8
_ARRAY: Final = 9
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_ARRAY_HEAD: Final = struct.Struct("<IQ")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's description; `offset` is from the beginning of the data section."""

    name: str
    dimensions: tuple[int, ...]
    type_id: int
    offset: int
    size_bytes: int

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        count = 1
        for dimension in self.dimensions:
            count *= dimension
        return count


@dataclass(frozen=True, slots=True)
class Structure:
    """A header as it lies in the file."""

    version: int
    values: dict[str, Value]
    tensors: dict[str, Tensor]
    expected_bytes: int
    """Where the last tensor ends: a shorter file is truncated."""


class MoreNeeded(Exception):
    """The header goes on behind the bytes that were given."""


class Reader:
    """Walks over the first bytes of one file."""

    def __init__(self, data: bytes, label: str, size_bytes: int | None = None) -> None:
        """`label` names the file in errors, `size_bytes` is its length; None: `data` is all."""
        self._data = memoryview(data)
        self._given = len(self._data)
        self._size = self._given if size_bytes is None else size_bytes
        self._label = label
        self._at = 0
        self._kept_bytes = 0
        self._skipped = 0

    def structure(self) -> Structure:
        """Read everything before the weights. Raises GgufError naming file and byte offset, and
        MoreNeeded when `data` ends before the header does."""
        try:
            return self._structure()
        finally:
            self._data.release()

    def _structure(self) -> Structure:
        if self._size < _PREFIX.size:
            raise self.wrong(f"{self._size} bytes are too few for a GGUF file")
        magic, version, tensors, keys = _PREFIX.unpack_from(self._data)
        if magic != b"GGUF":
            raise self.wrong("not a GGUF file: it does not begin with 'GGUF'")
        if version not in (2, 3):
            raise self.wrong(
                f"GGUF version {version} is not supported (2 and 3 are); convert the model again"
            )
        if keys > KEYS_MAX or tensors > TENSORS_MAX:
            raise self.wrong(f"{keys} keys and {tensors} tensors are not plausible")
        self._at = _PREFIX.size
        values: dict[str, Value] = {}
        for _ in range(keys):
            key = self._string(KEY_MAX_BYTES)
            if key in values:
                raise self.wrong(f"the key {key[:80]!r} occurs twice")
            values[key] = self._value(self._unsigned(_U32), 0)
        alignment = self._alignment(values)
        described: dict[str, Tensor] = {}
        end = 0
        for _ in range(tensors):
            tensor = self._tensor()
            if tensor.name in described:
                raise self.wrong(f"the tensor {tensor.name[:80]!r} occurs twice")
            if tensor.offset != end:
                # llama.cpp demands the same: tensors follow each other, padded.
                raise self.wrong(
                    f"tensor {tensor.name[:80]!r} begins at data byte {tensor.offset}, not "
                    f"{end}: the file is damaged, copy it again"
                )
            end += -(-tensor.size_bytes // alignment) * alignment
            described[tensor.name] = tensor
        data_offset = -(-self._at // alignment) * alignment
        # The last tensor's own padding may be missing.
        last = next(reversed(described.values()), None)
        size = 0 if last is None else last.offset + last.size_bytes
        return Structure(version, values, described, data_offset + size)

    def wrong(self, problem: str) -> GgufError:
        """An error that names the file and how far it was read."""
        return GgufError(f"{self._label}: {problem} (at byte {self._at})")

    def _need(self, count: int) -> None:
        if count > self._size - self._at:
            raise self.wrong(
                f"the header wants {count} more bytes, {self._size - self._at} are left: "
                "the file is truncated or damaged; copy it again"
            )
        if count > self._given - self._at:
            raise MoreNeeded

    def _unsigned(self, form: struct.Struct) -> int:
        self._need(form.size)
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        assert isinstance(value, int)
        return value

    def _string(self, limit_bytes: int) -> str:
        length = self._unsigned(_U64)
        if length > limit_bytes:
            raise self.wrong(f"a text of {length} bytes; at most {limit_bytes} are allowed")
        self._need(length)
        self._kept_bytes += length
        if self._kept_bytes > KEPT_MAX_BYTES:
            raise self.wrong(f"more than {KEPT_MAX_BYTES} bytes of texts: the file is damaged")
        text = bytes(self._data[self._at : self._at + length])
        self._at += length
        return text.decode("utf-8", "replace")

    def _value(self, kind: int, depth: int) -> Value:
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            self._need(scalar.size)
            value: int | float | bool = scalar.unpack_from(self._data, self._at)[0]
            self._at += scalar.size
            return value
        if kind == _STRING:
            return self._string(STRING_MAX_BYTES)
        if kind == _ARRAY and depth < ARRAY_DEPTH_MAX:
            return self._array(depth)
        raise self.wrong(f"value type {kind} is unknown")

    def _array(self, depth: int) -> Value:
        self._need(_ARRAY_HEAD.size)
        kind, count = _ARRAY_HEAD.unpack_from(self._data, self._at)
        self._at += _ARRAY_HEAD.size
        if count > ARRAY_MAX_ITEMS:
            raise self.wrong(f"an array of {count} items; at most {ARRAY_MAX_ITEMS} are allowed")
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            length = count * scalar.size
            self._need(length)
            at, self._at = self._at, self._at + length
            if count > ARRAY_KEPT_MAX_ITEMS:
                return None
            return tuple(item for (item,) in scalar.iter_unpack(self._data[at : at + length]))
        if kind == _STRING:
            self._skip_strings(count)
            return None
        if count > ARRAY_KEPT_MAX_ITEMS:
            raise self.wrong(f"{count} nested arrays; at most {ARRAY_KEPT_MAX_ITEMS} are allowed")
        for _ in range(count):
            self._value(kind, depth + 1)
        return None

    def _skip_strings(self, count: int) -> None:
        # The hot loop: some hundred thousand tokens a file.
        self._skipped += count
        if self._skipped > TEXTS_SKIPPED_MAX:
            raise self.wrong(f"more than {TEXTS_SKIPPED_MAX} texts in arrays: the file is damaged")
        self._need(count * _U64.size)
        at, data, size, read = self._at, self._data, self._given, _U64.unpack_from
        for _ in range(count):
            if at + _U64.size > size:
                self._at = at
                self._need(_U64.size)
            at += read(data, at)[0] + _U64.size
        self._at = min(at, size)
        self._need(at - self._at)

    def _alignment(self, values: dict[str, Value]) -> int:
        alignment = values.get("general.alignment", ALIGNMENT_DEFAULT_BYTES)
        if (
            type(alignment) is not int
            or not 8 <= alignment <= ALIGNMENT_MAX_BYTES
            or alignment & (alignment - 1)
        ):
            raise self.wrong("general.alignment is not a power of two from 8 on")
        return alignment

    def _tensor(self) -> Tensor:
        name = self._string(KEY_MAX_BYTES)
        count = self._unsigned(_U32)
        if not 1 <= count <= 4:
            raise self.wrong(f"tensor {name[:80]!r} has {count} dimensions; 1 to 4 are possible")
        dimensions = tuple(self._unsigned(_U64) for _ in range(count))
        kind = TENSOR_TYPES.get(type_id := self._unsigned(_U32))
        offset = self._unsigned(_U64)
        if kind is None:
            raise self.wrong(
                f"tensor {name[:80]!r} has number format {type_id}, which this version does not "
                "know; get another quantization of the model"
            )
        values = 1
        for dimension in dimensions:
            values *= dimension
            if not 1 <= values <= TENSOR_MAX_VALUES:
                raise self.wrong(f"tensor {name[:80]!r} has impossible dimensions {dimensions}")
        if dimensions[0] % kind.block_values:
            raise self.wrong(
                f"tensor {name[:80]!r}: rows of {dimensions[0]} are not whole {kind.name} blocks "
                f"of {kind.block_values}"
            )
        size = values // kind.block_values * kind.block_bytes
        return Tensor(name, dimensions, type_id, offset, size)
