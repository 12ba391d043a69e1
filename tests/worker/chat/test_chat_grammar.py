"""The grammars of the formats: what they must let through, and what they must not."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="aivailable[engine] is not installed")

from fixtures.chat_reading import TOOLS, prepare, read, tool, values
from fixtures.chat_templates import CHATML, FAMILIES, QWEN3, QWQ
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.errors import RequestError
from aivailable.wire.generation import Constraint
from aivailable.worker.answer import Grammar
from aivailable.worker.chat.formats import ToolCall, format_of
from aivailable.worker.chat.grammar_text import GrammarText
from aivailable.worker.grammar.automaton import DEAD, START, Automaton
from aivailable.worker.grammar.gbnf import read_gbnf

NUMBER = Constraint("json_schema", '{"type": "integer"}')
WEATHER = ToolCall("get_weather", '{"city": "Zürich"}')
OTHER = ToolCall("pick", '{"unit": "K", "days": [1, 2]}')
PICK = tool(
    "pick",
    unit={"type": "string", "enum": ["K", "C"]},
    days={"type": "array", "items": {"type": "integer"}},
)


def automaton(grammar: Grammar | None) -> Automaton:
    assert grammar is not None
    assert grammar.constraint.kind == "gbnf"
    return Automaton(read_gbnf(grammar.constraint.text))


def matches(grammar: Grammar | None, text: str) -> bool:
    machine = automaton(grammar)
    state = machine.walk(START, text.encode())
    return state != DEAD and machine.accepts(state)


def wanting(source: str, choice: str = "required", **more: Any) -> Grammar | None:
    return prepare(source, tools=(TOOLS[0], PICK), tool_choice=choice, **more).grammar


def before(name: str) -> str:
    """What the grammar of a must-call binds from: where the template opened the reasoning."""
    return "</think>" if name == "deepseek-r1" else ""


@pytest.mark.parametrize("name", FAMILIES)
def test_required_lets_through_what_the_family_writes(name: str) -> None:
    form = format_of(FAMILIES[name])
    grammar = wanting(FAMILIES[name])
    several = name != "harmony"
    for calls in ([WEATHER], [OTHER], [WEATHER, OTHER][: 1 + several]):
        text = before(name) + form.write(calls).removesuffix("<|call|>").replace(
            '"tool_call_id": "0", ', ""
        )
        assert matches(grammar, text), text
    assert not matches(grammar, before(name) + "Hello")
    assert not matches(grammar, before(name) + form.write([ToolCall("nobody", "{}")]))
    wrong = ToolCall("pick", '{"unit": "F", "days": []}')
    assert not matches(grammar, before(name) + form.write([wrong]).removesuffix("<|call|>"))


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"harmony"}))
def test_one_call_where_not_parallel(name: str) -> None:
    form = format_of(FAMILIES[name])
    grammar = wanting(FAMILIES[name], parallel_tool_calls=False)
    both = form.write([WEATHER, OTHER]).replace('"tool_call_id": "0", ', "")
    assert not matches(grammar, before(name) + both)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_named_function_only(name: str) -> None:
    form = format_of(FAMILIES[name])
    grammar = wanting(FAMILIES[name], "function:pick")

    def written(call: ToolCall) -> str:
        text = form.write([call]).replace('"tool_call_id": "0", ', "")
        return before(name) + text.removesuffix("<|call|>")

    assert matches(grammar, written(OTHER))
    assert not matches(grammar, written(WEATHER))


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"generic"}))
def test_auto_binds_from_the_marker_on(name: str) -> None:
    form = format_of(FAMILIES[name])
    grammar = wanting(FAMILIES[name], "auto")
    assert grammar is not None
    text = form.write([WEATHER]).replace('"tool_call_id": "0", ', "").removesuffix("<|call|>")
    assert any(text.startswith(trigger) for trigger in grammar.triggers)
    assert matches(grammar, text)


def test_generic_always_binds() -> None:
    grammar = wanting(FAMILIES["generic"], "auto")
    assert grammar is not None
    assert not grammar.triggers
    assert matches(grammar, '{"response": "Hello"}')
    assert matches(grammar, format_of("").write([WEATHER]))
    assert not matches(grammar, "Hello")
    structured = wanting(FAMILIES["generic"], "auto", constraint=NUMBER)
    assert matches(structured, '{"response": 42}')
    assert not matches(structured, '{"response": "Hello"}')


def test_no_grammar_without_a_wish() -> None:
    assert prepare(QWEN3, tools=None).grammar is None
    assert prepare(QWEN3, tool_choice="none").grammar is None


def test_a_plain_model_is_bound_by_the_request_alone() -> None:
    prepared = prepare(CHATML, tools=None, constraint=NUMBER)
    assert prepared.grammar == Grammar(NUMBER)


def test_reasoning_comes_before_what_is_asked_for() -> None:
    grammar = prepare(QWEN3, tools=None, constraint=NUMBER).grammar
    assert matches(grammar, "42")
    assert matches(grammar, "<think>\nis < or </thin? </thi</think>\n\n42")
    assert not matches(grammar, "<think>42")
    assert not matches(grammar, "<think></think>x")
    more: dict[str, Any] = {"template_arguments": {"enable_thinking": False}}
    assert prepare(QWEN3, tools=None, constraint=NUMBER, **more).grammar == Grammar(NUMBER)


def test_an_opened_reasoning_binds_from_its_end_on() -> None:
    prepared = prepare(QWQ, tools=None, constraint=Constraint("gbnf", 'root ::= x\nx ::= "a"'))
    assert prepared.grammar is not None
    assert prepared.grammar.triggers == ("</think>",)
    assert matches(prepared.grammar, "</think>\n\na")
    assert not matches(prepared.grammar, "</think>b")


def test_harmony_binds_the_final_channel() -> None:
    prepared = prepare(FAMILIES["harmony"], tools=None, constraint=NUMBER)
    assert prepared.grammar is not None
    assert prepared.grammar.triggers == ("<|channel|>final",)
    assert matches(prepared.grammar, "<|channel|>final<|message|>42")
    assert matches(prepared.grammar, "<|channel|>final <|constrain|>json<|message|>42")
    required = wanting(FAMILIES["harmony"])
    thought = "<|channel|>analysis<|message|>a <|x|> b<|end|><|start|>assistant"
    assert matches(required, thought + _harmony(WEATHER))
    assert not matches(required, "<|channel|>final<|message|>Hello")


def _harmony(call: ToolCall) -> str:
    return f"<|channel|>commentary to=functions.{call.name} json<|message|>{call.arguments}"


def test_tools_and_a_schema_together() -> None:
    grammar = wanting(QWEN3, "auto", constraint=NUMBER)
    assert grammar is not None
    assert not grammar.triggers
    assert matches(grammar, "<think>\n</think>\n\n42")
    assert matches(grammar, format_of(QWEN3).write([WEATHER]))
    assert not matches(grammar, "Hello")


def test_a_schema_that_is_none() -> None:
    with pytest.raises(RequestError):
        prepare(QWQ, tools=None, constraint=Constraint("json_schema", "{"))


MARKERS = ("</think>", "\n</parameter>\n", "<|end|>", "aab", "abcabd")


@pytest.mark.parametrize("marker", MARKERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_up_to_a_marker(marker: str, data: st.DataObject) -> None:
    """Exactly the texts that end with the marker's first occurrence."""
    g = GrammarText()
    g.rule("root", g.through("up-to", marker))
    machine = Automaton(read_gbnf(g.text()))
    text = data.draw(st.text(st.sampled_from(sorted({*marker, "é", "x"})), max_size=12))
    text += data.draw(st.sampled_from(["", marker, marker[:-1]]))
    state = machine.walk(START, text.encode())
    assert (state != DEAD and machine.accepts(state)) == (
        text.find(marker) == len(text) - len(marker) >= 0
    )


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_the_grammar_lets_through_is_read(name: str) -> None:
    """A walk through the grammar, always by the first byte that may come, ends in calls that are
    read with arguments of the schema."""
    prepared = prepare(FAMILIES[name], tools=(PICK,), tool_choice="required")
    machine = automaton(prepared.grammar)
    # gpt-oss may think first, and this walk would for ever.
    text = bytearray(b"<|channel|>c" if name == "harmony" else b"")
    state = machine.walk(START, bytes(text))
    while not machine.accepts(state) and len(text) < 2000:
        machine.prepare([state])
        row = machine.table[state]
        byte = next(int(b) for b in _preferred() if row[b] != DEAD)
        text.append(byte)
        state = int(row[byte])
    result = values(read(prepared.parser(), [text.decode()]))
    assert [called for called, _ in result] == ["pick"], bytes(text)
    assert result[0][1]["unit"] in ("K", "C")
    assert json.dumps(result[0][1]["days"])


def _preferred() -> list[int]:
    """Closing first, so that the walk ends."""
    first = '"]}>)|/<abcdefghijklmnopqrstuvwxyz_.:'
    return [*map(ord, first), *(b for b in range(256) if chr(b) not in first)]
