"""Wall time of `aivailable --help`, beside an empty Python."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.report import Figure, Options, options, progress, report

ROOT = Path(__file__).resolve().parent.parent


def seconds(*arguments: str) -> float:
    """Wall time of `python ARGUMENTS`, output thrown away. Raises CalledProcessError."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tui"), os.environ.get("PYTHONPATH", "")))
    started_s = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    return time.perf_counter() - started_s


def measure(given: Options) -> list[Figure]:
    ours, empty = [], []
    seconds("-m", "aivailable", "--help")  # The first run compiles.
    for number in range(1, given.rounds + 1):
        ours.append(seconds("-m", "aivailable", "--help"))
        empty.append(seconds("-c", "pass"))
        progress(given, f"round {number}: {ours[-1]:.3f} s, empty Python {empty[-1]:.3f} s")
    return [Figure("aivailable --help", "s", ours, "lower", empty, "python -c pass")]


if __name__ == "__main__":
    GIVEN = options("startup", rounds=21, quick_rounds=5)
    report("startup", GIVEN, measure(GIVEN))
