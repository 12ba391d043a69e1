"""The picture that routing and people see: replicated state joined with soft state.

Owns the join and the status document; decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aivailable.core.cluster.liveness import (
    Heard,
    Liveness,
    device_load,
    fresh_heartbeat,
    is_alive,
    replica_load,
    silent_ms,
)
from aivailable.core.ids import NodeId, ReplicaId, short
from aivailable.core.serving.status import (
    ClusterStatus,
    DeploymentStatus,
    DeviceStatus,
    EventStatus,
    ModelStatus,
    NodeStatus,
    ReplicaStatus,
    WaitingStatus,
)
from aivailable.core.state.levels import waited_for
from aivailable.core.state.node_names import shown_name
from aivailable.core.state.records import Deployment, Device, Member, Replica, Status
from aivailable.core.state.state import State
from aivailable.wire.peer import DeviceLoad, ReplicaLoad

EVENTS_SHOWN = 20
COUNTED = (
    *("requests", "finished", "cancelled", "failed", "steps", "prompt_tokens", "cached_tokens"),
    *("generated_tokens", "drafted_tokens", "accepted_tokens"),
)
"""A worker's counters, by their one name in `ReplicaLoad` and `ReplicaStatus`."""


@dataclass(frozen=True, slots=True)
class View:
    """Immutable: what one decision is made on."""

    state: State
    liveness: Liveness


@dataclass(frozen=True, slots=True)
class ReadyReplica:
    """A replica that can take a request now, as its host's fresh heartbeat describes it."""

    replica: ReplicaId
    node: NodeId
    load: ReplicaLoad
    local: bool
    context: int
    """Tokens per slot."""


def ready_replicas(view: View, deployment: str) -> tuple[ReadyReplica, ...]:
    """Placed replicas that their host says are ready, standalone replicas included.

    The state alone is not enough: after a restart it still says ready while the worker loads.
    Sorted by replica id.
    """
    found = [
        ReadyReplica(
            replica.replica,
            replica.node,
            load,
            replica.node == view.liveness.here,
            replica.context,
        )
        for replica in view.state.replicas_of(deployment)
        if not obstacle(view, replica)
        and (load := _load(view.state, view.liveness, replica)) is not None
    ]
    return tuple(sorted((*found, *_standalone(view, deployment)), key=lambda entry: entry.replica))


def obstacle(view: View, replica: Replica) -> str:
    """Why a replica takes no new request; "" when it does."""
    if replica.drain or replica.status is Status.DRAINING:
        return "draining"
    load = _load(view.state, view.liveness, replica)
    if replica.status is not Status.READY and (load is None or load.status != Status.READY):
        return f"{replica.status.value}{_percent(load)}"
    # Ready in fact but not yet in the log: without a quorum the log may not hear of it for hours.
    after_ms = view.state.settings.down_after_ms
    if not is_alive(view.liveness, replica.node, after_ms):
        return f"its node has been silent for {silent_ms(view.liveness, replica.node) / 1000:.0f} s"
    if replica.node != view.liveness.here and replica.node not in view.liveness.linked:
        return "no link to its node"
    if load is None:
        return "its node does not run it yet"
    if load.status != Status.READY:
        return f"{load.status}{_percent(load)}"
    return ""


def status_of(
    state: State,
    liveness: Liveness,
    *,
    phase: str,
    advice: str,
    leader: NodeId | None,
    term: int,
    quorum: bool,
    window_left_s: int,
    waiting: tuple[WaitingStatus, ...],
    here_devices_load: Sequence[DeviceLoad],
    explain: Mapping[str, str],
) -> ClusterStatus:
    """The one document behind `status`, the monitor and `GET /cluster/v1/state`.

    `explain`: by deployment, from `core.planning.planner.explanations`. `here_devices_load` is
    fresher than our own last heartbeat.
    """
    view = View(state, liveness)
    return ClusterStatus(
        phase=phase,
        advice=advice,
        here=liveness.here,
        cluster_id=state.cluster.cluster_id if state.cluster is not None else "",
        cluster_name=state.cluster.name if state.cluster is not None else "",
        version=state.version,
        term=term,
        leader=leader,
        controller=state.control.node if state.control is not None else None,
        quorum=quorum,
        window_open=state.window.open,
        window_left_s=window_left_s if state.window.open else 0,
        feature_level=state.feature_level,
        voters=state.voters(),
        nodes=tuple(
            _node(view, state.members[node], leader, here_devices_load)
            for node in sorted(state.members)
        ),
        models=_models(state),
        deployments=tuple(
            _deployment(view, state.deployments[name], explain.get(name, ""))
            for name in sorted(state.deployments)
        ),
        replicas=_replicas(view),
        waiting=waiting,
        events=tuple(
            EventStatus(
                event.version,
                event.kind,
                event.subject,
                event.actor,
                event.reason,
                event.at_ms,
                event.text,
            )
            for event in state.events[-EVENTS_SHOWN:]
        ),
        founded_by=state.cluster.founded_by if state.cluster is not None else "",
        founded_at_ms=state.cluster.founded_at_ms if state.cluster is not None else 0,
        held_back_by=tuple(member.node for member in waited_for(state.members)),
    )


def _node(
    view: View, member: Member, leader: NodeId | None, here_load: Sequence[DeviceLoad]
) -> NodeStatus:
    node, liveness = member.node, view.liveness
    inventory = view.state.inventories.get(node)
    heard = node == liveness.here or node in liveness.heard
    heartbeat = fresh_heartbeat(liveness, node, view.state.settings.down_after_ms)
    applied = heartbeat.applied if heartbeat is not None else None
    return NodeStatus(
        node=node,
        short=short(node),
        name=shown_name(view.state.members, node),
        role=member.role.value,
        state=_node_state(view, member),
        age_ms=silent_ms(liveness, node) if heard else None,
        leader=node == leader,
        version=member.version,
        addresses=member.addresses,
        api_port=member.api_port,
        feature_max=member.feature_max,
        draining=member.draining,
        paused_left_s=heartbeat.paused_left_s if heartbeat is not None else 0,
        devices=tuple(
            _device(view, node, device, here_load)
            for device in (inventory.devices if inventory is not None else ())
        ),
        problems=inventory.problems if inventory is not None else (),
        applied=view.state.version if node == liveness.here else applied,
        raft_role=heartbeat.raft_role if heartbeat is not None else "",
        term=heartbeat.term if heartbeat is not None else 0,
        says_it_leads=heartbeat is not None and heartbeat.is_leader,
    )


def _node_state(view: View, member: Member) -> str:
    if member.node == view.liveness.here:
        return "here"
    if member.down:
        return "down"
    alive = is_alive(view.liveness, member.node, view.state.settings.down_after_ms)
    return "up" if alive else "silent"


def _device(
    view: View, node: NodeId, device: Device, here_load: Sequence[DeviceLoad]
) -> DeviceStatus:
    load: DeviceLoad | None = None
    if node == view.liveness.here:
        load = next((entry for entry in here_load if entry.device_id == device.device_id), None)
    if load is None:
        after_ms = view.state.settings.down_after_ms
        load = device_load(view.liveness, node, device.device_id, after_ms)
    known = DeviceStatus(
        device_id=device.device_id,
        name=device.name,
        backend=device.backend.value,
        total_bytes=device.total_bytes,
        claimed_bytes=view.state.claimed_bytes(node, device.device_id),
        decode_tokens_per_s=device.speed,
        prefill_tokens_per_s=device.prefill_speed,
        driver=device.driver,
    )
    if load is None:
        return known
    return replace(
        known,
        free_bytes=load.free_bytes,
        used_by_others_bytes=load.used_by_others_bytes,
        utilization=load.utilization,
        temperature_c=load.temperature_c,
        power_w=load.power_w,
    )


def _models(state: State) -> tuple[ModelStatus, ...]:
    return tuple(
        ModelStatus(
            digest=model.digest,
            name=model.name,
            architecture=model.facts.architecture,
            size_bytes=model.size_bytes,
            context_train=model.facts.context_train,
            quantization=model.facts.quantization,
            holders=state.holders(model.digest),
            parameters=model.facts.parameters,
            layers=model.facts.layers,
            has_chat_template=model.facts.has_chat_template,
        )
        for model in sorted(state.models.values(), key=lambda model: (model.name, model.digest))
    )


def _deployment(view: View, deployment: Deployment, explanation: str) -> DeploymentStatus:
    state = view.state
    ready = len(ready_replicas(view, deployment.name))
    model = state.models.get(deployment.digest)
    coming = any(not replica.drain for replica in state.replicas_of(deployment.name))
    return DeploymentStatus(
        name=deployment.name,
        model=model.name if model is not None else deployment.name,
        digest=deployment.digest,
        state=_deployment_state(deployment, ready, coming, explanation),
        idle_ttl_s=(
            state.settings.idle_ttl_s if deployment.idle_ttl_s is None else deployment.idle_ttl_s
        ),
        explanation="; ".join(
            text for text in (explanation, _troubles(state, deployment, ready)) if text
        ),
        context=deployment.context,
        slots=deployment.slots,
        replicas_ready=ready,
        replicas_min=deployment.replicas_min,
        replicas_max=deployment.replicas_max,
        need_bytes=deployment.need_bytes,
        predicted_by=deployment.predicted_by,
        copies=len(state.full_holders(deployment)),
        copies_wanted=(min(deployment.copies, len(state.members)) if model is not None else 0),
        aliases=deployment.aliases,
        options=deployment.options,
    )


def _deployment_state(deployment: Deployment, ready: int, coming: bool, explanation: str) -> str:
    if ready and ready >= deployment.replicas_min:
        return "ready"
    if not ready and deployment.replicas_min == 0 and not coming and not explanation:
        return "on demand"
    if ready:
        return "degraded"
    return "unplaceable" if explanation and not coming else "starting"


def _troubles(state: State, deployment: Deployment, ready: int) -> str:
    """Failed loads and the agents' own reasons, while replicas are missing."""
    if ready >= max(1, deployment.replicas_min):
        return ""
    texts = [
        f"{replica.replica} is {replica.status.value}: {replica.reason}"
        for replica in state.replicas_of(deployment.name)
        if replica.reason
    ]
    for key in sorted(state.failures):
        failure = state.failures[key]
        if (failure.deployment, failure.generation) == (deployment.name, deployment.generation):
            name = shown_name(state.members, failure.node)
            texts.append(f"failed {failure.count} × on {name}: {failure.reason}")
    return "; ".join(texts)


def _replicas(view: View) -> tuple[ReplicaStatus, ...]:
    state = view.state
    placed = [
        _replica(state, replica, _load(state, view.liveness, replica))
        for replica in (state.replicas[key] for key in sorted(state.replicas))
    ]
    standalone = [
        ReplicaStatus(
            replica=load.replica,
            deployment=load.deployment,
            node=heard.node,
            node_name=_name(state, heard.node),
            status=load.status,
            reason="island: runs outside the plan until the quorum is back",
            progress=load.progress,
            phase=load.phase,
            slots=load.slots,
            slots_busy=load.slots_busy,
            waiting=load.waiting,
            tokens_per_s=load.tokens_per_s,
            notes=load.notes,
            **_counted(load),
        )
        for heard in _fresh(view)
        for load in heard.heartbeat.replicas
        if load.island and load.replica not in state.replicas
    ]
    return (*placed, *standalone)


def _replica(state: State, replica: Replica, load: ReplicaLoad | None) -> ReplicaStatus:
    status = Status.DRAINING.value if replica.drain else replica.status.value
    return ReplicaStatus(
        replica=replica.replica,
        deployment=replica.deployment,
        node=replica.node,
        node_name=_name(state, replica.node),
        status=status,
        reason=replica.reason or (load.reason if load is not None else ""),
        progress=load.progress if load is not None else 0.0,
        phase=load.phase if load is not None else "",
        context=replica.context,
        slots=replica.slots,
        slots_busy=load.slots_busy if load is not None else 0,
        waiting=load.waiting if load is not None else 0,
        tokens_per_s=load.tokens_per_s if load is not None else 0.0,
        claimed_bytes=sum(claim.claim_bytes for claim in replica.claims),
        used_bytes=sum(replica.used_bytes.values()),
        notes=load.notes if load is not None else (),
        **(_counted(load) if load is not None else {}),
    )


def _counted(load: ReplicaLoad) -> dict[str, Any]:
    """The worker's counters as the status document has them."""
    return {name: getattr(load, name) for name in COUNTED}


def _standalone(view: View, deployment: str) -> list[ReadyReplica]:
    desired = view.state.deployments.get(deployment)
    reachable = (view.liveness.here, *view.liveness.linked)
    return [
        ReadyReplica(
            load.replica,
            heard.node,
            load,
            heard.node == view.liveness.here,
            desired.context if desired is not None else 0,
        )
        for heard in _fresh(view)
        if heard.node in reachable
        for load in heard.heartbeat.replicas
        if load.island
        and load.deployment == deployment
        and load.status == Status.READY
        and load.replica not in view.state.replicas
    ]


def _fresh(view: View) -> list[Heard]:
    """Members heard lately, sorted by node."""
    after_ms = view.state.settings.down_after_ms
    return [
        view.liveness.heard[node]
        for node in sorted(view.liveness.heard)
        if node in view.state.members and fresh_heartbeat(view.liveness, node, after_ms) is not None
    ]


def _load(state: State, liveness: Liveness, replica: Replica) -> ReplicaLoad | None:
    return replica_load(liveness, replica.node, replica.replica, state.settings.down_after_ms)


def _percent(load: ReplicaLoad | None) -> str:
    return f" {load.progress:.0%}" if load is not None and load.progress > 0 else ""


def _name(state: State, node: NodeId) -> str:
    return shown_name(state.members, node)
