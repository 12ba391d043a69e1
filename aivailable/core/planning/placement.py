"""Where a replica goes: filter, score, explain.

Owns the answer for one replica on a given state, and the words for a refusal; the choice itself is
`core.planning.capacity`'s. Changes nothing; what it answers is checked again by `apply` and by the
agent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from aivailable.core.cluster.liveness import (
    NEWCOMER_GRACE_MS,
    Liveness,
    fresh_heartbeat,
    is_alive,
    silent_ms,
)
from aivailable.core.ids import Digest, NodeId, ReplicaId
from aivailable.core.planning.capacity import (
    CapacityLedger,
    DeviceCapacity,
    Placed,
    failures,
    is_current,
)
from aivailable.core.state.constraints import (
    company_obstacle,
    device_obstacle,
    node_obstacle,
    strangers,
)
from aivailable.core.state.node_names import shown_name, shown_names
from aivailable.core.state.records import Deployment, Member, Replica
from aivailable.core.state.state import State, failure_key

__all__ = [
    "DeviceVerdict",
    "Placed",
    "PlacementRefused",
    "explain",
    "format_bytes",
    "is_current",
    "newcomers",
    "place",
    "refusal",
]

CONTEXT_STEP = 256
"""A suggested context is a multiple of this."""
CONTEXT_SUGGESTED_MIN = 512
"""A smaller context is not worth suggesting."""
NOT_TOLD = "has not told its devices yet"
NOT_HEARD = "has joined and was not heard yet"
VERDICTS_SHOWN_MAX = 8
"""Devices named in one explanation; the rest are counted."""


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    """Why one device, or a whole node (`device_id` empty), was not taken. `need_bytes` is 0 where
    it is not for want of memory."""

    node: NodeId
    node_name: str
    device_id: str
    text: str
    need_bytes: int = 0
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PlacementRefused:
    """The replica fits nowhere; one verdict for each device or node, sorted."""

    reasons: tuple[DeviceVerdict, ...]


def format_bytes(count: int) -> str:
    """For people: "9.1 GiB", "300 MiB", "12 KiB"."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    if count >= 1 << 20:
        return f"{count / (1 << 20):.0f} MiB"
    if 0 < count < 1 << 10:
        return f"{count} bytes"
    return f"{count / (1 << 10):.0f} KiB"


def place(
    state: State,
    liveness: Liveness,
    deployment: Deployment,
    leaving: Collection[ReplicaId] = (),
) -> Placed | PlacementRefused:
    """The best place for one more replica of `deployment`, or why there is none.

    Order of preference: nodes where it failed least, GPUs before the CPU, one device before
    several, nodes that hold the file, about the tightest fit, the faster device, exactly the
    tightest fit, then names. Larger ones are placed first, so the fast devices are theirs.
    `leaving`: replicas that are thought gone, to learn whether waiting for them helps.
    """
    ledger = CapacityLedger(state, liveness)
    for replica in sorted(leaving):
        if replica in state.replicas:
            ledger.take(state.replicas[replica])
    found = ledger.find(deployment)
    return found if found is not None else refusal(state, liveness, deployment, ledger)


def refusal(
    state: State, liveness: Liveness, deployment: Deployment, ledger: CapacityLedger
) -> PlacementRefused:
    """What each device, or the whole node, lacks for one more replica as the ledger stands."""
    verdicts: list[DeviceVerdict] = []
    names = shown_names(state.members)
    for node, host in ledger.hosts.items():
        there = tuple(host.replicas.values())
        obstacle = _node_obstacle(state, liveness, deployment, host.member, there)
        if obstacle:
            verdicts.append(DeviceVerdict(node, names[node], "", obstacle))
        else:
            verdicts += [
                _verdict(deployment, host.member, names[node], capacity)
                for capacity in host.capacities
            ]
    return PlacementRefused(tuple(verdicts))


def newcomers(refused: PlacementRefused) -> tuple[str, ...]:
    """Names of nodes that came a moment ago, and whose devices are known in another moment."""
    return tuple(
        verdict.node_name for verdict in refused.reasons if verdict.text in (NOT_TOLD, NOT_HEARD)
    )


def explain(refused: PlacementRefused) -> str:
    """One sentence for people: every device with what was missing there."""
    if not refused.reasons:
        return "the cluster has no member to place it on"
    shown = [
        f"{verdict.node_name or verdict.node[:8]}"
        f"{' ' + verdict.device_id if verdict.device_id else ''}: {verdict.text}"
        for verdict in refused.reasons[:VERDICTS_SHOWN_MAX]
    ]
    more = len(refused.reasons) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _node_obstacle(
    state: State,
    liveness: Liveness,
    deployment: Deployment,
    member: Member,
    there: Iterable[Replica],
) -> str:
    """Why the whole node is out of the question; "" when it is not."""
    node = member.node
    inventory = state.inventories.get(node)
    attempts_max = state.settings.load_attempts_max
    if member.down:
        return "down"
    if member.draining:
        return "draining"
    if not is_alive(liveness, node, state.settings.down_after_ms):
        if node not in liveness.heard and silent_ms(liveness, node) < NEWCOMER_GRACE_MS:
            return NOT_HEARD
        return f"not heard for {silent_ms(liveness, node) / 1000:.0f} s"
    heartbeat = fresh_heartbeat(liveness, node, state.settings.down_after_ms)
    if heartbeat is not None and heartbeat.paused_left_s > 0:
        return f"paused by its owner for another {-(-heartbeat.paused_left_s // 60)} min"
    if inventory is None:
        return NOT_TOLD
    if not inventory.devices:
        return "has no usable device"
    if deployment.engine not in inventory.engines:
        return f"cannot run the engine {deployment.engine!r}"
    if any(r.deployment == deployment.name and is_current(r, deployment) for r in there):
        return "already has a replica of it"
    obstacle = node_obstacle(deployment.where, member) or company_obstacle(
        deployment.where, strangers(deployment, state.deployments), there
    )
    if obstacle:
        return obstacle
    if failures(state, deployment, node) >= attempts_max:
        reason = state.failures[failure_key(deployment.name, node)].reason
        return f"failed to load it {attempts_max} times, last: {reason or 'no reason given'}"
    return _file_obstacle(state, liveness, deployment, node)


def _file_obstacle(state: State, liveness: Liveness, deployment: Deployment, node: NodeId) -> str:
    """What the node lacks of the deployment's files and nobody can send."""
    for digest in state.files_of(deployment):
        holders = [holder for holder in state.holders(digest) if holder in state.members]
        after_ms = state.settings.down_after_ms
        if node in holders or any(is_alive(liveness, holder, after_ms) for holder in holders):
            continue
        names = ", ".join(shown_name(state.members, holder) for holder in holders)
        what = file_words(deployment, digest)
        return f"lacks {what}, and no live node has it (held by: {names or 'nobody'})"
    return ""


def file_words(deployment: Deployment | None, digest: Digest) -> str:
    """What the file is to the deployment."""
    for entry in deployment.companions if deployment is not None else ():
        if entry.digest == digest:
            return f"the file of {entry.option}={entry.path}"
    return "the model file"


def _verdict(
    deployment: Deployment, member: Member, name: str, capacity: DeviceCapacity
) -> DeviceVerdict:
    obstacle = device_obstacle(deployment.where, capacity.device)
    if obstacle:
        return DeviceVerdict(member.node, name, capacity.device.device_id, obstacle)
    need, free = deployment.need_bytes, max(0, capacity.free_bytes)
    text = f"needs {format_bytes(need)}, {format_bytes(free)} free"
    if format_bytes(need) == format_bytes(free):
        text += f", {format_bytes(need - free)} missing"
    context = _context_that_fits(deployment, free)
    if context:
        text += f"; would fit with ctx {context}"
    return DeviceVerdict(member.node, name, capacity.device.device_id, text, need, free)


def _context_that_fits(deployment: Deployment, free: int) -> int:
    """Tokens per slot whose KV cache fits into what weights and compute leave; 0 = none worth it.

    KV bytes grow in proportion to the context, which is right for full attention and cautious
    for a sliding window.
    """
    left = free - deployment.weights_bytes - deployment.compute_bytes
    if left <= 0 or deployment.kv_bytes <= 0:
        return 0
    context = left * deployment.context // deployment.kv_bytes
    context = min(context, deployment.context) // CONTEXT_STEP * CONTEXT_STEP
    return context if context >= CONTEXT_SUGGESTED_MIN else 0
