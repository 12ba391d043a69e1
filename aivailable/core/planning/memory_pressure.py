"""Another program grows on a card that we use: who of ours leaves before it runs out.

Owns that choice. Growth alone only shrinks what is planned (`core.planning.capacity`); what runs is
never killed for it. Only when a device has been nearly full for a while does one replica at a time
drain. It does not come back by itself: to be placed it needs the whole margin again, and it left at
a quarter of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from aivailable.core.cluster.liveness import Liveness, device_load
from aivailable.core.planning.capacity import BUDGETED, CapacityLedger, NodeCapacity
from aivailable.core.planning.idle_policy import ReplicaUsage
from aivailable.core.state.records import ClusterSettings, Deployment, Replica

TIGHT_SHARE = 4
"""A device is tight when less than the margin divided by this is free on it."""
TIGHT_MS = 5_000
"""It must have been so for so long: a peak of another program passes."""


def tight_bytes(settings: ClusterSettings) -> int:
    """Less free memory than this is too little for the device's own good; 0 = never."""
    return settings.margin_bytes // TIGHT_SHARE


def crowded_out(
    ledger: CapacityLedger,
    liveness: Liveness,
    usage: ReplicaUsage,
    deployments: Mapping[str, Deployment],
    settings: ClusterSettings,
) -> list[Replica]:
    """The least valuable replica of each device that runs out of memory because of others.

    None where one is going already: what it gives back may be enough. Pinned ones stay.
    """
    found: list[Replica] = []
    for node, host in ledger.hosts.items():
        for capacity in host.capacities:
            device_id = capacity.device.device_id
            load = device_load(liveness, node, device_id, settings.down_after_ms)
            if load is None or capacity.device.backend in BUDGETED or load.tight_ms < TIGHT_MS:
                continue
            there = _on(host, device_id)
            going = any(entry.drain or entry in found for entry in there)
            may = [
                entry
                for entry in there
                if entry.deployment in deployments and not deployments[entry.deployment].pin
            ]
            if may and not going:
                found.append(min(may, key=lambda entry: _worth(entry, deployments, usage)))
    return found


def _on(host: NodeCapacity, device_id: str) -> list[Replica]:
    return [
        entry
        for entry in host.replicas.values()
        if any(claim.device_id == device_id for claim in entry.claims)
    ]


def _worth(
    replica: Replica, deployments: Mapping[str, Deployment], usage: ReplicaUsage
) -> tuple[int, int, int, str]:
    """Less important, longer idle, larger: goes first."""
    size = sum(claim.claim_bytes for claim in replica.claims)
    return (
        deployments[replica.deployment].priority,
        -usage.idle_ms(replica),
        -size,
        replica.replica,
    )
