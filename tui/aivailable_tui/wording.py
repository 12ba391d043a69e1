"""How states, sizes and times are written for people, the same in monitor and command line.

Pure text: no Textual, no Rich, so that the command line can use it without loading either. A state
always has a symbol beside its tone, because colour alone tells nothing to some eyes and some
terminals.
"""

from __future__ import annotations

from aivailable.core.serving.status import ClusterStatus, DeploymentStatus, DeviceStatus, NodeStatus

GIB = 2**30
MIB = 2**20

_STATES = {
    "here": ("◉", "good"),
    "up": ("●", "good"),
    "silent": ("◌", "warn"),
    "down": ("✕", "bad"),
    "ready": ("●", "good"),
    "starting": ("◐", "busy"),
    "degraded": ("▲", "warn"),
    "unplaceable": ("✕", "bad"),
    "on demand": ("○", "quiet"),
    "placed": ("○", "busy"),
    "fetching": ("↓", "busy"),
    "loading": ("◐", "busy"),
    "draining": ("◑", "warn"),
    "failed": ("✕", "bad"),
    "gone": ("·", "quiet"),
}


def symbol(state: str) -> str:
    """One character for a state of a node, replica or deployment."""
    return _STATES.get(state, ("?", "warn"))[0]


def tone(state: str) -> str:
    """What a state means to the reader: good, busy, warn, bad or quiet. Each surface has its own
    colours for them."""
    return _STATES.get(state, ("?", "warn"))[1]


def size(count_bytes: int | None) -> str:
    """Bytes in GiB with one decimal; MiB below a tenth of one, so that small is not "0.0"."""
    if count_bytes is None:
        return "?"
    if 0 < count_bytes < GIB // 10:
        return f"{max(1, round(count_bytes / MIB))} MiB"
    return f"{count_bytes / GIB:.1f} GiB"


def gib(count_bytes: int) -> str:
    """Bytes as a bare number of GiB; two decimals where one would say zero."""
    number = count_bytes / GIB
    return f"{number:.2f}" if 0 < number < 0.1 else f"{number:.1f}"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    total = int(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02} s" if total % 60 else f"{total // 60} min"
    if total < 86400:
        return (
            f"{total // 3600} h {total % 3600 // 60:02} min"
            if total % 3600 // 60
            else f"{total // 3600} h"
        )
    return f"{total // 86400} d {total % 86400 // 3600:02} h"


def age(age_ms: int | None) -> str:
    """How old a thing heard is."""
    if age_ms is None:
        return "never heard"
    return "now" if age_ms < 2_000 else f"{span(age_ms / 1000)} ago"


def name_of(status: ClusterStatus, node: str | None) -> str:
    """A node's name as people know it; its short id when it is not a member any more."""
    if node is None:
        return "nobody"
    return next((known.name for known in status.nodes if known.node == node), node[:8])


def voters(status: ClusterStatus) -> str:
    """How many of the voters are alive."""
    alive = sum(
        known.node in status.voters and known.state in ("here", "up") for known in status.nodes
    )
    return f"{alive}/{len(status.voters)}"


def window(status: ClusterStatus) -> str:
    """Whether strangers are let in, and for how long still."""
    if not status.window_open:
        return "closed"
    left_s = status.window_left_s
    return f"open {span(left_s if left_s < 60 else left_s // 60 * 60)}" if left_s > 0 else "open"


def quorum(status: ClusterStatus) -> str:
    """Whether changes can be made now."""
    return "quorum" if status.quorum else "no quorum: serving, changes wait"


def headline(status: ClusterStatus) -> str:
    """What to say of a node that is not (yet) a member."""
    return {
        "seeking": "looking for a cluster…",
        "waiting": f"waits to be let in to {status.cluster_name or 'a cluster'}",
        "removed": f"was removed from {status.cluster_name or 'its cluster'}",
    }.get(status.phase, status.cluster_name)


def replicas(deployment: DeploymentStatus) -> str:
    """Ready and wanted replicas: `1/1`, `1/1–3`."""
    wanted = str(deployment.replicas_min)
    if deployment.replicas_max > deployment.replicas_min:
        wanted += f"–{deployment.replicas_max}"
    return f"{deployment.replicas_ready}/{wanted}"


def free_bytes(device: DeviceStatus) -> int:
    """Bytes of a device that nobody uses or has claimed: the live figure, when there is one,
    cannot exceed what the claims leave."""
    unclaimed = max(0, device.total_bytes - device.claimed_bytes - device.used_by_others_bytes)
    return unclaimed if device.free_bytes is None else min(device.free_bytes, unclaimed)


def device_label(device: DeviceStatus) -> str:
    """The device's name, with its backend unless the name says it."""
    if device.backend.lower() in device.name.lower():
        return device.name
    return f"{device.name} {device.backend}"


def activity(device: DeviceStatus) -> str:
    """How busy, hot and hungry it is now, as far as it says."""
    parts = [f"{device.utilization:.0%}"]
    if device.temperature_c is not None:
        parts.append(f"{device.temperature_c:.0f} °C")
    if device.power_w is not None:
        parts.append(f"{device.power_w:.0f} W")
    return ", ".join(parts)


def problems(node: NodeStatus) -> tuple[str, ...]:
    """What is wrong with a node, in words. That a GPU was not found is no news where the operator
    asked for other devices."""
    asked = bool(node.devices) and all(part.backend in ("cpu", "sim") for part in node.devices)
    return () if asked else node.problems


def role_marks(status: ClusterStatus, node: NodeStatus) -> str:
    """Role in words, with what is special about the node now."""
    words = [node.role]
    if status.controller == node.node:
        words = ["controller"]
    if node.draining:
        words.append("draining")
    if node.paused_left_s:
        words.append(f"paused {span(node.paused_left_s)}")
    return ", ".join(words)
