"""Decisions that close defects of pysyncobj 0.3.17 at its messages (D1–D19 in raft/DESIGN.md).

Owns: the switches, and pure functions from a message and a log to what the library may see of it.
It must not send, keep state or touch the library. All switches are on; tests and the simulation
turn one off to show the defect that it closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aivailable.raft.membership import Entry

Message = dict[str, Any]

TERM_JUMP_MAX = 1_000_000
"""Terms by which a message may be ahead of us: six days of lone elections twice a second, which
pre-vote prevents."""


@dataclass(frozen=True, slots=True)
class Guards:
    """Which defects are closed. For tests only; a node is always built with all of them on."""

    snapshot_commit: bool = True
    """D1: a snapshot message carries no commit index."""
    ack_term: bool = True
    """D2: an acknowledgement of another term is dropped."""
    keep_matching: bool = True
    """D3: entries that match are never truncated."""
    one_change: bool = True
    """D4: one membership change at a time."""
    fast_backtrack: bool = True
    """D19: a follower that diverged asks for what follows its commit index."""
    pre_vote: bool = True
    """No term is spent unless a majority would vote; a live leader is sticky."""
    synced_commit: bool = True
    """The leader counts its own copy of an entry only once it is on disk."""
    synced_promises: bool = True
    """Votes and acknowledgements leave only once what they promise is on disk."""
    newer_snapshot: bool = True
    """A snapshot that holds nothing new is acknowledged, not installed."""
    total_apply: bool = True
    """D10: what the machine raises is logged, not tried again for ever."""
    incarnations: bool = True
    """A voter that lost its log does not count until it is removed and added again."""
    voters_only: bool = True
    """A node that does not vote moves no term, no election and no log, whatever it sends."""
    term_jump: bool = True
    """Nor does a message whose term is out of all reach."""


@dataclass(frozen=True, slots=True)
class Ack:
    """An answer to AppendEntries that the transport gives in the library's stead."""

    next_index: int
    reset: bool
    success: bool


def as_heartbeat(message: Message, commit_index: int) -> Message:
    """The message without entries, snapshot and log position: only leadership and commit index."""
    gone = ("entries", "prevLogIdx", "prevLogTerm", "serialized")
    kept = {key: value for key, value in message.items() if key not in gone}
    kept["commit_index"] = commit_index
    return kept


def keep_matching(
    message: Message, log: Sequence[Entry], commit_index: int, *, fast_backtrack: bool
) -> tuple[Message, Ack | None]:
    """What the library may see of an AppendEntries, and the answer that we give ourselves.

    The library itself truncates everything after prevLogIdx even where it matches, applied
    or not (D3), and goes back one entry per round after a divergence (D19). Here the matching
    prefix is stripped, so that what is left conflicts or is new. A batch behind a gap gets the
    answer of the one before it that did not fit: stock asks for what follows the log's end, which
    sends the leader, batch after batch, back to the entry that diverged.
    """
    first, last = log[0][1], log[-1][1]
    index, term = message["prevLogIdx"], message["prevLogTerm"]
    if index < first:
        return message, None
    if index > last or log[index - first][2] != term:
        if fast_backtrack and commit_index < index:
            return as_heartbeat(message, 0), Ack(commit_index + 1, reset=True, success=False)
        return message, None
    entries = message["entries"]
    same = 0
    for _, entry_index, entry_term in entries:
        if entry_index > last or log[entry_index - first][2] != entry_term:
            break
        index, term, same = entry_index, entry_term, same + 1
    if same < len(entries) or index == last:
        rest = entries[same:]
        return message | {"prevLogIdx": index, "prevLogTerm": term, "entries": rest}, None
    # All of it is here already, and more: the library would cut the rest off.
    commit = min(message["commit_index"], index)
    return as_heartbeat(message, commit), Ack(index + 1, reset=False, success=True)


def snapshot_known(log: Sequence[Entry], commit_index: int, last: Entry) -> int | None:
    """Up to which index a snapshot that ends in `last` tells us nothing new; None: install it.

    Installing it all the same would throw away entries after it that were acknowledged already.
    """
    if last[1] <= commit_index:
        return commit_index
    place = last[1] - log[0][1]
    if 0 <= place < len(log) and log[place][2] == last[2]:
        return last[1]
    return None
