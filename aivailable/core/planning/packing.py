"""Room for one more by moving what has only been planned: a bounded local search.

Owns the placements of one plan until it is proposed. Moves nothing that is in the state already:
those replicas run, and a better packing is not worth their restart.

The greedy order (largest first, tightest fit) is best-fit decreasing; the repair is the ejection
chain of bin packing, two steps deep, then an exchange of a smaller for a larger replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aivailable.core.planning.capacity import CapacityLedger, NodeCapacity, Placed
from aivailable.core.state.records import Deployment, Replica

DEPTH_MAX = 2
"""Replicas that are moved one after the other to make room for one."""
TRIES_MAX = 600
"""Looks for a place in one plan: what bounds the time of the search."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """One replica that this plan wants to place, and where; `replica` is its name in the ledger."""

    replica: str
    deployment: Deployment
    placed: Placed
    context: int = 0
    """Tokens per slot, once grown; 0 = the deployment's own. So are the slots."""
    slots: int = 0

    def in_ledger(self) -> Replica:
        deployment = self.deployment
        return Replica(
            replica=self.replica,
            deployment=deployment.name,
            digest=deployment.digest,
            generation=deployment.generation,
            node=self.placed.node,
            claims=self.placed.claims,
            context=self.context or deployment.context,
            slots=self.slots or deployment.slots,
        )


class Packing:
    """The tentative placements of one plan, kept in step with the ledger."""

    def __init__(self, ledger: CapacityLedger) -> None:
        self.fresh: dict[str, Fresh] = {}
        self._ledger = ledger
        self._serial = 0
        self._tries = TRIES_MAX

    def add(self, deployment: Deployment, placed: Placed) -> None:
        self._serial += 1
        self._put(Fresh(f"{deployment.name}#new{self._serial}", deployment, placed))

    def drop(self, replica: str) -> None:
        """Also what was placed beside it."""
        entry = self.fresh[replica]
        self._take(entry)
        for key, other in list(self.fresh.items()):
            beside = entry.deployment.name in other.deployment.where.beside
            if beside and key in self.fresh and other.placed.node == entry.placed.node:
                self.drop(key)

    def grow(self, replica: str) -> None:
        """The largest context, then the most slots for which there is room where it lies, if that
        is left to us."""
        entry = self.fresh[replica]
        if entry.deployment.growth is not None:
            self._take(entry)
            context, slots, claims = self._ledger.largest(entry.deployment, entry.placed)
            placed = Placed(entry.placed.node, claims)
            self._put(replace(entry, placed=placed, context=context, slots=slots))

    def squeeze(self, deployment: Deployment) -> bool:
        """Place one more replica by moving others of this plan; whether that was possible."""
        before = dict(self.fresh)
        if self._squeeze(deployment, DEPTH_MAX):
            return True
        self._restore(before)
        return False

    def exchange(self, deployment: Deployment, counts: dict[str, int]) -> Deployment | None:
        """Place one more replica instead of a smaller one of this plan, which is answered.

        The smallest that makes room goes, never one of a higher priority, nor the only replica of
        its deployment (`counts`: replicas by name) unless this one would be an only one, too.
        """
        first = counts.get(deployment.name, 0) == 0
        best: tuple[tuple[int, int, str], Fresh] | None = None
        for _, host in self._ledger.open_hosts(deployment):
            for entry in self._on(host):
                other = entry.deployment
                less = (other.priority, other.need_bytes) < (
                    deployment.priority,
                    deployment.need_bytes,
                )
                only = counts.get(other.name, 0) <= 1
                if not less or other.priority > deployment.priority or (only and not first):
                    continue
                key = (other.priority, other.need_bytes, entry.replica)
                if (best is None or key < best[0]) and self._roomy(host, deployment, entry):
                    self._take(entry)
                    if self._find(deployment, host.member.node) is not None:
                        best = key, entry
                    self._put(entry)
        if best is None:
            return None
        self._take(best[1])
        found = self._ledger.find(deployment, best[1].placed.node)
        if found is None:
            self._put(best[1])
            return None
        self.add(deployment, found)
        return best[1].deployment

    def _squeeze(self, deployment: Deployment, depth: int) -> bool:
        for _, host in list(self._ledger.open_hosts(deployment)):
            for entry in self._on(host):
                if self._tries <= 0:
                    return False
                if entry.deployment.need_bytes > deployment.need_bytes:
                    continue
                if not self._roomy(host, deployment, entry):
                    continue
                before = dict(self.fresh)
                self._take(entry)
                found = self._find(deployment, host.member.node)
                if found is not None:
                    self.add(deployment, found)
                    elsewhere = self._find(entry.deployment)
                    if elsewhere is not None:
                        self.add(entry.deployment, elsewhere)
                        return True
                    if depth > 1 and self._squeeze(entry.deployment, depth - 1):
                        return True
                self._restore(before)
        return False

    def _on(self, host: NodeCapacity) -> Sequence[Fresh]:
        """Of this plan, and free to move; smallest first."""
        fixed = self._ledger.anchored(host)
        there = [
            entry
            for key in host.replicas
            if (entry := self.fresh.get(key)) is not None and entry.deployment.name not in fixed
        ]
        return sorted(there, key=lambda entry: (entry.deployment.need_bytes, entry.replica))

    def _roomy(self, host: NodeCapacity, deployment: Deployment, without: Fresh) -> bool:
        """A cheap look before the exact one: enough on the node as a whole."""
        free = sum(capacity.free_bytes for capacity in host.capacities if capacity.free_bytes > 0)
        back = sum(claim.claim_bytes for claim in without.placed.claims)
        return free + back >= deployment.need_bytes

    def _find(self, deployment: Deployment, node: str = "") -> Placed | None:
        self._tries -= 1
        return self._ledger.find(deployment, node)

    def _put(self, entry: Fresh) -> None:
        self.fresh[entry.replica] = entry
        self._ledger.put(entry.in_ledger())

    def _take(self, entry: Fresh) -> None:
        del self.fresh[entry.replica]
        self._ledger.take(entry.in_ledger())

    def _restore(self, before: dict[str, Fresh]) -> None:
        for key in [key for key in self.fresh if key not in before]:
            self._take(self.fresh[key])
        for key, entry in before.items():
            if key not in self.fresh:
                self._put(entry)
