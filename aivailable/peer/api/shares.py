"""What one account may have under way at this node, so that it cannot take everybody's place.

Owns the counts; `core.serving.admission.has_room` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aivailable.core.ids import AccountId
from aivailable.core.serving.admission import has_room
from aivailable.errors import RequestError

RETRY_AFTER_S = 1


class Shares:
    """At most `total_max` under way; `what` names them in refusals."""

    def __init__(self, total_max: int, what: str) -> None:
        self._total_max = total_max
        self._what = what
        self._total = 0
        self._by_account: dict[AccountId, int] = {}

    @contextmanager
    def hold(self, account: AccountId, count: int = 1) -> Iterator[None]:
        """Counts `count` more until the block ends. Raises RequestError: 503 when there are too
        many in all, 429 when it is this account that has too many."""
        own = self._by_account.get(account, 0)
        if self._total + count > self._total_max:
            raise RequestError(
                503, "overloaded", f"too many {self._what} at once", retry_after_s=RETRY_AFTER_S
            )
        if not has_room(own, self._total, self._total_max, count):
            raise RequestError(
                429,
                "too_many_requests",
                f"this key has {own} {self._what} under way, as many as are left for all others",
                retry_after_s=RETRY_AFTER_S,
            )
        self._total += count
        self._by_account[account] = own + count
        try:
            yield
        finally:
            self._total -= count
            self._by_account[account] -= count
            if not self._by_account[account]:
                del self._by_account[account]
