"""OpenAI's endpoints: chat completions, completions, models.

Owns the handlers; it must not route or retry: that is `Service.generate`. Routes are added by
`server`. Leaving a handler in any way, the client's disconnect included, closes the generation and
so cancels every choice of it at its host.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from aiohttp import web

from aivailable.errors import RequestError
from aivailable.peer.api.accounting import call_of
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.generation import WAIT_S, Generation
from aivailable.peer.api.openai.answers import (
    HEADERS_WAIT_S,
    KEEP_ALIVE_S,
    Stream,
    choices_of,
    collect,
)
from aivailable.peer.api.openai.embeddings import Inputs
from aivailable.peer.api.openai.models import find_deployment, unknown_model
from aivailable.peer.api.openai.replies import Reply, model_entry, model_list
from aivailable.peer.api.openai.requests import Asked, chat_request, completion_request
from aivailable.peer.api.openai.unsupported import Ignored
from aivailable.peer.api.parameters import read_body
from aivailable.peer.ports import Clock
from aivailable.peer.service import Service

GENERATIONS_MAX = 2048
"""Choices under way at one node; a further request is told to come later."""
RETRY_AFTER_S = 1

log = logging.getLogger("aivailable.api")


class OpenAi:
    """The handlers. `keep_alive_s` and `headers_wait_s` are arguments for the tests."""

    def __init__(
        self,
        service: Service,
        clock: Clock,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        headers_wait_s: float = HEADERS_WAIT_S,
    ) -> None:
        self._service = service
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._headers_wait_s = headers_wait_s
        self._ignored = Ignored(log)
        self._under_way = 0
        self._inputs = Inputs(service, self._ignored)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completion),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
            *self._inputs.routes(),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        asked = chat_request(body, call_of(request).request_id)
        return await self._answer(request, asked, chat=True)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        asked = completion_request(body, call_of(request).request_id)
        return await self._answer(request, asked, chat=False)

    async def models(self, request: web.Request) -> web.Response:
        return json_answer(model_list(self._service.status()))

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        deployment = find_deployment(self._service, name)
        status = self._service.status()
        for one in status.deployments:
            if one.name == deployment.name:
                return json_answer(model_entry(status, one, name))
        raise unknown_model(self._service, name)

    async def _answer(
        self, request: web.Request, asked: Asked, *, chat: bool
    ) -> web.StreamResponse:
        call = call_of(request)
        call.model = find_deployment(self._service, asked.model).name
        self._ignored.note(call, asked.ignored)
        if self._under_way + len(asked.generates) > GENERATIONS_MAX:
            raise RequestError(
                503, "overloaded", "too many answers at once", retry_after_s=RETRY_AFTER_S
            )
        reply = Reply(
            call.request_id,
            asked.model,
            self._clock.wall_ms() // 1000,
            chat,
            usage=asked.include_usage,
        )
        choices = choices_of(asked, chat=chat)
        generates = [replace(one, deployment=call.model) for one in asked.generates]
        # Keep-alives let a stream wait for a model that is loading as long as for its answer.
        wait_s = generates[0].deadline_s if asked.stream else WAIT_S
        generation = Generation(
            self._service, generates, call, wait_s=wait_s, per_prompt=asked.per_prompt
        )
        self._under_way += len(generates)
        try:
            if not asked.stream:
                return await collect(call, reply, choices, generation)
            stream = Stream(
                call,
                reply,
                choices,
                generation,
                keep_alive_s=self._keep_alive_s,
                headers_wait_s=self._headers_wait_s,
            )
            return await stream.send(request)
        finally:
            self._under_way -= len(generates)
            await generation.close()
