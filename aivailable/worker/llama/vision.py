"""Images beside text in one context: laid out, encoded once, decoded as rows of numbers.

Owns: the ids that stand for the rows of an image, the encoded rows, and the steps that hold some.
It must not lay images out (layout) nor schedule: a row is an id beyond the vocabulary, in the
job's tokens like any other, so that prefix reuse, trims and budgets count it without knowing.

An image is encoded when its first row is decoded, not when its request arrives: a long line of
requests must not stall the running ones. Ids are given once and never again, the same to the same
image while it is known, so that equal ids mean equal rows. llama.cpp takes either tokens or rows
in one decode; a step with both becomes several. Where an image takes fewer positions than rows
(M-RoPE) the steps of its sequence are given the positions here; nobody else knows of them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from aivailable.errors import RequestError
from aivailable.wire.generation import IMAGE_ROW_ID
from aivailable.worker.chat import Piece
from aivailable.worker.engine import CellsExhausted, DecodeFailed, LoadRefused, Logits, Part
from aivailable.worker.llama.cache import LlamaCache, PlacedCache
from aivailable.worker.llama.images import image_size
from aivailable.worker.llama.layout import TEXT_CHUNK, Chunks, bitmap_of, layout
from aivailable.worker.llama.mrope_positions import Grid, Positions, line
from aivailable.worker.llama.projector import ProjectorHandle
from aivailable.worker.llama.tokens import LlamaTokens

ROWS_MAX_BYTES: Final = 128 << 20
"""Encoded images in main memory, the last ones used; others are encoded again when needed."""
KNOWN_MAX: Final = 4096
"""Images whose ids are remembered after their requests."""
TRIAL_SIDE: Final = 512
"""An image of this many pixels square is laid out at load, to see that its rows fit."""

Rows = npt.NDArray[np.float32]
Run = Callable[[Any, int], list[Logits]]
"""One llama_decode of a native batch with this many outputs. Raises DecodeFailed."""


@dataclass(eq=False)
class Picture:
    """One image of a request. Its rows have the ids from `first` on, a grid for each chunk."""

    digest: bytes
    data: bytes
    width: int
    height: int
    grids: tuple[Grid, ...]
    first: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each chunk."""
        return tuple(grid.rows for grid in self.grids)

    @property
    def ids(self) -> range:
        """Of all its rows."""
        return range(self.first, self.first + sum(self.sizes))

    def chunk_of(self, token: int) -> tuple[int, int]:
        """The chunk that a row belongs to, and the id of that chunk's first row."""
        first = self.first
        for index, size in enumerate(self.sizes):
            if token < first + size:
                return index, first
            first += size
        raise IndexError(token)


class LlamaVision:
    """See the module's docstring. `run` decodes a native batch, `decode_tokens` parts of tokens.
    Raises LoadRefused when its images do not fit one decode of `ubatch` tokens."""

    def __init__(
        self,
        library: Any,
        context: Any,
        handle: ProjectorHandle,
        cache: LlamaCache,
        *,
        vocabulary: int,
        width: int,
        batch: int,
        ubatch: int,
        chunk: int,
        run: Run,
        decode_tokens: Callable[[Sequence[Part]], list[Logits]],
    ) -> None:
        self._library, self._context, self._cache = library, context, PlacedCache(cache)
        self._handle, self._media = handle, handle.media
        self._vocabulary = vocabulary
        self._width = width
        self._ubatch, self._chunk = ubatch, chunk
        self._batch = _RowBatch(library, max(batch, ubatch), width)
        self._run, self._decode_tokens = run, decode_tokens
        self._lock = threading.Lock()
        """Of `_live`: images are looked at beside the step loop, and their rows are asked for in
        it."""
        self._live: WeakValueDictionary[bytes, Picture] = WeakValueDictionary()
        self._firsts: OrderedDict[bytes, int] = OrderedDict()
        self._next = vocabulary
        self._rows: OrderedDict[tuple[bytes, int], Rows] = OrderedDict()
        self._open: tuple[bytes, Chunks] | None = None
        """The image that is being encoded, cut and scaled for its encoder."""
        self._ahead: dict[int, tuple[int, int]] = {}
        """Sequence → tokens from, to which an uncut image fills it, further than was asked for."""
        self.reach = self._cache.reach
        if handle.mrope and cache.recurrent:
            raise LoadRefused(
                "unsupported",
                "engine option projector: this model places images by M-RoPE and keeps a state "
                "that cannot be cut back to before one; deploy it without its projector",
            )
        try:
            layout(handle, TRIAL_SIDE, 2 * TRIAL_SIDE, ubatch, check=True)
        except RequestError as error:
            raise LoadRefused("unsupported", f"engine option projector: {error}") from error

    @property
    def mark(self) -> str:
        """Stands for an image in a prompt's text."""
        return self._handle.mark

    def picture(self, data: bytes) -> Picture:
        """An image of a request, decoded once to see that it is whole. Raises RequestError."""
        digest = hashlib.blake2b(data, digest_size=16).digest()
        known = self._live.get(digest)
        if known is not None:
            return known
        size = image_size(data)
        bitmap = bitmap_of(self._handle, data, placeholder=True)
        media = self._media
        whole = bool(bitmap) and size == (
            media.mtmd_bitmap_get_nx(bitmap),
            media.mtmd_bitmap_get_ny(bitmap),
        )
        if bitmap:
            media.mtmd_bitmap_free(bitmap)
        if size is None or not whole:
            raise RequestError(
                400, "invalid_image", "the image is damaged: it cannot be decoded; send it again"
            )
        grids = layout(self._handle, *size, self._ubatch)
        with self._lock:
            first = self._firsts.pop(digest, None)
            if first is None:
                first = self._next
                self._next += sum(grid.rows for grid in grids)
            self._firsts[digest] = first
            if len(self._firsts) > KNOWN_MAX:
                self._firsts.popitem(last=False)
            made = self._live[digest] = Picture(digest, data, *size, grids, first)
            return made

    def tokenize(
        self,
        pieces: Sequence[Piece],
        pictures: Sequence[Picture],
        tokens: LlamaTokens,
    ) -> tuple[int, ...]:
        """The ids of a prompt with marks, each replaced by the next picture's rows and what the
        model wants around them. Raises RequestError."""
        marks = sum(piece.text.count(self.mark) for piece in pieces)
        if marks != len(pictures):
            raise RequestError(
                400,
                "template_error",
                f"the model's chat template shows {marks} of "
                f"{len(pictures)} images: it cannot write this order of messages",
            )
        ids = [*tokens.begin_ids(pieces)]
        rest = list(pictures)
        for piece in pieces:
            count = piece.text.count(self.mark)
            if count:
                ids += self._marked_ids(piece.text, rest[:count])
                rest = rest[count:]
            else:
                ids += tokens.following(piece, ids[-1] if ids else None)
        return tuple(ids)

    def _marked_ids(self, text: str, pictures: Sequence[Picture]) -> list[int]:
        rows = iter([token for picture in pictures for token in picture.ids])
        ids: list[int] = []
        sizes = [(picture.width, picture.height) for picture in pictures]
        with Chunks(self._handle, text, sizes=sizes, special=False) as chunks:
            for chunk in chunks.all():
                if self._media.mtmd_input_chunk_get_type(chunk) == TEXT_CHUNK:
                    count = ctypes.c_size_t()
                    tokens = self._media.mtmd_input_chunk_get_tokens_text(
                        chunk, ctypes.byref(count)
                    )
                    ids.extend(tokens[: count.value])
                else:
                    size = self._media.mtmd_input_chunk_get_n_tokens(chunk)
                    ids.extend(next(rows) for _ in range(size))
        return ids

    def filled(self, ids: Sequence[int], pictures: Sequence[Picture]) -> tuple[int, ...]:
        """A continuation's prompt: its tokens, and the images' rows where the first worker had
        them. Raises RequestError when they do not fit."""
        rows = [token for picture in pictures for token in picture.ids]
        if sum(token == IMAGE_ROW_ID for token in ids) != len(rows) or any(
            token != IMAGE_ROW_ID and not 0 <= token < self._vocabulary for token in ids
        ):
            raise RequestError(400, "invalid_request", "prompt_ids do not fit the images")
        following = iter(rows)
        return tuple(next(following) if token == IMAGE_ROW_ID else token for token in ids)

    def concerns(self, parts: Sequence[Part]) -> bool:
        """Whether a step holds rows of images, or tokens behind some that shift positions."""
        return any(
            max(part.tokens) >= self._vocabulary or self._cache.holds_image(part.slot)
            for part in parts
        )

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        """One step, in as many decodes as it takes; what is tokens at its end goes together.

        Raises DecodeFailed; the caches of the parts' slots are as before then, or undefined when
        it is not CellsExhausted.
        """
        rows: list[list[Logits]] = [[] for _ in parts]
        last: list[tuple[int, Part]] = []
        begun: list[Part] = []
        try:
            for index, part in enumerate(parts):
                runs = self._runs(part)
                for run in runs:
                    if run.tokens[0] >= self._vocabulary:
                        begun.append(part)
                        rows[index] = self._decode_rows(run)
                    elif run is runs[-1]:
                        last.append((index, run))
                    else:
                        begun.append(part)
                        self._decode_texts((run,))
            if last:
                # After all others: its rows lie in memory that the next decode writes.
                together = self._decode_texts([run for _, run in last])
                remaining = iter(together)
                for index, run in last:
                    rows[index] = [next(remaining) for _ in range(run.rows)]
        except DecodeFailed as error:
            if not isinstance(error, CellsExhausted):
                for part in parts:
                    self._cache.spoil(part.slot, part.position)
            for part in begun:
                if self.trim(part.slot, part.position) != part.position:
                    raise DecodeFailed("a step with images failed half-way") from None
            raise
        return [row for found in rows for row in found]

    def trim(self, slot: int, length: int) -> int:
        """As sequences.Caches."""
        kept = self._cache.trim(slot, length)
        if self._ahead.get(slot, (0, 0))[1] > kept:
            del self._ahead[slot]
        return kept

    def fork(self, source: int, target: int, length: int) -> int:
        """As sequences.Caches."""
        self._ahead.pop(target, None)
        return self._cache.fork(source, target, length)

    def _decode_texts(self, runs: Sequence[Part]) -> list[Logits]:
        """Tokens only, at the positions that their sequences' images leave them."""
        placed = [
            dataclasses.replace(run, position=self._cache.position(run.slot, run.position))
            if self._cache.holds_image(run.slot)
            else run
            for run in runs
        ]
        rows = self._decode_tokens(placed)
        for run in runs:
            self._cache.grow(run.slot, run.position + len(run.tokens))
        return rows

    def _runs(self, part: Part) -> list[Part]:
        """The part cut where tokens and rows meet, and where the chunks of images do."""
        runs: list[Part] = []
        tokens, start = part.tokens, 0
        while start < len(tokens):
            end = start + 1
            if tokens[start] < self._vocabulary:
                while end < len(tokens) and tokens[end] < self._vocabulary:
                    end += 1
            else:
                picture = self._picture_of(tokens[start])
                index, first = picture.chunk_of(tokens[start])
                end = min(len(tokens), start + first + picture.sizes[index] - tokens[start])
            runs.append(
                dataclasses.replace(
                    part,
                    tokens=tokens[start:end],
                    position=part.position + start,
                    wants_logits=part.wants_logits and end == len(tokens),
                    drafted=part.drafted if end == len(tokens) else 0,
                )
            )
            start = end
        return runs

    def _decode_rows(self, run: Part) -> list[Logits]:
        picture = self._picture_of(run.tokens[0])
        index, first = picture.chunk_of(run.tokens[0])
        rows = self._encoded(picture, index)
        offset = run.tokens[0] - first
        if self._handle.mrope:
            return self._decode_placed(run, offset, rows, picture.grids[index])
        if not self._handle.whole:
            piece = rows[offset : offset + len(run.tokens)]
            self._batch.fill(piece, run.slot, line(run.position, len(piece)), run.wants_logits)
            return self._run_rows(run.wants_logits)
        begin, end = run.position - offset, run.position - offset + len(rows)
        if run.wants_logits:
            raise DecodeFailed("the prompt ends inside an image")
        if self._ahead.get(run.slot) == (begin, end):
            return []
        if offset and self.trim(run.slot, begin) != begin:
            raise DecodeFailed("the beginning of an image has left the cache")
        self._batch.fill(rows, run.slot, line(begin, len(rows)), False)
        self._library.llama_set_causal_attn(self._context, False)
        try:
            self._run(self._batch.native, 0)
        finally:
            self._library.llama_set_causal_attn(self._context, True)
        self._ahead[run.slot] = (begin, end)
        return []

    def _decode_placed(self, run: Part, offset: int, rows: Rows, grid: Grid) -> list[Logits]:
        """Rows that stand in lines and columns at one position. A cut goes back to the first of
        them: those that are missing since then are decoded before."""
        first = run.position - offset
        try:
            held = self._cache.open(run.slot, first, grid, run.position)
        except ValueError as error:
            raise DecodeFailed(f"the beginning of an image has left the cache: {error}") from error
        position = self._cache.position(run.slot, first)
        found: list[Logits] = []
        stop = offset + len(run.tokens)
        while held < stop:
            end = min(held + self._chunk, stop)
            wanted = run.wants_logits and end == stop
            places = grid.laid_out(position, held, end)
            self._batch.fill(rows[held:end], run.slot, places, wanted)
            found = self._run_rows(wanted)
            self._cache.grow(run.slot, first + end)
            held = end
        return found

    def _run_rows(self, wanted: bool) -> list[Logits]:
        return [row.copy() for row in self._run(self._batch.native, int(wanted))]

    def _picture_of(self, token: int) -> Picture:
        with self._lock:
            known = list(self._live.values())
        for picture in known:
            if token in picture.ids:
                return picture
        raise DecodeFailed(f"no image is known by the id {token}")

    def _encoded(self, picture: Picture, index: int) -> Rows:
        """The chunk's rows, from the cache or computed now. Raises DecodeFailed."""
        key = (picture.digest, index)
        rows = self._rows.pop(key, None)
        if rows is None:
            rows = self._encode(picture, index)
        self._rows[key] = rows
        held = sum(each.nbytes for each in self._rows.values())
        while held > ROWS_MAX_BYTES and len(self._rows) > 1:
            held -= self._rows.popitem(last=False)[1].nbytes
        return rows

    def _encode(self, picture: Picture, index: int) -> Rows:
        media, native = self._media, self._handle.native
        if self._open is None or self._open[0] != picture.digest:
            if self._open is not None:
                self._open[1].close()
                self._open = None
            bitmap = bitmap_of(self._handle, picture.data, placeholder=False)
            if not bitmap:
                raise DecodeFailed("an image could not be decoded again")
            self._open = (
                picture.digest,
                Chunks(self._handle, self.mark, bitmaps=[bitmap], special=False),
            )
        chunk = self._open[1].images()[index]
        if media.mtmd_encode_chunk(native, chunk) != 0:
            raise DecodeFailed("llama.cpp could not encode an image")
        size = picture.sizes[index] * self._width
        address = ctypes.cast(media.mtmd_get_output_embd(native), ctypes.c_void_p).value
        if address is None:
            raise DecodeFailed("llama.cpp computed no rows of an image")
        numbers = (ctypes.c_float * size).from_address(address)
        rows = np.frombuffer(memoryview(numbers), np.float32).copy()
        if index == len(picture.sizes) - 1:
            self._open[1].close()
            self._open = None
        return rows.reshape(-1, self._width)


class _RowBatch:
    """A llama_batch of rows instead of tokens, for one sequence."""

    def __init__(self, library: Any, size: int, width: int) -> None:
        self._rows = np.zeros((size, width), np.float32)
        self._positions = np.zeros(4 * size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._slot = np.zeros(1, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._pointers = np.full(size, self._slot.ctypes.data, np.uint64)
        numbers = ctypes.POINTER(ctypes.c_int32)
        self.native = library.llama_batch(
            n_tokens=0,
            token=None,
            embd=self._rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=self._positions.ctypes.data_as(numbers),
            n_seq_id=self._counts.ctypes.data_as(numbers),
            seq_id=ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(numbers)),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, rows: Rows, slot: int, positions: Positions, wants_logits: bool) -> None:
        """Write consecutive rows, with a position or four for each (Grid.laid_out). Raises
        DecodeFailed for too many."""
        count = len(rows)
        if count > len(self._rows):
            raise DecodeFailed(f"{count} rows in one decode; the batch holds {len(self._rows)}")
        self._rows[:count] = rows
        self._positions[: len(positions)] = positions
        self._slot[0] = slot
        self._wanted[:count] = 0
        self._wanted[count - 1] = wants_logits
        self.native.n_tokens = count
