"""The place beside the loop where large bodies are parsed: one at a time, in turn for each account.

Owns the order, the bytes under way and the thread; `parameters` reads and parses. A thread does not
make one call of C shorter for the loop, since Python runs one thread at a time: the limits in
`parameters` do that. It lets the loop run between any two steps of what is written in Python.
Afterwards the place rests: for as long as it worked, and for as long as the bytes would take at
a rate that leaves the loop time for other connections.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from aiohttp import web

from aivailable.core.ids import AccountId
from aivailable.peer.api.accounting import record_of
from aivailable.peer.api.bodies.reading import parsed, read_bytes
from aivailable.peer.api.parameters import RequestParameters
from aivailable.peer.api.shares import Shares
from aivailable.wire.limits import HTTP_BODY_MAX_BYTES, KIB, MIB

SMALL_BODY_MAX_BYTES = 16 * KIB
"""Parsed on the loop at once: at worst a few milliseconds, less than handing it over and back."""
BODIES_MAX_BYTES = 32 * MIB
"""Large bodies that arrive, wait or are parsed at one node. One account may have as much of it as
is left for all others (`Shares`), so the work that it can line up is bounded, too."""
REST_SHARE = 1.0
"""The place rests this many times as long as its last body took."""

RATE_BYTES_PER_S = 64 * MIB
"""Reading a body costs the loop, too: large ones come no faster than this, on average."""

T = TypeVar("T")


class Bodies:
    """Reads requests and makes of each what its endpoint needs."""

    def __init__(self) -> None:
        self._shares = Shares(BODIES_MAX_BYTES, "bytes of request bodies")
        self._thread = ThreadPoolExecutor(1, "bodies")
        """Starts with the first large body."""
        self._waiting: dict[AccountId, deque[asyncio.Future[None]]] = {}
        """The account that is next comes first."""
        self._busy = False
        """Working or resting."""

    async def read(
        self,
        request: web.Request,
        build: Callable[[RequestParameters], T],
        *,
        bytes_max: int = HTTP_BODY_MAX_BYTES,
    ) -> T:
        """What `build` makes of the request's JSON object; it must be pure. Raises what `build`,
        `read_bytes` and `parsed` raise, and RequestError 429 or 503 when too much is under way."""
        account = record_of(request).account
        with ExitStack() as held:

            def large() -> None:
                # Who does not say how much it sends counts as sending the most.
                count = request.content_length or bytes_max
                held.enter_context(self._shares.hold(account, count))

            data = await read_bytes(request, bytes_max, SMALL_BODY_MAX_BYTES, large)
            if len(data) <= SMALL_BODY_MAX_BYTES:
                return build(parsed(data))
            await self._turn(account)
            return await self._beside(lambda: build(parsed(data)), len(data))

    async def _turn(self, account: AccountId) -> None:
        if not self._busy:
            self._busy = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(account, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()
            raise

    async def _beside(self, work: Callable[[], T], length_bytes: int) -> T:
        loop = asyncio.get_running_loop()
        begun_s = loop.time() - length_bytes / RATE_BYTES_PER_S
        job = loop.run_in_executor(self._thread, work)
        job.add_done_callback(functools.partial(self._worked, loop, begun_s))
        # A client that goes away does not end the thread's work: the place is taken until then.
        return await asyncio.shield(job)

    def _worked(
        self, loop: asyncio.AbstractEventLoop, begun_s: float, job: asyncio.Future[T]
    ) -> None:
        if not job.cancelled():
            # Read, so that an error that nobody waited for is not reported as lost.
            job.exception()
        loop.call_later((loop.time() - begun_s) * REST_SHARE, self._next)

    def _next(self) -> None:
        """The first one of the next account, which then goes to the end of the line."""
        while self._waiting:
            account = next(iter(self._waiting))
            line = self._waiting.pop(account)
            turn = line.popleft()
            if line:
                self._waiting[account] = line
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
