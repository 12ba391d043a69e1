"""The help page: what the signs mean, which keys there are."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from aivailable_tui import wording
from aivailable_tui.widgets.panel import STYLES

_ROWS = (
    ("node", ("here", "up", "silent", "down")),
    ("model", ("ready", "starting", "degraded", "unplaceable", "on demand")),
    ("replica", ("placed", "fetching", "loading", "ready", "draining", "failed")),
)


class HelpScreen(ModalScreen[None]):
    """Closed by ?, q or Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        page = Vertical(Static(_page()), id="help")
        page.border_title = "Help"
        yield page


def _page() -> Content:
    lines = []
    for label, states in _ROWS:
        line = Content.styled(f"{label:<9}", STYLES["quiet"])
        for state in states:
            line += Content.assemble(
                (f"{wording.symbol(state)} ", STYLES[wording.tone(state)]), f"{state}  "
            )
        lines.append(line)
    lines.append(
        Content.assemble(
            (f"{'memory':<9}", STYLES["quiet"]),
            ("██", "$primary"),
            " claimed by replicas  ",
            ("▒▒", "$warning"),
            " other programs  ",
            ("──", "$foreground 30%"),
            " free",
        )
    )
    lines.append(Content(""))
    for key, does in (
        ("tab", "next panel; arrows and page keys scroll it"),
        ("t", "dark or light"),
        ("?", "this page"),
        ("q", "quit; the cluster does not mind"),
    ):
        lines.append(Content.assemble((f"{key:<9}", "bold"), does))
    return Content("\n").join(lines)
