"""Regular expressions of JSON schema (`pattern`, `format`) as rules.

Owns: the subset of ECMA-262 that a grammar can keep: classes, groups, alternatives, repetition,
anchors at both ends. Look-around, back references and word borders are refused. Pure.
"""

from __future__ import annotations

from typing import Final

from aivailable.worker.grammar.json_text import CHARACTER, spelled
from aivailable.worker.grammar.rules import (
    CODE_POINT_MAX,
    DEPTH_MAX,
    REPETITIONS_MAX,
    Alternation,
    Concatenation,
    GrammarError,
    Node,
    Repeat,
    chars,
    choice,
    inverse,
    sequence,
)

PATTERN_MAX_CHARS: Final = 4096
Ranges = tuple[tuple[int, int], ...]
_DIGITS: Final[Ranges] = ((0x30, 0x39),)
_WORD: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Final[Ranges] = ((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0))
_CLASSES: Final[dict[str, Ranges]] = {
    "d": _DIGITS,
    "D": inverse(list(_DIGITS)),
    "w": _WORD,
    "W": inverse(list(_WORD)),
    "s": _SPACE,
    "S": inverse(list(_SPACE)),
}
_CONTROLS: Final = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_NOT_LINE_END: Final = chars((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029), inverted=True).ranges
_D28: Final = "(0[1-9]|1\\d|2[0-8])"
_YEAR: Final = "[1-9]\\d{3}"
_DATE: Final = f"{_YEAR}-((0[1-9]|1[0-2])-{_D28}|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_TIME: Final = "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)"
_BYTE: Final = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
_HOST: Final = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?){0,4}"
FORMATS: Final[dict[str, str]] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": "^P(\\d{1,4}W|\\d{1,4}D|(\\d{1,4}D)?T(\\d{1,4}H|\\d{1,4}M|\\d{1,4}S))$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "ipv4": f"^({_BYTE}\\.){{3}}{_BYTE}$",
    "ipv6": "^([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}$",
    "hostname": f"^{_HOST}$",
    "email": f"^[A-Za-z0-9]([A-Za-z0-9_+-]{{0,30}}[A-Za-z0-9])?@{_HOST}$",
    "uri": f"^https?://{_HOST}(/[A-Za-z0-9._~-]{{0,60}}){{0,8}}$",
}
"""Strings of these formats are generated in one common form."""
FORMATS.update(
    {
        "idn-email": FORMATS["email"],
        "idn-hostname": FORMATS["hostname"],
        **dict.fromkeys(("iri", "uri-reference", "iri-reference"), FORMATS["uri"]),
    }
)
UNKEPT_FORMATS: Final = frozenset(
    {"regex", "uri-template", "json-pointer", "relative-json-pointer"}
)
"""What JSON schema defines beside them. Any other name ("password", "binary", "path") says nothing
about the text: section 7.2.3 of its validation vocabulary."""


def read_pattern(pattern: str, where: str) -> Node:
    """What is between the quotes of a JSON string that matches. Raises GrammarError."""
    if len(pattern) > PATTERN_MAX_CHARS:
        raise GrammarError(f"{where}: a pattern has at most {PATTERN_MAX_CHARS} characters")
    return _Reader(pattern, where).whole()


def limited(content: Node, least: int, most: int | None) -> Node | None:
    """The same content with `least` to `most` characters, where that is simple: when it has them
    anyway, or when a single repetition of characters can be bounded. Else None."""
    low, high = _lengths(content)
    if low >= least and (most is None or (high is not None and high <= most)):
        return content
    items = list(content.items) if isinstance(content, Concatenation) else [content]
    spans = [_lengths(item) for item in items]
    loose = [at for at, (low, high) in enumerate(spans) if low != high]
    if len(loose) != 1:
        return None
    place = loose[0]
    run = items[place]
    if not isinstance(run, Repeat) or _lengths(run.item) != (1, 1):
        return None
    others = sum(low for at, (low, _) in enumerate(spans) if at != place)
    longest = run.most
    if most is not None:
        longest = most - others if longest is None else min(longest, most - others)
    shortest = max(run.least, least - others)
    if longest is not None and longest < shortest:
        return None
    items[place] = Repeat(run.item, shortest, longest)
    return Concatenation(tuple(items))


def _lengths(content: Node) -> tuple[int, int | None]:
    """Fewest and most characters of what a pattern was read into; None = without end. Every leaf
    is one character of the text, however JSON spells it."""
    if isinstance(content, Concatenation):
        spans = [_lengths(item) for item in content.items]
        highs = [high for _, high in spans if high is not None]
        return sum(low for low, _ in spans), sum(highs) if len(highs) == len(spans) else None
    if isinstance(content, Alternation):
        spans = [_lengths(option) for option in content.options]
        highs = [high for _, high in spans if high is not None]
        longest = max(highs, default=0) if len(highs) == len(spans) else None
        return min((low for low, _ in spans), default=0), longest
    if isinstance(content, Repeat):
        low, high = _lengths(content.item)
        endless = content.most is None or high is None
        return low * content.least, None if endless else (high or 0) * (content.most or 0)
    return 1, 1


class _Reader:
    def __init__(self, pattern: str, where: str) -> None:
        self._text = pattern
        self._where = where
        self._at = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._alternatives(top=True)
        if self._at < len(self._text):
            raise self._error("an unopened )")
        return node

    def _alternatives(self, *, top: bool) -> Node:
        options = [self._sequence(top=top)]
        while self._take("|"):
            options.append(self._sequence(top=top))
        return choice(*options)

    def _sequence(self, *, top: bool) -> Node:
        anything = Repeat(CHARACTER, 0, None)
        begins = self._take("^")
        if begins and not top:
            raise self._error("^ inside of a group")
        items: list[Node] = []
        ends = False
        while self._peek() and self._peek() not in "|)":
            if self._take("$"):
                ends = True
                if not top or (self._peek() and self._peek() != "|"):
                    raise self._error("$ that is not at the end")
                break
            items.append(self._repeated(self._atom()))
        if top:
            if not begins:
                items.insert(0, anything)
            if not ends:
                items.append(anything)
        return Concatenation(tuple(items))

    def _repeated(self, item: Node) -> Node:
        counts: tuple[int, int | None] | None = None
        for sign, meant in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                counts = meant
                break
        else:
            if self._peek() == "{":
                counts = self._counts()
        if counts is None:
            return item
        # Lazy or not is about which match is found, not about what matches.
        self._take("?")
        if self._peek() and self._peek() in "*+{":
            raise self._error("a repetition of a repetition")
        return Repeat(item, *counts)

    def _counts(self) -> tuple[int, int | None]:
        end = self._text.find("}", self._at)
        least, comma, most = self._text[self._at + 1 : max(end, 0)].partition(",")
        if end < 0 or not least.isdecimal() or (most and not most.isdecimal()):
            raise self._error("a repetition is {n}, {n,} or {n,m}")
        if max(len(least), len(most)) > 6 or max(int(least), int(most or 0)) > REPETITIONS_MAX:
            raise self._error(f"at most {REPETITIONS_MAX} repetitions")
        self._at = end + 1
        low = int(least)
        high = int(most) if most else (None if comma else low)
        if high is not None and high < low:
            raise self._error("a repetition's most is below its least")
        return low, high

    def _atom(self) -> Node:
        character = self._peek()
        self._at += 1
        if character == "(":
            return self._group()
        if character == "[":
            return spelled(self._class())
        if character == ".":
            return spelled(_NOT_LINE_END)
        if character == "\\":
            return spelled(self._escape())
        if character in "*+?{^":
            raise self._error(f"{character} has nothing to apply to")
        return spelled(((ord(character), ord(character)),))

    def _group(self) -> Node:
        if self._take("?") and not self._take(":"):
            raise self._error("only (…) and (?:…) are supported")
        self._depth += 1
        if self._depth > DEPTH_MAX // 2:
            raise self._error("too many nested groups")
        inside = self._alternatives(top=False)
        if not self._take(")"):
            raise self._error("expected )")
        self._depth -= 1
        return sequence(inside)

    def _class(self) -> Ranges:
        inverted = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._member()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1 or high[0][0] < low[0][0]:
                    raise self._error("not a range")
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges.extend(low)
        return chars(*ranges, inverted=inverted).ranges

    def _member(self) -> Ranges:
        character = self._peek()
        if not character:
            raise self._error("expected ]")
        self._at += 1
        if character != "\\":
            return ((ord(character), ord(character)),)
        if self._take("b"):
            return ((8, 8),)
        return self._escape()

    def _escape(self) -> Ranges:
        kind = self._peek()
        self._at += 1
        if kind in _CLASSES:
            return _CLASSES[kind]
        if kind in _CONTROLS:
            return ((_CONTROLS[kind], _CONTROLS[kind]),)
        size = {"x": 2, "u": 4}.get(kind, 0)
        if size:
            digits = self._text[self._at : self._at + size]
            if len(digits) < size or any(c not in "0123456789abcdefABCDEF" for c in digits):
                raise self._error("a bad escape")
            self._at += size
            code = min(int(digits, 16), CODE_POINT_MAX)
            return ((code, code),)
        if not kind or (kind.isalnum() and kind.isascii()):
            raise self._error(f"\\{kind} is not supported")
        return ((ord(kind), ord(kind)),)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> bool:
        if not self._text.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def _error(self, message: str) -> GrammarError:
        return GrammarError(
            f"{self._where}: pattern {self._text[:80]!r}, character {self._at}: {message}"
        )
