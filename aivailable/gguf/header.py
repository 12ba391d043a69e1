"""What a GGUF header says about a model: the facts that placement, router and worker need.

Owns: the meaning of the header's keys and the limits beyond which llama.cpp aborts the process
instead of failing. It must not load weights.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO, Final

from aivailable.errors import GgufError
from aivailable.gguf.facts import ModelFacts
from aivailable.gguf.opening import open_model_file
from aivailable.gguf.reader import MoreNeeded, Reader, Structure, Value
from aivailable.gguf.tensors import FILE_TYPES, TENSOR_TYPES

LAYERS_MAX: Final = 1024
HEADS_MAX: Final = 1024
EMBEDDING_MAX: Final = 1 << 17
FEED_FORWARD_MAX: Final = 1 << 20
HEAD_LENGTH_MAX: Final = 1 << 13
CONTEXT_TRAIN_MAX: Final = 1 << 27
VOCABULARY_MAX_TOKENS: Final = 1 << 22
CHAT_TEMPLATE_MAX_CHARS: Final = 256 * 1024
NAME_MAX_CHARS: Final = 200
NAME_READ_MAX_CHARS: Final = 64 * 1024
"""A longer name is damage; one between the two limits is cut."""
MIB: Final = 1 << 20
FIRST_READ_BYTES: Final = 4 * MIB
"""Most headers are shorter; else four times as much is read, and so on."""
HEADER_MAX_BYTES: Final = 32 * MIB
"""The largest real ones, with 262,144 tokens and their merges, have about 20 MiB."""
TOOL_TEMPLATE_KEY: Final = "tokenizer.chat_template.tool_use"
INPUT_TENSORS: Final = tuple(
    f"{name}.weight"
    for name in ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
)
"""Kept in main memory on every load (llama-arch.cpp, LLM_TENSOR_LAYER_INPUT)."""

SLIDING_PATTERNS: Final = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2}
"""Every n-th layer sees everything, the others their window (llama.cpp src/models,
`set_swa_pattern`). An architecture not listed here is counted without a window: too much memory
is claimed rather than too little."""

POOLINGS: Final = {1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""llama.h `enum llama_pooling_type`."""
NON_CAUSAL: Final = frozenset(
    {
        *("bert", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe"),
        *("jina-bert-v2", "jina-bert-v3", "eurobert", "gemma-embedding"),
    }
)
"""Architectures without a generating half, also where the header does not say so."""
EPSILONS: Final = (
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.group_norm_epsilon",
)
"""ggml aborts at the first decode where one is negative or no number (`eps >= 0.0f`)."""
RANK_TENSORS: Final = frozenset({"cls.weight", "cls.output.weight"})
"""llama.cpp aborts on a ranking model that has neither."""


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header."""

    path: str
    size_bytes: int
    facts: ModelFacts
    chat_template: str | None
    embedding_bytes: int
    """Of the input embeddings, which llama.cpp keeps in main memory also on a GPU load."""
    tied: bool
    """Whether the output uses the input embeddings: then the GPU has a copy of them."""
    tool_template: str | None = None
    """The chat template for requests with tools, where the file has one of its own."""
    input_tensors: int = 1
    """How many tensors are tables that a token, position or kind picks a row of (INPUT_TENSORS)."""


def read_structure(label: str) -> tuple[Structure, int]:
    """Keys and tensors of any GGUF file at the path `label`, and its size in bytes.

    Raises GgufError as `read_header` does.
    """
    try:
        with open_model_file(label) as file:
            size = os.fstat(file.fileno()).st_size
            structure = _read_enough(file, label, size)
    except (OSError, ValueError) as error:
        raise GgufError(f"{label}: cannot be read: {error}") from error
    if structure.expected_bytes > size:
        raise GgufError(
            f"{label}: the file is truncated: {size // MIB} MiB of "
            f"{-(-structure.expected_bytes // MIB)} MiB ({size} of {structure.expected_bytes} "
            "bytes); copy it again"
        )
    return structure, size


def _read_enough(file: BinaryIO, label: str, size: int) -> Structure:
    """The structure from as few first bytes as hold it.

    Read, not mapped: a mapped file that shrinks meanwhile ends the process with SIGBUS.
    """
    wanted = FIRST_READ_BYTES
    while True:
        file.seek(0)
        data = file.read(wanted)
        if len(data) < min(size, wanted):
            raise GgufError(
                f"{label}: the file shrank while it was read; wait until it is complete"
            )
        try:
            return Reader(data, label, size).structure()
        except MoreNeeded:
            if wanted >= HEADER_MAX_BYTES:
                raise GgufError(
                    f"{label}: the header is longer than {HEADER_MAX_BYTES // MIB} MiB: the file "
                    "is damaged; copy it again"
                ) from None
            wanted = min(wanted * 4, HEADER_MAX_BYTES)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a model file.

    Raises GgufError naming the file, what is wrong and what to do; also when it cannot be opened.
    """
    label = os.fspath(path)
    structure, size = read_structure(label)
    values = _Values(structure, label)
    template = values.text("tokenizer.chat_template", "", CHAT_TEMPLATE_MAX_CHARS) or None
    return Header(
        path=label,
        size_bytes=size,
        facts=_facts(structure, values, template is not None),
        chat_template=template,
        embedding_bytes=structure.tensors["token_embd.weight"].size_bytes,
        tied="output.weight" not in structure.tensors,
        tool_template=values.text(TOOL_TEMPLATE_KEY, "", CHAT_TEMPLATE_MAX_CHARS) or None,
        input_tensors=sum(name in structure.tensors for name in INPUT_TENSORS),
    )


class _Values:
    """Checked access to key/values."""

    def __init__(self, structure: Structure, label: str) -> None:
        self._values = structure.values
        self._label = label

    def wrong(self, problem: str) -> GgufError:
        return GgufError(f"{self._label}: {problem}; the file is damaged or not supported")

    def text(self, key: str, default: str | None, limit_chars: int) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str) or len(value) > limit_chars:
            raise self.wrong(f"{key} is not a text of at most {limit_chars} characters")
        return value

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        return self._checked(key, self._values.get(key, default), least, most)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"{key} is neither true nor false")
        return value

    def integers(self, key: str, count: int, most: int, default: int) -> tuple[int, ...]:
        """One number for every layer; a scalar counts for all."""
        value = self._values.get(key, default)
        if not isinstance(value, tuple):
            return (self._checked(key, value, 0, most),) * count
        if len(value) < count:
            raise self.wrong(f"{key} has {len(value)} entries for {count} layers")
        return tuple(self._checked(key, item, 0, most) for item in value[:count])

    def refuse_negative(self, key: str) -> None:
        """Of a number that may be missing."""
        value = self._values.get(key, 0.0)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.wrong(f"{key} is {value!r:.40}, not a number from 0 on")

    def raw(self, key: str) -> Value:
        return self._values.get(key)

    def _checked(self, key: str, value: Value, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(f"{key} is {value!r:.40}, not a number from {least} to {most}")
        return value


def _facts(structure: Structure, values: _Values, has_template: bool) -> ModelFacts:
    architecture = values.text("general.architecture", None, NAME_MAX_CHARS)
    if values.integer("split.count", 0, 1 << 16, 0) > 1:
        raise values.wrong("this is one part of a split model; merge the parts into one file")
    embedded = structure.tensors.get("token_embd.weight")
    if embedded is None or len(embedded.dimensions) != 2:
        raise values.wrong("there are no token embeddings: this is no language model")
    prefix = f"{architecture}."
    layers = values.integer(prefix + "block_count", 1, LAYERS_MAX)
    embedding = values.integer(prefix + "embedding_length", 1, EMBEDDING_MAX)
    vocabulary = embedded.dimensions[1]
    if embedded.dimensions[0] != embedding or vocabulary > VOCABULARY_MAX_TOKENS:
        raise values.wrong(f"token embeddings of {embedded.dimensions} do not fit {embedding}")
    heads, heads_kv, key_length, value_length = _attention(values, prefix, layers, embedding)
    for key in EPSILONS:
        values.refuse_negative(prefix + key)
    window, sliding = _sliding(values, architecture, layers)
    pooling, causal = _pooling(structure, values, architecture)
    return ModelFacts(
        architecture=architecture,
        name=values.text("general.name", architecture, NAME_READ_MAX_CHARS)[:NAME_MAX_CHARS],
        context_train=values.integer(prefix + "context_length", 1, CONTEXT_TRAIN_MAX),
        layers=layers,
        embedding=embedding,
        heads_kv=heads_kv,
        key_length=key_length,
        value_length=value_length,
        vocab=vocabulary,
        weights_bytes=sum(tensor.size_bytes for tensor in structure.tensors.values()),
        sliding_window=window,
        sliding_layers=sliding,
        quantization=_quantization(structure, values),
        has_chat_template=has_template,
        parameters=sum(tensor.values for tensor in structure.tensors.values()),
        heads=heads,
        feed_forward=max(
            values.integers(prefix + "feed_forward_length", layers, FEED_FORWARD_MAX, 0)
        ),
        pooling=pooling,
        causal=causal,
    )


def _pooling(structure: Structure, values: _Values, architecture: str) -> tuple[str, bool]:
    """How a text becomes one vector, "" for a model that generates, and whether it is causal."""
    causal = values.flag(f"{architecture}.attention.causal", architecture not in NON_CAUSAL)
    kind = values.integer(f"{architecture}.pooling_type", 0, max(POOLINGS), 0)
    pooling = POOLINGS.get(kind, "" if causal else "mean")
    if pooling == "rank" and not RANK_TENSORS & structure.tensors.keys():
        raise values.wrong("it says that it ranks texts, but has no classification head")
    return pooling, causal


def _attention(
    values: _Values, prefix: str, layers: int, embedding: int
) -> tuple[int, tuple[int, ...], int, int]:
    """Most query heads, KV heads by layer, and the lengths of one head's key and value."""
    head_counts = values.integers(prefix + "attention.head_count", layers, HEADS_MAX, 0)
    heads = max(head_counts)
    if heads == 0:
        raise values.wrong("there are no attention heads: this kind of model is not supported")
    heads_kv = values.integers(prefix + "attention.head_count_kv", layers, HEADS_MAX, heads)
    for query, shared in zip(head_counts, heads_kv, strict=True):
        if shared and (shared > query or query % shared):
            raise values.wrong(f"{query} heads cannot share {shared} KV heads")
    if max(heads_kv) == 0:
        raise values.wrong("attention.head_count_kv is 0 in every layer")
    rank = values.integer(prefix + "attention.kv_lora_rank", 0, EMBEDDING_MAX, 0)
    if rank:
        # Multi-head latent attention caches one compressed key of all heads, and no value.
        rope = values.integer(prefix + "rope.dimension_count", 1, HEAD_LENGTH_MAX, 64)
        return heads, (1,) * layers, rank + rope, 0
    default = embedding // heads
    if default == 0:
        raise values.wrong(f"{heads} heads do not fit an embedding of {embedding}")
    key = values.integer(prefix + "attention.key_length", 1, HEAD_LENGTH_MAX, default)
    value = values.integer(prefix + "attention.value_length", 1, HEAD_LENGTH_MAX, key)
    return heads, heads_kv, key, value


def _sliding(values: _Values, architecture: str, layers: int) -> tuple[int, tuple[bool, ...]]:
    """The window in tokens and which layers have it."""
    if architecture not in SLIDING_PATTERNS:
        return 0, ()
    prefix = f"{architecture}.attention.sliding_window"
    window = values.integer(prefix, 0, CONTEXT_TRAIN_MAX, 0)
    if window == 0:
        return 0, ()
    pattern = values.raw(prefix + "_pattern")
    if isinstance(pattern, tuple):
        if len(pattern) < layers:
            raise values.wrong(f"{prefix}_pattern has {len(pattern)} entries for {layers} layers")
        return window, tuple(bool(item) for item in pattern[:layers])
    every = values.integer(prefix + "_pattern", 1, LAYERS_MAX, SLIDING_PATTERNS[architecture])
    return window, tuple(layer % every < every - 1 for layer in range(layers))


def _quantization(structure: Structure, values: _Values) -> str:
    """The file's own word, else the format that most bytes are in."""
    declared = values.raw("general.file_type")
    if type(declared) is int and declared in FILE_TYPES:
        return FILE_TYPES[declared]
    sizes: Counter[int] = Counter()
    for tensor in structure.tensors.values():
        sizes[tensor.type_id] += tensor.size_bytes
    return TENSOR_TYPES[sizes.most_common(1)[0][0]].name
