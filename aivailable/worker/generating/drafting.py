"""Guessing an answer's next tokens from its own text, and whether guessing pays.

Owns: prompt-lookup drafts (what followed the last time these tokens came), how often they were
right, what wider steps cost, and so how many guesses the next step carries. It never decides a
token: a guess stands only where the job's own sampler draws it, so answers do not depend on what
is guessed here. Pure; step_loop measures the times, job asks and tells what was drawn.

The index is that of LZ77's hash chains, over pairs of tokens; exact verification of guesses by the
large model is that of speculative decoding (arXiv 2211.17192).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

INDEX_STEP_TOKENS: Final = 512
"""A long prompt enters the index in such pieces, one each step."""
CANDIDATES_MAX: Final = 8
"""Earlier places that are compared, the latest first."""
MATCH_MAX_TOKENS: Final = 16
"""A longer common past makes a place no better."""
MATCH_BOUNDS: Final = (3, 6, 12)
"""Common tokens from which on guesses are judged apart: longer ones are right more often."""
RIGHT_AT_FIRST: Final = (0.4, 0.6, 0.75, 0.85)
"""Share of right guesses before any was seen, by these bounds."""
RIGHT_WEIGHT: Final = 0.15
"""Of the newest guess in that share."""
COST_WEIGHT: Final = 0.25
"""Of a new measurement in a cost."""
COST_JUMP_MAX: Final = 2.0
"""Times the cost so far that one measurement counts for at most: the machine may have been away."""
COST_FIRST: Final = 3
"""Of so many first measurements the least is taken: kernels are loaded in the first of all."""
MEASURED_MIN: Final = 2
"""Plain steps of so many rows before the first guess beside them."""
PAYS_FROM: Final = 1.05
"""Expected tokens per second against those without guesses."""
STALL_MAX: Final = 1.7
"""Guesses for one stream may make a step so many times longer for the others (as pace's)."""
OTHER_EVERY_STEPS: Final = 64
"""After so many steps with guesses one goes without, and the other way round: costs change."""
TRIAL_MIN_TOKENS: Final = 0.5
"""Expected right guesses for which a step is worth a trial."""


class Lookup:
    """Where the pairs of one growing list of tokens came before."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}
        """Place of a pair's second token."""
        self._earlier = array("i", (-1,))
        """By place: where the same pair came before, -1 = nowhere."""

    def find(self, tokens: Sequence[int], most: int) -> tuple[list[int], int]:
        """Up to `most` tokens that followed the longest common past, and that past's length;
        nothing and 0 when even the last pair is new. `tokens`: those of the last call and more."""
        end = len(tokens) - 1
        if end < 1 or most < 1:
            return [], 0
        self._index(tokens, end)
        at = self._latest.get((tokens[end - 1], tokens[end]), -1)
        best, longest = -1, 0
        for _ in range(CANDIDATES_MAX):
            if at < 0 or longest == MATCH_MAX_TOKENS:
                break
            length = _common_past(tokens, at, end)
            if length > longest:
                best, longest = at, length
            at = self._earlier[at]
        if best < 0:
            return [], 0
        found = list(tokens[best + 1 : best + 1 + most])
        while len(found) < most:
            # The text overlaps itself: it is taken to go on with this period.
            found.append(found[len(found) - (end - best)])
        return found, longest

    def _index(self, tokens: Sequence[int], end: int) -> None:
        """Places before `end`, at most INDEX_STEP_TOKENS of them."""
        known = len(self._earlier)
        for place in range(known, min(end, known + INDEX_STEP_TOKENS)):
            pair = (tokens[place - 1], tokens[place])
            self._earlier.append(self._latest.get(pair, -1))
            self._latest[pair] = place


def _common_past(tokens: Sequence[int], left: int, right: int) -> int:
    most = min(MATCH_MAX_TOKENS, left + 1)
    for length in range(2, most):
        if tokens[left - length] != tokens[right - length]:
            return length
    return most


class Drafter:
    """The guesses for one answer, and how right those before them were."""

    def __init__(self) -> None:
        self._lookup = Lookup()
        self._right = list(RIGHT_AT_FIRST)
        self._kind = 0
        self._open: list[int] = []
        """Guesses that nothing was drawn for yet, the next one last."""

    @property
    def right(self) -> float:
        """Share of guesses like the present ones that were right, 0 to 1."""
        return self._right[self._kind]

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """The next tokens, as far as they can be guessed."""
        found, length = self._lookup.find(tokens, most)
        self._kind = sum(length >= bound for bound in MATCH_BOUNDS)
        self._open = found[::-1]
        return found

    def learn(self, token: int) -> None:
        """This token was drawn, whether or not a step carried the guess for it."""
        if not self._open:
            return
        hit = self._open.pop() == token
        self._right[self._kind] += RIGHT_WEIGHT * (hit - self._right[self._kind])
        if not hit:
            self._open.clear()


class Costs:
    """Seconds of a step without prefill, by its number of tokens."""

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._seconds: dict[int, float] = {}
        self._measured: dict[int, int] = {}

    def observe(self, width: int, elapsed_s: float) -> None:
        """A step of so many tokens took `elapsed_s`."""
        times = self._measured.get(width, 0)
        if times == 0:
            self._widths.insert(bisect_left(self._widths, width), width)
            self._seconds[width] = elapsed_s
        elif times < COST_FIRST:
            self._seconds[width] = min(self._seconds[width], elapsed_s)
        else:
            before = self._seconds[width]
            now = min(elapsed_s, COST_JUMP_MAX * before)
            self._seconds[width] = before + COST_WEIGHT * (now - before)
        self._measured[width] = times + 1

    def measured(self, width: int) -> int:
        """How often this width was seen."""
        return self._measured.get(width, 0)

    def of(self, width: int) -> float:
        """Between two known widths by the line through them, beyond the last as the last: what is
        not known is tried. 0 when nothing is known."""
        if not self._widths:
            return 0.0
        at = bisect_left(self._widths, width)
        if at == len(self._widths):
            return self._seconds[self._widths[-1]]
        upper = self._widths[at]
        if upper == width or at == 0:
            return self._seconds[upper]
        lower = self._widths[at - 1]
        part = (width - lower) / (upper - lower)
        return self._seconds[lower] + part * (self._seconds[upper] - self._seconds[lower])


class Row(Protocol):
    """What is asked of a job."""

    slot: int
    tokens: list[int]
    drafter: Drafter

    @property
    def left(self) -> int: ...


class Drafting:
    """Shares guesses among the rows of a step. `most`: for one row; 0 = never any."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._costs = Costs()
        self._drafted = False
        self._alike = 0
        """Steps since guesses began or ended to be carried."""

    @property
    def active(self) -> bool:
        """Whether there may be guesses at all."""
        return self._most > 0

    def stop(self) -> None:
        """No guesses any more: a cache could not be cut."""
        self._most = 0

    def observe(self, width: int, elapsed_s: float) -> None:
        """A step of so many tokens, none of them prefill, took `elapsed_s`."""
        if self._most > 0:
            self._costs.observe(width, elapsed_s)

    def plan(self, rows: Sequence[Row], room: int) -> Mapping[int, tuple[int, ...]]:
        """The guesses of the next step by slot, at most `room` together. `rows`: all of the step;
        each is asked for its guess, also when none is carried, so that it learns."""
        if not self._most or not rows:
            return {}
        guesses: list[list[int]] = []
        offers: list[tuple[float, int, int]] = []
        for number, row in enumerate(rows):
            # The last token of an answer needs no guess: its step draws it anyway.
            guess = row.drafter.propose(row.tokens, min(self._most, row.left - 1))
            guesses.append(guess)
            chance = 1.0
            for place in range(len(guess)):
                chance *= row.drafter.right
                offers.append((-chance, number, place))
        offers.sort()
        taken = self._worth(len(rows), [-offer[0] for offer in offers[: max(0, room)]])
        counts = [0] * len(rows)
        for _, number, _ in offers[:taken]:
            counts[number] += 1
        return {
            row.slot: tuple(guess[:count])
            for row, guess, count in zip(rows, guesses, counts, strict=True)
            if count
        }

    def _worth(self, rows: int, chances: Sequence[float]) -> int:
        """How many of these guesses, the most probable first, a step is best carrying."""
        if not chances or self._costs.measured(rows) < MEASURED_MIN:
            return 0
        best = self._best(rows, chances)
        if (best > 0) != self._drafted:
            self._drafted, self._alike = best > 0, 0
            return best
        self._alike += 1
        if self._alike < OTHER_EVERY_STEPS:
            return best
        if best:
            self._alike = 0
            return 0
        trial = chances[: self._most]
        if sum(trial) < TRIAL_MIN_TOKENS:
            return 0
        self._alike = 0
        return len(trial)

    def _best(self, rows: int, chances: Sequence[float]) -> int:
        alone_s = self._costs.of(rows)
        if alone_s <= 0.0:
            return 0
        best, fastest, tokens = 0, PAYS_FROM * rows / alone_s, float(rows)
        for count, chance in enumerate(chances, 1):
            tokens += chance
            cost_s = self._costs.of(rows + count)
            if rows > 1 and cost_s > STALL_MAX * alone_s:
                break
            if tokens > fastest * cost_s:
                best, fastest = count, tokens / cost_s
        return best
