"""Soft state between members: who is heard, what runs there, what is free. Never in the log.

Sends one Heartbeat per period to every linked member and keeps what comes in; `liveness` is the
picture for the pure core (`core.cluster.liveness` judges).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from aivailable.core.cluster.liveness import Heard, Liveness
from aivailable.core.ids import NodeId
from aivailable.peer.ports import Clock, Links
from aivailable.peer.tasks import Pulse
from aivailable.wire.peer import Heartbeat

T = TypeVar("T")

COUNT_MAX = 2**53
"""The largest counter, size or time that is believed."""
FIGURE_MAX = 1e12
"""The largest measured figure, either side of zero."""
ROWS_MAX = 1024
"""Of each list: more replicas, devices or neighbours than a node ever has."""
LEFT_MAX_S = 7 * 24 * 3600
"""No join window and no pause lasts longer."""


def tamed(heartbeat: Heartbeat) -> Heartbeat:
    """A member's word with every number in its range: what is not counts as the nearest that is,
    and what is no number as zero. So one odd figure of a driver costs nobody its heartbeat."""
    found = _tamed(heartbeat)
    return replace(
        found,
        window_left_s=min(found.window_left_s, LEFT_MAX_S),
        paused_left_s=min(found.paused_left_s, LEFT_MAX_S),
    )


def _tamed(record: T) -> T:
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    values = {field.name: _in_range(getattr(record, field.name)) for field in fields}
    return replace(record, **values)  # type: ignore[type-var]


def _in_range(value: Any) -> Any:
    kind = type(value)
    if kind is int:
        return min(max(value, 0), COUNT_MAX)
    if kind is float:
        return min(max(value, -FIGURE_MAX), FIGURE_MAX) if math.isfinite(value) else 0.0
    if kind is tuple:
        rows = value[:ROWS_MAX]
        return tuple(_tamed(row) if dataclasses.is_dataclass(row) else row for row in rows)
    return value


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
        heartbeat = tamed(heartbeat)
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
