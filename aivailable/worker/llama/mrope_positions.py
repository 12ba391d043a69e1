"""The positions of a sequence whose images take fewer of them than they have rows (M-RoPE).

Owns: the arithmetic between a row's number in its sequence, which is what everything else counts
in, and its position, by which llama.cpp's memory is cut and shared. Pure.

Source: Wang et al., Qwen2-VL (2024), section 2.1; mtmd.cpp `mtmd_image_tokens_get_decoder_pos` and
`mtmd_image_tokens_get_n_pos`. All rows of an image stand at one time, the position of its first;
each has a line and a column beside it. What follows goes on behind the image's longer side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int32]


def line(position: int, count: int) -> Positions:
    """One position after the other, as ordinary rows have them."""
    return np.arange(position, position + count, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Grid:
    """The rows of one image, line by line."""

    columns: int
    lines: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.columns * self.lines

    @property
    def positions(self) -> int:
        """How many of its sequence's positions it takes."""
        return max(self.columns, self.lines)

    def laid_out(self, position: int, start: int, stop: int) -> Positions:
        """The rows `start` to `stop` of an image that begins at `position`, as llama_batch.pos
        has them for rows: first every time, then every line, column, and a fourth that is 0."""
        rows = np.arange(start, stop, dtype=np.int32)
        found = np.zeros((4, len(rows)), np.int32)
        found[0] = position
        found[1] = position + rows // self.columns
        found[2] = position + rows % self.columns
        return found.reshape(-1)


@dataclass(frozen=True, slots=True)
class _Image:
    """`first`: the number of its first row; `position`: that of all its rows."""

    first: int
    position: int
    grid: Grid

    @property
    def end(self) -> int:
        return self.first + self.grid.rows


class MropePositions:
    """One sequence, in which `length` rows count as held.

    Its cells can be cut by position only, so never inside an image: then `held`, the rows that are
    really there, goes back to the image's first, and what is missing is to be computed again
    before its next row.
    """

    def __init__(self, length: int) -> None:
        """A sequence of this many tokens."""
        self._images: list[_Image] = []
        self.length = self.held = length

    def __bool__(self) -> bool:
        """Whether some row's position is not its number."""
        return bool(self._images)

    def copy(self) -> MropePositions:
        """Another sequence that holds the same."""
        made = MropePositions(self.length)
        made._images, made.held = [*self._images], self.held
        return made

    def position(self, number: int) -> int:
        """Of this row; of the next one where none follows yet."""
        for image in reversed(self._images):
            if number >= image.end:
                return image.position + image.grid.positions + number - image.end
            if number >= image.first:
                return image.position
        return number

    def open(self, first: int, grid: Grid, number: int) -> int:
        """Row `number` is decoded next, of the image whose first row is `first`: of a new one, or
        of the last one. Returns how many of its rows are held, perhaps fewer than come before.
        Raises ValueError where they cannot follow."""
        last = self._images[-1] if self._images else None
        if last is None or (last.first, last.grid) != (first, grid):
            if not self.length == self.held == first or (last is not None and first < last.end):
                raise ValueError(f"an image at {first} in a sequence of {self.held} rows")
            self._images.append(_Image(first, self.position(first), grid))
        if not first <= self.held <= number <= self.length:
            raise ValueError(f"row {number} of a sequence of {self.held} rows")
        return self.held - first

    def grow(self, held: int) -> None:
        """This many rows are held now."""
        self.held = held
        self.length = max(self.length, held)

    def spoil(self, length: int) -> None:
        """A decode behind `length` rows failed, and llama.cpp has removed what stood at its
        positions: inside an image, those of its earlier rows too."""
        image = self._around(length)
        if image is not None:
            self.held = image.first

    def cut(self, length: int) -> int:
        """Keep the first `length` rows, at most as many as count as held. Returns the position
        from which on all cells are to be removed."""
        self.length = length
        image = self._around(length)
        if image is None:
            self._images = [image for image in self._images if image.first < length]
            self.held = length
            return self.position(length)
        self._images = [other for other in self._images if other.first <= image.first]
        if self.held == length:
            return image.position + 1
        self.held = image.first
        return image.position

    def _around(self, length: int) -> _Image | None:
        """The image that a cut behind this many rows goes through."""
        for image in reversed(self._images):
            if image.first < length < image.end:
                return image
        return None
