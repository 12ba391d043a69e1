"""A grammar as a tree: what schema and GBNF are read into, and what the automaton is made of.

Owns: the node types, their limits, and the checks that hold for every grammar (undefined rules,
left recursion, rules that match nothing). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from aivailable.errors import RequestError

ROOT: Final = "root"
RULES_MAX: Final = 4096
REPETITIONS_MAX: Final = 8192
"""Largest count in {m,n}."""
DEPTH_MAX: Final = 64
"""Of nested groups, and of nested schemas."""
CODE_POINT_MAX: Final = 0x10FFFF


class GrammarError(RequestError):
    """The grammar or schema cannot be used: status 400."""

    def __init__(self, message: str) -> None:
        super().__init__(400, "invalid_request", message)


@dataclass(frozen=True, slots=True)
class Text:
    """These characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of these ranges (code points, both ends included; sorted, disjoint)."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """What the rule of this name matches."""

    name: str


@dataclass(frozen=True, slots=True)
class Concatenation:
    """One after the other; empty: the empty text."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    """Any one of them; empty: nothing at all."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; None = without end."""

    item: Node
    least: int
    most: int | None


Node: TypeAlias = Text | Chars | Rule | Concatenation | Alternation | Repeat
Rules: TypeAlias = Mapping[str, Node]
NOTHING: Final = Alternation(())
EMPTY: Final = Concatenation(())


def sequence(*items: Node) -> Node:
    """One after the other."""
    return items[0] if len(items) == 1 else Concatenation(items)


def choice(*options: Node) -> Node:
    """Any one of them."""
    return options[0] if len(options) == 1 else Alternation(options)


def optional(item: Node) -> Node:
    """The item or nothing."""
    return Repeat(item, 0, 1)


def chars(*ranges: tuple[int, int], inverted: bool = False) -> Chars:
    """A character class from ranges in any order, overlapping or not."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return Chars(inverse(merged) if inverted else tuple(merged))


def inverse(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Every code point outside of sorted, disjoint ranges."""
    gaps: list[tuple[int, int]] = []
    at = 0
    for low, high in ranges:
        if low > at:
            gaps.append((at, low - 1))
        at = high + 1
    if at <= CODE_POINT_MAX:
        gaps.append((at, CODE_POINT_MAX))
    return tuple(gaps)


def checked(rules: Rules) -> dict[str, Node]:
    """The same rules without what can never be finished. Raises GrammarError."""
    if ROOT not in rules:
        raise GrammarError("the grammar has no rule named root")
    if len(rules) > RULES_MAX:
        raise GrammarError(f"the grammar has {len(rules)} rules; {RULES_MAX} are possible")
    for name, node in rules.items():
        for part in _parts(node):
            if isinstance(part, Rule) and part.name not in rules:
                raise GrammarError(f"rule {name} refers to {part.name}, which is not defined")
            if isinstance(part, Repeat) and max(part.least, part.most or 0) > REPETITIONS_MAX:
                raise GrammarError(f"rule {name} repeats more than {REPETITIONS_MAX} times")
    useful = _fixpoint(rules, _productive)
    if ROOT not in useful:
        raise GrammarError("no finite text matches the grammar")
    pruned = {name: _pruned(rules[name], useful) for name in rules if name in useful}
    _refuse_left_recursion(pruned)
    return pruned


def _parts(node: Node) -> Iterator[Node]:
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        if isinstance(node, Concatenation):
            todo.extend(node.items)
        elif isinstance(node, Alternation):
            todo.extend(node.options)
        elif isinstance(node, Repeat):
            todo.append(node.item)


def _fixpoint(rules: Rules, holds: _Test) -> set[str]:
    """Names of the rules for which `holds`, given those for which it is known to."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, node in rules.items():
        for part in _parts(node):
            if isinstance(part, Rule):
                users[part.name].append(name)
    known: set[str] = set()
    todo = list(rules)
    while todo:
        name = todo.pop()
        if name not in known and holds(rules[name], known):
            known.add(name)
            todo.extend(users[name])
    return known


def _productive(node: Node, known: set[str]) -> bool:
    """Whether some finite text matches."""
    match node:
        case Text():
            return True
        case Chars(ranges):
            return bool(ranges)
        case Rule(name):
            return name in known
        case Concatenation(items):
            return all(_productive(item, known) for item in items)
        case Alternation(options):
            return any(_productive(option, known) for option in options)
        case Repeat(item, least, _):
            return least == 0 or _productive(item, known)


def _empty(node: Node, known: set[str]) -> bool:
    """Whether the empty text matches."""
    match node:
        case Text(text):
            return not text
        case Chars():
            return False
        case Rule(name):
            return name in known
        case Concatenation(items):
            return all(_empty(item, known) for item in items)
        case Alternation(options):
            return any(_empty(option, known) for option in options)
        case Repeat(item, least, _):
            return least == 0 or _empty(item, known)


def _pruned(node: Node, useful: set[str]) -> Node:
    """The node without options that match nothing: an answer must never enter a dead end."""
    match node:
        case Concatenation(items):
            return Concatenation(tuple(_pruned(item, useful) for item in items))
        case Alternation(options):
            return Alternation(
                tuple(_pruned(option, useful) for option in options if _productive(option, useful))
            )
        case Repeat(item, least, most):
            if not _productive(item, useful):
                return EMPTY
            return Repeat(_pruned(item, useful), least, most)
        case _:
            return node


def _first_rules(node: Node, empty: set[str]) -> set[str]:
    """Rules that can be entered before a character has been matched."""
    match node:
        case Rule(name):
            return {name}
        case Concatenation(items):
            found: set[str] = set()
            for item in items:
                found |= _first_rules(item, empty)
                if not _empty(item, empty):
                    break
            return found
        case Alternation(options):
            return set().union(*(_first_rules(option, empty) for option in options))
        case Repeat(item, _, _):
            return _first_rules(item, empty)
        case _:
            return set()


def _refuse_left_recursion(rules: Rules) -> None:
    empty = _fixpoint(rules, _empty)
    first = {name: sorted(_first_rules(node, empty)) for name, node in rules.items()}
    state: dict[str, bool] = {}
    """Absent: not seen; False: on the path; True: done."""
    for start in rules:
        path: list[tuple[str, Iterator[str]]] = []
        if start not in state:
            state[start] = False
            path.append((start, iter(first[start])))
        while path:
            name, rest = path[-1]
            following = next(rest, None)
            if following is None:
                state[name] = True
                path.pop()
            elif state.get(following) is False:
                raise GrammarError(
                    f"left recursion: rule {following} can begin with itself, which never ends"
                )
            elif following not in state:
                state[following] = False
                path.append((following, iter(first[following])))


class _Test(Protocol):
    def __call__(self, node: Node, known: set[str], /) -> bool: ...
