"""Predicted bytes beside what a real load uses: the dry run, and the formula that stands in for it.

Every configuration is loaded for real in a process of its own, which then says the sizes of the
buffers that llama.cpp has allocated, and by how much the process's memory grew from before its
first decode to after the largest ones that the worker makes (every guess with its row, every token
of a text pooled, an image encoded): some buffers are made late. The dry run is the planner's
(worker/dry_run.py, another process), the formula is what the peer falls back to
(peer/deploying/memory_predictor.py). A claim that is too small makes a load fail and one that is
too large wastes a card, so both directions count: the figure is |predicted - real| / real.

Beside plain loads of both models there are loads with guesses, LoRA adapters, projectors and
pooling, and two encoders; adapters, projectors and encoders are made here of random numbers, in the
sizes that such files have.

    python -m bench.oracle [--quick] [--json]
"""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aivailable.errors import GgufError
from aivailable.gguf.header import read_header
from aivailable.gguf.memory import Need
from aivailable.peer.deploying.memory_predictor import by_formula
from aivailable.peer.ports import PredictRequest
from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.engine import LoadRefused, Part
from bench.models import MODELS
from bench.peers import ROOT, BenchFailed
from bench.report import Figure, report, wanted

sys.path.append(str(ROOT / "tests"))
if TYPE_CHECKING:
    from aivailable.worker.llama.engine import LlamaEngine

BOUND_DRY_RUN = 0.01
BOUND_FORMULA = 0.05
LOAD_LIMIT_S = 120.0
UNLIMITED_BYTES = 1 << 40
QUICK_EVERY = 8
SCRATCH_BYTES = 1_250_000
"""Of the growth: graphs and the CPU backend's scratch memory, which are no buffers and which every
load has, also where nothing comes late (1.1 to 1.5 MiB were seen)."""
MIB = 1 << 20
NEEDS = ("weights_bytes", "kv_bytes", "compute_bytes")


@dataclass(frozen=True, slots=True)
class Configuration:
    model: str
    context: int
    slots: int
    kv_type: str
    ubatch: int
    flash: str
    more: Mapping[str, str] = field(default_factory=dict)
    """Further engine options; of a file its name."""

    def options(self, files: Mapping[str, Path]) -> dict[str, str]:
        """The engine options, with the files' paths."""
        return {
            "kv_type": self.kv_type,
            "ubatch": str(self.ubatch),
            "flash_attention": self.flash,
            "draft": "0",
            **{name: str(files.get(value, value)) for name, value in self.more.items()},
        }

    def __str__(self) -> str:
        more = "".join(f" {name}={value}" for name, value in self.more.items())
        return (
            f"{self.model} {self.context} x {self.slots} {self.kv_type} ubatch {self.ubatch}"
            f" flash {self.flash}{more}"
        )


def configurations() -> Iterator[Configuration]:
    """Both models: a full-attention one and one with a sliding window; then what goes with them."""
    shapes = ((512, 1), (2048, 1), (8192, 1), (1024, 4), (4096, 4), (512, 16), (2048, 16))
    for model, (context, slots) in itertools.product(sorted(MODELS), shapes):
        for kv_type, ubatch, flash in (
            ("f16", 128, "on"),
            ("f16", 512, "off"),
            ("q8_0", 512, "on"),
        ):
            yield Configuration(model, context, slots, kv_type, ubatch, flash)
        yield Configuration(model, context, slots, "f16", 512, "on", {"draft": "7"})
    for model, (context, slots) in itertools.product(sorted(MODELS), ((2048, 2), (1024, 8))):
        lora, projector = f"{model} adapter", f"{model} projector"
        for more in (
            {"draft": "4"},
            {"lora": lora},
            {"projector": projector},
            {"draft": "4", "lora": lora, "projector": projector},
        ):
            yield Configuration(model, context, slots, "f16", 128, "on", more)
            yield Configuration(model, context, slots, "f16", 512, "on", more)
    for model, context in itertools.product(sorted(MODELS), (512, 2048)):
        for pooling, ubatch, flash in (("mean", 128, "on"), ("last", 512, "off")):
            yield Configuration(model, context, 4, "f16", ubatch, flash, {"pooling": pooling})
    for model, context, flash in itertools.product(
        ("encoder", "reranker"), (256, 512), ("on", "off")
    ):
        yield Configuration(model, context, 4, "f16", 512, flash)


def files(folder: Path) -> dict[str, Path]:
    """Models and what goes with them, by the names in configurations."""
    from fixtures.tiny_models import encoder, random_lora  # type: ignore[import-not-found]
    from fixtures.tiny_projectors import (  # type: ignore[import-not-found]
        Vit,
        random_gemma_projector,
        random_projector,
    )

    size = Vit(width=512, wide=2048, layers=6, heads=8, patch=16, side=224)
    return {
        **{name: path() for name, path in MODELS.items()},
        "encoder": encoder(folder),
        "reranker": encoder(folder, ranks=True),
        "smollm2 adapter": random_lora(folder, "smollm2-lora.gguf", rank=16, layers=30),
        "gemma adapter": random_lora(
            folder,
            "gemma-lora.gguf",
            rank=16,
            layers=18,
            width=640,
            wide=2048,
            general__architecture="gemma3",
        ),
        "smollm2 projector": random_projector(folder, "smollm2-eyes.gguf", size=size),
        "gemma projector": random_gemma_projector(folder, "gemma-eyes.gguf", size=size),
    }


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--load":
        _load(json.loads(sys.argv[2]))
        return
    asked = wanted("oracle", "predicted bytes against real buffers")
    every = QUICK_EVERY if asked.quick else 1
    dry, formula = [], []
    with tempfile.TemporaryDirectory() as folder:
        made = files(Path(folder))
        for one in list(configurations())[::every]:
            path, options = made[one.model], one.options(made)
            sizes = [str(path), one.context, one.slots, options]
            real = _child(["bench.oracle", "--load", json.dumps(sizes)])
            dry_run = _child(["aivailable.worker.dry_run", *_flags(path, one, options)])
            guess = by_formula(PredictRequest(path, one.context, one.slots, options))
            dry.append(_off(dry_run, real))
            formula.append(
                _off(Need(guess.weights_bytes, guess.kv_bytes, guess.compute_bytes), real)
            )
            asked.say(
                f"{one}: real {real.total_bytes / MIB:.1f} MiB,"
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


def _flags(path: Path, one: Configuration, options: Mapping[str, str]) -> list[str]:
    flags = ["--path", str(path), "--context", str(one.context), "--slots", str(one.slots)]
    for name, value in options.items():
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
    return Need(*(sizes[name] for name in NEEDS))


def _off(predicted: Need, real: Need) -> float:
    return abs(predicted.total_bytes - real.total_bytes) / real.total_bytes


# --- in the child


def _load(given: list[Any]) -> None:
    """Load for real, decode as much as is possible and print what was allocated."""
    from aivailable.worker.llama.embedding import load_llama

    path, context, slots, options = given
    before: list[int] = []

    def progress(phase: str, _fraction: float) -> None:
        if phase == "warming":  # The last thing of a load, and its first decode.
            before.append(_allocated_bytes())

    claim = DeviceClaim("cpu0", "cpu", 0, UNLIMITED_BYTES)
    load = Load("bench#1", "llama", path, context, slots, (claim,), options)
    try:
        engine = load_llama(load, progress)
    except (GgufError, LoadRefused) as error:
        raise SystemExit(str(error)) from error
    _exhaust(engine, slots)
    late = max(0, _allocated_bytes() - before[0] - SCRATCH_BYTES)
    used = engine.footprint
    compute = used.compute_bytes - _late_as_counted(load) + late
    print(json.dumps(dict(zip(NEEDS, (used.weights_bytes, used.kv_bytes, compute), strict=True))))


def _late_as_counted(load: Load) -> int:
    """What the worker adds to the buffers of the load because it comes later: here it is measured
    instead."""
    from aivailable.worker.llama.adapters import adapter_compute_bytes, adapters_of
    from aivailable.worker.llama.parameters import late_output_bytes, parameters

    facts = read_header(load.path).facts
    chosen = parameters(facts, load.context, load.slots, load.options, on_gpu=False)
    adapters = adapters_of(load.path, facts, load.options)
    return late_output_bytes(facts, chosen) + adapter_compute_bytes(adapters, facts, chosen)


def _exhaust(engine: LlamaEngine, slots: int) -> None:
    """The largest decodes that the worker makes: a step full of a prompt, as many rows with all
    their guesses as a step has, a whole text, an image."""
    from aivailable.worker.llama.embedding import LlamaEmbedder

    tokens = tuple(5 + number % 9 for number in range(engine._batch._size))
    if isinstance(engine, LlamaEmbedder):
        engine.pool((Part(0, tokens[: engine.context], 0, wants_logits=True),))
        return
    prompt = tokens[: min(engine.step_tokens, engine.context)]
    engine.decode((Part(0, prompt, 0, wants_logits=True),))
    engine.trim(0, 0)
    # The last row takes what guesses are left of a step.
    left, rows = engine.step_tokens, []
    for slot in range(slots):
        if left:
            row = tokens[: min(left, 1 + engine.draft_tokens)]
            rows.append(Part(slot, row, 0, wants_logits=True, drafted=len(row) - 1))
            left -= len(row)
    engine.decode(rows)
    if engine._vision is not None:
        from fixtures.tiny_projectors import png

        engine.trim(0, 0)
        picture = engine._vision.picture(png(300, 300))  # It is known as long as it is held.
        seen = (*picture.ids, tokens[0])
        for start in range(0, len(seen), engine.step_tokens):
            piece = seen[start : start + engine.step_tokens]
            engine.decode((Part(0, piece, start, wants_logits=start + len(piece) == len(seen)),))


class _Allocations(ctypes.Structure):
    """malloc.h `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _allocated_bytes() -> int:
    """What malloc has given out and not got back: llama.cpp's buffers in main memory are of it.
    Needs glibc 2.33."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Allocations
    now = libc.mallinfo2()
    return int(now.hblkhd + now.uordblks)


if __name__ == "__main__":
    main()
