"""One request over a link: messages both ways, with credit in bytes.

Owns the state of a stream at one of its ends and the arithmetic of credit. It must not touch
the transport: it writes through the small `StreamCarrier` that the connection is.
Made by links.connection, used through ports.Stream.

Credit: a sender may have STREAM_CREDIT_BYTES under way. The receiver grants what its reader has
consumed, and fragments of an incomplete message while nothing else waits for the reader (else a
message larger than the credit could never arrive). So a stream whose reader stops holds at most
one message and the credit, and the connection itself never stops reading.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Protocol

from aivailable.errors import FrameError, LinkLost, StreamReset
from aivailable.wire import frames
from aivailable.wire.frames import Assembler, Frame
from aivailable.wire.limits import (
    FRAME_PAYLOAD_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    STREAM_CREDIT_BYTES,
)
from aivailable.wire.peer import PEER

CREDIT_GRANT_BYTES: Final = STREAM_CREDIT_BYTES // 4
"""Grants are collected up to this much, so that tokens do not cost a credit frame each."""


class StreamCarrier(Protocol):
    """What a stream needs of its connection."""

    def writable(self) -> bool: ...

    async def wait_writable(self) -> None: ...

    def write_stream(self, frame: bytes) -> None:
        """In order, after all control frames."""
        ...

    def write_urgent(self, frame: bytes) -> None:
        """Before everything else."""
        ...

    def register(self, stream: LinkStream) -> int:
        """A number for a stream of ours whose opening frame follows at once: numbers must
        reach the other side in order. Raises LinkLost, LinkError."""
        ...

    def forget(self, stream_id: int) -> None:
        """The stream has ended on both sides."""
        ...


class LinkStream:
    """ports.Stream. One reader; any number of senders, whose messages do not mix."""

    def __init__(self, carrier: StreamCarrier, stream_id: int = 0) -> None:
        """`stream_id` 0: ours, numbered by its first message."""
        self.stream_id = stream_id
        self._carrier = carrier
        self._sending = asyncio.Lock()
        self._credit = STREAM_CREDIT_BYTES
        self._may_send = asyncio.Event()
        self._window = STREAM_CREDIT_BYTES
        self._assembler = Assembler(MESSAGE_MAX_BYTES)
        self._partial_owed = 0
        self._to_grant = 0
        self._arrived: deque[tuple[Any, int]] = deque()
        self._news = asyncio.Event()
        self._sent_end = False
        self._got_end = False
        self._error: StreamReset | LinkLost | None = None

    async def send(self, message: Any) -> None:
        """Waits for credit and for room in the connection. Raises LinkLost, StreamReset, and
        FrameError for a message over MESSAGE_MAX_BYTES."""
        data = PEER.encode(message)
        if len(data) > MESSAGE_MAX_BYTES:
            raise FrameError(f"a message of {len(data)} bytes is over {MESSAGE_MAX_BYTES}")
        async with self._sending:
            if self._sent_end:
                raise self._error or StreamReset("finished", "this side has ended the stream")
            begun = False
            first_kind = None
            if not self.stream_id:
                await self._wait_for_credit(min(len(data), FRAME_PAYLOAD_MAX_BYTES))
                self.stream_id = self._carrier.register(self)
                first_kind = frames.OPEN
            try:
                for size, frame in frames.fragments(
                    frames.DATA, self.stream_id, data, first_kind=first_kind
                ):
                    await self._wait_for_credit(size)
                    begun = True
                    self._credit -= size
                    self._carrier.write_stream(frame)
            except asyncio.CancelledError:
                if begun:
                    # Half a message is on the wire: nothing else can follow it.
                    self.reset("cancelled")
                raise

    async def receive(self) -> Any | None:
        """The next message; None at the other side's orderly end. A reset is raised at once,
        a lost link only after what had arrived before."""
        while True:
            if isinstance(self._error, StreamReset):
                raise self._error
            if self._arrived:
                message, owed = self._arrived.popleft()
                self._grant(owed)
                if not self._arrived and self._partial_owed:
                    self._grant(self._partial_owed)
                    self._partial_owed = 0
                return message
            if self._got_end:
                return None
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()

    def finish(self) -> None:
        """Orderly end of our direction; does nothing after an end or a reset."""
        if self._sent_end:
            return
        self._sent_end = True
        if self.stream_id:
            self._carrier.write_stream(frames.encode_frame(frames.END, self.stream_id))
        if self._got_end:
            self._carrier.forget(self.stream_id)
        self._wake()

    def reset(self, code: str, message: str = "") -> None:
        """End both directions; does nothing on a stream that has ended. Always safe in a
        `finally`, and owed there by whoever stops reading early."""
        if self._error is not None or (self._sent_end and self._got_end):
            return
        self._sent_end = True
        if self.stream_id:
            self._carrier.write_stream(frames.encode_reset(self.stream_id, code, message))
        self._fail(StreamReset(code, message))

    # What the connection calls.

    def served(self) -> None:
        """The handler has returned: we neither send nor read any more."""
        if self._error is not None:
            return
        if self._got_end:
            self.finish()
            return
        self._sent_end = self._got_end = True
        self._carrier.write_stream(frames.encode_frame(frames.END, self.stream_id, frames.CLOSED))
        self._carrier.forget(self.stream_id)

    def frame_received(self, frame: Frame) -> None:
        """Takes OPEN, DATA, CREDIT, END, RESET. Raises FrameError, SchemaError."""
        if frame.kind in (frames.OPEN, frames.DATA):
            self._data_received(frame)
        elif frame.kind == frames.CREDIT:
            self._credit += frames.decode_credit(frame)
            if self._credit > STREAM_CREDIT_BYTES:
                raise FrameError("more credit than was ever used")
            self._may_send.set()
        elif frame.kind == frames.END:
            self._end_received(closed=bool(frame.flags & frames.CLOSED))
        elif frame.kind == frames.RESET:
            self._sent_end = True
            self._fail(StreamReset(*frames.decode_reset(frame)))

    def take_first(self) -> Any | None:
        """The opening message once it is whole, at the side that did not open."""
        if not self._arrived:
            return None
        message, owed = self._arrived.popleft()
        self._grant(owed)
        return message

    def link_lost(self, reason: str) -> None:
        self._sent_end = True
        if self._error is None:
            self._error = LinkLost(reason)
        self._wake()

    def _data_received(self, frame: Frame) -> None:
        if self._got_end:
            raise FrameError("data after the end of a stream")
        size = len(frame.payload)
        self._window -= size
        if self._window < 0:
            raise FrameError("a stream sent more than its credit")
        self._partial_owed += size
        data = self._assembler.add(frame)
        if data is not None:
            owed, self._partial_owed = self._partial_owed, 0
            message = PEER.decode(data)
            if message is None:
                self._grant(owed)
                return
            self._arrived.append((message, owed))
            self._news.set()
        elif not self._arrived:
            self._grant(self._partial_owed)
            self._partial_owed = 0

    def _end_received(self, *, closed: bool) -> None:
        self._got_end = True
        self._sent_end = self._sent_end or closed
        if self._sent_end:
            self._carrier.forget(self.stream_id)
        self._wake()

    def _fail(self, error: StreamReset) -> None:
        if self._error is None:
            self._error = error
        self._carrier.forget(self.stream_id)
        self._wake()

    async def _wait_for_credit(self, size: int) -> None:
        while True:
            if self._error is not None:
                raise self._error
            if self._sent_end:
                raise StreamReset("finished", "the stream has ended")
            if self._credit < size:
                self._may_send.clear()
                await self._may_send.wait()
            elif not self._carrier.writable():
                await self._carrier.wait_writable()
            else:
                return

    def _grant(self, size: int) -> None:
        self._to_grant += size
        if self._to_grant < CREDIT_GRANT_BYTES or self._got_end or self._error is not None:
            return
        self._carrier.write_urgent(frames.encode_credit(self.stream_id, self._to_grant))
        self._window += self._to_grant
        self._to_grant = 0

    def _wake(self) -> None:
        self._news.set()
        self._may_send.set()
