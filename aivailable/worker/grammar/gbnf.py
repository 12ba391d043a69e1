"""GBNF, llama.cpp's notation of grammars, read into rules.

Owns: the parser (llama.cpp `grammars/README.md`; token references `<…>` are refused). Pure. It
reads a text from anyone: everything is bounded, and errors name line and column.
"""

from __future__ import annotations

from typing import Final

from aivailable.worker.grammar.rules import (
    CODE_POINT_MAX,
    DEPTH_MAX,
    REPETITIONS_MAX,
    Chars,
    Concatenation,
    GrammarError,
    Node,
    Repeat,
    Rule,
    Text,
    chars,
    choice,
)

GBNF_MAX_CHARS: Final = 256 * 1024
REPEATS_IN_ROW_MAX: Final = 4
"""`a*?+` means something, once."""
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_ESCAPES: Final = {"t": "\t", "r": "\r", "n": "\n", **{c: c for c in '\\"[]-'}}
_HEX_DIGITS: Final = {"x": 2, "u": 4, "U": 8}


def read_gbnf(text: str) -> dict[str, Node]:
    """The grammar's rules, not checked yet (rules.checked). Raises GrammarError."""
    if len(text) > GBNF_MAX_CHARS:
        raise GrammarError(f"the grammar has {len(text)} characters; the limit is {GBNF_MAX_CHARS}")
    return _Reader(text).grammar()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def grammar(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(newlines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip(newlines=False)
            if not self._take("::="):
                raise self._error("expected ::=")
            self._skip(newlines=True)
            if name in rules:
                raise self._error(f"rule {name} is defined twice")
            rules[name] = self._choice()
            if self._at < len(self._text) and self._peek() not in "\r\n":
                raise self._error("expected the end of the rule")
            self._skip(newlines=True)
        return rules

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            self._skip(newlines=True)
            options.append(self._sequence())
        return choice(*options)

    def _sequence(self) -> Node:
        items: list[Node] = []
        while True:
            item = self._item()
            if item is None:
                return items[0] if len(items) == 1 else Concatenation(tuple(items))
            self._skip(newlines=self._depth > 0)
            for _ in range(REPEATS_IN_ROW_MAX):
                counts = self._counts()
                if counts is None:
                    break
                item = Repeat(item, *counts)
                self._skip(newlines=self._depth > 0)
            items.append(item)

    def _item(self) -> Node | None:
        character = self._peek()
        if character == '"':
            return self._literal()
        if character == "[":
            return self._class()
        if character == ".":
            self._at += 1
            return Chars(((0, CODE_POINT_MAX),))
        if character == "(":
            return self._group()
        if character in ("<", "!"):
            raise self._error("token references are not supported; write the token's text")
        if character and character in _NAME:
            return Rule(self._name())
        if character and character in "*+?{":
            raise self._error(f"{character} has nothing to repeat")
        return None

    def _group(self) -> Node:
        self._at += 1
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(f"more than {DEPTH_MAX} nested groups")
        self._skip(newlines=True)
        inside = self._choice()
        self._skip(newlines=True)
        if not self._take(")"):
            raise self._error("expected )")
        self._depth -= 1
        return inside

    def _literal(self) -> Node:
        self._at += 1
        text: list[str] = []
        while not self._take('"'):
            text.append(chr(self._character()))
        return Text("".join(text))

    def _class(self) -> Node:
        self._at += 1
        inverted = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            low = high = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._character()
                if high < low:
                    raise self._error("a range ends before it begins")
            ranges.append((low, high))
        return chars(*ranges, inverted=inverted)

    def _character(self) -> int:
        character = self._peek()
        if not character:
            raise self._error("unexpected end")
        self._at += 1
        if character != "\\":
            return ord(character)
        kind = self._peek()
        self._at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        size = _HEX_DIGITS.get(kind)
        digits = self._text[self._at : self._at + size] if size else ""
        if not size or len(digits) < size or any(c not in "0123456789abcdefABCDEF" for c in digits):
            raise self._error(f"unknown escape \\{kind}")
        self._at += size
        value = int(digits, 16)
        if value > CODE_POINT_MAX:
            raise self._error("a code point beyond U+10FFFF")
        return value

    def _counts(self) -> tuple[int, int | None] | None:
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return counts
        if not self._take("{"):
            return None
        self._skip(newlines=False)
        least = self._number()
        most: int | None = least
        self._skip(newlines=False)
        if self._take(","):
            self._skip(newlines=False)
            most = self._number() if self._peek().isdigit() else None
            self._skip(newlines=False)
        if not self._take("}"):
            raise self._error("expected }")
        if most is not None and most < least:
            raise self._error("a repetition's most is below its least")
        return least, most

    def _number(self) -> int:
        start = self._at
        while self._peek() and self._peek() in "0123456789":
            self._at += 1
        digits = self._text[start : self._at]
        if not digits:
            raise self._error("expected a number")
        if len(digits) > 6 or int(digits) > REPETITIONS_MAX:
            raise self._error(f"at most {REPETITIONS_MAX} repetitions")
        return int(digits)

    def _name(self) -> str:
        start = self._at
        while self._peek() and self._peek() in _NAME:
            self._at += 1
        if start == self._at:
            raise self._error("expected the name of a rule")
        return self._text[start : self._at]

    def _skip(self, *, newlines: bool) -> None:
        while character := self._peek():
            if character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif character in " \t" or (newlines and character in "\r\n"):
                self._at += 1
            else:
                return

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> bool:
        if not self._text.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def _error(self, message: str) -> GrammarError:
        before = self._text[: self._at]
        line = before.count("\n") + 1
        column = self._at - (before.rfind("\n") + 1) + 1
        return GrammarError(f"grammar, line {line}, column {column}: {message}")
