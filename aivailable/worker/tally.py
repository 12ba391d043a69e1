"""What this worker has counted since its start, cheap to add to in every step.

Owns: the numbers of wire.worker.Counters while they change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from aivailable.wire.worker import Counters


@dataclass(slots=True)
class Tally:
    """See wire.worker.Counters."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    def counters(self) -> Counters:
        """The numbers as they are now."""
        return Counters(**asdict(self))
