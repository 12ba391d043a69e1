"""The functions that a model may call, and whether it must.

Owns their shape and bounds; pure. How a model is told of them is its chat format's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aivailable.peer.api.description.fields import AnyOf, Fields, Flag, Items, Object, Only, String
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai.constraints import SCHEMA_DEPTH_MAX_LEVELS, SCHEMA_MAX_BYTES
from aivailable.peer.api.parameters import (
    RequestParameters,
    as_object,
    checked_json,
    values_of,
    wrong_type,
)

TOOLS_MAX = 128
TOOL_VALUES_MAX = 16_384
"""Values in the schemas of all tools together: a hundred tools of ten parameters have 5,000."""
DESCRIPTION_MAX_CHARS = 64 * 1024
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KIND = String(words=("function",), required=True)
_NAME = String(pattern=f"^(?:{FUNCTION_NAME.pattern})$", required=True)
_TOOL: Fields = {
    "type": _KIND,
    "function": Object(
        {
            "name": _NAME,
            "description": String(DESCRIPTION_MAX_CHARS),
            "parameters": Object(text="a JSON schema"),
            "strict": Flag(),
        },
        required=True,
    ),
}
_CHOSEN: Fields = {"type": _KIND, "function": Object({"name": _NAME}, required=True)}
TOOLS: Fields = {
    "tools": Items(Object(_TOOL), items_max=TOOLS_MAX),
    "tool_choice": AnyOf(
        (String(words=("auto", "none", "required")), Object(_CHOSEN)), default="auto"
    ),
    "parallel_tool_calls": Flag(default=True),
    "functions": Only(([],), text="the older form of tools"),
    "function_call": Only(("auto", "none"), text="the older form of tool_choice"),
}


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """As `wire.generation.Generate` has them; `choice` is auto, none, required or function:NAME."""

    definitions: tuple[Mapping[str, Any], ...] | None = None
    choice: str = "auto"
    parallel: bool = True


def tools(body: RequestParameters) -> OfferedTools:
    """Raises ParameterError, also for the older `functions` and `function_call`."""
    _refuse_older(body)
    given = body.items("tools") or ()
    parallel = body.flag("parallel_tool_calls")
    if len(given) > TOOLS_MAX:
        raise ParameterError("tools", f"'tools' has more than {TOOLS_MAX} functions")
    definitions = tuple(
        _definition(as_object(item, f"tools[{index}]", _TOOL)) for index, item in enumerate(given)
    )
    if values_of(definitions) > TOOL_VALUES_MAX:
        raise ParameterError("tools", f"'tools' have more than {TOOL_VALUES_MAX} values in them")
    names = [one["function"]["name"] for one in definitions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ParameterError(
                f"tools[{index}].function.name", f"two tools have the name {name!r}"
            )
    return OfferedTools(definitions or None, _choice(body.raw("tool_choice"), names), parallel)


def _definition(tool: RequestParameters) -> Mapping[str, Any]:
    kind = tool.required_text("type")
    if kind != "function":
        raise ParameterError(
            tool.name("type"),
            f"tools of type {kind[:40]!r} are not supported; 'function' is",
            code="unsupported_value",
        )
    function = tool.object("function")
    if function is None:
        raise ParameterError(
            tool.name("function"),
            f"'{tool.name('function')}' is required",
            code="missing_parameter",
        )
    read: dict[str, Any] = {"name": function_name(function)}
    description = function.text("description")
    if description is not None:
        read["description"] = description
    parameters = function.raw("parameters")
    if parameters is not None:
        name = function.name("parameters")
        as_object(parameters, name)
        checked_json(
            parameters, name, bytes_max=SCHEMA_MAX_BYTES, depth_max=SCHEMA_DEPTH_MAX_LEVELS
        )
        read["parameters"] = parameters
    if function.given("strict"):
        read["strict"] = function.flag("strict")
    return {"type": "function", "function": read}


def function_name(function: RequestParameters) -> str:
    name = function.required_text("name")
    if FUNCTION_NAME.fullmatch(name) is None:
        raise ParameterError(
            function.name("name"), f"'{function.name('name')}' has 1 to 64 of A-Z a-z 0-9 _ . -"
        )
    return name


def _choice(value: Any, names: list[str]) -> str:
    if value is None or value in ("auto", "none"):
        return value or "auto"
    if value == "required":
        if not names:
            raise ParameterError("tool_choice", "'tool_choice' is 'required' and 'tools' is empty")
        return "required"
    if isinstance(value, str):
        raise ParameterError(
            "tool_choice", "'tool_choice' must be auto, none, required, or name a function"
        )
    if not isinstance(value, dict):
        raise wrong_type("tool_choice", "text or an object", value)
    asked = as_object(value, "tool_choice", _CHOSEN)
    kind = asked.required_text("type")
    if kind != "function":
        raise ParameterError(
            "tool_choice.type",
            f"a tool choice of type {kind[:40]!r} is not supported; 'function' is",
            code="unsupported_value",
        )
    function = asked.object("function")
    if function is None:
        raise ParameterError(
            "tool_choice.function", "'tool_choice.function' is required", code="missing_parameter"
        )
    name = function.required_text("name")
    if name not in names:
        raise ParameterError("tool_choice.function.name", f"no tool has the name {name[:64]!r}")
    return f"function:{name}"


def _refuse_older(body: RequestParameters) -> None:
    """Their answers have another shape, too: an old client would not understand ours."""
    for key, newer in (("functions", "tools"), ("function_call", "tool_choice")):
        value = body.raw(key)
        if value is not None and value not in body.field(key, Only).values:
            raise ParameterError(
                key,
                f"'{key}' is the older form of '{newer}' and not supported; send '{newer}'",
                code="unsupported_value",
            )
