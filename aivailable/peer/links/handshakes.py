"""Which TLS handshakes at the link port go on when there are too many. Pure.

Those from addresses where members are known to be have a pool of their own, so strangers take
nothing from them. Of a source that is full, and of the one with most when its pool is full, one
gives way: the first that began of those that have not sent a whole first record yet, else the
first of all. A member sends its record at once and is through in milliseconds. So a member behind
the same address as a flood gets through too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aivailable.peer.links.sources import is_here, source_of

HANDSHAKES_MAX: Final = 64
"""Under way at once in each pool: both fit the descriptors that the API leaves free."""
HANDSHAKES_PER_SOURCE_MAX: Final = 16
"""Members and newcomers behind one NAT. This machine's own have only the pool's bound."""


@dataclass(eq=False, slots=True)
class Handshake:
    """One that is under way."""

    source: str
    is_known: bool
    """Whether a member is known at its address."""
    has_spoken: bool = False
    """Whether its first record came whole."""


class Handshakes:
    """Those of now."""

    def __init__(self) -> None:
        self._pools: dict[bool, dict[Handshake, None]] = {False: {}, True: {}}
        """By `is_known`; the first that began first."""
        self._known: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        return sum(len(pool) for pool in self._pools.values())

    def set_known(self, addresses: frozenset[str]) -> None:
        """Where members are."""
        self._known = frozenset(source_of(address) for address in addresses)

    def begin(self, address: str) -> tuple[Handshake, Handshake | None]:
        """The handshake of a newcomer, and the one that gives way for it."""
        source = source_of(address)
        mine = Handshake(source, source in self._known)
        pool = self._pools[mine.is_known]
        held: dict[str, list[Handshake]] = {}
        for other in pool:
            held.setdefault(other.source, []).append(other)
        gone: Handshake | None = None
        if len(held.get(source, ())) >= HANDSHAKES_PER_SOURCE_MAX and not is_here(address):
            gone = _first(held[source])
        elif len(pool) >= HANDSHAKES_MAX:
            gone = _first(max(held.values(), key=len))
        if gone is not None:
            self.end(gone)
        pool[mine] = None
        return mine, gone

    def end(self, handshake: Handshake) -> None:
        """It is through, failed, or gave way before."""
        self._pools[handshake.is_known].pop(handshake, None)


def _first(some: list[Handshake]) -> Handshake:
    return next((one for one in some if not one.has_spoken), some[0])
