"""Frames in any order on one connection: it may end, it must not raise, and it stays bounded."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from aivailable.peer.links.connection import Connection
from aivailable.peer.links.streams import LinkStream
from aivailable.wire import frames
from aivailable.wire.frames import FrameDecoder, encode_frame
from aivailable.wire.generation import Cancel
from aivailable.wire.limits import PROTO_MAX, STREAM_CREDIT_BYTES
from aivailable.wire.peer import HELLO, PEER, LinkHello, LinkRefused, RpcCall

HELLO_FROM_THERE = LinkHello("c", "n", "i", "v", 1, PROTO_MAX)
PAYLOADS = st.sampled_from(
    [
        b"",
        b"\0\0\0\x01",
        b"\0\0\xff\xff",
        b"\xff\xff\xff\xff",
        bytes(16 * 1024),
        PEER.encode(Cancel("r")),
        PEER.encode(RpcCall(1, "m")),
        HELLO.encode(HELLO_FROM_THERE),
        HELLO.encode(LinkRefused("busy", "b")),
    ]
) | st.binary(max_size=40)
FRAMES = st.tuples(st.integers(0, 9), st.integers(0, 6), st.integers(0, 3), PAYLOADS)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True


class Owner:
    """Accepts every hello and answers every stream's first message once."""

    def __init__(self) -> None:
        self.streams: list[LinkStream] = []
        self.closed = 0

    def connection_made(self, connection: Connection, transport: asyncio.Transport) -> None: ...

    def hello_received(self, connection: Connection, hello: LinkHello) -> None:
        connection.accept(hello)

    def refused(self, connection: Connection, refusal: LinkRefused) -> None: ...

    def control_received(self, connection: Connection, message: Any) -> None: ...

    def stream_opened(self, connection: Connection, first: Any, stream: LinkStream) -> None:
        self.streams.append(stream)
        if len(self.streams) % 2:
            stream.served()

    def streams_ended(self, connection: Connection) -> None: ...

    def connection_closed(self, connection: Connection, reason: str) -> None:
        self.closed += 1


@given(st.lists(FRAMES, max_size=30), st.booleans(), st.booleans())
@example(
    [(frames.OPEN, 1, 0, b"x"), (frames.RESET, 1, 0, b""), (frames.DATA, 1, 1, b"x")], False, True
)
@example([(frames.DATA, 1, 0, bytes(16 * 1024))] * 20, False, True)
def test_any_frames_end_a_connection_at_worst(
    sent: list[tuple[int, int, int, bytes]], dialled: bool, greeted: bool
) -> None:
    async def run() -> None:
        owner, transport = Owner(), Transport()
        connection = Connection(owner, dialled=dialled)
        connection.connection_made(transport)
        if greeted:
            connection.accept(HELLO_FROM_THERE)
        for kind, stream, flags, payload in sent:
            connection.data_received(encode_frame(kind, stream, flags, payload))
            for opened in connection._streams.values():
                waiting = sum(owed for _, owed in opened._arrived) + opened._partial_owed
                assert waiting <= STREAM_CREDIT_BYTES
        assert connection.closed == transport.ended == bool(owner.closed)
        assert owner.closed <= 1
        connection.connection_lost(None)
        assert owner.closed == 1
        assert connection._streams == {}
        for frame in FrameDecoder().feed(transport.written):
            assert frame.kind <= frames.JOIN

    asyncio.run(run())
