"""Which running replicas make way for another one.

Owns the choice of the fewest, least valuable ones on one node; drains nothing. Idle ones that
their deployments need not have give way to what is asked for (`core.idling`), then those of a
lower priority to a higher one. Called by `core.planner` when a replica fits nowhere and nothing
that leaves makes room for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from aivailable.core.board import Board, Placed, Site, is_current
from aivailable.core.idling import Usage
from aivailable.core.records import Deployment, Replica


def victims(
    board: Board,
    wanted: Deployment,
    deployments: Mapping[str, Deployment],
    usage: Usage,
) -> tuple[list[Replica], Placed | None]:
    """Replicas, none pinned, without which `wanted` fits, and where.

    Of all nodes the one whose victims are all idle, then have the lowest priority, are the fewest
    and then the smallest. Nothing, and None, when no such set is enough. The board is as before.
    """
    best: tuple[tuple[bool, int, int, int], list[Replica], Placed] | None = None
    for _, site in board.open_sites(wanted):
        chosen, found = _on(board, site, wanted, deployments, usage)
        if found is None:
            continue
        worth = max(deployments[entry.deployment].priority for entry in chosen)
        busy = not all(_gives_way(board, entry, deployments, usage) for entry in chosen)
        cost = (busy, worth, len(chosen), sum(_bytes(entry) for entry in chosen))
        if best is None or cost < best[0]:
            best = cost, chosen, found
    return (best[1], best[2]) if best is not None else ([], None)


def _on(
    board: Board,
    site: Site,
    wanted: Deployment,
    deployments: Mapping[str, Deployment],
    usage: Usage,
) -> tuple[list[Replica], Placed | None]:
    """A set on one node of which none can stay."""
    node = site.member.node
    ranked: list[tuple[tuple[bool, int, int, int, str], Replica]] = []
    for entry in site.replicas.values():
        owner = deployments.get(entry.deployment)
        if owner is None or owner.pin or entry.drain or owner.priority > wanted.priority:
            continue
        idle = _gives_way(board, entry, deployments, usage)
        if owner.name == wanted.name or (owner.priority == wanted.priority and not idle):
            continue
        idle_ms = usage.idle_ms(entry)
        ranked.append(((not idle, owner.priority, -idle_ms, _bytes(entry), entry.replica), entry))
    ranked.sort(key=lambda pair: pair[0])
    lesser = [entry for _, entry in ranked]
    chosen: list[Replica] = []
    found: Placed | None = None
    for entry in lesser:
        board.take(entry)
        chosen.append(entry)
        found = board.find(wanted, node)
        if found is not None:
            break
    for entry in list(reversed(chosen)) if found is not None else ():
        board.put(entry)
        without = board.find(wanted, node)
        if without is None:
            board.take(entry)
        else:
            chosen.remove(entry)
            found = without
    for entry in chosen:
        board.put(entry)
    return chosen, found


def _gives_way(
    board: Board, replica: Replica, deployments: Mapping[str, Deployment], usage: Usage
) -> bool:
    owner = deployments[replica.deployment]
    count = sum(is_current(entry, owner) for entry in board.of(owner.name))
    return usage.evictable(owner, replica, count)


def _bytes(replica: Replica) -> int:
    return sum(claim.claim_bytes for claim in replica.claims)
