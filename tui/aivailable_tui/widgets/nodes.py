"""Nodes, their devices, and how each device's memory is spent."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content

from aivailable.advice import ADMIT
from aivailable.core.serving.status import ClusterStatus, DeviceStatus, NodeStatus
from aivailable_tui import wording
from aivailable_tui.widgets.panel import STYLES, Panel, fit

NAME_COLUMNS_MAX = 12
ROLE_COLUMNS_MAX = 11
DEVICE_COLUMNS_MAX = 16
BAR_COLUMNS_MIN = 8
BAR_COLUMNS_MAX = 48
WIDE_COLUMNS = 110
"""From here on, texts may take twice the room."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Widths in cells: texts take what they need, the bar gets the rest."""

    name: int
    role: int
    device: int
    sizes: int
    bar: int
    """0 = no room for it."""


def columns_for(status: ClusterStatus, width: int) -> Columns:
    """How the lines of this status share `width` cells."""
    scale = 2 if width >= WIDE_COLUMNS else 1
    devices = [device for node in status.nodes for device in node.devices]
    name = _widest([node.name for node in status.nodes], NAME_COLUMNS_MAX * scale)
    role = _widest([_role(status, node) for node in status.nodes], ROLE_COLUMNS_MAX * scale)
    label = _widest(
        [wording.device_label(device) for device in devices], DEVICE_COLUMNS_MAX * scale
    )
    sizes = _widest([_sizes(device) for device in devices], width)
    # Two for the symbol, then one blank behind each of four columns.
    bar = min(BAR_COLUMNS_MAX, width - 2 - name - role - label - sizes - 4)
    return Columns(name, role, label, sizes, bar if bar >= BAR_COLUMNS_MIN else 0)


def _widest(texts: list[str], limit: int) -> int:
    return min(limit, max((len(text) for text in texts), default=0))


class NodesPanel(Panel):
    heading = "Nodes"

    def tally(self, status: ClusterStatus) -> str:
        alive = sum(node.state in ("here", "up") for node in status.nodes)
        return f"{alive}/{len(status.nodes)}"

    def lines(self, status: ClusterStatus, width: int) -> list[Content]:
        drawn: list[Content] = []
        columns = columns_for(status, width)
        for node in status.nodes:
            drawn.extend(_node_lines(status, node, width, columns))
        for waiter in status.waiting:
            waiting = f"{waiter.name} ({waiter.address}) waits: {ADMIT.line}"
            text = f"{wording.symbol('silent')} {waiting}"
            drawn.append(Content.styled(fit(text, width).rstrip(), STYLES["warn"]))
        return drawn or [Content.styled(status.advice or "nobody yet", STYLES["quiet"])]


def _node_lines(
    status: ClusterStatus, node: NodeStatus, width: int, columns: Columns
) -> list[Content]:
    """One line per device; the node's name stands on the first."""
    head = Content.assemble(
        (f"{wording.symbol(node.state)} ", STYLES[wording.tone(node.state)]),
        (fit(node.name, columns.name), "bold"),
        " ",
        (fit(_role(status, node), columns.role), _role_style(status, node)),
        " ",
    )
    blank = Content(" " * head.cell_length)
    drawn: list[Content] = []
    for device in node.devices:
        part = _device(device, columns) if node.state != "down" else _away(device, columns)
        drawn.append((blank if drawn else head) + part)
    if not drawn:
        drawn.append(head + Content.styled("no device: it routes and votes", STYLES["quiet"]))
    for problem in wording.problems(node):
        text = fit(f"  ▲ {problem}", width).rstrip()
        drawn.append(Content.styled(text, STYLES["warn"]))
    return drawn


def _role(status: ClusterStatus, node: NodeStatus) -> str:
    """What matters most about a node: that it is away, else what it is."""
    return node.state if node.state in ("silent", "down") else wording.role_marks(status, node)


def _role_style(status: ClusterStatus, node: NodeStatus) -> str:
    if node.state in ("silent", "down"):
        return STYLES[wording.tone(node.state)]
    return "$text-accent" if status.controller == node.node else STYLES["quiet"]


def _sizes(device: DeviceStatus) -> str:
    claimed, total = wording.gib(device.claimed_bytes), wording.gib(device.total_bytes)
    return f"{claimed}/{total} GiB {wording.gib(wording.free_bytes(device))} free"


def _device(device: DeviceStatus, columns: Columns) -> Content:
    parts = [Content(fit(wording.device_label(device), columns.device)), Content(" ")]
    if columns.bar:
        parts.extend([memory_bar(device, columns.bar), Content(" ")])
    sizes = _sizes(device).rjust(columns.sizes)
    parts.append(Content.styled(sizes, STYLES["quiet"]))
    return Content("").join(parts)


def _away(device: DeviceStatus, columns: Columns) -> Content:
    """A device of a node that is down: nothing of it can be used."""
    gap = " " * columns.bar + " " if columns.bar else ""
    sizes = f"{wording.gib(device.total_bytes)} GiB away".rjust(columns.sizes)
    label = fit(wording.device_label(device), columns.device)
    return Content.styled(f"{label} {gap}{sizes}", STYLES["quiet"])


def memory_bar(device: DeviceStatus, columns: int) -> Content:
    """Claimed █, used by other programs ▒, free ─, in `columns` cells.

    What is not zero gets a cell, so that a small claim on a large card is seen.
    """
    total = max(1, device.total_bytes)
    claimed = _cells(device.claimed_bytes, total, columns)
    others = min(_cells(device.used_by_others_bytes, total, columns), columns - claimed)
    return Content.assemble(
        ("█" * claimed, "$primary"),
        ("▒" * others, "$warning"),
        ("─" * (columns - claimed - others), "$foreground 30%"),
    )


def _cells(part: int, total: int, columns: int) -> int:
    if part <= 0:
        return 0
    return min(columns, max(1, round(columns * part / total)))
