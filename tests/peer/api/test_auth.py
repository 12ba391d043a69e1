"""Who may ask what: the matrix of keys, origins of a request, and routes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from fixtures.api_service import ADMIN, NODE, REVOKED, USER, FakeApiKeys, FakeService
from fixtures.peer_ports import HandClock

from aivailable.errors import RequestError
from aivailable.peer.api.accounting import RequestRecord, attach, record_of
from aivailable.peer.api.auth import AuthRules, authenticate, require_admin
from aivailable.peer.api.description.routes import open_paths
from aivailable.peer.api.server import ApiServer

OPEN = open_paths(ApiServer(FakeService(), HandClock()).routes)
LOCAL, LOCAL6, MAPPED, REMOTE = "127.0.0.1", "::1", "::ffff:127.0.0.1", "192.168.1.9"


class Wire:
    """A transport that only knows who is at its other end."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self._peer, 40000) if name == "peername" else default

    def is_closing(self) -> bool:
        return False


def request_from(
    peer: str, key: str | None = None, path: str = "/v1/models", **headers: str
) -> web.Request:
    sent = {"Host": "localhost:8420"}
    sent.update({name.replace("_", "-"): text for name, text in headers.items()})
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    request = make_mocked_request("GET", path, headers=sent, transport=Wire(peer))
    attach(request, RequestRecord("req_1", "GET", path, 0.0))
    return request


def verdict(
    request: web.Request, *, require_auth: bool = True, rules: AuthRules | None = None
) -> str:
    """user | admin | the refusal's status and code."""
    rules = rules or AuthRules(require_auth)
    try:
        authenticate(request, FakeApiKeys(), NODE, rules=rules, open_paths=OPEN)
    except RequestError as error:
        return f"{error.status} {error.code}"
    if record_of(request).admin:
        return "admin"
    with pytest.raises(RequestError) as caught:
        require_admin(request)
    assert (caught.value.status, caught.value.code) == (403, "admin_required")
    return "user"


@pytest.mark.parametrize("peer", [LOCAL, LOCAL6, MAPPED, REMOTE])
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (ADMIN, "admin"),
        (USER, "user"),
        (REVOKED, "401 invalid_api_key"),
        ("av-guess", "401 invalid_api_key"),
        ("", "401 invalid_api_key"),
        ("k" * 300, "401 invalid_api_key"),
    ],
)
def test_a_key_counts_the_same_from_everywhere(peer: str, key: str, expected: str) -> None:
    assert verdict(request_from(peer, key)) == expected


@pytest.mark.parametrize(
    ("peer", "expected"),
    [(LOCAL, "user"), (LOCAL6, "user"), (MAPPED, "user"), (REMOTE, "401 missing_api_key")],
)
def test_without_a_key_only_loopback_is_user(peer: str, expected: str) -> None:
    assert verdict(request_from(peer)) == expected


FORWARDING = [
    *("X-Forwarded-For", "X-Forwarded-Proto", "x-forwarded-host", "Forwarded", "Via", "X-Real-IP"),
    *("CF-Connecting-IP", "True-Client-IP", "X-Client-IP", "Fastly-Client-IP"),
]


@pytest.mark.parametrize("header", FORWARDING)
def test_what_a_proxy_forwards_is_not_local(header: str) -> None:
    request = request_from(LOCAL, **{header: "127.0.0.1"})
    assert verdict(request) == "401 missing_api_key"


def test_another_authorization_scheme_is_refused() -> None:
    request = request_from(LOCAL, Authorization="Basic YTpi")
    assert verdict(request) == "401 invalid_api_key"


def test_without_auth_everyone_is_admin_and_any_key_goes() -> None:
    for key in (None, "sk-dummy", USER):
        assert verdict(request_from(REMOTE, key), require_auth=False) == "admin"


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/openapi.json"])
def test_open_paths_answer_strangers_but_not_wrong_keys(path: str) -> None:
    assert verdict(request_from(REMOTE, path=path)) == "user"
    assert verdict(request_from(REMOTE, "av-guess", path)) == "401 invalid_api_key"


OWN_HOSTS = ["localhost", "127.0.0.1:8420", "[::1]:8420", "a.localhost:1", "host.docker.internal"]


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_names_of_this_machine_are_allowed_without_a_key(host: str) -> None:
    assert verdict(request_from(LOCAL, Host=host)) == "user"


@pytest.mark.parametrize("host", ["10.0.0.7:1", "pc1", "pc1.local:8420", "ai.example"])
def test_a_proxy_that_adds_no_header_shows_by_the_host_it_was_asked_for(host: str) -> None:
    assert verdict(request_from(LOCAL, Host=host)) == "401 missing_api_key"
    listed = AuthRules(hosts=frozenset({"pc1", "pc1.local", "*.example"}))
    name = host.partition(":")[0]
    expected = "401 missing_api_key" if name == "10.0.0.7" else "user"
    assert verdict(request_from(LOCAL, Host=host), rules=listed) == expected


@pytest.mark.parametrize("host", ["evil.example:8420", "localhost.evil.example", "[evil]:1"])
def test_a_rebound_name_is_refused_without_a_key(host: str) -> None:
    assert verdict(request_from(LOCAL, Host=host)) == "401 missing_api_key"
    assert verdict(request_from(LOCAL, USER, Host=host)) == "user"
    for peer in (LOCAL, REMOTE):
        request = request_from(peer, Host=host)
        assert verdict(request, require_auth=False) == "403 host_not_allowed"


@pytest.mark.parametrize("require_auth", [True, False])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000"])
def test_a_foreign_page_is_refused_without_a_key(origin: str, require_auth: bool) -> None:
    request = request_from(LOCAL, Origin=origin)
    assert verdict(request, require_auth=require_auth) == "403 origin_not_allowed"


def test_a_page_of_the_same_host_or_with_a_key_is_served() -> None:
    assert verdict(request_from(LOCAL, Origin="http://localhost:8420")) == "user"
    assert verdict(request_from(LOCAL, ADMIN, Origin="https://evil.example")) == "admin"


MUTATIONS = [
    ("POST", "/cluster/v1/deployments"),
    ("DELETE", "/cluster/v1/deployments/x"),
    ("GET", "/cluster/v1/keys"),
    ("POST", "/cluster/v1/keys"),
    ("DELETE", "/cluster/v1/keys/12345678"),
    ("GET", "/cluster/v1/members/one/keys"),
    ("DELETE", "/cluster/v1/members/one"),
    ("POST", "/cluster/v1/window"),
    ("POST", "/cluster/v1/leave"),
    ("POST", "/cluster/v1/recover"),
    ("POST", "/cluster/v1/merge"),
]


@pytest.mark.parametrize(("method", "path"), MUTATIONS)
async def test_changes_need_an_admin_key(
    http: aiohttp.ClientSession, service: FakeService, method: str, path: str
) -> None:
    for headers in ({}, {"Authorization": f"Bearer {USER}"}):
        async with http.request(method, path, json={}, headers=headers) as response:
            body = await response.json()
        assert (response.status, body["error"]["code"]) == (403, "admin_required")
        assert body["error"]["type"] == "permission_error"
    did = SimpleNamespace(
        proposed=service.changes.proposed,
        deployed=service.deployments.deployed,
        left=service.members.left,
    )
    assert did == SimpleNamespace(proposed=[], deployed=[], left=False)


async def test_an_admin_key_that_may_be_revoked_is_a_user_and_is_told_why(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.api_keys.doubted = list(service.api_keys.known)
    headers = {"Authorization": f"Bearer {ADMIN}"}
    async with http.get("/v1/models", headers=headers) as response:
        assert response.status == 200
    async with http.post("/cluster/v1/leave", headers=headers) as response:
        told = (await response.json())["error"]
    assert (response.status, told["code"]) == (403, "admin_required")
    assert "cut off" in told["message"]
    assert "the node's own key" in told["message"]
    assert not service.members.left


async def test_a_refused_key_is_told_in_openais_shape(http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"Bearer {REVOKED}"}
    async with http.get("/v1/models", headers=headers) as response:
        body = await response.json()
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert response.status == 401
    assert body["error"]["code"] == "invalid_api_key"
    assert body["error"]["type"] == "authentication_error"
    assert REVOKED not in body["error"]["message"]
