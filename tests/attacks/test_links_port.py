"""Begun handshakes that flood the link port: members keep their links, and get new ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from attacks.beside import links_port
from attacks.test_connections import narrowed, said_bytes
from fixtures.peers import MIB, PeerProcess, Peers, State, voting

SILENT = 600
"""With as many begun handshakes more than DESCRIPTORS."""
HELLO_BEGUN = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""A ClientHello that does not go on."""
AGAIN_S = 1.0
"""Some 1,200 new connections a second, on the processors of the members."""
HELD_S = 3.0
"""Longer than LINK_DEAD_S and an election's timeout."""
BACK_LIMIT_S = 20.0
LOG_MAX_BYTES = MIB
FILES_MAX = 320
"""What the API leaves free for all else (DESCRIPTORS_KEPT)."""


async def hold(port: int, first: bytes) -> None:
    """One connection, opened again whenever it is ended."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(first)
                await reader.read()
            finally:
                writer.transport.abort()
        await asyncio.sleep(AGAIN_S)


@contextlib.asynccontextmanager
async def flooded(peer: PeerProcess) -> AsyncIterator[None]:
    """SILENT connections and as many begun handshakes at its link port."""
    port = links_port(peer, urlsplit(peer.url).port or 0)
    held = [asyncio.create_task(hold(port, first)) for first in [b"", HELLO_BEGUN] * SILENT]
    try:
        yield
    finally:
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


def open_files(peer: PeerProcess) -> int:
    assert peer.process is not None
    return len(list((Path("/proc") / str(peer.process.pid) / "fd").iterdir()))


def troubles(states: list[State], term: int) -> list[str]:
    """What no flood may do: a node down, no quorum, an election."""
    return [
        f"{node['name']} is {node['state']}"
        for state in states
        for node in state["nodes"]
        if node["state"] not in ("here", "up")
    ] + [f"term {one['term']}" for one in states if one["term"] != term or not one["quorum"]]


def all_up(states: list[State]) -> bool:
    return voting(3)(states) and not troubles(states, states[0]["term"])


@pytest.mark.slow
async def test_a_flood_of_begun_handshakes_cuts_no_link_and_keeps_no_member_out(
    three: Peers,
) -> None:
    narrow = await narrowed(three)
    states = await three.until("all see each other", all_up)
    term, leader = states[0]["term"], states[0]["leader"]
    own = {id(peer): next(n["node"] for n in state["nodes"] if n["state"] == "here")
           for peer, state in zip(three.peers, states, strict=True)}  # fmt: skip
    restarted = next(p for p in three.peers if p is not narrow and own[id(p)] != leader)
    async with flooded(narrow):
        most_files = 0
        until_s = time.monotonic() + HELD_S
        while time.monotonic() < until_s:
            assert troubles(await three.states(), term) == []
            most_files = max(most_files, open_files(narrow))
            await asyncio.sleep(0.2)
        restarted.kill()
        restarted.start()
        began_s = time.monotonic()
        await restarted.listening()
        states = await three.until("the restarted one is linked", all_up, limit_s=BACK_LIMIT_S)
        took_s = time.monotonic() - began_s
        assert troubles(states, term) == []
    said = [said_bytes(peer) for peer in three.peers]
    print(f"link port: {most_files} files open, a member back after {took_s:.1f} s, {said} bytes")
    assert most_files < FILES_MAX
    assert max(said) < LOG_MAX_BYTES
    assert all("Traceback" not in peer.output() for peer in three.peers)
