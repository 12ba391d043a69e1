"""The architectures of this machine's cards, for building a runtime for them.

Owns one question to the vendors' libraries and the kernel; no runtime is asked, since there may be
none yet.
"""

from __future__ import annotations

from aivailable.core.state.records import Backend
from aivailable.peer.devices.offload import Offload
from aivailable.peer.devices.system import SystemDevices

_VENDORS = {Backend.CUDA: "nvidia", Backend.ROCM: "amd"}


async def architectures_seen(backend: Backend) -> tuple[str, ...]:
    """Those of the cards of the backend's vendor; none for a backend that serves any card."""

    async def nothing() -> Offload:
        return Offload(False)

    devices = SystemDevices((), dict, offload=nothing)
    await devices.look()
    devices.close()
    vendor = _VENDORS.get(backend)
    return tuple(
        gpu.architecture
        for gpu in devices.gpus
        if gpu.vendor == vendor and gpu.architecture and not gpu.integrated
    )
