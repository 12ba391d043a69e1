"""Schemas, tools, grammars and refusals through the real API, by OpenAI's client, real model."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError
from system.real_cluster import CONTEXT_TOKENS, MODEL, pieces_of, real_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "born": {"type": "string", "format": "date"},
        "address": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["city", "zip"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "maxItems": 2},
    },
    "required": ["name", "born", "address", "tags"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
ZONE = {
    "type": "object",
    "properties": {"zone": {"type": "string", "maxLength": 8}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"get_weather": WEATHER, "get_time": ZONE}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "get_time"}}
# A gray pixel.
PNG = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cch\0\0\0\x82\0\x81w\xcdr\xb6\0\0\0\0IEND\xaeB`\x82"
).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncOpenAI]:
    """Asks a peer that does not host the model."""
    async with real_cluster(tmp_path_factory.mktemp("real"), replicas=1) as cluster:
        _, ingress = await cluster.roles()
        async with cluster.client(ingress) as client:
            yield client


def asked(content: Any, **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0.0,
        "max_tokens": 300,
        **more,
    }


def schema_format(schema: Any) -> dict[str, Any]:
    named = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}


def check(text: str, schema: Any) -> None:
    jsonschema.validate(
        json.loads(text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


async def test_a_schema_binds_the_answer_whole_and_streamed(client: AsyncOpenAI) -> None:
    request = asked("Describe Ada Lovelace as JSON.", response_format=schema_format(PERSON))
    whole = await client.chat.completions.create(**request, logprobs=True, top_logprobs=2)
    (choice,) = whole.choices
    assert choice.finish_reason == "stop"
    text = choice.message.content
    check(text, PERSON)
    told = choice.logprobs.content
    assert b"".join(bytes(one.bytes) for one in told).decode() == text
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in told)
    texts, _ = await pieces_of(await client.chat.completions.create(**request, stream=True))
    assert len(texts) > 3
    assert "".join(texts) == text


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
async def test_a_must_call_is_a_call_with_valid_arguments(client: AsyncOpenAI, choice: Any) -> None:
    request = asked("What is the weather in Paris for 3 days, in celsius?", tools=TOOLS)
    request |= {"tool_choice": choice, "parallel_tool_calls": False}
    whole = await client.chat.completions.create(**request)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert not whole.choices[0].message.content
    (call,) = whole.choices[0].message.tool_calls
    name, arguments = call.function.name, call.function.arguments
    assert choice == "required" or name == "get_time"
    check(arguments, SCHEMAS[name])
    streamed = await _streamed_call(client, request)
    assert streamed == (name, arguments)


async def _streamed_call(client: AsyncOpenAI, request: dict[str, Any]) -> tuple[str, str]:
    """Name and arguments put together as a client does it."""
    name, arguments, reasons = "", "", []
    async for chunk in await client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            reasons += [choice.finish_reason] if choice.finish_reason else []
            assert not choice.delta.content
            for call in choice.delta.tool_calls or ():
                assert call.index == 0
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert reasons == ["tool_calls"]
    return name, arguments


async def test_a_call_and_its_result_are_understood(client: AsyncOpenAI) -> None:
    """What came as a call goes back as history."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_time", "arguments": '{"zone": "CET"}'},
    }
    request = asked("What time is it?", tools=TOOLS, tool_choice="none", max_tokens=4)
    request["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:30"},
    ]
    answer = await client.chat.completions.create(**request)
    assert answer.choices[0].message.tool_calls is None


async def test_two_choices_differ_and_repeat_with_the_seed(client: AsyncOpenAI) -> None:
    request = asked("Invent a name.", n=2, temperature=1.2, seed=7, max_tokens=8)
    first, again = [await client.chat.completions.create(**request) for _ in range(2)]
    texts = [choice.message.content for choice in first.choices]
    assert texts[0] != texts[1]
    assert texts == [choice.message.content for choice in again.choices]


async def test_a_grammar_binds_and_a_ban_holds(client: AsyncOpenAI) -> None:
    yes_or_no = {"grammar": 'root ::= "yes" | "no"'}
    request = asked("Is the sky blue?", extra_body=yes_or_no)
    answer = (await client.chat.completions.create(**request)).choices[0]
    assert answer.message.content in ("yes", "no")
    assert answer.finish_reason == "stop"
    # SmolLM2's ids of the digits are 32 to 41.
    for digit in range(3):
        bans = {str(token): -100 for token in range(32, 42) if token != 32 + digit}
        request = asked("A digit?", extra_body={"grammar": "root ::= [0-9]"}, logit_bias=bans)
        answer = (await client.chat.completions.create(**request)).choices[0]
        assert answer.message.content == str(digit)


async def test_what_cannot_be_done_is_refused_and_disturbs_nobody(client: AsyncOpenAI) -> None:
    request = asked("Tell me a long story.", stream=True, max_tokens=48)
    undisturbed, _ = await pieces_of(await client.chat.completions.create(**request))
    stream = await client.chat.completions.create(**request)
    texts: list[str] = []
    async for chunk in stream:
        texts += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        if len(texts) >= 2:
            break
    bad = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    refused = {
        "properties/a/uniqueItems": asked("x", response_format=schema_format(bad)),
        "grammar": asked("x", extra_body={"grammar": 'root ::= "a'}),
        "image": asked([{"type": "text", "text": "What is it?"}, image]),
        str(CONTEXT_TOKENS): asked("far too long " * CONTEXT_TOKENS),
    }
    said = {}
    for word, wrong in refused.items():
        with pytest.raises(BadRequestError) as caught:
            await client.chat.completions.create(**wrong)
        said[word] = caught.value.message
    rest, _ = await pieces_of(stream)
    for word, message in said.items():
        assert word in message
    assert "tokens" in said[str(CONTEXT_TOKENS)]
    assert any(int(n) > 2 * CONTEXT_TOKENS for n in _numbers(said[str(CONTEXT_TOKENS)]))
    assert rest, "the stream was over before the refusals"
    assert "".join(texts + rest) == "".join(undisturbed)


def _numbers(text: str) -> list[str]:
    return [word for word in "".join(c if c.isdigit() else " " for c in text).split() if word]
