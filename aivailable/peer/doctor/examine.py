"""The examination: probes everything at once within its limits, then judges in packet order.

Owns which nodes are tried and how many. It is told where our own running node can be asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from aivailable import __version__
from aivailable.core.ids import short
from aivailable.core.serving.status import ClusterStatus
from aivailable.peer.doctor.findings import (
    Check,
    CheckVerdict,
    HearingFinding,
    InterfaceFinding,
    NodeFinding,
    Own,
    ProbeTarget,
)
from aivailable.peer.doctor.machine import (
    Remembered,
    look_at_home,
    look_at_machine,
    look_at_ports,
    remembered,
)
from aivailable.peer.doctor.network import listening, look_at_interfaces, try_groups
from aivailable.peer.doctor.patience import (
    AskOwn,
    AskStall,
    OwnAnswer,
    ask_own_node,
    ask_own_stall,
    ask_until_it_tells_all,
    reach_patiently,
)
from aivailable.peer.doctor.verdicts import interface_checks, machine_checks, multicast_checks
from aivailable.peer.doctor.verdicts_nodes import membership_checks, node_checks, summary_of

LISTEN_S: Final = 4.0
TARGETS_MAX: Final = 16

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Case:
    """What is examined: the settings that `up` would have on this machine."""

    home: Path
    cluster_name: str
    port: int
    link_port: int
    bind: tuple[str, ...]
    interfaces: tuple[str, ...] = ()
    devices: tuple[tuple[str, str, int], ...] = ()
    """(kind, name, total bytes), as SystemDevices takes them."""
    seeds: tuple[Address, ...] = ()
    peers: tuple[Address, ...] = ()
    """--peer: nodes to try whatever mDNS says."""
    keyed: bool = False
    """A join key is set on this machine."""
    running_version: str = ""
    listen_s: float = LISTEN_S


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Checks in packet order, and the first failing leg in one sentence."""

    checks: tuple[Check, ...]
    summary: str

    @property
    def healthy(self) -> bool:
        """Nothing failed; warnings may be there."""
        return all(check.verdict is not CheckVerdict.FAILED for check in self.checks)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"healthy": self.healthy, **asdict(self)}


async def examine(
    case: Case, ask_own: AskOwn | None = None, ask_stall: AskStall | None = None
) -> DoctorReport:
    """Takes at most 15 s: 3 s for our own node's first answer, 4 s of listening beside the engine's
    9 s and further answers, then 8 s for the nodes.

    Raises OSError when this machine's interfaces cannot be listed.
    """
    known = remembered(case.home)
    # In this order: our own ports, held for an instant, must not disturb a node that starts.
    home = look_at_home(case.home, known.problem)
    ports = () if home.locked_by else look_at_ports(case.bind, case.port, case.link_port)
    interfaces = look_at_interfaces(case.interfaces)
    # Alone: beside the rest its time limit would be spent on our own work on a busy machine.
    answer = await ask_own_node(ask_own)
    # Before the rest, too: what doctor itself costs is no finding.
    stall_s = await ask_own_stall(ask_stall) if answer[0] is not None else None

    async def asked() -> OwnAnswer:
        if home.locked_by:
            return await ask_until_it_tells_all(ask_own, answer, case.listen_s)
        return answer

    machine, groups, (own, hearing, nodes) = await asyncio.gather(
        look_at_machine(home, ports, case.devices, time.time_ns() // 1_000_000),
        try_groups(case.interfaces, case.listen_s),
        _look_around(case, known, interfaces, asked),
    )
    nodes = tuple(node for node in nodes if not _is_self(node, own))
    own = replace(own, longest_stall_s=stall_s)
    checks = (
        *machine_checks(machine, own),
        *interface_checks(interfaces),
        *multicast_checks(groups, hearing, own, nodes),
        *(check for node in nodes for check in node_checks(node, own)),
        *membership_checks(own),
    )
    return DoctorReport(checks, summary_of(checks))


async def _look_around(
    case: Case,
    known: Remembered,
    interfaces: Sequence[InterfaceFinding],
    asked: Callable[[], Awaitable[OwnAnswer]],
) -> tuple[Own, HearingFinding, tuple[NodeFinding, ...]]:
    """Nodes we were told of are tried while we listen, those heard afterwards. We listen until
    the last has answered: one that starts meanwhile announces itself before it answers."""
    async with listening(case.interfaces) as heard_so_far:
        enough = asyncio.ensure_future(asyncio.sleep(case.listen_s))
        status, silence = await asked()
        own = _own(case, known, interfaces, status, silence)
        told = told_targets(case, known, status)
        first = asyncio.gather(*(reach_patiently(target, own) for target in told))
        await enough
        heard = heard_targets(heard_so_far(), known, told)
        then = await asyncio.gather(*(reach_patiently(target, own) for target in heard))
        nodes = (*await first, *then)
        hearing = heard_so_far()
    return own, hearing, tuple(with_announcement(node, hearing) for node in nodes)


def with_announcement(node: NodeFinding, hearing: HearingFinding) -> NodeFinding:
    """A node that we were told of may be announced as looking for a cluster itself."""
    seen = [
        one
        for one in hearing.sightings
        if any(address in node.target.addresses for address in one.addresses)
    ]
    seeking = bool(seen) and not any(one.cluster_prefix for one in seen)
    return replace(node, target=replace(node.target, seeking=seeking)) if seen else node


def told_targets(
    case: Case, known: Remembered, status: ClusterStatus | None
) -> tuple[ProbeTarget, ...]:
    """--peer, then seeds, then members of our cluster that our node does not hear."""
    found = [
        ProbeTarget(f"{host}:{port}", source, ((host, port),))
        for source, addresses in (("asked", case.peers), ("seed", case.seeds))
        for host, port in addresses
    ]
    names = {} if status is None else {node.node: node for node in status.nodes}
    for seat in known.seats:
        node = names.get(seat.node)
        gone = status is not None and node is None
        if seat.node == known.node or not seat.addresses or gone:
            continue
        if node is None or node.state not in ("here", "up"):
            label = short(seat.node) if node is None else f"{node.name} ({node.short})"
            addresses = tuple((address, seat.link_port) for address in seat.addresses)
            found.append(ProbeTarget(label, "member", addresses))
    return tuple(_without_repeats(found))[:TARGETS_MAX]


def heard_targets(
    hearing: HearingFinding, known: Remembered, told: Sequence[ProbeTarget]
) -> tuple[ProbeTarget, ...]:
    """Everybody heard but us and those tried already, one target for each node."""
    addresses: dict[str, dict[Address, None]] = {}
    founded = {}
    for sighting in hearing.sightings:
        if sighting.addresses and sighting.short_node != short(known.node):
            addresses.setdefault(sighting.short_node, {}).update(dict.fromkeys(sighting.addresses))
            if sighting.cluster_prefix:
                founded[sighting.short_node] = True
    tried = {address: None for target in told for address in target.addresses}
    found = [
        ProbeTarget(node, "heard", tuple(places), seeking=node not in founded)
        for node, places in addresses.items()
        if not any(place in tried for place in places)
    ]
    return tuple(found)[: max(0, TARGETS_MAX - len(told))]


def _without_repeats(targets: Sequence[ProbeTarget]) -> list[ProbeTarget]:
    seen: dict[Address, None] = {}
    kept = []
    for target in targets:
        if not any(address in seen for address in target.addresses):
            kept.append(target)
            seen.update(dict.fromkeys(target.addresses))
    return kept


def _own(
    case: Case,
    known: Remembered,
    interfaces: Sequence[InterfaceFinding],
    status: ClusterStatus | None,
    silence: str,
) -> Own:
    """Our running node knows better than its files."""
    living = status is not None and bool(status.cluster_id)
    # A member whose state has not arrived yet knows its cluster from home, like us.
    by_status = living or (status is not None and status.phase != "member")
    return Own(
        node=status.here if status is not None else known.node,
        cluster_id=status.cluster_id if status is not None and by_status else known.cluster_id,
        cluster_name=(status.cluster_name if status is not None and living else "")
        or known.cluster_name
        or case.cluster_name,
        networks=tuple(address for one in interfaces if one.used for address in one.addresses),
        seeds=case.seeds,
        keyed=case.keyed,
        version=__version__,
        running_version=case.running_version if status is not None else "",
        status=status,
        silence=silence,
        states={} if status is None else {node.node: node.state for node in status.nodes},
    )


def _is_self(node: NodeFinding, own: Own) -> bool:
    offer = node.best.offer
    return offer is not None and node.target.source != "asked" and offer.node == own.node
