"""/cluster/v1: what can be read, what can be changed, and the stream of events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, MODEL, NODE, USER, FakeService, api_key, event

from aivailable.core.ids import key_hash, key_id
from aivailable.core.serving.status import ClusterStatus
from aivailable.core.state.commands import PutSettings, RemoveDeployment, RevokeKey, SetWindow
from aivailable.core.state.records import ClusterSettings, Scope
from aivailable.errors import GgufError, ProposalRejected, ProposalUnknown, RequestError
from aivailable.peer.api.bodies.reading import CLUSTER_BODY_MAX_BYTES
from aivailable.peer.api.server import ApiServer
from aivailable.wire.schema import from_plain

ACTOR = f"operator:{key_id(key_hash(ADMIN))}"


@pytest.fixture
async def admin(server: ApiServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        base_url=f"http://127.0.0.1:{server.port}", headers={"Authorization": f"Bearer {ADMIN}"}
    ) as session:
        yield session


async def call(
    session: aiohttp.ClientSession, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    async with session.request(method, f"/cluster/v1/{path}", json=body) as response:
        return response.status, await response.json()


async def test_the_state_is_the_whole_status_document(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    status, body = await call(http, "GET", "state")
    assert status == 200
    assert from_plain(ClusterStatus, body) == service.observation.status()


async def test_parts_of_the_state_have_their_own_addresses(
    http: aiohttp.ClientSession,
) -> None:
    _, nodes = await call(http, "GET", "nodes")
    assert nodes["nodes"][0]["node"] == NODE
    _, members = await call(http, "GET", "members")
    assert members["voters"] == [NODE]
    assert "devices" not in members["members"][0]
    _, deployments = await call(http, "GET", "deployments")
    assert deployments["deployments"][0]["name"] == MODEL
    assert deployments["replicas"][0]["status"] == "ready"
    _, models = await call(http, "GET", "models")
    assert models == {"version": 5, "models": []}


async def test_deploy_passes_what_was_asked(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    wanted = {"model": "/m/a.gguf", "name": "a/b:c", "context": 2048, "slots": None}
    status, body = await call(admin, "POST", "deployments", wanted)
    assert (status, body["name"]) == (201, "a/b:c")
    request, actor = service.deployments.deployed[0]
    assert (request.model, request.context, request.slots) == ("/m/a.gguf", 2048, None)
    assert actor == ACTOR


async def test_context_and_slots_may_be_automatic(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    for wanted, context, slots in (
        ({"context": "auto", "slots": "auto"}, (None, 0), (None, 0)),
        ({"slots": "auto", "slots_max": 8}, (None, None), (None, 8)),
        ({"slots": 2, "slots_max": 8}, (None, None), (2, 8)),
    ):
        status, _ = await call(admin, "POST", "deployments", {"model": "m"} | wanted)
        request, _ = service.deployments.deployed[-1]
        assert status == 201
        assert (request.context, request.context_max) == context
        assert (request.slots, request.slots_max) == slots


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "model"),
        ({"model": "m", "slots": "some"}, "slots"),
        ({"model": "m", "slots_max": -1}, "slots_max"),
        ({"model": 1}, "model"),
        ({"model": "m", "contxt": 1}, "contxt"),
        ({"model": "m", "context": 0}, "context"),
        ({"model": "m", "replicas_min": 3, "replicas_max": 2}, "replicas_max"),
        ({"model": "m", "name": "a b"}, "name"),
        ({"model": "m", "aliases": ["ok", ""]}, "aliases"),
        ({"model": "m", "options": []}, "options"),
    ],
)
async def test_a_wrong_deployment_is_refused_by_name(
    admin: aiohttp.ClientSession, service: FakeService, given: Any, param: str
) -> None:
    status, body = await call(admin, "POST", "deployments", given)
    assert (status, body["error"]["param"]) == (400, param)
    assert service.deployments.deployed == []


async def test_a_wrong_type_deep_inside_is_a_400(admin: aiohttp.ClientSession) -> None:
    status, body = await call(
        admin, "POST", "deployments", {"model": "m", "options": {"kv_type": 8}}
    )
    assert status == 400
    assert "options.kv_type" in body["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ProposalRejected("generation_conflict", "changed meanwhile"), 409, None),
        (ProposalUnknown("no answer in 10 s"), 503, "outcome_unknown"),
        (GgufError("a.gguf is cut short"), 400, "bad_model_file"),
        (FileNotFoundError(2, "No such file or directory", "/m/a.gguf"), 400, "file_error"),
        (OSError(28, "No space left on device"), 500, "io_error"),
        (RequestError(422, "fits_nowhere", "needs 9 GiB, 6 free"), 422, "fits_nowhere"),
        (ZeroDivisionError("a bug"), 500, "internal_error"),
    ],
)
async def test_what_the_node_refuses_keeps_its_meaning(
    admin: aiohttp.ClientSession,
    service: FakeService,
    error: Exception,
    status: int,
    code: str | None,
) -> None:
    service.deployments.refuse = error
    async with admin.post("/cluster/v1/deployments", json={"model": "m"}) as response:
        body = await response.json()
    assert response.status == status
    assert body["error"]["code"] == (code or "generation_conflict")
    assert ("Retry-After" in response.headers) == (status == 503)
    assert "a bug" not in body["error"]["message"]


async def test_a_change_is_small(admin: aiohttp.ClientSession) -> None:
    body = b" " * (CLUSTER_BODY_MAX_BYTES + 1)
    for data in (body, _in_pieces(body)):
        async with admin.post("/cluster/v1/keys", data=data) as response:
            answered = await response.json()
        assert (response.status, answered["error"]["code"]) == (413, "request_too_large")
        assert str(CLUSTER_BODY_MAX_BYTES) in answered["error"]["message"]


async def _in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 4096):
        yield body[at : at + 4096]


async def test_changes_become_commands(admin: aiohttp.ClientSession, service: FakeService) -> None:
    assert (await call(admin, "DELETE", "deployments/org%2Ftiny:q4"))[0] == 200
    assert (await call(admin, "DELETE", "deployments/org/tiny"))[0] == 200
    assert (await call(admin, "DELETE", "keys/12345678"))[0] == 200
    assert (await call(admin, "POST", "window", {"duration_s": 900}))[0] == 200
    assert (await call(admin, "POST", "window", {"duration_s": 0}))[0] == 200
    assert service.changes.proposed == [
        (RemoveDeployment("org/tiny:q4"), ACTOR),
        (RemoveDeployment("org/tiny"), ACTOR),
        (RevokeKey("12345678"), ACTOR),
        (SetWindow(900), ACTOR),
        (SetWindow(0), ACTOR),
    ]
    assert (await call(admin, "POST", "leave"))[0] == 200
    assert service.members.left


async def test_recover_says_what_was_given_up_and_is_refused_while_there_is_a_leader(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    status, body = await call(admin, "POST", "recover")
    assert status == 200
    assert body == {
        "cluster_id": "new" + "c" * 23,
        "gone": ["host-b"],
        "awaited": [],
        "ended_keys": ["12345678"],
        "lost_models": ["tiny"],
    }
    assert service.members.expected is None
    await call(admin, "POST", "recover?with=one&keep_key=11112222")
    assert (service.members.expected, service.members.kept) == ((NODE,), ("11112222",))
    await call(admin, "POST", "recover?alone=1")
    assert service.members.expected == ()
    assert (await call(admin, "POST", "recover?with=nobody"))[0] == 404
    service.members.leader_known = True
    status, body = await call(admin, "POST", "recover")
    assert (status, body["error"]["code"]) == (409, "has_leader")


async def test_merge_names_the_other_cluster(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    assert (await call(admin, "POST", "merge", {}))[0] == 400
    assert (await call(admin, "POST", "merge", {"into": "x" * 65}))[0] == 400
    assert service.members.merged == []
    assert (await call(admin, "POST", "merge", {"into": "z" * 26}))[0] == 200
    assert service.members.merged == [("z" * 26, ACTOR)]


async def test_a_consistent_state_waits_for_a_majority(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    assert (await call(admin, "GET", "state"))[0] == 200
    assert service.observation.barriers == 0
    assert (await call(admin, "GET", "state?consistent=1"))[0] == 200
    assert service.observation.barriers == 1
    service.observation.refuse = ProposalUnknown("no majority")
    assert (await call(admin, "GET", "state?consistent=1"))[0] == 503


@pytest.mark.parametrize("wanted", [NODE, NODE[:4], "one"])
async def test_a_member_is_removed_by_id_prefix_or_name(
    admin: aiohttp.ClientSession, service: FakeService, wanted: str
) -> None:
    assert (await call(admin, "DELETE", f"members/{wanted}"))[0] == 200
    assert service.members.removed == [(NODE, ACTOR)]


async def test_what_a_removal_does_to_keys_is_shown_before_and_said_after(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    through, user = api_key(ADMIN, Scope.ADMIN).key_id, service.api_keys.keys()[1].key_id
    status, body = await call(admin, "GET", f"members/one/keys?revoke_key={user}")
    assert (status, body["node"], body["problem"]) == (200, NODE, "")
    assert {one["key_id"]: one["ends"] for one in body["keys"]} == {through: True, user: True}
    assert service.members.removed == []
    status, body = await call(admin, "DELETE", f"members/one?keep_key={through}")
    assert (status, body) == (200, {"removed": NODE, "ended_keys": [], "kept_keys": [through]})


@pytest.mark.parametrize("wanted", ["nobody", NODE[:3]])
async def test_nobody_is_removed_by_guess(
    admin: aiohttp.ClientSession, service: FakeService, wanted: str
) -> None:
    assert (await call(admin, "DELETE", f"members/{wanted}"))[0] == 404
    assert service.members.removed == []


@pytest.mark.parametrize("given", [{}, {"duration_s": -1}, {"duration_s": 90_000}])
async def test_a_wrong_window_is_refused(
    admin: aiohttp.ClientSession, service: FakeService, given: Any
) -> None:
    assert (await call(admin, "POST", "window", given))[0] == 400
    assert service.changes.proposed == []


async def test_a_new_key_is_shown_once_and_hashes_never(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    status, made = await call(admin, "POST", "keys", {"scope": "user", "label": "bob"})
    assert (status, made["key"], made["scope"]) == (201, "av-minted-bob", "user")
    status, listed = await call(admin, "GET", "keys")
    assert len(listed["keys"]) == 3
    assert all(one.hashed not in json.dumps(listed) for one in service.api_keys.known)
    for wrong in ({"scope": "root"}, {"label": "x" * 65}, {"label": "a\nb"}):
        assert (await call(admin, "POST", "keys", wrong))[0] == 400


async def test_events_as_json_go_on_after_a_version(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    for version in (6, 7, 7, 8):
        service.observation.add_event(event(version))
    _, first = await call(http, "GET", "events?after=5&limit=2")
    assert [one["version"] for one in first["events"]] == [6, 7, 7]
    _, rest = await call(http, "GET", f"events?after={first['version']}")
    assert [one["version"] for one in rest["events"]] == [8]
    _, none = await call(http, "GET", "events?after=8")
    assert none == {"version": 8, "events": []}
    for wrong in ("after=x", "after=-1", "limit=0"):
        assert (await call(http, "GET", f"events?{wrong}"))[0] == 400


async def next_event(response: aiohttp.ClientResponse) -> tuple[str, Any]:
    """(id, data) of the next event, comments passed over."""
    event_id = ""
    async for raw in response.content:
        line = raw.decode().strip()
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: "):
            return event_id, json.loads(line[6:])
    raise AssertionError("the stream ended")


async def test_events_are_followed_and_resumed(
    http: aiohttp.ClientSession, server: ApiServer, service: FakeService
) -> None:
    service.observation.add_event(event(6, "first"))
    accept = {"Accept": "text/event-stream"}
    async with http.get("/cluster/v1/events", headers=accept) as response:
        assert await next_event(response) == ("6", {**_plain(6), "text": "first"})
        service.observation.add_event(event(7))
        service.observation.add_event(event(8))
        assert (await next_event(response))[0] == "7"
    seen = {**accept, "Last-Event-ID": "7"}
    async with http.get("/cluster/v1/events", headers=seen) as response:
        assert (await next_event(response))[0] == "8"
    async with http.get("/cluster/v1/events?after=6", headers=accept) as response:
        assert (await next_event(response))[0] == "7"
        await server.stop()
    assert server.metrics.outcomes() == {"done": 3}


def _plain(version: int) -> dict[str, Any]:
    return {
        "version": version,
        "kind": "noted",
        "subject": f"thing{version}",
        "actor": "planner",
        "reason": "why",
        "at_ms": 0,
        "text": "",
    }


@pytest.mark.parametrize("error", [RequestError(503, "not_a_member", "left"), KeyError("bug")])
async def test_an_event_stream_that_cannot_go_on_ends_cleanly(
    http: aiohttp.ClientSession, service: FakeService, error: Exception
) -> None:
    accept = {"Accept": "text/event-stream"}
    async with http.get("/cluster/v1/events?after=5", headers=accept) as response:
        assert response.status == 200
        service.observation.refuse = error
        service.observation.add_event(event(6))
        assert await response.text() == ": connected\n\n"


async def test_an_idle_event_stream_is_kept_alive(serve: Any) -> None:
    server = await serve(keep_alive_s=0.001)
    url = f"http://127.0.0.1:{server.port}/cluster/v1/events"
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {USER}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as got:
        alive = 0
        while alive < 2:
            alive += (await got.content.readline()) == b": keep-alive\n"


async def test_settings_are_shown_changed_and_refused_by_name(
    admin: aiohttp.ClientSession, service: FakeService
) -> None:
    status, body = await call(admin, "GET", "settings")
    assert status == 200
    shown = {one["key"]: (one["value"], one["unit"]) for one in body["settings"]}
    assert shown["idle_ttl_s"] == (600, "s")
    status, body = await call(admin, "PATCH", "settings", {"idle_ttl_s": 5, "spare_fill": False})
    assert status == 200
    ((proposed, actor),) = service.changes.proposed
    assert proposed == PutSettings(ClusterSettings(idle_ttl_s=5, spare_fill=False))
    assert actor == ACTOR
    for wrong in ({}, {"nonsense": 1}, {"down_after_ms": 1}, {"idle_ttl_s": "5"}):
        status, body = await call(admin, "PATCH", "settings", wrong)
        assert (status, body["error"]["code"]) == (400, "invalid_setting")
    assert len(service.changes.proposed) == 1


async def test_a_pause_is_passed_on(admin: aiohttp.ClientSession, service: FakeService) -> None:
    for name in ("one", "_here"):
        status, body = await call(admin, "POST", f"nodes/{name}/pause", {"duration_s": 60})
        assert (status, body["paused_left_s"]) == (200, 60)
    assert service.members.paused == [(NODE, 60), (NODE, 60)]
    for wrong in ({}, {"duration_s": -1}, {"duration_s": 10**9}):
        status, body = await call(admin, "POST", "nodes/one/pause", wrong)
        assert (status, body["error"]["param"]) == (400, "duration_s")


async def test_owners_and_settings_need_an_admin_key(
    service: FakeService, server: ApiServer
) -> None:
    async with aiohttp.ClientSession(
        base_url=f"http://127.0.0.1:{server.port}", headers={"Authorization": f"Bearer {USER}"}
    ) as user:
        assert (await call(user, "PATCH", "settings", {"idle_ttl_s": 5}))[0] == 403
        assert (await call(user, "POST", "nodes/one/pause", {"duration_s": 5}))[0] == 403
    assert (service.changes.proposed, service.members.paused) == ([], [])
