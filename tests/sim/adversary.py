"""A hostile member among honest ones: an admitted observer without a peer, that says anything.

Owns the attacker and its story: a cluster of four forms, the member that does not vote turns
hostile, leaders are killed and cut off meanwhile, and at the end, while it goes on, an election, a
plan and a change of the operator must come through. As a program it runs many seeds:

    PYTHONPATH=.:tests python -m sim.adversary --first 1 --count 300 [--processes 2]

It proposes everything but what every member may do for an operator (SECURITY.md names it): to
remove others, to drain, undeploy, merge, and change settings.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from fixtures.virtual_time import elapse
from sim.links import SimLinks
from sim.loop import Process, SimLoop
from sim.mutations import HOSTILE
from sim.run import (
    BOOT_SPREAD_S,
    FORM_LIMIT_S,
    Result,
    insist,
    play,
    unformed,
    until,
    watch,
)
from sim.soak import LINES_KEPT, soak
from sim.workload import Workload, fake_deployment
from sim.world import World

from aivailable.core.ids import CommandId, NodeId
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import (
    Body,
    CloseWindow,
    Command,
    Drain,
    MarkDown,
    PutDeployment,
    RaiseFeatureLevel,
    ReportInventory,
    ReportReplica,
    SayAway,
    SetRole,
    SetWindow,
    TakeControl,
)
from aivailable.core.state.records import Control, Inventory, Role, Status, Where
from aivailable.core.state.state import State
from aivailable.peer.ports import Contact, MessageStream
from aivailable.raft import codec
from aivailable.wire.peer import Heartbeat, RaftMessage, ReplicaLoad, RpcCall

NODES = 4
ATTACK_S = 30.0
ATTACKS_PER_S = 60.0
TERM_MAX = 100
"""In a minute of killed leaders a cluster has some ten elections."""
VERSION_MAX = 600
"""Entries that the log may get in that time, what honest members say included."""
AFTER_LIMIT_S = 120.0
UNHARMED_S = 5.0
"""So long without a pause everything must be as it should."""
RUN_LIMIT_S = 400.0
KILL_PAUSE_S = (3.0, 7.0)
DOWN_S = (0.5, 2.0)
FAR = (2**31, 2**50, 2**62, 2**63 - 1)
LAST = "after-all"
LAST_BYTES = 1 << 28


class Deaf:
    """What listens on the attacker's links: nobody."""

    def link_up(self, node: str, instance_id: str, version: str) -> None: ...

    def link_down(self, node: str, reason: str) -> None: ...

    def message(self, node: str, message: Any) -> None: ...

    async def serve_stream(self, node: str, first: Any, stream: MessageStream) -> None:
        stream.reset("no")

    def refused(self, node: str, code: str, message: str) -> None: ...


class Attacker:
    """A member's links and identity, and seeded dice for what it says."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._rng = random.Random(f"adversary {world.seed}")
        machine = world.machine(name)
        state = world.state_of(name)
        assert state is not None
        world.kill(name)
        machine.starts += 1
        self.node = machine.node
        self._process = Process(name, machine.starts)
        self._links = SimLinks(
            world.board, self._process, self.node, machine.address, "hostile", "0.1.0"
        )
        self._seq = 10**6
        self.said = 0
        self._process.context.run(self._link, state)

    def _link(self, state: State) -> None:
        contacts = tuple(
            Contact(one.node, one.certificate, tuple((a, one.link_port) for a in one.addresses))
            for one in state.members.values()
        )

        async def link() -> None:
            await self._links.start(Deaf())
            self._links.set_contacts(self._world.main, contacts)

        self._world.loop.create_task(link(), name="attacker links")

    async def run(self) -> None:
        while True:
            await elapse(self._rng.expovariate(ATTACKS_PER_S))
            nodes = self._links.connected()
            if nodes:
                self.said += 1
                self._process.context.run(self._act, self._rng.choice(nodes))

    def _act(self, node: NodeId) -> None:
        act = self._rng.choice((self._raft, self._raft, self._raft, self._submit, self._other))
        act(node)

    def _term(self) -> int:
        """Its own guess at the term, near or far."""
        known = max((term for _, term in self._world.checker.leaders), default=1)
        near = known + self._rng.choice((-1, 0, 0, 1, 1, 2, 100))
        return max(0, self._rng.choice((near, near, near, *FAR)))

    def _raft(self, node: NodeId) -> None:
        term, dice = self._term(), self._rng
        index = dice.choice((0, 1, 50, 500, *FAR))
        vote = {"term": term, "last_log_term": self._term(), "last_log_index": index}
        append = {"type": "append_entries", "term": term, "commit_index": index}
        entries = ((b"\x00" + self._command(), index + 1, self._term()),)
        message = dice.choice(
            (
                {**append, "prevLogIdx": index, "prevLogTerm": term, "entries": entries},
                {**append, "prevLogIdx": 1, "prevLogTerm": 0, "entries": ()},
                {**append, "serialized": dice.choice((None, (b"x" * 99, True, True)))},
                {"type": "request_vote", **vote},
                {"type": "request_vote", **vote, "transfer": True},
                {"type": "pre_vote", **vote, "round": dice.randint(0, 99)},
                {"type": "response_vote", "term": term},
                {"type": "pre_vote_granted", "round": dice.randint(0, 99)},
                {"type": "timeout_now", "term": term},
                {"type": "newer_term"},
                {"type": "next_node_idx", "next_node_idx": index, "reset": True, "success": True},
                {"type": "receiving"},
                {"type": "who_votes"},
                {"type": "voters_are", "voters": (self.node,)},
            )
        )
        data = codec.encode(self._term(), message, dice.choice((0, 7)))
        if dice.random() < 0.1:
            place = dice.randrange(len(data))
            data = data[:place] + dice.randbytes(dice.randint(0, 9)) + data[place + 1 :]
        self._links.send(node, RaftMessage(data))

    def _command(self) -> bytes:
        dice, others = self._rng, sorted(self._links.contacts)
        other, term = dice.choice(others), self._term()
        bodies: tuple[Body, ...] = (
            TakeControl(self.node, term),
            TakeControl(other, term),
            SetRole(self.node, Role.VOTER),
            SetRole(other, Role.OBSERVER),
            MarkDown(other, True),
            Drain(f"{LAST}#1.1"),
            CloseWindow(dice.randint(0, 9)),
            RaiseFeatureLevel(dice.choice((2, 2**40))),
            SayAway(other),
            ReportInventory(Inventory(other)),
            ReportReplica(f"{LAST}#1.1", other, Status.FAILED, "so it says"),
            SetWindow(dice.choice((60, 600))),
        )
        self._seq += 1
        proposer = dice.choice((self.node, self.node, other))
        control = dice.choice((None, Control(self.node, term), Control(other, term)))
        return encode_command(
            Command(
                CommandId(proposer, self._seq),
                *(dice.choice(bodies), "planner", f"hostile {self._seq}"),
                control=control,
            )
        )

    def _submit(self, node: NodeId) -> None:
        entry = self._rng.choice((b"\x00", b"\x00", b"\x00", b"\x01", b"\x02", b"\x03"))
        data = entry + self._rng.choice((self._command(), self._command(), b"junk"))
        self._links.send(node, RaftMessage(codec.encode(1, {"type": "submit", "command": data})))

    def _other(self, node: NodeId) -> None:
        dice, others = self._rng, sorted(self._links.contacts)
        wild = dice.choice((-1, *FAR[:3]))
        load = ReplicaLoad(f"{LAST}#1.1", LAST, "ready", wild, tokens_per_s=float("nan"))
        voters = ",".join((self.node, *others))
        self._links.send(
            node,
            dice.choice(
                (
                    Heartbeat(self.node, "hostile", wild, wild, replicas=(load,), term=wild),
                    Heartbeat(dice.choice(others), "hostile", wild, wild, is_leader=True),
                    RpcCall(self.said, "retire", {"node": dice.choice(others)}),
                    RpcCall(self.said, "retire", {"node": dice.choice(others)}),
                    RpcCall(self.said, "hand_over", {}),
                    RpcCall(self.said, "reopen", {"role": "observer", "voters": voters}),
                    RpcCall(self.said, "roster", {"x": "y" * 99}),
                )
            ),
        )


async def _break(world: World, names: list[str]) -> None:
    """Leaders die and come back, or hear nobody for a while."""
    rng = random.Random(f"adversary's faults {world.seed}")
    end = world.loop.time() + ATTACK_S
    while world.loop.time() < end:
        await elapse(rng.uniform(*KILL_PAUSE_S))
        victim = world.leader()
        if victim is None:
            continue
        pairs = [(a, b) for a in names for b in names if (a == victim) != (b == victim)]
        if rng.random() < 0.5:
            world.kill(victim, power=rng.random() < 0.5)
        else:
            for source, target in pairs:
                world.damage.cut(source, target, world.loop.time())
        await elapse(rng.uniform(*DOWN_S))
        world.damage.mend(pairs)
        world.boot(victim)
    world.damage.heal()
    for name in names:
        world.boot(name)


def _unharmed(world: World, names: list[str]) -> str:
    """What the honest lack; "" when nothing: a leader, three votes, all members, a running plan."""
    states = {name: state for name, state in world.states().items() if name in names}
    if len(states) < len(names) or world.leader() is None:
        return "not everybody runs, or nobody leads"
    for name, state in states.items():
        session = world.running[name].peer.session
        assert session is not None
        voters = [world.machine(one).node for one in names]
        if sorted(session.raft.voters) != sorted(voters):
            return f"{name} knows {len(session.raft.voters)} voters"
        if any(node not in state.members or state.members[node].down for node in voters):
            return f"{name} misses members"
        ready = [r for r in state.replicas.values() if r.deployment == LAST]
        if not any(str(replica.status) == "ready" for replica in ready):
            return f"{name} sees no replica of {LAST}"
    return ""


def _lasting(world: World, names: list[str]) -> Callable[[], str]:
    """What is wrong, or has been a moment ago."""
    since_s = world.loop.time()
    last = "nothing was seen yet"

    def missing() -> str:
        nonlocal since_s, last
        found = _unharmed(world, names)
        if found:
            since_s, last = world.loop.time(), found
        return last if world.loop.time() - since_s < UNHARMED_S else ""

    return missing


async def _phases(world: World, stats: dict[str, Any]) -> None:
    watcher = world.loop.create_task(watch(world), name="watcher")
    for name in world.names:
        world.loop.call_later(world.rng.uniform(0.0, BOOT_SPREAD_S), world.boot, name)
    workload = Workload(world)
    window = world.loop.create_task(workload.keep_window_open(), name="window")
    attacking: list[asyncio.Task[None]] = []
    if await until(world, lambda: unformed(world) or _unsettled(world), FORM_LIMIT_S, "not formed"):
        world.main = next(s.cluster.cluster_id for s in world.states().values() if s.cluster)
        window.cancel()
        hostile = _observer(world)
        names = [name for name in world.names if name != hostile]
        attacker = Attacker(world, hostile)
        attacking.append(world.loop.create_task(attacker.run(), name="attacker"))
        await _break(world, names)
        # It takes part in planning, so it can hold what is placed on it, and not serve.
        elsewhere = Where(not_nodes=(attacker.node,))
        wish = PutDeployment(replace(fake_deployment(LAST, LAST_BYTES, 1), where=elsewhere))
        if not await insist(world, workload, wish, "last"):
            world.checker.problem(f"nobody took {wish}")
        await until(world, _lasting(world, names), AFTER_LIMIT_S, "harmed for good")
        stats["said"] = attacker.said
    world.checker.judge_promises(world.main)
    for task in (watcher, window, *attacking):
        task.cancel()
    world.close()
    sessions = [run.peer.session for run in world.running.values()]
    stats["term"] = max((session.raft.term for session in sessions if session), default=0)
    stats["versions"] = max((s.version for s in world.states().values()), default=0)
    if stats["term"] > TERM_MAX:
        world.checker.problem(f"terms were driven to {stats['term']}")
    if stats["versions"] > VERSION_MAX:
        world.checker.problem(f"the log got {stats['versions']} entries")


def _unsettled(world: World) -> str:
    """Three of the four vote, as everybody knows, and one does not."""
    for name in world.names:
        session = world.running[name].peer.session
        if session is None or len(session.raft.voters) != NODES - 1:
            return f"{name} does not know three voters"
        if session.raft.voters != session.state.voters():
            return f"{name} has not recorded them"
    return ""


def _observer(world: World) -> str:
    session = world.running[world.names[0]].peer.session
    assert session is not None
    return next(n for n in world.names if world.machine(n).node not in session.raft.voters)


def run_hostile_seed(seed: int, *, mutation: str = "") -> Result:
    """Simulate one seed; never raises for what the cluster does wrong."""
    loop = SimLoop()
    world = World(seed, NODES, loop)
    with HOSTILE[mutation]():
        return play(world, loop, _phases, limit_s=RUN_LIMIT_S, program="sim.adversary --first")


def _run(seed: int, mutation: str) -> Result:
    result = run_hostile_seed(seed, mutation=mutation)
    result.lines = result.lines[-LINES_KEPT:]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate a hostile member.")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--mutation", default="", choices=sorted(HOSTILE))
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.count)
    failed = soak(partial(_run, mutation=arguments.mutation), seeds, arguments.processes)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
