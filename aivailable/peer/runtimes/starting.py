"""How a child process is started for devices: by whose interpreter, seeing what, counting how.

Owns the variables by which CUDA, ROCm and Vulkan are told which GPUs a process may see. A process
sees its own devices and no other, of no backend: a card that hangs takes one replica along, and
CUDA and Vulkan work side by side in one node. Pure but for the lookup of interpreters.

Sources: CUDA C++ Programming Guide (CUDA_VISIBLE_DEVICES, order and renumbering), HIP's
environment variables, ggml-vulkan.cpp `ggml_vk_instance_init`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aivailable.core.state.records import Backend
from aivailable.peer.runtimes.interpreters import Interpreters
from aivailable.wire.worker import DeviceClaim

VARIABLES: Final[Mapping[str, str]] = {
    Backend.CUDA: "CUDA_VISIBLE_DEVICES",
    Backend.ROCM: "HIP_VISIBLE_DEVICES",
    Backend.VULKAN: "GGML_VK_VISIBLE_DEVICES",
}
"""HIP's, not ROCr's: the second counts before the first, and setting both would count twice."""
NOTHING: Final[Mapping[str, str]] = {
    Backend.CUDA: "-1",
    Backend.ROCM: "-1",
    Backend.VULKAN: "",
}
"""The value that hides all. An empty CUDA list would do, too, but some shells drop it."""
WORKER_ENVIRONMENT: Final[Mapping[str, str]] = {
    # OpenMP threads that spin on busy cores make decoding 30–60 × slower (measured: 1–2 s a token).
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "passive",
    # Device indexes are in NVML's order; CUDA's own default is fastest first.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # Where gdb is installed, an abort would start it, and its noise would hide the reason.
    "GGML_NO_BACKTRACE": "1",
}


@dataclass(frozen=True, slots=True)
class Start:
    """`devices`: the claims as the child counts what it sees."""

    interpreter: str
    environment: Mapping[str, str]
    devices: tuple[DeviceClaim, ...]


class Starter:
    """Joins interpreters and what devices are called in their backend's variable."""

    def __init__(
        self,
        interpreters: Interpreters | None = None,
        places: Callable[[], Mapping[str, str]] = dict,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """`places`: device id → its entry in the variable of its backend (`place`); a device that
        is missing there cannot be shown alone, and its process sees all of its backend."""
        self.interpreters = interpreters or Interpreters(None)
        self._places = places
        self._environment = environment

    def start(
        self, devices: Sequence[DeviceClaim], places: Mapping[str, str] | None = None
    ) -> Start:
        """For claims of one backend; those of several are the engine's to refuse. `places`:
        instead of the ones given at construction."""
        backend = devices[0].backend if devices else Backend.CPU.value
        if places is None:
            places = self._places()
        entries = [places.get(device.device_id, "") for device in devices]
        counted = tuple(devices)
        shown: Mapping[str, str] = {}
        if backend in VARIABLES and all(entries):
            shown = {VARIABLES[backend]: ",".join(entries)}
            counted = tuple(replace(device, index=number) for number, device in enumerate(devices))
        environment = {
            **self._environment,
            **WORKER_ENVIRONMENT,
            **hidden_others(backend),
            **shown,
        }
        return Start(self.interpreters.of(backend), environment, counted)


def hidden_others(backend: str) -> Mapping[str, str]:
    """Variables that hide the devices of every backend but this one. HIP heeds CUDA's variable
    as well, so a ROCm process leaves it alone."""
    return {
        variable: NOTHING[other]
        for other, variable in VARIABLES.items()
        if other != backend and not (backend == Backend.ROCM and other == Backend.CUDA)
    }


def place(backend: str, index: int, environment: Mapping[str, str]) -> str:
    """How the backend's variable calls its `index`-th device: its number, or what the operator's
    own value of the variable has at that place. "" for Vulkan, whose numbers count devices that
    it does not list, and when the operator's value has no such place."""
    told = environment.get(VARIABLES.get(backend, ""), "")
    if told.strip():
        entries = [entry.strip() for entry in told.split(",")]
        return entries[index] if index < len(entries) else ""
    return "" if backend == Backend.VULKAN or backend not in VARIABLES else str(index)
