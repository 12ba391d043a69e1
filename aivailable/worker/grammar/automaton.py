"""The grammar at work: states that bytes lead through, made as they are needed.

Owns: the pushdown automaton, made deterministic lazily. A state is the set of all places where the
text so far may be in the grammar; a row of its table says where each byte leads. Shared by all
answers that are bound by the same grammar. Pure.

Work is bounded: an ambiguous grammar runs into a limit and raises, it does not run on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aivailable.worker.grammar.network import Network
from aivailable.worker.grammar.rules import GrammarError, Rules, checked

DEAD: Final = -1
"""No text goes on like this."""
_UNKNOWN: Final = -2
CONFIGURATIONS_MAX: Final = 4_000
"""Places at once. A JSON schema has a few dozen; an ambiguous grammar doubles them byte by byte."""
STACK_MAX: Final = 256
"""Nested calls: deeper nesting than any reader of the answer accepts."""
STATES_MAX: Final = 16_384
"""1 KiB of table each."""
WORK_MAX: Final = 500_000
"""Configurations and edges looked at for one token or mask: a third of a second. A mask under a
JSON schema takes a few thousand."""
WORK_TOTAL_MAX: Final = 20_000_000
"""The same over an automaton's life: what is made once is kept."""
START: Final = 0

Configuration: TypeAlias = tuple[int, int]
"""(place, stack); a stack is a number, 0 the empty one."""


class Automaton:
    """States by number; START is the first. Raises GrammarError from every method that steps."""

    def __init__(self, rules: Rules) -> None:
        self._network = Network(checked(rules))
        self._frames: list[tuple[int, int, int]] = [(-1, -1, 0)]
        """By stack: place to return to, the stack below, depth."""
        self._frame_numbers: dict[tuple[int, int], int] = {}
        self._numbers: dict[tuple[frozenset[Configuration], bool], int] = {}
        self._configurations: list[frozenset[Configuration]] = []
        self._accepting: list[bool] = []
        self._moves: dict[frozenset[Configuration], int] = {}
        self.table: npt.NDArray[np.int32] = np.full((64, 256), _UNKNOWN, np.int32)
        """[state, byte] → state or DEAD; a row is valid once `prepare`d."""
        self._work = self._work_total = 0
        self.lock = threading.RLock()
        """Held by whoever makes states: a continuation is replayed beside the step loop."""
        self._state(frozenset({(self._network.start, 0)}))

    @property
    def states(self) -> int:
        """How many there are by now."""
        return len(self._configurations)

    @property
    def worn(self) -> bool:
        """Whether it nears its limits: the next answer had better start with a fresh one."""
        return self.states > STATES_MAX // 2 or self._work_total > WORK_TOTAL_MAX // 2

    def accepts(self, state: int) -> bool:
        """Whether the text may end here."""
        return self._accepting[state]

    def exhausted(self, state: int) -> bool:
        """Whether the text must end here."""
        return not self._configurations[state]

    def walk(self, state: int, text: bytes) -> int:
        """The state after these bytes, or DEAD."""
        with self.lock:
            self.begin()
            for byte in text:
                following = int(self.table[state, byte])
                if following == _UNKNOWN:
                    self._fill(state)
                    following = int(self.table[state, byte])
                if following == DEAD:
                    return DEAD
                state = following
            return state

    def begin(self) -> None:
        """Another token or mask: its work is counted anew."""
        self._work_total += self._work
        self._work = 0

    def prepare(self, states: Iterable[int]) -> None:
        """Make the table rows of these states valid."""
        for state in states:
            if self.table[state, 0] == _UNKNOWN:
                self._fill(state)

    def _fill(self, state: int) -> None:
        edges = [
            (low, high, (target, stack))
            for place, stack in self._configurations[state]
            for low, high, target in self._network.bytes[place]
        ]
        row = np.full(256, DEAD, np.int32)
        borders = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
        self._spend(len(edges) * len(borders) // 8)
        for begin, end in pairwise(borders):
            targets = frozenset(target for low, high, target in edges if low <= begin <= high)
            if targets:
                row[begin:end] = self._state(targets)
        self.table[state] = row

    def _state(self, targets: frozenset[Configuration]) -> int:
        known = self._moves.get(targets)
        if known is not None:
            return known
        key = self._closure(targets)
        number = self._numbers.get(key)
        if number is None:
            number = len(self._configurations)
            if number >= STATES_MAX:
                raise GrammarError("the grammar leads to too many states")
            self._numbers[key] = number
            self._configurations.append(key[0])
            self._accepting.append(key[1])
            if number == len(self.table):
                more = np.full_like(self.table, _UNKNOWN)
                self.table = np.concatenate((self.table, more))
        self._moves[targets] = number
        return number

    def _closure(self, targets: frozenset[Configuration]) -> tuple[frozenset[Configuration], bool]:
        """Everything reached without a byte: places with byte edges, and whether the end is."""
        network = self._network
        seen: set[Configuration] = set()
        kept: list[Configuration] = []
        accepting = False
        todo = list(targets)
        while todo:
            self._spend(1)
            configuration = todo.pop()
            if configuration in seen:
                continue
            seen.add(configuration)
            if len(seen) > CONFIGURATIONS_MAX:
                raise GrammarError("the grammar is too ambiguous")
            place, stack = configuration
            if network.bytes[place]:
                kept.append(configuration)
            if network.final[place]:
                if stack == 0:
                    accepting = True
                else:
                    back, below, _ = self._frames[stack]
                    todo.append((back, below))
            todo.extend((after, stack) for after in network.jumps[place])
            for start, back in network.calls[place]:
                # The last call of a rule needs no way back to it.
                todo.append((start, stack if network.final[back] else self._push(back, stack)))
        return frozenset(kept), accepting

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > WORK_MAX or self._work_total + self._work > WORK_TOTAL_MAX:
            raise GrammarError("the grammar is too ambiguous: it takes too long")

    def _push(self, back: int, below: int) -> int:
        number = self._frame_numbers.get((back, below))
        if number is None:
            depth = self._frames[below][2] + 1
            if depth > STACK_MAX:
                raise GrammarError(f"the answer is nested more than {STACK_MAX} levels deep")
            number = len(self._frames)
            self._frames.append((back, below, depth))
            self._frame_numbers[back, below] = number
        return number
