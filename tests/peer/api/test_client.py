"""The client against the real server: answers, errors, and following to another member."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fixtures.api_service import ADMIN, HOST, MODEL, NODE, USER, FakeService, answer, event

from aivailable.client import AnswerUsage, ChatDelta, Client, ClientError
from aivailable.core.state.commands import RemoveDeployment, RevokeKey, SetWindow
from aivailable.errors import ProposalRejected, RequestError
from aivailable.peer.api.server import ApiServer
from aivailable.wire.generation import Finished, Started, Tokens

HELLO = [{"role": "user", "content": "Hello"}]


def url(server: ApiServer) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[Client]:
    async with Client([url(server)], ADMIN) as client:
        yield client


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


async def test_everything_that_can_be_read(client: Client, service: FakeService) -> None:
    assert await client.state() == service.observation.status()
    assert await client.models() == (MODEL,)
    keys = await client.keys()
    assert [(one.label, one.scope, one.revoked) for one in keys if one.revoked] == [
        ("av-revoked-key", "admin", True)
    ]


async def test_the_longest_stall_is_read_from_the_metrics(client: Client) -> None:
    assert await client.longest_stall_s() == 0.0


async def test_everything_that_can_be_changed(client: Client, service: FakeService) -> None:
    deployment = await client.deploy("/m/a.gguf", name="mine", context=512, slots=None)
    assert deployment.name == "mine"
    assert service.deployments.deployed[0][0].context == 512
    await client.undeploy("org/tiny:q4")
    text, info = await client.create_key("user", "bob")
    assert (text, info.label) == ("av-minted-bob", "bob")
    await client.revoke_key("12345678")
    await client.window(60)
    await client.leave()
    assert service.members.left
    assert [body for body, _ in service.changes.proposed] == [
        RemoveDeployment("org/tiny:q4"),
        RevokeKey("12345678"),
        SetWindow(60),
    ]


async def test_settings_and_pauses_come_back_as_values(
    client: Client, service: FakeService
) -> None:
    shown = {one.key: (one.value, one.unit) for one in await client.settings()}
    assert (shown["idle_ttl_s"], shown["spare_fill"]) == ((600, "s"), (True, ""))
    after = {one.key: one.value for one in await client.change_settings({"spare_fill": False})}
    assert after["spare_fill"] is False
    assert (await client.pause("one", 60)).paused_left_s == 60
    assert (await client.pause("", 0)).paused_left_s == 0
    assert service.members.paused == [(NODE, 60), (NODE, 0)]


async def test_a_refusal_is_an_error_with_its_code(client: Client, service: FakeService) -> None:
    service.changes.refuse = ProposalRejected("unknown_deployment", "no such deployment")
    with pytest.raises(ClientError, match="no such deployment") as caught:
        await client.undeploy("x")
    assert (caught.value.status, caught.value.code) == (409, "unknown_deployment")


async def test_a_chat_arrives_in_pieces_with_its_way(client: Client) -> None:
    stream = client.chat(MODEL, HELLO, temperature=0)
    deltas = [delta async for delta in stream]
    assert "".join(delta.text for delta in deltas) == "Hello"
    assert deltas[-2:] == [ChatDelta(finish_reason="stop"), ChatDelta(usage=AnswerUsage(7, 3))]
    assert (stream.host, stream.ingress, stream.attempts) == (HOST[:8], NODE[:8], 1)
    assert stream.replica == f"{MODEL}#1.1"
    assert stream.request_id.startswith("req_")


async def test_a_chat_tells_reasoning_from_text(client: Client, service: FakeService) -> None:
    end = Finished("", "stop", "", 1, 2)
    service.inference.script = [
        Started("", 1),
        Tokens("", (1,), "", "hm"),
        Tokens("", (2,), "Hi"),
        end,
    ]
    deltas = [delta async for delta in client.chat(MODEL, HELLO)]
    assert "".join(delta.reasoning for delta in deltas) == "hm"
    assert "".join(delta.text for delta in deltas) == "Hi"


async def test_a_chat_that_breaks_raises_after_its_pieces(
    client: Client, service: FakeService
) -> None:
    broken = RequestError(502, "worker_lost", "the worker died")
    service.inference.script = [Started("", 1), Tokens("", (1,), "Hel"), broken]
    deltas = aiter(client.chat(MODEL, HELLO))
    assert [(await anext(deltas)).text for _ in range(2)] == ["", "Hel"]
    with pytest.raises(ClientError, match="the worker died") as caught:
        await anext(deltas)
    assert caught.value.code == "worker_lost"


async def test_a_refused_chat_raises_at_once(client: Client) -> None:
    with pytest.raises(ClientError) as caught:
        await anext(aiter(client.chat("none", HELLO)))
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


async def test_closing_a_chat_cancels_it(client: Client, service: FakeService) -> None:
    service.inference.script = [Started("", 1), Tokens("", (1,), "x"), asyncio.Event()]
    stream = client.chat(MODEL, HELLO)
    async for delta in stream:
        if delta.text:
            break
    await stream.aclose()
    await service.inference.closed.wait()


async def test_a_long_chat_is_sent_without_complaint(client: Client, service: FakeService) -> None:
    long = [{"role": "user", "content": "x" * 2_000_000}]
    deltas = [delta async for delta in client.chat(MODEL, long)]
    assert deltas[-1].usage is not None
    assert service.inference.asked[0][0].messages == tuple(long)


async def test_nobody_there_names_every_address(nobody: str) -> None:
    async with Client([nobody]) as client:
        with pytest.raises(ClientError, match=nobody) as caught:
            await client.state()
        assert (caught.value.status, caught.value.code) == (0, "unreachable")
        with pytest.raises(ClientError):
            await client.window(0)


async def test_a_dead_first_address_is_passed_over_for_changes_too(
    nobody: str, server: ApiServer, service: FakeService
) -> None:
    async with Client([nobody, url(server)], ADMIN) as client:
        await client.window(0)
        assert client.url == url(server)
        with pytest.raises(ClientError):
            await client.leave()
    assert not service.members.left


async def test_a_change_whose_answer_is_lost_is_not_sent_again(
    serve: Any, service: FakeService
) -> None:
    async def take_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    careless = await asyncio.start_server(take_and_hang_up, "127.0.0.1", 0)
    other = await serve()
    first = f"http://127.0.0.1:{careless.sockets[0].getsockname()[1]}"
    async with careless, Client([first, url(other)]) as client:
        with pytest.raises(ClientError, match="unknown, check status") as caught:
            await client.window(60)
        assert caught.value.code == "connection_lost"
        assert service.changes.proposed == []
        assert (await client.state()).cluster_name == "lab"
        assert client.url == url(other)


async def test_watching_follows_to_a_member_it_learned_of(serve: Any, service: FakeService) -> None:
    first = await serve()
    other_service = FakeService()
    other_service.observation.applied = 77
    other = await serve(other_service)
    service.observation.api_port = other.port
    async with Client([url(first)], USER) as client:
        watching = client.watch(interval_s=0)
        assert (await anext(watching)).version == 5
        assert client.urls == (url(first), url(other))
        await first.stop()
        assert (await anext(watching)).version == 77
        assert client.url == url(other)
        await other.stop()
        with pytest.raises(ClientError, match="no member answers"):
            await anext(watching)


async def test_events_are_read_to_the_end(client: Client, service: FakeService) -> None:
    for version in (6, 7, 8):
        service.observation.add_event(event(version))
    read = [one.version async for one in client.events(6, follow=False)]
    assert read == [7, 8]


async def test_events_are_followed_across_a_dead_member_without_loss(
    serve: Any, service: FakeService
) -> None:
    first, second = await serve(), await serve()
    service.observation.add_event(event(6))
    async with Client([url(first), url(second)], USER) as client:
        events = client.events(0)
        assert (await anext(events)).version == 6
        service.observation.add_event(event(7))
        assert (await anext(events)).version == 7
        await first.stop()
        service.observation.add_event(event(7, "its second half"))
        service.observation.add_event(event(8))
        assert (await anext(events)).text == "its second half"
        assert (await anext(events)).version == 8
        assert client.url == url(second)
        await events.aclose()


async def test_no_key_from_loopback_may_chat_but_not_change(
    server: ApiServer, service: FakeService
) -> None:
    service.inference.script = answer("Hi")
    async with Client([url(server)]) as client:
        assert [one.text async for one in client.chat(MODEL, HELLO)][1] == "Hi"
        with pytest.raises(ClientError) as caught:
            await client.window(0)
        assert (caught.value.status, caught.value.code) == (403, "admin_required")
