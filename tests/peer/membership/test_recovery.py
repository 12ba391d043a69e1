"""Recovery on one node, step by step, and whom a stray member believes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.join_house import REQUEST, join_house
from fixtures.peer_ports import World
from fixtures.virtual_time import elapse, run
from sim.ports import SimIdentity

from aivailable.core.state.merging import ADOPTED_MAX
from aivailable.core.state.records import Cluster, Member, Role
from aivailable.core.state.state import State, encode_state
from aivailable.errors import LinkError, RequestError
from aivailable.peer.joining.applicant import Applicant
from aivailable.peer.joining.cluster_file import CLUSTER_FILE, ClusterFile
from aivailable.peer.membership.recovery import LEADERLESS_MIN_S
from aivailable.peer.membership.rejoining import REJOIN_AFTER_S, Rejoining
from aivailable.peer.node import Peer
from aivailable.peer.ports import Contact, PeerConfig
from aivailable.raft.seeding import seed
from aivailable.raft.snapshot import unseal
from aivailable.raft.store import MemoryStore
from aivailable.wire.join import JoinAnswer, JoinOffer, MergeWish, Seat

OLD = "q" * 26
NEW = "z" * 26
THERE = ("192.0.2.2", 8421)


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def on_virtual_time() -> None:
        run(test(), limit_s=600.0)

    on_virtual_time.__name__, on_virtual_time.__doc__ = test.__name__, test.__doc__
    return on_virtual_time


@asynccontextmanager
async def orphan() -> AsyncIterator[tuple[Peer, World]]:
    """An observer whose only voter is gone, with a copy of the state."""
    world, other = World(), SimIdentity.named("other")
    own = world.identity
    members = {
        identity.node: Member(identity.node, name, identity.certificate)
        for name, identity in (("us", own), ("gone", other))
    }
    state = State(version=7, cluster=Cluster(OLD, "default", other.node, 0), members=members)
    world.machine.logs[OLD] = MemoryStore()
    await seed(world.machine.logs[OLD], other.node, encode_state(state))
    seats = (Seat(other.node, other.certificate, (THERE[0],), THERE[1], True),)
    file = ClusterFile(OLD, "default", Role.OBSERVER, (other.node,), seats)
    file.save(world.home)
    peer = Peer(PeerConfig("us"), world.ports())
    await peer.start()
    await elapse(LEADERLESS_MIN_S + 3.0)
    try:
        yield peer, world
    finally:
        await peer.stop()


@scenario
async def test_the_new_log_is_durable_before_the_cluster_file_names_it() -> None:
    async with orphan() as (peer, world):
        save = world.home.save
        seen: list[str] = []

        def saving(name: str, data: bytes) -> None:
            if name == CLUSTER_FILE:
                save(name, data)
                file = ClusterFile.load(world.home)
                assert file is not None
                log = world.machine.logs[file.cluster_id]
                log.crash()
                assert log.snapshot is not None
                assert unseal(log.snapshot).state
                assert log.journal
                seen.append(file.cluster_id)
            else:
                save(name, data)

        world.home.save = saving  # type: ignore[method-assign]
        result = await peer.members.recover(actor="operator:k")
        assert result.gone == ("gone",)
        assert seen[0] != OLD
        assert world.dropped == [OLD]
        await elapse(3.0)
        status = peer.observation.status()
        assert (status.cluster_id, status.leader) == (seen[0], peer.node)
        assert peer.observation.events(0)[0].kind == "recovered"
        with pytest.raises(RequestError, match="has a leader"):
            await peer.members.recover(actor="operator:k")


@scenario
async def test_a_disk_that_takes_nothing_leaves_all_as_it_was() -> None:
    async with orphan() as (peer, world):
        world.home.fails = 1
        with pytest.raises(OSError, match=r".+"):
            await peer.members.recover(actor="operator:k")
        assert peer.observation.status().cluster_id == OLD
        file = ClusterFile.load(world.home)
        assert file is not None
        assert file.cluster_id == OLD
        assert world.dropped == []


@scenario
async def test_it_is_refused_before_anybody_could_have_answered() -> None:
    async with orphan() as (peer, world):
        await peer.stop()
        again = Peer(PeerConfig("us"), world.ports())
        await again.start()
        await elapse(1.0)
        with pytest.raises(RequestError) as caught:
            await again.members.recover(actor="operator:k")
        assert (caught.value.status, caught.value.code) == (409, "too_early")
        await again.stop()


@dataclass
class Lost:
    """What Rejoining asks of a session."""

    leader: str | None = None
    lost_ms: int = 60_000
    node: str = "old-member"
    file: ClusterFile = field(default_factory=lambda: ClusterFile(OLD, "l", Role.OBSERVER, ()))

    @property
    def raft(self) -> Lost:
        return self

    def leaderless_ms(self) -> int:
        return self.lost_ms

    def contacts(self) -> tuple[Contact, ...]:
        return (Contact(self.node, b"", (("192.0.2.7", 1), THERE)),)


def rejoining(world: World, **offer: Any) -> Rejoining:
    told = {"node": "old-member", "cluster_id": NEW, **offer}
    world.join_client.offers[THERE] = JoinOffer(
        b"n", told["node"], told["cluster_id"], "default", 2, False, False, 1, 1
    )
    world.join_client.answers[THERE] = JoinAnswer("", "", told["cluster_id"], "default")
    ports = world.ports()
    return Rejoining(ports, Applicant(PeerConfig("us"), ports, "0" * 64))


@scenario
async def test_a_stray_asks_an_old_member_and_is_admitted_by_that_one_only() -> None:
    world = World()
    answer = await rejoining(world).find(Lost())  # type: ignore[arg-type]
    assert answer is not None
    assert answer.cluster_id == NEW
    (request,) = world.join_client.requests
    assert (request.former, request.to) == (OLD, "old-member")


@pytest.mark.parametrize(
    ("offer", "lost"),
    [
        ({"node": "stranger"}, {}),
        ({"cluster_id": OLD}, {}),
        ({}, {"lost_ms": int(REJOIN_AFTER_S * 1000) - 1}),
        ({}, {"leader": "somebody"}),
    ],
)
def test_a_stray_believes_nobody_else(offer: dict[str, Any], lost: dict[str, Any]) -> None:
    async def on_virtual_time() -> None:
        world = World()
        assert await rejoining(world, **offer).find(Lost(**lost)) is None  # type: ignore[arg-type]

    run(on_virtual_time(), limit_s=60.0)


@scenario
async def test_a_stray_that_is_refused_stays_and_asks_again_later() -> None:
    world, lost = World(), Lost()
    stray = rejoining(world)
    admitted = world.join_client.answers[THERE]
    world.join_client.answers[THERE] = JoinAnswer("other_cluster", "not ended here")
    assert await stray.find(lost) is None  # type: ignore[arg-type]
    world.join_client.answers[THERE] = admitted
    assert await stray.find(lost) is None, "not at once"  # type: ignore[arg-type]
    await elapse(REJOIN_AFTER_S)
    assert await stray.find(lost) == admitted  # type: ignore[arg-type]


async def test_whom_a_stray_means_is_held_to_its_certificate(tmp_path: Path) -> None:
    """Over real TLS: the connection that admits us must end at that very node."""
    async with join_house(tmp_path) as house:
        with pytest.raises(LinkError, match="not whom we asked"):
            await house.client.join(house.address, replace(REQUEST, former=OLD, to="x" * 52))
        assert house.server.admitted == []
        meant = replace(REQUEST, former=OLD, to=house.node.id)
        assert (await house.client.join(house.address, meant)).code == ""


async def test_a_merge_of_as_many_members_as_allowed_fits_the_join_channel(
    tmp_path: Path,
) -> None:
    async with join_house(tmp_path) as house:
        wish = MergeWish(OLD, "n" * 64, tuple(f"{n:052}" for n in range(ADOPTED_MAX)), False)
        asked = replace(REQUEST, merge=wish, to=house.node.id, addresses=("10.255.255.255",) * 8)
        assert (await house.client.join(house.address, asked)).code == ""
        assert house.server.admitted[0][1].merge == wish
