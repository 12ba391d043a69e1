"""The worker's end of the socket: order, back-pressure, its end."""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from aivailable.wire.limits import WORKER_FRAME_MAX_BYTES
from aivailable.wire.worker import FROM_WORKER, LoadFailed, Progress, Step
from aivailable.worker.protocol import OUTBOX_MAX_MESSAGES, Channel

LIMIT_S = 10.0


class Ends:
    """A channel, the peer's socket, and why the channel ended."""

    def __init__(self) -> None:
        self.mine, self.peer = socket.socketpair()
        self.peer.settimeout(LIMIT_S)
        self.why: queue.Queue[str] = queue.Queue()
        self.channel = Channel(self.mine, self.why.put)
        self.channel.start()

    def read(self) -> object:
        (length,) = struct.unpack(">I", self._exactly(4))
        return FROM_WORKER.decode(self._exactly(length))

    def told(self) -> str:
        """Why it ended; asked again, the same."""
        why = self.why.get(timeout=LIMIT_S)
        self.why.put(why)
        return why

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.peer.recv(count - len(data))
            assert more
            data += more
        return data


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.peer.close()
    made.told()
    made.mine.close()


def test_messages_arrive_in_order(ends: Ends) -> None:
    sent = [Progress("loading", part / 20) for part in range(20)]
    for message in sent:
        ends.channel.send(message)
    assert [ends.read() for _ in sent] == sent


def test_flush_waits_until_the_kernel_has_everything(ends: Ends) -> None:
    ends.channel.send(LoadFailed("bad_file", "it is none"))
    ends.channel.flush()
    ends.peer.setblocking(False)
    assert ends.read() == LoadFailed("bad_file", "it is none")


def test_a_peer_that_does_not_read_stops_the_sender(ends: Ends) -> None:
    large = LoadFailed("bad_file", "x" * (1 << 20))
    sent = threading.Semaphore(0)

    def send() -> None:
        for _ in range(3 * OUTBOX_MAX_MESSAGES):
            ends.channel.send(large)
            sent.release()

    threading.Thread(target=send, daemon=True).start()
    # Those in the outbox, and at most one of which the kernel holds a part.
    for _ in range(OUTBOX_MAX_MESSAGES):
        assert sent.acquire(timeout=LIMIT_S)
    assert not sent.acquire(timeout=0.5) or not sent.acquire(timeout=0.5)
    for _ in range(3 * OUTBOX_MAX_MESSAGES):
        assert ends.read() == large


def test_a_closed_socket_ends_it(ends: Ends) -> None:
    ends.peer.close()
    assert "closed" in ends.told()


def test_a_message_over_the_frames_limit_ends_it_and_is_named(ends: Ends) -> None:
    ends.channel.send(LoadFailed("bad_file", "x" * (WORKER_FRAME_MAX_BYTES + 1)))
    assert "LoadFailed" in ends.told()


def test_what_cannot_be_encoded_ends_it(ends: Ends) -> None:
    ends.channel.send(Step(counters=object()))  # type: ignore[arg-type]
    assert "encode" in ends.told()
