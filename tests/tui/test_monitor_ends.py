"""The monitor's end while everything goes on: ticks, statuses and errors that come too late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Self

import pytest
from fixtures.cluster_status import lab
from textual.events import Key
from textual.pilot import Pilot

from aivailable.client import ClientError
from aivailable.core.serving.status import ClusterStatus
from aivailable_tui import main_screen
from aivailable_tui.app import Monitor
from aivailable_tui.main_screen import MainScreen
from aivailable_tui.widgets.events import EventsPanel
from aivailable_tui.widgets.nodes import NodesPanel

SMALL = (80, 24)
OFTEN_S = 0.001
"""Between two ticks."""
LAST_S = 0.02
"""Needed by the last panel to go, while the other widgets have gone: some ticks."""


class BusyCluster:
    """Never rests: statuses at every turn of the loop, then an error, then the same again."""

    def __init__(self) -> None:
        self.opened = 0
        self.closed = 0
        self.told = 0

    async def __aenter__(self) -> Self:
        self.opened += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.sleep(0)  # As a client that closes its connections.
        finally:
            self.closed += 1

    async def watch(self) -> AsyncIterator[ClusterStatus]:
        for _ in range(3):
            self.told += 1
            yield lab()
            await asyncio.sleep(0)
        raise ClientError("no member answers")


@pytest.fixture(autouse=True)
def _never_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_screen, "SILENT_AFTER_S", -1.0)
    monkeypatch.setattr(main_screen, "LOOK_EVERY_S", OFTEN_S)
    monkeypatch.setattr(main_screen, "RETRY_S", 0.0)


@pytest.fixture(params=[EventsPanel, NodesPanel], ids=["events", "nodes"])
def slow_panel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One panel takes long to go, so that the screen stands without its other widgets."""
    gone = []

    async def on_unmount(panel: EventsPanel | NodesPanel) -> None:
        enough = asyncio.Event()
        asyncio.get_running_loop().call_later(LAST_S, enough.set)
        await enough.wait()
        gone.append(type(panel).__name__)

    monkeypatch.setattr(request.param, "on_unmount", on_unmount, raising=False)
    return gone


async def busy(pilot: Pilot[None], cluster: BusyCluster) -> None:
    """Returns when statuses, errors and ticks have come."""
    screen = pilot.app.default_screen
    assert isinstance(screen, MainScreen)
    while cluster.opened < 3 or screen.shown is None:
        await pilot.pause(0)


async def test_the_end_without_a_word(slow_panel: list[str]) -> None:
    """The screen is taken down from outside: the app has not been told to exit."""
    cluster = BusyCluster()
    app = Monitor(lambda: cluster)
    async with app.run_test(size=SMALL) as pilot:
        await busy(pilot, cluster)
    assert slow_panel
    assert cluster.opened == cluster.closed


@pytest.mark.parametrize("keys", ["q", "ctrl+q", "question_mark,q,q", "t,q", "q,question_mark,t"])
async def test_a_user_quits(slow_panel: list[str], keys: str) -> None:
    cluster = BusyCluster()

    async def press(pilot: Pilot[None]) -> None:
        await busy(pilot, cluster)
        for key in keys.split(","):
            pilot.app.post_message(Key(key, None))
            await asyncio.sleep(0)

    app = Monitor(lambda: cluster)
    await app.run_async(headless=True, size=SMALL, auto_pilot=press)
    assert (app.return_code, app._exception) == (0, None)
    assert slow_panel
    assert cluster.opened == cluster.closed


@pytest.mark.parametrize("turns", range(0, 60, 5))
async def test_it_ends_as_soon_as_it_has_begun(turns: int) -> None:
    """`turns` of the loop after its start, whatever stands on the screen by then."""
    cluster = BusyCluster()
    app = Monitor(lambda: cluster)

    async def end() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        app.exit()

    await asyncio.gather(app.run_async(headless=True, size=SMALL), end())
    assert (app.return_code, app._exception) == (0, None)
    assert cluster.opened == cluster.closed
