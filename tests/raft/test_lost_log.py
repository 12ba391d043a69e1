"""Whole peers in the simulation: a voter whose log is damaged comes back as a voter by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fixtures.virtual_time import elapse
from sim.loop import SimLoop
from sim.run import unformed
from sim.world import World

from aivailable.core.state.records import Role
from aivailable.peer.session import VOTE_UNCOUNTED_S

FORM_LIMIT_S = 90.0
BACK_LIMIT_S = 90.0


async def until(world: World, missing: Callable[[], str], limit_s: float) -> None:
    end_s = world.loop.time() + limit_s
    while what := missing():
        assert world.loop.time() < end_s, f"{what}\n{world.picture()}"
        await elapse(0.25)


@pytest.mark.parametrize("victim_is", ["the founder", "a follower"])
def test_a_peer_with_a_damaged_log_votes_again_under_a_new_number(victim_is: str) -> None:
    async def scenario() -> None:
        for name in world.names:
            world.boot(name)
        await until(world, lambda: unformed(world), FORM_LIMIT_S)
        founder = next(iter(world.states().values())).cluster
        assert founder is not None
        victim = next(
            name
            for name in world.names
            if (world.machine(name).node == founder.founded_by) == (victim_is == "the founder")
        )
        (store,) = world.machine(victim).logs.values()
        before = world.running[victim].peer.session
        assert before is not None
        incarnation = before.raft._journal.incarnation
        world.kill(victim)
        store.journal[len(store.journal) // 2] ^= 1
        world.boot(victim)

        def missing() -> str:
            if victim not in world.running:
                return "it died"
            session = world.running[victim].peer.session
            if session is None or not session.raft._opened:
                return "no session"
            if session.raft._journal.incarnation in (0, incarnation):
                return "the old log"
            return "" if session.raft._consensus.counts_itself() else "it does not count"

        await until(world, missing, BACK_LIMIT_S)
        assert store.set_asides == 1
        await until(world, lambda: unformed(world), BACK_LIMIT_S)

    loop = SimLoop()
    world = World(11, 3, loop)
    try:
        loop.run(scenario(), limit_s=600.0)
    finally:
        loop.close()
    assert world.checker.problems == []


def test_willingness_to_vote_is_laid_down_only_while_somebody_leads() -> None:
    """A leader that dies while it adds a voter needs that vote, and its log alone says so."""

    async def scenario() -> None:
        for name in world.names:
            world.boot(name)
        await until(world, lambda: unformed(world) or unvoted(), FORM_LIMIT_S)
        name = next(n for n in world.names if world.machine(n).node not in voters())
        session = world.running[name].peer.session
        leader = world.leader()
        assert session is not None
        assert leader is not None
        asked = {"role": "voter", "voters": ""}
        task = world.on_behalf(
            name, lambda run: session._reopened(world.machine(leader).node, asked)
        )
        assert task is not None
        await task
        others = [other for other in world.names if other != name]
        for other in others:
            world.kill(other, power=True)
        await elapse(3 * VOTE_UNCOUNTED_S)
        assert session.raft.role is Role.VOTER
        for other in others:
            world.boot(other)
        await until(
            world, lambda: "willing" if session.raft.role is Role.VOTER else "", BACK_LIMIT_S
        )
        assert len(voters()) == 3

    def voters() -> tuple[str, ...]:
        session = world.running[world.leader() or "n1"].peer.session
        return () if session is None else session.raft.voters

    def unvoted() -> str:
        return "" if len(voters()) == 3 else "too few voters"

    loop = SimLoop()
    world = World(11, 4, loop)
    try:
        loop.run(scenario(), limit_s=600.0)
    finally:
        loop.close()
    assert world.checker.problems == []
