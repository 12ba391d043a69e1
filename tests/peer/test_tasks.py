"""Background tasks end with their owner and never fail in silence; a pulse loses no nudge."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fixtures.peer_ports import turns
from fixtures.virtual_time import run

from aivailable.peer.tasks import Pulse, Tasks


def test_stop_cancels_the_newest_first_and_waits() -> None:
    async def scenario() -> None:
        ended: list[str] = []

        async def work(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(name)

        tasks = Tasks("owner")
        for name in ("first", "second", "third"):
            tasks.spawn(work(name), name)
        await turns()
        await tasks.stop()
        assert ended == ["third", "second", "first"]

    run(scenario())


def test_a_failure_is_logged_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def work() -> None:
            raise RuntimeError("broken")

        Tasks("owner").spawn(work(), "work")
        await turns()

    with caplog.at_level(logging.ERROR):
        run(scenario())
    assert "owner:work failed" in caplog.text
    assert "RuntimeError: broken" in caplog.text


def test_nothing_runs_after_stop() -> None:
    async def scenario() -> None:
        ran = []

        async def work() -> None:
            ran.append(True)

        tasks = Tasks("owner")
        await tasks.stop()
        late = tasks.spawn(work(), "late")
        await turns()
        assert late.cancelled()
        assert ran == []

    run(scenario())


def test_a_pulse_wakes_at_once_when_nudged_before_or_meanwhile_else_after_its_period() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        pulse = Pulse()
        start_s = loop.time()
        pulse.nudge()
        await pulse.wait(10.0)
        assert loop.time() == start_s
        await pulse.wait(10.0)
        assert loop.time() == pytest.approx(start_s + 10)
        loop.call_later(3.0, pulse.nudge)
        await pulse.wait(10.0)
        assert loop.time() == pytest.approx(start_s + 13)

    run(scenario())
