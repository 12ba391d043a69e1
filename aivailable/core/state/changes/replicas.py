"""Handlers: placements with their claims, and what becomes of them.

Not to be confused with `peer.serving.replicas`, which runs the replicas of a node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.core.ids import replica_id, short, standalone_id
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.commands import (
    AdoptReplica,
    Command,
    Drain,
    Place,
    ReportReplica,
)
from aivailable.core.state.learned_memory import measured_key
from aivailable.core.state.records import (
    Deployment,
    Failure,
    Measured,
    Replica,
    Status,
)
from aivailable.core.state.state import BYTES_MAX, State, failure_key

MEASURED_MAX = 1024
REASON_MAX_CHARS = 300
FORWARD: Mapping[Status, frozenset[Status]] = {
    Status.PLACED: frozenset(
        {Status.FETCHING, Status.LOADING, Status.DRAINING, Status.GONE, Status.FAILED}
    ),
    Status.FETCHING: frozenset({Status.LOADING, Status.DRAINING, Status.GONE, Status.FAILED}),
    Status.LOADING: frozenset(
        {Status.READY, Status.FETCHING, Status.DRAINING, Status.GONE, Status.FAILED}
    ),
    Status.READY: frozenset({Status.LOADING, Status.DRAINING, Status.GONE, Status.FAILED}),
    Status.DRAINING: frozenset({Status.GONE, Status.FAILED}),
}
"""Allowed transitions. READY → LOADING is a worker that died and is started again."""


def place(state: State, _command: Command, body: Place) -> Change | Reject:
    deployment = state.deployments.get(body.deployment)
    if deployment is None or deployment.generation != body.generation:
        return Reject("conflict", f"{body.deployment} has changed meanwhile")
    number = state.replica_numbers.get(body.deployment, 0) + 1
    if body.replica != replica_id(body.deployment, body.generation, number):
        return Reject("conflict", f"the next replica is number {number}")
    member = state.members.get(body.node)
    if member is None or member.down:
        return Reject("node_down", f"{short(body.node)} is not there")
    refused = _growth_problem(deployment, body) or claim_problem(state, body)
    if refused is not None:
        return refused
    replica = _new_replica(deployment, body)
    after = replace(
        state,
        replicas={**state.replicas, body.replica: replica},
        replica_numbers={**state.replica_numbers, body.deployment: number},
    )
    return Change(after, "placed", body.replica, f"{body.deployment} placed on {member.name}")


def _growth_problem(deployment: Deployment, body: Place) -> Reject | None:
    """A place decides only what the deployment leaves open."""
    least, most = deployment.context, deployment.context_most
    if body.context and not least <= body.context <= most:
        return Reject("invalid_context", f"context: {least} to {most} tokens")
    whole = (body.context or least) == most
    slots = deployment.slots_most if whole else deployment.slots
    if body.slots and not deployment.slots <= body.slots <= slots:
        return Reject("invalid_slots", f"slots with this context: {deployment.slots} to {slots}")
    return None


def claim_problem(state: State, body: Place) -> Reject | None:
    """No device is ever oversubscribed: the planner's word is checked again here, because it
    may have planned on an older state."""
    if not body.claims:
        return Reject("no_claim", "a replica claims at least one device")
    devices = [claim.device_id for claim in body.claims]
    if len(devices) != len(frozenset(devices)):
        return Reject("invalid_claim", "a device is claimed twice")
    for claim in body.claims:
        device = state.device(body.node, claim.device_id)
        if device is None:
            return Reject("no_device", f"{short(body.node)} has no device {claim.device_id}")
        free = device.total_bytes - state.claimed_bytes(body.node, claim.device_id)
        if claim.claim_bytes <= 0 or claim.claim_bytes > free:
            return Reject(
                "oversubscribed",
                f"{claim.device_id}: {claim.claim_bytes} bytes claimed, {free} left",
            )
    return None


def adopt_replica(state: State, command: Command, body: AdoptReplica) -> Change | Reject:
    """A standalone replica becomes a placed replica, already serving."""
    deployment = state.deployments.get(body.deployment)
    if body.node != command.command_id.proposer:
        return Reject("not_yours", "a node offers its own standalone replicas only")
    if deployment is None or deployment.generation != body.generation:
        return Reject("conflict", f"{body.deployment} has changed meanwhile")
    if body.replica != standalone_id(body.deployment, body.generation, body.node):
        return Reject("invalid_replica", "this is not the name of a standalone replica")
    if body.replica in state.replicas or not state.lacks_replica(deployment):
        return Reject("not_needed", f"{body.deployment} has its replicas; committed ones win")
    if state.members[body.node].down:
        return Reject("node_down", f"{short(body.node)} is marked as down")
    placing = Place(body.replica, body.deployment, body.generation, body.node, body.claims)
    refused = claim_problem(state, placing)
    if refused is not None:
        return refused
    replica = replace(_new_replica(deployment, placing), status=Status.READY)
    after = replace(state, replicas={**state.replicas, replica.replica: replica})
    name = state.members[body.node].name
    return Change(after, "placed", replica.replica, f"{body.deployment} adopted on {name}")


def _new_replica(deployment: Deployment, body: Place) -> Replica:
    return Replica(
        replica=body.replica,
        deployment=body.deployment,
        digest=deployment.digest,
        generation=body.generation,
        node=body.node,
        claims=body.claims,
        context=body.context or deployment.context,
        slots=body.slots or deployment.slots,
    )


def drain(state: State, _command: Command, body: Drain) -> Change | Reject:
    replica = state.replicas.get(body.replica)
    if replica is None or replica.drain:
        return Change(state)
    fresh = replace(replica, drain=True)
    after = replace(state, replicas={**state.replicas, replica.replica: fresh})
    why = f": {body.why[:REASON_MAX_CHARS]}" if body.why else ""
    return Change(after, "draining", body.replica, f"{body.replica} drains{why}")


def report_replica(state: State, command: Command, body: ReportReplica) -> Change | Reject:
    replica = state.replicas.get(body.replica)
    if body.node != command.command_id.proposer:
        return Reject("not_yours", "the agent of the placed node reports its replicas")
    if replica is None or replica.node != body.node:
        return Reject("unknown_replica", f"{body.replica} is not placed there")
    if body.status == replica.status and body.status not in (Status.GONE, Status.FAILED):
        return Change(state)
    if body.status not in FORWARD[replica.status]:
        return Reject("bad_transition", f"{replica.status.value} → {body.status.value}")
    reason = body.reason[:REASON_MAX_CHARS]
    text = f"{body.replica} {body.status.value}" + (f": {reason}" if reason else "")
    if body.status in (Status.GONE, Status.FAILED):
        return Change(_ended(state, replica, body, reason), "replica", body.replica, text)
    used = _plausible(body.used_bytes)
    fresh = replace(
        replica,
        status=body.status,
        reason=reason,
        used_bytes=used or replica.used_bytes,
        attempts=replica.attempts + (body.status is Status.LOADING),
    )
    after = replace(state, replicas={**state.replicas, replica.replica: fresh})
    if body.status is Status.READY:
        failure = failure_key(replica.deployment, replica.node)
        failures = {k: v for k, v in after.failures.items() if k != failure}
        after = _with_measured(replace(after, failures=failures), fresh)
    return Change(after, "replica", body.replica, text)


def _plausible(used_bytes: Mapping[str, int]) -> dict[str, int]:
    """A driver that reports nonsense must not make the state unencodable."""
    return {device: min(max(n, 0), BYTES_MAX) for device, n in used_bytes.items()}


def _ended(state: State, replica: Replica, body: ReportReplica, reason: str) -> State:
    """The claim ends; a failure is counted against (deployment, node) for this generation. What
    a failed load would have needed is learned, for the next one; once."""
    kept = {k: v for k, v in state.replicas.items() if k != replica.replica}
    after = replace(state, replicas=kept)
    deployment = state.deployments.get(replica.deployment)
    if (
        body.status is not Status.FAILED
        or deployment is None
        or deployment.generation != replica.generation
    ):
        return after
    key = failure_key(replica.deployment, replica.node)
    before = state.failures.get(key)
    count = 1 if before is None else before.count + 1
    used = _plausible(body.used_bytes)
    if used and before is not None and before.for_memory:
        count = max(count, state.settings.load_attempts_max)
    failure = Failure(
        replica.deployment, replica.generation, replica.node, count, reason, bool(used)
    )
    after = replace(after, failures={**after.failures, key: failure})
    return _with_measured(after, replace(replica, used_bytes=used)) if used else after


def _with_measured(state: State, replica: Replica) -> State:
    """Keep predicted against measured bytes per (digest, device, context, slots, options)."""
    deployment = state.deployments.get(replica.deployment)
    used = sum(replica.used_bytes.values())
    if deployment is None or used <= 0 or len(replica.claims) != 1:
        return state
    if replica.generation != deployment.generation:
        return state  # What it was loaded with, options and prediction, is no longer known.
    device = state.device(replica.node, replica.claims[0].device_id)
    if device is None:
        return state
    options = deployment.settled_options
    key = measured_key(replica.digest, device, replica.context, replica.slots, options)
    if key not in state.measured and len(state.measured) >= MEASURED_MAX:
        return state
    predicted = deployment.grown(replica.context, replica.slots).need_bytes
    entry = Measured(predicted_bytes=predicted, used_bytes=used)
    return replace(state, measured={**state.measured, key: entry})


REPLICA_HANDLERS: Mapping[type[Any], Handler] = {
    Place: place,
    AdoptReplica: adopt_replica,
    Drain: drain,
    ReportReplica: report_replica,
}
