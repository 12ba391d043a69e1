"""Where a replica goes: filter, score, explain.

Owns the choice of node and devices for one replica and the words for a refusal. Changes nothing;
what it answers is checked again by `apply` and by the agent. Called by the planner and by
`fit` (the dry run).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from aivailable.core.ids import NodeId, ReplicaId
from aivailable.core.liveness import Liveness, device_load, is_alive, silent_ms
from aivailable.core.records import Backend, Claim, Deployment, Device, Member, Replica, Status
from aivailable.core.state import State, failure_key

CONTEXT_STEP = 256
"""A suggested context is a multiple of this."""
CONTEXT_SUGGESTED_MIN = 512
"""A smaller context is not worth suggesting."""
VERDICTS_SHOWN_MAX = 8
"""Devices named in one explanation; the rest are counted."""

_BUDGETED = frozenset({Backend.CPU, Backend.SIM})
"""Their size is what the operator granted: no margin, and live free memory says nothing."""
_LOADED = frozenset({Status.READY, Status.DRAINING})


@dataclass(frozen=True, slots=True)
class Placed:
    """The replica goes to `node`, with these bytes on these devices of one backend."""

    node: NodeId
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    """Why one device, or a whole node (`device_id` empty), was not taken."""

    node: NodeId
    node_name: str
    device_id: str
    text: str
    need_bytes: int = 0
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """The replica fits nowhere; one verdict for each device or node, sorted."""

    reasons: tuple[DeviceVerdict, ...]


@dataclass(frozen=True, slots=True)
class _Room:
    device: Device
    free_bytes: int


def format_bytes(count: int) -> str:
    """For people: "9.1 GiB", "300 MiB", "12 KiB"."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    if count >= 1 << 20:
        return f"{count / (1 << 20):.0f} MiB"
    return f"{count / (1 << 10):.0f} KiB"


def free_bytes(
    state: State,
    liveness: Liveness,
    node: NodeId,
    device: Device,
    leaving: Collection[ReplicaId] = (),
) -> int:
    """Bytes a new claim may take: min(total, live free + own use) − claims − margin (DESIGN §6).

    Own use is what our loaded replicas hold there: measured bytes, else their claims. While a
    replica loads its own use counts as nothing yet, which errs towards refusing.
    `leaving` are replicas whose claims count as given back. May be negative.
    """
    there = [replica for replica in state.replicas.values() if replica.node == node]
    return _free_bytes(state, liveness, node, device, there, leaving)


def _free_bytes(
    state: State,
    liveness: Liveness,
    node: NodeId,
    device: Device,
    there: Sequence[Replica],
    leaving: Collection[ReplicaId],
) -> int:
    """As `free_bytes`, given the replicas on the node."""
    claimed = sum(
        claim.claim_bytes
        for replica in there
        if replica.replica not in leaving
        for claim in replica.claims
        if claim.device_id == device.device_id
    )
    if device.backend in _BUDGETED:
        return device.total_bytes - claimed
    usable = device.total_bytes
    load = device_load(liveness, node, device.device_id, state.settings.down_after_ms)
    if load is not None:
        usable = min(usable, load.free_bytes + _own_use_bytes(there, device.device_id))
    return usable - claimed - state.settings.margin_bytes


def is_current(replica: Replica, deployment: Deployment) -> bool:
    """The replica is what the deployment asks for now, and shall stay. No generation is ever
    used twice, so it tells."""
    return not replica.drain and replica.generation == deployment.generation


def place(
    state: State,
    liveness: Liveness,
    deployment: Deployment,
    leaving: Collection[ReplicaId] = (),
) -> Placed | Refused:
    """The best place for one more replica of `deployment`, or why there is none.

    Order of preference: nodes where it failed least, GPUs before the CPU, one device before
    several, nodes that hold the file, the tightest fit, the faster device, then names.
    `leaving`: replicas that are thought gone, to learn whether waiting for them helps.
    """
    best: tuple[tuple[object, ...], Placed] | None = None
    verdicts: list[DeviceVerdict] = []
    by_node: dict[NodeId, list[Replica]] = {node: [] for node in state.members}
    for replica in state.replicas.values():
        by_node.setdefault(replica.node, []).append(replica)
    for node in sorted(state.members):
        member = state.members[node]
        obstacle = _node_obstacle(state, liveness, deployment, member, by_node[node])
        if obstacle:
            verdicts.append(DeviceVerdict(node, member.name, "", obstacle))
            continue
        rooms = [
            _Room(
                device, max(0, _free_bytes(state, liveness, node, device, by_node[node], leaving))
            )
            for device in state.inventories[node].devices
        ]
        offers = _single_offers(deployment, rooms) or _split_offers(deployment, rooms)
        if not offers:
            verdicts += [_verdict(deployment, member, room) for room in rooms]
        for score, claims in offers:
            key = (_failures(state, deployment, node), *_rank(state, deployment, node, score))
            if best is None or key < best[0]:
                best = (key, Placed(node, claims))
    return best[1] if best is not None else Refused(tuple(verdicts))


def explain(refused: Refused) -> str:
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


@dataclass(frozen=True, slots=True)
class _Score:
    on_cpu: bool
    split: bool
    left_bytes: int
    speed: float
    device_id: str


def _rank(state: State, deployment: Deployment, node: NodeId, score: _Score) -> tuple[object, ...]:
    holds = node in state.holders(deployment.digest)
    return (
        score.on_cpu,
        score.split,
        not holds,
        score.left_bytes,
        -score.speed,
        node,
        score.device_id,
    )


def _single_offers(
    deployment: Deployment, rooms: Sequence[_Room]
) -> list[tuple[_Score, tuple[Claim, ...]]]:
    need = deployment.need_bytes
    return [
        (
            _Score(
                room.device.backend is Backend.CPU,
                False,
                room.free_bytes - need,
                room.device.speed,
                room.device.device_id,
            ),
            (Claim(room.device.device_id, need),),
        )
        for room in rooms
        if room.free_bytes >= need
    ]


def _split_offers(
    deployment: Deployment, rooms: Sequence[_Room]
) -> list[tuple[_Score, tuple[Claim, ...]]]:
    """The fewest devices of each backend that hold it together, largest rooms first."""
    offers = []
    for backend in sorted({room.device.backend for room in rooms}):
        usable = sorted(
            (
                (room.free_bytes - deployment.compute_bytes, room.device)
                for room in rooms
                if room.device.backend is backend and room.free_bytes > deployment.compute_bytes
            ),
            key=lambda entry: (-entry[0], entry[1].device_id),
        )
        shared = deployment.weights_bytes + deployment.kv_bytes
        for count in range(2, len(usable) + 1):
            taken = usable[:count]
            left = sum(room for room, _ in taken) - shared
            if left >= 0:
                claims = _proportional(deployment, taken)
                speed = min(device.speed for _, device in taken)
                first = taken[0][1].device_id
                offers.append((_Score(backend is Backend.CPU, True, left, speed, first), claims))
                break
    return offers


def _proportional(deployment: Deployment, taken: Sequence[tuple[int, Device]]) -> tuple[Claim, ...]:
    """Weights and KV in proportion to the room, compute on each. Never more than the room."""
    shared = deployment.weights_bytes + deployment.kv_bytes
    total = sum(room for room, _ in taken)
    shares = [shared * room // total for room, _ in taken]
    rest = shared - sum(shares)
    for index, (room, _) in enumerate(taken):
        extra = min(rest, room - shares[index])
        shares[index] += extra
        rest -= extra
    return tuple(
        Claim(device.device_id, share + deployment.compute_bytes)
        for share, (_, device) in zip(shares, taken, strict=True)
    )


def _node_obstacle(
    state: State,
    liveness: Liveness,
    deployment: Deployment,
    member: Member,
    there: Sequence[Replica],
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
        return f"not heard for {silent_ms(liveness, node) / 1000:.0f} s"
    if inventory is None or not inventory.devices:
        return "has no usable device"
    if deployment.engine not in inventory.engines:
        return f"cannot run the engine {deployment.engine!r}"
    if any(r.deployment == deployment.name and is_current(r, deployment) for r in there):
        return "already has a replica of it"
    if _failures(state, deployment, node) >= attempts_max:
        reason = state.failures[failure_key(deployment.name, node)].reason
        return f"failed to load it {attempts_max} times, last: {reason or 'no reason given'}"
    return _file_obstacle(state, liveness, deployment, node)


def _file_obstacle(state: State, liveness: Liveness, deployment: Deployment, node: NodeId) -> str:
    """A digest outside the catalogue (the fake engine's) needs no file."""
    holders = state.holders(deployment.digest)
    if node in holders or deployment.digest not in state.models:
        return ""
    for holder in holders:
        if holder in state.members and is_alive(liveness, holder, state.settings.down_after_ms):
            return ""
    names = ", ".join(
        state.members[holder].name or holder[:8] for holder in holders if holder in state.members
    )
    return f"lacks the model file, and no live node has it (held by: {names or 'nobody'})"


def _verdict(deployment: Deployment, member: Member, room: _Room) -> DeviceVerdict:
    need = deployment.need_bytes
    text = f"needs {format_bytes(need)}, {format_bytes(room.free_bytes)} free"
    context = _context_that_fits(deployment, room.free_bytes)
    if context:
        text += f"; would fit with ctx {context}"
    return DeviceVerdict(
        member.node, member.name, room.device.device_id, text, need, room.free_bytes
    )


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


def _failures(state: State, deployment: Deployment, node: NodeId) -> int:
    failure = state.failures.get(failure_key(deployment.name, node))
    if failure is None or failure.generation != deployment.generation:
        return 0
    return failure.count


def _own_use_bytes(there: Sequence[Replica], device_id: str) -> int:
    return sum(
        replica.used_bytes.get(device_id, claim.claim_bytes)
        for replica in there
        if replica.status in _LOADED
        for claim in replica.claims
        if claim.device_id == device_id
    )
