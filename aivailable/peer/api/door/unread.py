"""How many answers one account may leave unread: each holds buffers, and a slot of its model."""

from __future__ import annotations

from aivailable.core.ids import AccountId

UNREAD_AFTER_S = 5.0
"""An answer counts as unread after this long with full buffers and a client that takes nothing."""
UNREAD_PER_ACCOUNT_MAX = 4
"""This many unread answers go on waiting, up to `sse.UNREAD_MAX_S`. Further ones are ended."""


class Unread:
    """Counts of one node."""

    def __init__(self) -> None:
        self._by_account: dict[AccountId, int] = {}

    def add(self, account: AccountId) -> bool:
        """Counts one more. False, and not counted, when the account has too many."""
        own = self._by_account.get(account, 0)
        if own >= UNREAD_PER_ACCOUNT_MAX:
            return False
        self._by_account[account] = own + 1
        return True

    def remove(self, account: AccountId) -> None:
        self._by_account[account] -= 1
        if not self._by_account[account]:
            del self._by_account[account]
