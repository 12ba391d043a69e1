"""Hosts on a LAN of their own: real mDNS, real TLS, a real model, the real OpenAI client."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest
from fixtures.models import smollm2_path
from fixtures.netns import Lan, lan
from fixtures.peers import Peers, ready, voting

SEED = 20261121
ROUNDS = 3
DEPLOY_LIMIT_S = 90.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def _rounds() -> ModuleType:
    """The script beside this test (tests are no package)."""
    path = Path(__file__).with_name("rounds.py")
    spec = importlib.util.spec_from_file_location("rounds", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_three_hosts_become_one_cluster(namespaces: None, tmp_path: Path) -> None:
    """Random start offsets up to ten seconds; rounds.py plays twenty. Each round has a LAN of its
    own, so they wait for their offsets together."""

    async def one(number: int) -> None:
        with lan(3) as hosts:
            rng = random.Random(f"{SEED}/{number}")
            print(await _rounds().play(hosts, tmp_path / f"round{number}", rng))

    async with asyncio.TaskGroup() as rounds:
        for number in range(1, ROUNDS + 1):
            rounds.create_task(one(number))


@pytest.mark.long
async def test_three_hosts_always_become_one_cluster(namespaces: None) -> None:
    assert await _rounds().run(20, SEED) == 0


async def test_the_openai_client_streams_from_every_address(hosts: Lan, tmp_path: Path) -> None:
    """Deploy a real model on one; the key printed at founding opens all three."""
    pytest.importorskip("llama_cpp", reason="no inference engine is installed")
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    rounds = _rounds()
    async with Peers([rounds.peer_on(hosts, n, tmp_path) for n in (1, 2, 3)]) as peers:
        await rounds.start_with_offsets(peers, [0.0, 0.5, 1.0])
        await peers.until("one cluster, three voters", voting(3), limit_s=60.0)
        deployed = await peers.deploy(
            peers.peers[0], model=str(smollm2_path()), name="smollm2", context=512, slots=2
        )
        assert deployed.status == 201, deployed.body
        await peers.until("the model is ready", lambda s: all(ready(x, "smollm2") for x in s),
                          limit_s=DEPLOY_LIMIT_S)  # fmt: skip
        texts = []
        for number, peer in enumerate(peers.peers, start=1):
            client = openai.AsyncOpenAI(
                base_url=f"http://{hosts.address(number)}:8420/v1",
                api_key=peers.peers[0].key,
                max_retries=0,
                timeout=60.0,
            )
            async with client:
                stream = await client.chat.completions.create(
                    model="smollm2",
                    messages=[{"role": "user", "content": "Say hello."}],
                    max_tokens=12,
                    temperature=0.0,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                chunks = [chunk async for chunk in stream]
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens > 0
            texts.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
            print(f"{peer.name}: {texts[-1]!r}")
        assert texts[0].strip()
        assert texts == [texts[0]] * 3
        safe = await peers.until(
            "two copies of the file",
            lambda s: s[0]["deployments"][0]["copies"] >= s[0]["deployments"][0]["copies_wanted"],
            limit_s=60.0,
        )
        assert safe[0]["deployments"][0]["copies_wanted"] == 2


async def test_a_cut_cable_takes_one_node_and_gives_it_back(hosts: Lan, tmp_path: Path) -> None:
    rounds = _rounds()
    async with Peers([rounds.peer_on(hosts, n, tmp_path) for n in (1, 2, 3)]) as peers:
        await rounds.start_with_offsets(peers, [0.0, 0.0, 0.0])
        await peers.until("one cluster, three voters", voting(3), limit_s=60.0)
        hosts.cut(3)
        staying = peers.peers[:2]
        await peers.until(
            "the cut host is down",
            lambda s: all(sum(n["state"] == "down" for n in x["nodes"]) == 1 for x in s),
            staying,
        )
        hosts.mend(3)
        states = await peers.until("all agree again", voting(3), limit_s=60.0)
        await peers.until(
            "it is up again", lambda s: all(n["state"] != "down" for x in s for n in x["nodes"])
        )
        assert len(states[0]["voters"]) == 3
