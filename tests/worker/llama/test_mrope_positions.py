"""Numbers of rows and their positions, against the plain list of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.worker.llama.mrope_positions import Grid, MropePositions, line

GRIDS = st.builds(Grid, st.integers(1, 6), st.integers(1, 6))
TEXTS = st.integers(1, 5)
LAYOUTS = st.lists(st.one_of(TEXTS, GRIDS), min_size=1, max_size=6)


def spread(layout: list[int | Grid]) -> list[int]:
    """The position of every row, as the definition has it: one after the other, and behind an
    image as far as its longer side."""
    found: list[int] = []
    at = 0
    for item in layout:
        if isinstance(item, Grid):
            found += [at] * item.rows
            at += max(item.columns, item.lines)
        else:
            found += range(at, at + item)
            at += item
    return [*found, at]


@dataclass
class Memory:
    """Cells of one sequence, (position, number), that can be cut by position only."""

    layout: list[int | Grid]
    positions: MropePositions = field(default_factory=lambda: MropePositions(0))
    cells: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.truth = spread(self.layout)
        self.total = len(self.truth) - 1

    def image_at(self, number: int) -> tuple[int, Grid] | None:
        first = 0
        for item in self.layout:
            size = item.rows if isinstance(item, Grid) else item
            if number < first + size:
                return (first, item) if isinstance(item, Grid) else None
            first += size
        return None

    def feed(self, count: int) -> None:
        """The next rows, as LlamaVision does it."""
        stop = min(self.total, self.positions.length + count)
        while self.positions.length < stop or self.positions.held < self.positions.length:
            number = self.positions.length
            image = self.image_at(number)
            if image is None:
                self._add(number, number + 1)
            else:
                first, grid = image
                held = self.positions.open(first, grid, number)
                self._add(first + held, min(first + grid.rows, max(stop, number + 1)))

    def _add(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            position = self.positions.position(number)
            assert not self.cells or position >= self.cells[-1][0]
            self.cells.append((position, number))
        self.positions.grow(stop)

    def cut(self, length: int) -> None:
        end = self.positions.cut(length)
        self.cells = [cell for cell in self.cells if cell[0] < end]

    def check(self) -> None:
        held = self.positions.held
        assert self.cells == [(self.truth[number], number) for number in range(held)]
        assert self.positions.length >= held
        assert all(
            self.positions.position(number) == self.truth[number]
            for number in range(self.positions.length)
            if number < held or self.image_at(number) is None
        )


@given(LAYOUTS, st.data())
def test_cells_are_the_first_rows_at_their_positions(
    layout: list[int | Grid], data: st.DataObject
) -> None:
    memory = Memory(layout)
    for _ in range(data.draw(st.integers(1, 8))):
        if memory.positions.length and data.draw(st.booleans()):
            length = data.draw(st.integers(0, memory.positions.length))
            memory.cut(length)
            assert memory.positions.length == length
            if data.draw(st.booleans()):
                memory.positions = memory.positions.copy()
        else:
            memory.feed(data.draw(st.integers(1, 20)))
            assert memory.positions.held == memory.positions.length
        memory.check()
    memory.feed(memory.total)
    memory.check()
    assert memory.positions.position(memory.total) == memory.truth[-1]


@given(GRIDS, st.integers(0, 1000), st.data())
def test_rows_are_laid_out_line_by_line(grid: Grid, position: int, data: st.DataObject) -> None:
    stop = data.draw(st.integers(1, grid.rows))
    start = data.draw(st.integers(0, stop - 1))
    every = [
        (position, position + y, position + x, 0)
        for y in range(grid.lines)
        for x in range(grid.columns)
    ]
    found = grid.laid_out(position, start, stop).reshape(4, -1).T
    assert [tuple(row) for row in found.tolist()] == every[start:stop]
    assert found[:, :3].max() < position + grid.positions


def test_ordinary_rows_are_a_line() -> None:
    assert np.array_equal(line(3, 4), [3, 4, 5, 6])
    assert not MropePositions(7)
    assert MropePositions(7).position(7) == 7


def test_after_a_failed_decode_an_image_begins_anew() -> None:
    positions = MropePositions(5)
    grid = Grid(4, 3)
    assert positions.open(5, grid, 5) == 0
    positions.grow(9)
    positions.spoil(9)
    assert positions.cut(9) == 5
    assert (positions.held, positions.length) == (5, 9)
    assert positions.open(5, grid, 9) == 0
    positions.grow(17)
    assert (positions.position(16), positions.position(17)) == (5, 9)
    positions.spoil(17)
    assert (positions.held, positions.cut(17)) == (17, 9)


def test_rows_in_a_wrong_place_are_refused() -> None:
    positions = MropePositions(5)
    grid = Grid(2, 2)
    with pytest.raises(ValueError, match="an image at 4"):
        positions.open(4, grid, 4)
    positions.open(5, grid, 5)
    positions.grow(7)
    with pytest.raises(ValueError, match="row 8 of a sequence of 7"):
        positions.open(5, grid, 8)
    with pytest.raises(ValueError, match="an image at 6"):
        positions.open(6, grid, 7)
