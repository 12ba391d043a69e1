"""How many strangers the join port listens to at a time, and how many it lets in from one place.

Owns the seats at the join channel and the rate of admissions, per source (links.sources) and in
total. What is full turns the greediest away, not whoever came last. It must not know sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final, Protocol

from aivailable.peer.links.sources import is_here, source_of
from aivailable.wire.limits import JOIN_CONNECTIONS_MAX

VISITS_PER_SOURCE_MAX: Final = 4
"""A newcomer asks once at a time, and looks at us beside it."""
ADMISSIONS_PER_SOURCE_BURST: Final = 8.0
"""Machines behind one address, as behind a NAT."""
ADMISSIONS_PER_SOURCE_PERIOD_S: Final = 30.0
"""One more in this time."""
ADMISSIONS_BURST: Final = 64.0
"""Of all sources: a whole lab at once."""
ADMISSIONS_PERIOD_S: Final = 2.0
SOURCES_MAX: Final = 512
"""Sources whose rate is known. The one that was silent longest is forgotten."""


class Visit(Protocol):
    """One stranger's connection."""

    @property
    def source(self) -> str: ...
    @property
    def silent(self) -> bool:
        """It has not asked anything yet."""
        ...

    def end(self) -> None: ...


class Seats:
    """The visits of now, oldest first. Those from this machine itself have only the total."""

    def __init__(self) -> None:
        self.visits: dict[Visit, None] = {}

    def take(self, visit: Visit) -> bool:
        """A seat for this one, perhaps that of a silent visit of whoever has most. False: none."""
        held: dict[str, list[Visit]] = {}
        for other in self.visits:
            held.setdefault(other.source, []).append(other)
        mine = held.get(visit.source, [])
        if len(mine) >= VISITS_PER_SOURCE_MAX and not is_here(visit.source):
            if not self._give_way(mine):
                return False
        elif len(self.visits) >= JOIN_CONNECTIONS_MAX:
            greediest = max(held.values(), key=len)
            if not self._give_way(mine if len(mine) >= len(greediest) else greediest):
                return False
        self.visits[visit] = None
        return True

    def leave(self, visit: Visit) -> None:
        self.visits.pop(visit, None)

    def _give_way(self, visits: list[Visit]) -> bool:
        for visit in visits:
            if visit.silent:
                self.leave(visit)
                visit.end()
                return True
        return False


@dataclass(slots=True)
class _Allowance:
    left: float
    at_s: float

    def wait_s(self, now_s: float, period_s: float, burst: float) -> float:
        """Until one more is allowed."""
        self.left = min(burst, self.left + (now_s - self.at_s) / period_s)
        self.at_s = now_s
        return max(0.0, (1.0 - self.left) * period_s)


class AdmissionRate:
    """Who was let in lately, by source. `take` before an admission, `give_back` when none came."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._all = _Allowance(ADMISSIONS_BURST, now_s())
        self._sources: dict[str, _Allowance] = {}

    def take(self, source: str) -> int:
        """0: allowed, and counted. Else the whole seconds until one more is."""
        now_s = self._now_s()
        if is_here(source):
            return 0
        own = self._sources.pop(source, None)
        own = _Allowance(ADMISSIONS_PER_SOURCE_BURST, now_s) if own is None else own
        self._sources[source] = own
        while len(self._sources) > SOURCES_MAX:
            del self._sources[next(iter(self._sources))]
        wait_s = max(
            own.wait_s(now_s, ADMISSIONS_PER_SOURCE_PERIOD_S, ADMISSIONS_PER_SOURCE_BURST),
            self._all.wait_s(now_s, ADMISSIONS_PERIOD_S, ADMISSIONS_BURST),
        )
        if wait_s > 0.0:
            return ceil(wait_s)
        own.left -= 1.0
        self._all.left -= 1.0
        return 0

    def give_back(self, source: str) -> None:
        """Nobody was let in after all."""
        own = self._sources.get(source)
        if own is not None:
            own.left += 1.0
            self._all.left += 1.0


def source_of_peer(peername: object) -> str:
    """The source of a socket's other end."""
    if isinstance(peername, tuple) and peername:
        return source_of(str(peername[0]))
    return ""
