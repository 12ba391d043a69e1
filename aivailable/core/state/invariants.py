"""What must hold in every reachable state: checked after each step in tests and simulation.

Independent of the handlers on purpose: it recomputes from the records alone.
"""

from __future__ import annotations

from aivailable.core.state.levels import LEVEL, needed
from aivailable.core.state.state import LIVE_STATUSES, State


def violations(state: State) -> tuple[str, ...]:
    """Every broken invariant, in words; empty = sound."""
    found: list[str] = []
    totals: dict[tuple[str, str], int] = {}
    for name in sorted(state.replicas):
        replica = state.replicas[name]
        if replica.node not in state.members:
            found.append(f"{name} lies on {replica.node[:8]}, which is no member")
        if replica.status not in LIVE_STATUSES:
            found.append(f"{name} is {replica.status.value} but kept")
        for claim in replica.claims:
            place = (replica.node, claim.device_id)
            totals[place] = totals.get(place, 0) + claim.claim_bytes
    for (node, device_id), claimed in sorted(totals.items()):
        device = state.device(node, device_id)
        # An inventory may shrink under a claim (a card fell off the bus); that is not a breach.
        if device is not None and claimed > device.total_bytes:
            found.append(f"{device_id} on {node[:8]}: {claimed} of {device.total_bytes} claimed")
    if state.cluster is not None and not state.members:
        found.append("a founded cluster without members")
    if state.control is not None and state.cluster is None:
        found.append("a controller without a cluster")
    found.extend(
        f"{node[:8]} is a member and cannot do feature level {state.feature_level}"
        for node in sorted(state.members)
        if state.members[node].feature_max < state.feature_level
    )
    if state.feature_level < LEVEL and needed(state) > state.feature_level:
        found.append(f"the state uses feature level {needed(state)} at {state.feature_level}")
    found.extend(
        f"copy of {digest[:8]} without a holder that is a member"
        for digest in sorted(state.copies)
        if any(node not in state.members for node in state.copies[digest])
    )
    files = state.files()
    found.extend(
        f"copies of {digest[:8]}, which nobody needs"
        for digest in sorted(state.copies)
        if digest not in files
    )
    return tuple(found)
