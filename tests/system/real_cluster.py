"""Three real peers that serve SmolLM2, asked by OpenAI's own client, and the workers' counters.

Owns the set-up that the system tests share. Counters come from `/cluster/v1/state` of the node
that hosts the replica: they are counted in the worker process, so they prove who did the work.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixtures.models import smollm2_path
from fixtures.peers import PeerProcess, Peers, State, cluster_name, loopback_peer, voting
from openai import AsyncOpenAI

MODEL = "smollm2"
CONTEXT_TOKENS = 2048
SLOTS = 2
FORM_LIMIT_S = 60.0
READY_LIMIT_S = 60.0
COUNTED_LIMIT_S = 10.0
"""Counters travel to the API with the worker's next step."""


@dataclass(frozen=True)
class Work:
    """A replica's counters since its worker's start."""

    finished: int
    cancelled: int
    failed: int
    generated_tokens: int


@dataclass
class RealCluster:
    """`roles` finds who hosts; every method asks anew."""

    peers: Peers

    async def roles(self) -> tuple[dict[str, PeerProcess], PeerProcess]:
        """(replica → the peer that hosts it, a peer that hosts none)."""
        states = await self.peers.states(self.alive())
        by_node = {s["here"]: p for s, p in zip(states, self.alive(), strict=True) if s}
        replicas = [r for r in states[0]["replicas"] if r["status"] == "ready"]
        hosts = {r["replica"]: by_node[r["node"]] for r in replicas}
        outside = next(p for p in self.alive() if p not in hosts.values())
        return hosts, outside

    def alive(self) -> list[PeerProcess]:
        return [peer for peer in self.peers.peers if peer.alive]

    async def work(self, replica: str, host: PeerProcess) -> Work:
        return work_of(await self.peers.state(host), replica)

    async def worked(self, replica: str, host: PeerProcess, expected: Work) -> None:
        """Waits until the worker has counted exactly this."""
        await self.peers.until(
            f"{replica} has counted {expected}",
            lambda states: work_of(states[0], replica) == expected,
            [host],
            COUNTED_LIMIT_S,
        )

    def client(self, peer: PeerProcess) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=peer.url + "/v1", api_key=peer.key, max_retries=0)

    async def deploy(self, replicas: int) -> None:
        """Deploy the model's file at the first peer; returns when all see it ready."""
        answer = await self.peers.deploy(
            self.peers.peers[0],
            model=str(smollm2_path()),
            name=MODEL,
            context=CONTEXT_TOKENS,
            slots=SLOTS,
            replicas_min=replicas,
            replicas_max=replicas,
        )
        assert answer.status == 201, answer.body
        await self.ready(replicas)

    async def ready(self, replicas: int) -> list[State]:
        return await self.peers.until(
            f"{replicas} of {MODEL} are ready",
            lambda states: all(_ready(state) == replicas for state in states),
            self.alive(),
            READY_LIMIT_S,
        )


def _ready(state: State) -> int:
    ready = [d["replicas_ready"] for d in state["deployments"] if d["name"] == MODEL]
    return int(ready[0])


def work_of(state: State, replica: str) -> Work:
    found = next(entry for entry in state["replicas"] if entry["replica"] == replica)
    return Work(found["finished"], found["cancelled"], found["failed"], found["generated_tokens"])


@contextlib.asynccontextmanager
async def real_cluster(folder: Path, replicas: int) -> AsyncIterator[RealCluster]:
    """Three voters and SmolLM2 on `replicas` of them; everything is ended afterwards."""
    name = cluster_name()
    async with Peers() as peers:
        peers.peers = [
            loopback_peer(folder / f"peer{n}", name, devices="cpu:2GiB") for n in (1, 2, 3)
        ]
        for peer in peers.peers:
            peer.start()
        for peer in peers.peers:
            await peer.listening()
        await peers.until("three voters agree", voting(3), limit_s=FORM_LIMIT_S)
        cluster = RealCluster(peers)
        await cluster.deploy(replicas)
        yield cluster


async def pieces_of(stream: Any) -> tuple[list[str], Any]:
    """Read an OpenAI stream to its end: the pieces of text, and the usage if it came."""
    texts: list[str] = []
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        texts += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    return texts, usage
