"""A generation's events as one JSON document or as one stream of chunks.

Owns the HTTP side of an answer: when headers go out, keep-alives, the order of chunks, what an
error after the first byte looks like. Choices of one request interleave in one stream, told apart
by their index.

Not to be confused with `client.answers`, which reads answers as values.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aiohttp import web

from aivailable.errors import AivailableError, RequestError
from aivailable.peer.api.accounting import RequestOutcome, RequestRecord
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ClientGone, as_request_error, error_body
from aivailable.peer.api.generation import Generation
from aivailable.peer.api.openai.choices import ChatChoice, Choice, TextChoice
from aivailable.peer.api.openai.replies import Reply
from aivailable.peer.api.openai.requests import Asked
from aivailable.peer.api.sse import SseWriter
from aivailable.wire.generation import Finished, GenerationEvent, Tokens
from aivailable.wire.limits import MIB

HEADERS_WAIT_S = 10.0
"""How long a stream's headers wait for the host's name; then they go out without it."""
KEEP_ALIVE_S = 5.0
LOGPROBS_MAX_BYTES = 16 * MIB
"""Of one answer that is not streamed: 10,000 tokens with all their alternatives."""

log = logging.getLogger("aivailable.api")


def choices_of(asked: Asked, *, chat: bool) -> list[Choice]:
    if chat:
        return [
            ChatChoice(reasoning=asked.reasoning, logprobs=asked.logprobs) for _ in asked.generates
        ]
    echo = asked.echo or ("",) * len(asked.generates)
    return [TextChoice(logprobs=asked.logprobs, echo=text) for text in echo]


async def collect(
    record: RequestRecord, reply: Reply, choices: Sequence[Choice], generation: Generation
) -> web.Response:
    """The whole answer, once every choice has ended."""
    reasons: dict[int, str] = {}
    kept_bytes = 0
    while len(reasons) < len(choices):
        found = await generation.next()
        if found is None:
            continue
        index, event = found
        if isinstance(event, Tokens | Finished):
            kept_bytes += choices[index].add(event)
        if kept_bytes > LOGPROBS_MAX_BYTES:
            raise RequestError(
                400,
                "answer_too_large",
                f"the log probabilities of this answer fill more than {LOGPROBS_MAX_BYTES} bytes: "
                "ask for fewer, or with 'stream': true",
            )
        if isinstance(event, Finished):
            reasons[index] = event.reason
    parts = [(choice.whole(), reasons[index]) for index, choice in enumerate(choices)]
    return json_answer(reply.whole(parts, record), headers=record.headers())


class AnswerStream:
    """One answer on its way to a client that streams."""

    def __init__(
        self,
        record: RequestRecord,
        reply: Reply,
        choices: Sequence[Choice],
        generation: Generation,
        *,
        keep_alive_s: float,
        headers_wait_s: float,
    ) -> None:
        self._record = record
        self._reply = reply
        self._choices = choices
        self._generation = generation
        self._keep_alive_s = keep_alive_s
        self._headers_wait_s = headers_wait_s

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Raises RequestError only before the first byte; ClientGone."""
        record = self._record
        first = await self._generation.next(self._headers_wait_s)
        sse = SseWriter(request, record.headers())
        await sse.open()
        try:
            await self._relay(sse, first)
        except ClientGone:
            raise
        except (AivailableError, OSError) as error:
            await _fail_stream(sse, record, as_request_error(error))
        except Exception:
            log.exception("request %s broke in mid-stream", record.request_id)
            broken = RequestError(500, "internal_error", "the node failed; its log says how")
            await _fail_stream(sse, record, broken)
        return await sse.end()

    async def _relay(self, sse: SseWriter, found: tuple[int, GenerationEvent] | None) -> None:
        for index, choice in enumerate(self._choices):
            opening = choice.opening()
            if opening is not None:
                await sse.data(self._reply.chunk(index, opening))
        left = len(self._choices)
        while True:
            if found is None:
                await sse.comment("keep-alive")
            else:
                await self._show(sse, *found)
                left -= isinstance(found[1], Finished)
            if left == 0:
                break
            found = await self._generation.next(self._keep_alive_s)
        if self._reply.usage:
            await sse.data(self._reply.last(self._record))
        await sse.raw("[DONE]")

    async def _show(self, sse: SseWriter, index: int, event: GenerationEvent) -> None:
        if not isinstance(event, Tokens | Finished):
            return
        choice = self._choices[index]
        part = choice.delta(event)
        if part is not None:
            await sse.data(self._reply.chunk(index, part))
        if isinstance(event, Finished):
            await sse.data(self._reply.chunk(index, choice.closing(), event.reason))


async def _fail_stream(sse: SseWriter, record: RequestRecord, error: RequestError) -> None:
    """After the first byte there is no status left to set: an event says it, and no [DONE]."""
    record.outcome = RequestOutcome.FAILED
    await sse.data(error_body(error, record.request_id))
