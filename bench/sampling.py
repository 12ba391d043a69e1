"""python -m bench.sampling: microseconds a row costs to draw from, beside llama.cpp's own chain.

Owns: the measurement on random rows shaped like a model's (a few large logits over a broad rest) at
vocabularies of 49k and 150k. Of the other side only `llama_sampler_apply` on ready candidates is
counted: that its user must fill 12 bytes for every token before is left out, in its favour. Not
part of the package.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aivailable.wire.generation import Sampling
from aivailable.worker.sampling.sampler import Sampler
from bench.report import Figure, report, wanted

VOCABULARIES: Final = {"49k": 49_152, "150k": 151_936}
ROWS: Final = 16
"""Different rows in turn, as in a step of 16 sequences."""
CASES: Final = {
    "greedy": Sampling(temperature=0.0),
    "top-k 40, top-p, min-p": Sampling(0.8, 40, 0.95, 0.05),
    "top-p without top-k": Sampling(0.8, 0, 0.95, 0.0),
    "min-p without top-k": Sampling(0.8, 0, 1.0, 0.05),
    "temperature alone": Sampling(0.8, 0, 1.0, 0.0),
}
_DATA: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
Side: TypeAlias = Callable[[int], float]
"""Row number → seconds taken."""
Rows: TypeAlias = npt.NDArray[np.float32]


def main() -> None:
    """Rounds of both sides in turn."""
    asked = wanted("sampling", __doc__.splitlines()[0])
    rounds, repeats = (3, 4) if asked.quick else (9, 12)
    figures: list[Figure] = []
    for name, size in VOCABULARIES.items():
        random = np.random.default_rng(1)
        rows = random.normal(-4, 2, (ROWS, size)).astype(np.float32)
        for row in rows:
            row[random.integers(0, size, 40)] = random.exponential(3, 40).astype(np.float32) + 6
        for case, sampling in CASES.items():
            sides = (_ours(rows, sampling), _theirs(rows, sampling))
            taken: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for side, values in zip(sides, taken, strict=True):
                    values.append(_microseconds(side, repeats))
            figures.append(
                Figure(
                    f"one row of {name}, {case}",
                    "us",
                    tuple(taken[0]),
                    "llama.cpp's chain",
                    tuple(taken[1]),
                )
            )
    report("sampling", figures, asked)


def _microseconds(side: Side, repeats: int) -> float:
    taken = sum(side(row) for _ in range(repeats) for row in range(ROWS))
    return taken / (repeats * ROWS) * 1e6


def _ours(rows: Rows, sampling: Sampling) -> Side:
    sampler = Sampler(sampling, 1, lambda _: b"", np.empty(rows.shape[1], np.float32))

    def draw(at: int) -> float:
        began = time.perf_counter()
        sampler.draw(sampler.changed(rows[at], ()), at)
        return time.perf_counter() - began

    return draw


def _theirs(rows: Rows, sampling: Sampling) -> Side:
    import llama_cpp as llama

    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    links: list[Any] = []
    if sampling.temperature <= 0.0:
        links.append(llama.llama_sampler_init_greedy())
    else:
        if sampling.top_k > 0:
            links.append(llama.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1.0:
            links.append(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0.0:
            links.append(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        links.append(llama.llama_sampler_init_temp(sampling.temperature))
        links.append(llama.llama_sampler_init_dist(1))
    for link in links:
        llama.llama_sampler_chain_add(chain, link)
    size = rows.shape[1]
    fresh = np.zeros(size, _DATA)
    fresh["id"] = np.arange(size)
    data = fresh.copy()
    pointer = data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))

    def draw(at: int) -> float:
        fresh["logit"] = rows[at]
        data[:] = fresh
        array = llama.llama_token_data_array(pointer, size, -1, False)
        began = time.perf_counter()
        llama.llama_sampler_apply(chain, ctypes.byref(array))
        return time.perf_counter() - began

    return draw


if __name__ == "__main__":
    main()
