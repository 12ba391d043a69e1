"""The dry run: llama.cpp lays out model and context without allocating, and says the sizes.

Owns: that one call. KV and compute bytes were equal to a real load in every configuration tried;
0.1 to 2 s. In a dry run the model and KV buffers have size 0: weights come from the header's tensor
sizes and KV from the line that says the cache's computed size.

Not to be confused with `worker.dry_run`, the process that makes this calculation for a plan. Each
load makes it, too.
"""

from __future__ import annotations

from typing import Any

from aivailable.gguf.facts import ModelFacts
from aivailable.gguf.header import Header
from aivailable.gguf.memory import Need
from aivailable.worker.engine import LoadRefused
from aivailable.worker.llama.adapters import Adapter, adapter_compute_bytes, adapter_weights_bytes
from aivailable.worker.llama.claims import Claimed
from aivailable.worker.llama.library import MAIN_MEMORY, Buffers, Log, parse_buffers, parse_kv_bytes
from aivailable.worker.llama.parameters import (
    LlamaParameters,
    context_parameters,
    late_output_bytes,
    model_parameters,
)

LOAD_MODE_NONE = 0
"""llama.h `LLAMA_LOAD_MODE_NONE`: no_alloc and memory mapping exclude each other."""


def add_late_compute(
    buffers: Buffers,
    facts: ModelFacts,
    chosen: LlamaParameters,
    claimed: Claimed,
    adapters: tuple[Adapter, ...],
) -> None:
    """Count what llama.cpp allocates in its first decode only."""
    buffers.add_compute(MAIN_MEMORY, late_output_bytes(facts, chosen))
    device = claimed.gpus[0].name if claimed.gpus else MAIN_MEMORY
    buffers.add_compute(device, adapter_compute_bytes(adapters, facts, chosen))


def dry_run(
    library: Any,
    log: Log,
    header: Header,
    chosen: LlamaParameters,
    claimed: Claimed,
    adapters: tuple[Adapter, ...] = (),
) -> Need:
    """Bytes on the claimed devices together (main memory for cpu and sim).

    Raises LoadRefused when llama.cpp refuses the file or the context.
    """
    log.lines.clear()
    native = model_parameters(library, chosen)
    native.no_alloc, native.load_mode = True, LOAD_MODE_NONE
    claimed.apply(native)
    model = library.llama_model_load_from_file(header.path.encode(), native)
    if not model:
        raise LoadRefused("bad_file", f"llama.cpp cannot read {header.path}: {log.tail()}")
    try:
        context = library.llama_init_from_model(model, context_parameters(library, chosen))
        if not context:
            raise LoadRefused("unsupported", f"llama.cpp makes no context: {log.tail()}")
        library.llama_free(context)
    finally:
        library.llama_model_free(model)
    buffers = parse_buffers(log.lines)
    add_late_compute(buffers, header.facts, chosen, claimed, adapters)
    compute = buffers.compute
    host_bytes = header.embedding_bytes if chosen.on_gpu and not header.tied else 0
    return Need(
        weights_bytes=header.facts.weights_bytes - host_bytes + adapter_weights_bytes(adapters),
        kv_bytes=parse_kv_bytes(log.lines),
        compute_bytes=sum(size for memory, size in compute.items() if claimed.has(memory)),
    )
