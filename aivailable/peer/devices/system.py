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
from dataclasses import replace

from aivailable.core.ids import NodeId
from aivailable.core.state.records import Backend, Device, Inventory
from aivailable.peer.devices.amd import AmdCard, AmdSmi
from aivailable.peer.devices.gpus import Gpu, chosen, join, software, unusable
from aivailable.peer.devices.known_speeds import known_speed
from aivailable.peer.devices.nvml import Card, CardReading, Nvml
from aivailable.peer.devices.offload import Offered, Offload, probe
from aivailable.peer.devices.simulated import SimulatedUse
from aivailable.peer.devices.sysfs import KernelCards
from aivailable.peer.devices.trial_cache import Speed, TrialCache, TrialVerdict, key_of
from aivailable.peer.devices.trials import Trials
from aivailable.peer.runtimes import Interpreters
from aivailable.wire.peer import DeviceLoad
from aivailable.wire.worker import DeviceClaim

FAKE_ENGINE_VARIABLE = "AIVAILABLE_FAKE_ENGINE"
ENGINE_MODULES = ("llama_cpp", "jinja2")
TRIALS_MAX = 4
"""GPUs that are tried at the same time."""
IDLE_UTILIZATION_MAX = 0.1
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
        amd: AmdSmi | None = None,
        offload: Callable[[], Awaitable[Offload]] = probe,
        trials: Trials | None = None,
        cache: TrialCache | None = None,
        runtimes: Interpreters | None = None,
        environment: Mapping[str, str] = os.environ,
        simulated: SimulatedUse | None = None,
    ) -> None:
        """`explicit`: (kind "cpu" or "sim", name, total bytes) in the operator's order.
        `held`: bytes that this node's replicas hold now, by device id. `trials`: None = nothing
        is tried, only what `cache` knows counts."""
        self._held = held
        self._nvml = nvml or Nvml()
        self._kernel = kernel or KernelCards()
        self._amd = amd or AmdSmi()
        self._offload = offload
        self._trials = trials
        self._cache = cache or TrialCache()
        self._usable: dict[str, Gpu] = {}
        self.gpus: tuple[Gpu, ...] = ()
        """Every GPU that was seen, also those that cannot be used."""
        self._lost: dict[str, str] = {}
        self._devices = _explicit_devices(explicit)
        self._problems = _memory_problems(self._devices)
        self._runtimes = runtimes
        self._simulated = simulated
        self._engines = installed_engines(environment, runtimes)

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
        amd: tuple[AmdCard, ...] = ()
        if any(one.vendor == "amd" for one in kernel):
            # Its own words cost nothing when it is absent: the kernel has said what matters.
            amd = await asyncio.to_thread(self._amd.cards)
        if cards or kernel or self._gpu_runtime():
            offload = await self._offload()
            self._problems += offload.problems
            found = join(cards, driver, kernel, offload, amd)
            free = asyncio.Semaphore(TRIALS_MAX)
            self.gpus = tuple(await asyncio.gather(*(self._tried(gpu, free) for gpu in found)))
        self._problems += tuple(
            unusable(gpu) for gpu in self.gpus if gpu.obstacle and not gpu.integrated
        )
        for gpu in self.gpus:
            if gpu.offered is not None:
                self._usable[gpu.device_id] = gpu
                self._devices += (_device(gpu, gpu.offered),)
        self._problems += tuple(filter(None, map(software, self.gpus)))
        self._devices = tuple(self._with_speed(device) for device in self._devices)

    def _gpu_runtime(self) -> bool:
        """Whether a runtime was made for GPUs: not every one of them is on the PCI bus."""
        runtimes = () if self._runtimes is None else self._runtimes.whole()
        return any(runtime.backend is not Backend.CPU for runtime in runtimes)

    def places(self) -> Mapping[str, str]:
        """Device id → its entry in the variable that shows it alone (peer.runtimes.starting)."""
        return {
            device_id: gpu.offered.place
            for device_id, gpu in self._usable.items()
            if gpu.offered is not None and gpu.offered.place
        }

    def unmeasured(self) -> tuple[Device, ...]:
        """Devices whose speed nobody knows yet. What is simulated has no speed to measure."""
        return tuple(
            device
            for device in self._devices
            if device.speed <= 0 and device.backend is not Backend.SIM
        )

    def idle(self, device: Device) -> bool:
        """Whether nothing of ours is on the device, and nothing else computes on it."""
        if self.wanted(device):
            return False
        gpu = self._usable.get(device.device_id)
        reading = None if gpu is None else self._reading(gpu)
        return reading is None or not (reading.lost or reading.utilization > IDLE_UTILIZATION_MAX)

    def wanted(self, device: Device) -> bool:
        """Whether a replica of ours is placed on the device."""
        return self._held().get(device.device_id, 0) > 0

    def learn_speed(self, device: Device, speed: Speed) -> None:
        """Keep it, and tell it with the inventory from now on."""
        self._cache.keep_speed(self._speed_key(device), speed)
        self._devices = tuple(self._with_speed(one) for one in self._devices)

    def largest_gpu(self) -> DeviceClaim | None:
        """The GPU that a dry run may ask; None on a node without one."""
        gpus = [device for device in self._devices if device.device_id in self._usable]
        largest = max(gpus, key=lambda device: device.total_bytes, default=None)
        return None if largest is None else claim_for_speed(largest)

    async def _tried(self, gpu: Gpu, free: asyncio.Semaphore) -> Gpu:
        """With the first backend that computes on it. A GPU whose backends nobody has tried and
        nobody may try now keeps its first offer."""
        tried: list[tuple[Backend, TrialVerdict]] = []
        for offer in gpu.offers:
            verdict = await self._verdict(gpu, offer, free)
            if verdict is None:
                return replace(gpu, tried=tuple(tried))
            tried.append((offer.backend, verdict))
            if verdict.usable:
                break
        return chosen(gpu, tried) if tried else gpu

    async def _verdict(
        self, gpu: Gpu, offer: Offered, free: asyncio.Semaphore
    ) -> TrialVerdict | None:
        key = key_of(f"{gpu.device_id} {gpu.name}", offer.backend, _driver(gpu), offer.build)
        known = self._cache.verdict(key)
        if known is not None or self._trials is None:
            return known
        async with free:
            verdict = await self._trials.smoke(claim_of(gpu.device_id, offer), offer.place)
        self._cache.keep_verdict(key, verdict)
        return verdict

    def _with_speed(self, device: Device) -> Device:
        if device.backend is Backend.SIM:
            speed = known_speed(device.name)
        else:
            speed = self._cache.speed(self._speed_key(device))
        if speed is None:
            return device
        return replace(device, speed=speed.decode, prefill_speed=speed.prefill)

    def _speed_key(self, device: Device) -> str:
        gpu = self._usable.get(device.device_id)
        if gpu is None or gpu.offered is None:
            # The processor itself: by the CPU's runtime, or by ours.
            runtime = None if self._runtimes is None else self._runtimes.find(Backend.CPU)
            build = "own" if runtime is None else f"{runtime.version} {runtime.made_at_ms}"
            driver = platform.machine()
        else:
            build, driver = gpu.offered.build, _driver(gpu)
        return key_of(f"{device.device_id} {device.name}", device.backend, driver, build)

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
        self._amd.close()

    def _load(self, device: Device, held_bytes: int) -> DeviceLoad:
        gpu = self._usable.get(device.device_id)
        reading = None if gpu is None else self._reading(gpu)
        if reading is None:
            others = 0
            if device.backend is Backend.SIM and self._simulated is not None:
                others = self._simulated.bytes_on(device.device_id)
            free_bytes = max(0, device.total_bytes - held_bytes - others)
            return DeviceLoad(device.device_id, free_bytes, used_by_others_bytes=others)
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
            power_w=reading.power_w,
        )

    def _reading(self, gpu: Gpu) -> CardReading | None:
        """From the vendor's library, else the kernel; None for a card whose memory neither tells
        (i915, xe): what is not ours on it is then unknown."""
        if gpu.card is not None:
            return self._nvml.read(gpu.card)
        by_kernel = None
        if gpu.kernel is not None and gpu.kernel.total_bytes:
            by_kernel = self._kernel.read(gpu.kernel)
        if gpu.amd is None or (by_kernel is not None and by_kernel.lost):
            return by_kernel
        reading = self._amd.read(gpu.amd)
        if by_kernel is None:
            return reading
        if reading.lost:
            return by_kernel
        return replace(
            reading,
            temperature_c=by_kernel.temperature_c
            if reading.temperature_c is None
            else reading.temperature_c,
            power_w=by_kernel.power_w if reading.power_w is None else reading.power_w,
            utilization=max(reading.utilization, by_kernel.utilization),
        )


def claim_of(device_id: str, offer: Offered) -> DeviceClaim:
    """For a trial, which asks for no bytes of its own."""
    return DeviceClaim(device_id, offer.backend.value, offer.index, 0)


def claim_for_speed(device: Device) -> DeviceClaim:
    """The same for a device of the inventory."""
    return DeviceClaim(device.device_id, device.backend.value, device.index, 0)


def _driver(gpu: Gpu) -> str:
    """Version of the driver; a part of the kernel has the kernel's."""
    return gpu.driver if gpu.card is not None else f"{gpu.driver} {platform.release()}"


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


def installed_engines(
    environment: Mapping[str, str], runtimes: Interpreters | None = None
) -> tuple[str, ...]:
    """Engines that a worker can start with here: of our interpreter or a runtime's. The fake one
    only when a test asks for it."""
    llama = all(importlib.util.find_spec(name) is not None for name in ENGINE_MODULES)
    llama = llama or (runtimes is not None and bool(runtimes.whole()))
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
