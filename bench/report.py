"""What every bench prints: machine, versions, rounds, median and spread, and one line of JSON.

Owns the frame that all benches have in common; must not measure anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from aivailable import __version__

VERSIONS_SHOWN = ("pysyncobj", "zeroconf", "aiohttp", "llama-cpp-python")
_DIGITS = 4
"""Significant digits of what is printed: more would be noise."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity on our side and, where there is one, on the other."""

    name: str
    unit: str
    ours: tuple[float, ...]
    """One value for each round."""
    other_name: str
    """What the other side is; without values, why it is missing."""
    other: tuple[float, ...] = ()
    better: str = "lower"
    """lower | higher"""

    def plain(self) -> dict[str, Any]:
        """The form of the JSON line; `ratio` = ours / other, null when a side is missing."""
        ours, other = _median(self.ours), _median(self.other)
        ratio = ours / other if ours is not None and other else None
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": _rounded(ours),
            "other": _rounded(other),
            "other_name": self.other_name,
            "ratio": _rounded(ratio),
            "rounds": len(self.ours),
            "better": self.better,
            "spread": [_rounded(end) for end in _spread(self.ours)],
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    quick: bool
    json_only: bool
    options: Mapping[str, str] = field(default_factory=dict)
    """The bench's own options, by name."""

    def say(self, text: str) -> None:
        """Progress, at once; nothing with --json."""
        if not self.json_only:
            print(text, flush=True)


def wanted(name: str, what: str, options: Mapping[str, tuple[str, str]] | None = None) -> Wanted:
    """Parses `python -m bench.NAME [--quick] [--json]` and prints the machine.

    `options`: the bench's own, each with its default and its help.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=what)
    parser.add_argument("--quick", action="store_true", help="few rounds, within a minute")
    parser.add_argument("--json", action="store_true", help="only the last line")
    for option, (default, told) in (options or {}).items():
        parser.add_argument(f"--{option}", default=default, help=f"{told} (default: {default})")
    given = parser.parse_args()
    own = {option: str(getattr(given, option)) for option in options or {}}
    asked = Wanted(quick=given.quick, json_only=given.json, options=own)
    for line in machine_lines():
        asked.say(line)
    return asked


def machine_lines() -> list[str]:
    """The machine and the versions, for people."""
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    versions = ", ".join(f"{package} {_version(package)}" for package in VERSIONS_SHOWN)
    return [
        f"machine: {_processor()}, {os.cpu_count()} cores, {_memory_gib():.1f} GiB,"
        f" {platform.system()} {platform.release()}, load {load}",
        f"versions: aivailable {__version__}, Python {platform.python_version()}, {versions}",
    ]


def report(bench: str, figures: Sequence[Figure], asked: Wanted) -> None:
    """The table for people, then the JSON line."""
    for figure in figures:
        asked.say(f"{figure.name}: {_told(figure.ours, figure.unit)} ({figure.better} is better)")
        if figure.other:
            ratio = figure.plain()["ratio"]
            asked.say(f"    {figure.other_name}: {_told(figure.other, figure.unit)}; × {ratio}")
        else:
            asked.say(f"    other side missing: {figure.other_name}")
    line: Mapping[str, Any] = {"bench": bench, "figures": [one.plain() for one in figures]}
    print(json.dumps(line, ensure_ascii=False), flush=True)


def _told(values: Sequence[float], unit: str) -> str:
    median = _median(values)
    if median is None:
        return "no round ended"
    low, high = _spread(values)
    rounds = "1 round" if len(values) == 1 else f"{len(values)} rounds"
    return f"median {_rounded(median)} {unit}, {_rounded(low)}–{_rounded(high)} in {rounds}"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _spread(values: Sequence[float]) -> tuple[float, ...]:
    return (min(values), max(values)) if values else ()


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
