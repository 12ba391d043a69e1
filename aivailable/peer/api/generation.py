"""One or several runs of `Inference.generate` for one HTTP request, as every dialect consumes them.

Owns the tasks that read the service's events and the figures they leave in the request's record;
it must not know any dialect. One task does all the reading and the closing of a run, so that the
service may hold timeouts and locks across its events; the dialect waits for them with a time limit
(keep-alives) without disturbing it. The runs share one end: what fails one fails all.

Not to be confused with `wire.generation`, the messages of a request and its answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

from aivailable.errors import RequestError
from aivailable.peer.api.accounting import RequestRecord
from aivailable.peer.service import Inference, Routing
from aivailable.wire.generation import Failed, Finished, Generate, GenerationEvent, Started, Tokens

WAIT_S = 60.0
"""How long a client that does not stream waits for a model to be loaded."""
EVENTS_WAITING_MAX = 16
"""Read ahead for a client that is slow for a moment; then the service waits too."""


@dataclass(slots=True)
class _Run:
    """What is known of one run."""

    routing: Routing
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finished: bool = False


class Generation:
    """Each run's Started, Tokens… or Embedded…, Finished, each once through `next`, the runs
    interleaved as they come. `per_prompt` neighbours in `requests` share a prompt."""

    def __init__(
        self,
        inference: Inference,
        requests: Sequence[Generate],
        record: RequestRecord,
        *,
        wait_s: float = WAIT_S,
        per_prompt: int = 1,
    ) -> None:
        self._record = record
        self._per_prompt = per_prompt
        self._loop = asyncio.get_running_loop()
        self._runs = [_Run(Routing(ingress=inference.node, wait_s=wait_s)) for _ in requests]
        record.routing = self._runs[0].routing
        self._unheard = True
        self._waiting: deque[tuple[int, GenerationEvent | None]] = deque()
        """None: this run's task has ended."""
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._pumps: list[asyncio.Task[None]] = []
        for index, (request, run) in enumerate(zip(requests, self._runs, strict=True)):
            source = inference.generate(request, record.account, run.routing)
            pump = self._loop.create_task(self._read(index, source))
            pump.add_done_callback(partial(self._ended, index))
            self._pumps.append(pump)

    async def next(self, wait_s: float | None = None) -> tuple[int, GenerationEvent] | None:
        """The next event and the index of its run, or None when none came for `wait_s` seconds.
        Never Failed.

        Raises RequestError when the request cannot be served (further)."""
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    while not self._waiting:
                        self._arrived.clear()
                        await self._arrived.wait()
            except TimeoutError:
                return None
            index, event = self._waiting.popleft()
            self._room.set()
            if event is not None:
                self._account(index, event)
                return index, _checked(event)
            if not self._runs[index].finished:
                self._pumps[index].result()
                raise RequestError(500, "worker_lost", "the answer ended before it was finished")

    async def close(self) -> None:
        """Ends the runs wherever they are: closing a source cancels it at its host."""
        running = [pump for pump in self._pumps if not pump.done()]
        for pump in running:
            pump.cancel()
        if running:
            await asyncio.wait(running)
        for pump in self._pumps:
            if not pump.cancelled():
                # Read, so that an error that nobody waited for is not reported as lost.
                pump.exception()

    async def _read(self, index: int, source: AsyncGenerator[GenerationEvent, None]) -> None:
        try:
            async for event in source:
                while len(self._waiting) >= EVENTS_WAITING_MAX:
                    self._room.clear()
                    await self._room.wait()
                self._waiting.append((index, event))
                self._arrived.set()
        finally:
            await source.aclose()

    def _ended(self, index: int, _: asyncio.Task[None]) -> None:
        self._waiting.append((index, None))
        self._arrived.set()

    def _account(self, index: int, event: GenerationEvent) -> None:
        record, run = self._record, self._runs[index]
        if self._unheard:
            # Of several ways the one that answered first is shown.
            self._unheard, record.routing = False, run.routing
        if isinstance(event, Tokens):
            if record.first_token_s is None:
                record.first_token_s = self._loop.time() - record.started_s
            run.completion_tokens += len(event.ids)
            record.completion_tokens += len(event.ids)
        elif isinstance(event, Finished):
            run.finished = True
            made = event.completion_tokens or run.completion_tokens
            record.completion_tokens += made - run.completion_tokens
            self._count_prompt(run, event.prompt_tokens or run.prompt_tokens, event.cached_tokens)
        elif isinstance(event, Started):
            self._count_prompt(run, event.prompt_tokens, event.cached_tokens)

    def _count_prompt(self, run: _Run, prompt_tokens: int, cached_tokens: int) -> None:
        """A prompt counts once, and as cached only what the first of its runs found."""
        run.prompt_tokens, run.cached_tokens = prompt_tokens, cached_tokens
        groups = [
            [one for one in self._runs[start : start + self._per_prompt] if one.prompt_tokens]
            for start in range(0, len(self._runs), self._per_prompt)
        ]
        known = [group for group in groups if group]
        self._record.prompt_tokens = sum(max(one.prompt_tokens for one in group) for group in known)
        self._record.cached_tokens = sum(min(one.cached_tokens for one in group) for group in known)


def _checked(event: GenerationEvent) -> GenerationEvent:
    """The event, when it is none that ends the request badly."""
    if isinstance(event, Failed):
        raise RequestError(event.status, event.code, event.message)
    if isinstance(event, Finished) and event.reason == "cancelled":
        raise RequestError(500, "cancelled", "the request was cancelled by the cluster")
    return event
