"""Soft state between members: who is heard, what runs there, what is free. Never in the log.

Sends one Heartbeat per period to every linked member and keeps what comes in; `liveness` is the
picture for the pure core (`core.cluster.liveness` judges).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from aivailable.core.cluster.liveness import Heard, Liveness
from aivailable.core.ids import NodeId
from aivailable.peer.ports import Clock, Links
from aivailable.peer.tasks import Pulse
from aivailable.wire.peer import Heartbeat


class Heartbeats:
    """`sample` fills in what only the session knows; the rest is added here."""

    def __init__(
        self,
        node: NodeId,
        clock: Clock,
        links: Links,
        period_s: float,
        sample: Callable[[], Heartbeat],
        on_heard: Callable[[Heartbeat], None],
    ) -> None:
        self._node = node
        self._clock = clock
        self._links = links
        self._period_s = period_s
        self._sample = sample
        self._on_heard = on_heard
        self._heard: dict[NodeId, Heard] = {}
        self._known_s: dict[NodeId, float] = {}
        self._seq = 0
        self._started_s = clock.monotonic()
        self._pulse = Pulse()

    def receive(self, node: NodeId, heartbeat: Heartbeat) -> None:
        """Take a member's word about itself; about others it has none."""
        if heartbeat.node != node:
            return
        self._heard[node] = Heard(node, heartbeat, self._clock.monotonic())
        self._on_heard(heartbeat)

    def know(self, members: Iterable[NodeId]) -> None:
        """Remember since when each member is awaited; forget who is no member any more."""
        now_s = self._clock.monotonic()
        self._known_s = {node: self._known_s.get(node, now_s) for node in members}
        self._heard = {node: heard for node, heard in self._heard.items() if node in self._known_s}

    def liveness(self) -> Liveness:
        """The picture of this moment, our own heartbeat included."""
        now_s = self._clock.monotonic()
        own = Heard(self._node, self._make(), now_s)
        heard = {**self._heard, self._node: own}
        return Liveness(
            here=self._node,
            now_s=now_s,
            linked=self._links.connected(),
            heard={node: heard[node] for node in sorted(heard)},
            started_s=self._started_s,
            known_s=dict(self._known_s),
        )

    def nudge(self) -> None:
        """Something worth telling at once has changed (a replica became ready, a slot freed)."""
        self._pulse.nudge()

    async def run(self) -> None:
        while True:
            self._seq += 1
            message = self._make()
            for node in self._links.connected():
                self._links.send(node, message)
            await self._pulse.wait(self._period_s)

    def _make(self) -> Heartbeat:
        return replace(
            self._sample(), node=self._node, seq=self._seq, hears=self._links.connected()
        )
