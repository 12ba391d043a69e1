"""Real answers of the API, whole, streamed and refused, are as `/openapi.json` describes them."""

from __future__ import annotations

import json
from array import array
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, MODEL, NODE, USER, FakeService, event
from fixtures.cluster_status import lab
from fixtures.openai_asks import HELLO, TOOL
from fixtures.openapi_document import DESCRIBED, ROUTES, Document, answers_with, check
from jsonschema.exceptions import ValidationError

from aivailable.errors import RequestError
from aivailable.wire.generation import (
    Alternative,
    CallDelta,
    Embedded,
    Finished,
    Started,
    TokenLogprob,
    Tokens,
)


async def _get(
    http: aiohttp.ClientSession, path: str, key: str = ADMIN, method: str = "GET", body: Any = None
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    async with http.request(method, path, json=body, headers=headers) as response:
        text = await response.text()
        media = response.headers["Content-Type"].partition(";")[0]
        return response.status, json.loads(text) if media == "application/json" else text


async def test_every_page_of_the_cluster_is_as_described(
    http: aiohttp.ClientSession, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.observation.add_event(event(7, "text"))
    pages = [
        route
        for route in ROUTES
        if route.method == "GET"
        and "{" not in route.path
        and not any(field.required for field in route.query.values())
    ]
    for seen in (service.observation.status(), lab()):
        monkeypatch.setattr(service.observation, "status", lambda seen=seen: seen)
        for route in pages:
            status, body = await _get(http, route.path)
            assert status == 200, route.path
            if not isinstance(body, str):
                check(answers_with(route.path, "get", 200), body)
    service.observation.is_ready = (False, "waits")
    status, body = await _get(http, "/readyz")
    assert status == 503
    check(answers_with("/readyz", "get", 503), body)
    async with http.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        media = response.headers["Content-Type"].partition(";")[0]
        assert media in DESCRIBED["paths"]["/metrics"]["get"]["responses"]["200"]["content"]


async def test_every_change_of_the_cluster_answers_as_described(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    asks: list[tuple[str, str, str, Any]] = [
        ("post", "/cluster/v1/deployments?dry_run=1", "/cluster/v1/deployments", {"model": "m"}),
        ("delete", f"/cluster/v1/deployments/{MODEL}", "/cluster/v1/deployments/{name}", None),
        ("post", "/cluster/v1/nodes/one/drain", "/cluster/v1/nodes/{node}/drain", None),
        ("post", "/cluster/v1/nodes/one/undrain", "/cluster/v1/nodes/{node}/undrain", None),
        ("post", "/cluster/v1/keys", "/cluster/v1/keys", {"label": "x"}),
        ("delete", "/cluster/v1/keys/abc", "/cluster/v1/keys/{key_id}", None),
        ("delete", f"/cluster/v1/members/{NODE}", "/cluster/v1/members/{node}", None),
        ("get", f"/cluster/v1/members/{NODE}/keys", "/cluster/v1/members/{node}/keys", None),
        ("post", "/cluster/v1/leave", "/cluster/v1/leave", None),
        ("post", "/cluster/v1/recover", "/cluster/v1/recover", None),
        ("get", f"/v1/models/{MODEL}", "/v1/models/{model}", None),
    ]
    for method, path, template, body in asks:
        status, found = await _get(http, path, method=method, body=body)
        assert status < 300, (path, found)
        check(answers_with(template, method, status), found)


async def test_refusals_are_as_described(http: aiohttp.ClientSession, service: FakeService) -> None:
    chat, error = "/v1/chat/completions", {"$ref": "#/components/schemas/Error"}
    for status, code in ((429, "queue_full"), (502, "worker_lost"), (504, "deadline_exceeded")):
        service.inference.script = [RequestError(status, code, "told to")]
        ask = {"model": MODEL, "messages": HELLO}
        told, body = await _get(http, chat, method="POST", body=ask)
        assert told == status
        check(error, body)
        check(answers_with(chat, "post", status), body)
    for path, method, ask, status in (
        (chat, "post", {"model": "none", "messages": HELLO}, 404),
        (chat, "post", {"model": MODEL}, 400),
        ("/cluster/v1/events?after=x", "get", None, 400),
    ):
        told, body = await _get(http, path, method=method, body=ask)
        assert told == status
        check(answers_with(path.partition("?")[0], method, status), body)


def _told(*pieces: str) -> list[Any]:
    """An answer with everything that an answer can have."""
    drawn = Alternative(5, -0.5, b"x")
    logprobs = (TokenLogprob(drawn, (drawn, Alternative(6, float("-inf"), b"\xff"))),)
    calls = (CallDelta(0, "call_1", "f", "{"), CallDelta(0, arguments="}"))
    return [
        Started("", 7, 3),
        Tokens("", (1,), "", reasoning="hm", logprobs=logprobs),
        *(Tokens("", (2,), piece, logprobs=logprobs) for piece in pieces),
        Tokens("", (3,), "", calls=calls[:1], logprobs=logprobs),
        Finished("", "tool_calls", "", 7, 4, 3, calls=calls[1:]),
    ]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("logprobs", [False, True])
async def test_answers_whole_and_streamed_are_as_described(
    http: aiohttp.ClientSession, service: FakeService, path: str, logprobs: bool
) -> None:
    service.inference.script = _told("Hel", "lo")
    ask: Document = {"model": MODEL, "n": 2}
    if path == "/v1/completions":
        ask |= {"prompt": "x", "logprobs": 2 if logprobs else None, "echo": not logprobs}
    else:
        ask |= {"messages": HELLO, "tools": [TOOL], "logprobs": logprobs}
    status, body = await _get(http, path, method="POST", body=ask)
    assert status == 200
    check(answers_with(path, "post", 200), body)
    ask |= {"stream": True, "stream_options": {"include_usage": True}}
    status, text = await _get(http, path, method="POST", body=ask)
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    assert len(lines) > 5
    for line in lines:
        check(answers_with(path, "post", 200, "text/event-stream"), json.loads(line))


async def test_vectors_and_ranks_are_as_described(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    vector = array("f", [0.5, -1.0]).tobytes()
    service.inference.script = [
        Started("", 2),
        Embedded("", 0, vector),
        Finished("", "stop", "", 2),
    ]
    for form in ("float", "base64"):
        ask: Document = {"model": MODEL, "input": "x", "encoding_format": form}
        status, body = await _get(http, "/v1/embeddings", method="POST", body=ask)
        assert status == 200
        check(answers_with("/v1/embeddings", "post", 200), body)
    score = array("f", [0.25]).tobytes()
    service.inference.script = [Started("", 2), Embedded("", 0, score), Finished("", "stop", "", 2)]
    ask = {"model": MODEL, "query": "q", "documents": ["d"], "return_documents": True}
    status, body = await _get(http, "/v1/rerank", method="POST", body=ask)
    assert status == 200
    check(answers_with("/v1/rerank", "post", 200), body)


async def test_events_that_are_followed_are_as_described(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.observation.add_event(event(6, "one"))
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {USER}"}
    async with http.get("/cluster/v1/events", headers=headers) as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                schema = answers_with("/cluster/v1/events", "get", 200, "text/event-stream")
                check(schema, json.loads(line[6:]))
                break


def test_a_wrong_answer_would_be_found() -> None:
    schema = answers_with("/v1/chat/completions", "post", 200)
    for wrong in ({}, {"id": "x"}):
        with pytest.raises(ValidationError):
            check(schema, wrong)
    whole = {"ready": True, "reason": ""}
    check(answers_with("/readyz", "get", 200), whole)
    for wrong in ({"ready": True}, {**whole, "more": 1}, {**whole, "ready": "yes"}):
        with pytest.raises(ValidationError):
            check(answers_with("/readyz", "get", 200), wrong)
