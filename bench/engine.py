"""Tokens per second through HTTP: a peer of ours beside llama.cpp's own server, round by round.

Same model file, threads, context and slots; greedy answers of one length; every round asks both
sides the same new prompts, in turns, so that neither gains from what the machine does meanwhile or
from a prompt it has seen. Ratios are per round; the interval is the bootstrap's for their median.

    python -m bench.engine [--quick] [--json] [--rounds N] [--model smollm2|gemma] [--part NAME]

Parts: `speed` (1, 4 and 16 clients), `shared` (eight clients, one new 800-token system prompt),
`long` (a 4,000-token prompt arrives beside four running streams).
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.load import Ask, Heard, round_of
from bench.models import MODELS
from bench.report import Figure, Wanted, machine_lines, report
from bench.servers import Server, Sizes, other, others, ours

ROUNDS = 9
ROUNDS_QUICK = 1
CLIENTS = {1: 8, 4: 2, 16: 1}
"""Clients at once, and how often a round asks them: a single answer is too short to compare."""
THREADS = 1
ANSWER_TOKENS = 64
SHARED_CLIENTS = 8
SHARED_ANSWER_TOKENS = 32
STREAMS = 4
STREAM_TOKENS = 160
LONG_AFTER_S = 1.5
"""By then the four streams run."""
RESAMPLES = 2000
"""Of the bootstrap."""
WORDS = [
    "river",
    "stone",
    "candle",
    "window",
    "garden",
    "engine",
    "paper",
    "winter",
    "copper",
    "signal",
    "harbor",
    "meadow",
    "thread",
    "mirror",
    "carbon",
    "violet",
    "anchor",
    "basket",
    "desert",
    "falcon",
    "ladder",
    "marble",
    "needle",
    "orchard",
    "pocket",
    "quarry",
    "ribbon",
    "saddle",
    "timber",
    "umbrella",
    "valley",
    "walnut",
    "yellow",
    "zebra",
    "bridge",
    "circle",
    "dragon",
    "ember",
    "forest",
    "glacier",
    "hammer",
    "island",
    "jungle",
    "kettle",
    "lantern",
]

Values = dict[str, list[float]]
Waves = list[list[Heard]]
"""The answers of the requests that were sent together, wave by wave."""


@dataclass(slots=True)
class Side:
    """One server and its values by figure, one for each round."""

    server: Server
    values: Values = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


@dataclass(frozen=True, slots=True)
class Scene:
    """What each side plays, `turns` times a round, the sides in turns each time."""

    turns: int
    play: Callable[[Server, random.Random], Waves]
    tell: Callable[[Waves], dict[str, float]]
    """The round's figures of the waves of all turns."""


def main() -> None:
    given, asked = _arguments()
    figures: list[Figure] = []
    for model in given.model:
        path = MODELS[model]()
        for part in given.part:
            sizes, scenes = PARTS[part]
            with contextlib.ExitStack() as stack:
                sides = [Side(stack.enter_context(ours(path, sizes)))]
                sides += [Side(stack.enter_context(other(one, path, sizes))) for one in others()]
                for number in range(given.rounds):
                    dice = random.Random(f"{model} {part} {number}")
                    for scene in scenes:
                        _play(scene, sides, dice)
                    asked.say(f"{model} {part}: round {number + 1} of {given.rounds}")
            figures += _figures(f"{model} {part}", sides, asked)
    report("engine", figures, asked)


def _play(scene: Scene, sides: Sequence[Side], dice: random.Random) -> None:
    """One round of a scene; every turn has new prompts, and the other side begins."""
    heard: list[Waves] = [[] for _ in sides]
    order = list(range(len(sides)))
    dice.shuffle(order)
    for _ in range(scene.turns):
        prompts = dice.getrandbits(64)
        for index in order:
            heard[index] += scene.play(sides[index].server, random.Random(prompts))
        order.reverse()
    for side, waves in zip(sides, heard, strict=True):
        for name, value in scene.tell(waves).items():
            side.add(name, value)


def speed_of(clients: int, turns: int) -> Scene:
    """This many clients at once with prompts of about 50 tokens."""

    def play(server: Server, dice: random.Random) -> Waves:
        asks = [Ask(_prose(dice, 36), ANSWER_TOKENS) for _ in range(clients)]
        return [round_of(server, asks)]

    def tell(waves: Waves) -> dict[str, float]:
        return {
            f"{clients} clients, tok/s": _rate(waves),
            f"{clients} clients, TTFT p50 ms": 1000 * _ttft(waves),
            f"{clients} clients, inter-token p99 ms": 1000 * _p99(waves),
        }

    return Scene(turns, play, tell)


def play_shared(server: Server, dice: random.Random) -> Waves:
    """Eight clients with one system prompt that the server has not seen, then eight more."""
    system = _prose(dice, 620)
    asks = [
        [Ask(_prose(dice, 12), SHARED_ANSWER_TOKENS, system) for _ in range(SHARED_CLIENTS)]
        for _ in ("new", "warm")
    ]
    return [round_of(server, wave) for wave in asks]


def tell_shared(waves: Waves) -> dict[str, float]:
    told: dict[str, float] = {}
    for name, wave in zip(("new", "warm"), waves, strict=True):
        told[f"{name} system prompt, tok/s"] = _rate([wave])
        told[f"{name} system prompt, TTFT p50 ms"] = 1000 * _ttft([wave])
    return told


def play_long(server: Server, dice: random.Random) -> Waves:
    """Four streams alone, then four with a long prompt in their middle."""
    calm = round_of(server, [Ask(_prose(dice, 36), STREAM_TOKENS) for _ in range(STREAMS)])
    asks = [Ask(_prose(dice, 36), STREAM_TOKENS) for _ in range(STREAMS)]
    asks.append(Ask(_prose(dice, 3870), 1, after_s=LONG_AFTER_S))
    return [calm, round_of(server, asks)]


def tell_long(waves: Waves) -> dict[str, float]:
    calm, (*streams, long) = waves
    gaps = [gap for one in streams for gap in one.gaps_s(long.sent_s, long.first_s)]
    undisturbed, disturbed = _p99([calm]), _percentile(gaps, 0.99)
    return {
        "undisturbed inter-token p99 ms": 1000 * undisturbed,
        "inter-token p99 ms beside it": 1000 * disturbed,
        "p99 beside it / undisturbed": disturbed / undisturbed,
        "TTFT of the long prompt, s": long.ttft_s,
        "long prompt, tokens": float(long.prompt_tokens),
    }


PARTS: dict[str, tuple[Sizes, Sequence[Scene]]] = {
    "speed": (
        Sizes(context=512, slots=16, threads=THREADS),
        [speed_of(clients, turns) for clients, turns in CLIENTS.items()],
    ),
    "shared": (
        Sizes(context=1280, slots=8, threads=THREADS),
        [Scene(1, play_shared, tell_shared)],
    ),
    "long": (
        Sizes(context=5120, slots=5, threads=THREADS),
        [Scene(1, play_long, tell_long)],
    ),
}


def _prose(dice: random.Random, words: int) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(words))


def _rate(waves: Waves) -> float:
    """Tokens of all answers over the times from a wave's first request to its last token."""
    tokens = sum(one.completion_tokens for wave in waves for one in wave)
    took_s = sum(
        max(one.last_s for one in wave) - min(one.sent_s for one in wave) for wave in waves
    )
    return tokens / took_s


def _ttft(waves: Waves) -> float:
    return statistics.median(one.ttft_s for wave in waves for one in wave)


def _p99(waves: Waves) -> float:
    return _percentile([gap for wave in waves for one in wave for gap in one.gaps_s()], 0.99)


def _percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def _figures(title: str, sides: Sequence[Side], asked: Wanted) -> Iterator[Figure]:
    mine, rivals = sides[0], sides[1:]
    for name, values in mine.values.items():
        unit = name.rsplit(" ", 1)[-1]
        better = "higher" if unit == "tok/s" else "lower"
        if not rivals:
            missing = "xllamacpp is not installed, LLAMA_SERVER is not set"
            yield Figure(f"{title}: {name}", unit, tuple(values), missing, better=better)
        for rival in rivals:
            against = rival.values[name]
            ratios = [a / b for a, b in zip(values, against, strict=True) if b]
            if ratios:
                low, high = interval(ratios)
                asked.say(
                    f"{title}: {name}: ratio to {rival.server.name}: median"
                    f" {statistics.median(ratios):.3f}, 95 % {low:.3f} to {high:.3f}"
                )
            yield Figure(
                f"{title}: {name}", unit, tuple(values), rival.server.name, tuple(against), better
            )


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the median."""
    dice = random.Random(len(ratios))
    medians = sorted(
        statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)
    )
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def _arguments() -> tuple[argparse.Namespace, Wanted]:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of the small model")
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--model", action="append", choices=sorted(MODELS), default=[])
    parser.add_argument("--part", action="append", choices=sorted(PARTS), default=[])
    given = parser.parse_args()
    given.rounds = given.rounds or (ROUNDS_QUICK if given.quick else ROUNDS)
    given.model = given.model or (["smollm2"] if given.quick else ["smollm2", "gemma"])
    given.part = given.part or (["speed"] if given.quick else list(PARTS))
    asked = Wanted(quick=given.quick, json_only=given.json)
    for line in machine_lines():
        asked.say(line)
    return given, asked


if __name__ == "__main__":
    main()
