"""What nearly every prompt of a model begins with: its chat template's first words.

Owns: finding them and computing them once, before the first request. A short prompt is often half
of it (SmolLM2's default system prompt: 30 of 68 tokens). It is computed before anything else is in
the cache (see sequences).
"""

from __future__ import annotations

from typing import Final

from aivailable.errors import RequestError
from aivailable.wire.generation import Generate
from aivailable.worker.engine import Engine, Part
from aivailable.worker.generating.radix import common_length
from aivailable.worker.generating.sequences import Sequences

OPENING_MIN_TOKENS: Final = 8
"""Fewer are not worth a sequence."""
OPENING_MAX_TOKENS: Final = 256
"""A template that says more before the first message is computed once so far."""
_QUESTIONS: Final = ("What is this?", "Please go on.")
"""Two that begin with different words: what their prompts share is the template's."""


def compute_opening(engine: Engine, sequences: Sequences) -> None:
    """Put the opening into a sequence of its own, if the model has one and a sequence is to spare.

    Raises DecodeFailed: an engine that cannot compute its own template's words serves nobody.
    """
    if engine.sequences <= engine.slots:
        return
    try:
        prompts = [engine.prepare(_asking(question)).prompt for question in _QUESTIONS]
    except RequestError:
        return  # No chat template, or one that says by itself what it refuses, at every request.
    length = common_length(list(prompts[0]), list(prompts[1]))
    tokens = prompts[0][: min(length, OPENING_MAX_TOKENS, engine.warm_tokens)]
    if len(tokens) < OPENING_MIN_TOKENS:
        return
    number = sequences.open_with(tokens)
    # Equal chunks: one of a single token would take other kernels than the rest.
    chunk = -(-len(tokens) // -(-len(tokens) // engine.chunk_tokens))
    for at in range(0, len(tokens), chunk):
        engine.decode([Part(number, tokens[at : at + chunk], at, wants_logits=False)])


def _asking(question: str) -> Generate:
    return Generate("opening", "", messages=({"role": "user", "content": question},))
