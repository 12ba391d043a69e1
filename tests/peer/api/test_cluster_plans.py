"""/cluster/v1/fit and ?dry_run=1: questions, asked by an admin, that change nothing."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from fixtures.api_service import ADMIN, USER, FakeService
from fixtures.plans import some_fit, some_plan

from aivailable.client import Client, ClientError
from aivailable.core.serving.status import FitStatus, PlanStatus
from aivailable.errors import RequestError
from aivailable.peer.api.server import ApiServer
from aivailable.wire.schema import from_plain


async def post(
    http: aiohttp.ClientSession, path: str, body: Any, key: str = ADMIN
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    async with http.post(f"/cluster/v1/{path}", json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_a_fit_is_answered_whole(http: aiohttp.ClientSession, service: FakeService) -> None:
    wanted = {"model": "m", "context": 2048, "slots": 2, "options": {"kv_type": "q8_0"}}
    status, body = await post(http, "fit", wanted)
    assert (status, from_plain(FitStatus, body)) == (200, some_fit())
    (request,) = service.deployments.fitted
    assert (request.context, request.slots, request.options) == (2048, 2, {"kv_type": "q8_0"})
    assert service.changes.proposed == []


@pytest.mark.parametrize("given", [{}, {"model": "m", "pin": True}, {"model": "m", "slots": 0}])
async def test_a_wrong_question_is_refused(
    http: aiohttp.ClientSession, service: FakeService, given: Any
) -> None:
    assert (await post(http, "fit", given))[0] == 400
    assert service.deployments.fitted == []


async def test_a_dry_run_deploys_nothing(http: aiohttp.ClientSession, service: FakeService) -> None:
    status, body = await post(http, "deployments?dry_run=1", {"model": "m", "replicas_min": 2})
    assert (status, from_plain(PlanStatus, body)) == (200, some_plan())
    assert [request.replicas_min for request in service.deployments.previewed] == [2]
    assert service.deployments.deployed == []


async def test_both_need_an_admin(http: aiohttp.ClientSession, service: FakeService) -> None:
    for path in ("fit", "deployments?dry_run=1"):
        assert (await post(http, path, {"model": "m"}, USER))[0] == 403
    assert (
        service.deployments.fitted
        == service.deployments.previewed
        == service.deployments.deployed
        == []
    )


async def test_the_client_asks_both(server: ApiServer, service: FakeService) -> None:
    async with Client([f"http://127.0.0.1:{server.port}"], ADMIN) as client:
        assert await client.fit("m", context=None, slots=2) == some_fit()
        assert await client.preview("m", name="n") == some_plan()
        assert (await client.drain("one", True, force=True)).draining
        service.deployments.refuse = RequestError(404, "unknown_model", "no model 'm'")
        with pytest.raises(ClientError, match="no model 'm'"):
            await client.fit("m")
    assert service.members.drained[0][1:3] == (True, True)
