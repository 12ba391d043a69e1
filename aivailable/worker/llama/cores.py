"""The processor cores this process may run on.

Owns: reading them from the kernel; it decides nothing (parameters does).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True, slots=True)
class Cores:
    """`logical` counts hyper-threads, `physical` does not. `nodes`: NUMA nodes, at least 1."""

    logical: int
    physical: int
    nodes: int = 1


def read_cores(system: Path = SYSTEM) -> Cores:
    """What the affinity mask allows. Where the kernel does not tell, every thread is a core."""
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
    else:
        allowed = list(range(os.cpu_count() or 1))
    siblings: dict[str, None] = {}
    for number in allowed:
        path = system / "cpu" / f"cpu{number}" / "topology" / "thread_siblings_list"
        siblings[_line(path) or str(number)] = None
    nodes = sum(1 for _ in (system / "node").glob("node[0-9]*"))
    return Cores(len(allowed), len(siblings), max(1, nodes))


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
