"""Random faults under load: first nothing acknowledged is lost, then, healed, everyone agrees.

The checker knows nothing of the code: it compares what clients were told with what machines hold.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.errors import ProposalUnknown
from aivailable.raft.guards import Guards
from aivailable.raft.settings import RaftSettings

FAULTS = ("split", "leader", "silent", "crash", "crash leader", "crash most", "kill")


class Load:
    """Clients that propose at random nodes and remember what they were told."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.acknowledged: list[bytes] = []
        self.offered = 0
        self.running = True

    async def client(self) -> None:
        while self.running:
            await elapse(self.rng.expovariate(10.0))
            names = list(self.cluster.nodes)
            if not names or not self.running:
                continue
            self.offered += 1
            payload = b"%d" % self.offered + b"." * self.rng.choice(
                (1, 1, 1, 1, 1, 1, 1, 1, 1, 2000)
            )
            node = self.cluster.nodes[self.rng.choice(names)]
            try:
                await node.propose(payload, deadline_s=2.0)
            except ProposalUnknown:
                continue
            self.acknowledged.append(payload)


async def one_fault(cluster: Cluster, rng: random.Random) -> None:
    kind = rng.choice(FAULTS)
    names, victims = list(cluster.nodes), []
    if kind == "split":
        side = set(rng.sample(names, rng.randint(1, len(names) // 2)))
        for a in names:
            for b in names:
                if (a in side) and (b not in side):
                    cluster.cut(a, b)
    elif kind == "leader":
        keep = rng.choice(names)
        leader = cluster.leading() or names[0]
        for other in names:
            if other not in (leader, keep):
                cluster.cut(leader, other)
    elif kind == "silent":
        a, b = rng.sample(names, 2)
        cluster.net.silent.add((a, b))
    elif kind == "crash most":
        victims = rng.sample(names, len(names) // 2 + 1)
    else:
        victims = [cluster.leading() or names[0]] if kind == "crash leader" else [names[0]]
    for victim in victims:
        cluster.crash(victim, keep_written=kind == "kill", torn_bytes=rng.randrange(40))
    await elapse(rng.uniform(0.05, 3.0))
    for victim in victims:
        await cluster.start(victim)
    cluster.heal()
    await elapse(rng.uniform(0.1, 2.0))


async def storm(seed: int, voters: str, observers: str, *, faults: int, guards: Guards) -> Load:
    rng = random.Random(seed)
    settings = RaftSettings(compact_entries=40)
    async with Cluster(
        voters, observers, seed=seed, guards=guards, settings=settings, sync_latency_s=0.004
    ) as cluster:
        load = Load(cluster, rng)
        clients = [asyncio.create_task(load.client()) for _ in range(8)]
        for _ in range(faults):
            await one_fault(cluster, rng)
        load.running = False
        cluster.heal()
        await asyncio.gather(*clients)
        state = await cluster.converge(30.0)
        held = set(state)
        lost = [payload for payload in load.acknowledged if payload not in held]
        assert not lost, f"seed {seed}: {len(lost)} of {len(load.acknowledged)} lost: {lost[:3]}"
        assert max(node.term for node in cluster.nodes.values()) < 4 * faults + 5
        return load


@pytest.mark.parametrize("seed", range(3))
def test_nothing_acknowledged_is_lost(seed: int) -> None:
    voters, observers = (("ABC", "O"), ("ABCDE", ""), ("ABC", "OP"))[seed % 3]
    load = run(
        storm(seed, voters, observers, faults=7, guards=Guards()),
        limit_s=400,
    )
    assert len(load.acknowledged) > 50
