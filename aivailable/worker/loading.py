"""The beginning of a replica's life on the channel: hello, one load, ready or refused.

Owns: which sizes may be loaded at all, and what the peer is told about the load. It must not serve:
the step loop for answers or for vectors goes on with what was loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from aivailable.wire.worker import Hello, Load, LoadFailed, Progress, Ready
from aivailable.worker.engine import Footprint, LoadRefused, OptionRefused, ReportProgress

CONTEXT_MIN_TOKENS: Final = 16
CONTEXT_MAX_TOKENS: Final = 1 << 20
CELLS_MAX: Final = 8 << 20
"""KV cells: beyond it llama.cpp takes half a minute only to fail."""
SLOTS_MAX: Final = 64
"""llama.cpp refuses more than 256 sequences; no legacy GPU decodes even 64 at once."""


class Loaded(Protocol):
    """What a load tells of itself: an Engine, or an Embedder."""

    context: int
    slots: int
    footprint: Footprint
    notes: tuple[str, ...]
    tasks: tuple[str, ...]
    vision: bool


LoadedT = TypeVar("LoadedT", bound=Loaded)


class ChannelPort(Protocol):
    """The channel as loading uses it; a test's fake is a list and a queue."""

    def send(self, message: Any) -> None: ...
    def receive(self) -> Any: ...
    def receive_within(self, limit_s: float) -> list[Any]: ...
    def receive_ready(self) -> list[Any]: ...
    def wake(self) -> None: ...


def announce_and_load(
    port: ChannelPort, engine: str, version: str, make: Callable[[Load, ReportProgress], LoadedT]
) -> LoadedT | None:
    """Say hello, wait for Load, load. None when the load failed (the peer has been told)."""
    port.send(Hello(os.getpid(), engine, version))
    load = port.receive()
    if not isinstance(load, Load):
        port.send(LoadFailed("unsupported", f"expected load, got {type(load).__name__}"))
        return None
    began = time.monotonic()
    try:
        check_sizes(load.context, load.slots)
        loaded = make(load, lambda phase, fraction: port.send(Progress(phase, fraction)))
    except LoadRefused as error:
        port.send(LoadFailed(error.code, str(error), dict(error.used_bytes)))
        return None
    footprint = loaded.footprint
    port.send(
        Ready(
            model_name=footprint.model_name,
            context=loaded.context,
            slots=loaded.slots,
            used_bytes=footprint.used_bytes,
            weights_bytes=footprint.weights_bytes,
            kv_bytes=footprint.kv_bytes,
            compute_bytes=footprint.compute_bytes,
            load_ms=round((time.monotonic() - began) * 1000),
            notes=loaded.notes,
            tasks=loaded.tasks,
            vision=loaded.vision,
        )
    )
    return loaded


def check_sizes(context: int, slots: int) -> None:
    """Refuse what would make llama.cpp abort or allocate for minutes. Raises OptionRefused."""
    if not 1 <= slots <= SLOTS_MAX:
        raise OptionRefused(f"{slots} slots; 1 to {SLOTS_MAX} are possible")
    if not CONTEXT_MIN_TOKENS <= context <= CONTEXT_MAX_TOKENS:
        raise OptionRefused(
            f"context {context}; {CONTEXT_MIN_TOKENS} to {CONTEXT_MAX_TOKENS} are possible",
        )
    if context * slots > CELLS_MAX:
        raise OptionRefused(f"{context} x {slots} cells; {CELLS_MAX} are possible")
