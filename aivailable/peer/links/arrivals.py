"""Connections that come to the link port, until TLS has told what each is for.

Owns the listening sockets and the handshakes under way. Who may speak is the mesh's to say.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aivailable.peer.links.accepting import Acceptor
from aivailable.peer.links.handshakes import Handshake, Handshakes
from aivailable.peer.links.trust import Trust
from aivailable.wire.limits import HANDSHAKE_DEADLINE_S

SHUTDOWN_DEADLINE_S: Final = 1.0
"""For TLS to say goodbye."""
RECORD_HEAD_BYTES: Final = 5
RECORD_MAX_BYTES: Final = 16 * 1024
"""Of TLS; a hello has some 500 bytes, or 2 KiB with keys that withstand quantum computers."""

log = logging.getLogger(__name__)


class Arrivals:
    """`greet` says who handles a connection that has passed TLS, None: nobody. `missed` is called
    for each that never does."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        trust: Trust,
        greet: Callable[[asyncio.BaseTransport], asyncio.Protocol | None],
        missed: Callable[[], None],
    ) -> None:
        self._trust = trust
        self._greet = greet
        self._missed = missed
        self._loop = asyncio.get_running_loop()
        self._handshakes = Handshakes()
        self._tasks: dict[Handshake, asyncio.Task[None]] = {}
        self._acceptor = Acceptor(sockets, self._take, what="the link port", log=log)

    def open(self) -> None:
        self._acceptor.open()

    async def close(self) -> None:
        """Takes no more and ends the handshakes under way; what is through stays."""
        self._acceptor.close()
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def set_known(self, addresses: Iterable[str]) -> None:
        """Where members are: strangers take no place from them."""
        self._handshakes.set_known(frozenset(addresses))

    def _take(self, one: socket.socket, address: str) -> None:
        handshake, gone = self._handshakes.begin(address)
        if gone is not None:
            self._acceptor.say(
                "full",
                f"too many unfinished TLS handshakes from {gone.source}: the oldest are ended",
            )
            self._tasks[gone].cancel()
        task = self._loop.create_task(self._shake(one, handshake))
        self._tasks[handshake] = task
        # Not by the task itself: cancelled before its first step it would clean up nothing.
        task.add_done_callback(lambda ended: self._shaken(ended, one, handshake))

    async def _shake(self, one: socket.socket, handshake: Handshake) -> None:
        async with asyncio.timeout(HANDSHAKE_DEADLINE_S):
            handshake.has_spoken = await self._hear(one)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        await self._loop.connect_accepted_socket(
            lambda: _Arrival(self._greet),
            one,
            ssl=self._trust.server_context,
            ssl_handshake_timeout=HANDSHAKE_DEADLINE_S,
            ssl_shutdown_timeout=SHUTDOWN_DEADLINE_S,
        )

    async def _hear(self, one: socket.socket) -> bool:
        """Whether a whole first record came; it stays in the kernel, and costs us no TLS before."""
        wanted_bytes = RECORD_HEAD_BYTES
        for _ in ("its head", "all of it"):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted_bytes)
            await self._readable(one)
            head = one.recv(RECORD_HEAD_BYTES, socket.MSG_PEEK)
            if len(head) < RECORD_HEAD_BYTES:
                return False
            wanted_bytes = RECORD_HEAD_BYTES + int.from_bytes(head[3:], "big")
            if wanted_bytes > RECORD_MAX_BYTES:
                return False
        return True

    async def _readable(self, one: socket.socket) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(one, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(one)

    def _shaken(self, ended: asyncio.Task[None], one: socket.socket, handshake: Handshake) -> None:
        del self._tasks[handshake]
        self._handshakes.end(handshake)
        error = None if ended.cancelled() else ended.exception()
        if error is not None and not isinstance(error, OSError):
            log.error("a connection could not be opened", exc_info=error)
        if error is not None or ended.cancelled():
            one.close()
            self._missed()


class _Arrival(asyncio.Protocol):
    """A fresh connection; it hands over to what `greet` names once TLS is through."""

    def __init__(self, greet: Callable[[asyncio.BaseTransport], asyncio.Protocol | None]) -> None:
        self._greet = greet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        protocol = self._greet(transport)
        if protocol is None:
            transport.abort()
            return
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
