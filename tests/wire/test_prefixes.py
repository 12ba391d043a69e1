"""What the digests of a request's beginning promise to the router."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aivailable.wire.generation import Generate
from aivailable.wire.prefixes import BLOCK_CHARS, PREFIX_DIGESTS_MAX, digests, shared

TEXTS = st.lists(st.text(max_size=5), max_size=6)


def chat(*texts: str, **more: Any) -> Generate:
    return Generate("r", "d", messages=tuple({"role": "user", "content": t} for t in texts), **more)


@given(TEXTS, TEXTS)
def test_requests_share_as_many_digests_as_first_messages(
    left: list[str], right: list[str]
) -> None:
    common = 0
    while common < min(len(left), len(right)) and left[common] == right[common]:
        common += 1
    assert shared(digests(chat(*left)), digests(chat(*right))) == common


def test_order_of_keys_does_not_count_but_tools_do() -> None:
    swapped = Generate("x", "d", messages=({"content": "a", "role": "user"},))
    assert digests(chat("a")) == digests(swapped)
    assert not shared(digests(chat("a")), digests(chat("a", tools=({"type": "function"},))))
    assert not shared(digests(chat("a")), digests(chat("a", template_arguments={"x": 1})))


def test_prompts_go_by_whole_blocks_and_numbers_have_63_bits() -> None:
    text = "x" * BLOCK_CHARS + "y" * BLOCK_CHARS + "z"
    found = digests(Generate("r", "d", prompt=text))
    assert len(found) == 2
    assert all(0 <= digest < 1 << 63 for digest in found)
    assert shared(found, digests(Generate("r", "d", prompt=text[: BLOCK_CHARS + 1]))) == 1
    assert len(digests(Generate("r", "d", prompt="x" * 10**6))) == PREFIX_DIGESTS_MAX
    assert len(digests(Generate("r", "d", prompt_ids=tuple(range(200))))) == 3


def test_what_was_tokenized_elsewhere_and_empty_requests_have_answers() -> None:
    assert digests(Generate("r", "d", prompt="short")) == ()
    assert digests(Generate("r", "d")) == ()
    assert digests(Generate("r", "d", messages=({"role": "user", "content": b"\xff"},)))
