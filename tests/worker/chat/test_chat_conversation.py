"""From a request to a prompt: what templates cannot show is told them in another way."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="aivailable[engine] is not installed")

from fixtures.chat_reading import TOOLS, USER, Read, prepare, prompt_of, read, read_answer
from fixtures.chat_templates import CHATML, FAMILIES, QWEN3, QWQ, TYPED
from fixtures.models import smollm2_path

from aivailable.errors import RequestError
from aivailable.gguf import read_header

SYSTEM = {"role": "system", "content": "Be brief."}


def called(*arguments: str, content: str | None = None) -> dict[str, Any]:
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": "add", "arguments": each}}
        for number, each in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def result(number: int, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": content}


HISTORY = (SYSTEM, USER, called('{"a":1, "b":2}'), result(0, "3"))
# How each family shows a past call and its result, from the assistant's turn on.
SHOWN = {
    "hermes": '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n'
    "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n",
    "qwen-coder": "<|im_start|>assistant\n<tool_call>\n<function=add>\n<parameter=a>\n1\n"
    "</parameter>\n<parameter=b>\n2\n</parameter>\n</function>\n</tool_call><|im_end|>"
    "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n",
    "llama3": '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "add", "parameters": '
    '{"a": 1, "b": 2}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n3<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": '[TOOL_CALLS]add[ARGS]{"a":1, "b":2}</s>[TOOL_RESULTS]c557a85a0[TOOL_CONTENT]3'
    "[/TOOL_RESULTS]",
    "deepseek-v3.1": "<｜Assistant｜></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add"
    '<｜tool▁sep｜>{"a":1, "b":2}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
    "<｜tool▁output▁begin｜>3<｜tool▁output▁end｜><｜Assistant｜></think>",
    "phi-4-mini": '<|assistant|><|tool_call|>[{"name": "add", "arguments": {"a":1, "b":2}}]'
    '<|/tool_call|><|end|><|user|>{"tool_response": {"name": "add", "content": "3"}}<|end|>'
    "<|assistant|>",
    "granite": '<|start_of_role|>assistant<|end_of_role|><|tool_call|>[{"name": "add", "arguments"'
    ': {"a": 1, "b": 2}}]<|end_of_text|>\n<|start_of_role|>tool<|end_of_role|>3<|end_of_text|>\n'
    "<|start_of_role|>assistant<|end_of_role|>",
    "harmony": '<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"a": 1, '
    '"b": 2}<|call|><|start|>functions.add to=assistant<|channel|>commentary<|message|>"3"<|end|>'
    "<|start|>assistant",
    "generic": '<start_of_turn>model\n{"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2'
    '}}]}<end_of_turn>\n<start_of_turn>user\n{"tool_response": {"name": "add", "content": "3"}}'
    "<end_of_turn>\n<start_of_turn>model\n",
}


@pytest.mark.parametrize("name", SHOWN)
def test_past_calls_and_results_are_shown(name: str) -> None:
    prompt = prompt_of(FAMILIES[name], messages=HISTORY)
    assert prompt[-len(SHOWN[name]) :] == SHOWN[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_told_the_tools(name: str) -> None:
    prompt = prompt_of(FAMILIES[name], messages=(SYSTEM, USER))
    assert "get_weather" in prompt
    assert "Be brief." in prompt
    assert "get_weather" not in prompt_of(FAMILIES[name], tool_choice="none")


def test_a_template_without_tools_is_told_in_its_own_markers() -> None:
    assert "function_name<｜tool▁sep｜>{" in prompt_of(FAMILIES["deepseek-v3.1"])


def test_several_calls_where_one_is_possible() -> None:
    """Llama's template refuses more than one call in a message, gpt-oss' drops the others."""
    messages = (USER, called('{"a":1}', '{"a":2}'), result(1, "two"), result(0, "one"))
    for name in ("llama3", "harmony"):
        prompt = prompt_of(FAMILIES[name], messages=messages)
        places = [prompt.index(text) for text in ('{"a": 1}', "one", '{"a": 2}', "two")]
        assert places == sorted(places)


def test_mistral_gets_ids_of_nine_characters() -> None:
    messages = (USER, called("{}"), result(0, "x"), USER)
    prompt = prompt_of(FAMILIES["mistral-list"], messages=messages)
    first, second = prompt.split('id": "')[1:]
    assert first[:9] == second[:9]


def test_arguments_that_are_no_object_where_the_template_needs_one() -> None:
    messages = (USER, called("not json"), result(0, "x"))
    with pytest.raises(RequestError, match="not a JSON object"):
        prepare(FAMILIES["hermes"], messages=messages)
    assert "not json" in prompt_of(QWEN3, messages=messages)


def test_the_models_own_tool_template() -> None:
    more = {"tool_source": QWEN3}
    assert "<tools>" in prompt_of(CHATML, **more)
    assert "<tools>" not in prompt_of(CHATML, tools=None, **more)


def test_content_in_parts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}
    assert prompt_of(CHATML, messages=(parts,), tools=None).startswith("<|im_start|>user\nab<|im")
    assert prompt_of(TYPED, messages=(parts,), tools=None) == "user: ab\nassistant: "


def test_a_developer_is_the_system() -> None:
    messages = ({"role": "developer", "content": "Be brief."}, USER)
    assert prompt_of(CHATML, messages=messages, tools=None).startswith("<|im_start|>system\nBe br")


def test_a_begun_answer_is_continued() -> None:
    messages = (USER, {"role": "assistant", "content": "Once <upon"})
    more: dict[str, Any] = {"messages": messages, "tools": None}
    assert prompt_of(CHATML, **more).endswith("<|im_start|>assistant\nOnce <upon")
    assert prompt_of(QWQ, **more).endswith("assistant\n<think>\n</think>\n\nOnce <upon")
    assert prompt_of(FAMILIES["harmony"], **more).endswith("<|channel|>final<|message|>Once <upon")
    for source in (CHATML, QWQ, FAMILIES["harmony"]):
        assert read_answer(source, " a <think> time", **more) == Read(" a <think> time")


def test_thinking_switched_off_by_the_request() -> None:
    more: dict[str, Any] = {"template_arguments": {"enable_thinking": False}, "tools": None}
    assert prompt_of(QWEN3, **more).endswith("<think>\n\n</think>\n\n")
    assert read_answer(QWEN3, "Yes", **more) == Read("Yes")
    more = {"template_arguments": {"enable_thinking": True}, "tools": None}
    assert prompt_of(FAMILIES["deepseek-v3.1"], **more).endswith("<｜Assistant｜><think>")
    assert read_answer(FAMILIES["deepseek-v3.1"], "Hm</think>Yes", **more) == Read("Yes", "Hm")


def test_a_continuation_keeps_its_prompt_and_is_read_alike() -> None:
    prepared = prepare(QWQ, prompt_ids=(7, 8), generated_ids=(9,))
    assert prepared.prompt == (7, 8)
    assert read(prepared.parser(), ["Hm.</think>Yes"]) == Read("Yes", "Hm.")


def test_a_real_template() -> None:
    source = read_header(smollm2_path()).chat_template
    assert source is not None
    prompt = prompt_of(source, messages=HISTORY)
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\nYou can call these functions:\n\n")
    assert prompt.endswith(
        '<|im_start|>assistant\n{"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}'
        '<|im_end|>\n<|im_start|>user\n{"tool_response": {"name": "add", "content": "3"}}'
        "<|im_end|>\n<|im_start|>assistant\n"
    )


BAD: dict[str, dict[str, Any]] = {
    "no messages": {"messages": ()},
    "no role": {"messages": ({},)},
    "role": {"messages": ({"role": 7, "content": "x"},)},
    "content": {"messages": ({"role": "user", "content": 7},)},
    "image": {"messages": ({"role": "user", "content": [{"type": "image_url", "text": ""}]},)},
    "calls": {"messages": (USER, {"role": "assistant", "tool_calls": "x"})},
    "call": {"messages": (USER, {"role": "assistant", "tool_calls": [{"function": {}}]})},
    "arguments": {
        "messages": (
            USER,
            {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": 7}}]},
        )
    },
    "choice": {"tool_choice": "perhaps"},
    "nobody": {"tool_choice": "function:nobody"},
    "required without": {"tool_choice": "required", "tools": None},
    "tool": {"tools": ({"type": "function"},)},
    "name": {"tools": ({"type": "function", "function": {"name": "a b"}},)},
    "twice": {"tools": (TOOLS[0], TOOLS[0])},
    "many": {"tools": (TOOLS[0],) * 200},
    "parameters": {"tools": ({"function": {"name": "a", "parameters": 7}},)},
    "argument": {"template_arguments": {"messages": 1}},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        prepare(CHATML, **BAD[name])
    assert (caught.value.code, caught.value.status) == ("invalid_request", 400)


def test_definitions_are_passed_on_whole() -> None:
    function = {"name": "f", "strict": True}
    prompt = prompt_of(QWEN3, tools=({"type": "function", "function": function},))
    line = prompt.split("<tools>\n")[1].split("\n")[0]
    assert json.loads(line)["function"]["strict"] is True
