"""POST /v1/embeddings (OpenAI's shape) and POST /v1/rerank (Jina's and Cohere's).

Owns parsing, bounds and the rendering of vectors; whether a model can do it is the worker's word.
A vector becomes JSON text when it arrives, and each is sent by itself, so that no large answer
holds the event loop for long.
Routes are added by `endpoints`.
"""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from aivailable.errors import RequestError
from aivailable.peer.api.accounting import RequestRecord, record_of
from aivailable.peer.api.bodies.place import Bodies
from aivailable.peer.api.description.fields import (
    AnyOf,
    Fields,
    Flag,
    Integer,
    Items,
    Object,
    Only,
    String,
)
from aivailable.peer.api.description.routes import GENERATION_ERRORS, Answer, Body, Route
from aivailable.peer.api.documents import json_answer
from aivailable.peer.api.errors import ClientGone, ParameterError
from aivailable.peer.api.generation import Generation
from aivailable.peer.api.openai.answer_types import EmbeddingList, Ranked, Ranking
from aivailable.peer.api.openai.models import find_deployment
from aivailable.peer.api.openai.replies import input_usage_of
from aivailable.peer.api.openai.requests import MODEL, TOKEN_IDS, model_name, token_ids
from aivailable.peer.api.openai.unsupported import Ignored, refuse
from aivailable.peer.api.parameters import (
    RequestParameters,
    as_object,
    checked_text,
    wrong_type,
)
from aivailable.peer.service import Inference, Observation
from aivailable.wire.generation import Embedded, Finished, Generate
from aivailable.wire.limits import MIB
from aivailable.wire.schema import to_json

INPUTS_MAX = 2048
"""Texts of one embeddings request, as OpenAI allows."""
DOCUMENTS_MAX = 1024
INPUT_MAX_BYTES = 1 * MIB
DIMENSIONS_MAX = 1 << 16
REPLY_MAX_BYTES = 128 * MIB
"""What the vectors of one answer may fill as text."""

_INPUT = String(required=True, text=f"at most {INPUT_MAX_BYTES} bytes of UTF-8")
EMBEDDINGS: Fields = {
    **MODEL,
    "input": AnyOf(
        (
            _INPUT,
            TOKEN_IDS,
            Items(AnyOf((_INPUT, TOKEN_IDS)), items_min=1, items_max=INPUTS_MAX),
        ),
        required=True,
        text="texts, or token ids of the model's own vocabulary; not both",
    ),
    "encoding_format": String(words=("float", "base64"), default="float"),
    "dimensions": Integer(1, DIMENSIONS_MAX),
    "input_type": Only(text="not supported"),
}
_DOCUMENT: Fields = {"text": _INPUT}
RERANK: Fields = {
    **MODEL,
    "query": _INPUT,
    "documents": Items(
        AnyOf((_INPUT, Object(_DOCUMENT))), items_min=1, items_max=DOCUMENTS_MAX, required=True
    ),
    "top_n": Integer(1),
    "return_documents": Flag(default=False),
}


@dataclass(frozen=True, slots=True)
class EmbeddingsAsked:
    generate: Generate
    as_base64: bool
    dimensions: int | None
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RerankAsked:
    generate: Generate
    top_n: int
    return_documents: bool
    ignored: tuple[str, ...]


def embeddings_request(body: RequestParameters, request_id: str) -> EmbeddingsAsked:
    """Raises ParameterError."""
    body = body.declared(EMBEDDINGS)
    texts, ids = _inputs(body)
    generate = Generate(
        request_id=request_id,
        deployment=model_name(body),
        task="embed",
        inputs=texts,
        input_ids=ids,
    )
    form = body.choice("encoding_format")
    dimensions = body.integer("dimensions")
    refuse(body, "input_type")
    return EmbeddingsAsked(generate, form == "base64", dimensions, body.unread())


def rerank_request(body: RequestParameters, request_id: str) -> RerankAsked:
    """Raises ParameterError."""
    body = body.declared(RERANK)
    given = body.items("documents")
    if not given:
        raise ParameterError(
            "documents", "'documents' needs at least one document", code="missing_parameter"
        )
    if len(given) > DOCUMENTS_MAX:
        raise ParameterError("documents", f"more than {DOCUMENTS_MAX} documents")
    texts = tuple(_document(item, f"documents[{index}]") for index, item in enumerate(given))
    generate = Generate(
        request_id=request_id,
        deployment=model_name(body),
        prompt=_bounded(body.required_text("query"), "query"),
        task="rerank",
        inputs=texts,
    )
    top_n = body.integer("top_n")
    return RerankAsked(
        generate,
        len(texts) if top_n is None else min(top_n, len(texts)),
        body.flag("return_documents"),
        body.unread(),
    )


class Inputs:
    """The handlers."""

    def __init__(
        self,
        inference: Inference,
        observation: Observation,
        ignored: Ignored,
        bodies: Bodies,
    ) -> None:
        self._inference = inference
        self._bodies = bodies
        self._observation = observation
        self._ignored = ignored

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/v1/embeddings",
                self.embeddings,
                "OpenAI embeddings of texts",
                (Answer(EmbeddingList, "the vectors"),),
                body=Body("EmbeddingsRequest", Object(EMBEDDINGS)),
                errors=GENERATION_ERRORS,
            ),
            Route(
                "POST",
                "/v1/rerank",
                self.rerank,
                "Documents ranked by their relevance to a query (Jina, Cohere)",
                (Answer(Ranking, "the best documents"),),
                body=Body("RerankRequest", Object(RERANK)),
                errors=GENERATION_ERRORS,
            ),
        ]

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        record = record_of(request)
        asked = await self._bodies.read(
            request, lambda body: embeddings_request(body, record.request_id)
        )
        items: dict[int, bytes] = {}
        total = 0
        async with aclosing(self._run(record, asked.generate, asked.ignored)) as answers:
            async for embedded in answers:
                vector = _vector(embedded)
                if asked.dimensions is not None:
                    vector = shortened(vector, asked.dimensions)
                shown = as_base64(vector) if asked.as_base64 else as_numbers(vector)
                total += len(shown)
                if total > REPLY_MAX_BYTES:
                    raise ParameterError(
                        "input",
                        f"the answer would be larger than {REPLY_MAX_BYTES} bytes; send less",
                    )
                comma = "," if embedded.index else ""
                head = f'{comma}{{"object":"embedding","index":{embedded.index},"embedding":'
                items[embedded.index] = f"{head}{shown}}}".encode()
        _check_complete(items, asked.generate)
        model = to_json(asked.generate.deployment)
        usage = to_json(input_usage_of(record))
        pieces = [
            b'{"object":"list","data":[',
            *(items[index] for index in range(len(items))),
            b'],"model":%b,"usage":%b}' % (model, usage),
        ]
        return await _sent(request, pieces, record.headers())

    async def rerank(self, request: web.Request) -> web.Response:
        record = record_of(request)
        asked = await self._bodies.read(
            request, lambda body: rerank_request(body, record.request_id)
        )
        scores: dict[int, float] = {}
        async with aclosing(self._run(record, asked.generate, asked.ignored)) as answers:
            async for embedded in answers:
                vector = _vector(embedded)
                if len(vector) != 1:
                    raise RequestError(500, "bad_embedding", "the worker gave no single score")
                scores[embedded.index] = vector[0]
        _check_complete(scores, asked.generate)
        best = sorted(scores, key=lambda index: (-scores[index], index))[: asked.top_n]
        results: list[Ranked] = []
        for index in best:
            result: Ranked = {"index": index, "relevance_score": scores[index]}
            if asked.return_documents:
                result["document"] = {"text": asked.generate.inputs[index]}
            results.append(result)
        document: Ranking = {
            "id": record.request_id,
            "object": "list",
            "model": asked.generate.deployment,
            "results": results,
            "usage": input_usage_of(record),
        }
        return json_answer(document, headers=record.headers())

    async def _run(
        self, record: RequestRecord, asked: Generate, ignored: tuple[str, ...]
    ) -> AsyncGenerator[Embedded, None]:
        record.model = find_deployment(self._observation, asked.deployment).name
        self._ignored.note(record, ignored)
        generation = Generation(self._inference, [replace(asked, deployment=record.model)], record)
        try:
            while True:
                found = await generation.next()
                event = found[1] if found is not None else None
                if isinstance(event, Embedded):
                    yield event
                elif isinstance(event, Finished):
                    return
        finally:
            await generation.close()


async def _sent(
    request: web.Request, pieces: Sequence[bytes], headers: Mapping[str, str]
) -> web.StreamResponse:
    """A JSON document in its pieces: joined, a large one would hold the event loop."""
    response = web.StreamResponse(headers=headers)
    response.content_type, response.charset = "application/json", "utf-8"
    response.content_length = sum(map(len, pieces))
    try:
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        await response.write_eof()
    except ConnectionError as error:
        raise ClientGone from error
    return response


def _inputs(body: RequestParameters) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """One text or several, or as many lists of token ids."""
    value = body.raw("input")
    if value is None:
        raise ParameterError("input", "'input' is required", code="missing_parameter")
    if isinstance(value, str):
        return (_bounded(value, "input"),), ()
    given = body.items("input") or ()
    if not given:
        raise ParameterError("input", "'input' must not be an empty list")
    if isinstance(given[0], int):
        return (), (token_ids(list(given), "input"),)
    if len(given) > INPUTS_MAX:
        raise ParameterError("input", f"'input' has more than {INPUTS_MAX} texts")
    if isinstance(given[0], list):
        named = [(item, f"input[{index}]") for index, item in enumerate(given)]
        return (), tuple(_ids(item, name) for item, name in named)
    return tuple(
        _bounded(checked_text(item, f"input[{index}]"), f"input[{index}]")
        for index, item in enumerate(given)
    ), ()


def _ids(value: Any, name: str) -> tuple[int, ...]:
    """Whether they are in the model's vocabulary is the worker's word; whether they were meant for
    it nobody can tell: a client that counts with OpenAI's own (LangChain's, unless told
    check_embedding_ctx_length=False) gets vectors of other words."""
    if not isinstance(value, list):
        raise wrong_type(name, "a list of token ids", value)
    return token_ids(value, name)


def _document(item: Any, name: str) -> str:
    if isinstance(item, str):
        return _bounded(item, name)
    document = as_object(item, name, _DOCUMENT)
    return _bounded(document.required_text("text"), document.name("text"))


def _bounded(text: str, name: str) -> str:
    if not text:
        raise ParameterError(name, f"'{name}' must not be empty")
    if len(text.encode()) > INPUT_MAX_BYTES:
        raise ParameterError(name, f"'{name}' is longer than {INPUT_MAX_BYTES} bytes")
    return text


def _vector(embedded: Embedded) -> array[float]:
    """Raises RequestError for what is no vector of finite numbers."""
    vector = array("f")
    if not embedded.vector or len(embedded.vector) % vector.itemsize:
        raise RequestError(500, "bad_embedding", "the worker gave no vector of float32")
    vector.frombytes(embedded.vector)
    if sys.byteorder == "big":
        vector.byteswap()
    if not all(map(math.isfinite, vector)):
        raise RequestError(500, "bad_embedding", "the model gave numbers that are not finite")
    return vector


def shortened(vector: array[float], dimensions: int) -> array[float]:
    """The first `dimensions` numbers, made unit length again (OpenAI's semantics of the
    parameter). Raises ParameterError when there are fewer."""
    if dimensions > len(vector):
        raise ParameterError(
            "dimensions", f"this model's vectors have {len(vector)} dimensions, not {dimensions}"
        )
    if dimensions == len(vector):
        return vector
    kept = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in kept))
    return array("f", (number / length for number in kept)) if length > 0 else kept


def as_numbers(vector: array[float]) -> str:
    """Nine digits tell any two float32 numbers apart."""
    return "[" + ",".join(["%.9g"] * len(vector)) % tuple(vector) + "]"


def as_base64(vector: array[float]) -> str:
    """OpenAI's base64 form: the float32 numbers, little-endian."""
    little = array("f", vector)
    if sys.byteorder == "big":
        little.byteswap()
    return f'"{base64.b64encode(little.tobytes()).decode()}"'


def _check_complete(found: dict[int, Any], asked: Generate) -> None:
    if sorted(found) != list(range(len(asked.inputs) + len(asked.input_ids))):
        raise RequestError(500, "worker_lost", "the answer ended before it was finished")
