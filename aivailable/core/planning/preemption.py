"""Which running replicas make way for another one.

Owns the choice of the fewest, least valuable ones on one node; drains nothing. In this order give
way: extra replicas, which only fill spare room (`core.planning.scaling`), idle ones before busy
ones; idle ones that are loaded on demand (`core.planning.idle_policy`); those of a lower priority.
It is asked when a replica fits nowhere and nothing that leaves makes room for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from aivailable.core.planning.capacity import CapacityLedger, NodeCapacity, Placed, is_current
from aivailable.core.planning.idle_policy import ReplicaUsage
from aivailable.core.state.records import Deployment, Replica

_EXTRA_IDLE, _EXTRA_BUSY, _ON_DEMAND, _LESSER, _NEVER = range(5)


def victims(
    ledger: CapacityLedger,
    wanted: Deployment,
    deployments: Mapping[str, Deployment],
    usage: ReplicaUsage,
) -> tuple[list[Replica], Placed | None]:
    """Replicas, none pinned, without which `wanted` fits, and where.

    Of all nodes the one whose victims give way soonest, have the lowest priority, are the fewest
    and then the smallest. Nothing, and None, when no such set is enough. The ledger is as before.
    """
    best: tuple[tuple[int, int, int, int], list[Replica], Placed] | None = None
    for _, host in ledger.open_hosts(wanted):
        chosen, found = _on(ledger, host, wanted, deployments, usage)
        if found is None:
            continue
        worth = max(deployments[entry.deployment].priority for entry in chosen)
        kind = max(_kind(ledger, entry, wanted, deployments, usage) for entry in chosen)
        cost = (kind, worth, len(chosen), sum(_bytes(entry) for entry in chosen))
        if best is None or cost < best[0]:
            best = cost, chosen, found
    return (best[1], best[2]) if best is not None else ([], None)


def _on(
    ledger: CapacityLedger,
    host: NodeCapacity,
    wanted: Deployment,
    deployments: Mapping[str, Deployment],
    usage: ReplicaUsage,
) -> tuple[list[Replica], Placed | None]:
    """A set on one node of which none can stay."""
    node = host.member.node
    ranked: list[tuple[tuple[int, int, int, int, str], Replica]] = []
    for entry in host.replicas.values():
        kind = _kind(ledger, entry, wanted, deployments, usage)
        if kind < _NEVER:
            priority, idle_ms = deployments[entry.deployment].priority, usage.idle_ms(entry)
            ranked.append(((kind, priority, -idle_ms, _bytes(entry), entry.replica), entry))
    ranked.sort(key=lambda pair: pair[0])
    lesser = [entry for _, entry in ranked]
    chosen: list[Replica] = []
    found: Placed | None = None
    for entry in lesser:
        ledger.take(entry)
        chosen.append(entry)
        found = ledger.find(wanted, node)
        if found is not None:
            break
    for entry in list(reversed(chosen)) if found is not None else ():
        ledger.put(entry)
        without = ledger.find(wanted, node)
        if without is None:
            ledger.take(entry)
        else:
            chosen.remove(entry)
            found = without
    for entry in chosen:
        ledger.put(entry)
    return chosen, found


def _kind(
    ledger: CapacityLedger,
    replica: Replica,
    wanted: Deployment,
    deployments: Mapping[str, Deployment],
    usage: ReplicaUsage,
) -> int:
    """How soon it gives way to `wanted`; _NEVER = not at all."""
    owner = deployments.get(replica.deployment)
    if owner is None or owner.pin or replica.drain or owner.name == wanted.name:
        return _NEVER
    there = ledger.of(owner.name)
    # One that has to leave its node, or that nobody hears, does not make another one extra.
    count = sum(is_current(entry, owner) and _stays(ledger, entry) for entry in there)
    if is_current(replica, owner) and count > max(1, usage.wanted(owner, there)):
        return _EXTRA_BUSY if usage.idle_ms(replica) == 0 else _EXTRA_IDLE
    if owner.priority <= wanted.priority and usage.evictable(owner, replica, count):
        return _ON_DEMAND
    return _LESSER if owner.priority < wanted.priority else _NEVER


def _stays(ledger: CapacityLedger, replica: Replica) -> bool:
    host = ledger.hosts.get(replica.node)
    return host is not None and host.usable


def _bytes(replica: Replica) -> int:
    return sum(claim.claim_bytes for claim in replica.claims)
