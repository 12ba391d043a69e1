"""One device for each GPU, whoever saw it: the join, its verdicts, and what doctor says of them."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import kernel_cards as tree
from fixtures.kernel_cards import GIB, add

from aivailable.core.state.records import Backend
from aivailable.peer.devices import SystemDevices
from aivailable.peer.devices.gpus import UNUSABLE, join, remedy
from aivailable.peer.devices.nvml import Card, CardReading, Nvml
from aivailable.peer.devices.offload import Offered, Offload, probe
from aivailable.peer.devices.sysfs import KernelCards
from aivailable.peer.doctor.findings import CheckVerdict
from aivailable.peer.doctor.verdicts import _gpu
from aivailable.peer.runtimes import Interpreters, Runtime
from aivailable.peer.runtimes.interpreters import write_record

PASCAL = Card(0, "0000:01:00.0", "GTX 1080 Ti", 11 * GIB, "sm_61", "00000000:01:00.0", 16)
KEPLER = Card(1, "0000:02:00.0", "Tesla K80", 12 * GIB, "sm_37", "00000000:02:00.0", 16)
CPU_ONLY = Offload(False, "this llama-cpp-python build runs on the CPU only")


class Scripted(Nvml):
    """NVML with these cards, each with 1 GiB in use."""

    def __init__(self, *cards: Card) -> None:
        super().__init__(object())
        self._found = cards

    def open(self) -> str:
        return "" if self._found else "no NVIDIA GPU to be seen: NVML Shared Library Not Found"

    def driver(self) -> str:
        return "470.256"

    def cards(self) -> tuple[tuple[Card, ...], tuple[str, ...]]:
        return self._found, ()

    def read(self, card: Card) -> CardReading:
        return CardReading(card.total_bytes - GIB, 0.0, None)


def answering(offload: Offload) -> Callable[[], Awaitable[Offload]]:
    async def answer() -> Offload:
        return offload

    return answer


async def look(root: Path, offload: Offload, *cards: Card) -> SystemDevices:
    devices = SystemDevices(
        (),
        dict,
        nvml=Scripted(*cards),
        kernel=KernelCards(root),
        offload=answering(offload),
        environment={},
    )
    await devices.look()
    return devices


def offered(backend: Backend, index: int, device_id: str, **changes: Any) -> Offered:
    return Offered(backend, index, device_id, f"llama's name {index}", 8 * GIB, **changes)


async def test_a_gpu_seen_by_three_is_one_device(tmp_path: Path) -> None:
    add(tmp_path, "0000:01:00.0", tree.NOUVEAU, driver="nvidia")
    add(tmp_path, "0000:03:00.0", tree.RX580)
    build = Offload(
        True,
        offered=(
            offered(Backend.CUDA, 0, "0000:01:00.0"),
            offered(Backend.VULKAN, 0, "0000:03:00.0"),
            offered(Backend.VULKAN, 1, "0000:01:00.0"),
        ),
    )
    devices = await look(tmp_path, build, PASCAL)
    found = devices.inventory("n1")
    assert [(one.device_id, one.backend, one.index, one.vendor) for one in found.devices] == [
        ("0000:01:00.0", Backend.CUDA, 0, "nvidia"),
        ("0000:03:00.0", Backend.VULKAN, 0, "amd"),
    ]
    assert found.problems == ()
    assert devices.gpus[0].seen_by == ("NVML", "sysfs", "llama.cpp")
    assert [one.free_bytes // GIB for one in devices.load()] == [10, 6]
    assert devices.load()[1].temperature_c == 71.0
    assert devices.load()[1].power_w == 120.0


async def test_cuda_indexes_are_llamas_own(tmp_path: Path) -> None:
    """A build that lacks the first card's architecture counts the second one as its first."""
    build = Offload(True, offered=(offered(Backend.CUDA, 0, "0000:02:00.0"),))
    found = (await look(tmp_path, build, PASCAL, KEPLER)).inventory("n1")
    assert [(one.name, one.index) for one in found.devices] == [("Tesla K80", 0)]
    assert "llama.cpp does not list it" in found.problems[0]


async def test_an_integrated_gpu_is_neither_device_nor_fault(tmp_path: Path) -> None:
    add(tmp_path, "0000:00:02.0", tree.UHD)
    add(tmp_path, "0000:03:00.0", tree.ARC)
    build = Offload(
        False,
        "this llama-cpp-python build has another GPU backend than CUDA",
        (
            offered(Backend.VULKAN, 0, "0000:00:02.0", integrated=True),
            offered(Backend.VULKAN, 1, "0000:03:00.0"),
        ),
    )
    devices = await look(tmp_path, build)
    (arc,) = devices.inventory("n1").devices
    assert (arc.name, arc.index, arc.total_bytes) == ("Intel Arc A770", 1, 8 * GIB)
    assert devices.load()[0].free_bytes == 8 * GIB
    checks = [_gpu(gpu) for gpu in devices.gpus]
    assert [check.verdict for check in checks] == [CheckVerdict.SKIPPED, CheckVerdict.OK]
    assert "shares the main memory" in checks[0].found
    assert "usable through vulkan" in checks[1].found


async def test_a_lost_amd_card_has_nothing_free(tmp_path: Path) -> None:
    folder = add(tmp_path, "0000:03:00.0", tree.MI50)
    devices = await look(tmp_path, Offload(False, "x", (offered(Backend.ROCM, 0, "0000:03:00.0"),)))
    (folder / "mem_info_vram_total").unlink()
    assert devices.load()[0].free_bytes == 0
    assert "is lost" in devices.inventory("n1").problems[-1]


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (tree.NOUVEAU, "kernel module: nouveau"),
        (tree.IDLE, "no kernel driver has taken it"),
        (tree.RX580, "runs on the CPU only"),
    ],
)
async def test_doctor_says_why_a_card_is_idle(
    tmp_path: Path, card: dict[str, Any], words: str
) -> None:
    add(tmp_path, "0000:03:00.0", card)
    devices = await look(tmp_path, CPU_ONLY)
    (gpu,) = devices.gpus
    check = _gpu(gpu)
    assert check.verdict is CheckVerdict.WARNING
    assert words in check.found
    assert "seen by sysfs" in check.found
    assert check.advice == gpu.remedy != ""
    assert words in devices.inventory("n1").problems[-1]


@pytest.mark.parametrize(
    ("vendor", "architecture", "words"),
    [
        ("nvidia", "sm_37", ("-DCMAKE_CUDA_ARCHITECTURES=37", "needs CUDA 11,", "GGML_VULKAN")),
        ("nvidia", "sm_52", ("ARCHITECTURES=52", "CUDA 13 has dropped sm_52")),
        ("nvidia", "sm_61", ("ARCHITECTURES=61", "CUDA 13 has dropped sm_61")),
        ("nvidia", "sm_86", ("ARCHITECTURES=86", "runtime add cuda")),
        ("nvidia", "sm_90", ("ARCHITECTURES=90",)),
        ("nvidia", "sm_21", ("GGML_VULKAN",)),
        ("nvidia", "", ("-DGGML_CUDA=on",)),
        ("amd", "gfx803", ("GGML_VULKAN", "dropped gfx803")),
        ("amd", "gfx900", ("GGML_VULKAN", "dropped gfx900")),
        ("amd", "gfx906", ("GGML_HIP", "GPU_TARGETS=gfx906", "ROCm 6.3", "GGML_VULKAN")),
        ("amd", "gfx1100", ("GGML_HIP", "GPU_TARGETS=gfx1100")),
        ("intel", "", ("GGML_VULKAN",)),
    ],
)
def test_the_command_fits_the_card(vendor: str, architecture: str, words: tuple[str, ...]) -> None:
    text = remedy(vendor, architecture)
    assert [word for word in words if word not in text] == []
    assert ("CUDA 1" in text) == (architecture in ("sm_37", "sm_52", "sm_61"))


def test_what_has_no_pci_id_is_never_counted_twice() -> None:
    hidden = Card(0, "cuda0", "GTX 970", 4 * GIB, "sm_52")
    nameless = (offered(Backend.VULKAN, 0, ""), offered(Backend.VULKAN, 1, ""))
    (gpu,) = join((hidden,), "", (), Offload(True, offered=(offered(Backend.CUDA, 0, "x"),)))
    assert (gpu.device_id, gpu.offered is not None) == ("cuda0", True)
    (gpu,) = join((PASCAL,), "", (), Offload(False, "x", nameless[:1]))
    assert gpu.offered == nameless[0]
    assert [
        gpu.offered for gpu in join((PASCAL, KEPLER), "", (), Offload(False, "x", nameless))
    ] == [None, None]
    assert [gpu.device_id for gpu in join((), "", (), Offload(False, "x", nameless))] == [
        "vulkan0", "vulkan1",
    ]  # fmt: skip


async def test_vulkan_on_the_cpu_is_no_card_and_says_so(tmp_path: Path) -> None:
    """The operator's number 0 was the card, until its driver was gone: never in its place."""
    add(tmp_path, "0000:03:00.0", tree.RX580)
    lavapipe = Offered(Backend.VULKAN, 0, "", "llvmpipe (LLVM 15.0.6, 256 bits)", 8 * GIB)
    devices = await look(tmp_path, Offload(False, "x", (lavapipe,)))
    found = devices.inventory("n1")
    (device,) = found.devices
    assert (device.device_id, device.vendor, device.total_bytes) == ("vulkan0", "cpu", 8 * GIB)
    assert [problem for problem in found.problems if "computes on the CPU" in problem]
    assert [problem for problem in found.problems if UNUSABLE in problem]


async def test_a_runtime_for_gpus_is_asked_also_where_no_card_is_seen(tmp_path: Path) -> None:
    """Not every GPU is on the PCI bus."""
    home = tmp_path / "home"
    for backend in (Backend.CPU, Backend.VULKAN):
        devices = SystemDevices(
            (), dict, nvml=Scripted(), kernel=KernelCards(tmp_path), runtimes=Interpreters(home),
            offload=answering(Offload(False, "x", (offered(Backend.VULKAN, 0, ""),))),
        )  # fmt: skip
        await devices.look()
        assert [one.device_id for one in devices.inventory("n1").devices] == []
        path = home / "runtimes" / backend.value
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        (path / "lib" / version / "site-packages").mkdir(parents=True)
        write_record(path, Runtime(backend, path, version, "0.3.36", 0))
    await devices.look()
    assert [one.device_id for one in devices.inventory("n1").devices] == ["vulkan0"]


async def test_the_list_is_read_from_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    path = tmp_path / "python"
    lines = (
        "offload Vulkan : x",
        "device\tVulkan0\t0000:03:00.0\tAMD Radeon RX 580\t1\t8589934592",
        "device\tVulkan1\t\tIntel UHD\t2\t1024",
        "device\tVulkan2\tshort",
        "device\tBLAS\t\tBLAS\t1\t0",
    )
    path.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\nexit 139\n")
    path.chmod(0o700)
    answer = await probe(str(path))
    assert (answer.cuda, "another GPU backend" in answer.reason) == (False, True)
    assert answer.offered == (
        Offered(
            Backend.VULKAN, 0, "0000:03:00.0", "AMD Radeon RX 580", 8 * GIB, build=answer.build
        ),
        Offered(Backend.VULKAN, 1, "", "Intel UHD", 1024, integrated=True, build=answer.build),
    )
    assert answer.build == "offload Vulkan : x"
