"""Keeps dialling one member for as long as there is no link to it.

Owns when to dial: at once after a loss or news, then with a jittered exponential backoff. It
must not know sockets: `attempt` makes one try. Started by links.mesh, one per contact.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_EXPECTED_MAX_S: Final = 1.0
"""While the member was linked, or became known, within EXPECTED_S."""
BACKOFF_ABSENT_MAX_S: Final = 2.0
"""After it: a partition of an hour ends no slower than one of a minute, and four members that are
off cost a few packets a second."""
EXPECTED_S: Final = 60.0


class Dialler:
    """One member's dialling loop."""

    def __init__(self, attempt: Callable[[], Awaitable[bool]], rng: random.Random) -> None:
        self._attempt = attempt
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._expected_until_s = self._loop.time() + EXPECTED_S
        self.task = self._loop.create_task(self._run())

    def nudge(self) -> None:
        """The link was lost, or the member's addresses changed: dial now."""
        self._expected_until_s = self._loop.time() + EXPECTED_S
        self._news.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._news.clear()
            if await self._attempt():
                failures = 0
                await self._news.wait()
                continue
            failures += 1
            try:
                async with asyncio.timeout(self._pause_s(failures)):
                    await self._news.wait()
                failures = 0
            except TimeoutError:
                continue

    def _pause_s(self, failures: int) -> float:
        expected = self._loop.time() < self._expected_until_s
        longest = BACKOFF_EXPECTED_MAX_S if expected else BACKOFF_ABSENT_MAX_S
        pause = min(longest, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))
        return pause * (0.5 + 0.5 * self._rng.random())
