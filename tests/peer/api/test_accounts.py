"""Whom a request is counted for, and what one account may have under way at a node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, MODEL, NODE, USER, FakeService, answer, api_key

from aivailable.core.ids import key_hash, key_id
from aivailable.core.state.records import Scope
from aivailable.errors import RequestError
from aivailable.peer.api import server as server_module
from aivailable.peer.api import sse
from aivailable.peer.api.auth.source import account_of, address_of
from aivailable.peer.api.server import ApiServer
from aivailable.peer.api.shares import Shares
from aivailable.wire.generation import Embedded, Finished, Started

OTHER = "av-other-key"
PLACES = 8
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "q", "documents": ["hi"]},
}
"""Every endpoint that generates."""


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", BODIES)
async def test_every_endpoint_counts_the_key_by_its_id_whatever_the_client_says(
    http: aiohttp.ClientSession, service: FakeService, path: str
) -> None:
    if "input" in BODIES[path] or "query" in BODIES[path]:
        service.inference.script = [
            Started("", 1),
            Embedded("", 0, b"\0\0\0\0"),
            Finished("", "stop", "", 1),
        ]
    body = {"model": MODEL, **BODIES[path], "account": "key:forged", "user": "key:forged"}
    for headers in (bearer(USER), {}):
        async with http.post(path, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
    accounts = [account for _, account in service.inference.asked]
    assert accounts == [f"key:{key_id(key_hash(USER))}", f"local:{NODE[:8]}"]
    assert USER not in accounts[0]
    assert {request.account for request, _ in service.inference.asked} == {""}, (
        "the node alone writes it"
    )


async def test_no_endpoint_that_generates_is_missing_here(server: ApiServer) -> None:
    posts = {
        route.resource.canonical
        for route in server.app.router.routes()
        if route.method == "POST" and route.resource is not None
    }
    assert {path for path in posts if path.startswith("/v1/")} == set(BODIES)


@pytest.mark.parametrize(
    ("remote", "account"),
    [
        ("127.0.0.1", "local:node1234"),
        ("::1", "local:node1234"),
        ("::ffff:127.0.0.1", "local:node1234"),
        ("", "local:node1234"),
        ("10.0.0.7", "address:10.0.0.7"),
        ("::ffff:10.0.0.7", "address:10.0.0.7"),
        ("fe80::1%eth0", "address:fe80::1"),
        ("2001:db8:1:2:3::4", "address:2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "address:2001:db8:1:2::/64"),
    ],
)
def test_without_a_key_the_address_is_the_account(remote: str, account: str) -> None:
    assert account_of(address_of(remote), "node12345678") == account


def test_a_share_is_what_is_left_for_all_others_and_is_given_back() -> None:
    shares = Shares(8, "requests")
    with shares.hold("a", 4):
        with pytest.raises(RequestError) as caught, shares.hold("a"):
            pass
        assert (caught.value.status, caught.value.code) == (429, "too_many_requests")
        assert caught.value.retry_after_s
        with shares.hold("b", 2), shares.hold("c"), shares.hold("d"):
            with pytest.raises(RequestError) as caught, shares.hold("e"):
                pass
            assert (caught.value.status, caught.value.code) == (503, "overloaded")
    with shares.hold("e", 4), shares.hold("a", 2):
        pass


@asynccontextmanager
async def slow_bodies(server: ApiServer, key: str, count: int) -> AsyncIterator[None]:
    """Clients that send their headers and keep the server waiting for the rest."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(writer.close)
            lines = (
                "POST /v1/completions HTTP/1.1",
                "Host: localhost",
                f"Authorization: Bearer {key}",
                "Content-Type: application/json",
                "Content-Length: 1000",
                "Expect: 100-continue",
            )
            writer.write("\r\n".join((*lines, "", "")).encode())
            # The server waits for the body from here on.
            assert b" 100 " in await reader.readline()
            writer.write(b"{")
        yield


async def test_slow_bodies_of_one_key_leave_room_for_others_probes_and_admins(
    serve: Callable[..., Awaitable[ApiServer]],
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "REQUESTS_MAX", PLACES)
    service.api_keys.known.append(api_key(OTHER, Scope.USER))
    server = await serve()
    url = f"http://127.0.0.1:{server.port}"

    async def status(path: str, headers: dict[str, str]) -> tuple[int, str]:
        async with http.get(path, headers=headers) as response:
            document = await response.json()
            code = document["error"]["code"] if "error" in document else ""
            assert bool(code) == ("Retry-After" in response.headers)
            return response.status, code

    async with aiohttp.ClientSession(url) as http, slow_bodies(server, USER, PLACES // 2):
        assert await status("/v1/models", bearer(USER)) == (429, "too_many_requests")
        assert await status("/v1/models", bearer(OTHER)) == (200, "")
        assert await status("/v1/models", {}) == (200, "")
        async with slow_bodies(server, OTHER, PLACES // 4):
            assert await status("/v1/models", {}) == (200, "")
            assert await status("/healthz", {}) == (200, "")
            assert await status("/readyz", {}) == (200, "")
    monkeypatch.setattr(server_module, "REQUESTS_MAX", 0)
    full = await serve()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{full.port}") as http:
        assert await status("/v1/models", bearer(USER)) == (503, "overloaded")
        assert await status("/healthz", {}) == (200, "")
        assert await status("/v1/models", bearer(ADMIN)) == (200, "")


async def test_a_client_that_reads_nothing_is_given_up(
    serve: Callable[..., Awaitable[ApiServer]],
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "UNREAD_MAX_S", 0.2)
    service.inference.script = answer(*("x" * 1_000_000 for _ in range(40)))
    server = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    body = b'{"model": "org/tiny:q4", "prompt": "x", "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    async with asyncio.timeout(10):
        await service.inference.closed.wait()
        await server.stop()
    assert server.metrics.outcomes() == {"cancelled": 1}
    assert service.inference.running == 0
    writer.close()
    del reader
