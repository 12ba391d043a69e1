"""The simulated cable: connections between processes, ordered pipes, streams.

Owns delivery: what is sent arrives later, in order, or the connection breaks. A cut direction holds
packets back, as TCP would, until the silence has lasted LINK_DEAD_S. It knows no peer: sim.links
and sim.join build the ports on it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from sim.faults import Damage
from sim.loop import Process
from sim.trace import Trace

from aivailable.errors import LinkLost, StreamReset
from aivailable.wire.limits import LINK_DEAD_S
from aivailable.wire.peer import PEER

WATCH_S = 0.1
HELD_POLL_S = 0.02
WINDOW_MESSAGES = 32
"""Messages of a stream that its reader has not taken yet."""


class Pipe:
    """One direction of a connection: first in, first out."""

    def __init__(self, connection: Connection, source: Process, target: Process) -> None:
        self.source = source
        self.target = target
        self.silent_since: float | None = None
        self._connection = connection
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._armed = False
        self._last_due = 0.0

    def post(self, arrive: Callable[[], None]) -> None:
        """Run `arrive` on behalf of the target, after everything posted before."""
        network = self._connection.network
        due = max(self._last_due, network.loop.time() + network.damage.latency_s())
        self._last_due = due
        self._queue.append((due, arrive))
        self._arm(due)

    def _arm(self, when: float) -> None:
        if not self._armed:
            self._armed = True
            loop = self._connection.network.loop
            loop.call_at(when, self._deliver, context=self.target.context)

    def _deliver(self) -> None:
        self._armed = False
        network = self._connection.network
        if self._connection.broken or self._connection.severed or not self.target.alive:
            self._queue.clear()
            return
        if network.damage.is_cut(self.source.name, self.target.name):
            self._arm(network.loop.time() + HELD_POLL_S)
            return
        _, arrive = self._queue.popleft()
        if self._queue:
            self._arm(max(self._queue[0][0], network.loop.time()))
        arrive()


class Connection:
    """A TCP connection between two processes; breaks once, for both."""

    def __init__(self, network: Network, opener: Process, acceptor: Process) -> None:
        self.network = network
        self.opener = opener
        self.acceptor = acceptor
        self.opener_links: object = None
        self.acceptor_links: object = None
        """Whose ports it joins (sim.links sets them)."""
        self.broken = False
        self.severed = False
        """One end has another address now: nothing arrives, and neither end is told."""
        self.forth = Pipe(self, opener, acceptor)
        self.back = Pipe(self, acceptor, opener)
        self._on_break: list[tuple[Process, Callable[[str], None]]] = []
        network.connections.append(self)

    def pipe_from(self, process: Process) -> Pipe:
        return self.forth if process is self.opener else self.back

    def other(self, process: Process) -> Process:
        return self.acceptor if process is self.opener else self.opener

    def on_break(self, process: Process, call: Callable[[str], None]) -> None:
        """`call` runs on behalf of `process` when the connection breaks."""
        self._on_break.append((process, call))

    def break_now(self, reason: str) -> None:
        """Nothing arrives any more; each end that lives learns of it a little later."""
        if self.broken:
            return
        self.broken = True
        for process, call in self._on_break:
            if process.alive:
                after_s = self.network.damage.latency_s()
                self.network.loop.call_later(after_s, call, reason, context=process.context)
        self._on_break.clear()


class Network:
    """All connections, and the watchdog that breaks those that fell silent."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rng: random.Random, damage: Damage, trace: Trace
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.damage = damage
        self.trace = trace
        self.connections: list[Connection] = []
        self.problems: list[str] = []
        """What no peer may ever do to its network port."""

    def start(self) -> None:
        self.loop.call_later(WATCH_S, self._watch)

    def process_died(self, process: Process, *, power: bool) -> None:
        """The kernel resets the connections of a killed process; a dead machine says nothing."""
        for connection in self.connections:
            if process in (connection.opener, connection.acceptor):
                if power:
                    self.loop.call_later(LINK_DEAD_S, connection.break_now, "silent")
                else:
                    connection.break_now("reset")
        self.connections = [entry for entry in self.connections if not entry.broken]

    def address_gone(self, process: Process) -> None:
        """What was connected to the old address of `process` falls silent for ever."""
        for connection in self.connections:
            if process in (connection.opener, connection.acceptor):
                connection.severed = True
                self.loop.call_later(LINK_DEAD_S, connection.break_now, "silent")

    def _watch(self) -> None:
        self.loop.call_later(WATCH_S, self._watch)
        now = self.loop.time()
        for connection in self.connections:
            for pipe in (connection.forth, connection.back):
                if not self.damage.is_cut(pipe.source.name, pipe.target.name):
                    pipe.silent_since = None
                elif pipe.silent_since is None:
                    pipe.silent_since = now
                elif now - pipe.silent_since >= LINK_DEAD_S:
                    connection.break_now("silent")
        self.connections = [entry for entry in self.connections if not entry.broken]


class SimStream:
    """ports.Stream: one end. What one end sends is encoded, so that nothing is shared."""

    def __init__(self, connection: Connection, process: Process) -> None:
        self._pipe = connection.pipe_from(process)
        self._process = process
        self._twin: SimStream | None = None
        self._inbox: deque[Any] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._untaken = 0
        self._sent_end = False
        self._got_end = False
        self._error: StreamReset | LinkLost | None = None
        connection.on_break(process, self._lost)
        if connection.broken:
            self._error = LinkLost("the connection is gone")

    @classmethod
    def pair(cls, connection: Connection) -> tuple[SimStream, SimStream]:
        """(the opener's end, the acceptor's end) where the opener opened the connection."""
        near, far = cls(connection, connection.opener), cls(connection, connection.acceptor)
        near._twin, far._twin = far, near
        return near, far

    async def send(self, message: Any) -> None:
        while self._error is None and not self._sent_end and self._untaken >= WINDOW_MESSAGES:
            self._room.clear()
            await self._room.wait()
        if self._error is not None:
            raise self._error
        if self._sent_end:
            raise StreamReset("finished", "this side has ended the stream")
        assert self._twin is not None
        twin, data = self._twin, PEER.encode(message)
        self._untaken += 1
        self._pipe.post(lambda: twin._arrived(data))

    async def receive(self) -> Any | None:
        while True:
            if isinstance(self._error, StreamReset):
                raise self._error
            if self._inbox:
                assert self._twin is not None
                self._twin._untaken -= 1
                self._twin._room.set()
                return self._inbox.popleft()
            if self._got_end:
                return None
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()

    def finish(self) -> None:
        if self._sent_end or not self._process.alive:
            return
        self._sent_end = True
        assert self._twin is not None
        self._pipe.post(self._twin._ended)

    def reset(self, code: str, message: str = "") -> None:
        if self._error is not None or (self._sent_end and self._got_end):
            return
        self._fail(StreamReset(code, message))
        if self._process.alive:
            assert self._twin is not None
            twin = self._twin
            self._pipe.post(lambda: twin._fail(StreamReset(code, message)))

    def served(self) -> None:
        """The handler has returned: nothing more is sent or read here."""
        self.finish()
        self._got_end = True

    def _arrived(self, data: bytes) -> None:
        message = PEER.decode(data)
        if message is not None and not self._got_end:
            self._inbox.append(message)
            self._news.set()

    def _ended(self) -> None:
        self._got_end = True
        self._wake()

    def _fail(self, error: StreamReset | LinkLost) -> None:
        if self._error is None:
            self._error = error
            self._sent_end = True
        self._wake()

    def _lost(self, reason: str) -> None:
        self._fail(LinkLost(reason))

    def _wake(self) -> None:
        self._news.set()
        self._room.set()
