"""One real cluster for each module of system tests: starting three peers is what takes time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from system.real_cluster import RealCluster, real_cluster

pytest.importorskip("llama_cpp", reason="the engine extra is not installed")
pytest.importorskip("openai", reason="the openai client is not installed")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealCluster]:
    """SmolLM2 on two of three peers."""
    async with real_cluster(tmp_path_factory.mktemp("real"), replicas=2) as cluster:
        yield cluster
