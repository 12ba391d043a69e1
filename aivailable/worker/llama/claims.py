"""The claimed devices against what llama.cpp really uses: no silent CPU, nothing over a claim.

Owns: choosing ggml devices for the claims, and the accounting after a load.

llama.cpp loads and decodes on the CPU without a warning when it cannot offload. So a claim on a
GPU is honoured only if every layer and every KV buffer lies on the claimed GPUs. Devices of
backend "cpu" and "sim" run on the CPU on purpose, with the same accounting.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aivailable.advice import RUNTIME_ADD
from aivailable.wire.worker import DeviceClaim, is_software
from aivailable.worker.engine import LoadRefused
from aivailable.worker.llama.library import (
    BACKEND_PREFIXES,
    MIB,
    Buffers,
    GpuDevice,
    device_array,
    gpu_devices,
)
from aivailable.worker.llama.parameters import CPU_BACKENDS

SLACK_BYTES: Final = 1 * MIB
"""llama.cpp's log rounds every buffer, and each tensor is aligned: no reason to refuse a load."""
_PCI_ID: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]")
HOST_SLACK_BYTES: Final = 64 * MIB
"""On a GPU load the host keeps the token embeddings by design, and little else."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """The claims of one load; `gpus` in the same order, empty when they are on the CPU."""

    claims: tuple[DeviceClaim, ...]
    gpus: tuple[GpuDevice, ...]
    _array: Any
    _split: Any

    def apply(self, native: Any) -> None:
        """Write devices and their shares into llama_model_params."""
        native.devices = ctypes.cast(self._array, ctypes.c_void_p).value
        if self.gpus:
            native.split_mode = 1 if len(self.gpus) > 1 else 0
            native.main_gpu = 0
            native.tensor_split = ctypes.cast(self._split, ctypes.POINTER(ctypes.c_float))

    def has(self, memory: str) -> bool:
        """Whether buffers in this memory count against the claims."""
        return not self.gpus or any(gpu.name == memory for gpu in self.gpus)

    def refuse_larger(self, needed_bytes: int, what: str) -> None:
        """Raises LoadRefused(over_claim) when the claims together are less than needed."""
        claimed = sum(claim.claim_bytes for claim in self.claims)
        if needed_bytes > claimed + SLACK_BYTES:
            raise LoadRefused(
                "over_claim",
                f"{what}: {_mib(needed_bytes)} needed, {_mib(claimed)} claimed on "
                + ", ".join(claim.device_id for claim in self.claims),
                self._shares(needed_bytes),
            )

    def refuse_cpu(
        self,
        buffers: Buffers,
        offloaded: tuple[int, int] | None,
        embedding_bytes: int,
        *,
        cached: bool = True,
        stranded: int = 0,
    ) -> None:
        """Raises LoadRefused(not_fully_offloaded) unless everything lies on the claimed GPUs.
        `cached` false: this model has no KV cache (an encoder). `stranded`: tensors in main memory
        that are no input tables. An output that is the input's table, too, is seen by nothing
        else: it is counted as a layer on the GPU, and takes no bytes more in main memory."""
        names = {gpu.name for gpu in self.gpus}
        if offloaded is None or offloaded[0] != offloaded[1]:
            layers = "no" if offloaded is None else f"{offloaded[0]} of {offloaded[1]}"
            raise LoadRefused("not_fully_offloaded", f"{layers} layers are on the GPU")
        if stranded > 0:
            gpus = " and ".join(sorted(gpu.about or gpu.name for gpu in self.gpus))
            raise LoadRefused(
                "not_fully_offloaded",
                f"{stranded} of the tensors are in main memory: {gpus} cannot compute with them "
                "(too large for one buffer, or of a kind that the backend lacks)",
            )
        elsewhere = sorted(memory for memory in buffers.kv if memory not in names)
        if elsewhere or (cached and not buffers.kv):
            raise LoadRefused(
                "not_fully_offloaded", f"KV cache on {', '.join(elsewhere) or 'no device'}"
            )
        host = sum(size for memory, size in buffers.model.items() if memory not in names)
        if host > embedding_bytes + HOST_SLACK_BYTES:
            raise LoadRefused(
                "not_fully_offloaded", f"{_mib(host)} of the weights are in main memory"
            )

    def used(self, buffers: Buffers) -> Mapping[str, int]:
        """Bytes by claimed device id. Raises LoadRefused(over_claim)."""
        if not self.gpus:
            total = buffers.weights_bytes + buffers.kv_bytes + buffers.compute_bytes
            self.refuse_larger(total, "weights, KV cache and compute buffers")
            return self._shares(total)
        used = {
            claim.device_id: buffers.on(gpu.name)
            for claim, gpu in zip(self.claims, self.gpus, strict=True)
        }
        for claim in self.claims:
            if used[claim.device_id] > claim.claim_bytes + SLACK_BYTES:
                raise LoadRefused(
                    "over_claim",
                    f"{claim.device_id}: {_mib(used[claim.device_id])} used, "
                    f"{_mib(claim.claim_bytes)} claimed",
                    used,
                )
        return used

    def _shares(self, total: int) -> Mapping[str, int]:
        """Main memory has no borders: several cpu or sim claims are filled one after another."""
        used: dict[str, int] = {}
        last = self.claims[-1]
        for claim in self.claims:
            share = total if claim is last else min(total, claim.claim_bytes)
            used[claim.device_id] = share
            total -= share
        return used


def claim_devices(library: Any, claims: Sequence[DeviceClaim]) -> Claimed:
    """Find the claimed devices. Raises LoadRefused when this build cannot use one of them."""
    backends = sorted({claim.backend for claim in claims})
    if not claims:
        raise LoadRefused("unsupported", "no device is claimed")
    if set(backends) <= CPU_BACKENDS:
        # An empty list keeps a GPU build off the GPUs.
        return Claimed(tuple(claims), (), device_array(()), None)
    if len(backends) > 1 or backends[0] not in BACKEND_PREFIXES:
        raise LoadRefused("unsupported", f"one load cannot use {' and '.join(backends)}")
    if not library.llama_supports_gpu_offload():
        raise LoadRefused(
            "not_fully_offloaded",
            f"this llama.cpp was built without {backends[0]}; run: "
            f"{RUNTIME_ADD.of(backends[0]).line}",
        )
    prefix = BACKEND_PREFIXES[backends[0]]
    present = [gpu for gpu in gpu_devices(library) if gpu.name.startswith(prefix)]
    gpus: list[GpuDevice] = []
    for claim in claims:
        if not 0 <= claim.index < len(present):
            raise LoadRefused(
                "not_fully_offloaded",
                f"llama.cpp sees {len(present)} {backends[0]} devices, "
                f"not number {claim.index} ({claim.device_id})",
            )
        _refuse_other(claim, present[claim.index])
        gpus.append(present[claim.index])
    shares = [float(claim.claim_bytes) for claim in claims]
    most = max(int(library.llama_max_devices()), len(shares))
    split = (ctypes.c_float * most)(*shares)
    return Claimed(tuple(claims), tuple(gpus), device_array([gpu.handle for gpu in gpus]), split)


def _refuse_other(claim: DeviceClaim, gpu: GpuDevice) -> None:
    """Devices are shown to a process by number, and numbers shift when a card or its driver is
    gone: the next card, or Vulkan's CPU, would be taken for the claimed one."""
    if _PCI_ID.fullmatch(claim.device_id) is None:
        return
    if (gpu.pci_id and gpu.pci_id != claim.device_id) or is_software(gpu.about):
        raise LoadRefused(
            "not_fully_offloaded",
            f"llama.cpp's {gpu.name} is {gpu.about} {gpu.pci_id}".rstrip()
            + f", not {claim.device_id}",
        )


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"
