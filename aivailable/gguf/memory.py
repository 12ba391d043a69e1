"""The memory a model needs on its device, from its facts alone.

Owns: the formula that is used where the dry run (worker/dry_run) is not at hand. Pure.

Measured against llama.cpp 0.3.36's dry run with two models: weights and KV exact, compute never
too small and at most 5 MiB or a quarter too large, because a claim that is too small makes the
load fail. A GPU backend's own context (hundreds of MiB) is not in it.
Source of the KV layout: llama.cpp src/llama-kv-cache.cpp and llama-kv-cache-iswa.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

KV_TYPE_BYTES: Final = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
}
"""Numbers and bytes of a block, by the name of the KV type."""
CELLS_PAD: Final = 256
UBATCH_DEFAULT_TOKENS: Final = 512
LOGIT_BYTES: Final = 4
ACTIVATION_BYTES: Final = 4
ACTIVATIONS_AT_ONCE: Final = 8
"""Rows of the embedding's width beside the widest ones: 6.7 were seen."""
UNGATED: Final = frozenset({"bert"})
"""Encoders whose feed-forward has no gate: one of its rows at once instead of two."""
ACTIVATIONS_UNGATED: Final = 5
"""Beside that one: 4.6 were seen."""
MASK_BYTES: Final = 2
CELL_BYTES: Final = 32
"""Beside the masks, of each cell of a large cache."""
BESIDE_BYTES: Final = 1 << 20
"""Small tensors beside the large ones; up to 0.75 MiB were seen."""
FEED_FORWARD_GUESS: Final = 4
"""Times the embedding, where the header does not say."""
CONTEXT_STEP_TOKENS: Final = 256
SEQUENCES_WARM: Final = 8
TEXTS_AT_ONCE: Final = 32
"""Texts of one decode when they are embedded; each has a sequence."""
VECTORS_POOLED: Final = 4
"""Rows of the embedding's width beside the logits of all tokens: 3.8 were seen."""
SEQUENCES_MAX: Final = 256
"""llama.h `LLAMA_MAX_SEQ`."""

DRAFT_MAX_TOKENS: Final = 16
STEP_ROWS: Final = 63
CHUNK_ROWS: Final = 32
"""With guesses, rows of one step at most: this many on a CPU, or on a GPU these beside the slots
(worker/llama/parameters.py)."""
DRAFT_AUTO: Final = (None, "auto")
DRAFT_GPU_TOKENS: Final = 7
"""With the row itself eight: up to this many llama.cpp's CUDA kernels for quantized weights read
them once for all (ggml-cuda/mmvq.cuh, `MMVQ_MAX_BATCH_SIZE`)."""


class MemoryShape(Protocol):
    """What the formula reads of ModelFacts."""

    @property
    def architecture(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def embedding(self) -> int: ...
    @property
    def heads_kv(self) -> tuple[int, ...]: ...
    @property
    def key_length(self) -> int: ...
    @property
    def value_length(self) -> int: ...
    @property
    def vocab(self) -> int: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def sliding_window(self) -> int: ...
    @property
    def sliding_layers(self) -> tuple[bool, ...]: ...
    @property
    def heads(self) -> int: ...
    @property
    def feed_forward(self) -> int: ...
    @property
    def context_train(self) -> int: ...
    @property
    def pooling(self) -> str: ...
    @property
    def causal(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on the device."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """All three together."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def draft_tokens(option: str | None, on_gpu: bool) -> int:
    """Most guesses beside one row, of the deployment's option `draft`: a number, or `auto` (the
    default): none on a CPU, where a step costs what its rows cost. Raises ValueError."""
    if option is None or option in DRAFT_AUTO:
        return DRAFT_GPU_TOKENS if on_gpu else 0
    if not option.isascii() or not option.isdigit() or int(option[:4]) > DRAFT_MAX_TOKENS:
        raise ValueError(f"draft={option[:40]!r} must be auto or 0 to {DRAFT_MAX_TOKENS}")
    return int(option)


def pad(count: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-count // step) * step


def sequences(shape: MemoryShape, slots: int) -> int:
    """Caches that a worker with this many slots keeps: some more than slots, so that the prompts of
    earlier requests stay warm, but only where a further one costs next to nothing. A sliding
    window's cells and a recurrent state would be allocated for every one."""
    plain = not shape.sliding_window and all(shape.heads_kv)
    return min(SEQUENCES_MAX, slots + SEQUENCES_WARM) if plain else slots


def need(
    shape: MemoryShape,
    context: int,
    slots: int,
    kv_type: str = "f16",
    ubatch: int = UBATCH_DEFAULT_TOKENS,
    flash_attention: bool = True,
    draft: str | None = "0",
    pooling: str | None = None,
    adapters_bytes: int = 0,
) -> Need:
    """Bytes for `slots` sequences of `context` tokens each.

    `ubatch`: tokens computed at once. `draft`, `pooling`: the options of these names, the latter
    None = as the header says. `adapters_bytes`: tensors of LoRA adapters (gguf.companions).
    Raises ValueError for sizes below 1, an unknown KV type or a wrong `draft`.
    """
    if context < 1 or slots < 1 or ubatch < 1:
        raise ValueError("context, slots and ubatch must be at least 1")
    if kv_type not in KV_TYPE_BYTES:
        raise ValueError(f"KV type {kv_type!r} is unknown; known: {', '.join(KV_TYPE_BYTES)}")
    weights = shape.weights_bytes + adapters_bytes
    if shape.pooling if pooling is None else pooling:
        cells = pad(min(context, shape.context_train or context), CELLS_PAD)
        ubatch = min(ubatch, cells) if shape.causal else cells
        return Need(
            weights_bytes=weights,
            kv_bytes=_kv_bytes(shape, cells, 1, kv_type, ubatch) if shape.causal else 0,
            compute_bytes=_pooling_bytes(shape, cells, ubatch, flash_attention)
            + _adapter_compute_bytes(shape, ubatch, adapters_bytes),
        )
    cells = pad(context * slots, CELLS_PAD)
    ubatch_used = min(ubatch, cells)
    rows = min(slots * (1 + draft_tokens(draft, on_gpu=True)), max(STEP_ROWS, slots + CHUNK_ROWS))
    # "auto" guesses on a GPU alone, and what is read of a GPU's rows lies in main memory.
    read = 0 if draft in DRAFT_AUTO else rows - slots
    return Need(
        weights_bytes=weights,
        kv_bytes=_kv_bytes(shape, cells, slots, kv_type, ubatch),
        compute_bytes=_compute_bytes(shape, cells, slots, ubatch_used, flash_attention, rows)
        + read * shape.vocab * LOGIT_BYTES
        + _adapter_compute_bytes(shape, ubatch_used, adapters_bytes),
    )


def largest_context(
    shape: MemoryShape,
    budget_bytes: int,
    slots: int,
    kv_type: str = "f16",
    ubatch: int = UBATCH_DEFAULT_TOKENS,
    flash_attention: bool = True,
    most: int = 1 << 20,
    draft: str | None = "0",
    pooling: str | None = None,
) -> int:
    """The most tokens per slot, in steps of 256 and up to `most`, that fit `budget_bytes`;
    0 when not even one step does. The need grows with the context, so this is a bisection."""
    low, high = 0, most // CONTEXT_STEP_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        context = middle * CONTEXT_STEP_TOKENS
        size = need(shape, context, slots, kv_type, ubatch, flash_attention, draft, pooling)
        if size.total_bytes <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    return low * CONTEXT_STEP_TOKENS


def _kv_bytes(shape: MemoryShape, cells: int, slots: int, kv_type: str, ubatch: int) -> int:
    values, block_bytes = KV_TYPE_BYTES[kv_type]
    in_window = _window_cells(shape, cells, slots, ubatch)
    total = 0
    for layer, heads in enumerate(shape.heads_kv):
        slides = layer < len(shape.sliding_layers) and shape.sliding_layers[layer]
        numbers = heads * (shape.key_length + shape.value_length)
        total += (in_window if slides else cells) * numbers * block_bytes // values
    return total


def _window_cells(shape: MemoryShape, cells: int, slots: int, ubatch: int) -> int:
    """Cells of a layer that sees only its window."""
    return min(cells, pad(shape.sliding_window * slots + ubatch, CELLS_PAD))


def _pooling_bytes(shape: MemoryShape, cells: int, ubatch: int, flash: bool) -> int:
    """Every token of a ubatch is an output: in the graph its logits beside its vectors and masks
    (an encoder has no head for them), and a row of logits and vector in the output buffer, which
    grows by what one row a sequence was no room for (llama-context.cpp, `output_reserve`)."""
    dear = shape.causal and sequences(shape, 1) == 1
    late = max(0, ubatch - (1 if dear else TEXTS_AT_ONCE))
    moment = _moment_bytes(shape, cells, 1, ubatch, flash)
    if shape.causal:
        masked = cells + (_window_cells(shape, cells, 1, ubatch) if shape.sliding_window else 0)
        masks = masked * (MASK_BYTES if flash else 2 * MASK_BYTES)
        numbers = shape.vocab + VECTORS_POOLED * shape.embedding
        head = ubatch * (numbers * ACTIVATION_BYTES + masks) + cells * CELL_BYTES
        moment = max(moment, head)
    return late * (shape.vocab + shape.embedding) * LOGIT_BYTES + moment + BESIDE_BYTES


def _adapter_compute_bytes(shape: MemoryShape, ubatch: int, adapters_bytes: int) -> int:
    """Most that the graph grows by: a matrix's output for a ubatch once more."""
    return ubatch * max(shape.feed_forward, shape.embedding) * LOGIT_BYTES if adapters_bytes else 0


def _compute_bytes(
    shape: MemoryShape, cells: int, slots: int, ubatch: int, flash: bool, rows: int
) -> int:
    """The graph's largest moment: the logits (`n_outputs_max` = `rows` keeps them small), or the
    attention masks and activations beside the feed-forward's or, without flash attention, beside
    the score matrix of one layer."""
    outputs = min(rows, ubatch) * shape.vocab * LOGIT_BYTES
    return max(outputs, _moment_bytes(shape, cells, slots, ubatch, flash)) + BESIDE_BYTES


def _moment_bytes(shape: MemoryShape, cells: int, slots: int, ubatch: int, flash: bool) -> int:
    """Masks and activations of one layer."""
    wide = shape.feed_forward or FEED_FORWARD_GUESS * shape.embedding
    numbers = 2 * wide + ACTIVATIONS_AT_ONCE * shape.embedding
    if shape.architecture in UNGATED:
        numbers = wide + ACTIVATIONS_UNGATED * shape.embedding
    if not flash:
        heads = shape.heads or 2 * max(shape.heads_kv)
        numbers = max(numbers, cells * (heads + 1) + ACTIVATIONS_AT_ONCE * shape.embedding)
    masked = cells + (_window_cells(shape, cells, slots, ubatch) if shape.sliding_window else 0)
    return ubatch * (numbers * ACTIVATION_BYTES + masked * MASK_BYTES) + cells * CELL_BYTES
