"""Three real peers are upgraded one by one, while clients ask and operators change things.

The cluster's feature level rises by itself once every member, also one that is off, has last run
the new code; not before is a command accepted that the old code could not apply.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fixtures.next_version import NEXT, NEXT_VERSION, next_version, this_version
from fixtures.peers import Answer, PeerProcess, Peers, State, cluster_name, loopback_peer, voting

from aivailable.core.state.levels import LEVEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

END_LIMIT_S = 30.0
PAUSE_S = 0.05
LOOKS_MAX = 200


class Clients:
    """Ask and change all the time, at whoever is not being restarted. What was acknowledged is
    remembered; a change may be refused with 503 while nobody leads, a completion never fails."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.away: PeerProcess | None = None
        self.acknowledged: list[str] = []
        self.answered = 0
        self._asked: dict[str, PeerProcess] = {}
        self._turned = asyncio.Event()

    def _someone(self, who: str, turn: int) -> PeerProcess:
        calm = [peer for peer in self._peers.peers if peer is not self.away]
        self._asked[who] = calm[turn % len(calm)]
        self._turned.set()
        return self._asked[who]

    async def spare(self, peer: PeerProcess) -> None:
        """Ask the others from now on; returns when what it was asked is answered."""
        self.away = peer
        while peer in self._asked.values():
            self._turned.clear()
            await self._turned.wait()

    async def change(self) -> None:
        turn = 0
        while True:
            turn += 1
            body = {"scope": "user", "label": f"k{turn}"}
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                peer = self._someone("change", turn)
                answer = await self._peers.ask(peer, "POST", "/cluster/v1/keys", body)
                assert answer.status in (201, 503), answer.body
                if answer.status == 201:
                    self.acknowledged.append(answer.body["key_id"])
            await asyncio.sleep(PAUSE_S)

    async def complete(self) -> None:
        turn = 0
        while True:
            turn += 1
            answer = await self._peers.complete(self._someone("complete", turn), prompt=f"p{turn}")
            assert answer.status == 200, answer.body
            self.answered += 1
            await asyncio.sleep(PAUSE_S)

    @contextlib.asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(work()) for work in (self.change, self.complete)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise AssertionError("a client was let down") from ended


async def test_one_after_the_other(peers: Peers, tmp_path: Path) -> None:
    old, new = this_version(tmp_path / "old"), next_version(tmp_path / "new")
    cluster = cluster_name()
    peers.peers = [loopback_peer(tmp_path / f"peer{n}", cluster) for n in (1, 2, 3)]
    for peer in peers.peers:
        peer.root = old
        peer.start()
    for peer in peers.peers:
        await peer.listening()
    await peers.until("three voters agree", voting(3), limit_s=60.0)
    slow = {"step_ms": "20"}
    await peers.deploy_fake(peers.peers[0], options=slow, replicas_min=3, replicas_max=3)
    await peers.until("a replica on each", everywhere)
    first, second, third = await followers_first(peers)
    clients = Clients(peers)
    async with clients.busy():
        await upgrade(peers, clients, first, new)
        refused(await note(peers, first), second.name, third.name)
        await same_bytes(peers)
        await upgrade(peers, clients, second, new)
        await clients.spare(third)
        assert await asyncio.to_thread(third.stop) == 0
        # Off, it counts with its last word.
        refused(await note(peers, first), third.name, "off")
        states = await peers.states([first, second])
        assert all(one["feature_level"] == LEVEL for one in states)
        third.root = new
        third.start()
        await peers.until("the level rises by itself", at_level(NEXT), limit_s=60.0)
        clients.away = None
        answer = await note(peers, third)
        assert answer.status == 200, answer.body
    await peers.until("all have applied the same", same_version)
    assert clients.answered > 0
    await agreed(peers, clients)
    await older_code_is_refused(peers, first, cluster, old, new)


async def upgrade(peers: Peers, clients: Clients, peer: PeerProcess, root: Path) -> None:
    """Restart with other code; the clients turn to the others meanwhile."""
    await clients.spare(peer)
    assert await asyncio.to_thread(peer.stop) == 0
    peer.root = root
    peer.start()
    await peer.listening()

    def is_new(states: list[State]) -> bool:
        own = [n for one in states for n in one["nodes"] if n["name"] == peer.name]
        return len(own) == len(peers.peers) and all(n["feature_max"] == NEXT for n in own)

    states = await peers.until(f"{peer.name} says what it runs", is_new, limit_s=60.0)
    assert all(one["feature_level"] == LEVEL for one in states)
    assert all(peer.name not in held_back(one) for one in states)
    await peers.until("it serves again", everywhere, limit_s=60.0)
    clients.away = None


def held_back(state: State) -> list[str]:
    return [n["name"] for n in state["nodes"] if n["node"] in state["held_back_by"]]


def everywhere(states: list[State]) -> bool:
    """Every peer is heard and runs its replica."""
    return all(
        sum(r["status"] == "ready" for r in one["replicas"]) == len(states)
        and all(n["state"] in ("here", "up") for n in one["nodes"])
        for one in states
    )


def at_level(level: int) -> Any:
    return lambda states: all(one["feature_level"] == level for one in states)


def same_version(states: list[State]) -> bool:
    return len({one["version"] for one in states}) == 1


async def followers_first(peers: Peers) -> list[PeerProcess]:
    leader = (await peers.states())[0]["leader"]
    heres = [one["here"] for one in await peers.states()]
    pairs = sorted(zip(heres, peers.peers, strict=True), key=lambda pair: pair[0] == leader)
    return [peer for _, peer in pairs]


async def note(peers: Peers, peer: PeerProcess) -> Answer:
    """The new version's command; only a peer that runs it has the route."""
    here = (await peers.state(peer))["here"]
    body = {"node": here, "note": "as good as new"}
    return await peers.ask(peer, "POST", "/cluster/v1/note", body)


def refused(answer: Answer, *names: str) -> None:
    assert answer.status == 409, answer.body
    message = answer.body["error"]["message"]
    assert f"level {NEXT}" in message
    assert all(name in message for name in names), message
    assert "aivailable remove" in message


async def same_bytes(peers: Peers) -> None:
    """Old code and new code hold equal states at equal versions."""
    for _ in range(LOOKS_MAX):
        asked = [peers.ask(peer, "GET", "/cluster/v1/digest") for peer in peers.peers]
        shown = [answer.body for answer in await asyncio.gather(*asked)]
        if len({one["version"] for one in shown}) == 1:
            assert len({one["digest"] for one in shown}) == 1, shown
            return
    raise AssertionError(f"never seen at one version: {shown}")


async def agreed(peers: Peers, clients: Clients) -> None:
    """The same state byte for byte, the command's effect and every acknowledged change in it."""
    await same_bytes(peers)
    for peer in peers.peers:
        events = (await peers.ask(peer, "GET", "/cluster/v1/events?limit=256")).body["events"]
        assert any("as good as new" in one["text"] for one in events)
        keys = (await peers.ask(peer, "GET", "/cluster/v1/keys")).body["keys"]
        assert {one["key_id"] for one in keys} >= set(clients.acknowledged)
    state = await peers.state(peers.peers[0])
    assert {n["version"] for n in state["nodes"]} == {NEXT_VERSION}
    assert state["held_back_by"] == []


async def older_code_is_refused(
    peers: Peers, peer: PeerProcess, cluster: str, old: Path, new: Path
) -> None:
    """A member that was downgraded ends with the reason; a newcomer is told when it asks."""
    newcomer = loopback_peer(peer.home.parent / "newcomer", cluster)
    newcomer.root = old
    newcomer.start()
    assert peer.stop() == 0
    peer.root = old
    peer.start()
    assert peer.process is not None
    try:
        code = await asyncio.to_thread(peer.process.wait, END_LIMIT_S)
        assert code != 0
        told = " ".join(peer.output().split())
        assert f"its cluster works at {NEXT}: install the version" in told
        assert "Traceback" not in told
        await newcomer.listening()
        await peers.until("the newcomer is told", lambda s: f"level {NEXT}" in s[0]["advice"],
                          [newcomer])  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running:\n{peer.output()}") from None
    finally:
        newcomer.kill()
    peer.root = new
    peer.start()
    await peer.listening()
    await peers.until("it is back", voting(3), limit_s=60.0)
