"""A client's text is data: what spells a control token in it stays text in the prompt.

Owns: finding such spellings in what a client wrote, standing in for them while the template runs,
and cutting the rendered prompt where they are. It must not know tokens beyond their spellings.

A template may trim, split, quote or leave out what it is given, so where a client's text ends up
can't be known beforehand. A spelling is replaced by digits that nobody can guess; whatever the
template does, they are found again in the prompt, and what they stand for becomes a piece of its
own that is tokenised as plain text. A text's edge may be half of a spelling whose other half the
template writes (`<parameter=` NAME `>`): it is marked too, and cut out only if the whole spelling
stands there in the end. So a prompt without any spelling is one piece: exactly what the template
wrote.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

NONCE_DIGITS: Final = 32
"""Of a mark, the same in one request: not to be guessed."""
INDEX_DIGITS: Final = 8
HEAD_CHARS: Final = 2
"""Spellings are looked for by their first characters first: most begin alike."""


class Piece(NamedTuple):
    """A part of a prompt's text. `plain`: no control token may come of it."""

    text: str
    plain: bool = False


class Controls:
    """How a vocabulary spells its control tokens."""

    def __init__(self, spellings: Iterable[str] = ()) -> None:
        known = {spelling for spelling in spellings if spelling.strip()}
        self._by_head: dict[str, list[str]] = {}
        for spelling in sorted(known, key=len, reverse=True):
            self._by_head.setdefault(spelling[:HEAD_CHARS], []).append(spelling)
        self.longest = max(map(len, known), default=0)
        self._begins = _odd(spelling[:end] for spelling in known for end in range(len(spelling)))
        self._ends = _odd(spelling[at:] for spelling in known for at in range(1, len(spelling)))
        self._all = "\n".join(known)

    def within(self, text: str) -> list[str]:
        """The spellings that occur in the text, the longest first."""
        found = [
            spelling
            for head, spellings in self._by_head.items()
            if head in text
            for spelling in spellings
            if spelling in text
        ]
        return sorted(found, key=len, reverse=True)

    def head(self, text: str) -> str:
        """The text's beginning that may be the end of a spelling."""
        sizes = range(min(self.longest, len(text)), 0, -1)
        return next((text[:size] for size in sizes if text[:size] in self._ends), "")

    def tail(self, text: str) -> str:
        """The text's end that may be the beginning of a spelling."""
        sizes = range(min(self.longest, len(text)), 0, -1)
        return next((text[-size:] for size in sizes if text[-size:] in self._begins), "")

    def middle(self, text: str) -> bool:
        """Whether the whole text may stand inside of a spelling."""
        return 0 < len(text) < self.longest and not text.isalnum() and text in self._all


def _odd(parts: Iterable[str]) -> frozenset[str]:
    """Without what is a word: templates compare words, and no spelling is one."""
    return frozenset(part for part in parts if part.strip() and not part.isalnum())


class Quoting:
    """One request's texts on their way through a template."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._nonce = str(
            secrets.randbelow(9 * 10 ** (NONCE_DIGITS - 1)) + 10 ** (NONCE_DIGITS - 1)
        )
        self._marks: dict[tuple[str, bool], str] = {}
        self._texts: list[tuple[str, bool]] = []
        """By a mark's index: what it stands for, and whether that is a whole spelling."""

    def text(self, text: str) -> str:
        """The text with marks in the place of spellings."""
        controls = self._controls
        for spelling in controls.within(text):
            text = text.replace(spelling, self._mark(spelling, whole=True))
        body = text.strip()
        if not body:
            return text
        start = text.index(body[0])
        end = start + len(body)
        if controls.middle(body):
            return text[:start] + self._mark(body) + text[end:]
        tail = controls.tail(body)
        head = controls.head(body[: len(body) - len(tail)])
        inner = text[start + len(head) : end - len(tail)]
        before = text[:start] + (self._mark(head) if head else "")
        return before + inner + (self._mark(tail) if tail else "") + text[end:]

    def value(self, value: Any) -> Any:
        """The same for all texts in a value, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        return value

    def arguments(self, text: str) -> str:
        """A call's arguments, JSON text that may be read and written again: also what its escapes
        spell. Unchanged where that would change more than spellings."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        written = json.dumps(value, ensure_ascii=False)
        if written != text and not self._controls.within(written):
            return text
        quoted = self.value(value)
        return text if quoted == value else json.dumps(quoted, ensure_ascii=False)

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The same for a message; its role is one of those that we know."""
        return {
            key if key in _KEYS else self.text(key): value if key == "role" else self.value(value)
            for key, value in message.items()
        }

    def pieces(self, rendered: str) -> tuple[Piece, ...]:
        """What the template wrote, without marks. Never empty."""
        if not self._texts:
            return (Piece(rendered),)
        cut = _Cut(self._controls)
        at = 0
        for found in re.finditer(rf"{self._nonce}(\d{{{INDEX_DIGITS}}})", rendered):
            cut.add(rendered[at : found.start()])
            index = int(found[1])
            # Digits of the client's behind half a mark, which a template has cut, are no index.
            text, whole = self._texts[index] if index < len(self._texts) else (found[0], False)
            cut.add_marked(text, whole=whole)
            at = found.end()
        cut.add(rendered[at:])
        return cut.pieces()

    def _mark(self, text: str, *, whole: bool = False) -> str:
        known = self._marks.get((text, whole))
        if known is None:
            known = f"{self._nonce}{len(self._texts):0{INDEX_DIGITS}d}"
            self._marks[text, whole] = known
            self._texts.append((text, whole))
        return known


_KEYS: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})


class _Cut:
    """The pieces of one prompt, in the making."""

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._pieces: list[Piece] = []
        self._open: list[str] = []
        """Text since the last plain piece, in parts."""
        self._edges: list[int] = []
        """Which of these parts are the edge of a client's text."""

    def add(self, text: str) -> None:
        if text:
            self._open.append(text)

    def add_marked(self, text: str, *, whole: bool) -> None:
        if whole:
            self._close()
            self._plain(text)
        else:
            self._edges.append(len(self._open))
            self._open.append(text)

    def pieces(self) -> tuple[Piece, ...]:
        self._close()
        return tuple(self._pieces) or (Piece(""),)

    def _close(self) -> None:
        """The open text becomes a piece, cut at the edges that are a spelling with what is beside
        them."""
        parts, edges = self._open, self._edges
        self._open, self._edges = [], []
        begun = 0
        for index in edges:
            if self._spells(parts, index):
                self._whole("".join(parts[begun:index]))
                self._plain(parts[index])
                begun = index + 1
        self._whole("".join(parts[begun:]))

    def _spells(self, parts: list[str], index: int) -> bool:
        reach = self._controls.longest
        before = after = ""
        left, right = index - 1, index + 1
        while left >= 0 and len(before) < reach:
            before, left = parts[left][-reach:] + before, left - 1
        while right < len(parts) and len(after) < reach:
            after, right = after + parts[right][:reach], right + 1
        window = before + parts[index] + after
        start, end = len(before), len(before) + len(parts[index])
        for spelling in self._controls.within(window):
            at = window.find(spelling)
            while at >= 0:
                if at < end and at + len(spelling) > start:
                    return True
                at = window.find(spelling, at + 1)
        return False

    def _whole(self, text: str) -> None:
        if text:
            self._pieces.append(Piece(text))

    def _plain(self, text: str) -> None:
        if self._pieces and self._pieces[-1].plain:
            text = self._pieces.pop().text + text
        self._pieces.append(Piece(text, plain=True))
