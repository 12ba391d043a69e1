"""How `fit` and `deploy --dry-run` answer: bytes by device, and a plan as a diff.

Must not ask or decide anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from aivailable.cli import render
from aivailable.core.serving.status import DeviceFit, FitStatus, PlanStatus
from aivailable_tui import wording

_SOURCES: Mapping[str, str] = {
    "oracle": "exact, by a dry run",
    "formula": "estimated by the formula",
    "option": "as given",
}
_MARKS: Mapping[str, tuple[str, str]] = {
    "keep": (" ", "dim"),
    "place": ("+", "green"),
    "drain": ("-", "red"),
    "lack": ("!", "yellow"),
}


def fit_page(fit: FitStatus) -> Iterator[RenderableType]:
    """The need, the place, every device, and what would help where it does not fit."""
    line = Text(fit.model, style="bold")
    line.append(f"  {fit.slots} slots of {fit.context} tokens", style="not bold")
    yield line
    yield _need(fit)
    if fit.node_name:
        split = "split over " if len(fit.devices_chosen) > 1 else ""
        where = f"{fit.node_name}, {split}{' and '.join(fit.devices_chosen)}"
        yield Text(f"● fits; it would go to {where}", style="green")
    else:
        yield Text("✕ fits nowhere now", style="red")
    yield Text()
    yield _devices(fit)
    for device in fit.devices:
        if device.advice:
            yield Text(f"{_where(device)} would take it with {' or '.join(device.advice)}")


def plan_page(plan: PlanStatus) -> Iterator[RenderableType]:
    """The need, then the diff."""
    yield Text(plan.deployment, style="bold")
    yield _need(plan)
    yield Text()
    for step in plan.steps:
        mark, style = _MARKS.get(step.action, ("?", "yellow"))
        if step.action == "lack":
            yield Text(f"{mark} {step.deployment}: {step.reason}", style=style)
            continue
        why = f" ({step.reason})" if step.reason else ""
        yield Text(
            f"{mark} {step.replica}  {step.node_name}  {', '.join(step.devices)}"
            f"  {wording.size(step.claim_bytes)}{why}",
            style=style,
        )
    if not plan.steps:
        yield Text("  nothing runs, and nothing would", style="dim")
    yield Text("Nothing was changed.", style="dim")


def _need(sized: FitStatus | PlanStatus) -> Text:
    total = sized.weights_bytes + sized.kv_bytes + sized.compute_bytes
    source = _SOURCES.get(sized.predicted_by, sized.predicted_by)
    return Text(
        f"needs {wording.size(total)}: weights {wording.size(sized.weights_bytes)}, KV cache"
        f" {wording.size(sized.kv_bytes)}, compute {wording.size(sized.compute_bytes)} ({source})"
    )


def _devices(fit: FitStatus) -> Table:
    sizes = ("TOTAL", "CLAIMED", "OTHERS", "MARGIN", "FREE")
    table = render.empty_table("NODE", "DEVICE", *sizes, "CTX", "VERDICT", right=(*sizes, "CTX"))
    for device in fit.devices:
        known = device.device_id != ""
        shown = [
            wording.size(count) if known else ""
            for count in (
                device.total_bytes,
                device.claimed_bytes,
                device.used_by_others_bytes,
                device.margin_bytes,
                device.free_bytes,
            )
        ]
        context = f"≤ {device.context_max}" if device.context_max else ""
        name = f"{device.device_name} {device.device_id}" if known else ""
        table.add_row(device.node_name, name, *shown, context, _verdict(device))
    return table


def _verdict(device: DeviceFit) -> Text:
    if device.obstacle:
        return Text(f"✕ {device.obstacle}", style="dim")
    if device.fits:
        return Text("● fits", style="green")
    return Text(f"✕ {wording.size(device.missing_bytes)} missing", style="yellow")


def _where(device: DeviceFit) -> str:
    return f"{device.node_name} {device.device_name} {device.device_id}"
