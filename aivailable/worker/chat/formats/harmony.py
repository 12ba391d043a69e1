"""gpt-oss: the harmony format (openai.com/open-models, "OpenAI Harmony Response Format").

An answer is a row of messages, each with a channel: analysis is reasoning, final is content,
commentary is a call where it has a recipient (`to=functions.NAME`) and content where it has none.
The prompt ends with `<|start|>assistant`, so an answer begins inside a message's header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from aivailable.worker.chat.formats.base import Format, Thinking, Tool, ToolCall
from aivailable.worker.chat.grammar_text import GrammarText, literal
from aivailable.worker.chat.messages import Message
from aivailable.worker.chat.reading import AnswerReading, Emit, Reader

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
MESSAGE: Final = "<|message|>"
END: Final = "<|end|>"
CALL: Final = "<|call|>"
RETURN: Final = "<|return|>"
CONSTRAIN: Final = "<|constrain|>"
ASSISTANT: Final = START + "assistant"
HEADER_MAX_CHARS: Final = 400
_RECIPIENT: Final = re.compile(r"to=(?:functions\.)?([A-Za-z0-9_.:-]+)")
_HEADER_END: Final = f'" "? ("{CONSTRAIN}"? "json")? "{MESSAGE}"'
_HEADERS: Final = (CHANNEL, " to=", "to=")


class Harmony(Format):
    """See the module's docstring."""

    name = "harmony"
    markers = (START, CHANNEL, MESSAGE, END, CALL, RETURN, CONSTRAIN)
    thinks_apart = True
    answer_triggers = (f"{CHANNEL}final",)

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """Header, body, and again."""
        if r.prefilled:
            yield from self._read_body(r, r.content)
        yield from r.take(ASSISTANT, START)
        while (yield from r.more()):
            yield from self._read_message(r)
            yield from r.take(ASSISTANT, START)

    def _read_message(self, r: AnswerReading) -> Reader[None]:
        place = r.hold()
        header = ""
        found = yield from r.take(*_HEADERS)
        if found:
            rest, message = yield from r.collect((MESSAGE,), HEADER_MAX_CHARS)
            header = found + rest if message else ""
        if not header:
            # No header is a broken answer: what there is is content, up to the next message.
            r.back(place)
            yield from r.until((START, END), r.content)
            r.section()
            return
        r.release()
        r.section()
        recipient = _RECIPIENT.search(header)
        if recipient is not None and r.begin_call(recipient[1]):
            if (yield from r.skip_space()) in ("", "<"):
                r.arguments("{}")
            yield from self._read_body(r, r.arguments)
        elif f"{CHANNEL}analysis" in header:
            yield from self._read_body(r, r.reasoning)
        else:
            yield from self._read_body(r, r.content)

    def _read_body(self, r: AnswerReading, emit: Emit) -> Reader[None]:
        r.tidy()
        found = yield from r.until((START, END, CALL, RETURN, CHANNEL), emit)
        if found in (START, CHANNEL):
            r.unread(found)
        r.section()

    def write(self, calls: Sequence[ToolCall]) -> str:
        """One message for each call."""
        return ASSISTANT.join(
            f"{CHANNEL}commentary to=functions.{call.name} {CONSTRAIN}json{MESSAGE}"
            f"{call.arguments}{CALL}"
            for call in calls
        )

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """One call: the model ends its turn with it. The recipient may come before the channel."""
        rules = []
        for index, tool in enumerate(tools):
            arguments = g.schema(f"args-{index}", tool.parameters)
            name = literal(tool.name)
            rules.append(g.rule(f"call-{index}", f"{name} header-end {arguments}"))
            rules.append(
                g.rule(f"called-{index}", f'{name} "{CHANNEL}commentary" header-end {arguments}')
            )
        g.rule("header-end", _HEADER_END)
        after = " | ".join(rules[0::2])
        before = " | ".join(rules[1::2])
        channel = f'"{CHANNEL}" ("commentary" | "analysis") " to=functions." ({after})'
        return g.rule("calls", f'{channel} | " to=functions." ({before})')

    def triggers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """With the channel's control token, which ordinary text cannot contain."""
        return (f"{CHANNEL}commentary to=functions.", f"{CHANNEL}analysis to=functions.")

    def answer(self, g: GrammarText, answer: str) -> str:
        """The final channel's message."""
        g.rule("header-end", _HEADER_END)
        return g.rule("final", f'"{CHANNEL}final" header-end {answer}')

    def reasoned(self, g: GrammarText, thinking: Thinking) -> str:
        """The analysis channel's message, up to the next one's header."""
        thoughts = g.through("thoughts", END)
        return g.rule("reasoned", f'"{CHANNEL}analysis{MESSAGE}" {thoughts} "{ASSISTANT}"')

    def adapt(self, messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
        """The template calls past reasoning `thinking`."""
        return [
            {**message, "thinking": message["reasoning_content"]}
            if message.get("reasoning_content")
            else message
            for message in messages
        ]

    def prefill(self, prompt: str, text: str, thinking: Thinking) -> str:
        """In the final channel."""
        return f"{prompt}{CHANNEL}final{MESSAGE}{text}"
