"""OpenAI's endpoints: chat completions, completions, models.

Owns the handlers; it must not route or retry: that is `Inference.generate`. Routes are added by
`server`. Leaving a handler in any way, the client's disconnect included, closes the generation and
so cancels every choice of it at its host.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from aiohttp import web

from aivailable.peer.api.accounting import RequestRecord, record_of
from aivailable.peer.api.bodies.place import Bodies
from aivailable.peer.api.description.fields import Object
from aivailable.peer.api.description.routes import GENERATION_ERRORS, SSE, Answer, Body, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.generation import WAIT_S, Generation
from aivailable.peer.api.openai.answer_types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ModelEntry,
    ModelList,
)
from aivailable.peer.api.openai.answers import (
    HEADERS_WAIT_S,
    KEEP_ALIVE_S,
    AnswerStream,
    choices_of,
    collect,
)
from aivailable.peer.api.openai.embeddings import Inputs
from aivailable.peer.api.openai.models import find_deployment, unknown_model
from aivailable.peer.api.openai.replies import Reply, model_entry, model_list
from aivailable.peer.api.openai.requests import (
    CHAT,
    COMPLETION,
    Asked,
    chat_request,
    completion_request,
)
from aivailable.peer.api.openai.unsupported import Ignored
from aivailable.peer.api.shares import Shares
from aivailable.peer.ports import Clock
from aivailable.peer.service import Inference, Observation

GENERATIONS_MAX = 2048
"""Choices under way at one node; `Shares` says how many of them one account may have."""

log = logging.getLogger("aivailable.api")


class OpenAi:
    """The handlers. `keep_alive_s` and `headers_wait_s` are arguments for the tests."""

    def __init__(
        self,
        inference: Inference,
        observation: Observation,
        clock: Clock,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        headers_wait_s: float = HEADERS_WAIT_S,
    ) -> None:
        self._inference = inference
        self._observation = observation
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._headers_wait_s = headers_wait_s
        self._ignored = Ignored(log)
        self._shares = Shares(GENERATIONS_MAX, "answers")
        self._bodies = Bodies()
        self._inputs = Inputs(inference, observation, self._ignored, self._bodies)

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/v1/chat/completions",
                self.chat,
                "OpenAI chat completion, streamed on request",
                (
                    Answer(ChatCompletion, "the whole answer"),
                    Answer(ChatCompletionChunk, "with stream: true; [DONE] ends it", media=SSE),
                ),
                body=Body("ChatCompletionRequest", Object(CHAT)),
                errors=GENERATION_ERRORS,
            ),
            Route(
                "POST",
                "/v1/completions",
                self.completion,
                "OpenAI text completion, streamed on request",
                (
                    Answer(Completion, "the whole answer"),
                    Answer(Completion, "with stream: true; [DONE] ends it", media=SSE),
                ),
                body=Body("CompletionRequest", Object(COMPLETION)),
                errors=GENERATION_ERRORS,
            ),
            Route(
                "GET",
                "/v1/models",
                self.models,
                "The deployments as OpenAI models",
                (Answer(ModelList, "all deployments"),),
            ),
            Route(
                "GET",
                "/v1/models/{model:.+}",
                self.model,
                "One deployment, by name or alias",
                (Answer(ModelEntry, "the deployment"),),
                errors=(404,),
            ),
            *self._inputs.routes(),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        request_id = record_of(request).request_id
        asked = await self._bodies.read(request, lambda body: chat_request(body, request_id))
        return await self._answer(request, asked, chat=True)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        request_id = record_of(request).request_id
        asked = await self._bodies.read(request, lambda body: completion_request(body, request_id))
        return await self._answer(request, asked, chat=False)

    async def models(self, _request: web.Request) -> web.Response:
        return json_answer(model_list(self._observation.status()))

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        deployment = find_deployment(self._observation, name)
        status = self._observation.status()
        for one in status.deployments:
            if one.name == deployment.name:
                return json_answer(model_entry(status, one, name))
        raise unknown_model(self._observation, name)

    async def _answer(
        self, request: web.Request, asked: Asked, *, chat: bool
    ) -> web.StreamResponse:
        record = record_of(request)
        record.model = find_deployment(self._observation, asked.model).name
        self._ignored.note(record, asked.ignored)
        with self._shares.hold(record.account, len(asked.generates)):
            return await self._generated(request, record, asked, chat=chat)

    async def _generated(
        self, request: web.Request, record: RequestRecord, asked: Asked, *, chat: bool
    ) -> web.StreamResponse:
        reply = Reply(
            record.request_id,
            asked.model,
            self._clock.wall_ms() // 1000,
            chat,
            usage=asked.include_usage,
        )
        choices = choices_of(asked, chat=chat)
        generates = [replace(one, deployment=record.model) for one in asked.generates]
        # Keep-alives let a stream wait for a model that is loading as long as for its answer.
        wait_s = generates[0].deadline_s if asked.stream else WAIT_S
        generation = Generation(
            self._inference, generates, record, wait_s=wait_s, per_prompt=asked.per_prompt
        )
        try:
            if not asked.stream:
                return await collect(record, reply, choices, generation)
            stream = AnswerStream(
                record,
                reply,
                choices,
                generation,
                keep_alive_s=self._keep_alive_s,
                headers_wait_s=self._headers_wait_s,
            )
            return await stream.send(request)
        finally:
            await generation.close()
