"""The queue before a replica's slots: bounded, and fair between API keys.

Owns the order; knows no clock and no task. One FairQueue per replica, kept by the node that
hosts it (`peer.router`); its length travels in heartbeats.

Order: start-time fair queueing. Each entry gets the virtual start max(now, its key's last
finish) and the finish start + cost, cost being tokens (prompt + allowed output); the smallest
start goes first and moves virtual time to itself. A key that sends much falls behind by exactly
what it was served, and one that sends little never waits for more than one entry of each other
key. Source: Goyal, Vin, Cheng, "Start-Time Fair Queueing", SIGCOMM 1996; tokens as cost: Sheng
et al., "Fairness in Serving Large Language Models", OSDI 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

from aivailable.core.ids import KeyId

RESERVED_SHARE = 4
"""One part in so many of a queue is kept for keys that have nothing in it yet, so that one key
cannot shut the others out."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A waiting request. Sorted by virtual start, then by arrival."""

    request_id: str
    key: KeyId
    start: int
    arrival: int


class FairQueue:
    """At most `length_max` waiting requests; costs are tokens."""

    def __init__(self, length_max: int) -> None:
        self._length_max = length_max
        self._entries: dict[str, Entry] = {}
        self._finish: dict[KeyId, int] = {}
        self._now = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, request_id: str, key: KeyId, cost_tokens: int) -> int | None:
        """Queue a request; its position (0 = next). None when there is no room for this key.

        A request that is queued already keeps its place.
        """
        if request_id in self._entries:
            return self.position(request_id)
        if len(self._entries) >= self._room(key):
            return None
        start = max(self._now, self._finish.get(key, 0))
        self._finish[key] = start + max(1, cost_tokens)
        self._entries[request_id] = Entry(request_id, key, start, self._arrivals)
        self._arrivals += 1
        return self.position(request_id)

    def pop(self) -> str | None:
        """The request whose turn it is, or None."""
        if not self._entries:
            return None
        entry = min(self._entries.values(), key=_turn)
        del self._entries[entry.request_id]
        self._now = entry.start
        self._forget_idle()
        return entry.request_id

    def cancel(self, request_id: str) -> bool:
        """Take a request out; False when it is not queued. Its cost stays charged."""
        return self._entries.pop(request_id, None) is not None

    def position(self, request_id: str) -> int | None:
        """How many go before it if nobody comes or leaves; None when it is not queued."""
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        return sum(_turn(other) < _turn(entry) for other in self._entries.values())

    def _room(self, key: KeyId) -> int:
        if any(entry.key == key for entry in self._entries.values()):
            return max(1, self._length_max - self._length_max // RESERVED_SHARE)
        return self._length_max

    def _forget_idle(self) -> None:
        """A key whose last finish is in the past starts at the present anyway: bounds memory."""
        self._finish = {key: end for key, end in self._finish.items() if end > self._now}


def _turn(entry: Entry) -> tuple[int, int]:
    return entry.start, entry.arrival
