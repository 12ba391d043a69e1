"""A client sends its key to no node that does not show that it knows the key."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, REVOKED, USER

from aivailable.client import Client, ClientError
from aivailable.core.ids import key_hash, key_id, key_proof
from aivailable.peer.api.server import ApiServer

NONCE = "5" * 64
Answering = Callable[[str, int], bytes]


@asynccontextmanager
async def other_program(answering: Answering, heard: list[str]) -> AsyncIterator[str]:
    """Listens where our node should be; `answering` gets the request's path and its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heard.append(head)
        port = writer.get_extra_info("sockname")[1]
        body = answering(head.split()[1], port)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def made_up(_path: str, port: int) -> bytes:
    return json.dumps({"proof": "0" * 64, "port": port}).encode()


@pytest.mark.parametrize(
    "answering",
    [
        made_up,
        lambda path, port: b"{}",
        lambda path, port: b"[]",
        lambda path, port: b"<html>",
        lambda path, port: b'{"proof": "\\u00e9", "port": %d}' % port,
        lambda path, port: b"0" * 100_000,
    ],
)
async def test_another_program_is_sent_no_key(answering: Answering) -> None:
    heard: list[str] = []
    async with other_program(answering, heard) as url, Client([url], ADMIN) as client:
        for work in (client.state(), client.window(60), client.leave()):
            with pytest.raises(ClientError) as caught:
                await work
            assert caught.value.code == "not_ours"
    assert all("authorization" not in head.lower() and ADMIN not in head for head in heard)
    assert all(head.startswith("GET /cluster/v1/proof?") for head in heard)


async def test_a_challenge_that_is_passed_on_proves_nothing(server: ApiServer) -> None:
    """The other program lets our real node, at another port, answer for it."""
    heard: list[str] = []
    passed_on: dict[str, Any] = {}

    async def ask(path: str) -> bytes:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{server.port}{path}") as response,
        ):
            return await response.read()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                heard.append(head)
                body = await ask(head.split()[1])
                passed_on.update(json.loads(body))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
        writer.close()

    relay = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
    async with relay:
        async with Client([url], ADMIN) as client:
            with pytest.raises(ClientError) as caught:
                await client.state()
        assert caught.value.code == "not_ours"
        assert passed_on["port"] == server.port
        # The same is a port map, when a person has named the address.
        async with Client([url], ADMIN, mapped=True) as client:
            await client.state()
        assert any("authorization" in head.lower() for head in heard)


@pytest.mark.parametrize("key", [ADMIN, USER])
async def test_a_node_proves_each_valid_key_to_everyone(server: ApiServer, key: str) -> None:
    hashed = key_hash(key)
    query = f"key={key_id(hashed)}&nonce={NONCE}"
    stranger = {"X-Forwarded-For": "192.0.2.7"}
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
        session.get(f"/cluster/v1/proof?{query}", headers=stranger) as response,
    ):
        answer = await response.json()
    assert answer == {"proof": key_proof(hashed, NONCE, server.port), "port": server.port}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (f"key={key_id(key_hash(REVOKED))}&nonce={NONCE}", 404),
        (f"key=00000000&nonce={NONCE}", 404),
        (f"key={key_id(key_hash(ADMIN))}&nonce=5", 400),
        (f"key={key_id(key_hash(ADMIN))}", 400),
        (f"key={'0' * 9}&nonce={NONCE}", 400),
        ("", 400),
    ],
)
async def test_what_cannot_be_proved(http: aiohttp.ClientSession, query: str, status: int) -> None:
    async with http.get(f"/cluster/v1/proof?{query}") as response:
        assert response.status == status
        assert "proof" not in await response.json()


async def test_a_key_that_the_cluster_does_not_know_stays_here(server: ApiServer) -> None:
    async with Client([f"http://127.0.0.1:{server.port}"], REVOKED) as client:
        with pytest.raises(ClientError) as caught:
            await client.state()
    assert caught.value.code == "not_ours"


async def test_a_key_takes_no_connection_that_is_not_proved(serve: Any) -> None:
    """Our node ends, and another program takes its port while a client goes on asking."""
    server = await serve()
    heard: list[str] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.close()

    async with Client([f"http://127.0.0.1:{server.port}"], ADMIN) as client:
        await client.state()
        await server.stop()
        async with await asyncio.start_server(take, "127.0.0.1", server.port):
            for _ in range(3):
                with pytest.raises(ClientError):
                    await client.state()
    assert heard
    assert all("authorization" not in head.lower() for head in heard)
