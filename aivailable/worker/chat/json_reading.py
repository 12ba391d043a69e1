"""JSON inside an answer, read while it is written.

Owns: where a JSON value ends, what its strings say, and the object {"name": …, "arguments": {…}}
that most formats write a call as. Arguments are passed on as the model wrote them, character by
character. RFC 8259 says what JSON is, and text that is not JSON is said to be so, never repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from aivailable.worker.chat.reading import SPACE, AnswerReading, Emit, Reader

KEY_MAX_CHARS: Final = 256
DEPTH_MAX: Final = 200
_SCALAR_END: Final = SPACE + ",]}:"
_HALVES: Final = re.compile("[\ud800-\udfff]")
_ESCAPES: Final = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}


@dataclass(frozen=True, slots=True)
class CallKeys:
    """How a format names the parts of a call."""

    name: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")


class CallRead(Enum):
    """How far a call could be read."""

    NONE = "nothing was given out: the text is content"
    BROKEN = "a call has begun, then the text stopped being JSON"
    WHOLE = "the call's object has been read"


class _ValueScan:
    """Finds the end of one JSON value. Brackets and strings are checked, scalars are not."""

    def __init__(self) -> None:
        self._closers: list[str] = []
        self._in_string = self._escaped = self._in_scalar = False
        self.done = self.bad = False

    def scan(self, text: str) -> int:
        """How many characters of text belong to the value."""
        for index, char in enumerate(text):
            if self._in_string:
                self._string(char)
            elif self._in_scalar and char in _SCALAR_END:
                self._in_scalar = False
                if not self._closers:
                    self.done = True
                    return index
                self._structure(char)
            elif not self._in_scalar:
                self._structure(char)
            if self.bad:
                return index
            if self.done:
                return index + 1
        return len(text)

    def _string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            self.done = not self._closers

    def _structure(self, char: str) -> None:
        if char == '"':
            self._in_string = True
        elif char in "{[":
            self._closers.append("}" if char == "{" else "]")
            self.bad = len(self._closers) > DEPTH_MAX
        elif char in "}]":
            self.bad = not self._closers or self._closers.pop() != char
            self.done = not self.bad and not self._closers
        elif char in SPACE or char in ",:":
            self.bad = not self._closers
        else:
            self._in_scalar = True


def read_value(r: AnswerReading, emit: Emit) -> Reader[bool]:
    """Give out one JSON value as it is written. False when the text is none, or ended."""
    scan = _ValueScan()
    while (yield from r.more()):
        text = r.available()
        count = scan.scan(text)
        if count:
            emit(r.advance(count))
        if scan.bad:
            return False
        if scan.done:
            return True
    return False


def read_raw(r: AnswerReading) -> Reader[str]:
    """One JSON value's text; "" when it is none."""
    pieces: list[str] = []
    whole = yield from read_value(r, pieces.append)
    return "".join(pieces) if whole else ""


def read_text(r: AnswerReading, emit: Emit) -> Reader[bool]:
    """Give out what a JSON string says, while it is written. False when the answer ended in it;
    the opening quote must be next."""
    r.skip()
    high = ""
    while (yield from r.more()):
        text = r.available()
        stop = min((at for at in (text.find('"'), text.find("\\")) if at >= 0), default=len(text))
        if stop and high:
            emit("\ufffd")
            high = ""
        if stop:
            emit(r.advance(stop))
            continue
        if text[0] == '"':
            r.skip()
            emit("\ufffd" if high else "")
            return True
        r.skip()
        high = yield from _read_escape(r, emit, high)
    emit("\ufffd" if high else "")
    return False


def _read_escape(r: AnswerReading, emit: Emit, high: str) -> Reader[str]:
    """What follows a backslash. Returns the first half of a surrogate pair, as its code's text,
    when that is what was read."""
    char = yield from r.peek()
    if not char:
        emit("\\")
        return ""
    r.skip()
    if char != "u":
        emit(("\ufffd" if high else "") + _ESCAPES.get(char, "\\" + char))
        return ""
    digits = ""
    while len(digits) < 4:
        digit = yield from r.peek()
        if not digit or digit not in "0123456789abcdefABCDEF":
            emit(("\ufffd" if high else "") + "\\u" + digits)
            return ""
        digits += digit
        r.skip()
    code = int(digits, 16)
    if high and 0xDC00 <= code < 0xE000:
        emit(chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + code - 0xDC00))
        return ""
    emit("\ufffd" if high else "")
    if 0xD800 <= code < 0xDC00:
        return digits
    emit("\ufffd" if 0xDC00 <= code < 0xE000 else chr(code))
    return ""


def loads_text(raw: str) -> str | None:
    """What a JSON string says; None for anything else. Half a surrogate pair, which no message
    could carry, becomes U+FFFD."""
    try:
        value = json.loads(raw, strict=False)
    except (ValueError, RecursionError):
        return None
    return _HALVES.sub("\ufffd", value) if isinstance(value, str) else None


def read_call(
    r: AnswerReading, keys: CallKeys, accepts: Callable[[str], bool] = lambda _name: True
) -> Reader[CallRead]:
    """One call's object. `accepts` says whether a name is a function's.

    Unless NONE is returned, the reading stands behind the last character that was used.
    """
    if not (yield from r.take("{")):
        return CallRead.NONE
    begun, arguments, problem = False, "", False
    char = yield from r.skip_space()
    while char == '"' and not problem:
        key = loads_text((yield from read_raw(r)))
        if key is None or len(key) > KEY_MAX_CHARS or (yield from r.skip_space()) != ":":
            break
        r.skip()
        yield from r.skip_space()
        if key in keys.name and not begun:
            name = loads_text((yield from read_raw(r)))
            if not name or not accepts(name) or not r.begin_call(name):
                return CallRead.NONE
            begun = True
            r.arguments(arguments)
        elif key in keys.arguments and not arguments:
            arguments = yield from _read_arguments(r, begun=begun)
            problem = not arguments
        else:
            problem = not (yield from read_raw(r))
        char = yield from r.skip_space()
        if char == ",":
            r.skip()
            char = yield from r.skip_space()
        elif char == "}" and begun and not problem:
            r.skip()
            if not arguments:
                r.arguments("{}")
            r.section()
            return CallRead.WHOLE
        else:
            break
    return CallRead.BROKEN if begun else CallRead.NONE


def _read_arguments(r: AnswerReading, *, begun: bool) -> Reader[str]:
    """The arguments: given out as they grow once the call has begun. Returns their text."""
    pieces: list[str] = []

    def emit(text: str) -> None:
        pieces.append(text)
        if begun:
            r.arguments(text)

    if (yield from r.peek()) == "{":
        whole = yield from read_value(r, emit)
        return "".join(pieces) if whole else ""
    # Some models write the object's text into a string, and null for no arguments.
    raw = yield from read_raw(r)
    text = loads_text(raw) or raw
    if raw:
        emit("{}" if text in ("null", '""') else text)
    return "".join(pieces)
