"""The last things that happened, newest at the bottom."""

from __future__ import annotations

import datetime

from textual.content import Content

from aivailable.core.serving.status import ClusterStatus
from aivailable_tui.widgets.panel import STYLES, Panel, fit


class EventsPanel(Panel):
    heading = "Events"

    def show(self, status: ClusterStatus) -> None:
        newer = self._status is None or self._status.events != status.events
        super().show(status)
        if newer:
            self.scroll_end(animate=False)

    def lines(self, status: ClusterStatus, width: int) -> list[Content]:
        drawn = []
        for event in status.events:
            when = datetime.datetime.fromtimestamp(event.at_ms / 1000, datetime.UTC).astimezone()
            text = event.text or f"{event.kind} {event.subject}"
            stamp = f"{when:%H:%M:%S} "
            drawn.append(
                Content.assemble((stamp, STYLES["quiet"]), fit(text, width - len(stamp)).rstrip())
            )
        return drawn or [Content.styled("nothing yet", STYLES["quiet"])]
