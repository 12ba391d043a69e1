"""Which GPUs each llama-cpp-python build here can use, asked in throw-away processes.

Owns one question, the reading of its answer, and one answer from several runtimes. The library is
never imported here: loading it maps drivers, and a broken one takes its process along.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aivailable.core.state.records import Backend
from aivailable.peer.runtimes import Interpreters
from aivailable.peer.runtimes.starting import VARIABLES, place
from aivailable.wire.worker import is_software

PROBE_LIMIT_S = 30.0
PROBE_OUTPUT_MAX_CHARS = 32768
DEVICES_MAX = 64
TEXT_MAX_CHARS = 128
VULKAN_NUMBERS_MAX = 16
"""Vulkan devices that are asked for their PCI id one by one."""
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
say(l.llama_print_system_info().decode('utf-8', 'replace').replace('\\n', ' '))
say(' llama-cpp-python ' + l.__version__ + '\\n')
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
    place: str = ""
    """Its entry in the variable that shows a process this device alone; "" = cannot be told."""
    build: str = ""
    """What the runtime says of itself: instruction sets, architectures, version."""

    @property
    def software(self) -> bool:
        """It computes on the CPU, and is here because the operator's variable names it."""
        return is_software(self.name)


@dataclass(frozen=True, slots=True)
class Offload:
    """What the runtimes here can do. `reason` says why `cuda` is False. `offered` is empty also
    when the library is too old to list its devices."""

    cuda: bool
    reason: str = ""
    offered: tuple[Offered, ...] = ()
    problems: tuple[str, ...] = ()
    """Runtimes that do not start, in words."""
    build: str = ""


async def survey(interpreters: Interpreters, limit_s: float = PROBE_LIMIT_S) -> Offload:
    """Ask our own interpreter and every runtime, one after another. A backend's own runtime is
    believed about it, ours about the rest. Never raises."""
    found = await probe(interpreters.own, limit_s)
    for runtime in interpreters.whole():
        if runtime.backend in PREFIXES.values():
            answer = await probe(runtime.interpreter, limit_s)
            found = merged(found, runtime.backend, answer)
    return found


def merged(found: Offload, backend: Backend, answer: Offload) -> Offload:
    """With what the runtime of `backend` answered. One that offers nothing changes nothing but
    the problems."""
    theirs = tuple(one for one in answer.offered if one.backend is backend)
    if not theirs and not (backend is Backend.CUDA and answer.cuda):
        # A build for GPUs calls itself one for the CPU where it finds none.
        reason = (
            f"it finds no device; the card's driver may lack {backend.value}"
            if answer.build
            else answer.reason or "it lists no device"
        )
        problem = f"the runtime {backend.value} is of no use: {reason}"
        return replace(found, problems=(*found.problems, problem))
    return replace(
        found,
        cuda=found.cuda or backend is Backend.CUDA,
        offered=(*(one for one in found.offered if one.backend is not backend), *theirs),
    )


async def probe(
    executable: str = sys.executable,
    limit_s: float = PROBE_LIMIT_S,
    environment: Mapping[str, str] = os.environ,
) -> Offload:
    """Ask `executable`'s llama_cpp. Never raises; anything odd is a no with its reason."""
    if executable == sys.executable and importlib.util.find_spec("llama_cpp") is None:
        return Offload(False, "llama-cpp-python is not installed; pip install 'aivailable[engine]'")
    found = await _asked(executable, limit_s, environment)
    shown = tuple(
        replace(one, place=place(one.backend, one.index, environment)) for one in found.offered
    )
    if any(one.backend is Backend.VULKAN and not one.place for one in shown):
        shown = await _numbered(executable, limit_s, environment, shown)
    return replace(found, offered=shown)


async def _numbered(
    executable: str, limit_s: float, environment: Mapping[str, str], shown: Sequence[Offered]
) -> tuple[Offered, ...]:
    """With Vulkan's own numbers, by PCI id: they count also what llama.cpp leaves out (a CPU, a
    card's second driver), so each number is asked what it shows. Behind the last one nothing is
    shown."""
    sought = {one.device_id: one for one in shown if one.backend is Backend.VULKAN}
    places: dict[str, str] = {}
    for number in range(VULKAN_NUMBERS_MAX):
        if "" in sought or len(places) == len(sought):
            break
        alone = {**environment, VARIABLES[Backend.VULKAN]: str(number)}
        answer = await _asked(executable, limit_s, alone)
        seen = [one for one in answer.offered if one.backend is Backend.VULKAN]
        if not seen:
            break
        for one in seen[:1]:
            if one.device_id in sought:
                places.setdefault(one.device_id, str(number))
    return tuple(
        replace(one, place=places.get(one.device_id, ""))
        if one.backend is Backend.VULKAN and not one.place
        else one
        for one in shown
    )


async def _asked(executable: str, limit_s: float, environment: Mapping[str, str]) -> Offload:
    try:
        child = await asyncio.create_subprocess_exec(
            executable,
            "-c",
            _QUESTION,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**environment, **ORDER},
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
    build = " ".join(first.split())
    if not first.startswith("offload "):
        reason = "this llama-cpp-python build runs on the CPU only"
        return Offload(False, reason, build=build)
    offered = _offered(rest, build)
    if "CUDA" not in first:
        reason = "this llama-cpp-python build has another GPU backend than CUDA"
        return Offload(False, reason, offered, build=build)
    return Offload(True, "", offered, build=build)


def _offered(text: str, build: str) -> tuple[Offered, ...]:
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
                build=build,
            )
        )
    return tuple(found)
