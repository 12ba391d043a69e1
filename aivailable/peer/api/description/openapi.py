"""The API's description (OpenAPI 3.1), made from the table of routes and the types that they name.

Owns how an entry becomes an operation: bodies from declared fields, answers from dataclasses and
TypedDicts (msgspec makes their JSON Schema), scope, parameters and the errors that come with them.
Nothing here is written twice, so nothing can drift; tests compare real answers with it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

from aivailable import __version__
from aivailable.peer.api.description.answer_types import Error
from aivailable.peer.api.description.fields import Field, Schema
from aivailable.peer.api.description.routes import JSON, SSE, Access, Answer, Route
from aivailable.wire.schema import late_fields

_REF = "#/components/schemas/{name}"
_PLACE = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
"""One part of aiohttp's path template that stands for a value."""

_ERRORS: Mapping[int, str] = {
    400: "a parameter is wrong, and named",
    401: "no API key, or one that does not count",
    403: "the key's scope does not allow it, or a web page asked without a key",
    404: "there is no such thing",
    408: "the body did not arrive in time",
    409: "the cluster's state does not allow it",
    413: "the body is too large",
    415: "the body is compressed",
    429: "too much is under way, of this key or in the queue; come later",
    500: "the node failed; its log says how",
    502: "another node failed, and no further one could take over",
    503: "not now; Retry-After says when to come again",
    504: "the request's time is over",
}
_ALWAYS = (429, 500, 503)
_WITH_KEY = (401, 403)
_WITH_BODY = (400, 408, 413, 415)

Document = dict[str, Any]


def document(routes: Iterable[Route]) -> Document:
    """The whole description of what these routes answer."""
    table = tuple(routes)
    kinds = [answer.kind for route in table for answer in route.answers]
    kinds = [Error, *(kind for kind in kinds if kind is not None)]
    references, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    of_kind = dict(zip(kinds, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        path = paths.setdefault(_path(route), {})
        path[route.method.lower()] = _operation(route, of_kind)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AIvailable",
            "version": __version__,
            "description": "The GPU machines of this LAN as one LLM service.",
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key. From this machine itself, users need none.",
                }
            },
            "responses": {
                f"Error{status}": {
                    "description": text,
                    "content": {JSON: {"schema": of_kind[Error]}},
                }
                for status, text in _ERRORS.items()
            },
            "schemas": _schemas(table, kinds, components),
        },
    }


def _path(route: Route) -> str:
    return _PLACE.sub(r"{\1}", route.path)


def _operation(route: Route, of_kind: Mapping[Any, Schema]) -> Document:
    slug = re.sub(r"\W+", "_", f"{route.method.lower()}{_path(route)}").strip("_")
    operation: Document = {
        "operationId": slug,
        "summary": route.summary,
        "description": f"Scope: {route.access.value}.",
        "responses": _responses(route, of_kind),
    }
    if route.access is Access.OPEN:
        operation["security"] = []
    parameters = [
        *(
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in _PLACE.findall(route.path)
        ),
        *(_query(name, field) for name, field in route.query.items()),
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = {"$ref": _REF.format(name=route.body.name)}
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return operation


def _query(name: str, field: Field) -> Document:
    found: Document = {"name": name, "in": "query", "required": field.required}
    if field.text:
        found["description"] = field.text
    schema = field.shape()
    if field.default is not None:
        schema["default"] = field.default
    return {**found, "schema": schema}


def _responses(route: Route, of_kind: Mapping[Any, Schema]) -> Document:
    found: Document = {}
    for answer in route.answers:
        entry = found.setdefault(str(answer.status), {"description": answer.text, "content": {}})
        entry["content"][answer.media] = _content(answer, of_kind)
    for status in _statuses(route):
        # A status may already stand for an answer of the route's own, as 503 of /readyz.
        found.setdefault(str(status), {"$ref": f"#/components/responses/Error{status}"})
    return dict(sorted(found.items()))


def _statuses(route: Route) -> Iterator[int]:
    yield from _ALWAYS
    # A key that does not count is refused on open paths, too.
    yield from _WITH_KEY if route.access is not Access.OPEN else (401,)
    yield from _WITH_BODY if route.body is not None else ()
    yield from route.errors


def _content(answer: Answer, of_kind: Mapping[Any, Schema]) -> Document:
    """OpenAPI has no word for the events of a stream: `x-event-data` says what each one's data
    is."""
    if answer.media == SSE:
        return {"schema": {"type": "string"}, "x-event-data": of_kind[answer.kind]}
    if answer.media == JSON:
        return {"schema": of_kind[answer.kind]}
    return {"schema": {"type": "string"}}


def _schemas(
    routes: Iterable[Route], kinds: Iterable[Any], components: Mapping[str, Schema]
) -> Document:
    found = dict(components)
    for kind in _dataclasses(kinds):
        _fill(found[kind.__name__], kind)
    for route in routes:
        if route.body is not None:
            found[route.body.name] = route.body.shape.shape()
    return dict(sorted(found.items()))


def _fill(schema: Schema, kind: type) -> None:
    """An answer has all fields of a dataclass, whatever their defaults, but those that came later:
    they are left out while nobody uses them."""
    late = late_fields(kind)
    schema["required"] = [name for name in schema["properties"] if name not in late]
    for one in schema["properties"].values():
        one.pop("default", None)


def _dataclasses(kinds: Iterable[Any]) -> list[type]:
    """All dataclasses in these types, each once."""
    found: dict[Any, None] = {}
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if kind in found:
            continue
        found[kind] = None
        if get_origin(kind) is not None or isinstance(kind, UnionType):
            waiting += [part for part in get_args(kind) if not isinstance(part, str)]
        elif dataclasses.is_dataclass(kind) or is_typeddict(kind):
            waiting += get_type_hints(kind).values()
    return [kind for kind in found if dataclasses.is_dataclass(kind) and isinstance(kind, type)]
