"""What of the LAN's mDNS traffic reaches the library: our service's own names, and few enough.

The library remembers every name that it is told for many minutes, and asks for each of them again.
So a datagram is judged before the library sees it: by its sender's rate, then by what it answers.
Owns these limits. It must not judge what an announcement says: `discovery` does.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from zeroconf import DNSIncoming, DNSPointer, DNSService, DNSText  # type: ignore[attr-defined]

from aivailable.peer.links.sources import is_here, source_of

NAMES_MAX: Final = 256
"""Nodes of whom the LAN may tell us at a time."""
NAMES_PER_SOURCE_MAX: Final = 16
"""Of one address: a machine has one node, the demo a handful."""
NAME_KEPT_S: Final = 120.0
"""A name without news gives its seat away: twice what an announcement is believed."""
RECORDS_MAX: Final = 64
"""Of one datagram. An announcement has about ten."""
TEXT_MAX_BYTES: Final = 512
"""Ours is below 400."""
SOURCES_MAX: Final = 512
"""Senders whose rate is known. The one that was silent longest is forgotten."""
DATAGRAMS_PER_S: Final = 30.0
"""Of one source, queries included. What comes over loopback is not counted: this machine's own."""
DATAGRAMS_BURST: Final = 200.0
ANSWERS_PER_S: Final = 200.0
"""Of all sources, about our service: sender addresses can be forged."""
ANSWERS_BURST: Final = 400.0
TOLD_AGAIN_S: Final = 3600.0
HEADER_BYTES: Final = 12
RESPONSE_BIT: Final = 0x80

_LABEL = re.compile(r"[a-z0-9]{1,31}-[a-z0-9]{1,31}\Z")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Bucket:
    """A rate with a burst."""

    left: float
    at_s: float

    def take(self, now_s: float, per_s: float, burst: float) -> bool:
        self.left = min(burst, self.left + (now_s - self.at_s) * per_s)
        self.at_s = now_s
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


@dataclass(slots=True)
class _Name:
    source: str
    heard_s: float


class AnnouncementLimits:
    """For one service type. Times are the loop's."""

    def __init__(self, service_type: str, now_s: Callable[[], float]) -> None:
        self._type = service_type
        self._now_s = now_s
        self._names: dict[str, _Name] = {}
        self._sources: dict[str, Bucket] = {}
        self._answers = Bucket(ANSWERS_BURST, now_s())
        self._told_s = -TOLD_AGAIN_S

    def admits(self, data: bytes, address: str) -> bool:
        """Whether the library may see this datagram."""
        now_s, source = self._now_s(), source_of(address)
        if not is_here(address) and not self._within_rate(source, now_s):
            self._tell(source, now_s)
            return False
        if len(data) < HEADER_BYTES or not data[2] & RESPONSE_BIT:
            return True  # A question: the library itself bounds what it remembers of those.
        labels = self._labels(data, address)
        if labels is None or not labels:
            return False
        if not self._answers.take(now_s, ANSWERS_PER_S, ANSWERS_BURST) or not all(
            self._known(label, source, now_s) for label in sorted(labels)
        ):
            self._tell(source, now_s)
            return False
        return True

    def _within_rate(self, source: str, now_s: float) -> bool:
        bucket = self._sources.pop(source, None) or Bucket(DATAGRAMS_BURST, now_s)
        self._sources[source] = bucket  # The order is that of the last word.
        while len(self._sources) > SOURCES_MAX:
            del self._sources[next(iter(self._sources))]
        return bucket.take(now_s, DATAGRAMS_PER_S, DATAGRAMS_BURST)

    def _labels(self, data: bytes, address: str) -> frozenset[str] | None:
        """Of the nodes that a response is about; empty when it is about other services, None when
        a record of our service has not our form."""
        message = DNSIncoming(data, (address, 0))
        records = message.answers() if message.valid else []
        if len(records) > RECORDS_MAX:
            return None
        labels = set()
        for record in records:
            name = record.name.lower()
            if name == self._type and isinstance(record, DNSPointer):
                label = record.alias.lower().removesuffix(f".{self._type}")
            elif name.endswith(f".{self._type}"):
                label = name.removesuffix(f".{self._type}")
                if isinstance(record, DNSText) and len(record.text) > TEXT_MAX_BYTES:
                    return None
                if isinstance(record, DNSService) and record.server.lower() != f"{label}.local.":
                    return None
            elif _LABEL.match(label := name.removesuffix(".local.")) and label in self._names:
                pass  # An address that comes by itself.
            else:
                continue
            if not _LABEL.match(label):
                return None
            labels.add(label)
        return frozenset(labels)

    def _known(self, label: str, source: str, now_s: float) -> bool:
        """Heard before, or there is a seat for one more name."""
        if label in self._names:
            self._names[label].heard_s = now_s
            return True
        for old in [key for key, one in self._names.items() if now_s - one.heard_s > NAME_KEPT_S]:
            del self._names[old]
        held: dict[str, int] = {}
        for one in self._names.values():
            held[one.source] = held.get(one.source, 0) + 1
        mine = held.get(source, 0)
        if mine >= NAMES_PER_SOURCE_MAX and not is_here(source):
            return False
        if len(self._names) >= NAMES_MAX:
            greediest = max(held, key=lambda other: held[other])
            if held[greediest] <= mine + 1:
                return False
            del self._names[next(k for k, one in self._names.items() if one.source == greediest)]
        self._names[label] = _Name(source, now_s)
        return True

    def _tell(self, source: str, now_s: float) -> None:
        if now_s - self._told_s >= TOLD_AGAIN_S:
            self._told_s = now_s
            log.warning("too many mDNS announcements, from %s: the rest is not heard", source)


class Limited(asyncio.DatagramProtocol):
    """Stands before the library's own protocol."""

    def __init__(self, inner: Any, limits: AnnouncementLimits) -> None:
        self._inner = inner
        self._limits = limits

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if self._limits.admits(data, str(addr[0])):
            self._inner.datagram_received(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._inner.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
