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
from aivailable.peer.devices.nvml import Card, Nvml
from aivailable.peer.devices.offload import Offload, probe
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
        offload: Callable[[], Awaitable[Offload]] = probe,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`explicit`: (kind "cpu" or "sim", name, total bytes) in the operator's order.
        `held`: bytes that this node's replicas hold now, by device id."""
        self._held = held
        self._nvml = nvml or Nvml()
        self._offload = offload
        self._cards: dict[str, Card] = {}
        self._lost: dict[str, str] = {}
        self._devices = _explicit_devices(explicit)
        self._problems = _memory_problems(self._devices)
        self._engines = installed_engines(environment)

    async def look(self) -> None:
        """Find the GPUs: once, before the first question. May take seconds, blocks nobody."""
        problem = await asyncio.to_thread(self._nvml.open)
        if problem:
            self._problems += (problem,)
            return
        cards, problems = await asyncio.to_thread(self._nvml.cards)
        self._problems += problems
        if not cards:
            return
        offload = await self._offload()
        if not offload.cuda:
            self._problems += tuple(
                f"{card.name} ({card.total_bytes / GIB:.1f} GiB) is here, but cannot be used: "
                f"{offload.reason}; install one built with CMAKE_ARGS=-DGGML_CUDA=on"
                for card in cards
            )
            return
        driver = self._nvml.driver()
        self._cards = {card.device_id: card for card in cards}
        self._devices += tuple(
            Device(
                device_id=card.device_id,
                name=card.name,
                vendor="nvidia",
                backend=Backend.CUDA,
                index=card.index,
                total_bytes=card.total_bytes,
                architecture=card.architecture,
                driver=driver,
            )
            for card in cards
        )

    def inventory(self, node: NodeId) -> Inventory:
        lost = tuple(
            f"{card.name} ({card.device_id}) is lost: {self._lost[device_id]}; nothing new goes "
            "there until it answers again"
            for device_id, card in self._cards.items()
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
        card = self._cards.get(device.device_id)
        if card is None:
            return DeviceLoad(device.device_id, max(0, device.total_bytes - held_bytes))
        reading = self._nvml.read(card)
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
