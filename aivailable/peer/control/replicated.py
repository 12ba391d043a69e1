"""The state machine that Raft drives: holds the current State and tells who waits for it.

Owns the one mutable reference to the replicated state of this node. Raft calls `apply`,
`snapshot` and `restore`; everything else only reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aivailable.core.ids import CommandId
from aivailable.core.state.commands import Command
from aivailable.core.state.machine import CODE_TOO_OLD, apply_bytes, outcome_of
from aivailable.core.state.records import CommandOutcome
from aivailable.core.state.state import State, decode_state, encode_state
from aivailable.errors import CodeTooOld


class ReplicatedState:
    """Implements raft.machine.Machine. Once `too_old` says why, this code cannot follow the
    cluster any further: the state stays as it is, and the process should end."""

    def __init__(self, on_change: Callable[[State, State], None]) -> None:
        self.state = State()
        self.too_old = ""
        self._on_change = on_change
        self._changed = asyncio.Event()

    def apply(self, payload: bytes) -> None:
        """Apply one committed entry. Raises CodeTooOld and nothing else: D10 in raft/DESIGN.md."""
        before = self.state
        after, outcome = apply_bytes(before, payload)
        if outcome.code == CODE_TOO_OLD:
            self._stop(outcome.message)
            raise CodeTooOld(outcome.message)
        self.state = after
        self._tell(before)

    def snapshot(self) -> bytes:
        return encode_state(self.state)

    def restore(self, data: bytes) -> None:
        """Raises SchemaError when the bytes are no state of a known format, CodeTooOld."""
        before = self.state
        try:
            self.state = decode_state(data)
        except CodeTooOld as error:
            self._stop(str(error))
            raise
        self._tell(before)

    def outcome(self, command: Command) -> CommandOutcome | None:
        """What became of a command, once it has been applied here."""
        return outcome_of(self.state, command)

    def applied(self, command_id: CommandId) -> bool:
        table = self.state.outcomes.get(command_id.proposer)
        return table is not None and (
            command_id.seq <= table.floor or any(seq == command_id.seq for seq, _ in table.outcomes)
        )

    async def changed(self, after_version: int) -> int:
        """Waits until the version is greater than `after_version`; returns it."""
        while self.state.version <= after_version:
            await self._changed.wait()
        return self.state.version

    def _stop(self, reason: str) -> None:
        self.too_old = reason
        self._on_change(self.state, self.state)

    def _tell(self, before: State) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change(before, self.state)
