"""Which nodes, devices and neighbours a deployment allows, and how a refusal words it.

Owns the meaning of `Where`. Knows nothing of bytes and changes nothing.

The words are those of the field: GPUStack selects workers and GPUs, Kubernetes has node affinity,
pod affinity and anti-affinity; as there, anti-affinity holds both ways, and nothing that runs is
moved for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from aivailable.core.state.records import Backend, Deployment, Device, Member, Replica, Where

ENTRIES_MAX = 16
"""Of each list."""
ENTRY_MAX_CHARS = 128
NODE_PREFIX_MIN_CHARS = 4

_CAPABILITY = re.compile(r"(?:sm_)?(\d{1,2})\.?(\d)")
_GFX = re.compile(r"gfx(\d{1,2})([0-9a-f])([0-9a-f])")


def picks_devices(where: Where) -> bool:
    """Whether it asks anything of a device."""
    return bool(where.gpus or where.vendors or where.backends or where.architecture_min)


def names_node(pattern: str, member: Member) -> bool:
    """Whether it is a pattern of the node's name, its id, or the beginning of its id."""
    begins = len(pattern) >= NODE_PREFIX_MIN_CHARS and member.node.startswith(pattern.lower())
    return begins or pattern == member.node or _matches(pattern, member.name)


def node_obstacle(where: Where, member: Member) -> str:
    """Why no replica goes to the node; "" when one may."""
    if where.nodes and not any(names_node(pattern, member) for pattern in where.nodes):
        return f"not among the nodes asked for: {', '.join(where.nodes)}"
    if any(names_node(pattern, member) for pattern in where.not_nodes):
        return f"excluded: not on {', '.join(where.not_nodes)}"
    return ""


def device_obstacle(where: Where, device: Device) -> str:
    """Why no replica goes to the device; "" when one may."""
    if where.gpus and not any(
        pattern == device.device_id or _matches(pattern, device.name) for pattern in where.gpus
    ):
        return f"is {device.name!r}, asked for: {', '.join(where.gpus)}"
    if where.vendors and device.vendor.lower() not in _lower(where.vendors):
        return f"is of {device.vendor or 'an unknown vendor'}, asked for: {_or(where.vendors)}"
    if where.backends and device.backend.value not in _lower(where.backends):
        return f"works by {device.backend.value}, asked for: {_or(where.backends)}"
    wanted = _version(where.architecture_min)
    if wanted is not None:
        own = _version(device.architecture)
        if own is None or own[0] != wanted[0] or own < wanted:
            is_ = device.architecture or "of unknown architecture"
            return f"is {is_}, asked for: {where.architecture_min} or newer"
    return ""


def strangers(deployment: Deployment, deployments: Mapping[str, Deployment]) -> frozenset[str]:
    """The deployments with which it shares no host, whichever of the two asked for it."""
    name = deployment.name
    others = (other.name for other in deployments.values() if name in other.where.apart_from)
    return frozenset((*deployment.where.apart_from, *others)) - {name}


def company_obstacle(where: Where, apart: frozenset[str], there: Iterable[Replica]) -> str:
    """Why no replica joins those on a host; "" when one may. What drains does not count.
    `apart`: `strangers`."""
    names = frozenset(replica.deployment for replica in there if not replica.drain)
    for name in sorted(apart & names):
        return f"runs {name}, from which it stays apart"
    for name in where.beside:
        if name not in names:
            return f"has no replica of {name}, which it stays beside"
    return ""


def problem(where: Where, name: str) -> str:
    """What is wrong with it for the deployment `name`; "" when nothing is."""
    lists = {
        "nodes": where.nodes,
        "not_nodes": where.not_nodes,
        "gpus": where.gpus,
        "vendors": where.vendors,
        "backends": where.backends,
        "beside": where.beside,
        "apart_from": where.apart_from,
    }
    for field, entries in lists.items():
        if len(entries) > ENTRIES_MAX:
            return f"{field}: at most {ENTRIES_MAX} entries"
        if any(not 0 < len(entry) <= ENTRY_MAX_CHARS for entry in entries):
            return f"{field}: each entry has 1 to {ENTRY_MAX_CHARS} characters"
    known = [backend.value for backend in Backend]
    for backend in where.backends:
        if backend.lower() not in known:
            return f"backend {backend!r} is unknown; known: {', '.join(known)}"
    if where.architecture_min and _version(where.architecture_min) is None:
        text = where.architecture_min[:ENTRY_MAX_CHARS]
        return f"architecture {text!r}: like 7.5 or sm_75 (NVIDIA), or gfx906 (AMD)"
    if name in where.beside or name in where.apart_from:
        return f"{name} cannot be beside or apart from itself; its replicas never share a host"
    both = sorted(frozenset(where.beside) & frozenset(where.apart_from))
    if both:
        return f"{both[0]} cannot be beside and apart"
    return ""


def _version(architecture: str) -> tuple[str, int, int, int] | None:
    """Comparable within a family, its first part."""
    text = architecture.strip().lower()
    found = _CAPABILITY.fullmatch(text)
    if found is not None:
        return "cuda", int(found[1]), int(found[2]), 0
    found = _GFX.fullmatch(text)
    if found is not None:
        return "gfx", int(found[1]), int(found[2], 16), int(found[3], 16)
    return None


def _matches(pattern: str, text: str) -> bool:
    return fnmatchcase(text.lower(), pattern.lower())


def _lower(entries: Iterable[str]) -> list[str]:
    return [entry.lower() for entry in entries]


def _or(entries: Iterable[str]) -> str:
    return " or ".join(entries)
