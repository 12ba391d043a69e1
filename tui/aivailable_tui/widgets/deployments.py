"""What shall run, and each running copy: state, progress, slots in use."""

from __future__ import annotations

from textual.content import Content

from aivailable.advice import DEPLOY
from aivailable.core.serving.status import ClusterStatus, DeploymentStatus, ReplicaStatus
from aivailable_tui import wording
from aivailable_tui.widgets.panel import STYLES, Panel, fit

NAME_COLUMNS = 22
NODE_COLUMNS = 11
STATE_COLUMNS = 12
PROGRESS_COLUMNS = 16
SLOT_MARKS_MAX = 16


class DeploymentsPanel(Panel):
    heading = "Models"

    def tally(self, status: ClusterStatus) -> str:
        ready = sum(deployment.state == "ready" for deployment in status.deployments)
        return f"{ready}/{len(status.deployments)} ready" if status.deployments else ""

    def lines(self, status: ClusterStatus, width: int) -> list[Content]:
        drawn: list[Content] = []
        for deployment in status.deployments:
            drawn.extend(_deployment_lines(deployment, width))
            drawn.extend(
                _replica_line(replica, width)
                for replica in status.replicas
                if replica.deployment == deployment.name
            )
        hint = f"nothing is deployed: {DEPLOY.line}"
        return drawn or [Content.styled(hint, STYLES["quiet"])]


def _deployment_lines(deployment: DeploymentStatus, width: int) -> list[Content]:
    style = STYLES[wording.tone(deployment.state)]
    facts = (
        f"{wording.replicas(deployment)} replicas · {deployment.context} tokens × "
        f"{deployment.slots} slots"
    )
    line = Content.assemble(
        (f"{wording.symbol(deployment.state)} ", style),
        (fit(deployment.name, NAME_COLUMNS), "bold"),
        " ",
        (fit(deployment.state, STATE_COLUMNS), style),
        (facts, STYLES["quiet"]),
    )
    if deployment.state == "ready" or not deployment.explanation:
        return [line]
    why = fit(f"    {deployment.explanation}", width).rstrip()
    return [line, Content.styled(why, style)]


def _replica_line(replica: ReplicaStatus, width: int) -> Content:
    style = STYLES[wording.tone(replica.status)]
    number = replica.replica.rpartition("#")[2]
    head = Content.assemble(
        (f"  {wording.symbol(replica.status)} ", style),
        (fit(f"#{number}", 5), STYLES["quiet"]),
        " on ",
        fit(replica.node_name, NODE_COLUMNS),
        " ",
        (fit(replica.status, STATE_COLUMNS), style),
    )
    return head + _now(replica, max(0, width - head.cell_length))


def _now(replica: ReplicaStatus, width: int) -> Content:
    """What the replica does: how far it is, how busy, or why it failed."""
    if replica.reason and replica.status not in ("ready", "loading", "fetching"):
        return Content.styled(fit(replica.reason, width).rstrip(), STYLES["bad"])
    if replica.status in ("fetching", "loading"):
        done = round(max(0.0, min(1.0, replica.progress)) * PROGRESS_COLUMNS)
        return Content.assemble(
            ("━" * done, "$primary"),
            ("─" * (PROGRESS_COLUMNS - done), "$foreground 30%"),
            f" {replica.progress:>4.0%}",
        )
    if replica.status not in ("ready", "draining"):
        return Content.styled(wording.size(replica.claimed_bytes), STYLES["quiet"])
    parts = [slot_marks(replica.slots_busy, replica.slots)]
    if replica.waiting:
        parts.append(Content.styled(f" +{replica.waiting} waiting", STYLES["warn"]))
    if replica.tokens_per_s:
        parts.append(Content(f" · {replica.tokens_per_s:.0f} tok/s"))
    parts.append(Content.styled(f" · {wording.size(replica.claimed_bytes)}", STYLES["quiet"]))
    return Content("").join(parts)


def slot_marks(busy: int, slots: int) -> Content:
    """One mark per slot, filled when it decodes; figures when there are too many."""
    if slots > SLOT_MARKS_MAX:
        return Content(f"{busy}/{slots} busy")
    return Content.assemble(
        ("▮" * busy, "$primary"), ("▯" * (slots - busy), STYLES["quiet"]), f" {busy}/{slots} busy"
    )
