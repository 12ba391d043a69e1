"""The sequences in llama.cpp's memory: cut, shared, saved and restored.

Owns: every llama_memory_* and llama_state_seq_* call. It must not know who uses a sequence
(sequences does). Implements sequences.Caches.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from typing import Any, Final

from aivailable.errors import WorkerError
from aivailable.worker.llama.mrope_positions import Grid, MropePositions

STATE_MAX_BYTES: Final = 1 << 30
STATE_MAGIC: Final = b"AIVSEQ1\0"
_HEAD: Final = struct.Struct(">8s16sQ")
"""Magic, digest of what the state belongs to, number of tokens."""


class StateRefused(WorkerError):
    """A saved sequence is too large, or not of this build, model and KV type."""


class LlamaCache:
    """`window`: tokens a sliding-window layer sees, 0 = all. `identity` names everything that a
    saved state depends on: engine build, model file, KV type."""

    def __init__(self, library: Any, context: Any, model: Any, window: int, identity: str) -> None:
        self._library, self._context = library, context
        self._memory = library.llama_get_memory(context)
        self._window = window
        self.recurrent = bool(
            library.llama_model_is_recurrent(model) or library.llama_model_is_hybrid(model)
        )
        self._identity = hashlib.blake2b(identity.encode(), digest_size=16).digest()

    def length(self, slot: int) -> int:
        """Tokens up to the last one cached."""
        return int(self._library.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def trim(self, slot: int, length: int) -> int:
        """Keep the first `length` tokens of a slot, or none."""
        if self.reach(slot, length) and self.cut(slot, length):
            return length
        self.cut(slot, 0)
        return 0

    def fork(self, source: int, target: int, length: int) -> int:
        """Make `target` the first `length` tokens of `source`; their cells become common."""
        self.cut(target, 0)
        if not self.reach(source, length):
            return 0
        self.share(source, target, length)
        return self.trim(target, length)

    def reach(self, slot: int, length: int) -> bool:
        """Whether the token after the first `length` finds what it looks at: a sliding window may
        have dropped it, and a recurrent state is that of its last token only."""
        if length <= 0:
            return False
        held = self.length(slot)
        if held < length or (self.recurrent and held != length):
            return False
        return self.sees(slot, length)

    def cut(self, slot: int, position: int) -> bool:
        """Remove the cells from this position on; False when llama.cpp cannot."""
        begin = position if position > 0 else -1
        return bool(self._library.llama_memory_seq_rm(self._memory, slot, begin, -1))

    def share(self, source: int, target: int, position: int) -> None:
        """The cells before this position become those of an empty `target` too."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, position)

    def sees(self, slot: int, position: int) -> bool:
        """Whether all is there that a sliding window shows to a token at this position."""
        if not self._window:
            return True
        first = self._library.llama_memory_seq_pos_min(self._memory, slot)
        return bool(first <= max(0, position - self._window))

    def save(self, slot: int) -> bytes:
        """The slot's tokens as computed numbers. Raises StateRefused when they are too many."""
        size = int(self._library.llama_state_seq_get_size(self._context, slot))
        if size > STATE_MAX_BYTES:
            raise StateRefused(f"a sequence of {size} bytes; {STATE_MAX_BYTES} can be saved")
        buffer = (ctypes.c_uint8 * size)()
        written = int(self._library.llama_state_seq_get_data(self._context, buffer, size, slot))
        head = _HEAD.pack(STATE_MAGIC, self._identity, self.length(slot))
        return head + memoryview(buffer)[:written].tobytes()

    def restore(self, slot: int, state: bytes) -> int:
        """Fill an empty slot; returns its tokens. Raises StateRefused; then the slot is empty."""
        if len(state) < _HEAD.size or len(state) > STATE_MAX_BYTES + _HEAD.size:
            raise StateRefused(f"{len(state)} bytes are no saved sequence")
        magic, identity, length = _HEAD.unpack_from(state)
        if magic != STATE_MAGIC or identity != self._identity:
            raise StateRefused("the sequence was saved by another engine, model or KV type")
        self.trim(slot, 0)
        body = (ctypes.c_uint8 * (len(state) - _HEAD.size)).from_buffer_copy(state, _HEAD.size)
        read = self._library.llama_state_seq_set_data(self._context, body, len(body), slot)
        if read != len(body) or self.length(slot) != length:
            self.trim(slot, 0)
            raise StateRefused("llama.cpp does not take the saved sequence")
        return int(length)


class PlacedCache:
    """A cache in which images may take fewer positions than rows (mrope_positions); lengths are in
    rows. A sequence without such an image goes straight through."""

    def __init__(self, cache: LlamaCache) -> None:
        self._cache = cache
        self._positions: dict[int, MropePositions] = {}

    def holds_image(self, slot: int) -> bool:
        """Whether positions and numbers of rows differ here."""
        return slot in self._positions

    def position(self, slot: int, number: int) -> int:
        """Of the row with this number."""
        positions = self._positions.get(slot)
        return number if positions is None else positions.position(number)

    def open(self, slot: int, first: int, grid: Grid, number: int) -> int:
        """See MropePositions.open."""
        positions = self._positions.get(slot) or MropePositions(first)
        held = positions.open(first, grid, number)
        self._positions[slot] = positions
        return held

    def grow(self, slot: int, length: int) -> None:
        """A slot holds so many rows now."""
        if slot in self._positions:
            self._positions[slot].grow(length)

    def spoil(self, slot: int, length: int) -> None:
        """See MropePositions.spoil."""
        if slot in self._positions:
            self._positions[slot].spoil(length)

    def trim(self, slot: int, length: int) -> int:
        """As sequences.Caches."""
        positions = self._positions.get(slot)
        if positions is None:
            return self._cache.trim(slot, length)
        if self.reach(slot, length) and self._cache.cut(slot, positions.cut(length)):
            if not positions:
                del self._positions[slot]
            return length
        del self._positions[slot]
        self._cache.cut(slot, 0)
        return 0

    def fork(self, source: int, target: int, length: int) -> int:
        """As sequences.Caches."""
        self._positions.pop(target, None)
        positions = self._positions.get(source)
        if positions is None:
            return self._cache.fork(source, target, length)
        self._cache.cut(target, 0)
        if not self.reach(source, length):
            return 0
        made = positions.copy()
        self._cache.share(source, target, made.cut(length))
        if made:
            self._positions[target] = made
        return length

    def reach(self, slot: int, length: int) -> bool:
        """As sequences.Caches."""
        positions = self._positions.get(slot)
        if positions is None:
            return self._cache.reach(slot, length)
        return 0 < length <= positions.length and self._cache.sees(slot, positions.position(length))
