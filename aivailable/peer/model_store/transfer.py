"""A model file on its way between two nodes: FileChunks out, FileChunks in.

Owns reading, writing and hashing in pieces off the event loop, the pace, and what is left on disk
when a transfer ends early. It must not know which files there are.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, TypeVar

from aivailable.errors import LinkError, WorkerError
from aivailable.gguf.opening import open_model_file
from aivailable.peer.home import sync_directory
from aivailable.peer.ports import FileStatus, MessageStream
from aivailable.wire.limits import MIB, WEIGHTS_CHUNK_BYTES
from aivailable.wire.peer import FileChunk

if TYPE_CHECKING:
    from hashlib import _Hash as Sha256

HASH_PIECE_BYTES: Final = 8 * MIB
SYNC_EVERY_BYTES: Final = 64 * MIB
"""Written in such portions, so that the journal's fdatasync never waits for gigabytes."""

T = TypeVar("T")


class Blocking(Protocol):
    """Runs a blocking call off the loop: asyncio.to_thread."""

    def __call__(self, work: Callable[..., T], /, *arguments: Any) -> Coroutine[Any, Any, T]: ...


@dataclass(frozen=True, slots=True)
class Partial:
    """A file that is being fetched."""

    part: Path
    final: Path
    digest: str
    size_bytes: int


def hash_open(file: BinaryIO) -> Sha256:
    """SHA-256 of the rest of it, read in HASH_PIECE_BYTES. Blocks. Raises OSError."""
    hashed = hashlib.sha256()
    while piece := file.read(HASH_PIECE_BYTES):
        hashed.update(piece)
    return hashed


async def send_file(
    status: FileStatus, offset: int, stream: MessageStream, blocking: Blocking
) -> None:
    """The file from `offset` as FileChunks, then the end. Raises OSError, LinkError."""
    total = status.size_bytes
    if not 0 <= offset <= total:
        stream.reset("bad_offset", f"the file has {total} bytes")
        raise LinkError(f"a peer asked for byte {offset} of a file of {total}")
    with _open_at(status.path, offset) as file:
        while True:
            data = await blocking(file.read, WEIGHTS_CHUNK_BYTES)
            if not data and offset < total:
                stream.reset("changed", "the file became shorter")
                raise LinkError(f"{status.path} became shorter while it was sent")
            last = offset + len(data) >= total
            await stream.send(FileChunk(offset, data, total, last))
            offset += len(data)
            if last:
                break
    stream.finish()


async def receive_file(
    partial: Partial,
    source: MessageStream,
    *,
    blocking: Blocking,
    sleep: Callable[[float], Awaitable[None]],
    pace_bytes_per_s: int,
) -> None:
    """Appends to the partial file until it is whole, then gives it its name. Raises LinkError,
    OSError (the partial stays for a later try), WorkerError on a wrong digest (it does not)."""
    loop = asyncio.get_running_loop()
    try:
        writer = _Writer(partial)
    except OSError:
        source.reset("failed", "no place for the file")
        raise
    try:
        while await _to_its_end(blocking(writer.hash_piece)):
            pass
        started_s, begun_at = loop.time(), writer.offset
        while True:
            chunk = await source.receive()
            if not isinstance(chunk, FileChunk):
                raise LinkError("the peer ended the transfer before the end of the file")
            if chunk.total != partial.size_bytes:
                raise LinkError(f"the peer's file has {chunk.total} bytes, not the catalogue's")
            if chunk.offset != writer.offset:
                raise LinkError(f"the peer sent byte {chunk.offset}, not {writer.offset}")
            await _to_its_end(blocking(writer.add, chunk.data))
            if pace_bytes_per_s:
                ahead_s = (writer.offset - begun_at) / pace_bytes_per_s
                await sleep(max(0.0, started_s + ahead_s - loop.time()))
            if chunk.last:
                break
        await _to_its_end(blocking(writer.complete))
    finally:
        source.reset("done")
        writer.close()


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """A cancelled caller still waits: the thread cannot be stopped, and what it writes must not
    meet a closed file or the next attempt at the same one. One piece takes milliseconds."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


class _Writer:
    """The partial file and its hash. Making and closing one is quick, the rest blocks."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._unsynced_bytes = 0
        self._hash = hashlib.sha256()
        self.offset = 0
        """How far the file is hashed, and so believed."""
        self._file = os.fdopen(os.open(partial.part, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            size = partial.part.stat().st_size
            if size > partial.size_bytes:
                self._file.truncate(0)
                size = 0
            missing = partial.size_bytes - size
            free = shutil.disk_usage(partial.part.parent).free
            if free < missing:
                raise self._disk_full(f"{missing} bytes are needed, {free} are free")
        except OSError:
            self._file.close()
            raise

    def hash_piece(self) -> bool:
        """Hash the next piece of what an earlier attempt left. False at the end of it."""
        piece = self._file.read(HASH_PIECE_BYTES)
        self._hash.update(piece)
        self.offset += len(piece)
        return bool(piece)

    def add(self, data: bytes) -> None:
        if self.offset + len(data) > self._partial.size_bytes:
            raise LinkError("the peer sent more than the file's size")
        try:
            self._file.write(data)
            self._file.flush()
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= SYNC_EVERY_BYTES:
                os.fdatasync(self._file.fileno())
                self._unsynced_bytes = 0
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full(f"at {self.offset} of {self._partial.size_bytes}") from error
            raise
        self._hash.update(data)
        self.offset += len(data)

    def complete(self) -> None:
        """Verify, sync, rename. Raises LinkError, WorkerError, OSError."""
        partial = self._partial
        if self.offset != partial.size_bytes:
            raise LinkError(f"the transfer ended at {self.offset} of {partial.size_bytes} bytes")
        if self._hash.hexdigest() != partial.digest:
            partial.part.unlink(missing_ok=True)
            raise WorkerError(
                f"model file {partial.digest[:12]} arrived damaged (its SHA-256 is "
                f"{self._hash.hexdigest()[:12]}); it was removed and is fetched again"
            )
        os.fsync(self._file.fileno())
        os.replace(partial.part, partial.final)
        sync_directory(partial.final.parent)

    def close(self) -> None:
        self._file.close()

    def _disk_full(self, detail: str) -> OSError:
        return OSError(
            errno.ENOSPC,
            f"no space for model file {self._partial.digest[:12]} ({detail}): free some, or "
            "choose another place with --models",
            str(self._partial.part.parent),
        )


def _open_at(path: Path, offset: int) -> BinaryIO:
    file = open_model_file(path)
    file.seek(offset)
    return file
