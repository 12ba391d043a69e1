"""For models whose template knows nothing of tools: every answer is one JSON object.

`{"tool_calls": [{"name": …, "arguments": …}]}` or `{"response": …}`, forced by the grammar and
explained in the system message (llama.cpp's generic handler works alike). The response's text
streams as content while its string is being written.
"""

from __future__ import annotations

from collections.abc import Sequence

from aivailable.worker.chat.formats.base import Format, Tool, choice_of_calls, definitions
from aivailable.worker.chat.grammar_text import GrammarText
from aivailable.worker.chat.json_reading import (
    CallKeys,
    CallRead,
    loads_text,
    read_call,
    read_raw,
    read_text,
    read_value,
)
from aivailable.worker.chat.reading import AnswerReading, Reader


class Generic(Format):
    """See the module's docstring."""

    name = "generic"
    answers_in_json = True

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """The object; what is none is content."""
        if tools and not r.prefilled:
            place = r.hold()
            yield from r.skip_space()
            if (yield from self._read_object(r)):
                r.tidy()
                r.section()
            else:
                r.back(place)
        yield from r.until((), r.content)

    def _read_object(self, r: AnswerReading) -> Reader[bool]:
        """False when nothing was given out."""
        if not (yield from r.take("{")) or (yield from r.skip_space()) != '"':
            return False
        key = loads_text((yield from read_raw(r)))
        if (yield from r.skip_space()) != ":":
            return False
        r.skip()
        char = yield from r.skip_space()
        if key == "response":
            r.release()
            if char == '"':
                yield from read_text(r, r.content)
            else:
                yield from read_value(r, r.content)
        elif key == "tool_calls" and char == "[":
            r.skip()
            yield from r.skip_space()
            if (yield from read_call(r, CallKeys())) is CallRead.NONE:
                return False
            r.release()
            yield from self._read_further(r)
        elif key != "tool_call" or (yield from read_call(r, CallKeys())) is CallRead.NONE:
            return False
        r.release()
        if (yield from r.skip_space()) == "}":
            r.skip()
        return True

    def _read_further(self, r: AnswerReading) -> Reader[None]:
        while (yield from r.skip_space()) == ",":
            r.skip()
            yield from r.skip_space()
            if (yield from read_call(r, CallKeys())) is not CallRead.WHOLE:
                return
        yield from r.take("]")

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """The object with calls."""
        call = choice_of_calls(g, tools)
        more = f' (gap "," gap {call})*' if parallel else ""
        head = '"{" gap "\\"tool_calls\\"" gap ":" gap "[" gap'
        return g.rule("calls", f'{head} {call}{more} gap "]" gap "}}"')

    def answer(self, g: GrammarText, answer: str) -> str:
        """The object with a response."""
        return g.rule("response", f'"{{" gap "\\"response\\"" gap ":" gap {answer} gap "}}"')

    def instructions(self, tools: Sequence[Tool]) -> str:
        """Both forms, with the functions' definitions."""
        return (
            "You can call these functions:\n\n"
            + definitions(tools)
            + "\n\nAnswer with one JSON object. To call functions: "
            '{"tool_calls": [{"name": "function_name", "arguments": {"argument": "value"}}]}. '
            'To answer the user: {"response": "your answer"}.'
        )
