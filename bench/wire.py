"""What it costs to pack and read messages: by msgspec, and as the first version did it.

Tokens (one token of one answer) and Step (what a worker tells of 16 answers at once) both ways, one
chunk of an answer as JSON, and a token's way through an ingress: link frames in, server-sent lines
out, without sockets and TLS, which are the same on both sides.

    python -m bench.wire [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aivailable.peer.api.openai.choices import ChatChoice
from aivailable.peer.api.openai.replies import Reply
from aivailable.peer.api.sse import SseWriter
from aivailable.peer.links import streams
from aivailable.peer.links.streams import LinkStream
from aivailable.wire import frames
from aivailable.wire.frames import FrameDecoder
from aivailable.wire.generation import Tokens
from aivailable.wire.peer import PEER
from aivailable.wire.schema import to_json
from aivailable.wire.worker import FROM_WORKER, Counters, Step
from bench import schema_by_msgpack as first
from bench.report import Figure, report, wanted

ROUNDS = 40
QUICK_ROUNDS = 8
SEQUENCES = 16
CALLS = 400
"""Of one message in one round."""
TOKENS = 4_000
"""Through the ingress in one round."""
BATCH = 16
"""Frames that arrive together, as of one step of a busy host."""
OTHER = "the first version (packages msgpack and json)"

Side = tuple[Callable[[Any], Any], Any]
"""What is called, with what."""


def main() -> None:
    asked = wanted("wire", "microseconds of processor time to pack and read a message")
    rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    figures = []
    for name, registry, message in (
        ("Tokens", PEER, _tokens(0)),
        (f"Step of {SEQUENCES}", FROM_WORKER, _step()),
    ):
        before, data = first.Registry(**registry.kinds), registry.encode(message)
        if before.encode(message) != data or registry.decode(data) != before.decode(data):
            raise SystemExit(f"{name}: the two sides do not agree")
        pack = _compared(rounds, (registry.encode, message), (before.encode, message))
        read = _compared(rounds, (registry.decode, data), (before.decode, data))
        figures.append(Figure(f"{name}: pack", "µs", pack[0], OTHER, pack[1]))
        figures.append(Figure(f"{name}: read", "µs", read[0], OTHER, read[1]))
    chunk = _reply().chunk(0, {"delta": {"content": " hello"}, "logprobs": None})
    ours, theirs = _compared(rounds, (to_json, chunk), (_json, chunk))
    figures.append(Figure("a chunk of an answer as JSON", "µs", ours, OTHER, theirs))
    ours, theirs = _through_ingress(rounds)
    figures.append(Figure("a token through an ingress", "µs", ours, OTHER, theirs))
    report("wire", figures, asked)


def _tokens(index: int) -> Tokens:
    return Tokens(f"req_01hzy3k4m5n6p7q8r9s0t1u{index:02d}", (1234 + index,), " hello")


def _step() -> Step:
    counters = Counters(1, 2, 3, 4, 5_000, 60_000, 7_000, 80, 9, 10)
    told = tuple(map(_tokens, range(SEQUENCES)))
    return Step(tokens=told, slots_busy=SEQUENCES, counters=counters)


def _reply() -> Reply:
    return Reply("req_01hzy3k4m5n6p7q8r9s0t1u2", "smollm2", 1_700_000_000, chat=True)


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _compared(rounds: int, *sides: Side) -> list[tuple[float, ...]]:
    """µs of processor time for one call, for each side, one round of each after the other."""
    took: list[list[float]] = [[] for _ in sides]
    for work, value in sides:
        work(value)
    for _ in range(rounds):
        for found, (work, value) in zip(took, sides, strict=True):
            began = time.process_time()
            for _ in range(CALLS):
                work(value)
            found.append((time.process_time() - began) / CALLS * 1e6)
    return [tuple(found) for found in took]


def _through_ingress(rounds: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """µs of processor time for one token, ours and before."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(asyncio.run(_relayed(_Sink())))
        with _first_version():
            theirs.append(asyncio.run(_relayed(_FirstSink())))
    return tuple(ours), tuple(theirs)


@contextmanager
def _first_version() -> Iterator[None]:
    """Links read as the first version did."""
    now = vars(streams)["PEER"]
    vars(streams)["PEER"] = first.Registry(**now.kinds)
    try:
        yield
    finally:
        vars(streams)["PEER"] = now


class _Sink(SseWriter):
    """Server-sent lines to nobody."""

    def __init__(self) -> None:
        self.lines = 0

    async def _write(self, data: bytes) -> None:
        self.lines += 1


class _FirstSink(_Sink):
    async def data(self, value: Any) -> None:
        text = f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
        await self._write(text.encode("utf-8", "replace"))


class _Cable:
    """Takes what a stream says to its other end."""

    def writable(self) -> bool:
        return True

    async def wait_writable(self) -> None:
        return

    def write_stream(self, frame: bytes) -> None:
        return

    def write_urgent(self, frame: bytes) -> None:
        return

    def register(self, stream: LinkStream) -> int:
        return 1

    def forget(self, stream_id: int) -> None:
        return


async def _relayed(sink: _Sink) -> float:
    stream, decoder = LinkStream(_Cable(), 1), FrameDecoder()
    choice, reply = ChatChoice(reasoning=True, logprobs=False), _reply()
    arriving = [_frames(start) for start in range(0, TOKENS, BATCH)]
    began = time.process_time()
    for data in arriving:
        for frame in decoder.feed(data):
            stream.frame_received(frame)
        for _ in range(BATCH):
            event = await stream.receive()
            assert isinstance(event, Tokens)
            part = choice.delta(event)
            assert part is not None
            await sink.data(reply.chunk(0, part))
    took_s = time.process_time() - began
    if sink.lines != TOKENS:
        raise SystemExit(f"{sink.lines} lines of {TOKENS} tokens")
    return took_s / TOKENS * 1e6


def _frames(start: int) -> bytes:
    """One batch as the link carries it."""
    messages = (PEER.encode(_tokens(start + index)) for index in range(BATCH))
    return b"".join(
        frame for data in messages for _, frame in frames.fragments(frames.DATA, 1, data)
    )


if __name__ == "__main__":
    main()
