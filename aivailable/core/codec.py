"""Commands, state and records as bytes: canonical msgpack, the same bytes on every node."""

from __future__ import annotations

from typing import Any

import msgpack

from aivailable.core.commands import KINDS, Command
from aivailable.core.ids import CommandId
from aivailable.core.records import Control
from aivailable.errors import SchemaError
from aivailable.wire.limits import COMMAND_MAX_BYTES
from aivailable.wire.schema import INT_MAX, from_plain, to_plain, unpack_plain

_NAMES = {kind: name for name, kind in KINDS.items()}
COMMAND_FORMAT = 1


def encode_command(command: Command) -> bytes:
    """Bytes for the log. Raises SchemaError when over COMMAND_MAX_BYTES."""
    packed = msgpack.packb(
        [
            COMMAND_FORMAT,
            _NAMES[type(command.body)],
            to_plain(command.body),
            [command.command_id.proposer, command.command_id.seq],
            command.actor,
            command.reason,
            command.proposed_at_ms,
            to_plain(command.control),
        ],
        use_bin_type=True,
    )
    assert isinstance(packed, bytes)
    if len(packed) > COMMAND_MAX_BYTES:
        raise SchemaError(f"command of {len(packed)} bytes is over {COMMAND_MAX_BYTES}")
    return packed


def decode_command(data: bytes) -> Command:
    """Raises SchemaError for anything that is not a command of a known kind and format."""
    if len(data) > COMMAND_MAX_BYTES:
        raise SchemaError(f"command of {len(data)} bytes is over {COMMAND_MAX_BYTES}")
    value = unpack_plain(data)
    if not isinstance(value, list) or len(value) < 8 or value[0] != COMMAND_FORMAT:
        raise SchemaError("not a command of this format")
    _, name, body, command_id, actor, reason, proposed_at_ms, control = value[:8]
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise SchemaError(f"unknown command kind {name!r}")
    proposer, seq = from_plain_pair(command_id)
    return Command(
        command_id=CommandId(proposer, seq),
        body=from_plain(kind, body, name),
        actor=_text(actor, "actor"),
        reason=_text(reason, "reason"),
        proposed_at_ms=_time_ms(proposed_at_ms),
        control=None if control is None else from_plain(Control, control, "control"),
    )


def from_plain_pair(value: Any) -> tuple[str, int]:
    """(proposer, seq) of a command id."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not isinstance(value[0], str)
        or type(value[1]) is not int
        or not 1 <= value[1] <= INT_MAX
    ):
        raise SchemaError("command_id: expected [proposer, seq]")
    return value[0], value[1]


def _time_ms(value: Any) -> int:
    """A time for people: 0 when it is none. What the state keeps must stay encodable."""
    return value if type(value) is int and -INT_MAX <= value <= INT_MAX else 0


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SchemaError(f"{path}: expected text")
    return value
