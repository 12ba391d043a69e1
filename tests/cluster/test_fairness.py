"""Two keys at one host, each through another peer: from HTTP over a link to the worker's queue."""

from __future__ import annotations

import asyncio
from typing import Any

from fixtures.peers import PeerProcess, Peers, State, busy_slots, host_of, pieces

from aivailable.core.serving.admission import RESERVED_SHARE, SLOT_PATIENCE_S
from aivailable.core.state.records import ClusterSettings

MODEL = "slow"
STEP_MS = 30
SLOTS = 2
"""Of every fake deployment."""
ANSWER_TOKENS = 30
GREEDY = 40
"""Requests at once: the acceptance of the issue on the house."""
LONG_TOKENS = int((SLOT_PATIENCE_S + 3.0) * 1000 / STEP_MS)
"""An answer that would hold its slot well beyond the patience of others."""


async def hosted(peers: Peers) -> tuple[PeerProcess, PeerProcess, PeerProcess]:
    """Two ingresses that do not host the model, and its host."""
    await peers.deploy_fake(peers.peers[0], MODEL, options={"step_ms": str(STEP_MS)})
    states = await peers.states()
    node = host_of(states[0], MODEL)
    pairs = list(zip(peers.peers, states, strict=True))
    first, second = (peer for peer, state in pairs if state["here"] != node)
    return first, second, next(peer for peer, state in pairs if state["here"] == node)


async def user_key(peers: Peers, label: str) -> str:
    body = {"scope": "user", "label": label}
    made = await peers.ask(peers.peers[0], "POST", "/cluster/v1/keys", body)
    assert made.status == 201, made.body

    def known(states: list[State]) -> bool:
        return len({state["version"] for state in states}) == 1

    await peers.until("every peer knows the key", known)
    return str(made.body["key"])


async def complete(
    peers: Peers, peer: PeerProcess, key: str, prompt: str, tokens: int = ANSWER_TOKENS
) -> int:
    """The status of one answer, read to its end."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens}
    answer = await peers.ask(peer, "POST", "/v1/completions", body, key=key, limit_s=120.0)
    return answer.status


async def test_a_key_with_forty_requests_does_not_hold_up_a_key_with_one(three: Peers) -> None:
    first, second, host = await hosted(three)
    greedy, modest = await user_key(three, "greedy"), await user_key(three, "modest")
    done: list[int] = []

    async def ask(number: int) -> None:
        done.append(await complete(three, first, greedy, f"greedy {number}"))

    asking = [asyncio.ensure_future(ask(number)) for number in range(GREEDY)]
    places = SLOTS * ClusterSettings().queue_per_slot_max
    full = SLOTS + places - places // RESERVED_SHARE
    await three.until("A fills its share", lambda s: busy_slots(s[0], MODEL) >= full, [host])
    before = done.count(200)
    assert await complete(three, second, modest, "modest") == 200
    between = done.count(200) - before
    assert before + between < GREEDY // 2, "A's line was long enough to tell"
    # Those in the slots end before it begins, and as many beside it.
    assert between <= 2 * SLOTS + 1, f"{between} answers of the other key came first"
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def streamed(peers: Peers, peer: PeerProcess, key: str, prompt: str, **rest: Any) -> str:
    """The text of one streamed answer."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": LONG_TOKENS, "stream": True, **rest}
    async with peers.session.post(
        peer.url + "/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}
    ) as response:
        assert response.status == 200
        return "".join([piece["choices"][0]["text"] async for piece in pieces(response)])


async def test_long_answers_of_one_key_give_way_and_lose_nothing(three: Peers) -> None:
    """Both slots are taken for longer than anybody shall wait: one answer pauses, and goes on."""
    first, second, host = await hosted(three)
    greedy, modest = await user_key(three, "greedy"), await user_key(three, "modest")
    prompts = [f"long {number}" for number in range(SLOTS)]
    asking = [asyncio.ensure_future(streamed(three, first, greedy, one)) for one in prompts]
    await three.until("A holds all", lambda s: busy_slots(s[0], MODEL) == SLOTS, [host])
    assert await complete(three, second, modest, "modest") == 200
    assert not any(task.done() for task in asking), "it did not wait for the end of a long one"
    texts = await asyncio.gather(*asking)
    assert [len(text.split()) for text in texts] == [LONG_TOKENS] * SLOTS
    again = await asyncio.gather(*(streamed(three, second, modest, one) for one in prompts))
    assert texts == again, "no token is lost or told twice"
