"""What idle tokens are worth: all until shown otherwise, what comes back, no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aivailable.worker.generating.warm_limit import FREE_TOKENS, TEXTS_MAX, WarmCacheLimit

MOST = 4096
LEAST = 40
WORK = 160
"""Tokens of one request, computed."""


def text(number: int, length: int = 200) -> tuple[int, ...]:
    return tuple(range(number * 100_000, number * 100_000 + length))


def serve(limit: WarmCacheLimit, tokens: tuple[int, ...], kept: int = 0) -> None:
    limit.asked(tokens, LEAST, kept)
    limit.worked(WORK)
    limit.became_idle(tokens)


def strangers(limit: WarmCacheLimit, count: int, first: int = 1000) -> None:
    for number in range(first, first + count):
        serve(limit, text(number))


def test_everything_is_kept_before_anything_is_known() -> None:
    assert WarmCacheLimit(MOST).limit == MOST
    assert WarmCacheLimit(0).limit == 0


def test_texts_that_nobody_asks_for_again_lose_their_cells() -> None:
    limit = WarmCacheLimit(MOST)
    strangers(limit, 200)
    assert limit.limit == FREE_TOKENS


def test_a_few_strangers_change_nothing() -> None:
    limit = WarmCacheLimit(MOST)
    strangers(limit, 16)
    assert limit.limit == MOST


def test_one_growing_conversation_keeps_its_length_and_no_more() -> None:
    limit = WarmCacheLimit(MOST)
    strangers(limit, 200)
    for turn in range(1, 20):
        serve(limit, text(1, 100 * turn))
    assert 1900 <= limit.limit < MOST


def test_what_was_evicted_and_comes_back_is_kept_again() -> None:
    limit = WarmCacheLimit(MOST)
    strangers(limit, 200)
    for _ in range(12):
        for user in range(6):
            serve(limit, text(user))
    assert 6 * 200 <= limit.limit <= 2048


def test_a_beginning_that_is_there_in_any_case_saves_nothing() -> None:
    limit = WarmCacheLimit(MOST)
    opening = text(7, 100)
    for number in range(200):
        serve(limit, (*opening, *text(number + 1000)), kept=len(opening))
    assert limit.limit == FREE_TOKENS


def test_a_short_common_beginning_saves_nothing() -> None:
    limit = WarmCacheLimit(MOST)
    for number in range(200):
        serve(limit, (*text(7, LEAST - 1), *text(number + 1000)))
    assert limit.limit == FREE_TOKENS


def test_beyond_what_may_be_kept_at_all_nothing_is_gained() -> None:
    limit = WarmCacheLimit(MOST)
    strangers(limit, 200)
    for _ in range(4):
        for user in range(MOST // 200 + 5):
            serve(limit, text(user))
    assert limit.limit == FREE_TOKENS


@given(
    st.integers(0, 2000),
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 120), st.integers(0, 50)),
        max_size=2 * TEXTS_MAX,
    ),
)
def test_the_limit_stays_within_its_bounds(most: int, requests: list[tuple[int, int, int]]) -> None:
    limit = WarmCacheLimit(most)
    for number, length, kept in requests:
        serve(limit, text(number, length), kept)
        assert min(most, FREE_TOKENS) <= limit.limit <= most
