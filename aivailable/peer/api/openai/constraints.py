"""What an answer's text must match: response_format, JSON schemas, GBNF grammars.

Owns the forms in which clients ask for it, and their bounds; pure. Whether a schema or a grammar
can be followed is the worker's word.

Not to be confused with `core.state.constraints`, which is about where a deployment may run.
"""

from __future__ import annotations

import json
import re
from typing import Any

from aivailable.peer.api.description.fields import AnyOf, Fields, Flag, Object, String
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.parameters import RequestParameters, as_object, checked_json, checked_text
from aivailable.wire.generation import Constraint

SCHEMA_MAX_BYTES = 64 * 1024
SCHEMA_DEPTH_MAX_LEVELS = 64
GRAMMAR_MAX_CHARS = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FORMATS = ("text", "json_object", "json_schema")
_NAMED: Fields = {
    "name": String(pattern=f"^(?:{_NAME.pattern})$"),
    "strict": Flag(text="without effect: every schema is enforced"),
    "schema": Object(),
}
_BARE = AnyOf((Object(), String(SCHEMA_MAX_BYTES)), text="a JSON schema, or its text")
CONSTRAINTS: Fields = {
    "response_format": Object(
        {
            "type": String(words=_FORMATS, required=True),
            "json_schema": Object(_NAMED),
            **_NAMED,
        },
        text="llama-server's clients put the schema beside the type",
    ),
    "json_schema": _BARE,
    "guided_json": _BARE,
    "grammar": String(GRAMMAR_MAX_CHARS, text="GBNF; its first rule is root"),
}
"""At most one of them may be given."""


def constraint(body: RequestParameters) -> Constraint | None:
    """At most one of `response_format`, `json_schema` (llama-server), `guided_json` (vLLM) and
    `grammar` (llama-server). Raises ParameterError."""
    found = {
        "response_format": _response_format(body),
        "json_schema": _bare_schema(body, "json_schema"),
        "guided_json": _bare_schema(body, "guided_json"),
        "grammar": _grammar(body),
    }
    given = [name for name, one in found.items() if one is not None]
    if len(given) > 1:
        raise ParameterError(given[1], f"'{given[0]}' and '{given[1]}' exclude each other")
    return found[given[0]] if given else None


def _response_format(body: RequestParameters) -> Constraint | None:
    form = body.object("response_format")
    if form is None:
        return None
    form.required_text("type")
    kind = form.choice("type")
    if kind == "text":
        return None
    if kind == "json_schema":
        # llama-server's clients put the schema beside the type.
        inner = form if form.given("schema") else form.object("json_schema")
        if inner is None:
            raise _missing(form.name("json_schema"))
        return _named_schema(inner)
    if form.given("schema"):
        return _schema(form.raw("schema"), form.name("schema"))
    return Constraint("json_object")


def _named_schema(inner: RequestParameters) -> Constraint:
    name = inner.text("name")
    if name is not None and _NAME.fullmatch(name) is None:
        raise ParameterError(
            inner.name("name"), f"'{inner.name('name')}' has 1 to 64 of A-Z a-z 0-9 _ -"
        )
    # Every schema is enforced, so that strict and not strict mean the same; only the type counts.
    inner.flag("strict")
    if not inner.given("schema"):
        raise _missing(inner.name("schema"))
    return _schema(inner.raw("schema"), inner.name("schema"))


def _bare_schema(body: RequestParameters, key: str) -> Constraint | None:
    value = body.raw(key)
    if value is None:
        return None
    if isinstance(value, str):
        value = _parsed(value, key)
    return _schema(value, key)


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(checked_text(text, name, chars_max=SCHEMA_MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ParameterError(name, f"'{name}' is not JSON: {error}") from None


def _schema(value: Any, name: str) -> Constraint:
    as_object(value, name)
    text = checked_json(value, name, bytes_max=SCHEMA_MAX_BYTES, depth_max=SCHEMA_DEPTH_MAX_LEVELS)
    return Constraint("json_schema", text)


def _grammar(body: RequestParameters) -> Constraint | None:
    text = body.text("grammar")
    return Constraint("gbnf", text) if text else None


def _missing(name: str) -> ParameterError:
    return ParameterError(name, f"'{name}' is required", code="missing_parameter")
