"""What becomes of an answer's parts, whole and streamed, as OpenAI's own client reads them."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from fixtures.api_service import MODEL, USER, FakeService, Step, answer

from aivailable.errors import RequestError
from aivailable.peer.api.openai import answers, endpoints
from aivailable.peer.api.server import ApiServer
from aivailable.wire.generation import (
    Alternative,
    CallDelta,
    Finished,
    Started,
    TokenLogprob,
    Tokens,
)

HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture
async def sdk(server: ApiServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=USER, max_retries=0
    ) as client:
        yield client


def calling() -> list[Step]:
    """Thinks, then calls two functions; the last piece was held back until the end."""
    return [
        Started("", 9, 4),
        Tokens("", (1, 2), "", reasoning="Let me "),
        Tokens("", (3,), "", reasoning="see."),
        Tokens("", (4,), "", calls=(CallDelta(0, "call_a", "f", '{"x":'),)),
        Tokens("", (5,), "", calls=(CallDelta(0, arguments="1}"), CallDelta(1, "call_b", "f"))),
        Finished("", "tool_calls", "", 9, 6, 4, calls=(CallDelta(1, arguments="{}"),)),
    ]


async def test_tool_calls_and_reasoning_whole(
    sdk: openai.AsyncOpenAI, service: FakeService
) -> None:
    service.inference.script = calling()
    whole = await sdk.chat.completions.create(
        model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="required"
    )
    message = whole.choices[0].message
    assert message.content is None
    assert message.model_extra == {"reasoning_content": "Let me see."}
    assert whole.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    calls = [json.loads(one.model_dump_json()) for one in message.tool_calls]
    assert calls == [
        {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "call_b", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]
    assert service.inference.asked[0][0].tool_choice == "required"


async def test_tool_calls_streamed_are_put_together_by_the_client(
    sdk: openai.AsyncOpenAI, service: FakeService
) -> None:
    service.inference.script = calling()
    async with sdk.chat.completions.stream(model=MODEL, messages=HELLO, tools=TOOLS) as stream:
        chunks = [event.chunk async for event in stream if event.type == "chunk"]
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [(one.id, one.function.name, one.function.arguments) for one in calls] == [
        ("call_a", "f", '{"x":1}'),
        ("call_b", "f", "{}"),
    ]
    assert final.choices[0].finish_reason == "tool_calls"
    deltas = [one.choices[0].delta.model_extra or {} for one in chunks]
    thoughts = [one["reasoning_content"] for one in deltas if "reasoning_content" in one]
    assert thoughts == ["Let me ", "see."]


async def test_reasoning_that_is_not_wanted_is_left_out(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.inference.script = calling()
    body = {"model": MODEL, "messages": HELLO, "include_reasoning": False}
    for stream in (False, True):
        async with http.post("/v1/chat/completions", json={**body, "stream": stream}) as response:
            assert "reasoning" not in await response.text()


def probable(*tokens: tuple[int, bytes, float]) -> TokenLogprob:
    every = [Alternative(token, logprob, piece) for token, piece, logprob in tokens]
    return TokenLogprob(every[0], tuple(every))


def with_logprobs() -> list[Step]:
    """A euro sign in two tokens, then a token that could not have come."""
    euro = "€".encode()
    return [
        Started("", 1),
        Tokens("", (1,), "", logprobs=(probable((1, euro[:2], -0.5), (9, b"x", -1.5)),)),
        Tokens(
            "",
            (2, 3),
            "€!",
            logprobs=(probable((2, euro[2:], -0.25)), probable((3, b"!", -math.inf))),
        ),
        Finished("", "stop", "", 1, 3),
    ]


async def test_logprobs_of_a_chat_whole_and_streamed(
    sdk: openai.AsyncOpenAI, service: FakeService
) -> None:
    service.inference.script = with_logprobs()
    asked: Any = {"model": MODEL, "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    whole = await sdk.chat.completions.create(**asked)
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert [(one.token, one.logprob) for one in content] == [
        ("�", -0.5),
        ("�", -0.25),
        ("!", -9999.0),
    ]
    assert bytes(content[0].bytes or []) + bytes(content[1].bytes or []) == "€".encode()
    assert [one.token for one in content[0].top_logprobs] == ["�", "x"]
    streamed: list[Any] = []
    async for chunk in await sdk.chat.completions.create(**asked, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed.extend(logprobs.content or [] if logprobs else [])
    assert streamed == content
    assert service.inference.asked[0][0].logprobs == 2


async def test_log_probabilities_have_a_limit_where_they_are_not_streamed(
    sdk: openai.AsyncOpenAI, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LOGPROBS_MAX_BYTES", 10)
    service.inference.script = with_logprobs()
    asked: Any = {"model": MODEL, "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    with pytest.raises(openai.BadRequestError, match="'stream': true"):
        await sdk.chat.completions.create(**asked)
    with pytest.raises(openai.BadRequestError, match="'stream': true"):
        await sdk.completions.create(model=MODEL, prompt="x", logprobs=2)
    del asked["logprobs"], asked["top_logprobs"]
    await sdk.chat.completions.create(**asked)


async def test_logprobs_of_a_completion_whole_and_streamed(
    sdk: openai.AsyncOpenAI, service: FakeService
) -> None:
    service.inference.script = with_logprobs()
    whole = await sdk.completions.create(model=MODEL, prompt="x", logprobs=2)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["bytes:\\xe2\\x82", "bytes:\\xac", "!"]
    assert logprobs.token_logprobs == [-0.5, -0.25, -9999.0]
    assert logprobs.text_offset == [0, 0, 1]
    assert logprobs.top_logprobs == [
        {"bytes:\\xe2\\x82": -0.5, "x": -1.5},
        {"bytes:\\xac": -0.25},
        {"!": -9999.0},
    ]
    offsets: list[int] = []
    stream = await sdk.completions.create(model=MODEL, prompt="x", logprobs=2, stream=True)
    async for chunk in stream:
        found = chunk.choices[0].logprobs
        offsets.extend(found.text_offset or [] if found else [])
    assert offsets == [0, 0, 1]


async def test_n_choices_share_one_stream_and_one_record(
    sdk: openai.AsyncOpenAI, server: ApiServer, service: FakeService
) -> None:
    first = asyncio.Event()
    second = answer("b", "B")
    # The first choice goes on only when the second has begun: they run side by side.
    service.inference.scripts = [[*answer("a", "A")[:2], first, *answer("a", "A")[2:]], second]
    stream = await sdk.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        n=2,
        seed=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, ends = {0: "", 1: ""}, {}
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason is not None:
                ends[choice.index] = choice.finish_reason
            if choice.index == 1:
                first.set()
    assert texts == {0: "aA", 1: "bB"}
    assert ends == {0: "stop", 1: "stop"}
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 4, 11)
    asked = [request for request, _ in service.inference.asked]
    assert [one.sampling.seed for one in asked] == [40, 41]
    assert [one.request_id[-2:] for one in asked] == [".0", ".1"]
    await server.stop()
    assert server.metrics.outcomes() == {"done": 1}


async def test_several_prompts_are_several_choices_and_each_prompt_counts_once(
    sdk: openai.AsyncOpenAI, service: FakeService
) -> None:
    service.inference.scripts = [answer(text) for text in "abcd"]
    whole = await sdk.completions.create(model=MODEL, prompt=["x", "y"], n=2, echo=True)
    assert [(one.index, one.text) for one in whole.choices] == [
        (0, "xa"),
        (1, "xb"),
        (2, "yc"),
        (3, "yd"),
    ]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (14, 4)
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 6


async def test_an_echo_is_the_first_chunk(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.completions.create(model=MODEL, prompt="x", echo=True, stream=True)
    assert [chunk.choices[0].text async for chunk in stream] == ["x", "Hel", "lo", ""]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_choice_that_fails_ends_the_others(
    http: aiohttp.ClientSession, server: ApiServer, service: FakeService, stream: bool
) -> None:
    never = asyncio.Event()
    service.inference.scripts = [
        [Started("", 1), Tokens("", (1,), "x"), never],
        [Started("", 1), RequestError(502, "worker_lost", "gone")],
    ]
    body = {"model": MODEL, "messages": HELLO, "n": 2, "stream": stream}
    async with http.post("/v1/chat/completions", json=body) as response:
        text = await response.text()
    assert "worker_lost" in text
    assert "[DONE]" not in text
    await server.stop()
    assert service.inference.running == 0
    assert server.metrics.outcomes() == {"failed": 1}


async def test_a_client_that_leaves_ends_every_choice(
    http: aiohttp.ClientSession, server: ApiServer, service: FakeService
) -> None:
    service.inference.script = [Started("", 1), asyncio.Event()]
    body = {"model": MODEL, "messages": HELLO, "n": 3}

    async def ask() -> None:
        async with http.post("/v1/chat/completions", json=body):
            pass

    asking = asyncio.create_task(ask())
    await service.inference.blocked.wait()
    asking.cancel()
    await service.inference.closed.wait()
    await server.stop()
    assert len(service.inference.asked) == 3
    assert service.inference.running == 0
    assert server.metrics.outcomes() == {"cancelled": 1}


async def test_what_was_ignored_is_named_in_the_answer_and_once_in_the_log(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": MODEL, "messages": HELLO, "user": "me", "new_thing": 1, "bad\nname": 2}
    with caplog.at_level("INFO", "aivailable.api"):
        for stream in (False, True):
            async with http.post(
                "/v1/chat/completions", json={**body, "stream": stream}
            ) as response:
                assert response.status == 200
                assert response.headers["X-AIvailable-Ignored"] == "user, new_thing"
    said = [one.getMessage() for one in caplog.records if one.name == "aivailable.api"]
    assert [line.split("'")[1] for line in said] == ["user", "new_thing"]


async def test_too_many_choices_at_once_are_told_to_come_later(
    serve: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "GENERATIONS_MAX", 3)
    server = await serve()
    body = {"model": MODEL, "messages": HELLO}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http:
        for n, status in ((4, 503), (3, 200), (3, 200)):
            async with http.post("/v1/chat/completions", json={**body, "n": n}) as response:
                assert response.status == status
    assert len(service.inference.asked) == 6
