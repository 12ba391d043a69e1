"""A grammar as a network of byte edges and calls: what the automaton walks.

Owns: the translation of rules. Characters become UTF-8 byte ranges, so that a token may end inside
of one. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aivailable.worker.grammar.rules import (
    ROOT,
    Alternation,
    Chars,
    Concatenation,
    GrammarError,
    Node,
    Repeat,
    Rule,
    Rules,
    Text,
)

PLACES_MAX: Final = 100_000
_SURROGATES: Final = (0xD800, 0xDFFF)
_WIDTHS: Final = ((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))


class Network:
    """Places and what leads from one to the next. Raises GrammarError when it grows too large."""

    def __init__(self, rules: Rules) -> None:
        self.bytes: list[list[tuple[int, int, int]]] = []
        """By place: (lowest byte, highest byte, next place)."""
        self.jumps: list[list[int]] = []
        """By place: places reached without a byte."""
        self.calls: list[list[tuple[int, int]]] = []
        """By place: (first place of a rule, place to return to)."""
        self.final: list[bool] = []
        """By place: the end of its rule."""
        self._starts: dict[str, int] = {name: self._place() for name in rules}
        self.start = self._starts[ROOT]
        for name, node in rules.items():
            self._rule(node, self._starts[name])
        self._shorten_returns()

    def _rule(self, node: Node, start: int) -> None:
        end = self._place()
        self.final[end] = True
        self._build(node, start, end)

    def _build(self, node: Node, start: int, end: int) -> None:
        match node:
            case Text(text):
                self._path([(byte, byte) for byte in text.encode()], start, end)
            case Chars(ranges):
                for path in utf8_paths(ranges):
                    self._path(path, start, end)
            case Rule(name):
                self.calls[start].append((self._starts[name], end))
            case Concatenation(items):
                for item in items[:-1]:
                    after = self._place()
                    self._build(item, start, after)
                    start = after
                if items:
                    self._build(items[-1], start, end)
                else:
                    self.jumps[start].append(end)
            case Alternation(options):
                for option in options:
                    # A place of its own: a loop in one option must not be entered by another.
                    own = self._place()
                    self.jumps[start].append(own)
                    self._build(option, own, end)
            case Repeat(item, least, most):
                self._repeat(item, least, most, start, end)

    def _repeat(self, item: Node, least: int, most: int | None, start: int, end: int) -> None:
        begin = -1
        if least + (most or 0) > 2 and not isinstance(item, Rule):
            # What is repeated often is built once and called.
            begin = self._place()
            self._rule(item, begin)

        def once(before: int, after: int) -> None:
            if begin >= 0:
                self.calls[before].append((begin, after))
            else:
                self._build(item, before, after)

        at = start
        for _ in range(least):
            after = self._place()
            once(at, after)
            at = after
        if most is None:
            loop = self._place()
            self.jumps[at].append(loop)
            once(loop, loop)
            at = loop
        else:
            for _ in range(most - least):
                self.jumps[at].append(end)
                after = self._place()
                once(at, after)
                at = after
        self.jumps[at].append(end)

    def _path(self, ranges: list[tuple[int, int]], start: int, end: int) -> None:
        if not ranges:
            self.jumps[start].append(end)
            return
        for low, high in ranges[:-1]:
            after = self._place()
            self.bytes[start].append((low, high, after))
            start = after
        low, high = ranges[-1]
        self.bytes[start].append((low, high, end))

    def _place(self) -> int:
        if len(self.bytes) >= PLACES_MAX:
            raise GrammarError("the grammar is too large")
        self.bytes.append([])
        self.jumps.append([])
        self.calls.append([])
        self.final.append(False)
        return len(self.bytes) - 1

    def _shorten_returns(self) -> None:
        """A call returns to where something happens: then the last call of a rule is seen as such,
        and right recursion keeps the stack flat."""
        for calls in self.calls:
            for at, (start, back) in enumerate(calls):
                seen = {back}
                while (
                    not self.final[back]
                    and not self.bytes[back]
                    and not self.calls[back]
                    and len(self.jumps[back]) == 1
                    and self.jumps[back][0] not in seen
                ):
                    back = self.jumps[back][0]
                    seen.add(back)
                calls[at] = (start, back)


def utf8_paths(ranges: tuple[tuple[int, int], ...]) -> Iterator[list[tuple[int, int]]]:
    """Sequences of byte ranges that spell the characters of these ranges, without surrogates
    (the algorithm of Russ Cox's RE2 and of rust's `utf8-ranges`)."""
    for low, high in ranges:
        for first, last in ((low, min(high, _SURROGATES[0] - 1)), (max(low, 0xE000), high)):
            for least, most in _WIDTHS:
                begin, end = max(first, least), min(last, most)
                if begin <= end:
                    yield from _split(begin, end)


def _split(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Both ends have the same encoded length."""
    first, last = chr(low).encode(), chr(high).encode()
    for size in range(1, len(first)):
        mask = (1 << (6 * size)) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from _split(low, low | mask)
                yield from _split((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _split(low, (high & ~mask) - 1)
                yield from _split(high & ~mask, high)
                return
    yield list(zip(first, last, strict=True))
