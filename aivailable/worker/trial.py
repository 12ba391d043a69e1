"""Does this interpreter's llama.cpp compute on a device, and how fast: in a throw-away process.

`python -m aivailable.worker.trial --backend cuda --device 0 --folder DIR [--seconds 10]` loads a
generated model wholly on the device and decodes. It prints one line of JSON: {"version"} after a
smoke decode, with "prefill_tokens_per_s" and "decode_tokens_per_s" when --seconds is given; or
{"error": {"code", "message"}} and exit status 1. A driver that is broken may take the process
along or hang it: the caller watches.

Owns: the one load and the clock around its decodes. Started by peer.devices.trials, by whichever
runtime's interpreter is asked about. The model's file stays in DIR, which is the caller's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.__main__ import die_with_parent
from aivailable.worker.engine import DecodeFailed, LoadRefused, Part
from aivailable.worker.llama.engine import LlamaEngine
from aivailable.worker.llama.generated_model import BENCHMARK, SMOKE, VOCABULARY, write_model

UNLIMITED_BYTES: Final = 1 << 50
CONTEXT: Final = 1024
WARM_UP_STEPS: Final = 2
STEPS_MIN: Final = 3
STEPS_MAX: Final = 2000


def try_device(
    backend: str, index: int, folder: Path, seconds: float, *, small: bool = False
) -> dict[str, Any]:
    """The answer of one trial. `seconds`: 0 = smoke decode only, else the time of each half of the
    measurement together. `small`: measure the smoke model, whose figures compare with nothing.

    Raises LoadRefused, DecodeFailed, OSError.
    """
    shape = BENCHMARK if seconds > 0 and not small else SMOKE
    path = folder / "generated.gguf"
    write_model(path, shape)
    claim = DeviceClaim(f"{backend}{index}", backend, index, UNLIMITED_BYTES)
    load = Load("trial", "llama", str(path), CONTEXT, 1, (claim,))
    engine = LlamaEngine(load, lambda _phase, _fraction: None)
    answer: dict[str, Any] = {"version": engine.version}
    if seconds > 0:
        answer["prefill_tokens_per_s"] = _prefill(engine, seconds / 2)
        answer["decode_tokens_per_s"] = _decode(engine, seconds / 2)
    return answer


def _prefill(engine: LlamaEngine, seconds: float) -> float:
    """Tokens/s of prompt chunks as a worker cuts them."""
    count = min(engine.chunk_tokens, CONTEXT // 2)
    tokens = tuple(number % VOCABULARY for number in range(count))

    def step(_number: int) -> None:
        engine.trim(0, 0)
        engine.decode((Part(0, tokens, 0, wants_logits=True),))

    return count / _median_step_s(step, seconds)


def _decode(engine: LlamaEngine, seconds: float) -> float:
    """Tokens/s of one row, with at most half the context behind it."""

    def step(number: int) -> None:
        position = number % (CONTEXT // 2)
        if position == 0:
            engine.trim(0, 0)
        engine.decode((Part(0, (number % VOCABULARY,), position, wants_logits=True),))

    return 1.0 / _median_step_s(step, seconds)


def _median_step_s(step: Callable[[int], None], seconds: float) -> float:
    """The median is what an undisturbed step takes, also on a machine that does something else."""
    for number in range(WARM_UP_STEPS):
        step(number)
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < STEPS_MIN or (time.perf_counter() < end and len(took) < STEPS_MAX):
        began = time.perf_counter()
        step(WARM_UP_STEPS + len(took))
        took.append(time.perf_counter() - began)
    return max(statistics.median(took), 1e-9)


def main(arguments: list[str]) -> int:
    """Print one line of JSON; 0 when the device computes."""
    parser = argparse.ArgumentParser(prog="aivailable.worker.trial")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--device", type=int, default=0, help="the backend's index")
    parser.add_argument("--folder", type=Path, required=True, help="for the generated model")
    parser.add_argument("--seconds", type=float, default=0.0, help="measure for this long")
    parser.add_argument("--small", action="store_true", help="measure the smallest model")
    given = parser.parse_args(arguments)
    die_with_parent()
    try:
        answer = try_device(
            given.backend, given.device, given.folder, given.seconds, small=given.small
        )
    except LoadRefused as error:
        answer = {"error": {"code": error.code, "message": str(error)}}
    except (DecodeFailed, OSError) as error:
        answer = {"error": {"code": "crashed", "message": str(error)}}
    sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n")
    sys.stdout.flush()
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
