"""Messages between a peer and one worker process, over a socket pair.

Framing: u32 big-endian length, then msgpack [kind, map]; at most WORKER_FRAME_MAX_BYTES.
The worker speaks first (Hello). Load is answered by Progress* then Ready or LoadFailed (and the
process ends). After Ready: Generate, Cancel, Pause and Resume down; Step frames up, one per decode
step for all requests together. Shutdown, or the socket's end, ends the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aivailable.wire.envelope import Registry
from aivailable.wire.generation import Cancel, Embedded, Failed, Finished, Generate, Started, Tokens
from aivailable.wire.schema import Int

SOFTWARE_DEVICES: Final = ("llvmpipe", "swiftshader")
"""How Vulkan devices that compute on the CPU (Mesa's lavapipe, Google's) begin to name themselves.
ggml hides them, unless GGML_VK_VISIBLE_DEVICES names one, and then it calls them GPUs."""


def is_software(name: str) -> bool:
    """Whether a device of that name computes on the CPU."""
    return name.lower().startswith(SOFTWARE_DEVICES)


@dataclass(frozen=True, slots=True)
class Load:
    """Load one model. `engine` is "llama" or "fake"; `devices` name the claimed devices in the
    backend's own order with the claimed bytes; kind "cpu" and "sim" run on the CPU on purpose."""

    replica: str
    engine: str
    path: str
    context: int
    """Tokens per slot; the KV cache holds slots × context cells."""
    slots: int
    devices: tuple[DeviceClaim, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    """Engine options of the deployment: kv_type, ubatch, threads, flash_attention, …"""
    check_tensors: bool = False


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    device_id: str
    backend: str
    index: int
    claim_bytes: int


@dataclass(frozen=True, slots=True)
class Hello:
    pid: int
    engine: str
    version: str
    """Of the inference library, or "" for the fake engine."""


@dataclass(frozen=True, slots=True)
class Progress:
    phase: str
    """loading | checking | warming"""
    fraction: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The model decodes. Bytes are what the engine itself reports, by device id."""

    model_name: str
    context: int
    slots: int
    used_bytes: Mapping[str, int]
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    load_ms: int
    notes: tuple[str, ...] = ()
    """What was chosen where the deployment left it open, as "threads=7": shown to the operator."""
    tasks: tuple[str, ...] = ("generate",)
    """wire.generation.Task values that this model can do."""
    vision: bool = False


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """`code`: bad_file, out_of_memory, not_fully_offloaded, over_claim, unsupported, crashed."""

    code: str
    message: str
    used_bytes: Mapping[str, int] = field(default_factory=dict)
    """By device id what the model needs, when it has claimed less (over_claim)."""


@dataclass(frozen=True, slots=True)
class Step:
    """Everything that one decode step produced."""

    started: tuple[Started, ...] = ()
    tokens: tuple[Tokens, ...] = ()
    embedded: tuple[Embedded, ...] = ()
    finished: tuple[Finished, ...] = ()
    failed: tuple[Failed, ...] = ()
    slots_busy: Int = 0
    waiting: Int = 0
    counters: Counters | None = None
    prefixes: tuple[Int, ...] | None = None
    """Digests of the prompt prefixes that are warm (wire.prefixes), when they changed."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the worker's start. A test proves with them who did the work."""

    requests: Int = 0
    finished: Int = 0
    cancelled: Int = 0
    failed: Int = 0
    prompt_tokens: Int = 0
    generated_tokens: Int = 0
    steps: Int = 0
    cached_tokens: Int = 0
    """Prompt tokens that were not computed, thanks to a shared prefix."""
    drafted_tokens: Int = 0
    accepted_tokens: Int = 0
    """Guesses of speculative decoding that were computed, and answers' tokens won by them."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The reader of this request does not keep up: no more tokens until Resume. It keeps its slot
    and its place in the cache; its deadline runs on."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Resume:
    """The reader of this request has caught up."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    reason: str = ""


TO_WORKER = Registry(
    load=Load, generate=Generate, cancel=Cancel, pause=Pause, resume=Resume, shutdown=Shutdown
)
FROM_WORKER = Registry(
    hello=Hello, progress=Progress, ready=Ready, load_failed=LoadFailed, step=Step
)
