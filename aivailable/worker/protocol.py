"""Framed messages over the socket pair between a peer and this worker.

Owns: the framing of wire/worker.py (u32 big-endian length, then the envelope), the reader thread
and the inbox. It must not interpret messages. Called by the worker's session.

Sending blocks while the peer does not read: that is the back-pressure, nothing is queued.
Receiving has a thread of its own, so that a cancellation is seen while a step is computed and
the peer's death is seen while weights load.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from aivailable.errors import FrameError, SchemaError
from aivailable.wire.limits import WORKER_FRAME_MAX_BYTES
from aivailable.wire.worker import FROM_WORKER, TO_WORKER, Shutdown

INBOX_MAX_MESSAGES: Final = 4096
"""Beyond it the reader stops reading and the peer's writes wait."""
LENGTH_BYTES: Final = 4
INTERNAL_ERROR: Final = "the worker failed on this request; its log says how"
STALLED_WAIT_S: Final = 0.25
"""A loop whose requests are all paused by their readers looks at their deadlines so often."""


class Channel:
    """The worker's end of the socket pair.

    `on_end` is called once, in the reader thread, when the socket ends, when Shutdown arrives or
    when the bytes are no frames; it is told why and is expected to end the process.
    """

    def __init__(self, sock: socket.socket, on_end: Callable[[str], None]) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._on_end = on_end
        self._inbox: queue.Queue[Any] = queue.Queue(INBOX_MAX_MESSAGES)
        self._reader = threading.Thread(target=self._read_all, name="reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._reader.start()

    def send(self, message: Any) -> None:
        """Write one message; blocks until the kernel took it. Raises FrameError or OSError."""
        payload = FROM_WORKER.encode(message)
        if len(payload) > WORKER_FRAME_MAX_BYTES:
            raise FrameError(
                f"a {type(message).__name__} of {len(payload)} bytes is over the "
                f"{WORKER_FRAME_MAX_BYTES} bytes that one frame may hold"
            )
        self._sock.sendall(struct.pack(">I", len(payload)) + payload)

    def receive(self) -> Any:
        """The next message; waits for it."""
        return self._inbox.get()

    def receive_within(self, limit_s: float) -> list[Any]:
        """What has arrived as soon as anything has; nothing after `limit_s` seconds without."""
        try:
            first = self._inbox.get(timeout=limit_s)
        except queue.Empty:
            return []
        return [first, *self.receive_ready()]

    def receive_ready(self) -> list[Any]:
        """The messages that have already arrived, in order."""
        ready: list[Any] = []
        while True:
            try:
                ready.append(self._inbox.get_nowait())
            except queue.Empty:
                return ready

    def _read_all(self) -> None:
        try:
            while True:
                message = TO_WORKER.decode(self._read_frame())
                if isinstance(message, Shutdown):
                    self._on_end(f"shutdown: {message.reason}")
                    return
                if message is not None:
                    self._inbox.put(message)
        except (FrameError, SchemaError, OSError) as error:
            self._on_end(str(error))

    def _read_frame(self) -> bytes:
        (length,) = struct.unpack(">I", self._read_exactly(LENGTH_BYTES))
        if not 0 < length <= WORKER_FRAME_MAX_BYTES:
            raise FrameError(f"a frame of {length} bytes; the limit is {WORKER_FRAME_MAX_BYTES}")
        return self._read_exactly(length)

    def _read_exactly(self, count: int) -> bytes:
        buffer = bytearray(count)
        view = memoryview(buffer)
        filled = 0
        while filled < count:
            read = self._sock.recv_into(view[filled:])
            if read == 0:
                raise FrameError("the peer closed the socket")
            filled += read
        return bytes(buffer)
