"""What a person sees of the cluster: the one document behind `status`, the monitor and
`GET /cluster/v1/state`.

Pure data, built by `core.serving.view.status_of`. Ages are ms at the node that answers; soft state
(free bytes, load) is shown with its age, replicated state with its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aivailable.core.ids import NodeId

HERE = "_here"
"""In the place of a node's name: the node that answers."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    device_id: str
    name: str
    backend: str
    total_bytes: int
    claimed_bytes: int
    free_bytes: int | None = None
    """Live, as the node said; None = not heard yet."""
    used_by_others_bytes: int = 0
    utilization: float = 0.0
    temperature_c: float | None = None
    power_w: float | None = None
    """What it draws now; None = it does not say."""
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    """Of the ten-second benchmark, with the same small model on every card; 0 = not measured."""
    driver: str = ""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    node: NodeId
    short: str
    name: str
    role: str
    """voter | observer"""
    state: str
    """here (answers this request) | up | silent | down"""
    age_ms: int | None
    """Since its last heartbeat; 0 for the answering node; None = never heard."""
    leader: bool
    version: str
    addresses: tuple[str, ...] = ()
    api_port: int = 0
    feature_max: int = 1
    """The feature level of the code that it runs, or ran when it was last up."""
    draining: bool = False
    paused_left_s: int = 0
    """Its owner wants it for so long."""
    devices: tuple[DeviceStatus, ...] = ()
    problems: tuple[str, ...] = ()
    applied: int | None = None
    """How far its copy of the state is, as `ClusterStatus.version`; None = not heard lately."""
    raft_role: str = ""
    term: int = 0
    says_it_leads: bool = False
    """Its own words of a heartbeat ago. While voters change they differ from `role`, and while a
    network is split from `leader`."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    replica: str
    deployment: str
    node: NodeId
    node_name: str
    status: str
    reason: str = ""
    progress: float = 0.0
    """0–1 while fetching or loading."""
    phase: str = ""
    """What a worker that is not ready does: loading | checking | warming."""
    context: int = 0
    """Tokens per slot of this one."""
    slots: int = 0
    slots_busy: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0
    claimed_bytes: int = 0
    used_bytes: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were not computed anew."""
    steps: int = 0
    """The worker's counters since its start, a heartbeat old."""
    notes: tuple[str, ...] = ()
    """What the engine runs with, given or chosen, as "threads=7"; empty until it is ready."""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    name: str
    model: str
    digest: str
    state: str
    """ready | starting | degraded | unplaceable | on demand (unloaded until it is asked for)"""
    explanation: str = ""
    """Why it is not ready: per device what was missing, which load failed and how."""
    context: int = 0
    slots: int = 0
    replicas_ready: int = 0
    replicas_min: int = 0
    replicas_max: int = 0
    need_bytes: int = 0
    predicted_by: str = ""
    copies: int = 0
    copies_wanted: int = 0
    """min(copies, members): the deployment is safe when copies ≥ copies_wanted."""
    aliases: tuple[str, ...] = ()
    idle_ttl_s: int = 0
    """Replicas beyond `replicas_min` go after being idle for so long."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Engine options as they were given."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    digest: str
    name: str
    architecture: str
    size_bytes: int
    context_train: int
    quantization: str
    holders: tuple[NodeId, ...] = ()
    parameters: int = 0
    layers: int = 0
    has_chat_template: bool = True
    """False: it completes texts, and chats with it are refused. An older node does not say."""


@dataclass(frozen=True, slots=True)
class WaitingStatus:
    """A node that asks to join and is not admitted: visible on both sides."""

    node: NodeId
    name: str
    address: str
    age_ms: int


@dataclass(frozen=True, slots=True)
class EventStatus:
    version: int
    kind: str
    subject: str
    actor: str
    reason: str
    at_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class DrainStatus:
    """A node that drains now, or serves again."""

    node: NodeId
    name: str
    draining: bool
    changed: bool
    """False: it was so already."""
    moving: tuple[str, ...] = ()
    """Replicas on it that will go."""
    staying: tuple[str, ...] = ()
    """Deployments without another place: they stay as long as the node is up."""


@dataclass(frozen=True, slots=True)
class PauseStatus:
    """A machine that its owner wants for a while, or that serves again."""

    node: NodeId
    name: str
    paused_left_s: int
    """0 = it serves."""
    ending: tuple[str, ...] = ()
    """Replicas on it that end now; requests under way finish first."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One line of a plan shown as a diff."""

    action: str
    """keep | place | drain | lack (a deployment that would miss replicas, with the reason)"""
    deployment: str
    replica: str = ""
    node: NodeId = ""
    node_name: str = ""
    devices: tuple[str, ...] = ()
    claim_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """What a deployment would come to; nothing was changed for it."""

    deployment: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    predicted_by: str
    """oracle (the engine's dry run: exact) | formula | option"""
    refusal: str = ""
    """Why it would be refused; "" = it would be taken."""
    steps: tuple[PlanStep, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """One device and one more replica of a model."""

    node: NodeId
    node_name: str
    device_id: str
    device_name: str = ""
    backend: str = ""
    total_bytes: int = 0
    claimed_bytes: int = 0
    used_by_others_bytes: int = 0
    margin_bytes: int = 0
    free_bytes: int = 0
    """For a new claim; 0 when the node is out of the question."""
    fits: bool = False
    missing_bytes: int = 0
    obstacle: str = ""
    """Why the whole node is out of the question."""
    context_max: int = 0
    """The most tokens per slot that fit here with the same slots; 0 = unknown or none."""
    advice: tuple[str, ...] = ()
    """Each alone would make it fit here."""


@dataclass(frozen=True, slots=True)
class FitStatus:
    """Whether and where a model fits now; nothing was changed for it."""

    model: str
    context: int
    slots: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    predicted_by: str
    """oracle (the engine's dry run: exact) | formula | option"""
    node_name: str = ""
    """Where the planner would put it; "" = nowhere."""
    devices_chosen: tuple[str, ...] = ()
    devices: tuple[DeviceFit, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """`phase`: seeking (looks for a cluster) | waiting (found one, not admitted) | member |
    removed. `advice` says what to do when something needs a person."""

    phase: str
    advice: str
    here: NodeId
    cluster_id: str
    cluster_name: str
    version: int
    """Applied index of the state shown: grows by one with every command."""
    term: int
    leader: NodeId | None
    controller: NodeId | None
    quorum: bool
    """The leader is known and heard: changes can be made."""
    window_open: bool
    window_left_s: int
    feature_level: int
    """What all members can do, also those that are off."""
    voters: tuple[NodeId, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()
    models: tuple[ModelStatus, ...] = ()
    deployments: tuple[DeploymentStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    waiting: tuple[WaitingStatus, ...] = ()
    events: tuple[EventStatus, ...] = ()
    """The last few."""
    founded_by: NodeId = ""
    founded_at_ms: int = 0
    """UTC, by the founder's clock."""
    held_back_by: tuple[NodeId, ...] = ()
    """Members with older code than the newest: the feature level waits for them."""
