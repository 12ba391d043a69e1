"""Two real models, three machines that cannot hold them all: refused, made room for, preempted.

The budgets are counted from llama.cpp's own dry run, so that every step is decided by a few MiB:
`wide` holds the one model or the other, `narrow1` and `narrow2` hold the smaller one only. The
card of `wide` is a simulated one, so that the test can be the other program that uses it, too.
Each test begins with the same three peers, emptied of what the one before has left.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from fixtures.models import gemma_path, smollm2_path
from fixtures.peers import (
    MIB,
    Answer,
    PeerProcess,
    Peers,
    State,
    cluster_name,
    deployment_of,
    loopback_peer,
    ready,
    voting,
)

from aivailable.peer.deploying.memory_predictor import MemoryPredictor
from aivailable.peer.devices.simulated import FILE_NAME
from aivailable.peer.ports import PredictRequest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
]

CONTEXT_TOKENS = 1024
SLOTS = 1
IDLE_TTL_S = 2
SPARE_BYTES = 8 * MIB
FORM_LIMIT_S = 60.0
READY_LIMIT_S = 60.0


@dataclass
class House:
    """The peers, and what one replica of each model needs."""

    peers: Peers
    need_bytes: dict[str, int]
    wide_bytes: int

    @property
    def one(self) -> PeerProcess:
        """Whoever is asked."""
        return self.peers.peers[1]

    async def deploy(self, name: str, **body: Any) -> Answer:
        return await self.peers.deploy(
            self.one,
            model=str(MODELS[name]()),
            name=name,
            context=CONTEXT_TOKENS,
            slots=SLOTS,
            **body,
        )

    async def undeploy(self, name: str) -> None:
        answer = await self.peers.ask(self.one, "DELETE", f"/cluster/v1/deployments/{name}")
        assert answer.status == 200, answer.body
        await self.until(f"{name} is gone", lambda state: _replicas(state, name) == [])

    async def empty(self) -> None:
        """Nothing deployed, nobody else on wide's card."""
        for entry in (await self.peers.state(self.one))["deployments"]:
            await self.undeploy(entry["name"])
        await self.others_use(0)

    async def others_use(self, used_bytes: int) -> None:
        """Another program on wide's card holds this much; returns when all peers know."""
        path = self.peers.peers[0].home / FILE_NAME
        path.with_suffix(".new").write_text(json.dumps({"sim0": used_bytes}))
        path.with_suffix(".new").replace(path)
        await self.until(
            f"others use {used_bytes}", lambda state: _used_by_others(state) == used_bytes
        )

    async def until(self, what: str, condition: Any) -> State:
        """All peers see it; what the last of them saw."""
        states = await self.peers.until(
            what, lambda seen: all(condition(one) for one in seen), limit_s=READY_LIMIT_S
        )
        return states[-1]

    async def answers(self, name: str) -> None:
        """Through every peer, greedily: the same words."""
        answers = [
            await self.peers.complete(peer, name, "The sea is", temperature=0.0)
            for peer in self.peers.peers
        ]
        assert [answer.status for answer in answers] == [200] * 3, answers
        texts = {answer.body["choices"][0]["text"] for answer in answers}
        assert len(texts) == 1
        assert texts != {""}


MODELS = {"smollm2": smollm2_path, "gemma": gemma_path}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def furnished(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Starting three peers is what takes time."""
    oracle = MemoryPredictor()
    need = {}
    for name, path in MODELS.items():
        predicted = await oracle.predict(PredictRequest(path(), CONTEXT_TOKENS, SLOTS, {}))
        assert predicted.by == "oracle"
        need[name] = predicted.weights_bytes + predicted.kv_bytes + predicted.compute_bytes
    assert need["gemma"] > need["smollm2"] + SPARE_BYTES
    wide = need["gemma"] + need["smollm2"] - SPARE_BYTES
    narrow = need["smollm2"] + SPARE_BYTES
    folder, cluster = tmp_path_factory.mktemp("memory"), cluster_name()
    async with Peers() as peers:
        peers.peers = [
            loopback_peer(folder / "wide", cluster, devices=f"sim:WIDE:{wide}B"),
            loopback_peer(folder / "narrow1", cluster, devices=f"cpu:{narrow}B"),
            loopback_peer(folder / "narrow2", cluster, devices=f"cpu:{narrow}B"),
        ]
        for peer in peers.peers:
            peer.start()
        for peer in peers.peers:
            await peer.listening()
        await peers.until("three voters agree", voting(3), limit_s=FORM_LIMIT_S)
        yield House(peers, need, wide)


@pytest_asyncio.fixture(loop_scope="module")
async def house(furnished: House) -> House:
    """Nothing is deployed, whatever became of the test before."""
    await furnished.empty()
    return furnished


async def test_what_does_not_fit_is_refused_until_the_other_is_undeployed(house: House) -> None:
    answer = await house.deploy("smollm2", replicas_min=3, replicas_max=3)
    assert answer.status == 201, answer.body
    await house.until("all three serve", lambda state: _ready_count(state, "smollm2") == 3)
    refused = await house.deploy("gemma")
    assert refused.status == 422
    error = refused.body["error"]
    assert error["code"] == "does_not_fit"
    needs = f"needs {house.need_bytes['gemma'] / MIB:.0f} MiB"
    left = (house.wide_bytes - house.need_bytes["smollm2"]) / MIB
    assert f"wide sim0: {needs}, {left:.0f} MiB free" in error["message"]
    for name in ("narrow1", "narrow2"):
        assert f"{name} cpu0: {needs}, {SPARE_BYTES // MIB} MiB free" in error["message"]
    assert "gemma" not in {entry["name"] for entry in (await _state(house))["deployments"]}

    await house.undeploy("smollm2")
    answer = await house.deploy("gemma")
    assert answer.status == 201, answer.body
    state = await house.until("gemma is ready", lambda state: ready(state, "gemma"))
    assert [entry["node_name"] for entry in _replicas(state, "gemma")] == ["wide"]
    await house.answers("gemma")


async def test_a_higher_priority_takes_the_room_and_gives_it_back(house: House) -> None:
    answer = await house.deploy("gemma")
    assert answer.status == 201, answer.body
    await house.until("gemma is ready", lambda state: ready(state, "gemma"))
    answer = await house.deploy("smollm2", replicas_min=3, replicas_max=3, priority=5)
    assert answer.status == 201, answer.body
    state = await house.until(
        "smollm2 has taken wide, too",
        lambda state: (
            _ready_count(state, "smollm2") == 3
            and deployment_of(state, "gemma")["state"] == "unplaceable"
        ),
    )
    assert _replicas(state, "gemma") == []
    why = deployment_of(state, "gemma")["explanation"]
    assert f"needs {house.need_bytes['gemma'] / MIB:.0f} MiB" in why
    for node in state["nodes"]:
        (device,) = node["devices"]
        assert device["claimed_bytes"] <= device["total_bytes"]
    await house.answers("smollm2")
    await house.undeploy("smollm2")
    await house.until("gemma is back", lambda state: ready(state, "gemma"))
    await house.answers("gemma")


async def test_another_program_is_given_way_and_kills_nothing(house: House) -> None:
    left = house.need_bytes["smollm2"] - SPARE_BYTES
    await house.others_use(house.wide_bytes - left)
    answer = await house.deploy("smollm2", replicas_min=3, replicas_max=3)
    assert answer.status == 201, answer.body
    state = await house.until(
        "two serve, and wide is said to be short",
        lambda state: (
            _ready_count(state, "smollm2") == 2
            and f"{left // MIB} MiB free" in deployment_of(state, "smollm2")["explanation"]
        ),
    )
    assert "wide" not in {entry["node_name"] for entry in _replicas(state, "smollm2")}
    await house.others_use(0)
    state = await house.until("wide serves, too", lambda s: _ready_count(s, "smollm2") == 3)
    before = sorted(entry["replica"] for entry in _replicas(state, "smollm2"))
    await house.others_use(house.wide_bytes - house.need_bytes["smollm2"])
    refused = await house.deploy("gemma")
    assert refused.status == 422
    # Measured, smollm2 needed a few KiB less than predicted: its new claim leaves them.
    assert re.search(r"wide sim0: needs \d+ MiB, \d+ KiB free", refused.body["error"]["message"])
    state = await _state(house)
    assert sorted(entry["replica"] for entry in _replicas(state, "smollm2")) == before
    assert _ready_count(state, "smollm2") == 3
    await house.answers("smollm2")


async def test_what_is_asked_for_loads_and_what_is_idle_goes(house: House) -> None:
    for name in MODELS:
        answer = await house.deploy(name, replicas_min=0, replicas_max=1, idle_ttl_s=IDLE_TTL_S)
        assert answer.status == 201, answer.body
    state = await _state(house)
    assert state["replicas"] == []
    assert {entry["state"] for entry in state["deployments"]} == {"on demand"}
    asked = await house.peers.complete(house.one, "gemma", "The sea is", temperature=0.0)
    assert asked.status == 200, asked.body
    await house.until("gemma is unloaded", lambda state: _replicas(state, "gemma") == [])
    assert {entry["state"] for entry in (await _state(house))["deployments"]} == {"on demand"}


async def _state(house: House) -> State:
    return await house.peers.state(house.one)


def _replicas(state: State, name: str) -> list[dict[str, Any]]:
    return [entry for entry in state["replicas"] if entry["deployment"] == name]


def _used_by_others(state: State) -> int:
    (wide,) = [node for node in state["nodes"] if node["name"] == "wide"]
    return int(wide["devices"][0]["used_by_others_bytes"])


def _ready_count(state: State, name: str) -> int:
    return sum(entry["status"] == "ready" for entry in _replicas(state, name))
