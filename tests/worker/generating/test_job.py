"""One answer from logits to its parts: stops, grammar, calls, log probabilities, continuation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fixtures.letter_tokens import BYTES_FROM, END, MARKER, LetterTokens

from aivailable.wire.generation import CallDelta, Constraint, Generate, Sampling
from aivailable.worker.answer import Delta, Grammar, PlainText, Prepared
from aivailable.worker.generating.job import Job
from aivailable.worker.generating.token_tables import TokenTables
from aivailable.worker.grammar.rules import GrammarError
from aivailable.worker.sampling.sampler import NoToken

PROMPT = (70, 71, 72)
TOKENS = LetterTokens("yes", "no", '"a', "\n\n")
TABLES = TokenTables(TOKENS)
GREEDY = Sampling(temperature=0.0)
Row = npt.NDArray[np.float32]


def request(**more: Any) -> Generate:
    return Generate("r", "d", prompt_ids=PROMPT, **{"sampling": GREEDY, **more})


def job(asked: Generate, prepared: Prepared | None = None, limit: int = 100) -> Job:
    return Job(asked, prepared or Prepared(PROMPT), TABLES, limit=limit, arrived_s=0.0)


def wants(*tokens: int) -> Row:
    """Logits with these tokens on top, best first."""
    row = np.zeros(TOKENS.vocabulary, np.float32)
    for at, token in enumerate(tokens):
        row[token] = 20.0 - at
    return row


def text_of(one: Job, rows: Sequence[Row]) -> str:
    """Draw until the rows or the answer end."""
    return "".join(one.draw(row).text for row in rows if one.finished is None)


def random_rows(count: int, seed: int) -> list[Row]:
    random = np.random.default_rng(seed)
    return list(random.normal(0, 3, (count, TOKENS.vocabulary)).astype(np.float32))


def test_an_answer_ends_at_the_end_token() -> None:
    one = job(request())
    assert text_of(one, [wants(token) for token in TOKENS.spell("hi")]) == "hi"
    assert one.draw(wants(END)).ids == ()
    assert (one.finished, one.held(), one.reason) == ("stop", Delta(), "stop")
    assert one.completion_tokens == 2


def test_ignored_end_tokens_do_not_come() -> None:
    one = job(request(ignore_eos=True), limit=1)
    assert one.draw(wants(END, 258)).ids == (258,)
    assert one.finished == "length"


def test_a_stop_string_over_token_borders() -> None:
    one = job(request(stop=("END", "\n\n")))
    rows = [wants(token) for token in TOKENS.spell("a EN, b END c")]
    assert text_of(one, rows) + one.held().text == "a EN, b "
    assert one.reason == "stop"
    other = job(request(stop=("END", "\n\n")))
    assert text_of(other, [wants(258), wants(261), wants(258)]) == "yes"


def test_what_may_be_a_stop_string_comes_at_the_end() -> None:
    one = job(request(stop=("END",)), limit=3)
    assert text_of(one, [wants(token) for token in TOKENS.spell("xEN")]) == "x"
    assert one.held() == Delta("EN")
    assert one.reason == "length"


class Upper:
    """A chat format of its own kind: `!` begins a call, `~` turns reasoning on and off."""

    def __init__(self) -> None:
        self.called = False
        self._thinks = False

    def feed(self, text: str) -> Delta:
        said, thought, calls = "", "", []
        for char in text.replace("<|call|>", "!"):
            if char == "!":
                self.called = True
                calls.append(CallDelta(0, "c0", "f"))
            elif char == "~":
                self._thinks = not self._thinks
            elif self._thinks:
                thought += char
            else:
                said += char
        return Delta(said, thought, tuple(calls))

    def finish(self) -> Delta:
        return Delta("." if self.called else "")


def test_the_formats_parser_reads_text_and_visible_markers() -> None:
    one = job(request(), Prepared(PROMPT, Upper, visible=frozenset({MARKER})))
    drawn = [one.draw(wants(token)) for token in (*TOKENS.spell("a~b~"), MARKER)]
    assert [part.text for part in drawn] == ["a", "", "", "", ""]
    assert [part.reasoning for part in drawn] == ["", "", "b", "", ""]
    assert drawn[-1].calls == (CallDelta(0, "c0", "f"),)
    one.draw(wants(END))
    assert one.held().text == "."
    assert one.reason == "tool_calls"


def test_stop_strings_apply_to_content_alone() -> None:
    one = job(request(stop=("b",)), Prepared(PROMPT, Upper))
    drawn = [one.draw(wants(token)) for token in TOKENS.spell("~b~a")]
    assert "".join(part.reasoning for part in drawn) == "b"
    assert one.finished is None
    one.draw(wants(*TOKENS.spell("b")))
    assert one.finished == "stop"


def test_a_cut_call_is_not_a_finished_one() -> None:
    one = job(request(), Prepared(PROMPT, Upper, visible=frozenset({MARKER})), limit=1)
    one.draw(wants(MARKER))
    one.held()
    assert one.reason == "length"


YES_OR_NO = Constraint("gbnf", 'root ::= "yes" | "no" "!"')


def test_a_grammar_keeps_the_best_token_that_fits() -> None:
    one = job(request(constraint=YES_OR_NO))
    assert one.draw(wants(END, 70, 259, 258)).text == "no"
    assert one.finished is None
    assert one.draw(wants(END, 259)).text == "!"
    assert (one.finished, one.reason) == ("stop", "stop")


def test_a_grammar_ends_the_answer_without_an_end_token() -> None:
    one = job(request(constraint=YES_OR_NO, ignore_eos=True))
    assert one.draw(wants(258)).text == "yes"
    assert one.finished == "stop"


def test_max_tokens_cut_a_grammar() -> None:
    one = job(request(constraint=YES_OR_NO), limit=1)
    one.draw(wants(259))
    assert one.reason == "length"


def test_a_lazy_grammar_leaves_the_text_before_alone() -> None:
    grammar = Grammar(Constraint("gbnf", 'root ::= "<" [0-9]{2} ">"'), ("<",))
    one = job(request(), Prepared(PROMPT, grammar=grammar))
    rows = [
        wants(258),
        wants(*TOKENS.spell("<")),
        wants(258, *TOKENS.spell("4")),
        wants(END, *TOKENS.spell("2")),
    ]
    assert text_of(one, rows) == "yes<42", "the end token does not fit inside: the next best does"
    assert text_of(one, [wants(*TOKENS.spell(">"))]) == ">"
    assert one.finished == "stop"


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 3},
    },
    "required": ["name", "sizes"],
}
BOUND = Constraint("json_schema", json.dumps(SCHEMA))
SAMPLINGS = [
    GREEDY,
    Sampling(seed=4),
    Sampling(1.5, 0, 0.99, 0.0, seed=5, repeat_penalty=1.2, presence_penalty=0.3),
    Sampling(1.0, 0, 1.0, 0.0, seed=6, mirostat=2),
    Sampling(1.0, 0, 1.0, 0.0, seed=7, mirostat=1, xtc_probability=0.5),
    Sampling(1.0, 30, seed=8, dry_multiplier=0.8, xtc_probability=0.5, xtc_threshold=0.05),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("constraint", [None, BOUND])
@pytest.mark.parametrize("cut", [1, 8, 21])
def test_a_continuation_draws_what_would_have_come(
    sampling: Sampling, constraint: Constraint | None, cut: int
) -> None:
    rows = random_rows(60, 1)
    asked = request(sampling=sampling, constraint=constraint, stop=("zz",))
    whole = job(asked, limit=60)
    texts = [whole.draw(row).text for row in rows if whole.finished is None]
    ids = whole.tokens[len(PROMPT) :]
    if len(ids) <= cut:
        pytest.skip("the answer is shorter than the cut")
    rest = job(replace(asked, generated_ids=tuple(ids[:cut])), limit=60)
    assert rest.replays_singly == (sampling.mirostat > 0)
    if rest.replays_singly:
        for at in range(cut):
            rest.fed = len(PROMPT) + at
            rest.observe(rows[at])
            rest.observe(rows[at])
    after = [rest.draw(row).text for row in rows[cut : len(ids)]]
    assert rest.tokens == whole.tokens
    assert after == texts[cut:]
    assert rest.held() == whole.held()


@pytest.mark.parametrize("seed", range(10))
def test_random_logits_become_valid_json(seed: int) -> None:
    sampling = Sampling(1.2, 0, 1.0, 0.0, seed=seed) if seed % 2 else Sampling(seed=seed)
    one = job(request(sampling=sampling, constraint=BOUND), limit=5000)
    rows = random_rows(50, seed)
    for row in rows:
        # Random logits write a number's digits and white space for long; the quote ends a string.
        row[BYTES_FROM + ord('"')] += 3.0
    text = text_of(one, rows * 100) + one.held().text
    assert one.reason == "stop"
    value = json.loads(text)
    assert len(value["name"]) <= 6
    assert len(value["sizes"]) <= 3


def test_replayed_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GrammarError):
        job(request(constraint=YES_OR_NO, generated_ids=(70,)))


def test_logprobs_come_with_every_token() -> None:
    one = job(request(logprobs=2, sampling=Sampling(temperature=0.0, logit_bias={"258": 100.0})))
    (told,) = one.draw(wants(70, 71)).logprobs
    assert told.drawn.token == 258
    assert told.drawn.piece == b"yes"
    assert [one.token for one in told.top] == [70, 71]
    assert told.top[0].logprob > -0.5 > told.drawn.logprob
    assert job(request()).draw(wants(70)).logprobs == ()


def test_logits_that_are_not_numbers_end_the_answer() -> None:
    with pytest.raises(NoToken):
        job(request()).draw(np.full(TOKENS.vocabulary, np.nan, np.float32))


def test_plain_text_is_the_default() -> None:
    assert Prepared(PROMPT).parser is PlainText
