"""Sizes against timers: catching up over a link limited to 100 Mbit/s, without one election."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.raft.node import RaftNode
from aivailable.raft.settings import RaftSettings
from aivailable.wire.limits import COMMAND_MAX_BYTES, STATE_MAX_BYTES

LINK_BYTES_PER_S = 100_000_000 / 8
BEHIND = 20_000
IN_FLIGHT = 250


async def fill(leader: RaftNode, count: int, size: int) -> None:
    for first in range(0, count, IN_FLIGHT):
        numbers = range(first, min(first + IN_FLIGHT, count))
        payloads = [(b"%d" % number).ljust(size, b".") for number in numbers]
        await asyncio.gather(*(leader.propose(p, deadline_s=20.0) for p in payloads))


async def without_an_election(cluster: Cluster, lagging: str, limit_s: float) -> float:
    """Let the lagging node catch up while a client goes on; virtual seconds that it took."""
    leader = await cluster.leader()
    term, loop = leader.term, asyncio.get_running_loop()
    cluster.net.bytes_per_s = LINK_BYTES_PER_S
    began = loop.time()
    cluster.heal()
    number = 0
    while not leader.caught_up(lagging):
        number += 1
        await leader.propose(b"meanwhile %d" % number, deadline_s=3.0)
        await elapse(0.02)
        assert loop.time() - began < limit_s
    took_s = loop.time() - began
    await cluster.converge()
    await elapse(2.0)
    assert leader.is_leader
    assert {node.term for node in cluster.nodes.values()} == {term}
    return took_s


@pytest.mark.parametrize("compact_entries", [2_000, 100_000])
@pytest.mark.parametrize("lagging", ["voter", "observer"])
def test_twenty_thousand_commands_behind(compact_entries: int, lagging: str) -> None:
    """By snapshot, and entry by entry."""

    async def scenario() -> None:
        settings = RaftSettings(compact_entries=compact_entries)
        async with Cluster("ABC", "O", settings=settings) as cluster:
            leader = await cluster.leader()
            others = [n for n in "ABC" if n != leader.node_id]
            name = "O" if lagging == "observer" else others[0]
            cluster.isolate(name)
            await fill(leader, BEHIND, 90)
            assert leader.last_index - cluster.nodes[name].last_index >= BEHIND
            await without_an_election(cluster, name, limit_s=5.0)
            assert len(cluster.machines[name].payloads) > BEHIND
            assert bool(cluster.machines[name].restores) is (compact_entries == 2_000)

    run(scenario(), limit_s=120)


def test_the_largest_state_to_a_voter_that_quorum_needs() -> None:
    """Two of three run: while one gets 2 MiB the leader hears nobody else, and leads on."""

    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            lagging, off = (n for n in "ABC" if n != leader.node_id)
            cluster.isolate(lagging)
            size = COMMAND_MAX_BYTES - 100
            await fill(leader, STATE_MAX_BYTES // size, size)
            state_bytes = len(cluster.machines[leader.node_id].snapshot())
            assert 0.99 * STATE_MAX_BYTES < state_bytes <= STATE_MAX_BYTES
            leader.compact()
            await cluster.until(lambda: leader.log_length < 5)
            term = leader.term
            cluster.net.bytes_per_s = LINK_BYTES_PER_S
            cluster.crash(off)
            cluster.heal()
            await leader.propose(b"needs it", deadline_s=3.0)
            await cluster.converge()
            assert cluster.machines[lagging].restores == 1
            assert (leader.is_leader, leader.term) == (True, term)

    run(scenario(), limit_s=60)


def test_a_log_of_large_commands_is_compacted_by_bytes() -> None:
    """Else 2,000 commands of 32 KiB would travel: five seconds on this link."""

    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            lagging = next(n for n in "ABC" if n != leader.node_id)
            cluster.isolate(lagging)
            for name in "ABC":
                cluster.machines[name].keep = 20
            await fill(leader, 600, COMMAND_MAX_BYTES - 100)
            assert leader._journal.added_bytes < 2 * leader._settings.compact_bytes
            took_s = await without_an_election(cluster, lagging, limit_s=5.0)
            assert took_s < 1.5

    run(scenario(), limit_s=60)


def test_a_slow_disk_of_one_delays_no_heartbeat_of_another() -> None:
    async def scenario() -> None:
        async with Cluster("ABC") as cluster:
            leader = await cluster.leader()
            slow = next(n for n in "ABC" if n != leader.node_id)
            for name in (slow, leader.node_id):
                cluster.stores[name].latency_s = 0.1
                heard: dict[str, list[float]] = {n: [] for n in "ABC"}
                loop = asyncio.get_running_loop()

                def note(sender: str, receiver: str, data: bytes) -> None:
                    if b"append_entries" in data[:40]:
                        heard[receiver].append(loop.time())  # noqa: B023 - one at a time

                cluster.net.carried = note
                term = leader.term
                for number in range(40):
                    await leader.propose(b"%s %d" % (name.encode(), number), deadline_s=2.0)
                for times in heard.values():
                    gaps = [b - a for a, b in pairwise(times)]
                    assert not gaps or max(gaps) < 0.16
                assert (leader.is_leader, leader.term) == (True, term)

    run(scenario(), limit_s=60)
