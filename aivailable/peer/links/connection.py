"""One connection between two nodes: frames in, frames out, in the right order.

Owns the transport of one link (or weights) connection, the order of writing (pings and credit,
then control, then streams), both bounds on what waits, and the watch on silence. It must not
decide whom to talk to or which of two connections stays: links.mesh does, through `Owner`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Final, Protocol

from aivailable.errors import FrameError, LinkError, LinkLost, WireError
from aivailable.peer.links.streams import LinkStream
from aivailable.wire import frames
from aivailable.wire.frames import Assembler, Frame, FrameDecoder
from aivailable.wire.limits import (
    CONTROL_MESSAGE_MAX_BYTES,
    CONTROL_QUEUE_MAX_BYTES,
    HANDSHAKE_DEADLINE_S,
    KIB,
    LINK_DEAD_S,
    LINK_PING_S,
    STREAMS_PER_LINK_MAX,
)
from aivailable.wire.peer import HELLO, PEER, LinkHello, LinkRefused

WRITE_AHEAD_MAX_BYTES: Final = 64 * KIB
"""Stream bytes handed over but not yet written; also the transport's own high-water mark, so
that control never waits behind more than about twice this."""
UNSENT_MAX_BYTES: Final = 128 * KIB
"""What the kernel may hold unsent (TCP_NOTSENT_LOWAT) before it calls the socket full."""

_STREAM_KINDS: Final = (frames.OPEN, frames.DATA, frames.CREDIT, frames.END, frames.RESET)


class Owner(Protocol):
    """Who decides about connections (links.mesh)."""

    def connection_made(self, connection: Connection, transport: asyncio.Transport) -> None: ...

    def hello_received(self, connection: Connection, hello: LinkHello) -> None: ...

    def refused(self, connection: Connection, refusal: LinkRefused) -> None: ...

    def control_received(self, connection: Connection, message: Any) -> None: ...

    def stream_opened(self, connection: Connection, first: Any, stream: LinkStream) -> None: ...

    def streams_ended(self, connection: Connection) -> None:
        """The last open stream has ended."""
        ...

    def connection_closed(self, connection: Connection, reason: str) -> None: ...


class Connection(asyncio.Protocol):
    """The mux. `up` once both hellos are accepted: before, only hello and ping may come."""

    def __init__(self, owner: Owner, *, dialled: bool, purpose: str = "link") -> None:
        self.dialled = dialled
        self.node = ""
        self.instance_id = ""
        self.purpose = purpose
        self.up = False
        self.closed = False
        self.closed_by_peer = False
        """It ended without a Refused and not by us."""
        self.said_hello = False
        self.tasks: dict[asyncio.Task[None], None] = {}
        """Handlers of streams that the other side opened; in order of opening."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[bool] = self._loop.create_future()
        """True when the link is up, False when it was closed before."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """The transport is closed."""
        self.heard_at = self._loop.time()
        self.close_reason = ""
        self._transport: asyncio.Transport | None = None
        self._decoder = FrameDecoder()
        self._control_in = Assembler(CONTROL_MESSAGE_MAX_BYTES)
        self._urgent: deque[bytes] = deque()
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._data = bytearray()
        self._paused = False
        self._flushing = False
        self._writers: deque[asyncio.Future[None]] = deque()
        self._streams: dict[int, LinkStream] = {}
        self._opening: dict[int, LinkStream] = {}
        self._next_stream = 1 if dialled else 2
        self._last_remote = 0 if not dialled else -1
        self._timer: asyncio.TimerHandle | None = None
        self._born_at = self.heard_at

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_AHEAD_MAX_BYTES)
        _tune(transport)
        self.heard_at = self._born_at = self._loop.time()
        self._timer = self._loop.call_later(LINK_PING_S, self._tick, self.heard_at + LINK_PING_S)
        self._owner.connection_made(self, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            for frame in self._decoder.feed(data):
                if self.closed:
                    return
                self._frame_received(frame)
        except WireError as error:
            self.refuse("malformed", str(error))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_by_peer = not self.closed
        self._finish(f"connection lost: {exc}" if exc else "the other side closed the connection")
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # What the mesh calls.

    def say_hello(self, hello: LinkHello) -> None:
        self.said_hello = True
        self.write_urgent(frames.encode_frame(frames.HELLO, 0, frames.LAST, HELLO.encode(hello)))

    def accept(self, hello: LinkHello) -> None:
        """The other side's hello is good: control and streams may flow."""
        self.up = True
        self.instance_id = hello.instance_id
        if not self.dialled:
            self.purpose = hello.purpose
        if not self.settled.done():
            self.settled.set_result(True)

    def refuse(self, code: str, message: str) -> None:
        """Say why, then end the connection."""
        if self.closed:
            return
        refusal = HELLO.encode(LinkRefused(code, message[:512]))
        self._urgent.append(frames.encode_frame(frames.HELLO, 0, frames.LAST, refusal))
        last_words = b"".join(self._urgent)
        self._finish(f"{code}: {message}")
        if self._transport is not None:
            self._transport.write(last_words)
            self._transport.close()

    def close(self, reason: str) -> None:
        """Cut at once."""
        if self.closed:
            return
        self._finish(reason)
        if self._transport is not None:
            self._transport.abort()

    def send_control(self, message: Any) -> bool:
        """Queue a control message. False when the link is closed or its queue is full; a full
        queue cuts it (not within this call). Raises FrameError over the message bound."""
        if self.closed or not self.up:
            return False
        data = PEER.encode(message)
        if len(data) > CONTROL_MESSAGE_MAX_BYTES:
            raise FrameError(f"a control message of {len(data)} bytes is over its bound")
        if self._control_bytes + len(data) > CONTROL_QUEUE_MAX_BYTES:
            self._loop.call_soon(self.close, "stuck: its control queue is full")
            return False
        for _, frame in frames.fragments(frames.CONTROL, 0, data):
            self._control.append(frame)
            self._control_bytes += len(frame)
        self._schedule_flush()
        return True

    def open_stream(self) -> LinkStream:
        """A stream that begins with its first message."""
        return LinkStream(self)

    # StreamCarrier

    def writable(self) -> bool:
        # A closed connection blocks nobody: who writes next learns it from the stream.
        return self.closed or (not self._paused and len(self._data) < WRITE_AHEAD_MAX_BYTES)

    async def wait_writable(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._writers.append(waiter)
        await waiter

    def write_stream(self, frame: bytes) -> None:
        if not self.closed:
            self._data += frame
            self._schedule_flush()

    def write_urgent(self, frame: bytes) -> None:
        if not self.closed:
            self._urgent.append(frame)
            self._schedule_flush()

    def register(self, stream: LinkStream) -> int:
        if self.closed or not self.up:
            raise LinkLost(self.close_reason or "the link is not up")
        if len(self._streams) >= STREAMS_PER_LINK_MAX:
            raise LinkError(f"{STREAMS_PER_LINK_MAX} streams are open on this link")
        number = self._next_stream
        self._next_stream += 2
        self._streams[number] = stream
        return number

    def forget(self, stream_id: int) -> None:
        self._opening.pop(stream_id, None)
        if self._streams.pop(stream_id, None) is not None and not self._streams:
            self._owner.streams_ended(self)

    # Inside.

    def _frame_received(self, frame: Frame) -> None:
        if frame.kind == frames.PING:
            return
        if frame.kind == frames.HELLO:
            message = HELLO.decode(frame.payload)
            if isinstance(message, LinkRefused):
                self._owner.refused(self, message)
                self.close(f"refused: {message.code}: {message.message}")
            elif isinstance(message, LinkHello) and not self.up:
                self._owner.hello_received(self, message)
        elif frame.kind == frames.CONTROL or frame.kind in _STREAM_KINDS:
            if not self.up:
                raise FrameError("a message before the hello")
            if frame.kind == frames.CONTROL:
                self._control_received(frame)
            else:
                self._stream_received(frame)

    def _control_received(self, frame: Frame) -> None:
        data = self._control_in.add(frame)
        message = None if data is None else PEER.decode(data)
        if message is not None:
            self._owner.control_received(self, message)

    def _stream_received(self, frame: Frame) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            if frame.kind != frames.OPEN:
                self._check_was_open(frame.stream)
                return
            stream = self._accept_stream(frame.stream)
            if stream is None:
                return
        elif frame.kind == frames.OPEN:
            raise FrameError("a stream opened twice")
        stream.frame_received(frame)
        if frame.stream in self._opening:
            first = stream.take_first()
            if first is not None:
                del self._opening[frame.stream]
                self._owner.stream_opened(self, first, stream)

    def _accept_stream(self, stream_id: int) -> LinkStream | None:
        if stream_id % 2 == self._next_stream % 2 or stream_id <= self._last_remote:
            raise FrameError("a stream opened under a number that is not its own")
        self._last_remote = stream_id
        if len(self._streams) >= STREAMS_PER_LINK_MAX:
            self.write_stream(frames.encode_reset(stream_id, "busy", "too many streams"))
            return None
        stream = LinkStream(self, stream_id)
        self._streams[stream_id] = stream
        self._opening[stream_id] = stream
        return stream

    def _check_was_open(self, stream_id: int) -> None:
        """Frames for a stream that we have just ended are late, not wrong."""
        ours = stream_id % 2 == self._next_stream % 2
        if stream_id >= self._next_stream if ours else stream_id > self._last_remote:
            raise FrameError("a frame for a stream that was never opened")

    def _schedule_flush(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        while self._transport is not None and not self.closed and not self._paused:
            chunk = self._next_chunk()
            if not chunk:
                break
            self._transport.write(chunk)
        if not self.closed and self.writable():
            self._wake_writers()

    def _next_chunk(self) -> bytes:
        parts = [*self._urgent]
        self._urgent.clear()
        size = 0
        while self._control and size < WRITE_AHEAD_MAX_BYTES:
            frame = self._control.popleft()
            self._control_bytes -= len(frame)
            size += len(frame)
            parts.append(frame)
        if self._data and size < WRITE_AHEAD_MAX_BYTES:
            parts.append(bytes(self._data))
            self._data.clear()
        return b"".join(parts)

    def _wake_writers(self) -> None:
        while self._writers:
            waiter = self._writers.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _tick(self, due: float) -> None:
        """Ping, and cut what is silent. A tick that is itself late says that *we* stood still:
        what has come in since waits unread, so the silence proves nothing yet."""
        now = self._loop.time()
        on_time = now - due < LINK_PING_S
        if on_time and now - self.heard_at > LINK_DEAD_S:
            self.close(f"silent for {LINK_DEAD_S:g} s")
            return
        if not self.up and now - self._born_at > HANDSHAKE_DEADLINE_S:
            self.close("no hello in time")
            return
        if not self._urgent:
            self.write_urgent(frames.encode_frame(frames.PING))
        self._timer = self._loop.call_later(LINK_PING_S, self._tick, now + LINK_PING_S)

    def _finish(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.close_reason = reason
        if self._timer is not None:
            self._timer.cancel()
        self._urgent.clear()
        self._control.clear()
        self._data.clear()
        streams, self._streams = self._streams, {}
        self._opening = {}
        for stream in streams.values():
            stream.link_lost(reason)
        for task in self.tasks:
            task.cancel()
        self._wake_writers()
        if not self.settled.done():
            self.settled.set_result(False)
        self._owner.connection_closed(self, reason)


def _tune(transport: asyncio.Transport) -> None:
    """Small frames at once; a dead host noticed by the kernel too; little unsent in it."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    options = (
        ("TCP_NODELAY", 1),
        ("TCP_USER_TIMEOUT", int(LINK_DEAD_S * 1000)),
        ("TCP_NOTSENT_LOWAT", UNSENT_MAX_BYTES),
    )
    for name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
