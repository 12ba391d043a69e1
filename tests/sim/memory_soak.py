"""Many seeds of memory pressure, one line each: for long runs outside of the tests.

    PYTHONPATH=.:tests python -m sim.memory_soak --first 1 --count 300 [--processes 2]

Prints every seed with its verdict, the failing ones with their problems, and how to rerun one.
Exit code 1 when a seed failed.
"""

from __future__ import annotations

import argparse
import sys

from sim.memory_run import run_memory_seed
from sim.run import Result
from sim.soak import LINES_KEPT, soak


def _run(seed: int) -> Result:
    result = run_memory_seed(seed)
    result.lines = result.lines[-LINES_KEPT:]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate many seeds of memory pressure.")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.count)
    failed = soak(_run, seeds, arguments.processes)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
