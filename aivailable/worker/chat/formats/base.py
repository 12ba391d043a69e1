"""What a chat format is: how a model family writes its calls, and how they are read and bound.

Owns: the words that formats share. One module beside this one for each family; `formats` chooses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aivailable.worker.chat.grammar_text import GrammarText, json_literal, literal
from aivailable.worker.chat.messages import Message
from aivailable.worker.chat.reading import AnswerReading, Reader


@dataclass(frozen=True, slots=True)
class Tool:
    """One function that may be called; `parameters` is its arguments' JSON schema."""

    name: str
    parameters: Mapping[str, Any]
    definition: Mapping[str, Any]
    """As the client sent it: {"type": "function", "function": {…}}."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, its arguments as JSON text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a family writes before and after its reasoning."""

    opening: str
    closing: str


class Format:
    """One family's way of calling. The default: text only, nothing to call with."""

    name: ClassVar[str] = "text"
    markers: ClassVar[tuple[str, ...]] = ()
    """Texts that the reader must see although they may be control tokens."""
    openers: ClassVar[tuple[str, ...]] = ()
    """The markers that begin a call: they end an unfinished reasoning, too."""
    thinks_apart: ClassVar[bool] = False
    """Whether the reader itself tells reasoning (by channels), instead of by a pair of tags."""
    answer_triggers: ClassVar[tuple[str, ...]] = ()
    """Where an answer that is no call begins, if that is marked."""
    answers_in_json: ClassVar[bool] = False
    """Whether with tools every answer is a JSON object, so that the grammar always binds."""
    single_call_messages: ClassVar[bool] = False
    """Whether a past message with several calls must be split into several messages."""

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """Read an answer whose reasoning, if any, is behind it."""
        yield from r.until((), r.content)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The calls as the model writes them: for instructions and for past messages."""
        return json.dumps(
            {"tool_calls": [{"name": call.name, "arguments": loads(call)} for call in calls]},
            ensure_ascii=False,
        )

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Add the rule for one call, or several when parallel. Returns its name."""
        raise NotImplementedError(f"{self.name} has no calls")

    def triggers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The texts that the rule of `calls` may begin with, for a lazy grammar."""
        return self.openers

    def answer(self, g: GrammarText, answer: str) -> str:
        """Add the rule for an answer that is no call, whose text matches the rule `answer`.
        Returns its name."""
        return answer

    def reasoned(self, g: GrammarText, thinking: Thinking) -> str:
        """Add the rule for a whole reasoning with its tags. Returns its name."""
        thoughts = g.through("thoughts", thinking.closing)
        return g.rule("reasoned", f"{literal(thinking.opening)} {thoughts} blank")

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What a model is told when its template does not mention tools."""
        example = self.write((ToolCall("function_name", '{"argument": "value"}'),))
        return (
            "You can call these functions to answer the user:\n\n"
            + definitions(tools)
            + f"\n\nTo call a function, answer with exactly this form:\n{example}"
        )

    def adapt(self, messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
        """Messages as this family's templates want them, before any other change."""
        return messages

    def prefill(self, prompt: str, text: str, thinking: Thinking) -> str:
        """A prompt that ends with the beginning of the assistant's answer."""
        if prompt.rstrip().endswith(thinking.opening):
            prompt = prompt.rstrip() + f"\n{thinking.closing}\n\n"
        return prompt + text


def loads(call: ToolCall) -> Any:
    """A call's arguments as a value; their text where it is not JSON."""
    try:
        return json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments


def call_json(call: ToolCall) -> str:
    """{"name": …, "arguments": …} with the arguments' text unchanged."""
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'


def definitions(tools: Sequence[Tool]) -> str:
    """The functions' definitions, one JSON object a line."""
    return "\n".join(json.dumps(tool.definition, ensure_ascii=False) for tool in tools)


def choice_of_calls(
    g: GrammarText,
    tools: Sequence[Tool],
    *,
    name_key: str = "name",
    arguments_key: str = "arguments",
) -> str:
    """Add the rule for a call's JSON object, name first, of any of the tools."""
    rules = []
    for index, tool in enumerate(tools):
        arguments = g.schema(f"args-{index}", tool.parameters)
        head = f'"{{" gap "\\"{name_key}\\"" gap ":" gap {json_literal(tool.name)} gap "," gap'
        tail = f'"\\"{arguments_key}\\"" gap ":" gap {arguments} gap "}}"'
        rules.append(g.rule(f"call-{index}", f"{head} {tail}"))
    return g.rule("call", " | ".join(rules))
