"""One GPU, whoever saw it: driver, kernel and llama.cpp joined by PCI id, with a verdict.

Owns the join, which backend serves a GPU, why none does, and what would. Pure: reads nothing.
Doctor shows its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aivailable.advice import RUNTIME_ADD, UP_CPU
from aivailable.core.state.records import Backend
from aivailable.peer.devices.amd import AmdCard
from aivailable.peer.devices.nvml import Card
from aivailable.peer.devices.offload import Offered, Offload
from aivailable.peer.devices.sysfs import KernelCard
from aivailable.peer.devices.trial_cache import TrialVerdict

GIB = 2**30
NVML, KERNEL, AMD_SMI, LLAMA = "NVML", "sysfs", "amdsmi", "llama.cpp"
PREFERENCE = (Backend.CUDA, Backend.ROCM, Backend.VULKAN)
"""The faster first, when a build offers a card by several."""
VULKAN = f"{RUNTIME_ADD.of('vulkan')} (GGML_VULKAN)"
"""It builds llama-cpp-python for one backend beside what is there (peer.runtimes)."""
UNUSABLE = "is here, but cannot be used"
SHARED = f"{UP_CPU} lends some of the main memory"
_VENDOR_OF = {Backend.CUDA: "nvidia", Backend.ROCM: "amd"}
_ROCM_GONE = ("gfx701", "gfx803", "gfx900")
_ROCM_NEEDS: Mapping[str, str] = {
    "gfx906": "needs ROCm 6.3 or older",
    "gfx908": "needs ROCm",
    "gfx90a": "needs ROCm",
    "gfx1030": "needs ROCm",
    "gfx1100": "needs ROCm",
    "gfx1101": "needs ROCm",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of this machine."""

    device_id: str
    name: str
    vendor: str
    total_bytes: int
    """0 where nobody says."""
    architecture: str = ""
    driver: str = ""
    link_width: int = 0
    """PCIe lanes in use; 0 where nobody says."""
    integrated: bool = False
    seen_by: tuple[str, ...] = ()
    """Of NVML, sysfs, amdsmi and llama.cpp."""
    card: Card | None = None
    amd: AmdCard | None = None
    kernel: KernelCard | None = None
    offers: tuple[Offered, ...] = ()
    """By which backends llama.cpp lists it, the faster first."""
    offered: Offered | None = None
    """How llama.cpp uses it; None when it cannot."""
    tried: tuple[tuple[Backend, TrialVerdict], ...] = ()
    """What came of the trials, in the order of `offers`; empty when none was made."""
    obstacle: str = ""
    """Why it cannot be used; "" when it can."""
    remedy: str = ""
    """What would make it usable: mostly a command line."""


def join(
    cards: Sequence[Card],
    driver: str,
    kernel: Sequence[KernelCard],
    offload: Offload,
    amd: Sequence[AmdCard] = (),
) -> tuple[Gpu, ...]:
    """Every GPU once, by PCI id. `driver`: NVIDIA's version. What only amdsmi knows is none."""
    by_amd = {one.device_id: one for one in amd}
    by_card = {card.device_id: card for card in cards}
    # A driver that hides the PCI id leaves no way to tell whether the kernel means the same card.
    hidden = any(not card.bus_id for card in cards)
    by_kernel = {
        one.device_id: one
        for one in kernel
        if not (hidden and one.vendor == "nvidia" and one.device_id not in by_card)
    }
    real = [key for key in {**by_card, **by_kernel} if not _shared(by_kernel.get(key))]
    by_offer = _by_id(cards, real, offload)
    return tuple(
        _judged(
            _told(
                key,
                by_card.get(key),
                by_kernel.get(key),
                by_amd.get(key),
                by_offer.get(key, ()),
                driver,
            ),
            offload,
        )
        for key in sorted({**by_card, **by_kernel, **by_offer})
    )


def _shared(kernel: KernelCard | None) -> bool:
    return kernel is not None and kernel.integrated


def _by_id(
    cards: Sequence[Card], real: Sequence[str], offload: Offload
) -> dict[str, tuple[Offered, ...]]:
    """The offers for each GPU, the preferred one first. What CUDA offers without a PCI id is the
    n-th card of NVML, whose order it follows; a single one of another backend is the only GPU
    without an offer. Any other would count a card twice and is left out. What computes on the CPU
    stands for no card. `real`: ids of what is seen."""
    order = {card.index: card for card in cards}
    offers = offload.offered
    if offload.cuda and not offers:
        offers = tuple(
            Offered(
                Backend.CUDA,
                card.index,
                "",
                card.name,
                card.total_bytes,
                place=str(card.index),
                build=offload.build,
            )
            for card in cards
        )
    found: dict[str, tuple[Offered, ...]] = {}
    nameless: list[Offered] = []
    software: dict[str, tuple[Offered, ...]] = {}
    for one in sorted(offers, key=lambda one: (PREFERENCE.index(one.backend), one.index)):
        card = order.get(one.index) if one.backend is Backend.CUDA else None
        if one.software:
            software[f"{one.backend.value}{one.index}"] = (one,)
        elif card is not None and not (card.bus_id and one.device_id):
            found[card.device_id] = (*found.get(card.device_id, ()), one)
        elif one.device_id:
            found[one.device_id] = (*found.get(one.device_id, ()), one)
        else:
            nameless.append(one)
    left = [key for key in real if key not in found]
    if len(nameless) == 1 and len(left) == 1:
        found[left[0]] = (nameless[0],)
    elif not real and not found:
        found = {f"{one.backend.value}{one.index}": (one,) for one in nameless}
    return {**found, **software}


def _told(
    device_id: str,
    card: Card | None,
    kernel: KernelCard | None,
    amd: AmdCard | None,
    offers: tuple[Offered, ...],
    driver: str,
) -> Gpu:
    """Each fact from whoever knows it best."""
    offered = offers[0] if offers else None
    sources = ((NVML, card), (KERNEL, kernel), (AMD_SMI, amd), (LLAMA, offered))
    first = card or kernel or offered
    assert first is not None
    vendor = "nvidia" if card is not None else kernel.vendor if kernel is not None else ""
    if not vendor and offered is not None:
        vendor = "cpu" if offered.software else _VENDOR_OF.get(offered.backend, "")
    totals = [one.total_bytes for one in (card, kernel, amd, offered) if one is not None]
    widths = [one.link_width for one in (card, kernel, amd) if one is not None]
    targets = [one.architecture for one in (card, kernel, amd) if one is not None]
    return Gpu(
        device_id=device_id,
        name=first.name if amd is None else amd.name or first.name,
        vendor=vendor,
        total_bytes=next((total for total in totals if total > 0), 0),
        architecture=next((target for target in targets if target), ""),
        driver=driver if card is not None else kernel.driver if kernel is not None else "",
        link_width=next((width for width in widths if width), 0),
        integrated=_shared(kernel) or (offered is not None and offered.integrated),
        seen_by=tuple(name for name, source in sources if source is not None),
        card=card,
        kernel=kernel,
        amd=amd,
        offers=offers,
        offered=offered,
    )


def chosen(gpu: Gpu, tried: Sequence[tuple[Backend, TrialVerdict]]) -> Gpu:
    """With the first backend that computes; else with what each said instead."""
    tried = tuple(tried)
    usable = [backend for backend, verdict in tried if verdict.usable]
    for one in gpu.offers:
        if usable and one.backend is usable[0]:
            return replace(gpu, offered=one, tried=tried)
    said = "; ".join(f"{backend.value}: {verdict.words}" for backend, verdict in tried)
    failed = replace(gpu, offered=None, tried=tried, obstacle=f"a trial decode fails ({said})")
    return replace(failed, remedy=remedy_for(failed))


def _judged(gpu: Gpu, offload: Offload) -> Gpu:
    """With its obstacle and the way round it."""
    if gpu.integrated:
        text = "it shares the main memory, which is not counted as VRAM"
        return replace(gpu, offers=(), offered=None, obstacle=text, remedy=SHARED)
    if gpu.offered is not None:
        return gpu
    if gpu.kernel is not None and gpu.card is None:
        if not gpu.kernel.driver:
            text = "no kernel driver has taken it"
            return replace(gpu, obstacle=text, remedy=f"install the driver: {_driver_of(gpu)}")
        if gpu.vendor == "nvidia":
            text = f"NVIDIA's driver does not show it (kernel module: {gpu.kernel.driver})"
            return replace(gpu, obstacle=text, remedy=f"install the driver: {_driver_of(gpu)}")
    built = offload.reason or "llama.cpp does not list it"
    return replace(gpu, obstacle=built, remedy=remedy_for(gpu))


def remedy_for(gpu: Gpu) -> str:
    """What would make this GPU usable: when backends failed their trial, another one."""
    if not gpu.tried:
        return remedy(gpu.vendor, gpu.architecture)
    if all(backend is not Backend.VULKAN for backend, _ in gpu.tried):
        return f"try another backend: {VULKAN}"
    return "update the card's driver; every change of driver or runtime is tried anew"


def _driver_of(gpu: Gpu) -> str:
    return {
        "nvidia": "NVIDIA's (series 470 for Kepler, 580 for Maxwell to Volta), then nvidia-smi",
        "amd": "amdgpu, a part of Linux; its firmware comes in linux-firmware",
    }.get(gpu.vendor, "i915 or xe, parts of Linux; Arc needs Linux 6.2 or newer")


def remedy(vendor: str, architecture: str) -> str:
    """The command that builds an engine for such a card, and what the build needs.

    Sources: the release notes of CUDA 11.0 (ends sm_30), 12.0 (ends sm_35 and sm_37) and 13.0 (ends
    all below sm_75); ROCm's support matrices; ggml's CMakeLists for the options.
    """
    if vendor == "nvidia":
        return _cuda(architecture)
    if vendor == "amd" and architecture in _ROCM_NEEDS:
        needs = f"GPU_TARGETS={architecture}; {_ROCM_NEEDS[architecture]}"
        rocm = f"{RUNTIME_ADD.of('rocm')} (GGML_HIP, {needs})"
        return f"{rocm}; or, without ROCm: {VULKAN}"
    if vendor == "amd" and architecture in _ROCM_GONE:
        return f"{VULKAN}; ROCm has dropped {architecture}"
    return VULKAN


def _cuda(architecture: str) -> str:
    number = architecture.removeprefix("sm_")
    if not number.isdecimal():
        return f"{RUNTIME_ADD.of('cuda')} (-DGGML_CUDA=on)"
    generation = int(number)
    if generation < 35:
        return f"{VULKAN}; no CUDA that llama.cpp builds with knows {architecture}"
    build = f"{RUNTIME_ADD.of('cuda')} (-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={number}"
    if generation <= 37:
        return f"{build}; needs CUDA 11, the last with {architecture}); or: {VULKAN}"
    if generation < 75:
        return f"{build}; needs CUDA 11 or 12: CUDA 13 has dropped {architecture})"
    return f"{build})"


def software(gpu: Gpu) -> str:
    """A sentence for the operator about what is no GPU; "" for one that is."""
    if gpu.offered is None or not gpu.offered.software:
        return ""
    return (
        f"{gpu.device_id} ({gpu.name}) computes on the CPU, in main memory: it is here because "
        "GGML_VK_VISIBLE_DEVICES names it"
    )


def unusable(gpu: Gpu) -> str:
    """A sentence for the operator about a GPU with an obstacle."""
    size = f" ({gpu.total_bytes / GIB:.1f} GiB)" if gpu.total_bytes else ""
    return f"{gpu.name}{size} {UNUSABLE}: {gpu.obstacle}; {gpu.remedy}"
