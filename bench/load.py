"""Streaming clients in one loop: who got how many tokens, and when.

Owns the requests and their times; must not know which server it asks. Times are the client's, so
that HTTP, routing and framing count on both sides. Needs no more than aiohttp.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from bench.peers import BenchFailed
from bench.servers import Server

ANSWER_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; greedy, and always `tokens` long. A model without a chat template is asked for
    a completion of `system` and `user`."""

    user: str
    tokens: int
    system: str = ""
    after_s: float = 0.0
    """When it is sent, from the beginning of the round."""


@dataclass(slots=True)
class Heard:
    """What a client saw of one answer; times in seconds since the round began."""

    sent_s: float
    first_s: float = 0.0
    last_s: float = 0.0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    arrivals_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    def gaps_s(self, since_s: float = 0.0, until_s: float = float("inf")) -> list[float]:
        """Times between pieces whose later one arrived in [since, until]."""
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return [late - early for early, late in pairs if since_s <= late <= until_s]


def round_of(server: Server, asks: Sequence[Ask]) -> list[Heard]:
    """Send them as their times say and wait for all. Raises BenchFailed when one is not served."""
    return asyncio.run(_all(server, asks))


async def _all(server: Server, asks: Sequence[Ask]) -> list[Heard]:
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    limit = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=limit, connector=connector
    ) as session:
        began_s = time.perf_counter()
        return await asyncio.gather(*(_one(session, server, ask, began_s) for ask in asks))


async def _one(session: aiohttp.ClientSession, server: Server, ask: Ask, began_s: float) -> Heard:
    await asyncio.sleep(ask.after_s)
    body = {
        **_prompt(server, ask),
        "model": server.model,
        "max_tokens": ask.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    heard = Heard(time.perf_counter() - began_s)
    path = "chat/completions" if server.chat else "completions"
    async with session.post(f"{server.url}/v1/{path}", json=body) as response:
        if response.status != 200:
            raise BenchFailed(f"{server.name}: {response.status} {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                _take(heard, json.loads(line[6:]), time.perf_counter() - began_s)
    if heard.completion_tokens != ask.tokens:
        raise BenchFailed(f"{server.name}: {heard.completion_tokens} of {ask.tokens} tokens")
    return heard


def _prompt(server: Server, ask: Ask) -> dict[str, object]:
    if not server.chat:
        return {"prompt": f"{ask.system}\n\n{ask.user}" if ask.system else ask.user}
    messages = [{"role": "system", "content": ask.system}] if ask.system else []
    return {"messages": [*messages, {"role": "user", "content": ask.user}]}


def _take(heard: Heard, chunk: dict[str, object], now_s: float) -> None:
    if "error" in chunk:
        raise BenchFailed(str(chunk["error"]))
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        heard.completion_tokens = usage["completion_tokens"]
        heard.prompt_tokens = usage["prompt_tokens"]
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if choice.get("text") or choice.get("delta", {}).get("content"):
        heard.first_s = heard.first_s or now_s
        heard.last_s = now_s
        heard.arrivals_s.append(now_s)
