"""Text comes out whole characters at a time, and nothing of a stop string ever does."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.worker.generating.detokenizer import StopStrings, Utf8Stream


class TextStream:
    """Both in a row, as job has them."""

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._characters, self._stops = Utf8Stream(), StopStrings(stops)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def feed(self, piece: bytes) -> str:
        return self._stops.feed(self._characters.feed(piece))

    def finish(self) -> str:
        return self._stops.feed(self._characters.finish()) + self._stops.finish()


def run(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, bool]:
    stream = TextStream(stops)
    text = "".join(stream.feed(piece) for piece in pieces)
    return text + stream.finish(), stream.stopped


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[left:right] for left, right in pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 1000), max_size=8))
def test_any_cut_gives_the_same_text(text: str, cuts: list[int]) -> None:
    assert run(split(text.encode(), cuts)) == (text, False)


@given(
    st.text(alphabet="ab|é", max_size=40),
    st.lists(st.text(alphabet="ab|é", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_text_ends_before_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    pieces = split(text.encode(), cuts)
    produced, stopped = run(pieces, tuple(stops))
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(produced)
    assert not any(stop in produced for stop in stops)
    assert (produced, stopped) == run([text.encode()], tuple(stops)), "cuts make no difference"
    if not stopped:
        assert produced == text


def test_a_stop_over_token_borders_is_held_back_and_never_leaks() -> None:
    stream = TextStream(("</end>",))
    assert [stream.feed(piece) for piece in (b"yes <", b"/e", b"nd", b"> more")] == [
        "yes ",
        "",
        "",
        "",
    ]
    assert stream.stopped
    assert stream.finish() == ""


def test_what_only_began_like_a_stop_comes_out_later() -> None:
    stream = TextStream(("</end>",))
    assert stream.feed(b"a </e") == "a "
    assert stream.feed(b"m>") == "</em>"


def test_half_a_character_is_held_and_a_broken_one_replaced() -> None:
    stream = TextStream()
    smile = "😀".encode()
    assert stream.feed(smile[:2]) == ""
    assert stream.feed(smile[2:]) == "😀"
    assert stream.feed(smile[:3]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("cut", range(1, 12))
def test_replayed_pieces_hold_back_the_same(cut: int) -> None:
    pieces = [bytes([byte]) for byte in "ab é</e|".encode()] + [b"nd", b"x", b"y"]
    whole, first, second = (TextStream(("</end>", "|n")) for _ in range(3))
    expected = [whole.feed(piece) for piece in pieces]
    before = [first.feed(piece) for piece in pieces[:cut]]
    for piece in pieces[:cut]:
        second.feed(piece)
    after = [second.feed(piece) for piece in pieces[cut:]]
    assert before + after == expected


def test_of_sixteen_overlapping_stops_the_first_to_be_complete_counts() -> None:
    stops = (*(f"stop{number:02}" for number in range(14)), "bc", "abcd")
    assert run([b"xabcd"], stops) == run([b"x", b"a", b"b", b"c", b"d"], stops) == ("xa", True)
