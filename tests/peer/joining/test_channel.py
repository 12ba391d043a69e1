"""The join channel over real TLS, on the same port as links."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.join_house import REQUEST, House, join_house, read_message
from fixtures.mesh import CLUSTER, stop_nodes

from aivailable.errors import LinkError
from aivailable.peer.joining.channel import encode_join, fit_answer
from aivailable.wire import frames
from aivailable.wire.join import JOIN, JoinAnswer, JoinOffer, Seat
from aivailable.wire.limits import JOIN_CONNECTIONS_MAX, JOIN_FRAME_MAX_BYTES


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with join_house(tmp_path) as house:
        yield house


async def test_looking_around_tells_what_is_there(house: House) -> None:
    offer = await house.client.look(house.address)
    assert (offer.node, offer.cluster_id, offer.cluster_name) == (house.node.id, CLUSTER, "lab")
    assert house.server.admitted == []


async def test_each_visit_has_a_nonce_of_its_own(house: House) -> None:
    offers = [await house.client.look(house.address) for _ in range(2)]
    assert [len(offer.nonce) for offer in offers] == [32, 32]
    assert offers[0].nonce != offers[1].nonce


async def test_a_joiner_that_proves_its_key_is_admitted(house: House) -> None:
    house.server.seats = (Seat(house.node.id, b"c", ("127.0.0.1",), 1, True),)
    answer = await house.client.join(house.address, REQUEST)
    assert (answer.code, answer.cluster_id, answer.seats) == ("", CLUSTER, house.server.seats)
    ((node, request),) = house.server.admitted
    assert node == house.joiner.id
    assert request.certificate == house.joiner.identity.certificate
    assert dataclasses.replace(request, certificate=b"", signature=b"") == REQUEST


async def test_the_address_that_carried_the_join_is_tried_first_for_the_link(house: House) -> None:
    """The server may know only others for its own, or none."""
    other = Seat("o" * 52, b"d", ("10.0.0.9",), 2, True)
    seat = Seat(house.node.id, b"c", ("10.0.0.1", "127.0.0.1"), 1, True)
    house.server.seats = (seat, other)
    answer = await house.client.join(house.address, REQUEST)
    assert answer.seats == (
        dataclasses.replace(seat, addresses=("127.0.0.1", "10.0.0.1")),
        other,
    )
    house.server.seats = (dataclasses.replace(seat, addresses=()),)
    answer = await house.client.join(house.address, REQUEST)
    assert answer.seats[0].addresses == ("127.0.0.1",)


async def test_a_wrong_signature_is_refused(house: House) -> None:
    reader, writer = await house.connect()
    assert isinstance(await read_message(reader), JoinOffer)
    stolen = dataclasses.replace(
        REQUEST,
        certificate=house.joiner.identity.certificate,
        signature=house.joiner.identity.sign(b"another handshake"),
    )
    writer.write(encode_join(stolen))
    answer = await read_message(reader)
    assert isinstance(answer, JoinAnswer)
    assert answer.code == "bad_proof"
    assert house.server.admitted == []
    writer.transport.abort()


async def test_a_server_that_names_another_node_is_not_believed(house: House) -> None:
    house.server.node = "x" * 52
    with pytest.raises(LinkError, match="another node than its certificate"):
        await house.client.look(house.address)


@pytest.mark.parametrize(
    "garbage",
    [
        (JOIN_FRAME_MAX_BYTES + 1 << 8 | frames.JOIN).to_bytes(4, "big") + bytes(5),
        frames.encode_frame(frames.JOIN, 0, frames.LAST, b"\xc1"),
        frames.encode_frame(frames.CONTROL, 0, frames.LAST, JOIN.encode(REQUEST)),
        frames.encode_frame(frames.JOIN, 0, frames.LAST, JOIN.encode(JoinAnswer("", ""))),
        frames.encode_frame(
            frames.JOIN, 0, frames.LAST, JOIN.encode(dataclasses.replace(REQUEST, name="n"))
        ),
    ],
    ids=["oversized", "no-msgpack", "wrong-kind", "wrong-message", "no-certificate"],
)
async def test_malformed_requests_end_the_visit(house: House, garbage: bytes) -> None:
    reader, writer = await house.connect()
    assert isinstance(await read_message(reader), JoinOffer)
    writer.write(garbage)
    answer = await read_message(reader)
    assert isinstance(answer, JoinAnswer)
    assert answer.code == "malformed"
    assert await read_message(reader) is None
    assert house.server.admitted == []
    assert (await house.client.look(house.address)).node == house.node.id
    writer.transport.abort()


async def test_only_so_many_strangers_at_once(house: House) -> None:
    visitors = [await house.connect() for _ in range(JOIN_CONNECTIONS_MAX)]
    for reader, _ in visitors:
        assert isinstance(await read_message(reader), JoinOffer)
    assert (await house.client.look(house.address)).node == house.node.id
    assert await read_message(visitors[0][0]) is None, "the oldest silent one gave way"
    assert len(house.listener.seats.visits) < JOIN_CONNECTIONS_MAX + 1
    for _, writer in visitors:
        writer.transport.abort()


async def test_a_silent_server_says_nothing(house: House) -> None:
    house.server.silent = True
    with pytest.raises(LinkError, match=f"port {house.address[1]}"):
        await house.client.look(house.address)


async def test_nobody_at_the_address_is_a_link_error(house: House) -> None:
    await stop_nodes([house.node])
    with pytest.raises(LinkError, match="cannot be reached"):
        await house.client.look(house.address)


def test_seats_that_do_not_fit_are_left_out_voters_last() -> None:
    seats = tuple(
        Seat(f"{index:052d}", bytes(320), ("192.168.100.100", "fd00::1234:5678"), 8421, index > 15)
        for index in range(20)
    )
    answer = fit_answer(JoinAnswer("", "", CLUSTER, "lab", seats), first=seats[3].node)
    assert len(JOIN.encode(answer)) <= JOIN_FRAME_MAX_BYTES
    assert len(answer.seats) >= 7
    assert answer.seats[0] == seats[3]
    assert [seat.voter for seat in answer.seats[1:5]] == [True] * 4
    encode_join(answer)
