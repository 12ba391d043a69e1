"""The step loop of a model that turns texts into vectors or scores, and who is in the next step.

Owns: embed and rerank requests from arrival to their end, one frame for every step, like
generating/step_loop for answers. It must not compute (Embedder). Made by __main__ when the loaded
model embeds.

Requests take turns text by text, so that a small one does not wait for a large one's end. A text
that is longer than a step goes in chunks where the model allows it; between steps it can be
cancelled. Everything is checked when a request arrives: no text is cut short, ever.

Not to be confused with `worker.generating.step_loop`, the loop of a model that writes text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

from aivailable.errors import RequestError
from aivailable.wire.generation import (
    Cancel,
    Embedded,
    Failed,
    Finished,
    FinishReason,
    Generate,
    Started,
)
from aivailable.wire.worker import Pause, Resume, Step
from aivailable.worker.embedding.pooling import add_chunk, unit
from aivailable.worker.engine import DecodeFailed, Footprint, Logits, Part
from aivailable.worker.generating.preparing import Preparing
from aivailable.worker.loading import ChannelPort
from aivailable.worker.protocol import STALLED_WAIT_S
from aivailable.worker.tally import Tally

REQUESTS_MAX: Final = 1024
"""Running and waiting; the peer's own queue is far shorter."""
TEXTS_MAX: Final = 4096
_FULL: Final = ("queue_full", "too many requests wait for this replica", 503)


@runtime_checkable
class Embedder(Protocol):
    """One model, loaded to compute one vector for each text."""

    context: int
    """Most tokens of one text."""
    slots: int
    sequences: int
    """Texts that can be under way at once, each in a sequence of its own."""
    cells: int
    """Tokens that all texts under way may have together."""
    step_tokens: int
    pooling: str
    whole: bool
    """Whether a text must be computed in one step."""
    footprint: Footprint
    notes: tuple[str, ...]
    tasks: tuple[str, ...]
    vision: bool

    def texts(self, request: Generate) -> list[tuple[int, ...]]:
        """The tokens of every input, of its pair with the query for rerank. Raises RequestError."""

    def pool(self, parts: Sequence[Part]) -> list[Logits]:
        """Compute one step; the pooled vector of every part's tokens. Raises DecodeFailed."""

    def forget(self, slot: int, length: int = 0) -> bool:
        """Keep the first `length` tokens of a sequence; False when that cannot be done."""


@dataclass(slots=True, eq=False)
class _Text:
    job: _Job
    index: int
    tokens: tuple[int, ...]
    slot: int = -1
    fed: int = 0
    pooled: Logits | None = None


@dataclass(slots=True, eq=False)
class _Job:
    request: Generate
    deadline_s: float
    prompt_tokens: int
    left: list[_Text] = field(default_factory=list)
    """Not yet answered, in order."""
    started: bool = False
    paused: bool = False


@dataclass(slots=True)
class _Outbox:
    started: list[Started] = field(default_factory=list)
    embedded: list[Embedded] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.started or self.embedded or self.finished or self.failed)


class EmbeddingStepLoop:
    """Serves one Embedder on one channel."""

    def __init__(
        self, engine: Embedder, port: ChannelPort, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._port = port
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        """In the order of their turns; the first `slots` of them run."""
        self._preparing = Preparing(self._make, port.wake)
        self._free = list(range(engine.sequences))
        self._out = _Outbox()
        self._tally = Tally()
        self._told = (0, 0)

    def run(self) -> None:
        """Serve for ever; the process ends with the socket."""
        self._preparing.start()
        while True:
            self.serve_once()

    def serve_once(self) -> None:
        """Take what has arrived (waiting when nothing moves), run one step, tell."""
        if not self._jobs and not self._preparing:
            messages = [self._port.receive(), *self._port.receive_ready()]
        elif next(self._in_turn(), None) is None:
            messages = self._port.receive_within(STALLED_WAIT_S)
        else:
            messages = self._port.receive_ready()
        for message in messages:
            self._take(message)
        self._expire()
        self._enter()
        self._step()
        self._tell()

    def _take(self, message: Any) -> None:
        if isinstance(message, Generate):
            self._tally.requests += 1
            self._submit(message)
        elif isinstance(message, Cancel | Pause | Resume):
            job = self._jobs.get(message.request_id)
            if job is None:
                if isinstance(message, Cancel) and self._preparing.drop(message.request_id):
                    self._tell_end(message.request_id, "cancelled", 0)
            elif isinstance(message, Cancel):
                self._end(job, "cancelled")
            else:
                job.paused = isinstance(message, Pause)

    def _submit(self, request: Generate) -> None:
        name = request.request_id
        if name in self._jobs or name in self._preparing:
            twice = "a request of this id is running already"
            self._fail(name, "invalid_request", twice, 409)
        elif len(self._jobs) >= REQUESTS_MAX:
            self._fail(name, *_FULL)
        else:
            displaced = self._preparing.submit(request, self._clock())
            if displaced:
                self._fail(displaced, *_FULL)

    def _enter(self) -> None:
        """What is ready gets its turns."""
        self._preparing.settle()
        for ticket in self._preparing.take():
            name, job, refused = ticket.request.request_id, ticket.ready, ticket.refused
            if refused is not None:
                self._fail(name, refused.code, str(refused), refused.status)
            elif job is not None:
                self._jobs[name] = job

    def _make(self, request: Generate, arrived_s: float) -> _Job:
        """Beside the loop (preparing): touches nothing that a step changes."""
        self._check(request)
        texts = self._engine.texts(request)
        for index, tokens in enumerate(texts):
            what = f"input {index}"
            if not tokens:
                raise RequestError(400, "invalid_request", f"{what} has no tokens")
            if len(tokens) > self._engine.context:
                raise RequestError(
                    400,
                    "context_length_exceeded",
                    f"{what} has {len(tokens)} tokens and this deployment takes "
                    f"{self._engine.context}; split the text or deploy with a larger --ctx",
                )
        job = _Job(request, arrived_s + request.deadline_s, sum(map(len, texts)))
        job.left = [_Text(job, index, tokens) for index, tokens in enumerate(texts)]
        return job

    def _check(self, request: Generate) -> None:
        (task,) = self._engine.tasks
        if request.task != task:
            can = "embeds texts" if task == "embed" else "ranks texts"
            raise RequestError(
                400,
                "unsupported_task",
                f"this deployment {can} (pooling={self._engine.pooling}) and can do nothing else",
            )
        if not 0 < len(request.inputs) + len(request.input_ids) <= TEXTS_MAX:
            raise RequestError(400, "invalid_request", f"1 to {TEXTS_MAX} inputs are possible")
        if request.input_ids and (request.inputs or task == "rerank"):
            raise RequestError(400, "invalid_request", "token ids come alone, and to be embedded")
        if task == "rerank" and not request.prompt:
            raise RequestError(400, "invalid_request", "a rerank request needs a query")

    def _expire(self) -> None:
        now = self._clock()
        late = self._preparing.expire(now)
        for job in list(self._jobs.values()):
            if now >= job.deadline_s:
                self._drop(job)
                late.append(job.request.request_id)
        for name in late:
            self._fail(name, "deadline_exceeded", "the deadline has passed", 504)

    # --- a step

    def _step(self) -> None:
        planned = self._plan()
        if not planned:
            return
        self._tally.steps += 1
        parts = [part for _, part in planned]
        try:
            vectors = self._engine.pool(parts)
        except DecodeFailed as error:
            self._step_one_by_one(planned, error)
        else:
            self._use(planned, vectors)
        self._turn()

    def _plan(self) -> list[tuple[_Text, Part]]:
        """Texts in turns over the running requests; those under way have precedence."""
        engine = self._engine
        planned: list[tuple[_Text, Part]] = []
        room = engine.step_tokens
        cells = engine.cells - sum(len(text.tokens) for text in self._under_way())
        for text in self._in_turn():
            size = min(room, len(text.tokens) - text.fed)
            if size == 0 or (engine.whole and size < len(text.tokens)):
                break
            if text.slot < 0:
                if not self._free or len(text.tokens) > cells:
                    break
                cells -= len(text.tokens)
                text.slot = self._free.pop()
                self._begin(text.job)
            part = Part(text.slot, text.tokens[text.fed : text.fed + size], text.fed, True)
            planned.append((text, part))
            room -= size
        return planned

    def _under_way(self) -> Iterator[_Text]:
        return (text for job in self._jobs.values() for text in job.left if text.slot >= 0)

    def _in_turn(self) -> Iterator[_Text]:
        running = list(self._jobs.values())[: self._engine.slots]
        # Also of a paused request: its cells are not for others until the text is done.
        yield from [text for job in running for text in job.left if text.slot >= 0]
        jobs = [job for job in running if not job.paused]
        lines = [iter([text for text in job.left if text.slot < 0]) for job in jobs]
        while lines:
            for line in list(lines):
                text = next(line, None)
                if text is None:
                    lines.remove(line)
                else:
                    yield text

    def _turn(self) -> None:
        """The first request goes behind the others that run."""
        running = list(self._jobs)[: self._engine.slots]
        if len(running) > 1:
            order = [*running[1:], running[0], *list(self._jobs)[self._engine.slots :]]
            self._jobs = {name: self._jobs[name] for name in order}

    def _step_one_by_one(self, planned: list[tuple[_Text, Part]], error: DecodeFailed) -> None:
        """A step failed as a whole: find the request that is to blame, spare the others."""
        for text, part in planned:
            if text.slot < 0:
                continue  # Its request has failed with an earlier text.
            try:
                if not self._engine.forget(part.slot, part.position):
                    raise DecodeFailed(f"the cache could not be restored after: {error}")
                vectors = self._engine.pool([part])
            except DecodeFailed as again:
                self._drop(text.job)
                self._fail(text.job.request.request_id, "decode_failed", str(again), 500)
            else:
                self._use([(text, part)], vectors)

    def _use(self, planned: list[tuple[_Text, Part]], vectors: list[Logits]) -> None:
        for (text, part), vector in zip(planned, vectors, strict=True):
            count = len(part.tokens)
            text.fed += count
            self._tally.prompt_tokens += count
            text.pooled = add_chunk(text.pooled, vector, count, self._engine.pooling)
            if text.fed == len(text.tokens):
                self._answer(text, text.pooled)

    def _answer(self, text: _Text, pooled: Logits) -> None:
        job = text.job
        numbers = pooled[:1] if self._engine.pooling == "rank" else unit(pooled)
        self._out.embedded.append(
            Embedded(job.request.request_id, text.index, numbers.astype("<f4").tobytes())
        )
        self._release(text)
        job.left.remove(text)
        if not job.left:
            self._end(job, "stop")

    # --- begin and end

    def _begin(self, job: _Job) -> None:
        if not job.started:
            job.started = True
            self._out.started.append(Started(job.request.request_id, job.prompt_tokens))

    def _release(self, text: _Text) -> None:
        self._engine.forget(text.slot)
        self._free.append(text.slot)
        text.slot = -1

    def _drop(self, job: _Job) -> None:
        for text in job.left:
            if text.slot >= 0:
                self._release(text)
        del self._jobs[job.request.request_id]

    def _end(self, job: _Job, reason: FinishReason) -> None:
        self._drop(job)
        self._tell_end(job.request.request_id, reason, job.prompt_tokens)

    def _tell_end(self, request_id: str, reason: FinishReason, prompt_tokens: int) -> None:
        if reason == "cancelled":
            self._tally.cancelled += 1
        else:
            self._tally.finished += 1
        self._out.finished.append(Finished(request_id, reason, prompt_tokens=prompt_tokens))

    def _fail(self, request_id: str, code: str, message: str, status: int) -> None:
        self._tally.failed += 1
        self._out.failed.append(Failed(request_id, code, message, status))

    def _tell(self) -> None:
        busy = min(len(self._jobs), self._engine.slots)
        state = (busy, len(self._jobs) - busy + len(self._preparing))
        if not self._out and state == self._told:
            return
        out, self._out = self._out, _Outbox()
        self._port.send(
            Step(
                started=tuple(out.started),
                embedded=tuple(out.embedded),
                finished=tuple(out.finished),
                failed=tuple(out.failed),
                slots_busy=busy,
                waiting=state[1],
                counters=self._tally.counters(),
            )
        )
        self._told = state
