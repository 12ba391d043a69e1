"""Accepting connections: each gets a place or an answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from aivailable.peer.api.door.connection import ApiConnection, refusal
from aivailable.peer.api.door.places import ApiPlace, Places, caller_of
from aivailable.peer.api.door.unread import Unread
from aivailable.peer.links.accepting import Acceptor

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
        self._speak = speak
        self._places = places
        self._tls = tls
        self._unread = Unread()
        self._loop = asyncio.get_running_loop()
        self._open: dict[ApiPlace, ApiConnection] = {}
        self._opening: dict[ApiPlace, asyncio.Task[None]] = {}
        self._acceptor = Acceptor(sockets, self._take, what="the API", log=log)

    def open(self) -> None:
        self._acceptor.open()

    async def close(self) -> None:
        """Takes no more; those that are open stay."""
        self._acceptor.close()
        opening = tuple(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)

    def _take(self, one: socket.socket, address: str) -> None:
        source = caller_of(address)
        place, gone = self._places.admit(source)
        if gone is not None:
            self._acceptor.say(
                "full", f"too many quiet connections from {gone.source}: the oldest go"
            )
            self._end(gone)
        if place is None:
            self._acceptor.say("busy", f"a connection from {source} is refused: all are busy")
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
