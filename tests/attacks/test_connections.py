"""Connections that ask nothing, drip or are not read: others are served all the while."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from fixtures.peers import MIB, PeerProcess, Peers, voting

SILENT = 1200
"""At DESCRIPTORS this took the API away from everybody."""
DESCRIPTORS = 1024
DRIPS = 300
SLOW_BODIES = 1030
HEADER_LIMIT_S = 14.0
FAST_S = 1.0
LOG_MAX_BYTES = MIB


async def narrowed(three: Peers) -> PeerProcess:
    """A member of three that is started again and may open DESCRIPTORS files."""
    peer = three.peers[0]
    peer.kill()
    peer.prefix = ("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh")
    peer.start()
    await peer.listening()
    await three.until("it is back", voting(3))
    return peer


@pytest.fixture
async def narrow(three: Peers) -> PeerProcess:
    return await narrowed(three)


def slow_body(key: str) -> bytes:
    """A completion's header and the first byte of its body."""
    body = json.dumps({"model": "fake", "prompt": "hello"}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body[:1]


@contextlib.asynccontextmanager
async def opened(
    peer: PeerProcess, count: int, first: bytes = b""
) -> AsyncIterator[list[socket.socket]]:
    """Connections that have sent `first` and stay as they are."""
    url = urlsplit(peer.url)
    some: list[socket.socket] = []

    def open_all() -> None:
        for _ in range(count):
            one = socket.create_connection((url.hostname, url.port), timeout=5.0)
            some.append(one)
            # It may have given way to the next ones already.
            with contextlib.suppress(ConnectionError):
                one.sendall(first)
            one.setblocking(False)

    try:
        await asyncio.to_thread(open_all)
        yield some
    finally:
        for one in some:
            one.close()


def still_open(some: list[socket.socket]) -> int:
    count = 0
    for one in some:
        try:
            while one.recv(4096):
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            continue
    return count


async def slowest_s(peers: Peers, peer: PeerProcess, key: str | None = None) -> float:
    """The slowest of a few askings of a probe, of the status, and of the list of models."""
    slowest = 0.0
    for path in ("/healthz", "/cluster/v1/state", "/v1/models") * 3:
        began_s = time.monotonic()
        answer = await peers.ask(peer, "GET", path, key=key)
        slowest = max(slowest, time.monotonic() - began_s)
        assert answer.status == 200, (path, answer)
    return slowest


def said_bytes(peer: PeerProcess) -> int:
    logs = (peer.home / "logs").glob("aivailable.log*")
    return len(peer.output()) + sum(one.stat().st_size for one in logs)


async def user_key(peers: Peers, label: str) -> str:
    body = {"scope": "user", "label": label}
    made = await peers.ask(peers.peers[0], "POST", "/cluster/v1/keys", body)
    assert made.status == 201, made.body
    return str(made.body["key"])


async def test_silent_connections_take_nothing_from_others(
    three: Peers, narrow: PeerProcess
) -> None:
    async with opened(narrow, SILENT) as some:
        slowest = await slowest_s(three, narrow)
        left = still_open(some)
        states = await three.states()
        assert all(one["quorum"] for one in states)
        assert all(node["state"] in ("here", "up") for one in states for node in one["nodes"])
    print(f"silent: {left} of {SILENT} open, slowest answer {slowest:.3f} s, "
          f"{said_bytes(narrow)} bytes said")  # fmt: skip
    assert slowest < FAST_S
    assert said_bytes(narrow) < LOG_MAX_BYTES


@pytest.mark.slow
async def test_headers_that_drip_are_cut_off(three: Peers) -> None:
    peer = three.peers[0]
    async with opened(peer, DRIPS, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n") as some:
        until_s = time.monotonic() + HEADER_LIMIT_S
        while time.monotonic() < until_s and still_open(some):
            for one in some:
                with contextlib.suppress(OSError):
                    one.send(b"X")
            await asyncio.sleep(0.5)
        assert still_open(some) == 0
    assert await slowest_s(three, peer) < FAST_S


async def test_slow_bodies_of_one_key_leave_others_served(
    three: Peers, narrow: PeerProcess
) -> None:
    greedy, modest = await user_key(three, "greedy"), await user_key(three, "modest")
    await three.deploy_fake(three.peers[0])
    async with opened(narrow, SLOW_BODIES, slow_body(greedy)):
        slowest = await slowest_s(three, narrow, modest)
        began_s = time.monotonic()
        answer = await three.ask(
            narrow, "POST", "/v1/completions",
            {"model": "fake", "prompt": "hello", "max_tokens": 4}, key=modest, limit_s=20.0,
        )  # fmt: skip
        took = time.monotonic() - began_s
        assert answer.status == 200, answer
    print(f"slow bodies: slowest answer {slowest:.3f} s, a completion {took:.3f} s")
    assert slowest < FAST_S
    assert took < 2 * FAST_S
