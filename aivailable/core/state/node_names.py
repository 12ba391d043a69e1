"""How members are told apart by name, and which member a person means by what they typed.

Machines are cloned, and whole rooms are called `vm`. A name that several members have is shown
with the beginning of the node's id (`vm-ab12`). A person may type every name that is shown. The
records keep the plain names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aivailable.core.ids import NODE_ID_CHARS, NodeId, short
from aivailable.core.state.records import Member

SUFFIX_MIN_CHARS = 4
"""Of the id, behind a name that several have; longer where it must be."""
PREFIX_MIN_CHARS = 4
"""Of an id that somebody types."""
NODES_NAMED_MAX = 32
"""In one refusal; the rest are counted."""


def shown_names(members: Mapping[NodeId, Member]) -> Mapping[NodeId, str]:
    """What to call each member: no two are called the same, whatever their case."""
    having: dict[str, list[NodeId]] = {}
    for node in sorted(members):
        having.setdefault(members[node].name.casefold(), []).append(node)
    shown = {nodes[0]: members[nodes[0]].name for nodes in having.values() if len(nodes) == 1}
    taken = frozenset(having)
    for nodes in having.values():
        if len(nodes) > 1:
            shown |= _apart({node: members[node].name for node in nodes}, taken)
    return shown


def _apart(names: Mapping[NodeId, str], taken: frozenset[str]) -> dict[NodeId, str]:
    """Names with as much of the id as tells these nodes apart from each other and from `taken`."""
    found: dict[NodeId, str] = {}
    for chars in range(SUFFIX_MIN_CHARS, NODE_ID_CHARS + 1):
        found = {node: f"{name}-{node[:chars]}" for node, name in names.items()}
        folded = frozenset(name.casefold() for name in found.values())
        if len(folded) == len(names) and folded.isdisjoint(taken):
            break
    return found


def shown_name(members: Mapping[NodeId, Member], node: NodeId) -> str:
    """What to call one node; its short id when it is not a member."""
    member = members.get(node)
    if member is None:
        return short(node)
    folded = member.name.casefold()
    if any(one.name.casefold() == folded and one.node != node for one in members.values()):
        return shown_names(members)[node]
    return member.name


def meant(shown: Mapping[NodeId, str], wanted: str) -> tuple[NodeId, ...]:
    """Who can be meant: by the whole id or the shown name, else by the plain name that several
    have, else by the beginning of an id. One: it is that one. Several: ask again.

    `shown`: every node with the name under which it is shown.
    """
    folded = wanted.casefold()
    for fits in (
        [node for node, name in shown.items() if folded in (node, name.casefold())],
        [node for node, name in shown.items() if _plain(node, name).casefold() == folded],
        [node for node in shown if len(folded) >= PREFIX_MIN_CHARS and node.startswith(folded)],
    ):
        if fits:
            return tuple(fits)
    return ()


def choices(shown: Mapping[NodeId, str], nodes: Iterable[NodeId]) -> str:
    """The nodes as a person may type them, each with its short id."""
    listed = list(nodes)
    words = [f"{shown[node]} ({short(node)})" for node in listed[:NODES_NAMED_MAX]]
    more = len(listed) - NODES_NAMED_MAX
    return (", ".join(words) or "nobody") + (f" and {more} more" if more > 0 else "")


def _plain(node: NodeId, shown: str) -> str:
    """The shown name without the beginning of the id behind it."""
    plain, dash, suffix = shown.rpartition("-")
    told_apart = dash and len(suffix) >= SUFFIX_MIN_CHARS and node.startswith(suffix)
    return plain if told_apart else shown
