"""The sequences of one KV cache: busy ones, warm ones, empty ones, and who may start from whom.

Owns: which sequence number holds which tokens, what is evicted when, and the digests by which the
outside knows what is warm. It must not schedule.

There may be more sequences than slots: what is over keeps the prompts of earlier requests warm.
Busy ones are guaranteed their cells; the warm ones live in what is left and give way first.
A prefix is shared by reference (llama.cpp's seq_cp), so it costs no cells until texts part.

The opening is what nearly every prompt of a model begins with: its chat template's first words. One
sequence keeps it from the start on, in the lowest cells, so that whoever begins with it still has
all cells in the order of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from aivailable.worker.generating.radix import Match, RadixTree
from aivailable.worker.generating.warm_limit import WarmCacheLimit

REUSE_MIN_TOKENS: Final = 40
"""A shorter common beginning, other than the opening, is computed anew: it saves little, and
cells that do not lie in the order of their tokens are summed up in another order."""
NOBODY: Final = -1


class Caches(Protocol):
    """What the engine can do with the cached tokens of its sequences."""

    def trim(self, slot: int, length: int) -> int:
        """Keep the first tokens, or none; returns how many are kept."""

    def fork(self, source: int, target: int, length: int) -> int:
        """`target` becomes the first tokens of `source`; returns how many, perhaps 0."""

    def reach(self, slot: int, length: int) -> bool:
        """Whether a token after the first `length` could be computed (sliding windows forget,
        recurrent states cannot go back)."""


class Sequences:
    """`count` numbers from 0; warm ones hold at most `warm_tokens` together, and no more than are
    worth their cells (warm_limit)."""

    def __init__(self, count: int, warm_tokens: int, caches: Caches) -> None:
        self._caches = caches
        self._warm_limit = WarmCacheLimit(warm_tokens)
        self._tree = RadixTree()
        self._empty = list(range(count))
        self._warm: dict[int, None] = {}
        """Least recently used first."""
        self._opener = NOBODY
        self.opening_tokens = 0
        """How many tokens the opening has; 0 = there is none."""
        self._digests: dict[int, tuple[int, ...]] = {}
        self.digests_turn = 0
        """Grows when `digests` may have changed."""

    def open_with(self, tokens: Sequence[int]) -> int:
        """Reserve a sequence for the opening; the caller computes it there, before anything else.
        Returns its number."""
        self._opener = self._empty.pop(0)
        self._tree.put(self._opener, tokens)
        self.opening_tokens = len(tokens)
        return self._opener

    def cached_length(self, tokens: Sequence[int]) -> int:
        """The longest beginning of these tokens that some sequence can be started from."""
        for match in self._matches(tokens):
            if any(self._caches.reach(holder, match.length) for holder in match.holders):
                return match.length
        return 0

    def take(self, tokens: Sequence[int]) -> tuple[int, int]:
        """A sequence that holds as much of the beginning of `tokens` as can be had (an empty one
        for no tokens): its number and how many. It is busy until given back. Raises LookupError
        when every one is busy."""
        self._warm_limit.asked(tokens, REUSE_MIN_TOKENS, self.opening_tokens)
        for match in self._matches(tokens):
            source = next((h for h in match.holders if self._caches.reach(h, match.length)), None)
            if source is None:
                continue
            number = self._target(source, match.length)
            if number == source:
                kept = self._caches.trim(number, match.length)
            else:
                kept = self._caches.fork(source, number, match.length)
            return self._begin(number, tokens[:kept])
        number = self._target(None, 0)
        self._caches.trim(number, 0)
        return self._begin(number, ())

    def worked(self, tokens: int) -> None:
        """So many tokens were computed, over the cells of the warm ones, too."""
        self._warm_limit.worked(tokens)

    def grow(self, number: int, tokens: Sequence[int]) -> None:
        """A busy sequence holds these tokens by now: what it held and more."""
        known = self._tree.length(number)
        if len(tokens) > known:
            self._tree.extend(number, tokens[known:])

    def give_back(self, number: int, tokens: Sequence[int]) -> None:
        """The sequence is idle and holds these tokens; none = it is cleared."""
        if not tokens:
            self.clear(number)
            self._empty.append(number)
            return
        self.grow(number, tokens)
        self._warm_limit.became_idle(tokens)
        self._warm[number] = None
        held, most = sum(map(self._tree.length, self._warm)), self._warm_limit.limit
        while held > most:
            held -= self._tree.length(next(iter(self._warm)))
            self.evict()

    def clear(self, number: int) -> None:
        """Forget what a sequence holds; it stays busy or idle as it was."""
        self._caches.trim(number, 0)
        self._tree.put(number, ())
        self._unmark(number)

    def evict(self) -> bool:
        """Clear the warm sequence that was not used for longest, at last the opening; False when
        there is none."""
        if self._warm:
            number = next(iter(self._warm))
            del self._warm[number]
        elif self._opener != NOBODY:
            number, self._opener, self.opening_tokens = self._opener, NOBODY, 0
        else:
            return False
        self.clear(number)
        self._empty.append(number)
        return True

    def mark(self, number: int, digests: tuple[int, ...]) -> None:
        """The prompt with these digests (wire.prefixes) is in the sequence."""
        self._digests[number] = digests
        self.digests_turn += 1

    def digests(self, most: int) -> tuple[int, ...]:
        """What is warm, busy sequences included, sorted; of the least recent ones not all when
        they are more than `most`."""
        recent = [*(n for n in self._digests if n not in self._warm), *reversed(self._warm)]
        found: dict[int, None] = {}
        for number in recent:
            for digest in self._digests.get(number, ()):
                if len(found) < most:
                    found[digest] = None
        return tuple(sorted(found))

    def _matches(self, tokens: Sequence[int]) -> Iterator[Match]:
        """Who may be started from: the longest beginning first."""
        for match in self._tree.find(tokens):
            if match.length >= REUSE_MIN_TOKENS:
                yield match
            elif self._opener in match.holders and match.length == self.opening_tokens:
                yield Match(match.length, (self._opener,))

    def _target(self, source: int | None, length: int) -> int:
        """Where a new job goes: into `source` itself when nothing of it would be lost, else an
        empty sequence, else the least recently used warm one, `source` last."""
        if source in self._warm and self._tree.length(source) == length:
            del self._warm[source]
            return source
        if self._empty:
            return self._empty.pop(0)
        number = next((number for number in self._warm if number != source), source)
        if number not in self._warm:
            raise LookupError("every sequence is busy")
        del self._warm[number]
        return number

    def _unmark(self, number: int) -> None:
        if self._digests.pop(number, None) is not None:
            self.digests_turn += 1

    def _begin(self, number: int, tokens: Sequence[int]) -> tuple[int, int]:
        self._tree.put(number, tokens)
        self._unmark(number)
        return number, len(tokens)
