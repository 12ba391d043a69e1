"""GPUs as the kernel shows them, in scripted trees: AMD and Intel, cards and integrated ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures import kernel_cards as tree
from fixtures.kernel_cards import GIB, add, write

from aivailable.peer.devices.sysfs import KernelCards


@pytest.mark.parametrize(
    ("card", "name", "architecture", "gib"),
    [
        (tree.RX580, "AMD Radeon RX 470/480/570/580", "gfx803", 8),
        (tree.VEGA64, "AMD Radeon RX Vega 56/64", "gfx900", 8),
        (tree.MI50, "AMD INSTINCT MI50", "gfx906", 16),
        (tree.RX7900, "AMD Radeon RX 7900", "gfx1100", 24),
    ],
)
def test_an_amd_card(
    tmp_path: Path, card: dict[str, Any], name: str, architecture: str, gib: int
) -> None:
    add(tmp_path, "0000:03:00.0", card)
    kernel = KernelCards(tmp_path)
    (found,) = kernel.cards()
    assert (found.device_id, found.vendor, found.name) == ("0000:03:00.0", "amd", name)
    assert (found.architecture, found.total_bytes) == (architecture, gib * GIB)
    assert (found.driver, found.integrated, found.link_width) == ("amdgpu", False, 8)
    reading = kernel.read(found)
    assert reading.free_bytes == gib * GIB * 3 // 4
    assert (reading.utilization, reading.temperature_c, reading.power_w) == (0.5, 71.0, 120.0)
    assert reading.lost == ""


def test_the_target_is_known_without_the_compute_driver(tmp_path: Path) -> None:
    add(tmp_path, "0000:03:00.0", tree.MI50)
    shutil.rmtree(tmp_path / "class")
    (found,) = KernelCards(tmp_path).cards()
    assert found.architecture == "gfx906"


def test_what_is_integrated_is_recognised_and_brings_no_shared_memory(tmp_path: Path) -> None:
    add(tmp_path, "0000:00:02.0", tree.UHD)
    add(tmp_path, "0000:03:00.0", tree.ARC)
    add(tmp_path, "0000:06:00.0", tree.APU)
    found = KernelCards(tmp_path).cards()
    assert [(one.device_id, one.integrated) for one in found] == [
        ("0000:00:02.0", True), ("0000:03:00.0", False), ("0000:06:00.0", True),
    ]  # fmt: skip
    assert [one.total_bytes for one in found] == [0, 0, GIB // 2]
    assert found[1].name == "Intel Arc A770"
    assert found[2].architecture == "gfx90c"


def test_each_file_that_is_missing_or_odd_costs_its_field(tmp_path: Path) -> None:
    folder = add(tmp_path, "0000:03:00.0", tree.RX580, device=0x1234)
    shutil.rmtree(folder / "hwmon")
    write(folder / "current_link_width", "Unknown")
    (folder / "gpu_busy_percent").unlink()
    kernel = KernelCards(tmp_path)
    (found,) = kernel.cards()
    assert (found.name, found.link_width) == ("AMD GPU 1002:1234", 0)
    reading = kernel.read(found)
    assert (reading.utilization, reading.temperature_c, reading.power_w) == (0.0, None, None)
    assert reading.free_bytes == 6 * GIB


def test_a_card_that_goes_is_lost_and_comes_back(tmp_path: Path) -> None:
    folder = add(tmp_path, "0000:03:00.0", tree.RX580)
    kernel = KernelCards(tmp_path)
    (found,) = kernel.cards()
    before = kernel.read(found)
    shutil.rmtree(folder)
    assert kernel.read(found).lost
    assert kernel.read(found).free_bytes is None
    add(tmp_path, "0000:03:00.0", tree.RX580)
    assert kernel.read(found) == before


def test_only_gpus_of_known_vendors_are_told(tmp_path: Path) -> None:
    add(tmp_path, "0000:01:00.0", tree.NOUVEAU)
    add(tmp_path, "0000:02:00.0", {"vendor": 0x8086, "device": 1, "class": "0x020000"})
    add(tmp_path, "0000:03:00.0", {"vendor": 0x1A03, "device": 0x2000})
    add(tmp_path, "0000:04:00.0", tree.IDLE)
    assert [(one.vendor, one.driver) for one in KernelCards(tmp_path).cards()] == [
        ("nvidia", "nouveau"), ("amd", ""),
    ]  # fmt: skip


def test_a_machine_without_sysfs_has_none(tmp_path: Path) -> None:
    assert KernelCards(tmp_path / "none").cards() == ()
