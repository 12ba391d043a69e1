"""Random faults under load: first nothing acknowledged is lost, then, healed, everyone agrees.

The checker knows nothing of the code: it compares what clients were told with what machines hold.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from fixtures.raft_cluster import Cluster
from fixtures.virtual_time import elapse, run

from aivailable.errors import ProposalError, ProposalUnknown
from aivailable.raft import library
from aivailable.raft.guards import Guards
from aivailable.raft.settings import RaftSettings

FAULTS = ("split", "leader", "silent", "crash", "crash leader", "crash most", "kill")


class Load:
    """Clients that propose at random nodes and remember what they were told."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.acknowledged: list[bytes] = []
        self.offered = 0
        self.changes = 0
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


async def change_voters(cluster: Cluster, rng: random.Random, load: Load) -> None:
    """An operator who never stops promoting, removing and handing over."""
    while load.running:
        await elapse(rng.uniform(0.1, 1.5))
        leading = cluster.leading()
        if leading is None:
            continue
        leader, name = cluster.nodes[leading], rng.choice(cluster.members)
        try:
            if rng.random() < 0.2:
                await leader.transfer_leadership(deadline_s=2.0)
            elif name in leader.voters and len(leader.voters) > 1:
                await leader.remove_voter(name, deadline_s=3.0)
                if name in cluster.nodes:
                    await cluster.nodes[name].become_observer()
            elif name not in leader.voters and leader.caught_up(name):
                await cluster.nodes[name].become_voter(leader.voters)
                await leader.add_voter(name, deadline_s=3.0)
        except ProposalError:
            continue
        load.changes += 1


async def storm(
    seed: int, voters: str, observers: str, *, faults: int, guards: Guards, changing: bool = False
) -> Load:
    rng = random.Random(seed)
    settings = RaftSettings(compact_entries=40)
    async with Cluster(
        voters, observers, seed=seed, guards=guards, settings=settings, sync_latency_s=0.004
    ) as cluster:
        load = Load(cluster, rng)
        clients = [asyncio.create_task(load.client()) for _ in range(8)]
        if changing:
            clients.append(asyncio.create_task(change_voters(cluster, rng, load)))
        for _ in range(faults):
            await one_fault(cluster, rng)
        load.running = False
        cluster.heal()
        await asyncio.gather(*clients)
        state = await cluster.converge(30.0)
        held = set(state)
        lost = [payload for payload in load.acknowledged if payload not in held]
        assert not lost, f"seed {seed}: {len(lost)} of {len(load.acknowledged)} lost: {lost[:3]}"
        assert len({node.voters for node in cluster.nodes.values()}) == 1
        if not changing:
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


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_while_voters_come_and_go(seed: int) -> None:
    load = run(storm(seed, "ABC", "DE", faults=6, guards=Guards(), changing=True), limit_s=400)
    assert len(load.acknowledged) > 50
    assert load.changes > 5


@pytest.mark.parametrize("guard", ["keep_matching"])
def test_the_storm_finds_an_open_defect(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker can fail: stock behaviour truncates what was applied within a few seeds."""
    cut: list[str] = []
    monkeypatch.setattr(
        library.syncobj.logger, "critical", lambda message, *args: cut.append(message)
    )
    for seed in range(12):
        try:
            guards = Guards(**{guard: False})
            run(storm(seed, "ABCDE", "", faults=6, guards=guards), limit_s=400)
        except AssertionError:
            return
        if cut:
            return
    pytest.fail(f"twelve storms without {guard} did no harm")
