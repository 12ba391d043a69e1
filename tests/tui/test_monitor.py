"""The monitor on a scripted cluster: what stands where, and that it goes on when nodes die."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from fixtures.cluster_status import NAS, RIG1, RIG2, lab
from fixtures.scripted_monitor import ScriptedCluster, screen_text
from textual.pilot import Pilot

from aivailable.client import ClientError
from aivailable_tui import main_screen
from aivailable_tui.app import Monitor
from aivailable_tui.widgets.help import HelpScreen

SMALL = (80, 24)


def line_with(text: str, screen: str) -> str:
    found = [line for line in screen.splitlines() if text in line]
    assert len(found) == 1, f"{text!r} stands on {len(found)} lines of\n{screen}"
    return found[0]


async def test_everything_stands_on_a_small_terminal() -> None:
    cluster = ScriptedCluster()
    app = Monitor(lambda: cluster)
    async with app.run_test(size=SMALL) as pilot:
        await cluster.tell(pilot, lab())
        screen = screen_text(app)
    header = screen.splitlines()[0]
    for text in ("lab", "controller rig1", "voters 2/3", "version 1042", "window open 12 min"):
        assert text in header
    first = line_with("GTX 1080 Ti cuda", screen)
    assert "◉ rig1" in first
    assert "█──" in first
    assert "5.0/11.0 GiB 6.0 free" in first
    assert "▒──" in line_with("RX 580 vulkan", screen)
    assert "0.0/8.0 GiB 6.5 free" in line_with("RX 580 vulkan", screen)
    assert "◌ nas  silent" in line_with("nas  silent", screen)
    assert "▮▮▯▯ 2/4 busy · 34 tok/s · 5.0 GiB" in line_with("#1.1  on rig1", screen)
    assert "━━━━━━━━────────  50%" in line_with("#1.1  on rig2", screen)
    assert "✕ llama-70b" in line_with("unplaceable", screen)
    assert "needs 41.0 GiB, 11.8 free on rig2 P40" in screen
    assert "laptop (192.168.1.44) waits" in screen
    assert "14:30:42 mistral-7b#1.1 is placed on rig2" in screen
    footer = screen.splitlines()[-1]
    assert "● following rig1" in footer
    assert "q quit" in footer


async def test_it_goes_on_with_another_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_screen, "RETRY_S", 0.0)
    cluster = ScriptedCluster()
    app = Monitor(lambda: cluster)
    async with app.run_test(size=SMALL) as pilot:
        assert "connecting…" in screen_text(app)
        await cluster.tell(pilot, lab())
        await cluster.tell(pilot, ClientError("no member answers"))
        lost = screen_text(app)
        assert "reconnecting…" in lost.splitlines()[-1]
        assert "→ no member answers" in lost
        assert "GTX 1080 Ti" in lost, "the last view stays while nobody answers"
        await cluster.tell(pilot, without_rig1())
        found = screen_text(app)
        assert cluster.opened >= 2
    assert "● following rig2" in found.splitlines()[-1]
    assert "no member answers" not in found
    assert "✕ rig1" in line_with("✕ rig1", found)
    assert "11.0 GiB away" in line_with("✕ rig1", found)
    assert "free" not in line_with("✕ rig1", found)
    assert "controller rig2" in found.splitlines()[0]


def without_rig1() -> Any:
    status = lab()
    states = {RIG1: "down", RIG2: "here", NAS: "up"}
    nodes = tuple(dataclasses.replace(node, state=states[node.node]) for node in status.nodes)
    return dataclasses.replace(status, here=RIG2, controller=RIG2, leader=RIG2, nodes=nodes)


async def test_silence_is_shown_as_reconnecting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_screen, "SILENT_AFTER_S", -1.0)
    monkeypatch.setattr(main_screen, "LOOK_EVERY_S", 0.01)
    cluster = ScriptedCluster(lab())
    app = Monitor(lambda: cluster)
    async with app.run_test(size=SMALL) as pilot:
        while "reconnecting…" not in screen_text(app):
            await pilot.pause(0.01)


async def test_a_lost_quorum_is_said_loudly() -> None:
    cluster = ScriptedCluster()
    app = Monitor(lambda: cluster)
    async with app.run_test(size=SMALL) as pilot:
        await cluster.tell(pilot, dataclasses.replace(lab(), quorum=False, controller=None))
        screen = screen_text(app)
        assert "▲ no quorum" in screen.splitlines()[0]
        assert "controller nobody" in screen.splitlines()[0]
        assert "models go on serving, changes wait" in screen.splitlines()[1]
        await cluster.tell(pilot, lab())
        assert "changes wait" not in screen_text(app)


async def test_a_node_that_is_not_let_in_says_what_to_do() -> None:
    cluster = ScriptedCluster()
    app = Monitor(lambda: cluster)
    waiting = dataclasses.replace(
        lab(),
        phase="waiting",
        advice="on a member, type: aivailable admit",
        nodes=(),
        deployments=(),
        replicas=(),
        waiting=(),
        events=(),
    )
    async with app.run_test(size=SMALL) as pilot:
        await cluster.tell(pilot, waiting)
        screen = screen_text(app)
    assert "waits to be let in to lab" in screen
    assert "→ on a member, type: aivailable admit" in screen
    assert f"following {RIG1[:8]}" in screen


async def test_keys() -> None:
    cluster = ScriptedCluster(lab())
    app = Monitor(lambda: cluster)
    async with app.run_test(size=SMALL) as pilot:
        focused = [app.focused and app.focused.id]
        for _ in range(3):
            await pilot.press("tab")
            focused.append(app.focused and app.focused.id)
        assert focused == ["nodes", "deployments", "events", "nodes"]
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        assert "claimed by replicas" in screen_text(app)
        await pilot.press("escape")
        assert not isinstance(app.screen, HelpScreen)
        dark = app.theme
        await pilot.press("t")
        assert app.theme != dark
        await pilot.press("q")
    assert app.return_code == 0


@pytest.mark.parametrize("size", [(20, 10), (40, 12), (300, 80)])
async def test_any_size_of_terminal(size: tuple[int, int]) -> None:
    cluster = ScriptedCluster()
    app = Monitor(lambda: cluster)
    async with app.run_test(size=size) as pilot:
        await cluster.tell(pilot, lab())
        screen = screen_text(app)
    assert screen.strip().startswith("lab")
    assert "●" in screen.splitlines()[-1]
    assert max(len(line) for line in screen.splitlines()) <= size[0]


def test_picture(snap_compare: Any) -> None:
    """The picture in README; `--snapshot-update` draws it again."""
    cluster = ScriptedCluster()

    async def draw(pilot: Pilot[None]) -> None:
        await cluster.tell(pilot, lab())

    assert snap_compare(Monitor(lambda: cluster), terminal_size=SMALL, run_before=draw)
