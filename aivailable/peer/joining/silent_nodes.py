"""Who is announced and does not answer: remembered, longer each time, and looked for many at once.

Anybody can announce a node with a port that stays silent. So one that was silent counts as not
seen for longer than it made us wait, and as soon as one was silent, all the others are looked at
together: false announcements cost a newcomer a few seconds, however many they are. Decides nothing
about clusters.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from aivailable.errors import LinkError
from aivailable.peer.ports import Ports, Sighting

log = logging.getLogger("aivailable.membership")

SILENT_FIRST_S: Final = 5.0
"""Longer than JOIN_FIRST_WORD_S: else two silent ones in turn would hide all others."""
SILENT_MAX_S: Final = 8.0
SILENT_NODES_MAX: Final = 512
LOOKS_MAX: Final = 64
"""At once: every node that the LAN can have announced is reached in a few rounds."""
ADDRESSES_MAX: Final = 4
"""Of one node, in turn."""


class SilentNodes:
    """By short id."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._until_s: dict[str, tuple[float, float]] = {}
        """Until when, and how long that was."""

    def gone(self) -> tuple[str, ...]:
        """Who counts as not seen now, sorted."""
        now_s = self._ports.clock.monotonic()
        return tuple(node for node in sorted(self._until_s) if self._until_s[node][0] > now_s)

    def remember(self, short_node: str) -> None:
        _, last_s = self._until_s.pop(short_node, (0.0, 0.0))
        pause_s = min(SILENT_MAX_S, max(SILENT_FIRST_S, 2 * last_s))
        self._until_s[short_node] = self._ports.clock.monotonic() + pause_s, pause_s
        while len(self._until_s) > SILENT_NODES_MAX:
            del self._until_s[next(iter(self._until_s))]

    async def look_around(self, sightings: Sequence[Sighting], cluster_name: str) -> None:
        """Ask the founded ones of that name who they are, all at once; remember who is silent."""
        gone = frozenset(self.gone())
        asked = [
            one
            for one in sightings
            if one.cluster_prefix
            and one.cluster_name == cluster_name
            and one.short_node not in gone
        ][:LOOKS_MAX]
        answers = await asyncio.gather(*(self._answers(one) for one in asked))
        for one, answered in zip(asked, answers, strict=True):
            if not answered:
                self.remember(one.short_node)

    async def _answers(self, sighting: Sighting) -> bool:
        for address in sighting.addresses[:ADDRESSES_MAX]:
            try:
                await self._ports.join_client.look(address)
            except LinkError as error:
                log.debug("looking at %s: %s", address, error)
                continue
            return True
        return False
