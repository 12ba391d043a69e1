"""Handlers: what shall run, and with which sizes and options.

Not to be confused with `peer.api.cluster.deployments`, which takes the request over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aivailable.advice import MODELS
from aivailable.core.ids import valid_deployment_name
from aivailable.core.state.changes.change import Change, Handler, Reject
from aivailable.core.state.changes.models import DIGEST_CHARS, with_copy, without_orphans
from aivailable.core.state.commands import (
    Command,
    PutDeployment,
    RemoveDeployment,
)
from aivailable.core.state.constraints import (
    company_obstacle,
    device_obstacle,
    node_obstacle,
    problem,
    strangers,
)
from aivailable.core.state.records import (
    Deployment,
    Growth,
    Replica,
)
from aivailable.core.state.state import BYTES_MAX, State
from aivailable.gguf.companion_options import FILES_MAX, files_named

DEPLOYMENTS_MAX = 1024
CONTEXT_MAX_TOKENS = 16 * 1024 * 1024
SLOTS_MAX = 256
REPLICAS_MAX = 256
IDLE_TTL_MAX_S = 366 * 24 * 3600
OPTIONS_MAX = 32
ALIASES_MAX = 32


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
        copies = with_copy(after.copies, digest, command.command_id.proposer)
        after = replace(after, copies=copies)
    after = without_orphans(after)
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
    after = without_orphans(after)
    return Change(after, "deployment", body.name, f"{body.name} undeployed")


def _deployment_problem(state: State, wanted: Deployment) -> Reject | None:
    for name in (wanted.name, *wanted.aliases):
        if not valid_deployment_name(name):
            return Reject("invalid_name", f"{name!r}: letters, digits and . _ : / @ - only")
    model = state.models.get(wanted.digest)
    if model is None and wanted.engine != "fake":
        return Reject("unknown_model", f"no such model; see {MODELS}")
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


DEPLOYMENT_HANDLERS: Mapping[type[Any], Handler] = {
    PutDeployment: put_deployment,
    RemoveDeployment: remove_deployment,
}
