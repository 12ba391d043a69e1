"""Links over loopback with real TLS: who is let in, what flows, what a loss leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.mesh import (
    CLUSTER,
    DEADLINE_S,
    Listener,
    Node,
    introduce,
    linked,
    make_node,
    start_nodes,
    stop_nodes,
)

from aivailable.core.ids import cluster_id
from aivailable.errors import ConfigError, LinkError, LinkLost, StreamReset
from aivailable.peer.ports import MessageStream
from aivailable.wire.frames import HELLO as HELLO_KIND
from aivailable.wire.frames import LAST, encode_frame
from aivailable.wire.generation import Cancel
from aivailable.wire.limits import CONTROL_QUEUE_MAX_BYTES, MIB, STREAM_CREDIT_BYTES
from aivailable.wire.peer import HELLO, FetchFile, FileChunk, LinkHello, RaftMessage, RpcCall

OTHER_CLUSTER = cluster_id(b"o" * 16)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[list[Node]]:
    nodes = await start_nodes(tmp_path, 3)
    yield nodes
    await stop_nodes(nodes)


@pytest.fixture
async def two(three: list[Node]) -> list[Node]:
    introduce(*three[:2])
    await linked(*three[:2])
    return three[:2]


async def pour(node: str, first: Any, stream: MessageStream) -> None:
    """Serves 100 MiB, whatever is asked for."""
    for index in range(100):
        await stream.send(FileChunk(index * MIB, bytes(MIB), 100 * MIB))


async def echo(node: str, first: Any, stream: MessageStream) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


async def hang(node: str, first: Any, stream: MessageStream) -> None:
    await asyncio.Event().wait()


async def test_three_nodes_link_once_each_and_talk_both_ways(three: list[Node]) -> None:
    introduce(*three)
    async with asyncio.timeout(1.0 * 3):
        await linked(*three)
    for sender in three:
        for receiver in three:
            if sender is not receiver:
                assert sender.links.send(receiver.id, RaftMessage(sender.id.encode()))
    for receiver in three:
        await receiver.listener.seen("message", count=2)
        heard = {(e[1], e[2].data.decode()) for e in receiver.listener.of("message")}
        assert heard == {(node.id, node.id) for node in three if node is not receiver}
        assert len(receiver.listener.of("up")) == 2
        assert receiver.listener.of("down") == []


async def test_link_up_names_the_instance(two: list[Node]) -> None:
    left, right = two
    assert (await left.listener.seen("up"))[2] == right.identity.instance_id


@pytest.mark.parametrize("round_number", range(10))
async def test_simultaneous_dials_leave_exactly_one_connection(
    three: list[Node], round_number: int
) -> None:
    left, right, _ = three
    introduce(left, right)
    await linked(left, right)
    await left.links.open_stream(right.id, Cancel("after"))
    await right.listener.seen("stream")
    await right.links.open_stream(left.id, Cancel("after"))
    await left.listener.seen("stream")
    assert [len(node.links._open) for node in (left, right)] == [1, 1]
    assert [len(node.listener.of("up")) for node in (left, right)] == [1, 1]
    assert [node.listener.of("down") for node in (left, right)] == [[], []]
    assert [node.listener.of("refused") for node in (left, right)] == [[], []]


@pytest.mark.parametrize("dialler", [0, 1])
async def test_one_side_that_knows_the_way_is_enough(three: list[Node], dialler: int) -> None:
    caller, waiter = three[dialler], three[1 - dialler]
    caller.links.set_contacts(CLUSTER, (waiter.contact,))
    waiter.links.set_contacts(CLUSTER, (caller.silent_contact,))
    await linked(caller, waiter)


async def test_a_stranger_is_refused_and_learns_that_it_is_no_member(three: list[Node]) -> None:
    member, other, stranger = three
    introduce(member, other)
    await linked(member, other)
    stranger.links.set_contacts(CLUSTER, (member.contact,))
    assert (await stranger.listener.seen("refused"))[1:] == (member.id, "not_member")
    assert member.links.connected() == (other.id,)
    assert stranger.links.connected() == ()


@pytest.mark.parametrize("name", ["link", "weights"])
async def test_nobody_speaks_without_a_certificate(three: list[Node], name: str) -> None:
    member, other, _ = three
    member.links.set_contacts(CLUSTER, (other.silent_contact,))
    reader, writer = await asyncio.open_connection(
        *member.contact.addresses[0],
        ssl=other.trust.join_client_context,
        server_hostname=name,
    )
    hello = LinkHello(CLUSTER, other.id, "i", "v", 1, 1, name)
    writer.write(encode_frame(HELLO_KIND, 0, LAST, HELLO.encode(hello)))
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert member.listener.events == []
    assert member.links.connected() == ()
    writer.transport.abort()


async def test_an_unknown_purpose_has_no_handshake(three: list[Node]) -> None:
    with pytest.raises(OSError):
        await asyncio.open_connection(
            *three[0].contact.addresses[0],
            ssl=three[1].trust.join_client_context,
            server_hostname="anything",
        )


async def test_dates_of_certificates_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dates:
        """2090 to 9999: a clock that is far behind."""

        UTC = datetime.UTC

        @staticmethod
        def datetime(year: int, *rest: int, tzinfo: datetime.tzinfo) -> datetime.datetime:
            return datetime.datetime(2090 if year == 2000 else year, *rest, tzinfo=tzinfo)

    monkeypatch.setattr("aivailable.peer.links.identity.datetime", Dates)
    nodes = await start_nodes(tmp_path, 2)
    introduce(*nodes)
    await linked(*nodes)
    await stop_nodes(nodes)


async def test_contacts_may_change_before_the_start(tmp_path: Path) -> None:
    node, other = make_node(tmp_path / "a"), make_node(tmp_path / "b")
    node.links.set_contacts(CLUSTER, (other.silent_contact,))
    node.links.set_contacts(CLUSTER, (other.contact,))
    assert node.links.connected() == ()


async def test_a_removed_member_is_cut_at_once_and_told(three: list[Node]) -> None:
    keeper, removed, third = three
    introduce(*three)
    await linked(*three)
    keeper.links.set_contacts(CLUSTER, (keeper.contact, third.contact))
    assert keeper.links.connected() == (third.id,)
    assert [event[1] for event in keeper.listener.of("down")] == [removed.id]
    await removed.listener.seen("down", keeper.id)
    assert removed.listener.of("refused", keeper.id)[0][2] == "removed"
    # It calls again at once, and is refused by TLS.
    await removed.listener.seen("refused", keeper.id, count=2)
    assert removed.listener.of("refused", keeper.id)[1][2] == "not_member"
    assert third.links.connected() == tuple(sorted((keeper.id, removed.id)))


async def test_another_cluster_is_refused_by_name(three: list[Node]) -> None:
    left, right, _ = three
    left.links.set_contacts(CLUSTER, (right.silent_contact,))
    right.links.set_contacts(OTHER_CLUSTER, (left.contact,))
    assert (await right.listener.seen("refused"))[1:] == (left.id, "other_cluster")
    assert right.links.connected() == ()


async def test_a_member_at_the_address_of_another_is_not_taken_for_it(three: list[Node]) -> None:
    left, right, third = three
    introduce(left, right)
    await linked(left, right)
    wrong_way = third.contact.__class__(
        third.id, third.contact.certificate, right.contact.addresses
    )
    left.links.set_contacts(CLUSTER, (right.contact, wrong_way))
    await left.listener.until(lambda: left.links.connected() == (right.id,))
    with pytest.raises(LinkError, match="another member answers"):
        await left.links.fetch_stream(third.id, FetchFile("d"))


@pytest.mark.parametrize("keeper", [0, 1])
async def test_a_clone_is_refused_while_the_original_answers(
    three: list[Node], keeper: int
) -> None:
    left, original = three[keeper], three[1 - keeper]
    introduce(left, original)
    await linked(left, original)
    clone = make_node(original.identity.pem_path.parent)
    assert clone.id == original.id
    await clone.links.start(clone.listener)
    clone.links.set_contacts(CLUSTER, (left.contact,))
    assert (await clone.listener.seen("refused"))[1:] == (left.id, "cloned_identity")
    assert left.listener.of("down") == []
    await clone.links.stop()


async def test_a_new_instance_replaces_one_that_died_without_a_word(three: list[Node]) -> None:
    left, right, _ = three
    introduce(left, right)
    await linked(left, right)
    # A power cut: no FIN, no ping, and nothing answers any more.
    frozen = right.links._links[left.id]
    assert frozen._timer is not None
    frozen._timer.cancel()
    reborn = make_node(right.identity.pem_path.parent)
    await reborn.links.start(reborn.listener)
    reborn.links.set_contacts(CLUSTER, (left.contact,))
    await left.listener.seen("up", right.id, count=2)
    assert left.listener.of("up")[1][2] == reborn.identity.instance_id
    assert "replaced" in left.listener.of("down")[0][2]
    assert reborn.listener.of("refused") == []
    await reborn.links.stop()


async def test_a_restarted_node_replaces_its_old_instance(three: list[Node]) -> None:
    left, right, _ = three
    introduce(left, right)
    await linked(left, right)
    await right.links.stop()
    await left.listener.seen("down", right.id)
    reborn = make_node(right.identity.pem_path.parent)
    await reborn.links.start(reborn.listener)
    introduce(left, reborn)
    await left.listener.seen("up", right.id, count=2)
    assert left.listener.of("up")[1][2] == reborn.identity.instance_id
    await reborn.links.stop()


async def test_a_large_control_message_passes_beside_a_running_stream(two: list[Node]) -> None:
    left, right = two
    right.listener.handler = pour
    stream = await left.links.open_stream(right.id, FetchFile("d"))
    assert (await stream.receive()).offset == 0
    # Nobody reads the stream now: its credit is spent, and control must pass all the same.
    large = RpcCall(1, "m", {"text": "x" * MIB})
    assert right.links.send(left.id, large)
    assert right.links.send(left.id, RpcCall(2, "small"))
    await left.listener.seen("message", count=2)
    assert [event[2] for event in left.listener.of("message")] == [large, RpcCall(2, "small")]
    offsets = [(await stream.receive()).offset for _ in range(99)]
    assert offsets == [index * MIB for index in range(1, 100)]
    assert await stream.receive() is None


async def test_control_overtakes_stream_bytes_that_wait(two: list[Node]) -> None:
    left, right = two
    connection = right.links._links[left.id]
    connection.pause_writing()
    connection.write_stream(b"stream bytes that wait")
    assert right.links.send(left.id, RpcCall(3, "m"))
    chunk = connection._next_chunk()
    assert chunk.endswith(b"stream bytes that wait")
    assert b"call_id" in chunk


async def test_a_reader_that_stops_pauses_only_its_own_stream(two: list[Node]) -> None:
    left, right = two
    sent: dict[str, int] = {"stalled": 0}

    async def serve(node: str, first: Any, stream: MessageStream) -> None:
        if first.digest == "stalled":
            for index in range(1024):
                await stream.send(FileChunk(index, bytes(4096), 1024))
                sent["stalled"] += 4096
        else:
            await pour(node, first, stream)

    right.listener.handler = serve
    stalled = await left.links.open_stream(right.id, FetchFile("stalled"))
    flowing = await left.links.open_stream(right.id, FetchFile("flowing"))
    count = 0
    while await flowing.receive() is not None:
        count += 1
    assert count == 100
    assert 0 < sent["stalled"] <= STREAM_CREDIT_BYTES
    rest = 0
    while await stalled.receive() is not None:
        rest += 1
    assert rest == 1024


async def test_messages_flow_both_ways_on_one_stream(two: list[Node]) -> None:
    left, right = two
    left.listener.handler = echo
    stream = await right.links.open_stream(left.id, Cancel("first"))
    await asyncio.gather(*(stream.send(FileChunk(i, bytes(50_000), 9)) for i in range(9)))
    assert [(await stream.receive()).offset for _ in range(9)] == list(range(9))
    stream.finish()
    assert await stream.receive() is None


async def test_many_streams_opened_at_once_arrive(two: list[Node]) -> None:
    left, right = two

    async def answer(node: str, first: Any, stream: MessageStream) -> None:
        await stream.send(first)

    right.listener.handler = answer

    async def ask(number: int) -> str:
        stream = await left.links.open_stream(right.id, RpcCall(number, "m", {"t": "x" * 40_000}))
        reply = await stream.receive()
        assert await stream.receive() is None
        assert reply.call_id == number
        return str(reply.method)

    assert await asyncio.gather(*(ask(number) for number in range(200))) == ["m"] * 200
    assert left.links._links[right.id]._streams == {}
    assert right.links._links[left.id]._streams == {}


async def test_a_reset_arrives_at_once_with_its_code(two: list[Node]) -> None:
    left, right = two
    ended: asyncio.Future[StreamReset] = asyncio.get_running_loop().create_future()

    async def serve(node: str, first: Any, stream: MessageStream) -> None:
        try:
            await stream.receive()
        except StreamReset as reset:
            ended.set_result(reset)

    right.listener.handler = serve
    stream = await left.links.open_stream(right.id, Cancel("r"))
    stream.reset("cancelled", "the client is gone")
    async with asyncio.timeout(DEADLINE_S):
        reset = await ended
    assert (reset.code, reset.message) == ("cancelled", "the client is gone")
    with pytest.raises(StreamReset):
        await stream.send(Cancel("r"))
    with pytest.raises(StreamReset):
        await stream.receive()


async def test_a_handler_that_fails_resets_its_stream_only(
    two: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    left, right = two

    async def serve(node: str, first: Any, stream: MessageStream) -> None:
        raise RuntimeError("a bug")

    right.listener.handler = serve
    stream = await left.links.open_stream(right.id, Cancel("r"))
    with pytest.raises(StreamReset, match="internal"):
        await stream.receive()
    assert "a bug" in caplog.text
    assert left.links.connected() == (right.id,)


async def test_a_dead_link_ends_streams_and_cancels_handlers(two: list[Node]) -> None:
    left, right = two
    left.listener.handler = right.listener.handler = hang
    outgoing = await left.links.open_stream(right.id, Cancel("out"))
    incoming = await right.links.open_stream(left.id, Cancel("in"))
    await left.listener.seen("stream")
    right.links._links[left.id]._transport.abort()  # type: ignore[union-attr]
    await left.listener.seen("down", right.id)
    await left.listener.seen("cancelled")
    for stream in (outgoing, incoming):
        with pytest.raises(LinkLost):
            await stream.receive()
        with pytest.raises(LinkLost):
            await stream.send(Cancel("x"))
    # Both dial again, without being told.
    await left.listener.seen("up", right.id, count=2)


async def test_a_stopped_node_is_gone_for_the_others(two: list[Node]) -> None:
    left, right = two
    await right.links.stop()
    await left.listener.seen("down", right.id)
    assert not left.links.send(right.id, Cancel("x"))
    with pytest.raises(LinkLost):
        await left.links.open_stream(right.id, Cancel("x"))
    with pytest.raises(LinkError):
        await left.links.fetch_stream(right.id, FetchFile("d"))


async def test_a_full_control_queue_cuts_the_link(two: list[Node]) -> None:
    left, right = two
    left.links._links[right.id].pause_writing()
    message = RaftMessage(bytes(2 * MIB))
    accepted = 0
    while left.links.send(right.id, message):
        accepted += 1
    assert accepted == CONTROL_QUEUE_MAX_BYTES // (2 * MIB) - 1
    assert "stuck" in (await left.listener.seen("down", right.id))[2]
    await left.listener.seen("up", right.id, count=2)


async def test_silence_cuts_the_link(two: list[Node]) -> None:
    left, right = two
    connection = left.links._links[right.id]
    connection.heard_at -= 60.0
    connection._tick(asyncio.get_running_loop().time())
    assert "silent" in (await left.listener.seen("down", right.id))[2]


async def test_a_late_tick_blames_nobody(two: list[Node]) -> None:
    left, right = two
    connection = left.links._links[right.id]
    connection.heard_at -= 60.0
    connection._tick(asyncio.get_running_loop().time() - 30.0)
    assert left.links.connected() == (right.id,)


@pytest.mark.parametrize(
    "garbage",
    [
        bytes(8) + b"\xff" * 100,
        b"\xff\xff\xff\x02\0\0\0\0\x01",
        b"\0\0\x01\x02\0\0\0\0\x01\xc1",
        b"\0\0\x01\x04\0\0\0\x63\x01\xc0",
        b"\0\0\x00\x04\0\0\0\x63\x00",
    ],
)
async def test_malformed_bytes_end_the_link_not_the_peer(two: list[Node], garbage: bytes) -> None:
    left, right = two
    left.links._links[right.id].write_urgent(garbage)
    await right.listener.seen("down", left.id)
    assert (await left.listener.seen("refused", right.id))[2] == "malformed"
    await right.listener.seen("up", left.id, count=2)


async def test_weights_travel_on_a_connection_of_their_own(two: list[Node]) -> None:
    left, right = two
    right.listener.handler = pour
    stream = await left.links.fetch_stream(right.id, FetchFile("d"))
    await right.listener.seen("stream")
    extra = [
        connection
        for node in two
        for connection in node.links._open
        if connection.purpose == "weights"
    ]
    assert len(extra) == 2
    total = 0
    while (chunk := await stream.receive()) is not None:
        total += len(chunk.data)
    assert total == 100 * MIB
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(connection.gone for connection in extra))
    assert left.listener.of("down") == []


async def test_a_port_in_use_says_which_and_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = make_node(tmp_path / "home")
        node.links.port = port
        with pytest.raises(ConfigError, match=f"port {port} is in use .* --port"):
            await node.links.start(Listener())


async def test_an_ephemeral_port_serves_both_families(tmp_path: Path) -> None:
    node = make_node(tmp_path / "home")
    node.links._hosts = ("127.0.0.1", "::1")
    await node.links.start(node.listener)
    for host in node.links._hosts:
        _, writer = await asyncio.open_connection(host, node.links.port)
        writer.transport.abort()
    await node.links.stop()
