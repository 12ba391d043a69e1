"""Which tokens fit: the automaton walked by all tokens at once.

Owns: the tokens' bytes as arrays, and masks by state. Pure numpy; one Vocabulary for each engine,
one Masks for each grammar in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from aivailable.worker.grammar.automaton import DEAD, Automaton
from aivailable.worker.sampling.sampler import Mask

MASKS_MAX: Final = 64
"""Masks kept for each grammar; one byte a token each."""


class Vocabulary:
    """The bytes of all tokens, the longest first. Tokens without text never fit."""

    def __init__(self, size: int, piece: Callable[[int], bytes], ends: frozenset[int]) -> None:
        pieces = [b"" if token in ends else piece(token) for token in range(size)]
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=size)
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)[:-1]))
        order = np.argsort(-lengths, kind="stable")
        self.size = size
        self.ends = np.array(sorted(ends), dtype=np.int64)
        self.tokens: npt.NDArray[np.int64] = order[: int(np.count_nonzero(lengths))]
        self.starts: npt.NDArray[np.int64] = starts[self.tokens]
        self.text = np.frombuffer(b"".join(pieces), dtype=np.uint8)
        longest = int(lengths.max(initial=0))
        self.longer = [int(np.count_nonzero(lengths > length)) for length in range(longest + 1)]
        """[n]: how many tokens, the first ones, have more than n bytes."""


class Masks:
    """Allowed tokens by state of one automaton."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self.automaton = automaton
        self._vocabulary = vocabulary
        self._known: OrderedDict[int, Mask] = OrderedDict()

    def mask(self, state: int) -> Mask:
        """Every token that may come in this state; not to be changed. Raises GrammarError."""
        with self.automaton.lock:
            known = self._known.get(state)
            if known is None:
                known = self._known[state] = self._walk(state)
                if len(self._known) > MASKS_MAX:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(state)
            return known

    def knows(self, state: int) -> bool:
        """Whether the mask is there already."""
        return state in self._known

    def _walk(self, state: int) -> Mask:
        automaton, vocabulary = self.automaton, self._vocabulary
        mask: Mask = np.zeros(vocabulary.size, np.bool_)
        if automaton.accepts(state):
            mask[vocabulary.ends] = True
        automaton.begin()
        automaton.prepare((state,))
        at = np.arange(len(vocabulary.tokens))
        states = np.full(len(at), state, np.int32)
        for length, longer in enumerate(vocabulary.longer[1:], start=1):
            following = automaton.table[states, vocabulary.text[vocabulary.starts[at] + length - 1]]
            alive = following != DEAD
            at, states = at[alive], following[alive]
            whole = int(np.searchsorted(at, longer))
            mask[vocabulary.tokens[at[whole:]]] = True
            at, states = at[:whole], states[:whole]
            if not len(at):
                break
            seen = np.zeros(automaton.states, np.bool_)
            seen[states] = True
            automaton.prepare(np.flatnonzero(seen).tolist())
        return mask
