"""What the HTTP API may ask of the node it runs in: the seam between `api` and the rest.

One small part for each reader. `peer.local_service` implements them, `peer.node` puts them
together; the API's tests use a fake for each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aivailable.core.ids import AccountId, ClusterId, KeyId, NodeId, ReplicaId
from aivailable.core.serving.histogram import Histogram
from aivailable.core.serving.status import (
    ClusterStatus,
    DrainStatus,
    FitStatus,
    PauseStatus,
    PlanStatus,
)
from aivailable.core.state.commands import Body
from aivailable.core.state.keys import KeyEndings
from aivailable.core.state.merging import Recovered
from aivailable.core.state.records import ApiKey, ClusterSettings, Deployment, Event, Where
from aivailable.raft.figures import RaftTally
from aivailable.wire.generation import Generate, GenerationEvent
from aivailable.wire.peer import Demand


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """`model` is a catalogue name, a digest, or a path on this node (registers the file).

    None = default of the model or the cluster. `replace` allows changing an existing deployment.
    """

    model: str
    name: str | None = None
    context: int | None = None
    context_max: int | None = None
    """Each replica takes from `context` up to this many tokens per slot, as fits where it is
    placed; 0 = as many as the model was trained for. None = exactly `context`."""
    slots: int | None = None
    slots_max: int | None = None
    """Likewise from `slots` up, where the context takes all that it may; 0 = as many as a worker
    takes."""
    replicas_min: int = 1
    replicas_max: int | None = None
    copies: int | None = None
    pin: bool = False
    priority: int = 0
    idle_ttl_s: int | None = None
    engine: str = "llama"
    options: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    where: Where = field(default_factory=Where)
    replace: bool = True


@dataclass(slots=True)
class Routing:
    """How a request went, for the response headers and the log; filled in while it runs."""

    ingress: NodeId
    host: NodeId = ""
    replica: str = ""
    attempts: int = 0
    queue_ms: int = 0
    wait_s: float = 60.0
    """How long to wait for a model that is deployed but not ready."""


@dataclass(frozen=True, slots=True)
class RaftFigures:
    """Where this node's copy of the log stands, and what Raft has counted here."""

    leading: bool
    commit_index: int
    last_index: int
    log_length: int
    """Entries kept since the last compaction."""
    tally: RaftTally


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """What this node measures of itself and tells nobody else: for /metrics."""

    raft: RaftFigures | None = None
    """None without a cluster."""
    demand: tuple[Demand, ...] = ()
    """Deployments that requests at this node wait for."""
    queue_waits: Mapping[ReplicaId, Histogram] = field(default_factory=dict)
    """Seconds in the queue of each replica on this node, since that replica came."""


class Inference(Protocol):
    """Answers requests for models."""

    @property
    def node(self) -> NodeId:
        """The ingress."""
        ...

    def generate(
        self, request: Generate, account: AccountId, routing: Routing
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Route and run, counted for `account` whatever the request says of itself. The first
        event is Started; the last is Finished. Raises RequestError before the first event or
        (mid-stream, when nothing can continue it) after. Closing the iterator cancels the request
        everywhere."""
        ...


class Observation(Protocol):
    """The cluster as this node knows it. Nothing here changes anything."""

    @property
    def node(self) -> NodeId: ...

    def status(self) -> ClusterStatus: ...

    def figures(self) -> NodeFigures: ...
    def ready(self) -> tuple[bool, str]:
        """Whether this node can take requests, and if not why (for /readyz)."""
        ...

    async def barrier(self) -> None:
        """Returns when everything committed before this call is applied here: the next `status`
        is then linearizable. Raises ProposalUnknown when no majority answers."""
        ...

    def deployments(self) -> tuple[Deployment, ...]: ...

    def settings(self) -> ClusterSettings: ...

    def events(self, after_version: int) -> tuple[Event, ...]:
        """Events with a version greater than `after_version`, oldest first."""
        ...

    async def changed(self, after_version: int) -> int:
        """Waits until the applied version is greater; returns it."""
        ...


class ApiKeys(Protocol):
    """Who may ask."""

    def find_key(self, api_key: str) -> ApiKey | None:
        """The unrevoked key, or None."""
        ...

    def with_id(self, key_id: KeyId) -> ApiKey | None:
        """The unrevoked key with this id, or None."""
        ...

    def believed(self, key: ApiKey) -> bool:
        """Whether an admin key still counts as one here: a node that is cut off for long cannot
        know which are revoked."""
        ...

    def keys(self) -> tuple[ApiKey, ...]: ...

    async def mint_key(self, scope: str, label: str, *, actor: str) -> tuple[str, ApiKey]:
        """A new API key: its text (shown once) and its record."""
        ...


class Changes(Protocol):
    """Changes that need nothing but to be committed."""

    async def propose(self, body: Body, *, actor: str, reason: str) -> None:
        """Returns when applied here. Raises ProposalRejected, ProposalUnknown."""
        ...


class Deployments(Protocol):
    """What shall run, and what would come of it."""

    async def deploy(self, request: DeployRequest, *, actor: str) -> Deployment:
        """Register (for a path), predict memory, commit. Raises RequestError, ProposalError,
        GgufError, OSError."""
        ...

    async def preview(self, request: DeployRequest) -> PlanStatus:
        """What `deploy` would come to, as a diff of the plan; changes nothing. Raises as it."""
        ...

    async def fit(self, request: DeployRequest) -> FitStatus:
        """Where one more replica fits now, and what would make it fit; changes nothing. Raises
        RequestError, GgufError, OSError."""
        ...


class Members(Protocol):
    """Who belongs to the cluster, and which of them serve."""

    async def leave(self) -> None:
        """Give up vote and membership, drain, and stop the process afterwards."""
        ...

    async def recover(
        self,
        *,
        actor: str,
        expected: tuple[NodeId, ...] | None = None,
        keep_keys: tuple[KeyId, ...] = (),
    ) -> Recovered:
        """Found the cluster anew from this node's copy; who is `expected` is let in again (None:
        everybody). Raises RequestError 409 while a leader is known, or was until a moment ago;
        OSError."""
        ...

    async def merge(self, into: ClusterId, *, actor: str) -> None:
        """End this cluster in another of its name. Returns when that is committed; the members
        move afterwards. Raises RequestError, ProposalError."""
        ...

    async def remove(
        self,
        node: NodeId,
        *,
        actor: str,
        keep_keys: tuple[KeyId, ...] = (),
        end_keys: tuple[KeyId, ...] = (),
    ) -> KeyEndings:
        """Take another member out for good. Raises ProposalError, AivailableError, RequestError
        409 `keys`."""
        ...

    def removal(
        self, node: NodeId, *, keep_keys: tuple[KeyId, ...], end_keys: tuple[KeyId, ...]
    ) -> KeyEndings:
        """What `remove` does to keys; changes nothing."""
        ...

    async def drain(
        self, node: NodeId, draining: bool, *, force: bool = False, actor: str
    ) -> DrainStatus:
        """Place nothing new on a node and move what runs there, or end that. Raises RequestError
        404, 409 `last_node` (unless `force`), ProposalError."""
        ...

    async def pause(self, node: NodeId, duration_s: int) -> PauseStatus:
        """Empty a member that its owner wants for `duration_s`, or end that with 0. Raises
        RequestError 404, 400, 503 when it cannot be reached."""
        ...


class Service(Protocol):
    """All parts. Only the server sees them together; it gives each dialect those it needs.
    RequestError carries HTTP status, code and advice."""

    @property
    def inference(self) -> Inference: ...

    @property
    def observation(self) -> Observation: ...

    @property
    def api_keys(self) -> ApiKeys: ...

    @property
    def changes(self) -> Changes: ...

    @property
    def deployments(self) -> Deployments: ...

    @property
    def members(self) -> Members: ...
