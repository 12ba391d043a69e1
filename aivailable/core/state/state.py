"""The replicated state: one immutable value, the same on every node at the same version.

Owns the shape, its bytes and the small questions everybody asks of it. How a command changes it
is in `core.state.machine`. Mappings are plain dicts that nobody mutates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from aivailable.core.ids import Digest, NodeId
from aivailable.core.state.levels import LEVEL, too_old_for
from aivailable.core.state.records import (
    ApiKey,
    Cluster,
    ClusterSettings,
    Control,
    Deployment,
    Device,
    Dissolved,
    Event,
    Failure,
    Inventory,
    JoinWindow,
    Measured,
    Member,
    Model,
    OutcomeTable,
    Replica,
    Status,
    Tombstone,
)
from aivailable.errors import CodeTooOld, SchemaError
from aivailable.wire.schema import from_plain, pack, since, unpack_plain

STATE_FORMAT = 1
OUTCOMES_PER_PROPOSER_MAX = 1024
BYTES_MAX = 2**50
"""No device, claim or need is larger (1 PiB), so that sums stay encodable integers."""
EVENTS_MAX = 256
"""Events kept in the state; older ones are gone (a log file keeps them longer)."""

LIVE_STATUSES = frozenset(
    {Status.PLACED, Status.FETCHING, Status.LOADING, Status.READY, Status.DRAINING}
)
"""A replica in one of these holds its claim. `gone` and `failed` are not kept as replicas."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything the cluster agrees on. `version` counts applied commands."""

    format: int = STATE_FORMAT
    version: int = 0
    cluster: Cluster | None = None
    settings: ClusterSettings = field(default_factory=ClusterSettings)
    control: Control | None = None
    window: JoinWindow = field(default_factory=JoinWindow)
    feature_level: int = 1
    """What every member's code can do (core.state.levels); it never goes down."""
    members: Mapping[str, Member] = field(default_factory=dict)
    inventories: Mapping[str, Inventory] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Digest → nodes that hold the verified file, sorted."""
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    replica_numbers: Mapping[str, int] = field(default_factory=dict)
    """Highest replica number used, by deployment name, while it is deployed."""
    last_generation: int = 0
    """Of any deployment: a name deployed again never repeats a generation."""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    """`deployment@node` → loads that failed there for the current generation."""
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)
    outcomes: Mapping[str, OutcomeTable] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    operator_touched: bool = False
    """An operator has changed something: the cluster is no longer pristine."""
    tombstones: tuple[Tombstone, ...] = ()
    """Clusters that ended in this one, oldest first (core.state.merging)."""
    dissolved: Dissolved | None = None
    removed: tuple[NodeId, ...] = field(default=(), metadata=since(2))
    """Nodes that were taken out for good, oldest first: never let in again under this identity."""

    def device(self, node: NodeId, device_id: str) -> Device | None:
        inventory = self.inventories.get(node)
        if inventory is None:
            return None
        for device in inventory.devices:
            if device.device_id == device_id:
                return device
        return None

    def claimed_bytes(self, node: NodeId, device_id: str) -> int:
        """Bytes claimed on a device by every replica that holds a claim."""
        return sum(
            claim.claim_bytes
            for replica in self.replicas.values()
            if replica.node == node
            for claim in replica.claims
            if claim.device_id == device_id
        )

    def replicas_of(self, deployment: str) -> tuple[Replica, ...]:
        return tuple(
            self.replicas[key]
            for key in sorted(self.replicas)
            if self.replicas[key].deployment == deployment
        )

    def replicas_on(self, node: NodeId) -> tuple[Replica, ...]:
        return tuple(
            self.replicas[key] for key in sorted(self.replicas) if self.replicas[key].node == node
        )

    def holders(self, digest: Digest) -> tuple[NodeId, ...]:
        return self.copies.get(digest, ())

    def full_holders(self, deployment: Deployment) -> tuple[NodeId, ...]:
        """Nodes that hold the model's file and every companion."""
        own, *others = (self.holders(digest) for digest in deployment.digests)
        return tuple(node for node in own if all(node in other for other in others))

    def files_of(self, deployment: Deployment) -> dict[Digest, int]:
        """What a load of it reads, with the files' bytes. A model outside the catalogue (the fake
        engine's) is no file."""
        model = self.models.get(deployment.digest)
        files = {} if model is None else {model.digest: model.size_bytes}
        return files | {entry.digest: entry.size_bytes for entry in deployment.companions}

    def files_for(self, replica: Replica) -> dict[Digest, int]:
        """What a load of this replica reads, as `files_of`; its model stays the one that it was
        placed with."""
        model, owner = self.models.get(replica.digest), self.deployments.get(replica.deployment)
        files = {} if model is None else {model.digest: model.size_bytes}
        companions = owner.companions if owner is not None else ()
        return files | {entry.digest: entry.size_bytes for entry in companions}

    def files(self) -> dict[Digest, int]:
        """Every file that the cluster keeps, with its bytes: the catalogue, and the companions of
        what is deployed."""
        files = {model.digest: model.size_bytes for model in self.models.values()}
        for deployment in self.deployments.values():
            for entry in deployment.companions:
                files.setdefault(entry.digest, entry.size_bytes)
        return files

    def lacks_replica(self, deployment: Deployment) -> bool:
        """Whether fewer up-to-date replicas than wanted are placed."""
        placed = [
            entry
            for entry in self.replicas_of(deployment.name)
            if entry.generation == deployment.generation and not entry.drain
        ]
        return len(placed) < deployment.replicas_min

    def find_deployment(self, name: str) -> Deployment | None:
        """By name, then by alias (names win)."""
        found = self.deployments.get(name)
        if found is not None:
            return found
        for key in sorted(self.deployments):
            if name in self.deployments[key].aliases:
                return self.deployments[key]
        return None

    def find_model(self, name: str) -> Model | None:
        """By digest, then by catalogue name."""
        found = self.models.get(name)
        if found is not None:
            return found
        for key in sorted(self.models):
            if self.models[key].name == name:
                return self.models[key]
        return None

    def find_key(self, hashed: str) -> ApiKey | None:
        """The unrevoked key with this hash."""
        key = self.keys.get(hashed[:8])
        return key if key is not None and key.hashed == hashed and not key.revoked else None

    @property
    def pristine(self) -> bool:
        """One member, nothing deployed, no operator's hand: core.state.founding may give it up."""
        return len(self.members) <= 1 and not self.deployments and not self.operator_touched

    def voters(self) -> tuple[NodeId, ...]:
        return tuple(node for node in sorted(self.members) if self.members[node].role == "voter")


def encode_state(state: State) -> bytes:
    """Canonical bytes: equal states give equal bytes."""
    return pack(state)


def decode_state(data: bytes) -> State:
    """Raises SchemaError for anything but a state of a known format, CodeTooOld for one of a
    higher feature level than this code has, whatever else is in it."""
    plain = unpack_plain(data)
    level = plain.get("feature_level") if isinstance(plain, dict) else None
    if isinstance(level, int) and level > LEVEL:
        raise CodeTooOld(too_old_for(level))
    state = from_plain(State, plain)
    if state.format != STATE_FORMAT:
        raise SchemaError(f"state format {state.format}; this version reads {STATE_FORMAT}")
    return state


def state_digest(state: State) -> str:
    """SHA-256 of the canonical bytes: what `equal version = equal state` compares."""
    return hashlib.sha256(encode_state(state)).hexdigest()


def failure_key(deployment: str, node: NodeId) -> str:
    return f"{deployment}@{node}"
