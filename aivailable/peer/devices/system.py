"""The devices of this machine: those the operator named, and the GPUs that can really be used.

Owns the inventory and the live figures behind `ports.DevicePort`. No silent CPU: a cpu or sim
device exists only when asked for. A GPU that no engine here can use is not a device but a
sentence among the problems. Built by `app`, which awaits `look` once before the peer starts.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence

from aivailable.core.ids import NodeId
from aivailable.core.records import Backend, Device, Inventory
from aivailable.peer.devices.gpus import Gpu, join, unusable
from aivailable.peer.devices.nvml import Card, Nvml, Reading
from aivailable.peer.devices.offload import Offered, Offload, probe
from aivailable.peer.devices.sysfs import KernelCards
from aivailable.wire.peer import DeviceLoad

FAKE_ENGINE_VARIABLE = "AIVAILABLE_FAKE_ENGINE"
ENGINE_MODULES = ("llama_cpp", "jinja2")
GIB = 2**30


class SystemDevices:
    """Implements `ports.DevicePort`."""

    def __init__(
        self,
        explicit: Sequence[tuple[str, str, int]],
        held: Callable[[], Mapping[str, int]],
        *,
        nvml: Nvml | None = None,
        kernel: KernelCards | None = None,
        offload: Callable[[], Awaitable[Offload]] = probe,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`explicit`: (kind "cpu" or "sim", name, total bytes) in the operator's order.
        `held`: bytes that this node's replicas hold now, by device id."""
        self._held = held
        self._nvml = nvml or Nvml()
        self._kernel = kernel or KernelCards()
        self._offload = offload
        self._usable: dict[str, Gpu] = {}
        self.gpus: tuple[Gpu, ...] = ()
        """Every GPU that was seen, also those that cannot be used."""
        self._lost: dict[str, str] = {}
        self._devices = _explicit_devices(explicit)
        self._problems = _memory_problems(self._devices)
        self._engines = installed_engines(environment)

    async def look(self) -> None:
        """Find the GPUs: once, before the first question. May take seconds, blocks nobody."""
        cards: tuple[Card, ...] = ()
        driver = ""
        problem = await asyncio.to_thread(self._nvml.open)
        if problem:
            self._problems += (problem,)
        else:
            cards, problems = await asyncio.to_thread(self._nvml.cards)
            self._problems += problems
            driver = self._nvml.driver()
        kernel = await asyncio.to_thread(self._kernel.cards)
        if not cards and not kernel:
            return
        self.gpus = join(cards, driver, kernel, await self._offload())
        self._problems += tuple(
            unusable(gpu) for gpu in self.gpus if gpu.obstacle and not gpu.integrated
        )
        for gpu in self.gpus:
            if gpu.offered is not None:
                self._usable[gpu.device_id] = gpu
                self._devices += (_device(gpu, gpu.offered),)

    def inventory(self, node: NodeId) -> Inventory:
        lost = tuple(
            f"{gpu.name} ({device_id}) is lost: {self._lost[device_id]}; nothing new goes "
            "there until it answers again"
            for device_id, gpu in self._usable.items()
            if device_id in self._lost
        )
        return Inventory(
            node=node,
            devices=self._devices,
            engines=self._engines,
            problems=self._problems + lost,
        )

    def load(self) -> tuple[DeviceLoad, ...]:
        """Live figures, in the inventory's order. A card that fell off the bus has none free."""
        held = self._held()
        return tuple(self._load(device, held.get(device.device_id, 0)) for device in self._devices)

    def close(self) -> None:
        self._nvml.close()

    def _load(self, device: Device, held_bytes: int) -> DeviceLoad:
        gpu = self._usable.get(device.device_id)
        reading = None if gpu is None else self._reading(gpu)
        if reading is None:
            return DeviceLoad(device.device_id, max(0, device.total_bytes - held_bytes))
        if reading.lost:
            self._lost[device.device_id] = reading.lost
            return DeviceLoad(device.device_id, 0)
        self._lost.pop(device.device_id, None)
        free_bytes = reading.free_bytes or 0
        return DeviceLoad(
            device_id=device.device_id,
            free_bytes=free_bytes,
            used_by_others_bytes=max(0, device.total_bytes - free_bytes - held_bytes),
            utilization=reading.utilization,
            temperature_c=reading.temperature_c,
        )

    def _reading(self, gpu: Gpu) -> Reading | None:
        """From the driver, else the kernel; None for a card whose memory neither of them tells
        (i915, xe): what is not ours on it is then unknown."""
        if gpu.card is not None:
            return self._nvml.read(gpu.card)
        if gpu.kernel is not None and gpu.kernel.total_bytes:
            return self._kernel.read(gpu.kernel)
        return None


def _device(gpu: Gpu, offered: Offered) -> Device:
    return Device(
        device_id=gpu.device_id,
        name=gpu.name,
        vendor=gpu.vendor,
        backend=offered.backend,
        index=offered.index,
        total_bytes=gpu.total_bytes,
        architecture=gpu.architecture,
        driver=gpu.driver,
    )


def installed_engines(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Engines that a worker can start with here. The fake one only when a test asks for it."""
    llama = all(importlib.util.find_spec(name) is not None for name in ENGINE_MODULES)
    fake = environment.get(FAKE_ENGINE_VARIABLE) == "1"
    return (("llama",) if llama else ()) + (("fake",) if fake else ())


def _explicit_devices(explicit: Sequence[tuple[str, str, int]]) -> tuple[Device, ...]:
    counts: dict[str, int] = {}
    found: list[Device] = []
    for kind, name, total_bytes in explicit:
        index = counts.get(kind, 0)
        counts[kind] = index + 1
        found.append(
            Device(
                device_id=f"{kind}{index}",
                name=name,
                vendor=kind,
                backend=Backend(kind),
                index=index,
                total_bytes=total_bytes,
                architecture=platform.machine() if kind == "cpu" else "",
            )
        )
    return tuple(found)


def _memory_problems(devices: Sequence[Device]) -> tuple[str, ...]:
    """Main memory promised that is not there would end in swapping, or in the OOM killer."""
    promised = sum(device.total_bytes for device in devices if device.backend is Backend.CPU)
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if promised <= installed:
        return ()
    return (
        f"cpu devices of {promised / GIB:.1f} GiB were asked for, "
        f"but this machine has {installed / GIB:.1f} GiB of memory",
    )
