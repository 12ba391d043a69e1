"""`/openapi.json` tells what is true of routes, scopes and every parameter."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, USER, FakeService
from fixtures.openai_asks import HELLO, NAMED, SCHEMA, TOOL
from fixtures.openapi_document import (
    DESCRIBED,
    ROUTES,
    SCHEMAS,
    Document,
    answers_with,
    check,
    operation_of,
    operations,
    path_of,
    response_of,
    valid,
    validator,
)
from fixtures.peer_ports import HandClock
from jsonschema import Draft202012Validator

from aivailable.core.serving.status import NodeStatus
from aivailable.core.state.records import Where
from aivailable.core.state.settings import KEYS
from aivailable.peer.api import parameters
from aivailable.peer.api.description.answer_types import MemberStatus
from aivailable.peer.api.description.fields import Fields, Integer, Number, Object, Only, String
from aivailable.peer.api.description.routes import Access, Route
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai.embeddings import embeddings_request, rerank_request
from aivailable.peer.api.openai.requests import CHAT, COMPLETION, chat_request, completion_request
from aivailable.peer.api.parameters import RequestParameters
from aivailable.peer.api.server import ApiServer
from aivailable.peer.service import DeployRequest

STRANGER = {"X-Forwarded-For": "192.0.2.7"}
"""What a proxy says: the client is not on this machine."""
UNKNOWN = "0" * 8


# --- the document's own form


def test_its_form_is_that_of_openapi_3_1() -> None:
    assert re.fullmatch(r"3\.1\.\d+", DESCRIBED["openapi"])
    assert {"title", "version"} <= DESCRIBED["info"].keys()
    assert DESCRIBED["components"]["securitySchemes"].keys() == {"bearer"}
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    for path, method, operation in operations():
        where = f"{method} {path}"
        assert path.startswith("/"), where
        assert method in ("get", "post", "patch", "delete"), where
        assert operation["summary"], where
        assert operation["responses"], where
        for status in operation["responses"]:
            response = response_of(operation, status)
            assert re.fullmatch(r"[1-5]\d\d", status), where
            assert response["description"], where
            assert all(media.keys() >= {"schema"} for media in response["content"].values()), where
        given = operation.get("parameters", [])
        assert len({(one["name"], one["in"]) for one in given}) == len(given), where
        in_path = [one["name"] for one in given if one["in"] == "path"]
        assert in_path == re.findall(r"\{(\w+)\}", path), where
        assert all(one["required"] for one in given if one["in"] == "path"), where
        assert all("schema" in one for one in given), where


def test_every_reference_resolves_and_every_schema_is_one() -> None:
    refs = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(DESCRIBED)))
    # Each is there, and none is there for nobody.
    assert refs == {
        f"#/components/{part}/{name}"
        for part in ("schemas", "responses")
        for name in DESCRIBED["components"][part]
    }
    for name, schema in SCHEMAS.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        Draft202012Validator.check_schema(schema)
    for _, _, operation in operations():
        for one in operation.get("parameters", []):
            Draft202012Validator.check_schema(one["schema"])


# --- routes and scopes


def test_every_route_of_the_router_is_described_and_no_other() -> None:
    server = ApiServer(FakeService(), HandClock())
    there = {
        (route.resource.canonical, route.method.lower())
        for route in server.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert there == {(path, method) for path, method, _ in operations()}
    assert len(ROUTES) == len(there)


def test_open_paths_say_that_they_need_no_key() -> None:
    for route in ROUTES:
        assert (operation_of(route).get("security") == []) is (route.access is Access.OPEN)
    assert DESCRIBED["security"] == [{"bearer": []}]


async def _status(http: aiohttp.ClientSession, route: Route, key: str | None) -> tuple[int, str]:
    """Of a request without a body and to nothing that exists; the stranger's way."""
    headers = dict(STRANGER) | ({"Authorization": f"Bearer {key}"} if key else {})
    path = re.sub(r"\{\w+[^}]*\}", UNKNOWN, route.path)
    async with http.request(route.method, path, headers=headers, data=b"[") as response:
        body = await response.text()
        code = json.loads(body)["error"]["code"] if response.status >= 400 else ""
        return response.status, code


@pytest.mark.parametrize("route", ROUTES, ids=lambda one: f"{one.method} {one.path}")
async def test_the_scope_that_is_told_is_the_one_that_is_asked_for(
    route: Route, http: aiohttp.ClientSession, service: FakeService
) -> None:
    responses = operation_of(route)["responses"]
    stranger = await _status(http, route, None)
    user = await _status(http, route, USER)
    assert (stranger == (401, "missing_api_key")) is (route.access is not Access.OPEN)
    assert (user == (403, "admin_required")) is (route.access is Access.ADMIN)
    assert not service.members.left
    assert not service.changes.proposed
    for status, _ in (stranger, user):
        assert str(status) in responses
    if route.body is not None:
        # Whoever may ask is refused for the body, and the document says so.
        key = ADMIN if route.access is Access.ADMIN else USER
        assert await _status(http, route, key) == (400, "invalid_json")
        assert "400" in responses


# --- requests


def _read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Collects every parameter that is read, nested ones with their path."""
    names: set[str] = set()
    raw = RequestParameters.raw

    def reading(self: RequestParameters, key: str) -> Any:
        names.add(re.sub(r"\[\d+\]", "", self.name(key)))
        return raw(self, key)

    monkeypatch.setattr(parameters.RequestParameters, "raw", reading)
    return names


def _described(schema: Document, path: str = "") -> set[str]:
    """Every property of a body, nested ones with their path."""
    found: set[str] = set()
    for key, value in schema.get("properties", {}).items():
        name = f"{path}.{key}" if path else key
        found |= {name} | _described(value, name)
    for option in (*schema.get("anyOf", ()), schema.get("items")):
        found |= _described(option, path) if option is not None else set()
    return found


CALLS = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="
TOGETHER: dict[str, Document] = {
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
}
"""What makes a parameter mean something; the schema cannot tell."""
BEYOND = ("json_schema", "guided_json")
"""A text that must be JSON itself: no schema can ask for that."""
CHATS: list[Document] = [
    {},
    {"stream": True, "stream_options": {"include_usage": True}, "response_format": NAMED},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"response_format": {"type": "json_object", "schema": SCHEMA}},
    {"response_format": {"type": "json_schema", "schema": SCHEMA, "name": "n", "strict": True}},
    {
        "messages": [
            {"role": "assistant", "tool_calls": CALLS},
            {"role": "user", "content": [
                {"type": "text", "text": "a"},
                {"type": "refusal", "refusal": "b"},
                {"type": "image_url", "image_url": {"url": PIXEL}},
            ]},
        ],
        "enable_thinking": True,
        "think": False,
    },
]  # fmt: skip


def test_a_chat_s_parameters_are_those_that_its_parser_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = _read(monkeypatch)
    for body in CHATS:
        whole = {"model": "m", "messages": HELLO, **body}
        chat_request(RequestParameters(whole), "req_1")
        validator({"$ref": "#/components/schemas/ChatCompletionRequest"}).validate(whole)
    assert names == _described(SCHEMAS["ChatCompletionRequest"])
    assert {"max_tokens", "max_completion_tokens", "messages.content.image_url.url"} <= names


def test_a_completion_s_parameters_are_those_that_its_parser_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = _read(monkeypatch)
    for body in ({}, *CHATS[1:2], *CHATS[3:5]):
        whole = {"model": "m", "prompt": "x", **body}
        completion_request(RequestParameters(whole), "req_1")
        validator({"$ref": "#/components/schemas/CompletionRequest"}).validate(whole)
    assert names == _described(SCHEMAS["CompletionRequest"])


def test_parameters_of_embeddings_and_rerank_are_those_that_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = _read(monkeypatch)
    embeddings_request(RequestParameters({"model": "m", "input": ["a"]}), "req_1")
    assert names == _described(SCHEMAS["EmbeddingsRequest"])
    names.clear()
    asked = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}]}
    rerank_request(RequestParameters(asked), "req_1")
    assert names == _described(SCHEMAS["RerankRequest"])


def test_deploy_and_its_relatives_name_the_fields_of_their_records() -> None:
    deploy = SCHEMAS["DeployRequest"]
    assert deploy["properties"].keys() == {one.name for one in dataclasses.fields(DeployRequest)}
    where = deploy["properties"]["where"]["properties"]
    assert where.keys() == {one.name for one in dataclasses.fields(Where)}
    fit = SCHEMAS["FitRequest"]["properties"]
    assert fit == {name: deploy["properties"][name] for name in fit}
    assert SCHEMAS["Settings"]["properties"].keys() == KEYS.keys()
    # A member is a node without its devices.
    nodes = {one.name for one in dataclasses.fields(NodeStatus)} - {"devices"}
    assert MemberStatus.__annotations__.keys() == nodes


async def test_the_parsers_of_cluster_bodies_read_what_is_described(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: dict[str, Document] = {
        "DeployRequest": {"model": "m", "where": {}},
        "FitRequest": {"model": "m", "where": {}},
        "KeyRequest": {},
        "WindowRequest": {"duration_s": 0},
        "Pause": {"duration_s": 0},
        "MergeRequest": {"into": "c"},
        "Settings": {"idle_ttl_s": 5},
    }
    names = _read(monkeypatch)
    bodies = {route.body.name: route for route in ROUTES if route.body is not None}
    assert whole.keys() == {name for name in bodies if bodies[name].path.startswith("/cluster")}
    for name, body in whole.items():
        names.clear()
        route = bodies[name]
        path = route.path.replace("{node}", "_here")
        headers = {"Authorization": f"Bearer {ADMIN}"}
        async with http.request(route.method, path, json=body, headers=headers) as response:
            assert response.status < 300, await response.text()
            schema = answers_with(path_of(route), route.method.lower(), response.status)
            check(schema, await response.json())
        assert valid(name, body)
        closed = SCHEMAS[name].get("additionalProperties") is False
        assert closed or names == _described(SCHEMAS[name]), name
        for key in SCHEMAS[name].get("required", ()):
            lacking = {one: value for one, value in body.items() if one != key}
            assert not valid(name, lacking)
            async with http.request(route.method, path, json=lacking, headers=headers) as response:
                assert (await response.json())["error"]["code"] == "missing_parameter"
        if closed:
            async with http.request(
                route.method, path, json={**body, "nonsense": 1}, headers=headers
            ) as response:
                assert response.status == 400


def test_what_is_not_declared_cannot_be_read() -> None:
    body = RequestParameters({"a": 1}, "x").declared({"b": String()})
    with pytest.raises(LookupError, match=r"x\.a is not declared"):
        body.raw("a")
    with pytest.raises(LookupError, match=r"x\.b is not declared as Integer"):
        body.integer("b")


@pytest.mark.parametrize("fields", [CHAT, COMPLETION], ids=["chat", "completion"])
def test_schema_and_parser_agree_on_every_range(fields: Fields) -> None:
    chat = fields is CHAT
    name = "ChatCompletionRequest" if chat else "CompletionRequest"
    plain: Document = {"model": "m", **({"messages": HELLO} if chat else {"prompt": "x"})}
    refused = 0
    for key, field in fields.items():
        for value in (*_edges(field), None, [], {}, "", "zzz", False, True, 0, 1.5, -(10**30)):
            if value is None and field.required:
                continue
            body = {**plain, **TOGETHER.get(key, {}), key: value}
            told = _parsed(body, chat=chat)
            if told is not None and told.code not in ("invalid_type", "invalid_value"):
                # Refused for what it means together with others, or on purpose: see below.
                continue
            if told is not None and told.param != key and not told.param.startswith(f"{key}."):
                continue
            if told is not None and key in BEYOND and isinstance(value, str):
                continue
            refused += told is not None
            assert valid(name, body) is (told is None), (key, value, told)
        if isinstance(field, Only):
            for value in field.values:
                assert _parsed({**plain, key: value}, chat=chat) is None
                assert valid(name, {**plain, key: value})
            told = _parsed({**plain, key: {"x": 1}}, chat=chat)
            assert told is not None
            assert told.code == "unsupported_value"
            assert not valid(name, {**plain, key: {"x": 1}})
    assert refused > 200


def _edges(field: Any) -> tuple[Any, ...]:
    if isinstance(field, Integer):
        return (field.low - 1, field.low, field.high, field.high + 1, float(field.low))
    if isinstance(field, Number):
        return (field.low - 0.01, field.low, field.high, field.high + 0.01, "1")
    if isinstance(field, String) and field.chars_max is not None:
        return ("x" * field.chars_max, "x" * (field.chars_max + 1), 5)
    if isinstance(field, Object):
        return (5, "x", [1])
    return ()


def _parsed(body: Document, *, chat: bool) -> ParameterError | None:
    try:
        (chat_request if chat else completion_request)(RequestParameters(body), "req_1")
    except ParameterError as error:
        return error
    return None
