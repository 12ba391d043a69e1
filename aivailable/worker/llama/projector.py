"""The projector of a deployment, option `projector=FILE`: found, predicted, loaded, counted.

Owns: the check of the file, what its load may take, mtmd's context, and which projectors are
refused because their images cannot be served right.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aivailable.errors import GgufError
from aivailable.gguf.companions import (
    WHOLE_IMAGE_TOKENS,
    WHOLE_KINDS,
    Projector,
    companion_path,
    read_projector,
)
from aivailable.gguf.memory import Need
from aivailable.worker.engine import LoadRefused, OptionRefused
from aivailable.worker.llama.claims import Claimed
from aivailable.worker.llama.library import MAIN_MEMORY, MIB, Buffers, Log, import_media_library
from aivailable.worker.llama.parameters import LlamaParameters

MASKED_KINDS: Final = frozenset({"qwen2.5vl_merger", "qwen2.5o"})
"""Attention in windows: a mask of patches by patches, in single and in half precision."""
MASK_BYTES: Final = 6
GRID_KINDS: Final = frozenset({"qwen2vl_merger", "qwen3vl_merger"}) | MASKED_KINDS
"""Images keep their size, up to a number of rows that mtmd is told here; two by two patches make
one row. Their headers do not say how large that is."""
GRID_ROWS_MAX: Final = 46 * 46
"""For so many mtmd lays its graph out at load (clip.cpp `set_warmup_n_tokens`). It admits 4096, but
then its buffers would grow at the first such image, when the memory may be somebody else's."""
GRID_ROWS_MIN: Final = 64
"""So many are left to an image by the smallest context."""
GRID_SHARE: Final = 2
"""One image takes at most such a part of the context: several, and the words, are to fit."""
PLACED_KINDS: Final = frozenset({"deepseek4v"})
"""How many rows an image has depends on where it stands."""
_WEIGHTS: Final = re.compile(r"load_hparams: model size: *([0-9.]+) MiB")
_COMPUTE: Final = re.compile(r"(\S+) compute buffer size = *([0-9.]+) MiB")
_WARMED: Final = re.compile(r"warmup with image size = (\d+) x (\d+)")
_PIXELS: Final = re.compile(r"image_max_pixels: *(\d+)")
_SLOW: Final = "flash attention is disabled"
_BEGUN: Final = "CLIP using "
_ON_CPU: Final = "CLIP using CPU backend"


def projector_of(model_path: str, options: Mapping[str, str]) -> Projector | None:
    """Read the option and check the file's header. Raises LoadRefused."""
    given = options.get("projector", "").strip()
    if not given:
        return None
    try:
        found = read_projector(companion_path(model_path, given))
    except GgufError as error:
        raise OptionRefused(f"engine option projector: {error}", "bad_file") from error
    if found.kind in PLACED_KINDS:
        raise _refused(found, "the rows of its images depend on their place in the prompt")
    return _with_grid(found) if found.kind in GRID_KINDS else found


def grid_rows(context: int) -> int:
    """Most rows of one image; larger ones are scaled down."""
    return max(GRID_ROWS_MIN, min(GRID_ROWS_MAX, context // GRID_SHARE))


def _with_grid(found: Projector) -> Projector:
    """The allowance for the largest image."""
    patches = 4 * GRID_ROWS_MAX
    pixels = patches * found.patch**2
    compute = found.compute_bytes * patches // max(1, found.pixels // found.patch**2)
    if found.kind in MASKED_KINDS:
        compute += MASK_BYTES * patches**2
    return dataclasses.replace(found, pixels=pixels, compute_bytes=compute)


def with_room(chosen: LlamaParameters, projector: Projector | None) -> LlamaParameters:
    """Sizes that hold a whole image where it must not be cut."""
    if projector is None or projector.kind not in WHOLE_KINDS:
        return chosen
    ubatch = max(chosen.ubatch, min(WHOLE_IMAGE_TOKENS, chosen.cells))
    return dataclasses.replace(chosen, ubatch=ubatch, batch=max(chosen.batch, ubatch))


def with_projector(need: Need, projector: Projector | None) -> Need:
    """What the model needs, and the projector beside it, on the first claimed device."""
    if projector is None:
        return need
    return dataclasses.replace(
        need,
        weights_bytes=need.weights_bytes + projector.weights_bytes,
        compute_bytes=need.compute_bytes + projector.compute_bytes,
    )


@dataclass(frozen=True, slots=True)
class ProjectorHandle:
    """A loaded projector. `native` is its mtmd_context."""

    media: Any
    """The module llama_cpp.mtmd_cpp."""
    native: Any
    mark: str
    """Stands for an image in a prompt's text; no text can guess it."""
    whole: bool
    """An image is decoded in one piece."""
    mrope: bool = False
    """The rows of an image stand in lines and columns at one position (mrope_positions)."""
    rows: int = 0
    """Most rows of one image; 0 = its encoder's own limit."""


def load_projector(
    model: Any,
    projector: Projector,
    chosen: LlamaParameters,
    context: int,
    claimed: Claimed,
    log: Log,
    mark: str,
) -> tuple[ProjectorHandle, Buffers]:
    """Load the file onto the first claimed device, and what llama.cpp says that it takes there.

    Raises LoadRefused: for a file that does not fit the model, one whose images this scheduler
    cannot place, or one that is not on the claimed GPU.
    """
    media = import_media_library()
    log.lines.clear()
    media.mtmd_helper_log_set(log.callback, None)
    given = media.mtmd_context_params_default()
    given.use_gpu = bool(claimed.gpus)
    given.device = claimed.gpus[0].handle if claimed.gpus else None
    given.print_timings = False
    given.n_threads = max(1, chosen.threads)
    given.media_marker = mark.encode()
    rows = grid_rows(context) if projector.kind in GRID_KINDS else 0
    if rows:
        given.image_max_tokens = rows
    native = media.mtmd_init_from_file(projector.path.encode(), model, given)
    if not native:
        code = "out_of_memory" if log.says_no_memory() else "bad_file"
        raise LoadRefused(
            code, f"llama.cpp cannot use the projector {projector.path}: {log.tail()}"
        )
    if not media.mtmd_support_vision(native):
        raise _refused(projector, "it reads no images")
    whole = bool(media.mtmd_decode_use_non_causal(native, None))
    mrope = bool(media.mtmd_decode_use_mrope(native))
    if whole and mrope:
        raise _refused(projector, "it places images by M-RoPE and in one piece at once")
    if whole and projector.kind not in WHOLE_KINDS:
        raise _refused(projector, "its images are not causal and of a size that is not known")
    if claimed.gpus and any(_ON_CPU in line for line in log.lines):
        raise LoadRefused("not_fully_offloaded", f"the projector {projector.path} is on the CPU")
    memory = claimed.gpus[0].name if claimed.gpus else MAIN_MEMORY
    return ProjectorHandle(media, native, mark, whole, mrope, rows), projector_buffers(
        log.lines, projector, memory
    )


def projector_buffers(lines: Iterable[str], projector: Projector, memory: str) -> Buffers:
    """What mtmd says of a load. Its graph was laid out for a warm-up image; a larger one needs in
    proportion more (by the square where attention is not flash attention), which is counted."""
    buffers = Buffers()
    encoders: list[dict[str, int]] = []
    weights, pixels, warmed, power = 0, projector.pixels, 0, 1
    for line in lines:
        if _BEGUN in line:
            encoders.append({})
        elif (found := _WEIGHTS.search(line)) is not None:
            weights = math.ceil(float(found[1]) * MIB)
        elif (found := _COMPUTE.search(line)) is not None and encoders:
            # Said again when it is laid out anew without flash attention: the last word counts.
            encoders[-1][found[1]] = math.ceil(float(found[2]) * MIB)
        elif (found := _WARMED.search(line)) is not None:
            warmed = int(found[1]) * int(found[2])
        elif (found := _PIXELS.search(line)) is not None:
            pixels = int(found[1])
        elif _SLOW in line:
            power = 2
    buffers.model[memory] = weights
    larger = max(1.0, pixels / warmed) ** power if warmed else 1.0
    for encoder in encoders:
        for name, count in encoder.items():
            buffers.add_compute(name, math.ceil(count * larger))
    return buffers


def _refused(projector: Projector, why: str) -> LoadRefused:
    return LoadRefused("unsupported", f"the projector {projector.path} ({projector.kind}): {why}")
