"""Which running replicas make way for a more important one.

Owns the choice of the fewest, least valuable ones on one node; drains nothing. Called by
`core.planner` when a replica fits nowhere and nothing that leaves makes room for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from aivailable.core.board import Board, Placed, Site
from aivailable.core.records import Deployment, Replica


def victims(
    board: Board,
    wanted: Deployment,
    deployments: Mapping[str, Deployment],
) -> tuple[list[Replica], Placed | None]:
    """Replicas of lower priority, none pinned, without which `wanted` fits, and where.

    Of all nodes the one whose victims have the lowest priority, are the fewest and then the
    smallest. Nothing, and None, when no such set is enough. The board is as before.
    """
    best: tuple[tuple[int, int, int], list[Replica], Placed] | None = None
    for _, site in board.open_sites(wanted):
        chosen, found = _on(board, site, wanted, deployments)
        if found is None:
            continue
        worth = max(deployments[entry.deployment].priority for entry in chosen)
        cost = (worth, len(chosen), sum(_bytes(entry) for entry in chosen))
        if best is None or cost < best[0]:
            best = cost, chosen, found
    return (best[1], best[2]) if best is not None else ([], None)


def _on(
    board: Board,
    site: Site,
    wanted: Deployment,
    deployments: Mapping[str, Deployment],
) -> tuple[list[Replica], Placed | None]:
    """A set on one node of which none can stay."""
    node = site.member.node
    lesser = [
        entry
        for entry in site.replicas.values()
        if not entry.drain
        and (owner := deployments.get(entry.deployment)) is not None
        and owner.priority < wanted.priority
        and not owner.pin
    ]
    lesser.sort(key=lambda r: (deployments[r.deployment].priority, _bytes(r), r.replica))
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


def _bytes(replica: Replica) -> int:
    return sum(claim.claim_bytes for claim in replica.claims)
