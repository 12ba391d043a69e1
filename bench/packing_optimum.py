"""The best packing there is: a mixed integer program, and its relaxation as a bound.

Owns the model given to `scipy.optimize.milp` (HiGHS). More is allowed than the planner allows
itself: any replica may lie on any set of cards of one node, in any shares.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from bench.fleets import Fleet

GIB = float(1 << 30)


def most_bytes(fleet: Fleet, limit_s: float, *, relaxed: bool = False) -> tuple[float, float]:
    """(bytes of the best packing found, upper bound of any), `limit_s` seconds at most.

    Variables: for each deployment and node whether it has a replica there (its gain are its bytes);
    for each of the node's cards whether it takes part, and its share of weights and cache.
    `relaxed`: only the bound of the linear program; both answers are the same.
    """
    gains: list[float] = []
    binary: list[int] = []
    rows: list[tuple[dict[int, float], float, float]] = []
    loads: dict[tuple[int, int], dict[int, float]] = {}

    def variable(gain: float, whole: bool) -> int:
        gains.append(-gain)
        binary.append(int(whole and not relaxed))
        return len(gains) - 1

    for one in fleet.wanted:
        shared = (one.weights_bytes + one.kv_bytes) / GIB
        compute = one.compute_bytes / GIB
        count: dict[int, float] = {}
        for node, cards in enumerate(fleet.nodes):
            here = variable(one.need_bytes / GIB, True)
            count[here] = 1.0
            parts = {here: -shared}
            takes: dict[int, float] = {here: -1.0}
            for gpu, card in enumerate(cards):
                takes_part, share = variable(0.0, True), variable(0.0, False)
                most = min(shared, card / GIB - compute)
                rows.append(({share: 1.0, takes_part: -max(0.0, most)}, -np.inf, 0.0))
                rows.append(({takes_part: 1.0, here: -1.0}, -np.inf, 0.0))
                parts[share] = 1.0
                takes[takes_part] = 1.0
                load = loads.setdefault((node, gpu), {})
                load[share], load[takes_part] = 1.0, compute
            rows.append((parts, 0.0, 0.0))
            rows.append((takes, 0.0, np.inf))
        rows.append((count, 0.0, float(one.replicas_min)))
    for (node, gpu), load in loads.items():
        rows.append((load, 0.0, fleet.nodes[node][gpu] / GIB))
    upper = np.array([1.0 if whole or relaxed else np.inf for whole in binary])
    if relaxed:
        upper = np.full(len(gains), np.inf)
        upper[[index for index, gain in enumerate(gains) if gain < 0]] = 1.0
    place = [
        (row, index, value) for row, entry in enumerate(rows) for index, value in entry[0].items()
    ]
    matrix = csr_array(
        ([value for *_, value in place], ([row for row, *_ in place], [i for _, i, _ in place])),
        shape=(len(rows), len(gains)),
    )
    found = milp(
        np.array(gains),
        integrality=np.array(binary),
        bounds=Bounds(np.zeros(len(gains)), upper),
        constraints=LinearConstraint(
            matrix, np.array([low for _, low, _ in rows]), np.array([high for *_, high in rows])
        ),
        options={"time_limit": limit_s, "mip_rel_gap": 1e-3},
    )
    best = -float(found.fun) * GIB if found.fun is not None else 0.0
    bound = -float(found.mip_dual_bound) * GIB if found.mip_dual_bound is not None else best
    return best, (best if relaxed else bound)
