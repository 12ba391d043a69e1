"""What answers need to know of the model's tokens, worked out once for all of them.

Owns: the tokens' bytes and end tokens as tables, the grammars in use, a row to compute in. Made by
step_loop for its engine. It must not decode.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import Final, Protocol

import numpy as np

from aivailable.wire.generation import Constraint
from aivailable.worker.answer import Grammar
from aivailable.worker.engine import Logits
from aivailable.worker.grammar.automaton import START, Automaton
from aivailable.worker.grammar.binding import Binding
from aivailable.worker.grammar.gbnf import read_gbnf
from aivailable.worker.grammar.rules import GrammarError
from aivailable.worker.grammar.schema import any_object, read_schema
from aivailable.worker.grammar.vocabulary import Masks, Vocabulary

GRAMMARS_MAX: Final = 16
"""Compiled grammars that are kept for further requests."""


class TokenEngine(Protocol):
    """The part of an engine that speaks of tokens."""

    vocabulary: int

    def piece(self, token: int) -> bytes: ...
    def marker(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...


class TokenTables:
    """See the module's docstring. Not thread-safe."""

    def __init__(self, tokens: TokenEngine) -> None:
        self.size = tokens.vocabulary
        self.piece = tokens.piece
        self.marker = tokens.marker
        self.scratch: Logits = np.empty(tokens.vocabulary, np.float32)
        """Contents do not outlive a call."""
        self.changed: Logits = np.empty_like(self.scratch)
        """Contents do not outlive a draw."""
        self._tokens = tokens
        self._grammars: OrderedDict[Constraint, Masks] = OrderedDict()

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens with which the model ends its answer."""
        return frozenset(filter(self._tokens.is_end, range(self.size)))

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return self._tokens.is_end(token)

    def text_of(self, token: int, visible: frozenset[int]) -> bytes:
        """What the token adds to the answer; `visible`: control tokens whose text counts."""
        return self.marker(token) if token in visible else self.piece(token)

    def bind(self, grammar: Grammar, visible: frozenset[int]) -> Binding:
        """The grammar for one answer. Raises GrammarError."""
        masks = self._masks(grammar.constraint)
        binding = Binding(
            masks,
            lambda token: self.text_of(token, visible),
            self.is_end,
            triggers=grammar.triggers,
            markers=visible,
        )
        if binding.bound and not masks.mask(START).any() and not binding.mask().any():
            raise GrammarError("no token of this model begins what the grammar asks for")
        return binding

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.size, self.piece, self.ends)

    def _masks(self, constraint: Constraint) -> Masks:
        known = self._grammars.pop(constraint, None)
        if known is None or known.automaton.worn:
            if constraint.kind == "json_object":
                rules = any_object()
            elif constraint.kind == "json_schema":
                rules = read_schema(constraint.text)
            else:
                rules = read_gbnf(constraint.text)
            known = Masks(Automaton(rules), self._vocabulary)
        self._grammars[constraint] = known
        if len(self._grammars) > GRAMMARS_MAX:
            self._grammars.popitem(last=False)
        return known
