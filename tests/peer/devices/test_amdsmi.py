"""AMD's real package `amdsmi` over a compiled stand-in library: old cards, missing fields, faults.

The child loads the stand-in through the real package, by LD_LIBRARY_PATH; nothing is patched.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures import kernel_cards as tree
from fixtures.kernel_cards import GIB, add
from fixtures.nvml_cards import COMPILER, ROOT

SPEC = importlib.util.find_spec("amdsmi")
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler for the stand-in library"),
    pytest.mark.skipif(SPEC is None, reason="AMD's package amdsmi is not installed"),
]
SOURCE = Path(__file__).with_name("amdsmi_standin.c")
CHILD = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from aivailable.peer.devices import SystemDevices
from aivailable.peer.devices.offload import Offered, Offload
from aivailable.peer.devices.sysfs import KernelCards
from aivailable.core.state.records import Backend

async def offload():
    return Offload(False, "x", tuple(
        Offered(Backend.VULKAN, index, f"0000:{bus:02x}:00.0", "x", 0)
        for index, bus in enumerate(range(3, 7))))

class Nothing:
    def open(self): return "no NVIDIA GPU to be seen"
    def close(self): pass

devices = SystemDevices((), dict, offload=offload, environment={}, nvml=Nothing(),
                        kernel=KernelCards(Path(sys.argv[1])))
asyncio.run(devices.look())
before = [dataclasses.asdict(one) for one in devices.load()]
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps({
    "gpus": [[one.name, one.architecture, one.total_bytes, one.link_width, one.seen_by]
             for one in devices.gpus],
    "before": before,
    "after": [dataclasses.asdict(one) for one in devices.load()],
    "problems": devices.inventory("n1").problems,
}), flush=True)
devices.close()
"""
RX580 = f"card pci=3 total={8 * GIB} used={GIB} busy=40 celsius=61 watts=120 width=8 gfx=803"
VEGA64 = f"card pci=4 total={8 * GIB} used=0 hotspot=70 busy=!2 watts=!2 width=16 gfx=900"
MI50 = f"card pci=5 total={16 * GIB} used={4 * GIB} busy=0 celsius=38 gfx=906"
RX7900 = f"card pci=6 total={24 * GIB} used={GIB} busy=100 celsius=50 width=16 gfx=1100"
FLEET = (
    f"{RX580} name=Radeon RX 580 Series",
    f"{VEGA64} name=Radeon RX Vega 64",
    f"{MI50} name=AMD Instinct MI50",
    f"{RX7900} name=Radeon RX 7900 XTX",
)


@pytest.fixture(scope="module")
def package() -> str:
    assert SPEC is not None
    assert SPEC.origin is not None
    return str(Path(SPEC.origin).parent)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, package: str) -> Path:
    return compiled(tmp_path_factory.mktemp("amdsmi"), package)


def compiled(folder: Path, package: str, *without: str) -> Path:
    """The folder with a libamd_smi.so that has what the package binds, but for `without`."""
    text = (Path(package) / "amdsmi_wrapper.py").read_text(encoding="utf-8")
    bound = sorted(set(re.findall(r"_libraries\['libamd_smi.so'\]\.(\w+)", text)))
    written = set(re.findall(r"^int (amdsmi_\w+)\(", SOURCE.read_text(), re.MULTILINE))
    stubs = [name for name in bound if name not in written and name not in without]
    lines = [f"int {name}(void) {{ return 2; }}" for name in stubs]
    (folder / "stubs.h").write_text("\n".join((*lines, "")))
    assert COMPILER is not None
    command = [COMPILER, "-shared", "-fPIC", "-O0", "-I", str(folder)]
    target = str(folder / "libamd_smi.so")
    subprocess.run([*command, "-o", target, str(SOURCE)], check=True)
    return folder


def look(
    tmp_path: Path,
    library: Path,
    *lines: str,
    then: tuple[str, ...] | None = None,
    gone: str = "",
) -> dict[str, Any]:
    """What the inventory tells of the four cards that the kernel shows; `then`: the script of the
    second reading, `gone`: the card that the kernel has lost by then."""
    for bus, card in enumerate((tree.RX580, tree.VEGA64, tree.MI50, tree.RX7900), 3):
        add(tmp_path / "sys", f"0000:{bus:02x}:00.0", card)
    script = tmp_path / "script"
    script.write_text("\n".join((*lines, "")))
    paths = os.pathsep.join((str(ROOT), *sys.path))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "sys")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **{key: text for key, text in os.environ.items() if not key.startswith("ROCM")},
            "LD_LIBRARY_PATH": str(library),
            "AMDSMI_SCRIPT": str(script),
            "PYTHONPATH": paths,
        },
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    if then is not None:
        script.write_text("\n".join((*then, "")))
    if gone:
        (tmp_path / "sys" / "bus" / "pci" / "devices" / gone / "mem_info_vram_total").unlink()
    output, _ = child.communicate("\n", timeout=60)
    answer: dict[str, Any] = json.loads(output)
    return answer


def test_four_cards_are_told_by_both_and_joined(tmp_path: Path, library: Path) -> None:
    seen = look(tmp_path, library, *FLEET)
    assert seen["gpus"] == [
        ["Radeon RX 580 Series", "gfx803", 8 * GIB, 8, ["sysfs", "amdsmi", "llama.cpp"]],
        ["Radeon RX Vega 64", "gfx900", 8 * GIB, 8, ["sysfs", "amdsmi", "llama.cpp"]],
        ["AMD Instinct MI50", "gfx906", 16 * GIB, 8, ["sysfs", "amdsmi", "llama.cpp"]],
        ["Radeon RX 7900 XTX", "gfx1100", 24 * GIB, 8, ["sysfs", "amdsmi", "llama.cpp"]],
    ]
    assert [one["free_bytes"] // GIB for one in seen["before"]] == [7, 8, 12, 23]
    # Vega has no sensor at the edge; what the package does not tell of it, the kernel does.
    assert [one["temperature_c"] for one in seen["before"]] == [61.0, 70.0, 38.0, 50.0]
    assert [one["utilization"] for one in seen["before"]] == [0.5, 0.5, 0.5, 1.0]


def test_a_card_that_stops_answering_is_read_from_the_kernel(tmp_path: Path, library: Path) -> None:
    lost = (FLEET[0], "card pci=4 all=!31 name=x", *FLEET[2:])
    seen = look(tmp_path, library, *FLEET, then=lost)
    assert [one["free_bytes"] // GIB for one in seen["after"]] == [7, 6, 12, 23]


def test_a_card_that_falls_off_the_bus_has_nothing_free(tmp_path: Path, library: Path) -> None:
    """amdsmi goes on telling what it knew; the kernel knows that the card is gone."""
    seen = look(tmp_path, library, *FLEET, then=FLEET, gone="0000:04:00.0")
    assert [one["free_bytes"] // GIB for one in seen["after"]] == [7, 0, 12, 23]
    assert "is lost" in seen["problems"][-1]


@pytest.mark.parametrize("fault", ["absent", "old", "driver", "silent"])
def test_without_a_working_library_the_kernel_tells(
    tmp_path: Path, library: Path, package: str, fault: str
) -> None:
    """It prints and raises KeyError without its library, AttributeError with an older one."""
    lines: tuple[str, ...] = FLEET
    if fault == "absent":
        library = tmp_path / "empty"
    elif fault == "old":
        library = tmp_path / "old"
        library.mkdir()
        compiled(library, package, "amdsmi_get_gpu_kfd_info")
    elif fault == "driver":
        lines = ("init=!34", *FLEET)
    else:
        lines = ("card all=!2 name=x",)
    seen = look(tmp_path, library, *lines)
    assert [one[4] for one in seen["gpus"]] == [["sysfs", "llama.cpp"]] * 4
    assert seen["gpus"][0][0] == "AMD Radeon RX 470/480/570/580"
    assert [one["free_bytes"] // GIB for one in seen["before"]] == [6, 6, 12, 18]
