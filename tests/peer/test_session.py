"""A node's part in one cluster, as one whole: a lone peer on fake ports and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fixtures.peer_ports import FakeStream, FakeWorker, World, turns
from fixtures.virtual_time import elapse, run
from sim.ports import SimIdentity

from aivailable.core.ids import CommandId, short
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import Command, Remove, SetWindow, TakeControl
from aivailable.core.state.levels import LEVEL
from aivailable.core.state.records import Deployment
from aivailable.errors import ProposalRejected, ProposalUnknown, RequestError, StreamReset
from aivailable.peer.control.leaving import TAKEN_OUT_S
from aivailable.peer.joining.cluster_file import CLUSTER_FILE
from aivailable.peer.node import Peer
from aivailable.peer.ports import PeerConfig, Sighting
from aivailable.peer.service import DeployRequest, Routing
from aivailable.peer.session import ClusterSession
from aivailable.wire.generation import Finished, Generate, GenerationEvent, Started, Tokens
from aivailable.wire.join import JoinRequest
from aivailable.wire.peer import FetchFile, Heartbeat, RpcCall, RpcReply

FOUND_S = 15.0


class Stage:
    """A peer that has founded its cluster."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world if world is not None else World()
        self.peer = Peer(PeerConfig("host1"), self.world.ports(), lambda text: None)

    async def __aenter__(self) -> Stage:
        await self.peer.start()
        await elapse(FOUND_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.peer.stop()

    @property
    def session(self) -> ClusterSession:
        assert self.peer.session is not None
        return self.peer.session

    @property
    def worker(self) -> FakeWorker:
        return self.world.launcher.workers[-1]

    async def admit(self, name: str) -> str:
        identity = SimIdentity.named(name)
        request = JoinRequest(
            identity.certificate, b"s", name, ("192.0.2.9",), 8421, 8420, "0.1", 1, 1, LEVEL, "i"
        )
        assert (await self.peer.admit(request, identity.node)).code == ""
        return identity.node

    async def deploy(self) -> Deployment:
        request = DeployRequest(
            "f", engine="fake", context=64, slots=1, options={"need_bytes": "10"}
        )
        made = await self.peer.deployments.deploy(request, actor="operator:k")
        await elapse(3.0)
        self.worker.ready()
        await elapse(3.0)
        return made


def scenario(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def on_virtual_time() -> None:
        run(test(), limit_s=600.0)

    on_virtual_time.__name__, on_virtual_time.__doc__ = test.__name__, test.__doc__
    return on_virtual_time


@scenario
async def test_a_founder_controls_votes_and_tells_what_it_has() -> None:
    async with Stage() as stage:
        state, node = stage.session.state, stage.peer.node
        assert state.control is not None
        assert state.control.node == node
        assert state.voters() == (node,)
        assert [device.device_id for device in state.inventories[node].devices] == ["d0"]
        assert stage.peer.observation.status().leader == node
        assert stage.peer.observation.ready() == (True, "")


@scenario
async def test_a_deployment_is_placed_loaded_and_answers() -> None:
    async with Stage() as stage:
        made = await stage.deploy()
        (shown,) = stage.peer.observation.status().deployments
        assert (shown.name, shown.state, shown.replicas_ready) == (made.name, "ready", 1)
        routing = Routing(stage.peer.node)
        got: list[GenerationEvent] = []

        async def ask() -> None:
            request = Generate("r1", "f", prompt="x", account="key:forged")
            events = stage.peer.inference.generate(request, "key:real", routing)
            got.extend([event async for event in events])

        asking = asyncio.ensure_future(ask())
        await turns(50)
        (sent,) = [one for one in stage.worker.sent if isinstance(one, Generate)]
        assert sent.account == "key:real", "who asks is the ingress's word, never the request's"
        told = [Started("r1", 1, prompt_ids=(1,)), Tokens("r1", (2,), "t"), Finished("r1", "stop")]
        stage.worker.step(started=(told[0],), tokens=(told[1],), finished=(told[2],))
        await asking
        assert got == told
        assert (routing.host, routing.attempts) == (stage.peer.node, 1)
    assert stage.worker.killed, "no worker outlives its peer"


@scenario
async def test_after_a_restart_everything_acknowledged_is_back_and_runs_again() -> None:
    world = World()
    async with Stage(world) as stage:
        made = await stage.deploy()
        term = stage.peer.observation.status().term
    async with Stage(world) as again:
        assert again.peer.observation.deployments() == (made,)
        assert again.peer.observation.status().term >= term
        assert len(world.launcher.workers) == 2
        again.worker.ready()
        await elapse(2.0)
        assert again.peer.observation.status().deployments[0].replicas_ready == 1


@scenario
async def test_new_addresses_of_this_node_reach_the_log() -> None:
    async with Stage() as stage:
        stage.world.discovery.addresses = lambda: ("198.51.100.7",)  # type: ignore[method-assign]
        await elapse(5.0)
        assert stage.session.state.members[stage.peer.node].addresses == ("198.51.100.7",)


@scenario
async def test_members_are_dialled_at_their_newest_address_first() -> None:
    async with Stage() as stage:
        node = await stage.admit("n2")
        (contact,) = stage.world.links.contacts
        assert (contact.node, contact.addresses) == (node, (("192.0.2.9", 8421),))
        fresh = ("198.51.100.9", 9999)
        stage.world.discovery.show(
            Sighting(short(node), "i", short(stage.session.file.cluster_id), "x", True, 1, (fresh,))
        )
        await elapse(3.0)
        (contact,) = stage.world.links.contacts
        assert contact.addresses == (fresh, ("192.0.2.9", 8421))


@scenario
async def test_a_stream_that_begins_with_no_request_is_reset() -> None:
    async with Stage() as stage:
        near, far = FakeStream.pair()
        await stage.peer.serve_stream("n2", RpcCall(1, "x"), far)
        with pytest.raises(StreamReset, match="malformed"):
            await near.receive()
        near, far = FakeStream.pair()
        await stage.peer.serve_stream("n2", FetchFile("no such digest"), far)
        with pytest.raises(StreamReset, match="not_held"):
            await near.receive()
        near, far = FakeStream.pair()
        await stage.peer.serve_stream("n2", Generate("r", "f", "f#1.1", prompt="x"), far)
        with pytest.raises(StreamReset, match="not_hosting"):
            await near.receive()


@scenario
async def test_no_one_speaks_for_another() -> None:
    async with Stage() as stage:
        node = await stage.admit("n2")
        stage.world.links.peers = [node]
        stage.peer.message(node, Heartbeat("n3", "i", 1, 1))
        assert list(stage.session.liveness().heard) == [stage.peer.node]
        stage.peer.message(node, Heartbeat(node, "i", 1, 1))
        assert node in stage.session.liveness().heard
        forged = Command(CommandId("n3", 1), SetWindow(0), "operator:k")
        own = Command(CommandId(node, 1), SetWindow(0), "operator:k")
        assert not stage.session._authorize(node, encode_command(forged))
        assert not stage.session._authorize(node, b"junk")
        assert stage.session._authorize(node, encode_command(own))
        # A role is changed by the leader's word only, and this node follows itself.
        stage.peer.message(node, RpcCall(7, "reopen", {"role": "observer", "voters": node}))
        await turns(50)
        (reply,) = [
            message for _, message in stage.world.links.sent if isinstance(message, RpcReply)
        ]
        assert (reply.call_id, reply.ok) == (7, False)
        assert stage.session.raft.is_leader


@scenario
async def test_a_controller_that_is_refused_does_not_fill_the_log() -> None:
    """It was 350 refused commands a second: each refusal is a change, and wakes the controller."""
    async with Stage() as stage:
        far = TakeControl(stage.peer.node, 2**40)
        await stage.session.proposer.propose(far, actor="planner", reason="a leader that lies")
        before = stage.session.state.version
        await elapse(60.0)
        assert 5 <= stage.session.state.version - before <= 20
        assert stage.session.raft.is_leader


async def retire(stage: Stage, caller: str, node: str) -> str:
    """What the leader answers when this member asks for that one's vote; "" = taken."""
    stage.world.links.sent.clear()
    stage.peer.message(caller, RpcCall(8, "retire", {"node": node}))
    await elapse(1.0)
    (reply,) = [m for _, m in stage.world.links.sent if isinstance(m, RpcReply)]
    return reply.error


@scenario
async def test_a_vote_taken_for_nothing_comes_back_and_its_taker_is_doubted() -> None:
    async with Stage() as stage:
        liar, victim, other = [await stage.admit(name) for name in ("n2", "n3", "n4")]
        stage.world.links.peers = [liar, victim, other]
        assert await retire(stage, liar, victim) == ""
        assert victim in stage.session._leaving.retiring()
        assert "another node is being removed" in await retire(stage, liar, other)
        assert await retire(stage, liar, victim) == "", "asking again changes nothing"
        await elapse(TAKEN_OUT_S)
        assert victim not in stage.session._leaving.retiring()
        assert "removed nobody" in await retire(stage, liar, other)
        assert await retire(stage, victim, victim) == "", "its own vote is its own"
        assert await retire(stage, other, victim) == ""


@scenario
async def test_the_last_member_cannot_leave() -> None:
    async with Stage() as stage:
        with pytest.raises(ProposalRejected, match="last member"):
            await stage.peer.members.leave()
        assert stage.peer.observation.ready()[0]


@scenario
async def test_who_was_removed_keeps_nothing_of_the_cluster() -> None:
    async with Stage() as stage:
        await stage.admit("n2")
        await stage.deploy()
        cluster_id = stage.session.file.cluster_id
        remove = Remove(stage.peer.node)
        # With its membership ends the table of its outcomes: applied, and nobody says so.
        with pytest.raises(ProposalUnknown):
            await stage.session.proposer.propose(remove, actor="operator:k", reason="test")
        await elapse(3.0)
        assert stage.peer.session is None
        assert stage.peer.observation.status().phase == "removed"
        assert CLUSTER_FILE not in stage.world.home.files
        assert stage.world.dropped == [cluster_id]
        assert stage.world.links.contacts == ()
        assert stage.worker.killed
        with pytest.raises(RequestError, match=r"no cluster|removed"):
            stage.peer.inference.generate(
                Generate("r", "f", prompt="x"), "", Routing(stage.peer.node)
            )


@scenario
async def test_before_it_belongs_to_a_cluster_it_says_so() -> None:
    world = World()
    peer = Peer(PeerConfig("host1"), world.ports(), lambda text: None)
    await peer.start()
    await turns()
    assert peer.observation.status().phase == "seeking"
    assert not peer.observation.ready()[0]
    assert peer.api_keys.find_key(peer.admin_key) is not None
    assert peer.api_keys.find_key("guess") is None
    with pytest.raises(RequestError) as caught:
        await peer.changes.propose(SetWindow(0), actor="operator:k", reason="")
    assert (caught.value.status, caught.value.code) == (503, "not_a_member")
    peer.message("n2", Heartbeat("n2", "i", 1, 1))
    peer.link_up("n2", "i", "0.1")
    peer.link_down("n2", "gone")
    await peer.stop()
