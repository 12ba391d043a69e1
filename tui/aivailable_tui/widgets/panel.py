"""A titled, scrollable area that draws lines for the width it has.

Subclasses say what the lines are; this owns the drawing, the title and the scrolling.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from aivailable.core.serving.status import ClusterStatus

STYLES = {
    "good": "$text-success",
    "busy": "$text-primary",
    "warn": "$text-warning",
    "bad": "$text-error",
    "quiet": "$foreground 60%",
}
"""Tone of `wording` → colour of the theme."""


def fit(text: str, width: int) -> str:
    """`text` in exactly `width` columns, cut with an ellipsis."""
    if width <= 0:
        return ""
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


class Panel(VerticalScroll):
    """One area. `show` hands it a status; it draws again at that and at every resize."""

    can_focus = True
    heading = ""

    def __init__(self) -> None:
        super().__init__(id=type(self).__name__.removesuffix("Panel").lower())
        self._status: ClusterStatus | None = None
        self._lines = Static(classes="lines")
        self.border_title = self.heading

    def compose(self) -> ComposeResult:
        yield self._lines

    def show(self, status: ClusterStatus) -> None:
        """Draw this status from now on."""
        self._status = status
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        width = self.scrollable_content_region.width
        if self._status is None or width <= 0:
            return
        self.border_title = f"{self.heading} {self.tally(self._status)}".strip()
        self._lines.update(Content("\n").join(self.lines(self._status, width)))

    def tally(self, _status: ClusterStatus) -> str:
        """A word beside the title."""
        return ""

    def lines(self, status: ClusterStatus, width: int) -> list[Content]:
        """What to draw in `width` columns."""
        raise NotImplementedError
