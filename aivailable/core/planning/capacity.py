"""The rooms of all devices while one decision is made: what is free, and the best place in it.

Owns the bookkeeping of free bytes by device, the filter of nodes and the choice of devices; a
ledger is thrown away after the decision. Must not decide what is placed, moved or drained, and
words nothing (`core.planning.placement`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from aivailable.core.cluster.liveness import Liveness, fresh_heartbeat, is_alive
from aivailable.core.ids import NodeId
from aivailable.core.state.constraints import (
    company_obstacle,
    device_obstacle,
    node_obstacle,
    picks_devices,
    strangers,
)
from aivailable.core.state.records import (
    Backend,
    Claim,
    Deployment,
    Device,
    Member,
    Replica,
    Status,
    Where,
)
from aivailable.core.state.state import State, failure_key
from aivailable.wire.peer import DeviceLoad

BUDGETED = frozenset({Backend.CPU, Backend.SIM})
"""Their size is what the operator granted: no margin, and live free memory says nothing; only
what others are known to use of it counts."""
SPLIT_DEVICES_MAX = 8
"""One replica lies on at most so many GPUs, the largest of its node."""
CONTEXT_STEP = 256
"""An automatic context grows by multiples of this: llama.cpp pads its cells to it."""
CPU_SLOTS_MAX = 8
"""Automatic slots on a CPU: a step there costs what its rows cost, so more only share it."""
_LOADED = frozenset({Status.READY, Status.DRAINING})

Rank = tuple[int, bool, bool, int, int, float, int, NodeId, str]
"""Smaller is better: loads failed there, on the CPU, split, bytes to fetch, about how much is left
over, minus speed, bytes left over, node, device."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The replica goes to `node`, with these bytes on these devices of one backend."""

    node: NodeId
    claims: tuple[Claim, ...]


@dataclass(slots=True)
class DeviceCapacity:
    """One device. `free_bytes` = min(total, live free + own use) - claims - margin;
    negative when others grew, or when it is promised to a replica that waits."""

    device: Device
    free_bytes: int
    on_cpu: bool
    rank: tuple[float, NodeId, str]


@dataclass(slots=True)
class NodeCapacity:
    """One member. `usable`: up, heard, not draining, with devices."""

    member: Member
    capacities: list[DeviceCapacity]
    engines: tuple[str, ...]
    usable: bool
    replicas: dict[str, Replica] = field(default_factory=dict)


def is_current(replica: Replica, deployment: Deployment) -> bool:
    """The replica is what the deployment asks for now, and shall stay. No generation is ever
    used twice, so it tells."""
    return not replica.drain and replica.generation == deployment.generation


class CapacityLedger:
    """All rooms of a state. Only replicas that are put or taken change it."""

    def __init__(self, state: State, liveness: Liveness) -> None:
        self._state = state
        self._liveness = liveness
        self._of: dict[str, dict[str, Replica]] = {}
        self._lives: dict[str, bool] = {}
        self._allowed: dict[tuple[Where, NodeId], list[DeviceCapacity]] = {}
        self._choosy = any(entry.where != Where() for entry in state.deployments.values())
        there: dict[NodeId, list[Replica]] = {node: [] for node in state.members}
        for key in sorted(state.replicas):
            replica = state.replicas[key]
            there.setdefault(replica.node, []).append(replica)
        self.hosts = {node: self._host(node, there[node]) for node in sorted(state.members)}
        for key in sorted(state.replicas):
            self.put(state.replicas[key])

    def put(self, replica: Replica) -> None:
        """Take its claims out of the rooms; a replica of that id that lay there is replaced."""
        known = self._of.setdefault(replica.deployment, {})
        if replica.replica in known:
            self.take(known[replica.replica])
            known = self._of[replica.deployment]
        known[replica.replica] = replica
        host = self.hosts.get(replica.node)
        if host is not None:
            host.replicas[replica.replica] = replica
            self._claim(host, replica.claims, 1)

    def take(self, replica: Replica) -> None:
        """Give its claims back."""
        del self._of[replica.deployment][replica.replica]
        host = self.hosts.get(replica.node)
        if host is not None:
            del host.replicas[replica.replica]
            self._claim(host, replica.claims, -1)

    def of(self, deployment: str) -> list[Replica]:
        """Its replicas, sorted by id."""
        known = self._of.get(deployment, {})
        return [known[key] for key in sorted(known)]

    def all(self) -> list[Replica]:
        """Every replica, sorted by id."""
        found = {key: entry for known in self._of.values() for key, entry in known.items()}
        return [found[key] for key in sorted(found)]

    def find(self, deployment: Deployment, only: NodeId = "") -> Placed | None:
        """The best place for one more replica, if given on that node; None = there is none."""
        best: tuple[Rank, Placed] | None = None
        need = max(1, deployment.need_bytes)
        files = self._state.files_of(deployment)
        for failed, host in self.open_hosts(deployment, only):
            lacks = self._bytes_to_fetch(files, host.member.node)
            capacities = self.capacities(deployment, host)
            single = False
            for capacity in capacities:
                left = capacity.free_bytes - need
                if left < 0:
                    continue
                single = True
                rough = (4 * left // need).bit_length()
                first = (failed, capacity.on_cpu, False, lacks, rough)
                if best is not None and best[0][:5] < first:
                    continue
                slow, node, name = capacity.rank
                rank = (*first, slow, left, node, name)
                if best is None or rank < best[0]:
                    claims = (Claim(capacity.device.device_id, need),)
                    best = rank, Placed(host.member.node, claims)
            if single or len(capacities) < 2 or (best and best[0][:3] < (failed, False, True)):
                continue
            for on_cpu, left, taken in _splits(deployment, capacities):
                rough = (4 * left // need).bit_length()
                slow, (node, name) = max(capacity.rank[0] for capacity in taken), taken[0].rank[1:]
                rank = (failed, on_cpu, True, lacks, rough, slow, left, node, name)
                if best is None or rank < best[0]:
                    best = rank, Placed(host.member.node, _shares(deployment, taken))
        return best[1] if best is not None else None

    def largest(self, deployment: Deployment, placed: Placed) -> tuple[int, int, tuple[Claim, ...]]:
        """The most tokens per slot for which there is room where it was placed; if that is all
        that it may have, the most slots; and the claims with them. Its own are not in the
        ledger."""
        growth, names = deployment.growth, [claim.device_id for claim in placed.claims]
        capacities = [
            capacity
            for capacity in self.hosts[placed.node].capacities
            if capacity.device.device_id in names
        ]
        context, slots = deployment.context, deployment.slots
        if growth is None or not capacities:
            return context, slots, placed.claims
        each = growth.token_kv_bytes, growth.token_compute_bytes
        context += _more(deployment, capacities, growth.context_max - context, *each)
        if context < growth.context_max:
            context -= (context - deployment.context) % CONTEXT_STEP
        else:
            most = deployment.slots_most
            if any(capacity.on_cpu for capacity in capacities):
                most = min(most, CPU_SLOTS_MAX)
            each = growth.slot_kv_bytes, growth.slot_compute_bytes
            slots += _more(deployment.grown(context, slots), capacities, most - slots, *each)
        return context, slots, _shares(deployment.grown(context, slots), capacities)

    def capacities(self, deployment: Deployment, host: NodeCapacity) -> list[DeviceCapacity]:
        """The devices of a node that the deployment allows."""
        where = deployment.where
        if not picks_devices(where):
            return host.capacities
        key = where, host.member.node
        if key not in self._allowed:
            self._allowed[key] = [
                b for b in host.capacities if not device_obstacle(where, b.device)
            ]
        return self._allowed[key]

    def anchored(self, host: NodeCapacity) -> frozenset[str]:
        """Deployments beside whose replica there another one's was placed: it must not move."""
        if not self._choosy:
            return frozenset()
        owners = self._state.deployments
        return frozenset(
            name
            for replica in host.replicas.values()
            if replica.deployment in owners
            for name in owners[replica.deployment].where.beside
        )

    def open_hosts(
        self, deployment: Deployment, only: NodeId = ""
    ) -> Iterator[tuple[int, NodeCapacity]]:
        """(failed loads, host) of every node that could take one more, however full it is."""
        state = self._state
        known = self._of.get(deployment.name, {}).values()
        taken_by = {entry.node for entry in known if is_current(entry, deployment)}
        cut_off = [d for d in state.files_of(deployment) if not self._held_alive(d)]
        where = deployment.where
        choosy = self._choosy or where != Where()
        apart = strangers(deployment, state.deployments) if choosy else frozenset()
        hosts = ((only, self.hosts[only]),) if only else self.hosts.items()
        for node, host in hosts:
            if not host.usable or node in taken_by or deployment.engine not in host.engines:
                continue
            if any(node not in state.holders(digest) for digest in cut_off):
                continue
            if choosy and (
                node_obstacle(where, host.member)
                or company_obstacle(where, apart, host.replicas.values())
            ):
                continue
            failed = failures(state, deployment, node) if state.failures else 0
            if failed < state.settings.load_attempts_max:
                yield failed, host

    def _bytes_to_fetch(self, files: Mapping[str, int], node: NodeId) -> int:
        holders = self._state.holders
        return sum(size for digest, size in files.items() if node not in holders(digest))

    def _held_alive(self, digest: str) -> bool:
        if digest not in self._lives:
            after_ms = self._state.settings.down_after_ms
            self._lives[digest] = any(
                holder in self._state.members and is_alive(self._liveness, holder, after_ms)
                for holder in self._state.copies.get(digest, ())
            )
        return self._lives[digest]

    def _host(self, node: NodeId, there: Sequence[Replica]) -> NodeCapacity:
        state, member = self._state, self._state.members[node]
        inventory = state.inventories.get(node)
        devices = inventory.devices if inventory is not None else ()
        after_ms = state.settings.down_after_ms
        heartbeat = fresh_heartbeat(self._liveness, node, after_ms)
        live: dict[str, DeviceLoad] = {}
        for load in heartbeat.devices if heartbeat is not None else ():
            live.setdefault(load.device_id, load)
        capacities = []
        for device in devices:
            usable, now = device.total_bytes, live.get(device.device_id)
            if device.backend in BUDGETED:
                usable -= now.used_by_others_bytes if now is not None else 0
            else:
                if now is not None:
                    own = own_use_bytes(there, device.device_id)
                    usable = min(usable, now.free_bytes + own)
                usable -= state.settings.margin_bytes
            rank = (-device.speed, node, device.device_id)
            capacities.append(DeviceCapacity(device, usable, device.backend is Backend.CPU, rank))
        paused = heartbeat is not None and heartbeat.paused_left_s > 0
        up = not member.down and not member.draining and not paused and bool(devices)
        usable_host = up and is_alive(self._liveness, node, after_ms)
        return NodeCapacity(member, capacities, inventory.engines if inventory else (), usable_host)

    def _claim(self, host: NodeCapacity, claims: Sequence[Claim], sign: int) -> None:
        for claim in claims:
            for capacity in host.capacities:
                if capacity.device.device_id == claim.device_id:
                    capacity.free_bytes -= sign * claim.claim_bytes


def _more(
    deployment: Deployment,
    capacities: Sequence[DeviceCapacity],
    most: int,
    kv_bytes: int,
    compute_bytes: int,
) -> int:
    """How many more of what costs so many bytes each, up to `most`, the devices hold together."""
    rooms = [capacity.free_bytes - deployment.compute_bytes for capacity in capacities]
    each = kv_bytes + len(capacities) * compute_bytes
    if each:
        most = min(most, (sum(rooms) - deployment.weights_bytes - deployment.kv_bytes) // each)
    if compute_bytes:
        most = min(most, min(rooms) // compute_bytes)
    return max(0, most)


def failures(state: State, deployment: Deployment, node: NodeId) -> int:
    """Failed loads of the deployment's present generation there."""
    failure = state.failures.get(failure_key(deployment.name, node))
    if failure is None or failure.generation != deployment.generation:
        return 0
    return failure.count


def own_use_bytes(there: Sequence[Replica], device_id: str) -> int:
    """What our loaded replicas hold on a device: measured bytes, else their claims."""
    return sum(
        replica.used_bytes.get(device_id, claim.claim_bytes)
        for replica in there
        if replica.status in _LOADED
        for claim in replica.claims
        if claim.device_id == device_id
    )


def _splits(
    deployment: Deployment, capacities: Sequence[DeviceCapacity]
) -> Iterator[tuple[bool, int, tuple[DeviceCapacity, ...]]]:
    """(on the CPU, bytes left, devices): of each backend the fewest devices that hold it
    together, the tightest of such sets; largest rooms first."""
    shared, compute = deployment.weights_bytes + deployment.kv_bytes, deployment.compute_bytes
    roomy = [capacity for capacity in capacities if capacity.free_bytes > compute]
    if sum(capacity.free_bytes for capacity in roomy) < shared + 2 * compute:
        return
    for backend in sorted({capacity.device.backend for capacity in roomy}):
        usable = [capacity for capacity in roomy if capacity.device.backend is backend]
        usable.sort(key=lambda capacity: (-capacity.free_bytes, capacity.device.device_id))
        usable = usable[:SPLIT_DEVICES_MAX]
        for count in range(2, len(usable) + 1):
            if sum(capacity.free_bytes - compute for capacity in usable[:count]) < shared:
                continue
            lefts = (
                (sum(capacity.free_bytes - compute for capacity in taken) - shared, index, taken)
                for index, taken in enumerate(combinations(usable, count))
            )
            left, _, taken = min((entry for entry in lefts if entry[0] >= 0), key=lambda e: e[:2])
            yield backend is Backend.CPU, left, taken
            break


def _shares(deployment: Deployment, taken: Sequence[DeviceCapacity]) -> tuple[Claim, ...]:
    """Weights and KV in proportion to the room, compute on each. Never more than the room."""
    shared, compute = deployment.weights_bytes + deployment.kv_bytes, deployment.compute_bytes
    rooms = [capacity.free_bytes - compute for capacity in taken]
    shares = [shared * room // sum(rooms) for room in rooms]
    rest = shared - sum(shares)
    for index, room in enumerate(rooms):
        extra = min(rest, room - shares[index])
        shares[index] += extra
        rest -= extra
    return tuple(
        Claim(capacity.device.device_id, share + compute)
        for share, capacity in zip(shares, taken, strict=True)
    )
