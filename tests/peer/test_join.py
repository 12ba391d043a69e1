"""The join channel over real TLS, on the same port as links."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.mesh import CLUSTER, DEADLINE_S, Node, make_node, stop_nodes

from aivailable.errors import LinkError
from aivailable.peer.join import JoinDoor, TlsJoinClient, encode_join, fit_answer
from aivailable.peer.join_key import KeyCheck
from aivailable.peer.trust import SNI_JOIN
from aivailable.wire import frames
from aivailable.wire.frames import FrameDecoder
from aivailable.wire.join import JOIN, JoinAnswer, JoinOffer, JoinRequest, Seat
from aivailable.wire.limits import JOIN_CONNECTIONS_MAX, JOIN_FRAME_MAX_BYTES

REQUEST = JoinRequest(
    certificate=b"",
    signature=b"",
    name="joiner",
    addresses=("10.0.0.7",),
    link_port=8421,
    api_port=8420,
    version="0.1.0",
    proto_min=1,
    proto_max=1,
    feature_max=1,
    instance_id="i",
    key_hashes=("0" * 64,),
)


class Server:
    """A cluster's side of joining: admits everybody who proved a key."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.admitted: list[tuple[str, JoinRequest]] = []
        self.silent = False
        self.seats: tuple[Seat, ...] = ()

    def offer(self, nonce: bytes) -> JoinOffer | None:
        if self.silent:
            return None
        return JoinOffer(nonce, self.node, CLUSTER, "lab", 1, True, True, 1, 1)

    async def admit(
        self, request: JoinRequest, node: str, key: KeyCheck = KeyCheck.NONE
    ) -> JoinAnswer:
        self.admitted.append((node, request))
        return JoinAnswer("", "", CLUSTER, "lab", self.seats)


@dataclasses.dataclass
class House:
    node: Node
    server: Server
    door: JoinDoor
    joiner: Node
    client: TlsJoinClient

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.node.links.port)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            *self.address, ssl=self.joiner.trust.join_client_context, server_hostname=SNI_JOIN
        )


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    doors: list[JoinDoor] = []
    node = make_node(tmp_path / "server", stranger=lambda: doors[0].protocol())
    joiner = make_node(tmp_path / "joiner")
    door = JoinDoor(node.identity)
    doors.append(door)
    server = Server(node.id)
    door.open(server)
    await node.links.start(node.listener)
    yield House(node, server, door, joiner, TlsJoinClient(joiner.identity, joiner.trust))
    await door.close()
    await stop_nodes([node])


async def read_message(reader: asyncio.StreamReader) -> object:
    decoder = FrameDecoder()
    async with asyncio.timeout(DEADLINE_S):
        while data := await reader.read(65536):
            for frame in decoder.feed(data):
                return JOIN.decode(frame.payload)
    return None


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
    with pytest.raises(LinkError):
        await house.client.look(house.address)
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
