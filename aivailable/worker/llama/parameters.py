"""From a Load to the sizes that llama.cpp is given, for the engine and the dry run alike.

Owns: the rule how context, slots, options and kind of device become n_ctx, n_batch and the rest,
and which options are refused. Pure. worker/DESIGN.md, "Where the defaults differ from llama.cpp's".

Not to be confused with `worker.sampling.parameters`, which belong to one request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aivailable.gguf.facts import ModelFacts
from aivailable.gguf.memory import TEXTS_AT_ONCE, draft_tokens, sequences
from aivailable.worker.embedding.pooling import POOLING_TYPES, pooling_of, text_tokens
from aivailable.worker.engine import OptionRefused
from aivailable.worker.llama.cores import Cores
from aivailable.worker.options import Options

CONTEXT_PAD_CELLS: Final = 256
UBATCH_GPU_TOKENS: Final = 512
UBATCH_CPU_TOKENS: Final = 128
UBATCH_MIN_TOKENS: Final = 32
UBATCH_MAX_TOKENS: Final = 4096
STEP_CPU_TOKENS: Final = 63
"""From 64 tokens on ggml's CPU backend computes attention in tiles, with other roundings. Below,
a token's numbers do not depend on what is decoded beside it (measured bit by bit), so batched
equals solo; and a step stays short enough for a cancellation to take effect soon."""
CHUNK_CPU_TOKENS: Final = 60
CHUNK_GPU_TOKENS: Final = 32
"""What a GPU computes beside running rows in little more time than the rows alone."""
LEAST_CPU_TOKENS: Final = 2
REPLAY_TOKENS: Final = 32
THREADS_GPU_MAX: Final = 4
"""With everything on the GPU the CPU looks up embeddings and waits."""
THREADS_LOGICAL_MAX: Final = 4
"""Up to this many, hyper-threads are used, too; above only one of each core, as llama.cpp does."""
THREADS_MAX: Final = 256
KV_TYPES: Final = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_0": 2}
"""ggml.h `enum ggml_type`."""
FLOAT_KV_TYPES: Final = frozenset({"f32", "f16", "bf16"})
FLASH_ATTENTION: Final = {"auto": -1, "off": 0, "on": 1}
"""llama.h `enum llama_flash_attn_type`."""
NUMA: Final = {"off": 0, "distribute": 1, "isolate": 2}
"""ggml-cpu.h `enum ggml_numa_strategy`."""
CPU_BACKENDS: Final = frozenset({"cpu", "sim"})
KNOWN_OPTIONS: Final = (
    *("kv_type", "ubatch", "threads", "flash_attention", "warm_tokens", "numa"),
    *("pooling", "lora", "draft", "projector"),
)
OUTPUT_VALUE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class LlamaParameters:
    """Sizes in tokens (cells); see llama.h `struct llama_context_params`."""

    on_gpu: bool
    slots: int
    cells: int
    sequences: int
    warm: int
    ubatch: int
    chunk: int
    step: int
    batch: int
    threads: int
    """0 = not chosen by the deployment."""
    kv_type: str
    flash_attention: str
    numa: str
    pooling: str = ""
    """How a text becomes one vector (worker.embedding.pooling); "" = this load generates."""
    outputs: int = 0
    """Most rows of one decode that are read; 0 = one for each sequence."""
    draft: int = 0
    """Most guesses beside one row."""

    @property
    def least(self) -> int:
        """Prefill tokens that are worth a step beside rows."""
        return min(self.chunk, CHUNK_GPU_TOKENS if self.on_gpu else LEAST_CPU_TOKENS)

    @property
    def replay(self) -> int:
        """On a CPU one row alone takes other kernels than several: repeat that, too."""
        return REPLAY_TOKENS if self.on_gpu else 1


def parameters(
    facts: ModelFacts, context: int, slots: int, options: Mapping[str, str], *, on_gpu: bool
) -> LlamaParameters:
    """Raises OptionRefused for an option that is unknown or out of range."""
    chosen = Options(options)
    chosen.only(*KNOWN_OPTIONS)
    pooling = pooling_of(facts, chosen)
    if pooling and "projector" in options:
        raise OptionRefused("engine option projector: this load computes vectors only")
    if pooling:
        context, slots = text_tokens(facts, context), 1
    kv_type = chosen.choice("kv_type", "f16", tuple(KV_TYPES))
    flash = chosen.choice("flash_attention", "auto", tuple(FLASH_ATTENTION))
    if kv_type not in FLOAT_KV_TYPES and flash == "off":
        raise OptionRefused(f"kv_type={kv_type} needs flash_attention=on or auto")
    default = UBATCH_GPU_TOKENS if on_gpu else UBATCH_CPU_TOKENS
    ubatch = chosen.integer("ubatch", default, UBATCH_MIN_TOKENS, UBATCH_MAX_TOKENS)
    cells = -(-context * slots // CONTEXT_PAD_CELLS) * CONTEXT_PAD_CELLS
    # Rows and one chunk together fit one ubatch, so that a step is one pass over the weights.
    chunk = max(UBATCH_MIN_TOKENS // 2, (ubatch - slots) // 32 * 32)
    if not on_gpu:
        chunk = min(chunk, CHUNK_CPU_TOKENS)
    # llama.cpp clamps n_batch to n_ctx and aborts on a larger batch.
    chunk = min(chunk, cells - slots)
    step = chunk + slots if on_gpu else max(STEP_CPU_TOKENS, slots + LEAST_CPU_TOKENS)
    # On a GPU every row reads the cells of all sequences: warm ones are not for nothing there.
    warm = chosen.integer("warm_tokens", cells // 2 if on_gpu else cells, 0, cells)
    draft = _draft(options, facts, on_gpu=on_gpu)
    made = LlamaParameters(
        on_gpu=on_gpu,
        slots=slots,
        cells=cells,
        sequences=sequences(facts, slots),
        warm=warm,
        ubatch=min(ubatch, cells),
        chunk=chunk,
        step=min(step, cells),
        batch=max(step, min(ubatch, cells)),
        threads=chosen.integer("threads", 0, 1, THREADS_MAX),
        kv_type=kv_type,
        flash_attention=flash,
        numa=chosen.choice("numa", "off", tuple(NUMA)),
        pooling=pooling,
        # llama.cpp aborts when more rows are asked for than it was told.
        outputs=max(sequences(facts, slots), min(step, slots * (1 + draft))) if draft else 0,
        draft=draft,
    )
    return _for_texts(made, facts) if pooling else made


def _for_texts(made: LlamaParameters, facts: ModelFacts) -> LlamaParameters:
    """Whole texts instead of streams: one decode is one ubatch, since llama.cpp pools within a
    ubatch only; every token is an output; a text that is not causal must fit one ubatch."""
    ubatch = made.ubatch if facts.causal else made.cells
    # Where a further sequence costs memory of its own (gguf.memory.sequences) there is one.
    dear = facts.causal and made.sequences == made.slots
    return dataclasses.replace(
        made,
        sequences=1 if dear else TEXTS_AT_ONCE,
        warm=0,
        ubatch=ubatch,
        chunk=ubatch,
        step=ubatch,
        batch=ubatch,
        outputs=ubatch,
        draft=0,
    )


def _draft(options: Mapping[str, str], facts: ModelFacts, *, on_gpu: bool) -> int:
    """None where some layer has no KV cache: a recurrent state cannot be cut back."""
    try:
        asked = draft_tokens(options.get("draft"), on_gpu)
    except ValueError as error:
        raise OptionRefused(f"engine option {error}") from error
    return asked if all(facts.heads_kv) else 0


def late_output_bytes(facts: ModelFacts, chosen: LlamaParameters) -> int:
    """What llama.cpp's output buffer in main memory grows by in the first full decode: it is made
    for one row a sequence (llama-context.cpp, `output_reserve`). A dry run does not see it."""
    rows = max(0, chosen.outputs - chosen.sequences)
    vector = facts.embedding if chosen.pooling else 0
    return rows * (facts.vocab + vector) * OUTPUT_VALUE_BYTES


def default_threads(cores: Cores, *, on_gpu: bool) -> int:
    """One less than there are cores. Measured on two: with both, a quiet machine decodes 1.3 to
    1.6 times as fast, but as soon as anything else runs, threads that spin at ggml's barriers for
    one that was pushed aside make it many times slower. A machine that does nothing else sets
    threads=N."""
    many = cores.logical if cores.logical <= THREADS_LOGICAL_MAX else cores.physical
    return max(1, min(many - 1, THREADS_GPU_MAX) if on_gpu else many - 1)


def model_parameters(library: Any, chosen: LlamaParameters) -> Any:
    """llama_model_params; devices and callbacks are the caller's."""
    model = library.llama_model_default_params()
    model.use_extra_bufts = False  # The AMX repacking of some builds crashes at the first decode.
    model.n_gpu_layers = -1 if chosen.on_gpu else 0
    return model


def context_parameters(library: Any, chosen: LlamaParameters) -> Any:
    """llama_context_params."""
    context = library.llama_context_default_params()
    context.n_ctx = chosen.cells
    context.n_batch = chosen.batch
    context.n_ubatch = chosen.ubatch
    context.n_seq_max = chosen.sequences
    context.n_outputs_max = chosen.outputs or chosen.sequences
    if chosen.pooling:
        context.embeddings = True
        context.pooling_type = POOLING_TYPES[chosen.pooling]
    context.n_threads = context.n_threads_batch = max(1, chosen.threads)
    context.kv_unified = True
    context.swa_full = False
    context.offload_kqv = chosen.on_gpu
    context.op_offload = chosen.on_gpu
    context.flash_attn_type = FLASH_ATTENTION[chosen.flash_attention]
    context.type_k = context.type_v = KV_TYPES[chosen.kv_type]
    context.no_perf = True
    return context
