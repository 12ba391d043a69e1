"""Trying a backend on a device, and measuring it: one throw-away process for each.

Owns the children that run `aivailable.worker.trial` with nothing but that device to be seen, their
time limits, and the reading of how they ended: a driver that crashes or hangs takes its child along
and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aivailable.peer.devices.trial_cache import WORDS_MAX_CHARS, Speed, TrialVerdict
from aivailable.peer.runtimes import Start, Starter
from aivailable.wire.worker import DeviceClaim

SMOKE_LIMIT_S: Final = 60.0
"""The first use of a card compiles shaders or kernels, on an old CPU for long."""
BENCHMARK_S: Final = 10.0
BENCHMARK_LIMIT_S: Final = 90.0
"""With making the model, loading it and the first compilation."""
OUTPUT_MAX_BYTES: Final = 64 * 1024
_PASSING: Final = ("out_of_memory", "over_claim")
"""Refusals that say nothing of the device itself."""


@dataclass(frozen=True, slots=True)
class Trials:
    """Starts the children. `small`: measure the smallest model, for tests."""

    starter: Starter
    smoke_limit_s: float = SMOKE_LIMIT_S
    benchmark_limit_s: float = BENCHMARK_LIMIT_S
    benchmark_s: float = BENCHMARK_S
    small: bool = False

    async def smoke(self, claim: DeviceClaim, place: str = "") -> TrialVerdict:
        """Whether the claim's backend computes on its device. `place`: as runtimes.starting has
        it; "" = the process sees all of the backend. Never raises."""
        start = self.starter.start((claim,), {claim.device_id: place})
        answer, words, timely = await self._ask(claim, start, (), self.smoke_limit_s)
        if answer is None:
            return TrialVerdict(False, words, lasting=timely)
        return _verdict(answer, words)

    async def measure(self, claim: DeviceClaim) -> Speed | str:
        """The speeds, or why there are none. Never raises; when cancelled, the child ends."""
        seconds = ("--seconds", f"{self.benchmark_s:g}", *(("--small",) if self.small else ()))
        start = self.starter.start((claim,))
        answer, words, _ = await self._ask(claim, start, seconds, self.benchmark_limit_s)
        if answer is None:
            return words
        decode, prefill = (answer.get(f"{name}_tokens_per_s") for name in ("decode", "prefill"))
        if isinstance(decode, float) and isinstance(prefill, float):
            return Speed(round(decode, 1), round(prefill, 1))
        return _verdict(answer, words).words or "its answer has no speeds"

    async def _ask(
        self, claim: DeviceClaim, start: Start, more: Sequence[str], limit_s: float
    ) -> tuple[dict[str, Any] | None, str, bool]:
        """(answer or None, last words, whether it ended in time)."""
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aivailable-"))
                child = await asyncio.create_subprocess_exec(
                    start.interpreter,
                    *("-m", "aivailable.worker.trial", "--folder", str(Path(folder))),
                    *("--backend", claim.backend, "--device", str(start.devices[0].index)),
                    *more,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=start.environment,
                )
            except OSError as error:
                return None, f"it cannot be tried: {error}", False
            try:
                output, said = await asyncio.wait_for(child.communicate(), limit_s)
            except TimeoutError:
                return None, f"no answer within {limit_s:.0f} s", False
            finally:
                # Also when we are cancelled: no child outlives its question.
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        child.kill()
                    await child.wait()
        words = _last_words(child.returncode or 0, said[-OUTPUT_MAX_BYTES:])
        return _answer(output[-OUTPUT_MAX_BYTES:]), words, True


def _answer(output: bytes) -> dict[str, Any] | None:
    """The last line, when it is one of ours; libraries may have talked before."""
    lines = output.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _verdict(answer: dict[str, Any], words: str) -> TrialVerdict:
    refusal = answer.get("error")
    if isinstance(refusal, dict):
        lasting = refusal.get("code") not in _PASSING
        return TrialVerdict(False, str(refusal.get("message", ""))[:WORDS_MAX_CHARS], lasting)
    if "version" not in answer:
        return TrialVerdict(False, words)
    return TrialVerdict(True)


def _last_words(code: int, said: bytes) -> str:
    how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return f"{how}: {lines[-1]}"[:WORDS_MAX_CHARS] if lines else how
