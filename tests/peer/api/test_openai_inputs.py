"""Embeddings and rerank: requests, shapes, bounds, also with OpenAI's own client."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from fixtures.api_service import MODEL, USER, FakeService, Step

from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai.embeddings import embeddings_request, rerank_request
from aivailable.peer.api.parameters import RequestParameters
from aivailable.peer.api.server import ApiServer
from aivailable.wire.generation import Embedded, Failed, Finished, Started

THIRD = 0.3333333432674408
"""The float32 nearest to a third."""


def vectors(*rows: tuple[float, ...]) -> list[Step]:
    """The rows' vectors, the last first: workers promise no order."""
    found: list[Step] = [
        Embedded("", index, struct.pack(f"<{len(row)}f", *row)) for index, row in enumerate(rows)
    ]
    return [Started("", 6), *reversed(found), Finished("", "stop", "", 6)]


@pytest.fixture
async def sdk(server: ApiServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=USER, max_retries=0
    ) as client:
        yield client


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_the_openai_client_reads_embeddings_in_order(
    sdk: openai.AsyncOpenAI, server: ApiServer, service: FakeService, form: Any
) -> None:
    service.inference.script = vectors((1.0, THIRD), (-2.5, 1e-30))
    given = {} if form is None else {"encoding_format": form}
    # Asked for base64 by name the client leaves the decoding to its caller.
    answer = await sdk.embeddings.create(model=MODEL, input=["a", "b"], **given)
    rows: list[Any] = [one.embedding for one in answer.data]
    if form == "base64":
        assert [len(row) for row in rows] == [12, 12]
    else:
        assert [struct.pack("<2f", *row) for row in rows] == [
            struct.pack("<2f", 1.0, THIRD),
            struct.pack("<2f", -2.5, 1e-30),
        ]
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.model_dump() == {"prompt_tokens": 6, "total_tokens": 6}
    request = service.inference.asked[0][0]
    assert (request.task, request.inputs, request.prompt) == ("embed", ("a", "b"), None)
    await server.stop()
    assert server.metrics.outcomes() == {"done": 1}


@pytest.mark.parametrize(("given", "ids"), [([1, 2], ((1, 2),)), ([[1, 2], [3]], ((1, 2), (3,)))])
async def test_token_ids_are_embedded_as_they_are(
    sdk: openai.AsyncOpenAI, service: FakeService, given: Any, ids: tuple[tuple[int, ...], ...]
) -> None:
    service.inference.script = vectors(*[(1.0, 0.0)] * len(ids))
    answer = await sdk.embeddings.create(model=MODEL, input=given)
    assert len(answer.data) == len(ids)
    request = service.inference.asked[0][0]
    assert (request.inputs, request.input_ids) == ((), ids)


async def test_fewer_dimensions_are_made_unit_length_again(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.inference.script = vectors((0.6, 0.8, 5.0))
    body = {"model": MODEL, "input": "a", "dimensions": 2}
    status, answer = await post(http, "/v1/embeddings", body)
    assert status == 200
    assert answer["data"][0]["embedding"] == pytest.approx([0.6, 0.8])
    status, answer = await post(http, "/v1/embeddings", {**body, "dimensions": 4})
    assert (status, answer["error"]["param"]) == (400, "dimensions")
    assert "3 dimensions" in answer["error"]["message"]
    assert service.inference.running == 0


async def test_a_ranking_is_sorted_best_first(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.inference.script = vectors((0.25,), (0.75,), (-1.0,), (0.75,))
    body = {
        "model": "small",
        "query": "q",
        "documents": ["a", {"text": "b"}, "c", "d"],
        "top_n": 3,
        "return_documents": True,
    }
    status, answer = await post(http, "/v1/rerank", body)
    assert status == 200
    assert answer["results"] == [
        {"index": 1, "relevance_score": 0.75, "document": {"text": "b"}},
        {"index": 3, "relevance_score": 0.75, "document": {"text": "d"}},
        {"index": 0, "relevance_score": 0.25, "document": {"text": "a"}},
    ]
    assert (answer["model"], answer["usage"]["total_tokens"]) == ("small", 6)
    request = service.inference.asked[0][0]
    assert (request.task, request.prompt, request.inputs) == ("rerank", "q", ("a", "b", "c", "d"))


async def test_a_model_that_cannot_says_so(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.inference.script = [
        Failed("", "invalid_request", "this model makes no embeddings", 400)
    ]
    status, answer = await post(http, "/v1/embeddings", {"model": MODEL, "input": "a"})
    assert (status, answer["error"]["message"]) == (400, "this model makes no embeddings")


@pytest.mark.parametrize(
    "rows", [((1.0,),), ((1.0,), (float("nan"),)), ((1.0,), ())], ids=["few", "nan", "empty"]
)
async def test_an_answer_that_is_no_vectors_is_our_fault(
    http: aiohttp.ClientSession, service: FakeService, rows: tuple[tuple[float, ...], ...]
) -> None:
    service.inference.script = vectors(*rows)
    status, _ = await post(http, "/v1/embeddings", {"model": MODEL, "input": ["a", "b"]})
    assert status == 500
    body = {"model": MODEL, "query": "q", "documents": ["a", "b"]}
    status, _ = await post(http, "/v1/rerank", body)
    assert status == 500


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [1, -2]}, "input[1]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [[1, 2], []]}, "input[1]"),
        ({"input": [[1], "a"]}, "input[1]"),
        ({"input": [[1], [2, 1 << 31]]}, "input[1][1]"),
        ({"input": [[1]] * 2049}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "x" * (1 << 20) + "x"}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "input_type": "query"}, "input_type"),
        ({"input": "a", "model": ""}, "model"),
    ],
)
def test_an_embeddings_refusal_names_the_parameter(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        embeddings_request(RequestParameters({"model": "m", **given}), "req_1")
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": 1}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a"] * 1025}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": [{"title": "a"}]}, "documents[0].text"),
        ({"top_n": 0}, "top_n"),
    ],
)
def test_a_rerank_refusal_names_the_parameter(given: dict[str, Any], param: str) -> None:
    body = {"model": "m", "query": "q", "documents": ["a"], **given}
    with pytest.raises(ParameterError) as caught:
        rerank_request(RequestParameters(body), "req_1")
    assert caught.value.param == param
