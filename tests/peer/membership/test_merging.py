"""One node of two clusters that meet: what it asks, refuses, keeps and brings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fixtures.peer_ports import World
from fixtures.states import FACTS
from fixtures.virtual_time import elapse, run
from sim.ports import SimIdentity

from aivailable.core.ids import key_hash, key_id, short
from aivailable.core.state.commands import Admit, PutDeployment, SetWindow
from aivailable.core.state.levels import LEVEL
from aivailable.core.state.records import ApiKey, Deployment, Member, Model, Scope
from aivailable.errors import RequestError
from aivailable.peer.membership.carryover import CARRYOVER_FILE, WAIT_S, Carryover
from aivailable.peer.membership.merging import LOOK_PERIOD_S
from aivailable.peer.node import Peer
from aivailable.peer.ports import KeyCheck, PeerConfig, Sighting
from aivailable.wire.join import JoinAnswer, JoinOffer, JoinRequest, MergeWish, Seat

THERE = ("192.0.2.2", 8421)
OTHER_ID = "zzzzzzzz" + "b" * 18
FOUND_S = 30.0


class Stage:
    """A peer that has founded a cluster of two: itself, and a member that is off."""

    def __init__(self, world: World, **config: Any) -> None:
        self.world = world
        self.said: list[str] = []
        self.other = SimIdentity.named("other")
        self.peer = Peer(PeerConfig("host1", **config), world.ports(), self.said.append)

    @property
    def id(self) -> str:
        return self.peer.observation.status().cluster_id

    def meet(self, members: int = 11, **offer: Any) -> None:
        """A cluster of this many members (by its word) is here, and adopts whoever asks."""
        base = JoinOffer(b"n", self.other.node, OTHER_ID, "default", members, False, True, 1, 1)
        self.world.join_client.offers[THERE] = replace(base, **offer)
        seat = Seat(self.other.node, self.other.certificate, (THERE[0],), THERE[1], True)
        self.world.join_client.answers[THERE] = JoinAnswer("", "", OTHER_ID, "default", (seat,))
        self.world.discovery.show(
            Sighting(short(self.other.node), "i", OTHER_ID[:8], "default", True, 8420, (THERE,))
        )

    async def deploy(self, name: str) -> None:
        body = PutDeployment(Deployment(name, "fake:x", engine="fake", weights_bytes=1))
        await self.peer.changes.propose(body, actor="operator:k", reason="deploy")

    def wish(self, *members: str, **changes: Any) -> tuple[JoinRequest, str]:
        """Another cluster asks us, by its first member."""
        nodes = members or (self.other.node,)
        wish = replace(MergeWish("a" * 26, "default", nodes, False, LEVEL), **changes)
        request = JoinRequest(b"c", b"", "n", (), 1, 1, "", 1, 1, LEVEL, "i", merge=wish)
        return request, self.other.node


@asynccontextmanager
async def founded(**config: Any) -> AsyncIterator[Stage]:
    stage = Stage(World(), **config)
    await stage.peer.start()
    await elapse(FOUND_S)
    joiner = Member(SimIdentity.named("n2").node, "host2", b"c", feature_max=LEVEL)
    await stage.peer.changes.propose(Admit(joiner, (), 1), actor="window", reason="join")
    try:
        yield stage
    finally:
        await stage.peer.stop()


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def on_virtual_time() -> None:
        run(test(), limit_s=1200.0)

    on_virtual_time.__name__, on_virtual_time.__doc__ = test.__name__, test.__doc__
    return on_virtual_time


@scenario
async def test_an_unused_cluster_asks_packs_dissolves_and_goes_over() -> None:
    async with founded() as stage:
        own = stage.id
        stage.meet()
        await elapse(3 * LOOK_PERIOD_S)
        wishes = [request for request in stage.world.join_client.requests if request.merge]
        assert [len(request.merge.members) for request in wishes if request.merge] == [2]
        assert wishes[0].to == stage.other.node
        last = stage.world.join_client.requests[-1]
        assert (last.former, last.merge) == (own, None)
        assert stage.peer.session is not None
        assert stage.peer.session.file.cluster_id == OTHER_ID
        kept = Carryover.load(stage.world.home)
        assert kept is not None
        assert (kept.former, kept.into, len(kept.keys)) == (own, OTHER_ID, 1)


@pytest.mark.parametrize("code", ["", "bad_proof"], ids=["one key", "another key"])
@pytest.mark.parametrize("theirs", [True, False], ids=["they have a key", "they have none"])
def test_a_key_on_both_sides_stands_for_both_open_windows(theirs: bool, code: str) -> None:
    """Whether it is one key, the merge proves; a refusal is shown for as long as it is news."""

    async def on_virtual_time() -> None:
        async with founded(keyed=True) as stage:
            await stage.peer.changes.propose(SetWindow(0), actor="planner", reason="")
            own = stage.id
            stage.meet(window_open=False, keyed=theirs)
            if code:
                stage.world.join_client.answers[THERE] = JoinAnswer(code, "has another join key")
            await elapse(3 * LOOK_PERIOD_S)
            assert bool(stage.world.join_client.requests) is theirs
            assert stage.peer.session is not None
            stays = bool(code) or not theirs
            assert stage.peer.session.file.cluster_id == (own if stays else OTHER_ID)
            refused = "has another join key" in stage.peer.observation.status().advice
            assert refused is (theirs and code == "bad_proof")

    run(on_virtual_time(), limit_s=1200.0)


@pytest.mark.parametrize("used", ["deployed", "touched", "window closed", "theirs closed"])
def test_ten_fake_members_and_an_open_window_take_over_nothing(used: str) -> None:
    async def on_virtual_time() -> None:
        async with founded() as stage:
            if used == "deployed":
                await stage.deploy("ours")
            elif used == "touched":
                await stage.peer.changes.propose(SetWindow(900), actor="operator:k", reason="admit")
            elif used == "window closed":
                await stage.peer.changes.propose(SetWindow(0), actor="planner", reason="")
            stage.meet(window_open=used != "theirs closed")
            await elapse(10 * LOOK_PERIOD_S)
            assert stage.world.join_client.requests == []
            assert stage.id not in ("", OTHER_ID)
            assert f"aivailable merge {OTHER_ID}` here" in stage.peer.observation.status().advice

    run(on_virtual_time(), limit_s=600.0)


@scenario
async def test_the_operator_ends_it_by_the_other_id_only() -> None:
    async with founded() as stage:
        await stage.deploy("ours")
        stage.meet()
        for into, code in (("z", "invalid_value"), ("y" * 26, "unknown_cluster")):
            with pytest.raises(RequestError) as caught:
                await stage.peer.members.merge(into, actor="operator:k")
            assert caught.value.code == code
        assert stage.world.join_client.requests == []
        await stage.peer.members.merge(OTHER_ID, actor="operator:k")
        assert stage.peer.session is not None
        assert stage.peer.session.state.dissolved is not None
        request, node = stage.wish()
        assert (await stage.peer.admit(request, node)).code == "merged_into"


@scenario
async def test_a_refusal_there_changes_nothing_here() -> None:
    async with founded() as stage:
        await stage.deploy("ours")
        stage.meet()
        stage.world.join_client.answers[THERE] = JoinAnswer("window_closed", "admit there first")
        with pytest.raises(RequestError, match="admit there first"):
            await stage.peer.members.merge(OTHER_ID, actor="operator:k")
        assert stage.world.home.load(CARRYOVER_FILE) is None
        await stage.deploy("another")


@scenario
async def test_whom_the_winner_adopts() -> None:
    async with founded() as stage:
        many = tuple(f"m{number}" for number in range(3))
        cases = [
            (stage.wish(name="another"), "other_cluster"),
            (stage.wish(cluster_id=stage.id), "other_cluster"),
            (stage.wish("somebody"), "malformed"),
            (stage.wish(stage.other.node, *many), "other_cluster"),
        ]
        for (request, node), code in cases:
            assert (await stage.peer.admit(request, node)).code == code
        await stage.peer.changes.propose(SetWindow(0), actor="operator:k", reason="lock")
        request, node = stage.wish()
        closed = await stage.peer.admit(request, node)
        assert (closed.code, "aivailable admit" in closed.message) == ("window_closed", True)
        answer = await stage.peer.admit(request, node, KeyCheck.PROVED)
        assert (answer.code, answer.cluster_id) == ("", stage.id)
        assert (await stage.peer.admit(request, node)).code == "", "asked again after a death"
        going = replace(request, merge=None, former="a" * 26)
        assert (await stage.peer.admit(going, "stranger")).code == "other_cluster"
        assert (await stage.peer.admit(going, node)).code == ""


def brought(stage: Stage) -> Carryover:
    hashed = key_hash("theirs")
    return Carryover(
        "a" * 26,
        stage.id,
        (ApiKey(key_id(hashed), hashed, Scope.USER, "theirs"),),
        (Model("d" * 64, "file", 60, "/m", FACTS),),
        (
            Deployment("ours", "fake:y", engine="fake", weights_bytes=2),
            Deployment("theirs", "fake:x", engine="fake", weights_bytes=1),
            Deployment("waits", "d" * 64, weights_bytes=1),
        ),
    )


@scenario
async def test_what_is_brought_is_entered_and_a_clash_is_said() -> None:
    async with founded() as stage:
        await stage.deploy("ours")
        brought(stage).save(stage.world.home)
        again = Stage(stage.world)
        await stage.peer.stop()
        await again.peer.start()
        await elapse(FOUND_S)
        state = again.peer.session.state  # type: ignore[union-attr]
        assert sorted(state.deployments) == ["ours", "theirs"]
        assert state.deployments["ours"].digest == "fake:x", "the winner's stays"
        assert again.peer.api_keys.find_key("theirs") is not None
        assert any("ours: kept as this cluster has deployed it" in text for text in again.said)
        assert again.world.home.load(CARRYOVER_FILE) is not None, "a model may come yet"
        await elapse(WAIT_S)
        assert any("waits is not deployed any more" in text for text in again.said)
        assert again.world.home.load(CARRYOVER_FILE) is None
        await again.peer.stop()


@scenario
async def test_a_damaged_carryover_is_dropped_and_logged() -> None:
    world = World()
    world.home.save(CARRYOVER_FILE, b"\xc1")
    assert Carryover.load(world.home) is None
    assert world.home.load(CARRYOVER_FILE) is None
