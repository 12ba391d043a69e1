"""What a request's JSON may say: a table of refusals, and what an accepted one becomes."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai.requests import Asked, chat_request, completion_request
from aivailable.peer.api.parameters import Parameters
from aivailable.wire.generation import Constraint, Generate, Sampling

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**given: Any) -> Asked:
    return chat_request(Parameters({"model": "m", "messages": HELLO, **given}), "req_1")


def completion(**given: Any) -> Asked:
    return completion_request(Parameters({"model": "m", "prompt": "x", **given}), "req_1")


def one(asked: Asked) -> Generate:
    """The only generation of a request for one choice."""
    (generate,) = asked.generates
    return generate


def test_what_is_not_given_is_openais_default_or_ours() -> None:
    asked = chat(temperature=None, n=1)
    generate = one(asked)
    assert generate.sampling == Sampling(temperature=1.0, top_p=1.0)
    assert (asked.stream, asked.include_usage) == (False, False)
    assert (generate.max_tokens, generate.logprobs, generate.constraint) == (None, None, None)
    assert (generate.tools, generate.tool_choice) == (None, "auto")
    assert generate.parallel_tool_calls
    assert generate.messages == ({"role": "user", "content": "Hello"},)
    assert asked.ignored == ()


def test_what_has_no_effect_is_named_and_what_has_one_is_not() -> None:
    asked = chat(unheard_of={"a": 1}, user="me", store=None, metadata={}, seed=1, n_probs=0)
    assert asked.ignored == ("unheard_of", "user", "metadata")


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
    generate = one(asked)
    assert (asked.stream, asked.include_usage) == (True, True)
    assert generate.max_tokens == 5
    assert generate.stop == ("a", "b")
    assert generate.ignore_eos
    assert generate.sampling == Sampling(0.0, 0, 0.5, 0.1, 1.1, 1.0, -1.0, -7)


def test_every_sampler_arrives_under_its_name() -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "repeat_last_n": -1,
        "typical_p": 0.9,
        "top_n_sigma": 1.5,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 512,
        "dry_sequence_breakers": ["x"],
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "mirostat": 2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
    }
    asked = chat(**given)
    assert one(asked).sampling == Sampling(**{**given, "dry_sequence_breakers": ("x",)})
    assert asked.ignored == ()


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"typical": 0.5}, "typical_p", 0.5),
        ({"nsigma": 2}, "top_n_sigma", 2.0),
        ({"mirostat_mode": 1}, "mirostat", 1),
        ({"repeat_penalty": 1.2, "repetition_penalty": 1.2}, "repeat_penalty", 1.2),
        ({"logit_bias": {"17": -100, "005": 1.5}}, "logit_bias", {"17": -100.0, "5": 1.5}),
        ({"logit_bias": [[17, 2], [18, False]]}, "logit_bias", {"17": 2.0, "18": -1e9}),
    ],
)
def test_other_names_of_the_samplers(given: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(one(chat(**given)).sampling, field) == value


def test_llamas_names_of_the_limit() -> None:
    assert one(chat(n_predict=7)).max_tokens == 7
    assert one(chat(num_predict=-1)).max_tokens is None
    assert one(completion(n_predict=-1)).max_tokens is None
    assert one(chat(n_predict=7, max_tokens=3)).max_tokens == 3


def test_n_choices_have_ids_and_seeds_of_their_own() -> None:
    asked = completion(prompt=["a", [7]], n=2, best_of=2, seed=2**63 - 1)
    assert asked.per_prompt == 2
    assert [(g.request_id, g.prompt, g.prompt_ids) for g in asked.generates] == [
        ("req_1.0", "a", None),
        ("req_1.1", "a", None),
        ("req_1.2", None, (7,)),
        ("req_1.3", None, (7,)),
    ]
    seeds = [g.sampling.seed for g in asked.generates]
    assert seeds == [2**63 - 1, -(2**63 - 1), 2**63 - 1, -(2**63 - 1)]
    assert [g.sampling.seed for g in chat(n=3, seed=5).generates] == [5, 6, 7]
    assert {g.sampling.seed for g in chat(n=3).generates} == {None}


SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "null"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"b":{"type":"string"},"a":{"type":"null"}}}'
NAMED = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"response_format": {"type": "text"}, "grammar": ""}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
        ({"response_format": NAMED}, Constraint("json_schema", SCHEMA_TEXT)),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            Constraint("json_schema", SCHEMA_TEXT),
        ),
        ({"json_schema": SCHEMA}, Constraint("json_schema", SCHEMA_TEXT)),
        ({"guided_json": SCHEMA_TEXT}, Constraint("json_schema", SCHEMA_TEXT)),
        ({"grammar": 'root ::= "x"'}, Constraint("gbnf", 'root ::= "x"')),
    ],
)
def test_what_the_answer_must_match(given: dict[str, Any], wanted: Constraint | None) -> None:
    assert one(chat(**given)).constraint == wanted
    assert one(completion(**given)).constraint == wanted


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "f"}}, "function:f"),
    ],
)
def test_tools_and_their_choice(choice: Any, wanted: str) -> None:
    extra = {"type": "function", "function": {"name": "g", "strict": True}, "unheard_of": 1}
    generate = one(chat(tools=[TOOL, extra], tool_choice=choice, parallel_tool_calls=False))
    assert generate.tools == (
        TOOL,
        {"type": "function", "function": {"name": "g", "strict": True}},
    )
    assert (generate.tool_choice, generate.parallel_tool_calls) == (wanted, False)


def test_arguments_of_the_template() -> None:
    asked = chat(
        reasoning_effort="none",
        chat_template_kwargs={"enable_thinking": True, "x": [1]},
        include_reasoning=False,
    )
    assert one(asked).template_arguments == {
        "reasoning_effort": "none",
        "enable_thinking": True,
        "x": [1],
    }
    assert not asked.reasoning
    assert one(chat(reasoning_effort="none")).template_arguments["enable_thinking"] is False
    assert one(chat(reasoning_format="none")).template_arguments == {"reasoning_format": "none"}
    assert one(chat(think=True)).template_arguments == {"enable_thinking": True}


def test_an_answer_that_the_client_began_is_continued() -> None:
    asked = chat(
        messages=[*HELLO, {"role": "assistant", "content": "Hi"}],
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert asked.ignored == ()


def test_tools_and_a_format_of_the_answer_go_together() -> None:
    generate = one(chat(tools=[TOOL], response_format={"type": "json_object"}))
    assert (generate.tools, generate.constraint) == ((TOOL,), Constraint("json_object"))


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (chat(logprobs=True), 0),
        (chat(logprobs=True, top_logprobs=20), 20),
        (chat(logprobs=False, top_logprobs=0), None),
        (chat(n_probs=3), 3),
        (completion(logprobs=0), 0),
        (completion(logprobs=5), 5),
        (completion(logprobs=False), None),
    ],
)
def test_logprobs_in_both_shapes(asked: Asked, wanted: int | None) -> None:
    assert one(asked).logprobs == wanted


PNG = b"\x89PNG\r\n\x1a\n rest"
PNG_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_an_image_stays_a_part_beside_the_text() -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": PNG_URL, "detail": "low"}},
    ]
    messages = one(chat(messages=[{"role": "user", "content": parts}])).messages
    assert messages is not None
    assert messages[0]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image", "data": PNG},
    ]


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "developer", "content": parts}, *HELLO])
    messages = one(asked).messages
    assert messages is not None
    assert messages[0] == {"role": "system", "content": "ab"}


def test_a_conversation_with_earlier_tool_calls_is_accepted() -> None:
    called = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked = chat(
        messages=[
            *HELLO,
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [called],
            },
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ]
    )
    messages = one(asked).messages
    assert messages is not None
    assert messages[1] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [called],
    }
    assert messages[2]["tool_call_id"] == "c1"


@pytest.mark.parametrize(
    ("prompt", "text", "ids"),
    [("x", "x", None), (["x"], "x", None), ([1, 2], None, (1, 2)), ([[3]], None, (3,))],
)
def test_a_prompt_is_text_or_tokens(
    prompt: Any, text: str | None, ids: tuple[int, ...] | None
) -> None:
    generate = one(completion(prompt=prompt))
    assert (generate.prompt, generate.prompt_ids) == (text, ids)
    assert generate.max_tokens == 16


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
            parse(Parameters({"model": "m", **body}), "req_1")
        except ParameterError as error:
            named = error.param
        else:
            named = "none"
        assert named
