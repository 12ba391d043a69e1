"""Simulated workers: they load, decode deterministic tokens, crash, and hold real bytes.

Owns the effect of a worker on its machine's ledger. The next token is a checksum of everything
before it, so that an answer is a function of the prompt wherever it is computed and however often
it was moved: `expected_answer` computes it apart from any worker. Built by sim.world.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fixtures.virtual_time import elapse
from sim.hardware import Machine
from sim.loop import Process
from sim.trace import Trace

from aivailable.errors import WorkerError
from aivailable.wire.generation import Cancel, Failed, Finished, Generate, Started, Tokens
from aivailable.wire.worker import (
    FROM_WORKER,
    TO_WORKER,
    Hello,
    Load,
    LoadFailed,
    Progress,
    Ready,
    Shutdown,
    Step,
)

VOCABULARY = 1000
SPAWN_MAX_S = 0.05
LOAD_MIN_S = 0.1
LOAD_MAX_S = 1.5
STEP_S = 0.02
EXIT_MIN_S = 0.01
EXIT_MAX_S = 0.3
"""A killed process holds its memory until it is gone."""
USED_SHARE_MIN = 0.9
"""A worker uses at least this much of its claim, and never more than all of it."""
TOKENS_DEFAULT = 16


def prompt_ids(request: Generate) -> tuple[int, ...]:
    """Every word is one token."""
    if request.prompt_ids is not None:
        return request.prompt_ids
    return tuple(zlib.crc32(word.encode()) % VOCABULARY for word in (request.prompt or "").split())


def next_token(tokens: Sequence[int]) -> int:
    return zlib.crc32(b"".join(token.to_bytes(4, "little") for token in tokens)) % VOCABULARY


def expected_answer(prompt: str, max_tokens: int) -> str:
    """What an undisturbed greedy run answers."""
    tokens = list(prompt_ids(Generate("", "", prompt=prompt)))
    start = len(tokens)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
    return "".join(f"t{token} " for token in tokens[start:])


@dataclass
class _Job:
    request: Generate
    prompt: tuple[int, ...]
    generated: list[int] = field(default_factory=list)
    started: bool = False

    @property
    def limit(self) -> int:
        wanted = self.request.max_tokens
        return TOKENS_DEFAULT if wanted is None else wanted


class SimWorker:
    """ports.Worker."""

    def __init__(
        self,
        number: int,
        load: Load,
        machine: Machine,
        process: Process,
        rng: random.Random,
        trace: Trace,
    ) -> None:
        self.pid = number
        self.load = load
        self.ready = False
        self._dying = False
        self._machine = machine
        self._process = process
        self._rng = rng
        self._trace = trace
        self._jobs: list[_Job] = []
        self._inbox: asyncio.Event = asyncio.Event()
        self._up: asyncio.Queue[bytes | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[str] = loop.create_future()
        self._task = loop.create_task(self._live(), name=f"{process!r} worker {load.replica}")
        self._task.add_done_callback(self._ended)

    @property
    def alive(self) -> bool:
        return not self._exit.done()

    def send(self, message: Any) -> None:
        if self._dying:
            return
        message = TO_WORKER.decode(TO_WORKER.encode(message))
        if isinstance(message, Generate):
            self._jobs.append(_Job(message, prompt_ids(message), list(message.generated_ids)))
        elif isinstance(message, Cancel):
            self._cancel(message.request_id)
        elif isinstance(message, Shutdown):
            self._end("")
        self._inbox.set()

    async def messages(self) -> AsyncIterator[Any]:
        while True:
            data = await self._up.get()
            if data is None:
                self._up.put_nowait(None)
                return
            yield FROM_WORKER.decode(data)

    async def exit_reason(self) -> str:
        return await asyncio.shield(self._exit)

    def kill(self) -> None:
        self._end("killed by SIGKILL")

    def crash(self) -> None:
        """A fault: the process dies by itself."""
        self._end("killed by SIGSEGV: simulated crash")

    def _end(self, reason: str) -> None:
        """The process does nothing any more; it is gone a little later."""
        if not self._dying:
            self._dying = True
            self._task.cancel()
            delay_s = self._rng.uniform(EXIT_MIN_S, EXIT_MAX_S)
            asyncio.get_running_loop().call_later(delay_s, self.gone, reason)

    def gone(self, reason: str) -> None:
        """The process has ended and its memory is free."""
        if self.alive:
            self._dying = True
            self._machine.ledger.release(self.pid)
            self._trace.add(self._process.name, f"worker {self.load.replica} ended: {reason}")
            self._exit.set_result(reason)
            self._up.put_nowait(None)
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The task has ended by itself (load refused) or with its process."""
        error = None if task.cancelled() else task.exception()
        self._end("" if error is None else repr(error))

    def _tell(self, message: Any) -> None:
        self._up.put_nowait(FROM_WORKER.encode(message))

    async def _live(self) -> None:
        self._tell(Hello(self.pid, self.load.engine, ""))
        if not await self._load():
            return
        while True:
            self._step()
            if self._jobs:
                await elapse(STEP_S)
            else:
                self._inbox.clear()
                await self._inbox.wait()

    async def _load(self) -> bool:
        self._tell(Progress("loading", 0.0))
        duration_s = self._rng.uniform(LOAD_MIN_S, LOAD_MAX_S)
        used = {
            claim.device_id: round(claim.claim_bytes * self._rng.uniform(USED_SHARE_MIN, 1.0))
            for claim in self.load.devices
        }
        await elapse(duration_s / 2)
        if not self._machine.ledger.occupy(self.pid, used):
            self._tell(LoadFailed("out_of_memory", "the device has less free than that"))
            return False
        self._tell(Progress("loading", 0.5))
        await elapse(duration_s / 2)
        if self.load.options.get("fail_load"):
            self._tell(LoadFailed(self.load.options["fail_load"], "told to fail"))
            return False
        self.ready = True
        self._trace.add(self._process.name, f"worker {self.load.replica} ready")
        self._tell(
            Ready(
                model_name="sim",
                context=self.load.context,
                slots=self.load.slots,
                used_bytes=used,
                weights_bytes=sum(used.values()),
                kv_bytes=0,
                compute_bytes=0,
                load_ms=round(duration_s * 1000),
            )
        )
        return True

    def _step(self) -> None:
        """One decode step of the jobs that have a slot."""
        started: list[Started] = []
        tokens: list[Tokens] = []
        finished: list[Finished] = []
        failed: list[Failed] = []
        for job in tuple(self._jobs[: self.load.slots]):
            name = job.request.request_id
            if not job.started:
                job.started = True
                started.append(Started(name, len(job.prompt), prompt_ids=job.prompt))
            if len(job.prompt) + job.limit > self.load.context:
                failed.append(Failed(name, "context_length_exceeded", "too long", 400))
                self._jobs.remove(job)
                continue
            if len(job.generated) < job.limit:
                token = next_token((*job.prompt, *job.generated))
                job.generated.append(token)
                tokens.append(Tokens(name, (token,), f"t{token} "))
            if len(job.generated) >= job.limit:
                finished.append(
                    Finished(
                        name,
                        "length",
                        prompt_tokens=len(job.prompt),
                        completion_tokens=len(job.generated),
                    )
                )
                self._jobs.remove(job)
        self._tell_step(started, tokens, finished, failed)

    def _tell_step(
        self,
        started: list[Started],
        tokens: list[Tokens],
        finished: list[Finished],
        failed: list[Failed],
    ) -> None:
        if started or tokens or finished or failed:
            self._tell(
                Step(
                    started=tuple(started),
                    tokens=tuple(tokens),
                    finished=tuple(finished),
                    failed=tuple(failed),
                    slots_busy=min(len(self._jobs), self.load.slots),
                    waiting=max(0, len(self._jobs) - self.load.slots),
                )
            )

    def _cancel(self, request_id: str) -> None:
        for job in tuple(self._jobs):
            if job.request.request_id == request_id:
                self._jobs.remove(job)
                finished = Finished(
                    request_id,
                    "cancelled",
                    prompt_tokens=len(job.prompt),
                    completion_tokens=len(job.generated),
                )
                self._tell_step([], [], [finished], [])


class SimLauncher:
    """ports.WorkerLauncher of one process."""

    def __init__(
        self, machine: Machine, process: Process, rng: random.Random, trace: Trace
    ) -> None:
        self._machine = machine
        self._process = process
        self._rng = rng
        self._trace = trace
        self._started = 0
        self.workers: list[SimWorker] = []
        self.fail_next = 0
        """A fault: this many launches do not work."""

    async def launch(self, load: Load) -> SimWorker:
        await elapse(self._rng.uniform(0.0, SPAWN_MAX_S))
        if not self._process.alive or self.fail_next > 0:
            self.fail_next -= 1
            raise WorkerError("cannot start a worker: simulated lack of memory")
        self._started += 1
        number = self._process.number * 1000 + self._started
        claims = {claim.device_id: claim.claim_bytes for claim in load.devices}
        self._machine.ledger.launched(number, claims)
        worker = SimWorker(number, load, self._machine, self._process, self._rng, self._trace)
        self.workers = [entry for entry in self.workers if entry.alive]
        self.workers.append(worker)
        self._trace.add(self._process.name, f"worker {load.replica} launched")
        return worker

    def living(self) -> list[SimWorker]:
        return [entry for entry in self.workers if entry.alive]

    def process_died(self) -> None:
        """The kernel kills the children with their parent."""
        for worker in self.living():
            worker.gone("its parent died")
