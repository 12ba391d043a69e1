"""One answer being read: the text that has come, and what of it is content, reasoning and calls.

Owns: the primitives that the formats' readers are written in, and the parser that drives such a
reader. It must not know any format.

A reader is a generator: it yields when it needs more text than there is. The law that it must keep
is that what it has given out is a function of the text so far, not of the cuts between its pieces:
a continuation feeds the replayed text in one piece and goes on as the first replica would have.
The primitives here keep it by giving out everything that is certain, at once, and nothing more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, TypeVar

from aivailable.wire.generation import CallDelta
from aivailable.worker.answer import Delta

T = TypeVar("T")
Reader: TypeAlias = Generator[None, None, T]
"""Yields to ask for more text; returns T."""
Emit: TypeAlias = Callable[[str], None]

CALL_ID_BYTES: Final = 12
CALLS_MAX: Final = 128
"""Calls in one answer; further ones are content."""
SPACE: Final = " \t\r\n"


def call_id(request_id: str, index: int) -> str:
    """The id of an answer's call: the same on every replica that continues the answer."""
    digest = hashlib.sha256(f"{request_id}/{index}".encode()).hexdigest()
    return "call_" + digest[: 2 * CALL_ID_BYTES]


@dataclass(slots=True)
class _Out:
    text: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class AnswerReading:
    """The source and the output of one reader."""

    def __init__(self, request_id: str, *, prefilled: bool = False) -> None:
        self._request_id = request_id
        self.prefilled = prefilled
        """Whether the answer goes on with content that the prompt began."""
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._ended = False
        self._out = _Out()
        self._calls = 0
        self._held = ""
        """White space at the end of a section: given out only when the section goes on."""
        self._fresh = False
        """Whether white space is to be dropped, since a section has just begun."""
        self._tidy = False
        self._thinking = False

    # The source.

    def more(self) -> Reader[bool]:
        """Wait for an unread character; False at the end of the answer."""
        while self._at >= len(self._text):
            if self._ended:
                return False
            yield
        return True

    def peek(self) -> Reader[str]:
        """The next character, unread; "" at the end."""
        there = yield from self.more()
        return self._text[self._at] if there else ""

    def skip(self) -> None:
        """Drop the character just peeked at."""
        self._at += 1

    def skip_space(self) -> Reader[str]:
        """Drop white space; the next character, unread, "" at the end."""
        while True:
            char = yield from self.peek()
            if not char or char not in SPACE:
                return char
            self._at += 1

    def available(self) -> str:
        """What has come and is unread."""
        return self._text[self._at :]

    def advance(self, count: int) -> str:
        """Read this many characters of what is available."""
        start = self._at
        self._at += count
        return self._text[start : self._at]

    def take(self, *literals: str) -> Reader[str]:
        """Read the first of the literals that the text goes on with; "" when it does not."""
        while True:
            left = len(self._text) - self._at
            undecided = False
            for literal in literals:
                if self._text.startswith(literal, self._at):
                    self._at += len(literal)
                    return literal
                if left < len(literal) and literal.startswith(self.available()):
                    undecided = True
                    break
            if not undecided or self._ended:
                return ""
            yield

    def until(self, markers: Sequence[str], emit: Emit) -> Reader[str]:
        """Give out the text before the marker that is complete first, and read that marker.
        Returns the marker, "" when the answer ended before one."""
        longest = max(map(len, markers), default=1)
        while True:
            found = [
                (start + len(marker), start, marker)
                for marker in markers
                if (start := self._text.find(marker, self._at)) >= 0
            ]
            if found:
                end, start, marker = min(found)
                self._give(emit, start)
                self._at = end
                return marker
            end = len(self._text)
            if not self._ended:
                end -= _held_chars(self._text, self._at, markers, longest)
            self._give(emit, end)
            if self._ended:
                return ""
            yield

    def collect(self, markers: Sequence[str], limit: int) -> Reader[tuple[str, str]]:
        """The text before a marker, and the marker; ("", "") when there is none within `limit`
        characters or before the end, and then nothing is read."""
        while True:
            found = [
                (at + len(marker), at, marker)
                for marker in markers
                if (at := self._text.find(marker, self._at)) >= 0
            ]
            end, at, marker = min(found, default=(len(self._text), len(self._text), ""))
            if at - self._at > limit:
                return "", ""
            if marker or self._ended:
                text = self._text[self._at : at] if marker else ""
                self._at = end if marker else self._at
                return text, marker
            yield

    def unread(self, marker: str) -> None:
        """Go back before the marker that has just been read."""
        self._at -= len(marker)

    def hold(self) -> int:
        """Remember this place for `back`; `release` forgets it."""
        self._mark = self._at
        return self._at

    def release(self) -> None:
        self._mark = None

    def back(self, place: int) -> None:
        """Unread everything behind a held place."""
        self._at = place
        self._mark = None

    def _give(self, emit: Emit, end: int) -> None:
        if end > self._at:
            emit(self._text[self._at : end])
            self._at = end

    # The output.

    def content(self, text: str) -> None:
        """Part of what the user reads."""
        self._out.text += self._trimmed(text)
        self._thinking = False

    def reasoning(self, text: str) -> None:
        """Part of what the model thinks."""
        self._out.reasoning += self._trimmed(text)
        self._thinking = True

    def section(self) -> None:
        """A marker has been read: white space around it belongs to nobody."""
        self._held = ""
        self._fresh = True

    def tidy(self) -> None:
        """Hold white space back from here on, because a marker may follow it."""
        self._tidy = True

    def begin_call(self, name: str) -> bool:
        """Another call. False when there are too many: then it is to be read as content."""
        if self._calls >= CALLS_MAX:
            return False
        index = self._calls
        self._calls += 1
        self.section()
        self._out.calls.append(CallDelta(index, call_id(self._request_id, index), name))
        return True

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        if not text:
            return
        calls, index = self._out.calls, self._calls - 1
        if calls and calls[-1].index == index:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + text)
        else:
            calls.append(CallDelta(index, arguments=text))

    @property
    def calls(self) -> int:
        return self._calls

    def _trimmed(self, text: str) -> str:
        if self._fresh:
            text = text.lstrip()
            if not text:
                return ""
            self._fresh = False
        if not self._tidy:
            return text
        text = self._held + text
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return kept

    # Driven by the parser.

    def feed(self, text: str) -> None:
        """Another piece has come."""
        if self._mark is None and self._at:
            self._text = self._text[self._at :]
            self._at = 0
        self._text += text

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True

    def drain(self, *, last: bool = False) -> Delta:
        """What has become certain since the last time."""
        out, self._out = self._out, _Out()
        if last and not self._calls and not self._thinking:
            out.text += self._held
        return Delta(out.text, out.reasoning, tuple(out.calls))


def _held_chars(text: str, start: int, markers: Sequence[str], longest: int) -> int:
    """How many characters at the end of text[start:] may begin a marker."""
    for size in range(min(longest - 1, len(text) - start), 0, -1):
        tail = text[len(text) - size :]
        if any(len(marker) > size and marker.startswith(tail) for marker in markers):
            return size
    return 0


class ReadingParser:
    """An AnswerParser made of a reader."""

    def __init__(
        self,
        request_id: str,
        read: Callable[[AnswerReading], Reader[None]],
        *,
        prefilled: bool = False,
    ) -> None:
        self._reading = AnswerReading(request_id, prefilled=prefilled)
        self._reader: Generator[None, Any, None] | None = read(self._reading)
        self._step()

    @property
    def called(self) -> bool:
        """Whether the answer holds at least one tool call."""
        return self._reading.calls > 0

    def feed(self, text: str) -> Delta:
        """Take more text. Never raises."""
        self._reading.feed(text)
        self._step()
        return self._reading.drain()

    def finish(self) -> Delta:
        """The end of the answer: what was held back."""
        self._reading.end()
        self._step()
        return self._reading.drain(last=True)

    def _step(self) -> None:
        if self._reader is not None:
            try:
                next(self._reader)
            except StopIteration:
                self._reader = None
