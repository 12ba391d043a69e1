"""Snapshots: their bytes, when one is taken, and how one travels.

Owns: the sealed format (checksum over all of it), the snapshot that matches the begin of the log,
and the stand-in for the library's Serializer, which writes files and pickles. The list of voters
inside is ours, as of the last applied entry (D15). It must not send. Lent to the library by node.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from aivailable.errors import CodeTooOld
from aivailable.raft import library
from aivailable.raft.machine import Machine
from aivailable.raft.membership import Entry, Voter, checked, names
from aivailable.raft.store import Durability, Operation, StoreDamaged, StoreTooNew
from aivailable.wire.limits import KIB, STATE_MAX_BYTES

log = logging.getLogger(__name__)

CHUNK_BYTES = 128 * KIB
"""One message of a snapshot under way; the receiver answers each, which counts as life."""
SNAPSHOT_MAX_BYTES = STATE_MAX_BYTES + 256 * KIB
"""A state at its limit, two log entries and the list of voters."""
_MAGIC = b"AIVSNAP1"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after `last` was applied, with what is needed to go on from there."""

    state: bytes
    last: Entry
    prev: Entry
    voters: tuple[Voter, ...]


def seal(snapshot: Snapshot) -> bytes:
    """Bytes for disk and wire."""
    body: bytes = msgpack.packb(
        [_FORMAT, snapshot.state, snapshot.last, snapshot.prev, snapshot.voters], use_bin_type=True
    )
    return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def unseal(data: bytes) -> Snapshot:
    """Raises StoreDamaged unless every byte is as it was sealed; StoreTooNew."""
    head = len(_MAGIC) + 4
    body = data[head:]
    if data[: len(_MAGIC)] != _MAGIC or zlib.crc32(body) != int.from_bytes(
        data[len(_MAGIC) : head], "little"
    ):
        raise StoreDamaged("the snapshot fails its checksum: set it aside, rejoin as an observer")
    try:
        value = msgpack.unpackb(body, use_list=False)
        match value:
            case (int(written), bytes(state), last, prev, voters) if written == _FORMAT:
                return Snapshot(state, _entry(last), _entry(prev), checked(voters))
            case (int(written), *_) if written > _FORMAT:
                raise StoreTooNew(f"a snapshot of format {written}, this version reads {_FORMAT}")
    except ValueError as error:
        raise StoreDamaged(f"the snapshot cannot be read: {error}") from error
    raise StoreDamaged("the snapshot does not have the shape of one")


def _entry(value: object) -> Entry:
    match value:
        case (bytes(command), int(index), int(term)) if command and index > 0 and term >= 0:
            return command, index, term
    raise ValueError("a log entry is malformed")


class Snapshots:
    """Stands for pysyncobj.serializer.Serializer. Camel case (and one slip) is the library's."""

    def __init__(
        self, machine: Machine, disk: Durability, voters: Callable[[], tuple[Voter, ...]]
    ) -> None:
        self._machine = machine
        self._disk = disk
        self._voters = voters
        self._sealed: bytes | None = None
        self._next: tuple[bytes, int, int] | None = None
        """(sealed, log index it allows to compact to, store position it is durable at)"""
        self._sent_bytes: dict[str, int] = {}
        self.refused: CodeTooOld | None = None
        """The machine cannot read the adopted one; the library, which asks, swallows what it
        raises."""

    def adopt(self, sealed: bytes, *, durable: bool) -> None:
        """Make this, already verified, the snapshot that the next `deserialize` restores."""
        self._sealed, self._next = sealed, None
        self._sent_bytes.clear()
        if not durable:
            self._disk.put(Operation("snapshot", sealed))

    def busy(self) -> bool:
        """Whether a snapshot is on its way to the disk."""
        return self._next is not None

    def checkSerializing(self) -> tuple[int, int | None]:  # noqa: N802
        if self._next is None:
            return library.IDLE, None
        sealed, index, position = self._next
        if self._disk.synced < position:
            return library.BUSY, index
        self._sealed, self._next = sealed, None
        self._sent_bytes.clear()
        return library.DONE, index

    def serialize(self, data: tuple[Any, Entry, Entry, object], id: int) -> None:  # noqa: A002
        if self._next is not None:
            return
        _, last, prev, _ = data
        sealed = seal(Snapshot(self._machine.snapshot(), last, prev, self._voters()))
        if len(sealed) > SNAPSHOT_MAX_BYTES:
            log.error("snapshot of %d bytes is over %d", len(sealed), SNAPSHOT_MAX_BYTES)
        self._disk.put(Operation("snapshot", sealed))
        self._next = (sealed, id, self._disk.position)

    def deserialize(self) -> tuple[None, Entry, Entry, list[library.StableNode]]:
        if self._sealed is None:
            raise RuntimeError("there is no snapshot to restore")
        snapshot = unseal(self._sealed)
        try:
            self._machine.restore(snapshot.state)
        except CodeTooOld as error:
            self.refused = error
            raise
        voters = [library.StableNode(voter) for voter in names(snapshot.voters)]
        return None, snapshot.last, snapshot.prev, voters

    def getTransmissionData(  # noqa: N802
        self, node: library.StableNode
    ) -> tuple[bytes, bool, bool] | None:
        if self._sealed is None:
            return None
        start = self._sent_bytes.get(node.id, 0)
        end = start + CHUNK_BYTES
        is_last = end >= len(self._sealed)
        if is_last:
            self._sent_bytes.pop(node.id, None)
        else:
            self._sent_bytes[node.id] = end
        return self._sealed[start:end], start == 0, is_last

    def setTransmissionData(self, data: object) -> bool:  # noqa: N802
        """Chunks are put together and verified by the transport, which then calls `adopt`."""
        return data is not None

    def cancelTransmisstion(self, node: library.StableNode) -> None:  # noqa: N802
        self._sent_bytes.pop(node.id, None)
