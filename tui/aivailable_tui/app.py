"""`aivailable top`: the cluster on one screen, live, from any node.

Owns the program: keys, themes and which screen is shown. The main screen follows the cluster; the
client goes over to another node when the one it asks dies. Must not touch a screen's widgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.theme import Theme

from aivailable_tui.main_screen import MainScreen, OpenWatcher
from aivailable_tui.widgets.help import HelpScreen

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

    def __init__(self, open_watcher: OpenWatcher) -> None:
        super().__init__()
        self._open_watcher = open_watcher

    def get_default_screen(self) -> MainScreen:
        return MainScreen(self._open_watcher)

    def on_mount(self) -> None:
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name

    def action_help(self) -> None:
        self.push_screen(HelpScreen())

    def action_switch_theme(self) -> None:
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name


def run(urls: Sequence[str], api_key: str | None, *, mapped: bool = False) -> None:
    """Show the cluster until the user quits. Blocks; needs a terminal. Arguments as Client's."""
    from aivailable.client import Client

    Monitor(lambda: Client(urls, api_key, mapped=mapped)).run()
