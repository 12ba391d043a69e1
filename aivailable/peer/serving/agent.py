"""The node agent: makes the local workers match what is placed here.

`core.agent.reconcile` decides each step from the whole picture; this class performs it and keeps
the picture. It is the only writer of this node's replica transitions, copies and inventory.

Not to be confused with `core.agent`, which decides the steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from aivailable.core.agent import (
    Action,
    Fetch,
    FetchCopy,
    Kill,
    Launch,
    Report,
    StopAccepting,
    after_failure,
    reconcile,
)
from aivailable.core.ids import Digest, NodeId, ReplicaId, short
from aivailable.core.planning.capacity import BUDGETED
from aivailable.core.planning.memory_pressure import tight_bytes
from aivailable.core.planning.standalone import adoptions, wanted_standalone
from aivailable.core.serving.histogram import Histogram
from aivailable.core.state.commands import AdoptReplica, ReportCopy, ReportInventory, ReportReplica
from aivailable.core.state.records import Claim, Deployment, Replica, Status
from aivailable.core.state.state import State
from aivailable.errors import AivailableError, ProposalError, WorkerError
from aivailable.gguf.companion_options import files_named, with_paths
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.control.pausing import OwnerPause
from aivailable.peer.control.proposals import Proposer
from aivailable.peer.ports import FileStatus, MessageStream, PeerConfig, Ports
from aivailable.peer.serving.replicas import LocalReplica
from aivailable.peer.serving.transfers import Transfers
from aivailable.peer.tasks import Pulse, Tasks
from aivailable.wire.peer import DeviceLoad, ReplicaLoad
from aivailable.wire.worker import DeviceClaim, Load

log = logging.getLogger("aivailable.agent")

PERIOD_S = 0.5
MEMORY_BACK_S = 10.0
"""A driver that has not given memory back after this long does not owe it to us."""
MEMORY_POLL_S = 0.25
MEMORY_BACK_SHARE = 2
"""Half of it back is back: another program may have taken some of it meanwhile."""


class Agent:
    """Runs on every member, GPU or not."""

    def __init__(
        self,
        config: PeerConfig,
        ports: Ports,
        proposer: Proposer,
        cluster: ClusterView,
        pause: OwnerPause,
        on_change: Callable[[], None],
    ) -> None:
        """`pause`: while its owner wants this machine, nothing shall run on it."""
        self._config = config
        self._ports = ports
        self._node = cluster.node
        self._proposer = proposer
        self._cluster = cluster
        self._pause = pause
        self._tell = on_change
        self._tight_since_s: dict[str, float] = {}
        self._tasks = Tasks("agent")
        self._pulse = Pulse()
        self._replicas: dict[ReplicaId, LocalReplica] = {}
        self._standalone: dict[ReplicaId, Replica] = {}
        self._reporting: dict[str, bool] = {}
        self._checked: dict[Digest, bool] = {}
        self.transfers = Transfers(ports, cluster, self._transferred)

    def nudge(self) -> None:
        self._pulse.nudge()

    async def run(self) -> None:
        while True:
            state = self._with_standalone(self._cluster.state)
            workers = tuple(self._replicas[key].entry for key in sorted(self._replicas))
            held = tuple(sorted(self._ports.model_store.held()))
            for action in reconcile(self._node, state, workers, held, self._now_ms()):
                self._perform(state, action)
            await self._pulse.wait(PERIOD_S)

    def _with_standalone(self, state: State) -> State:
        """What is placed here, and what this node runs by itself (core.planning.standalone)."""
        standalone = wanted_standalone(
            self._node,
            state,
            self._cluster.liveness(),
            self._cluster.leaderless_ms(),
            self._standalone,
        )
        gone = [key for key, entry in standalone.items() if self._has_ended(key, entry)]
        self._standalone = {key: entry for key, entry in standalone.items() if key not in gone}
        if self._cluster.leaderless_ms() == 0:
            for offer in adoptions(self._node, state, self._standalone, self._ready()):
                self._report(offer)
        replicas = {**state.replicas, **self._standalone}
        if self._pause.left_s():
            # Told to the others by heartbeat; what runs here goes also when nobody leads.
            replicas = {
                key: replace(entry, drain=entry.drain or entry.node == self._node)
                for key, entry in replicas.items()
            }
        return replace(state, replicas=replicas)

    def _has_ended(self, key: ReplicaId, replica: Replica) -> bool:
        return replica.drain and key in self._standalone and key not in self._replicas

    def _ready(self) -> tuple[ReplicaId, ...]:
        return tuple(
            key
            for key in sorted(self._replicas)
            if self._replicas[key].entry.status is Status.READY
        )

    async def stop(self) -> None:
        """No worker outlives its peer."""
        for key in sorted(self._replicas):
            self._replicas[key].kill()
        await self.transfers.stop()
        await self._tasks.stop()
        self._replicas.clear()

    def find(self, replica: ReplicaId) -> LocalReplica | None:
        return self._replicas.get(replica)

    def queue_waits(self) -> dict[ReplicaId, Histogram]:
        """How long requests waited for a slot, by replica on this node."""
        return {key: self._replicas[key].queue_waits.copy() for key in sorted(self._replicas)}

    def loads(self) -> tuple[ReplicaLoad, ...]:
        return tuple(self._load(key) for key in sorted(self._replicas))

    def _load(self, key: ReplicaId) -> ReplicaLoad:
        local = self._replicas[key]
        if local.entry.status is Status.FETCHING:
            local.progress = self.transfers.progress(self._cluster.state.files_for(local.record))
            local.phase = "fetching"
        return replace(local.load(), island=key in self._standalone)

    def device_loads(self) -> tuple[DeviceLoad, ...]:
        """The live figures of our devices, and how long others have left them hardly anything."""
        now_s, least = self._ports.clock.monotonic(), tight_bytes(self._cluster.state.settings)
        loads = self._ports.devices.load()
        self._tight_since_s = {
            load.device_id: self._tight_since_s.get(load.device_id, now_s)
            for load in loads
            if load.free_bytes < least
        }
        return tuple(
            replace(load, tight_ms=int((now_s - self._tight_since_s[load.device_id]) * 1000))
            if load.device_id in self._tight_since_s
            else load
            for load in loads
        )

    async def send_file(
        self, node: NodeId, digest: Digest, offset: int, stream: MessageStream
    ) -> None:
        """A member wants a file that we hold."""
        await self.transfers.serve(node, digest, offset, stream)

    async def tell_inventory(self) -> None:
        """Commit our devices when they differ from the record. Raises ProposalError."""
        inventory = self._ports.devices.inventory(self._node)
        if self._cluster.state.inventories.get(self._node) != inventory:
            await self._proposer.propose(
                ReportInventory(inventory), actor="node", reason="devices of this node"
            )

    # --- performing

    def _perform(self, state: State, action: Action) -> None:
        match action:
            case Fetch(replica=name, digest=digest):
                local = self._local(state.replicas[name])
                local.become(Status.FETCHING)
                self.transfers.want(digest)
            case FetchCopy(digest=digest):
                self.transfers.want(digest)
            case Launch(replica=name):
                self._launch(state, state.replicas[name])
            case StopAccepting(replica=name):
                self._replicas[name].become(Status.DRAINING)
            case Kill(replica=name, reason=reason):
                self._kill(name, reason)
            case Report(body=ReportReplica(replica=name)) if name in self._standalone:
                log.debug("%s is an replica: its state stays here", name)
            case Report(body=body):
                self._report(body)

    def _local(self, record: Replica) -> LocalReplica:
        local = self._replicas.get(record.replica)
        if local is None:
            settings = self._cluster.state.settings
            local = LocalReplica(
                record, self._ports.clock, self._changed, settings.queue_per_slot_max * record.slots
            )
            self._replicas[record.replica] = local
        return local

    def _launch(self, state: State, record: Replica) -> None:
        if self._held_by_leaving(record) or self._wanted_by_loading(state, record):
            # Memory is not back, or not taken, yet; what becomes of that process wakes us again.
            return
        local = self._local(record)
        local.become(Status.LOADING)
        self._tasks.spawn(self._run(state, local), f"worker {record.replica}")

    def _held_by_leaving(self, record: Replica) -> bool:
        """Whether a process that was told to end still holds a device that `record` claims."""
        wanted = [claim.device_id for claim in record.claims]
        return any(
            local.ending and any(claim.device_id in wanted for claim in local.record.claims)
            for key, local in self._replicas.items()
            if key != record.replica
        )

    def _wanted_by_loading(self, state: State, record: Replica) -> bool:
        """Whether loads under way may still take what looks free where `record` shall go: other
        programs may have grown since both were planned."""
        live = {load.device_id: load.free_bytes for load in self._ports.devices.load()}
        for claim in record.claims:
            under_way = sum(
                other.claim_bytes
                for key, local in self._replicas.items()
                if key != record.replica and local.entry.status is Status.LOADING
                for other in local.record.claims
                if other.device_id == claim.device_id
            )
            device = state.device(self._node, claim.device_id)
            if not under_way or device is None or device.backend in BUDGETED:
                continue
            if live.get(claim.device_id, device.total_bytes) < under_way + claim.claim_bytes:
                return True
        return False

    async def _run(self, state: State, local: LocalReplica) -> None:
        """One attempt: from launch to the end of the process."""
        try:
            self._check_live_bytes(state, local.record)
            reason = await local.run_worker(self._ports.launcher, self._load_message(state, local))
        except WorkerError as error:
            reason = str(error)
        if local.ending:
            # The claim ends with this entry: not before its memory is really back.
            await self._memory_back(state, local)
            self._replicas.pop(local.record.replica, None)
        else:
            log.warning("%s: worker ended: %s", local.record.replica, reason)
            jitter = self._ports.randomness.random.random()
            local.entry = after_failure(
                local.entry, reason, self._now_ms(), jitter, local.needed_bytes
            )
        self._changed()

    async def _memory_back(self, state: State, local: LocalReplica) -> None:
        """Returns when the devices of an ended process are as free as without it: drivers give
        memory back late, and what is placed next would not fit. At most MEMORY_BACK_S."""
        clock, used = self._ports.clock, local.entry.used_bytes
        until_s = clock.monotonic() + MEMORY_BACK_S
        while missing := self._not_back(state, used, local.free_at_end):
            if clock.monotonic() >= until_s:
                log.warning(
                    "%s has ended, but its memory is not back after %g s: %s",
                    local.record.replica, MEMORY_BACK_S, missing,
                )  # fmt: skip
                return
            local.phase = f"waits until its memory is back: {missing}"
            await asyncio.sleep(MEMORY_POLL_S)

    def _not_back(
        self, state: State, used: Mapping[str, int], free_at_end: Mapping[str, int]
    ) -> str:
        """What is missing, in words; "" when the memory is back or nobody can measure it."""
        live = {load.device_id: load.free_bytes for load in self._ports.devices.load()}
        for device_id in sorted(used):
            device = state.device(self._node, device_id)
            if device is None or device.backend in BUDGETED:
                continue
            before, now = free_at_end.get(device_id), live.get(device_id)
            back = used[device_id] // MEMORY_BACK_SHARE
            if before is not None and now is not None and now - before < back:
                return f"{device_id} has {now} bytes free, {before + back} expected"
        return ""

    def _check_live_bytes(self, state: State, record: Replica) -> None:
        """Another program may have grown since the plan. Raises WorkerError."""
        live = {load.device_id: load for load in self._ports.devices.load()}
        for claim in record.claims:
            device = state.device(self._node, claim.device_id)
            if device is None:
                raise WorkerError(f"device {claim.device_id} is gone")
            left = device.total_bytes - self._ledger_bytes(record, claim)
            if left < 0:
                raise WorkerError(f"{claim.device_id}: a standalone replica has to go first")
            load = live.get(claim.device_id)
            if load is None:
                continue
            if device.backend in BUDGETED:
                free = left + claim.claim_bytes - load.used_by_others_bytes
            else:
                free = load.free_bytes
            if free < claim.claim_bytes:
                raise WorkerError(
                    f"{claim.device_id}: {claim.claim_bytes} bytes claimed, but other programs"
                    f" leave {max(0, free)}"
                )

    def _ledger_bytes(self, record: Replica, claim: Claim) -> int:
        """Committed claims and standalone replicas together: this node's ledger is the last
        authority on its VRAM."""
        committed = self._cluster.state.claimed_bytes(self._node, claim.device_id)
        standalone = sum(
            other.claim_bytes
            for key, replica in self._standalone.items()
            if key in self._replicas or key == record.replica
            for other in replica.claims
            if other.device_id == claim.device_id
        )
        return committed + standalone

    def _load_message(self, state: State, local: LocalReplica) -> Load:
        record = local.record
        deployment = state.deployments.get(record.deployment)
        if deployment is None:
            raise WorkerError(f"{record.deployment} is not deployed any more")
        held = self._ports.model_store.held()
        file = held.get(record.digest)
        claims = []
        for claim in record.claims:
            device = state.device(self._node, claim.device_id)
            if device is None:
                raise WorkerError(f"device {claim.device_id} is gone")
            claims.append(
                DeviceClaim(claim.device_id, device.backend.value, device.index, claim.claim_bytes)
            )
        return Load(
            replica=record.replica,
            engine=deployment.engine,
            path="" if file is None else str(file.path),
            context=record.context,
            slots=record.slots,
            devices=tuple(claims),
            options=_local_options(deployment, held),
            check_tensors=record.digest not in self._checked,
        )

    def _kill(self, name: ReplicaId, reason: str) -> None:
        local = self._replicas.get(name)
        if local is None or local.ending:
            return
        log.info("%s ends: %s", name, reason)
        running = local.entry.status not in (Status.FETCHING, Status.FAILED)
        local.free_at_end = {load.device_id: load.free_bytes for load in self._ports.devices.load()}
        local.kill()
        if not running:
            # No process to wait for; a transfer under way goes on, as a copy.
            self._replicas.pop(name, None)
            self._changed()

    def _report(self, body: ReportReplica | ReportCopy | AdoptReplica) -> None:
        """Commit our news, once at a time each; what is refused is decided anew."""
        key = repr(body)
        if key not in self._reporting:
            self._reporting[key] = True
            self._tasks.spawn(self._propose(body, key), "report")

    async def _propose(self, body: ReportReplica | ReportCopy | AdoptReplica, key: str) -> None:
        try:
            await self._proposer.propose(body, actor="agent", reason="state of this node")
        except ProposalError as error:
            log.info("not reported yet: %s", error)
        finally:
            self._reporting.pop(key, None)
            self._pulse.nudge()

    # --- what changes the picture

    def _changed(self) -> None:
        for local in self._replicas.values():
            if local.entry.status is Status.READY:
                self._checked[local.record.digest] = True
        self._pulse.nudge()
        self._tell()

    def _transferred(self, digest: Digest, error: AivailableError | OSError | None) -> None:
        """A transfer ended. Replicas that waited for it go on, or count a failure."""
        state = self._cluster.state
        for key in sorted(self._replicas):
            local = self._replicas[key]
            fetching = local.entry.status is Status.FETCHING
            waits = fetching and digest in state.files_for(local.record)
            if waits and error is not None:
                log.warning("%s: fetching %s failed: %s", key, short(digest), error)
                jitter = self._ports.randomness.random.random()
                local.entry = after_failure(local.entry, str(error), self._now_ms(), jitter)
        self._changed()

    def _now_ms(self) -> int:
        return int(self._ports.clock.monotonic() * 1000)


def _local_options(deployment: Deployment, held: Mapping[str, FileStatus]) -> dict[str, str]:
    """Its options, naming this node's own copies of the companions: a path that another node wrote
    is never opened here. Raises WorkerError."""
    paths = {}
    known = {(entry.option, entry.path) for entry in deployment.companions}
    for option, path in files_named(deployment.options):
        if (option, path) not in known:
            raise WorkerError(
                f"{option} names a file that does not go with this deployment; deploy it again"
            )
    for entry in deployment.companions:
        file = held.get(entry.digest)
        if file is None:
            raise WorkerError(f"the file of {entry.option}={entry.path} is here no more")
        paths[entry.option, entry.path] = str(file.path)
    return dict(with_paths(deployment.options, paths) if paths else deployment.options)
