"""Background tasks of one owner: named, ended together, never dying in silence.

Order of start is order of cancellation reversed, so that a run on virtual time is reproducible.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("aivailable.tasks")


class Tasks:
    """A bag of tasks that stop with their owner."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._running: dict[int, asyncio.Task[Any]] = {}
        self._count = 0
        self._stopped = False

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in the background. A failure is logged with its traceback."""
        self._count += 1
        number = self._count
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}:{name}")
        self._running[number] = task
        task.add_done_callback(lambda done: self._ended(number, done))
        if self._stopped:
            task.cancel()
        return task

    def _ended(self, number: int, task: asyncio.Task[Any]) -> None:
        self._running.pop(number, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def stop(self) -> None:
        """Cancel everything, newest first, and wait until it has ended."""
        self._stopped = True
        tasks = [self._running[number] for number in sorted(self._running, reverse=True)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Pulse:
    """Wakes a loop at once when nudged, else after its period."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def nudge(self) -> None:
        self._event.set()

    async def wait(self, period_s: float) -> None:
        """Returns at the next nudge, or after `period_s`."""
        try:
            async with asyncio.timeout(period_s):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()
