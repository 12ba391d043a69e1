"""Where log and snapshot survive: the port, the files, and a memory that can crash.

Owns: the order and atomicity of what reaches the disk. A store takes operations without blocking
and performs all of them, in order, at the next `sync`, which returns once they are durable: so one
fdatasync serves everything that waits (group commit). It must not know what the bytes mean. Given
to RaftNode by peer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from aivailable.errors import AivailableError

T = TypeVar("T")

JOURNAL_FILE = "journal"
SNAPSHOT_FILE = "snapshot"
ASIDE_MAX_FILES = 1_000
ASIDE_SUFFIX = ".damaged-"
FILE_MODE = 0o600
FOLDERS_MADE = 2
"""Folders above ours that may be new, too: home and home/raft."""


class StoreDamaged(AivailableError):
    """Log or snapshot on disk fail their checksum: set them aside and rejoin as an observer."""


class StoreTooNew(AivailableError):
    """A newer version of the program wrote this: it is left as it is; start that version."""


class StoreUnusable(AivailableError):
    """The folder cannot be read or written when the node starts; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a store holds when it is opened."""

    journal: bytes
    snapshot: bytes | None
    was_set_aside: bool = False
    """An earlier log of this node was damaged and moved away: what it promised is forgotten."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One step towards the disk. `append` grows the journal; `journal` and `snapshot` replace a
    file whole; `seal` grows the journal once all before it is durable, and is not synced itself."""

    kind: Literal["append", "seal", "journal", "snapshot"]
    data: bytes


class Store(Protocol):
    """Durable storage of one node's log and snapshot."""

    async def load(self) -> Stored:
        """What is durable now. Raises StoreUnusable."""

    def put(self, operation: Operation) -> None:
        """Queue an operation; nothing is durable before `sync` returns."""

    async def sync(self) -> None:
        """Perform all queued operations in order. On return they are durable.

        Raises OSError: nothing is lost, and the next call goes on with what was not done.
        """

    async def set_aside(self) -> None:
        """Move a damaged log and snapshot out of the way and start empty. Raises OSError."""

    async def close(self) -> None:
        """Let go of files and threads; queued operations are dropped."""


class SyncThread(Protocol):
    """Runs blocking work off the loop, one piece after the other."""

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, or what it raises."""

    def close(self) -> None:
        """Wait for what is running; take nothing more."""


class DiskThread:
    """One real thread for everything that waits for a disk."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raft-disk")

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class Durability:
    """Counts what went into a store and what of it is on disk: `synced` never passes `position`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.position = 0
        self.synced = 0

    def put(self, operation: Operation) -> None:
        self._store.put(operation)
        self.position += 1

    @property
    def dirty(self) -> bool:
        return self.synced < self.position

    async def sync(self) -> None:
        """Make everything put until now durable. Raises OSError."""
        reached = self.position
        await self._store.sync()
        self.synced = reached


class FileStore:
    """Two files in a folder of our own, written and synced by one thread.

    The journal is append-only. A replaced file is written beside, synced, renamed over the old
    one, and the folder synced: a crash leaves the old or the new one, never a mixture. What a
    failed `sync` did not do stays queued, and the next one does it: first it cuts off what the
    failed write has left, because pages that a failed fdatasync has dropped look clean.
    """

    def __init__(self, folder: Path, thread: SyncThread) -> None:
        self._folder = folder
        self._thread = thread
        self._queue: list[Operation] = []
        self._fd: int | None = None
        self._length = 0
        self._torn = False

    async def load(self) -> Stored:
        """Raises StoreUnusable."""
        try:
            return await self._thread.run(self._load)
        except OSError as error:
            raise StoreUnusable(
                f"the log in {self._folder} cannot be opened ({error.strerror or error}): make room"
                " and let this user write there, or start with another home"
            ) from error

    def put(self, operation: Operation) -> None:
        self._queue.append(operation)

    async def sync(self) -> None:
        work, self._queue = self._queue, []
        if not work:
            return
        try:
            await self._thread.run(lambda: self._perform(work))
        except OSError:
            self._queue[:0] = work
            raise

    async def set_aside(self) -> None:
        await self._thread.run(self._set_aside)

    async def close(self) -> None:
        self._queue = []
        await self._thread.run(self._close)
        self._thread.close()

    def _load(self) -> Stored:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._close()
        self._fd = self._open()
        os.fdatasync(self._fd)  # What a killed process wrote may not be on disk yet.
        for folder in (self._folder, *self._folder.parents[:FOLDERS_MADE]):
            _sync_folder(folder)  # Nor that the file and its folders exist.
        snapshot = self._folder / SNAPSHOT_FILE
        journal = (self._folder / JOURNAL_FILE).read_bytes()
        self._length, self._torn = len(journal), False
        return Stored(
            journal=journal,
            snapshot=snapshot.read_bytes() if snapshot.exists() else None,
            was_set_aside=any(self._folder.glob(f"*{ASIDE_SUFFIX}*")),
        )

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        return os.open(self._folder / JOURNAL_FILE, flags, FILE_MODE)

    def _perform(self, work: list[Operation]) -> None:
        """Takes out of `work` what is done, so that the rest can be tried again."""
        while work:
            appends = list(takewhile(lambda operation: operation.kind == "append", work))
            if appends:
                self._append(b"".join(operation.data for operation in appends), durable=True)
                del work[: len(appends)]
                continue
            operation = work[0]
            if operation.kind == "seal":
                self._append(operation.data, durable=False)
            elif operation.kind == "snapshot":
                self._replace(SNAPSHOT_FILE, operation.data)
            else:
                self._close()
                self._replace(JOURNAL_FILE, operation.data)
                self._length, self._torn = len(operation.data), False
            del work[0]

    def _append(self, data: bytes, *, durable: bool) -> None:
        if self._fd is None:
            self._fd = self._open()
        if self._torn:
            os.ftruncate(self._fd, self._length)
        self._torn = True
        _write_all(self._fd, data)
        if durable:
            os.fdatasync(self._fd)
        self._length += len(data)
        self._torn = False

    def _replace(self, name: str, data: bytes) -> None:
        beside = self._folder / f"{name}.new"
        try:
            _write_file(beside, data)
        except OSError:
            beside.unlink(missing_ok=True)  # It may be what fills the disk.
            raise
        beside.replace(self._folder / name)
        _sync_folder(self._folder)

    def _set_aside(self) -> None:
        self._close()
        for name in (JOURNAL_FILE, SNAPSHOT_FILE):
            source = self._folder / name
            if source.exists():
                source.rename(self._free_name(name))
        _sync_folder(self._folder)

    def _free_name(self, name: str) -> Path:
        for number in range(ASIDE_MAX_FILES):
            candidate = self._folder / f"{name}{ASIDE_SUFFIX}{number}"
            if not candidate.exists():
                return candidate
        raise OSError(f"{self._folder} holds {ASIDE_MAX_FILES} damaged files: remove some")

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class MemoryStore:
    """A store for tests and simulation: forgets at a crash what a disk would have forgotten.

    `latency_s` of the running loop's time passes in each sync between written and durable.
    """

    def __init__(self, *, latency_s: float = 0.0) -> None:
        self.journal = bytearray()
        self.snapshot: bytes | None = None
        self.syncs = 0
        self.set_asides = 0
        self.fail_with: OSError | None = None
        self.latency_s = latency_s
        self._durable_bytes = 0
        self._queue: list[Operation] = []

    async def load(self) -> Stored:
        self._durable_bytes = len(self.journal)
        return Stored(bytes(self.journal), self.snapshot, was_set_aside=self.set_asides > 0)

    def put(self, operation: Operation) -> None:
        self._queue.append(operation)

    async def sync(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with
        work, self._queue = self._queue, []
        if not work:
            return
        while work:
            # Each takes its time, so that a kill can fall between two.
            appends = list(takewhile(lambda operation: operation.kind == "append", work))
            for operation in appends:
                self.journal += operation.data
            if work[0].kind != "seal" and self.latency_s > 0:
                await asyncio.sleep(self.latency_s)
            if appends:
                self._durable_bytes = len(self.journal)
            else:
                self._write(work[0])
            del work[: len(appends) or 1]
        self.syncs += 1

    async def set_aside(self) -> None:
        self.crash()
        self.journal, self.snapshot, self._durable_bytes = bytearray(), None, 0
        self.set_asides += 1

    async def close(self) -> None:
        self._queue = []

    def crash(self, *, keep_written: bool = False, torn_bytes: int = 0) -> None:
        """Forget what was not durable; call it after `RaftNode.kill`.

        `keep_written`: the process died but the system lived (kill -9). `torn_bytes` of what was
        written behind the durable part survive a power loss.
        """
        self._queue = []
        if not keep_written:
            del self.journal[self._durable_bytes + torn_bytes :]
        self._durable_bytes = len(self.journal)

    def _write(self, operation: Operation) -> None:
        if operation.kind == "seal":
            self.journal += operation.data
        elif operation.kind == "snapshot":
            self.snapshot = operation.data
        else:
            self.journal = bytearray(operation.data)
            self._durable_bytes = len(self.journal)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_file(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
