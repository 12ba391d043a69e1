"""Grammars written for an answer: GBNF text from the pieces that the formats need.

Owns: quoting, text up to a marker, the placing of schemas and of the caller's own grammar under
names that cannot meet. It must not know any format. The notation is llama.cpp's
(grammars/README.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from aivailable.wire.generation import Constraint
from aivailable.worker.grammar.gbnf import read_gbnf
from aivailable.worker.grammar.schema import any_object, read_schema
from aivailable.worker.grammar.spelling import schema_rules, spelled_rules

_IN_CLASS: Final = {
    **{char: f"\\{char}" for char in '\\]["'},
    "^": "\\x5E",
    "-": "\\x2D",
    "\n": "\\n",
}


def literal(text: str) -> str:
    """Text as a GBNF terminal."""
    for char, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(char, escaped)
    return f'"{text}"'


def json_literal(value: str) -> str:
    """A JSON string as a GBNF terminal, quotes included."""
    return literal(json.dumps(value, ensure_ascii=False))


class GrammarText:
    """Rules under construction. `gap` and `blank` are there: optional white space, one character
    and up to four."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self.rule("gap", "[ \\n]?")
        self.rule("blank", "([ \\n] ([ \\n] ([ \\n] [ \\n]?)?)?)?")

    def rule(self, name: str, body: str) -> str:
        """Add `name ::= body`; returns the name."""
        self._rules[name] = f"{name} ::= {body}"
        return name

    def schema(self, name: str, schema: Mapping[str, Any]) -> str:
        """Add the rules of a tool's schema under `name`. Raises GrammarError."""
        self._rules[name] = schema_rules(schema, name)
        return name

    def asked(self, name: str, constraint: Constraint) -> str:
        """Add what the caller asks of the answer under `name`. Raises GrammarError."""
        if constraint.kind == "gbnf":
            rules = read_gbnf(constraint.text)
        elif constraint.kind == "json_object":
            rules = any_object()
        else:
            rules = read_schema(constraint.text)
        self._rules[name] = spelled_rules(rules, name)
        return name

    def through(self, name: str, marker: str) -> str:
        """Add a rule for any text that ends with the first occurrence of `marker` (the automaton
        of Knuth, Morris and Pratt, written as right-linear rules)."""
        for state, char in enumerate(marker):
            going: dict[int, str] = {}
            for other in dict.fromkeys(marker):
                if other != char:
                    target = _fall(marker, marker[:state] + other)
                    going[target] = going.get(target, "") + other
            choices = [_one_of(char) + (f" {name}-{state + 1}" if state + 1 < len(marker) else "")]
            for target, chars in going.items():
                if target:
                    choices.append(f"{_one_of(chars)} {_state(name, target)}")
            # What leads back to the beginning: all characters but those above.
            named = char + "".join(chars for target, chars in going.items() if target)
            choices.append(f"{_one_of(named, negated=True)} {name}")
            self.rule(_state(name, state), " | ".join(choices))
        return name

    def text(self) -> str:
        """All rules."""
        return "\n".join(self._rules.values()) + "\n"


def _state(name: str, state: int) -> str:
    return f"{name}-{state}" if state else name


def _fall(marker: str, text: str) -> int:
    """The longest beginning of marker that text ends with."""
    return next(
        size for size in range(min(len(marker), len(text)), -1, -1) if text.endswith(marker[:size])
    )


def _one_of(chars: str, *, negated: bool = False) -> str:
    inside = "".join(_IN_CLASS.get(char, char) for char in chars)
    return f"[{'^' if negated else ''}{inside}]"
