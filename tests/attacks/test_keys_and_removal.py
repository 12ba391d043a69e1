"""Keys that a removed member leaves behind, and removed machines that come back (S6, S7c, R1)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fixtures.peers import PeerProcess, Peers, State, loopback_peer, voting
from fixtures.printed import printed, run_printed

from aivailable.advice import KEY_CREATE_ADMIN, KEY_REVOKE_FORCE, UP_NEW_IDENTITY
from aivailable.core.ids import key_hash, key_id

TRIES = 20
OPEN = {"duration_s": 600}
COMMAND = UP_NEW_IDENTITY.line


async def removed(peers: Peers, by: PeerProcess, gone: PeerProcess, query: str = "") -> Any:
    """Take a member out; its own id is its API's."""
    node = (await peers.state(gone))["here"]
    path = f"/cluster/v1/members/{node}{query}"
    answer = await peers.ask(by, "DELETE", path, limit_s=30.0)
    assert answer.status == 200, answer.body
    return answer.body


async def opened(peers: Peers, members: list[PeerProcess]) -> None:
    """The join window, once what they apply is news to them and no replay."""

    async def open_now() -> bool:
        answer = await peers.ask(members[0], "POST", "/cluster/v1/window", OPEN)
        assert answer.status == 200, answer.body
        states = await peers.states(members)
        return all(state["window_left_s"] > 0 for state in states)

    for _ in range(TRIES):
        if await open_now():
            return
        await asyncio.sleep(0.5)
    raise AssertionError("the window does not open")


async def at_level(peers: Peers, some: list[PeerProcess]) -> None:
    await peers.until("the level", lambda s: all(one["feature_level"] >= 2 for one in s), some)


def without(count: int) -> Any:
    return lambda states: all(len(one["nodes"]) == count for one in states)


async def test_the_keys_of_a_removed_member_are_dead(three: Peers) -> None:
    """S7c: made at the member, and made elsewhere with a key of it."""
    first, second, bad = three.peers
    await at_level(three, three.peers)
    own = bad.key
    made = await three.ask(bad, "POST", "/cluster/v1/keys", {"scope": "admin", "label": "there"})
    body = {"scope": "admin", "label": "elsewhere"}
    other = await three.ask(first, "POST", "/cluster/v1/keys", body, key=made.body["key"])
    kept = await three.ask(bad, "POST", "/cluster/v1/keys", {"scope": "user", "label": "a user"})
    assert (made.status, other.status, kept.status) == (201, 201, 201)
    shown = (await three.ask(second, "GET", "/cluster/v1/keys")).body["keys"]
    by_id = {one["key_id"]: one for one in shown}
    node = (await three.state(bad))["here"]
    assert by_id[made.body["key_id"]]["via"] == node
    assert by_id[other.body["key_id"]]["by"] == made.body["key_id"]
    before = await three.ask(first, "GET", f"/cluster/v1/members/{node}/keys")
    ends = {one["key_id"] for one in before.body["keys"] if one["ends"]}
    assert ends == {made.body["key_id"], other.body["key_id"], key_id(key_hash(own))}
    done = await removed(three, first, bad)
    assert set(done["ended_keys"]) == ends
    assert done["kept_keys"] == [kept.body["key_id"]]
    await three.until("two are left", without(2), [first, second])
    for peer in (first, second):
        for dead in (own, made.body["key"], other.body["key"]):
            answer = await three.ask(peer, "POST", "/cluster/v1/window", OPEN, key=dead)
            assert answer.status == 401, answer.body
        models = await three.ask(peer, "GET", "/v1/models", key=kept.body["key"])
        assert models.status == 200, "a user key stays"


@pytest.mark.remedy("key-create-admin")
@pytest.mark.remedy("key-revoke-force")
async def test_the_last_admin_key_ends_only_when_forced(peers: Peers, tmp_path: Path) -> None:
    alone = loopback_peer(tmp_path / "alone", "keys-alone")
    peers.peers.append(alone)
    alone.start()
    await alone.listening()
    await peers.until("founded", lambda s: s[0]["phase"] == "member" and s[0]["controller"])
    await at_level(peers, [alone])
    own = key_id(key_hash(alone.key))
    answer = await peers.ask(alone, "DELETE", f"/cluster/v1/keys/{own}")
    assert (answer.status, answer.body["error"]["code"]) == (409, "last_admin_key")
    force = KEY_REVOKE_FORCE.of(own).line
    assert printed(answer.body["error"]["message"]) == [KEY_CREATE_ADMIN.line, force]
    made = await run_printed(alone, KEY_CREATE_ADMIN.line)
    assert made.code == 0, made.output
    assert (await run_printed(alone, force)).code == 0
    assert (await peers.ask(alone, "GET", "/cluster/v1/keys")).status == 401


@pytest.mark.slow
@pytest.mark.remedy("up-new-identity")
async def test_a_removed_identity_stays_out_and_its_machine_comes_back_with_its_models(
    three: Peers,
) -> None:
    first, second, gone = three.peers
    await at_level(three, three.peers)
    old = (await three.state(gone))["here"]
    model = gone.home / "models" / "kept.gguf"
    model.parent.mkdir(exist_ok=True)
    model.write_bytes(b"weights")
    await removed(three, first, gone)
    left = [first, second]
    await three.until("two are left", without(2), left)
    gone.stop()
    gone.start()
    await gone.listening()
    await opened(three, left)

    def refused(states: list[State]) -> bool:
        return COMMAND in states[0]["advice"]

    await three.until("it is refused, with the command", refused, [gone], 40.0)
    assert all(len(one["nodes"]) == 2 for one in await three.states(left))
    gone.stop()
    gone.flags = (*gone.flags, "--new-identity")
    gone.start()
    await gone.listening()
    await three.until("it is a new member", voting(3), limit_s=30.0)
    state = await three.state(gone)
    assert state["here"] != old
    assert old not in {node["node"] for node in state["nodes"]}
    assert model.exists()
    assert (gone.home / "identity.pem.removed-1").exists()


@pytest.mark.parametrize("damage", ["moved away", "overwritten"])
async def test_the_remedies_for_a_damaged_identity_lead_back_in(three: Peers, damage: str) -> None:
    """R1: the old file names a cluster in which the new identity is not a member."""
    first, second, broken = three.peers
    old = (await three.state(broken))["here"]
    model = broken.home / "models" / "kept.gguf"
    model.parent.mkdir(exist_ok=True)
    model.write_bytes(b"weights")
    broken.stop()
    identity = broken.home / "identity.pem"
    if damage == "moved away":
        identity.rename(broken.home / "away.pem")
    else:
        identity.write_bytes(b"damaged")
        broken.start()
        assert broken.process is not None
        assert broken.process.wait(20.0) != 0
        assert COMMAND in " ".join(broken.output().split())
        broken.flags = (*broken.flags, "--new-identity")
    broken.start()
    await broken.listening()
    await opened(three, [first, second])

    def back(states: list[State]) -> bool:
        here = states[0]["here"]
        return here != old and all(
            here in {node["node"] for node in one["nodes"]} and one["cluster_id"] == cluster
            for one in states
        )

    cluster = (await three.state(first))["cluster_id"]
    await three.until("it is in again", back, [broken, first], 30.0)
    assert model.exists()
    if damage == "moved away":
        assert "identity has changed" in " ".join(broken.output().split())
