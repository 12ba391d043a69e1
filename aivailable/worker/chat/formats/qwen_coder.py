"""Qwen3-Coder: calls as tags, <function=NAME> with a <parameter=KEY> for each argument.

A value is bare text. Whether it is a string or JSON follows from the function's schema, and where
that does not say, from whether it is JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aivailable.worker.chat.formats.base import Format, Tool, ToolCall, loads
from aivailable.worker.chat.grammar_text import GrammarText, literal
from aivailable.worker.chat.reading import AnswerReading, Reader

CALL: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"
FUNCTION: Final = "<function="
FUNCTION_END: Final = "</function>"
PARAMETER: Final = "<parameter="
PARAMETER_END: Final = "</parameter>"
NAME_MAX_CHARS: Final = 256
PARAMETERS_MAX: Final = 256


class QwenCoder(Format):
    """See the module's docstring."""

    name = "qwen-coder"
    openers = (CALL, FUNCTION)
    markers = (CALL, CALL_END)

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """Content up to a tag; models leave the outer one out at times."""
        if tools:
            r.tidy()
        schemas = {tool.name: tool.parameters for tool in tools}
        while opener := (yield from r.until(self.openers if tools else (), r.content)):
            place = r.hold()
            begun = True
            if opener == CALL:
                yield from r.skip_space()
                begun = bool((yield from r.take(FUNCTION)))
            name = ""
            if begun:
                name, _ = yield from r.collect((">",), NAME_MAX_CHARS)
            name = name.strip()
            if not name or "\n" in name or not r.begin_call(name):
                r.back(place)
                r.content(opener)
                continue
            r.release()
            yield from _read_parameters(r, schemas.get(name, {}))
            r.section()

    def write(self, calls: Sequence[ToolCall]) -> str:
        """One pair of outer tags for each call."""
        return "\n".join(map(_written, calls))

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Parameters in the schema's order, required ones always."""
        g.through("text-value", f"\n{PARAMETER_END}\n")
        rules = []
        for index, tool in enumerate(tools):
            rules.append(g.rule(f"call-{index}", _call_rule(g, index, tool)))
        g.rule("call", f"{literal(CALL + chr(10))} ({' | '.join(rules)}) {literal(CALL_END)}")
        return g.rule("calls", "call (gap call)*" if parallel else "call")

    def triggers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The outer tag."""
        return (CALL,)


def is_text(schema: Any) -> bool:
    """Whether a value of this schema is surely a string."""
    if not isinstance(schema, Mapping):
        return False
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, (list, tuple)) and values:
        return all(isinstance(value, str) for value in values)
    return schema.get("type") == "string"


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _call_rule(g: GrammarText, index: int, tool: Tool) -> str:
    required = tool.parameters.get("required", ())
    pieces = [literal(f"{FUNCTION}{tool.name}>\n")]
    for number, (key, schema) in enumerate(_properties(tool.parameters).items()):
        head = literal(f"{PARAMETER}{key}>\n")
        value = "text-value"
        if not is_text(schema) or "enum" in schema or "const" in schema:
            value = _value_rule(g, f"args-{index}-{number}", schema, tool.parameters)
        optional = "" if key in required else "?"
        pieces.append(f"({head} {value}){optional}")
    return " ".join([*pieces, literal(FUNCTION_END + "\n")])


def _value_rule(g: GrammarText, name: str, schema: Any, whole: Mapping[str, Any]) -> str:
    end = literal(f"\n{PARAMETER_END}\n")
    if is_text(schema):
        values = schema.get("enum", [schema.get("const")])
        return g.rule(name, f"({' | '.join(map(literal, values))}) {end}")
    # A reference in it points into the whole schema.
    shared = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    g.schema(f"{name}-json", {**schema, **shared} if isinstance(schema, Mapping) else {})
    return g.rule(name, f"{name}-json {end}")


def _written(call: ToolCall) -> str:
    arguments = loads(call)
    lines = [CALL, f"{FUNCTION}{call.name}>"]
    for key, value in (arguments if isinstance(arguments, dict) else {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines += [f"{PARAMETER}{key}>", text, PARAMETER_END]
    return "\n".join([*lines, FUNCTION_END, CALL_END])


def _read_parameters(r: AnswerReading, schema: Mapping[str, Any]) -> Reader[None]:
    """Key by key, up to the function's end."""
    properties = _properties(schema)
    between = "{"
    for _ in range(PARAMETERS_MAX):
        if not (yield from r.skip_space()):
            return
        tag = yield from r.take(PARAMETER, FUNCTION_END, CALL_END)
        if not tag and any(each.startswith(r.available()) for each in (PARAMETER, FUNCTION_END)):
            # The answer ended in half a tag: the arguments are not said to be whole.
            return
        if tag != PARAMETER:
            break
        key, end = yield from r.collect((">",), NAME_MAX_CHARS)
        if not end:
            return
        r.arguments(f"{between}{json.dumps(key, ensure_ascii=False)}: ")
        between = ", "
        whole = yield from _read_parameter(r, properties.get(key))
        if not whole:
            return
    r.arguments("{}" if between == "{" else "}")
    yield from r.skip_space()
    yield from r.take(CALL_END)


def _read_parameter(r: AnswerReading, schema: Any) -> Reader[bool]:
    """One value as JSON. False when the answer ended in it."""
    yield from r.take("\n")
    ends = ("\n" + PARAMETER_END, PARAMETER_END)
    if is_text(schema):
        r.arguments('"')
        if not (yield from r.until(ends, lambda text: r.arguments(_inside_string(text)))):
            return False
        r.arguments('"')
        return True
    pieces: list[str] = []
    end = yield from r.until(ends, pieces.append)
    text = "".join(pieces)
    if not end:
        r.arguments(text)
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        r.arguments(json.dumps(text, ensure_ascii=False))
    else:
        r.arguments(text.strip())
    return True


def _inside_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
