"""One seed from start to verdict: form, break, heal, converge, ask everyone.

Owns the phases and their time limits. As a program it prints the verdict of one seed:

    python -m sim.run SEED [--trace FILE] [--mutation NAME]        (with tests/ on PYTHONPATH)
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fixtures.virtual_time import VirtualTimeError, elapse
from sim.checks import Checker, hooked_apply
from sim.converge import unconverged
from sim.loop import SimLoop, current_process
from sim.moves import Moves
from sim.mutations import MUTATIONS
from sim.schedule import Faults
from sim.workload import DEPLOYMENTS, Workload, fake_deployment
from sim.world import World

from aivailable.core.state.commands import Body, PutDeployment, RemoveDeployment, SetDraining
from aivailable.core.state.state import State
from aivailable.peer.control import replicated
from aivailable.peer.control.replicated import ReplicatedState
from aivailable.raft import snapshot

BOOT_SPREAD_S = 6.0
FORM_LIMIT_S = 60.0
ROUGH_START_EVERY = 3
"""Every third seed kills nodes while the cluster is being founded and joined."""
FAULTS_S = 40.0
CONVERGE_LIMIT_S = 120.0
"""After healing. The longest wait inside is a worker's backoff (30 s) after another."""
ANSWER_LIMIT_S = 30.0
RUN_LIMIT_S = 400.0
WATCH_S = 0.05
POLL_S = 0.25
WISH_ATTEMPTS = 10
FINAL_DEPLOYMENT = "final"
FINAL_BYTES = 1 << 28
NODES = (3, 3, 4, 5)
SNAPSHOT_CHUNK_BYTES = 2048
"""So small that a snapshot of a minute's state takes many messages, as a big one does."""


Phases = Callable[[World, dict[str, Any]], Coroutine[Any, Any, None]]
"""The story of one run: fills the statistics."""


@dataclass
class Result:
    """Verdict of one seed."""

    seed: int
    nodes: int
    problems: list[str]
    digest: str
    lines: list[str]
    stats: dict[str, Any] = field(default_factory=dict)
    cpu_s: float = 0.0
    program: str = "sim.run"

    def message(self) -> str:
        """What a failing test prints: what broke, and how to see it again."""
        shown = "\n  ".join(self.problems)
        return (
            f"seed {self.seed} ({self.nodes} nodes):\n  {shown}\n"
            f"rerun: PYTHONPATH=.:tests python -m {self.program} {self.seed} --trace trace.txt"
        )


def run_seed(seed: int, *, mutation: str = "", faults_s: float = FAULTS_S) -> Result:
    """Simulate one seed; never raises for what the cluster does wrong."""
    loop = SimLoop()
    nodes = random.Random(f"nodes {seed}").choice(NODES)
    world = World(seed, nodes, loop)
    with MUTATIONS[mutation]():
        return play(world, loop, partial(_phases, faults_s=faults_s), limit_s=RUN_LIMIT_S)


def play(
    world: World, loop: SimLoop, phases: Phases, *, limit_s: float, program: str = "sim.run"
) -> Result:
    """Run a story to its end, at most `limit_s` virtual seconds; what went wrong is in the result.
    `program` runs this seed again."""
    began = time.process_time()
    stats: dict[str, Any] = {}
    try:
        with overheard(world.checker):
            loop.run(phases(world, stats), limit_s=limit_s)
    except VirtualTimeError as error:
        world.checker.problem(f"{type(error).__name__}: {error}")
    finally:
        loop.close()
    return Result(
        seed=world.seed,
        nodes=len(world.names),
        problems=world.checker.problems,
        digest=world.trace.digest(),
        lines=world.trace.lines,
        stats=stats,
        cpu_s=time.process_time() - began,
        program=program,
    )


async def _phases(world: World, stats: dict[str, Any], faults_s: float) -> None:
    begun = world.loop.time()
    watcher = world.loop.create_task(watch(world), name="watcher")
    for name in world.names:
        world.loop.call_later(world.rng.uniform(0.0, BOOT_SPREAD_S), world.boot, name)
    workload, moves = Workload(world), Moves(world)
    faults = Faults(world, moves)
    operators = [world.loop.create_task(workload.keep_window_open(), name="window")]
    if world.seed % ROUGH_START_EVERY == 0:
        faults.break_the_start(BOOT_SPREAD_S)
    if await until(world, lambda: unformed(world), FORM_LIMIT_S, "not formed"):
        stats["formed_s"] = round(world.loop.time() - begun, 1)
        world.main = next(s.cluster.cluster_id for s in world.states().values() if s.cluster)
        operators.append(world.loop.create_task(moves.run(), name="moves"))
        workload.register_files()
        await asyncio.gather(faults.run(faults_s), workload.run(faults_s))
        healed = world.loop.time()
        await _settle_wishes(world, workload)
        if await until(world, lambda: unconverged(world), CONVERGE_LIMIT_S, "not converged"):
            stats["converged_s"] = round(world.loop.time() - healed, 1)
            await ask_everyone(world, workload)
    workload.judge_requests()
    world.checker.judge_promises(world.main)
    for task in (watcher, *operators):
        task.cancel()
    world.close()
    stats |= {
        "faults": faults.count,
        "plots": {
            **moves.done,
            "damage noticed": sum(world.checker.excused.values()),
            "clones": faults.seen.get("clone_a_disk", 0),
            "moved": faults.seen.get("move_addresses", 0),
            "blackouts": faults.seen.get("blackout", 0),
        },
        "acknowledged": len(world.checker.acked),
        "answered": sum(r.outcome == "finished length" for r in workload.requests),
        "versions": max((s.version for s in world.states().values()), default=0),
        "term": max((term for _, term in world.checker.leaders), default=0),
        "operations": dict(sorted(workload.outcomes.items())),
        "requests": _counts([request.outcome for request in workload.requests]),
        "starts": sum(machine.starts for machine in world.machines),
    }


async def watch(world: World) -> None:
    while True:
        world.watch()
        await elapse(WATCH_S)


async def until(world: World, missing: Callable[[], str], limit_s: float, what: str) -> bool:
    """Wait until nothing is missing; a problem when the limit passes."""
    end = world.loop.time() + limit_s
    while reason := missing():
        if world.loop.time() >= end:
            world.checker.problem(f"{what} after {limit_s:g} s: {reason}\n{world.picture()}")
            return False
        await elapse(POLL_S)
    world.trace.add("run", f"{what}: nothing missing any more")
    return True


def unformed(world: World) -> str:
    """What is missing for one cluster of all nodes; "" when it is there."""
    states = world.states()
    if len(states) < len(world.names):
        return "a node has no session"
    clusters = {state.cluster.cluster_id if state.cluster else "" for state in states.values()}
    if len(clusters) > 1 or "" in clusters:
        return f"{len(clusters)} clusters"
    for name, state in states.items():
        if len(state.members) < len(world.names):
            return f"{name} knows {len(state.members)} members"
        if len(state.inventories) < len(world.names):
            return f"{name} knows {len(state.inventories)} inventories"
    return ""


async def _settle_wishes(world: World, workload: Workload) -> None:
    """The operator's last words: nothing drains, some deployments go, a small one comes."""
    wishes: list[Body] = [SetDraining(world.machine(name).node, False) for name in world.names]
    wishes += [
        RemoveDeployment(name)
        for number, name in enumerate(DEPLOYMENTS)
        if number % 2 == world.seed % 2
    ]
    wishes.append(PutDeployment(fake_deployment(FINAL_DEPLOYMENT, FINAL_BYTES, 1)))
    for number, wish in enumerate(wishes):
        if not await insist(world, workload, wish, f"last-{number}"):
            world.checker.problem(f"after healing nobody took {wish}")


async def insist(world: World, workload: Workload, wish: Body, reason: str) -> bool:
    """Propose at one node after the other until one has an answer, be it a refusal."""
    for attempt in range(WISH_ATTEMPTS):
        name = world.rng.choice(sorted(world.running))
        task = workload.propose(name, wish, f"{reason}.{attempt}")
        if task is not None:
            # Cancelled: the node's process ended meanwhile, as a damaged log may make it.
            (how,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(how, Exception):
                raise how
            if how in ("acknowledged", "refused"):
                return True
        await elapse(1.0)
    return False


async def ask_everyone(world: World, workload: Workload) -> None:
    """Whatever runs answers through every node."""
    state = next(iter(world.states().values()))
    ready = sorted({r.deployment for r in state.replicas.values() if r.status == "ready"})
    asked = [workload.ask(name, deployment) for name in world.names for deployment in ready]
    end = world.loop.time() + ANSWER_LIMIT_S
    while any(not request.outcome for request in asked) and world.loop.time() < end:
        await elapse(POLL_S)
    for request in asked:
        if request.outcome != "finished length":
            world.checker.problem(
                f"{request.deployment} is ready, but through {request.ingress} the request"
                f" r{request.number} ended: {request.outcome or 'not at all'}"
            )


@contextmanager
def overheard(checker: Checker) -> Iterator[None]:
    """Hear every apply, every restore and every logged error while the run lasts."""
    apply_bytes, restore = vars(replicated)["apply_bytes"], ReplicatedState.restore

    def hooked_restore(self: ReplicatedState, data: bytes) -> None:
        before: State = self.state
        restore(self, data)
        process = current_process()
        if process is not None:
            checker.restored(process, before, self.state)

    handler = _ErrorLog(checker)
    log = logging.getLogger("aivailable")
    level = log.level
    vars(replicated)["apply_bytes"] = hooked_apply(checker, current_process, apply_bytes)
    chunk_bytes, snapshot.CHUNK_BYTES = snapshot.CHUNK_BYTES, SNAPSHOT_CHUNK_BYTES
    ReplicatedState.restore = hooked_restore  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        ReplicatedState.restore = restore  # type: ignore[method-assign]
        vars(replicated)["apply_bytes"] = apply_bytes
        snapshot.CHUNK_BYTES = chunk_bytes


class _ErrorLog(logging.Handler):
    """Brings the errors that living processes log to the checker."""

    def __init__(self, checker: Checker) -> None:
        super().__init__(level=logging.ERROR)
        self._checker = checker

    def emit(self, record: logging.LogRecord) -> None:
        process = current_process()
        if process is not None and process.alive:
            formatter = logging.Formatter("%(name)s: %(message)s")
            self._checker.logged(process, formatter.format(record))


def _counts(outcomes: list[str]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for outcome in outcomes:
        counted[outcome or "running"] = counted.get(outcome or "running", 0) + 1
    return dict(sorted(counted.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate one seed.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--trace", type=Path, help="write the trace's lines here")
    parser.add_argument("--mutation", default="", choices=sorted(MUTATIONS))
    parser.add_argument("--faults-s", type=float, default=FAULTS_S)
    arguments = parser.parse_args()
    result = run_seed(arguments.seed, mutation=arguments.mutation, faults_s=arguments.faults_s)
    if arguments.trace is not None:
        arguments.trace.write_text("\n".join(result.lines) + "\n")
    print(result.digest)
    print(f"{result.nodes} nodes, {result.cpu_s:.1f} s, {result.stats}")
    if result.problems:
        print(result.message())
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
