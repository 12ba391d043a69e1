"""Messages between the Raft of two nodes as bytes, and nothing unchecked gets in.

Owns: the envelope `[sender's term, incarnation, kind, fields]` in msgpack and the closed table of
message kinds with the shape of every field. The term in the envelope is what lets stale
acknowledgements be dropped (D2), the incarnation what lets those of a node that forgot its log. It
must not send or decide.

Not to be confused with `core.state.codec`, the bytes of one command.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack

from aivailable.errors import SchemaError
from aivailable.raft.guards import Message
from aivailable.raft.membership import NODE_ID_MAX_CHARS
from aivailable.wire.limits import COMMAND_MAX_BYTES, CONTROL_MESSAGE_MAX_BYTES

INDEX_MAX = 2**62
TERM_MAX = 2**53
"""Beyond what any cluster reaches; a member that says more is not believed."""
VOTERS_MAX = 64
ENTRIES_MAX = 65_536
ENTRY_MAX_BYTES = COMMAND_MAX_BYTES + 1
"""A command and its type byte."""

_Check = Callable[[Any], bool]


def _index(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INDEX_MAX


def _term(value: Any) -> bool:
    return type(value) is int and 0 <= value <= TERM_MAX


def _nodes(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= VOTERS_MAX
        and all(type(node) is str and len(node) <= NODE_ID_MAX_CHARS for node in value)
    )


def _flag(value: Any) -> bool:
    return type(value) is bool


def _command(value: Any) -> bool:
    return type(value) is bytes and 1 <= len(value) <= ENTRY_MAX_BYTES


def _entries(value: Any) -> bool:
    """A run of entries whose indices count up by one."""
    if type(value) is not tuple or len(value) > ENTRIES_MAX:
        return False
    expected = None
    for entry in value:
        if type(entry) is not tuple or len(entry) != 3:
            return False
        if not (_command(entry[0]) and _index(entry[1]) and _term(entry[2])):
            return False
        if expected is not None and entry[1] != expected:
            return False
        expected = entry[1] + 1
    return True


def _chunk(value: Any) -> bool:
    """(bytes, is first, is last) of a snapshot, or None: there is none to send yet."""
    return value is None or (
        type(value) is tuple
        and len(value) == 3
        and type(value[0]) is bytes
        and _flag(value[1])
        and _flag(value[2])
    )


_VOTE: dict[str, _Check] = {"term": _term, "last_log_term": _term, "last_log_index": _index}
_APPEND: dict[str, _Check] = {"term": _term, "commit_index": _index}
KINDS: dict[str, dict[str, _Check]] = {
    "request_vote": _VOTE,
    "transfer_vote": _VOTE,
    "response_vote": {"term": _term},
    "pre_vote": {**_VOTE, "round": _index},
    "pre_vote_granted": {"round": _index},
    "append_entries": {
        **_APPEND,
        "prevLogIdx": _index,
        "prevLogTerm": _term,
        "entries": _entries,
    },
    "snapshot": {**_APPEND, "serialized": _chunk},
    "next_node_idx": {"next_node_idx": _index, "reset": _flag, "success": _flag},
    "receiving": {},
    "newer_term": {},
    "timeout_now": {"term": _term},
    "submit": {"command": _command},
    "who_votes": {},
    "voters_are": {"voters": _nodes},
}
_RENAMED = {"snapshot": "append_entries", "transfer_vote": "request_vote"}
"""What the library calls these; `transfer` stays in the message as a mark of ours."""


def encode(term: int, message: Message, incarnation: int = 0) -> bytes:
    """Bytes of a message sent in `term`, by this life of the sender.

    Raises SchemaError for one that we do not send.
    """
    kind = message["type"]
    if "serialized" in message:
        kind = "snapshot"
    elif message.get("transfer"):
        kind = "transfer_vote"
    fields = KINDS.get(kind)
    if fields is None or "transmission" in message:
        raise SchemaError(f"a raft message of kind {kind!r} is never sent")
    packed: bytes = msgpack.packb(
        [term, incarnation, kind, [message[name] for name in fields]], use_bin_type=True
    )
    if len(packed) > CONTROL_MESSAGE_MAX_BYTES:
        raise SchemaError(f"a raft message of {len(packed)} bytes is over the limit")
    return packed


def decode(data: bytes) -> tuple[int, Message, int]:
    """(sender's term, message, sender's incarnation).

    Raises SchemaError for anything but a well-formed message.
    """
    if len(data) > CONTROL_MESSAGE_MAX_BYTES:
        raise SchemaError(f"a raft message of {len(data)} bytes is over the limit")
    try:
        value = msgpack.unpackb(data, use_list=False, strict_map_key=True)
    except ValueError as error:
        raise SchemaError(f"not msgpack: {error}") from None
    if type(value) is not tuple or len(value) != 4:
        raise SchemaError("not a raft envelope")
    term, incarnation, kind, values = value
    fields = KINDS.get(kind) if type(kind) is str else None
    if fields is None or not _term(term) or not _index(incarnation):
        raise SchemaError(f"unknown raft message {kind!r}")
    if type(values) is not tuple or len(values) != len(fields):
        raise SchemaError(f"{kind} with a wrong number of fields")
    message: Message = {"type": _RENAMED.get(kind, kind)}
    for (name, well_formed), field in zip(fields.items(), values, strict=True):
        if not well_formed(field):
            raise SchemaError(f"{kind}.{name} is malformed")
        message[name] = field
    if kind == "transfer_vote":
        message["transfer"] = True
    return term, message, incarnation
