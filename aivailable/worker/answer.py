"""How an answer's text is read while it is made: the seam between chat formats and jobs.

Owns: names only, and the format that reads nothing into a text. The formats of the model families
implement `AnswerParser`; job feeds it, so that content, reasoning and tool calls leave apart.
A parser is a function of the text fed so far: a continuation feeds the replayed text again and is
in the same state, wherever the cuts between pieces were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aivailable.wire.generation import CallDelta, Constraint


@dataclass(frozen=True, slots=True)
class Delta:
    """What became certain with the last piece of text."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class AnswerParser(Protocol):
    """Reads one answer, piece by piece."""

    @property
    def called(self) -> bool:
        """Whether the answer holds at least one tool call."""

    def feed(self, text: str) -> Delta:
        """Take more text. Never raises: what fits no format is content."""

    def finish(self) -> Delta:
        """The end of the answer: what was held back."""


class PlainText:
    """Everything is content."""

    called = False

    def feed(self, text: str) -> Delta:
        return Delta(text=text)

    def finish(self) -> Delta:
        return Delta()


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the answer must match. With `triggers` the grammar is lazy: it binds from the first
    text on that begins with one of them (the trigger itself included), and nothing before."""

    constraint: Constraint
    triggers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request made ready for decoding by the model's chat format."""

    prompt: tuple[int, ...]
    parser: Callable[[], AnswerParser] = PlainText
    grammar: Grammar | None = None
    visible: frozenset[int] = frozenset()
    """Control tokens whose text the parser must see (markers of tool calls, of channels)."""
    media: tuple[object, ...] = ()
    """What ids beyond the vocabulary stand for; the job keeps it for as long as it may be decoded.
    Empty: every id of the prompt is a token."""
