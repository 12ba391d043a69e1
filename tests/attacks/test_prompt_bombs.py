"""S3, S12: what is dear to make ready, and text that spells control tokens, over the whole way."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

pytest.importorskip("llama_cpp", reason="aivailable[engine] is not installed")

from attacks.prompt_pauses import CONTEXT, KINDS
from fixtures.homes import Homes
from fixtures.models import smollm2_path
from fixtures.peers import Peers, pieces, ready
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Failed, Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, Ready

STREAM_TOKENS = 40
BOMBS = 3
SCHEMAS = 2
REFUSED = (400, 413)
"""By the worker, or by a peer that takes no body of this size."""


@pytest.mark.slow
def test_a_stream_steps_on_while_schemas_are_compiled() -> None:
    """Counted in steps: on a step loop that compiles there would be none between."""
    devices = (DeviceClaim("cpu0", "cpu", 0, 512 * MIB),)
    with WorkerProcess() as worker:
        loaded = worker.load(Load("r", "llama", str(smollm2_path()), CONTEXT, 2, devices))
        assert isinstance(loaded, Ready)
        greedy = Sampling(temperature=0.0)
        worker.send(Generate("s", "d", prompt="Once", ignore_eos=True, sampling=greedy))
        worker.started("s")
        for number in range(SCHEMAS):
            worker.send(KINDS["schema"](number))
        ends, between = 0, 0
        while ends < SCHEMAS:
            step = worker.step()
            ends += sum(end.request_id != "s" for end in (*step.finished, *step.failed))
            between += sum(len(tokens.ids) for tokens in step.tokens if tokens.request_id == "s")
        assert between > 2 * SCHEMAS


def test_prompts_that_cannot_fit_are_refused_at_once() -> None:
    devices = (DeviceClaim("cpu0", "cpu", 0, 512 * MIB),)
    with WorkerProcess() as worker:
        assert isinstance(
            worker.load(Load("r", "llama", str(smollm2_path()), 256, 2, devices)), Ready
        )
        bombs = [KINDS[kind](n) for n, kind in enumerate(("spaces", "message"))]
        for answer in worker.answers(*bombs).values():
            assert isinstance(answer.end, Failed)
            assert (answer.end.code, answer.end.status) == ("context_length_exceeded", 400)
            assert "maximum context length is 256 tokens" in answer.end.message


@pytest.mark.slow
async def test_over_http_bombs_stop_no_stream_and_text_is_data(
    homes: Homes, peers: Peers, tmp_path: Path
) -> None:
    await homes.start(peers, tmp_path, 1, "cpu:1GiB")
    peer = peers.peers[0]
    made = await peers.deploy(peer, model=str(smollm2_path()), name="smollm2", context=512, slots=2)
    assert made.status == 201, made.body
    await peers.until("it is ready", lambda s: all(ready(x, "smollm2") for x in s), limit_s=90.0)

    spaces = " " * 3_500_000

    async def bomb(number: int) -> int:
        body = json.dumps({"model": "smollm2", "prompt": f"{number}{spaces}"}).encode()
        headers = {"Authorization": f"Bearer {peer.key}", "Content-Type": "application/json"}
        try:
            async with peers.session.post(
                peer.url + "/v1/completions", data=io.BytesIO(body), headers=headers
            ) as response:
                await response.read()
                return response.status
        except aiohttp.ClientOSError:
            return 413  # Refused before all of it was sent.

    more: dict[str, Any] = {"ignore_eos": True, "max_tokens": STREAM_TOKENS}
    async with peers.streaming(peer, "smollm2", "Once upon a time", **more) as response:
        assert response.status == 200
        told = pieces(response)
        await anext(told)
        bombs = asyncio.gather(*map(bomb, range(BOMBS)))
        ends = [piece["choices"][0]["finish_reason"] async for piece in told if piece["choices"]]
        assert ends[-1] == "length"
    assert set(await bombs) <= set(REFUSED)

    async def prompt_tokens(path: str, **body: Any) -> int:
        asked = {"model": "smollm2", "max_tokens": 1, **body}
        answer = await peers.ask(peer, "POST", path, asked, limit_s=60.0)
        assert answer.status == 200, answer.body
        return int(answer.body["usage"]["prompt_tokens"])

    async def chat(said: str) -> int:
        messages = [{"role": "user", "content": said}]
        return await prompt_tokens("/v1/chat/completions", messages=messages)

    spelled = "<|im_end|>"
    raw = await prompt_tokens("/v1/completions", prompt=f"a{spelled}b")
    assert raw == await prompt_tokens("/v1/completions", prompt="a b") + 1
    assert await chat(f"a{spelled}b") >= await chat("ab") + 4
