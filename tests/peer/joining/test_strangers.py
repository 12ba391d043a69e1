"""Those who must stay out, over real sockets: each is refused, and told of once, with a reason.

A wrong join key has a file of its own (test_join_proof).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.join_house import REQUEST, House, join_house
from fixtures.mesh import (
    CLUSTER,
    DEADLINE_S,
    Node,
    introduce,
    linked,
    make_node,
    start_nodes,
    stop_nodes,
)
from fixtures.peers import (
    PeerProcess,
    Peers,
    busy_slots,
    cluster_name,
    host_of,
    loopback_peer,
    pieces,
)

from aivailable.core.ids import short
from aivailable.peer.links import arrivals
from aivailable.wire.join import JoinAnswer, JoinOffer, JoinRequest, join_transcript

ATTEMPTS = 3
CUT_OFF_LIMIT_S = 3.0
"""From the answer to `remove` to a member that knows."""
TURNED_AWAY = "a stranger at the link port was refused"


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Node]]:
    monkeypatch.setattr(arrivals, "HANDSHAKE_DEADLINE_S", 1.0)
    nodes = await start_nodes(tmp_path, 2)
    introduce(*nodes)
    await linked(*nodes)
    yield nodes
    await stop_nodes(nodes)


class Words(logging.Handler):
    """Wakes a test once the log says it."""

    def __init__(self, words: str) -> None:
        super().__init__(logging.WARNING)
        self._words = words
        self.said = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            self.said.set()


@pytest.fixture
async def turned_away() -> AsyncIterator[Words]:
    words, log = Words(TURNED_AWAY), logging.getLogger("aivailable.peer.links")
    log.addHandler(words)
    yield words
    log.removeHandler(words)


def told(caplog: pytest.LogCaptureFixture, words: str) -> int:
    """How many warnings have these words."""
    return sum(
        words in record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("aivailable")
    )


async def test_a_stranger_with_a_key_of_its_own_gets_no_link(
    two: list[Node], tmp_path: Path, turned_away: Words, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows the cluster's id and a member's certificate and address: all but a seat."""
    member = two[0]
    stranger = make_node(tmp_path / "stranger")
    await stranger.links.start(stranger.listener)
    stranger.links.set_contacts(CLUSTER, (member.contact,))
    assert (await stranger.listener.seen("refused", count=ATTEMPTS))[1:] == (
        member.id,
        "not_member",
    )
    assert stranger.links.connected() == ()
    assert [event for event in member.listener.events if event[1] == stranger.id] == []
    async with asyncio.timeout(DEADLINE_S):
        await turned_away.said.wait()
    assert told(caplog, TURNED_AWAY) == 1
    await stranger.links.stop()


async def test_an_expelled_member_is_cut_off_and_stays_out(
    two: list[Node], turned_away: Words, caplog: pytest.LogCaptureFixture
) -> None:
    keeper, expelled = two
    keeper.links.set_contacts(CLUSTER, ())
    assert (await expelled.listener.seen("refused"))[1:] == (keeper.id, "removed")
    assert expelled.links.connected() == keeper.links.connected() == ()
    assert (await expelled.listener.seen("refused", count=2))[1:] == (keeper.id, "not_member")
    assert len(keeper.listener.of("up", expelled.id)) == 1
    assert told(caplog, "refuses us: removed") == 1
    async with asyncio.timeout(DEADLINE_S):
        await turned_away.said.wait()
    assert told(caplog, TURNED_AWAY) == 1


def signed_for(house: House, offer: JoinOffer) -> JoinRequest:
    """What an honest joiner sends to this offer."""
    mine = house.joiner.identity
    prints = house.node.identity.fingerprint, mine.fingerprint
    return dataclasses.replace(
        REQUEST,
        certificate=mine.certificate,
        signature=mine.sign(join_transcript(offer.nonce, *prints, offer.cluster_id)),
    )


async def test_a_replayed_handshake_is_refused_even_through_an_open_window(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Recorded from an admission, and sent again after the member had gone."""
    async with join_house(tmp_path) as house:
        await house.lobby(window_open=True)
        recorded: list[JoinRequest] = []

        def record(offer: JoinOffer) -> JoinRequest:
            recorded.append(signed_for(house, offer))
            return recorded[0]

        first = await house.say(record)
        assert isinstance(first, JoinAnswer)
        assert first.code == ""
        fresh = await house.lobby(window_open=True)
        for _ in range(ATTEMPTS):
            again = await house.say(lambda offer: recorded[0])
            assert isinstance(again, JoinAnswer)
            assert (again.code, again.seats) == ("bad_proof", ())
        assert fresh.members == (house.node.id,)
    words = f"names itself {short(house.joiner.id)} could not prove it"
    assert told(caplog, words) == 1


async def test_a_cloned_identity_is_refused_and_told_of_once(
    two: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    keeper, original = two
    clone = make_node(original.identity.pem_path.parent)
    await clone.links.start(clone.listener)
    clone.links.set_contacts(CLUSTER, (keeper.contact,))
    assert (await clone.listener.seen("refused", count=2))[1:] == (keeper.id, "cloned_identity")
    assert keeper.listener.of("down") == []
    assert told(caplog, f"a second machine with the identity of {short(original.id)}") == 1
    await clone.links.stop()


def log_of(peer: PeerProcess) -> str:
    return (peer.home / "logs" / "aivailable.log").read_text()


@pytest.mark.slow
async def test_a_copied_home_and_a_removed_member_are_kept_out(tmp_path: Path) -> None:
    """Two processes of one identity: the second says what to do, and the first stays; until an
    operator removes it."""
    name = cluster_name()
    founder = loopback_peer(tmp_path / "a", name)
    original, copy = (loopback_peer(tmp_path / n, name, devices="cpu:8MiB") for n in "bc")
    async with Peers([founder, original, copy]) as peers:
        founder.start()
        await founder.listening()
        await peers.until("it founds", lambda s: s[0]["quorum"], [founder])
        original.start()
        await original.listening()
        pair = [founder, original]
        await peers.until(
            "two are one",
            lambda s: all(len(x["nodes"]) == 2 for x in s) and s[0]["version"] == s[1]["version"],
            pair,
        )
        shutil.copytree(original.home, copy.home, ignore=shutil.ignore_patterns("*.lock", "logs"))
        copy.start()
        await copy.listening()
        (seen,) = await peers.until(
            "the copy knows", lambda s: "cloned_identity" in s[0]["advice"], [copy]
        )
        assert "move identity.pem" in seen["advice"], json.dumps(seen)
        await peers.until(
            "the original stays, and the founder tells once of the copy",
            lambda s: (
                all(node["state"] in ("here", "up") for x in s for node in x["nodes"])
                and log_of(founder).count("a second machine with the identity of") == 1
            ),
            pair,
        )
        copy.kill()
        await removed_while_it_works(peers, founder, original)


async def removed_while_it_works(peers: Peers, keeper: PeerProcess, gone: PeerProcess) -> None:
    """`gone` passes on an answer of the replica on `keeper` while an operator removes it."""
    await peers.deploy_fake(keeper, options={"need_bytes": str(16 << 20), "step_ms": "50"})
    node, key = (await peers.state(gone))["here"], gone.key
    assert host_of(await peers.state(keeper), "fake") != node
    async with peers.streaming(gone, max_tokens=2000) as response:
        async for _ in pieces(response):
            break
        assert busy_slots(await peers.state(keeper), "fake") == 1
        answer = await peers.ask(keeper, "DELETE", f"/cluster/v1/members/{node}", limit_s=20.0)
        assert answer.status == 200, answer
        await peers.until(
            "requests are cut", lambda s: busy_slots(s[0], "fake") == 0, [keeper], CUT_OFF_LIMIT_S
        )
        (told,) = await peers.until(
            "it is told", lambda s: s[0]["phase"] == "removed", [gone], CUT_OFF_LIMIT_S
        )
    assert "removed from the cluster" in told["advice"]
    made = await peers.ask(keeper, "POST", "/cluster/v1/keys", {"label": "later"})
    assert made.status == 201, made
    (left,) = await peers.states([keeper])
    assert [entry["node"] for entry in left["nodes"]] == [left["here"]]
    assert (await peers.state(gone))["version"] < left["version"], "its log goes no further"
    assert (await peers.ask(keeper, "GET", "/cluster/v1/keys", key=key)).status == 401
    assert log_of(gone).count("refuses us: removed") == 1
    stranger = "a stranger at the link port was refused"
    await peers.until("told", lambda _: log_of(keeper).count(stranger) == 1, [keeper])
