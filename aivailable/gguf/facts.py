"""What a model file's header says, as data. Pure; part of the replicated catalogue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Read from a GGUF header: what the memory formula and the router need. It is part of the
    replicated catalogue (core.state.records.Model), so a field may be added, never renamed."""

    architecture: str
    name: str
    context_train: int
    layers: int
    embedding: int
    heads_kv: tuple[int, ...]
    """KV heads by layer; 0 where a layer has no attention."""
    key_length: int
    value_length: int
    vocab: int
    weights_bytes: int
    sliding_window: int = 0
    """Tokens; 0 = none."""
    sliding_layers: tuple[bool, ...] = ()
    quantization: str = ""
    has_chat_template: bool = False
    parameters: int = 0
    heads: int = 0
    """Most query heads of any layer."""
    feed_forward: int = 0
    """Widest feed-forward layer."""
    pooling: str = ""
    """How a text's token vectors become one: mean, cls, last; rank = a relevance score. "" = the
    file says nothing: it generates."""
    causal: bool = True
    """False: every token sees the whole text, so that it is computed in one piece, without a cache.
    """
