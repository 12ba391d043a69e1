"""Feature levels in a whole peer: stated, raised by itself, and older code kept out or ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from fixtures.peer_ports import World
from fixtures.virtual_time import elapse, run
from sim.ports import SimIdentity

from aivailable.core.ids import CommandId, short
from aivailable.core.state import levels, machine, state
from aivailable.core.state.codec import COMMAND_FORMAT, encode_command
from aivailable.core.state.commands import Command, SetDraining, SetWindow
from aivailable.core.state.levels import LEVEL
from aivailable.errors import CodeTooOld, ProposalRejected
from aivailable.peer import session
from aivailable.peer.joining import applicant, cluster_file
from aivailable.peer.joining.cluster_file import ClusterFile
from aivailable.peer.node import Peer
from aivailable.peer.ports import PeerConfig, Sighting
from aivailable.peer.session import ClusterSession
from aivailable.wire.join import JoinAnswer, JoinRequest, MergeWish

NEXT = LEVEL + 1
FOUND_S = 30.0
ENDS_S = 20.0
ELSEWHERE = ("192.0.2.2", 8421)


def run_level(patch: pytest.MonkeyPatch, level: int) -> None:
    """From now on this process runs code of that level."""
    for module in (machine, state, session, applicant, cluster_file, levels):
        patch.setattr(module, "LEVEL", level)


class Stage:
    """One peer on the world's ports; `again` is its next life on the same home and log."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.said: list[str] = []
        self.peer = Peer(PeerConfig("host1"), world.ports(), self.said.append)

    async def __aenter__(self) -> Stage:
        await self.peer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.peer.stop()

    @property
    def session(self) -> ClusterSession:
        assert self.peer.session is not None
        return self.peer.session

    async def founded(self) -> None:
        await elapse(FOUND_S)
        assert self.session.state.cluster is not None


def scenario(
    test: Callable[[pytest.MonkeyPatch], Coroutine[Any, Any, None]],
) -> Callable[[pytest.MonkeyPatch], None]:
    def on_virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
        run(test(monkeypatch), limit_s=600.0)

    on_virtual_time.__name__, on_virtual_time.__doc__ = test.__name__, test.__doc__
    return on_virtual_time


def stranger(level: int, **changes: Any) -> tuple[JoinRequest, str]:
    identity = SimIdentity.named("n2")
    request = JoinRequest(
        identity.certificate, b"s", "n2", ("192.0.2.9",), 8421, 8420, "0.1.0", 1, 1, level, "i"
    )
    return replace(request, **changes), identity.node


async def left_at_next(patch: pytest.MonkeyPatch) -> World:
    """A home whose cluster worked at the next level."""
    world = World()
    run_level(patch, NEXT)
    async with Stage(world) as stage:
        await stage.founded()
        assert stage.session.state.feature_level == NEXT, "it rises by itself"
    run_level(patch, LEVEL)
    return world


@scenario
async def test_older_code_is_told_when_it_asks_to_join(patch: pytest.MonkeyPatch) -> None:
    run_level(patch, NEXT)
    async with Stage(World()) as stage:
        await stage.founded()
        request, node = stranger(LEVEL)
        answer = await stage.peer.admit(request, node)
        assert answer.code == "version"
        assert f"works at feature level {NEXT}" in answer.message
        wish = MergeWish("q" * 26, "default", (node,), False, feature_max=LEVEL)
        answer = await stage.peer.admit(*stranger(NEXT, merge=wish))
        assert answer.code == "version", "its other members would find no way in"
        assert (await stage.peer.admit(*stranger(NEXT))).code == ""


@scenario
async def test_a_newcomer_that_is_too_old_shows_why_it_waits(patch: pytest.MonkeyPatch) -> None:
    world = World()
    answer = JoinAnswer("version", f"this cluster works at feature level {NEXT}")
    world.join_client.answers[ELSEWHERE] = answer
    async with Stage(world) as stage:
        world.discovery.show(
            Sighting(short("n2" * 8), "i2", "cccccccc", "default", True, 8420, (ELSEWHERE,))
        )
        await elapse(FOUND_S)
        status = stage.peer.observation.status()
        assert status.phase == "waiting"
        assert f"level {NEXT}" in status.advice
        assert sum(f"level {NEXT}" in line for line in stage.said) == 1
        assert stage.peer.session is None, "it founds no cluster beside that one"


@scenario
async def test_a_downgraded_member_does_not_start(patch: pytest.MonkeyPatch) -> None:
    world = await left_at_next(patch)
    with pytest.raises(CodeTooOld):
        ClusterFile.load(world.home)
    async with Stage(world) as stage:
        await asyncio.wait_for(stage.peer.left.wait(), ENDS_S)
        assert f"its cluster works at {NEXT}: install the version" in stage.peer.failure
        assert stage.peer.session is None
    run_level(patch, NEXT)
    async with Stage(world) as stage:
        await elapse(FOUND_S)
        assert not stage.peer.failure
        assert stage.session.state.feature_level == NEXT


@pytest.mark.parametrize("compacted", [False, True])
def test_the_log_says_so_too(monkeypatch: pytest.MonkeyPatch, compacted: bool) -> None:
    """Where the cluster file does not know, log or snapshot does: nothing of it is applied."""

    async def test() -> None:
        world = await left_at_next(monkeypatch)
        run_level(monkeypatch, NEXT)
        if compacted:
            async with Stage(world) as stage:
                await elapse(FOUND_S)
                stage.session.raft.compact()
                await elapse(1.0)
        replace(ClusterFile.load(world.home) or _no_file(), feature_level=1).save(world.home)
        run_level(monkeypatch, LEVEL)
        async with Stage(world) as stage:
            await asyncio.wait_for(stage.peer.left.wait(), ENDS_S)
            assert "install the version" in stage.peer.failure
            assert stage.session.state.feature_level < NEXT
            assert (stage.session.state.version > 0) is not compacted

    run(test(), limit_s=600.0)


def _no_file() -> ClusterFile:
    raise AssertionError("there is no cluster file")


@scenario
async def test_an_unknown_kind_ends_the_node_where_it_is(patch: pytest.MonkeyPatch) -> None:
    async with Stage(World()) as stage:
        await stage.founded()
        before, node = stage.session.state, stage.peer.node
        raw = msgpack.packb(
            [COMMAND_FORMAT, "no_such", {}, [node, 10**6], "node", "", 0, None], use_bin_type=True
        )
        asking = asyncio.ensure_future(stage.session.raft.propose(raw, deadline_s=5.0))
        await asyncio.wait_for(stage.peer.left.wait(), ENDS_S)
        assert "'no_such'" in stage.peer.failure
        assert stage.session.state == before
        assert stage.session.raft.applied_index < stage.session.raft.commit_index
        # What was committed before is all that a snapshot of it would hold.
        stage.session.raft.compact()
        await elapse(2.0)
        assert stage.session.raft.tally.faults == 0
        asking.cancel()


@scenario
async def test_what_not_all_can_apply_is_not_proposed(patch: pytest.MonkeyPatch) -> None:
    async with Stage(World()) as stage:
        await stage.founded()
        node = stage.peer.node
        assert (await stage.peer.admit(*stranger(NEXT))).code == ""
        await elapse(1.0)
        assert stage.peer.observation.status().held_back_by == (node,)
        patch.setattr(levels, "KIND_LEVELS", {SetDraining: NEXT})
        version = stage.session.state.version
        with pytest.raises(ProposalRejected, match="host1") as caught:
            await stage.peer.changes.propose(SetDraining(node, True), actor="operator:k", reason="")
        assert caught.value.code == "feature_level"
        assert stage.session.state.version == version
        other = stranger(NEXT)[1]
        fine = Command(CommandId(other, 1), SetWindow(1), "operator:k")
        assert stage.session._authorize(other, encode_command(fine))
        assert not stage.session._authorize(node, encode_command(fine))
        early = encode_command(replace(fine, level=NEXT))
        assert not stage.session._authorize(other, early), "a leader keeps it out of the log"
