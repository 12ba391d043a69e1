"""How long the event loop of this process stood still: a task that notices when it wakes too late.

Owns the measuring and the figures of it. While the loop stands still, no heartbeat, no vote and no
token leaves this node, so a long stall explains what others saw. Started by `api.server`, which
no simulation builds: on virtual time no loop stands still.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from aivailable.peer.ports import Clock

LOOK_EVERY_S = 0.25
"""Pause between two looks at the clock. A stall is seen when it has ended."""
STALL_MIN_S = 0.1
"""Waking later than planned by less than this is the normal noise of a busy loop."""
STALL_LOGGED_S = 1.0
"""A stall this long can cost a heartbeat, so the log names it."""
SLICE_S = 30.0
SLICES_KEPT = 10
"""The longest stall is that of the last SLICES_KEPT slices of SLICE_S seconds: a hiccup at the
start does not hide later ones, and a scraper that comes once a minute misses none."""

log = logging.getLogger("aivailable.stalls")


class LoopWatch:
    """`stalls` and `stalled_s` count since the start; `longest_s` forgets after a while."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slices: deque[tuple[int, float]] = deque(maxlen=SLICES_KEPT)
        """Number of the slice, and the longest stall in it."""
        self.stalls = 0
        self.stalled_s = 0.0

    async def run(self) -> None:
        """Look at the clock until cancelled."""
        while True:
            before_s = self._clock.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)
            self._note(self._clock.monotonic() - before_s - LOOK_EVERY_S)

    def longest_s(self) -> float:
        """The longest stall of the last few minutes, 0 when there was none."""
        oldest = self._slice() - SLICES_KEPT
        return max((late_s for number, late_s in self._slices if number > oldest), default=0.0)

    def _note(self, late_s: float) -> None:
        if late_s < STALL_MIN_S:
            return
        self.stalls += 1
        self.stalled_s += late_s
        number, longest_s = self._slice(), late_s
        if self._slices and self._slices[-1][0] == number:
            longest_s = max(late_s, self._slices.pop()[1])
        self._slices.append((number, longest_s))
        if late_s >= STALL_LOGGED_S:
            log.warning("the event loop of this node stood still for %.1f s", late_s)

    def _slice(self) -> int:
        return int(self._clock.monotonic() // SLICE_S)
