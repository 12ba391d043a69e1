"""From a Load to the sizes that llama.cpp is given, for the engine and the dry run alike.

Owns: the rule how context, slots, options and kind of device become n_ctx, n_batch and the rest,
and which options are refused. Pure. ENGINE notes say why each default differs from llama.cpp's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aivailable.worker.engine import LoadRefused
from aivailable.worker.options import Options

CONTEXT_PAD_CELLS: Final = 256
UBATCH_GPU_TOKENS: Final = 512
UBATCH_CPU_TOKENS: Final = 128
UBATCH_MIN_TOKENS: Final = 32
UBATCH_MAX_TOKENS: Final = 4096
CHUNK_CPU_TOKENS: Final = 32
"""On two old cores 32 tokens of a small model take 200 ms, and more at once are not faster: a
cancelled prefill gives its slot back within one such step."""
THREADS_MAX: Final = 256
KV_TYPES: Final = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_0": 2}
"""ggml.h `enum ggml_type`."""
FLOAT_KV_TYPES: Final = frozenset({"f32", "f16", "bf16"})
FLASH_ATTENTION: Final = {"auto": -1, "off": 0, "on": 1}
"""llama.h `enum llama_flash_attn_type`."""
CPU_BACKENDS: Final = frozenset({"cpu", "sim"})


@dataclass(frozen=True, slots=True)
class Parameters:
    """Sizes in tokens (cells); see llama.h `struct llama_context_params`."""

    on_gpu: bool
    slots: int
    cells: int
    ubatch: int
    chunk: int
    batch: int
    threads: int
    kv_type: str
    flash_attention: str


def parameters(context: int, slots: int, options: Mapping[str, str], *, on_gpu: bool) -> Parameters:
    """Raises LoadRefused("unsupported") for an option that is unknown or out of range."""
    chosen = Options(options)
    chosen.only("kv_type", "ubatch", "threads", "flash_attention")
    kv_type = chosen.choice("kv_type", "f16", tuple(KV_TYPES))
    flash = chosen.choice("flash_attention", "auto", tuple(FLASH_ATTENTION))
    if kv_type not in FLOAT_KV_TYPES and flash == "off":
        raise LoadRefused("unsupported", f"kv_type={kv_type} needs flash_attention=on or auto")
    default = UBATCH_GPU_TOKENS if on_gpu else UBATCH_CPU_TOKENS
    ubatch = chosen.integer("ubatch", default, UBATCH_MIN_TOKENS, UBATCH_MAX_TOKENS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # With as many OpenMP threads as busy cores every token takes a second or more.
    threads = chosen.integer("threads", max(1, (cores or 1) - 1), 1, THREADS_MAX)
    cells = -(-context * slots // CONTEXT_PAD_CELLS) * CONTEXT_PAD_CELLS
    # Rows and one chunk together fit one ubatch, so that a step is one pass over the weights.
    room = max(UBATCH_MIN_TOKENS // 2, (ubatch - slots) // 32 * 32)
    chunk = room if on_gpu else min(room, CHUNK_CPU_TOKENS)
    # llama.cpp clamps n_batch to n_ctx and aborts on a larger batch.
    chunk = min(chunk, cells - slots)
    return Parameters(
        on_gpu=on_gpu,
        slots=slots,
        cells=cells,
        ubatch=min(ubatch, cells),
        chunk=chunk,
        batch=max(chunk + slots, min(ubatch, cells)),
        threads=threads,
        kv_type=kv_type,
        flash_attention=flash,
    )


def model_parameters(library: Any, chosen: Parameters) -> Any:
    """llama_model_params; devices and callbacks are the caller's."""
    model = library.llama_model_default_params()
    model.use_extra_bufts = False  # The AMX repacking of some builds crashes at the first decode.
    model.n_gpu_layers = -1 if chosen.on_gpu else 0
    return model


def context_parameters(library: Any, chosen: Parameters) -> Any:
    """llama_context_params."""
    context = library.llama_context_default_params()
    context.n_ctx = chosen.cells
    context.n_batch = chosen.batch
    context.n_ubatch = chosen.ubatch
    context.n_seq_max = chosen.slots
    context.n_outputs_max = chosen.slots
    context.n_threads = chosen.threads
    context.n_threads_batch = chosen.threads
    context.kv_unified = True
    context.swa_full = False
    context.offload_kqv = chosen.on_gpu
    context.op_offload = chosen.on_gpu
    context.flash_attn_type = FLASH_ATTENTION[chosen.flash_attention]
    context.type_k = context.type_v = KV_TYPES[chosen.kv_type]
    context.no_perf = True
    return context
