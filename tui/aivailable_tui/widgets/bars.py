"""The line at the top (what cluster this is) and the one at the bottom (who tells it)."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from aivailable.core.serving.status import ClusterStatus
from aivailable_tui import wording
from aivailable_tui.widgets.panel import STYLES

SILENT_AFTER_S = 3.5
"""Statuses come every second; after this long without one the view counts as old."""


class HeaderBar(Static):
    """Cluster, controller, voters, version, join window; and loudly when changes must wait."""

    def show(self, status: ClusterStatus) -> None:
        parts = [Content.styled(wording.headline(status), "bold $text-primary")]
        if status.phase == "member":
            controller = wording.name_of(status, status.controller)
            parts += [
                Content.assemble(("controller ", STYLES["quiet"]), controller),
                Content.assemble(("voters ", STYLES["quiet"]), wording.voters(status)),
                Content.assemble(("version ", STYLES["quiet"]), str(status.version)),
                Content.assemble(("window ", STYLES["quiet"]), wording.window(status)),
            ]
            if not status.quorum:
                parts.insert(1, Content.styled("▲ no quorum", f"bold {STYLES['bad']}"))
        self.update(Content("  ").join(parts))


class AdviceBar(Static):
    """What needs a person. Takes no room when nothing does."""

    def show(self, status: ClusterStatus) -> None:
        advice = status.advice
        if status.phase == "member" and not status.quorum:
            advice = advice or "Most voters are away: models go on serving, changes wait."
        self.say(advice)

    def say(self, text: str) -> None:
        """Show this text; an empty one hides the line."""
        self.update(Content.styled(f"→ {text}", STYLES["warn"]))
        self.display = bool(text)


class FooterBar(Static):
    """Which node is followed, how fresh its news is, and the keys."""

    KEYS = "tab panel  t theme  ? help  q quit"

    def __init__(self) -> None:
        super().__init__()
        self._source = ""
        self._lost = "connecting…"

    def follow(self, status: ClusterStatus) -> None:
        """News came from this status' node."""
        node = next((known for known in status.nodes if known.node == status.here), None)
        self._source = node.name if node else status.here[:8]
        self._lost = ""
        self._draw()

    def lose(self, age_s: float) -> None:
        """No news since `age_s` seconds."""
        self._lost = f"reconnecting… (last news {wording.span(age_s)} ago)"
        self._draw()

    def on_mount(self) -> None:
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        left = (
            Content.assemble(("◌ ", STYLES["warn"]), (self._lost, STYLES["warn"]))
            if self._lost
            else Content.assemble(("● ", STYLES["good"]), f"following {self._source}")
        )
        gap = max(2, self.content_size.width - left.cell_length - len(self.KEYS))
        self.update(left + Content(" " * gap) + Content.styled(self.KEYS, STYLES["quiet"]))
