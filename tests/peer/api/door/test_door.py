"""Deadlines of a connection, and a door that is short of descriptors, on real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, MODEL, USER
from fixtures.exhausted import exhausted_listener

from aivailable.peer.api.door import accepting, connection
from aivailable.peer.api.door.accepting import Door
from aivailable.peer.api.door.unread import UNREAD_PER_ACCOUNT_MAX, Unread
from aivailable.peer.api.server import BODIES_MAX, ApiServer
from aivailable.peer.links import accepting as links_accepting
from aivailable.peer.links.identity import Identity
from aivailable.peer.links.trust import api_context

SOON_S = 0.05
LIMIT_S = 5.0


@pytest.fixture
def hasty() -> Iterator[pytest.MonkeyPatch]:
    """Deadlines of the door that tests can wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "HEADER_DEADLINE_S", SOON_S)
        patch.setattr(connection, "BODY_LOOK_S", SOON_S)
        patch.setattr(connection, "IDLE_MAX_S", SOON_S)
        yield patch


async def said(port: int, data: bytes) -> bytes:
    """All that is answered to `data` until the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with asyncio.timeout(LIMIT_S):
        answer = await reader.read()
    writer.close()
    return answer


async def until(true: Callable[[], bool]) -> None:
    for _ in iter(true, True):
        await asyncio.sleep(0)


def post(key: str = USER, length: int = 1000) -> bytes:
    return (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"])
async def test_a_header_that_does_not_come_is_answered_408(
    hasty: pytest.MonkeyPatch, server: ApiServer, begun: bytes
) -> None:
    head, _, body = (await said(server.port, begun)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_a_further_request_that_drips_is_cut_off(
    hasty: pytest.MonkeyPatch, server: ApiServer
) -> None:
    hasty.setattr(connection, "IDLE_MAX_S", 60.0)
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(LIMIT_S):
        writer.write(whole)
        assert b"alive" in await reader.readuntil(b"}")
        writer.write(b"GET /heal")
        assert (await reader.read()).startswith(b"HTTP/1.1 408")
    writer.close()


async def test_an_idle_connection_is_closed(hasty: pytest.MonkeyPatch, server: ApiServer) -> None:
    answer = await said(server.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("key", [USER, ADMIN])
async def test_a_body_that_drips_is_answered_408(
    hasty: pytest.MonkeyPatch, server: ApiServer, key: str
) -> None:
    answer = await said(server.port, post(key) + b'{"model"')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"bytes a second" in answer


async def test_slow_bodies_of_one_key_leave_places_for_others(serve: Any) -> None:
    server = await serve()
    opened = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(BODIES_MAX)]
    url = f"http://127.0.0.1:{server.port}"
    try:
        for one in opened:
            one.sendall(post())
            one.setblocking(False)
        async with aiohttp.ClientSession(base_url=url) as http, asyncio.timeout(LIMIT_S):
            await until(lambda: server.metrics.in_flight == BODIES_MAX // 2)
            for path, key in (("/v1/models", None), ("/v1/models", USER), ("/healthz", None)):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                async with http.get(path, headers=headers) as answer:
                    assert answer.status == 200, path
            slow = json.dumps({"model": MODEL, "prompt": "x", "stream": True}).encode()
            assert (await said(server.port, post(length=len(slow)))).startswith(b"HTTP/1.1 429")
    finally:
        for one in opened:
            one.close()


async def test_out_of_descriptors_is_one_line_and_a_pause(
    server: ApiServer,
    http: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links_accepting, "PAUSE_S", SOON_S)
    listener = exhausted_listener()
    assert server._runner is not None
    speak = server._runner.server
    assert speak is not None
    door = Door([listener], speak, server._places)
    door.open()
    with caplog.at_level(logging.WARNING):
        answer = await said(
            listener.getsockname()[1],
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
    assert b"alive" in answer
    assert listener.tries >= 4
    lines = [one.getMessage() for one in caplog.records if "accepted" in one.getMessage()]
    assert len(lines) == 1
    assert "ulimit -n" in lines[0]
    await door.close()


def test_an_account_may_leave_a_few_answers_unread() -> None:
    unread = Unread()
    assert [unread.add("key:a") for _ in range(UNREAD_PER_ACCOUNT_MAX + 1)] == [
        *[True] * UNREAD_PER_ACCOUNT_MAX,
        False,
    ]
    assert unread.add("key:b")
    unread.remove("key:a")
    assert unread.add("key:a")


async def test_too_many_unread_answers_of_one_account_are_ended(
    hasty: pytest.MonkeyPatch,
) -> None:
    """Each connection is as full as a client that reads nothing makes it."""
    hasty.setattr(connection, "UNREAD_AFTER_S", 0.0)
    unread = Unread()
    ended: list[int] = []

    class Full(asyncio.Transport):
        def __init__(self, number: int) -> None:
            super().__init__()
            self._number = number

        def abort(self) -> None:
            ended.append(self._number)

    for number in range(UNREAD_PER_ACCOUNT_MAX + 2):
        one = connection.ApiConnection(
            asyncio.Protocol(),
            accepting.ApiPlace("a"),
            accepting.Places(10),
            unread,
            lambda _: None,
        )
        one.connection_made(Full(number))
        one.counts_for("key:a")
        one.pause_writing()
    async with asyncio.timeout(LIMIT_S):
        await until(lambda: len(ended) >= 2)
    assert ended == [UNREAD_PER_ACCOUNT_MAX, UNREAD_PER_ACCOUNT_MAX + 1]


async def test_the_same_deadlines_hold_under_tls(
    hasty: pytest.MonkeyPatch, serve: Any, tmp_path: Path
) -> None:
    pem = Identity.load_or_create(tmp_path).pem_path
    hasty.setattr(connection, "HEADER_DEADLINE_S", 1.0)
    hasty.setattr(accepting, "HANDSHAKE_DEADLINE_S", SOON_S)
    server = await serve(tls=api_context(pem, pem))
    assert await said(server.port, b"") == b"", "no handshake, no answer"
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trusting)
    async with asyncio.timeout(LIMIT_S):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
        assert b"alive" in await reader.readuntil(b"}")
        await reader.read()
    writer.close()
    assert server._places.total == 0
