"""How llama-cpp-python is built for a backend on this machine, and what is missing for it.

Owns the options by backend and card, the sentence for each missing system package with the command
that installs it, and which CUDA toolkit fits which cards. Pure: what is there is told by `tools`.

Sources: ggml's CMakeLists (GGML_*), the release notes of CUDA 11.0, 11.8, 12.0, 12.8 and 13.0
(which compute capabilities come and go), Debian's and Fedora's package lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aivailable.advice import RUNTIME_ADD
from aivailable.core.state.records import Backend
from aivailable.errors import AivailableError

ENGINE: Final = "llama-cpp-python==0.3.36"
"""The one version that workers are written for; the same pin as the extra `engine`."""
BESIDE: Final = ("jinja2>=3.1.6", "msgpack>=1.1,<2", "numpy>=1.26")
"""What a worker imports besides, where it is not lent (interpreters.LENT). Another entry would be
another recipe: what is half made would begin anew, and what is whole would lack it."""
GIB: Final = 2**30
DISK_BYTES: Final[Mapping[Backend, int]] = {
    Backend.CPU: 1 * GIB,
    Backend.VULKAN: 2 * GIB,
    Backend.CUDA: 6 * GIB,
    Backend.ROCM: 6 * GIB,
}
JOB_BYTES: Final = 2 * GIB
"""Main memory that one compiler process may need."""
VULKAN_HEADERS: Final = (1, 3, 272)
"""The first that have VK_EXT_layer_settings, which ggml-vulkan.cpp names. Only the build needs
them: the driver and its loader may be as old as Vulkan 1.2."""
_SOURCE: Final = ("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF")
"""Portable within the machine's own features below, and without OpenMP's spinning threads."""
_CPU_FEATURES: Final[Mapping[str, str]] = {
    "avx": "GGML_AVX",
    "avx2": "GGML_AVX2",
    "bmi2": "GGML_BMI2",
    "fma": "GGML_FMA",
    "f16c": "GGML_F16C",
    "sse4_2": "GGML_SSE42",
}
"""On by default without GGML_NATIVE; a Xeon that hosts a K80 lacks some and would crash."""


class RuntimeTrouble(AivailableError):
    """A runtime cannot be made; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """One CUDA toolkit."""

    nvcc: str
    version: tuple[int, int]


@dataclass(frozen=True, slots=True)
class BuildTools:
    """What this machine has. Paths are "" for what is missing."""

    compiler: str = ""
    """A C++ compiler."""
    toolkits: tuple[Toolkit, ...] = ()
    hipcc: str = ""
    rocm: Path | None = None
    glslc: str = ""
    vulkan_sdk: str = ""
    """The operator's VULKAN_SDK: a folder with newer headers than the system's."""
    vulkan_headers: tuple[int, int, int] | None = None
    """Version of those that CMake will find."""
    spirv_headers: bool = False
    ensurepip: bool = True
    """Python's own pip, which Debian keeps in a package of its own."""
    installer: str = ""
    """apt | dnf | "" (another one)"""
    cpu_flags: tuple[str, ...] = ()
    """Of /proc/cpuinfo; empty when it names none (not x86)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    backend: Backend
    options: tuple[str, ...]
    """CMake's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Cards that this build leaves out, and why."""


_PACKAGES: Final[Mapping[str, tuple[str, str]]] = {
    "a C++ compiler": ("g++", "gcc-c++"),
    "Python's venv and pip": ("python3-venv", "python3-pip"),
    "glslc, the shader compiler": ("glslc", "glslc"),
    "Vulkan's headers": ("libvulkan-dev", "vulkan-headers vulkan-loader-devel"),
    "SPIR-V's headers": ("spirv-headers", "spirv-headers-devel"),
    "hipcc of ROCm": ("hipcc rocblas-dev hipblas-dev", "rocm-hip-devel hipblas-devel"),
    "nvcc of the CUDA toolkit": ("nvidia-cuda-toolkit", "cuda-toolkit"),
}
"""What is missing → packages of Debian and Ubuntu, of Fedora."""


def missing(backend: Backend, tools: BuildTools, *, compiles: bool) -> tuple[str, ...]:
    """A sentence for each thing that has to be installed first. `compiles`: False when a built
    wheel is at hand."""
    wanted = {"Python's venv and pip": tools.ensurepip}
    if compiles:
        # cmake itself is a wheel like others for pip, where the machine has none.
        wanted["a C++ compiler"] = bool(tools.compiler)
    if compiles and backend is Backend.CUDA:
        wanted["nvcc of the CUDA toolkit"] = bool(tools.toolkits)
    if compiles and backend is Backend.ROCM:
        wanted["hipcc of ROCm"] = bool(tools.hipcc)
    if compiles and backend is Backend.VULKAN:
        wanted["glslc, the shader compiler"] = bool(tools.glslc)
        wanted["Vulkan's headers"] = tools.vulkan_headers is not None
        wanted["SPIR-V's headers"] = tools.spirv_headers
    lacking = [_sentence(name, tools.installer) for name, there in wanted.items() if not there]
    here = tools.vulkan_headers
    if compiles and backend is Backend.VULKAN and here is not None and here < VULKAN_HEADERS:
        lacking.append(
            f"Vulkan's headers here are {_dotted(here)}, llama.cpp needs "
            f"{_dotted(VULKAN_HEADERS)}: unpack newer ones (Debian 13's libvulkan-dev: "
            "dpkg -x FILE.deb DIR) and set VULKAN_SDK=DIR/usr, or to the folder of LunarG's SDK"
        )
    return tuple(lacking)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _sentence(name: str, installer: str) -> str:
    debian, fedora = _PACKAGES[name]
    commands = {"apt": f"sudo apt install {debian}", "dnf": f"sudo dnf install {fedora}"}
    command = commands.get(installer, f"{commands['apt']} (or: {commands['dnf']})")
    return f"{name} is missing: {command}"


def recipe(backend: Backend, architectures: Sequence[str], tools: BuildTools) -> Recipe:
    """`architectures`: of the cards seen ("sm_61", "gfx906"; "" = unknown), or as the operator
    named them. Raises RuntimeTrouble when no card, or no toolkit here, can be built for."""
    common = (*_SOURCE, *_without(tools.cpu_flags))
    known = sorted({one for one in architectures if one})
    if backend is Backend.CUDA:
        return _cuda(known, tools, common)
    if backend is Backend.ROCM:
        return _rocm(known, tools, common)
    if backend is Backend.VULKAN:
        sdk = {"VULKAN_SDK": tools.vulkan_sdk} if tools.vulkan_sdk else {}
        return Recipe(backend, ("-DGGML_VULKAN=ON", *common), sdk)
    return Recipe(Backend.CPU, common)


def _without(flags: Sequence[str]) -> tuple[str, ...]:
    """Instruction sets that this processor lacks."""
    if not flags:
        return ()
    return tuple(f"-D{option}=OFF" for flag, option in _CPU_FEATURES.items() if flag not in flags)


def _cuda(architectures: Sequence[str], tools: BuildTools, common: tuple[str, ...]) -> Recipe:
    numbers = sorted(
        int(digits) for one in architectures if (digits := one.removeprefix("sm_")).isdecimal()
    )
    if not numbers:
        raise RuntimeTrouble(
            "no NVIDIA card is seen here, so there is no architecture to build for; name one "
            "with --arch, as --arch 61 for a GTX 1080 Ti"
        )
    # The toolkit that knows most of the cards; among such, the newest.
    best = max(
        tools.toolkits, key=lambda one: (len(_known_to(one, numbers)), one.version), default=None
    )
    built = [] if best is None else _known_to(best, numbers)
    if best is None or not built:
        here = ", ".join(f"{major}.{minor}" for major, minor in _versions(tools)) or "none"
        raise RuntimeTrouble(
            f"no CUDA toolkit here ({here}) builds for {_named(numbers)}: "
            f"{_toolkit_for(numbers[-1])}"
        )
    left = [number for number in numbers if number not in built]
    notes = tuple(
        f"sm_{number} is left out, CUDA {best.version[0]}.{best.version[1]} does not know it: "
        f"{_toolkit_for(number)}"
        for number in left
    )
    listed = ";".join(str(number) for number in built)
    options = (
        "-DGGML_CUDA=ON",
        f"-DCMAKE_CUDA_ARCHITECTURES={listed}",
        f"-DCMAKE_CUDA_COMPILER={best.nvcc}",
        *common,
    )
    return Recipe(Backend.CUDA, options, {"CUDACXX": best.nvcc}, notes)


def _versions(tools: BuildTools) -> list[tuple[int, int]]:
    return sorted(one.version for one in tools.toolkits)


def _known_to(toolkit: Toolkit, numbers: Sequence[int]) -> list[int]:
    return [
        one for one in numbers if _first(one) <= toolkit.version and _last(one) > toolkit.version
    ]


def _first(number: int) -> tuple[int, int]:
    """The toolkit that brought a compute capability; llama.cpp itself needs 11.2."""
    for least, version in ((100, (12, 8)), (89, (11, 8)), (86, (11, 1))):
        if number >= least:
            return max(version, (11, 2))
    return (11, 2)


def _last(number: int) -> tuple[int, int]:
    """The first toolkit without it."""
    for below, version in ((35, (11, 0)), (50, (12, 0)), (75, (13, 0))):
        if number < below:
            return version
    return (99, 0)


def _toolkit_for(number: int) -> str:
    if number < 35:
        return f"no CUDA that llama.cpp builds with knows it; {RUNTIME_ADD.of('vulkan')}"
    if number < 50:
        return "install CUDA 11.8 beside it (NVIDIA's cuda-toolkit-11-8), or use Vulkan"
    if number < 75:
        return "install CUDA 12.9 beside it (NVIDIA's cuda-toolkit-12-9), or 11.8"
    major, minor = _first(number)
    return f"install CUDA {major}.{minor} or newer"


def _named(numbers: Sequence[int]) -> str:
    return ", ".join(f"sm_{number}" for number in numbers)


def _rocm(architectures: Sequence[str], tools: BuildTools, common: tuple[str, ...]) -> Recipe:
    targets = [one for one in architectures if one.startswith("gfx")]
    gone = [one for one in targets if one in ROCM_GONE]
    built = [one for one in targets if one not in gone]
    if not built:
        why = f"ROCm has dropped {', '.join(gone)}" if gone else "no AMD card is seen here"
        more = f"{RUNTIME_ADD.of('vulkan')}" if gone else "name a target with --arch gfx906"
        raise RuntimeTrouble(f"{why}; {more}")
    environment = (
        {}
        if tools.rocm is None
        else {
            "HIPCXX": str(tools.rocm / "llvm" / "bin" / "clang"),
            "HIP_PATH": str(tools.rocm),
        }
    )
    notes = tuple(f"{one} is left out: ROCm has dropped it; Vulkan serves it" for one in gone)
    options = ("-DGGML_HIP=ON", f"-DGPU_TARGETS={';'.join(built)}", *common)
    return Recipe(Backend.ROCM, options, environment, notes)


ROCM_GONE: Final = ("gfx701", "gfx803", "gfx900")
"""Targets that ROCm's libraries have no kernels for any more."""
