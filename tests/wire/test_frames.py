"""The frame codec: any split of the bytes gives the same frames; garbage only FrameError."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.errors import FrameError
from aivailable.wire import frames
from aivailable.wire.frames import Assembler, Frame, FrameDecoder, encode_frame
from aivailable.wire.limits import FRAME_PAYLOAD_MAX_BYTES

FRAMES = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.binary(max_size=64),
)


def encode(frame: Frame) -> bytes:
    return encode_frame(frame.kind, frame.stream, frame.flags, frame.payload)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 600), max_size=12))
def test_any_split_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(map(encode, sent))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = FrameDecoder()
    got: list[Frame] = []
    for start, stop in pairwise(edges):
        got += decoder.feed(data[start:stop])
    assert got == sent
    assert decoder.buffered_bytes == 0


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_gives_frames_or_a_frame_error(pieces: list[bytes]) -> None:
    decoder = FrameDecoder(payload_max_bytes=100)
    try:
        for piece in pieces:
            for frame in decoder.feed(piece):
                assert len(frame.payload) <= 100
            assert decoder.buffered_bytes <= 100 + frames.HEADER_BYTES
    except FrameError:
        return


def test_a_frame_over_the_limit_is_refused_before_it_is_buffered() -> None:
    largest = encode_frame(frames.DATA, 1, 0, bytes(FRAME_PAYLOAD_MAX_BYTES))
    assert len(list(FrameDecoder().feed(largest))) == 1
    with pytest.raises(FrameError):
        encode_frame(frames.DATA, 1, 0, bytes(FRAME_PAYLOAD_MAX_BYTES + 1))
    header = (FRAME_PAYLOAD_MAX_BYTES + 1 << 8).to_bytes(4, "big") + bytes(5)
    with pytest.raises(FrameError):
        list(FrameDecoder().feed(header))


@given(st.integers(0, 3 * FRAME_PAYLOAD_MAX_BYTES))
def test_a_message_survives_its_fragments(size: int) -> None:
    message = bytes(size)
    assembler, decoder = Assembler(size), FrameDecoder()
    got: list[bytes] = []
    for length, data in frames.fragments(frames.DATA, 7, message, first_kind=frames.OPEN):
        (frame,) = decoder.feed(data)
        assert len(frame.payload) == length
        assert frame.kind == (frames.DATA if got or assembler.partial_bytes else frames.OPEN)
        whole = assembler.add(frame)
        got += [] if whole is None else [whole]
    assert got == [message]
    assert assembler.partial_bytes == 0


def test_a_message_over_its_bound_is_refused_while_it_grows() -> None:
    assembler = Assembler(100)
    assert assembler.add(Frame(frames.DATA, 1, 0, bytes(60))) is None
    with pytest.raises(FrameError, match="over 100 bytes"):
        assembler.add(Frame(frames.DATA, 1, 0, bytes(60)))


def test_empty_fragments_cannot_pile_up() -> None:
    with pytest.raises(FrameError):
        Assembler(100).add(Frame(frames.DATA, 1, 0, b""))


@given(st.integers(0, 2**32 - 1), st.text(alphabet="abc_", max_size=20), st.text(max_size=2000))
def test_credit_and_reset_come_back(number: int, code: str, message: str) -> None:
    (credit,) = FrameDecoder().feed(frames.encode_credit(3, number))
    assert frames.decode_credit(credit) == number
    (reset,) = FrameDecoder().feed(frames.encode_reset(3, code, message))
    got_code, got_message = frames.decode_reset(reset)
    assert got_code == code
    assert message.startswith(got_message.rstrip("�")) or "�" in message


def test_a_credit_frame_needs_its_number() -> None:
    with pytest.raises(FrameError):
        frames.decode_credit(Frame(frames.CREDIT, 3, 0, b"abc"))
