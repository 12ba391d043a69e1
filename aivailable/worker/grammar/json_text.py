"""JSON as rules: values of any kind, strings of given characters, numbers between bounds.

Owns: how JSON is spelled in an answer. White space is bounded, because a small model that may write
it for ever does; a character that must be escaped has one spelling in patterns and keys. Pure.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

from aivailable.worker.grammar.rules import (
    CODE_POINT_MAX,
    EMPTY,
    NOTHING,
    Chars,
    Node,
    Repeat,
    Rule,
    Text,
    chars,
    choice,
    optional,
    sequence,
)

INDENT_MAX: Final = 20
FRACTION_MAX_DIGITS: Final = 15
DIGITS_MAX: Final = 15
"""Of an integer without bounds: what a double holds exactly."""

SPACE: Final = Rule("json-space")
VALUE: Final = Rule("json-value")
OBJECT: Final = Rule("json-object")
ARRAY: Final = Rule("json-array")
STRING: Final = Rule("json-string")
CHARACTER: Final = Rule("json-character")
NUMBER: Final = Rule("json-number")
INTEGER: Final = Rule("json-integer")
BOOLEAN: Final = choice(Text("true"), Text("false"))
NULL: Final = Text("null")

DIGIT: Final = chars((0x30, 0x39))
NONZERO: Final = chars((0x31, 0x39))
_HEX: Final = chars((0x30, 0x39), (0x41, 0x46), (0x61, 0x66))
_PLAIN_RANGES: Final = ((0x20, 0x21), (0x23, 0x5B), (0x5D, CODE_POINT_MAX))
PLAIN: Final = chars(*_PLAIN_RANGES)
"""Characters that stand for themselves."""
_ESCAPED: Final = sequence(
    Text("\\"),
    choice(
        chars(*((ord(c), ord(c)) for c in '"\\/bfnrt')),
        sequence(
            Text("u"),
            # Not D800 to DFFF: half a surrogate pair is no character.
            choice(
                sequence(
                    chars((0x30, 0x39), (0x41, 0x43), (0x45, 0x46), (0x61, 0x63), (0x65, 0x66)),
                    _HEX,
                ),
                sequence(chars((0x44, 0x44), (0x64, 0x64)), chars((0x30, 0x37))),
            ),
            _HEX,
            _HEX,
        ),
    ),
)


def base_rules() -> dict[str, Node]:
    """Any JSON, as rules for others to refer to."""
    return {
        SPACE.name: optional(
            choice(
                Text(" "),
                sequence(Text("\n"), Repeat(chars((0x20, 0x20), (0x09, 0x09)), 0, INDENT_MAX)),
            )
        ),
        VALUE.name: choice(OBJECT, ARRAY, STRING, NUMBER, BOOLEAN, NULL),
        OBJECT.name: object_of(members(member(STRING, VALUE))),
        ARRAY.name: array_of(VALUE, 0, None),
        CHARACTER.name: choice(PLAIN, _ESCAPED),
        STRING.name: quoted(Repeat(CHARACTER, 0, None)),
        INTEGER.name: sequence(
            optional(Text("-")),
            choice(Text("0"), sequence(NONZERO, Repeat(DIGIT, 0, DIGITS_MAX - 1))),
        ),
        NUMBER.name: sequence(
            INTEGER,
            optional(sequence(Text("."), Repeat(DIGIT, 1, FRACTION_MAX_DIGITS))),
            optional(
                sequence(
                    chars((0x45, 0x45), (0x65, 0x65)),
                    optional(chars((0x2B, 0x2B), (0x2D, 0x2D))),
                    Repeat(DIGIT, 1, 2),
                )
            ),
        ),
    }


def quoted(content: Node) -> Node:
    """A JSON string of this content."""
    return sequence(Text('"'), content, Text('"'))


def literal(value: Any) -> Node:
    """One JSON value, spelled in one way."""
    return Text(json.dumps(value, ensure_ascii=False, allow_nan=False))


def member(key: Node, value: Node) -> Node:
    """key: value"""
    return sequence(key, SPACE, Text(":"), SPACE, value)


COMMA: Final = sequence(Text(","), SPACE)


def members(one: Node) -> Node:
    """Any number of members, comma between them."""
    return optional(sequence(one, SPACE, Repeat(sequence(COMMA, one, SPACE), 0, None)))


def object_of(content: Node) -> Node:
    """Braces around members; the members bring the space after themselves."""
    return sequence(Text("{"), SPACE, content, Text("}"))


def array_of(item: Node, least: int, most: int | None) -> Node:
    """An array of this many items of one kind."""
    more = None if most is None else max(0, most - 1)
    rest = Repeat(sequence(COMMA, item, SPACE), max(0, least - 1), more)
    filled = NOTHING if most == 0 else sequence(item, SPACE, rest)
    content = filled if least > 0 else choice(EMPTY, filled)
    return sequence(Text("["), SPACE, content, Text("]"))


def tuple_of(items: list[Node], rest: Node | None, least: int, most: int | None) -> Node:
    """An array whose first items are given; `least` to `most` of all."""
    content: Node = EMPTY
    if rest is not None:
        missing = max(0, least - len(items))
        more = None if most is None else most - len(items)
        content = Repeat(sequence(COMMA, rest, SPACE), missing, more)
    for at in range(len(items) - 1, -1, -1):
        this = sequence(items[at], SPACE, content)
        if at > 0:
            this = sequence(COMMA, this)
        content = this if least > at else choice(EMPTY, this)
    return sequence(Text("["), SPACE, content, Text("]"))


def spelled(ranges: tuple[tuple[int, int], ...]) -> Node:
    """One character of these ranges inside of a JSON string."""
    plain = [
        (max(low, least), min(high, most))
        for low, high in ranges
        for least, most in _PLAIN_RANGES
        if max(low, least) <= min(high, most)
    ]
    special = [
        Text(json.dumps(chr(code))[1:-1])
        for code in (*range(0x20), ord('"'), ord("\\"))
        if any(low <= code <= high for low, high in ranges)
    ]
    options: list[Node] = [Chars(tuple(plain))] if plain else []
    return choice(*options, *special)


def key_except(names: list[str]) -> Node:
    """A JSON string of plain characters that is none of these names."""
    return quoted(_except([name for name in names if not set(name) & set('"\\')]))


def _except(names: list[str]) -> Node:
    heads = sorted({name[0] for name in names if name})
    ranges = tuple((ord(head), ord(head)) for head in heads)
    other = Chars(
        tuple(
            (max(low, least), min(high, most))
            for low, high in chars(*ranges, inverted=True).ranges
            for least, most in _PLAIN_RANGES
            if max(low, least) <= min(high, most)
        )
    )
    options: list[Node] = [sequence(other, Repeat(PLAIN, 0, None))]
    if "" not in names:
        options.append(EMPTY)
    for head in heads:
        tails = [name[1:] for name in names if name.startswith(head)]
        options.append(sequence(Text(head), _except(tails)))
    return choice(*options)


def integer_between(least: int | None, most: int | None) -> Node:
    """The decimal spelling of an integer, bounds included."""
    options: list[Node] = []
    if most is None or most >= 0:
        options.append(_natural(max(0, least or 0) if least is not None else 0, most))
    if least is None or least < 0:
        low = 1 if most is None or most >= 0 else -most
        options.append(sequence(Text("-"), _natural(low, None if least is None else -least)))
    return choice(*options)


def _natural(least: int, most: int | None) -> Node:
    """least >= 0; nothing when most < least."""
    if most is None:
        width = len(str(least))
        options = [_same_width(str(least), "9" * width)]
        if width < DIGITS_MAX:
            options.append(sequence(NONZERO, Repeat(DIGIT, width, DIGITS_MAX - 1)))
        return choice(*options)
    options = []
    for width in range(len(str(least)), len(str(most)) + 1):
        low = max(least, 10 ** (width - 1) if width > 1 else 0)
        high = min(most, 10**width - 1)
        if low <= high:
            options.append(_same_width(str(low), str(high)))
    return choice(*options)


def _same_width(low: str, high: str) -> Node:
    """Numbers of one width from low to high."""
    if not low:
        return EMPTY
    width = len(low) - 1
    if low[0] == high[0]:
        return sequence(Text(low[0]), _same_width(low[1:], high[1:]))
    first, last = ord(low[0]), ord(high[0])
    options: list[Node] = []
    if set(low[1:]) - {"0"}:
        options.append(sequence(Text(low[0]), _same_width(low[1:], "9" * width)))
        first += 1
    tail: Node | None = None
    if set(high[1:]) - {"9"}:
        tail = sequence(Text(high[0]), _same_width("0" * width, high[1:]))
        last -= 1
    if first <= last:
        options.append(sequence(chars((first, last)), Repeat(DIGIT, width, width)))
    if tail is not None:
        options.append(tail)
    return choice(*options)


Bound = tuple[Decimal, bool]
"""(the number, whether it is excluded)."""


def number_between(least: Bound | None, most: Bound | None) -> Node:
    """A decimal number without exponent between bounds."""
    options: list[Node] = []
    if most is None or most[0] >= 0:
        low = least if least is not None and least[0] >= 0 else (Decimal(0), False)
        options.append(_positive(low, most))
    if least is None or least[0] < 0:
        high = None if least is None else (-least[0], least[1])
        low = (Decimal(0), True) if most is None or most[0] >= 0 else (-most[0], most[1])
        options.append(sequence(Text("-"), _positive(low, high)))
    return choice(*options)


def _positive(least: Bound, most: Bound | None) -> Node:
    (low, low_out), floor = least, int(least[0])
    fraction = _digits(low)
    any_fraction = optional(sequence(Text("."), Repeat(DIGIT, 1, FRACTION_MAX_DIGITS)))
    if most is None:
        return choice(
            sequence(Text(str(floor)), _fraction(fraction, low_out, None, False)),
            sequence(_natural(floor + 1, None), any_fraction),
        )
    (high, high_out), ceiling = most, int(most[0])
    if floor > ceiling:
        return NOTHING
    if floor == ceiling:
        inside = _fraction(fraction, low_out, _digits(high), high_out)
        return sequence(Text(str(floor)), inside)
    return choice(
        sequence(Text(str(floor)), _fraction(fraction, low_out, None, False)),
        sequence(_natural(floor + 1, ceiling - 1), any_fraction),
        sequence(Text(str(ceiling)), _fraction("", False, _digits(high), high_out)),
    )


def _digits(number: Decimal) -> str:
    """The digits after the point, without trailing zeros."""
    text = format(number, "f")
    return text.partition(".")[2].rstrip("0")


def _fraction(low: str, low_out: bool, high: str | None, high_out: bool) -> Node:
    """The point and digits of a fraction between two, or nothing where 0 is between them."""
    options: list[Node] = []
    if not low and not low_out and not (high == "" and high_out):
        options.append(EMPTY)
    digits = _after_point(low, low_out, high, high_out, FRACTION_MAX_DIGITS)
    return choice(*options, sequence(Text("."), digits))


def _after_point(low: str, low_out: bool, high: str | None, high_out: bool, room: int) -> Node:
    """At least one digit; `high` None: no upper bound (of 1)."""
    if room == 0:
        return NOTHING
    first = int(low[:1] or "0")
    last = 9 if high is None else int(high[:1] or "0")
    if first > last:
        return NOTHING
    options: list[Node] = []
    for digit in range(first, last + 1):
        at_low, at_high = digit == first, high is not None and digit == last
        rest_low, rest_low_out = (low[1:], low_out) if at_low else ("", False)
        rest_high = high[1:] if at_high and high is not None else None
        rest_high_out = high_out and at_high
        ends = not rest_low and not rest_low_out and not (rest_high == "" and rest_high_out)
        if not at_low and not at_high:
            tail: Node = Repeat(DIGIT, 0, room - 1)
        elif (not rest_low and not rest_low_out) and rest_high is None:
            tail = Repeat(DIGIT, 0, room - 1)
        else:
            more = _after_point(rest_low, rest_low_out, rest_high, rest_high_out, room - 1)
            tail = choice(EMPTY, more) if ends else more
        options.append(sequence(Text(str(digit)), tail))
    return choice(*options)
