"""Which replica answers a request, with the reason for every one that does not.

Owns the choice; reserves, sends and retries nothing. It is asked for each attempt of a request.

Not to be confused with `peer.serving.router`, which carries out what is chosen here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from aivailable.advice import DEPLOY
from aivailable.core.ids import NodeId, ReplicaId
from aivailable.core.serving.admission import places_sure
from aivailable.core.serving.view import ReadyReplica, View, obstacle, ready_replicas
from aivailable.core.state.records import Deployment
from aivailable.core.state.state import State
from aivailable.wire.prefixes import shared

RETRY_SOON_S = 1
"""Until the next look when a replica is on its way or every one was tried."""
RETRY_UNPLACED_S = 3
"""Until the next look when no replica is placed at all."""
RETRY_FULL_S = 5
"""What a client is told to wait when every queue is full."""
NAMES_SHOWN_MAX = 16
WARM_LOAD_BOUND = Fraction(1, 2)
"""A warm prompt is worth that much more load per slot, and never a wait."""

SLOWNESS_MAX = Fraction(8)
"""A slower device still gets an eighth of the fastest one's requests: queues must not pile up on
one card because a benchmark of another was unlucky."""
SPEED_WORTH_A_HOP = Fraction(2)


@dataclass(frozen=True, slots=True)
class NotChosen:
    replica: ReplicaId
    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Local:
    """This node's own worker answers."""

    replica: ReplicaId
    not_chosen: tuple[NotChosen, ...] = ()


@dataclass(frozen=True, slots=True)
class Forward:
    """One hop to `node`, which answers."""

    replica: ReplicaId
    node: NodeId
    not_chosen: tuple[NotChosen, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Deployed, but nothing can take it now: look again after `retry_s`, within the deadline."""

    deployment: str
    """Its own name, when the request used an alias."""
    reason: str
    retry_s: float
    not_chosen: tuple[NotChosen, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request ends here, with this HTTP status and stable code."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None
    not_chosen: tuple[NotChosen, ...] = ()


RoutingChoice = Local | Forward | Wait | Refuse


def choose(
    deployment_name: str,
    view: View,
    excluded: Collection[ReplicaId] = (),
    reserved: Mapping[ReplicaId, int] | None = None,
    prefixes: Sequence[int] = (),
    own: Mapping[ReplicaId, int] | None = None,
) -> RoutingChoice:
    """The replica that has computed the most of the request's beginning, if its load per slot is
    within WARM_LOAD_BOUND of the least one and it has a free slot; else the one with the least
    load per slot, measured against the speed of its devices where the speeds of all are known;
    among equals ours, unless another is SPEED_WORTH_A_HOP times as fast, then the fastest.

    `deployment_name`: what the request calls its model, a name or an alias. `excluded`: replicas
    this request has tried. `reserved`: requests this node has sent to each replica since its last
    heartbeat, so that a burst does not pile up on one. `prefixes`: the request's digests
    (wire.prefixes). `own`: requests of the same account that this node has under way at each
    replica. Where a line is full, an account with few of its own is sent there all the same when
    nothing else is open: only the host knows whose requests fill it, and makes room.
    """
    deployment = view.state.find_deployment(deployment_name)
    if deployment is None:
        return _unknown(deployment_name, view.state)
    reserved = reserved if reserved is not None else {}
    own = own if own is not None else {}
    per_slot = view.state.settings.queue_per_slot_max
    ready = ready_replicas(view, deployment.name)
    rejected = _not_ready(view, deployment, ready)
    open_for_us: list[ReadyReplica] = []
    full_for_others: list[ReadyReplica] = []
    full = False
    for candidate in ready:
        if candidate.replica in excluded:
            rejected.append(_because(candidate, "tried already"))
        elif not _is_full(candidate, reserved, per_slot):
            open_for_us.append(candidate)
        elif own.get(candidate.replica, 0) < places_sure(_places(candidate, per_slot)):
            full_for_others.append(candidate)
        else:
            full = True
            rejected.append(_because(candidate, "queue full"))
    if open_for_us:
        rejected += [_because(candidate, "queue full") for candidate in full_for_others]
    else:
        open_for_us = full_for_others
    if not open_for_us:
        return _nothing(deployment, rejected, full)
    bound = min(_load(candidate, reserved) for candidate in open_for_us) + WARM_LOAD_BOUND
    slowness = _slowness(view.state, open_for_us)
    open_for_us.sort(
        key=lambda candidate: (
            -_warmth(candidate, reserved, prefixes, bound),
            *_score(candidate, reserved, slowness[candidate.replica]),
        )
    )
    best = open_for_us[0]
    rejected += [_because(other, "more loaded, farther or slower") for other in open_for_us[1:]]
    if best.local:
        return Local(best.replica, tuple(rejected))
    return Forward(best.replica, best.node, tuple(rejected))


def _load(candidate: ReadyReplica, reserved: Mapping[ReplicaId, int]) -> Fraction:
    """Requests per slot, those included that were just sent."""
    load = candidate.load
    pending = load.slots_busy + load.waiting + reserved.get(candidate.replica, 0)
    return Fraction(pending, max(1, load.slots))


def _warmth(
    candidate: ReadyReplica,
    reserved: Mapping[ReplicaId, int],
    prefixes: Sequence[int],
    bound: Fraction,
) -> int:
    """First digests of the request that are warm there; 0 where it would have to wait or the
    others have clearly less to do."""
    load = _load(candidate, reserved)
    if not prefixes or load >= 1 or load > bound:
        return 0
    return shared(prefixes, candidate.load.prefixes)


def _slowness(state: State, candidates: Sequence[ReadyReplica]) -> Mapping[ReplicaId, Fraction]:
    """How many times as long as on the fastest a token takes on each, at most SLOWNESS_MAX. All
    alike when one is unknown: a guess would be worse than none."""
    speeds = {one.replica: _speed(state, one) for one in candidates}
    if not all(speed > 0 for speed in speeds.values()):
        return dict.fromkeys(speeds, Fraction(1))
    best = max(speeds.values())
    return {replica: min(SLOWNESS_MAX, best / speed) for replica, speed in speeds.items()}


def _speed(state: State, candidate: ReadyReplica) -> Fraction:
    """Tokens/s of the slowest of its devices, which the others wait for; 0 = unknown."""
    replica = state.replicas.get(candidate.replica)
    inventory = state.inventories.get(candidate.node)
    if replica is None or inventory is None:
        return Fraction(0)
    speeds = {device.device_id: device.speed for device in inventory.devices}
    found = [speeds.get(claim.device_id, 0.0) for claim in replica.claims]
    return Fraction(min(found, default=0.0)).limit_denominator(10)


def _score(
    candidate: ReadyReplica, reserved: Mapping[ReplicaId, int], slowness: Fraction
) -> tuple[object, ...]:
    load = candidate.load
    return (
        _load(candidate, reserved) * slowness,
        slowness >= SPEED_WORTH_A_HOP,
        not candidate.local,
        slowness,
        -load.tokens_per_s,
        candidate.replica,
        candidate.node,
    )


def _is_full(
    candidate: ReadyReplica, reserved: Mapping[ReplicaId, int], queue_per_slot_max: int
) -> bool:
    load = candidate.load
    mine = reserved.get(candidate.replica, 0)
    overflow = load.slots_busy + load.waiting + mine - load.slots
    return max(load.waiting, overflow) >= _places(candidate, queue_per_slot_max)


def _places(candidate: ReadyReplica, queue_per_slot_max: int) -> int:
    return max(1, candidate.load.slots) * queue_per_slot_max


def _not_ready(
    view: View, deployment: Deployment, ready: tuple[ReadyReplica, ...]
) -> list[NotChosen]:
    names = [candidate.replica for candidate in ready]
    return [
        NotChosen(replica.replica, replica.node, obstacle(view, replica))
        for replica in view.state.replicas_of(deployment.name)
        if replica.replica not in names
    ]


def _nothing(deployment: Deployment, rejected: list[NotChosen], full: bool) -> Wait | Refuse:
    reasons = tuple(rejected)
    if full:
        return Refuse(
            429,
            "queue_full",
            f"every replica of {deployment.name!r} has a full queue; try again later",
            RETRY_FULL_S,
            reasons,
        )
    if not rejected:
        reason = f"no replica of {deployment.name!r} is placed yet"
        return Wait(deployment.name, reason, RETRY_UNPLACED_S)
    text = "; ".join(f"{entry.replica} {entry.reason}" for entry in rejected)
    reason = f"no replica of {deployment.name!r} is ready: {text}"
    return Wait(deployment.name, reason, RETRY_SOON_S, reasons)


def unfit(state: State, deployment_name: str, *, chats: bool) -> Refuse | None:
    """Why no replica could ever answer: refused at once, before a model is loaded for it. None =
    one could, as far as the catalogue tells."""
    deployment = state.find_deployment(deployment_name)
    model = state.models.get(deployment.digest) if deployment is not None else None
    if model is None or not chats or model.facts.has_chat_template:
        return None
    return Refuse(
        400,
        "template_error",
        "this model's file has no chat template: use /v1/completions, or a model made for chat",
    )


def _unknown(name: str, state: State) -> Refuse:
    names = sorted(state.deployments)
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    more = len(names) - NAMES_SHOWN_MAX
    there = f"deployed: {shown}" + (f" and {more} more" if more > 0 else "")
    hint = there if names else f"nothing is deployed yet; {DEPLOY} deploys one"
    return Refuse(404, "model_not_found", f"no deployment is called {name[:128]!r}; {hint}")


def _because(candidate: ReadyReplica, reason: str) -> NotChosen:
    return NotChosen(candidate.replica, candidate.node, reason)
