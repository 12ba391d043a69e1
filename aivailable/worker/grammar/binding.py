"""One answer under a grammar: which tokens may come, from where on.

Owns: the state in the automaton, and waiting for a trigger. State is a function of the tokens
taken, so a continuation takes the replayed ones and stands where the first worker stood. Made by
token_tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aivailable.worker.grammar.automaton import DEAD, START
from aivailable.worker.grammar.rules import GrammarError
from aivailable.worker.grammar.vocabulary import Masks
from aivailable.worker.sampling.sampler import Mask

WAITING: Final = -2
"""The state before a trigger: everything is allowed that does not trigger into a dead end."""


class Binding:
    """`text_of`: the bytes that a token adds to the answer, empty for those that never fit;
    `is_end`: the model's end tokens; `markers`: control tokens whose text counts."""

    def __init__(
        self,
        masks: Masks,
        text_of: Callable[[int], bytes],
        is_end: Callable[[int], bool],
        *,
        triggers: tuple[str, ...] = (),
        markers: frozenset[int] = frozenset(),
    ) -> None:
        self._masks = masks
        self._automaton = masks.automaton
        self._text_of = text_of
        self._is_end = is_end
        self._triggers = tuple(trigger.encode() for trigger in triggers if trigger)
        self._markers = sorted(markers)
        self._state = WAITING if self._triggers else START
        self._tail = b""
        """Text before the trigger that may be its beginning."""

    @property
    def bound(self) -> bool:
        """Whether the grammar binds by now."""
        return self._state != WAITING

    @property
    def over(self) -> bool:
        """Whether nothing but the end may come."""
        return self.bound and self._automaton.exhausted(self._state)

    def allows(self, token: int) -> bool:
        """Whether this token may be next. Raises GrammarError."""
        if self._is_end(token):
            return not self.bound or self._automaton.accepts(self._state)
        text = self._text_of(token)
        if self.bound and not text:
            return False
        return self._after(text)[0] != DEAD

    def take(self, token: int) -> None:
        """The token stands. Raises GrammarError when it does not fit."""
        if self._is_end(token):
            return
        text = self._text_of(token)
        state, tail = self._after(text)
        if state == DEAD or (self.bound and not text):
            raise GrammarError("the tokens that were already generated do not match the grammar")
        self._state, self._tail = state, tail

    def mask(self) -> Mask:
        """All tokens that may be next; only while `bound`. Raises GrammarError."""
        mask = self._masks.mask(self._state)
        if self._markers:
            mask = mask.copy()
            mask[self._markers] = [self.allows(token) for token in self._markers]
        return mask

    @property
    def mask_is_ready(self) -> bool:
        """Whether `mask` costs nothing."""
        return self._masks.knows(self._state)

    def _after(self, text: bytes) -> tuple[int, bytes]:
        if self.bound:
            return self._automaton.walk(self._state, text), b""
        text = self._tail + text
        found = [at for at in map(text.find, self._triggers) if at >= 0]
        if found:
            return self._automaton.walk(START, text[min(found) :]), b""
        keep = max(map(len, self._triggers)) - 1
        return WAITING, text[-keep:] if keep else b""
