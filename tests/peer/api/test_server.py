"""The server itself: ports, both address families, health, metrics, and its description."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import MODEL, FakeService
from fixtures.peer_ports import HandClock
from prometheus_client.parser import text_string_to_metric_families

from aivailable.errors import ConfigError
from aivailable.peer.api.server import ApiServer


async def test_a_port_in_use_is_a_clear_config_error(server: ApiServer) -> None:
    for hosts in (("127.0.0.1",), ("0.0.0.0", "::")):
        second = ApiServer(FakeService(), HandClock(), hosts=hosts, port=server.port)
        with pytest.raises(ConfigError) as caught:
            await second.start()
        assert str(caught.value).startswith(
            f"port {server.port} is in use by another program, perhaps of another user: choose"
            " another, like `aivailable up --port "
        )
        await second.stop()


async def test_an_address_of_another_machine_is_a_clear_config_error() -> None:
    server = ApiServer(FakeService(), HandClock(), hosts=("192.0.2.1",), port=0)
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        await server.start()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_one_port_serves_both_address_families(serve: Any) -> None:
    server = await serve(hosts=("0.0.0.0", "::"))
    hosts = ["127.0.0.1", "[::1]"] if _has_ipv6() else ["127.0.0.1"]
    async with aiohttp.ClientSession() as session:
        for host in hosts:
            async with session.get(f"http://{host}:{server.port}/v1/models") as response:
                assert response.status == 200


async def test_health_says_alive_and_ready_apart(
    http: aiohttp.ClientSession, service: FakeService
) -> None:
    service.observation.is_ready = (False, "waits to be admitted")
    async with http.get("/healthz") as response:
        assert response.status == 200
    async with http.get("/readyz") as response:
        assert response.status == 503
        assert await response.json() == {"ready": False, "reason": "waits to be admitted"}
    service.observation.is_ready = (True, "")
    async with http.get("/readyz") as response:
        assert response.status == 200
    async with http.get("/") as response:
        assert "AIvailable" in await response.text()


async def test_metrics_count_what_happened(http: aiohttp.ClientSession) -> None:
    ask = {"model": MODEL, "prompt": "x"}
    async with http.post("/v1/completions", json=ask) as response:
        assert response.status == 200
    async with http.post("/v1/completions", json={**ask, "model": "none"}) as response:
        assert response.status == 404
    async with http.get("/nowhere/secret") as response:
        assert response.status == 404
    async with http.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await response.text()
    found = {
        (sample.name.removeprefix("aivailable_"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["requests_total", "/v1/completions", "done"] == 1
    assert found["requests_total", "/v1/completions", "refused"] == 1
    assert found["requests_total", "refused", "unknown"] == 1
    assert found["completion_tokens_total",] == 3
    assert found["up",] == 1
    assert found["build_info", "0.1.0"] == 1
    assert found["replicas", "ready"] == 1
    assert found["time_to_first_token_seconds_bucket", "+Inf"] == 1
    assert found["time_to_first_token_seconds_count",] == 1
    assert "secret" not in text


async def test_unknown_paths_and_methods_are_told_in_the_same_shape(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/v2/x") as response:
        body = await response.json()
        assert (response.status, body["error"]["code"]) == (404, "not_found")
        assert body["error"]["request_id"] == response.headers["X-AIvailable-Request"]
    async with http.get("/v1/completions") as response:
        body = await response.json()
        assert (response.status, body["error"]["code"]) == (405, "method_not_allowed")
        assert "POST" in body["error"]["message"]


async def test_the_description_names_exactly_the_routes_there_are(
    http: aiohttp.ClientSession, server: ApiServer
) -> None:
    async with http.get("/openapi.json") as response:
        described = await response.json()
    there = {
        (route.resource.canonical, route.method.lower())
        for route in server.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert there == {
        (path, method) for path, methods in described["paths"].items() for method in methods
    }
