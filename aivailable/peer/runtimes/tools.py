"""What this machine has to build with. Looks; installs and decides nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from aivailable.peer.runtimes.recipes import BuildTools, Toolkit

CUDA_FOLDERS: Final = ("/usr/local", "/opt")
ROCM_FOLDERS: Final = ("/opt/rocm", "/usr")
INCLUDE_FOLDERS: Final = ("/usr/local/include", "/usr/include")
"""In CMake's order."""
ASK_LIMIT_S: Final = 20.0
TOOLKITS_MAX: Final = 16
_RELEASE = re.compile(r"release (\d+)\.(\d+)")
_COMPLETE = re.compile(
    r"#define VK_HEADER_VERSION (?P<patch>\d+)\b.*?"
    r"#define VK_HEADER_VERSION_COMPLETE \w+\( *(?:0, *)?(?P<major>\d+), *(?P<minor>\d+),",
    re.DOTALL,
)
"""vulkan_core.h, which says its own version near its beginning."""
_HEADER_CHARS: Final = 64 * 1024


def look_around(
    path: str | None = None,
    cuda_folders: Sequence[str] = CUDA_FOLDERS,
    rocm_folders: Sequence[str] = ROCM_FOLDERS,
    include_folders: Sequence[str] = INCLUDE_FOLDERS,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    vulkan_sdk: str | None = None,
) -> BuildTools:
    """`path`: like PATH, None = ours. `vulkan_sdk`: like VULKAN_SDK, None = ours. Runs each nvcc
    once; blocks for up to seconds."""

    def found(*names: str) -> str:
        return next((where for name in names if (where := shutil.which(name, path=path))), "")

    sdk = os.environ.get("VULKAN_SDK", "") if vulkan_sdk is None else vulkan_sdk
    # CMake's FindVulkan looks there first.
    roots = [*([Path(sdk) / "include"] if sdk else []), *map(Path, include_folders)]
    of_sdk = shutil.which("glslc", path=f"{sdk}/bin") if sdk else None
    rocm = next((Path(one) for one in rocm_folders if (Path(one) / "bin" / "hipcc").exists()), None)
    return BuildTools(
        compiler=found("c++", "g++", "clang++"),
        toolkits=tuple(_toolkits(found("nvcc"), cuda_folders)),
        hipcc=str(rocm / "bin" / "hipcc") if rocm else found("hipcc"),
        rocm=rocm,
        glslc=of_sdk or found("glslc"),
        vulkan_sdk=sdk,
        vulkan_headers=next(filter(None, map(_vulkan_headers, roots)), None),
        spirv_headers=any((root / "spirv" / "unified1").exists() for root in roots),
        ensurepip=importlib.util.find_spec("ensurepip") is not None,
        installer=next((name for name in ("apt", "dnf") if found(name)), ""),
        cpu_flags=_flags(cpuinfo),
    )


def _toolkits(nvcc: str, folders: Sequence[str]) -> Iterator[Toolkit]:
    """Each toolkit once, whatever links lead to it."""
    places = [nvcc] if nvcc else []
    for folder in folders:
        places += [str(one) for one in sorted(Path(folder).glob("cuda*/bin/nvcc"))]
    seen: dict[str, None] = {}
    for place in places[:TOOLKITS_MAX]:
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen[real] = None
        version = _version(place)
        if version is not None:
            yield Toolkit(place, version)


def _version(nvcc: str) -> tuple[int, int] | None:
    try:
        told = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    release = _RELEASE.search(told.stdout)
    return None if release is None else (int(release[1]), int(release[2]))


def _vulkan_headers(root: Path) -> tuple[int, int, int] | None:
    """The version of the headers below a folder; (0, 0, 0) when they do not tell it."""
    folder = root / "vulkan"
    if not (folder / "vulkan.h").exists():
        return None
    try:
        with (folder / "vulkan_core.h").open(encoding="utf-8", errors="replace") as file:
            told = _COMPLETE.search(file.read(_HEADER_CHARS))
    except OSError:
        told = None
    return (
        (0, 0, 0) if told is None else (int(told["major"]), int(told["minor"]), int(told["patch"]))
    )


def _flags(cpuinfo: Path) -> tuple[str, ...]:
    """The first processor's; () where there is no such line."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return tuple(line.partition(":")[2].split())
    except OSError:
        return ()
    return ()
