"""Families that write a call as JSON between markers: a table of them, and one reader.

Qwen 2.5 and 3, Hermes, SmolLM: <tool_call>{…}</tool_call>, one pair for each call. Phi-4-mini and
Granite: a list after <|tool_call|>. Command R7B: a list between action markers, with its own key
names. (Mistral's list is in mistral.)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

from aivailable.worker.chat.formats.base import Format, Tool, ToolCall, call_json, choice_of_calls
from aivailable.worker.chat.grammar_text import GrammarText, literal
from aivailable.worker.chat.json_reading import CallKeys, CallRead, read_call
from aivailable.worker.chat.messages import Message
from aivailable.worker.chat.reading import AnswerReading, Reader


class MarkedJson(Format):
    """A marker, then one call's object or a list of them, then perhaps a closing marker."""

    closer: ClassVar[str] = ""
    in_list: ClassVar[bool] = False
    keys: ClassVar[CallKeys] = CallKeys()
    gap: ClassVar[str] = ""
    """What the family writes between marker and JSON."""

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """Content up to a marker, calls behind it, and again."""
        if tools:
            r.tidy()
        while opener := (yield from r.until(self.openers if tools else (), r.content)):
            yield from self._read_calls(r, opener)

    def _read_calls(self, r: AnswerReading, opener: str) -> Reader[None]:
        place = r.hold()
        listed = (yield from r.skip_space()) == "["
        if listed:
            r.skip()
            yield from r.skip_space()
        result = yield from read_call(r, self.keys)
        if result is CallRead.NONE:
            r.back(place)
            r.content(opener)
            return
        r.release()
        while result is CallRead.WHOLE:
            char = yield from r.skip_space()
            if listed and char == ",":
                r.skip()
                yield from r.skip_space()
                result = yield from read_call(r, self.keys)
                continue
            if listed and char == "]":
                r.skip()
                yield from r.skip_space()
            if self.closer:
                yield from r.take(self.closer)
            return

    def write(self, calls: Sequence[ToolCall]) -> str:
        """As the family writes them."""
        if self.in_list:
            objects = ", ".join(map(self.write_object, calls))
            return f"{self.openers[0]}{self.gap}[{objects}]{self.gap}{self.closer}"
        return "\n".join(
            f"{self.openers[0]}{self.gap}{self.write_object(call)}{self.gap}{self.closer}"
            for call in calls
        )

    def write_object(self, call: ToolCall) -> str:
        """One call's JSON."""
        return call_json(call)

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Marker, call or list of calls, closing marker."""
        call = choice_of_calls(
            g, tools, name_key=self.keys.name[0], arguments_key=self.keys.arguments[0]
        )
        opener = literal(self.openers[0])
        closer = f" gap {literal(self.closer)}" if self.closer else ""
        if self.in_list:
            more = f' (gap "," gap {call})*' if parallel else ""
            return g.rule("calls", f'{opener} gap "[" gap {call}{more} gap "]"{closer}')
        one = g.rule("marked", f"{opener} gap {call}{closer}")
        return g.rule("calls", f"{one} (gap {one})*" if parallel else one)

    def triggers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The grammar knows the first opener only."""
        return self.openers[:1]


class Hermes(MarkedJson):
    """Qwen 2.5, Qwen 3, Hermes 2 and 3, SmolLM 2 and 3, and many that learned from them."""

    name = "hermes"
    openers = ("<tool_call>",)
    closer = "</tool_call>"
    markers = ("<tool_call>", "</tool_call>")
    gap = "\n"


class Phi4Mini(MarkedJson):
    """Phi-4-mini. Its template prints the system message's `tools`, and nothing of calls."""

    name = "phi-4-mini"
    openers = ("<|tool_call|>", "functools")
    closer = "<|/tool_call|>"
    markers = ("<|tool_call|>", "<|/tool_call|>")
    in_list = True

    def adapt(self, messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
        """Tools belong into the system message, as JSON text."""
        if not tools:
            return messages
        listed = json.dumps([tool.definition.get("function") for tool in tools], ensure_ascii=False)
        if messages and messages[0]["role"] == "system":
            return [{**messages[0], "tools": listed}, *messages[1:]]
        return [{"role": "system", "content": "", "tools": listed}, *messages]


class Granite(MarkedJson):
    """IBM Granite 3."""

    name = "granite"
    openers = ("<|tool_call|>", "<tool_call>")
    markers = openers
    in_list = True


class CommandR7B(MarkedJson):
    """Cohere Command R7B."""

    name = "command-r7b"
    openers = ("<|START_ACTION|>",)
    closer = "<|END_ACTION|>"
    markers = ("<|START_ACTION|>", "<|END_ACTION|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
    in_list = True
    keys = CallKeys(("tool_name",), ("parameters",))

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """As the others, without the markers around what is said."""
        r.tidy()
        openers = self.openers if tools else ()
        while found := (yield from r.until((*openers, *self.markers[2:]), r.content)):
            if found in openers:
                yield from self._read_calls(r, found)
            else:
                r.section()

    def write_object(self, call: ToolCall) -> str:
        """With Cohere's names."""
        name = json.dumps(call.name, ensure_ascii=False)
        return f'{{"tool_call_id": "0", "tool_name": {name}, "parameters": {call.arguments}}}'
