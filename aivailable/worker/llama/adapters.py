"""LoRA adapters of a deployment: the option `lora=PATH[:SCALE][,…]`, loaded and applied.

Owns: the check of the files, every llama_adapter_* call. Adapters act on every request of the
deployment alike.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aivailable.errors import GgufError
from aivailable.gguf.companion_options import lora_items, lora_problem
from aivailable.gguf.companions import companion_path, read_adapter
from aivailable.gguf.facts import ModelFacts
from aivailable.worker.engine import LoadRefused, OptionRefused
from aivailable.worker.llama.library import Log
from aivailable.worker.llama.parameters import LlamaParameters

VALUE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Adapter:
    """One file and how strongly it acts; scale 1 = as trained, 0 = not at all."""

    path: str
    scale: float
    weights_bytes: int


def adapters_of(
    model_path: str, facts: ModelFacts, options: Mapping[str, str]
) -> tuple[Adapter, ...]:
    """Read the option and check every file. Raises LoadRefused."""
    items = lora_items(options.get("lora", ""))
    problem = lora_problem(options.get("lora", ""))
    if problem:
        raise OptionRefused(f"engine option lora: {problem}")
    return tuple(_adapter(model_path, facts, path, scale) for path, scale in items)


def _adapter(model_path: str, facts: ModelFacts, path: str, scale: float) -> Adapter:
    try:
        found = read_adapter(companion_path(model_path, path), facts.architecture)
    except GgufError as error:
        raise OptionRefused(f"engine option lora: {error}", "bad_file") from error
    return Adapter(found.path, scale, found.weights_bytes)


def adapter_weights_bytes(adapters: tuple[Adapter, ...]) -> int:
    """On the device, beside the model's own."""
    return sum(adapter.weights_bytes for adapter in adapters)


def adapter_compute_bytes(
    adapters: tuple[Adapter, ...], facts: ModelFacts, chosen: LlamaParameters
) -> int:
    """Most that the graph grows by: a matrix's output for a ubatch once more. llama.cpp reserves
    it at the first decode, after its log has told the sizes."""
    if not adapters:
        return 0
    return chosen.ubatch * max(facts.feed_forward, facts.embedding) * VALUE_BYTES


def load_adapters(
    library: Any, model: Any, adapters: tuple[Adapter, ...], log: Log
) -> tuple[Any, ...]:
    """Into the model's memory, before the context is made, which counts them. Raises LoadRefused
    for one that does not fit the model's tensors."""
    handles = []
    for adapter in adapters:
        handle = library.llama_adapter_lora_init(model, adapter.path.encode())
        if not handle:
            code = "out_of_memory" if log.says_no_memory() else "bad_file"
            raise LoadRefused(
                code, f"llama.cpp cannot use the adapter {adapter.path}: {log.tail(3)}"
            )
        handles.append(handle)
    return tuple(handles)


def apply_adapters(
    library: Any, context: Any, adapters: tuple[Adapter, ...], handles: tuple[Any, ...]
) -> None:
    """Let every decode of the context go through them. Raises LoadRefused."""
    if not handles:
        return
    natives = (library.llama_adapter_lora_p_ctypes * len(handles))(*handles)
    scales = (ctypes.c_float * len(handles))(*(adapter.scale for adapter in adapters))
    if library.llama_set_adapters_lora(context, natives, len(handles), scales) != 0:
        raise LoadRefused("unsupported", "llama.cpp does not apply these adapters together")
