"""Files that go with a model: LoRA adapters and projectors for images.

Owns: where they lie, and what their headers say, checked before llama.cpp sees the file. It must
not load them.

Not to be confused with `peer.deploying.companions`, which finds and hashes these files for a
deployment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aivailable.errors import GgufError
from aivailable.gguf.companion_options import LORA, PROJECTOR, files_named, lora_items
from aivailable.gguf.header import read_structure
from aivailable.gguf.reader import Structure

LORA_SUFFIXES: Final = (".lora_a", ".lora_b")
PROJECTOR_NUMBERS: Final = {
    "image_size": 1 << 13,
    "patch_size": 1 << 10,
    "embedding_length": 1 << 16,
    "feed_forward_length": 1 << 18,
    "block_count": 1 << 10,
    "projection_dim": 1 << 17,
    "attention.head_count": 1 << 10,
}
"""Keys that every projector has, and the most that is plausible."""
PROJECTOR_PIXELS_MAX: Final = 1 << 26
WHOLE_KINDS: Final = frozenset({"gemma3", "gemma4v", "gemma4uv"})
"""Every row of an image sees the whole image (mtmd_decode_use_non_causal): one decode each."""
WHOLE_IMAGE_TOKENS: Final = 512
"""Room in one decode for those: Gemma's images have 256 rows, at most 280 in its fourth version."""


@dataclass(frozen=True, slots=True)
class CheckedCompanion:
    """One checked file."""

    path: str
    weights_bytes: int


def read_adapter(path: str | os.PathLike[str], architecture: str) -> CheckedCompanion:
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
    return CheckedCompanion(label, _weights(structure))


def companion_path(model_path: str | os.PathLike[str], given: str) -> str:
    """Relative paths are beside the model's file."""
    path = os.path.expanduser(given)
    return os.path.join(os.path.dirname(os.path.abspath(model_path)), path)


@dataclass(frozen=True, slots=True)
class CompanionFacts:
    """What the options' files add to a model."""

    adapters_bytes: int
    projector_bytes: int
    encoding_bytes: int
    """What encoding an image takes."""
    ubatch_min: int
    """Tokens: an image that is decoded in one piece."""


def companions_bytes(
    model_path: str | os.PathLike[str], architecture: str, options: Mapping[str, str]
) -> CompanionFacts:
    """What the options' files add to the model. Raises GgufError."""
    adapters = projector = encoding = ubatch = 0
    for given, _ in lora_items(options.get(LORA, "")):
        adapters += read_adapter(companion_path(model_path, given), architecture).weights_bytes
    for option, given in files_named(options):
        if option == PROJECTOR:
            found = read_projector(companion_path(model_path, given))
            projector, encoding = found.weights_bytes, found.compute_bytes
            ubatch = WHOLE_IMAGE_TOKENS if found.kind in WHOLE_KINDS else 0
    return CompanionFacts(adapters, projector, encoding, ubatch)


def _weights(structure: Structure) -> int:
    return sum(tensor.size_bytes for tensor in structure.tensors.values())


@dataclass(frozen=True, slots=True)
class Projector:
    """A checked projector (llama.cpp's "mmproj"): the half of a model that sees."""

    path: str
    kind: str
    """`clip.projector_type`."""
    weights_bytes: int
    compute_bytes: int
    """What encoding one image may take beside the weights: an allowance, see `_encoding`."""
    pixels: int
    """Of the largest square that is encoded at once, as far as the header says."""
    patch: int = 0
    """Pixels along a patch."""


def read_projector(path: str | os.PathLike[str]) -> Projector:
    """The header of a projector for images. Raises GgufError."""
    label = os.fspath(path)
    structure, _ = read_structure(label)
    values = structure.values
    made_for = values.get("general.architecture")
    if made_for != "clip":
        raise GgufError(f"{label}: this is no projector (general.architecture: {made_for!r})")
    kind = values.get("clip.projector_type") or values.get("clip.vision.projector_type")
    if values.get("clip.has_vision_encoder") is not True or not isinstance(kind, str):
        raise GgufError(f"{label}: the projector reads no images")
    numbers = {}
    for key, most in PROJECTOR_NUMBERS.items():
        value = values.get(f"clip.vision.{key}")
        if type(value) is not int or not 1 <= value <= most:
            raise GgufError(f"{label}: clip.vision.{key} is {value!r:.40}, not 1 to {most}")
        numbers[key] = value
    side, patch = numbers["image_size"], numbers["patch_size"]
    if side < patch:
        raise GgufError(f"{label}: patches of {patch} pixels do not fit images of {side}")
    told = values.get("clip.vision.image_max_pixels")
    pixels = max(side * side, min(told, PROJECTOR_PIXELS_MAX) if type(told) is int else 0)
    return Projector(
        label, kind, _weights(structure), _encoding(numbers, pixels // patch**2), pixels, patch
    )


def _encoding(numbers: dict[str, int], patches: int) -> int:
    """Bytes of a vision transformer's graph with flash attention: for every patch the values that
    live at once (its pixels, eight vectors of the layer's width, two of the feed-forward's, two of
    the projection's), in float32."""
    width = 8 * numbers["embedding_length"] + 2 * numbers["feed_forward_length"]
    pixels = 3 * numbers["patch_size"] ** 2
    return 4 * patches * (pixels + width + 2 * numbers["projection_dim"])
