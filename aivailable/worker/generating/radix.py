"""Which sequence holds which tokens: a radix tree over the caches of all sequences.

Owns: token prefixes and who shares them; it must not know slots, jobs or an engine. Pure.

Every edge is a run of tokens (Morrison's PATRICIA, 1968, over token ids). A sequence lies along
one path from the root and ends at a node's end, so a look-up costs the length of the prompt,
however many sequences there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Node:
    """A run of tokens after its parent's. `holders` go through the whole run, in order of age."""

    tokens: list[int]
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    holders: dict[int, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """`holders` all begin with the same first `length` tokens as what was looked up."""

    length: int
    holders: tuple[int, ...]


class RadixTree:
    """Sequences are named by numbers; each is in the tree at most once."""

    def __init__(self) -> None:
        self._root = _Node([], None)
        self._ends: dict[int, _Node] = {}
        self._lengths: dict[int, int] = {}

    def length(self, sequence: int) -> int:
        """Tokens known of a sequence; 0 for an unknown one."""
        return self._lengths.get(sequence, 0)

    def put(self, sequence: int, tokens: Sequence[int]) -> None:
        """The sequence holds exactly these tokens now."""
        self.remove(sequence)
        self._ends[sequence] = self._root
        self._lengths[sequence] = 0
        self.extend(sequence, tokens)

    def extend(self, sequence: int, more: Sequence[int]) -> None:
        """The sequence holds this many tokens more. Raises KeyError for an unknown one."""
        node, at = self._ends[sequence], 0
        more = list(more)
        self._lengths[sequence] += len(more)
        while at < len(more):
            child = node.children.get(more[at])
            if child is None:
                node, at = self._append(node, sequence, more[at:]), len(more)
                break
            shared = common_length(child.tokens, more[at:])
            if shared < len(child.tokens):
                child = _split(child, shared)
            child.holders[sequence] = None
            node, at = child, at + shared
        self._ends[sequence] = node

    def remove(self, sequence: int) -> None:
        """Forget a sequence; nothing happens when it is unknown."""
        node = self._ends.pop(sequence, None)
        self._lengths.pop(sequence, None)
        while node is not None and node.parent is not None:
            parent = node.parent
            del node.holders[sequence]
            if not node.holders:
                del parent.children[node.tokens[0]]
            else:
                _join_only_child(node)
            node = parent

    def find(self, tokens: Sequence[int]) -> list[Match]:
        """Who shares a beginning with these tokens: the longest first, each set of holders once
        with the most it shares."""
        found: list[Match] = []
        tokens = list(tokens)
        node, at = self._root, 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                break
            shared = common_length(child.tokens, tokens[at:])
            at += shared
            found.append(Match(at, tuple(child.holders)))
            if shared < len(child.tokens):
                break
            node = child
        found.reverse()
        return found

    def _append(self, node: _Node, sequence: int, tokens: list[int]) -> _Node:
        alone = node is not self._root and not node.children and len(node.holders) == 1
        if alone:
            node.tokens.extend(tokens)
            return node
        leaf = _Node(tokens, node, {}, {sequence: None})
        node.children[tokens[0]] = leaf
        return leaf


def common_length(left: list[int], right: list[int]) -> int:
    """How many first tokens are the same."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    return next(at for at in range(most) if left[at] != right[at])


def _split(node: _Node, length: int) -> _Node:
    """Cut a run in two. `node` keeps the lower part, because sequences end there."""
    assert node.parent is not None
    upper = _Node(node.tokens[:length], node.parent, {}, dict(node.holders))
    node.parent.children[upper.tokens[0]] = upper
    node.tokens, node.parent = node.tokens[length:], upper
    upper.children[node.tokens[0]] = node
    return upper


def _join_only_child(node: _Node) -> None:
    """Undo a split that nobody needs any more: everyone in the run goes on into the same child."""
    if len(node.children) != 1 or node.parent is None:
        return
    (child,) = node.children.values()
    if len(child.holders) != len(node.holders):
        return
    child.tokens, child.parent = node.tokens + child.tokens, node.parent
    node.parent.children[child.tokens[0]] = child
