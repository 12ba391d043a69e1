"""How every benchmark talks: flags, machine, figures, and one last line of JSON.

Owns the shape that DESIGN §10 fixes. A side that cannot be had here is said to be missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aivailable import __version__

MISSING = "missing"


@dataclass(frozen=True)
class Options:
    quick: bool
    json_only: bool
    rounds: int


@dataclass(frozen=True)
class Figure:
    """Measurements of one quantity. `other` is empty when that side cannot be had here."""

    name: str
    unit: str
    ours: Sequence[float]
    better: str
    """higher | lower"""
    other: Sequence[float] = ()
    other_name: str = MISSING

    def as_json(self) -> dict[str, Any]:
        ours = statistics.median(self.ours)
        other = statistics.median(self.other) if self.other else None
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": round(ours, 4),
            "other": None if other is None else round(other, 4),
            "other_name": self.other_name,
            "ratio": None if not other else round(ours / other, 4),
            "better": self.better,
            "rounds": len(self.ours),
        }

    def as_text(self) -> str:
        return (
            f"{self.name}: {_spread(self.ours)} {self.unit}"
            f" | {self.other_name}: {_spread(self.other) if self.other else 'not measured'}"
            f" ({self.better} is better)"
        )


def options(bench: str, *, rounds: int, quick_rounds: int) -> Options:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{bench}")
    parser.add_argument("--quick", action="store_true", help="within 60 s, for a first look")
    parser.add_argument("--json", action="store_true", help="only the last line")
    parser.add_argument("--rounds", type=int, help="how many measurements")
    given = parser.parse_args()
    default = quick_rounds if given.quick else rounds
    return Options(given.quick, given.json, max(1, given.rounds or default))


def progress(given: Options, text: str) -> None:
    if not given.json_only:
        print(text, file=sys.stderr, flush=True)


def report(bench: str, given: Options, figures: Sequence[Figure]) -> None:
    """Print machine, versions, figures, and the line for programs."""
    if not given.json_only:
        print(machine())
        for figure in figures:
            print(figure.as_text())
    print(json.dumps({"bench": bench, "figures": [figure.as_json() for figure in figures]}))


def machine() -> str:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("pysyncobj", "zeroconf", "aiohttp")
    )
    load = os.getloadavg()[0]
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"load {load:.1f}; Python {platform.python_version()}, aivailable {__version__}, {versions}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.machine()
    return platform.machine()


def _spread(values: Sequence[float]) -> str:
    return f"median {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
