"""Who is decoded in the next step: slots, the waiting line, rows and prefill chunks.

Owns: scheduling only. Pure: no clock, no I/O; what a cache can do it asks of `sequences.Caches`.

Laws: at most `slots` jobs run, each in a sequence of its own; decode rows go first, one token
each and perhaps guesses after it (drafting); prefill goes beside them in what is left of a step.
Short prompts are let through at once, because somebody waits for each: those that are there
together (a wave) end together, so that none of them streams in the gaps between the others'
prompts; long ones share the given budget in turns. Waiting is
first in, first out; a cancelled or paused job is in no further step. A job whose prompt begins
like one that is being prefilled waits for it and starts from its cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aivailable.worker.engine import Part
from aivailable.worker.generating.job import Job
from aivailable.worker.generating.radix import common_length
from aivailable.worker.generating.sequences import Sequences

REPLAY_CHUNK_TOKENS: Final = 32
"""Continuation replays generated ids in such chunks beside other work."""
REPLAY_EXACT_TOKENS: Final = 256
"""This many replayed ids go as the engine says (`replay_tokens`); what is beyond goes in chunks, so
that the pause of a continuation stays bounded."""
WAITING_MAX_JOBS: Final = 1024
"""The peer's own queue is far shorter; beyond this the worker refuses."""
SHORT_PROMPT_TOKENS: Final = 256
"""A prompt with no more to compute goes before the long ones and past their budget."""
YOUNG_TOKENS: Final = 8
"""Answers with fewer tokens are held while a wave is computed."""
HOLD_EVERY_STEPS: Final = 4
"""A held row is in every fourth step of a wave."""
LONG_SHARE: Final = 4
"""While short prompts are let through, long ones keep up to one such part of a chunk."""
GIVE_WAY_MAX: Final = 3
"""Times that one request is computed anew for others; then one of them fails instead."""
FOLLOW_MIN_TOKENS: Final = 48
"""Waiting for another job's prefill must save at least this many tokens."""
CHUNK_MIN_TOKENS: Final = 2
"""No prompt chunk is a single token, if the prompt has more: one row alone takes other kernels
than several, and then the same prompt would give another text."""

LAST_TOKENS: Final = 2 * CHUNK_MIN_TOKENS - 1
"""This many left of a prompt cannot be halved."""


@dataclass(frozen=True, slots=True)
class Follower:
    """`job` waits until `leader` has prefilled the `length` tokens that both begin with."""

    job: Job
    leader: Job
    length: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an engine can do in one step; see engine.Engine."""

    slots: int
    chunk: int
    step: int
    replay: int


class Batcher:
    """Slots and the line before them. Not thread-safe."""

    def __init__(self, sizes: Sizes, sequences: Sequences) -> None:
        if sizes.slots < 1 or sizes.chunk < CHUNK_MIN_TOKENS or sizes.step < sizes.chunk:
            raise ValueError("slots must be positive, a chunk two tokens, a step one chunk")
        self._sizes = sizes
        self._sequences = sequences
        self._running: dict[int, Job] = {}
        self._prefilling: deque[Job] = deque()
        self._following: list[Follower] = []
        self._waiting: deque[Job] = deque()
        self._long: dict[int, None] = {}
        """Sequences whose prompt has more than SHORT_PROMPT_TOKENS to compute."""
        self._wave: dict[int, None] = {}
        """Sequences with a short prompt that end together; later ones are the next wave."""
        self._wave_steps = 0
        self._paused: dict[str, None] = {}
        self._gave_way: dict[int, int] = {}

    @property
    def busy(self) -> int:
        """Slots with a job."""
        return len(self._running) + len(self._following)

    @property
    def waiting(self) -> int:
        """Jobs without a slot."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Decode rows of the next step."""
        return len(self._decoding())

    @property
    def draftable(self) -> list[Job]:
        """The decode rows of the next step, if it carries no prefill: that goes before guesses."""
        if any(self._moves(job) for job in self._prefilling):
            return []
        return self._decoding()

    @property
    def draft_room(self) -> int:
        """Tokens of a step that rows leave over."""
        return self._sizes.step - self.rows

    def jobs(self) -> tuple[Job, ...]:
        """Every job, running ones first."""
        followers = (follower.job for follower in self._following)
        return (*self._running.values(), *followers, *self._waiting)

    def running(self) -> tuple[Job, ...]:
        """The jobs that have a sequence, in the order in which they got it."""
        return tuple(self._running.values())

    def find(self, request_id: str) -> Job | None:
        """The job of a request, running or waiting."""
        return next((job for job in self.jobs() if job.request_id == request_id), None)

    def submit(self, job: Job) -> bool:
        """Put a job into the line; False when the line is full."""
        if len(self._waiting) >= WAITING_MAX_JOBS:
            return False
        self._waiting.append(job)
        return True

    def pause(self, request_id: str) -> None:
        """The job keeps its slot and its cells, but is in no step until resumed."""
        if self.find(request_id) is not None:
            self._paused[request_id] = None

    def resume(self, request_id: str) -> None:
        """Undo a pause; nothing happens without one."""
        self._paused.pop(request_id, None)

    def admit(self) -> tuple[Job, ...]:
        """Give free slots to waiting jobs; those whose prefill begins now, with what their cache
        holds already (`fed`, `cached`)."""
        if self._waiting or self._following:
            for number, job in self._running.items():
                self._sequences.grow(number, job.tokens[: job.fed])
        begun: list[Job] = []
        waited, self._following = self._following, []
        for follower in waited:
            if self._leads(follower.leader, follower.length):
                self._following.append(follower)
            else:
                self._begin_or_follow(follower.job, begun)
        while self._waiting and self.busy < self._sizes.slots:
            self._begin_or_follow(self._waiting.popleft(), begun)
        self._wave_steps += 1
        if not self._in_wave():
            self._wave_steps = 0
            self._wave = {job.slot: None for job in self._prefilling if self._short(job)}
        return tuple(begun)

    def plan(
        self, budget: int, drafts: Mapping[int, tuple[int, ...]] | None = None
    ) -> tuple[Part, ...]:
        """The next step; empty when there is nothing to do. Changes nothing.

        `budget`: prefill tokens that long prompts and replays may take in this step. `drafts`:
        guesses that go with the rows of these slots.
        """
        parts = [self._row(job, (drafts or {}).get(job.slot, ())) for job in self._decoding()]
        taken = sum(len(part.tokens) for part in parts)
        room = max(0, min(self._sizes.chunk, self._sizes.step - taken))
        budget = min(room, budget)
        # Short prompts never starve the long ones altogether.
        kept = min(budget, room // LONG_SHARE) if self._long else 0
        shares = self._shares(room - kept)
        for job in self._by_urgency():
            if job.slot in self._long:
                size = self._next_chunk(job, min(budget, room), room)
                budget -= size
            else:
                most = room - kept
                size = self._next_chunk(job, min(most, shares.get(job.slot, most)), room)
            if size == 0:
                continue
            if not parts and self._replays(job):
                size = min(size, self._exact_replay(job))
            room -= size
            end = job.fed + size
            wants = end == len(job.tokens) or (job.replays_singly and end >= job.prompt_tokens)
            parts.append(Part(job.slot, tuple(job.tokens[job.fed : end]), job.fed, wants))
        return tuple(parts)

    def job_in(self, slot: int) -> Job:
        """The job that has this sequence. Raises KeyError for a free one."""
        return self._running[slot]

    def advance(self, part: Part) -> Job:
        """A part was decoded: its tokens are in the cache now, guesses not counted. Returns its
        job."""
        job = self._running[part.slot]
        self._sequences.worked(len(part.tokens))
        job.fed = part.position + len(part.tokens) - part.drafted
        if self._prefilling and job in self._prefilling:
            if job.fed >= len(job.tokens) or job.decoding:
                self._prefilling.remove(job)
                self._long.pop(job.slot, None)
                self._wave.pop(job.slot, None)
            elif job.slot in self._long:
                # To the end of the line: long prompts take turns.
                self._prefilling.remove(job)
                self._prefilling.append(job)
        return job

    def release(self, job: Job, *, reusable: bool = True) -> None:
        """The job is over or cancelled: it leaves the line or frees its slot at once.

        `reusable` false: what its sequence holds is not to be trusted.
        """
        self._paused.pop(job.request_id, None)
        if job.slot < 0:
            if job in self._waiting:
                self._waiting.remove(job)
            self._following = [other for other in self._following if other.job is not job]
            return
        number, job.slot = job.slot, -1
        del self._running[number]
        self._gave_way.pop(number, None)
        self._long.pop(number, None)
        self._wave.pop(number, None)
        if job in self._prefilling:
            self._prefilling.remove(job)
        self._sequences.give_back(number, job.tokens[: job.fed] if reusable else ())

    def give_way(self) -> Job | None:
        """Drop what one job's sequence holds, to free cells that it shares; it is computed again.
        The youngest of those that gave way least often; None when it is nobody's turn."""
        candidates = [job for job in reversed(self._running.values()) if job.fed > 0]
        if len(candidates) < 2:
            return None
        job = min(candidates, key=lambda job: self._gave_way.get(job.slot, 0))
        times = self._gave_way.get(job.slot, 0) + 1
        if times > GIVE_WAY_MAX:
            return None
        self._gave_way[job.slot] = times
        self.restart(job)
        return job

    def restart(self, job: Job) -> None:
        """What the job's sequence holds is dropped or lost: it is computed again."""
        self._sequences.clear(job.slot)
        job.fed = 0
        if job not in self._prefilling:
            self._prefilling.append(job)
        self._classify(job)

    def _moves(self, job: Job) -> bool:
        return not self._paused or job.request_id not in self._paused

    def _begin_or_follow(self, job: Job, begun: list[Job]) -> None:
        prompt = job.tokens[: self._reusable(job)]
        if not self._running and job.tokens[job.prompt_tokens :]:
            # A continuation that is alone repeats the first time to the last bit: also the order
            # of its cells, in which attention is summed up. The opening's are always the lowest.
            prompt = prompt[: self._sequences.opening_tokens]
        leader, length = self._leader(prompt)
        if leader is not None:
            self._following.append(Follower(job, leader, length))
            return
        job.slot, kept = self._sequences.take(prompt)
        job.fed = job.cached = kept
        self._running[job.slot] = job
        self._prefilling.append(job)
        self._classify(job)
        begun.append(job)

    def _leader(self, prompt: list[int]) -> tuple[Job | None, int]:
        """The job whose prefill would save this one the most, if it saves enough."""
        best: Job | None = None
        longest = 0
        for other in self._prefilling:
            length = common_length(prompt, other.tokens)
            if length > longest and self._leads(other, length):
                best, longest = other, length
        if best is None or longest < FOLLOW_MIN_TOKENS:
            return None, 0
        if longest - self._sequences.cached_length(prompt) < FOLLOW_MIN_TOKENS:
            return None, 0
        return best, longest

    def _leads(self, leader: Job, length: int) -> bool:
        """Whether the leader is still on its way to these first tokens."""
        return leader.slot >= 0 and leader.fed < length and self._moves(leader)

    def _classify(self, job: Job) -> None:
        self._long.pop(job.slot, None)
        if len(job.tokens) - job.fed > SHORT_PROMPT_TOKENS:
            self._long[job.slot] = None

    @staticmethod
    def _row(job: Job, guesses: tuple[int, ...]) -> Part:
        tokens = (job.tokens[job.fed], *guesses)
        return Part(job.slot, tokens, job.fed, wants_logits=True, drafted=len(guesses))

    def _short(self, job: Job) -> bool:
        return job.slot not in self._long and self._moves(job)

    def _decoding(self) -> list[Job]:
        """The rows of the next step. While a wave is computed, answers that began just before it
        come in bursts: a step with prompts takes many times longer, and one long pause is felt
        less than every token being late."""
        rows = [job for job in self._running.values() if job.decoding and self._moves(job)]
        if self._wave_steps % HOLD_EVERY_STEPS == HOLD_EVERY_STEPS - 1 or not self._in_wave():
            return rows
        return [job for job in rows if len(job.tokens) - job.replay_end >= YOUNG_TOKENS]

    def _in_wave(self) -> list[Job]:
        """Its prompts that are not in the cache yet; replayed ids go at a pace of their own."""
        wave = (job for job in self._prefilling if job.slot in self._wave)
        return [job for job in wave if self._moves(job) and not self._replays(job)]

    def _shares(self, room: int) -> dict[int, int]:
        """Tokens of this step by sequence, so that all of the wave end in the same step; empty
        when they all fit in or one is alone."""
        left = {job.slot: len(job.tokens) - job.fed for job in self._in_wave()}
        total = sum(left.values())
        if len(left) < 2 or total <= room or room <= 0:
            return {}
        steps, sizes = -(-total // room), left
        while sum(sizes.values()) > room and steps <= SHORT_PROMPT_TOKENS:
            # What cannot be halved waits for the last step.
            sizes = {
                slot: max(CHUNK_MIN_TOKENS, -(-count // steps)) if count > LAST_TOKENS else 0
                for slot, count in left.items()
            }
            steps += 1
        if not any(sizes.values()):
            return {}
        spare = room - sum(sizes.values())
        if steps > 3:
            # Not in the last two steps: who gets one more there ends a step before the others.
            most = sorted(left, key=lambda slot: left[slot], reverse=True)[: max(0, spare)]
            sizes = {slot: size + (slot in most and size > 0) for slot, size in sizes.items()}
        return sizes

    def _by_urgency(self) -> list[Job]:
        """The wave, later short prompts, long prompts; each in the order in which they came."""
        moving = [job for job in self._prefilling if self._moves(job)]
        return sorted(moving, key=lambda job: (job.slot in self._long, job.slot not in self._wave))

    @staticmethod
    def _reusable(job: Job) -> int:
        """Most tokens that may come from a cache: the last one's logits are needed, and the last
        chunk is not to be a single token."""
        return max(0, job.prompt_tokens - CHUNK_MIN_TOKENS)

    @staticmethod
    def _replays(job: Job) -> bool:
        return job.fed >= job.prompt_tokens

    def _exact_replay(self, job: Job) -> int:
        exact = job.fed - job.prompt_tokens < REPLAY_EXACT_TOKENS
        return self._sizes.replay if exact else REPLAY_CHUNK_TOKENS

    def _next_chunk(self, job: Job, wanted: int, room: int) -> int:
        """Tokens of the job's next part: about `wanted`, at most `room`; 0 = none fits."""
        if self._replays(job):
            size = 1 if job.replays_singly else REPLAY_CHUNK_TOKENS
            return max(0, min(wanted, size, len(job.tokens) - job.fed))
        left = job.prompt_tokens - job.fed
        size = max(0, min(wanted, left))
        for follower in self._following:
            # A sliding window forgets the place where a follower starts: stop exactly there.
            ahead = follower.length - job.fed
            if follower.leader is job and CHUNK_MIN_TOKENS <= ahead < size:
                size = ahead
        if left - size == 1:
            size = left if left <= room else size - 1
        return size if size >= min(CHUNK_MIN_TOKENS, left) else 0
