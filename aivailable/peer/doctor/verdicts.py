"""Judges this machine, its interfaces and multicast: findings in, checks with advice out.

Pure: the same findings give the same words. Must not probe anything. Nodes and membership are
judged in `verdicts_nodes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from aivailable.advice import DOCTOR, DOCTOR_PEER, UP, UP_CPU, UP_SEED
from aivailable.core.ids import short
from aivailable.peer.devices.gpus import UNUSABLE, Gpu
from aivailable.peer.doctor.findings import (
    Check,
    CheckVerdict,
    HearingFinding,
    InterfaceFinding,
    MachineFinding,
    MulticastFinding,
    NodeFinding,
    Own,
)
from aivailable.peer.ports import Sighting

GIB: Final = 2**30
MIB: Final = 2**20
DISK_NEEDED_BYTES: Final = 64 * MIB
"""Log and snapshot of a busy cluster; without this much a node cannot take part."""
DISK_COMFORT_BYTES: Final = 2 * GIB
"""One small model file."""
YEAR_MIN, YEAR_MAX = 2025, 2100
NAMES_SHOWN_MAX: Final = 8

NOTHING_HEARD: Final = (
    "are the machines in the same network? Look for AP or client isolation, a guest Wi-Fi, "
    "another VLAN, a firewall that drops UDP 5353; or go round mDNS: "
    f"{UP_SEED} and {DOCTOR_PEER}"
)


def machine_checks(found: MachineFinding, own: Own) -> Iterator[Check]:
    """This machine: program, home, ports, clock, engine, devices."""
    yield _program(found, own)
    yield _home(found, own)
    yield from _ports(found, own)
    yield _clock(found)
    yield _engine(found)
    yield from _devices(found, own)


def _machine(name: str, verdict: CheckVerdict, found: str, advice: str = "") -> Check:
    return Check("machine", name, verdict, found, advice)


def _program(found: MachineFinding, own: Own) -> Check:
    text = f"AIvailable {own.version} on Python {'.'.join(map(str, found.python))}"
    if found.python < (3, 11, 0):
        return _machine("program", CheckVerdict.FAILED, text, "install Python 3.11 or newer")
    if own.running_version and own.running_version != own.version:
        return _machine(
            "program",
            CheckVerdict.WARNING,
            f"{text}, but the running node is still {own.running_version}",
            "start the node again",
        )
    return _machine("program", CheckVerdict.OK, text)


def _home(found: MachineFinding, own: Own) -> Check:
    home = found.home
    free = f"{home.free_bytes / GIB:.1f} GiB free"
    if home.problem:
        return _machine("home", CheckVerdict.FAILED, home.problem)
    if not home.writable:
        return _machine(
            "home",
            CheckVerdict.FAILED,
            f"{home.path} is not writable for this user",
            "give this user the right to it, or choose another with --home",
        )
    if home.locked_by and own.status is None:
        return _machine(
            "home",
            CheckVerdict.FAILED,
            f"{home.path} is held by process {home.locked_by}, which does not answer: "
            f"{own.silence or 'it has told no address'}",
            "wait if it is just starting, else look into logs/aivailable.log there and start "
            "the node again",
        )
    if home.free_bytes < DISK_NEEDED_BYTES:
        advice = "free some space: a node whose disk is full cannot vote"
        return _machine("home", CheckVerdict.FAILED, f"{home.path}: {free}", advice)
    if home.free_bytes < DISK_COMFORT_BYTES:
        advice = "free some space, or keep weights elsewhere with --models"
        return _machine("home", CheckVerdict.WARNING, f"{home.path}: {free}", advice)
    state = "in use by our node" if home.locked_by else "not in use" if home.exists else "not yet"
    return _machine("home", CheckVerdict.OK, f"{home.path} ({state}), {free}")


def _ports(found: MachineFinding, own: Own) -> Iterator[Check]:
    if own.status is not None:
        yield _machine("ports", CheckVerdict.OK, "held by our own node")
        return
    if found.home.locked_by:
        yield _machine("ports", CheckVerdict.SKIPPED, "held by our own node, if at all")
        return
    for port in found.ports:
        name = f"{port.purpose} port"
        if port.problem:
            yield _machine(
                name,
                CheckVerdict.FAILED,
                port.problem,
                "stop that program (or an AIvailable with another home), or use --port",
            )
        else:
            text = f"TCP {port.port} is free" if port.port else "any free one"
            yield _machine(name, CheckVerdict.OK, text)


def _clock(found: MachineFinding) -> Check:
    if YEAR_MIN <= found.year < YEAR_MAX:
        return _machine("clock", CheckVerdict.OK, f"says {found.year}")
    return _machine(
        "clock",
        CheckVerdict.WARNING,
        f"says {found.year}",
        "set it (NTP): links do not need it, but the times of events will be wrong",
    )


def _engine(found: MachineFinding) -> Check:
    if found.engine_missing:
        return _machine(
            "engine",
            CheckVerdict.WARNING,
            f"not installed ({', '.join(found.engine_missing)} missing): this machine routes and "
            "votes, but holds no model",
            "pip install 'aivailable[engine]'",
        )
    if found.engine_problem:
        return _machine(
            "engine",
            CheckVerdict.FAILED,
            found.engine_problem,
            "install it again: pip install --force-reinstall 'aivailable[engine]'",
        )
    return _machine("engine", CheckVerdict.OK, "llama-cpp-python starts, jinja2 is there")


def _devices(found: MachineFinding, own: Own) -> Iterator[Check]:
    """Those of the running node, which knows its flags; else those seen by us."""
    seen = [
        (device.name, device.backend.value, device.total_bytes, device.architecture)
        for device in found.devices
    ]
    problems = found.device_problems
    here = None if own.status is None else own.status
    for node in () if here is None else here.nodes:
        if node.state == "here":
            seen = [(one.name, one.backend, one.total_bytes, "") for one in node.devices]
            problems = node.problems
    speeds = {
        (one.name, one.backend.value): f", {one.speed:.0f} tokens/s in its measurement"
        for one in found.devices
        if one.speed > 0
    }
    for name, backend, total_bytes, architecture in seen:
        kind = f"{backend} {architecture}".strip()
        size = f"{total_bytes / GIB:.1f} GiB"
        speed = speeds.get((name, backend), "")
        yield _machine("device", CheckVerdict.OK, f"{name} ({kind}), {size}{speed}")
    yield from map(_gpu, found.gpus)
    for problem in problems:
        if found.gpus and UNUSABLE in problem:
            continue
        absent = "to be seen" in problem or "cannot be seen" in problem
        if absent and (seen or found.gpus):
            continue
        advice = (
            "without a GPU this machine still routes and votes; with one, install its driver "
            f"and look at nvidia-smi; {UP_CPU} lets it hold small models"
        )
        # A NAS or a Pi that only votes is no fault; a card that is there and idle is one.
        verdict = CheckVerdict.SKIPPED if absent else CheckVerdict.WARNING
        yield _machine("device", verdict, problem, advice if absent else "")
    if not seen and not problems and not found.gpus:
        advice = f"{UP_CPU} lets it hold small models"
        yield _machine("device", CheckVerdict.SKIPPED, "this machine has none", advice)


def _gpu(gpu: Gpu) -> Check:
    """Who saw it, what serves it, or why nothing does and what would."""
    size = f"{gpu.total_bytes / GIB:.1f} GiB" if gpu.total_bytes else ""
    driver = f"driver {gpu.driver}" if gpu.driver else ""
    lanes = f"PCIe x{gpu.link_width}" if gpu.link_width else ""
    facts = [text for text in (gpu.device_id, size, gpu.architecture, driver, lanes) if text]
    told = f"{gpu.name} ({', '.join(facts)}), seen by {' and '.join(gpu.seen_by)}"
    if gpu.offered is not None:
        return _machine(
            "GPU", CheckVerdict.OK, f"{told}: {_usable(gpu, gpu.offered.backend.value)}"
        )
    verdict = CheckVerdict.SKIPPED if gpu.integrated else CheckVerdict.WARNING
    return _machine("GPU", verdict, f"{told}: not usable, {gpu.obstacle}", gpu.remedy)


def _usable(gpu: Gpu, backend: str) -> str:
    """Through what, and whether that was tried."""
    failed = [f"{one.value} fails: {verdict.words}" for one, verdict in gpu.tried if verdict.words]
    if failed:
        return f"usable through {backend} ({'; '.join(failed)})"
    if gpu.tried:
        return f"usable through {backend} (a trial decode worked)"
    return f"usable through {backend} (not tried yet: {UP} does)"


def interface_checks(found: Sequence[InterfaceFinding]) -> Iterator[Check]:
    """Which interfaces mDNS goes over, and why not the others."""
    for one in found:
        addresses = ", ".join(one.addresses)
        if not one.used:
            text = f"left out: {one.left_out}" + (f" ({addresses})" if addresses else "")
            yield Check("interfaces", one.name, CheckVerdict.SKIPPED, text)
        elif not one.carrier:
            yield Check(
                "interfaces",
                one.name,
                CheckVerdict.FAILED,
                f"{addresses}, but nothing is connected (no carrier)",
                "plug in the cable or join the Wi-Fi; try another cable and another switch port",
            )
        else:
            families = " and ".join(
                family
                for family, sign in (("IPv4", "."), ("IPv6", ":"))
                if any(sign in address for address in one.addresses)
            )
            yield Check("interfaces", one.name, CheckVerdict.OK, f"{addresses} ({families})")
    if not any(one.used for one in found):
        yield Check(
            "interfaces",
            "network",
            CheckVerdict.FAILED,
            "no interface has an address that others could reach",
            "connect this machine to the network, or name an address with --interfaces",
        )


def multicast_checks(
    groups: Sequence[MulticastFinding],
    hearing: HearingFinding,
    own: Own,
    nodes: Sequence[NodeFinding],
) -> Iterator[Check]:
    """Does multicast leave and come in, and is anybody there."""
    for one in groups:
        yield _group(one)
    if own.status is not None:
        yield _own_announcement(hearing, own)
    yield from _hearing(groups, hearing, own, nodes)


def _group(one: MulticastFinding) -> Check:
    if one.problem:
        return Check(
            "multicast",
            one.interface,
            CheckVerdict.FAILED,
            f"UDP 5353 on {one.address}: {one.problem}",
            "let this user open UDP 5353 (a firewall, or a program that holds it alone)",
        )
    if not one.own_heard:
        return Check(
            "multicast",
            one.interface,
            CheckVerdict.FAILED,
            f"our own packet to the mDNS group did not come back on {one.address}",
            "let UDP 5353 in and out in this machine's firewall",
        )
    others = f"; other machines heard: {_some(one.others)}" if one.others else ""
    return Check("multicast", one.interface, CheckVerdict.OK, f"works on {one.address}{others}")


def _own_announcement(hearing: HearingFinding, own: Own) -> Check:
    heard = any(one.short_node == short(own.node) for one in hearing.sightings)
    if heard:
        return Check("multicast", "our node", CheckVerdict.OK, "its announcement is heard")
    return Check(
        "multicast",
        "our node",
        CheckVerdict.WARNING,
        f"runs, but its announcement was not heard in {hearing.listened_s:g} s",
        "if it was started with --interfaces, give doctor the same in config.toml; else look "
        "for `discovery:` in its logs",
    )


def _hearing(
    groups: Sequence[MulticastFinding],
    hearing: HearingFinding,
    own: Own,
    nodes: Sequence[NodeFinding],
) -> Iterator[Check]:
    """Who is announced; who answers but is not announced; or what nobody may mean."""
    others = [one for one in hearing.sightings if not own.node or one.short_node != short(own.node)]
    for one in others:
        yield Check("multicast", one.short_node, CheckVerdict.OK, _sighted(one))
    nobody = f"nobody announced AIvailable in {hearing.listened_s:g} s"
    if hearing.problem:
        nobody = f"{nobody} ({hearing.problem})"
    unheard = _unheard(hearing, own, nodes)
    if unheard:
        yield Check(
            "multicast",
            "others",
            CheckVerdict.FAILED,
            f"{unheard} answers, but its announcement does not come in: mDNS is lost on the way",
            f"{UP_SEED.of(unheard)}; mDNS does not cross routers, guest Wi-Fi or "
            "VLANs, and needs UDP 5353 open on both machines",
        )
    elif others:
        return
    elif any(one.others for one in groups):
        advice = f"run {UP} on the other machines, or {DOCTOR} there too"
        text = f"{nobody}, though other machines' mDNS comes in"
        yield Check("multicast", "others", CheckVerdict.WARNING, text, advice)
    else:
        yield Check("multicast", "others", CheckVerdict.WARNING, nobody, NOTHING_HEARD)


def _unheard(hearing: HearingFinding, own: Own, nodes: Sequence[NodeFinding]) -> str:
    """Where a node answers that was asked for by name and whose announcement is missing, as
    HOST:PORT; "" when there is none, or when it is known without mDNS anyway."""
    heard = [one.short_node for one in hearing.sightings]
    for node in nodes:
        offer, (host, port) = node.best.offer, node.best.address
        if offer is None or node.target.source != "asked" or (host, port) in own.seeds:
            continue
        if short(offer.node) not in heard and offer.node not in (own.node, *own.states):
            return f"{host}:{port}"
    return ""


def _sighted(one: Sighting) -> str:
    addresses = ", ".join(f"{host}:{port}" for host, port in one.addresses) or "no address"
    if not one.cluster_prefix:
        state = f"looks for cluster {one.cluster_name!r}"
    else:
        window = "open" if one.window_open else "closed"
        state = f"cluster {one.cluster_name!r} ({one.cluster_prefix}), window {window}"
    return f"{addresses}: {state}, protocol {one.proto}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN_MAX
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    return f"{shown} and {more} more" if more > 0 else shown
