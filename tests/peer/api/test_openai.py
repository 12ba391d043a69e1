"""OpenAI's endpoints over a real socket, also with OpenAI's own client."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from fixtures.api_service import HOST, MODEL, NODE, USER, FakeService, answer

from aivailable.errors import RequestError
from aivailable.peer.api.server import ApiServer
from aivailable.wire.generation import Failed, Finished, Started, Tokens
from aivailable.wire.limits import HTTP_BODY_MAX_BYTES, MIB

HELLO = [{"role": "user", "content": "Hello"}]
ASK = {"model": MODEL, "messages": HELLO}


@pytest.fixture
async def sdk(server: ApiServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=USER, max_retries=0
    ) as client:
        yield client


async def post(http: aiohttp.ClientSession, body: Any, path: str = "chat/completions") -> Any:
    async with http.post(f"/v1/{path}", json=body) as response:
        return response.status, await response.json()


async def test_a_chat_answer_is_whole_and_says_where_it_came_from(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    async with http.post("/v1/chat/completions", json={**ASK, "model": "small"}) as response:
        body = await response.json()
        headers = response.headers
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert (body["model"], body["created"]) == ("small", 1_700_000_000)
    assert body["usage"]["total_tokens"] == 10
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert headers["X-AIvailable-Request"].startswith("req_")
    assert headers["X-AIvailable-Ingress"] == NODE[:8]
    assert headers["X-AIvailable-Host"] == HOST[:8]
    assert headers["X-AIvailable-Replica"] == f"{MODEL}#1.1"
    assert (headers["X-AIvailable-Attempts"], headers["X-AIvailable-Queue-Ms"]) == ("1", "12")
    request, account = service.inference.asked[0]
    assert request.deployment == MODEL
    assert request.request_id == headers["X-AIvailable-Request"]
    assert account == f"local:{NODE[:8]}"


async def test_the_openai_client_streams_chunks_in_order(
    sdk: openai.AsyncOpenAI, service: FakeService
) -> None:
    stream = await sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].delta.content for one in chunks[1:3]] == ["Hel", "lo"]
    assert [one.choices[0].finish_reason for one in chunks[:4]] == [None, None, None, "stop"]
    assert chunks[4].choices == []
    assert chunks[4].usage is not None
    assert (chunks[4].usage.prompt_tokens, chunks[4].usage.completion_tokens) == (7, 3)
    assert len(chunks) == 5
    assert len({chunk.id for chunk in chunks}) == 1
    assert service.inference.asked[0][1].startswith("key:")


async def test_a_stream_without_usage_ends_with_done(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/chat/completions", json={**ASK, "stream": True}) as response:
        text = await response.text()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["X-AIvailable-Host"] == HOST[:8]
    assert text.endswith("data: [DONE]\n\n")
    assert "usage" not in text


async def test_what_was_held_back_is_sent_before_the_end(
    sdk: openai.AsyncOpenAI, service: FakeService
) -> None:
    service.inference.script = [
        Started("", 1),
        Tokens("", (1, 2), "a"),
        Finished("", "length", "b", 1, 2),
    ]
    stream = await sdk.completions.create(model=MODEL, prompt="x", stream=True)
    chunks = [chunk async for chunk in stream]
    assert [one.choices[0].text for one in chunks] == ["a", "b", ""]
    assert chunks[-1].choices[0].finish_reason == "length"
    whole = await sdk.completions.create(model=MODEL, prompt=[1, 2, 3])
    assert whole.choices[0].text == "ab"
    assert service.inference.asked[1][0].prompt_ids == (1, 2, 3)
    assert service.inference.asked[1][0].max_tokens == 16


async def test_models_are_listed_and_found_by_name_and_alias(sdk: openai.AsyncOpenAI) -> None:
    listed = await sdk.models.list()
    assert [one.id for one in listed.data] == [MODEL]
    assert (await sdk.models.retrieve(MODEL)).id == MODEL
    assert (await sdk.models.retrieve("small")).id == "small"
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("big")


async def test_an_unknown_model_is_refused_with_those_that_exist(
    sdk: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.chat.completions.create(
            model="gpt-4", messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message
    assert caught.value.param == "model"


async def test_a_node_without_a_state_says_so_instead_of_not_found(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.observation.is_ready = (False, "waits to be admitted")
    status, body = await post(http, {**ASK, "model": "x"})
    assert (status, body["error"]["code"]) == (503, "not_ready")
    assert "waits to be admitted" in body["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_event_has_its_status(
    http: aiohttp.ClientSession, service: FakeService, stream: bool
) -> None:
    service.inference.script = [RequestError(503, "loading", "60 % loaded", retry_after_s=9)]
    async with http.post("/v1/chat/completions", json={**ASK, "stream": stream}) as response:
        body = await response.json()
        assert response.status == 503
        assert response.headers["Retry-After"] == "9"
        assert response.headers["X-AIvailable-Request"] == body["error"]["request_id"]
    assert body["error"]["code"] == "loading"
    assert body["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    "broken",
    [
        RequestError(502, "worker_lost", "the worker died"),
        Failed("", "worker_lost", "the worker died", 502),
        RuntimeError("a bug"),
        # Ours, not the client's: it must be told.
        ConnectionResetError("the worker's socket"),
        Finished("", "cancelled"),
    ],
)
async def test_an_error_in_mid_stream_is_an_event_and_no_done(
    http: aiohttp.ClientSession, server: ApiServer, service: FakeService, broken: Any
) -> None:
    service.inference.script = [Started("", 1), Tokens("", (1,), "Hel"), broken]
    async with http.post("/v1/chat/completions", json={**ASK, "stream": True}) as response:
        assert response.status == 200
        text = await response.text()
    last = json.loads(text.strip().rsplit("data: ", 1)[1])
    assert set(last["error"]) == {"message", "type", "code", "param", "request_id"}
    assert "[DONE]" not in text
    assert "a bug" not in text
    await server.stop()
    assert server.metrics.outcomes() == {"failed": 1}


async def test_a_stream_waits_longer_for_a_model_to_load(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    for stream in (False, True):
        async with http.post("/v1/chat/completions", json={**ASK, "stream": stream}) as response:
            await response.read()
    assert service.inference.waits_s == [60.0, 600.0]


async def test_an_answer_that_stops_without_an_end_is_an_error(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.inference.script = [Started("", 1), Tokens("", (1,), "Hel")]
    status, body = await post(http, ASK)
    assert (status, body["error"]["code"]) == (500, "worker_lost")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True], ids=["prefill", "decode"])
async def test_a_client_that_leaves_ends_the_generation(
    http: aiohttp.ClientSession,
    server: ApiServer,
    service: FakeService,
    stream: bool,
    begun: bool,
) -> None:
    never = asyncio.Event()
    service.inference.script = [Started("", 1), Tokens("", (1,), "x"), never] if begun else [never]
    asking = asyncio.create_task(post(http, {**ASK, "stream": stream}))
    await service.inference.blocked.wait()
    assert not service.inference.closed.is_set()
    asking.cancel()
    await service.inference.closed.wait()
    await server.stop()
    assert server.metrics.outcomes() == {"cancelled": 1}


async def test_a_client_that_does_not_read_holds_the_generation_back(
    http: aiohttp.ClientSession, server: ApiServer, service: FakeService
) -> None:
    # 64 MiB: more than sockets and our own read-ahead hold.
    service.inference.script = [Started("", 1), *(Tokens("", (n,), "x" * MIB) for n in range(64))]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    body = json.dumps({**ASK, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await reader.readline()
    # Other clients' round trips give the generation every chance to run away.
    for _ in range(100):
        async with http.get("/healthz") as response:
            assert response.status == 200
    assert not service.inference.closed.is_set()
    writer.close()
    await service.inference.closed.wait()


async def test_keep_alives_come_while_nothing_else_does(serve: Any, service: FakeService) -> None:
    server = await serve(keep_alive_s=0.001, headers_wait_s=0.001)
    go_on = asyncio.Event()
    service.inference.script = [go_on, *answer("Hi")]
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={**ASK, "stream": True}) as response,
    ):
        lines: list[bytes] = []
        while lines.count(b": keep-alive\n") < 3:
            lines.append(await response.content.readline())
        go_on.set()
        rest = await response.text()
    assert lines[0].startswith(b"data: ")
    assert '"content":"Hi"' in rest
    assert rest.endswith("data: [DONE]\n\n")


async def test_each_request_is_logged_and_counted_once(
    http: aiohttp.ClientSession, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "aivailable.requests"):
        await post(http, ASK)
        await post(http, {**ASK, "model": "none\nsuch"})
    lines = [one.getMessage() for one in caplog.records if one.name == "aivailable.requests"]
    assert len(lines) == 2
    assert f"model={MODEL} host={HOST[:8]}" in lines[0]
    assert "tokens=7+3" in lines[0]
    assert lines[0].endswith("status=200 outcome=done")
    assert lines[1].endswith("status=400 outcome=refused")
    assert server.metrics.outcomes() == {"done": 1, "refused": 1}


async def test_a_body_over_the_limit_is_413(http: aiohttp.ClientSession) -> None:
    large = io.BytesIO(b" " * (HTTP_BODY_MAX_BYTES + 1))
    async with http.post("/v1/completions", data=large) as response:
        body = await response.json()
    assert (response.status, body["error"]["code"]) == (413, "request_too_large")


NO_JSON = {
    "empty": b"",
    "cut": b"{",
    "list": b"[]",
    "no text": b"\xff",
    "not a number": b'{"a": NaN}',
    "half a pair, escaped": b'{"a":"\\ud800"}',
    "half a pair, as bytes": b'{"model":"m","prompt":"\xed\xa0\x80"}',
    "half a pair, in UTF-16": '{"model":"m","prompt":"\\ud800"}'.encode("utf-16"),
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
async def test_a_body_that_is_no_json_object_is_400(
    http: aiohttp.ClientSession, body: bytes
) -> None:
    async with http.post("/v1/chat/completions", data=body) as response:
        answered = await response.json()
    assert (response.status, answered["error"]["code"]) == (400, "invalid_json")


async def test_a_compressed_body_is_refused(http: aiohttp.ClientSession) -> None:
    headers = {"Content-Encoding": "gzip"}
    async with http.post("/v1/completions", data=b"abcde", headers=headers) as response:
        body = await response.json()
    assert (response.status, body["error"]["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("body", [b"5\r\nabcde\r\nzz\r\n", b"5\r\nab"], ids=["damaged", "cut"])
async def test_a_body_that_breaks_off_is_no_fault_of_ours(
    server: ApiServer, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    writer.write(head + b"\r\n")
    await writer.drain()
    writer.write(body)
    writer.write_eof()
    await reader.read()
    writer.close()
    await server.stop()
    assert server.metrics.outcomes().get("failed") is None
    assert [one for one in caplog.records if one.name == "aivailable.api"] == []
