"""What is built for which cards by which tools, and the words for what is missing."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from aivailable.core.state.records import Backend
from aivailable.peer.runtimes.recipes import (
    BESIDE,
    ENGINE,
    BuildTools,
    RuntimeTrouble,
    Toolkit,
    missing,
    recipe,
)
from aivailable.peer.runtimes.tools import look_around

ALL = BuildTools(
    compiler="/usr/bin/c++",
    toolkits=(Toolkit("/usr/local/cuda/bin/nvcc", (12, 8)),),
    hipcc="/opt/rocm/bin/hipcc",
    rocm=Path("/opt/rocm"),
    glslc="/usr/bin/glslc",
    vulkan_headers=(1, 4, 309),
    spirv_headers=True,
    installer="apt",
)
OLD_HEADER = """
#define VK_HEADER_VERSION 239
// Complete version of this file
#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 3, VK_HEADER_VERSION)
"""
CUDA11 = Toolkit("/opt/cuda-11.8/bin/nvcc", (11, 8))
CUDA13 = Toolkit("/usr/local/cuda-13/bin/nvcc", (13, 0))


def test_the_pins_are_the_ones_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert ENGINE in project["optional-dependencies"]["engine"]
    known = [*project["dependencies"], *project["optional-dependencies"]["engine"]]
    assert [one for one in BESIDE if one not in known] == []


def test_old_and_new_cards_share_a_build_where_a_toolkit_knows_both() -> None:
    made = recipe(Backend.CUDA, ("sm_86", "sm_61", "sm_61", ""), ALL)
    assert "-DCMAKE_CUDA_ARCHITECTURES=61;86" in made.options
    assert "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc" in made.options
    assert "-DGGML_NATIVE=OFF" in made.options
    assert made.notes == ()


@pytest.mark.parametrize(
    ("cards", "toolkits", "built", "nvcc", "note"),
    [
        (("sm_52", "sm_61"), (CUDA13, CUDA11), "52;61", CUDA11, ""),
        (("sm_90",), (CUDA13, CUDA11), "90", CUDA13, ""),
        (("sm_37", "sm_86"), (CUDA13, CUDA11), "37;86", CUDA11, ""),
        (("sm_37", "sm_75", "sm_86"), (CUDA13,), "75;86", CUDA13, "cuda-toolkit-11-8"),
        (("sm_61", "sm_86"), (CUDA13,), "86", CUDA13, "cuda-toolkit-12-9"),
        (("61",), (CUDA11,), "61", CUDA11, ""),
    ],
)
def test_the_toolkit_that_knows_most_cards_is_taken(
    cards: tuple[str, ...], toolkits: tuple[Toolkit, ...], built: str, nvcc: Toolkit, note: str
) -> None:
    made = recipe(Backend.CUDA, cards, replace(ALL, toolkits=toolkits))
    assert f"-DCMAKE_CUDA_ARCHITECTURES={built}" in made.options
    assert made.environment["CUDACXX"] == nvcc.nvcc
    assert note in " ".join(made.notes)
    assert bool(made.notes) == bool(note)


@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ((), "--arch 61"),
        (("sm_61",), "CUDA 12.9"),
        (("sm_37",), "CUDA 11.8"),
        (("sm_21",), "runtime add vulkan"),
    ],
)
def test_a_card_that_no_toolkit_here_knows_is_refused(cards: tuple[str, ...], words: str) -> None:
    with pytest.raises(RuntimeTrouble, match=words):
        recipe(Backend.CUDA, cards, replace(ALL, toolkits=(CUDA13,)))


def test_rocm_leaves_out_what_it_has_dropped() -> None:
    made = recipe(Backend.ROCM, ("gfx803", "gfx906", "gfx1100"), ALL)
    assert "-DGPU_TARGETS=gfx1100;gfx906" in made.options
    assert made.environment["HIPCXX"] == "/opt/rocm/llvm/bin/clang"
    assert "gfx803 is left out" in made.notes[0]
    with pytest.raises(RuntimeTrouble, match="runtime add vulkan"):
        recipe(Backend.ROCM, ("gfx803",), ALL)
    with pytest.raises(RuntimeTrouble, match="no AMD card"):
        recipe(Backend.ROCM, (), ALL)


def test_an_old_processor_gets_no_instruction_that_it_lacks() -> None:
    made = recipe(Backend.CPU, (), replace(ALL, cpu_flags=("sse4_2", "avx", "f16c")))
    assert "-DGGML_AVX2=OFF" in made.options
    assert "-DGGML_FMA=OFF" in made.options
    assert "-DGGML_AVX=OFF" not in made.options
    assert "AVX" not in " ".join(recipe(Backend.CPU, (), ALL).options)


@pytest.mark.parametrize(
    ("backend", "lacks", "words"),
    [
        (Backend.CPU, {"compiler": ""}, "sudo apt install g++"),
        (Backend.CPU, {"compiler": "", "installer": "dnf"}, "sudo dnf install gcc-c++"),
        (Backend.CPU, {"ensurepip": False}, "python3-venv"),
        (Backend.CUDA, {"toolkits": ()}, "apt install nvidia-cuda-toolkit"),
        (Backend.ROCM, {"hipcc": ""}, "hipcc"),
        (Backend.VULKAN, {"glslc": ""}, "sudo apt install glslc"),
        (Backend.VULKAN, {"vulkan_headers": None}, "apt install libvulkan-dev"),
        (Backend.VULKAN, {"vulkan_headers": (1, 3, 239)}, "VULKAN_SDK"),
        (Backend.VULKAN, {"spirv_headers": False, "installer": ""}, "dnf install spirv"),
    ],
)
def test_what_is_missing_is_named_with_its_command(
    backend: Backend, lacks: dict[str, object], words: str
) -> None:
    assert missing(backend, ALL, compiles=True) == ()
    (sentence,) = missing(backend, replace(ALL, **lacks), compiles=True)  # type: ignore[arg-type]
    assert words in sentence
    built = missing(backend, replace(ALL, **lacks), compiles=False)  # type: ignore[arg-type]
    assert bool(built) == ("ensurepip" in lacks)


def test_the_machine_is_looked_at(tmp_path: Path) -> None:
    """A PATH with an nvcc behind two links, another toolkit beside it, headers, an old Xeon."""
    folder = tmp_path / "cuda-12.4" / "bin"
    other = tmp_path / "cuda-11.8" / "bin"
    for place, version in ((folder, "12.4"), (other, "11.8")):
        place.mkdir(parents=True)
        nvcc = place / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V'\n")
        nvcc.chmod(0o700)
    (tmp_path / "cuda").symlink_to(tmp_path / "cuda-12.4")
    broken = tmp_path / "cuda-9" / "bin" / "nvcc"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/nonexistent\n")
    broken.chmod(0o700)
    (tmp_path / "include" / "vulkan").mkdir(parents=True)
    (tmp_path / "include" / "vulkan" / "vulkan.h").touch()
    (tmp_path / "include" / "vulkan" / "vulkan_core.h").write_text(OLD_HEADER)
    (tmp_path / "rocm" / "bin").mkdir(parents=True)
    (tmp_path / "rocm" / "bin" / "hipcc").touch()
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx\nflags\t\t: other\n")
    found = look_around(
        str(folder),
        (str(tmp_path),),
        (str(tmp_path / "rocm"),),
        (str(tmp_path / "include"),),
        cpuinfo,
    )
    assert sorted(one.version for one in found.toolkits) == [(11, 8), (12, 4)]
    assert (found.compiler, found.glslc, found.installer) == ("", "", "")
    assert (found.vulkan_headers, found.spirv_headers) == ((1, 3, 239), False)
    assert found.rocm == tmp_path / "rocm"
    assert found.cpu_flags == ("fpu", "sse4_2", "avx")
    assert look_around(str(tmp_path), (), (), (), tmp_path / "none").cpu_flags == ()


def test_an_sdk_of_the_operator_comes_before_the_systems_headers(tmp_path: Path) -> None:
    """Debian 12's are too old; newer ones unpacked beside them are what CMake takes."""
    for place, header in (("usr", OLD_HEADER), ("sdk", OLD_HEADER.replace("3, VK", "4, VK"))):
        folder = tmp_path / place / "include" / "vulkan"
        folder.mkdir(parents=True)
        (folder / "vulkan.h").touch()
        (folder / "vulkan_core.h").write_text(header)
    glslc = tmp_path / "sdk" / "bin" / "glslc"
    glslc.parent.mkdir()
    glslc.touch(0o700)
    system = (str(tmp_path / "usr" / "include"),)
    found = look_around(str(tmp_path), (), (), system, vulkan_sdk=str(tmp_path / "sdk"))
    assert (found.vulkan_headers, found.glslc) == ((1, 4, 239), str(glslc))
    made = recipe(Backend.VULKAN, (), found)
    assert made.environment == {"VULKAN_SDK": str(tmp_path / "sdk")}
    found = look_around(str(tmp_path), (), (), system, vulkan_sdk="")
    assert found.vulkan_headers == (1, 3, 239)
    assert recipe(Backend.VULKAN, (), found).environment == {}
    (tmp_path / "usr" / "include" / "vulkan" / "vulkan_core.h").write_text("no version")
    assert look_around(str(tmp_path), (), (), system, vulkan_sdk="").vulkan_headers == (0, 0, 0)
