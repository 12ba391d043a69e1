"""What a request's JSON may say: a table of refusals, and what an accepted one becomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai_requests import Asked, chat_request, completion_request
from aivailable.peer.api.parameters import Parameters
from aivailable.wire.generation import Sampling

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**given: Any) -> Asked:
    return chat_request(Parameters({"model": "m", "messages": HELLO, **given}), "req_1")


def completion(**given: Any) -> Asked:
    return completion_request(Parameters({"model": "m", "prompt": "x", **given}), "req_1")


def test_what_is_not_given_is_openais_default_or_ours() -> None:
    asked = chat(temperature=None, unheard_of={"a": 1}, user="me", n=1)
    assert asked.generate.sampling == Sampling(temperature=1.0, top_p=1.0)
    assert (asked.stream, asked.include_usage) == (False, False)
    assert asked.generate.max_tokens is None
    assert asked.generate.messages == ({"role": "user", "content": "Hello"},)


def test_everything_given_arrives() -> None:
    asked = chat(
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=3,
        max_completion_tokens=5.0,
        stop=["a", "b"],
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        seed=-7,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        ignore_eos=True,
    )
    assert (asked.stream, asked.include_usage) == (True, True)
    assert asked.generate.max_tokens == 5
    assert asked.generate.stop == ("a", "b")
    assert asked.generate.ignore_eos
    assert asked.generate.sampling == Sampling(0.0, 0, 0.5, 0.1, 1.1, 1.0, -1.0, -7)


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "developer", "content": parts}, *HELLO])
    assert asked.generate.messages is not None
    assert asked.generate.messages[0] == {"role": "system", "content": "ab"}


def test_a_conversation_with_earlier_tool_calls_is_accepted() -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = chat(
        messages=[
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ]
    )
    assert asked.generate.messages is not None
    assert asked.generate.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [called],
    }
    assert asked.generate.messages[2]["tool_call_id"] == "c1"


@pytest.mark.parametrize(
    ("prompt", "text", "ids"),
    [("x", "x", None), (["x"], "x", None), ([1, 2], None, (1, 2)), ([[3]], None, (3,))],
)
def test_a_prompt_is_text_or_tokens(
    prompt: Any, text: str | None, ids: tuple[int, ...] | None
) -> None:
    asked = completion(prompt=prompt)
    assert (asked.generate.prompt, asked.generate.prompt_ids) == (text, ids)
    assert asked.generate.max_tokens == 16


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"model": None}, "model", "missing_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"model": "a b"}, "model", "invalid_value"),
        ({"model": "m" * 129}, "model", "invalid_value"),
        ({"messages": None}, "messages", "missing_parameter"),
        ({"messages": []}, "messages", "missing_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_parameter"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_parameter"),
        (
            {"messages": [{"role": "user", "content": 1}]},
            "messages[0].content",
            "invalid_type",
        ),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        ({"n": 2}, "n", "unsupported_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 10**400}, "temperature", "invalid_value"),
        ({"temperature": float("inf")}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": 1}, "stop", "invalid_type"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stop": ["x" * 257]}, "stop[0]", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": 1}, "stream_options", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_value"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "unsupported_value"),
        ({"logprobs": True}, "logprobs", "unsupported_value"),
        ({"logprobs": 0}, "logprobs", "unsupported_value"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_value"),
    ],
)
def test_a_refusal_names_the_parameter(given: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ParameterError) as caught:
        chat(**given)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)
    if code == "unsupported_value":
        assert "not supported in this version" in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [], "logprobs": False, "response_format": {"type": "text"}},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tool_choice": "auto", "modalities": ["text"], "logit_bias": {}, "top_logprobs": 0},
    ],
)
def test_harmless_forms_of_the_unsupported_are_accepted(given: dict[str, Any]) -> None:
    assert chat(**given).generate.tools is None


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": {}}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_a_completion_refusal_names_the_parameter(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ParameterError) as caught:
        completion(**given)
    assert caught.value.param == param


# Sampled, not generated: the first st.text() of a process loads tables for a second.
TEXT = st.sampled_from(["", "user", "text", "none", "a\x00", "ä€😀"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["messages", "prompt", "stop", "n", "seed", "top_k", "stream_options", "tools",
     "response_format", "temperature", "max_tokens"]
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_json_is_accepted_or_refused_by_name(body: dict[str, Any]) -> None:
    for parse in (chat_request, completion_request):
        try:
            parse(Parameters({"model": "m", **body}), "req_1")
        except ParameterError as error:
            named = error.param
        else:
            named = "none"
        assert named
