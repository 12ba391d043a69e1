"""Frames: how messages share one connection between two nodes.

Owns the header layout, the frame kinds and the reassembly of messages from fragments, all without
I/O. It must not know what a message means.

Header, 9 bytes, big endian: payload length u24 | kind u8 | stream u32 | flags u8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from aivailable.errors import FrameError
from aivailable.wire.limits import FRAME_PAYLOAD_MAX_BYTES

HEADER_BYTES: Final = 9

# Frame kinds. A kind that is not known here is ignored by rule: a newer node may send it.
HELLO: Final = 0
"""LinkHello or Refused (stream 0)."""
PING: Final = 1
"""Empty: says that the sender's event loop is alive."""
CONTROL: Final = 2
"""A fragment of a control message (stream 0)."""
OPEN: Final = 3
"""First fragment of the first message of a new stream."""
DATA: Final = 4
"""A further fragment on a stream; counts against its credit, as OPEN's does."""
CREDIT: Final = 5
"""u32: this many more bytes may be sent on this stream."""
END: Final = 6
"""The sender has nothing more to say on this stream."""
RESET: Final = 7
"""Ends a stream in both directions: `code`, NUL, text."""
JOIN: Final = 8
"""A message of the join channel (stream 0)."""

# Flags.
LAST: Final = 1
"""This fragment completes its message."""
CLOSED: Final = 2
"""With END: the sender will not read any more either."""

_HEADER: Final = struct.Struct(">IIB")
_CREDIT: Final = struct.Struct(">I")
_RESET_TEXT_MAX_BYTES: Final = 1024
_NO_FLAGS: Final = 0


class Frame(NamedTuple):
    """One frame as it came off the wire."""

    kind: int
    stream: int
    flags: int
    payload: bytes


def encode_frame(kind: int, stream: int = 0, flags: int = _NO_FLAGS, payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises FrameError for a payload over FRAME_PAYLOAD_MAX_BYTES."""
    if len(payload) > FRAME_PAYLOAD_MAX_BYTES:
        raise FrameError(f"a frame of {len(payload)} bytes is over {FRAME_PAYLOAD_MAX_BYTES}")
    return _HEADER.pack(len(payload) << 8 | kind, stream, flags) + payload


def fragments(
    kind: int, stream: int, message: bytes, *, first_kind: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """(payload bytes, encoded frame) for each fragment of `message`, in order."""
    for start in range(0, max(len(message), 1), FRAME_PAYLOAD_MAX_BYTES):
        part = message[start : start + FRAME_PAYLOAD_MAX_BYTES]
        flags = LAST if start + len(part) == len(message) else _NO_FLAGS
        this_kind = first_kind if first_kind is not None and start == 0 else kind
        yield len(part), encode_frame(this_kind, stream, flags, part)


class FrameDecoder:
    """Bytes in any pieces → frames. Holds at most one incomplete frame."""

    def __init__(self, payload_max_bytes: int = FRAME_PAYLOAD_MAX_BYTES) -> None:
        self._payload_max_bytes = payload_max_bytes
        self._rest = b""

    @property
    def buffered_bytes(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Frames completed by `data`. Raises FrameError at the first frame over the limit;
        the connection is of no use after that."""
        buffer = self._rest + data if self._rest else data
        self._rest = b""
        position, end = 0, len(buffer)
        while end - position >= HEADER_BYTES:
            length_and_kind, stream, flags = _HEADER.unpack_from(buffer, position)
            length = length_and_kind >> 8
            if length > self._payload_max_bytes:
                raise FrameError(f"a frame of {length} bytes is over {self._payload_max_bytes}")
            stop = position + HEADER_BYTES + length
            if stop > end:
                break
            payload = buffer[position + HEADER_BYTES : stop]
            position = stop
            yield Frame(length_and_kind & 0xFF, stream, flags, bytes(payload))
        self._rest = bytes(buffer[position:])


class Assembler:
    """Fragments of one message after another → messages, with a bound on each."""

    def __init__(self, message_max_bytes: int) -> None:
        self._message_max_bytes = message_max_bytes
        self._parts: list[bytes] = []
        self.partial_bytes = 0

    def add(self, frame: Frame) -> bytes | None:
        """The message that `frame` completes, else None. Raises FrameError over the bound."""
        self.partial_bytes += len(frame.payload)
        if self.partial_bytes > self._message_max_bytes:
            raise FrameError(f"a message is over {self._message_max_bytes} bytes")
        if not frame.payload and not frame.flags & LAST:
            # Without this rule empty fragments would cost memory but no credit.
            raise FrameError("an empty fragment that completes nothing")
        self._parts.append(frame.payload)
        if not frame.flags & LAST:
            return None
        message = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self.partial_bytes = 0
        return message


def encode_credit(stream: int, credit_bytes: int) -> bytes:
    return encode_frame(CREDIT, stream, _NO_FLAGS, _CREDIT.pack(credit_bytes))


def decode_credit(frame: Frame) -> int:
    """Granted bytes. Raises FrameError when the payload is not a u32."""
    if len(frame.payload) != _CREDIT.size:
        raise FrameError("a credit frame without its number")
    (credit,) = _CREDIT.unpack(frame.payload)
    return int(credit)


def encode_reset(stream: int, code: str, message: str) -> bytes:
    text = f"{code}\0{message}".encode()[:_RESET_TEXT_MAX_BYTES]
    return encode_frame(RESET, stream, _NO_FLAGS, text)


def decode_reset(frame: Frame) -> tuple[str, str]:
    """(code, message); wrong bytes are replaced, since the stream ends in any case."""
    code, _, message = (
        frame.payload[:_RESET_TEXT_MAX_BYTES].decode(errors="replace").partition("\0")
    )
    return code, message
