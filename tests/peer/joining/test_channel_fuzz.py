"""Anything at all on the join channel: the visit ends, nothing is raised, and it stays bounded."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fixtures.join_house import REQUEST, Server
from hypothesis import example, given
from hypothesis import strategies as st

from aivailable.peer.joining.channel import JoinListener
from aivailable.peer.joining.join_key import JoinKey, make_join_key
from aivailable.peer.links.identity import Identity
from aivailable.wire import frames
from aivailable.wire.frames import FrameDecoder, encode_frame
from aivailable.wire.join import (
    JOIN,
    JoinAnswer,
    JoinOffer,
    JoinRequest,
    join_transcript,
    key_transcript,
)
from aivailable.wire.limits import JOIN_FRAME_MAX_BYTES
from aivailable.wire.schema import pack, unpack_plain

KEY = JoinKey.of(make_join_key(b"k" * 16))
NONCE = b"n" * 32
SAID_MAX_BYTES = 3 * JOIN_FRAME_MAX_BYTES
"""Offer and answer."""


@cache
def identities() -> tuple[Identity, Identity]:
    """The server's and a joiner's; making keys is slow."""
    with TemporaryDirectory() as folder:
        made = []
        for name in ("server", "joiner"):
            home = Path(folder) / name
            home.mkdir()
            made.append(Identity.load_or_create(home))
        return made[0], made[1]


def genuine() -> JoinRequest:
    server, joiner = identities()
    prints, cluster = (server.fingerprint, joiner.fingerprint), Server("").offer(NONCE)
    assert cluster is not None
    return dataclasses.replace(
        REQUEST,
        certificate=joiner.certificate,
        signature=joiner.sign(join_transcript(NONCE, *prints, cluster.cluster_id)),
        client_nonce=NONCE,
        key_proof=KEY.client_proof(key_transcript(NONCE, NONCE, *prints, cluster.cluster_id)),
    )


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False

    def write(self, data: Any) -> None:
        assert not self.ended, "speaks after the end"
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True


async def visit(pieces: list[bytes]) -> tuple[list[Any], Server, Transport]:
    """One stranger that sends the pieces; what the listener said, and to whom it opened."""
    server = Server(identities()[0].node)
    listener = JoinListener(identities()[0], key=KEY, token_bytes=lambda count: NONCE[:count])
    listener.open(server)
    protocol, transport = listener.protocol(), Transport()
    protocol.connection_made(transport)
    for piece in pieces:
        protocol.data_received(piece)
        if transport.ended:
            break
    tasks = [getattr(visit, "task", None) for visit in listener.seats.visits]
    await asyncio.gather(*(task for task in tasks if task is not None))
    protocol.connection_lost(None)
    assert listener.seats.visits == {}
    await listener.close()
    said = [JOIN.decode(frame.payload) for frame in FrameDecoder().feed(transport.written)]
    return said, server, transport


def check(pieces: list[bytes]) -> tuple[list[Any], Server]:
    said, server, transport = asyncio.run(visit(pieces))
    assert isinstance(said[0], JoinOffer)
    assert len(said) <= 2
    assert len(transport.written) <= SAID_MAX_BYTES
    if len(said) == 2:
        assert isinstance(said[1], JoinAnswer)
        assert transport.ended
    return said, server


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def test_the_genuine_request_is_admitted_in_pieces() -> None:
    data = encode_frame(frames.JOIN, 0, frames.LAST, JOIN.encode(genuine()))
    said, server = check(cut(data, [1, 5, 100]))
    assert said[1].code == ""
    assert len(server.admitted) == 1


@given(st.lists(st.binary(max_size=64), max_size=8))
@example([b"\x00\x00\x00\x00\x00\x00\x00\x00"])
@example([b"\xff" * 8])
@example([b"\x00" * 64] * 8)
def test_any_bytes(pieces: list[bytes]) -> None:
    _, server = check(pieces)
    assert server.admitted == []


PAYLOADS = st.sampled_from(
    [
        b"",
        b"\xc1",
        b"\x91" * 200,
        JOIN.encode(REQUEST),
        JOIN.encode(JoinAnswer("", "")),
        bytes(JOIN_FRAME_MAX_BYTES),
    ]
) | st.binary(max_size=40)
FRAMES = st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3), PAYLOADS)


@given(st.lists(FRAMES, max_size=4), st.lists(st.integers(0, 5000), max_size=4))
@example([(frames.JOIN, 0, frames.LAST, b"\x91" * 200)], [])
@example([(frames.JOIN, 0, frames.LAST, JOIN.encode(REQUEST))] * 2, [])
def test_any_frames(sent: list[tuple[int, int, int, bytes]], places: list[int]) -> None:
    data = b"".join(encode_frame(*frame) for frame in sent)
    _, server = check(cut(data, places))
    assert server.admitted == []


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False),
    st.text(max_size=80), st.binary(max_size=80), st.lists(st.text(max_size=9), max_size=3),
)  # fmt: skip
FIELDS = st.sampled_from([field.name for field in dataclasses.fields(JoinRequest)])


@given(st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3))
@example({"certificate": b""})
@example({"signature": b""})
@example({"client_nonce": b""})
@example({"key_proof": b"\x00" * 32})
@example({"key_proof": b"p"})
@example({"name": "\x1b[2J"})
@example({"addresses": ["\x07"]})
def test_a_genuine_request_with_other_values(changes: dict[str, Any]) -> None:
    kind, fields = unpack_plain(JOIN.encode(genuine()))
    payload = pack([kind, {**fields, **changes}])
    said, server = check([encode_frame(frames.JOIN, 0, frames.LAST, payload)])
    proving = ("certificate", "signature", "client_nonce")
    if any(name in changes and changes[name] != fields[name] for name in proving):
        assert server.admitted == []
        assert said[1].code in ("malformed", "bad_proof")


@given(st.integers(0, 4000), st.integers(1, 255))
@example(0, 1)
@example(5, 255)
def test_a_genuine_request_with_a_changed_byte(place: int, change: int) -> None:
    data = bytearray(encode_frame(frames.JOIN, 0, frames.LAST, JOIN.encode(genuine())))
    data[place % len(data)] ^= change
    check([bytes(data)])


def test_a_genuine_request_with_any_byte_of_its_certificate_changed() -> None:
    """Each place once: the parser of certificates has exceptions of its own."""
    request = genuine()
    for place in range(len(request.certificate)):
        changed = bytearray(request.certificate)
        changed[place] ^= 1
        other = dataclasses.replace(request, certificate=bytes(changed))
        said, server = check([encode_frame(frames.JOIN, 0, frames.LAST, JOIN.encode(other))])
        assert said[1].code in ("malformed", "bad_proof")
        assert server.admitted == []
