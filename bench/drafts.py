"""python -m bench.drafts: tokens per second with guesses from the text itself, and without.

Owns one measurement: two real workers' engines of one small model, draft=N against draft=0, each
answering the same prompts alone, greedy, in turns. `copying` asks for the prompt's own text again,
where guesses are right; `new` for a story, where they are not and have to stay away. Not part of
the package. On a CPU a step's cost grows with its tokens, so that little can be won there, which
is why draft=auto means 0 there; a GPU's answer needs a GPU.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from aivailable.wire.generation import Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, Step
from aivailable.worker.generating.step_loop import StepLoop
from aivailable.worker.llama.engine import LlamaEngine
from bench.models import smollm2
from bench.report import Figure, Wanted, report, wanted

CONTEXT: Final = 512
MEMORY_BYTES: Final = 4 << 30
ANSWER_TOKENS: Final = 96
TEXT: Final = (
    "The quick brown fox jumps over the lazy dog. A journey of a thousand miles begins with a"
    " single step. All that glitters is not gold."
)
PROMPTS: Final = {
    "copying": f"Repeat this text exactly, three times:\n{TEXT}",
    "new": "Write a short story about a lighthouse keeper who finds a strange map.",
}


@dataclass(slots=True)
class _Port:
    """A channel whose other end is this bench."""

    inbox: list[Any] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def wake(self) -> None:
        pass

    def receive(self) -> Any:
        return self.inbox.pop(0)

    def receive_within(self, _limit_s: float) -> list[Any]:
        return self.receive_ready()

    def receive_ready(self) -> list[Any]:
        ready, self.inbox = self.inbox, []
        return ready


class _Side:
    """One worker; its step loop lives through all rounds, as what it has learned does."""

    def __init__(self, draft: str, threads: str) -> None:
        claim = DeviceClaim("cpu", "cpu", 0, MEMORY_BYTES)
        options = {"threads": threads, "draft": draft}
        load = Load("bench", "llama", str(smollm2()), CONTEXT, 1, (claim,), options)
        self._engine = LlamaEngine(load, lambda _phase, _fraction: None)
        self._port = _Port()
        self._session = StepLoop(self._engine, self._port)
        self.drafted = self.accepted = 0

    def answer(self, name: str, prompt: str) -> tuple[tuple[int, ...], float]:
        """The answer's ids, and its tokens a second after the first."""
        self._port.sent.clear()
        messages = ({"role": "user", "content": prompt},)
        greedy = Sampling(temperature=0.0)
        asked = Generate(
            name,
            "bench",
            messages=messages,
            sampling=greedy,
            ignore_eos=True,
            max_tokens=ANSWER_TOKENS,
        )
        self._port.inbox.append(asked)
        ids: list[int] = []
        began, first = 0.0, 0
        while len(ids) < ANSWER_TOKENS:
            at = len(self._port.sent)
            self._session.serve_once()
            for step in self._port.sent[at:]:
                assert isinstance(step, Step)
                ids += [token for one in step.tokens for token in one.ids]
                if step.counters is not None:
                    self.drafted = step.counters.drafted_tokens
                    self.accepted = step.counters.accepted_tokens
            if ids and not began:
                began, first = time.perf_counter(), len(ids)
        return tuple(ids), (len(ids) - first) / (time.perf_counter() - began)


def main() -> None:
    """Rounds of both sides, then what was the same and what was guessed."""
    options = {
        "draft": ("4", "most guesses beside a row"),
        "threads": ("1", "of llama.cpp"),
    }
    asked = wanted("drafts", __doc__.splitlines()[0], options)
    report("drafts", list(_figures(asked)), asked)


def _figures(asked: Wanted) -> Iterator[Figure]:
    draft, threads = asked.options["draft"], asked.options["threads"]
    sides = {name: _Side(name, threads) for name in (draft, "0")}
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(1 if asked.quick else 7):
        for kind, prompt in PROMPTS.items():
            texts = {}
            for name in (draft, "0") if number % 2 == 0 else ("0", draft):
                texts[name], rate = sides[name].answer(f"{kind} {number}", prompt)
                rates[kind, name].append(rate)
            same = "same" if texts[draft] == texts["0"] else "another"
            asked.say(f"round {number + 1}, {kind}: {same} text")
    guessed = sides[draft]
    asked.say(f"guessed {guessed.drafted} tokens, won {guessed.accepted}")
    for kind in PROMPTS:
        ours, other = (tuple(rates[kind, name]) for name in (draft, "0"))
        yield Figure(f"{kind}, draft={draft}", "tok/s", ours, "draft=0", other, better="higher")


if __name__ == "__main__":
    main()
