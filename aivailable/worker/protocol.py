"""Framed messages over the socket pair between a peer and this worker.

Owns: the framing of wire/worker.py (u32 big-endian length, then the envelope), a thread for each
direction, inbox and outbox. It must not interpret messages.

A step's frame is encoded and written while llama.cpp computes the next step (it lets go of the
interpreter): between two steps a GPU, or the CPU's cores, would wait for it. Few frames are queued;
then sending waits while the peer does not read: that is the back-pressure.
Receiving has a thread of its own, so that a cancellation is seen while a step is computed and
the peer's death is seen while weights load.
"""

from __future__ import annotations

import contextlib
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
OUTBOX_MAX_MESSAGES: Final = 4
LENGTH_BYTES: Final = 4
INTERNAL_ERROR: Final = "the worker failed on this request; its log says how"
UNENCODABLE: Final = (TypeError, ValueError, OverflowError)
"""What encoding raises on a message that has no plain form. Nobody waits for this thread: a frame
that is not written must not be a silent one."""
STALLED_WAIT_S: Final = 0.25
"""A loop whose requests are all paused by their readers looks at their deadlines this often."""

WAKE: Final = object()
"""Among the messages: nothing to take, but something to look after."""


class Channel:
    """The worker's end of the socket pair.

    `on_end` is called in one of its threads when the socket ends, when Shutdown arrives, when the
    bytes are no frames or a message fits none; it is told why and is expected to end the process.
    """

    def __init__(self, sock: socket.socket, on_end: Callable[[str], None]) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._on_end = on_end
        self._inbox: queue.Queue[Any] = queue.Queue(INBOX_MAX_MESSAGES)
        self._outbox: queue.Queue[Any] = queue.Queue(OUTBOX_MAX_MESSAGES)
        self._reader = threading.Thread(target=self._read_all, name="reader", daemon=True)
        self._writer = threading.Thread(target=self._write_all, name="writer", daemon=True)

    def start(self) -> None:
        """Begin to read and to write."""
        self._reader.start()
        self._writer.start()

    def send(self, message: Any) -> None:
        """Have one message written, in order; waits while OUTBOX_MAX_MESSAGES wait already. The
        message must not be changed any more."""
        self._outbox.put(message)

    def flush(self) -> None:
        """Wait until the kernel took everything that was sent."""
        self._outbox.join()

    def _write_all(self) -> None:
        try:
            while True:
                self._write(self._outbox.get())
                self._outbox.task_done()
        except (FrameError, OSError, *UNENCODABLE) as error:
            self._on_end(str(error))

    def _write(self, message: Any) -> None:
        payload = FROM_WORKER.encode(message)
        if len(payload) > WORKER_FRAME_MAX_BYTES:
            raise FrameError(
                f"a {type(message).__name__} of {len(payload)} bytes is over the "
                f"{WORKER_FRAME_MAX_BYTES} bytes that one frame may hold"
            )
        self._sock.sendall(struct.pack(">I", len(payload)) + payload)

    def wake(self) -> None:
        """Let whoever waits to receive go on: something else is ready for it. For other threads."""
        with contextlib.suppress(queue.Full):  # Then nobody waits.
            self._inbox.put_nowait(WAKE)

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
