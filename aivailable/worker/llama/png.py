"""PNG files before a decoder has them: whether they hold what their head says.

Owns: the sizes of a PNG's rows, and inflating its data into nothing to see how much there is. The
decoder (stb_image, inside of llama.cpp) inflates whatever a file holds: 3 MB of zeros make 3 GB.
Pure.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

PNG_BEGINNING: Final = b"\x89PNG\r\n\x1a\n"
INFLATED_AT_ONCE_BYTES: Final = 64 * 1024
CHUNKS_MAX: Final = 100_000
"""Of one file. An encoder writes one for each 8 KiB or more."""
_HEAD: Final = struct.Struct(">IIBBBBB")
_CHUNK: Final = struct.Struct(">I4s")
_CHECK_BYTES: Final = 4
_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""By kind of color: the bits that one channel may have."""
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Adam7: first column, first row, and the steps to the next ones."""
_DAMAGED: Final = "the image is damaged: it cannot be decoded; send it again"
_MOVING: Final = "the image has several frames: send one of them as a still image"


def png_problem(data: bytes) -> str:
    """Why a file with a PNG's beginning is not to be decoded; "" for a good one. Takes the time of
    inflating what its head says, and a few KiB."""
    expected = -1
    whole = 0
    reader = zlib.decompressobj()
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            if expected >= 0:
                return _DAMAGED
            expected = _inflated_bytes(body)
        if kind == b"acTL":
            return _MOVING
        if expected < 0:
            return _DAMAGED
        if kind == b"IDAT":
            try:
                for count in _inflated(reader, body):
                    whole += count
                    if whole > expected:
                        return f"the image holds more than its size of {expected} bytes says"
            except zlib.error:
                return _DAMAGED
    return "" if whole == expected else _DAMAGED


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each chunk, up to the end or to what is none."""
    view = memoryview(data)
    at = len(PNG_BEGINNING)
    for _ in range(CHUNKS_MAX):
        if at + _CHUNK.size > len(data):
            return
        length, kind = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        if kind == b"IEND" or at + length > len(data):
            return
        yield kind, view[at : at + length]
        at += length + _CHECK_BYTES


def _inflated(reader: zlib._Decompress, body: memoryview) -> Iterator[int]:
    """The sizes of what comes of a chunk, in small pieces that are thrown away."""
    rest: bytes | memoryview = body
    while True:
        count = len(reader.decompress(rest, INFLATED_AT_ONCE_BYTES))
        yield count
        rest = reader.unconsumed_tail
        if reader.eof or (not rest and count < INFLATED_AT_ONCE_BYTES):
            return


def _inflated_bytes(head: memoryview) -> int:
    """What all rows of this image take with their filters' bytes; -1 for no PNG's head."""
    if len(head) != _HEAD.size:
        return -1
    width, height, depth, color, packing, filters, laced = _HEAD.unpack(head)
    if depth not in _DEPTHS.get(color, ()) or packing or filters or laced > 1:
        return -1
    bits = depth * _CHANNELS[color]
    if not laced:
        return int(height * (1 + (width * bits + 7) // 8))
    total = 0
    for left, top, across, down in _PASSES:
        columns = (width - left + across - 1) // across
        rows = (height - top + down - 1) // down
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
