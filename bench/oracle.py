"""Predicted bytes beside what a real load uses: the dry run, and the formula that stands in for it.

Every configuration is loaded for real in a process of its own, which then says the sizes of the
buffers that llama.cpp has allocated; the dry run is the planner's (worker/oracle.py, another
process), the formula is gguf/memory.py. A claim that is too small makes a load fail and one that
is too large wastes a card, so both directions count: the figure is |predicted - real| / real.

    python -m bench.oracle [--quick] [--json]
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aivailable.errors import GgufError
from aivailable.gguf.header import read_header
from aivailable.gguf.memory import Need, draft_tokens, need
from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.engine import LoadRefused
from bench.models import MODELS
from bench.peers import ROOT, BenchFailed
from bench.report import Figure, report, wanted

BOUND_DRY_RUN = 0.01
BOUND_FORMULA = 0.05
LOAD_LIMIT_S = 120.0
UNLIMITED_BYTES = 1 << 40
QUICK_EVERY = 6
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Configuration:
    model: str
    context: int
    slots: int
    kv_type: str
    ubatch: int
    flash: str
    draft: str = "0"

    def options(self) -> dict[str, str]:
        return {
            "kv_type": self.kv_type,
            "ubatch": str(self.ubatch),
            "flash_attention": self.flash,
            "draft": self.draft,
        }


def configurations() -> Iterator[Configuration]:
    """Both models: a full-attention one and one with a sliding window."""
    shapes = ((512, 1), (2048, 1), (8192, 1), (1024, 4), (4096, 4), (512, 16), (2048, 16))
    for model, (context, slots) in itertools.product(sorted(MODELS), shapes):
        for kv_type, ubatch, flash in (
            ("f16", 128, "on"),
            ("f16", 512, "off"),
            ("q8_0", 512, "on"),
        ):
            yield Configuration(model, context, slots, kv_type, ubatch, flash)
        yield Configuration(model, context, slots, "f16", 512, "on", draft="7")


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--load":
        _load(json.loads(sys.argv[2]))
        return
    asked = wanted("oracle", "predicted bytes against real buffers")
    every = QUICK_EVERY if asked.quick else 1
    dry, formula = [], []
    for one in list(configurations())[::every]:
        path = MODELS[one.model]()
        real = _child(["bench.oracle", "--load", json.dumps([str(path), *_sizes(one)])])
        dry_run = _child(["aivailable.worker.oracle", *_flags(path, one)])
        flash = one.flash == "on"
        guess = need(
            read_header(str(path)).facts,
            one.context,
            one.slots,
            one.kv_type,
            one.ubatch,
            flash,
            draft_tokens(one.draft, on_gpu=False),
        )
        dry.append(_off(dry_run, real))
        formula.append(_off(guess, real))
        asked.say(
            f"{one.model} {one.context} x {one.slots} {one.kv_type} ubatch {one.ubatch}"
            f" flash {one.flash}: real {real.total_bytes / MIB:.1f} MiB,"
            f" dry run off by {dry[-1]:.3%}, formula by {formula[-1]:.2%}"
        )
    worst = f"largest of {len(dry)}: dry run {max(dry):.3%}, formula {max(formula):.2%}"
    asked.say(f"{worst} (bounds {BOUND_DRY_RUN:.0%}, {BOUND_FORMULA:.0%})")
    figures = [
        Figure("dry run off by", "%", tuple(100 * off for off in dry), "the real load itself"),
        Figure("formula off by", "%", tuple(100 * off for off in formula), "the real load itself"),
    ]
    report("oracle", figures, asked)
    if max(dry) > BOUND_DRY_RUN or max(formula) > BOUND_FORMULA:
        raise SystemExit(1)


def _sizes(one: Configuration) -> tuple[object, ...]:
    return one.context, one.slots, one.options()


def _flags(path: Path, one: Configuration) -> list[str]:
    flags = ["--path", str(path), "--context", str(one.context), "--slots", str(one.slots)]
    for name, value in one.options().items():
        flags += ["--option", f"{name}={value}"]
    return flags


def _child(arguments: list[str]) -> Need:
    """Run `python -m …`; its last line is a Need as JSON. Raises BenchFailed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=LOAD_LIMIT_S,
        cwd=ROOT,
        check=False,
    )
    if done.returncode != 0:
        raise BenchFailed(f"{arguments}: {done.stdout[-500:]} {done.stderr[-500:]}")
    sizes = json.loads(done.stdout.splitlines()[-1])
    return Need(sizes["weights_bytes"], sizes["kv_bytes"], sizes["compute_bytes"])


def _load(given: list[object]) -> None:
    """In the child: load for real and print what was allocated."""
    from aivailable.worker.engine_llama import LlamaEngine

    path, context, slots, options = given
    assert isinstance(path, str)
    assert isinstance(context, int)
    assert isinstance(slots, int)
    assert isinstance(options, dict)
    claim = DeviceClaim("cpu0", "cpu", 0, UNLIMITED_BYTES)
    wanted_load = Load("bench#1", "llama", path, context, slots, (claim,), options)
    try:
        used = LlamaEngine(wanted_load, lambda _phase, _fraction: None).footprint
    except (GgufError, LoadRefused) as error:
        raise SystemExit(str(error)) from error
    print(
        json.dumps(
            {
                "weights_bytes": used.weights_bytes,
                "kv_bytes": used.kv_bytes,
                "compute_bytes": used.compute_bytes,
            }
        )
    )


def _off(predicted: Need, real: Need) -> float:
    return abs(predicted.total_bytes - real.total_bytes) / real.total_bytes


if __name__ == "__main__":
    main()
