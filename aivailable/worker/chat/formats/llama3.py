"""Llama 3.1 to 3.3: a bare JSON object {"name": …, "parameters": …}, or <|python_tag|>.

An object counts as a call wherever it stands, if its name is a function's: nothing marks it. Behind
the tag stand either such an object, or one of Meta's built-in calls `name.call(key="value")`, or
code for a function named python, code_interpreter or ipython.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from aivailable.worker.chat.formats.base import Format, Tool, ToolCall, choice_of_calls
from aivailable.worker.chat.grammar_text import GrammarText, literal
from aivailable.worker.chat.json_reading import CallKeys, CallRead, read_call
from aivailable.worker.chat.reading import AnswerReading, Reader

PYTHON_TAG: Final = "<|python_tag|>"
CODE_TOOLS: Final = ("python", "code_interpreter", "ipython")
_KEYS: Final = CallKeys(("name",), ("parameters", "arguments"))
_BUILT_IN: Final = re.compile(r"\s*(?P<name>[\w-]{1,64})\.call\((?P<arguments>.*)\)\s*", re.DOTALL)
_ARGUMENT: Final = re.compile(
    r'\s*(?P<key>\w{1,64})\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\s,"]+)\s*(?:,|$)'
)


class Llama3(Format):
    """See the module's docstring."""

    name = "llama3"
    markers = (PYTHON_TAG,)
    openers = (PYTHON_TAG,)
    single_call_messages = True

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """Content, and objects that name a function."""
        names = [tool.name for tool in tools]
        if tools:
            r.tidy()
        while found := (yield from r.until((PYTHON_TAG, "{") if tools else (), r.content)):
            if found == PYTHON_TAG and (yield from r.skip_space()) != "{":
                yield from self._read_code(r, names)
                continue
            if found == "{":
                r.unread(found)
            place = r.hold()
            result = yield from read_call(r, _KEYS, names.__contains__)
            if result is CallRead.NONE:
                r.back(place)
                r.content(r.advance(1) if found == "{" else found)
                continue
            r.release()
            if (yield from r.skip_space()) == ";":
                r.skip()

    def _read_code(self, r: AnswerReading, names: Sequence[str]) -> Reader[None]:
        code = next((name for name in names if name in CODE_TOOLS), None)
        if code is not None and r.begin_call(code):
            r.arguments('{"code": "')
            yield from r.until((), lambda text: r.arguments(_inside_string(text)))
            r.arguments('"}')
            return
        pieces: list[str] = []
        yield from r.until((), pieces.append)
        text = "".join(pieces)
        call = _built_in(text)
        if call is not None and call.name in names and r.begin_call(call.name):
            r.arguments(call.arguments)
        else:
            r.content(PYTHON_TAG + text)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Objects one after the other."""
        return "; ".join(
            f'{{"name": {json.dumps(call.name)}, "parameters": {call.arguments}}}' for call in calls
        )

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Objects, separated as the models do it, without the tag or behind it."""
        call = choice_of_calls(g, tools, arguments_key="parameters")
        more = f' ("; " {call})*' if parallel else ""
        return g.rule("calls", f"{literal(PYTHON_TAG)}? {call}{more}")

    def triggers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The beginnings of an object that names a function: a brace alone would bind code."""
        return tuple(f'{{"name": {json.dumps(tool.name)}' for tool in tools)


def _inside_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _built_in(text: str) -> ToolCall | None:
    match = _BUILT_IN.fullmatch(text)
    if match is None:
        return None
    arguments: dict[str, object] = {}
    rest, at = match["arguments"], 0
    while at < len(rest):
        argument = _ARGUMENT.match(rest, at)
        if argument is None:
            return None
        try:
            arguments[argument["key"]] = json.loads(argument["value"])
        except ValueError:
            return None
        at = argument.end()
    return ToolCall(match["name"], json.dumps(arguments, ensure_ascii=False))
