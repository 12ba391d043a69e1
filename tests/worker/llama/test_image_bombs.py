"""Images made to hurt: more inside than the head says, and hundreds of damaged ones (seeded)."""

from __future__ import annotations

import random
import resource
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from fixtures.seeing import load, seen
from fixtures.tiny_projectors import TINY_JPEG, png, random_projector

from aivailable.errors import RequestError
from aivailable.worker.llama.images import JPEG_BEGINNING, JPEG_SCAN, image_size, with_marks
from aivailable.worker.llama.png import PNG_BEGINNING, png_problem

MIB = 1 << 20
MUTATIONS = 400
GROWTH_MAX_BYTES = 64 * MIB


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def made(
    width: int, height: int, data: bytes, *, depth: int = 8, color: int = 2, laced: int = 0
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, laced)
    return PNG_BEGINNING + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(inflated_bytes: int) -> bytes:
    """An 8 x 8 image with this much in it."""
    writer = zlib.compressobj(9)
    pieces = [writer.compress(bytes(MIB)) for _ in range(inflated_bytes // MIB)]
    return made(8, 8, b"".join([*pieces, writer.flush()]))


def refusal(data: bytes) -> RequestError:
    with pytest.raises(RequestError) as refused:
        with_marks(seen(data), "<M>")
    assert (refused.value.code, refused.value.status) == ("invalid_image", 400)
    return refused.value


def test_an_image_that_inflates_to_more_than_its_size_is_refused_in_little_memory() -> None:
    data = bomb(512 * MIB)
    tracemalloc.start()
    try:
        told = refusal(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "holds more than its size of 200 bytes says" in str(told)
    assert peak_bytes < MIB


def test_what_is_beside_the_size_is_refused() -> None:
    rows = zlib.compress(bytes(8 * (1 + 24)))
    assert png_problem(made(8, 8, rows)) == ""
    assert "damaged" in png_problem(made(8, 9, rows))
    assert "damaged" in png_problem(made(8, 8, rows[:-6]))
    assert "damaged" in png_problem(made(8, 8, rows, depth=3))
    assert "damaged" in png_problem(PNG_BEGINNING + chunk(b"IDAT", rows))
    head = made(8, 8, rows)
    moving = head[:33] + chunk(b"acTL", bytes(8)) + head[33:]
    assert "several frames" in str(refusal(moving))


@pytest.mark.parametrize(
    ("depth", "color", "laced", "size"),
    [
        (1, 0, 0, 5 * 2),
        (4, 3, 0, 5 * 5),
        (16, 6, 0, 5 * (1 + 8 * 8)),
        (8, 0, 1, 2 + 2 + 3 + 2 * 3 + 5 + 3 * 5 + 2 * 9),
    ],
)
def test_rows_of_every_kind(depth: int, color: int, laced: int, size: int) -> None:
    """An image of 8 x 5; laced by Adam7: 1, 1, 2 x 1, 2 x 2, 4 x 1, 4 x 3 and 8 x 2 pixels."""
    for more, expected in ((0, True), (1, False), (-1, False)):
        data = zlib.compress(bytes(size + more))
        problem = png_problem(made(8, 5, data, depth=depth, color=color, laced=laced))
        assert (problem == "") is expected, (more, problem)


def test_scans_and_fill_bytes_of_a_jpeg_are_counted() -> None:
    assert "scans" in str(refusal(TINY_JPEG + JPEG_SCAN * 100))
    assert image_size(JPEG_BEGINNING[:2] + b"\xff" * (2 * MIB)) is None


def mutated(dice: random.Random) -> bytes:
    data = bytearray(dice.choice([png(), png(8, 8, seed=2), TINY_JPEG]))
    for _ in range(dice.randint(1, 6)):
        kind, at = dice.randrange(4), dice.randrange(len(data))
        if kind == 0:
            data[at] = dice.randrange(256)
        elif kind == 1:
            del data[at : at + dice.randint(1, 40)]
        elif kind == 2:
            data[at:at] = data[at : at + dice.randint(1, 40)] * dice.randint(1, 5)
        else:
            data[at : at + 4] = struct.pack(">I", dice.choice([0, 1, 0xFFFF, 1 << 31, 2**32 - 1]))
        if not data:
            break
    return bytes(data)


def test_hundreds_of_damaged_images_are_refused_or_seen(tmp_path: Path) -> None:
    """With the real decoder: a refusal with its code or a picture, and no more memory."""
    pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")
    from aivailable.worker.llama.engine import LlamaEngine

    given = load(projector=str(random_projector(tmp_path)), threads="1")
    engine = LlamaEngine(given, lambda phase, fraction: None)
    vision: Any = engine._vision
    dice = random.Random("damaged images")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    refused = 0
    for _ in range(MUTATIONS):
        try:
            _, images = with_marks(seen(mutated(dice)), "<M>")
            for data in images:
                vision.picture(data)
        except RequestError as error:
            assert error.code == "invalid_image"  # noqa: PT017
            refused += 1
    assert MUTATIONS // 2 < refused < MUTATIONS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GROWTH_MAX_BYTES
