"""Which connections are kept when there are too many. Pure: it counts and names who gives way.

A connection is quiet while no request of it is under way. Busy ones are limited by account
(`api.shares`), so only quiet ones are counted here for each source, and only they give way. When a
source is full, its longest quiet connection makes room for the newcomer. When all places are taken,
it is the longest quiet one of the source that has most. A client that asks at once is therefore
served, even when it has the same address as a flood.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aivailable.peer.links.sources import is_here, source_of

LOOPBACK = "loopback"
"""The source of this machine's own connections: its command line, monitor, proxies."""
LOOPBACK_SHARE = 2
"""Quiet connections from loopback may take one half (1 / 2) of all places."""
SOURCE_SHARE = 8
"""Quiet connections from any other source may take one eighth (1 / 8)."""
LOOPBACK_SURE = 32
"""The first 32 quiet connections from loopback never give way to another source."""


def caller_of(address: str) -> str:
    """Whose connection it is: loopback, an IPv4 address, or an IPv6 network."""
    return LOOPBACK if is_here(address) else source_of(address)


@dataclass(eq=False, slots=True)
class ApiPlace:
    """One connection's."""

    source: str
    asked: bool = False
    """Whether it ever sent a whole request."""
    busy: bool = False


@dataclass(slots=True)
class _Source:
    silent: dict[ApiPlace, None] = field(default_factory=dict)
    """Sent no whole request yet; the oldest first."""
    idle: dict[ApiPlace, None] = field(default_factory=dict)
    """Between requests; the longest idle first."""
    busy: dict[ApiPlace, None] = field(default_factory=dict)

    @property
    def quiet(self) -> int:
        return len(self.silent) + len(self.idle)

    def first(self) -> ApiPlace | None:
        return next(iter(self.silent), None) or next(iter(self.idle), None)

    def kind(self, place: ApiPlace) -> dict[ApiPlace, None]:
        if place.busy:
            return self.busy
        return self.idle if place.asked else self.silent


class Places:
    """At most `total_max` connections at once."""

    def __init__(self, total_max: int) -> None:
        self._total_max = total_max
        self._total = 0
        self._sources: dict[str, _Source] = {}

    @property
    def total(self) -> int:
        return self._total

    def admit(self, source: str) -> tuple[ApiPlace | None, ApiPlace | None]:
        """A place for a newcomer, None when all are busy; and the place that gave way for it."""
        own = self._sources.get(source)
        gone: ApiPlace | None = None
        if own is not None and own.quiet >= self._quiet_max(source):
            gone = own.first()
        elif self._total >= self._total_max:
            gone = max(self._sources.items(), key=_greed)[1].first()
            if gone is None:
                return None, None
        if gone is not None:
            self.leave(gone)
        place = ApiPlace(source)
        self._sources.setdefault(source, _Source()).silent[place] = None
        self._total += 1
        return place, gone

    def begin(self, place: ApiPlace) -> None:
        """A whole request of it came."""
        self._move(place, busy=True)

    def end(self, place: ApiPlace) -> None:
        """Its request is answered."""
        self._move(place, busy=False)

    def leave(self, place: ApiPlace) -> None:
        """It is gone; nothing happens when it has left already."""
        source = self._sources.get(place.source)
        if source is None or place not in source.kind(place):
            return
        del source.kind(place)[place]
        self._total -= 1
        if not source.quiet and not source.busy:
            del self._sources[place.source]

    def _move(self, place: ApiPlace, *, busy: bool) -> None:
        source = self._sources.get(place.source)
        if source is None or place not in source.kind(place):
            return
        del source.kind(place)[place]
        place.busy, place.asked = busy, True
        source.kind(place)[place] = None

    def _quiet_max(self, source: str) -> int:
        share = LOOPBACK_SHARE if source == LOOPBACK else SOURCE_SHARE
        return max(1, self._total_max // share)


def _greed(named: tuple[str, _Source]) -> int:
    name, source = named
    return source.quiet - (LOOPBACK_SURE if name == LOOPBACK else 0)
