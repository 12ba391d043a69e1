"""Whole peers in the simulation: a voter whose log is damaged comes back as a voter by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fixtures.virtual_time import elapse
from sim.loop import SimLoop
from sim.run import unformed
from sim.world import World

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
