"""Which GPUs our llama-cpp-python build can use, asked in a throw-away process.

Owns one question and the reading of its answer. The library is never imported here: loading it
maps drivers, and a broken one takes its process along. Called by `system`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from aivailable.core.records import Backend

PROBE_LIMIT_S = 30.0
PROBE_OUTPUT_MAX_CHARS = 32768
DEVICES_MAX = 64
TEXT_MAX_CHARS = 128
PREFIXES: Mapping[str, Backend] = {
    "CUDA": Backend.CUDA,
    "ROCm": Backend.ROCM,
    "Vulkan": Backend.VULKAN,
}
"""ggml's device names begin so."""
INTEGRATED = 2
"""ggml-backend.h GGML_BACKEND_DEVICE_TYPE_IGPU."""
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Workers run with it, so indexes are to be told with it."""
_QUESTION = """
import ctypes as c, os, sys
import llama_cpp as l
say = lambda text: (sys.stdout.write(text), sys.stdout.flush())
say('offload ' if l.llama_supports_gpu_offload() else 'cpu ')
say(l.llama_print_system_info().decode('utf-8', 'replace').replace('\\n', ' ') + '\\n')
class Props(c.Structure):
    # ggml-backend.h ggml_backend_dev_props, with room for what later versions add.
    _fields_ = [('name', c.c_char_p), ('about', c.c_char_p), ('free', c.c_size_t),
                ('total', c.c_size_t), ('kind', c.c_int), ('id', c.c_char_p),
                ('rest', c.c_char * 256)]
lib = os.environ.get('LLAMA_CPP_LIB_PATH', os.path.join(os.path.dirname(l.__file__), 'lib'))
ggml, base = (c.CDLL(os.path.join(lib, name)) for name in ('libggml.so', 'libggml-base.so'))
ggml.ggml_backend_dev_count.restype = c.c_size_t
ggml.ggml_backend_dev_get.restype = c.c_void_p
ggml.ggml_backend_dev_get.argtypes = [c.c_size_t]
base.ggml_backend_dev_get_props.restype = None
base.ggml_backend_dev_get_props.argtypes = [c.c_void_p, c.POINTER(Props)]
base.ggml_backend_dev_type.argtypes = [c.c_void_p]
for index in range(ggml.ggml_backend_dev_count()):
    device = ggml.ggml_backend_dev_get(index)
    if base.ggml_backend_dev_type(device) in (1, 2):
        props = Props()
        base.ggml_backend_dev_get_props(device, c.byref(props))
        texts = [(text or b'').decode('utf-8', 'replace').replace('\\t', ' ')
                 for text in (props.name, props.id, props.about)]
        say('\\t'.join(['device', *texts, str(props.kind), str(props.total)]) + '\\n')
"""


@dataclass(frozen=True, slots=True)
class Offered:
    """One GPU as llama.cpp lists it. `index` is its place among those of its backend."""

    backend: Backend
    index: int
    device_id: str
    """PCI id; "" where the backend does not know it."""
    name: str
    total_bytes: int
    integrated: bool = False


@dataclass(frozen=True, slots=True)
class Offload:
    """What the default runtime can do. `reason` says why `cuda` is False. `offered` is empty also
    when the library is too old to list its devices."""

    cuda: bool
    reason: str = ""
    offered: tuple[Offered, ...] = ()


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
            env={**os.environ, **ORDER},
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
    text = answer.decode(errors="replace")[:PROBE_OUTPUT_MAX_CHARS]
    first, whole, rest = text.partition("\n")
    # A library too old for the list may take the child along after it has said what it is.
    if child.returncode != 0 and not whole:
        return Offload(False, f"llama-cpp-python fails to start (exit status {child.returncode})")
    if not first.startswith("offload "):
        return Offload(False, "this llama-cpp-python build runs on the CPU only")
    offered = _offered(rest)
    if "CUDA" not in first:
        reason = "this llama-cpp-python build has another GPU backend than CUDA"
        return Offload(False, reason, offered)
    return Offload(True, "", offered)


def _offered(text: str) -> tuple[Offered, ...]:
    """The child's list. A line that is not one of ours is left out."""
    found: list[Offered] = []
    counts: dict[Backend, int] = {}
    for line in text.splitlines():
        parts = line.split("\t")
        if len(parts) != 6 or parts[0] != "device" or len(found) == DEVICES_MAX:
            continue
        _, name, device_id, about, kind, total = parts
        backend = next((one for word, one in PREFIXES.items() if name.startswith(word)), None)
        if backend is None or not (kind.isdecimal() and total.isdecimal()):
            continue
        index = counts.get(backend, 0)
        counts[backend] = index + 1
        found.append(
            Offered(
                backend=backend,
                index=index,
                device_id=device_id.lower()[:TEXT_MAX_CHARS],
                name=about[:TEXT_MAX_CHARS],
                total_bytes=int(total),
                integrated=int(kind) == INTEGRATED,
            )
        )
    return tuple(found)
