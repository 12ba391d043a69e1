"""python -m bench.step_share: what a step costs besides llama.cpp, and what drawing a row costs.

Owns two measurements. Share: a worker's step loop with its real engine, channel and 16 running
rows; llama_decode (and the wait for its numbers) against everything else: scheduling, sampling,
text, frames. Rows: microseconds for a draw at 49k and 150k tokens, on random rows shaped like a
model's (a few large logits over a broad rest), beside llama.cpp's own chain; of that only
`llama_sampler_apply` on ready candidates is counted: that its user must fill 12 bytes for every
token before is left out, in its favour. Not part of the package.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aivailable.wire.generation import Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.generating.step_loop import StepLoop
from aivailable.worker.llama.engine import LlamaEngine
from aivailable.worker.protocol import Channel
from aivailable.worker.sampling.sampler import Sampler
from bench.models import smollm2
from bench.report import Figure, Wanted, report, wanted

SLOTS: Final = 16
CONTEXT: Final = 512
MEMORY_BYTES: Final = 4 << 30
PROMPT_TOKENS: Final = 16
BEGUN_STEPS: Final = 16
"""By then every row runs."""
SHARE_MAX_PERCENT: Final = 3.0
SHARES: Final = {
    "greedy": Sampling(temperature=0.0),
    "top-k 40, top-p, temperature": Sampling(0.8, 40, 0.95, 0.0, seed=1),
}
VOCABULARIES: Final = {"49k": 49_152, "150k": 151_936}
CASES: Final = {
    "greedy": Sampling(temperature=0.0),
    "top-k 40, top-p": Sampling(0.8, 40, 0.95, 0.0),
    "top-k 40, top-p, min-p": Sampling(0.8, 40, 0.95, 0.05),
    "top-p without top-k": Sampling(0.8, 0, 0.95, 0.0),
    "min-p without top-k": Sampling(0.8, 0, 1.0, 0.05),
    "temperature alone": Sampling(0.8, 0, 1.0, 0.0),
}
_DATA: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
_DRAIN: Final = "import sys\nwhile sys.stdin.buffer.raw.read(65536): pass"
Side: TypeAlias = Callable[[int], float]
"""Row number → seconds taken."""
Rows: TypeAlias = npt.NDArray[np.float32]


def main() -> None:
    """Both measurements, in rounds."""
    asked = wanted("step_share", __doc__.splitlines()[0])
    report("step_share", [*_step_shares(asked), *_rows(asked)], asked)


class _Timed:
    """llama.cpp's library; what its decode takes is added up."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.spent_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def llama_decode(self, context: Any, batch: Any) -> int:
        began = time.perf_counter()
        code: int = self._library.llama_decode(context, batch)
        self._library.llama_synchronize(context)
        self.spent_s += time.perf_counter() - began
        return code


class _Port(Channel):
    """The worker's own channel to a process that reads; its inbox is filled here."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, lambda _: None)
        self.start()
        self.arrived: list[Any] = []

    def receive(self) -> Any:
        return self.arrived.pop(0)

    def receive_ready(self) -> list[Any]:
        arrived, self.arrived = self.arrived, []
        return [*arrived, *super().receive_ready()]


def _step_shares(asked: Wanted) -> Iterator[Figure]:
    claim = DeviceClaim("cpu", "cpu", 0, MEMORY_BYTES)
    load = Load("bench", "llama", str(smollm2()), CONTEXT, SLOTS, (claim,), {"threads": "1"})
    engine = LlamaEngine(load, lambda _phase, _fraction: None)
    timed = _Timed(engine._library)
    engine._library = timed
    rounds, steps = (2, 20) if asked.quick else (5, 40)
    mine, peers = socket.socketpair()
    reader = subprocess.Popen([sys.executable, "-c", _DRAIN], stdin=peers.fileno())
    peers.close()
    try:
        for name, sampling in SHARES.items():
            shares: list[float] = []
            ours_ms: list[float] = []
            for number in range(rounds):
                spent_s, taken_s = _steps(engine, timed, _Port(mine), sampling, steps)
                shares.append((taken_s - spent_s) / taken_s * 100)
                ours_ms.append((taken_s - spent_s) / steps * 1000)
                asked.say(f"share, {name}: round {number + 1} of {rounds}")
            told = f"{SLOTS} rows of 49k, {name}"
            limit = (SHARE_MAX_PERCENT,) * rounds
            yield Figure(f"our share, {told}", "%", tuple(shares), "the limit", limit)
            yield Figure(f"our part of a step, {told}", "ms", tuple(ours_ms), "not compared")
    finally:
        mine.close()
        reader.wait()


def _steps(
    engine: LlamaEngine, timed: _Timed, port: _Port, sampling: Sampling, steps: int
) -> tuple[float, float]:
    """Seconds in llama_decode and seconds altogether, of steps in which every slot is a row."""
    for sequence in range(engine.sequences):
        engine.trim(sequence, 0)
    session = StepLoop(engine, port)
    for slot in range(SLOTS):
        first = 100 + slot * PROMPT_TOKENS
        prompt = tuple(range(first, first + PROMPT_TOKENS))
        port.arrived.append(
            Generate(
                f"{slot}",
                "bench",
                prompt_ids=prompt,
                sampling=sampling,
                max_tokens=CONTEXT - PROMPT_TOKENS,
                ignore_eos=True,
            )
        )
    for _ in range(BEGUN_STEPS):
        session.serve_once()
    timed.spent_s = 0.0
    began = time.perf_counter()
    for _ in range(steps):
        session.serve_once()
    return timed.spent_s, time.perf_counter() - began


def _rows(asked: Wanted) -> Iterator[Figure]:
    rounds, repeats = (3, 3) if asked.quick else (9, 12)
    for name, size in VOCABULARIES.items():
        random = np.random.default_rng(1)
        rows = random.normal(-4, 2, (SLOTS, size)).astype(np.float32)
        for row in rows:
            row[random.integers(0, size, 40)] = random.exponential(3, 40).astype(np.float32) + 6
        for case, sampling in CASES.items():
            sides = (_ours(rows, sampling), _theirs(rows, sampling))
            taken: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for side, values in zip(sides, taken, strict=True):
                    values.append(_microseconds(side, repeats))
            ours, other = tuple(taken[0]), tuple(taken[1])
            yield Figure(f"one row of {name}, {case}", "us", ours, "llama.cpp's chain", other)


def _microseconds(side: Side, repeats: int) -> float:
    taken = sum(side(row) for _ in range(repeats) for row in range(SLOTS))
    return taken / (repeats * SLOTS) * 1e6


def _ours(rows: Rows, sampling: Sampling) -> Side:
    sampler = Sampler(sampling, 1, lambda _: b"", np.empty(rows.shape[1], np.float32))
    fresh = rows[0].copy()

    def draw(at: int) -> float:
        # As the other side's candidates: just written.
        fresh[:] = rows[at]
        began = time.perf_counter()
        sampler.draw(sampler.changed(fresh, ()), at)
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
