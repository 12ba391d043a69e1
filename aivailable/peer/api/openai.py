"""OpenAI's endpoints: chat completions, completions, models.

Owns the HTTP side of a generation (when headers go out, keep-alives, the order of chunks); it must
not route or retry: that is `Service.generate`. Routes are added by `server`. Leaving a handler in
any way, the client's disconnect included, closes the generation and so cancels it at its host.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from aiohttp import web

from aivailable.core.records import Deployment
from aivailable.errors import AivailableError, RequestError
from aivailable.peer.api.accounting import Call, Outcome, call_of
from aivailable.peer.api.errors import ClientGone, ParameterError, as_request_error, error_body
from aivailable.peer.api.generation import WAIT_S, Generation
from aivailable.peer.api.openai_replies import Reply, model_entry, model_list
from aivailable.peer.api.openai_requests import Asked, chat_request, completion_request
from aivailable.peer.api.parameters import read_body
from aivailable.peer.api.sse import SseWriter
from aivailable.peer.ports import Clock
from aivailable.peer.service import Service
from aivailable.wire.generation import Finished, GenerationEvent, Tokens

HEADERS_WAIT_S = 10.0
"""How long a stream's headers wait for the host's name; then they go out without it."""
KEEP_ALIVE_S = 5.0
RETRY_AFTER_S = 3
MODELS_NAMED_MAX = 20
"""How many existing models a refusal of an unknown one lists."""

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

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completion),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        return await self._answer(
            request, chat_request(body, call_of(request).request_id), chat=True
        )

    async def completion(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request)
        asked = completion_request(body, call_of(request).request_id)
        return await self._answer(request, asked, chat=False)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(model_list(self._service.status()))

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        deployment = self._deployment(name)
        status = self._service.status()
        for one in status.deployments:
            if one.name == deployment.name:
                return web.json_response(model_entry(status, one, name))
        raise self._unknown_model(name)

    async def _answer(
        self, request: web.Request, asked: Asked, *, chat: bool
    ) -> web.StreamResponse:
        call = call_of(request)
        model = asked.generate.deployment
        call.model = self._deployment(model).name
        reply = Reply(call.request_id, model, self._clock.wall_ms() // 1000, chat)
        generate = replace(asked.generate, deployment=call.model)
        # Keep-alives let a stream wait for a model that is loading as long as for its answer.
        wait_s = generate.deadline_s if asked.stream else WAIT_S
        generation = Generation(self._service, generate, call, wait_s=wait_s)
        try:
            if asked.stream:
                return await self._stream(request, asked, reply, generation)
            return await self._collect(call, reply, generation)
        finally:
            await generation.close()

    async def _collect(self, call: Call, reply: Reply, generation: Generation) -> web.Response:
        parts: list[str] = []
        while True:
            event = await generation.next()
            if isinstance(event, Tokens):
                parts.append(event.text)
            elif isinstance(event, Finished):
                break
        text = "".join(parts) + event.text
        return web.json_response(
            reply.whole(text, event.reason, call, event.cached_tokens), headers=call.headers()
        )

    async def _stream(
        self, request: web.Request, asked: Asked, reply: Reply, generation: Generation
    ) -> web.StreamResponse:
        call = call_of(request)
        event = await generation.next(self._headers_wait_s)
        sse = SseWriter(request, call.headers())
        await sse.open()
        try:
            opening = reply.opening(usage=asked.include_usage)
            if opening is not None:
                await sse.data(opening)
            await self._relay(sse, asked, reply, generation, event, call)
        except ClientGone:
            raise
        except (AivailableError, OSError) as error:
            await _fail_stream(sse, call, as_request_error(error))
        except Exception:
            log.exception("request %s broke in mid-stream", call.request_id)
            broken = RequestError(500, "internal_error", "the node failed; its log says how")
            await _fail_stream(sse, call, broken)
        return await sse.end()

    async def _relay(
        self,
        sse: SseWriter,
        asked: Asked,
        reply: Reply,
        generation: Generation,
        event: GenerationEvent | None,
        call: Call,
    ) -> None:
        usage = asked.include_usage
        while not isinstance(event, Finished):
            if event is None:
                await sse.comment("keep-alive")
            elif isinstance(event, Tokens) and event.text:
                await sse.data(reply.delta(event.text, usage=usage))
            event = await generation.next(self._keep_alive_s)
        if event.text:
            await sse.data(reply.delta(event.text, usage=usage))
        await sse.data(reply.closing(event.reason, usage=usage))
        if usage:
            await sse.data(reply.usage(call, event.cached_tokens))
        await sse.raw("[DONE]")

    def _deployment(self, name: str) -> Deployment:
        """A deployment's name first, then an alias. Raises RequestError 404."""
        deployments = self._service.deployments()
        for one in deployments:
            if one.name == name:
                return one
        for one in deployments:
            if name in one.aliases:
                return one
        raise self._unknown_model(name)

    def _unknown_model(self, name: str) -> RequestError:
        ready, reason = self._service.ready()
        if not ready:
            return RequestError(
                503,
                "not_ready",
                f"this node cannot answer yet: {reason}",
                retry_after_s=RETRY_AFTER_S,
            )
        names = [one.name for one in self._service.deployments()]
        if not names:
            return _not_found(
                f"there is no model {name!r}: nothing is deployed yet; "
                "'aivailable deploy MODEL' on a member deploys one"
            )
        more = ", …" if len(names) > MODELS_NAMED_MAX else ""
        known = ", ".join(names[:MODELS_NAMED_MAX])
        return _not_found(f"there is no model {name!r}; deployed are: {known}{more}")


def _not_found(message: str) -> ParameterError:
    return ParameterError("model", message, code="model_not_found", status=404)


async def _fail_stream(sse: SseWriter, call: Call, error: RequestError) -> None:
    """After the first byte there is no status left to set: an event says it, and no [DONE]."""
    call.outcome = Outcome.FAILED
    await sse.data(error_body(error, call.request_id))
