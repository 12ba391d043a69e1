"""What a template can show, found out by rendering small conversations with it.

Owns: the trials. Reading a template's source would have to guess what its code does; the trial sees
it (HF's and llama.cpp's templates differ in all of these, and nothing declares them). Found out
once for each template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aivailable.errors import RequestError
from aivailable.worker.chat.messages import (
    Message,
    with_mapped_arguments,
    with_typed_content,
)
from aivailable.worker.chat.template import ChatTemplate

_SAID: Final = "aivailable-trial-said"
_RULE: Final = "aivailable-trial-rule"
_TOOL: Final = "aivailable_trial_tool"
_KEY: Final = "aivailable_key"
_VALUE: Final = "aivailable_value"
_RESULT: Final = "aivailable-trial-result"
_ARGUMENTS: Final = f'{{"{_KEY}": "{_VALUE}"}}'
_USER: Final[Message] = {"role": "user", "content": _SAID}
_DEFINITION: Final = {
    "type": "function",
    "function": {
        "name": _TOOL,
        "description": "a trial",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "a value"}},
            "required": [_KEY],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What one template can show."""

    typed_content: bool
    """Content must be a list of parts."""
    system: bool
    tools: bool
    calls: bool
    mapped_arguments: bool
    """A call's arguments must be a mapping, not JSON text."""
    several_calls: bool
    """In one message."""
    results: bool
    """Messages of the role tool."""


def traits_of(template: ChatTemplate) -> Traits:
    """Try the template out. Never raises: what fails is not supported."""

    def shows(needle: str, *messages: Message, tools: Sequence[Mapping[str, Any]] = ()) -> bool:
        shown = messages if not typed else with_typed_content(messages)
        return needle in _rendered(template, shown, tools)

    typed = False
    if not shows(_SAID, _USER):
        typed = True
        typed = shows(_SAID, _USER)
    system: Message = {"role": "system", "content": _RULE}
    called = (_USER, _called("trial0001"))
    mapped = (_USER, *with_mapped_arguments(called[1:]))
    # JSON text comes first: it repeats what the model wrote, so that the cached prefix fits.
    as_text = shows(_ARGUMENTS, *called)
    as_mapping = not as_text and any(shows(form, *mapped) for form in _forms())
    base = mapped if as_mapping else called
    second = _called("trial0001", "trial0002")
    both = with_mapped_arguments([second])[0] if as_mapping else second
    return Traits(
        typed_content=typed,
        system=shows(_RULE, system, _USER),
        tools=shows(_TOOL, _USER, tools=(_DEFINITION,)),
        calls=as_text or as_mapping,
        mapped_arguments=as_mapping,
        several_calls=shows(f"{_TOOL}2", _USER, both),
        results=(as_text or as_mapping) and shows(_RESULT, *base, _result()),
    )


def _forms() -> tuple[str, ...]:
    """How arguments may be shown: as JSON, spaced or not, or each in a tag of its own."""
    return (_ARGUMENTS, _ARGUMENTS.replace(" ", ""), f"={_KEY}>\n{_VALUE}\n<", f'"{_KEY}": "')


def _called(*ids: str) -> Message:
    calls = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": _TOOL + ("2" if number else ""), "arguments": _ARGUMENTS},
        }
        for number, call_id in enumerate(ids)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _result() -> Message:
    return {"role": "tool", "content": _RESULT, "name": _TOOL, "tool_call_id": "trial0001"}


def _rendered(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> str:
    try:
        return template.render(messages, tools)
    except RequestError:
        return ""
