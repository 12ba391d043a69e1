"""The join key over real TLS, with the peer's own rules on the server's side."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

import pytest
from fixtures.join_house import REQUEST, House, join_house, read_message
from fixtures.mesh import CLUSTER, make_node

from aivailable.errors import LinkError
from aivailable.peer.joining.channel import NO_KEY, UNPROVED, TlsJoinClient
from aivailable.peer.joining.join_key import JoinKey, make_join_key
from aivailable.peer.ports import KeyCheck
from aivailable.wire import frames
from aivailable.wire.join import (
    JOIN,
    JoinAnswer,
    JoinOffer,
    JoinRequest,
    Seat,
    join_transcript,
    key_transcript,
)
from aivailable.wire.schema import pack, unpack_plain

KEY = JoinKey.of(make_join_key(b"k" * 16))
OTHER = JoinKey.of(make_join_key(b"o" * 16))
SEAT = Seat("n" * 52, b"c", ("10.6.6.6",), 1, True)
NEW_FIELDS = ("keyed", "client_nonce", "key_proof")


def proven(
    house: House, offer: JoinOffer, key: JoinKey, client_nonce: bytes = b"c" * 32
) -> JoinRequest:
    """A request of the joiner, made by hand, with the proof of `key`."""
    mine = house.joiner.identity
    prints = house.node.identity.fingerprint, mine.fingerprint
    shown = key_transcript(offer.nonce, client_nonce, *prints, offer.cluster_id)
    return dataclasses.replace(
        REQUEST,
        certificate=mine.certificate,
        signature=mine.sign(join_transcript(offer.nonce, *prints, offer.cluster_id)),
        client_nonce=client_nonce,
        key_proof=key.client_proof(shown),
    )


def answer_code(answer: object) -> str:
    assert isinstance(answer, JoinAnswer)
    return answer.code


def of_old_format(message: JoinRequest | JoinOffer | JoinAnswer) -> bytes:
    """The bytes that a version without join keys would send."""
    kind, fields = unpack_plain(JOIN.encode(message))
    for name in NEW_FIELDS:
        fields.pop(name, None)
    return frames.encode_frame(frames.JOIN, 0, frames.LAST, pack([kind, fields]))


async def test_the_right_key_admits_through_a_closed_window(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        lobby = await house.lobby()
        answer = await house.client_with(KEY).join(house.address, REQUEST)
        assert (answer.code, answer.cluster_id, len(answer.seats)) == ("", CLUSTER, 2)
        assert house.joiner.id in lobby.members
        assert lobby.reasons == [("key", "join key")]


async def test_without_a_key_the_window_decides(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        closed = await house.lobby()
        assert (await house.client.join(house.address, REQUEST)).code == "window_closed"
        assert closed.members == (house.node.id,)
        opened = await house.lobby(window_open=True)
        assert (await house.client.join(house.address, REQUEST)).code == ""
        assert opened.reasons == [("window", "join window 1")]


@pytest.mark.parametrize("window_open", [False, True], ids=["closed", "open"])
async def test_a_wrong_key_is_refused_said_once_and_shown_on_both_sides(
    tmp_path: Path, window_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with join_house(tmp_path, key=KEY) as house:
        lobby = await house.lobby(window_open=window_open)
        for _ in range(3):
            answer = await house.client_with(OTHER).join(house.address, REQUEST)
            assert (answer.code, answer.seats) == ("bad_proof", ())
            assert "another join key: start this node with that cluster's key" in answer.message
        assert lobby.members == (house.node.id,)
        (said,) = lobby.said
        assert "joiner" in said
        assert "another join key" in said
        assert len([line for line in caplog.messages if "another join key" in line]) == 1
        server = house.listener.server
        assert server.what_to_do() == said  # type: ignore[union-attr]
        assert server.waiting() == ()  # type: ignore[union-attr]


async def test_a_replayed_request_is_refused(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        recorded: list[JoinRequest] = []

        def record(offer: JoinOffer) -> JoinRequest:
            recorded.append(proven(house, offer, KEY))
            return recorded[0]

        assert answer_code(await house.say(record)) == ""
        assert answer_code(await house.say(lambda offer: recorded[0])) == "bad_proof"
        assert house.server.checks == [KeyCheck.PROVED]


async def test_a_replayed_proof_under_a_fresh_signature_is_refused(tmp_path: Path) -> None:
    """By one who has the joiner's identity and recorded its proof, but not the key."""
    async with join_house(tmp_path, key=KEY) as house:
        lobby = await house.lobby()
        nonce = b"c" * 32
        recorded: list[JoinRequest] = []

        def spoilt(offer: JoinOffer) -> JoinRequest:
            recorded.append(proven(house, offer, KEY, nonce))
            return dataclasses.replace(recorded[0], signature=b"x")

        await house.say(spoilt)
        again = await house.say(
            lambda offer: dataclasses.replace(
                proven(house, offer, OTHER, nonce), key_proof=recorded[0].key_proof
            )
        )
        assert answer_code(again) == "bad_proof"
        assert lobby.members == (house.node.id,)


async def test_a_proof_made_for_one_server_is_no_good_at_another(tmp_path: Path) -> None:
    """A fake server passes on what a keyed joiner sent to it."""
    async with join_house(tmp_path, key=KEY) as house:
        lobby = await house.lobby()
        fake = make_node(tmp_path / "fake")

        def passed_on(offer: JoinOffer) -> JoinRequest:
            mine = house.joiner.identity
            shown = key_transcript(
                offer.nonce, b"c" * 32, fake.identity.fingerprint, mine.fingerprint, CLUSTER
            )
            return dataclasses.replace(
                proven(house, offer, OTHER), key_proof=KEY.client_proof(shown)
            )

        answer = await house.say(passed_on)
        assert answer_code(answer) == "bad_proof"
        assert lobby.members == (house.node.id,)


async def test_a_server_without_a_key_gives_a_keyed_joiner_no_seat(tmp_path: Path) -> None:
    async with join_house(tmp_path) as house:
        house.server.seats = (SEAT,)
        answer = await house.client_with(KEY).join(house.address, REQUEST)
        assert (answer.code, answer.message, answer.seats) == ("no_key", NO_KEY, ())
        assert house.server.admitted == [], "it did not even learn who asks"


@pytest.mark.parametrize("theirs", [None, OTHER], ids=["without-key", "another-key"])
async def test_a_former_member_is_known_by_its_certificate_not_by_a_key(
    tmp_path: Path, theirs: JoinKey | None
) -> None:
    """One that finds its way to where its cluster has ended asks a node that it knows."""
    async with join_house(tmp_path, key=theirs) as house:
        house.server.seats = (SEAT,)
        client = house.client_with(KEY)
        asked = dataclasses.replace(REQUEST, to=house.node.id)
        answer = await client.join(house.address, asked)
        assert (answer.code, answer.seats) == ("", (SEAT,))
        assert house.server.checks == [KeyCheck.NONE]
        with pytest.raises(LinkError, match="not whom we asked"):
            await client.join(house.address, dataclasses.replace(REQUEST, to="x" * 52))


async def test_a_server_that_only_claims_the_key_is_not_believed(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=OTHER) as house:
        house.server.seats = (SEAT,)
        answer = await house.client_with(KEY).join(house.address, REQUEST)
        assert (answer.code, answer.message, answer.seats) == ("bad_proof", UNPROVED, ())
        assert house.server.checks == [KeyCheck.WRONG]


async def test_a_joiners_own_proof_sent_back_is_no_server_proof(tmp_path: Path) -> None:
    class Mirror(JoinKey):
        """Says that every proof is right and sends it back."""

        seen = b""

        def is_client_proof(self, proof: bytes, transcript: bytes) -> bool:
            Mirror.seen = proof
            return True

        def server_proof(self, transcript: bytes) -> bytes:
            return Mirror.seen

    async with join_house(tmp_path, key=Mirror(b"")) as house:
        house.server.seats = (SEAT,)
        answer = await house.client_with(KEY).join(house.address, REQUEST)
        assert house.server.checks == [KeyCheck.PROVED]
        assert (answer.code, answer.seats) == ("bad_proof", ())


async def test_a_proof_at_a_server_that_lost_its_key_is_told(tmp_path: Path) -> None:
    async with join_house(tmp_path) as house:
        answer = await house.say(lambda offer: proven(house, offer, KEY))
        assert isinstance(answer, JoinAnswer)
        assert (answer.code, answer.message) == ("no_key", NO_KEY)
        assert house.server.admitted == []


@pytest.mark.parametrize("nonce", [b"", b"n" * 31, b"n" * 33])
async def test_a_proof_needs_a_fresh_nonce_of_its_own(tmp_path: Path, nonce: bytes) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        answer = await house.say(
            lambda offer: dataclasses.replace(proven(house, offer, KEY), client_nonce=nonce)
        )
        assert answer_code(answer) == "malformed"
        assert house.server.admitted == []


async def test_each_handshake_has_another_proof(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        answers = [await house.client_with(KEY).join(house.address, REQUEST) for _ in range(2)]
        requests = [request for _, request in house.server.admitted]
        assert requests[0].client_nonce != requests[1].client_nonce
        proofs = {entry.key_proof for entry in (*requests, *answers)}
        assert len(proofs) == 4
        assert all(len(proof) == 32 for proof in proofs)


async def test_the_server_proves_itself_only_to_a_proven_joiner(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        for client in (house.client, house.client_with(OTHER)):
            answer = await client.join(house.address, REQUEST)
            assert answer.key_proof == b""


async def test_a_request_of_the_old_format_comes_in_through_an_open_window(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        lobby = await house.lobby(window_open=True)
        reader, writer = await house.connect()
        offer = await read_message(reader)
        assert isinstance(offer, JoinOffer)
        writer.write(of_old_format(proven(house, offer, KEY)))
        answer = await read_message(reader)
        writer.transport.abort()
        assert answer_code(answer) == ""
        assert house.joiner.id in lobby.members


@pytest.mark.parametrize("key", [KEY, None], ids=["keyed", "without-key"])
async def test_at_a_server_of_the_old_format(tmp_path: Path, key: JoinKey | None) -> None:
    """It would admit whoever asks and ignore the proof: one with a key does not even ask."""
    async with join_house(tmp_path) as house:
        asked: list[object] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            offer = house.server.offer(b"n" * 32)
            assert offer is not None
            writer.write(of_old_format(offer))
            asked.append(await read_message(reader))
            writer.write(of_old_format(JoinAnswer("", "", CLUSTER, "lab", (SEAT,))))
            writer.close()

        old = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=house.node.trust.server_context)
        address = old.sockets[0].getsockname()[:2]
        answer = await house.client_with(key).join(address, REQUEST)
        old.close()
        await old.wait_closed()
        if key is None:
            assert (answer.code, answer.seats) == ("", (SEAT,))
        else:
            assert (answer.code, answer.seats) == ("no_key", ())
            assert not [request for request in asked if request is not None]


async def test_what_a_stranger_says_is_fit_for_a_terminal(tmp_path: Path) -> None:
    async with join_house(tmp_path, key=KEY) as house:
        joiner = TlsJoinClient(house.joiner.identity, house.joiner.trust)
        nasty = dataclasses.replace(REQUEST, name="a\x1b[2J")
        assert (await joiner.join(house.address, nasty)).code == "malformed"

        async def refuse(*_: object) -> JoinAnswer:
            return JoinAnswer("busy", "\x1b[2J" + "x" * 1000)

        house.server.admit = refuse  # type: ignore[method-assign, assignment]
        answer = await joiner.join(house.address, REQUEST)
        assert answer.message.startswith("[2Jx")
        assert len(answer.message) < 301
