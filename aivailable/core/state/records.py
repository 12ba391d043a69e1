"""What the cluster remembers: every record of the replicated state, each with one writer.

Pure data. Sizes are bytes, times are ms UTC and for people only (`*_at_ms`), memory is claimed
in bytes per device. Fields may be added with a default and their feature level (`since`); none is
ever renamed or reused. A value added to an enum gets its level in VALUE_LEVELS.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from aivailable.core.ids import ClusterId, Digest, KeyId, NodeId, ReplicaId
from aivailable.gguf.companion_options import with_paths
from aivailable.gguf.facts import ModelFacts
from aivailable.wire.schema import since


class Role(enum.StrEnum):
    VOTER = "voter"
    OBSERVER = "observer"


class Backend(enum.StrEnum):
    CUDA = "cuda"
    ROCM = "rocm"
    VULKAN = "vulkan"
    CPU = "cpu"
    SIM = "sim"


class Status(enum.StrEnum):
    """Life of a replica: placed → fetching → loading → ready → draining → gone, failed from any."""

    PLACED = "placed"
    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"
    FAILED = "failed"


class Scope(enum.StrEnum):
    ADMIN = "admin"
    USER = "user"


VALUE_LEVELS: Mapping[tuple[type[enum.StrEnum], str], int] = {}
"""(enum, value) → feature level, for each value that came after the first release
(core.state.levels)."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Writer: the founder, once."""

    cluster_id: ClusterId
    name: str
    founded_by: NodeId
    founded_at_ms: int


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Cluster-wide settings, changed with `aivailable set`. Writer: the operator."""

    margin_bytes: int = 256 * 1024 * 1024
    """Left free on every real GPU for the display and other programs (not on cpu and sim)."""
    down_after_ms: int = 3_000
    """A node that a majority has not heard for this long is down."""
    join_window_s: int = 900
    load_attempts_max: int = 5
    """Failed loads of one deployment on one node before the planner looks elsewhere."""
    queue_per_slot_max: int = 8
    idle_ttl_s: int = 600
    copies_default: int = 2
    spare_fill: bool = True
    """Deployments of `replicas MIN..MAX` grow into spare memory when they are busy, and not only
    when requests queue."""


@dataclass(frozen=True, slots=True)
class Control:
    """Who may issue planner commands: the Raft leader that committed this record."""

    node: NodeId
    term: int


@dataclass(frozen=True, slots=True)
class JoinWindow:
    """Strangers are admitted while `open`. Timed by each node's monotonic clock from the moment
    it saw `serial`; the controller closes it in the log. Writer: operator, founder, controller."""

    serial: int = 0
    open: bool = False
    duration_s: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """An admitted node. Writer: admission; addresses, version and ports: the node itself."""

    node: NodeId
    name: str
    certificate: bytes
    """DER; its public key hashes to `node`."""
    role: Role = Role.OBSERVER
    addresses: tuple[str, ...] = ()
    """Last known IP literals, best first. Hints, never identity."""
    link_port: int = 0
    api_port: int = 0
    version: str = ""
    proto_min: int = 1
    proto_max: int = 1
    feature_max: int = 1
    """The feature level of the code that it runs: its last word, also while it is off."""
    instance_id: str = ""
    joined_at_ms: int = 0
    down: bool = False
    """Writer: planner."""
    draining: bool = False
    """Writer: operator."""
    away: bool = False
    """It said good-bye (switched off for the night): its seat is kept longer. Writer: itself."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as an inference backend sees it. Writer: its node."""

    device_id: str
    """PCI id where there is one ("0000:01:00.0"), else "cpu0", "sim0", …"""
    name: str
    vendor: str
    backend: Backend
    index: int
    """In the backend's own order."""
    total_bytes: int
    architecture: str = ""
    driver: str = ""
    speed: float = 0.0
    """Measured decode tokens/s of the ten-second benchmark; 0 = not measured."""
    prefill_speed: float = 0.0
    """Measured prompt tokens/s of the same benchmark; 0 = not measured."""


@dataclass(frozen=True, slots=True)
class Inventory:
    node: NodeId
    devices: tuple[Device, ...] = ()
    engines: tuple[str, ...] = ()
    """Engines a worker can start with here: "llama", "fake"."""
    problems: tuple[str, ...] = ()
    """What was looked for and not found, in words for the operator."""


@dataclass(frozen=True, slots=True)
class Model:
    """An entry of the catalogue. Writer: operator."""

    digest: Digest
    name: str
    size_bytes: int
    source: str
    """Where it came from, for people: a path on the registering node, a URL."""
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Where:
    """Where replicas of a deployment may go; an empty field asks for nothing. Judged when one is
    placed: what runs is not moved when a card, a node's name or a neighbour changes later.
    Patterns know `*`, `?` and `[…]`, and no case."""

    nodes: tuple[str, ...] = ()
    """Only nodes of which one of these is a pattern of the name, or the id, or its beginning."""
    not_nodes: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    """Only devices of which one of these is a pattern of the name ("*3090*"), or their id."""
    vendors: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    architecture_min: str = ""
    """"7.5" or "sm_75": NVIDIA's compute capability; "gfx906": AMD's target."""
    beside: tuple[str, ...] = ()
    """Only hosts where each of these deployments has a replica."""
    apart_from: tuple[str, ...] = ()
    """No host where one of these deployments has a replica; they keep away from it as well."""


@dataclass(frozen=True, slots=True)
class Growth:
    """The context, the slots or both are `auto`: the deployment's own are the least, and each
    replica takes as much more as fits where it is placed, once for all. First the context grows;
    further slots are only for those with all of it, so their bytes are known for that one."""

    context_max: int
    """The deployment's own = the context is fixed."""
    token_kv_bytes: int
    """Of one token more in each of the deployment's own slots."""
    token_compute_bytes: int
    slots_max: int = 0
    """0 = the slots are fixed."""
    slot_kv_bytes: int = 0
    """Of one slot more with `context_max` tokens."""
    slot_compute_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Companion:
    """A file that goes with a deployment's model, hashed by the node that deployed it. Every
    host loads its own copy of it."""

    option: str
    """The engine option that names it: lora, projector."""
    path: str
    """As that option gives it: a word of the user, good only where it was deployed."""
    digest: Digest
    size_bytes: int
    compute_bytes: int = 0
    """What its use takes beside the file's tensors: of a projector, encoding one image."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What shall run. Writer: operator. `generation` grows with every change."""

    name: str
    digest: Digest
    generation: int = 1
    context: int = 4096
    """Tokens per slot."""
    slots: int = 4
    replicas_min: int = 1
    replicas_max: int = 1
    copies: int = 2
    idle_ttl_s: int | None = None
    pin: bool = False
    priority: int = 0
    engine: str = "llama"
    options: Mapping[str, str] = field(default_factory=dict)
    """Engine options: kv_type, ubatch, threads, lora, projector, …"""
    aliases: tuple[str, ...] = ()
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    """Prediction for one replica on one device (the engine's dry run, or the formula)."""
    predicted_by: str = "formula"
    where: Where = Where()
    growth: Growth | None = None
    """None: context and slots are as they stand here, everywhere."""
    companions: tuple[Companion, ...] = ()
    """The files that `options` name, in their order. They are copied, held and fetched like the
    model's own."""

    @property
    def need_bytes(self) -> int:
        """Bytes one replica needs when it lies on a single device."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    @property
    def digests(self) -> tuple[Digest, ...]:
        """The model's file, then its companions', each once."""
        return tuple(dict.fromkeys((self.digest, *(entry.digest for entry in self.companions))))

    @property
    def settled_options(self) -> Mapping[str, str]:
        """With each companion's digest for its path: the same files, wherever they lie."""
        return settled(self.options, self.companions)

    @property
    def context_most(self) -> int:
        """Tokens per slot that a replica may have."""
        return self.context if self.growth is None else self.growth.context_max

    @property
    def slots_most(self) -> int:
        """Slots that a replica may have, with `context_most` tokens each."""
        return self.slots if self.growth is None else max(self.slots, self.growth.slots_max)

    def grown(self, context: int, slots: int) -> Deployment:
        """The same with this many tokens per slot and slots, not less than its own, and their
        bytes."""
        growth = self.growth
        if growth is None:
            return self
        more, further = context - self.context, slots - self.slots
        kv = growth.token_kv_bytes * more + growth.slot_kv_bytes * further
        compute = growth.token_compute_bytes * more + growth.slot_compute_bytes * further
        return replace(
            self,
            context=context,
            slots=slots,
            kv_bytes=self.kv_bytes + kv,
            compute_bytes=self.compute_bytes + compute,
        )


def settled(options: Mapping[str, str], companions: tuple[Companion, ...]) -> Mapping[str, str]:
    """The options with each companion's digest for its path."""
    if not companions:
        return options
    return with_paths(options, {(entry.option, entry.path): entry.digest for entry in companions})


@dataclass(frozen=True, slots=True)
class Claim:
    device_id: str
    claim_bytes: int


@dataclass(frozen=True, slots=True)
class Replica:
    """One running (or starting) copy. Writer of placement and claims: planner.
    Writer of status, reason, measured bytes: the agent of `node`."""

    replica: ReplicaId
    deployment: str
    digest: Digest
    generation: int
    node: NodeId
    claims: tuple[Claim, ...]
    context: int
    slots: int
    status: Status = Status.PLACED
    reason: str = ""
    attempts: int = 0
    drain: bool = False
    """The planner wants it gone; the agent finishes what runs and reports `gone`."""
    used_bytes: Mapping[str, int] = field(default_factory=dict)
    """Measured after load, by device id."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Writer: operator; the first by the founder, one per member at admission."""

    key_id: KeyId
    hashed: str
    scope: Scope
    label: str
    created_at_ms: int = 0
    revoked: bool = False
    node: NodeId = ""
    """The member that brought it; "" = made by an operator."""
    via: NodeId = field(default="", metadata=since(2))
    """The node that proposed it, as `apply` saw it; "" = from before level 2."""
    by: KeyId = field(default="", metadata=since(2))
    """The key that asked for it; "" = none did."""
    revoked_version: int = field(default=0, metadata=since(2))
    """The version of the state that revoked it: the oldest are forgotten first."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Predicted against measured bytes of one configuration. Writer: agent."""

    predicted_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Loads of a deployment's generation that failed on a node, for backoff and explanation."""

    deployment: str
    generation: int
    node: NodeId
    count: int
    reason: str
    for_memory: bool = False
    """The last one needed more than it had claimed. Tried once more with what it asked for."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A cluster that ended in this one: who of it may still come in with no window."""

    cluster_id: ClusterId
    name: str
    awaited: tuple[NodeId, ...]
    """Its members that have not come yet, sorted. Coming strikes a node off, for good."""
    merged: bool = True
    """It dissolves into us. False: we were founded anew from one of its members' copies."""


@dataclass(frozen=True, slots=True)
class SuccessorAddress:
    """A member of the cluster that ours ends in, and where it was."""

    node: NodeId
    addresses: tuple[str, ...]
    link_port: int


@dataclass(frozen=True, slots=True)
class Dissolved:
    """This cluster has ended in another: its members go there, and nothing changes here."""

    into: ClusterId
    name: str
    refuges: tuple[SuccessorAddress, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the cluster's history; `version` is the applied index it came from."""

    version: int
    kind: str
    subject: str
    actor: str
    reason: str
    at_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """What became of a command, kept to answer its repeats."""

    accepted: bool
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class OutcomeTable:
    """The last OUTCOMES_PER_PROPOSER_MAX outcomes of one proposer, by sequence number.

    `floor` is the highest sequence number that has been forgotten.
    """

    floor: int = 0
    outcomes: tuple[tuple[int, CommandOutcome], ...] = ()
