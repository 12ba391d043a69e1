"""What was asked for at this node and has no replica to answer: soft state of the heartbeat.

Owns the memory of it, by deployment, on this node's monotonic clock. The load that it asks for is
a job that outlives the client: an entry stays until a replica is ready, or until nobody has asked
for `core.planning.idle_policy.ASKED_MAX_MS`. Written by `peer.serving.router`; read by
`peer.session` for the heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aivailable.core.planning.idle_policy import ASKED_MAX_MS
from aivailable.peer.ports import Clock
from aivailable.wire.limits import DEMANDS_MAX
from aivailable.wire.peer import Demand

FORGET_S = ASKED_MAX_MS / 1000


@dataclass(slots=True)
class _Asked:
    at_s: float
    waiting: int = 0


class Demands:
    """`on_new` is called when something is asked for that nobody waited for before."""

    def __init__(self, clock: Clock, on_new: Callable[[], None]) -> None:
        self._clock = clock
        self._on_new = on_new
        self._asked: dict[str, _Asked] = {}

    def wait(self, deployment: str) -> None:
        """One more request waits. To be followed by `leave`."""
        entry = self._asked.get(deployment)
        if entry is None:
            entry = self._asked[deployment] = _Asked(self._clock.monotonic())
        entry.waiting += 1
        if entry.waiting == 1:
            self._on_new()

    def leave(self, deployment: str) -> None:
        """A request waits no longer: it is served, or its client has gone."""
        entry = self._asked.get(deployment)
        if entry is not None:
            entry.waiting -= 1
            entry.at_s = self._clock.monotonic()

    def served(self, deployment: str) -> None:
        """A replica is ready: the load is done, unless somebody waits still."""
        entry = self._asked.get(deployment)
        if entry is not None and entry.waiting <= 0:
            del self._asked[deployment]

    def pending(self) -> tuple[str, ...]:
        """Deployments that a load is asked for, sorted. Forgets what nobody wants any more."""
        self._forget()
        return tuple(sorted(self._asked))

    def sample(self) -> tuple[Demand, ...]:
        """For the heartbeat: what is waited for, then what was asked for last."""
        self._forget()
        now_s = self._clock.monotonic()
        found = [
            Demand(name, entry.waiting, 0 if entry.waiting else int((now_s - entry.at_s) * 1000))
            for name, entry in self._asked.items()
        ]
        found.sort(key=lambda demand: (demand.asked_ms, -demand.waiting, demand.deployment))
        return tuple(found[:DEMANDS_MAX])

    def _forget(self) -> None:
        oldest_s = self._clock.monotonic() - FORGET_S
        self._asked = {
            name: entry
            for name, entry in self._asked.items()
            if entry.waiting > 0 or entry.at_s > oldest_s
        }
