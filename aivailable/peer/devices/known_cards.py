"""What the kernel does not say of cards that matter here: names, AMD targets, integrated GPUs.

Owns a table by PCI vendor and device id (from the PCI ID database and Linux's amdgpu_drv.c and
i915/xe pciids). A card that is not in it is used all the same: it costs a nice name, and the AMD
target when KFD does not tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

AMD, INTEL, NVIDIA = 0x1002, 0x8086, 0x10DE
VENDORS: Mapping[int, str] = {AMD: "amd", INTEL: "intel", NVIDIA: "nvidia"}


@dataclass(frozen=True, slots=True)
class Known:
    name: str
    architecture: str = ""
    """LLVM target of an AMD card."""
    integrated: bool = False


_AMD: Mapping[int, Known] = {
    0x67B0: Known("Radeon R9 290X/390X", "gfx701"),
    0x67B1: Known("Radeon R9 290/390", "gfx701"),
    0x7300: Known("Radeon R9 Fury/Nano", "gfx803"),
    0x67DF: Known("Radeon RX 470/480/570/580", "gfx803"),
    0x6FDF: Known("Radeon RX 580 2048SP", "gfx803"),
    0x67EF: Known("Radeon RX 460/560", "gfx803"),
    0x67FF: Known("Radeon RX 550/560", "gfx803"),
    0x6860: Known("Radeon Instinct MI25", "gfx900"),
    0x687F: Known("Radeon RX Vega 56/64", "gfx900"),
    0x66A0: Known("Radeon Instinct MI50/MI60", "gfx906"),
    0x66A1: Known("Radeon Instinct MI50/MI60", "gfx906"),
    0x66AF: Known("Radeon VII", "gfx906"),
    0x738C: Known("Instinct MI100", "gfx908"),
    0x731F: Known("Radeon RX 5600/5700", "gfx1010"),
    0x73BF: Known("Radeon RX 6800/6900", "gfx1030"),
    0x73DF: Known("Radeon RX 6700", "gfx1031"),
    0x73FF: Known("Radeon RX 6600", "gfx1032"),
    0x744C: Known("Radeon RX 7900", "gfx1100"),
    0x747E: Known("Radeon RX 7700/7800", "gfx1101"),
    0x7480: Known("Radeon RX 7600", "gfx1102"),
    0x15DD: Known("Radeon Vega (Raven)", "gfx902", integrated=True),
    0x15D8: Known("Radeon Vega (Picasso)", "gfx902", integrated=True),
    0x1636: Known("Radeon Vega (Renoir)", "gfx90c", integrated=True),
    0x1638: Known("Radeon Vega (Cezanne)", "gfx90c", integrated=True),
    0x1681: Known("Radeon 680M", "gfx1035", integrated=True),
    0x164E: Known("Radeon Graphics (Raphael)", "gfx1036", integrated=True),
    0x15BF: Known("Radeon 780M", "gfx1103", integrated=True),
    0x150E: Known("Radeon 890M", "gfx1150", integrated=True),
}
_INTEL: Mapping[int, Known] = {
    0x56A0: Known("Arc A770"),
    0x56A1: Known("Arc A750"),
    0x56A2: Known("Arc A580"),
    0x56A5: Known("Arc A380"),
    0x56A6: Known("Arc A310"),
    0xE20B: Known("Arc B580"),
    0xE20C: Known("Arc B570"),
}
_BY_VENDOR: Mapping[int, Mapping[int, Known]] = {AMD: _AMD, INTEL: _INTEL, NVIDIA: {}}


def known(vendor: int, device: int) -> Known:
    """What is known of the card; at least a name that says where to look it up."""
    found = _BY_VENDOR.get(vendor, {}).get(device)
    brand = {"amd": "AMD", "intel": "Intel", "nvidia": "NVIDIA"}.get(VENDORS.get(vendor, ""), "")
    if found is None:
        return Known(f"{brand or 'unknown'} GPU {vendor:04x}:{device:04x}")
    return Known(f"{brand} {found.name}", found.architecture, found.integrated)
