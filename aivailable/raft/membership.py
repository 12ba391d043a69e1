"""Who votes, derived from the log alone.

Owns: the encoding of a membership change and the fold that turns a base configuration and the log
after it into the configuration in force. In Raft a change is in force from the moment it is in the
log (Ongaro, dissertation §4.1), so the fold runs over all entries, committed or not. It must not
touch the library.

Not to be confused with `peer.membership`, a node's way into a cluster and between two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgpack

from aivailable.core.ids import NodeId
from aivailable.raft.library import MEMBERSHIP

Entry = tuple[bytes, int, int]
"""(command with its type byte, log index, term), as the library keeps it."""
Verb = Literal["add", "rem"]
Voter = tuple[NodeId, int]
"""(node, incarnation). A voter that lost its log comes back as another incarnation: it may have
promised what it no longer knows, so to Raft it is another voter, which nobody has added yet. The
founders of a cluster are incarnation 0; every other fresh log draws its own number."""
Change = tuple[Verb, NodeId, int]
"""(verb, node, incarnation); `rem` removes whatever incarnation there is."""
NODE_ID_MAX_CHARS = 64
INCARNATION_BITS = 61


def founders(nodes: Iterable[NodeId]) -> tuple[Voter, ...]:
    """The configuration that a fresh log starts from."""
    return tuple(sorted((node, 0) for node in nodes))


def names(voters: Iterable[Voter]) -> tuple[NodeId, ...]:
    return tuple(node for node, _ in voters)


def checked(value: object) -> tuple[Voter, ...]:
    """A configuration from bytes. Raises ValueError when it does not have the shape."""
    if not isinstance(value, tuple):
        raise ValueError("voters are no list")
    voters: list[Voter] = []
    for entry in value:
        match entry:
            case (str(node), int(incarnation)) if type(incarnation) is int and incarnation >= 0:
                voters.append((node, incarnation))
            case _:
                raise ValueError("a voter is malformed")
    return tuple(voters)


def change_command(verb: Verb, node: NodeId, incarnation: int = 0) -> bytes:
    """A membership change as a log command."""
    packed: bytes = msgpack.packb([verb, node, incarnation], use_bin_type=True)
    return MEMBERSHIP + packed


def parse_change(command: bytes) -> Change | None:
    """The change that a command carries; None for any other command and for a malformed one."""
    if command[:1] != MEMBERSHIP or len(command) > 2 * NODE_ID_MAX_CHARS:
        return None
    try:
        value = msgpack.unpackb(command[1:], use_list=False)
    except ValueError:
        return None
    match value:
        case (("add" | "rem") as verb, str(node), int(number)) if type(number) is int:
            return verb, node, number
    return None


def after(voters: Iterable[Voter], change: Change) -> tuple[Voter, ...]:
    """The voters once `change` is in force, sorted."""
    verb, node, incarnation = change
    kept = [voter for voter in voters if voter[0] != node]
    return tuple(sorted([*kept, (node, incarnation)] if verb == "add" else kept))


def in_force(base: Iterable[Voter], log: Sequence[Entry]) -> tuple[Voter, ...]:
    """The configuration at the end of `log`, which starts at or after `base`."""
    voters = tuple(sorted(base))
    for command, _, _ in log:
        change = parse_change(command)
        if change is not None:
            voters = after(voters, change)
    return voters
