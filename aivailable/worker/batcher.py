"""Who is decoded in the next step: slots, the waiting line, rows and prefill chunks.

Owns: scheduling only. Pure: no engine, no clock, no I/O; used by session and tested by itself.

Laws: a slot has at most one job; decode rows go first, one token each; prefill chunks of a fixed
size go beside them, whole or not at all, under a token budget, taking turns; waiting is first in,
first out; a cancelled job is in no further step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from aivailable.worker.engine import Part
from aivailable.worker.job import Job

REPLAY_CHUNK_TOKENS: Final = 32
"""Continuation replays generated ids in such chunks: measured to repeat the text exactly."""
WAITING_MAX_JOBS: Final = 1024
"""The peer's own queue is far shorter; beyond this the worker refuses."""


class Batcher:
    """Slots and the line before them. Not thread-safe."""

    def __init__(self, slots: int, chunk_tokens: int, budget_tokens: int) -> None:
        if slots < 1 or chunk_tokens < 1 or budget_tokens < chunk_tokens:
            raise ValueError("slots and chunk must be positive, the budget at least one chunk")
        self._chunk = chunk_tokens
        self._budget = budget_tokens
        self._cached: list[tuple[int, ...]] = [()] * slots
        """Tokens whose KV an idle slot still holds."""
        self._idle_since: list[int] = [0] * slots
        self._turn = 0
        self._free: list[int] = list(range(slots))
        self._running: dict[int, Job] = {}
        self._prefilling: deque[Job] = deque()
        self._waiting: deque[Job] = deque()

    @property
    def busy(self) -> int:
        """Slots with a job."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return len(self._waiting)

    def jobs(self) -> tuple[Job, ...]:
        """Every job, running ones first."""
        return (*self._running.values(), *self._waiting)

    def find(self, request_id: str) -> Job | None:
        """The job of a request, running or waiting."""
        return next((job for job in self.jobs() if job.request_id == request_id), None)

    def submit(self, job: Job) -> bool:
        """Put a job into the line; False when the line is full."""
        if len(self._waiting) >= WAITING_MAX_JOBS:
            return False
        self._waiting.append(job)
        return True

    def admit(self, trim: Callable[[int, int], int]) -> tuple[Job, ...]:
        """Give free slots to waiting jobs. `trim(slot, length)` cuts a slot's cache and returns
        what it kept (Engine.trim)."""
        admitted: list[Job] = []
        while self._waiting and self._free:
            job = self._waiting.popleft()
            slot, common = self._best_slot(job)
            self._free.remove(slot)
            kept = trim(slot, common)
            job.slot, job.fed, job.cached = slot, kept, kept
            self._cached[slot] = ()
            self._running[slot] = job
            self._prefilling.append(job)
            admitted.append(job)
        return tuple(admitted)

    def plan(self) -> tuple[Part, ...]:
        """The next step; empty when there is nothing to do. Changes nothing."""
        parts = [
            Part(job.slot, (job.tokens[job.fed],), job.fed, wants_logits=True)
            for job in self._running.values()
            if job.decoding
        ]
        room = self._budget
        for job in self._prefilling:
            size = self._next_chunk(job)
            if size > room:
                break
            room -= size
            end = job.fed + size
            wants = end == len(job.tokens)
            parts.append(Part(job.slot, tuple(job.tokens[job.fed : end]), job.fed, wants))
        return tuple(parts)

    def job_in(self, slot: int) -> Job:
        """The job that has this slot. Raises KeyError for a free one."""
        return self._running[slot]

    def advance(self, part: Part) -> Job:
        """A part was decoded: its tokens are in the cache now. Returns its job."""
        job = self._running[part.slot]
        job.fed = part.position + len(part.tokens)
        if self._prefilling and job in self._prefilling:
            self._prefilling.remove(job)
            if job.fed < len(job.tokens):
                # To the end of the line, so that a short prompt is not behind a long one.
                self._prefilling.append(job)
        return job

    def release(self, job: Job, *, reusable: bool = True) -> None:
        """The job is over or cancelled: it leaves the line or frees its slot at once.

        `reusable` false: what the slot's cache holds is not to be trusted.
        """
        if job.slot < 0:
            self._waiting.remove(job)
            return
        del self._running[job.slot]
        if job in self._prefilling:
            self._prefilling.remove(job)
        self._cached[job.slot] = tuple(job.tokens[: job.fed]) if reusable else ()
        self._turn += 1
        self._idle_since[job.slot] = self._turn
        self._free.append(job.slot)
        job.slot = -1

    def _next_chunk(self, job: Job) -> int:
        if job.fed < job.prompt_tokens:
            # Chunks end at multiples of the chunk size also after a reused prefix.
            return min(self._chunk - job.fed % self._chunk, job.prompt_tokens - job.fed)
        return min(REPLAY_CHUNK_TOKENS, len(job.tokens) - job.fed)

    def _best_slot(self, job: Job) -> tuple[int, int]:
        """A free slot and how much of its cache begins this job's prompt, in whole chunks; among
        equals the emptiest cache, then the one idle for longest."""
        shared = {slot: self._common_prefix(job, self._cached[slot]) for slot in self._free}
        best = min(
            self._free,
            key=lambda slot: (
                -shared[slot],
                bool(self._cached[slot]),
                self._idle_since[slot],
                slot,
            ),
        )
        return best, shared[best]

    def _common_prefix(self, job: Job, cached: tuple[int, ...]) -> int:
        # The last prompt token is always decoded anew: its logits are needed.
        most = min(len(cached), job.prompt_tokens - 1)
        common = 0
        while common < most and cached[common] == job.tokens[common]:
            common += 1
        return common - common % self._chunk
