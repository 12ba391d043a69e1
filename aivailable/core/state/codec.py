"""Commands as bytes: canonical msgpack, the same bytes on every node.

The envelope has one shape for ever, so that every version reads id and level of a command whose
body it does not know (core.state.levels).

Not to be confused with `raft.codec`, the messages between two logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aivailable.core.ids import CommandId
from aivailable.core.state.commands import KINDS, Command
from aivailable.core.state.levels import FIRST_LEVEL, LEVEL, needed
from aivailable.core.state.records import Control
from aivailable.errors import SchemaError
from aivailable.wire.limits import COMMAND_MAX_BYTES
from aivailable.wire.schema import INT_MAX, from_plain, pack, unpack_plain

_NAMES = {kind: name for name, kind in KINDS.items()}
COMMAND_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Envelope:
    """A command whose body has not been read yet."""

    kind: str
    command_id: CommandId
    level: int
    actor: str
    reason: str
    proposed_at_ms: int
    control: Control | None
    body: Any
    """Plain values."""


def encode_command(command: Command) -> bytes:
    """Bytes for the log, with the level that the body needs, or a higher one that the command
    states. Raises SchemaError when over COMMAND_MAX_BYTES."""
    level = max(command.level, needed(command.body))
    packed = pack(
        [
            COMMAND_FORMAT,
            _NAMES[type(command.body)],
            command.body,
            [command.command_id.proposer, command.command_id.seq],
            command.actor,
            command.reason,
            command.proposed_at_ms,
            command.control,
            *([level] if level > FIRST_LEVEL else []),
        ]
    )
    if len(packed) > COMMAND_MAX_BYTES:
        raise SchemaError(f"command of {len(packed)} bytes is over {COMMAND_MAX_BYTES}")
    return packed


def decode_command(data: bytes) -> Command:
    """Raises SchemaError for anything that is not a command of a known kind and format."""
    return read_body(open_envelope(data))


def open_envelope(data: bytes) -> Envelope:
    """Everything but the body. Raises SchemaError, on every version for the same bytes."""
    if len(data) > COMMAND_MAX_BYTES:
        raise SchemaError(f"command of {len(data)} bytes is over {COMMAND_MAX_BYTES}")
    value = unpack_plain(data)
    if not isinstance(value, list) or len(value) < 8 or value[0] != COMMAND_FORMAT:
        raise SchemaError("not a command of this format")
    _, kind, body, command_id, actor, reason, proposed_at_ms, control = value[:8]
    if not isinstance(kind, str):
        raise SchemaError(f"unknown command kind {kind!r}")
    proposer, seq = from_plain_pair(command_id)
    return Envelope(
        kind=kind,
        command_id=CommandId(proposer, seq),
        level=_level(value[8]) if len(value) > 8 else FIRST_LEVEL,
        actor=_text(actor, "actor"),
        reason=_text(reason, "reason"),
        proposed_at_ms=_time_ms(proposed_at_ms),
        control=None if control is None else from_plain(Control, control, "control"),
        body=body,
    )


def read_body(envelope: Envelope) -> Command:
    """As a version of the envelope's level would read it: what came later is not there.

    Raises SchemaError for an unknown kind, a body of another shape, a later kind or value.
    """
    kind = KINDS.get(envelope.kind)
    if kind is None:
        raise SchemaError(f"unknown command kind {envelope.kind!r}")
    body = from_plain(kind, envelope.body, envelope.kind, min(envelope.level, LEVEL))
    if envelope.level < LEVEL and needed(body) > envelope.level:
        raise SchemaError(f"{envelope.kind}: says level {envelope.level}, needs {needed(body)}")
    return Command(
        command_id=envelope.command_id,
        body=body,
        actor=envelope.actor,
        reason=envelope.reason,
        proposed_at_ms=envelope.proposed_at_ms,
        control=envelope.control,
        level=envelope.level,
    )


def _level(value: Any) -> int:
    if type(value) is not int or not FIRST_LEVEL <= value <= INT_MAX:
        raise SchemaError("level: expected a number from 1 on")
    return value


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
