"""Cut answers and go on in another process: how often is the text that of an undisturbed run?

    PYTHONPATH=.:tests python tests/worker/continuation.py [--prompts 20] [--cuts 5] [--tokens 64]

Both small models, greedy and with a seed. The undisturbed answers come from one worker; each cut is
continued in a worker started for it, which has never seen the prompts, first idle, then beside
eight running streams. Beside them another batch may round differently: every difference is shown
with the gap between the two best log probabilities where it begins. Exit status 1 when an idle
continuation differs, or a greedy one beside streams differs where there is no near tie.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fixtures.models import gemma_path, smollm2_path
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Finished, Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, Ready

CONTEXT, SLOTS, STREAMS = 512, 10, 8
CLAIM_BYTES = 2048 * MIB
NEAR_TIE_NATS = 0.25
"""Two logits that batch-dependent rounding may swap; ENGINE measured 0.02 to 0.18."""
GREEDY = Sampling(temperature=0.0)
SEEDED = Sampling(temperature=0.9, seed=20261121)
PROMPTS = [
    f"{task} {thing}"
    for task in ("Write three sentences about", "Explain to a child what happens with")
    for thing in (
        *("the sea in winter.", "a bicycle chain.", "bread in an oven.", "an old library."),
        *("the moon and the tides.", "a lost letter.", "rain on a tin roof.", "copper wire."),
        *("a river that freezes.", "the first train of the day."),
    )
]


@dataclass(slots=True)
class Whole:
    """An undisturbed answer."""

    prompt_ids: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Between the two best log probabilities, at each token."""


@dataclass(slots=True)
class Result:
    same: int = 0
    differing: list[tuple[str, int, float]] = field(default_factory=list)
    """(request, where the difference begins, the gap there)."""

    @property
    def count(self) -> int:
        return self.same + len(self.differing)


def start(process: WorkerProcess, path: Path) -> None:
    device = DeviceClaim("cpu0", "cpu", 0, CLAIM_BYTES)
    ready = process.load(Load("r1", "llama", str(path), CONTEXT, SLOTS, (device,)))
    assert isinstance(ready, Ready), ready


def undisturbed(
    process: WorkerProcess, prompts: Sequence[str], sampling: Sampling, tokens: int
) -> dict[str, Whole]:
    """Each prompt alone."""
    found: dict[str, Whole] = {}
    for number, prompt in enumerate(prompts):
        name = f"w{number}"
        whole = found[name] = Whole()
        process.send(_ask(name, sampling, tokens, prompt=prompt, logprobs=2))
        ended = False
        while not ended:
            step = process.step()
            for started in step.started:
                whole.prompt_ids = started.prompt_ids
            for piece in step.tokens:
                whole.ids.extend(piece.ids)
                for one in piece.logprobs:
                    first, second = one.top[:2]
                    whole.gaps.append(first.logprob - second.logprob)
            assert not step.failed, step.failed
            ended = bool(step.finished)
    return found


def continued(
    process: WorkerProcess, wholes: dict[str, Whole], sampling: Sampling, tokens: int, cut: int
) -> Result:
    """Every answer again from its first `cut` tokens on, one after the other."""
    result = Result()
    for name, whole in wholes.items():
        kept = whole.ids[:cut]
        request = _ask(
            # A seedless draw is keyed by the request id; greedy and seeded ones are not.
            f"{name}.{cut}",
            sampling,
            tokens,
            prompt_ids=whole.prompt_ids,
            generated_ids=tuple(kept),
        )
        answer = process.answers(request)[request.request_id]
        assert isinstance(answer.end, Finished), answer.end
        ids = kept + answer.ids
        if ids == whole.ids:
            result.same += 1
        else:
            at = next(
                (i for i, (a, b) in enumerate(zip(ids, whole.ids, strict=False)) if a != b),
                min(len(ids), len(whole.ids)),
            )
            gap = whole.gaps[at] if at < len(whole.gaps) else 0.0
            result.differing.append((request.request_id, at, gap))
    return result


def cuts_of(tokens: int, count: int) -> list[int]:
    """`count` cut points spread over an answer, never at its very ends."""
    return [1 + (tokens - 3) * number // max(1, count - 1) for number in range(count)]


def _ask(name: str, sampling: Sampling, tokens: int, **given: object) -> Generate:
    return Generate(
        name,
        "d",
        sampling=sampling,
        max_tokens=tokens,
        ignore_eos=True,
        **given,  # type: ignore[arg-type]
    )


def _streams(process: WorkerProcess) -> None:
    """Start streams that outlast everything that is measured beside them."""
    for number in range(STREAMS):
        process.send(_ask(f"s{number}", GREEDY, CONTEXT - 64, prompt=f"Count from {number}:"))
    started = 0
    while started < STREAMS:
        started += len(process.step().started)


def _beside_streams(
    path: Path, wholes: dict[str, Whole], sampling: Sampling, tokens: int, cut: int
) -> Result:
    """A few at a time, each beside eight fresh streams."""
    result = Result()
    for group in _groups(wholes, 4):
        with WorkerProcess() as process:
            start(process, path)
            _streams(process)
            some = _continued_amid(process, group, sampling, tokens, cut)
            result.same += some.same
            result.differing += some.differing
    return result


def _continued_amid(
    process: WorkerProcess, wholes: dict[str, Whole], sampling: Sampling, tokens: int, cut: int
) -> Result:
    """Like `continued`, while other requests' events arrive in between."""
    result = Result()
    for name, whole in wholes.items():
        ids, ended = list(whole.ids[:cut]), False
        request = _ask(
            f"{name}.{cut}",
            sampling,
            tokens,
            prompt_ids=whole.prompt_ids,
            generated_ids=tuple(ids),
        )
        process.send(request)
        while not ended:
            step = process.step()
            assert not step.failed, step.failed
            for piece in step.tokens:
                if piece.request_id == request.request_id:
                    ids.extend(piece.ids)
            ended = any(one.request_id == request.request_id for one in step.finished)
        assert process.steps[-1].slots_busy >= STREAMS, "the streams ended too early"
        if ids == whole.ids:
            result.same += 1
            continue
        at = next(i for i, (a, b) in enumerate(zip(ids, whole.ids, strict=True)) if a != b)
        result.differing.append((request.request_id, at, whole.gaps[at]))
    return result


def _groups(wholes: dict[str, Whole], size: int) -> Iterator[dict[str, Whole]]:
    names = list(wholes)
    for first in range(0, len(names), size):
        yield {name: wholes[name] for name in names[first : first + size]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams-cuts", type=int, default=1, help="cuts tried beside streams")
    given = parser.parse_args()
    failed = False
    for path in (smollm2_path(), gemma_path()):
        for kind, sampling in (("greedy", GREEDY), ("seeded", SEEDED)):
            with WorkerProcess() as process:
                start(process, path)
                wholes = undisturbed(process, PROMPTS[: given.prompts], sampling, given.tokens)
            for number, cut in enumerate(cuts_of(given.tokens, given.cuts)):
                with WorkerProcess() as process:
                    start(process, path)
                    idle = continued(process, wholes, sampling, given.tokens, cut)
                failed |= bool(idle.differing)
                _say(path, kind, cut, "idle", idle)
                if number < given.streams_cuts:
                    amid = _beside_streams(path, wholes, sampling, given.tokens, cut)
                    _say(path, kind, cut, "beside 8 streams", amid)
                    failed |= kind == "greedy" and any(
                        gap > NEAR_TIE_NATS for _, _, gap in amid.differing
                    )
    return int(failed)


def _say(path: Path, kind: str, cut: int, beside: str, result: Result) -> None:
    told = "".join(f"; {name} at {at}, gap {gap:.3f}" for name, at, gap in result.differing)
    print(
        f"{path.name[:13]} {kind} cut at {cut}, {beside}: {result.same} of {result.count}"
        f" identical{told}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
