"""Whether a load turns texts into vectors, and how a text's token vectors become one.

Owns: the option `pooling` and what the header says about it; adding up a text that was computed in
several chunks. Pure.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from aivailable.gguf.facts import ModelFacts
from aivailable.worker.engine import Logits, OptionRefused
from aivailable.worker.options import Options

POOLING_TYPES: Final = {"mean": 1, "cls": 2, "last": 3, "rank": 4}
"""llama.h `enum llama_pooling_type`."""


def pooling_of(facts: ModelFacts, options: Options) -> str:
    """What the option says, else the header; "" for a model that generates.

    Raises OptionRefused for a pooling that does not exist or that this model has no head for.
    """
    if "pooling" not in options.values:
        return facts.pooling
    pooling = options.choice("pooling", "", tuple(POOLING_TYPES))
    if pooling == "rank" and facts.pooling != "rank":
        raise OptionRefused("engine option pooling=rank: this model has no classification head")
    return pooling


def text_tokens(facts: ModelFacts, context: int) -> int:
    """Most tokens of one text. Beyond what it was trained for an encoder has no positions, and
    llama.cpp would read outside its table of them."""
    return min(context, facts.context_train)


def task_of(pooling: str) -> str:
    """The wire.generation.Task that a load can do."""
    return {"": "generate", "rank": "rerank"}.get(pooling, "embed")


def add_chunk(so_far: Logits | None, pooled: Logits, tokens: int, pooling: str) -> Logits:
    """A text's vector after one more chunk of `tokens` tokens, pooled by itself. For "mean" it is
    the sum over the tokens, whose direction is the mean's."""
    if pooling == "mean":
        part = pooled * np.float32(tokens)
        return part if so_far is None else so_far + part
    if pooling == "cls" and so_far is not None:
        return so_far
    return pooled.copy()


def unit(vector: Logits) -> Logits:
    """Of length 1; a zero vector stays as it is."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return vector if length == 0.0 else (vector / np.float32(length)).astype(np.float32)
