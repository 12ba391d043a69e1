"""Every family's calls: written, read back, cut anywhere, broken anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="aivailable[engine] is not installed")

from fixtures.chat_reading import Read, joined, parsing, prepare, read, read_answer, tool, values
from fixtures.chat_templates import CHATML, FAMILIES, QWEN3, QWQ
from fixtures.models import smollm2_path
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.gguf import read_header
from aivailable.worker.chat.formats import ToolCall, format_of

# Answers as the families' models write them, and what is to be read.
CITY = '{"city": "Zürich"}'
CALLED = Read(calls=(("get_weather", CITY),))
BOTH = Read(calls=(("get_weather", CITY), ("add", '{"a": 1, "b": [2]}')))
ANSWERS = {
    "hermes": (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>',
        BOTH,
    ),
    "qwen-coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        "<parameter=b>\n[2]\n</parameter>\n</function>\n</tool_call>",
        BOTH,
    ),
    "llama3": (
        '{"name": "get_weather", "parameters": {"city": "Zürich"}}; '
        '{"type": "function", "name": "add", "parameters": {"a": 1, "b": [2]}}',
        BOTH,
    ),
    "mistral-list": (
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Zürich"}, "id": "aaaaaaaaa"}'
        ', {"name": "add", "arguments": {"a": 1, "b": [2]}, "id": "bbbbbbbbb"}]',
        BOTH,
    ),
    "mistral": (
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich"}'
        '[TOOL_CALLS]add[CALL_ID]aaaaaaaaa[ARGS]{"a": 1, "b": [2]}',
        BOTH,
    ),
    "deepseek-v3.1": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Zürich"}'
        '<｜tool▁call▁end｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": [2]}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        BOTH,
    ),
    "deepseek-r1": (
        "</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Zürich"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function'
        '<｜tool▁sep｜>add\n```json\n{"a": 1, "b": [2]}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        BOTH,
    ),
    "phi-4-mini": (
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Zürich"}}, '
        '{"name": "add", "arguments": {"a": 1, "b": [2]}}]<|/tool_call|>',
        BOTH,
    ),
    "granite": (
        '<|tool_call|>[{"arguments": {"city": "Zürich"}, "name": "get_weather"}]',
        CALLED,
    ),
    "harmony": (
        "<|channel|>analysis<|message|>I need the weather.<|end|><|start|>assistant<|channel|>"
        "commentary to=functions.get_weather <|constrain|>json<|message|>" + CITY,
        Read(reasoning="I need the weather.", calls=CALLED.calls),
    ),
    "command-r7b": (
        "<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n"
        '{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Zürich"}}\n'
        "]<|END_ACTION|>",
        Read(reasoning="I look.", calls=CALLED.calls),
    ),
    "generic": (
        '{"tool_calls": [{"name": "get_weather", "arguments": {"city": "Zürich"}},\n'
        ' {"name": "add", "arguments": {"a": 1, "b": [2]}}]}',
        BOTH,
    ),
}
MORE_ANSWERS: dict[str, tuple[str, str, Read]] = {
    "content before": (
        FAMILIES["hermes"],
        'Let me see.\n\n<tool_call>{"name": "get_weather", "arguments": {"city": "Zürich"}}'
        "</tool_call>",
        Read("Let me see.", calls=CALLED.calls),
    ),
    "reasoning": (
        QWEN3,
        "<think>\nHm, a < b.\n</think>\n\nHello <b>you</b>\n",
        Read("Hello <b>you</b>\n", "Hm, a < b."),
    ),
    "opened reasoning": (QWQ, "Hm.\n</think>\n\nHello", Read("Hello", "Hm.")),
    "unfinished reasoning": (QWQ, "Hm.\n", Read("", "Hm.")),
    "call inside reasoning": (
        QWQ,
        'Hm.<tool_call>{"name": "get_weather", "arguments": {"city": "Zürich"}}</tool_call>',
        Read("", "Hm.", CALLED.calls),
    ),
    "reasoning of a plain template": (
        CHATML,
        '<think>Hm</think>{"response": "Yo"}',
        Read("Yo", "Hm"),
    ),
    "tag in the middle": (QWEN3, "Say <think> twice.", Read("Say <think> twice.")),
    "arguments as text": (
        FAMILIES["hermes"],
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Zürich\\"}"}</tool_call>',
        CALLED,
    ),
    "no arguments": (
        FAMILIES["hermes"],
        '<tool_call>{"name": "add"}</tool_call><tool_call>{"name": "add", "arguments": null}',
        Read(calls=(("add", "{}"), ("add", "{}"))),
    ),
    "python tag": (
        FAMILIES["llama3"],
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Zürich"}}',
        CALLED,
    ),
    "built-in": (FAMILIES["llama3"], '<|python_tag|>get_weather.call(city="Zürich")', CALLED),
    "unknown function": (
        FAMILIES["llama3"],
        'See {"name": "Bob", "parameters": {}} and {x}',
        Read('See {"name": "Bob", "parameters": {}} and {x}'),
    ),
    "functools": (
        FAMILIES["phi-4-mini"],
        'functools[{"name": "get_weather", "arguments": {"city": "Zürich"}}]',
        CALLED,
    ),
    "old list of a new Mistral": (
        FAMILIES["mistral"],
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Zürich"}}]',
        CALLED,
    ),
    "no outer tag": (
        FAMILIES["qwen-coder"],
        "Sure.\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n</function>",
        Read("Sure.", calls=CALLED.calls),
    ),
    "final": (
        FAMILIES["harmony"],
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yo.",
        Read("Yo.", "Hm."),
    ),
    "preamble and recipient first": (
        FAMILIES["harmony"],
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.get_weather"
        '<|channel|>commentary json<|message|>{"city": "Zürich"}<|call|>',
        Read("I look.", calls=CALLED.calls),
    ),
    "no channel": (FAMILIES["harmony"], "Just text", Read("Just text")),
    "response": (
        FAMILIES["generic"],
        ' {"response": "Say \\"hi\\"\\n\\u00e9 \\ud83d\\ude00"}\n',
        Read('Say "hi"\né 😀'),
    ),
    "structured response": (FAMILIES["generic"], '{"response": {"a": 1}}', Read('{"a": 1}')),
    "half a pair in arguments as text": (
        FAMILIES["hermes"],
        '<tool_call>{"name": "get_weather", '
        '"arguments": "{\\"city\\": \\"\\ud800\\"}"}</tool_call>',
        Read(calls=(("get_weather", '{"city": "\ufffd"}'),)),
    ),
    "no object": (FAMILIES["generic"], "Hi there", Read("Hi there")),
    "another object": (FAMILIES["generic"], '{"name": "x"}', Read('{"name": "x"}')),
    "response tags": (
        FAMILIES["command-r7b"],
        "<|START_RESPONSE|>Hello<|END_RESPONSE|>",
        Read("Hello"),
    ),
}
CASES = {
    **{name: (FAMILIES[name], *case) for name, case in ANSWERS.items()},
    **MORE_ANSWERS,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_tells_its_family(name: str) -> None:
    assert format_of(FAMILIES[name]).name == name


def test_a_real_model_without_tools_is_generic() -> None:
    source = read_header(smollm2_path()).chat_template
    assert source is not None
    assert format_of(source).name == "generic"


@pytest.mark.parametrize("name", CASES)
def test_answers_are_read(name: str) -> None:
    source, answer, expected = CASES[name]
    result = read_answer(source, answer)
    assert replace(result, ids=()) == expected


@pytest.mark.parametrize("name", CASES)
def test_cuts_change_nothing(name: str) -> None:
    """Not only the sum is the same: so is what has been given out after every character, as a
    continuation needs it."""
    source, answer, _ = CASES[name]
    make = parsing(source)
    slowly = make()
    deltas = [*map(slowly.feed, answer)]
    whole = read(make(), [answer])
    assert joined([*deltas, slowly.finish()]) == whole
    for cut in range(len(answer) + 1):
        parser = make()
        first = parser.feed(answer[:cut])
        assert joined([first]) == joined(deltas[:cut])
        assert joined([first, parser.feed(answer[cut:]), parser.finish()]) == whole


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8)
ARGUMENTS = st.lists(st.dictionaries(KEYS, JSON, max_size=4), min_size=1, max_size=3)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_calls_come_back_as_they_were_written(name: str, data: st.DataObject) -> None:
    """Issue 4: tool calls parsed back to the same arguments, for any arguments and any cuts."""
    form = format_of(FAMILIES[name])
    wanted = data.draw(ARGUMENTS)
    tools = [
        tool(
            f"do_{index}",
            # The format with tags needs to know which of its bare texts are strings.
            **{key: {"type": "string"} for key, value in each.items() if isinstance(value, str)},
        )
        for index, each in enumerate(wanted)
    ]
    calls = [
        ToolCall(f"do_{index}", json.dumps(each, ensure_ascii=data.draw(st.booleans())))
        for index, each in enumerate(wanted)
    ]
    text = form.write(calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parser = prepare(FAMILIES[name], tools=tools).parser()
    result = read(parser, pieces)
    assert values(result) == [(call.name, json.loads(call.arguments)) for call in calls]
    assert not result.text.strip()
    assert parser.called
    assert len(set(result.ids)) == len(calls)


PIECES = sorted(
    {marker for name in FAMILIES for marker in format_of(FAMILIES[name]).markers}
    | {'{"name": "add"', ', "arguments": ', '{"a": 1}', "}", "]", "[", "<function=add>", "{"}
    | {"<parameter=a>", "</parameter>", "[ARGS]", "add", "```json\n", "<think>", "</think>"}
    | {"commentary to=functions.add", "analysis", '"', "\\", "\\u12", '{"response": "', "\n", "ü "}
)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12), data=st.data())
def test_any_text_is_read_without_error(name: str, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    make = parsing(FAMILIES[name])
    whole = read(make(), [text])
    assert read(make(), parts) == whole
    cut = data.draw(st.integers(0, len(text)))
    assert read(make(), [text[:cut], text[cut:]]) == whole


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"harmony"}))
@pytest.mark.parametrize(
    "text",
    [
        'a < b <tool {x} [TOOL <| `<｜` {"a": 1} function',
        "<tool_call>no</tool_call> [TOOL_CALLS]no <|tool_call|>no <|START_ACTION|>no",
        "<function= x",
        '{"name": 7, "arguments": {}} {"name": "nobody", "arguments": {}}',
        "<｜tool▁call▁begin｜>no",
        '{"tool_calls": []}',
        '{"response"',
    ],
)
def test_what_is_no_call_is_content(name: str, text: str) -> None:
    if name == "deepseek-r1":
        text = "</think>" + text
    result = read_answer(FAMILIES[name], text)
    assert result.text == text.removeprefix("</think>")
    assert not result.calls


@pytest.mark.parametrize("name", ANSWERS)
def test_a_cut_off_answer_loses_nothing(name: str) -> None:
    """max_tokens may end an answer anywhere: a call that has begun keeps a beginning of its
    arguments (or none at all, {}), one that has not is content."""
    answer, whole = ANSWERS[name]
    for end in range(len(answer)):
        result = read_answer(FAMILIES[name], answer[:end])
        begun = len(result.calls)
        assert [*result.calls[:-1]] == [*whole.calls[: max(0, begun - 1)]]
        if begun:
            called, (last, arguments) = whole.calls[begun - 1], result.calls[-1]
            assert last == called[0]
            # (Bare text that ends in half a tag cannot know that it was one.)
            arguments = arguments.partition("\\n")[0].partition("\n")[0]
            assert arguments == "{}" or called[1].startswith(arguments)
        elif not whole.reasoning and name != "deepseek-r1":
            assert result.text == answer[:end].replace("<｜tool▁calls▁begin｜>", "")


def test_without_tools_markers_are_content() -> None:
    answer = ANSWERS["hermes"][0]
    for more in ({"tools": None}, {"tool_choice": "none"}):
        result = read_answer(FAMILIES["hermes"], answer, **more)
        assert result.text == answer
        assert not result.calls


def test_ids_are_the_same_on_every_replica() -> None:
    answer = ANSWERS["hermes"][0]
    first, again = (read_answer(FAMILIES["hermes"], answer).ids for _ in range(2))
    assert first == again
    assert len(set(first)) == 2
    assert all(len(name) == 29 and name.startswith("call_") for name in first)


def test_code_for_a_python_tool() -> None:
    tools = [tool("python", code={"type": "string"})]
    answer = '<|python_tag|>print("a\\n")\nx = {1}'
    result = read_answer(FAMILIES["llama3"], answer, tools=tools)
    assert values(result) == [("python", {"code": 'print("a\\n")\nx = {1}'})]


def test_reasoning_left_in_the_content() -> None:
    more: dict[str, Any] = {"template_arguments": {"reasoning_format": "none"}, "tools": None}
    answer = "<think>\nHm.\n</think>\n\nHello"
    assert read_answer(QWEN3, answer, **more) == Read(answer)
