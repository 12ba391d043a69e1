"""What an accepted request's JSON becomes; test_openai_refusals has what is not accepted."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fixtures.openai_asks import HELLO, NAMED, SCHEMA, TOOL, chat, completion, one

from aivailable.peer.api.openai.requests import Asked
from aivailable.wire.generation import Constraint, Sampling


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


SCHEMA_TEXT = '{"type":"object","properties":{"b":{"type":"string"},"a":{"type":"null"}}}'


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


def test_a_refusal_sent_back_as_history_is_text() -> None:
    parts = [{"type": "refusal", "refusal": "I will not."}]
    messages = one(chat(messages=[*HELLO, {"role": "assistant", "content": parts}])).messages
    assert messages is not None
    assert messages[-1] == {"role": "assistant", "content": "I will not."}


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
