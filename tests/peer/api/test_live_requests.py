"""What a key has under way ends when the key does, and says so."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, MODEL, USER, FakeService, answer, event

from aivailable.client import Client, ClientError
from aivailable.peer.api.auth import AuthRules
from aivailable.peer.api.auth.live_requests import GRACE_S, LOOK_EVERY_S
from aivailable.peer.api.server import ApiServer

LIMIT_S = 2.0
"""What is promised, at a node that hears of it."""
ASK: dict[str, Any] = {"model": MODEL, "prompt": "x"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def revoke(service: FakeService, text: str) -> None:
    keys = service.api_keys
    keys.known = [replace(one, revoked=one.revoked or one.label == text) for one in keys.known]
    service.observation.add_event(event(service.observation.applied + 1))


def blocked(service: FakeService) -> None:
    service.inference.script = [*answer("Hel")[:2], asyncio.Event()]


async def last_word(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The data of the last event of a stream that ends in time."""
    async with asyncio.timeout(LIMIT_S):
        text = (await response.text()).strip()
    found: dict[str, Any] = json.loads(text.rpartition("data: ")[2])
    return found


async def test_a_stream_of_a_revoked_key_ends_with_an_error(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    blocked(service)
    async with http.post(
        "/v1/completions", json={**ASK, "stream": True}, headers=bearer(USER)
    ) as response:
        await service.inference.blocked.wait()
        revoke(service, USER)
        told = await last_word(response)
    assert told["error"]["code"] == "key_revoked"
    assert USER not in told["error"]["message"]
    assert service.inference.running == 0


async def test_an_answer_in_the_making_is_refused(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    blocked(service)

    async def ask() -> tuple[int, str]:
        async with http.post("/v1/completions", json=ASK, headers=bearer(USER)) as response:
            return response.status, (await response.json())["error"]["code"]

    asking = asyncio.ensure_future(ask())
    await service.inference.blocked.wait()
    revoke(service, USER)
    async with asyncio.timeout(LIMIT_S):
        assert await asking == (401, "key_revoked")
    assert service.inference.running == 0


async def test_a_follower_of_events_is_ended(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    headers = {"Accept": "text/event-stream", **bearer(USER)}
    async with http.get("/cluster/v1/events", headers=headers) as response:
        assert (await response.content.readline()) == b": connected\n"
        revoke(service, USER)
        told = await last_word(response)
    assert told["error"]["code"] == "key_revoked"


async def test_our_own_client_is_told_why_its_events_end(
    server: ApiServer, service: FakeService
) -> None:
    service.observation.add_event(event(6))
    async with Client([f"http://127.0.0.1:{server.port}"], USER) as client:
        events = client.events(5)
        assert (await anext(events)).version == 6
        revoke(service, USER)
        with pytest.raises(ClientError) as caught:
            async with asyncio.timeout(LIMIT_S):
                [one async for one in events]
    assert caught.value.code == "key_revoked"


async def test_other_keys_and_this_machine_go_on(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    opened = asyncio.Event()
    service.inference.script = [*answer("Hel")[:2], opened, *answer("lo")[1:]]

    async def ask(headers: dict[str, str]) -> int:
        async with http.post("/v1/completions", json=ASK, headers=headers) as response:
            return response.status

    asking = [asyncio.ensure_future(ask(headers)) for headers in (bearer(ADMIN), {}, bearer(USER))]
    while service.inference.running < len(asking):
        await asyncio.wait(asking, timeout=0.01)
    revoke(service, USER)
    async with asyncio.timeout(LIMIT_S):
        assert await asking[2] == 401
    opened.set()
    assert [await one for one in asking[:2]] == [200, 200]


async def test_without_auth_a_key_is_a_label_and_ends_nothing(
    serve: Any, service: FakeService
) -> None:
    server = await serve(rules=AuthRules(require_auth=False))
    opened = asyncio.Event()
    service.inference.script = [*answer("Hel")[:2], opened, *answer("lo")[1:]]

    async def ask() -> int:
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=ASK, headers=bearer(USER)) as response,
        ):
            return response.status

    asking = asyncio.ensure_future(ask())
    await service.inference.blocked.wait()
    revoke(service, USER)
    await asyncio.wait([asking], timeout=GRACE_S + 2 * LOOK_EVERY_S)
    opened.set()
    assert await asking == 200


async def test_a_node_that_knows_no_keys_at_the_moment_ends_nothing(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    opened = asyncio.Event()
    service.inference.script = [*answer("Hel")[:2], opened, *answer("lo")[1:]]
    service.observation.is_ready = (False, "the cluster's state has not arrived yet")
    asking = asyncio.ensure_future(
        http.post("/v1/completions", json=ASK, headers=bearer(USER)).__aenter__()
    )
    await service.inference.blocked.wait()
    revoke(service, USER)
    await asyncio.wait([asking], timeout=GRACE_S + 2 * LOOK_EVERY_S)
    opened.set()
    response = await asking
    assert response.status == 200
    response.close()


async def test_a_request_that_revokes_its_own_key_is_answered(
    server: ApiServer, service: FakeService
) -> None:
    own = next(one for one in service.api_keys.known if one.label == ADMIN)

    class Changes:
        async def propose(self, body: object, *, actor: str, reason: str) -> None:
            revoke(service, ADMIN)

    service.changes.propose = Changes().propose  # type: ignore[method-assign]
    url = f"http://127.0.0.1:{server.port}/cluster/v1/keys/{own.key_id}"
    async with (
        aiohttp.ClientSession() as session,
        session.delete(url, headers=bearer(ADMIN)) as response,
    ):
        assert response.status == 200
    assert not service.api_keys.with_id(own.key_id)
