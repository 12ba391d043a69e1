"""Which model files this node holds, by SHA-256.

Owns the index (`models.json` in home) and the models directory. Files that an operator
registered are used where they lie; fetched ones become `<models>/<digest>.gguf`. It must not
decide what is fetched or deleted. Implements ports.ModelStore with model_store.transfer; built by
peer.app.

A file is believed as long as its size and modification time are those of the time it was
hashed: hashing 40 GB takes minutes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from aivailable.errors import GgufError, LinkError
from aivailable.gguf.opening import open_model_file
from aivailable.peer.model_store.transfer import (
    Blocking,
    Partial,
    hash_open,
    receive_file,
    send_file,
)
from aivailable.peer.ports import FileStatus, Home, MessageStream

INDEX_NAME: Final = "models.json"
GGUF_MAGIC: Final = b"GGUF"
LOOKERS_MAX: Final = 2
"""Headers that are read at the same time; others wait for their turn."""
LOOK_DEADLINE_S: Final = 20.0
"""For one header, the wait for its turn included. A slow disk needs a second."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A hashed file. `stamp_ns` is its modification time when it was hashed."""

    path: Path
    size_bytes: int
    stamp_ns: int


class FileModelStore:
    """ports.ModelStore over a directory."""

    def __init__(
        self,
        home: Home,
        models_dir: Path,
        *,
        blocking: Blocking,
        sleep: Callable[[float], Awaitable[None]],
        pace_bytes_per_s: int = 0,
    ) -> None:
        """`blocking` runs file work off the loop (asyncio.to_thread). `pace_bytes_per_s` bounds
        what a fetch writes, 0 = as fast as it comes. Raises OSError."""
        self._home = home
        self._models = models_dir
        self._blocking = blocking
        self._sleep = sleep
        self._pace_bytes_per_s = pace_bytes_per_s
        self._lookers = ThreadPoolExecutor(LOOKERS_MAX, thread_name_prefix="headers")
        self._fetching: dict[str, None] = {}
        self._saving = asyncio.Lock()
        models_dir.mkdir(parents=True, exist_ok=True)
        self._index = _load_index(home.load(INDEX_NAME))

    def held(self) -> Mapping[str, FileStatus]:
        """By digest, sorted; only files that are still what was hashed."""
        return {
            digest: FileStatus(digest, entry.path, entry.size_bytes)
            for digest, entry in sorted(self._index.items())
            if _unchanged(entry)
        }

    async def look(self, read: Callable[[Path], T], path: Path) -> T:
        # A pool of its own: a network drive that hangs takes these threads and no others.
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOOK_DEADLINE_S):
                return await loop.run_in_executor(self._lookers, read, path)
        except TimeoutError:
            raise GgufError(
                f"{path}: its header was not read within {LOOK_DEADLINE_S:.0f} s; "
                "is the drive that it is on reachable?"
            ) from None

    async def register(self, path: Path) -> FileStatus:
        known = self._known(path)
        if known is not None:
            return known
        digest, real_path = await self._blocking(_digest_of_gguf, path)
        return await self._remember(digest, real_path)

    async def fetch(self, digest: str, size_bytes: int, source: MessageStream) -> FileStatus:
        """`source` was opened with FetchFile(digest, partial_bytes(digest)). Raises LinkError
        (the partial stays), OSError, WorkerError on a mismatch (the partial is removed)."""
        if digest in self._fetching:
            raise LinkError(f"model file {digest[:12]} is being fetched already")
        self._fetching[digest] = None
        try:
            partial = Partial(
                part=self._part(digest),
                final=self._models / f"{digest}.gguf",
                digest=digest,
                size_bytes=size_bytes,
            )
            await receive_file(
                partial,
                source,
                blocking=self._blocking,
                sleep=self._sleep,
                pace_bytes_per_s=self._pace_bytes_per_s,
            )
        finally:
            del self._fetching[digest]
        return await self._remember(digest, partial.final)

    async def send(self, digest: str, offset: int, stream: MessageStream) -> None:
        """A file that is not held resets the stream with `not_held` and raises LinkError."""
        status = self.held().get(digest)
        if status is None:
            stream.reset("not_held", "this node does not hold the file")
            raise LinkError(f"model file {digest[:12]} was asked for and is not held")
        await send_file(status, offset, stream, self._blocking)

    def partial_bytes(self, digest: str) -> int:
        try:
            return self._part(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def _known(self, path: Path) -> FileStatus | None:
        real_path = path.resolve()
        for digest, entry in self._index.items():
            if entry.path == real_path and _unchanged(entry):
                return FileStatus(digest, real_path, entry.size_bytes)
        return None

    def _part(self, digest: str) -> Path:
        if _DIGEST.match(digest) is None:
            raise ValueError("a digest is 64 hex digits")
        return self._models / f"{digest}.part"

    async def _remember(self, digest: str, path: Path) -> FileStatus:
        stat = path.stat()  # noqa: ASYNC240  (one stat of a file just written)
        self._index[digest] = _Entry(path, stat.st_size, stat.st_mtime_ns)
        async with self._saving:
            # Encoded inside: the last to save saves everything that is known.
            await self._blocking(self._home.save, INDEX_NAME, _encode_index(self._index))
        return FileStatus(digest, path, stat.st_size)


def _load_index(data: bytes | None) -> dict[str, _Entry]:
    """A damaged index is an empty one: files are hashed again when they are registered."""
    try:
        plain: Any = json.loads(data or b"{}")
        return {
            str(digest): _Entry(Path(e["path"]), int(e["size"]), int(e["stamp_ns"]))
            for digest, e in plain.items()
            if _DIGEST.match(digest)
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _encode_index(index: Mapping[str, _Entry]) -> bytes:
    plain = {
        digest: {"path": os.fspath(e.path), "size": e.size_bytes, "stamp_ns": e.stamp_ns}
        for digest, e in sorted(index.items())
    }
    return json.dumps(plain, indent=1).encode()


def _unchanged(entry: _Entry) -> bool:
    try:
        stat = entry.path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (entry.size_bytes, entry.stamp_ns)


def _digest_of_gguf(path: Path) -> tuple[str, Path]:
    """Digest and real path. Blocks. Raises GgufError, OSError."""
    path = path.resolve()
    with open_model_file(path) as file:
        before = os.fstat(file.fileno())
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise GgufError(f"{path} is not a GGUF model file")
        file.seek(0)
        digest = hash_open(file).hexdigest()
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise GgufError(f"{path} changed while it was read: wait until it is complete")
    return digest, path
