"""The line before a replica's slots: bounded, and fair between accounts.

Owns the order, the slots and the places; knows no clock and no task. An account is an API key, or
an address where there is none. One FairQueue per replica, kept by the node that hosts it
(`peer.serving.replicas`); its length travels in heartbeats. `has_room` shares what an ingress
counts.

Three things are shared:

* Turns, by tokens. Every account has a virtual time: the tokens that were computed for it. Who is
  least far goes next, where what runs for an account counts with its expected cost. A request is
  charged at its end, by what it did cost. Nothing is charged in advance: a guess that is taken back
  later would let one account fall behind the start of all who came meanwhile, and overtake them.
  An account that comes back starts at the present: it can neither save up while it is away, nor
  pay for a time when nobody else waited. Source: Goyal, Vin, Cheng, "Start-Time Fair Queueing",
  SIGCOMM 1996; tokens as they are computed: Sheng et al., "Fairness in Serving Large Language
  Models", OSDI 2024.
* Slots. An account alone may hold all of them: a fixed cap would leave slots idle while only one
  key asks, half of the machine where there are two. So nothing is kept free, and a slot is asked
  back instead: an account that holds none and has waited SLOT_PATIENCE_S gets the next one, and if
  none comes free, the one that holds most gives up its youngest. It keeps at least one. The answer
  that gave way goes on later, where it was.
* Places in the line. One account may take all but a part (RESERVED_SHARE) of them. When the line is
  full, the newest request of whoever has most here gives way to an account that has fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aivailable.core.ids import AccountId

ANSWER_EXPECTED_TOKENS = 256
"""What an answer counts before its end is known. A client's max_tokens counts only below it: most
answers stay far under a generous limit."""
SLOT_PATIENCE_S = 5.0
"""An account waits at most this long without any slot while another one holds two."""
RESERVED_SHARE = 4
"""One part in this many of the line is kept for accounts that have nothing in it yet."""
ACCOUNTS_MAX = 1024
"""Accounts that are away and whose debts are remembered; beyond it all of them are forgiven."""


def has_room(own: int, total: int, total_max: int, count: int = 1) -> bool:
    """Whether an account that has `own` of the `total` under way may begin `count` more: it may
    have as many as are left free for all others. So one alone takes half, n take 1/(n + 1) each,
    and a newcomer always finds a place. Source: Choudhury, Hahne, "Dynamic Queue Length Thresholds
    for Shared-Memory Packet Switches", IEEE/ACM ToN 1998."""
    return own + count <= total_max - total


def places_sure(length_max: int) -> int:
    """This many waiting requests of one account a line takes, whatever another one sends."""
    return max(1, length_max // RESERVED_SHARE)


@dataclass(frozen=True, slots=True)
class Push:
    """What became of a request that came."""

    taken: bool
    sent_away: str = ""
    """A waiting request that lost its place to this one."""


@dataclass(frozen=True, slots=True)
class _Entry:
    request_id: str
    account: AccountId
    cost_tokens: int
    arrival: int
    since_s: float
    begun: bool = False
    """It had a slot already: never sent away."""
    leaving: bool = False
    """It was told to give up its slot."""


class FairQueue:
    """At most `length_max` waiting requests, and `slots` that run. Costs are tokens; `now_s` is
    monotonic and the caller's."""

    def __init__(self, slots: int, length_max: int) -> None:
        self._slots = max(1, slots)
        self._length_max = length_max
        self._waiting: dict[str, AccountId] = {}
        self._lines: dict[AccountId, dict[str, _Entry]] = {}
        """First come, first served in each; none is empty."""
        self._held: dict[str, _Entry] = {}
        """In order of their turns."""
        self._served: dict[AccountId, int] = {}
        """Virtual time: what has ended, in tokens."""
        self._slotless_s: dict[AccountId, float] = {}
        """When an account gave back its last slot."""
        self._now = 0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def held(self) -> int:
        """Slots that are taken, those of requests that are leaving included."""
        return len(self._held)

    def holds(self, request_id: str) -> bool:
        """Whether this request has a slot."""
        return request_id in self._held

    # --- coming and going

    def push(self, request_id: str, account: AccountId, cost_tokens: int, now_s: float) -> Push:
        """Queue a request. One that is here already keeps its place."""
        if request_id in self._waiting or request_id in self._held:
            return Push(True)
        if len(self._lines.get(account, ())) >= self._places_for_one():
            return Push(False)
        sent_away = ""
        if len(self._waiting) >= self._length_max:
            sent_away = self._gives_way_to(account)
            if not sent_away:
                return Push(False)
            self.cancel(sent_away)
        self._join(account)
        self._lines.setdefault(account, {})[request_id] = self._entry(
            request_id, account, cost_tokens, now_s
        )
        return Push(True, sent_away)

    def put_back(self, request_id: str, account: AccountId, cost_tokens: int, now_s: float) -> None:
        """Queue a request that gave up its slot: first of its account, and never refused."""
        self._join(account)
        entry = replace(self._entry(request_id, account, cost_tokens, now_s), begun=True)
        self._lines[account] = {request_id: entry, **self._lines.get(account, {})}

    def cancel(self, request_id: str) -> bool:
        """Take a waiting request out; False when it does not wait."""
        account = self._waiting.pop(request_id, None)
        if account is None:
            return False
        self._take(account, request_id)
        self._tidy()
        return True

    def pop(self, now_s: float) -> str | None:
        """The request whose turn it is; it has a slot now. None when nobody waits or no slot is
        free."""
        if not self._lines or len(self._held) >= self._slots:
            return None
        under_way = self._under_way()
        account = min(
            self._overdue(now_s) or self._lines,
            key=lambda one: self._turn(one, *under_way.get(one, (0, 0))),
        )
        request_id = next(iter(self._lines[account]))
        entry = self._take(account, request_id)
        del self._waiting[request_id]
        self._now = max(self._now, self._served[account])
        self._held[request_id] = entry
        self._tidy()
        return request_id

    def release(self, request_id: str, used_tokens: int | None, now_s: float) -> None:
        """A slot is free again. `used_tokens`: what the request did cost; None = as expected."""
        entry = self._held.pop(request_id, None)
        if entry is None:
            return
        account = entry.account
        self._served[account] += entry.cost_tokens if used_tokens is None else used_tokens
        if account not in self._under_way():
            self._slotless_s[account] = now_s
        self._tidy()

    def clear_held(self) -> None:
        """The worker is gone, and with it all that was in its slots."""
        self._held.clear()
        self._tidy()

    # --- slots that do not come free

    def displace(self, now_s: float, movable: Callable[[str], bool]) -> str | None:
        """The request that has to give up its slot now; it is not named again. Its slot counts as
        taken until `release`."""
        if len(self._held) < self._slots:
            return None
        leaving = sum(entry.leaving for entry in self._held.values())
        if leaving >= len(self._overdue(now_s)):
            return None
        staying: dict[AccountId, list[str]] = {}
        for entry in self._held.values():
            if not entry.leaving:
                staying.setdefault(entry.account, []).append(entry.request_id)
        for requests in sorted(staying.values(), key=len, reverse=True):
            for request_id in reversed(requests if len(requests) > 1 else ()):
                if movable(request_id):
                    self._held[request_id] = replace(self._held[request_id], leaving=True)
                    return request_id
        return None

    def patience_ends_s(self, now_s: float) -> float | None:
        """When somebody who waits without any slot will have waited long enough."""
        ends = [self._patience_end_s(account) for account in self._slotless()]
        return min((end_s for end_s in ends if end_s > now_s), default=None)

    def _overdue(self, now_s: float) -> list[AccountId]:
        return [one for one in self._slotless() if self._patience_end_s(one) <= now_s]

    def _slotless(self) -> list[AccountId]:
        holders = self._under_way()
        return [account for account in self._lines if account not in holders]

    def _patience_end_s(self, account: AccountId) -> float:
        first = next(iter(self._lines[account].values()))
        return max(first.since_s, self._slotless_s.get(account, first.since_s)) + SLOT_PATIENCE_S

    def _under_way(self) -> Mapping[AccountId, tuple[int, int]]:
        """Of each account that holds slots: the tokens it is expected to cost, and how many."""
        found: dict[AccountId, tuple[int, int]] = {}
        for entry in self._held.values():
            tokens, slots = found.get(entry.account, (0, 0))
            found[entry.account] = (tokens + entry.cost_tokens, slots + 1)
        return found

    # --- the line

    def _turn(self, account: AccountId, expected: int, slots: int) -> tuple[int, int, int]:
        first = next(iter(self._lines[account].values()))
        return self._served[account] + expected, slots, first.arrival

    def _places_for_one(self) -> int:
        return max(1, self._length_max - self._length_max // RESERVED_SHARE)

    def _gives_way_to(self, account: AccountId) -> str:
        """The newest request of whoever has most here, if that is more than `account` would have:
        else two accounts would take one place from each other for ever."""
        here = {one: slots for one, (_, slots) in self._under_way().items()}
        for one, line in self._lines.items():
            here[one] = here.get(one, 0) + len(line)
        newest = [next(reversed(line.values())) for line in self._lines.values()]
        found = [
            entry
            for entry in newest
            if not entry.begun and here[entry.account] > here.get(account, 0) + 1
        ]
        if not found:
            return ""
        return max(found, key=lambda entry: (here[entry.account], entry.arrival)).request_id

    def _entry(self, request_id: str, account: AccountId, cost_tokens: int, now_s: float) -> _Entry:
        self._arrivals += 1
        self._waiting[request_id] = account
        return _Entry(request_id, account, max(1, cost_tokens), self._arrivals, now_s)

    def _join(self, account: AccountId) -> None:
        """Who had nothing waiting starts at the present."""
        if account not in self._lines:
            self._served[account] = max(self._now, self._served.get(account, 0))

    def _take(self, account: AccountId, request_id: str) -> _Entry:
        line = self._lines[account]
        entry = line.pop(request_id)
        if not line:
            del self._lines[account]
        return entry

    def _tidy(self) -> None:
        """Forget who starts at the present anyway: bounds memory."""
        holders = self._under_way()
        present = [*self._lines, *holders]
        self._slotless_s = {a: at_s for a, at_s in self._slotless_s.items() if a in self._lines}
        if not present:
            self._served.clear()
            return
        away_max = 0 if len(self._served) > ACCOUNTS_MAX + len(present) else ACCOUNTS_MAX
        self._served = {
            account: served
            for account, served in self._served.items()
            if account in holders or account in self._lines or (away_max and served > self._now)
        }
