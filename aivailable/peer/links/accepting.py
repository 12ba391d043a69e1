"""Listening sockets that survive being out of descriptors.

asyncio's own server tries again for each waiting connection and logs a traceback each time; here
accepting pauses, and one line says so. Of the link port and of the API's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

ACCEPTS_PER_TURN = 32
"""Connections taken before the loop's other work has its turn."""
PAUSE_S = 1.0
"""How long nothing is accepted when a connection could not be."""
SAY_AGAIN_S = 60.0
"""The same trouble is logged at most once in this time."""


class Acceptor:
    """`take` gets each new connection, not blocking, and the address of its other end. `what`
    names the port in the log."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        take: Callable[[socket.socket, str], None],
        *,
        what: str,
        log: logging.Logger,
    ) -> None:
        self._sockets = tuple(sockets)
        self._take = take
        self._what = what
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._said_s: dict[str, float] = {}

    def open(self) -> None:
        for one in self._sockets:
            one.setblocking(False)
            self._loop.add_reader(one, self._ready, one)

    def close(self) -> None:
        """Takes no more; those that were taken stay."""
        for pause in self._pauses.values():
            pause.cancel()
        sockets, self._sockets = self._sockets, ()
        for one in sockets:
            self._loop.remove_reader(one)
            one.close()

    def say(self, kind: str, text: str) -> None:
        """A warning, unless one of its kind was just given."""
        now_s = self._loop.time()
        if now_s - self._said_s.get(kind, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_s[kind] = now_s
            self._log.warning("%s", text)

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
        self.say(
            "pause",
            f"no connection can be accepted ({error.strerror}): {self._what} pauses; "
            "allow the service more open files (LimitNOFILE, ulimit -n)",
        )
        self._loop.remove_reader(listener)
        self._pauses[listener] = self._loop.call_later(
            PAUSE_S, self._loop.add_reader, listener, self._ready, listener
        )
