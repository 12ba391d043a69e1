"""Files that go with a model: LoRA adapters.

Owns: what their headers say, checked before llama.cpp sees the file. It must not load them. Called
by the worker before a load and by its dry run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from aivailable.errors import GgufError
from aivailable.gguf.header import read_structure
from aivailable.gguf.reader import Structure

LORA_SUFFIXES: Final = (".lora_a", ".lora_b")


@dataclass(frozen=True, slots=True)
class Companion:
    """One checked file."""

    path: str
    weights_bytes: int


def read_adapter(path: str | os.PathLike[str], architecture: str) -> Companion:
    """The header of a LoRA adapter for a model of this architecture. Raises GgufError."""
    label = os.fspath(path)
    structure, _ = read_structure(label)
    kinds = (structure.values.get("general.type"), structure.values.get("adapter.type"))
    if kinds != ("adapter", "lora"):
        raise GgufError(f"{label}: this is no LoRA adapter (general.type, adapter.type: {kinds})")
    made_for = structure.values.get("general.architecture")
    if made_for != architecture:
        raise GgufError(f"{label}: the adapter is for {made_for!r}, the model is {architecture!r}")
    if type(structure.values.get("adapter.lora.alpha")) is not float:
        raise GgufError(f"{label}: adapter.lora.alpha is missing; convert the adapter again")
    odd = sorted(name for name in structure.tensors if not name.endswith(LORA_SUFFIXES))
    if odd or not structure.tensors:
        raise GgufError(f"{label}: tensors that are no LoRA pairs: {', '.join(odd[:3]) or 'none'}")
    return Companion(label, _weights(structure))


def _weights(structure: Structure) -> int:
    return sum(tensor.size_bytes for tensor in structure.tensors.values())
