"""Handlers: the catalogue, who holds which file, deployments, placements and their claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.core.ids import replica_id, short, standalone_id, valid_deployment_name
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.commands import (
    AdoptReplica,
    Command,
    Drain,
    Place,
    PutDeployment,
    RegisterModel,
    RemoveDeployment,
    RemoveModel,
    ReportCopy,
    ReportReplica,
)
from aivailable.core.state.constraints import (
    company_obstacle,
    device_obstacle,
    node_obstacle,
    problem,
    strangers,
)
from aivailable.core.state.learned_memory import measured_key
from aivailable.core.state.records import (
    Deployment,
    Failure,
    Growth,
    Measured,
    Model,
    Replica,
    Status,
)
from aivailable.core.state.state import BYTES_MAX, State, failure_key
from aivailable.gguf.companion_options import FILES_MAX, files_named

DEPLOYMENTS_MAX = 1024
MODELS_MAX = 1024
MEASURED_MAX = 1024
CONTEXT_MAX_TOKENS = 16 * 1024 * 1024
SLOTS_MAX = 256
REPLICAS_MAX = 256
IDLE_TTL_MAX_S = 366 * 24 * 3600
OPTIONS_MAX = 32
ALIASES_MAX = 32
MODEL_NAME_MAX_CHARS = 128
MODEL_SOURCE_MAX_CHARS = 1024
DIGEST_CHARS = 64
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


def register_model(state: State, command: Command, body: RegisterModel) -> Change | Reject:
    if body.holder != command.command_id.proposer:
        return Reject("not_yours", "a node registers the files that it holds")
    problem = _model_problem(body.model)
    if problem:
        return Reject("invalid_model", problem)
    named = state.find_model(body.model.name)
    if named is not None and named.digest != body.model.digest:
        return Reject(
            "name_taken",
            f"the catalogue has another file named {body.model.name!r}"
            f" (sha256 {short(named.digest)}…); give this one another name with --as",
        )
    if body.model.digest not in state.models and len(state.models) >= MODELS_MAX:
        return Reject("full", f"a catalogue has at most {MODELS_MAX} models")
    known = state.models.get(body.model.digest, body.model)
    after = replace(
        state,
        models={**state.models, known.digest: known},
        copies=_with_copy(state.copies, known.digest, body.holder),
    )
    return Change(after, "model", known.name, f"model {known.name} registered")


def remove_model(state: State, _command: Command, body: RemoveModel) -> Change | Reject:
    if body.digest not in state.models:
        return Reject("unknown_model", "no such model; see `aivailable models`")
    users = [name for name in sorted(state.deployments) if _uses(state, name, body.digest)]
    if users:
        return Reject("in_use", f"deployed as {', '.join(users)}; undeploy first")
    name = state.models[body.digest].name
    after = replace(state, models={k: v for k, v in state.models.items() if k != body.digest})
    after = _without_orphans(after)
    return Change(after, "model", name, f"model {name} removed from the catalogue")


def report_copy(state: State, command: Command, body: ReportCopy) -> Change | Reject:
    if body.node != command.command_id.proposer:
        return Reject("not_yours", "a node reports its own files only")
    if body.digest not in state.files():
        return Reject(
            "unknown_model", "this file is in no catalogue, and nothing deployed needs it"
        )
    model = state.models.get(body.digest)
    what = f"file {short(body.digest)}" if model is None else model.name
    held = body.node in state.holders(body.digest)
    if held == body.held:
        return Change(state)
    name = state.members[body.node].name
    if body.held:
        after = replace(state, copies=_with_copy(state.copies, body.digest, body.node))
        return Change(after, "copy", what, f"{name} holds a copy of {what}")
    nodes = tuple(node for node in state.holders(body.digest) if node != body.node)
    after = replace(state, copies={**state.copies, body.digest: nodes})
    return Change(after, "copy", what, f"{name} lost its copy of {what}")


def put_deployment(state: State, command: Command, body: PutDeployment) -> Change | Reject:
    wanted = body.deployment
    problem = _deployment_problem(state, wanted) or _companion_problem(wanted, body.holding)
    if problem is not None:
        return problem
    current = state.deployments.get(wanted.name)
    if current is None and body.replace_generation != 0:
        return Reject("conflict", f"{wanted.name} was removed meanwhile; deploy it anew")
    if current is not None and body.replace_generation != current.generation:
        return Reject(
            "exists" if body.replace_generation == 0 else "conflict",
            f"{wanted.name} is deployed (generation {current.generation})",
        )
    if current is None and len(state.deployments) >= DEPLOYMENTS_MAX:
        return Reject("full", f"at most {DEPLOYMENTS_MAX} deployments")
    # Counted for the whole cluster: no replica of an earlier life of the name may look current.
    generation = state.last_generation + 1
    fresh = replace(wanted, generation=generation)
    replicas = state.replicas
    if current is not None and _same_workers(current, fresh):
        replicas = _carried_over(state, current, fresh)
    after = replace(
        state,
        deployments={**state.deployments, fresh.name: fresh},
        last_generation=generation,
        replicas=replicas,
        failures={k: v for k, v in state.failures.items() if v.deployment != fresh.name},
    )
    for digest in body.holding:
        copies = _with_copy(after.copies, digest, command.command_id.proposer)
        after = replace(after, copies=copies)
    after = _without_orphans(after)
    verb = "deployed" if current is None else "changed"
    return Change(after, "deployment", fresh.name, f"{fresh.name} {verb}")


def _same_workers(current: Deployment, fresh: Deployment) -> bool:
    """Only numbers, names or policy change: what runs, and what it claims, stays."""
    return current == replace(
        fresh,
        generation=current.generation,
        replicas_min=current.replicas_min,
        replicas_max=current.replicas_max,
        copies=current.copies,
        idle_ttl_s=current.idle_ttl_s,
        pin=current.pin,
        priority=current.priority,
        aliases=current.aliases,
        where=current.where,
    )


def _carried_over(state: State, current: Deployment, fresh: Deployment) -> dict[str, Replica]:
    """Its replicas belong to the new generation, but for those where it must not be any more."""
    return {
        key: replace(entry, generation=fresh.generation)
        if entry.deployment == current.name
        and entry.generation == current.generation
        and (fresh.where == current.where or _may_stay(state, fresh, entry))
        else entry
        for key, entry in state.replicas.items()
    }


def _may_stay(state: State, fresh: Deployment, replica: Replica) -> bool:
    member = state.members.get(replica.node)
    if member is None or node_obstacle(fresh.where, member):
        return False
    deployments = {**state.deployments, fresh.name: fresh}
    apart = strangers(fresh, deployments)
    if company_obstacle(fresh.where, apart, state.replicas_on(replica.node)):
        return False
    devices = (state.device(replica.node, claim.device_id) for claim in replica.claims)
    return not any(one is not None and device_obstacle(fresh.where, one) for one in devices)


def remove_deployment(state: State, _command: Command, body: RemoveDeployment) -> Change | Reject:
    if body.name not in state.deployments:
        return Reject("unknown_deployment", f"{body.name} is not deployed")
    after = replace(
        state,
        deployments={k: v for k, v in state.deployments.items() if k != body.name},
        replica_numbers={k: v for k, v in state.replica_numbers.items() if k != body.name},
        failures={k: v for k, v in state.failures.items() if v.deployment != body.name},
    )
    after = _without_orphans(after)
    return Change(after, "deployment", body.name, f"{body.name} undeployed")


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


def _deployment_problem(state: State, wanted: Deployment) -> Reject | None:
    for name in (wanted.name, *wanted.aliases):
        if not valid_deployment_name(name):
            return Reject("invalid_name", f"{name!r}: letters, digits and . _ : / @ - only")
    model = state.models.get(wanted.digest)
    if model is None and wanted.engine != "fake":
        return Reject("unknown_model", "no such model; see `aivailable models`")
    if not 1 <= wanted.slots <= SLOTS_MAX:
        return Reject("invalid_slots", f"slots: 1 to {SLOTS_MAX}")
    if not 1 <= wanted.context <= CONTEXT_MAX_TOKENS:
        return Reject("invalid_context", f"context: 1 to {CONTEXT_MAX_TOKENS} tokens")
    if not 0 <= wanted.replicas_min <= wanted.replicas_max <= REPLICAS_MAX:
        return Reject("invalid_replicas", f"replicas: 0 ≤ min ≤ max ≤ {REPLICAS_MAX}")
    if wanted.replicas_max == 0:
        return Reject("invalid_replicas", "replicas: at most 0 would never run; use undeploy")
    if wanted.idle_ttl_s is not None and not 0 <= wanted.idle_ttl_s <= IDLE_TTL_MAX_S:
        return Reject("invalid_idle_ttl", f"idle TTL: 0 to {IDLE_TTL_MAX_S} s")
    needs = (wanted.weights_bytes, wanted.kv_bytes, wanted.compute_bytes)
    if min(needs) < 0 or not 0 < wanted.need_bytes <= BYTES_MAX:
        return Reject("invalid_need", f"the predicted memory must be 1 to {BYTES_MAX} bytes")
    if len(wanted.aliases) > ALIASES_MAX:
        return Reject("invalid_name", f"at most {ALIASES_MAX} aliases")
    if wanted.growth is not None and not _grows_well(wanted, wanted.growth):
        return Reject(
            "invalid_context", "automatic context or slots: from less to more, within reason"
        )
    misplaced = problem(wanted.where, wanted.name)
    if misplaced:
        return Reject("invalid_where", misplaced)
    if len(wanted.options) > OPTIONS_MAX or wanted.copies < 1:
        return Reject("invalid_options", f"at most {OPTIONS_MAX} options, at least one copy")
    return None


def _grows_well(wanted: Deployment, growth: Growth) -> bool:
    context, slots = wanted.context_most, wanted.slots_most
    each = (
        growth.token_kv_bytes,
        growth.token_compute_bytes,
        growth.slot_kv_bytes,
        growth.slot_compute_bytes,
    )
    return (
        wanted.context <= context <= CONTEXT_MAX_TOKENS
        and slots <= SLOTS_MAX
        and (context, slots) != (wanted.context, wanted.slots)
        and min(each) >= 0
        and wanted.grown(context, slots).need_bytes <= BYTES_MAX
    )


def _companion_problem(wanted: Deployment, holding: tuple[str, ...]) -> Reject | None:
    companions = wanted.companions
    if len(companions) > FILES_MAX:
        return Reject("invalid_companions", f"at most {FILES_MAX} files beside the model's")
    named = files_named(wanted.options)
    digests = []
    for entry in companions:
        digests.append(entry.digest)
        if (entry.option, entry.path) not in named:
            return Reject("invalid_companions", f"no option names {entry.option}={entry.path}")
        if not 0 < len(entry.digest) <= DIGEST_CHARS:
            return Reject("invalid_companions", f"a digest has {DIGEST_CHARS} characters")
        if not (0 < entry.size_bytes <= BYTES_MAX and 0 <= entry.compute_bytes <= BYTES_MAX):
            return Reject("invalid_companions", f"a file has 1 to {BYTES_MAX} bytes")
    if any(digest not in digests for digest in holding):
        return Reject("invalid_companions", "a held file that is none of the deployment's")
    return None


def _without_orphans(state: State) -> State:
    """Nobody is asked any more who holds what neither catalogue nor deployment needs."""
    known = state.files()
    return replace(state, copies={k: v for k, v in state.copies.items() if k in known})


def _model_problem(model: Model) -> str:
    if not 0 < len(model.name) <= MODEL_NAME_MAX_CHARS:
        return f"a model's name has 1 to {MODEL_NAME_MAX_CHARS} characters"
    if not 0 < len(model.digest) <= DIGEST_CHARS or len(model.source) > MODEL_SOURCE_MAX_CHARS:
        return f"a digest has {DIGEST_CHARS} characters, a source {MODEL_SOURCE_MAX_CHARS} at most"
    return ""


def _uses(state: State, deployment: str, digest: str) -> bool:
    return state.deployments[deployment].digest == digest


def _with_copy(
    copies: Mapping[str, tuple[str, ...]], digest: str, node: str
) -> dict[str, tuple[str, ...]]:
    nodes = tuple(sorted(frozenset((*copies.get(digest, ()), node))))
    return {**copies, digest: nodes}


MODEL_HANDLERS: Mapping[type[Any], Handler] = {
    RegisterModel: register_model,
    RemoveModel: remove_model,
    ReportCopy: report_copy,
    PutDeployment: put_deployment,
    RemoveDeployment: remove_deployment,
    Place: place,
    AdoptReplica: adopt_replica,
    Drain: drain,
    ReportReplica: report_replica,
}
