"""The screen with the whole cluster on it, and all that keeps it fresh.

Owns its widgets, the task that follows the cluster through the client, and the timer that looks at
the age of the news. They belong to the screen, not to the app, because Textual stops a screen's
timers and messages before it takes the screen's widgets away. The app outlives its screens: its own
timer would ask for widgets that have gone. Must not change anything in the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import Screen
from textual.worker import Worker, WorkerCancelled, WorkerFailed

from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError
from aivailable_tui.messages import SightLost, StatusArrived
from aivailable_tui.widgets.bars import SILENT_AFTER_S, AdviceBar, FooterBar, HeaderBar
from aivailable_tui.widgets.deployments import DeploymentsPanel
from aivailable_tui.widgets.events import EventsPanel
from aivailable_tui.widgets.nodes import NodesPanel
from aivailable_tui.widgets.panel import Panel

RETRY_S = 1.0
LOOK_EVERY_S = 1.0


class Watcher(Protocol):
    """All that the monitor needs of `aivailable.client.Client`."""

    def watch(self) -> AsyncIterator[ClusterStatus]: ...


OpenWatcher = Callable[[], AbstractAsyncContextManager[Watcher]]
"""Makes a fresh connection to the cluster."""


class MainScreen(Screen[None]):
    """Header, panels and footer. A callback that touches them is this screen's, never the app's."""

    def __init__(self, open_watcher: OpenWatcher) -> None:
        super().__init__()
        self.shown: ClusterStatus | None = None
        """What stands on the screen."""
        self.lost = ""
        """Why there is no news now; "" while there is."""
        self._open_watcher = open_watcher
        self._news_at_s = 0.0
        self._header, self._advice, self._footer = HeaderBar(), AdviceBar(), FooterBar()
        self._panels: tuple[Panel, ...] = (NodesPanel(), DeploymentsPanel(), EventsPanel())
        self._follower: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="top"):
            yield self._header
            yield self._advice
        yield from self._panels
        yield self._footer

    def on_mount(self) -> None:
        self._advice.display = False
        self._news_at_s = asyncio.get_running_loop().time()
        self.set_interval(LOOK_EVERY_S, self._look_at_age)
        self._follower = self.run_worker(self._follow, exclusive=True)

    async def on_unmount(self) -> None:
        """The client has time to close its connections: a second cancel would cut it short."""
        if self._follower is None:
            return
        if not self._follower.is_cancelled:
            self._follower.cancel()
        with contextlib.suppress(WorkerFailed, WorkerCancelled):  # Textual has shown the reason.
            await self._follower.wait()

    async def _follow(self) -> None:
        """Hands every status to the screen; starts anew when the client gives up."""
        while True:
            try:
                async with self._open_watcher() as watcher:
                    async for status in watcher.watch():
                        self.post_message(StatusArrived(status))
            except AivailableError as error:
                self.post_message(SightLost(str(error)))
            await asyncio.sleep(RETRY_S)

    def on_status_arrived(self, message: StatusArrived) -> None:
        self._news_at_s = asyncio.get_running_loop().time()
        self._header.show(message.status)
        self._advice.show(message.status)
        for panel in self._panels:
            panel.show(message.status)
        self._footer.follow(message.status)
        self.shown, self.lost = message.status, ""

    def on_sight_lost(self, message: SightLost) -> None:
        self._footer.lose(self._age_s())
        self._advice.say(message.reason)
        self.lost = message.reason

    def _look_at_age(self) -> None:
        if self._age_s() > SILENT_AFTER_S:
            self._footer.lose(self._age_s())

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._news_at_s
