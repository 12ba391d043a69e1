"""What a request's JSON may not say: a table of refusals, each by the parameter's name."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fixtures.openai_asks import NAMED, TOOL, chat, completion, one
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai.requests import chat_request, completion_request
from aivailable.peer.api.parameters import RequestParameters

PNG_URL = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n rest").decode()


def image(url: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [part]}]}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return {"type": "json_schema", "json_schema": {"schema": schema}}


FORMAT = "response_format"
IMAGE_URL = "messages[0].content[0].image_url.url"


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
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (image("https://example.org/a.png"), IMAGE_URL, "unsupported_value"),
        (image("data:,x"), IMAGE_URL, "invalid_value"),
        (image("data:image/png;base64,?"), IMAGE_URL, "invalid_value"),
        (image("data:image/gif;base64,R0lGODlh"), IMAGE_URL, "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
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
        ({"stop": ["x"] * 10_000}, "stop", "invalid_value"),
        ({"n_predict": 0}, "n_predict", "invalid_value"),
        ({"n_predict": -2}, "n_predict", "invalid_value"),
        ({"typical_p": 1.5}, "typical_p", "invalid_value"),
        ({"typical": 0.5, "typical_p": 0.6}, "typical", "invalid_value"),
        ({"mirostat": 3}, "mirostat", "invalid_value"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers", "invalid_value"),
        ({"dry_sequence_breakers": ["x"] * 17}, "dry_sequence_breakers", "invalid_value"),
        ({"logit_bias": {"hello": 5}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"2147483648": 5}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"logit_bias": [["x", 1]]}, "logit_bias", "invalid_value"),
        ({"logit_bias": [[1]]}, "logit_bias[0]", "invalid_type"),
        ({"logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias", "invalid_value"),
        ({"logprobs": 0}, "logprobs", "invalid_type"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_parameter"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "unsupported_value"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [TOOL] * 129}, "tools", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
            "invalid_type",
        ),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "any"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "unsupported_value"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]},
            "tool_choice.function.name",
            "invalid_value",
        ),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_value"),
        ({"function_call": {"name": "f"}}, "function_call", "unsupported_value"),
        ({FORMAT: {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({FORMAT: {}}, "response_format.type", "missing_parameter"),
        (
            {FORMAT: {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_parameter",
        ),
        ({FORMAT: nested(70)}, "response_format.json_schema.schema", "invalid_value"),
        ({"json_schema": {"x": "y" * 65536}}, "json_schema", "invalid_value"),
        ({"json_schema": {"maximum": 2**64}}, "json_schema", "invalid_value"),
        ({"guided_json": "{"}, "guided_json", "invalid_value"),
        ({"guided_json": '{"a":"\\ud800"}'}, "guided_json", "invalid_value"),
        ({"grammar": 'root ::= "x"', FORMAT: NAMED}, "grammar", "invalid_value"),
        ({"grammar": "x" * 65537}, "grammar", "invalid_value"),
        (
            {"chat_template_kwargs": {"messages": 1}},
            "chat_template_kwargs.messages",
            "invalid_value",
        ),
        ({"chat_template_kwargs": {"x": 2**70}}, "chat_template_kwargs", "invalid_value"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort", "invalid_value"),
        ({"reasoning_format": "x"}, "reasoning_format", "invalid_value"),
        ({"continue_final_message": True}, "continue_final_message", "unsupported_value"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "unsupported_value"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_value"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_value"),
        ({"stop_token_ids": [1]}, "stop_token_ids", "unsupported_value"),
        ({"options": {"temperature": 1}}, "options", "unsupported_value"),
    ],
)
def test_a_refusal_names_the_parameter(given: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ParameterError) as caught:
        chat(**given)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [], "logprobs": False, "response_format": {"type": "text"}},
        {"tool_choice": "auto", "modalities": ["text"], "logit_bias": {}, "top_logprobs": 0},
        {"functions": [], "function_call": "none", "min_tokens": 0, "options": {}},
        {"reasoning_format": "auto", "length_penalty": 1, "stop_token_ids": []},
    ],
)
def test_harmless_forms_of_the_unsupported_are_accepted(given: dict[str, Any]) -> None:
    asked = chat(**given)
    assert one(asked).tools is None
    assert asked.ignored == ()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 16}, "prompt"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [TOOL]}, "tools"),
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
     "response_format", "temperature", "max_tokens", "tool_choice", "logit_bias", "logprobs",
     "chat_template_kwargs", "json_schema", "guided_json", "functions", "options"]
)  # fmt: skip


@settings(deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_json_is_accepted_or_refused_by_name(body: dict[str, Any]) -> None:
    for parse in (chat_request, completion_request):
        try:
            parse(RequestParameters({"model": "m", **body}), "req_1")
        except ParameterError as error:
            named = error.param
        else:
            named = "none"
        assert named
