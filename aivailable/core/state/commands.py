"""Every change of the replicated state, as data.

A command names who wants it (`actor`), why (`reason`), and when by the proposer's clock
(`proposed_at_ms`, for people only: nothing is decided by it). `command_id` makes it idempotent.
Planner commands carry `control`; `apply` refuses any but the committed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aivailable.core.ids import ClusterId, CommandId, Digest, KeyId, NodeId, ReplicaId
from aivailable.core.state.records import (
    ApiKey,
    Claim,
    ClusterSettings,
    Control,
    Deployment,
    Inventory,
    Member,
    Model,
    Role,
    Status,
    SuccessorAddress,
)
from aivailable.wire.schema import since


@dataclass(frozen=True, slots=True)
class Found:
    """The first command of a cluster."""

    cluster_id: ClusterId
    name: str
    founder: Member
    key: ApiKey
    settings: ClusterSettings = field(default_factory=ClusterSettings)


@dataclass(frozen=True, slots=True)
class TakeControl:
    """The new Raft leader's first command: fences every earlier controller."""

    node: NodeId
    term: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Let a node in. `window_serial` names the open window that allows it; None = by key proof
    or operator. `keys` are the joiner's own admin key and those of a cluster it gave up."""

    member: Member
    keys: tuple[ApiKey, ...]
    window_serial: int | None
    tombstone: ClusterId = ""
    """The ended cluster whose tombstone lists the node: what allows it when there is no window."""


@dataclass(frozen=True, slots=True)
class Remove:
    """A member leaves or is expelled: its membership, claims and copies end."""

    node: NodeId
    revoke_keys: bool = False
    """Expelled, for good: the admin keys that came through it end as well (core.state.keys). One
    that leaves by itself keeps them: the key printed at founding is the operator's, wherever the
    founder goes."""
    keep_keys: tuple[KeyId, ...] = field(default=(), metadata=since(2))
    """Expelled, but these stay."""
    end_keys: tuple[KeyId, ...] = field(default=(), metadata=since(2))
    """Expelled, and these end, too."""


@dataclass(frozen=True, slots=True)
class Lapse:
    """Planner: who was let in and never linked loses its seat, and the keys that it brought."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class SetRole:
    """Planner: the Raft membership has changed accordingly."""

    node: NodeId
    role: Role


@dataclass(frozen=True, slots=True)
class UpdateMember:
    """A member's own news of itself: addresses, ports, version, instance."""

    node: NodeId
    name: str
    addresses: tuple[str, ...]
    link_port: int
    api_port: int
    version: str
    proto_min: int
    proto_max: int
    feature_max: int
    instance_id: str


@dataclass(frozen=True, slots=True)
class SayAway:
    """A member stops in good order and will be back; its next `UpdateMember` ends it."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class SetWindow:
    """Open the join window for `duration_s`, or close it with 0."""

    duration_s: int


@dataclass(frozen=True, slots=True)
class CloseWindow:
    """Planner: window `serial` has run its time."""

    serial: int


@dataclass(frozen=True, slots=True)
class MarkDown:
    """Planner: a majority misses the node; its replicas and claims end."""

    node: NodeId
    down: bool


@dataclass(frozen=True, slots=True)
class SetDraining:
    node: NodeId
    draining: bool


@dataclass(frozen=True, slots=True)
class ReportInventory:
    inventory: Inventory


@dataclass(frozen=True, slots=True)
class RegisterModel:
    """Enter a file into the catalogue; the registering node holds the first copy."""

    model: Model
    holder: NodeId


@dataclass(frozen=True, slots=True)
class RemoveModel:
    digest: Digest


@dataclass(frozen=True, slots=True)
class ReportCopy:
    """A node says that it holds (or no longer holds) a verified file."""

    node: NodeId
    digest: Digest
    held: bool


@dataclass(frozen=True, slots=True)
class PutDeployment:
    """Create, or replace when `replace_generation` names the current one (0 = create)."""

    deployment: Deployment
    replace_generation: int = 0
    holding: tuple[Digest, ...] = ()
    """Companions of which the proposer holds a verified copy."""


@dataclass(frozen=True, slots=True)
class RemoveDeployment:
    name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Planner: claim bytes for a new replica. Refused when a device would be oversubscribed."""

    replica: ReplicaId
    deployment: str
    generation: int
    node: NodeId
    claims: tuple[Claim, ...]
    context: int = 0
    """Tokens per slot, where the deployment leaves it to the place; 0 = the deployment's own."""
    slots: int = 0
    """Likewise; more than the deployment's own only with all the context that it may have."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Planner: this replica shall finish and go."""

    replica: ReplicaId
    why: str = field(default="", compare=False)
    """For people."""


@dataclass(frozen=True, slots=True)
class ReportReplica:
    """The agent of the replica's node: a transition. `gone` and `failed` end the claim."""

    replica: ReplicaId
    node: NodeId
    status: Status
    reason: str = ""
    used_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdoptReplica:
    """A node offers a standalone replica that it ran while there was no quorum: placed as it is,
    when its deployment still lacks one and its claims fit."""

    replica: ReplicaId
    deployment: str
    generation: int
    node: NodeId
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class PutKey:
    key: ApiKey


@dataclass(frozen=True, slots=True)
class RevokeKey:
    key_id: KeyId
    force: bool = field(default=False, metadata=since(2))
    """Also the last admin key."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """Another cluster will end in this one: its members may come with no window.

    `window_serial` names the open window that allows it; None = by proof of the join key."""

    cluster_id: ClusterId
    name: str
    members: tuple[NodeId, ...]
    window_serial: int | None


@dataclass(frozen=True, slots=True)
class Dissolve:
    """This cluster ends in `into`, which has adopted exactly `members`."""

    into: ClusterId
    name: str
    members: tuple[NodeId, ...]
    refuges: tuple[SuccessorAddress, ...]


@dataclass(frozen=True, slots=True)
class PutSettings:
    settings: ClusterSettings


@dataclass(frozen=True, slots=True)
class RaiseFeatureLevel:
    """Planner: every member's recorded version allows it."""

    level: int


Body = (
    Found
    | TakeControl
    | Admit
    | Remove
    | Lapse
    | SetRole
    | UpdateMember
    | SayAway
    | SetWindow
    | CloseWindow
    | MarkDown
    | SetDraining
    | ReportInventory
    | RegisterModel
    | RemoveModel
    | ReportCopy
    | PutDeployment
    | RemoveDeployment
    | Place
    | Drain
    | ReportReplica
    | AdoptReplica
    | PutKey
    | RevokeKey
    | Adopt
    | Dissolve
    | PutSettings
    | RaiseFeatureLevel
)

KINDS: Mapping[str, type[Any]] = {
    "found": Found,
    "take_control": TakeControl,
    "admit": Admit,
    "remove": Remove,
    "lapse": Lapse,
    "set_role": SetRole,
    "update_member": UpdateMember,
    "say_away": SayAway,
    "set_window": SetWindow,
    "close_window": CloseWindow,
    "mark_down": MarkDown,
    "set_draining": SetDraining,
    "report_inventory": ReportInventory,
    "register_model": RegisterModel,
    "remove_model": RemoveModel,
    "report_copy": ReportCopy,
    "put_deployment": PutDeployment,
    "remove_deployment": RemoveDeployment,
    "place": Place,
    "drain": Drain,
    "report_replica": ReportReplica,
    "adopt_replica": AdoptReplica,
    "put_key": PutKey,
    "revoke_key": RevokeKey,
    "adopt": Adopt,
    "dissolve": Dissolve,
    "put_settings": PutSettings,
    "raise_feature_level": RaiseFeatureLevel,
}
"""Wire name of each kind; a name is never reused."""

KIND_LEVELS: Mapping[type[Any], int] = {Lapse: 2}
"""Feature level of each kind that came after the first release (core.state.levels)."""

PLANNER_KINDS = frozenset({SetRole, CloseWindow, MarkDown, Lapse, Place, Drain, RaiseFeatureLevel})
"""Commands that only the committed controller may issue."""


@dataclass(frozen=True, slots=True)
class Command:
    """The envelope of a change."""

    command_id: CommandId
    body: Body
    actor: str
    """operator:<key id> | planner | agent | node | founder"""
    reason: str = ""
    proposed_at_ms: int = 0
    control: Control | None = None
    level: int = 1
    """The feature level that it needs: below it every version refuses it, unread."""
