"""The model's own chat template, rendered in a sandbox.

Owns: messages to prompt text, with bounds on what a template may do. It must not fall back to
another template: a model without one fails with template_error, so that nobody talks to a model in
a format that it was not trained on.

A template is code that came with a file. Jinja's immutable sandbox keeps it from Python; counting
executed lines bounds its time, a limit on the process's data segment bounds its memory, and the
operators that could ask for gigabytes in a single call are checked before they run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Final

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aivailable.errors import RequestError

RENDERED_MAX_CHARS: Final = 8 << 20
"""About two million tokens: more than any context."""
RENDER_MAX_LINES: Final = 400_000
"""Executed lines of template code; a long chat takes some ten thousand."""
RENDER_MAX_SECONDS: Final = 2.0
"""Of the thread's processor time: a machine under load renders what an idle one does."""
RENDER_MAX_BYTES: Final = 512 << 20
PRODUCT_MAX: Final = 1 << 20
"""Largest factor, exponent base and field width in a template's arithmetic."""
EXPONENT_MAX: Final = 64
SIZE_MAX: Final = 4096
"""Largest width, count and length that a filter is given; a power of ten for `round` is bounded as
an exponent is."""
CLOCK_CHECK_LINES: Final = 256
VARIABLES_MAX: Final = 32
VARIABLES_MAX_CHARS: Final = 16 * 1024
NAME_MAX_CHARS: Final = 64
_RESERVED: Final = frozenset(
    {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
    | {"raise_exception", "strftime_now", "self", "loop", "range", "namespace"}
)
_REFUSED_METHODS: Final = frozenset(
    {"format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs", "translate"}
)
_REFUSED_FILTERS: Final = (
    *("center", "format", "wordwrap", "filesizeformat", "pprint", "xmlattr"),
    # Their regular expressions take as long as a text likes.
    *("urlize", "striptags"),
)
_SIZED_FILTERS: Final = ("batch", "indent", "round", "slice", "truncate")
"""Filters whose numbers are sizes: no number that they are given may be larger than SIZE_MAX."""
_PAGE_BYTES: Final = resource.getpagesize()


class _TemplateRefused(Exception):
    """The template raised, or asked for more than it may have."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Without the calls whose cost is not bounded by the lines executed."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and not _small_product(left, right):
            raise _TemplateRefused("a product is too large")
        if operator == "**" and not (abs(left) <= PRODUCT_MAX and abs(right) <= EXPONENT_MAX):
            raise _TemplateRefused("a power is too large")
        if operator == "%" and isinstance(left, (str, bytes)):
            raise _TemplateRefused("formatting with % is not allowed")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _REFUSED_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _small_product(left: Any, right: Any) -> bool:
    sizes = [
        len(side) if isinstance(side, (str, bytes, list, tuple)) else abs(side)
        for side in (left, right)
    ]
    numbers = all(isinstance(side, (int, float)) for side in (left, right))
    return max(sizes) <= 1 << 62 if numbers else sizes[0] * sizes[1] <= PRODUCT_MAX


class _Generation(Extension):
    """`{% generation %}` marks what a trainer learns from; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. Raises RequestError(template_error) when it does not compile."""

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        for name in _REFUSED_FILTERS:
            environment.filters.pop(name, None)
        for name in _SIZED_FILTERS:
            environment.filters[name] = _sized(environment.filters[name])
        environment.filters["replace"] = _bounded_replace
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = time.strftime
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            with _bounded():
                self._template = environment.from_string(source)
        except _FAILURES as error:
            raise _template_error(error) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, ready for the assistant's turn. `messages` as messages.checked_messages
        makes them, `variables` as checked_variables lets them pass.

        Raises RequestError(template_error) when the template refuses the messages (many refuse
        some order of roles) or exceeds its bounds.
        """
        pieces: list[str] = []
        length = 0
        try:
            with _bounded():
                for piece in self._template.generate(
                    {
                        "documents": None,
                        **(variables or {}),
                        "messages": list(messages),
                        "tools": list(tools) if tools else None,
                        "add_generation_prompt": True,
                        **self._tokens,
                    }
                ):
                    pieces.append(piece)
                    length += len(piece)
                    if length > RENDERED_MAX_CHARS:
                        raise _TemplateRefused(f"it wrote over {RENDERED_MAX_CHARS} characters")
        except _FAILURES as error:
            raise _template_error(error) from error
        return "".join(pieces)


def checked_variables(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request's own variables for the template. Raises RequestError(invalid_request) for too
    many or too large ones, and for names that are not the client's to give."""
    problem = ""
    if len(variables) > VARIABLES_MAX:
        problem = f"at most {VARIABLES_MAX} template arguments"
    for name in variables:
        if not isinstance(name, str) or not name.isidentifier() or len(name) > NAME_MAX_CHARS:
            problem = f"a template argument's name has up to {NAME_MAX_CHARS} letters, digits and _"
        elif name in _RESERVED or name.startswith("_"):
            problem = f"{name} is not a template argument that a request can give"
    if not problem and len(json.dumps(dict(variables), default=str)) > VARIABLES_MAX_CHARS:
        problem = f"template arguments have at most {VARIABLES_MAX_CHARS} characters as JSON"
    if problem:
        raise RequestError(400, "invalid_request", problem)
    return variables


def no_template() -> RequestError:
    """For a model that brought none."""
    return RequestError(
        400,
        "template_error",
        "this model's file has no chat template: use /v1/completions, or a model made for chat",
    )


_FAILURES: Final = (Exception,)
"""A template may raise whatever Python and Jinja raise for wrong operands: all of it is the
template's."""


def _template_error(error: BaseException) -> RequestError:
    said = str(error)[:300] or type(error).__name__
    return RequestError(400, "template_error", f"the model's chat template failed: {said}")


def _tojson(
    value: Any,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
    ensure_ascii: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which models were not trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=min(indent, 8) if indent else None,
        separators=tuple(separators) if separators else None,
        sort_keys=sort_keys,
    )


def _sized(
    filtered: Callable[..., Any],
) -> Callable[..., Any]:
    """A filter that takes no larger number than SIZE_MAX besides what it filters."""
    most = EXPONENT_MAX if filtered.__name__ == "do_round" else SIZE_MAX
    # Some are given the environment first.
    first = 2 if hasattr(filtered, "jinja_pass_arg") else 1

    @functools.wraps(filtered)
    def checked(*given: Any, **named: Any) -> Any:
        for size in (*given[first:], *named.values()):
            large = len(size) if isinstance(size, str) else size
            if isinstance(large, int | float) and not -most <= large <= most:
                raise _TemplateRefused(f"a filter was given a size over {most}")
        return filtered(*given, **named)

    return checked


def _bounded_replace(given: Any, old: Any, new: Any, count: int | None = None) -> str:
    """Jinja's filter, for text alone, within the size of a prompt."""
    text, old, new = str(given), str(old), str(new)
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    if len(text) + times * (len(new) - len(old)) > RENDERED_MAX_CHARS:
        raise _TemplateRefused("a text is too large")
    return text.replace(str(old), str(new), -1 if count is None else count)


def _raise_exception(message: str) -> None:
    raise _TemplateRefused(str(message)[:300])


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Bound lines, time and memory of what runs inside, in this thread."""
    previous = sys.gettrace()
    lines = 0
    end_s = time.thread_time() + RENDER_MAX_SECONDS

    def trace(_frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any]:
        nonlocal lines
        lines += 1
        if lines > RENDER_MAX_LINES or (
            lines % CLOCK_CHECK_LINES == 0 and time.thread_time() > end_s
        ):
            raise _TemplateRefused("it ran for too long")
        return trace

    with _bounded_memory():
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(previous)


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let the process's data grow by RENDER_MAX_BYTES at most, where the kernel says its size."""
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", encoding="ascii") as statm:
        data_bytes = int(statm.read().split()[5]) * _PAGE_BYTES
    limit = data_bytes + RENDER_MAX_BYTES
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
