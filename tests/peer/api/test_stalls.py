"""A loop that stands still is noticed when it goes on, and forgotten after a while."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fixtures.virtual_time import elapse, run

from aivailable.peer.api.monitoring.stalls import (
    LOOK_EVERY_S,
    SLICE_S,
    SLICES_KEPT,
    STALL_MIN_S,
    LoopWatch,
)


class LateClock:
    """The loop's time, and what it stood still: virtual time cannot do that by itself."""

    def __init__(self) -> None:
        self.stood_s = 0.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self.stood_s

    def wall_ms(self) -> int:
        return 0


def test_a_stall_is_measured_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        clock = LateClock()
        watch = LoopWatch(clock)
        running = asyncio.ensure_future(watch.run())
        # Between two looks, so that none falls together with what the test does.
        await elapse(LOOK_EVERY_S / 2)
        await elapse(10 * LOOK_EVERY_S)
        assert (watch.stalls, watch.stalled_s, watch.longest_s()) == (0, 0.0, 0.0)
        clock.stood_s += STALL_MIN_S / 2
        await elapse(2 * LOOK_EVERY_S)
        assert watch.stalls == 0, "the noise of a busy loop"
        for stall_s in (0.5, 2.0, 0.75):
            clock.stood_s += stall_s
            await elapse(2 * LOOK_EVERY_S)
        assert watch.stalls == 3
        assert watch.stalled_s == pytest.approx(3.25)
        assert watch.longest_s() == pytest.approx(2.0)
        running.cancel()

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert [one.getMessage() for one in caplog.records] == [
        "the event loop of this node stood still for 2.0 s"
    ]


def test_the_longest_is_of_the_last_minutes() -> None:
    async def scenario() -> None:
        clock = LateClock()
        watch = LoopWatch(clock)
        running = asyncio.ensure_future(watch.run())
        # Between two looks, so that none falls together with what the test does.
        await elapse(LOOK_EVERY_S / 2)
        clock.stood_s += 3.0
        await elapse(2 * LOOK_EVERY_S)
        await elapse(2 * SLICE_S)
        clock.stood_s += 0.5
        await elapse(2 * LOOK_EVERY_S)
        assert watch.longest_s() == pytest.approx(3.0)
        await elapse(SLICE_S * (SLICES_KEPT - 1.5))
        assert watch.longest_s() == pytest.approx(0.5)
        await elapse(2 * SLICE_S)
        assert watch.longest_s() == 0.0
        assert watch.stalls == 2
        running.cancel()

    run(scenario(), limit_s=SLICE_S * SLICES_KEPT * 3)


def test_many_stalls_cost_no_memory() -> None:
    async def scenario() -> None:
        clock = LateClock()
        watch = LoopWatch(clock)
        running = asyncio.ensure_future(watch.run())
        # Between two looks, so that none falls together with what the test does.
        await elapse(LOOK_EVERY_S / 2)
        for _ in range(50):
            clock.stood_s += 1.0
            await elapse(SLICE_S / 2)
        assert watch.stalls == 50
        assert len(watch._slices) <= SLICES_KEPT
        running.cancel()

    run(scenario(), limit_s=SLICE_S * 100)
