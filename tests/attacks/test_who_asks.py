"""Who asks, at real peers: proxies, rebound names, revoked keys, and another user's node."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from fixtures.netns import Lan
from fixtures.peers import (
    PeerProcess,
    Peers,
    State,
    busy_slots,
    cluster_name,
    loopback_peer,
    voting,
)

from aivailable.advice import UP_PORT

MODEL = "slow"
STEP_MS = 30
LONG_TOKENS = 2000
"""A minute of answer."""
STREAMS_EACH = 2
"""Of the fake engine's two slots: the rest waits in the line of the host."""
REVOKED_S = 2.0
"""What SECURITY.md promises of a peer that reaches the controller."""


async def user_key(peers: Peers, scope: str = "user") -> tuple[str, str]:
    """The text and the id of a key that every peer knows."""
    made = await peers.ask(peers.peers[0], "POST", "/cluster/v1/keys", {"scope": scope})
    assert made.status == 201, made.body

    def known(states: list[State]) -> bool:
        return len({state["version"] for state in states}) == 1

    await peers.until("every peer knows the key", known)
    return str(made.body["key"]), str(made.body["key_id"])


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def status_of(peers: Peers, peer: PeerProcess, path: str, **headers: str) -> int:
    """Of a request without a key, as a proxy or a web page of this machine sends it."""
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    async with peers.session.get(peer.url + path, headers=sent) as response:
        await response.read()
        return response.status


class Revoked:
    """What a key has under way at a peer, and when and how it ended."""

    def __init__(self, peers: Peers, peer: PeerProcess, key: str) -> None:
        self._peers, self._peer, self._key = peers, peer, key
        self.begun = asyncio.Event()
        self.ended_s = 0.0
        self.code = ""

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        last = ""
        async for line in response.content:
            self.begun.set()
            last = line.decode().strip() or last
        self.ended_s = time.monotonic()
        self.code = json.loads(last.removeprefix("data: "))["error"]["code"]

    async def stream(self, number: int) -> None:
        body = {"model": MODEL, "prompt": f"{self._peer.name} {number}", "max_tokens": LONG_TOKENS}
        async with self._peers.session.post(
            f"{self._peer.url}/v1/completions",
            json={**body, "stream": number < STREAMS_EACH},
            headers=bearer(self._key),
        ) as response:
            await self._read(response)

    async def follow(self) -> None:
        headers = {"Accept": "text/event-stream", **bearer(self._key)}
        async with self._peers.session.get(
            f"{self._peer.url}/cluster/v1/events", headers=headers
        ) as response:
            await self._read(response)


async def test_a_revoked_key_stops_everywhere_within_two_seconds(three: Peers) -> None:
    await three.deploy_fake(three.peers[0], MODEL, options={"step_ms": str(STEP_MS)})
    key, key_id = await user_key(three)
    under_way: list[Revoked] = []
    tasks: list[asyncio.Future[None]] = []
    for peer in three.peers:
        # Streams, then answers that are collected, most of which wait for a slot; a follower.
        for number in range(STREAMS_EACH + 1):
            under_way.append(Revoked(three, peer, key))
            tasks.append(asyncio.ensure_future(under_way[-1].stream(number)))
        under_way.append(Revoked(three, peer, key))
        tasks.append(asyncio.ensure_future(under_way[-1].follow()))
    answers = len(three.peers) * (STREAMS_EACH + 1)
    await three.until(
        "all answers run or wait", lambda states: busy_slots(states[0], MODEL) == answers
    )
    began_s = time.monotonic()
    gone = await three.ask(three.peers[0], "DELETE", f"/cluster/v1/keys/{key_id}")
    assert gone.status == 200
    done, _ = await asyncio.wait(tasks, timeout=10 * REVOKED_S)
    assert len(done) == len(tasks), "some go on"
    for task in done:
        task.result()
    assert [one.code for one in under_way] == ["key_revoked"] * len(under_way)
    took_s = max(one.ended_s for one in under_way) - began_s
    print(f"{len(under_way)} requests of the revoked key ended within {took_s:.2f} s")
    assert took_s < REVOKED_S
    await three.until("the slots are free", lambda s: busy_slots(s[0], MODEL) == 0)


@pytest.fixture
async def alone(peers: Peers, tmp_path: Path) -> PeerProcess:
    """One peer, found by its own words: `flags` are the test's to add."""
    peer = loopback_peer(tmp_path / "alone", cluster_name())
    peers.peers = [peer]
    return peer


async def up(peer: PeerProcess, *flags: str) -> None:
    peer.flags += flags
    peer.start()
    await peer.listening()


PROXY_HEADERS = {
    "X-Forwarded-For": "127.0.0.1",
    "X-Forwarded-Proto": "https",
    "Forwarded": "for=127.0.0.1",
    "Via": "1.1 proxy",
    "X-Real-IP": "127.0.0.1",
    "CF-Connecting-IP": "127.0.0.1",
    "True-Client-IP": "127.0.0.1",
}


async def test_whatever_comes_through_a_proxy_needs_a_key(peers: Peers, alone: PeerProcess) -> None:
    await up(alone)
    path = "/v1/models"
    assert await status_of(peers, alone, path) == 200
    for name, text in PROXY_HEADERS.items():
        assert await status_of(peers, alone, path, **{name: text}) == 401, name
    # A proxy without any header, which passes on by what name it was asked.
    for host in ("192.168.1.9:8420", "pc1.local", "ai.example"):
        assert await status_of(peers, alone, path, Host=host) == 401, host


async def test_a_listed_proxy_is_believed_and_lends_nobody_its_loopback(
    peers: Peers, alone: PeerProcess
) -> None:
    await up(alone, "--trusted-proxy", "127.0.0.1")
    path = "/v1/models"
    # As nginx sends it without proxy_set_header: nothing tells it from this machine.
    assert await status_of(peers, alone, path) == 401
    assert await status_of(peers, alone, path, X_Forwarded_For="127.0.0.1, 192.168.1.9") == 401
    # This machine, by the word of the proxy on it.
    assert await status_of(peers, alone, path, X_Forwarded_For="::1") == 200


async def test_a_rebound_name_is_no_admin_without_auth(peers: Peers, alone: PeerProcess) -> None:
    await up(alone, "--no-auth")
    for _ in range(100):  # Said after the port is open.
        if "everyone who reaches" in alone.output():
            break
        await asyncio.sleep(0.05)
    assert "everyone who reaches this port is an admin" in alone.output()
    path = "/cluster/v1/keys"
    port = alone.url.rpartition(":")[2]
    evil = f"evil.example:{port}"
    assert await status_of(peers, alone, path) == 200
    assert await status_of(peers, alone, path, Host=evil) == 403
    assert await status_of(peers, alone, path, Host=evil, Origin=f"http://{evil}") == 403
    assert await status_of(peers, alone, path, Host=f"{alone.name}.local:{port}") == 403
    for origin in ("http://evil.example", "null", "file://", "http://localhost:3000"):
        assert await status_of(peers, alone, path, Origin=origin) == 403, origin
    mine = f"http://127.0.0.1:{port}"
    assert await status_of(peers, alone, path, Origin=mine) == 200


def command(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What a user types, with a home of their own."""
    environment = {**loopback_peer(home, "any").environment, "AIVAILABLE_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "aivailable", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_two_homes_on_one_port_tell_each_other_no_key(
    peers: Peers, alone: PeerProcess, tmp_path: Path
) -> None:
    """B's `up` fails on A's port, and B goes on typing commands."""
    await up(alone)
    port = int(alone.url.rpartition(":")[2])
    own = await asyncio.to_thread(command, alone.home, "status")
    assert own.returncode == 0, own.stderr
    second = loopback_peer(tmp_path / "second", cluster_name(), port=port)
    peers.peers.append(second)
    second.start()
    assert second.process is not None
    assert await asyncio.to_thread(second.process.wait, 30) != 0
    assert f"port {port} is in use" in second.output()
    assert second.key != alone.key
    before = (alone.home / "logs" / "aivailable.log").read_text()
    # As after a crash: what the home says of the port is old.
    (second.home / "api.json").write_text(json.dumps({"url": alone.url, "pid": 1}))
    for words in (("status",), ("lock",), ("key", "list")):
        told = await asyncio.to_thread(command, second.home, *words)
        said = " ".join((told.stdout + told.stderr).split())
        assert told.returncode == 1, said
        assert "does not know your API key, so the key was not sent" in said
        assert f"port {port} belongs to another program of yours" in said
        assert UP_PORT.line in said
    after = (alone.home / "logs" / "aivailable.log").read_text().removeprefix(before)
    asked = [line for line in after.splitlines() if "aivailable.requests" in line]
    assert asked
    assert all("route=GET /cluster/v1/proof" in line for line in asked), asked


FOLLOW = """
import sys, urllib.request

from aivailable.advice import UP_PORT
request = urllib.request.Request(
    "http://127.0.0.1:8420/cluster/v1/events",
    headers={"Accept": "text/event-stream", "Authorization": "Bearer " + sys.argv[1]},
)
for line in urllib.request.urlopen(request, timeout=60):
    print(line.decode().strip(), flush=True)
"""
"""A follower on the cut host itself: nobody else reaches it."""
REJOIN_S = 20.0
"""A cut host is linked again after some seconds."""


@pytest.mark.slow
async def test_a_cut_off_peer_ends_a_revoked_key_once_it_hears_of_it(
    hosts: Lan, tmp_path: Path
) -> None:
    async with Peers([on_lan(hosts, number, tmp_path) for number in (1, 2, 3)]) as peers:
        for peer in peers.peers:
            peer.start()
        for peer in peers.peers:
            await peer.listening()
        await peers.until("one cluster, three voters", voting(3), limit_s=60.0)
        key, key_id = await user_key(peers)
        follower = await asyncio.create_subprocess_exec(
            *hosts.prefix(3), sys.executable, "-c", FOLLOW, key, stdout=subprocess.PIPE
        )
        assert follower.stdout is not None
        assert await follower.stdout.readline() == b": connected\n"
        hosts.cut(3)
        staying = peers.peers[:2]

        def led(states: list[State]) -> bool:
            return all(state["quorum"] for state in states)

        await peers.until("the others have a leader", led, staying)
        gone = await peers.ask(staying[0], "DELETE", f"/cluster/v1/keys/{key_id}")
        assert gone.status == 200
        assert follower.returncode is None, "it could not know"
        hosts.mend(3)
        began_s = time.monotonic()
        rest = (await asyncio.wait_for(follower.stdout.read(), REJOIN_S)).decode().strip()
        print(f"{time.monotonic() - began_s:.2f} s after the cable was back")
        assert "key_revoked" in rest.splitlines()[-1]
        await follower.wait()


def on_lan(hosts: Lan, number: int, folder: Path) -> PeerProcess:
    """A peer on a host of the LAN, as `aivailable up` there without more."""
    flags = ("--name", f"host{number}", "--devices", "cpu:64MiB")
    return PeerProcess(
        folder / f"host{number}", flags, prefix=hosts.prefix(number), host=hosts.url_host(number)
    )
