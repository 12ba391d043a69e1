"""The log in memory and as append-only records with checksums (defects D5–D9).

Owns: the record format, what a torn tail is and what damage is, and how far the log is on disk.
PySyncObj reads and writes its log, term, vote and commit index through this object. It must not
decide anything about Raft. Built by node, lent to the library, asked by consensus and transport.

A record is `magic(2) length(4) crc32(4) msgpack`, little-endian. After every sync a seal follows,
written but not synced: what stands before a seal was durable, so if it is unreadable it is damage,
while an unreadable end behind the last seal was never promised to anybody.
"""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import msgpack

from aivailable.core.ids import NodeId
from aivailable.raft.membership import INCARNATION_BITS, Entry, Voter, checked, founders, in_force
from aivailable.raft.store import (
    Durability,
    Operation,
    Stored,
    StoreDamaged,
    StoreTooNew,
    StoreUnusable,
)

_HEADER = struct.Struct("<2sII")
_MAGIC = b"\xa7R"
_FORMAT = 1
_ENTRY, _TERM, _COMMIT, _CUT, _CLEAR, _BASE, _SEAL = range(7)
RECORD_MAX_BYTES = 64 * 1024


class Journal:
    """Implements pysyncobj.journal.Journal over a store. Camel case is the library's."""

    def __init__(
        self, data: bytes, disk: Durability, *, voters: tuple[NodeId, ...], incarnation: int = 0
    ) -> None:
        """`voters` and `incarnation` are for a fresh log; an old log knows its own.

        Raises StoreDamaged when a record inside `data` fails its checksum, StoreTooNew.
        """
        self.log: list[Entry] = []
        self.base_voters: tuple[Voter, ...] = ()
        self.incarnation = incarnation
        """Which life of this node wrote the log; see membership."""
        self.members_changed = False
        self.added_bytes = 0
        """Of commands, since the log was last replaced; a cut end still counts."""
        self.synced_index = 0
        self.term_position = 0
        self._disk = disk
        self._in_flight_index = 0
        self._sealed_position = 0
        self._term = 0
        self._vote: NodeId | None = None
        self._commit = 1
        self._commit_noted = 1
        good = self._replay(data)
        self.synced_index = self._last_index()
        if not data:
            self.base_voters = founders(voters)
            self._put([_BASE, _FORMAT, incarnation, self.base_voters])
        elif good < len(data):
            self._rewrite()  # Cut the torn tail for good, before anything is appended to it.

    def rebase(self, last: Entry, prev: Entry, voters: tuple[Voter, ...]) -> None:
        """Let the log begin where a snapshot ends. Raises StoreDamaged if it begins later."""
        if self.log and self.log[0][1] > last[1]:
            raise StoreDamaged("the journal begins after the snapshot ends: entries are missing")
        self.base_voters = voters
        place = last[1] - self.log[0][1] if self.log else -1
        if 0 <= place < len(self.log) and self.log[place] == last:
            self.log = [prev, *self.log[place:]]
        else:
            self.log = [prev, last]
        self._commit = max(self._commit, last[1])
        self.synced_index = min(self.synced_index, self._last_index())
        self._rewrite()

    async def sync(self) -> None:
        """Make everything durable that is in the log now. Raises OSError."""
        self._in_flight_index = self._last_index()
        if self._disk.position > self._sealed_position:
            self._disk.put(Operation("seal", _pack([_SEAL])))
            self._sealed_position = self._disk.position
        await self._disk.sync()
        self.synced_index = self._in_flight_index

    async def sync_at_start(self) -> None:
        """The first sync: a folder that takes nothing is the operator's. Raises StoreUnusable."""
        try:
            await self.sync()
        except OSError as error:
            raise StoreUnusable(
                f"the log cannot be written ({error.strerror or error}): make room and start again"
            ) from error

    # What the library calls.

    def add(self, command: bytes, idx: int, term: int) -> None:
        self.log.append((command, idx, term))
        self.added_bytes += len(command)
        self._put([_ENTRY, idx, term, command])
        self.members_changed |= command[:1] == b"\x02"

    def clear(self) -> None:
        self.log = []
        self._lost_from(0)
        self._put([_CLEAR])

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803
        if entryFrom >= len(self.log):
            return
        index = self.log[entryFrom][1]
        del self.log[entryFrom:]
        self._lost_from(index)
        self._put([_CUT, index])

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        if not 0 < entryTo < len(self.log):
            return  # The log was replaced meanwhile; the library would empty it here.
        self.base_voters = in_force(self.base_voters, self.log[:entryTo])
        self.log = self.log[entryTo:]
        self._rewrite()

    def __getitem__(self, item: Any) -> Any:
        return self.log[item]

    def __len__(self) -> int:
        return len(self.log)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        self._commit = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit

    def setCurrentTerm(self, term: int, votedForNodeId: NodeId | None) -> None:  # noqa: N802, N803
        self._term, self._vote = term, votedForNodeId
        self._put([_TERM, term, votedForNodeId])
        self.term_position = self._disk.position

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> NodeId | None:  # noqa: N802
        return self._vote

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Note the commit index now and then: a restart applies up to it before any election."""
        if self._commit != self._commit_noted:
            self._commit_noted = self._commit
            self._put([_COMMIT, self._commit])

    def _destroy(self) -> None:
        """The store is closed by its owner."""

    # Records.

    def _put(self, record: list[Any]) -> None:
        self._disk.put(Operation("append", _pack(record)))

    def _rewrite(self) -> None:
        self.added_bytes = sum(len(command) for command, _, _ in self.log)
        records: list[list[Any]] = [
            [_BASE, _FORMAT, self.incarnation, self.base_voters],
            [_TERM, self._term, self._vote],
            *([_ENTRY, index, term, command] for command, index, term in self.log),
            [_COMMIT, self._commit],
        ]
        self._disk.put(Operation("journal", b"".join(_pack(record) for record in records)))

    def _last_index(self) -> int:
        return self.log[-1][1] if self.log else 0

    def _lost_from(self, index: int) -> None:
        """Entries from `index` on are gone: what will stand there is not on disk yet."""
        self.synced_index = min(self.synced_index, index - 1)
        self._in_flight_index = min(self._in_flight_index, index - 1)
        self.members_changed = True

    def _replay(self, data: bytes) -> int:
        """Rebuild from bytes; the length of the good part."""
        offset = 0
        while (end := _record_end(data, offset)) is not None:
            try:
                record = msgpack.unpackb(data[offset + _HEADER.size : end], use_list=False)
                self._play(record)
            except (ValueError, IndexError, TypeError) as error:
                raise StoreDamaged(f"journal record at byte {offset}: {error}") from error
            offset = end
        if _valid_record_after(data, offset + 1):
            raise StoreDamaged(
                f"the journal is damaged at byte {offset} of {len(data)}, in front of good "
                "records: set it aside and rejoin as an observer"
            )
        self._commit = max(1, min(self._commit, self._last_index()))
        self._commit_noted = self._commit
        return offset

    def _play(self, record: Any) -> None:
        match record:
            case (0, int(index), int(term), bytes(command)):
                if self.log and index != self.log[-1][1] + 1:
                    raise ValueError(f"entry {index} follows {self.log[-1][1]}")
                self.log.append((command, index, term))
            case (1, int(term), (str() | None) as vote):
                self._term, self._vote = term, vote
            case (2, int(commit)):
                self._commit = commit
            case (3, int(index)):
                del self.log[max(0, index - self.log[0][1]) :]
            case (4,):
                self.log = []
            case (5, int(written), int(incarnation), voters) if written == _FORMAT:
                self.incarnation = incarnation
                self.base_voters = checked(voters)
            case (5, int(written), *_) if written > _FORMAT:
                raise StoreTooNew(f"the journal has format {written}, this version reads {_FORMAT}")
            case (6,):
                pass  # Everything before it was durable; `_replay` looks at what follows damage.
            case _:
                raise ValueError(f"unknown record {record[:1]!r}")


def open_journal(
    stored: Stored,
    disk: Durability,
    *,
    voters: tuple[NodeId, ...],
    founding: bool,
    rng: random.Random,
) -> Journal:
    """The journal of a store. Raises StoreDamaged, StoreTooNew.

    A fresh log of a founder, who has promised nothing yet, is incarnation 0; any other draws a
    number of its own: it may belong to a voter that lost its log and forgot what it promised, and
    its votes and acknowledgements count only once the cluster has added that number.
    """
    if stored.snapshot is not None and not stored.journal:
        raise StoreDamaged("the journal is gone: set the snapshot aside, rejoin as an observer")
    first = 0 if founding and not stored.was_set_aside else 1 + rng.getrandbits(INCARNATION_BITS)
    return Journal(stored.journal, disk, voters=voters, incarnation=first)


def _pack(record: list[Any]) -> bytes:
    body: bytes = msgpack.packb(record, use_bin_type=True)
    return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def _record_end(data: bytes, offset: int) -> int | None:
    """Where the record that starts at `offset` ends; None if there is no whole, sound one."""
    if offset + _HEADER.size > len(data):
        return None
    magic, length, crc = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    end = start + length
    if magic != _MAGIC or not 0 < length <= RECORD_MAX_BYTES or end > len(data):
        return None  # Length 0 and checksum 0 is how a torn header in front of zeros looks.
    return end if zlib.crc32(data[start:end]) == crc else None


def _valid_record_after(data: bytes, offset: int) -> bool:
    """Whether a sound record follows: then what is before it is damage, not a torn tail."""
    while (offset := data.find(_MAGIC, offset)) >= 0:
        if _record_end(data, offset) is not None:
            return True
        offset += 1
    return False
