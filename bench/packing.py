"""Bytes of demanded replicas that the planner places, beside others' rules and the optimum.

Random fleets and model mixes (`bench.fleets`), everything asked for at once, spare replicas off.
A replica's bytes count once, as on a single card: what a split costs more is nobody's gain. Every
plan is checked: no card holds more than it has.

    python -m bench.packing [--quick] [--json] [--fleets N] [--limit S]
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from aivailable.core.planning.planner import plan
from aivailable.core.state.commands import Place
from bench.fleets import Fleet, draw
from bench.packing_optimum import most_bytes
from bench.packing_others import (
    Placements,
    gpustack_binpack,
    ollama_round_robin,
    one_model_per_node,
    one_model_per_node_largest_first,
)
from bench.report import Figure, report, wanted

SMALL_NODES = (2, 3, 4, 5, 6, 7, 8)
LARGE_NODES = (10, 20, 30, 40, 50, 60)
RATIO_WANTED = 2.3
OPTIMUM_WANTED = 0.97
LP_LIMIT_S = 60.0
RULES = (
    ("one model per node", one_model_per_node),
    ("Ollama behind round robin", ollama_round_robin),
    ("GPUStack's binpack", gpustack_binpack),
    ("one model per node, largest first", one_model_per_node_largest_first),
)
RIVALS = (1, 2)
"""Of RULES, those that must be beaten at every size."""


@dataclass(frozen=True, slots=True)
class Round:
    """Bytes placed and models served, by whom, of one fleet."""

    nodes: int
    ours: int
    served: int
    others: tuple[int, ...]
    """By RULES, as the next."""
    others_served: tuple[int, ...]
    optimum: float
    """The best packing found; the relaxation's bound for a large fleet."""
    bound: float
    """No packing has more."""
    overcommitted: int


def main() -> None:
    options = {
        "fleets": ("60", "fleets of each kind"),
        "limit": ("10", "seconds for each optimum"),
    }
    asked = wanted("packing", "bytes placed beside others' rules and the optimum", options)
    count = 7 if asked.quick else int(asked.options["fleets"])
    limit_s = 3.0 if asked.quick else float(asked.options["limit"])
    rounds: list[Round] = []
    for large in (False, True):
        sizes = LARGE_NODES if large else SMALL_NODES
        for seed in range(count):
            one = _round(draw(seed, sizes[seed % len(sizes)]), limit_s, large)
            rounds.append(one)
            asked.say(_told(one))
    small = [one for one in rounds if one.nodes <= max(SMALL_NODES)]
    large_ones = [one for one in rounds if one.nodes > max(SMALL_NODES)]
    for nodes in sorted({one.nodes for one in rounds}):
        asked.say(_summary(nodes, [one for one in rounds if one.nodes == nodes]))
    report(
        "packing",
        [
            *(_figure(rounds, other) for other in range(len(RULES))),
            *(_served(rounds, other) for other in range(len(RULES))),
            Figure(
                "of the optimum, to 8 nodes",
                "%",
                tuple(100 * one.ours / one.optimum for one in small),
                "the best packing that HiGHS found",
                better="higher",
            ),
            Figure(
                "of the LP bound, 10 to 60 nodes",
                "%",
                tuple(100 * one.ours / one.bound for one in large_ones),
                "the linear relaxation",
                better="higher",
            ),
            Figure(
                "overcommitted",
                "bytes",
                tuple(float(one.overcommitted) for one in rounds),
                "none is allowed",
            ),
        ],
        asked,
    )
    if not _holds(rounds, small):
        raise SystemExit(1)


def _holds(rounds: Sequence[Round], small: Sequence[Round]) -> bool:
    """The bounds that issue 5 sets, by the sums over all fleets of a size."""
    ahead = all(
        _total(rounds, nodes, None) > _total(rounds, nodes, other)
        for nodes in {one.nodes for one in rounds}
        for other in RIVALS
    )
    ratio = sum(one.ours for one in rounds) / sum(one.others[0] for one in rounds)
    optimum = sum(one.ours for one in small) / sum(one.optimum for one in small)
    sound = not any(one.overcommitted for one in rounds)
    return ahead and sound and ratio >= RATIO_WANTED and optimum >= OPTIMUM_WANTED


def _round(fleet: Fleet, limit_s: float, large: bool) -> Round:
    placed, over = _ours(fleet)
    ruled = [rule(fleet) for _, rule in RULES]
    optimum, bound = most_bytes(fleet, LP_LIMIT_S if large else limit_s, relaxed=large)
    if bound <= 0.0:
        # The solver had not even a bound in time.
        _, bound = most_bytes(fleet, LP_LIMIT_S, relaxed=True)
    if optimum <= 0.0:
        # Nothing found in time: the bound stands for it, which is stricter.
        optimum = bound
    return Round(
        len(fleet.nodes),
        _bytes(fleet, placed),
        len(placed),
        tuple(_bytes(fleet, entry) for entry in ruled),
        tuple(len(entry) for entry in ruled),
        optimum,
        bound,
        over,
    )


def _ours(fleet: Fleet) -> tuple[Placements, int]:
    """What one plan places, and the bytes by which any card would be overcommitted."""
    numbers = {node: number for number, node in enumerate(sorted(fleet.state.members))}
    free = [list(cards) for cards in fleet.nodes]
    placed: Placements = {}
    for body in plan(fleet.state, fleet.liveness):
        if isinstance(body, Place):
            node = numbers[body.node]
            placed.setdefault(body.deployment, set()).add(node)
            for claim in body.claims:
                free[node][int(claim.device_id.removeprefix("gpu"))] -= claim.claim_bytes
    return placed, sum(max(0, -room) for rooms in free for room in rooms)


def _bytes(fleet: Fleet, placed: Placements) -> int:
    return sum(len(placed.get(one.name, ())) * one.need_bytes for one in fleet.wanted)


def _figure(rounds: Sequence[Round], other: int) -> Figure:
    """Fleet by fleet; what the sums over all of them come to is in the name."""
    ours = sum(one.ours for one in rounds)
    ratio = ours / max(1, sum(one.others[other] for one in rounds))
    return Figure(
        f"over {RULES[other][0]} (all fleets together {ratio:.2f})",
        "times",
        tuple(one.ours / max(1, one.others[other]) for one in rounds),
        "bytes placed by the other rule",
        better="higher",
    )


def _served(rounds: Sequence[Round], other: int) -> Figure:
    return Figure(
        f"distinct models, over {RULES[other][0]}",
        "times",
        tuple(one.served / max(1, one.others_served[other]) for one in rounds),
        "models served by the other rule",
        better="higher",
    )


def _total(rounds: Sequence[Round], nodes: int, other: int | None) -> int:
    chosen = [one for one in rounds if one.nodes == nodes]
    return sum(one.ours if other is None else one.others[other] for one in chosen)


def _told(one: Round) -> str:
    shares = ", ".join(f"{one.ours / max(1, other):.2f}" for other in one.others)
    return (
        f"{one.nodes} nodes: {one.ours / 2**30:.1f} GiB, {one.served} models; × {shares}"
        f" (models {one.others_served}); {one.ours / one.optimum:.2%} of the best,"
        f" {one.ours / one.bound:.2%} of the bound"
    )


def _summary(nodes: int, rounds: Sequence[Round]) -> str:
    ratios = ", ".join(
        f"{_total(rounds, nodes, None) / _total(rounds, nodes, other):.3f}"
        for other in range(len(RULES))
    )
    served = [statistics.mean(one.served for one in rounds)]
    served += [
        statistics.mean(one.others_served[other] for one in rounds) for other in range(len(RULES))
    ]
    told = ", ".join(f"{mean:.1f}" for mean in served)
    best = sum(one.ours for one in rounds) / sum(one.optimum for one in rounds)
    return f"{nodes} nodes, {len(rounds)} fleets: × {ratios}; models {told}; {best:.2%} of the best"


if __name__ == "__main__":
    main()
