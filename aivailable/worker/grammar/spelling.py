"""Rules written as GBNF: for the chat formats, which put schemas into grammars of their own.

Owns: the notation's writing side (gbnf reads it). Pure; given to the chat formats as their
converter of schemas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aivailable.worker.grammar.rules import (
    ROOT,
    Alternation,
    Chars,
    Concatenation,
    Node,
    Repeat,
    Rule,
    Rules,
    Text,
)
from aivailable.worker.grammar.schema import read_schema

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def schema_rules(schema: Mapping[str, Any], name: str, *, strict: bool = False) -> str:
    """GBNF rules of a schema; the first is `name`, the others' names begin with it. Without
    `strict` what cannot be expressed is left free, as tools' schemas have it. Raises GrammarError.
    """
    return spelled_rules(read_schema(json.dumps(schema), strict=strict), name)


def spelled_rules(rules: Rules, name: str) -> str:
    """These rules under `name` instead of root, those that nothing refers to left out."""

    def renamed(rule: str) -> str:
        return name if rule == ROOT else f"{name}-{rule}"

    lines: list[str] = []
    seen = {ROOT}
    todo = [ROOT]
    while todo:
        rule = todo.pop()
        used: list[str] = []
        lines.append(f"{renamed(rule)} ::= {_spell(rules[rule], renamed, used)}")
        todo.extend(other for other in dict.fromkeys(used) if other not in seen)
        seen.update(used)
    return "\n".join(lines)


def _spell(node: Node, renamed: Any, used: list[str]) -> str:
    match node:
        case Text(text):
            return f'"{"".join(_ESCAPES.get(char, _char(ord(char))) for char in text)}"'
        case Chars(ranges):
            return f"[{''.join(_range(low, high) for low, high in ranges)}]"
        case Rule(name):
            used.append(name)
            return str(renamed(name))
        case Concatenation(items):
            inside = " ".join(_spell(item, renamed, used) for item in items)
            return f"({inside})" if items else '""'
        case Alternation(options):
            inside = " | ".join(_spell(option, renamed, used) for option in options)
            return f"({inside})" if options else "[]"
        case Repeat(item, least, most):
            return f"({_spell(item, renamed, used)}){{{least},{'' if most is None else most}}}"


def _range(low: int, high: int) -> str:
    return _code(low) if low == high else f"{_code(low)}-{_code(high)}"


def _code(code: int) -> str:
    return _char(code) if chr(code).isascii() and chr(code).isalnum() else f"\\U{code:08X}"


def _char(code: int) -> str:
    return chr(code) if code >= 0x20 else f"\\x{code:02X}"
