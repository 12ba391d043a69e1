"""Commit latency and throughput of the replicated log, three nodes in one process.

The links are queues in memory, so what is left is consensus and the journal: with a sync that
costs nothing, with one that takes exactly 5 ms, and on the disk that holds the temporary folder.
All three nodes, all three journals and the client share one thread.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from aivailable.core.state.records import Role
from aivailable.raft.node import RaftNode
from aivailable.raft.store import DiskThread, FileStore, MemoryStore, Store
from bench.report import Figure, report, wanted

NODES = ("A", "B", "C")
PAYLOAD_BYTES = 120
ONE_CLIENT_COMMANDS = 300
IN_FLIGHT = 100
MANY_COMMANDS = 5_000
ROUNDS = 9
ROUNDS_QUICK = 2
SYNC_S = 0.005
DEADLINE_S = 30.0
BOUND = "the bound of issue 3"
NO_BOUND = "issue 3 sets no bound for this"

Stores = Callable[[str], Store]


class Counter:
    """A machine that only counts."""

    def __init__(self) -> None:
        self.applied = 0

    def apply(self, _payload: bytes) -> None:
        self.applied += 1

    def snapshot(self) -> bytes:
        return b"%d" % self.applied

    def restore(self, data: bytes) -> None:
        self.applied = int(data)


class Loopback:
    """raft.machine.Link: hands each message to the other node in the loop's next turn."""

    def __init__(self, node: str, nodes: dict[str, RaftNode]) -> None:
        self._node, self._nodes = node, nodes

    def connected(self, node: str) -> bool:
        return node in self._nodes

    def send(self, node: str, data: bytes) -> bool:
        asyncio.get_running_loop().call_soon(self._nodes[node].receive, self._node, data)
        return True


async def measure(stores: Stores, commands: int) -> tuple[float, float]:
    """(milliseconds from propose to applied, the median; commands/s with IN_FLIGHT at once)."""
    nodes: dict[str, RaftNode] = {}
    async with AsyncExitStack() as stack:
        for number, name in enumerate(NODES):
            nodes[name] = node = RaftNode(
                node_id=name,
                voters=NODES,
                observers=(),
                role=Role.VOTER,
                machine=Counter(),
                link=Loopback(name, nodes),
                store=stores(name),
                clock=time.monotonic,
                rng=random.Random(number),
                founders=True,
            )
            await node.start()
            stack.push_async_callback(node.stop)
        for name in NODES:
            for other in NODES:
                if other != name:
                    nodes[name].link_up(other)
        await nodes["A"].barrier(DEADLINE_S)
        leader = next(node for node in nodes.values() if node.is_leader)
        waited_ms = [await one_ms(leader, number) for number in range(ONE_CLIENT_COMMANDS)]
        return statistics.median(waited_ms), await many(leader, commands)


async def one_ms(node: RaftNode, number: int) -> float:
    began_s = time.perf_counter()
    await node.propose((b"one %d" % number).ljust(PAYLOAD_BYTES), deadline_s=DEADLINE_S)
    return (time.perf_counter() - began_s) * 1000


async def many(node: RaftNode, commands: int) -> float:
    """Commands per second of IN_FLIGHT clients that each have one command under way."""
    numbers = iter(range(commands))

    async def client() -> None:
        for number in numbers:
            await node.propose((b"many %d" % number).ljust(PAYLOAD_BYTES), deadline_s=DEADLINE_S)

    before, began_s = node.applied_index, time.perf_counter()
    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    passed_s = time.perf_counter() - began_s
    if node.applied_index - before < commands:
        raise RuntimeError("fewer entries were applied than commands were acknowledged")
    return commands / passed_s


def main() -> None:
    asked = wanted("raft", "commit latency and throughput of the replicated log")
    rounds = ROUNDS_QUICK if asked.quick else ROUNDS
    latency: dict[str, list[float]] = {}
    rate: dict[str, list[float]] = {}
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="bench-raft-") as folder:
            kinds: Sequence[tuple[str, Stores]] = (
                ("free sync", lambda _name: MemoryStore()),
                ("sync of 5 ms", lambda _name: MemoryStore(latency_s=SYNC_S)),
                (
                    "real disk",
                    lambda name, root=Path(folder): FileStore(root / name, DiskThread()),  # type: ignore[misc]
                ),
            )
            for kind, stores in kinds:
                median_ms, per_s = asyncio.run(measure(stores, MANY_COMMANDS))
                latency.setdefault(kind, []).append(median_ms)
                rate.setdefault(kind, []).append(per_s)
                asked.say(
                    f"round {number + 1} of {rounds}, {kind}: p50 {median_ms:.2f} ms,"
                    f" {per_s:.0f} commands/s with {IN_FLIGHT} in flight"
                )
    bounds_ms = {"free sync": (1.5,), "sync of 5 ms": (7.5,)}
    bounds_per_s = {"sync of 5 ms": (3000.0,)}
    figures = []
    for kind in latency:
        for name, unit, ours, bounds, better in (
            ("commit latency p50 of one client", "ms", latency, bounds_ms, "lower"),
            (f"commands/s, {IN_FLIGHT} in flight", "1/s", rate, bounds_per_s, "higher"),
        ):
            bound = bounds.get(kind, ())
            other_name = BOUND if bound else NO_BOUND
            title = f"{name}, {kind}"
            figures.append(Figure(title, unit, tuple(ours[kind]), other_name, bound, better))
    report("raft", figures, asked)


if __name__ == "__main__":
    main()
