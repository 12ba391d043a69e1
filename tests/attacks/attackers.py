"""Attacks on one peer, each as a process of its own: `python -m attacks.attackers --help`.

They target an address that the caller made, are bounded in number, and end with `--seconds`.
`attacks.beside` runs them against a peer and against a sink.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from zeroconf import DNSOutgoing, DNSPointer, DNSText
from zeroconf.const import _CLASS_IN, _FLAGS_AA, _FLAGS_QR_RESPONSE, _TYPE_PTR, _TYPE_TXT

NICENESS = 19
BODY_BYTES = 3_800_000
PAUSE_S = 0.05
"""After a refused connection: an attacker has no use for its own processor either."""
MDNS_GROUP, MDNS_PORT = "224.0.0.251", 5353
SERVICE = "_aivailable._tcp.local."
ANSWERS_PER_PACKET = 40


@dataclass(frozen=True)
class Target:
    """`links_port`: of the join channel. `mdns_port`: where announcements go."""

    host: str
    port: int
    links_port: int
    key: str
    model: str
    mdns_port: int
    strength: int


async def _post(target: Target, body: bytes, head: str = "", length: int | None = None) -> None:
    """Send one request and read the answer to its end."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        size = len(body) if length is None else length
        writer.write(_head(target, size, head) + body)
        await writer.drain()
        await reader.read()
    finally:
        writer.close()


def _head(target: Target, size: int, more: str = "Connection: close\r\n") -> bytes:
    lines = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {target.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n{more}\r\n"
    )
    return lines.encode()


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            await asyncio.sleep(PAUSE_S)


async def body_bombs(target: Target) -> None:
    """Bodies of a million small lists, on six connections for each step of strength."""
    item = b"[1],"
    inner = item * (BODY_BYTES // len(item)) + b"[1]"
    body = b'{"model":"%s","prompt":[%s]}' % (target.model.encode(), inner)
    await _many(6 * target.strength, lambda: _post(target, body, "Connection: close\r\n"))


async def prompt_bombs(target: Target) -> None:
    """Prompts of blanks, far longer than any context."""
    body = b'{"model":"%s","prompt":"%s"}' % (target.model.encode(), b" " * BODY_BYTES)
    await _many(3 * target.strength, lambda: _post(target, body, "Connection: close\r\n"))


async def silent(target: Target) -> None:
    """1,200 connections that say nothing."""
    await _many(1200 * target.strength, lambda: _held(target, b""))


async def slow_bodies(target: Target) -> None:
    """1,030 requests whose body never comes."""
    await _many(1030 * target.strength, lambda: _held(target, _head(target, 4096)))


async def _held(target: Target, first: bytes) -> None:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(first)
        await writer.drain()
        await reader.read()
    finally:
        writer.close()
    # Closed by the peer: the next one only after a while, as from a machine with few ports.
    await asyncio.sleep(1.0)


async def unread(target: Target) -> None:
    """Streams that are asked for and never read."""
    asked = {"model": target.model, "prompt": "tell", "max_tokens": 8000, "stream": True}
    body = json.dumps(asked).encode()

    async def one() -> None:
        with socket.socket() as held:
            held.setblocking(False)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(held, (target.host, target.port))
            await loop.sock_sendall(held, _head(target, len(body)) + body)
            await asyncio.sleep(5.0)

    await _many(8 * target.strength, one)


async def joins(target: Target) -> None:
    """Visits of the join channel that never ask."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    async def one() -> None:
        reader, writer = await asyncio.open_connection(
            target.host, target.links_port, ssl=context, server_hostname="join"
        )
        try:
            await reader.read()
        finally:
            writer.transport.abort()

    await _many(27 * target.strength, one)


async def announcements(target: Target) -> None:
    """False members by multicast DNS, on the loopback interface only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(target.host))
        number = 0
        while True:
            for _ in range(10 * target.strength):
                packet = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
                for _ in range(ANSWERS_PER_PACKET):
                    number += 1
                    name = f"x{number}.{SERVICE}"
                    packet.add_answer_at_time(
                        DNSPointer(SERVICE, _TYPE_PTR, _CLASS_IN, 4500, name), 0
                    )
                packet.add_answer_at_time(DNSText(name, _TYPE_TXT, _CLASS_IN, 4500, b"\x04v=99"), 0)
                for data in packet.packets():
                    out.sendto(data, (MDNS_GROUP, target.mdns_port))
            await asyncio.sleep(0.1)


async def _many(count: int, work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.gather(*(_for_ever(work) for _ in range(count)))


ATTACKS: Mapping[str, Callable[[Target], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        body_bombs,
        prompt_bombs,
        silent,
        slow_bodies,
        unread,
        joins,
        announcements,
    )
}


async def _run(attack: str, target: Target, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ATTACKS[attack](target)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("attack", choices=sorted(ATTACKS))
    parser.add_argument("--host", default="127.0.0.1", choices=["127.0.0.1"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--links-port", type=int, required=True)
    parser.add_argument("--mdns-port", type=int, default=MDNS_PORT)
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="fake")
    parser.add_argument("--strength", type=int, default=1, choices=range(1, 4))
    parser.add_argument("--seconds", type=float, default=10.0)
    told = parser.parse_args()
    os.nice(NICENESS)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    target = Target(
        *(told.host, told.port, told.links_port, told.key, told.model),
        *(told.mdns_port, told.strength),
    )
    asyncio.run(_run(told.attack, target, min(told.seconds, 120.0)))


if __name__ == "__main__":
    sys.exit(main())
