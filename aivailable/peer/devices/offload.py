"""Whether our llama-cpp-python build can use a GPU, asked in a throw-away process.

Owns one question. The library is never imported here: loading it maps drivers, and a broken one
takes its process along. Called by `system`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from dataclasses import dataclass

PROBE_LIMIT_S = 30.0
PROBE_OUTPUT_MAX_CHARS = 4096
_QUESTION = (
    "import llama_cpp as l, sys\n"
    "sys.stdout.write('offload ' if l.llama_supports_gpu_offload() else 'cpu ')\n"
    "sys.stdout.write(l.llama_print_system_info().decode('utf-8', 'replace'))\n"
)


@dataclass(frozen=True, slots=True)
class Offload:
    """What the default runtime can do. `reason` says why `cuda` is False."""

    cuda: bool
    reason: str = ""


async def probe(executable: str = sys.executable, limit_s: float = PROBE_LIMIT_S) -> Offload:
    """Ask `executable`'s llama_cpp. Never raises; anything odd is a no with its reason."""
    if importlib.util.find_spec("llama_cpp") is None:
        return Offload(False, "llama-cpp-python is not installed; pip install 'aivailable[engine]'")
    try:
        child = await asyncio.create_subprocess_exec(
            executable,
            "-c",
            _QUESTION,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        return Offload(False, f"llama-cpp-python could not be asked: {error}")
    try:
        answer, _ = await asyncio.wait_for(child.communicate(), limit_s)
    except TimeoutError:
        return Offload(False, f"llama-cpp-python did not say within {limit_s:.0f} s")
    finally:
        # Also when we are cancelled: no child outlives its question.
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode != 0:
        return Offload(False, f"llama-cpp-python fails to start (exit status {child.returncode})")
    text = answer.decode(errors="replace")[:PROBE_OUTPUT_MAX_CHARS]
    if not text.startswith("offload "):
        return Offload(False, "this llama-cpp-python build runs on the CPU only")
    if "CUDA" not in text:
        return Offload(False, "this llama-cpp-python build has another GPU backend than CUDA")
    return Offload(True)
