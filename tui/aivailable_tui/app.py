"""`aivailable top`: the cluster on one screen, live, from any node.

Owns the screen and one task that follows the cluster through the client; the client goes over to
another node when the one it asks dies. Must not change anything in the cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, Protocol

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.theme import Theme

from aivailable.core.status import ClusterStatus
from aivailable.errors import AivailableError
from aivailable_tui.messages import SightLost, StatusArrived
from aivailable_tui.widgets.bars import SILENT_AFTER_S, AdviceBar, FooterBar, HeaderBar
from aivailable_tui.widgets.deployments import DeploymentsPanel
from aivailable_tui.widgets.events import EventsPanel
from aivailable_tui.widgets.help import HelpScreen
from aivailable_tui.widgets.nodes import NodesPanel
from aivailable_tui.widgets.panel import Panel

RETRY_S = 1.0
LOOK_EVERY_S = 1.0

DARK = Theme(
    name="aivailable-dark",
    primary="#7aa2c8",
    secondary="#8fb5a3",
    accent="#c9a86a",
    success="#86b386",
    warning="#d0a75c",
    error="#d07a72",
    foreground="#d5d8dc",
    background="#16191d",
    surface="#1b1f24",
    panel="#242a31",
    dark=True,
)
LIGHT = Theme(
    name="aivailable-light",
    primary="#2f6496",
    secondary="#3c7a62",
    accent="#8a6414",
    success="#2f7a3a",
    warning="#96690c",
    error="#b03a30",
    foreground="#24292f",
    background="#fafaf7",
    surface="#f3f3ee",
    panel="#e6e6df",
    dark=False,
)


class Watcher(Protocol):
    """All that the monitor needs of `aivailable.client.Client`."""

    def watch(self) -> AsyncIterator[ClusterStatus]: ...


class Monitor(App[None]):
    """The application; `open_watcher` makes a fresh connection to the cluster."""

    TITLE = "AIvailable"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    VERTICAL_BREAKPOINTS = [(0, "-short"), (18, "-tall")]  # noqa: RUF012 - as App declares it
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("question_mark", "help", "Help"),
        Binding("t", "switch_theme", "Theme"),
    ]

    def __init__(self, open_watcher: Callable[[], AbstractAsyncContextManager[Watcher]]) -> None:
        super().__init__()
        self.shown: ClusterStatus | None = None
        """What stands on the screen."""
        self.lost = ""
        """Why there is no news now; "" while there is."""
        self._open_watcher = open_watcher
        self._news_at_s = 0.0

    def compose(self) -> ComposeResult:
        with Vertical(id="top"):
            yield HeaderBar()
            yield AdviceBar()
        yield NodesPanel()
        yield DeploymentsPanel()
        yield EventsPanel()
        yield FooterBar()

    def on_mount(self) -> None:
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.query_one(AdviceBar).display = False
        self._news_at_s = asyncio.get_running_loop().time()
        self.set_interval(LOOK_EVERY_S, self._look_at_age)
        self.run_worker(self._follow(), exclusive=True)

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
        self.query_one(HeaderBar).show(message.status)
        self.query_one(AdviceBar).show(message.status)
        for panel in self.query(Panel):
            panel.show(message.status)
        self.query_one(FooterBar).follow(message.status)
        self.shown, self.lost = message.status, ""

    def on_sight_lost(self, message: SightLost) -> None:
        self.query_one(FooterBar).lose(self._age_s())
        self.query_one(AdviceBar).say(message.reason)
        self.lost = message.reason

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_switch_theme(self) -> None:
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name

    def _look_at_age(self) -> None:
        if self._age_s() > SILENT_AFTER_S:
            self.query_one(FooterBar).lose(self._age_s())

    def _age_s(self) -> float:
        return asyncio.get_running_loop().time() - self._news_at_s


def run(urls: Sequence[str], api_key: str | None) -> None:
    """Show the cluster until the user quits. Blocks; needs a terminal."""
    from aivailable.client import Client

    Monitor(lambda: Client(urls, api_key)).run()
