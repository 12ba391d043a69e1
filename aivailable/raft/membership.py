"""Who votes, derived from the log alone.

Owns: the encoding of a membership change and the fold that turns a base configuration and the log
after it into the configuration in force. In Raft a change is in force from the moment it is in the
log (Ongaro, dissertation §4.1), so the fold runs over all entries, committed or not. It must not
touch the library. Called by consensus and node.
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
NODE_ID_MAX_CHARS = 64


def change_command(verb: Verb, node: NodeId) -> bytes:
    """A membership change as a log command."""
    packed: bytes = msgpack.packb([verb, node], use_bin_type=True)
    return MEMBERSHIP + packed


def parse_change(command: bytes) -> tuple[Verb, NodeId] | None:
    """The change that a command carries; None for any other command and for a malformed one."""
    if command[:1] != MEMBERSHIP or len(command) > 2 * NODE_ID_MAX_CHARS:
        return None
    try:
        value = msgpack.unpackb(command[1:], use_list=False)
    except ValueError:
        return None
    match value:
        case ("add", str(node)):
            return "add", node
        case ("rem", str(node)):
            return "rem", node
    return None


def after(voters: Iterable[NodeId], change: tuple[Verb, NodeId]) -> tuple[NodeId, ...]:
    """The voters once `change` is in force, sorted."""
    verb, node = change
    kept = [voter for voter in voters if voter != node]
    return tuple(sorted([*kept, node] if verb == "add" else kept))


def in_force(base: Iterable[NodeId], log: Sequence[Entry]) -> tuple[NodeId, ...]:
    """The configuration at the end of `log`, which starts at or after `base`."""
    voters = tuple(sorted(base))
    for command, _, _ in log:
        change = parse_change(command)
        if change is not None:
            voters = after(voters, change)
    return voters
