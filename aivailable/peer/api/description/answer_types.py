"""What `/cluster/v1/*` and the health routes answer, as types.

Owns the shapes only. The handlers build them, the type checker compares, and `/openapi.json` is
made from them. What is not here is a dataclass of `core.serving.status` or `core.state.records`.

Not to be confused with `peer.api.openai.answer_types`, the shapes of OpenAI's dialect.
"""

from __future__ import annotations

from typing import Any, TypedDict

from aivailable.core.serving.status import (
    DeploymentStatus,
    ModelStatus,
    NodeStatus,
    ReplicaStatus,
    WaitingStatus,
)
from aivailable.core.state.records import Event


class ErrorDetail(TypedDict):
    """`code` is for programs, `message` for people."""

    message: str
    type: str
    code: str
    param: str | None
    request_id: str


class Error(TypedDict):
    """Every refusal and failure, in OpenAI's shape."""

    error: ErrorDetail


class Alive(TypedDict):
    """The process lives."""

    status: str


class Readiness(TypedDict):
    """Whether this node takes requests, and why not."""

    ready: bool
    reason: str


class NodesPage(TypedDict):
    """Nodes with their devices, as of a version of the replicated state."""

    version: int
    nodes: tuple[NodeStatus, ...]


class MemberStatus(TypedDict):
    """A node without its devices."""

    node: str
    short: str
    name: str
    role: str
    state: str
    age_ms: int | None
    leader: bool
    version: str
    addresses: list[str]
    api_port: int
    feature_max: int
    draining: bool
    paused_left_s: int
    problems: list[str]
    applied: int | None
    raft_role: str
    term: int
    says_it_leads: bool


class MembersPage(TypedDict):
    """Members, voters, and who waits for admission."""

    version: int
    cluster_id: str
    leader: str | None
    voters: list[str]
    members: list[MemberStatus]
    waiting: tuple[WaitingStatus, ...]


class DeploymentsPage(TypedDict):
    """Deployments and their replicas."""

    version: int
    deployments: tuple[DeploymentStatus, ...]
    replicas: tuple[ReplicaStatus, ...]


class ModelsPage(TypedDict):
    """The catalogue of model files."""

    version: int
    models: tuple[ModelStatus, ...]


class KeyShown(TypedDict):
    """An API key's record, without its text and its hash."""

    key_id: str
    scope: str
    label: str
    created_at_ms: int
    revoked: bool
    node: str
    """The member that brought it; "" = none did."""
    via: str
    """The node that proposed it; "" = not recorded."""
    by: str
    """The key that asked for it; "" = none."""


class KeysPage(TypedDict):
    """All API keys, oldest first."""

    keys: list[KeyShown]


class KeyMade(KeyShown):
    """A new API key: this is the only time that its text is shown."""

    key: str


class KeyProof(TypedDict):
    """That this node knows a key: an HMAC over the nonce and the port that was asked."""

    proof: str
    port: int


class KeyRevoked(TypedDict):
    """The id of the key that counts no longer."""

    revoked: str


class EventsPage(TypedDict):
    """History, oldest first. Go on after `version`."""

    version: int
    events: tuple[Event, ...]


class WindowSet(TypedDict):
    """How long strangers are admitted from now on; 0 = not."""

    duration_s: int


class Removed(TypedDict):
    """What was removed: a deployment's name, or a node's id."""

    removed: str


class MemberRemoved(Removed):
    """The member that was taken out, and what became of the keys that came through it."""

    ended_keys: list[str]
    kept_keys: list[str]


class KeyThrough(KeyShown):
    """A key that came through a member, and whether it ends when that one is removed."""

    ends: bool


class KeysThrough(TypedDict):
    """What becomes of the keys that came through a member when it is removed."""

    node: str
    keys: list[KeyThrough]
    problem: str
    """Why it is refused like this; "" = it is not."""


class Left(TypedDict):
    """The node that has left."""

    left: str


class RecoveredCluster(TypedDict):
    """The cluster that was founded anew, and what was given up for it."""

    cluster_id: str
    gone: list[str]
    awaited: list[str]
    """Of them, those that are let in again; the others are out for good."""
    lost_models: list[str]
    ended_keys: list[str]


class MergeStarted(TypedDict):
    """The cluster that this one ends in."""

    into: str


class SettingShown(TypedDict):
    """One setting with its range."""

    key: str
    value: Any
    default: Any
    unit: str
    least: int
    most: int
    meaning: str


class SettingsPage(TypedDict):
    """All settings of the cluster."""

    settings: list[SettingShown]
