"""A real API server on a real socket with a scripted node behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from fixtures.api_service import FakeService
from fixtures.peer_ports import HandClock

from aivailable.peer.api.server import ApiServer

Serve = Callable[..., Awaitable[ApiServer]]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
async def serve(service: FakeService) -> AsyncIterator[Serve]:
    """Starts servers on ephemeral loopback ports; stops them all at the end."""
    started: list[ApiServer] = []

    async def start(behind: FakeService = service, **options: Any) -> ApiServer:
        options.setdefault("hosts", ("127.0.0.1",))
        server = ApiServer(behind, HandClock(), port=0, **options)
        await server.start()
        behind.observation.api_port = server.port
        started.append(server)
        return server

    yield start
    for server in started:
        await server.stop()


@pytest.fixture
async def server(serve: Serve) -> ApiServer:
    return await serve()


@pytest.fixture
async def http(server: ApiServer) -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client without a key, at `server`."""
    url = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession(base_url=url) as session:
        yield session
