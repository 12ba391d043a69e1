"""Storms over a Raft cluster in virtual time, with checkers that know nothing of its code.

    PYTHONPATH=.:tests python -m raft.soak --seeds 500 --first 0 [--without GUARD]

Faults: partitions, one-way cuts, delays, power loss with torn tails, kill -9 between two writes,
slow disks, full disks, lost logs, flipped bits, the power gone everywhere, and voters that come
and go. Prints the first failing seed and
how to rerun it; exit code 1 then (with --without: when no seed found the open defect).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

import msgpack
from fixtures.raft_cluster import DELAY_S, Cluster, Recorder
from fixtures.virtual_time import elapse, run

from aivailable.errors import ProposalError, ProposalUnknown
from aivailable.raft.guards import Guards
from aivailable.raft.settings import RaftSettings
from aivailable.raft.store import MemoryStore, StoreDamaged

FAULTS = (
    *("split", "leader cut", "one way", "delay", "crash", "crash leader", "crash most"),
    *("kill", "slow disk", "full disk", "lost log", "flipped bit", "dark"),
    *("deposed", "two changes", "power cut", "forgetful vote"),
)
CLIENTS = 5
PAUSE_S = 0.15
CHANGE_PAUSE_S = (0.1, 1.5)
MEMBERS = (("ABC", "O"), ("ABC", "DE"), ("ABCDE", ""), ("A", "BC"))
OFF: dict[str, dict[str, bool]] = {
    "D1": {"snapshot_commit": False},
    "D4": {"one_change": False},
    "D5": {"synced_promises": False, "synced_commit": False},
    "D10": {"total_apply": False},
    "forgotten": {"incarnations": False},
}
"""Guards by the defect that they close; D5 is the journal that nothing waits for."""
SYNC_S = 0.004
HEAL_LIMIT_S = 40.0
RUN_LIMIT_S = 600.0


class Violation(AssertionError):
    """A promise of the log was broken."""


@dataclass
class History:
    """What anybody has applied, in order, and who has led in which term."""

    applied: list[bytes] = field(default_factory=list)
    leaders: dict[int, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def note(self, place: int, payload: bytes) -> None:
        """Somebody applied `payload` as its number `place`."""
        if place == len(self.applied):
            self.applied.append(payload)
        elif self.applied[place] != payload:
            self.broken.append(f"{payload[:20]!r} at {place}, before {self.applied[place][:20]!r}")

    def hear(self, sender: str, receiver: str, data: bytes) -> None:
        """Only a leader sends AppendEntries: one sender a term."""
        head = msgpack.Unpacker()
        head.feed(data[:64])
        head.read_array_header()
        head.skip()
        head.skip()
        if head.unpack() not in ("append_entries", "snapshot"):
            return
        head.read_array_header()
        term = head.unpack()
        if self.leaders.setdefault(term, sender) != sender:
            self.broken.append(f"{self.leaders[term]} and {sender} led in term {term}")

    def check(self) -> None:
        if self.broken:
            raise Violation("; ".join(self.broken[:3]))


class Witness(Recorder):
    """Reports what it applies; chokes on poison."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def apply(self, payload: bytes) -> None:
        if payload.startswith(b"poison"):
            raise ValueError("a machine that is not total")
        if payload not in self._payloads:
            self._history.note(len(self._payloads), payload)
        super().apply(payload)

    def restore(self, data: bytes) -> None:
        super().restore(data)
        for place, payload in enumerate(self.payloads):
            self._history.note(place, payload)


class Storm:
    """One seed."""

    def __init__(self, seed: int, *, faults: int, guards: Guards) -> None:
        self.seed, self.faults = seed, faults
        self.rng = random.Random(seed)
        self.history = History()
        self.acknowledged: dict[bytes, None] = {}
        self.offered = 0
        self.changes = 0
        self.reads = 0
        self.running = True
        self.lost_logs = 0
        self.damaged = 0
        self.removing = 0
        voters, observers = MEMBERS[seed % len(MEMBERS)]
        self.cluster = Cluster(
            voters,
            observers,
            seed=seed,
            guards=guards,
            settings=RaftSettings(compact_entries=self.rng.choice((15, 40))),
            sync_latency_s=SYNC_S,
            machine=lambda: Witness(self.history),
        )
        self.cluster.net.carried = self.history.hear

    async def run(self) -> None:
        """Raises AssertionError at the first broken promise."""
        async with self.cluster as cluster:
            clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
            clients.append(asyncio.create_task(self.reader()))
            clients.append(asyncio.create_task(self.operator()))
            for _ in range(self.faults):
                await self.fault(self.rng.choice(FAULTS))
                self.history.check()
            self.running = False
            cluster.heal()
            await asyncio.gather(*clients)
            state = dict.fromkeys(await cluster.converge(HEAL_LIMIT_S))
            self.history.check()
            lost = [payload for payload in self.acknowledged if payload not in state]
            if lost:
                raise Violation(f"{len(lost)} of {len(self.acknowledged)} lost: {lost[:3]}")
            if len({node.voters for node in cluster.nodes.values()}) != 1:
                raise Violation("the nodes do not agree on who votes")

    async def client(self) -> None:
        while self.running:
            await elapse(self.rng.expovariate(1 / PAUSE_S))
            names = list(self.cluster.nodes)
            if not names or not self.running:
                continue
            self.offered += 1
            payload = b"%d" % self.offered + b"." * self.rng.choice((1, 1, 1, 1, 1, 900))
            if self.rng.random() < 0.01:
                payload = b"poison" + payload
            node = self.cluster.nodes[self.rng.choice(names)]
            try:
                await node.propose(payload, deadline_s=2.0)
            except ProposalError:
                continue
            if not payload.startswith(b"poison"):
                self.acknowledged[payload] = None

    async def reader(self) -> None:
        """What was acknowledged before a barrier is seen after it, on any node."""
        while self.running:
            await elapse(self.rng.uniform(0.2, 0.8))
            names = list(self.cluster.nodes)
            if not names:
                continue
            name = self.rng.choice(names)
            machine, before = self.cluster.machines[name], list(self.acknowledged)
            try:
                await self.cluster.nodes[name].barrier(1.5)
            except ProposalError:
                continue
            self.reads += 1
            seen = dict.fromkeys(machine.payloads)
            unseen = [payload for payload in before if payload not in seen]
            if unseen:
                self.history.broken.append(f"a read at {name} misses {unseen[:3]}")

    async def operator(self) -> None:
        """Never stops promoting, removing and handing over; sometimes two things at once."""
        while self.running:
            await elapse(self.rng.uniform(*CHANGE_PAUSE_S))
            steps = [self.change() for _ in range(self.rng.choice((1, 1, 2)))]
            for answer in await asyncio.gather(*steps, return_exceptions=True):
                if answer is None:
                    self.changes += 1
                elif not isinstance(answer, ProposalError):
                    raise answer

    async def change(self) -> None:
        cluster, rng = self.cluster, self.rng
        leading = cluster.leading()
        if leading is None:
            raise ProposalUnknown("nobody leads")
        leader, name = cluster.nodes[leading], rng.choice(cluster.members)
        if rng.random() < 0.2:
            await leader.transfer_leadership(deadline_s=2.0)
        elif name in leader.voters and len(leader.voters) > 1:
            if not self.whole():
                raise ProposalUnknown("a lost log and a removal at once may cost the majority")
            self.removing += 1
            try:
                await leader.remove_voter(name, deadline_s=3.0)
            finally:
                self.removing -= 1
            if name in cluster.nodes:
                await cluster.nodes[name].become_observer()
        elif name in cluster.nodes and name not in leader.voters and leader.caught_up(name):
            await cluster.nodes[name].become_voter(leader.voters)
            await leader.add_voter(name, deadline_s=3.0)

    async def fault(self, kind: str) -> None:
        cluster, rng = self.cluster, self.rng
        names, victims = list(cluster.nodes), []
        if kind in PLOTS:
            await PLOTS[kind](self)
            return
        leading = cluster.leading() or names[0]
        undo: list[Callable[[], None]] = []
        match kind:
            case "split":
                side = rng.sample(names, rng.randint(1, len(names) // 2))
                for a in side:
                    for b in names:
                        if b not in side:
                            cluster.cut(a, b)
            case "leader cut":
                keep = rng.choice(names)
                for other in names:
                    if other not in (leading, keep):
                        cluster.cut(leading, other)
            case "one way":
                a, b = rng.sample(names, 2)
                cluster.net.silent.add((a, b))
            case "delay":
                cluster.net.delay_s = (0.01, rng.choice((0.1, 0.3)))
                undo.append(lambda: setattr(cluster.net, "delay_s", DELAY_S))
            case "slow disk" | "full disk":
                store = cluster.stores[rng.choice((leading, rng.choice(names)))]
                if kind == "slow disk":
                    store.latency_s = rng.choice((0.1, 0.4))
                else:
                    store.fail_with = OSError(28, "No space left on device")
                undo.append(lambda: setattr(store, "latency_s", SYNC_S))
                undo.append(lambda: setattr(store, "fail_with", None))
            case "lost log":
                await self.lose_log(rng.choice(names))
            case "flipped bit":
                await self.flip_bit(rng.choice(names))
            case "dark":
                victims = names
            case "crash most":
                victims = rng.sample(names, len(names) // 2 + 1)
            case "crash leader":
                victims = [leading]
            case _:
                victims = [rng.choice(names)]
        for victim in victims:
            cluster.crash(victim, keep_written=kind == "kill", torn_bytes=rng.randrange(60))
        await elapse(rng.uniform(0.05, 2.5))
        for step in undo:
            step()
        for victim in victims:
            await cluster.start(victim)
        cluster.heal()
        await elapse(rng.uniform(0.1, 1.5))

    def whole(self) -> bool:
        return all(node._consensus.counts_itself() for node in self.cluster.voting())

    def may_lose_a_log(self) -> bool:
        """Not while another is lost or a voter leaves: two of three may be gone for good then."""
        fewest = min(len(node.voters) for node in self.cluster.nodes.values())
        return self.whole() and not self.removing and fewest >= 3

    async def lose_log(self, name: str) -> None:
        """Raft survives one lost log at a time, and only where others hold it all."""
        cluster = self.cluster
        if not self.may_lose_a_log():
            return
        cluster.crash(name)
        await cluster.stores[name].set_aside()
        self.lost_logs += 1
        await cluster.start(name)

    async def flip_bit(self, name: str) -> None:
        """One bit anywhere in journal or snapshot; what the node notices costs it the log."""
        cluster, store = self.cluster, self.cluster.stores[name]
        if not self.may_lose_a_log():
            return
        cluster.crash(name, keep_written=True)
        flip(store, self.rng)
        try:
            await cluster.start(name)
        except StoreDamaged:
            self.damaged += 1
            await store.set_aside()
            await cluster.start(name)

    async def say(self, name: str, count: int, size: int = 1) -> None:
        """Commands at one node; those that it acknowledges within a second must last."""

        async def one(payload: bytes) -> None:
            try:
                await self.cluster.nodes[name].propose(payload, deadline_s=1.0)
            except ProposalError:
                return
            self.acknowledged[payload] = None

        first, self.offered = self.offered + 1, self.offered + count
        numbers = range(first, self.offered + 1)
        await asyncio.gather(*(one(b"%d" % number + b"." * size) for number in numbers))

    def cast(self, others: int) -> tuple[str, list[str]] | None:
        """(leader, its other voters) if that is how many there are and all of them run."""
        leading = self.cluster.leading()
        if leading is None:
            return None
        voters = [name for name in self.cluster.nodes[leading].voters if name != leading]
        fits = len(voters) == others and all(name in self.cluster.nodes for name in voters)
        return (leading, voters) if fits else None


def flip(store: MemoryStore, rng: random.Random) -> None:
    """Another bit than what was written."""
    snapshot = bytearray(store.snapshot or b"")
    data = snapshot if snapshot and rng.random() < 0.5 else store.journal
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    store.snapshot = bytes(snapshot) or None


async def deposed(storm: Storm) -> None:
    """D1: a leader cut off with commands of its own comes back to a snapshot of many pieces."""
    cluster = storm.cluster
    leading = cluster.leading()
    if leading is None:
        return
    for name in cluster.nodes:
        if name != leading:
            cluster.silence(leading, name)
    alone = asyncio.create_task(storm.say(leading, 5))
    await elapse(1.8)
    new = next((name for name, node in cluster.nodes.items() if node.is_leader), None)
    if new is not None and new != leading:
        await storm.say(new, 60, size=6000)
        cluster.nodes[new].compact()
        await elapse(0.3)
    cluster.heal()
    await alone
    await elapse(1.0)


async def two_changes(storm: Storm) -> None:
    """D4: two voters are added at once, and the old ones are cut off before they hear of it."""
    cluster, cast = storm.cluster, storm.cast(2)
    if cast is None:
        return
    leading, voters = cast
    leader = cluster.nodes[leading]
    fresh = [name for name in cluster.nodes if name not in leader.voters]
    if len(fresh) < 2 or not all(leader.caught_up(name) for name in fresh[:2]):
        return
    cluster.net.lose = lambda a, b, data: a == leading and b in voters and b"\xa3add" in data
    steps = []
    for name in fresh[:2]:
        await asyncio.gather(cluster.nodes[name].become_voter(), return_exceptions=True)
        steps.append(leader.add_voter(name, deadline_s=0.5))
    await asyncio.gather(*steps, return_exceptions=True)
    for name in voters:
        for other in (leading, *fresh):
            cluster.cut(name, other)
    await asyncio.gather(*(storm.say(name, 3) for name in (leading, voters[0])))
    await elapse(1.0)
    await asyncio.gather(*(storm.say(name, 3) for name in (leading, voters[0])))
    cluster.net.lose = None
    cluster.heal()
    await elapse(1.0)


async def power_cut(storm: Storm) -> None:
    """D5: the power fails everywhere a moment after commands came, before the disks have them."""
    cluster = storm.cluster
    leading, names = cluster.leading(), list(cluster.nodes)
    if leading is None:
        return
    for name in names:
        cluster.stores[name].latency_s = 0.2
    saying = asyncio.create_task(storm.say(leading, 5))
    await elapse(storm.rng.uniform(0.02, 0.15))
    for name in names:
        cluster.crash(name, torn_bytes=storm.rng.randrange(60))
        cluster.stores[name].latency_s = SYNC_S
    await saying
    for name in names:
        await cluster.start(name)
    await elapse(1.5)


async def forgetful_vote(storm: Storm) -> None:
    """A voter acknowledges, loses its log, and is asked to elect one that never heard of it."""
    cluster, cast = storm.cluster, storm.cast(2)
    if cast is None or not storm.may_lose_a_log():
        return
    leading, (forgetful, behind) = cast
    cluster.isolate(behind)
    await storm.say(leading, 3)
    cluster.crash(leading)
    cluster.crash(forgetful)
    await cluster.stores[forgetful].set_aside()
    storm.lost_logs += 1
    await cluster.start(forgetful)
    cluster.heal()
    await elapse(2.5)
    await storm.say(behind, 3)
    await cluster.start(leading)
    cluster.heal()
    await elapse(1.5)


PLOTS = {
    "deposed": deposed,
    "two changes": two_changes,
    "power cut": power_cut,
    "forgetful vote": forgetful_vote,
}
"""Faults with a plot: what chance would need thousands of seeds for."""


def storm(seed: int, *, faults: int = 6, guards: Guards | None = None) -> Storm:
    """Run one seed. Raises AssertionError at the first broken promise."""
    one = Storm(seed, faults=faults, guards=guards or Guards())
    run(one.run(), limit_s=RUN_LIMIT_S)
    return one


def found_by(seed: int, *, faults: int, guards: Guards) -> str | None:
    """What this seed found, or None."""
    try:
        storm(seed, faults=faults, guards=guards)
    except (AssertionError, RuntimeError, LookupError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Storms over a Raft cluster in virtual time.")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--faults", type=int, default=6)
    parser.add_argument("--without", default="", choices=["", *OFF])
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(
        f"python {platform.python_version()}, pysyncobj {metadata.version('pysyncobj')},"
        f" {time.strftime('%Y-%m-%d %H:%M')}, seeds {asked.first} to"
        f" {asked.first + asked.seeds - 1}, {asked.faults} faults each, without"
        f" {asked.without or 'nothing'}",
        flush=True,
    )
    began_s, guards = time.process_time(), Guards(**OFF.get(asked.without, {}))
    for seed in range(asked.first, asked.first + asked.seeds):
        problem = found_by(seed, faults=asked.faults, guards=guards)
        if problem is not None:
            print(f"seed {seed} FAILED: {problem}")
            again = f" --faults {asked.faults}"
            again += f" --without {asked.without}" if asked.without else ""
            print(f"rerun: python -m raft.soak --first {seed} --seeds 1{again}")
            return 0 if asked.without else 1
    print(f"all {asked.seeds} seeds held, {time.process_time() - began_s:.0f} s of processor time")
    return 1 if asked.without else 0


if __name__ == "__main__":
    sys.exit(main())
