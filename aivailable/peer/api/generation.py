"""One run of `Service.generate`, as every HTTP dialect consumes it.

Owns the task that reads the service's events and the figures they leave in the call's record;
it must not know any dialect. One task does all the reading and the closing, so that the service
may hold timeouts and locks across its events; the dialect waits for them with a time limit
(keep-alives) without disturbing it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from aivailable.errors import RequestError
from aivailable.peer.api.accounting import Call
from aivailable.peer.service import Routing, Service
from aivailable.wire.generation import Failed, Finished, Generate, GenerationEvent, Started, Tokens

WAIT_S = 60.0
"""How long a client that does not stream waits for a model to be loaded (DESIGN §7)."""
EVENTS_WAITING_MAX = 16
"""Read ahead for a client that is slow for a moment; then the service waits too."""


class Generation:
    """Started, Tokens…, Finished, each once through `next`; RequestError when it cannot be."""

    def __init__(
        self, service: Service, request: Generate, call: Call, *, wait_s: float = WAIT_S
    ) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        call.routing = Routing(ingress=service.node, wait_s=wait_s)
        self._source = service.generate(request, call.key, call.routing)
        self._waiting: deque[GenerationEvent] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._pump = self._loop.create_task(self._read(self._source))
        self._pump.add_done_callback(lambda _: self._arrived.set())

    async def next(self, wait_s: float | None = None) -> GenerationEvent | None:
        """The next event, or None when none came for `wait_s` seconds. Never Failed.

        Raises RequestError when the request cannot be served (further)."""
        try:
            async with asyncio.timeout(wait_s):
                while not self._waiting and not self._pump.done():
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return None
        if not self._waiting:
            self._pump.result()
            raise RequestError(500, "worker_lost", "the answer ended before it was finished")
        event = self._waiting.popleft()
        self._room.set()
        self._account(event)
        if isinstance(event, Failed):
            raise RequestError(event.status, event.code, event.message)
        if isinstance(event, Finished) and event.reason == "cancelled":
            raise RequestError(500, "cancelled", "the request was cancelled by the cluster")
        return event

    async def close(self) -> None:
        """Ends the run wherever it is: closing the source cancels it at its host."""
        self._pump.cancel()
        await asyncio.wait((self._pump,))
        if not self._pump.cancelled():
            # Read, so that an error that nobody waited for is not reported as lost.
            self._pump.exception()

    async def _read(self, source: AsyncGenerator[GenerationEvent, None]) -> None:
        try:
            async for event in source:
                while len(self._waiting) >= EVENTS_WAITING_MAX:
                    self._room.clear()
                    await self._room.wait()
                self._waiting.append(event)
                self._arrived.set()
        finally:
            await source.aclose()

    def _account(self, event: GenerationEvent) -> None:
        call = self._call
        if isinstance(event, Tokens):
            if call.first_token_s is None:
                call.first_token_s = self._loop.time() - call.started_s
            call.completion_tokens += len(event.ids)
        elif isinstance(event, Finished):
            call.completion_tokens = event.completion_tokens or call.completion_tokens
            call.prompt_tokens = event.prompt_tokens or call.prompt_tokens
        elif isinstance(event, Started):
            call.prompt_tokens = event.prompt_tokens
