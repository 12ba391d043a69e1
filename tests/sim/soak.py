"""Many seeds, one line each: for long runs outside of the tests.

    PYTHONPATH=.:tests python -m sim.soak --first 1 --count 500 [--mutation NAME] [--processes 2]

Prints every seed with its verdict, the failing ones with their problems, and how to rerun one.
Exit code 1 when a seed failed (with --mutation: when none did).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from functools import partial

from sim.mutations import MUTATIONS
from sim.run import FAULTS_S, Result, run_seed

LINES_KEPT = 50
"""Of a trace: enough to see how it ended."""


def _run(seed: int, mutation: str, faults_s: float) -> Result:
    result = run_seed(seed, mutation=mutation, faults_s=faults_s)
    result.lines = result.lines[-LINES_KEPT:]
    return result


def soak(work: Callable[[int], Result], seeds: Sequence[int], processes: int) -> list[int]:
    """Run the seeds and print a line for each; those that failed. `work` must be picklable."""
    failed: list[int] = []
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for result in pool.imap(work, seeds):
            verdict = "FAILED" if result.problems else "ok"
            print(
                f"seed {result.seed} {verdict} {result.nodes} nodes {result.cpu_s:.1f} s"
                f" {result.digest[:12]} {result.stats}",
                flush=True,
            )
            if result.problems:
                failed.append(result.seed)
                print(result.message(), flush=True)
    print(f"{len(seeds)} seeds, {len(failed)} failed: {failed}")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate many seeds.")
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--mutation", default="", choices=sorted(MUTATIONS))
    parser.add_argument("--faults-s", type=float, default=FAULTS_S)
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.count)
    work = partial(_run, mutation=arguments.mutation, faults_s=arguments.faults_s)
    failed = soak(work, seeds, arguments.processes)
    if arguments.mutation:
        return 0 if failed else 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
