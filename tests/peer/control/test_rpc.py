"""Questions between members: matched, bounded in time, answered or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from fixtures.peer_ports import FakeLinks, turns
from fixtures.virtual_time import run

from aivailable.errors import AivailableError, LinkLost
from aivailable.peer.control.rpc import CALL_DEADLINE_S, SERVED_MAX_CALLS, Rpc
from aivailable.peer.tasks import Tasks
from aivailable.wire.peer import RpcCall, RpcReply


async def greet(node: str, arguments: Mapping[str, str]) -> Mapping[str, str]:
    if "rude" in arguments:
        raise AivailableError("not to you")
    return {"said": f"hello {node}"}


def calls(links: FakeLinks) -> Rpc:
    return Rpc(links, Tasks("test"), {"greet": greet})


def test_an_answer_of_the_asked_node_counts_and_no_other() -> None:
    async def scenario() -> None:
        links = FakeLinks(peers=["n2", "n3"])
        mine = calls(links)
        asking = asyncio.ensure_future(mine.ask("n2", "greet", {}))
        await turns()
        ((node, call),) = links.sent
        assert node == "n2"
        mine.replied("n3", RpcReply(call.call_id, True, {"said": "I am n2"}))
        mine.replied("n2", RpcReply(call.call_id + 1, True, {"said": "another call's"}))
        await turns()
        assert not asking.done()
        mine.replied("n2", RpcReply(call.call_id, True, {"said": "me"}))
        mine.replied("n2", RpcReply(call.call_id, True, {"said": "twice"}))
        assert await asking == {"said": "me"}
        mine.replied("n2", RpcReply(call.call_id, False, error="late"))

    run(scenario())


def test_silence_ends_at_the_deadline_and_is_unknown() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        with pytest.raises(LinkLost, match="did not answer greet"):
            await calls(FakeLinks(peers=["n2"])).ask("n2", "greet", {})
        assert loop.time() - begun_s == pytest.approx(CALL_DEADLINE_S)

    run(scenario())


def test_no_link_is_told_at_once() -> None:
    async def scenario() -> None:
        with pytest.raises(LinkLost, match="no link"):
            await calls(FakeLinks()).ask("n2", "greet", {})

    run(scenario())


def test_a_refusal_carries_the_others_words() -> None:
    async def scenario() -> None:
        links = FakeLinks(peers=["n2"])
        mine = calls(links)
        asking = asyncio.ensure_future(mine.ask("n2", "greet", {"rude": "1"}))
        await turns()
        mine.replied("n2", RpcReply(links.sent[0][1].call_id, False, error="not to you"))
        with pytest.raises(AivailableError, match="not to you"):
            await asking

    run(scenario())


def test_what_is_asked_of_us_is_answered() -> None:
    async def scenario() -> None:
        links = FakeLinks(peers=["n2"])
        mine = calls(links)
        mine.called("n2", RpcCall(1, "greet", {}))
        mine.called("n2", RpcCall(2, "greet", {"rude": "1"}))
        mine.called("n2", RpcCall(3, "dance", {}))
        await turns()
        replies = {reply.call_id: reply for _, reply in links.sent}
        assert replies[1] == RpcReply(1, True, {"said": "hello n2"})
        assert (replies[2].ok, replies[2].error) == (False, "not to you")
        assert not replies[3].ok
        assert "'dance'" in replies[3].error

    run(scenario())


def test_one_member_has_only_so_many_calls_answered_at_once() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()

        async def slow(_node: str, _arguments: Mapping[str, str]) -> Mapping[str, str]:
            await gate.wait()
            return {}

        links = FakeLinks(peers=["n2", "n3"])
        rpc = Rpc(links, Tasks("test"), {"slow": slow, "greet": greet})
        for number in range(SERVED_MAX_CALLS + 3):
            rpc.called("n2", RpcCall(number, "slow"))
        assert [reply.ok for _, reply in links.sent] == [False] * 3
        rpc.called("n3", RpcCall(1, "greet"))
        await turns()
        assert links.sent[-1][1].ok, "another member's calls are its own"
        gate.set()
        await turns()
        rpc.called("n2", RpcCall(99, "greet"))
        await turns()
        assert links.sent[-1][1].ok

    run(scenario())
