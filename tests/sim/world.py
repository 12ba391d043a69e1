"""A simulated LAN of machines, each running the real Peer on simulated ports.

Owns building, killing and starting them. It judges nothing (sim.checks) and decides nothing about
when (sim.schedule, sim.workload). Built by sim.run for one seed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim.checks import Checker
from sim.faults import Damage
from sim.hardware import Machine, make_machine
from sim.lan import Lan, SimDiscovery, SimJoinClient
from sim.links import SimLinks, Switchboard
from sim.loop import Process, SimLoop
from sim.network import Network
from sim.ports import (
    SimClock,
    SimDevices,
    SimHome,
    SimIdentity,
    SimModelStore,
    SimRandomness,
    SimStore,
    predict,
)
from sim.trace import Trace
from sim.worker import SimLauncher

from aivailable.core.ids import ClusterId, short
from aivailable.core.state.state import State
from aivailable.peer.node import Peer
from aivailable.peer.ports import Endpoints, PeerConfig, Ports
from aivailable.raft.settings import RaftSettings

RAFT_SETTINGS = RaftSettings(compact_entries=25, compact_s=20.0)
"""Small, so that snapshots are taken and sent in a run of a minute."""
DEAD_TASKS_S = 5.0
"""A killed process's tasks have ended after this long, or one of them swallows its cancellation."""


@dataclass
class Running:
    """One start of a node."""

    process: Process
    peer: Peer
    launcher: SimLauncher
    links: SimLinks
    discovery: SimDiscovery
    booted: asyncio.Task[None]


class World:
    """Machines n1..nN, the cable between them, and what runs on them."""

    def __init__(
        self,
        seed: int,
        count: int,
        loop: SimLoop,
        make: Callable[[int, random.Random], Machine] = make_machine,
    ) -> None:
        self.seed = seed
        self.loop = loop
        self.rng = random.Random(f"world {seed}")
        self.trace = Trace(loop.time)
        self.checker = Checker(self.trace)
        self.damage = Damage(random.Random(f"damage {seed}"))
        self.network = Network(loop, random.Random(f"network {seed}"), self.damage, self.trace)
        self.board = Switchboard(self.network)
        self.lan = Lan(self.network)
        self.machines = [make(number, self.rng) for number in range(1, count + 1)]
        self.running: dict[str, Running] = {}
        self.names = [machine.name for machine in self.machines]
        self.clones: dict[str, tuple[Machine, Running]] = {}
        """Machines that were given a copy of a disk, by the name of the one that it was."""
        self.main = ""
        """The cluster that was formed; "" before. Nobody asks anything of another one."""
        self._addresses = len(self.machines)
        self._graves: list[tuple[float, Process]] = []
        for machine in self.machines:
            machine.ledger.complain = self.checker.problem
        self.network.start()

    def machine(self, name: str) -> Machine:
        return self.machines[self.names.index(name)]

    def boot(self, name: str) -> None:
        """Start the node's process; nothing happens when it runs."""
        if name in self.running:
            return
        self.running[name] = self._boot(self.machine(name))

    def _boot(self, machine: Machine) -> Running:
        machine.starts += 1
        process = Process(machine.name, machine.starts)
        self.trace.add(machine.name, f"boots as {process!r}")
        return process.context.run(self._build, machine, process)

    def _build(self, machine: Machine, process: Process) -> Running:
        life = f"{self.seed} {process!r}"
        instance_id = random.Random(f"instance {life}").randbytes(8).hex()
        identity = SimIdentity(machine.certificate, instance_id)
        discovery = SimDiscovery(self.lan, process, machine.address)
        links = SimLinks(self.board, process, identity.node, machine.address, instance_id, "0.1.0")
        launcher = SimLauncher(machine, process, random.Random(f"workers {life}"), self.trace)

        def raft_store(cluster_id: ClusterId) -> SimStore:
            return SimStore(machine.log_of(cluster_id), machine, process)

        def drop_raft_store(cluster_id: ClusterId) -> None:
            if process.alive:
                machine.logs.pop(cluster_id, None)
                machine.wrote()

        ports = Ports(
            clock=SimClock.drawn(random.Random(f"clock {life}")),
            randomness=SimRandomness(f"dice {life}"),
            identity=identity,
            home=SimHome(machine, process),
            links=links,
            join_client=SimJoinClient(self.lan, process, machine.certificate),
            discovery=discovery,
            devices=SimDevices(machine),
            launcher=launcher,
            model_store=SimModelStore(machine, process),
            raft_store=raft_store,
            drop_raft_store=drop_raft_store,
            raft_settings=RAFT_SETTINGS,
            predict=predict,
            endpoints=Endpoints(),
        )
        peer = Peer(PeerConfig(name=machine.name), ports)
        self.lan.servers[machine.address] = (process, peer)
        booted = self.loop.create_task(peer.start(), name=f"{process!r} start")
        booted.add_done_callback(lambda task: self._started(process, task))
        return Running(process, peer, launcher, links, discovery, booted)

    def _started(self, process: Process, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and process.alive:
            self.checker.problem(f"{process!r} did not start: {task.exception()!r}")

    def kill(self, name: str, *, power: bool = False) -> None:
        """kill -9, or with `power` the plug: what was not synced is gone, nobody is told."""
        run = self.running.pop(name, None)
        if run is None:
            return
        self._end(self.machine(name), run, power=power)

    def _end(self, machine: Machine, run: Running, *, power: bool) -> None:
        self.trace.add(machine.name, "loses power" if power else "is killed")
        run.process.alive = False  # Before all else: nothing that it still does has an effect.
        self.network.process_died(run.process, power=power)
        for log in machine.logs.values():
            torn = self.rng.randint(0, 64) if power else 0
            log.crash(keep_written=not power, torn_bytes=torn)
        run.launcher.process_died()
        machine.ledger.release_all()
        self.loop.kill(run.process)
        self._graves.append((self.loop.time() + DEAD_TASKS_S, run.process))

    def readdress(self, names: list[str], *, exchange: bool = False) -> None:
        """The machines have other addresses from now on; with `exchange` each other's."""
        machines = [self.machine(name) for name in names]
        if exchange:
            addresses = [machine.address for machine in (*machines[1:], machines[0])]
        else:
            addresses = [self._free_address() for _ in machines]
        for machine in machines:
            self.lan.servers.pop(machine.address, None)
        for machine, address in zip(machines, addresses, strict=True):
            self.trace.add(machine.name, f"moves to {address}")
            machine.address = address
            run = self.running.get(machine.name)
            if run is not None:
                self.lan.servers[address] = (run.process, run.peer)
                run.links.move(address)
                run.process.context.run(run.discovery.move, address)

    def _free_address(self) -> str:
        self._addresses += 1
        return f"10.0.{self._addresses // 250}.{self._addresses % 250}"

    def clone(self, name: str) -> None:
        """Another machine boots from a copy of this one's disk, while this one runs."""
        copy = self.machine(name).copied(self._free_address())
        copy.ledger.complain = self.checker.problem
        self.clones[name] = (copy, self._boot(copy))

    def end_clone(self, name: str) -> None:
        """Switch the clone off. It must have been told by then what it is."""
        machine, run = self.clones.pop(name)
        if "cloned_identity" not in run.peer.membership.advice:
            self.checker.problem(f"{machine.name} says {run.peer.membership.advice!r} of itself")
        self._end(machine, run, power=False)

    def watch(self) -> None:
        """Ask the living who leads, and the dead whether they are. Called often."""
        for name in sorted(self.running):
            run = self.running[name]
            session = run.peer.session
            if session is not None and run.booted.done() and session.raft.is_leader:
                self.checker.leads(run.process, session.file.cluster_id, session.raft.term)
        for machine, run in self.clones.values():
            if run.links.connected():
                self.checker.problem(f"{machine.name} was let in beside the machine it copies")
        now = self.loop.time()
        for until, process in self._graves:
            if until <= now and process.unfinished():
                self.checker.problem(
                    f"tasks of {process!r} survive cancellation: {process.unfinished()[:3]!r}"
                )
        self._graves = [entry for entry in self._graves if entry[0] > now]

    def close(self) -> None:
        """End of the run: collect what the ports have noticed."""
        for text in self.network.problems[:5]:
            self.checker.problem(text)

    # What a test may look at.

    def state_of(self, name: str) -> State | None:
        """The replicated state as a node has it; None while it is down or no member."""
        run = self.running.get(name)
        session = None if run is None else run.peer.session
        return None if session is None else session.state

    def states(self) -> dict[str, State]:
        found = {name: self.state_of(name) for name in sorted(self.running)}
        return {name: state for name, state in found.items() if state is not None}

    def leader(self) -> str | None:
        """Who leads in the highest term, as the nodes say."""
        best: tuple[int, str] | None = None
        for name in sorted(self.running):
            session = self.running[name].peer.session
            foreign = session is not None and self.main not in ("", session.file.cluster_id)
            if session is not None and not foreign and session.raft.is_leader:
                entry = (session.raft.term, name)
                best = entry if best is None else max(best, entry)
        return None if best is None else best[1]

    def on_behalf(self, name: str, work: Callable[[Running], Any]) -> asyncio.Task[Any] | None:
        """Run the coroutine that `work` makes as a task of the node's process."""
        run = self.running.get(name)
        if run is None:
            return None
        return run.process.context.run(
            lambda: self.loop.create_task(work(run), name=f"{run.process!r} workload")
        )

    def picture(self) -> str:
        """One line per node, for the message of a failure."""
        lines = []
        for machine in self.machines:
            state = self.state_of(machine.name)
            if state is None:
                lines.append(
                    f"  {machine.name}: {'no session' if machine.name in self.running else 'down'}"
                )
                continue
            session = self.running[machine.name].peer.session
            assert session is not None
            cluster = "" if state.cluster is None else short(state.cluster.cluster_id)
            lines.append(
                f"  {machine.name}: cluster {cluster} version {state.version} term"
                f" {session.raft.term} leader {session.raft.is_leader} role {session.raft.role}"
                f" members {len(state.members)} replicas"
                f" {[(k, str(r.status)) for k, r in sorted(state.replicas.items())]}"
            )
        return "\n".join(lines)
