"""Images before anything decodes them: their sizes, their limits, the marks in their place."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from fixtures.tiny_projectors import TINY_JPEG, png
from hypothesis import given
from hypothesis import strategies as st

from aivailable.errors import RequestError
from aivailable.wire.generation import Generate
from aivailable.wire.limits import IMAGE_MAX_BYTES, IMAGES_MAX
from aivailable.wire.prefixes import digests
from aivailable.worker.llama.images import JPEG_BEGINNING, PNG_BEGINNING, image_size, with_marks


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def image(data: Any) -> dict[str, Any]:
    return {"type": "image", "data": data}


def test_sizes_come_from_the_head() -> None:
    assert image_size(png(40, 30)) == (40, 30)
    assert image_size(TINY_JPEG) == (4, 3)
    assert image_size(png(0, 3)) is None
    assert image_size(b"GIF89a") is None
    assert image_size(TINY_JPEG[:100]) is None


@given(st.sampled_from([PNG_BEGINNING, JPEG_BEGINNING]), st.binary(max_size=200))
def test_any_bytes_have_a_size_or_none(beginning: bytes, rest: bytes) -> None:
    size = image_size(beginning + rest)
    assert size is None or min(size) > 0


def test_marks_keep_the_order_of_text_and_images() -> None:
    first, second = png(seed=1), png(seed=2)
    text = {"type": "text", "text": "between"}
    messages, images = with_marks(
        ({"role": "system", "content": "S"}, user(image(first), text, image(second))), "<M>"
    )
    assert images == (first, second)
    assert messages[0]["content"] == "S"
    assert [part["text"] for part in messages[1]["content"]] == ["<M>", "between", "<M>"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([image("text")], "the bytes of its file"),
        ([image(PNG_BEGINNING + bytes(IMAGE_MAX_BYTES))], f"{IMAGE_MAX_BYTES} are possible"),
        ([image(png(9000, 2)[:16] + struct.pack(">II", 9000, 9000))], "9000 x 9000 pixels"),
        ([image(b"RIFF")], "no whole PNG or JPEG"),
        ([image(png())] * (IMAGES_MAX + 1), f"at most {IMAGES_MAX}"),
    ],
)
def test_what_is_too_much_is_refused(parts: list[Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        with_marks((user(*parts),), "<M>")
    assert refused.value.code == "invalid_image"
    assert said in str(refused.value)


def test_another_image_is_another_beginning() -> None:
    one, other = (
        digests(Generate("r", "d", messages=(user(image(png(seed=seed))),))) for seed in (1, 2)
    )
    assert one != other
