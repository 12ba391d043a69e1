"""Model files and their companions on their way between members, each over a connection of its own.

Owns which digests are being fetched, from whom, and when to try again. One transfer at a time per
digest; sources are tried in the order of the replicated state; partial files are resumed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from aivailable.core.ids import Digest, NodeId, short
from aivailable.errors import AivailableError, LinkError, WorkerError
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.ports import MessageStream, Ports
from aivailable.peer.tasks import Tasks
from aivailable.wire.peer import FetchFile

log = logging.getLogger("aivailable.transfers")

SENDING_MAX = 4
"""Files sent to others at the same time."""
RETRY_S = 5.0
"""A failed transfer is not tried again before."""
SOURCE_WAIT_S = 10.0
"""How long to wait for a linked holder before giving up this attempt."""


class Transfers:
    """`on_end(digest, error)` is called once for each attempt."""

    def __init__(
        self,
        ports: Ports,
        cluster: ClusterView,
        on_end: Callable[[Digest, AivailableError | OSError | None], None],
    ) -> None:
        self._ports = ports
        self._cluster = cluster
        self._on_end = on_end
        self._tasks = Tasks("transfers")
        self._running: dict[Digest, bool] = {}
        self._not_before_s: dict[Digest, float] = {}
        self._sending = 0

    def want(self, digest: Digest) -> None:
        """Fetch this file unless it is held or under way; a moment later if it has just failed.

        Asking once is enough: the agent does not repeat it for a replica that is fetching.
        """
        if digest in self._running or digest in self._ports.model_store.held():
            return
        self._running[digest] = True
        self._tasks.spawn(self._fetch(digest), f"fetch {short(digest)}")

    def progress(self, files: Mapping[Digest, int]) -> float:
        """0 to 1: of all the bytes of these files, given with their sizes."""
        store, held = self._ports.model_store, self._ports.model_store.held()
        here = sum(
            size if digest in held else min(size, store.partial_bytes(digest))
            for digest, size in files.items()
        )
        return here / max(1, sum(files.values()))

    async def stop(self) -> None:
        await self._tasks.stop()

    async def serve(self, node: NodeId, digest: Digest, offset: int, stream: MessageStream) -> None:
        """Send a file that we hold to a member."""
        if digest not in self._ports.model_store.held():
            stream.reset("not_held", "this node does not hold the file")
            return
        if self._sending >= SENDING_MAX:
            stream.reset("busy", f"{SENDING_MAX} transfers run already; ask another holder")
            return
        self._sending += 1
        try:
            log.info("sending %s to %s from byte %d", short(digest), short(node), offset)
            await self._ports.model_store.send(digest, offset, stream)
        except OSError as error:
            stream.reset("unreadable", str(error))
        except LinkError as error:
            log.info("sending %s to %s ended: %s", short(digest), short(node), error)
        finally:
            self._sending -= 1

    async def _fetch(self, digest: Digest) -> None:
        error: AivailableError | OSError | None = None
        try:
            pause_s = self._not_before_s.get(digest, 0.0) - self._ports.clock.monotonic()
            await asyncio.sleep(max(0.0, pause_s))
            await self._fetch_from_any(digest)
        except (AivailableError, OSError) as caught:
            error = caught
            self._not_before_s[digest] = self._ports.clock.monotonic() + RETRY_S
        finally:
            self._running.pop(digest, None)
        self._on_end(digest, error)

    async def _fetch_from_any(self, digest: Digest) -> None:
        """Raises the last source's error, or WorkerError when nobody who holds it is linked."""
        size_bytes = self._cluster.state.files().get(digest)
        if size_bytes is None:
            raise WorkerError("neither the catalogue nor a deployment has this file any more")
        last: AivailableError | None = None
        for source in await self._sources(digest):
            try:
                offset = self._ports.model_store.partial_bytes(digest)
                stream = await self._ports.links.fetch_stream(source, FetchFile(digest, offset))
                await self._ports.model_store.fetch(digest, size_bytes, stream)
            except (LinkError, WorkerError) as error:
                log.info("fetching %s from %s: %s", short(digest), short(source), error)
                last = error
            else:
                return
        raise last or WorkerError("no member that holds the file can be reached")

    async def _sources(self, digest: Digest) -> tuple[NodeId, ...]:
        """Linked holders; waits a while for one to appear."""
        deadline_s = self._ports.clock.monotonic() + SOURCE_WAIT_S
        while True:
            linked = self._ports.links.connected()
            found = tuple(node for node in self._cluster.state.holders(digest) if node in linked)
            if found or self._ports.clock.monotonic() >= deadline_s:
                return found
            await asyncio.sleep(0.5)
