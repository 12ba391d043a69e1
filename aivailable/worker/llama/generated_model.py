"""A model of random weights, made from code: what a device is tried and measured with.

Owns: the two shapes and the bytes of such a GGUF file. Nothing is downloaded, and the same shape
has the same bytes everywhere, so that figures of different machines can be compared. It says
nothing sensible and is never served.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

_U32, _F32, _STRING = 4, 6, 8
"""`gguf_metadata_value_type` of the GGUF format."""
_TENSOR_F32, _TENSOR_Q4_0 = 0, 2
"""ggml.h `enum ggml_type`."""
_Q4_0_VALUES, _Q4_0_BYTES = 32, 18
"""ggml-common.h `block_q4_0`: a half-precision scale and 32 four-bit numbers."""
_ALIGNMENT: Final = 32
_TILE_BLOCKS: Final = 1 << 15
"""Random blocks that are made once and repeated: weights need not be unlike each other."""
_CONTEXT: Final = 1024
VOCABULARY: Final = 256
_SEED: Final = 1

Dimensions = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-like model. Every width is a multiple of 32."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    heads_kv: int


SMOKE: Final = ModelShape(layers=2, width=256, feed_forward=512, heads=4, heads_kv=2)
"""0.7 MB, with the kernels of a real model: 4-bit products, attention of 64-wide heads."""
BENCHMARK: Final = ModelShape(layers=6, width=2048, feed_forward=5632, heads=32, heads_kv=8)
"""0.27 billion weights in 152 MB: larger than the caches of the cards of interest, and it fits the
smallest of them. Layers as in a model of one to two billion weights."""


def write_model(path: Path, shape: ModelShape) -> None:
    """Write the file. Raises OSError."""
    values: Mapping[str, Any] = {
        "general.architecture": "llama",
        "general.name": "generated",
        "llama.block_count": shape.layers,
        "llama.context_length": _CONTEXT,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.heads_kv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }
    tensors = _tensors(shape)
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    for key, value in values.items():
        header += _text(key) + _value(value)
    offset = 0
    for name, dimensions in tensors.items():
        kind = _TENSOR_Q4_0 if len(dimensions) > 1 else _TENSOR_F32
        header += _text(name) + struct.pack("<I", len(dimensions))
        header += struct.pack(f"<{len(dimensions)}QIQ", *dimensions, kind, offset)
        offset += _padded(_size(dimensions))
    tile = _tile()
    with path.open("wb") as file:
        file.write(header + bytes(-len(header) % _ALIGNMENT))
        for dimensions in tensors.values():
            if len(dimensions) == 1:
                data = np.ones(dimensions[0], "<f4").tobytes()
            else:
                data = _repeated(tile, _size(dimensions))
            file.write(data + bytes(-len(data) % _ALIGNMENT))


def _tensors(shape: ModelShape) -> Mapping[str, Dimensions]:
    """Names and sizes as llama.cpp expects them, the innermost first."""
    width, kv = shape.width, shape.width // shape.heads * shape.heads_kv
    found: dict[str, Dimensions] = {
        "token_embd.weight": (width, VOCABULARY),
        "output_norm.weight": (width,),
        "output.weight": (width, VOCABULARY),
    }
    for layer in range(shape.layers):
        parts: Mapping[str, Dimensions] = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (width, kv),
            "attn_v": (width, kv),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_gate": (width, shape.feed_forward),
            "ffn_up": (width, shape.feed_forward),
            "ffn_down": (shape.feed_forward, width),
        }
        found |= {f"blk.{layer}.{name}.weight": sizes for name, sizes in parts.items()}
    return found


def _tile() -> bytes:
    """Blocks with scales so small that no activation grows beyond half precision."""
    dice = np.random.default_rng(_SEED)
    blocks = dice.integers(0, 256, (_TILE_BLOCKS, _Q4_0_BYTES), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)
    return blocks.tobytes()


def _repeated(tile: bytes, size: int) -> bytes:
    return (tile * (size // len(tile) + 1))[:size]


def _size(dimensions: Dimensions) -> int:
    if len(dimensions) == 1:
        return dimensions[0] * 4
    return dimensions[0] * dimensions[1] // _Q4_0_VALUES * _Q4_0_BYTES


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    return struct.pack("<II", _U32, value)
