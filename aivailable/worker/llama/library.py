"""llama.cpp's library inside this process: its log, its buffers, its devices.

Owns: everything that is read from log lines and the few ctypes declarations that the package lacks.
The only place that imports llama_cpp.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aivailable.worker.engine import LoadRefused

LOG_LINES_MAX: Final = 4000
TROUBLES_MAX: Final = 16
LOG_LEVELS: Final = {"debug": 1, "info": 2, "warn": 3, "error": 4, "none": 100}
"""ggml.h `enum ggml_log_level`; chosen by AIVAILABLE_WORKER_LOG."""
CONTINUED: Final = 5
GPU_KINDS: Final = frozenset({1, 2})
"""ggml-backend.h `enum ggml_backend_dev_type`: GPU and IGPU."""
BACKEND_PREFIXES: Final = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}
_BUFFER: Final = re.compile(
    r"(\S+) (model|LoRA|KV|RS|compute|output) buffer size *= *([0-9.]+) MiB"
)
_KV_SIZE: Final = re.compile(r"size *= *([0-9.]+) MiB \( *\d+ cells")
_OFFLOADED: Final = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_MOVED: Final = re.compile(r"\(and (\d+) others\) cannot be used with preferred buffer type")
_FLASH: Final = re.compile(
    r"Flash Attention(?: was auto, set to)? (enabled|disabled|not supported)"
)
"""llama-context.cpp, `resolve_fused_ops`; older builds say that it was auto."""
_NO_MEMORY: Final = re.compile(r"out of memory|failed to allocate|unable to allocate|cudaMalloc")
MIB: Final = 1 << 20
MAIN_MEMORY: Final = "CPU"
"""llama.cpp's name of it."""


NO_ENGINE: Final = "this node has no inference engine; install aivailable[engine]"


def import_library() -> tuple[Any, str]:
    """llama-cpp-python's low-level module and its version.

    Raises LoadRefused when it is not installed or when its shared libraries do not load.
    """
    # OpenMP threads that spin while they wait make a busy machine 30 to 60 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        package = importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise LoadRefused("unsupported", f"{NO_ENGINE} ({error})") from error
    except (ImportError, OSError, RuntimeError) as error:
        # A GPU build on a host without the vendor's driver library ends here.
        raise LoadRefused("unsupported", f"llama.cpp's libraries do not load: {error}") from error
    return package.llama_cpp, str(package.__version__)


def import_media_library() -> Any:
    """llama-cpp-python's module for images (llama.cpp's mtmd). Raises LoadRefused where this build
    has none."""
    try:
        return importlib.import_module("llama_cpp.mtmd_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LoadRefused("unsupported", f"this llama.cpp reads no images: {error}") from error


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes of llama.cpp's buffers, by the name of the memory they lie in ("CPU", "CUDA0", …).

    Log lines are rounded to 0.01 MiB; so are these numbers.
    """

    model: dict[str, int] = field(default_factory=dict)
    kv: dict[str, int] = field(default_factory=dict)
    compute: dict[str, int] = field(default_factory=dict)

    def on(self, memory: str) -> int:
        """All bytes in one memory."""
        return sum(part.get(memory, 0) for part in (self.model, self.kv, self.compute))

    @property
    def weights_bytes(self) -> int:
        return sum(self.model.values())

    @property
    def kv_bytes(self) -> int:
        return sum(self.kv.values())

    @property
    def compute_bytes(self) -> int:
        return sum(self.compute.values())

    def add_compute(self, memory: str, count: int) -> None:
        """Count bytes that will be allocated later."""
        if count:
            self.compute[memory] = self.compute.get(memory, 0) + count

    def add(self, other: Buffers) -> None:
        """Count what another load takes beside these."""
        for mine, more in (
            (self.model, other.model),
            (self.kv, other.kv),
            (self.compute, other.compute),
        ):
            for memory, count in more.items():
                mine[memory] = mine.get(memory, 0) + count


def parse_buffers(lines: Iterable[str]) -> Buffers:
    """Sum the "buffer size" lines of a load."""
    buffers = Buffers()
    for line in lines:
        found = _BUFFER.search(line)
        if found is None:
            continue
        memory, kind, mib = found[1], found[2], float(found[3])
        parts = {"model": buffers.model, "LoRA": buffers.model, "KV": buffers.kv, "RS": buffers.kv}
        part = parts.get(kind, buffers.compute)
        part[memory] = part.get(memory, 0) + math.ceil(mib * MIB)
    return buffers


def parse_kv_bytes(lines: Iterable[str]) -> int:
    """Sum of the KV caches' sizes as computed, which a dry run says without allocating."""
    return sum(
        math.ceil(float(found[1]) * MIB) for line in lines if (found := _KV_SIZE.search(line))
    )


def parse_offloaded(lines: Iterable[str]) -> tuple[int, int] | None:
    """(layers on GPUs, layers) as llama.cpp says; None when it does not."""
    for line in lines:
        found = _OFFLOADED.search(line)
        if found is not None:
            return int(found[1]), int(found[2])
    return None


def parse_moved(lines: Iterable[str]) -> int:
    """Tensors that do not lie in the memory that llama.cpp prefers for them. On a GPU load these
    are the input tables, and whatever the device's backend cannot compute with."""
    return max((int(found[1]) + 1 for line in lines if (found := _MOVED.search(line))), default=0)


def parse_flash_attention(lines: Iterable[str]) -> str:
    """ "on" or "off" as llama.cpp chose; "" when it did not say."""
    for line in lines:
        found = _FLASH.search(line)
        if found is not None:
            return "on" if found[1] == "enabled" else "off"
    return ""


_CALLBACKS: list[Any] = []
"""ctypes keeps no reference to a callback, and llama.cpp calls the last one it was given for as
long as the process lives, also after its Log is gone."""


class Log:
    """Keeps llama.cpp's last lines and passes the more important ones to stderr."""

    def __init__(self, library: Any) -> None:
        wanted = os.environ.get("AIVAILABLE_WORKER_LOG", "warn")
        self._threshold = LOG_LEVELS.get(wanted, LOG_LEVELS["warn"])
        self._last_level = 0
        self.lines: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._troubles: deque[str] = deque(maxlen=TROUBLES_MAX)
        """Those of the lines that are errors."""
        callback = library.llama_log_callback(self._take)
        library.llama_log_set(callback, ctypes.c_void_p(0))
        self.callback = callback
        _CALLBACKS.append(callback)

    def _take(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace")
        if level == CONTINUED:
            level = self._last_level
        self._last_level = level
        self.lines.append(line.rstrip("\n"))
        if level == LOG_LEVELS["error"]:
            self._troubles.append(self.lines[-1])
        if level >= self._threshold:
            sys.stderr.write(line)

    def tail(self, count: int = 6) -> str:
        """The last errors, else the last lines, for an error message."""
        troubles = [line for line in self._troubles if line in self.lines]
        told = (troubles or list(self.lines))[-count:]
        return " | ".join(line for line in told if line.strip())[-600:]

    def says_no_memory(self) -> bool:
        """Whether an allocation has failed."""
        return any(_NO_MEMORY.search(line) for line in self.lines)


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One of ggml's devices. `handle` is its ggml_backend_dev_t."""

    name: str
    handle: int
    free_bytes: int
    total_bytes: int
    about: str = ""
    """What its driver calls it."""
    pci_id: str = ""
    """As in "0000:03:00.0"; "" where the backend does not know it."""


class _Properties(ctypes.Structure):
    """ggml-backend.h `ggml_backend_dev_props`, with room for what later versions add."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("about", ctypes.c_char_p),
        ("free", ctypes.c_size_t),
        ("total", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("pci_id", ctypes.c_char_p),
        ("rest", ctypes.c_char * 256),
    ]


def gpu_devices(library: Any) -> tuple[GpuDevice, ...]:
    """Every GPU that this build of llama.cpp can use, in its own order."""
    folder = os.path.join(os.path.dirname(library.__file__), "lib")
    ggml = _load(folder, "libggml")
    base = _load(folder, "libggml-base")
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_get_props.restype = None
    base.ggml_backend_dev_get_props.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Properties)]
    found: list[GpuDevice] = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        if handle is None or base.ggml_backend_dev_type(handle) not in GPU_KINDS:
            continue
        told = _Properties()
        base.ggml_backend_dev_get_props(handle, ctypes.byref(told))
        name, about, pci_id = (
            (text or b"").decode("utf-8", "replace")
            for text in (told.name, told.about, told.pci_id)
        )
        found.append(GpuDevice(name, handle, told.free, told.total, about, pci_id.lower()))
    return tuple(found)


def _load(folder: str, stem: str) -> ctypes.CDLL:
    folder = os.environ.get("LLAMA_CPP_LIB_PATH", folder)
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return ctypes.CDLL(os.path.join(folder, stem + suffix))


def device_array(handles: Sequence[int]) -> Any:
    """A NULL-terminated ggml_backend_dev_t[]; the caller keeps it alive during the load."""
    return (ctypes.c_void_p * (len(handles) + 1))(*handles, None)
