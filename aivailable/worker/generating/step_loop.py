"""One loaded replica on the channel: step after step until the socket ends.

Owns: running the step loop, and telling the peer everything that a step produced in one frame. It
must not make requests ready (making, beside this loop), schedule (batcher) or compute (engine).
Made by __main__.

Not to be confused with `worker.embedding.step_loop`, the loop of a model that makes vectors.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final

from aivailable.wire.generation import (
    Cancel,
    Failed,
    Finished,
    Generate,
    Started,
    Tokens,
)
from aivailable.wire.prefixes import PREFIX_DIGESTS_MAX
from aivailable.wire.worker import Pause, Resume, Step
from aivailable.worker.engine import (
    CellsExhausted,
    DecodeFailed,
    Engine,
    Logits,
    Part,
)
from aivailable.worker.generating.batcher import Batcher, Sizes
from aivailable.worker.generating.drafting import Drafting
from aivailable.worker.generating.job import Drawn, Job
from aivailable.worker.generating.making import JobMaker
from aivailable.worker.generating.opening import compute_opening
from aivailable.worker.generating.pace import Pace
from aivailable.worker.generating.preparing import Preparing
from aivailable.worker.generating.sequences import Sequences
from aivailable.worker.grammar.rules import GrammarError
from aivailable.worker.loading import ChannelPort
from aivailable.worker.protocol import INTERNAL_ERROR, STALLED_WAIT_S
from aivailable.worker.sampling.sampler import NoToken
from aivailable.worker.tally import Tally

STARTED_IDS_PER_FRAME_MAX: Final = 512 * 1024
"""Prompt ids that one frame may carry (5 bytes each), so that it stays under the wire's limit."""

COUNTERS_EVERY_S: Final = 0.25
_FULL: Final = ("queue_full", "too many requests wait for this replica", 503)

log = logging.getLogger("aivailable.worker")

Clock = Callable[[], float]


@dataclass(slots=True)
class _Outbox:
    """What the current step has produced so far."""

    started: list[Started] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.started or self.tokens or self.finished or self.failed)


class StepLoop:
    """The step loop of one loaded engine."""

    def __init__(self, engine: Engine, port: ChannelPort, clock: Clock = time.monotonic) -> None:
        self._engine = engine
        self._port = port
        self._clock = clock
        sizes = Sizes(engine.slots, engine.chunk_tokens, engine.step_tokens, engine.replay_tokens)
        self._sequences = Sequences(engine.sequences, engine.warm_tokens, engine)
        compute_opening(engine, self._sequences)
        self._batcher = Batcher(sizes, self._sequences)
        self._pace = Pace(engine.chunk_tokens, engine.least_tokens)
        self._drafting = Drafting(engine.draft_tokens)
        self._preparing = Preparing(JobMaker(engine).make, port.wake)
        self._paused_early: set[str] = set()
        """Requests whose readers paused before they were ready."""
        self._out = _Outbox()
        self._stalled = False
        self._tally = Tally()
        self._told = (0, 0)
        self._counted_s = -math.inf
        """When the counters were told last."""
        self._digests_turn = 0

    def run(self) -> None:
        """Serve for ever; the process ends with the socket (see protocol.Channel.on_end)."""
        self._preparing.start()
        while True:
            self.serve_once()

    def serve_once(self) -> None:
        """Take what has arrived (waiting when there is nothing to do), run one step, tell."""
        idle = not self._batcher.busy and not self._batcher.waiting
        if idle and not self._preparing:
            messages = [self._port.receive(), *self._port.receive_ready()]
        elif idle or self._stalled:
            messages = self._port.receive_within(STALLED_WAIT_S)
        else:
            messages = self._port.receive_ready()
        for message in messages:
            self._take(message)
        self._expire()
        self._enter()
        for job in self._batcher.admit():
            self._tell_started(job)
        self._stalled = not self._step()
        self._tell()

    def _take(self, message: Any) -> None:
        if isinstance(message, Generate):
            self._tally.requests += 1
            self._submit(message)
        elif isinstance(message, Cancel):
            job = self._batcher.find(message.request_id)
            if job is not None:
                self._cancel(job)
            elif self._preparing.drop(message.request_id):
                self._tell_cancelled(Finished(message.request_id, "cancelled"))
        elif isinstance(message, Pause):
            self._batcher.pause(message.request_id)
            if message.request_id in self._preparing:
                self._paused_early.add(message.request_id)
        elif isinstance(message, Resume):
            self._batcher.resume(message.request_id)
            self._paused_early.discard(message.request_id)

    def _submit(self, request: Generate) -> None:
        name = request.request_id
        if self._batcher.find(name) is not None or name in self._preparing:
            twice = "a request of this id is running already"
            self._fail(name, "invalid_request", twice, 409)
            return
        displaced = self._preparing.submit(request, self._clock())
        if displaced:
            self._fail(displaced, *_FULL)

    def _enter(self) -> None:
        """What is ready gets into the line for a slot."""
        self._preparing.settle()
        for ticket in self._preparing.take():
            name, job, refused = ticket.request.request_id, ticket.ready, ticket.refused
            if refused is not None:
                self._fail(name, refused.code, str(refused), refused.status)
            elif job is not None and job.finished is not None:
                self._finish(job)
            elif job is not None and not self._batcher.submit(job):
                self._fail(name, *_FULL)
            elif name in self._paused_early:
                self._batcher.pause(name)
        if not self._preparing:
            self._paused_early.clear()

    def _expire(self) -> None:
        now = self._clock()
        late = self._preparing.expire(now)
        for job in self._batcher.jobs():
            if now >= job.deadline_s:
                self._batcher.release(job)
                late.append(job.request_id)
        for name in late:
            self._fail(name, "deadline_exceeded", "the deadline has passed", 504)

    def _cancel(self, job: Job) -> None:
        self._batcher.release(job)
        self._tell_cancelled(
            Finished(
                job.request_id,
                "cancelled",
                prompt_tokens=job.prompt_tokens,
                completion_tokens=job.completion_tokens,
                cached_tokens=job.cached,
            )
        )

    def _tell_cancelled(self, end: Finished) -> None:
        self._tally.cancelled += 1
        self._out.finished.append(end)

    def _step(self) -> bool:
        """Decode once; False when nothing can be decoded, as when every reader has paused."""
        rows = self._batcher.rows
        parts = self._batcher.plan(self._pace.budget(rows), self._drafts())
        if not parts:
            return False
        self._tally.steps += 1
        began = self._clock()
        try:
            parts, logits = self._decode(parts)
        except CellsExhausted as error:
            self._make_room(error)
        except DecodeFailed:
            self._step_one_by_one(parts)
        else:
            self._measure(parts, rows, self._clock() - began)
            self._use(parts, logits)
        return True

    def _drafts(self) -> Mapping[int, tuple[int, ...]]:
        if not self._drafting.active:
            return {}
        guesses = self._drafting.plan(self._batcher.draftable, self._batcher.draft_room)
        # What followed the last time may be an image: its rows are nothing that can be drawn.
        size = self._engine.vocabulary
        said = {slot: tuple(takewhile(lambda t: t < size, ids)) for slot, ids in guesses.items()}
        return {slot: ids for slot, ids in said.items() if ids}

    def _measure(self, parts: tuple[Part, ...], rows: int, elapsed_s: float) -> None:
        drafted = sum(part.drafted for part in parts)
        self._tally.drafted_tokens += drafted
        prefill = sum(len(part.tokens) for part in parts) - rows - drafted
        if not drafted:
            self._pace.observe(rows, prefill, elapsed_s)
        if not prefill:
            self._drafting.observe(rows + drafted, elapsed_s)

    def _decode(self, parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], list[Logits]]:
        """Decode; guesses first, then warm sequences give way to what was admitted. Returns the
        parts that were decoded. Raises DecodeFailed."""
        while True:
            try:
                return parts, self._engine.decode(parts)
            except CellsExhausted:
                if any(part.drafted for part in parts):
                    parts = tuple(part.plain() for part in parts)
                elif not self._sequences.evict():
                    raise

    def _make_room(self, error: CellsExhausted) -> None:
        """Nothing is left to evict. Under a sliding window, cells that several requests share stay
        taken although all of them have passed: the youngest one gives up its share and computes it
        again. One that is alone has no room, whatever is done."""
        if self._batcher.give_way() is not None:
            return
        job = max(self._batcher.running(), key=lambda job: job.fed)
        self._batcher.release(job, reusable=False)
        self._fail(job.request_id, "decode_failed", str(error), 500)

    def _step_one_by_one(self, parts: tuple[Part, ...]) -> None:
        """A decode failed as a whole: find the job that is to blame, spare the others."""
        kept = {part.slot: self._engine.trim(part.slot, part.position) for part in parts}
        for part in (part.plain() for part in parts):
            try:
                if kept[part.slot] != part.position:
                    raise DecodeFailed("the cache of this request could not be restored")
                _, rows = self._decode((part,))
            except DecodeFailed as error:
                job = self._batcher.job_in(part.slot)
                self._batcher.release(job, reusable=False)
                self._fail(job.request_id, "decode_failed", str(error), 500)
            else:
                self._use((part,), rows)

    def _use(self, parts: tuple[Part, ...], rows: list[Logits]) -> None:
        remaining = iter(rows)
        for part in parts:
            job = self._batcher.advance(part)
            before = part.position
            if before < job.prompt_tokens:
                self._tally.prompt_tokens += min(job.fed, job.prompt_tokens) - before
                if job.fed >= job.prompt_tokens:
                    self._sequences.mark(job.slot, job.prefixes)
            if part.wants_logits:
                self._draw(job, part, [next(remaining) for _ in range(part.rows)])

    def _draw(self, job: Job, part: Part, rows: list[Logits]) -> None:
        drawn: list[Drawn] = []
        problem = ""
        try:
            if job.fed < len(job.tokens):
                job.observe(rows[0])
            else:
                # What came before an exception stays in the list, and has been drawn.
                drawn.extend(job.draw_run(rows, part.guesses))
        except (NoToken, GrammarError) as error:
            problem = str(error)
        except Exception:
            # Nothing but this job has been touched.
            log.exception("request %s cannot go on", job.request_id)
            problem = INTERNAL_ERROR
        self._tell_drawn(job, drawn)
        kept = self._cut(job, part)
        if problem:
            self._batcher.release(job, reusable=kept)
            self._fail(job.request_id, "decode_failed", problem, 500)
        elif job.finished is not None:
            self._batcher.release(job, reusable=kept)
            self._finish(job)
        elif not kept:
            self._batcher.restart(job)

    def _cut(self, job: Job, part: Part) -> bool:
        """Take wrong guesses out of the cache; False when it could not be cut and is lost."""
        if job.fed >= part.position + len(part.tokens):
            return True
        if self._engine.trim(job.slot, job.fed) == job.fed:
            return True
        self._drafting.stop()
        return False

    def _tell_drawn(self, job: Job, drawn: list[Drawn]) -> None:
        ids = tuple(token for one in drawn for token in one.ids)
        if not ids:
            return
        self._tally.generated_tokens += len(ids)
        self._tally.accepted_tokens += len(drawn) - 1
        self._out.tokens.append(
            Tokens(
                job.request_id,
                ids,
                "".join(one.text for one in drawn),
                "".join(one.reasoning for one in drawn),
                tuple(call for one in drawn for call in one.calls),
                tuple(told for one in drawn for told in one.logprobs),
            )
        )

    def _finish(self, job: Job) -> None:
        try:
            held = job.held()
        except Exception:
            log.exception("request %s cannot be finished", job.request_id)
            self._fail(job.request_id, "decode_failed", INTERNAL_ERROR, 500)
            return
        self._tally.finished += 1
        self._out.finished.append(
            Finished(
                job.request_id,
                job.reason,
                text=held.text,
                prompt_tokens=job.prompt_tokens,
                completion_tokens=job.completion_tokens,
                cached_tokens=job.cached,
                reasoning=held.reasoning,
                calls=held.calls,
            )
        )

    def _fail(self, request_id: str, code: str, message: str, status: int) -> None:
        self._tally.failed += 1
        self._out.failed.append(Failed(request_id, code, message, status))

    def _tell_started(self, job: Job) -> None:
        ids = sum(len(started.prompt_ids) for started in self._out.started)
        if ids + job.prompt_tokens > STARTED_IDS_PER_FRAME_MAX:
            self._tell()
        self._tally.cached_tokens += job.cached
        prompt = job.prompt
        self._out.started.append(Started(job.request_id, len(prompt), job.cached, prompt))

    def _tell(self) -> None:
        """One Step with everything new; none when nothing is.

        The counters go with every end of a request, else a few times a second: a row of them for
        each token would cost more than the token's text."""
        state = (self._batcher.busy, self._batcher.waiting + len(self._preparing))
        now = self._clock()
        ends = bool(self._out.finished or self._out.failed or self._out.started)
        idle = state == (0, 0) and state != self._told
        count = ends or idle or now - self._counted_s >= COUNTERS_EVERY_S
        if not self._out and state == self._told and not count:
            return
        out, self._out = self._out, _Outbox()
        self._port.send(
            Step(
                started=tuple(out.started),
                tokens=tuple(out.tokens),
                finished=tuple(out.finished),
                failed=tuple(out.failed),
                slots_busy=state[0],
                waiting=state[1],
                counters=self._tally.counters() if count else None,
                prefixes=self._new_prefixes(),
            )
        )
        self._told = state
        if count:
            self._counted_s = now

    def _new_prefixes(self) -> tuple[int, ...] | None:
        turn = self._sequences.digests_turn
        if turn == self._digests_turn:
            return None
        self._digests_turn = turn
        return self._sequences.digests(PREFIX_DIGESTS_MAX)
