"""Our samplers beside llama.cpp's own, one by one and as the default chain, on random logits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fixtures.models import smollm2_path

from aivailable.wire.generation import Sampling
from aivailable.worker.sampling.sampler import Sampler

llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

SIZE = 5000
OFF = Sampling(1.0, 0, 1.0, 0.0)
Row = npt.NDArray[np.float32]
SEEDS = range(6)


def row_of(seed: int) -> Row:
    return np.random.default_rng(seed).normal(0, 3, SIZE).astype(np.float32)


def theirs(row: Row, *samplers: Any, taken: tuple[int, ...] = ()) -> dict[int, float]:
    """Candidates with their probabilities after these samplers."""
    data = (llama.llama_token_data * len(row))()
    for token, logit in enumerate(row):
        data[token].id, data[token].logit = token, logit
    array = llama.llama_token_data_array(data, len(row), -1, False)
    for one in samplers:
        for token in taken:
            llama.llama_sampler_accept(one, token)
        llama.llama_sampler_apply(one, ctypes.byref(array))
        llama.llama_sampler_free(one)
    left = [(array.data[at].id, array.data[at].logit) for at in range(array.size)]
    best = max(logit for _, logit in left)
    weights = {token: math.exp(logit - best) for token, logit in left if logit > -math.inf}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def our_sampler(sampling: Sampling, piece: Callable[[int], bytes] = lambda _: b"x") -> Sampler:
    return Sampler(sampling, 1, piece, np.empty(SIZE, np.float32))


def ours(
    row: Row,
    sampling: Sampling,
    taken: tuple[int, ...] = (),
    piece: Callable[[int], bytes] = lambda _: b"x",
) -> dict[int, float]:
    one = our_sampler(sampling, piece)
    for token in taken:
        one.take(token, answer=True)
    found = one.distribution(one.changed(row, taken), 0)
    weights = found.weights()
    return dict(zip(found.ids.tolist(), (weights / weights.sum()).tolist(), strict=True))


def assert_same(got: dict[int, float], expected: dict[int, float]) -> None:
    # They sum floats in another order: at a border one candidate more or less.
    odd = set(got) ^ set(expected)
    assert len(odd) <= 1
    for token in odd:
        assert max(got.get(token, 0.0), expected.get(token, 0.0)) < 0.02
    for token in set(got) & set(expected):
        assert got[token] == pytest.approx(expected[token], rel=0.02, abs=1e-7)


@pytest.mark.parametrize(
    ("sampling", "make"),
    [
        (replace(OFF, top_k=40), lambda: llama.llama_sampler_init_top_k(40)),
        (replace(OFF, top_k=700), lambda: llama.llama_sampler_init_top_k(700)),
        (replace(OFF, top_p=0.9), lambda: llama.llama_sampler_init_top_p(0.9, 1)),
        (replace(OFF, top_p=0.2), lambda: llama.llama_sampler_init_top_p(0.2, 1)),
        (replace(OFF, min_p=0.05), lambda: llama.llama_sampler_init_min_p(0.05, 1)),
        (replace(OFF, typical_p=0.7), lambda: llama.llama_sampler_init_typical(0.7, 1)),
        (replace(OFF, top_n_sigma=1.0), lambda: llama.llama_sampler_init_top_n_sigma(1.0)),
        (replace(OFF, temperature=0.4), lambda: llama.llama_sampler_init_temp(0.4)),
        (
            replace(OFF, xtc_probability=1.0, xtc_threshold=0.01),
            lambda: llama.llama_sampler_init_xtc(1.0, 0.01, 1, 7),
        ),
    ],
    ids=["top-k", "top-700", "top-p", "top-0.2", "min-p", "typical", "sigma", "temp", "xtc"],
)
def test_each_filter(sampling: Sampling, make: Callable[[], Any]) -> None:
    for seed in SEEDS:
        assert_same(ours(row_of(seed), sampling), theirs(row_of(seed), make()))


def test_the_default_chain() -> None:
    sampling = Sampling(
        0.7, 40, 0.9, 0.02, top_n_sigma=2.0, typical_p=0.95, xtc_probability=1.0, xtc_threshold=0.1
    )
    for seed in SEEDS:
        chain = (
            llama.llama_sampler_init_top_n_sigma(2.0),
            llama.llama_sampler_init_top_k(40),
            llama.llama_sampler_init_typical(0.95, 1),
            llama.llama_sampler_init_top_p(0.9, 1),
            llama.llama_sampler_init_min_p(0.02, 1),
            llama.llama_sampler_init_xtc(1.0, 0.1, 1, 7),
            llama.llama_sampler_init_temp(0.7),
        )
        assert_same(ours(row_of(seed), sampling), theirs(row_of(seed), *chain))


def test_penalties_and_bias() -> None:
    taken = tuple(int(token) for token in np.random.default_rng(1).integers(0, 50, 60))
    sampling = replace(
        OFF, repeat_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, repeat_last_n=100
    )
    bias = (llama.llama_logit_bias * 1)()
    bias[0].token, bias[0].bias = 7, 3.5
    for seed in SEEDS:
        row = row_of(seed)
        penalties = llama.llama_sampler_init_penalties(SIZE, 100, 1.3, 0.2, 0.4)
        assert_same(ours(row, sampling, taken), theirs(row, penalties, taken=taken))
        biased = llama.llama_sampler_init_logit_bias(SIZE, 1, bias)
        assert_same(ours(row, replace(OFF, logit_bias={"7": 3.5})), theirs(row, biased))


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_picks_from_the_same_candidates(version: int) -> None:
    for seed in SEEDS:
        row = row_of(seed)
        one = our_sampler(replace(OFF, mirostat=version, mirostat_tau=3.0, mirostat_eta=0.2))
        if version == 1:
            other = llama.llama_sampler_init_mirostat(SIZE, 1, 3.0, 0.2, 100)
        else:
            other = llama.llama_sampler_init_mirostat_v2(1, 3.0, 0.2)
        assert_same(
            dict(
                zip(
                    (found := one.distribution(row, 0)).ids.tolist(),
                    (found.weights() / found.weights().sum()).tolist(),
                    strict=True,
                )
            ),
            theirs(row, other),
        )


@pytest.fixture(scope="module")
def vocab() -> Iterator[Any]:
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    model = llama.llama_model_load_from_file(str(smollm2_path()).encode(), parameters)
    yield llama.llama_model_get_vocab(model)
    llama.llama_model_free(model)


def test_dry(vocab: Any) -> None:
    buffer = ctypes.create_string_buffer(256)

    def piece(token: int) -> bytes:
        count = llama.llama_token_to_piece(vocab, token, buffer, 256, 0, True)
        return buffer.raw[:count]

    def tokens(text: bytes) -> tuple[int, ...]:
        ids = (llama.llama_token * 1000)()
        count = llama.llama_tokenize(vocab, text, len(text), ids, 1000, False, False)
        return tuple(ids[:count])

    breakers = ("\n", ":", '"', "*")
    native = (ctypes.c_char_p * 4)(*(text.encode() for text in breakers))
    texts = (
        b"the cat sat on the mat and the cat sat on the",
        b"one two three four: one two three four",
        b"a b c d e f g\nx y z a b c d e",
        b"no no no no no no no no no",
        b"x",
    )
    for at, text in enumerate(texts):
        taken = tokens(text)
        row = np.random.default_rng(at).normal(0, 1, SIZE).astype(np.float32)
        # The tokens that would go on with the repetition are among the likely ones.
        taken = tuple(token for token in taken if token < SIZE)
        row[list(taken)] += 6.0
        sampling = replace(OFF, dry_multiplier=0.8, dry_sequence_breakers=breakers)
        other = llama.llama_sampler_init_dry(vocab, 0.8, 1.75, 2, 4096, native, 4)
        assert_same(ours(row, sampling, taken, piece), theirs(row, other, taken=taken))
