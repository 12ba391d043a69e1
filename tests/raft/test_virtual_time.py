"""The virtual loop itself: what all other tests on virtual time stand on."""

from __future__ import annotations

import asyncio

import pytest
from fixtures import virtual_time as vt


def test_time_jumps_to_the_next_timer_and_order_is_kept() -> None:
    seen: list[tuple[str, float]] = []

    async def after(name: str, delay_s: float) -> None:
        await vt.elapse(delay_s)
        seen.append((name, asyncio.get_running_loop().time() - vt.START_S))

    async def main() -> None:
        await asyncio.gather(after("late", 3600.0), after("soon", 0.25), after("now", 0.0))

    vt.run(main(), limit_s=4000.0)
    assert seen == [("now", 0.0), ("soon", 0.25), ("late", 3600.0)]


def test_timers_of_one_instant_run_in_the_order_they_were_set() -> None:
    async def main() -> list[int]:
        loop, seen = asyncio.get_running_loop(), list[int]()
        for number in range(50):
            loop.call_at(loop.time() + 1.0, seen.append, number)
        await vt.elapse(2.0)
        return seen

    assert vt.run(main()) == list(range(50))


def test_real_asyncio_constructs_work() -> None:
    async def main() -> list[object]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(2.0, event.set)
        asyncio.get_running_loop().call_later(1.0, queue.put_nowait, 7)
        got: list[object] = [await asyncio.wait_for(queue.get(), 5.0)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.Event().wait()
        await event.wait()
        got.append(asyncio.get_running_loop().time() - vt.START_S)
        return got

    assert vt.run(main(), limit_s=10.0) == [7, 2.0]


def test_a_deadlock_says_who_waits() -> None:
    async def forgotten() -> None:
        await asyncio.Event().wait()

    with pytest.raises(vt.DeadlockError, match=r"(?s)main: .*forgotten"):
        vt.run(forgotten(), limit_s=1.0)


def test_the_limit_ends_a_run_that_goes_on() -> None:
    async def forever() -> None:
        while True:
            await vt.elapse(1.0)

    with pytest.raises(vt.OutOfTimeError):
        vt.run(forever(), limit_s=5.0)


def test_a_livelock_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vt, "TURNS_WITHOUT_TIME_MAX", 50)

    async def spin() -> None:
        while True:
            await vt.elapse(0)

    with pytest.raises(vt.LivelockError):
        vt.run(spin(), limit_s=5.0)


def test_a_failure_nobody_looked_at_fails_the_run() -> None:
    async def broken() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        task = asyncio.create_task(broken())
        await vt.elapse(1.0)
        assert task.done()

    with pytest.raises(vt.UnseenFailureError, match="unseen"):
        vt.run(main(), limit_s=5.0)


def test_threads_are_refused_and_leftovers_cancelled() -> None:
    ends: list[str] = []

    async def leftover(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append(name)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(leftover(name)) for name in "abc"]
        await vt.elapse(0)
        with pytest.raises(RuntimeError, match="no threads"):
            loop.run_in_executor(None, len, "x")
        assert len(tasks) == 3

    vt.run(main(), limit_s=5.0)
    assert ends == ["a", "b", "c"]
