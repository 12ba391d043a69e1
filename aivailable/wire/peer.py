"""Messages between two linked peers.

Control class (fire and forget, bounded queue): RaftMessage, Heartbeat, and small calls
(RpcCall → RpcReply). Request class (streams with credit): a stream is opened with Generate and
carries GenerationEvents back; Cancel goes forward. Weights travel on connections of their own: a
stream opened with FetchFile there carries FileChunk back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aivailable.wire.envelope import Registry
from aivailable.wire.generation import (
    Cancel,
    Embedded,
    Failed,
    Finished,
    Generate,
    Started,
    Tokens,
)


@dataclass(frozen=True, slots=True)
class LinkHello:
    """First frame in both directions, after the TLS handshake has proved the certificate."""

    cluster_id: str
    node: str
    instance_id: str
    version: str
    proto_min: int
    proto_max: int
    purpose: str = "link"
    """link | weights"""


@dataclass(frozen=True, slots=True)
class LinkRefused:
    """Why the other side ends the connection: other_cluster, removed, not_member, version,
    cloned_identity, busy, malformed."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RaftMessage:
    data: bytes


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Soft state of one local replica: never in the log."""

    replica: str
    deployment: str
    status: str
    slots: int
    slots_busy: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0
    progress: float = 0.0
    phase: str = ""
    reason: str = ""
    """Why the last attempt failed, while the next one waits or runs."""
    island: bool = False
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    generated_tokens: int = 0
    """The worker's own counters since its start: who did the work."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Guesses of speculative decoding that were computed, and those that were right."""
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    """Further counters of the worker (wire.worker.Counters)."""
    prefixes: tuple[int, ...] = ()
    """Digests of the prompt prefixes that are warm there (wire.prefixes)."""
    idle_ms: int = 0
    """Since its last request ended, or since it became ready; 0 while it works or is not ready."""
    queued_ms: int = 0
    """Since when requests have waited here without a pause because all slots were taken."""
    busy: float = 0.0
    """Share of its slots that was busy, averaged over the last minute or so."""
    notes: tuple[str, ...] = ()
    """What the engine runs with, as "threads=7"."""


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    device_id: str
    free_bytes: int
    used_by_others_bytes: int = 0
    utilization: float = 0.0
    temperature_c: float | None = None
    tight_ms: int = 0
    """Since when other programs leave it hardly any memory (core.planning.memory_pressure); 0 =
    they do not."""
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """A deployment that was asked for at this node and had no replica to answer."""

    deployment: str
    waiting: int = 0
    """Requests that wait for it here now; 0: the clients have gone, the load goes on."""
    asked_ms: int = 0
    """Since it was last asked for."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Once a second to every linked member. `hears` are the nodes this one has a live link to."""

    node: str
    instance_id: str
    seq: int
    applied: int
    hears: tuple[str, ...] = ()
    replicas: tuple[ReplicaLoad, ...] = ()
    devices: tuple[DeviceLoad, ...] = ()
    is_leader: bool = False
    term: int = 0
    raft_role: str = ""
    window_left_s: int = 0
    """The join window as this node times it; 0 when closed."""
    demand: tuple[Demand, ...] = ()
    """What waits here for a replica, last asked for first (at most DEMANDS_MAX)."""
    paused_left_s: int = 0
    """The machine's owner wants it for so long; 0 = it serves."""


@dataclass(frozen=True, slots=True)
class RpcCall:
    """A small question over the control class. `method` of PEER_METHODS."""

    call_id: int
    method: str
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RpcReply:
    call_id: int
    ok: bool
    values: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class FetchFile:
    """On a weights connection: send the file from `offset`."""

    digest: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class FileChunk:
    offset: int
    data: bytes
    total: int
    last: bool = False


PEER = Registry(
    raft=RaftMessage,
    heartbeat=Heartbeat,
    call=RpcCall,
    reply=RpcReply,
    generate=Generate,
    cancel=Cancel,
    started=Started,
    tokens=Tokens,
    embedded=Embedded,
    finished=Finished,
    failed=Failed,
    fetch_file=FetchFile,
    file_chunk=FileChunk,
)
HELLO = Registry(hello=LinkHello, refused=LinkRefused)
