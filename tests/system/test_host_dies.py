"""The host dies in the middle of an answer: the client gets the same text, whole."""

from __future__ import annotations

from typing import Any

import pytest
from system.real_cluster import MODEL, RealCluster, pieces_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
]

QUESTION = [{"role": "user", "content": "Tell me a long story about a lighthouse keeper."}]
MAX_TOKENS = 120
KILL_AFTER_PIECES = 12


async def test_the_greedy_text_is_that_of_an_undisturbed_run(two_hosts: RealCluster) -> None:
    hosts, ingress = await two_hosts.roles()
    short_hosts = {(await two_hosts.peers.state(p))["here"][:8]: p for p in hosts.values()}
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": MAX_TOKENS,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with two_hosts.client(ingress) as client:
        undisturbed, usage = await pieces_of(await client.chat.completions.create(**request))
        answer = await client.chat.completions.with_raw_response.create(**request)
        assert answer.headers["X-AIvailable-Attempts"] == "1"
        host = short_hosts[answer.headers["X-AIvailable-Host"]]
        stream = answer.parse()
        texts: list[str] = []
        async for chunk in stream:
            texts += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            if len(texts) >= KILL_AFTER_PIECES:
                break
        host.kill()
        rest, usage_after = await pieces_of(stream)
    assert rest, "the answer was over before the host died"
    assert "".join(texts + rest) == "".join(undisturbed)
    assert usage_after.completion_tokens == usage.completion_tokens
