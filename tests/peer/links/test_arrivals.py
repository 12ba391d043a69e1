"""The link port beside connections that never finish TLS, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fixtures.exhausted import exhausted_listener
from fixtures.mesh import DEADLINE_S, Node, introduce, linked, start_nodes, stop_nodes

from aivailable.peer.links import accepting, arrivals
from aivailable.peer.links.arrivals import Arrivals
from aivailable.peer.links.handshakes import HANDSHAKES_MAX, Handshakes

CLIENT_HELLO_BEGUN = b"\x16\x03\x01\x02\x00\x01"
CLIENT_HELLO_ENDLESS = b"\x16\x03\x01\x3f\x00\x01\x00\xff\xff" + bytes(0x3F00 - 4)
"""A whole record of a message that goes on after it."""
SOON_S = 0.05


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[Node]]:
    nodes = await start_nodes(tmp_path, 2)
    yield nodes
    await stop_nodes(nodes)


def under_way(node: Node) -> Handshakes:
    assert node.links._arrivals is not None
    return node.links._arrivals._handshakes


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        for _ in iter(true, True):
            await asyncio.sleep(0)


@pytest.mark.parametrize("first", [b"", b"\x16", CLIENT_HELLO_BEGUN, CLIENT_HELLO_ENDLESS])
async def test_members_link_beside_a_flood_of_unfinished_handshakes(
    two: list[Node], first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    some = []
    for _ in range(3 * HANDSHAKES_MAX):
        _, writer = await asyncio.open_connection("127.0.0.1", two[0].links.port)
        writer.write(first)
        some.append(writer)
    await until(lambda: under_way(two[0]).total == HANDSHAKES_MAX)
    introduce(*two)
    async with asyncio.timeout(DEADLINE_S):
        await linked(*two)
    assert under_way(two[0]).total <= HANDSHAKES_MAX
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert sum("too many unfinished TLS handshakes" in one for one in told) == 1
    assert len(told) == 2, "and one line of strangers who were refused"
    for writer in some:
        writer.transport.abort()
    await until(lambda: under_way(two[0]).total == 0)


@pytest.mark.parametrize("first", [b"", b"\x16", CLIENT_HELLO_BEGUN, CLIENT_HELLO_ENDLESS])
async def test_a_handshake_has_a_deadline(
    two: list[Node], first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "HANDSHAKE_DEADLINE_S", SOON_S)
    reader, writer = await asyncio.open_connection("127.0.0.1", two[0].links.port)
    writer.write(first)
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    assert under_way(two[0]).total == 0


async def test_stopping_ends_the_handshakes_under_way(two: list[Node]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", two[0].links.port)
    await until(lambda: under_way(two[0]).total == 1)
    await two[0].links.stop()
    async with asyncio.timeout(DEADLINE_S):
        assert await reader.read() == b""
    writer.close()
    assert under_way(two[0]).total == 0


async def test_out_of_descriptors_is_one_line_and_a_pause(
    two: list[Node], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE_S", SOON_S)
    listener = exhausted_listener()
    came = asyncio.Event()

    def greet(_: asyncio.BaseTransport) -> None:
        came.set()

    door = Arrivals([listener], two[0].trust, greet, lambda: None)
    door.open()
    _, writer = await asyncio.open_connection(
        *listener.getsockname(), ssl=two[1].trust.join_client_context, server_hostname="join"
    )
    async with asyncio.timeout(DEADLINE_S):
        await came.wait()
    writer.transport.abort()
    await door.close()
    assert listener.tries >= 4
    lines = [one.getMessage() for one in caplog.records if "accepted" in one.getMessage()]
    assert len(lines) == 1
    assert "the link port pauses" in lines[0]
    assert "ulimit -n" in lines[0]
