"""The join window on monotonic time: how long it stays open as this node knows it.

A node times the window from the moment it saw it open while already taking part; one that comes
later (a restart, a new member) learns the rest from the heartbeats of others. What nobody can time
any more counts as expired: a window never lives longer than the operator said.
"""

from __future__ import annotations

from aivailable.core.state.records import JoinWindow
from aivailable.peer.ports import Clock

INHERIT_GRACE_S = 5.0
"""How long a newcomer waits for somebody who knows the time left."""


class WindowClock:
    """Call `see` at every state change and `hear` at every heartbeat."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._serial = -1
        self._ends_s: float | None = None
        self._told_s: float | None = None
        self._seen_s = 0.0
        self._duration_s = 0

    def see(self, window: JoinWindow, *, live: bool) -> None:
        """A state was applied. `live`: we took part when it happened, it is no replay."""
        if window.serial == self._serial:
            return
        self._serial = window.serial
        self._seen_s = self._clock.monotonic()
        self._duration_s = window.duration_s
        ends_s = self._seen_s + window.duration_s
        if not window.open:
            self._ends_s = None
        elif live:
            self._ends_s = ends_s
        else:
            self._ends_s = None if self._told_s is None else min(self._told_s, ends_s)

    def opened_here(self, window: JoinWindow) -> None:
        """This process has just had the window opened: no replay, however young the process is."""
        if window.open and window.serial == self._serial and self._ends_s is None:
            self._ends_s = self._seen_s + window.duration_s

    def hear(self, left_s: int) -> None:
        """Another member knows that the window has `left_s` seconds left.

        One that lags may speak of an earlier, longer window: never more than the operator said.
        """
        if self._serial < 0 and left_s > 0:
            # A newcomer hears its first heartbeat before its first state.
            self._told_s = self._clock.monotonic() + left_s
            return
        left_s = min(left_s, self._duration_s)
        if self._ends_s is None and left_s > 0:
            self._ends_s = self._clock.monotonic() + left_s

    def left_s(self, window: JoinWindow) -> int:
        """Whole seconds left, 0 when closed, expired or unknown."""
        if not window.open or self._ends_s is None:
            return 0
        return max(0, int(self._ends_s - self._clock.monotonic()))

    def expired(self, window: JoinWindow) -> bool:
        """Whether the controller should close it in the log."""
        if not window.open:
            return False
        now_s = self._clock.monotonic()
        if self._ends_s is None:
            return now_s - self._seen_s >= INHERIT_GRACE_S
        return now_s >= self._ends_s

    def admits(self, window: JoinWindow) -> bool:
        """Whether a stranger may come in now. Not while nobody has told us the time left: the
        window may have run out while we were away."""
        known = window.open and self._ends_s is not None
        return known and not self.expired(window)
