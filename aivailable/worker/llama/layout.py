"""Images as mtmd lays them out: decoded files, chunks of a text with marks, lines and columns.

Owns: the mtmd calls that compute no rows. It must not know sequences or requests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from aivailable.errors import RequestError
from aivailable.worker.llama.mrope_positions import Grid, Positions, line
from aivailable.worker.llama.projector import ProjectorHandle

NO_FOLDER: Final = b"/dev/null"
"""Where mtmd looks for ffmpeg, which it would start for what is no image."""
IMAGE_CHUNK: Final = 1
TEXT_CHUNK: Final = 0
"""mtmd.h `enum mtmd_input_chunk_type`."""


class Chunks:
    """mtmd's chunks of a text with marks; `close` frees them. Raises RequestError.

    `sizes`: only laid out, for images of so many pixels. `bitmaps`: taken over and freed here.
    """

    def __init__(
        self,
        handle: ProjectorHandle,
        text: str,
        *,
        sizes: Sequence[tuple[int, int]] = (),
        bitmaps: Sequence[Any] = (),
        special: bool,
    ) -> None:
        media = self._media = handle.media
        given = [*bitmaps, *(media.mtmd_bitmap_init(*size, None) for size in sizes)]
        self._native = media.mtmd_input_chunks_init()
        data = text.encode("utf-8", "replace")
        native = media.mtmd_input_text(data, len(data), special, True)
        array = (media.mtmd_bitmap_p_ctypes * len(given))(*given)
        code = media.mtmd_tokenize(
            handle.native, self._native, ctypes.byref(native), array, len(given)
        )
        for bitmap in given:
            media.mtmd_bitmap_free(bitmap)
        if code != 0:
            self.close()
            raise RequestError(400, "invalid_image", "the image does not fit this model's encoder")

    def __enter__(self) -> Chunks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def all(self) -> list[Any]:
        """Every chunk; valid until closed."""
        media = self._media
        count = media.mtmd_input_chunks_size(self._native)
        return [media.mtmd_input_chunks_get(self._native, index) for index in range(count)]

    def images(self) -> list[Any]:
        """The chunks with rows."""
        kind = self._media.mtmd_input_chunk_get_type
        return [chunk for chunk in self.all() if kind(chunk) == IMAGE_CHUNK]

    def close(self) -> None:
        if self._native is not None:
            self._media.mtmd_input_chunks_free(self._native)
            self._native = None


def layout(
    handle: ProjectorHandle, width: int, height: int, ubatch: int, *, check: bool = False
) -> tuple[Grid, ...]:
    """The rows of each chunk of an image of so many pixels. `check`: ask mtmd whether each row
    stands where it is put here. Raises RequestError."""
    with Chunks(handle, handle.mark, sizes=[(width, height)], special=False) as chunks:
        images = chunks.images()
        grids = tuple(_grid(handle, chunk) for chunk in images)
        for chunk, grid in zip(images, grids, strict=True):
            taken = grid.positions if handle.mrope else grid.rows
            if handle.media.mtmd_input_chunk_get_n_pos(chunk) != taken or (
                check and not np.array_equal(_told(handle, chunk), _laid_out(handle, grid))
            ):
                raise RequestError(400, "invalid_image", "it places rows in an unknown order")
    sizes = [grid.rows for grid in grids]
    if not sizes or min(sizes) < 1:
        raise RequestError(400, "invalid_image", "the image is too small for this model")
    if handle.rows and sum(sizes) > handle.rows:
        raise RequestError(
            400,
            "invalid_image",
            f"an image of {width} x {height} pixels has {sum(sizes)} rows, at most {handle.rows} "
            "are possible here: it is too long and narrow",
        )
    if handle.whole and max(sizes) > ubatch:
        raise RequestError(
            400,
            "invalid_image",
            f"an image of {width} x {height} pixels has {max(sizes)} rows, which must be "
            f"decoded at once, and this deployment decodes {ubatch}: "
            "deploy with a larger option ubatch",
        )
    return grids


def _grid(handle: ProjectorHandle, chunk: Any) -> Grid:
    """Lines and columns of a chunk; where they do not matter, one line."""
    size = int(handle.media.mtmd_input_chunk_get_n_tokens(chunk))
    if not handle.mrope:
        return Grid(size, 1)
    image = handle.media.mtmd_input_chunk_get_tokens_image(chunk)
    last = handle.media.mtmd_image_tokens_get_decoder_pos(image, 0, size - 1)
    return Grid(int(last.x) + 1, int(last.y) + 1)


def _laid_out(handle: ProjectorHandle, grid: Grid) -> Positions:
    return grid.laid_out(0, 0, grid.rows) if handle.mrope else line(0, grid.rows)


def _told(handle: ProjectorHandle, chunk: Any) -> Positions:
    """mtmd's own word on the positions of a chunk's rows."""
    image = handle.media.mtmd_input_chunk_get_tokens_image(chunk)
    each = [
        handle.media.mtmd_image_tokens_get_decoder_pos(image, 0, row)
        for row in range(int(handle.media.mtmd_input_chunk_get_n_tokens(chunk)))
    ]
    if not handle.mrope:
        return np.array([at.t for at in each], np.int32)
    columns = [(at.t, at.y, at.x, at.z) for at in each]
    return np.array(columns, np.int32).T.reshape(-1)


def bitmap_of(handle: ProjectorHandle, data: bytes, *, placeholder: bool) -> Any:
    """mtmd's picture of a file, the caller's to free; None when it is damaged."""
    media = handle.media
    options = media.mtmd_helper_init_opt_default()
    options.video_params.ffmpeg_bin_dir = NO_FOLDER
    buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
    return media.mtmd_helper_bitmap_init_from_buf(
        handle.native, buffer, len(data), placeholder, options
    )
