"""Requests are made ready beside the step loop: what a client chooses never runs on it.

Owns: the line of requests before their first step, in turns over the accounts, one at a time, and
the thread that makes them. Templates, tokenising, schemas and images take as long as a client
likes, within their own limits; answers that are running go on meanwhile, since llama.cpp computes
without the interpreter. It must not know what "ready" is: `make` says it.

Without `start` nothing runs beside: `settle` makes what waits, for whoever drives a loop by hand.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from aivailable.errors import RequestError
from aivailable.wire.generation import Generate
from aivailable.worker.protocol import INTERNAL_ERROR

LINE_MAX_REQUESTS: Final = 1024
"""The peer's own queue is far shorter; beyond this the worker refuses."""
SWITCH_S: Final = 0.0005
"""How long the step loop waits for the interpreter while a request is made ready, at most; Python
lets go of it every 5 ms by default, and a step asks for it several times."""

log = logging.getLogger("aivailable.worker")

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Ticket(Generic[T]):
    """One request in the line, and what came of it."""

    request: Generate
    arrived_s: float
    ready: T | None = None
    refused: RequestError | None = None
    dropped: bool = field(default=False)
    """Nobody waits for it any more."""

    @property
    def deadline_s(self) -> float:
        return self.arrived_s + self.request.deadline_s


class Preparing(Generic[T]):
    """`make` gets a request and when it arrived; `wake` is called by the thread when something is
    ready. All else is called by the step loop."""

    def __init__(self, make: Callable[[Generate, float], T], wake: Callable[[], None]) -> None:
        self._make = make
        self._wake = wake
        self._changed = threading.Condition()
        self._line: OrderedDict[str, deque[Ticket[T]]] = OrderedDict()
        """By account, in the order of their turns."""
        self._made: deque[Ticket[T]] = deque()
        self._tickets: dict[str, Ticket[T]] = {}
        """By request id: those in the line, the one in the making, and the made ones."""
        self._beside = False

    def __len__(self) -> int:
        return len(self._tickets)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._tickets

    def start(self) -> None:
        """Make requests ready in a thread from now on."""
        self._beside = True
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        threading.Thread(target=self._run, name="preparing", daemon=True).start()

    def submit(self, request: Generate, now: float) -> str:
        """Put a request into the line. Returns the id of the one that finds no place there any
        more: of the longest line's last one, which may be this one; "" when there is room."""
        ticket: Ticket[T] = Ticket(request, now)
        with self._changed:
            self._tickets[request.request_id] = ticket
            self._line.setdefault(request.account, deque()).append(ticket)
            self._changed.notify()
            if len(self._tickets) <= LINE_MAX_REQUESTS:
                return ""
            longest = max(reversed(self._line.values()), key=len)
            return self._drop(longest[-1])

    def drop(self, request_id: str) -> bool:
        """The request is over for its client; False when it is not here."""
        with self._changed:
            ticket = self._tickets.get(request_id)
            return ticket is not None and bool(self._drop(ticket))

    def expire(self, now: float) -> list[str]:
        """Drop the requests whose deadline has passed; their ids."""
        with self._changed:
            late = [ticket for ticket in self._tickets.values() if now >= ticket.deadline_s]
            return [self._drop(ticket) for ticket in late]

    def settle(self) -> None:
        """Make everything that waits, unless a thread does."""
        while not self._beside and (ticket := self._next()) is not None:
            self._do(ticket)

    def take(self) -> list[Ticket[T]]:
        """What is ready or refused, each once."""
        taken: list[Ticket[T]] = []
        with self._changed:
            while self._made:
                ticket = self._made.popleft()
                if not ticket.dropped:
                    del self._tickets[ticket.request.request_id]
                    taken.append(ticket)
        return taken

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._line:
                    self._changed.wait()
            ticket = self._next()
            if ticket is not None:
                self._do(ticket)
                self._wake()

    def _next(self) -> Ticket[T] | None:
        """The first of the account whose turn it is."""
        with self._changed:
            if not self._line:
                return None
            account, line = self._line.popitem(last=False)
            ticket = line.popleft()
            if line:
                self._line[account] = line
            return ticket

    def _do(self, ticket: Ticket[T]) -> None:
        try:
            ticket.ready = self._make(ticket.request, ticket.arrived_s)
        except RequestError as error:
            ticket.refused = error
        except Exception:
            # What a stranger wrote found a gap in ours: his request's end, nobody else's.
            log.exception("request %s cannot be begun", ticket.request.request_id)
            ticket.refused = RequestError(500, "internal_error", INTERNAL_ERROR)
        with self._changed:
            self._made.append(ticket)

    def _drop(self, ticket: Ticket[T]) -> str:
        ticket.dropped = True
        request = ticket.request
        del self._tickets[request.request_id]
        line = self._line.get(request.account)
        if line is not None and ticket in line:
            line.remove(ticket)
            if not line:
                del self._line[request.account]
        return request.request_id
