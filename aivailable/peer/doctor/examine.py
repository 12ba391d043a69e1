"""The examination: probes everything at once within its limits, then judges in packet order.

Owns which nodes are tried and how many. Called by `cli.doctor`, which also says where our own
running node can be asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from aivailable import __version__
from aivailable.core.ids import short
from aivailable.core.status import ClusterStatus
from aivailable.errors import AivailableError
from aivailable.peer.doctor.findings import (
    Check,
    HearingFinding,
    InterfaceFinding,
    NodeFinding,
    Own,
    Target,
    Verdict,
)
from aivailable.peer.doctor.machine import (
    Remembered,
    look_at_home,
    look_at_machine,
    look_at_ports,
    remembered,
)
from aivailable.peer.doctor.network import hear, look_at_interfaces, reach, try_groups
from aivailable.peer.doctor.verdicts import interface_checks, machine_checks, multicast_checks
from aivailable.peer.doctor.verdicts_nodes import membership_checks, node_checks, summary_of

LISTEN_S: Final = 4.0
TARGETS_MAX: Final = 16
ASK_OWN_LIMIT_S: Final = 3.0

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
class Report:
    """Checks in packet order, and the first failing leg in one sentence."""

    checks: tuple[Check, ...]
    summary: str

    @property
    def healthy(self) -> bool:
        """Nothing failed; warnings may be there."""
        return all(check.verdict is not Verdict.FAILED for check in self.checks)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"healthy": self.healthy, **asdict(self)}


async def examine(
    case: Case, ask_own: Callable[[], Awaitable[ClusterStatus]] | None = None
) -> Report:
    """`ask_own`: asks our running node; None when home names none. Takes at most 13 s: 4 s of
    listening beside the engine's 9 s, then at most 8 s for a node that was heard.

    Raises OSError when this machine's interfaces cannot be listed.
    """
    known = remembered(case.home)
    # In this order: our own ports, held for an instant, must not disturb a node that starts.
    home = look_at_home(case.home, known.problem)
    ports = () if home.locked_by else look_at_ports(case.bind, case.port, case.link_port)
    interfaces = look_at_interfaces(case.interfaces)
    own_answer = asyncio.ensure_future(_ask(ask_own))
    machine, groups, (hearing, nodes), (status, silence) = await asyncio.gather(
        look_at_machine(home, ports, case.devices, time.time_ns() // 1_000_000),
        try_groups(case.interfaces, case.listen_s),
        _hear_and_reach(case, known, own_answer),
        own_answer,
    )
    own = _own(case, known, interfaces, status, silence)
    nodes = tuple(node for node in nodes if not _is_self(node, own))
    checks = (
        *machine_checks(machine, own),
        *interface_checks(interfaces),
        *multicast_checks(groups, hearing, own, nodes),
        *(check for node in nodes for check in node_checks(node, own)),
        *membership_checks(own),
    )
    return Report(checks, summary_of(checks))


async def _ask(
    ask_own: Callable[[], Awaitable[ClusterStatus]] | None,
) -> tuple[ClusterStatus | None, str]:
    if ask_own is None:
        return None, ""
    try:
        return await asyncio.wait_for(ask_own(), ASK_OWN_LIMIT_S), ""
    except TimeoutError:
        return None, f"its API gave no answer in {ASK_OWN_LIMIT_S:g} s"
    except AivailableError as error:
        return None, str(error)


async def _hear_and_reach(
    case: Case, known: Remembered, own_answer: asyncio.Future[tuple[ClusterStatus | None, str]]
) -> tuple[HearingFinding, tuple[NodeFinding, ...]]:
    """Nodes we were told of are tried while we listen, those heard afterwards."""
    listening = asyncio.ensure_future(hear(case.interfaces, case.listen_s))
    status, _ = await asyncio.shield(own_answer)
    told = told_targets(case, known, status)
    first = asyncio.gather(*(reach(target) for target in told))
    hearing = await listening
    heard = heard_targets(hearing, known, told)
    then = await asyncio.gather(*(reach(target) for target in heard))
    return hearing, (*await first, *then)


def told_targets(case: Case, known: Remembered, status: ClusterStatus | None) -> tuple[Target, ...]:
    """--peer, then seeds, then members of our cluster that our node does not hear."""
    found = [
        Target(f"{host}:{port}", source, ((host, port),))
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
            found.append(Target(label, "member", addresses))
    return tuple(_without_repeats(found))[:TARGETS_MAX]


def heard_targets(
    hearing: HearingFinding, known: Remembered, told: Sequence[Target]
) -> tuple[Target, ...]:
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
        Target(node, "heard", tuple(places), seeking=node not in founded)
        for node, places in addresses.items()
        if not any(place in tried for place in places)
    ]
    return tuple(found)[: max(0, TARGETS_MAX - len(told))]


def _without_repeats(targets: Sequence[Target]) -> list[Target]:
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
    return Own(
        node=status.here if status is not None else known.node,
        cluster_id=status.cluster_id if status is not None else known.cluster_id,
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
