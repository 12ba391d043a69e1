"""GPUs as the kernel shows them: amdgpu, i915, xe, and cards that no driver has taken.

Owns the reading of /sys (bus/pci/devices, hwmon, the KFD topology). Needs no library and no right.
Only memory on the card counts: GTT is main memory, and an integrated GPU has nothing else, so no
byte is counted twice. Each file that is missing costs its field. Must not decide whether a card can
be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aivailable.peer.devices.known_cards import AMD, INTEL, VENDORS, known
from aivailable.peer.devices.nvml import CARDS_MAX, TEXT_MAX_CHARS, CardReading

SYS: Final = Path("/sys")
FILE_MAX_CHARS: Final = 4096
FOLDERS_MAX: Final = 4096
"""Entries of one folder of /sys that are looked at."""
DISPLAY_CLASSES: Final = ("0x03", "0x1200")
"""PCI display controllers, and processing accelerators."""


@dataclass(frozen=True, slots=True)
class KernelCard:
    """One GPU of /sys. `total_bytes` is memory on the card, 0 where the kernel does not say."""

    device_id: str
    """PCI id, as in "0000:03:00.0"."""
    vendor: str
    """amd | intel | nvidia"""
    name: str
    total_bytes: int
    architecture: str
    """LLVM target of an AMD card ("gfx906"), else ""."""
    driver: str
    """Kernel module that drives it; "" when none does."""
    integrated: bool
    """It shares the main memory."""
    link_width: int
    """PCIe lanes in use; 0 where the kernel does not say."""


class KernelCards:
    """The cards below a root like /sys: find once, read often."""

    def __init__(self, root: Path = SYS) -> None:
        self._root = root
        self._devices = root / "bus" / "pci" / "devices"

    def cards(self) -> tuple[KernelCard, ...]:
        """Every GPU of a vendor that we know, by PCI id."""
        topology = dict(self._topology())
        found = []
        for folder in _entries(self._devices):
            vendor = _number(folder / "vendor", 16)
            if vendor is None or vendor not in VENDORS:
                continue
            if _text(folder / "class").startswith(DISPLAY_CLASSES):
                found.append(_card(folder, vendor, topology.get(folder.name, {})))
        return tuple(found[:CARDS_MAX])

    def read(self, card: KernelCard) -> CardReading:
        """Live figures, each on its own."""
        folder = self._devices / card.device_id
        total = _number(folder / "mem_info_vram_total")
        used = _number(folder / "mem_info_vram_used")
        busy = _number(folder / "gpu_busy_percent")
        lost = "" if card.total_bytes == 0 or total else "the kernel does not show it any more"
        return CardReading(
            free_bytes=None if total is None or used is None else max(0, total - used),
            utilization=min(1.0, (busy or 0) / 100.0),
            temperature_c=_sensor(folder, ("temp1_input",), 1000.0),
            power_w=_sensor(folder, ("power1_average", "power1_input"), 1_000_000.0),
            lost=lost,
        )

    def _topology(self) -> Iterator[tuple[str, Mapping[str, int]]]:
        """The GPUs of AMD's compute driver by PCI id. `location_id` is bus, device, function as
        PCI packs them (kfd_topology.c)."""
        nodes = self._root / "class" / "kfd" / "kfd" / "topology" / "nodes"
        for node in _entries(nodes):
            properties: dict[str, int] = {}
            for line in _text(node / "properties").splitlines():
                key, _, value = line.partition(" ")
                if value.strip().isdecimal():
                    properties[key] = int(value)
            place = properties.get("location_id", 0)
            if properties.get("simd_count", 0) and place:
                bus, device, function = place >> 8 & 0xFF, place >> 3 & 0x1F, place & 7
                domain = properties.get("domain", 0)
                yield f"{domain:04x}:{bus:02x}:{device:02x}.{function}", properties


def _card(folder: Path, vendor: int, topology: Mapping[str, int]) -> KernelCard:
    about = known(vendor, _number(folder / "device", 16) or 0)
    return KernelCard(
        device_id=folder.name,
        vendor=VENDORS[vendor],
        name=_text(folder / "product_name")[:TEXT_MAX_CHARS] or about.name,
        total_bytes=_number(folder / "mem_info_vram_total") or 0,
        architecture=_target(topology.get("gfx_target_version", 0)) or about.architecture,
        driver=_driver(folder),
        integrated=about.integrated
        # Intel's integrated GPU is part of the root complex, a card is behind a bridge.
        or (vendor == INTEL and folder.name.startswith("0000:00:"))
        # An APU's node has cores and shaders.
        or (vendor == AMD and topology.get("cpu_cores_count", 0) > 0),
        link_width=_number(folder / "current_link_width") or 0,
    )


def _target(version: int) -> str:
    """KFD's gfx_target_version: 90006 is gfx906, 90010 is gfx90a, 110000 is gfx1100."""
    if version <= 0:
        return ""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _driver(folder: Path) -> str:
    for line in _text(folder / "uevent").splitlines():
        key, _, value = line.partition("=")
        if key == "DRIVER":
            return value[:TEXT_MAX_CHARS]
    return ""


def _sensor(folder: Path, names: tuple[str, ...], unit: float) -> float | None:
    """The first of these that a hardware monitor of the card has."""
    for monitor in _entries(folder / "hwmon"):
        for name in names:
            value = _number(monitor / name)
            if value is not None:
                return value / unit
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:FOLDERS_MAX]
    except OSError:
        return []


def _text(path: Path) -> str:
    """A small file's text; "" when it is not there or the driver refuses to say."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(FILE_MAX_CHARS).strip()
    except OSError:
        return ""


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(_text(path), base)
    except ValueError:
        return None
