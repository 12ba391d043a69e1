"""Bodies that cost more than they weigh: what is refused unparsed, and whose turn it is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from aivailable.errors import RequestError
from aivailable.peer.api.accounting import RequestRecord, attach
from aivailable.peer.api.bodies.absurd import (
    CONTAINERS_MAX,
    DIGITS_MAX,
    ELEMENTS_MAX,
    FRACTIONS_MAX,
    MEMBERS_MAX,
    STRINGS_COUNTED_MAX,
    refuse_absurd,
)
from aivailable.peer.api.bodies.place import BODIES_MAX_BYTES, SMALL_BODY_MAX_BYTES, Bodies
from aivailable.peer.api.bodies.reading import parsed
from aivailable.peer.api.errors import ParameterError
from aivailable.peer.api.openai.messages import MESSAGES_MAX
from aivailable.peer.api.openai.requests import chat_request, completion_request
from aivailable.peer.api.parameters import RequestParameters, checked_json
from aivailable.wire.limits import HTTP_BODY_MAX_BYTES, MIB

BOUND_S = 0.5
"""What no refusal takes, on a machine that does much else: the work of 30 ms at most."""


def listed(item: str, times: int) -> bytes:
    return f'{{"prompt":[{",".join([item] * times)}]}}'.encode()


BOMBS = {
    "lists": listed("[1]", 950_000),
    "objects": listed("{}", 1_200_000),
    "numbers": listed("1", 1_900_000),
    "fractions": listed("1e300", 600_000),
    "strings": listed('""', 1_200_000),
    "hidden strings": listed('"\\\\"', 700_000),
    "digits": listed("1" * 4000, 900),
    "members": ("{" + ",".join(f'"{n}":1' for n in range(300_000)) + "}").encode(),
    "quotes without end": b'{"prompt":"' + b'\\"' * 1_500_000 + b"[" * 100_000,
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_a_body_bomb_is_refused_without_being_parsed(body: bytes) -> None:
    begun_s = time.thread_time()
    with pytest.raises(RequestError) as refused:
        parsed(body)
    assert refused.value.status == 400
    assert time.thread_time() - begun_s < BOUND_S


LARGEST = {
    "lists": listed("[1]", CONTAINERS_MAX - 2),
    "members": ("{" + ",".join(f'"{n}":1' for n in range(MEMBERS_MAX)) + "}").encode(),
    "numbers": listed("248045", ELEMENTS_MAX),
    "fractions": listed("1e300", FRACTIONS_MAX - 1),
    "digits": listed("1" * DIGITS_MAX, 60_000),
    "strings": listed('""', ELEMENTS_MAX),
}


@pytest.mark.parametrize("body", LARGEST.values(), ids=LARGEST.keys())
def test_what_is_not_refused_is_parsed_within_the_bound(body: bytes) -> None:
    begun_s = time.thread_time()
    parsed(body)
    assert time.thread_time() - begun_s < BOUND_S


@pytest.mark.parametrize(
    "text",
    ["[{,:" * 900_000, "1.5e3," * 600_000, "1" * 3_000_000, '"quoted", ' * 180_000, "\\[" * 90_000],
)
def test_what_stands_in_a_string_is_not_counted(text: str) -> None:
    body = json.dumps({"prompt": text}).encode()
    assert parsed(body).plain() == {"prompt": text}


def test_the_second_look_ends_at_its_limit() -> None:
    with pytest.raises(RequestError, match=str(STRINGS_COUNTED_MAX)):
        refuse_absurd(listed('"[[["', STRINGS_COUNTED_MAX + 1))


def test_brackets_that_do_not_match_are_no_json() -> None:
    with pytest.raises(RequestError) as refused:
        refuse_absurd(b"[" * (CONTAINERS_MAX + 1))
    assert refused.value.code == "invalid_json"


def test_messages_parts_and_calls_are_counted_together() -> None:
    parts = [{"type": "text", "text": "x"}] * MESSAGES_MAX
    asked = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    assert chat_request(RequestParameters(asked), "r").generates
    asked = {"model": "m", "messages": [{"role": "user", "content": parts}] * 2}
    with pytest.raises(ParameterError, match="parts of contents"):
        chat_request(RequestParameters(asked), "r")


def test_a_large_request_is_not_copied_often() -> None:
    long = RequestParameters({"model": "m", "prompt": "x" * 3_000_000})
    assert len(completion_request(long, "r").generates) == 1
    long = RequestParameters({"model": "m", "prompt": "x" * 3_000_000, "n": 16})
    with pytest.raises(ParameterError) as refused:
        completion_request(long, "r")
    assert refused.value.param == "n"
    messages = [{"role": "user", "content": "x"}] * MESSAGES_MAX
    with pytest.raises(ParameterError):
        chat_request(RequestParameters({"model": "m", "messages": messages, "n": 16}), "r")
    short = {"model": "m", "messages": [{"role": "user", "content": "x"}] * 50, "n": 16}
    assert len(chat_request(RequestParameters(short), "r").generates) == 16


def test_a_schema_has_a_limit_of_values() -> None:
    with pytest.raises(ParameterError, match="values"):
        checked_json([0] * 9000, "schema", bytes_max=1 << 20, depth_max=4)
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"enum": list(range(8000))}},
    }
    tools = [{**tool, "function": {**tool["function"], "name": f"f{n}"}} for n in range(3)]
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
    with pytest.raises(ParameterError, match="values in them"):
        chat_request(RequestParameters(asked), "r")


class Place:
    """Bodies, and requests of several accounts that are already there."""

    def __init__(self) -> None:
        self.bodies = Bodies()
        self.order: list[str] = []

    def request(self, account: str, text: str) -> web.Request:
        body = json.dumps({"prompt": text + " " * SMALL_BODY_MAX_BYTES}).encode()
        payload = _stream()
        payload.feed_data(body)
        payload.feed_eof()
        headers = {"Content-Length": str(len(body))}
        request = make_mocked_request("POST", "/", headers=headers, payload=payload)
        record = RequestRecord(text, "POST", "/", 0.0)
        record.account = account
        attach(request, record)
        return request

    async def ask(self, account: str, text: str) -> None:
        def build(_body: RequestParameters) -> str:
            self.order.append(text)
            return text

        assert await self.bodies.read(self.request(account, text), build) == text


def _stream() -> aiohttp.StreamReader:
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    return aiohttp.StreamReader(protocol, 1 << 30, loop=loop)


async def test_accounts_take_turns() -> None:
    place = Place()
    asking = [asyncio.ensure_future(place.ask("greedy", f"g{n}")) for n in range(6)]
    asking.append(asyncio.ensure_future(place.ask("modest", "m")))
    await asyncio.gather(*asking)
    assert sorted(place.order) == ["g0", "g1", "g2", "g3", "g4", "g5", "m"]
    assert place.order.index("m") <= 2


async def test_a_short_body_of_unknown_length_needs_no_share(
    http: aiohttp.ClientSession,
) -> None:
    """Some clients send everything in chunks."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model":'
        began.set()
        await go.wait()
        yield b"1}"

    async def send() -> int:
        async with http.post("/v1/completions", data=pieces()) as response:
            await response.read()
            return response.status

    began, go = asyncio.Event(), asyncio.Event()
    sending = [asyncio.ensure_future(send()) for _ in range(BODIES_MAX_BYTES // MIB)]
    await began.wait()
    go.set()
    assert set(await asyncio.gather(*sending)) == {400}


async def test_who_goes_away_leaves_the_place_to_others() -> None:
    place = Place()
    asking = [asyncio.ensure_future(place.ask("a", f"{n}")) for n in range(4)]
    await asyncio.sleep(0)
    for task in asking[:3]:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert place.order[-1] == "3"
    await place.ask("b", "later")


async def test_an_error_comes_back_and_ends_the_turn() -> None:
    place = Place()

    def build(_body: RequestParameters) -> str:
        raise ParameterError("prompt", "wrong")

    for _ in range(2):
        with pytest.raises(ParameterError):
            await place.bodies.read(place.request("a", "x"), build)


async def test_one_account_has_only_its_share_of_bytes() -> None:
    place = Place()

    async def send(account: str) -> None:
        """Announces the most, and sends nothing."""
        headers = {"Content-Length": str(HTTP_BODY_MAX_BYTES)}
        one = make_mocked_request("POST", "/", headers=headers, payload=_stream())
        record = RequestRecord("r", "POST", "/", 0.0)
        record.account = account
        attach(one, record)
        await place.bodies.read(one, lambda body: body)

    slow = [
        asyncio.ensure_future(send("slow"))
        for _ in range(BODIES_MAX_BYTES // 2 // HTTP_BODY_MAX_BYTES)
    ]
    await asyncio.sleep(0)
    with pytest.raises(RequestError) as refused:
        await send("slow")
    assert refused.value.status == 429
    await place.ask("modest", "m")
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
