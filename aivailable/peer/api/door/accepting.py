"""Accepting connections: each gets a place or an answer, and being out of descriptors is survived.

asyncio's own server tries again for each waiting connection and logs a traceback each time; here
accepting pauses, and one line says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from aivailable.peer.api.door.connection import ApiConnection, refusal
from aivailable.peer.api.door.places import ApiPlace, Places, source_of
from aivailable.peer.api.door.unread import Unread

ACCEPTS_PER_TURN = 32
"""Connections taken before the loop's other work has its turn."""
PAUSE_S = 1.0
"""How long nothing is accepted when a connection could not be."""
SAY_AGAIN_S = 60.0
"""The same trouble is logged once in so long."""
HANDSHAKE_DEADLINE_S = 10.0

log = logging.getLogger("aivailable.api")


class Door:
    """The API's listening sockets. `speak` makes the protocol of one connection."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        speak: Callable[[], asyncio.Protocol],
        places: Places,
        *,
        tls: Any | None = None,
    ) -> None:
        self._sockets = tuple(sockets)
        self._speak = speak
        self._places = places
        self._tls = tls
        self._unread = Unread()
        self._loop = asyncio.get_running_loop()
        self._open: dict[ApiPlace, ApiConnection] = {}
        self._opening: dict[ApiPlace, asyncio.Task[None]] = {}
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._said_s: dict[str, float] = {}

    def open(self) -> None:
        for one in self._sockets:
            self._loop.add_reader(one, self._ready, one)

    async def close(self) -> None:
        """Takes no more; those that are open stay."""
        for pause in self._pauses.values():
            pause.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one)
            one.close()
        opening = tuple(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)

    def _ready(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                one, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listener, error)
                return
            one.setblocking(False)
            self._take(one, str(address[0]))

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Out of descriptors or memory: the connections wait in the kernel's line."""
        self._say(
            "pause",
            f"no connection can be accepted ({error.strerror}): the API pauses; "
            "allow the service more open files (LimitNOFILE, ulimit -n)",
        )
        self._loop.remove_reader(listener)
        self._pauses[listener] = self._loop.call_later(
            PAUSE_S, self._loop.add_reader, listener, self._ready, listener
        )

    def _take(self, one: socket.socket, address: str) -> None:
        source = source_of(address)
        place, gone = self._places.admit(source)
        if gone is not None:
            self._say("full", f"too many quiet connections from {gone.source}: the oldest go")
            self._end(gone)
        if place is None:
            self._say("busy", f"a connection from {source} is refused: all are busy")
            if self._tls is None:
                with contextlib.suppress(OSError):
                    one.send(refusal(503, "overloaded", "too many connections at once"))
            one.close()
            return
        task = self._loop.create_task(self._start(one, place))
        self._opening[place] = task
        # Not by the task itself: cancelled before its first step it would clean up nothing.
        task.add_done_callback(lambda ended: self._started(ended, one, place))

    async def _start(self, one: socket.socket, place: ApiPlace) -> None:
        def factory() -> ApiConnection:
            made = ApiConnection(self._speak(), place, self._places, self._unread, self._forget)
            self._open[place] = made
            return made

        limits = {"ssl_handshake_timeout": HANDSHAKE_DEADLINE_S} if self._tls else {}
        await self._loop.connect_accepted_socket(factory, one, ssl=self._tls, **limits)

    def _started(self, ended: asyncio.Task[None], one: socket.socket, place: ApiPlace) -> None:
        self._opening.pop(place, None)
        error = None if ended.cancelled() else ended.exception()
        if error is not None and not isinstance(error, OSError):
            log.error("a connection could not be opened", exc_info=error)
        if error is not None or ended.cancelled():
            one.close()
            self._forget(place)

    def _end(self, place: ApiPlace) -> None:
        opening, connection = self._opening.get(place), self._open.get(place)
        if opening is not None:
            opening.cancel()
        elif connection is not None:
            connection.abort()

    def _forget(self, place: ApiPlace) -> None:
        self._open.pop(place, None)
        self._places.leave(place)

    def _say(self, kind: str, text: str) -> None:
        now_s = self._loop.time()
        if now_s - self._said_s.get(kind, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_s[kind] = now_s
            log.warning("%s", text)
