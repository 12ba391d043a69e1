"""Cut answers and go on in another process: how often is the text that of an undisturbed run?

    PYTHONPATH=.:tests python tests/worker/continuation.py [--model smollm2|gemma|both]
        [--kind greedy|seeded|both] [--prompts 20] [--cuts 5] [--tokens 64]

Both small models, greedy and with a seed. The undisturbed answers come from one worker, each
prompt alone. Each cut is continued in a worker started for it, which has never seen the prompts:
first idle, then beside eight running streams, where rows are computed in other batches, which round
differently. Told are the share of identical texts, how far apart the same rows were (nats of
logits) and, of every difference, what the draw needed to change and what that row's noise was: it
begins at a near tie when the noise suffices (fixtures/near_ties.py).

Exit status 1 when an idle continuation differs, when a difference begins at no near tie, or at a
row that is NOISE_TIMES as noisy as the noisiest of those that were drawn alike: that would be no
rounding, but another state. continuation_results.txt keeps a whole run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fixtures.models import gemma_path, smollm2_path
from fixtures.near_ties import (
    CHANGE_STEP,
    Row,
    change_needed,
    draw_at,
    first_difference,
    noise,
    row_of,
)
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.wire.generation import Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, Ready
from aivailable.worker.sampling.logprobs import ALTERNATIVES_MAX

CONTEXT, STREAMS, TOGETHER = 512, 8, 4
SLOTS = STREAMS + TOGETHER
CLAIM_BYTES = 2048 * MIB
NOISE_TIMES = 2.0
TOP_K = 16
"""Fewer than the alternatives that a worker tells, so that every candidate of a draw is known, also
when end tokens, which are never drawn here, are among them."""
MODELS = {"smollm2": smollm2_path, "gemma": gemma_path}
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "seeded": Sampling(temperature=0.9, top_k=TOP_K, seed=20261121),
}
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
class Text:
    """An answer: its tokens, and the rows that they were drawn from."""

    prompt_ids: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a continuation leaves the undisturbed text. In nats of logits."""

    name: str
    at: int
    needed: float
    noise: float

    @property
    def near_tie(self) -> bool:
        return self.needed <= self.noise * CHANGE_STEP

    def __str__(self) -> str:
        told = "near tie" if self.near_tie else "NO NEAR TIE"
        return f"{self.name} at {self.at}: needed {self.needed:.4f}, noise {self.noise:.4f}, {told}"


@dataclass(slots=True)
class Result:
    same: int = 0
    differing: list[Difference] = field(default_factory=list)
    noises: list[float] = field(default_factory=list)
    """Of the rows that were computed after the same tokens and drawn alike."""

    @property
    def count(self) -> int:
        return self.same + len(self.differing)

    def unexplained(self, noisiest: float) -> list[Difference]:
        """Differences that rounding does not account for."""
        limit = NOISE_TIMES * noisiest
        return [one for one in self.differing if not one.near_tie or one.noise > limit]


def start(process: WorkerProcess, path: Path) -> None:
    device = DeviceClaim("cpu0", "cpu", 0, CLAIM_BYTES)
    ready = process.load(Load("r1", "llama", str(path), CONTEXT, SLOTS, (device,)))
    assert isinstance(ready, Ready), ready


def ask(name: str, sampling: Sampling, tokens: int, **given: object) -> Generate:
    return Generate(
        name,
        "d",
        sampling=sampling,
        max_tokens=tokens,
        ignore_eos=True,
        **given,  # type: ignore[arg-type]
    )


def texts_of(process: WorkerProcess, requests: Sequence[Generate]) -> dict[str, Text]:
    """All at once; other requests' events may arrive in between."""
    found = {request.request_id: Text() for request in requests}
    left = set(found)
    for request in requests:
        process.send(request)
    while left:
        step = process.step()
        assert not step.failed, step.failed
        for started in step.started:
            if started.request_id in found:
                found[started.request_id].prompt_ids = started.prompt_ids
        for piece in step.tokens:
            if piece.request_id in found:
                found[piece.request_id].ids.extend(piece.ids)
                found[piece.request_id].rows.extend(map(row_of, piece.logprobs))
        left -= {finished.request_id for finished in step.finished}
    return found


def undisturbed(
    process: WorkerProcess, prompts: Sequence[str], sampling: Sampling, tokens: int
) -> dict[str, Text]:
    """Each prompt alone. That what a worker tells suffices to draw again is checked, too."""
    found: dict[str, Text] = {}
    for number, prompt in enumerate(prompts):
        request = ask(f"w{number}", sampling, tokens, prompt=prompt, logprobs=ALTERNATIVES_MAX)
        found |= texts_of(process, [request])
    for whole in found.values():
        for position, (row, token) in enumerate(zip(whole.rows, whole.ids, strict=True)):
            assert draw_at(sampling, position)(row) == token, "the draw is not what is measured"
    return found


def continued(
    process: WorkerProcess,
    wholes: Mapping[str, Text],
    sampling: Sampling,
    tokens: int,
    cut: int,
    together: int = 1,
) -> Result:
    """Every answer again from its first `cut` tokens on, this many at once."""
    result = Result()
    for group in _groups(wholes, together):
        requests = [
            ask(
                # A seedless draw is keyed by the request id; greedy and seeded ones are not.
                f"{name}.{cut}",
                sampling,
                tokens,
                prompt_ids=whole.prompt_ids,
                generated_ids=tuple(whole.ids[:cut]),
                logprobs=ALTERNATIVES_MAX,
            )
            for name, whole in group.items()
        ]
        rests = texts_of(process, requests)
        for name, whole in group.items():
            _compare(result, f"{name}.{cut}", whole, rests[f"{name}.{cut}"], cut, sampling)
    return result


def _compare(
    result: Result, name: str, whole: Text, rest: Text, cut: int, sampling: Sampling
) -> None:
    at = first_difference(whole.ids[cut:], rest.ids)
    alike = len(rest.ids) if at is None else at
    result.noises += map(noise, whole.rows[cut : cut + alike], rest.rows[:alike])
    if at is None:
        result.same += 1
        return
    mine, theirs, draw = whole.rows[cut + at], rest.rows[at], draw_at(sampling, cut + at)
    needed = min(
        change_needed(mine, rest.ids[at], draw), change_needed(theirs, whole.ids[cut + at], draw)
    )
    result.differing.append(Difference(name, cut + at, needed, noise(mine, theirs)))


def beside_streams(
    path: Path, wholes: Mapping[str, Text], sampling: Sampling, tokens: int, cut: int
) -> Result:
    """A few at once, beside eight fresh streams that outlast them."""
    result = Result()
    for group in _groups(wholes, TOGETHER):
        with WorkerProcess() as process:
            start(process, path)
            for number in range(STREAMS):
                prompt, most = f"Count from {number}:", CONTEXT - 64
                process.send(ask(f"s{number}", SAMPLINGS["greedy"], most, prompt=prompt))
            started = 0
            while started < STREAMS:
                started += len(process.step().started)
            some = continued(process, group, sampling, tokens, cut, TOGETHER)
            assert process.steps[-1].slots_busy >= STREAMS, "the streams ended too early"
            result.same += some.same
            result.differing += some.differing
            result.noises += some.noises
    return result


def cuts_of(tokens: int, count: int) -> list[int]:
    """`count` cut points spread over an answer, never at its very ends."""
    return [1 + (tokens - 3) * number // max(1, count - 1) for number in range(count)]


def _groups(wholes: Mapping[str, Text], size: int) -> Iterator[dict[str, Text]]:
    names = list(wholes)
    for first in range(0, len(names), size):
        yield {name: wholes[name] for name in names[first : first + size]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=(*MODELS, "both"), default="both")
    parser.add_argument("--kind", choices=(*SAMPLINGS, "both"), default="both")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    wrong = 0
    for name in MODELS if given.model == "both" else (given.model,):
        for kind in SAMPLINGS if given.kind == "both" else (given.kind,):
            sampling = SAMPLINGS[kind]
            path = MODELS[name]()
            with WorkerProcess() as process:
                start(process, path)
                wholes = undisturbed(process, PROMPTS[: given.prompts], sampling, given.tokens)
            idle, amid = Result(), Result()
            for cut in cuts_of(given.tokens, given.cuts):
                with WorkerProcess() as process:
                    start(process, path)
                    some = continued(process, wholes, sampling, given.tokens, cut)
                _say(f"{name} {kind} cut at {cut}, idle", some, idle)
                some = beside_streams(path, wholes, sampling, given.tokens, cut)
                _say(f"{name} {kind} cut at {cut}, beside {STREAMS} streams", some, amid)
            _say(f"{name} {kind}, all cuts, idle", idle)
            _say(f"{name} {kind}, all cuts, beside {STREAMS} streams", amid, brief=True)
            unexplained = amid.unexplained(max(amid.noises, default=0.0))
            print(f"    {len(amid.differing)} differences, {len(unexplained)} unexplained")
            wrong += len(idle.differing) + len(unexplained)
    return int(wrong > 0)


def _say(what: str, result: Result, total: Result | None = None, *, brief: bool = False) -> None:
    """Print a result and count it in a total."""
    noises = sorted(result.noises) or [0.0]
    print(
        f"{what}: {result.same} of {result.count} identical; noise of {len(result.noises)} rows:"
        f" median {statistics.median(noises):.4f}, largest {noises[-1]:.4f}"
    )
    for one in () if brief else result.differing:
        print(f"    {one}")
    sys.stdout.flush()
    if total is not None:
        total.same += result.same
        total.differing += result.differing
        total.noises += result.noises


if __name__ == "__main__":
    sys.exit(main())
