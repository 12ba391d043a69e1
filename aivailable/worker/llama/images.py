"""Images in messages: found, measured before anything decodes them, or refused with what to do.

Owns: the texts of these refusals, the limits of one image, and the marks that stand for images in a
chat template. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from aivailable.errors import RequestError
from aivailable.wire.limits import IMAGE_MAX_BYTES, IMAGE_MAX_PIXELS, IMAGES_MAX
from aivailable.worker.llama.png import PNG_BEGINNING, png_problem

JPEG_BEGINNING: Final = b"\xff\xd8\xff"
_JPEG_SEGMENT: Final = struct.Struct(">BBH")
_JPEG_FRAME: Final = struct.Struct(">xHH")
JPEG_FILL_MAX_BYTES: Final = 4096
"""Bytes between the segments of a file's head that say nothing."""
JPEG_SCANS_MAX: Final = 64
"""A progressive image goes over all its pixels in each; encoders make about ten."""
JPEG_SCAN: Final = b"\xff\xda"
JPEG_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of a frame header, which has the size (ITU-T T.81, table B.1)."""


def refuse_images(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises RequestError naming the first message with an image."""
    for index, _ in _images(messages):
        raise RequestError(
            400,
            "unsupported_image",
            f"messages[{index}] has an image and this deployment reads text only; leave the "
            "image out, describe it in words, or deploy the model with option projector=FILE",
        )


def with_marks(
    messages: Sequence[Mapping[str, Any]], mark: str
) -> tuple[tuple[Mapping[str, Any], ...], tuple[bytes, ...]]:
    """The messages with a mark where an image was, and the images in their order.

    Raises RequestError for an image that is no PNG or JPEG, too large, or one too many.
    """
    images = []
    found: dict[bytes, int] = {}
    for index, part in _images(messages):
        data = part.get("data")
        if not isinstance(data, bytes):
            raise _wrong(index, "an image comes as the bytes of its file")
        if len(data) > IMAGE_MAX_BYTES:
            raise _wrong(index, f"the image has {len(data)} bytes; {IMAGE_MAX_BYTES} are possible")
        size = image_size(data)
        if size is None:
            raise _wrong(index, "the image is no whole PNG or JPEG file")
        if size[0] * size[1] > IMAGE_MAX_PIXELS:
            raise _wrong(
                index,
                f"the image has {size[0]} x {size[1]} pixels; {IMAGE_MAX_PIXELS} are possible",
            )
        images.append(data)
        found[data] = index
    if len(images) > IMAGES_MAX:
        raise RequestError(
            400, "invalid_image", f"{len(images)} images; one request has at most {IMAGES_MAX}"
        )
    for data, index in found.items():
        # Only now, since it takes time: each one once, and none of a request that is too much.
        problem = png_problem(data) if data.startswith(PNG_BEGINNING) else jpeg_problem(data)
        if problem:
            raise _wrong(index, problem)
    if not images:
        return tuple(messages), ()
    return tuple({**message, "content": _marked(message, mark)} for message in messages), tuple(
        images
    )


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as the file's head says; None when it is no head of a PNG or JPEG. Read
    before any decoder, which would make room for them."""
    size = None
    if data.startswith(PNG_BEGINNING) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        size = (width, height) if data[12:16] == b"IHDR" else None
    elif data.startswith(JPEG_BEGINNING):
        size = _jpeg_size(data)
    return size if size is not None and min(size) > 0 else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at, fill = 2, 0
    while at + 9 <= len(data):
        start, marker, length = _JPEG_SEGMENT.unpack_from(data, at)
        if start != 0xFF:
            return None
        if marker == 0xFF:  # They may fill the space before a marker.
            at += 1
            fill += 1
            if fill > JPEG_FILL_MAX_BYTES:
                return None
            continue
        if marker in JPEG_FRAMES:
            height, width = _JPEG_FRAME.unpack_from(data, at + 4)
            return width, height
        at += 2 + length
    return None


def jpeg_problem(data: bytes) -> str:
    """Why a JPEG would take its decoder too long; "" when it would not."""
    scans = data.count(JPEG_SCAN)
    if scans > JPEG_SCANS_MAX:
        return f"the image has {scans} scans; {JPEG_SCANS_MAX} are possible: save it as baseline"
    return ""


def _images(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for index, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and part.get("type") == "image":
                yield index, part


def _marked(message: Mapping[str, Any], mark: str) -> Any:
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return content
    return [
        {"type": "text", "text": mark}
        if isinstance(part, Mapping) and part.get("type") == "image"
        else part
        for part in content
    ]


def _wrong(index: int, problem: str) -> RequestError:
    return RequestError(400, "invalid_image", f"messages[{index}]: {problem}")
