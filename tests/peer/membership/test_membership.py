"""How a node comes to belong to a cluster, and how it answers those who ask to join: a real peer on
fake ports and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from fixtures.peer_ports import World, turns
from fixtures.virtual_time import elapse, run
from sim.ports import SimIdentity

from aivailable.core.ids import key_hash, key_id, short
from aivailable.core.state.commands import PutKey, SetWindow
from aivailable.core.state.levels import LEVEL
from aivailable.core.state.records import ApiKey, Role, Scope
from aivailable.peer.joining.cluster_file import ClusterFile
from aivailable.peer.membership.membership import ASK_PERIOD_S, PRISTINE_PERIOD_S
from aivailable.peer.node import Peer
from aivailable.peer.ports import PeerConfig, Sighting
from aivailable.wire.join import JoinAnswer, JoinOffer, JoinRequest, Seat

OTHER = ("192.0.2.2", 8421)
OTHER_ID = "zzzzzzzz" + "b" * 18
"""The greatest id: of two pristine clusters, ours stays."""
FOUND_S = 30.0
"""Enough to look around, to found and to be led."""


class Stage:
    """One peer, n1; `other` at OTHER leads another cluster once it is shown."""

    def __init__(self, world: World | None = None, **config: Any) -> None:
        self.world = world if world is not None else World()
        self.said: list[str] = []
        self.other = SimIdentity.named("other")
        self.peer = Peer(PeerConfig("host1", **config), self.world.ports(), self.said.append)

    async def __aenter__(self) -> Stage:
        await self.peer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.peer.stop()

    def sighting(self, **changes: Any) -> Sighting:
        base = Sighting(
            short(self.other.node), "i2", short(OTHER_ID), "default", True, 8420, (OTHER,)
        )
        return replace(base, **changes)

    def show(self, **changes: Any) -> None:
        self.world.discovery.show(self.sighting(**changes))

    def offer(self, **changes: Any) -> JoinOffer:
        base = JoinOffer(b"n" * 32, self.other.node, OTHER_ID, "default", 2, False, True, 1, 1)
        return replace(base, **changes)

    def admits(self) -> None:
        """The other cluster takes us."""
        seat = Seat(self.other.node, self.other.certificate, (OTHER[0],), OTHER[1], True)
        answer = JoinAnswer("", "", OTHER_ID, "default", (seat,))
        self.world.join_client.answers[OTHER] = answer

    async def founded(self) -> None:
        await elapse(FOUND_S)
        assert self.peer.session is not None
        assert self.peer.session.state.cluster is not None
        assert self.peer.membership.phase == "member"

    @property
    def cluster_id(self) -> str:
        return self.peer.observation.status().cluster_id


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs an async test on virtual time."""

    def on_virtual_time() -> None:
        run(test(), limit_s=600.0)

    on_virtual_time.__name__, on_virtual_time.__doc__ = test.__name__, test.__doc__
    return on_virtual_time


def stranger(name: str = "n2", **changes: Any) -> tuple[JoinRequest, str]:
    identity = SimIdentity.named(name)
    request = JoinRequest(
        identity.certificate, b"s", name, ("192.0.2.9",), 8421, 8420, "0.1.0", 1, 1, LEVEL, "i"
    )
    return replace(request, **changes), identity.node


@scenario
async def test_alone_it_founds_and_its_key_opens_its_api() -> None:
    async with Stage() as stage:
        assert stage.peer.membership.offer(b"n") is None, "there is nothing to offer yet"
        await stage.founded()
        state = stage.peer.session.state  # type: ignore[union-attr]
        assert state.pristine
        assert state.window.open
        key = stage.peer.api_keys.find_key(stage.peer.admin_key)
        assert key is not None
        assert key.scope is Scope.ADMIN
        announced = stage.world.discovery.announced[-1]
        assert (announced.cluster_prefix, announced.window_open) == (short(stage.cluster_id), True)


@scenario
async def test_a_death_before_the_first_command_does_not_leave_a_node_without_cluster() -> None:
    world = World()
    file = ClusterFile("q" * 26, "default", Role.VOTER, (world.identity.node,))
    file.save(world.home)
    async with Stage(world) as stage:
        await stage.founded()
        assert stage.cluster_id == "q" * 26


@scenario
async def test_a_restart_resumes_and_founds_nothing() -> None:
    world = World()
    async with Stage(world) as stage:
        await stage.founded()
        before = stage.cluster_id
    world.discovery.announced.clear()
    async with Stage(world) as again:
        await again.founded()
        assert again.cluster_id == before
        events = again.peer.observation.events(0)
        assert [event.kind for event in events].count("founded") == 1
        request, node = stranger()
        answer = await again.peer.admit(request, node)
        assert answer.code == "window_closed", "nobody knows how long the window was open"


@scenario
async def test_a_window_opened_right_after_a_restart_is_open() -> None:
    world = World()
    async with Stage(world) as stage:
        await stage.founded()
    async with Stage(world) as again:
        while again.peer.session is None or again.peer.session.state.cluster is None:
            await elapse(0.05)
        await again.peer.changes.propose(SetWindow(60), actor="operator:k", reason="")
        request, node = stranger()
        assert (await again.peer.admit(request, node)).code == ""


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "file of an earlier version"])
def test_a_changed_identity_seeks_anew_and_says_so(earlier: bool) -> None:
    async def on_virtual_time() -> None:
        world = World()
        async with Stage(world) as stage:
            await stage.founded()
            old = stage.cluster_id
        world.identity.node = SimIdentity.named("after").node
        file = ClusterFile.load(world.home)
        assert file is not None
        assert file.node
        if earlier:
            replace(file, node="").save(world.home)
        async with Stage(world) as again:
            await again.founded()
            assert again.cluster_id != old
            assert any("identity has changed" in text for text in again.said)
            assert world.dropped == [old]

    run(on_virtual_time(), limit_s=600.0)


@scenario
async def test_an_open_window_is_joined_at_once() -> None:
    async with Stage() as stage:
        stage.admits()
        stage.show()
        await turns(50)
        assert stage.cluster_id == ""  # The state comes with the log, from its voters.
        assert stage.peer.session is not None
        assert stage.peer.session.file.cluster_id == OTHER_ID
        assert stage.peer.session.file.role is Role.OBSERVER
        assert [contact.node for contact in stage.world.links.contacts] == [stage.other.node]
        request = stage.world.join_client.requests[0]
        assert request.key_hashes == (key_hash(stage.peer.admin_key),)
        assert not stage.peer.observation.ready()[0]


@scenario
async def test_a_closed_window_is_waited_at_visibly_until_it_opens() -> None:
    async with Stage() as stage:
        closed = JoinAnswer("window_closed", "type `aivailable admit` there")
        stage.world.join_client.answers[OTHER] = closed
        stage.show(window_open=False)
        await elapse(FOUND_S)
        assert stage.peer.observation.status().phase == "waiting"
        assert "aivailable admit" in stage.peer.observation.status().advice
        asked = len(stage.world.join_client.asked)
        assert FOUND_S / ASK_PERIOD_S / 2 <= asked <= 2 * FOUND_S / ASK_PERIOD_S + 1
        assert sum("aivailable admit" in text for text in stage.said) == 1, "said once"
        stage.admits()
        await elapse(2 * ASK_PERIOD_S)
        assert stage.peer.membership.phase == "member"
        assert stage.peer.membership.advice == ""


@scenario
async def test_a_cluster_that_does_not_answer_counts_as_not_seen() -> None:
    async with Stage() as stage:
        stage.show()
        await stage.founded()
        assert stage.world.join_client.asked


@scenario
async def test_seeds_are_asked_without_any_announcement() -> None:
    async with Stage(seeds=(OTHER,)) as stage:
        stage.world.join_client.offers[OTHER] = stage.offer()
        stage.admits()
        await elapse(FOUND_S)
        assert stage.peer.session is not None
        assert stage.peer.session.file.cluster_id == OTHER_ID


@pytest.mark.parametrize("seen_by", ["mdns", "seed"])
def test_a_pristine_cluster_gives_itself_up_and_keeps_its_key(seen_by: str) -> None:
    async def on_virtual_time() -> None:
        async with Stage(seeds=(OTHER,) if seen_by == "seed" else ()) as stage:
            await stage.founded()
            old = stage.cluster_id
            stage.world.join_client.offers[OTHER] = stage.offer()
            stage.admits()
            if seen_by == "mdns":
                stage.show()
            await elapse(2 * PRISTINE_PERIOD_S)
            assert stage.peer.session is not None
            assert stage.peer.session.file.cluster_id == OTHER_ID
            assert stage.world.dropped == [old]
            hashes = stage.world.join_client.requests[-1].key_hashes
            assert hashes == (key_hash(stage.peer.admin_key),)

    run(on_virtual_time(), limit_s=600.0)


@pytest.mark.parametrize("seen_by", ["mdns", "seed"])
@pytest.mark.parametrize("pristine", [True, False])
def test_a_closed_window_is_not_given_up_for_any_stranger(seen_by: str, pristine: bool) -> None:
    async def on_virtual_time() -> None:
        seeds = (OTHER,) if seen_by == "seed" else ()
        async with Stage(seeds=seeds, join_window_s=0) as stage:
            await stage.founded()
            own = stage.cluster_id
            members = 1 if pristine else 12
            stage.world.join_client.offers[OTHER] = stage.offer(
                cluster_id="0" * 26, members=members, pristine=pristine
            )
            stage.admits()
            if seen_by == "mdns":
                stage.show(cluster_prefix="0" * 8)
            await elapse(30 * PRISTINE_PERIOD_S)
            assert stage.world.join_client.asked == []
            assert stage.cluster_id == own
            assert ("aivailable merge" in stage.peer.membership.what_to_do()) is not pristine

    run(on_virtual_time(), limit_s=600.0)


@scenario
async def test_what_an_operator_has_touched_is_not_given_up() -> None:
    async with Stage() as stage:
        await stage.founded()
        hashed = key_hash("someone's")
        key = ApiKey(key_id(hashed), hashed, Scope.USER, "someone")
        await stage.peer.changes.propose(PutKey(key), actor="operator:k", reason="")
        stage.world.join_client.offers[OTHER] = stage.offer()
        stage.admits()
        stage.show()
        await elapse(5 * PRISTINE_PERIOD_S)
        assert stage.world.join_client.asked == []
        assert stage.cluster_id != OTHER_ID


@pytest.mark.parametrize(
    "offer",
    [
        {"cluster_name": "another"},
        {"members": 1, "pristine": True},
    ],
)
def test_it_is_not_given_up_for_another_name_or_a_like_with_a_greater_id(
    offer: dict[str, Any],
) -> None:
    async def on_virtual_time() -> None:
        async with Stage() as stage:
            await stage.founded()
            stage.world.join_client.offers[OTHER] = stage.offer(**offer)
            stage.admits()
            stage.show()
            await elapse(5 * PRISTINE_PERIOD_S)
            assert stage.world.join_client.asked == []

    run(on_virtual_time(), limit_s=600.0)


@scenario
async def test_a_refusal_there_leaves_everything_here() -> None:
    async with Stage() as stage:
        await stage.founded()
        before = stage.cluster_id
        stage.world.join_client.offers[OTHER] = stage.offer()
        stage.world.join_client.answers[OTHER] = JoinAnswer("window_closed", "no")
        stage.show()
        await elapse(3 * PRISTINE_PERIOD_S)
        assert stage.world.join_client.asked
        assert stage.cluster_id == before
        assert stage.world.dropped == []


@scenario
async def test_nobody_is_admitted_while_the_cluster_gives_itself_up() -> None:
    async with Stage() as stage:
        await stage.founded()
        stage.world.join_client.offers[OTHER] = stage.offer()
        stage.admits()
        asked, go = asyncio.Event(), asyncio.Event()
        answer = stage.world.join_client.join

        async def slowly(address: tuple[str, int], request: JoinRequest) -> JoinAnswer:
            asked.set()
            await go.wait()
            return await answer(address, request)

        stage.world.join_client.join = slowly  # type: ignore[method-assign]
        stage.show()
        await asked.wait()
        request, node = stranger()
        assert (await stage.peer.admit(request, node)).code == "seeking"
        go.set()
        await turns(50)
        assert stage.peer.session is not None
        assert stage.peer.session.file.cluster_id == OTHER_ID


@scenario
async def test_a_stranger_comes_in_through_the_open_window_with_its_key() -> None:
    async with Stage() as stage:
        await stage.founded()
        request, node = stranger(key_hashes=(key_hash("their key"),))
        answer = await stage.peer.admit(request, node)
        assert (answer.code, answer.cluster_id) == ("", stage.cluster_id)
        assert [seat.node for seat in answer.seats] == [stage.peer.node, node]
        key = stage.peer.api_keys.find_key("their key")
        assert key is not None
        assert key.scope is Scope.ADMIN
        assert not stage.peer.session.state.pristine  # type: ignore[union-attr]
        assert node in [contact.node for contact in stage.world.links.contacts]


@scenario
async def test_a_locked_cluster_shows_who_waits_and_lets_its_own_back_in() -> None:
    async with Stage() as stage:
        await stage.founded()
        member, known = stranger("n2")
        assert (await stage.peer.admit(member, known)).code == ""
        await stage.peer.changes.propose(SetWindow(0), actor="operator:k", reason="lock")
        request, node = stranger("n3")
        answer = await stage.peer.admit(request, node)
        assert (answer.code, "aivailable admit" in answer.message) == ("window_closed", True)
        (waiting,) = stage.peer.observation.status().waiting
        assert (waiting.node, waiting.name, waiting.address) == (node, "n3", "192.0.2.9")
        assert (await stage.peer.admit(member, known)).code == ""
        await elapse(31.0)
        assert stage.peer.observation.status().waiting == ()
        for number in range(100):
            await stage.peer.admit(*stranger(f"crowd{number}"))
        assert len(stage.peer.observation.status().waiting) <= 32
        await stage.peer.changes.propose(SetWindow(60), actor="operator:k", reason="admit")
        assert (await stage.peer.admit(request, node)).code == ""
        assert node not in [entry.node for entry in stage.peer.observation.status().waiting]


@scenario
async def test_the_window_closes_by_itself_in_the_log() -> None:
    async with Stage(join_window_s=40) as stage:
        await stage.founded()
        await elapse(41.0)
        assert not stage.peer.session.state.window.open  # type: ignore[union-attr]
        assert not stage.world.discovery.announced[-1].window_open


@scenario
async def test_a_newcomer_of_another_protocol_is_told_to_update() -> None:
    async with Stage() as stage:
        await stage.founded()
        request, node = stranger(proto_min=7, proto_max=9)
        answer = await stage.peer.admit(request, node)
        assert answer.code == "version"
        assert "same version" in answer.message
