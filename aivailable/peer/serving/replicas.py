"""One replica on this node: its worker process and the requests that run in it.

Owns the life of the process from launch to exit and the relay of events to whoever asked. When to
launch, drain or kill is the agent's word; who may ask is the router's.

Not to be confused with `core.state.changes.replicas`, which applies the commands about them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace

from aivailable.core.agent import LocalWorker
from aivailable.core.serving.admission import FairQueue
from aivailable.core.serving.histogram import WAIT_BOUNDS_S, Histogram
from aivailable.core.state.records import Replica, Status
from aivailable.errors import RequestError, WorkerError
from aivailable.peer.ports import Clock, Worker, WorkerLauncher
from aivailable.peer.serving.runs import Run, used_tokens
from aivailable.wire.generation import (
    Cancel,
    Failed,
    Finished,
    Generate,
    GenerationEvent,
)
from aivailable.wire.peer import ReplicaLoad
from aivailable.wire.prefixes import PREFIX_DIGESTS_MAX
from aivailable.wire.worker import (
    Counters,
    Hello,
    Load,
    LoadFailed,
    Pause,
    Progress,
    Ready,
    Resume,
    Shutdown,
    Step,
)

log = logging.getLogger("aivailable.replica")

RATE_WINDOW_S = 2.0
BUSY_WINDOW_S = 60.0
"""Time constant of the share of busy slots."""
REASON_MAX_CHARS = 300
NOTES_MAX = 24
NOTE_MAX_CHARS = 80
EXIT_GRACE_S = 5.0
"""A worker that has closed its socket may take this long to be gone (a core dump, a driver)."""
EVENTS_PAUSE = 64
"""This many events wait for a slow reader: then the worker is told to pause its request."""
EVENTS_RESUME = 16
"""This few are left: the worker may go on."""
EVENTS_MAX = 4096
"""A worker that goes on all the same has its request ended: far more than what was under way."""


class LocalReplica:
    """`entry` is what the pure agent sees; only this class and the agent write it."""

    def __init__(
        self, record: Replica, clock: Clock, on_change: Callable[[], None], queue_max: int
    ) -> None:
        self.record = record
        self.ending = False
        self.needed_bytes: Mapping[str, int] = {}
        """By device, when the last load failed because its claim was too small."""
        self.free_at_end: Mapping[str, int] = {}
        """Live free bytes by device when it was told to end."""
        self.progress = 0.0
        self.phase = ""
        self.counters = Counters()
        self.queue_waits = Histogram(WAIT_BOUNDS_S)
        """Seconds that requests waited here before the worker got them."""
        self.notes: tuple[str, ...] = ()
        """What the engine chose where the deployment left it open."""
        self._clock = clock
        self._on_change = on_change
        self._worker: Worker | None = None
        self._runs: dict[str, Run] = {}
        self._queue = FairQueue(record.slots, queue_max)
        """What it holds was sent, and the worker has not told its end yet: cancelled ones, too."""
        self._impatience: asyncio.TimerHandle | None = None
        """When the next account will have waited too long without any slot."""
        self._slots_busy = 0
        self._rate = 0.0
        self._rate_tokens = 0
        self._rate_since_s = clock.monotonic()
        self._prefixes: tuple[int, ...] = ()
        self._queued_s: float | None = None
        """Since when its line has not been empty."""
        self._busy = 0.0
        self._busy_at_s = clock.monotonic()
        self._used_s = clock.monotonic()
        """When its last request ended, or it became ready."""
        self._entry = LocalWorker(record.replica, Status.FETCHING, since_ms=self._now_ms())

    @property
    def entry(self) -> LocalWorker:
        return replace(self._entry, requests_in_flight=len(self._runs))

    @entry.setter
    def entry(self, entry: LocalWorker) -> None:
        self._entry = entry
        self._on_change()

    def become(self, status: Status) -> None:
        self.entry = replace(self._entry, status=status, since_ms=self._now_ms())

    def load(self) -> ReplicaLoad:
        """Soft state for the heartbeat."""
        self._measure_rate()
        self._measure_busy()
        return ReplicaLoad(
            replica=self.record.replica,
            deployment=self.record.deployment,
            status=self._entry.status.value,
            slots=self.record.slots,
            # A request just sent counts at once: a burst would pile up here until the next step.
            slots_busy=max(self._slots_busy, self._queue.held),
            waiting=len(self._queue),
            tokens_per_s=round(self._rate, 1),
            progress=round(self.progress, 3),
            phase=self.phase,
            reason=self._entry.reason[:REASON_MAX_CHARS],
            finished=self.counters.finished,
            cancelled=self.counters.cancelled,
            failed=self.counters.failed,
            generated_tokens=self.counters.generated_tokens,
            drafted_tokens=self.counters.drafted_tokens,
            accepted_tokens=self.counters.accepted_tokens,
            requests=self.counters.requests,
            prompt_tokens=self.counters.prompt_tokens,
            cached_tokens=self.counters.cached_tokens,
            steps=self.counters.steps,
            prefixes=self._prefixes,
            idle_ms=self._idle_ms(),
            queued_ms=self._queued_ms(),
            busy=round(self._busy, 3),
            notes=self.notes,
        )

    def _queued_ms(self) -> int:
        if self._queued_s is None:
            return 0
        return int((self._clock.monotonic() - self._queued_s) * 1000)

    def _measure_busy(self) -> None:
        """A moving average, from the looks of each heartbeat."""
        now_s = self._clock.monotonic()
        weight = 1.0 - math.exp((self._busy_at_s - now_s) / BUSY_WINDOW_S)
        share = min(1.0, self._queue.held / max(1, self.record.slots))
        self._busy += weight * (share - self._busy)
        self._busy_at_s = now_s

    def _idle_ms(self) -> int:
        if self._runs or self._queue.held or self._entry.status is not Status.READY:
            return 0
        return int((self._clock.monotonic() - self._used_s) * 1000)

    # --- the process

    async def run_worker(self, launcher: WorkerLauncher, load: Load) -> str:
        """Launch, relay until the process ends; the reason why it ended ("" = as told).

        Raises WorkerError when it cannot be started.
        """
        # What a worker counts, it counts since its own start.
        self.counters, self.progress, self.phase = Counters(), 0.0, ""
        self._prefixes, self.needed_bytes, self.notes = (), {}, ()
        self.become(Status.LOADING)
        failure = ""
        worker = await launcher.launch(load)
        self._worker = worker
        if self.ending:
            # Told to end while the process was being started.
            worker.kill()
        try:
            async for message in worker.messages():
                match message:
                    case Progress(phase=phase, fraction=fraction):
                        self.phase, self.progress = phase, fraction
                    case Hello(pid=pid, engine=engine, version=version):
                        about = (self.record.replica, pid, engine, version)
                        log.info("%s: worker %d, engine %s %s", *about)
                    case Ready():
                        self._ready(message)
                    case LoadFailed(code=code, message=text):
                        failure = f"{code}: {text}"
                        self.needed_bytes = dict(message.used_bytes)
                    case Step():
                        self._step(message)
                    case _:
                        log.debug("%s: %s", self.record.replica, message)
            # No token can come any more, however long the process takes to be gone.
            self._worker = None
            self._fail_runs()
            reason = _named(load.path, await _end_of(worker))
        except asyncio.CancelledError:
            worker.kill()
            raise
        finally:
            self._worker = None
            self._slots_busy = 0
            self._fail_runs()
        return failure or reason or ("" if self.ending else "the worker ended by itself")

    def kill(self) -> None:
        """End the process: politely first, it has no state to lose."""
        self.ending = True
        if self._worker is not None:
            self._worker.send(Shutdown("no longer wanted"))
            self._worker.kill()

    def _ready(self, ready: Ready) -> None:
        log.info("%s is ready after %.1f s", self.record.replica, ready.load_ms / 1000)
        self.progress, self.phase = 1.0, ""
        self.notes = tuple(note[:NOTE_MAX_CHARS] for note in ready.notes[:NOTES_MAX])
        self._used_s = self._clock.monotonic()
        self.entry = replace(
            self._entry,
            status=Status.READY,
            since_ms=self._now_ms(),
            used_bytes=dict(ready.used_bytes),
            reason="",
        )

    def _fail_runs(self) -> None:
        """The process is gone: every open request learns it and may go elsewhere."""
        self._queue.clear_held()
        self._watch_patience()
        for run in list(self._runs.values()):
            run.events.put_nowait(
                Failed(run.request.request_id, "worker_lost", "the worker died", 502)
            )

    # --- requests

    async def generate(self, request: Generate) -> AsyncGenerator[GenerationEvent, None]:
        """Started, Tokens…, then Finished or Failed. Closing the iterator cancels at once.

        Raises RequestError `not_hosting`, `draining` or `queue_full` without having begun.
        """
        if self._entry.status is not Status.READY or self._worker is None:
            code = "draining" if self._entry.status is Status.DRAINING else "not_hosting"
            raise RequestError(503, code, f"{self.record.replica} takes no requests now")
        if request.request_id in self._runs or self._queue.holds(request.request_id):
            # In the worker: cancelled a moment ago; its end must not be taken for the new one's.
            raise RequestError(409, "duplicate_request", "this request runs already")
        now_s = self._clock.monotonic()
        run = Run(request, now_s)
        push = self._queue.push(request.request_id, request.account, run.cost_tokens(), now_s)
        if not push.taken:
            raise RequestError(
                429, "queue_full", f"{self.record.replica}: the queue is full", retry_after_s=2
            )
        if push.sent_away:
            why = f"{self.record.replica}: the queue is full, and others have less in it"
            self._deliver(Failed(push.sent_away, "queue_full", why, 429))
        self._runs[request.request_id] = run
        try:
            self._pump()
            while True:
                event = await run.events.get()
                self._let_go_on(run)
                yield event
                if isinstance(event, Finished | Failed):
                    return
        finally:
            self._forget(run)

    def _pump(self) -> None:
        self._hand_out()
        self._make_room()
        self._watch_patience()
        if not len(self._queue):
            self._queued_s = None
        elif self._queued_s is None:
            self._queued_s = self._clock.monotonic()

    def _hand_out(self) -> None:
        """Hand requests to the worker, as many as it has slots, in fair order."""
        now_s = self._clock.monotonic()
        while self._worker is not None:
            request_id = self._queue.pop(now_s)
            if request_id is None:
                return
            run = self._runs[request_id]
            try:
                self._worker.send(run.request)
            except WorkerError as error:
                # Larger than a worker's frame: its own fault, nobody else's.
                self._queue.release(request_id, 0, now_s)
                self._deliver(Failed(request_id, "invalid_request", str(error), 413))
                continue
            self.queue_waits.observe(now_s - run.queued_s)

    def _make_room(self) -> None:
        """Take a slot from whoever holds most for each account that has waited too long for one."""
        now_s = self._clock.monotonic()
        while (request_id := self._queue.displace(now_s, self._movable)) is not None:
            log.info("%s: %s gives its slot to another key", self.record.replica, request_id)
            self._tell_worker(Cancel(request_id))
            self._runs[request_id].displaced = True

    def _movable(self, request_id: str) -> bool:
        run = self._runs.get(request_id)
        return run is not None and run.movable

    def _watch_patience(self) -> None:
        """Look again when the next account has waited too long, even if nothing else happens."""
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
        now_s = self._clock.monotonic()
        ends_s = self._queue.patience_ends_s(now_s)
        if ends_s is not None and self._worker is not None:
            loop = asyncio.get_running_loop()
            self._impatience = loop.call_later(ends_s - now_s, self._pump)

    def _forget(self, run: Run) -> None:
        request_id = run.request.request_id
        if self._runs.pop(request_id, None) is None:
            return
        self._used_s = self._clock.monotonic()
        self._queue.cancel(request_id)
        if not run.displaced:
            self._tell_worker(Cancel(request_id))
        self._pump()
        self._on_change()

    def _step(self, step: Step) -> None:
        if step.slots_busy != self._slots_busy:
            self._slots_busy = step.slots_busy
            self._on_change()
        if step.counters is not None:
            self.counters = step.counters
        if step.prefixes is not None:
            self._prefixes = step.prefixes[:PREFIX_DIGESTS_MAX]
        for started in step.started:
            self._deliver(started)
        for embedded in step.embedded:
            self._deliver(embedded)
        for tokens in step.tokens:
            self._rate_tokens += len(tokens.ids)
            self._deliver(tokens)
        ends: tuple[Finished | Failed, ...] = (*step.finished, *step.failed)
        for end in ends:
            self._end(end)
        if step.finished or step.failed:
            self._pump()

    def _end(self, end: Finished | Failed) -> None:
        """The worker has a slot free again. Who was displaced waits for another one."""
        run = self._runs.get(end.request_id)
        now_s = self._clock.monotonic()
        replayed = run.replayed if run is not None else 0
        # A client that has left pays for what was computed until then.
        used = used_tokens(end, replayed) if isinstance(end, Finished) else None
        self._queue.release(end.request_id, used, now_s)
        if run is None:
            return
        if not (run.displaced and isinstance(end, Finished) and end.reason == "cancelled"):
            self._deliver(end)
            return
        run.left_slot()
        run.parked = run.paused
        if not run.parked:
            self._queue_again(run)

    def _queue_again(self, run: Run) -> None:
        now_s = run.queued_s = self._clock.monotonic()
        request = run.request
        self._queue.put_back(request.request_id, request.account, run.cost_tokens(), now_s)

    def _deliver(self, event: GenerationEvent) -> None:
        run = self._runs.get(event.request_id)
        if run is None:
            return
        run.heard(event)
        waiting = run.events.qsize()
        if waiting >= EVENTS_MAX and not isinstance(event, Finished | Failed):
            if self._queue.holds(event.request_id) and waiting == EVENTS_MAX:
                self._tell_worker(Cancel(run.request.request_id))
                event = Failed(event.request_id, "slow_reader", "the answer was not read", 503)
                run.events.put_nowait(event)
            return
        run.events.put_nowait(event)
        if waiting >= EVENTS_PAUSE and not run.paused:
            run.paused = True
            self._tell_worker(Pause(event.request_id))

    def _let_go_on(self, run: Run) -> None:
        """The reader took an event; with few left its request may be decoded again."""
        if not run.paused or run.events.qsize() > EVENTS_RESUME:
            return
        run.paused = False
        if run.parked:
            run.parked = False
            self._queue_again(run)
            self._pump()
        else:
            self._tell_worker(Resume(run.request.request_id))

    def _tell_worker(self, message: Cancel | Pause | Resume) -> None:
        if self._worker is not None and self._queue.holds(message.request_id):
            self._worker.send(message)

    def _measure_rate(self) -> None:
        now_s = self._clock.monotonic()
        elapsed_s = now_s - self._rate_since_s
        if elapsed_s >= RATE_WINDOW_S:
            self._rate = self._rate_tokens / elapsed_s
            self._rate_tokens, self._rate_since_s = 0, now_s

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)


def _named(path: str, reason: str) -> str:
    """A death with the file that was open in it: a damaged one may be its cause."""
    return f"{path}: {reason}" if path and reason else reason


async def _end_of(worker: Worker) -> str:
    """Why a worker that has closed its socket ended; one that lingers is killed."""
    try:
        async with asyncio.timeout(EXIT_GRACE_S):
            return await worker.exit_reason()
    except TimeoutError:
        worker.kill()
        return await worker.exit_reason()
