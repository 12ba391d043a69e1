"""Wall time of `aivailable --help`, beside the same interpreter doing nothing.

The other side is a floor, not a rival: no Python program starts faster.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.report import Figure, report, wanted

ROUNDS = 40
ROUNDS_QUICK = 10
OURS = (sys.executable, "-m", "aivailable", "--help")
FLOOR = (sys.executable, "-c", "pass")


def main() -> None:
    asked = wanted("startup", "wall time of aivailable --help")
    ours, floor = [], []
    _run_ms(OURS)
    for _ in range(ROUNDS_QUICK if asked.quick else ROUNDS):
        ours.append(_run_ms(OURS))
        floor.append(_run_ms(FLOOR))
    figure = Figure(
        "aivailable --help", "ms", tuple(ours), "python -c pass (the floor)", tuple(floor)
    )
    report("startup", [figure], asked)


def _run_ms(command: tuple[str, ...]) -> float:
    started_s = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started_s) * 1000


if __name__ == "__main__":
    main()
