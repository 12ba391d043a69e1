"""What the step loop needs from an inference engine: the interface, and its failures.

Owns: names only. Implemented by engine_fake and llama/engine, consumed by generating/step_loop; the
batcher knows nothing but `Part`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from aivailable.errors import WorkerError
from aivailable.wire.generation import Generate
from aivailable.worker.answer import Prepared

Logits: TypeAlias = npt.NDArray[np.float32]
"""One row, a number for every token of the vocabulary. Valid until the next decode."""
ReportProgress: TypeAlias = Callable[[str, float], None]
"""(phase, fraction 0…1) → nothing."""


class LoadRefused(WorkerError):
    """The model cannot be served here. `code` is one of wire.worker.LoadFailed's, `used_bytes`
    what it needs by device id when it has claimed less."""

    def __init__(
        self, code: str, message: str, used_bytes: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.used_bytes = used_bytes or {}


class OptionRefused(LoadRefused):
    """A size or an engine option that no load can have, whatever the device: refused at deploy."""

    def __init__(self, message: str, code: str = "unsupported") -> None:
        super().__init__(code, message)


class DecodeFailed(WorkerError):
    """One decode did not succeed; the sequences in it are to be trimmed before another try."""


class CellsExhausted(DecodeFailed):
    """No cell was free for a token. Nothing has changed: another try may follow an eviction."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of one slot in one decode."""

    slot: int
    tokens: tuple[int, ...]
    position: int
    """Of the first token: how many tokens the slot's cache holds before it."""
    wants_logits: bool
    """After the last token, and after each one before a drafted token."""
    drafted: int = 0
    """So many last tokens are guesses. The cache is cut back to those that turn out right."""

    @property
    def rows(self) -> int:
        """Rows of logits that this part is answered with."""
        return 1 + self.drafted if self.wants_logits else 0

    @property
    def guesses(self) -> tuple[int, ...]:
        """The drafted tokens."""
        return self.tokens[len(self.tokens) - self.drafted :]

    def plain(self) -> Part:
        """The same without guesses."""
        if not self.drafted:
            return self
        return replace(self, tokens=self.tokens[: -self.drafted], drafted=0)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a loaded model occupies, in bytes; `used_bytes` by claimed device id."""

    model_name: str
    used_bytes: Mapping[str, int]
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


class Engine(Protocol):
    """One loaded model with `slots` sequences of at most `context` tokens each."""

    name: str
    version: str
    context: int
    slots: int
    vocabulary: int
    """Number of tokens; ids are 0 … vocabulary - 1."""
    sequences: int
    """Numbers of caches, at least `slots`: what is over keeps prompts warm."""
    warm_tokens: int
    """Most tokens that idle sequences may hold together; no more than all cells."""
    chunk_tokens: int
    """Most prefill tokens in one step."""
    least_tokens: int
    """Prefill tokens that are worth a step beside running rows, however slow they are."""
    step_tokens: int
    """Most tokens in one step, over all slots. At least `chunk_tokens`."""
    replay_tokens: int
    """Chunk in which ids of a continuation are replayed by a request that is alone, so that the
    numbers are those of the first time."""
    draft_tokens: int
    """Most guesses beside one row; 0 where a cache cannot be cut or they are not wanted."""
    notes: tuple[str, ...]
    """What was chosen where the deployment left it open (wire.worker.Ready.notes)."""
    footprint: Footprint
    tasks: tuple[str, ...]
    """wire.worker.Ready.tasks"""
    vision: bool
    """Whether images may be in the messages."""

    def prepare(self, request: Generate) -> Prepared:
        """Render and tokenize the prompt, and say how the answer is to be read and bound.

        A request with `prompt_ids` keeps them as its prompt: messages and tools beside them
        choose parser and grammar only. Raises RequestError (template_error, …).
        """

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        """Run one step; the parts' rows of logits (`Part.rows`), in order.

        Raises DecodeFailed; then the caches of the parts' slots are undefined until trimmed.
        """

    def trim(self, slot: int, length: int) -> int:
        """Keep the first `length` tokens of the slot's cache, or none where the cache cannot
        (sliding window); returns how many are kept."""

    def fork(self, source: int, target: int, length: int) -> int:
        """Make `target` the first `length` tokens of `source`, sharing their cells; returns how
        many it holds now: all or none."""

    def reach(self, slot: int, length: int) -> bool:
        """Whether the token after the slot's first `length` can be computed from its cache."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token; a character may be spread over several."""

    def marker(self, token: int) -> bytes:
        """The text of a control token, as its model writes it; of others their bytes."""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
