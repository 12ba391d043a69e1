"""The task that makes the log durable, and what happens while the disk takes nothing.

Owns: group commit (one fdatasync after the other, each for all that came before it) and the state
"suspended": the disk is full or broken, so the node steps down, promises nothing, serves what it
knows, and tries again until there is room. It must not decide anything about Raft. Built by node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aivailable.raft import library
from aivailable.raft.consensus import Consensus
from aivailable.raft.election import Election
from aivailable.raft.journal import Journal
from aivailable.raft.store import Durability
from aivailable.raft.transport import RaftTransport

log = logging.getLogger(__name__)

RETRY_MIN_S = 0.5
RETRY_MAX_S = 8.0
"""Between two attempts to write what the disk did not take; doubling."""


class Writing:
    """`failure` is set while the disk takes nothing."""

    def __init__(
        self,
        journal: Journal,
        disk: Durability,
        *,
        ambient: library.Ambient,
        consensus: Consensus,
        election: Election,
        transport: RaftTransport,
        wake: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        """`wake`: something became durable. `changed`: `failure` was set or cleared."""
        self._journal = journal
        self._disk = disk
        self._ambient = ambient
        self._consensus = consensus
        self._election = election
        self._transport = transport
        self._wake = wake
        self._changed = changed
        self._unsynced = asyncio.Event()
        self.failure: OSError | None = None

    def nudge(self) -> None:
        """Something may have been put into the log."""
        if self._disk.dirty:
            self._unsynced.set()

    async def run(self) -> None:
        pause_s = RETRY_MIN_S
        while True:
            await self._unsynced.wait()
            self._unsynced.clear()
            try:
                await self._journal.sync()
            except OSError as error:
                self._suspend(error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                self._unsynced.set()
                continue
            if self.failure is not None:
                self._resume()
                pause_s = RETRY_MIN_S
            with library.acting(self._ambient):
                self._transport.flush()
            self.nudge()
            self._wake()

    def _suspend(self, error: OSError) -> None:
        """Lead no more, promise nothing; followers of ours elect another at once."""
        if self.failure is None:
            log.critical("the raft log cannot be written (%s): this node steps down", error)
        self.failure = error
        self._election.suspended = True
        with library.acting(self._ambient):
            self._consensus.resign()
        self._changed()

    def _resume(self) -> None:
        log.warning("the raft log can be written again: this node takes part")
        self.failure = None
        self._election.suspended = False
        self._changed()
