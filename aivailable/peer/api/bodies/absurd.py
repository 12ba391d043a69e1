"""Bodies that cost far more to parse than they weigh are refused before they are parsed.

Owns the limits on how many parts a body has, and the counting: bytes are counted at the speed of C,
first in everything, and only where that is too many again without what stands in strings. Pure. It
must not know JSON better than that: what is no JSON is for the parser to refuse.

The bound, measured in processor time of one core: with these limits no step of reading a body of
4 MiB holds the loop for more than 26 ms (a string of nothing but escapes; 262,144 numbers: 21 ms;
32,768 members: 12 ms). Without them it is 480 ms and more (950,000 lists of one number). The same
request as a message takes at most 39 ms to pack and 25 ms to read (4,096 tool calls; 262,144 token
ids). These are single steps of the loop at the two ends of a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aivailable.errors import RequestError

CONTAINERS_MAX = 32_768
"""Lists and objects of one body: 4,096 messages with a call each have half of them."""
MEMBERS_MAX = 32_768
"""Members of all objects together: each of their names is a new string."""
ELEMENTS_MAX = 262_144
"""Elements of all lists and objects together: token ids are sent as lists of numbers."""
FRACTIONS_MAX = 16_384
"""Numbers that are not integers, which cost ten times as much to read."""
DIGITS_MAX = 64
"""Of one number: what is longer costs the square of its length."""
STRINGS_COUNTED_MAX = 65_536
"""Strings in a body that needs the second look."""

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""One that does not end is taken to the end: looked for again at each quote in it, it would cost
the square of its length."""
_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def refuse_absurd(body: bytes) -> None:
    """Raises RequestError 400."""
    found = next(_excesses(body), "")
    if found:
        # What stands in strings counts nothing: code is full of brackets, tables of commas.
        bare = _without_strings(body)
        if bare.count(b"[") != bare.count(b"]") or bare.count(b"{") != bare.count(b"}"):
            raise RequestError(400, "invalid_json", "the body is not JSON: a bracket is missing")
        found = next(_excesses(bare), "")
    if found:
        raise RequestError(400, "too_many_values", f"the body has {found}: send less at once")


def _excesses(body: bytes) -> Iterator[str]:
    if body.count(b"[") + body.count(b"{") > CONTAINERS_MAX:
        yield f"more than {CONTAINERS_MAX} lists and objects"
    if body.count(b":") > MEMBERS_MAX:
        yield f"more than {MEMBERS_MAX} members of objects"
    if body.count(b",") > ELEMENTS_MAX:
        yield f"more than {ELEMENTS_MAX} elements"
    if body.count(b".") + body.count(b"e") + body.count(b"E") > FRACTIONS_MAX:
        yield f"more than {FRACTIONS_MAX} numbers with a fraction or an exponent"
    if b"0" * (DIGITS_MAX + 1) in body.translate(_ZEROS):
        yield f"a number of more than {DIGITS_MAX} digits"


def _without_strings(body: bytes) -> bytes:
    """Raises RequestError 400."""
    parts: list[bytes] = []
    end = 0
    # Not one call of `sub`: the loop gets its turns between these.
    for string in _STRING.finditer(body):
        parts.append(body[end : string.start()])
        end = string.end()
        if len(parts) > STRINGS_COUNTED_MAX:
            raise RequestError(
                400,
                "too_many_values",
                f"the body has more than {STRINGS_COUNTED_MAX} strings: send less at once",
            )
    parts.append(body[end:])
    return b"".join(parts)
