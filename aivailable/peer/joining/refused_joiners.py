"""Who knocked lately and was not let in: told once in the log, shown as long as it is news.

Owns the memory of refused strangers, bounded; must not decide who is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aivailable.core.ids import NodeId, short
from aivailable.core.serving.status import WaitingStatus
from aivailable.peer.ports import Clock
from aivailable.wire.join import JoinRequest

log = logging.getLogger("aivailable.membership")

WAITING_MAX: Final = 32
WAITING_SHOWN_S: Final = 30.0
NAME_MAX_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class _Knock:
    name: str
    address: str
    at_s: float
    wrong_key: bool


class RefusedJoiners:
    """The last WAITING_MAX strangers that were refused."""

    def __init__(self, clock: Clock, tell: Callable[[str], None]) -> None:
        self._clock = clock
        self._tell = tell
        self._knocks: dict[NodeId, _Knock] = {}

    def remember(self, node: NodeId, request: JoinRequest, *, wrong_key: bool = False) -> None:
        """A refusal, by the closed window or by another join key. It knocks again every few
        seconds and is told once, unless the reason changes."""
        address = request.addresses[0] if request.addresses else ""
        name = request.name[:NAME_MAX_CHARS]
        before = self._knocks.get(node)
        knock = _Knock(name, address, self._clock.monotonic(), wrong_key)
        if before is None or before.wrong_key != wrong_key:
            remedy = _other_key(knock) if wrong_key else "waits to be admitted: `aivailable admit`"
            self._tell(f"{name} ({short(node)}) {remedy}")
            log.warning("not admitted: %s (%s) %s", name, short(node), remedy)
        self._knocks[node] = knock
        while len(self._knocks) > WAITING_MAX:
            del self._knocks[min(self._knocks, key=lambda key: self._knocks[key].at_s)]

    def forget(self, node: NodeId) -> None:
        """It is let in."""
        self._knocks.pop(node, None)

    def waiting(self) -> tuple[WaitingStatus, ...]:
        """Those that an open window would let in."""
        now_s = self._clock.monotonic()
        return tuple(
            WaitingStatus(node, knock.name, knock.address, int((now_s - knock.at_s) * 1000))
            for node, knock in self._recent()
            if not knock.wrong_key
        )

    def advice(self) -> str:
        """About the newest stranger that has another join key; "" = none of late."""
        wrong = [item for item in self._recent() if item[1].wrong_key]
        if not wrong:
            return ""
        node, knock = max(wrong, key=lambda item: item[1].at_s)
        return f"{knock.name} ({short(node)}) {_other_key(knock)}"

    def _recent(self) -> list[tuple[NodeId, _Knock]]:
        now_s = self._clock.monotonic()
        return [
            (node, knock)
            for node, knock in sorted(self._knocks.items())
            if now_s - knock.at_s <= WAITING_SHOWN_S
        ]


def _other_key(knock: _Knock) -> str:
    return (
        f"at {knock.address} asks with another join key: start it with this cluster's key, or"
        " without --key while the join window is open"
    )
