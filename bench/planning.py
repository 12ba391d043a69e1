"""How long one plan takes: 10 to 300 nodes, from nothing placed and when nothing is left to do.

The bound is that of issue 5: 150 ms for 100 nodes, 400 GPUs and 150 deployments.

    python -m bench.planning [--quick] [--json]
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace

from aivailable.core.planning.planner import plan
from aivailable.core.state.commands import Place
from aivailable.core.state.records import Replica, Status
from aivailable.core.state.state import State
from bench.fleets import CARDS_GIB, Fleet, fleet_of
from bench.report import Figure, report, wanted

NODES = (10, 30, 100, 300)
GPUS_PER_NODE = 4
DEPLOYMENTS_PER_NODE = 1.5
BOUND_NODES = 100
BOUND_MS = 150.0
ROUNDS = 15


def main() -> None:
    asked = wanted("planning", "milliseconds for one plan")
    figures = []
    held = True
    for nodes in NODES:
        fleet = _fleet(nodes)
        state = _settled(fleet)
        cold, steady = [], []
        for _ in range(3 if asked.quick else ROUNDS):
            cold.append(_timed_ms(fleet.state, fleet))
            steady.append(_timed_ms(state, fleet))
        replicas = len(state.replicas)
        what = f"{nodes} nodes, {len(state.deployments)} deployments, {replicas} replicas"
        figures.append(Figure(f"all placed anew: {what}", "ms", tuple(cold), "no other side"))
        figures.append(Figure(f"nothing to do: {what}", "ms", tuple(steady), "no other side"))
        if nodes == BOUND_NODES:
            held = statistics.median((*cold,)) <= BOUND_MS >= statistics.median(steady)
    report("planning", figures, asked)
    if not held:
        raise SystemExit(1)


def _fleet(nodes: int) -> Fleet:
    """Every node with four cards; one and a half deployments for each node."""
    chance = random.Random(nodes)
    machines = [
        tuple(chance.choice(CARDS_GIB) << 30 for _ in range(GPUS_PER_NODE)) for _ in range(nodes)
    ]
    fleet = fleet_of(machines, chance, 1.2)
    kept = fleet.wanted[: round(nodes * DEPLOYMENTS_PER_NODE)]
    return replace(
        fleet,
        wanted=kept,
        state=replace(fleet.state, deployments={one.name: one for one in kept}),
    )


def _settled(fleet: Fleet) -> State:
    replicas: dict[str, Replica] = {}
    numbers: dict[str, int] = {}
    for body in plan(fleet.state, fleet.liveness):
        if isinstance(body, Place):
            one = fleet.state.deployments[body.deployment]
            numbers[one.name] = numbers.get(one.name, 0) + 1
            replicas[body.replica] = Replica(
                body.replica,
                one.name,
                one.digest,
                one.generation,
                body.node,
                body.claims,
                one.context,
                one.slots,
                Status.READY,
            )
    return replace(fleet.state, replicas=replicas, replica_numbers=numbers)


def _timed_ms(state: State, fleet: Fleet) -> float:
    before = time.perf_counter()
    plan(state, fleet.liveness)
    return (time.perf_counter() - before) * 1000


if __name__ == "__main__":
    main()
