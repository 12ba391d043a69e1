"""A model's chats: from messages, tools and what the client asks for to a prompt, a parser and a
grammar.

Owns: the order of things: which template, which format, what the template cannot show, where
reasoning stands, and which grammar binds the answer from where on. It must not know a family
(formats) or tokens (the engine gives the functions for them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aivailable.errors import RequestError
from aivailable.wire.generation import Constraint, Generate
from aivailable.worker.answer import AnswerParser, Grammar, Prepared
from aivailable.worker.chat import messages as rewrite
from aivailable.worker.chat.formats import Format, Thinking, Tool, ToolCall, format_of, thinking_of
from aivailable.worker.chat.grammar_text import GrammarText, literal
from aivailable.worker.chat.messages import Message, checked_messages
from aivailable.worker.chat.quoting import Controls, Piece, Quoting
from aivailable.worker.chat.reading import AnswerReading, Reader, ReadingParser
from aivailable.worker.chat.template import ChatTemplate, checked_variables
from aivailable.worker.chat.traits import Traits, traits_of

TOOLS_MAX: Final = 128
TOOLS_MAX_CHARS: Final = 512 * 1024
REASONING_FORMAT: Final = "reasoning_format"
"""The template argument that is ours: "none" leaves reasoning in the content, tags included."""
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_CHOSEN: Final = "function:"


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What a request wants of tools. `callable_tools` are those that the grammar admits."""

    tools: tuple[Tool, ...]
    callable_tools: tuple[Tool, ...]
    must_call: bool
    parallel: bool


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A prompt's text, and where it leaves the model."""

    text: str
    prefilled: bool
    """It ends in the answer's own beginning."""
    opened: bool
    """It ends in an open reasoning."""
    closed: bool
    """It ends behind a reasoning."""


class _Dialect:
    """One template with its format, traits and tags; a model may bring two."""

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        self.template = ChatTemplate(source, bos_token, eos_token)
        self.format = format_of(source)
        self.thinking, self.may_think = thinking_of(source)
        self._traits: Traits | None = None

    @property
    def traits(self) -> Traits:
        """Tried out at the first chat, not at load."""
        if self._traits is None:
            self._traits = traits_of(self.template)
        return self._traits


class Conversations:
    """All chats with one model. Raises RequestError(template_error) when a template is damaged.

    `tool_source` is the template for requests with tools, where the model brings one of its own;
    `controls` are the spellings that are no text of a client's.
    """

    def __init__(
        self,
        source: str,
        bos_token: str,
        eos_token: str,
        *,
        tool_source: str | None = None,
        controls: Controls | None = None,
    ) -> None:
        self._controls = controls or Controls()
        self._plain = _Dialect(source, bos_token, eos_token)
        self._with_tools = (
            _Dialect(tool_source, bos_token, eos_token) if tool_source else self._plain
        )

    def prepare(
        self,
        request: Generate,
        *,
        tokenize: Callable[[tuple[Piece, ...]], tuple[int, ...]],
        control_token: Callable[[str], int | None],
    ) -> Prepared:
        """Make a request with messages ready. `tokenize` turns the prompt's pieces into ids (not
        asked for a continuation, whose ids are given), `control_token` a marker into its token.

        Raises RequestError.
        """
        wishes = _wishes(request)
        dialect = self._with_tools if wishes.tools else self._plain
        variables = dict(request.template_arguments)
        apart = variables.pop(REASONING_FORMAT, "auto") != "none"
        if "enable_thinking" in variables:
            # DeepSeek's and Granite's word for it.
            variables.setdefault("thinking", variables["enable_thinking"])
        messages = checked_messages(request.messages or ())
        variables = dict(checked_variables(variables))
        quoting = Quoting(self._controls)
        rendered = _render(dialect, messages, wishes.tools, variables, quoting)
        form, thinking = dialect.format, dialect.thinking
        grammar = _grammar(dialect, rendered, wishes, request.constraint)
        markers = [*form.markers]
        if not form.thinks_apart:
            markers += [thinking.opening, thinking.closing]
        tokens = [control_token(marker) for marker in markers]
        return Prepared(
            prompt=tokenize(quoting.pieces(rendered.text))
            if request.prompt_ids is None
            else request.prompt_ids,
            parser=_parser(request.request_id, dialect, rendered, wishes.tools, apart=apart),
            grammar=grammar,
            visible=frozenset(token for token in tokens if token is not None),
        )


def _grammar(
    dialect: _Dialect,
    rendered: _Rendered,
    wishes: _Wishes,
    constraint: Constraint | None,
) -> Grammar | None:
    form = dialect.format
    bound = wishes.must_call or constraint is not None or form.answers_in_json
    if not wishes.tools and constraint is None:
        return None
    may_think = dialect.may_think or form.thinks_apart
    thinks = may_think and not rendered.closed and not rendered.prefilled
    if not wishes.tools and constraint is not None and not thinks:
        return Grammar(constraint)
    g = GrammarText()
    choices = []
    if wishes.tools:
        choices.append(form.calls(g, wishes.callable_tools, parallel=wishes.parallel))
    if not bound:
        return _lazy(g, choices[0], form.triggers(wishes.callable_tools))
    if not wishes.must_call:
        if constraint is None:
            asked = g.schema("asked", {"type": "string"})
        else:
            asked = g.asked("asked", constraint)
        choices.append(form.answer(g, asked))
    body = g.rule("body", " | ".join(choices))
    if rendered.opened:
        closing = g.rule("closing", f"{literal(dialect.thinking.closing)} blank {body}")
        return _lazy(g, closing, (dialect.thinking.closing,))
    if form.answer_triggers and not wishes.tools and not rendered.prefilled:
        return _lazy(g, body, form.answer_triggers)
    if thinks:
        body = g.rule("thought", f"({form.reasoned(g, dialect.thinking)})? {body}")
    g.rule("root", body)
    return Grammar(Constraint("gbnf", g.text()))


def _lazy(g: GrammarText, rule: str, triggers: tuple[str, ...]) -> Grammar:
    g.rule("root", rule)
    return Grammar(Constraint("gbnf", g.text()), triggers)


def _wishes(request: Generate) -> _Wishes:
    choice = request.tool_choice
    tools = _tools(request.tools or ()) if choice != "none" else ()
    chosen = tools
    if choice.startswith(_CHOSEN):
        name = choice.removeprefix(_CHOSEN)
        chosen = tuple(tool for tool in tools if tool.name == name)
        if not chosen:
            raise RequestError(400, "invalid_request", f"tool_choice: there is no tool {name}")
    elif choice not in ("auto", "none", "required"):
        raise RequestError(400, "invalid_request", f"tool_choice {choice} is not known")
    elif choice == "required" and not tools:
        raise RequestError(
            400, "invalid_request", "tool_choice is required, but there are no tools"
        )
    must_call = choice not in ("auto", "none")
    return _Wishes(tools, chosen, must_call, request.parallel_tool_calls)


def _tools(definitions: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    if len(definitions) > TOOLS_MAX:
        raise RequestError(400, "invalid_request", f"at most {TOOLS_MAX} tools")
    if len(json.dumps(list(definitions), default=str)) > TOOLS_MAX_CHARS:
        raise RequestError(
            400, "invalid_request", f"tools have at most {TOOLS_MAX_CHARS} characters as JSON"
        )
    tools = tuple(map(_tool, definitions))
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise RequestError(400, "invalid_request", "two tools have the same name")
    return tools


def _tool(definition: Mapping[str, Any]) -> Tool:
    function = definition.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise RequestError(400, "invalid_request", "every tool needs a function with a name")
    if not _TOOL_NAME.fullmatch(name):
        raise RequestError(
            400, "invalid_request", "a tool's name has 1 to 128 letters, digits, _ . : and -"
        )
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    description = function.get("description") or ""
    if not isinstance(parameters, Mapping) or not isinstance(description, str):
        raise RequestError(
            400, "invalid_request", f"tool {name}: parameters must be a JSON schema object"
        )
    # Arguments are an object, whatever the schema says or leaves out.
    schema = {**parameters, "type": "object"}
    whole = {"name": name, "description": description, "parameters": schema, **function}
    return Tool(name, schema, {"type": "function", "function": whole})


def _render(
    dialect: _Dialect,
    messages: list[Message],
    tools: Sequence[Tool],
    variables: Mapping[str, Any],
    quoting: Quoting,
) -> _Rendered:
    traits, form = dialect.traits, dialect.format
    messages = [quoting.message(message) for message in messages]
    tools = [
        Tool(quoting.text(tool.name), tool.parameters, quoting.value(tool.definition))
        for tool in tools
    ]
    last = messages[-1]
    # What a client begins to say in the assistant's name is continued, as llama.cpp's server does.
    prefilled = (
        last["role"] == "assistant"
        and "tool_calls" not in last
        and len(messages) > 1
        and not (tools and form.answers_in_json)
    )
    if prefilled:
        messages = messages[:-1]
    shown = _expressed(form, traits, messages, tools, quoting)
    definitions = [tool.definition for tool in tools] if traits.tools else None
    text = dialect.template.render(shown, definitions, quoting.value(variables))
    if prefilled:
        text = form.prefill(text, last["content"], dialect.thinking)
    end = text.rstrip()
    return _Rendered(
        text,
        prefilled,
        opened=not prefilled and not form.thinks_apart and end.endswith(dialect.thinking.opening),
        closed=end.endswith(dialect.thinking.closing),
    )


def _expressed(
    form: Format,
    traits: Traits,
    messages: list[Message],
    tools: Sequence[Tool],
    quoting: Quoting,
) -> list[Message]:
    """The messages as this template can show them."""

    def write(calls: Sequence[Mapping[str, Any]]) -> str:
        written = [(call["id"], call["function"]) for call in calls]
        return form.write(
            [
                ToolCall(function["name"], quoting.arguments(function["arguments"]), call_id)
                for call_id, function in written
            ]
        )

    shown = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]
    adapted = form.adapt(shown, tools)
    told = adapted[0].get("tools") is not None
    shown = adapted
    if tools and not traits.tools and not told:
        shown = rewrite.with_system(shown, form.instructions(tools))
    if not traits.several_calls and traits.calls:
        shown = rewrite.with_single_calls(shown)
    if not traits.calls:
        shown = rewrite.with_written_calls(shown, write)
    if not traits.results:
        shown = rewrite.with_told_results(shown)
    if not traits.system:
        shown = rewrite.without_system(shown)
    if traits.mapped_arguments:
        shown = rewrite.with_mapped_arguments(shown, quoting.value)
    if traits.typed_content:
        shown = rewrite.with_typed_content(shown)
    return shown


def _parser(
    request_id: str, dialect: _Dialect, rendered: _Rendered, tools: Sequence[Tool], *, apart: bool
) -> Callable[[], AnswerParser]:
    form, thinking = dialect.format, dialect.thinking

    def read(r: AnswerReading) -> Reader[None]:
        if not form.thinks_apart and apart and not rendered.prefilled:
            yield from _read_thoughts(r, form, thinking, tools, opened=rendered.opened)
        yield from form.read(r, tools)

    return lambda: ReadingParser(request_id, read, prefilled=rendered.prefilled)


def _read_thoughts(
    r: AnswerReading, form: Format, thinking: Thinking, tools: Sequence[Tool], *, opened: bool
) -> Reader[None]:
    """The reasoning at the beginning of an answer, if there is one."""
    if not opened:
        place = r.hold()
        yield from r.skip_space()
        if not (yield from r.take(thinking.opening)):
            r.back(place)
            return
        r.release()
    r.section()
    r.tidy()
    ends = (thinking.closing, *(form.openers if tools else ()))
    found = yield from r.until(ends, r.reasoning)
    if found and found != thinking.closing:
        r.unread(found)
    r.section()
