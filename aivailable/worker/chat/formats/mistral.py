"""Mistral since the end of 2024 (Tekken v11 and v13): [TOOL_CALLS]name[ARGS]{…}, again for each.

The list of Mistral's earlier models is read, too: which of the two a fine-tuned model writes does
not always follow from its template.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from aivailable.worker.chat.formats.base import Tool, ToolCall
from aivailable.worker.chat.formats.marked_json import MarkedJson
from aivailable.worker.chat.grammar_text import GrammarText, literal
from aivailable.worker.chat.json_reading import read_value
from aivailable.worker.chat.messages import Message
from aivailable.worker.chat.reading import AnswerReading, Reader

OPENER: Final = "[TOOL_CALLS]"
ARGUMENTS: Final = "[ARGS]"
CALL_ID: Final = "[CALL_ID]"
NAME_MAX_CHARS: Final = 256
_ID: Final = re.compile(r"[A-Za-z0-9]{9}")
"""What Mistral's templates insist on."""


def short_id(call_id: str) -> str:
    """A call's id in the form that Mistral's templates accept."""
    if _ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """All ids of calls and results in Mistral's form."""
    result: list[Message] = []
    for message in messages:
        changed: dict[str, Any] = {}
        if "tool_calls" in message:
            calls = message["tool_calls"]
            changed["tool_calls"] = [{**call, "id": short_id(call["id"])} for call in calls]
        if "tool_call_id" in message:
            changed["tool_call_id"] = short_id(message["tool_call_id"])
        result.append({**message, **changed})
    return result


class MistralList(MarkedJson):
    """Mistral 7B v0.3, Nemo, Small and Large of 2024: a list of objects after the marker."""

    name = "mistral-list"
    openers = (OPENER,)
    markers: ClassVar[tuple[str, ...]] = openers
    in_list = True

    def adapt(self, messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
        """Ids of nine characters."""
        return with_short_ids(messages)

    def _read_calls(self, r: AnswerReading, opener: str) -> Reader[None]:
        char = yield from r.peek()
        if char and char not in "[{ \n":
            yield from _read_named(r)
        else:
            yield from super()._read_calls(r, opener)


class Mistral(MistralList):
    """See the module's docstring."""

    name = "mistral"
    markers = (OPENER, ARGUMENTS, CALL_ID)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Marker, name, arguments, without anything between."""
        return "".join(f"{OPENER}{call.name}{ARGUMENTS}{call.arguments}" for call in calls)

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The name is bound to its arguments."""
        rules = []
        for index, tool in enumerate(tools):
            arguments = g.schema(f"args-{index}", tool.parameters)
            rules.append(g.rule(f"call-{index}", f"{literal(tool.name + ARGUMENTS)} {arguments}"))
        one = g.rule("call", f"{literal(OPENER)} ({' | '.join(rules)})")
        return g.rule("calls", f"{one}+" if parallel else one)


def _read_named(r: AnswerReading) -> Reader[None]:
    """A name up to the brace of its arguments, with the markers between, then these."""
    place = r.hold()
    head, brace = yield from r.collect(("{",), NAME_MAX_CHARS)
    name = head.partition(ARGUMENTS)[0].partition(CALL_ID)[0].strip()
    usable = brace and name and not any(char in name for char in ' "\n[]<>')
    if not usable or not r.begin_call(name):
        r.back(place)
        r.content(OPENER)
        return
    r.release()
    r.unread(brace)
    if (yield from read_value(r, r.arguments)):
        r.section()
