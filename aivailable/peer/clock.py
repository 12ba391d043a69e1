"""The real clock. Built by peer.app; the simulation has its own."""

from __future__ import annotations

import time


class SystemClock:
    """ports.Clock over the operating system's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
