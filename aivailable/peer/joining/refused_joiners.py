"""Who asked to join lately and was not let in: told once in the log, shown as long as it is news.

Owns the memory of refused strangers, bounded; must not decide who is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aivailable.advice import ADMIT
from aivailable.core.ids import NodeId, short
from aivailable.core.serving.status import WaitingStatus
from aivailable.peer.ports import Clock
from aivailable.wire.join import JoinRequest

log = logging.getLogger("aivailable.membership")

WAITING_MAX: Final = 32
WAITING_SHOWN_S: Final = 30.0
NAME_MAX_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class _Refusal:
    name: str
    address: str
    at_s: float
    wrong_key: bool


class RefusedJoiners:
    """The last WAITING_MAX strangers that were refused."""

    def __init__(self, clock: Clock, tell: Callable[[str], None]) -> None:
        self._clock = clock
        self._tell = tell
        self._refused: dict[NodeId, _Refusal] = {}

    def remember(self, node: NodeId, request: JoinRequest, *, wrong_key: bool = False) -> None:
        """A refusal, by the closed window or by another join key. It asks again every few
        seconds and is told once, unless the reason changes."""
        address = request.addresses[0] if request.addresses else ""
        name = request.name[:NAME_MAX_CHARS]
        before = self._refused.get(node)
        refusal = _Refusal(name, address, self._clock.monotonic(), wrong_key)
        if before is None or before.wrong_key != wrong_key:
            remedy = _other_key(refusal) if wrong_key else f"waits to be admitted: {ADMIT}"
            self._tell(f"{name} ({short(node)}) {remedy}")
            log.warning("not admitted: %s (%s) %s", name, short(node), remedy)
        self._refused[node] = refusal
        while len(self._refused) > WAITING_MAX:
            del self._refused[min(self._refused, key=lambda key: self._refused[key].at_s)]

    def forget(self, node: NodeId) -> None:
        """It is let in."""
        self._refused.pop(node, None)

    def waiting(self) -> tuple[WaitingStatus, ...]:
        """Those that an open window would let in."""
        now_s = self._clock.monotonic()
        return tuple(
            WaitingStatus(node, refusal.name, refusal.address, int((now_s - refusal.at_s) * 1000))
            for node, refusal in self._recent()
            if not refusal.wrong_key
        )

    def advice(self) -> str:
        """About the newest stranger that has another join key; "" = none of late."""
        wrong = [item for item in self._recent() if item[1].wrong_key]
        if not wrong:
            return ""
        node, refusal = max(wrong, key=lambda item: item[1].at_s)
        return f"{refusal.name} ({short(node)}) {_other_key(refusal)}"

    def _recent(self) -> list[tuple[NodeId, _Refusal]]:
        now_s = self._clock.monotonic()
        return [
            (node, refusal)
            for node, refusal in sorted(self._refused.items())
            if now_s - refusal.at_s <= WAITING_SHOWN_S
        ]


def _other_key(refusal: _Refusal) -> str:
    return (
        f"at {refusal.address} asks with another join key: start it with this cluster's key, or"
        " without --key while the join window is open"
    )
