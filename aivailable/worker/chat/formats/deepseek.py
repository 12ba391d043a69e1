"""DeepSeek: calls between markers of full-width bars, in two ways.

R1, V3 and the distilled models: `function<sep>NAME`, then the arguments in a fenced block. V3.1:
`NAME<sep>` and the bare arguments. Both are read; the template says which one is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aivailable.worker.chat.formats.base import Format, Tool, ToolCall
from aivailable.worker.chat.grammar_text import GrammarText, literal
from aivailable.worker.chat.json_reading import read_value
from aivailable.worker.chat.reading import AnswerReading, Reader

BEGIN: Final = "<｜tool▁calls▁begin｜>"
END: Final = "<｜tool▁calls▁end｜>"
CALL: Final = "<｜tool▁call▁begin｜>"
CALL_END: Final = "<｜tool▁call▁end｜>"
SEPARATOR: Final = "<｜tool▁sep｜>"
HEAD_MAX_CHARS: Final = 400
FENCE: Final = "```"


class DeepSeek(Format):
    """V3.1's way of writing."""

    name = "deepseek-v3.1"
    openers = (BEGIN, CALL)
    markers = (BEGIN, END, CALL, CALL_END, SEPARATOR)

    def read(self, r: AnswerReading, tools: Sequence[Tool]) -> Reader[None]:
        """Content up to the markers; what they enclose, if it is a call."""
        if not tools:
            yield from r.until((), r.content)
            return
        r.tidy()
        while found := (yield from r.until((BEGIN, CALL, END, CALL_END), r.content)):
            if found == CALL:
                yield from _read_call(r)
            else:
                r.section()

    def write(self, calls: Sequence[ToolCall]) -> str:
        """All calls between one pair of markers."""
        return BEGIN + "".join(map(self.write_call, calls)) + END

    def write_call(self, call: ToolCall) -> str:
        """One call."""
        return f"{CALL}{call.name}{SEPARATOR}{call.arguments}{CALL_END}"

    def calls(self, g: GrammarText, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Markers, then every call's name bound to its arguments."""
        rules = []
        for index, tool in enumerate(tools):
            arguments = g.schema(f"args-{index}", tool.parameters)
            rules.append(g.rule(f"call-{index}", self.call_rule(tool, arguments)))
        one = g.rule("call", f"{literal(CALL)} ({' | '.join(rules)}) {literal(CALL_END)}")
        more = f" (gap {one})*" if parallel else ""
        return g.rule("calls", f"{literal(BEGIN)} gap {one}{more} gap {literal(END)}")

    def call_rule(self, tool: Tool, arguments: str) -> str:
        """What stands between a call's markers."""
        return f"{literal(tool.name + SEPARATOR)} {arguments}"

    def triggers(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The outer marker."""
        return (BEGIN,)


class DeepSeekFenced(DeepSeek):
    """R1's way of writing."""

    name = "deepseek-r1"

    def write_call(self, call: ToolCall) -> str:
        """With a type, and a fence around the arguments."""
        head = f"{CALL}function{SEPARATOR}{call.name}"
        return f"{head}\n{FENCE}json\n{call.arguments}\n{FENCE}{CALL_END}"

    def call_rule(self, tool: Tool, arguments: str) -> str:
        """With the fence."""
        head = literal(f"function{SEPARATOR}{tool.name}\n{FENCE}json\n")
        return f"{head} {arguments} {literal(chr(10) + FENCE)}"


def _read_call(r: AnswerReading) -> Reader[None]:
    """A name, before or behind the separator, then an object, perhaps in a fence."""
    place = r.hold()
    head, brace = yield from r.collect(("{",), HEAD_MAX_CHARS)
    before, _, behind = head.partition(SEPARATOR)
    name = behind.strip().partition("\n")[0].rstrip() or before.strip()
    if not brace or not name or SEPARATOR not in head or not r.begin_call(name):
        r.back(place)
        r.content(CALL)
        return
    r.release()
    r.unread(brace)
    if not (yield from read_value(r, r.arguments)):
        return
    r.section()
    if (yield from r.skip_space()) == "`":
        yield from r.take(FENCE)
        yield from r.skip_space()
    yield from r.take(CALL_END)
