"""What a request costs in turns, and how it goes on after it gave up its slot."""

from __future__ import annotations

import pytest

from aivailable.core.serving.admission import ANSWER_EXPECTED_TOKENS
from aivailable.peer.serving.runs import CHARS_PER_TOKEN, Run, used_tokens
from aivailable.wire.generation import Embedded, Finished, Generate, Started, Tokens

TEXT = "x" * CHARS_PER_TOKEN * 10
PICTURE = {"type": "image_url", "image_url": {"url": "data:" + "A" * 100_000}}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Generate("r", "m", prompt=TEXT), 10 + ANSWER_EXPECTED_TOKENS),
        (Generate("r", "m", prompt=TEXT, max_tokens=3), 13),
        (Generate("r", "m", prompt=TEXT, max_tokens=10**9), 10 + ANSWER_EXPECTED_TOKENS),
        (Generate("r", "m", prompt_ids=(1,) * 7, max_tokens=0), 7),
        (Generate("r", "m", messages=({"role": "user", "content": TEXT},), max_tokens=1), 11),
        (
            Generate(
                "r",
                "m",
                messages=({"content": [PICTURE, {"type": "text", "text": TEXT}]}, {"role": "tool"}),
                max_tokens=1,
            ),
            11,
        ),
        (Generate("r", "m", task="embed", inputs=(TEXT, TEXT)), 20),
        (Generate("r", "m", task="embed", input_ids=((1, 2), (3,))), 3),
        (Generate("r", "m", task="rerank", prompt=TEXT, inputs=(TEXT,)), 20),
        (Generate("r", "m", prompt_ids=(1,) * 900, generated_ids=(1,) * 90, max_tokens=100), 10),
    ],
)
def test_a_request_costs_its_prompt_and_an_answer_of_usual_length(
    request_: Generate, expected: int
) -> None:
    assert Run(request_, 0.0).cost_tokens() == expected


def test_what_was_warm_or_made_earlier_is_not_charged() -> None:
    end = Finished("r", "stop", prompt_tokens=100, completion_tokens=30, cached_tokens=90)
    assert used_tokens(end, replayed=0) == 40
    assert used_tokens(end, replayed=25) == 15
    assert used_tokens(Finished("r", "stop"), replayed=25) == 0


def test_it_goes_on_after_its_last_token() -> None:
    run = Run(Generate("r", "m", prompt="x", max_tokens=50), 0.0)
    run.left_slot()
    assert run.request.prompt == "x", "nothing was made: it begins anew"
    run.heard(Started("r", 2, prompt_ids=(1, 2)))
    run.heard(Tokens("r", (3, 4), "a"))
    run.left_slot()
    assert (run.request.prompt, run.request.prompt_ids) == (None, (1, 2))
    assert (run.request.generated_ids, run.replayed, run.request.max_tokens) == ((3, 4), 2, 50)
    run.heard(Started("r", 2, prompt_ids=(1, 2)))
    run.heard(Tokens("r", (5,), "b"))
    run.left_slot()
    assert run.request.generated_ids == (3, 4, 5)


def test_what_would_lose_something_is_not_moved() -> None:
    begun = Run(Generate("r", "m", prompt="x"), 0.0)
    assert begun.movable
    begun.heard(Tokens("r", (3,), "a"))
    assert not begun.movable, "its prompt's ids are not known"
    vectors = Run(Generate("r", "m", task="embed", inputs=("x",)), 0.0)
    vectors.heard(Embedded("r", 0, b"1234"))
    assert not vectors.movable
