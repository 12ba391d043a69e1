"""One seed of memory pressure: loads, evictions, other programs, lost nodes, new controllers.

Owns the story: what is deployed and removed, what breaks, and what a calm cluster must have come to
(`lacking`, judged by the records and the cards alone). sim.memory_cards judges each launch and
allocation. As a program it prints one verdict:

    python -m sim.memory_run SEED [--trace FILE]                   (with tests/ on PYTHONPATH)
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.converge import unconverged
from sim.loop import SimLoop
from sim.memory_cards import card_machine, ledger_of, use_by_others
from sim.moves import Moves
from sim.run import Result, ask_everyone, insist, play, unformed, until, watch
from sim.schedule import Faults
from sim.workload import DEPLOYMENTS, NO_FILE, Workload, fake_deployment
from sim.world import World

from aivailable.core.state.commands import Body, PutDeployment, RemoveDeployment, SetDraining
from aivailable.core.state.records import Deployment, Status
from aivailable.core.state.state import State

BOOT_SPREAD_S = 2.0
FORM_LIMIT_S = 60.0
FAULTS_S = 30.0
CONVERGE_LIMIT_S = 120.0
"""After the last fault. The longest wait inside is a worker's backoff (30 s) after another."""
RUN_LIMIT_S = 300.0
NODES = (3, 3, 4)
MIB = 1 << 20
SIZES_MIB = (300, 700, 1200, 2000, 3000, 4100, 5000, 7000, 9000)
PRIORITIES = (0, 0, 0, 3, 7)
PIN_SHARE = 0.1
IDLE_TTL_S = 3
"""Of those that are loaded on demand: shorter than the pauses between some requests."""
OPERATIONS_PER_S = 1.5
REQUESTS_PER_S = 1.0
STALE_PER_S = 0.2


class MemoryWorkload(Workload):
    """Operators that fill the cards; the rest is Workload's."""

    async def run(self, duration_s: float) -> None:
        end = self._world.loop.time() + duration_s
        await asyncio.gather(
            self._often(self._operate, OPERATIONS_PER_S, end),
            self._often(self._ask, REQUESTS_PER_S, end),
            self._often(self._usurp, STALE_PER_S, end),
        )

    def _operate(self) -> None:
        names = sorted(self._world.running)
        if not names:
            return
        name = self._rng.choice(names)
        state, dice = self._world.state_of(name), self._rng.random()
        body: Body
        if state is not None and dice < 0.65:
            body = self._deployment(state)
        elif dice < 0.92:
            body = RemoveDeployment(self._rng.choice(DEPLOYMENTS))
        else:
            node = self._world.machine(self._rng.choice(self._world.names)).node
            body = SetDraining(node, self._rng.random() < 0.4)
        self.propose(name, body, f"op-{self._number()}")

    def _deployment(self, state: State) -> PutDeployment:
        name = self._rng.choice(DEPLOYMENTS)
        current = state.deployments.get(name)
        size = self._rng.choice(SIZES_MIB) * MIB
        minimum = self._rng.choice((0, 1, 1, 2))
        digest = self._rng.choice([NO_FILE, *sorted(state.models)])
        wanted = replace(
            fake_deployment(name, size, max(1, minimum), digest),
            replicas_min=minimum,
            idle_ttl_s=IDLE_TTL_S,
            priority=self._rng.choice(PRIORITIES),
            pin=self._rng.random() < PIN_SHARE,
        )
        return PutDeployment(wanted, 0 if current is None else current.generation)


class MemoryFaults(Faults):
    """Nodes and controllers are lost, workers die; disks and addresses are well."""

    def __init__(self, world: World, moves: Moves) -> None:
        super().__init__(world, moves)
        self._kinds = (
            self._kill_one,
            self._kill_one,
            self._kill_leader,
            self._power_loss,
            self._isolate_leader,
            self._split,
            self._crash_workers,
            self._crash_workers,
            self._failing_launches,
        )

    async def _can_bear_a_plot(self) -> bool:
        return False


def run_memory_seed(seed: int) -> Result:
    """Simulate one seed; never raises for what the cluster does wrong."""
    loop = SimLoop()
    nodes = random.Random(f"memory {seed}").choice(NODES)
    world = World(seed, nodes, loop, card_machine)
    return play(world, loop, _phases, limit_s=RUN_LIMIT_S, program="sim.memory_run")


async def _phases(world: World, stats: dict[str, Any]) -> None:
    watcher = world.loop.create_task(watch(world), name="watcher")
    for name in world.names:
        world.loop.call_later(world.rng.uniform(0.0, BOOT_SPREAD_S), world.boot, name)
    workload, moves = MemoryWorkload(world), Moves(world)
    faults = MemoryFaults(world, moves)
    operators = [world.loop.create_task(workload.keep_window_open(), name="window")]
    if await until(world, lambda: unformed(world), FORM_LIMIT_S, "not formed"):
        world.main = next(s.cluster.cluster_id for s in world.states().values() if s.cluster)
        workload.register_files()
        await asyncio.gather(
            faults.run(FAULTS_S), workload.run(FAULTS_S), use_by_others(world, FAULTS_S)
        )
        healed = world.loop.time()
        for number, name in enumerate(world.names):
            wish = SetDraining(world.machine(name).node, False)
            await insist(world, workload, wish, f"last-{number}")

        def missing() -> str:
            return unconverged(world, lacking)

        if await until(world, missing, CONVERGE_LIMIT_S, "not converged"):
            stats["converged_s"] = round(world.loop.time() - healed, 1)
            await ask_everyone(world, workload)
    workload.judge_requests()
    world.checker.judge_promises(world.main)
    for task in (watcher, *operators):
        task.cancel()
    world.close()
    stats |= _told(world, faults)


def _told(world: World, faults: Faults) -> dict[str, Any]:
    counts = [ledger_of(machine).counts for machine in world.machines]
    state = next(iter(world.states().values()), None)
    return {
        "faults": faults.count,
        "launches": sum(entry.launches for entry in counts),
        "no room": sum(entry.no_room for entry in counts),
        "others grew": sum(entry.grown for entry in counts),
        "late": sum(entry.late for entry in counts),
        "fullest": round(max(entry.fullest for entry in counts), 3),
        "term": max((term for _, term in world.checker.leaders), default=0),
        "deployments": 0 if state is None else len(state.deployments),
        "unplaced": 0 if state is None else sum(_short(state, d) for d in state.deployments),
    }


def _short(state: State, name: str) -> int:
    deployment = state.deployments[name]
    return max(0, deployment.replicas_min - len(_current(state, deployment)))


def _current(state: State, deployment: Deployment) -> list[str]:
    return [
        replica.replica
        for replica in state.replicas_of(deployment.name)
        if replica.generation == deployment.generation
    ]


def lacking(world: World) -> str:
    """A replica that is not in order, or a deployment without one that it could have; "" = none."""
    state = next(iter(world.states().values()))
    for name in sorted(state.replicas):
        replica = state.replicas[name]
        if replica.deployment not in state.deployments:
            return f"{name} outlives its deployment ({replica.status.value})"
        if replica.status is not Status.READY or replica.drain:
            return f"{name} is {replica.status.value}{' and drains' if replica.drain else ''}"
    for name in sorted(state.deployments):
        deployment = state.deployments[name]
        current = _current(state, deployment)
        if len(current) > deployment.replicas_max:
            return f"{name} has {len(current)} replicas"
        if len(current) < deployment.replicas_min and (place := _fitting(world, state, deployment)):
            return f"{name} has {len(current)} of {deployment.replicas_min}, and fits on {place}"
    return ""


def _fitting(world: World, state: State, wanted: Deployment) -> str:
    """Where one more replica has room now, or once lesser ones have gone: on one card, or on
    all cards of a machine together."""
    hosts = {replica.node for replica in state.replicas_of(wanted.name)}
    for name in world.names:
        machine = world.machine(name)
        failure = state.failures.get(f"{wanted.name}@{machine.node}")
        if machine.node in hosts or (
            failure is not None and failure.count >= state.settings.load_attempts_max
        ):
            continue
        lesser = [
            replica.replica
            for replica in state.replicas_on(machine.node)
            if not (owner := state.deployments[replica.deployment]).pin
            and owner.priority < wanted.priority
        ]
        for gone in ([], lesser):
            rooms = [
                room
                for device in machine.devices
                if (room := _room(world, state, name, device.device_id, gone)) > 0
            ]
            if sum(rooms) >= wanted.need_bytes:
                return name + (f", without {gone}" if gone else "")
    return ""


def _room(world: World, state: State, name: str, device_id: str, gone: list[str]) -> int:
    """What the card has, less what others use, what is claimed, and the margin."""
    machine = world.machine(name)
    (total,) = [d.total_bytes for d in machine.devices if d.device_id == device_id]
    claimed = sum(
        claim.claim_bytes
        for replica in state.replicas_on(machine.node)
        for claim in replica.claims
        if claim.device_id == device_id and replica.replica not in gone
    )
    others = ledger_of(machine).foreign(device_id)
    return total - others - claimed - state.settings.margin_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate one seed of memory pressure.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--trace", type=Path, help="write the trace's lines here")
    arguments = parser.parse_args()
    result = run_memory_seed(arguments.seed)
    if arguments.trace is not None:
        arguments.trace.write_text("\n".join(result.lines) + "\n")
    print(result.digest)
    print(f"{result.nodes} nodes, {result.cpu_s:.1f} s, {result.stats}")
    if result.problems:
        print(result.message())
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
