"""A request's way: choose a replica, run it here or one hop away, try another, continue elsewhere.

`core.serving.router.choose` decides on the current view; this class performs it, holds what a
continuation needs (prompt and generated token ids), and serves what other ingresses send here.

Not to be confused with `core.serving.router`, which only chooses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace

from aivailable.core.backoff import delay_s
from aivailable.core.ids import AccountId, NodeId, ReplicaId, short
from aivailable.core.planning.planner import explanations
from aivailable.core.serving.router import Forward, Local, Refuse, Wait, choose, unfit
from aivailable.core.serving.view import View
from aivailable.core.state.records import Status
from aivailable.errors import LinkError, RequestError, StreamReset
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.ports import MessageStream, Ports
from aivailable.peer.service import Routing
from aivailable.peer.serving.agent import Agent
from aivailable.peer.serving.demand import Demands
from aivailable.peer.tasks import Pulse, Tasks
from aivailable.wire.generation import (
    Cancel,
    Failed,
    Finished,
    Generate,
    GenerationEvent,
    Started,
    Tokens,
)
from aivailable.wire.prefixes import digests

log = logging.getLogger("aivailable.router")

ATTEMPTS_MAX = 8
TURNED_AWAY = frozenset({"not_hosting", "draining", "queue_full", "busy", "duplicate_request"})
"""Refusals before anything was done for the request: they cost no attempt, only patience."""
ELSEWHERE = TURNED_AWAY | {"worker_lost"}
"""Ends of one attempt after which another replica may do better."""
EXPLAINED_FOR_S = 1.0
"""So long one explanation of the planner is good enough for all who ask."""
AGAIN_BASE_S = 0.1
AGAIN_CAP_S = 2.0
"""Pause before a replica that failed or turned the request away is asked again."""


class _TryElsewhere(Exception):
    """This attempt is over; the request is not."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(slots=True)
class _Progress:
    """What the client has, and what another replica needs to go on."""

    request: Generate
    started: bool = False
    prompt_ids: tuple[int, ...] = ()
    generated: list[int] = field(default_factory=list)
    excluded: list[ReplicaId] = field(default_factory=list)
    last_failure: str = ""
    last_code: str = ""
    failures: int = 0
    """Attempts that ended badly after a replica had taken the request."""
    rounds: int = 0
    """How often every replica had been tried."""
    waited_s: float = 0.0
    """Spent waiting for a replica, all attempts together."""

    def next_request(self, replica: ReplicaId) -> Generate:
        """The request as the next replica shall have it: resumed where the last one ended."""
        if not self.generated:
            return replace(self.request, replica=replica)
        return replace(
            self.request,
            replica=replica,
            # The messages stay: they tell the worker how the answer is to be read.
            prompt=None,
            prompt_ids=self.prompt_ids,
            generated_ids=tuple(self.generated),
        )


class Router:
    """Both ends of the one hop: ingress (`run`) and host (`serve`)."""

    def __init__(
        self,
        ports: Ports,
        cluster: ClusterView,
        agent: Agent,
        tasks: Tasks,
        on_demand: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_demand`: something is asked for that is not loaded; the others should know."""
        self._node = cluster.node
        self._ports = ports
        self._cluster = cluster
        self._agent = agent
        self._tasks = tasks
        self._reserved: dict[ReplicaId, int] = {}
        self._under_way: dict[AccountId, dict[ReplicaId, int]] = {}
        """Attempts of requests that came in here."""
        self._waiters: dict[int, Pulse] = {}
        self._next_waiter = 0
        self._explained: Mapping[str, str] = {}
        self._explained_s = float("-inf")
        self.demands = Demands(ports.clock, on_demand)

    def nudge(self) -> None:
        """The view may have changed: whoever waits looks again."""
        state = self._cluster.state
        for name in self.demands.pending():
            if any(entry.status is Status.READY for entry in state.replicas_of(name)):
                self.demands.served(name)
        for number in sorted(self._waiters):
            self._waiters[number].nudge()

    def heard(self, replicas: tuple[ReplicaId, ...]) -> None:
        """A fresh heartbeat counts our requests itself: the local reservations end."""
        for replica in replicas:
            self._reserved.pop(replica, None)

    # --- ingress

    async def run(
        self, request: Generate, routing: Routing
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Started, Tokens…, Finished. Raises RequestError when it cannot be served."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        ends_s = begun_s + request.deadline_s
        progress = _Progress(request)
        never = unfit(self._cluster.state, request.deployment, chats=request.messages is not None)
        if never is not None:
            raise RequestError(never.status, never.code, never.message)
        while True:
            choice = await self._choose(progress, routing, ends_s)
            left_s = _left_s(ends_s)
            routing.attempts += 1
            routing.queue_ms = int((loop.time() - begun_s) * 1000)
            routing.replica = choice.replica
            routing.host = choice.node if isinstance(choice, Forward) else self._node
            attempt = replace(progress.next_request(choice.replica), deadline_s=left_s)
            try:
                with self._counted(request.account, choice.replica):
                    async with aclosing(self._attempt(choice, attempt)) as events:
                        while True:
                            event = await _next_before(ends_s, events)
                            shown = self._account(progress, event)
                            if shown is not None:
                                yield shown
                            if isinstance(event, Finished):
                                return
            except _TryElsewhere as reason:
                log.info("%s: %s on %s", request.request_id, reason, choice.replica)
                progress.last_failure, progress.last_code = str(reason), reason.code
                progress.failures += reason.code not in TURNED_AWAY
                progress.excluded.append(choice.replica)
            if progress.failures >= ATTEMPTS_MAX:
                raise RequestError(502, "attempts_exhausted", progress.last_failure)
            if progress.generated and not progress.prompt_ids:
                # Without the prompt's ids another replica would begin again, not go on.
                raise RequestError(502, "cannot_continue", progress.last_failure)

    @contextmanager
    def _counted(self, account: AccountId, replica: ReplicaId) -> Iterator[None]:
        mine = self._under_way.setdefault(account, {})
        mine[replica] = mine.get(replica, 0) + 1
        try:
            yield
        finally:
            mine[replica] -= 1
            if not mine[replica]:
                del mine[replica]
            if not mine:
                self._under_way.pop(account, None)

    def _account(self, progress: _Progress, event: GenerationEvent) -> GenerationEvent | None:
        """Remember what a continuation needs; hide the second Started from the client."""
        match event:
            case Started(prompt_ids=prompt_ids):
                progress.prompt_ids = progress.prompt_ids or prompt_ids
                if progress.started:
                    return None
                progress.started = True
            case Tokens(ids=ids):
                progress.generated.extend(ids)
            case Failed(code=code, message=message, status=status):
                if code in ELSEWHERE:
                    raise _TryElsewhere(code, message)
                raise RequestError(status, code, message)
            case _:
                return event
        return event

    async def _choose(
        self, progress: _Progress, routing: Routing, ends_s: float
    ) -> Local | Forward:
        """Waits while the model is deployed but nowhere ready, at most until `ends_s` of the
        loop's time. Raises RequestError."""
        loop = asyncio.get_running_loop()
        pulse, number = Pulse(), self._next_waiter
        self._next_waiter += 1
        self._waiters[number] = pulse
        wanted = digests(progress.request)
        waits_for = ""
        try:
            while True:
                view = View(self._cluster.state, self._cluster.liveness())
                choice = choose(
                    progress.request.deployment,
                    view,
                    progress.excluded,
                    self._reserved,
                    wanted,
                    self._under_way.get(progress.request.account, {}),
                )
                for other in choice.not_chosen:
                    log.debug(
                        "%s: not %s on %s: %s",
                        progress.request.request_id,
                        other.replica,
                        short(other.node),
                        other.reason,
                    )
                match choice:
                    case Local():
                        return choice
                    case Forward(replica=replica):
                        self._reserved[replica] = self._reserved.get(replica, 0) + 1
                        return choice
                    case Refuse():
                        raise RequestError(
                            choice.status,
                            choice.code,
                            choice.message,
                            retry_after_s=choice.retry_after_s,
                        )
                    case Wait():
                        patience_s = self._patience_s(choice, routing, progress)
                        if not waits_for:
                            waits_for = choice.deployment
                            self.demands.wait(waits_for)
                        since_s = loop.time()
                        most_s = min(patience_s, _left_s(ends_s))
                        if progress.excluded:
                            await asyncio.sleep(min(self._pause_s(progress), most_s))
                        else:
                            await pulse.wait(min(choice.retry_s, most_s))
                        progress.waited_s += loop.time() - since_s
                        # What failed a moment ago may be the only one, and well again.
                        progress.excluded.clear()
        finally:
            del self._waiters[number]
            if waits_for:
                self.demands.leave(waits_for)

    def _pause_s(self, progress: _Progress) -> float:
        """Every replica was tried: news must not drive this request round at once."""
        progress.rounds += 1
        jitter = self._ports.randomness.random.random()
        return delay_s(progress.rounds, base_s=AGAIN_BASE_S, cap_s=AGAIN_CAP_S, jitter=jitter)

    def _patience_s(self, choice: Wait, routing: Routing, progress: _Progress) -> float:
        """How much longer this request may wait. Raises RequestError when it is over."""
        waited_s = progress.waited_s
        left_s = routing.wait_s - waited_s
        if left_s <= 0 and progress.last_code == "queue_full":
            raise RequestError(
                429,
                "queue_full",
                f"{progress.last_failure} (waited {waited_s:.0f} s)",
                retry_after_s=max(1, round(choice.retry_s)),
            )
        if left_s <= 0:
            why = self._why(choice.deployment)
            raise RequestError(
                503,
                "model_not_ready",
                f"{choice.reason} (waited {waited_s:.0f} s){why and f': {why}'}",
                retry_after_s=max(1, round(choice.retry_s)),
            )
        return left_s

    def _why(self, deployment: str) -> str:
        """What the planner says of it. Many may give up at once: one plan answers them all."""
        now_s = self._ports.clock.monotonic()
        if now_s - self._explained_s >= EXPLAINED_FOR_S:
            self._explained = explanations(self._cluster.state, self._cluster.liveness())
            self._explained_s = now_s
        return self._explained.get(deployment, "")

    async def _attempt(
        self, choice: Local | Forward, request: Generate
    ) -> AsyncGenerator[GenerationEvent, None]:
        """One try at one replica. Raises _TryElsewhere when it ends before the answer does."""
        if isinstance(choice, Forward):
            async with aclosing(self._forward(choice.node, request)) as events:
                async for event in events:
                    yield event
            return
        local = self._agent.find(choice.replica)
        if local is None:
            raise _TryElsewhere("not_hosting", "the worker has just gone")
        try:
            async with aclosing(local.generate(request)) as events:
                async for event in events:
                    yield event
        except RequestError as error:
            raise _TryElsewhere(error.code, str(error)) from error

    async def _forward(
        self, node: NodeId, request: Generate
    ) -> AsyncGenerator[GenerationEvent, None]:
        """One hop: the host's events, as they come. Closing resets the stream."""
        try:
            stream = await self._ports.links.open_stream(node, request)
        except LinkError as error:
            raise _TryElsewhere("link_lost", str(error)) from error
        ended = False
        try:
            while True:
                event = await stream.receive()
                if event is None:
                    raise _TryElsewhere("link_lost", "the host ended the stream early")
                if isinstance(event, Finished | Failed):
                    # Before it is passed on: whoever reads it closes this iterator.
                    ended = True
                    stream.finish()
                yield event
                if ended:
                    return
        except StreamReset as error:
            ended = True
            raise _TryElsewhere(error.code, error.message) from error
        except LinkError as error:
            ended = True
            raise _TryElsewhere("link_lost", str(error)) from error
        finally:
            if not ended:
                stream.reset("cancelled", "the client is gone")

    # --- host

    async def serve(self, request: Generate, stream: MessageStream) -> None:
        """Run another ingress's request here, until it ends or that side resets the stream."""
        local = self._agent.find(request.replica)
        if local is None:
            stream.reset("not_hosting", f"{request.replica} does not run here")
            return
        relay = self._tasks.spawn(self._relay(request, stream), f"relay {request.request_id}")
        try:
            while True:
                message = await stream.receive()
                if message is None or isinstance(message, Cancel):
                    return
        except LinkError as error:
            log.debug("%s: %s", request.request_id, error)
        finally:
            relay.cancel()

    async def _relay(self, request: Generate, stream: MessageStream) -> None:
        local = self._agent.find(request.replica)
        if local is None:
            stream.reset("not_hosting", f"{request.replica} does not run here")
            return
        try:
            async with aclosing(local.generate(request)) as events:
                async for event in events:
                    await stream.send(event)
            stream.finish()
        except asyncio.CancelledError:
            # The ingress has ended the stream, or this node leaves: it must not wait for us.
            stream.reset("worker_lost", "this node serves the request no longer")
            raise
        except RequestError as error:
            stream.reset(error.code, str(error))
        except LinkError as error:
            log.debug("%s: the ingress is gone: %s", request.request_id, error)


def _left_s(ends_s: float) -> float:
    """Seconds of the loop's time until `ends_s`. Raises RequestError when there are none."""
    left_s = ends_s - asyncio.get_running_loop().time()
    if left_s <= 0:
        raise RequestError(504, "deadline_exceeded", "the request's time is over")
    return left_s


async def _next_before(
    ends_s: float, events: AsyncGenerator[GenerationEvent, None]
) -> GenerationEvent:
    """The next event of an attempt. A host that falls silent does not outlast the deadline.

    Raises RequestError at the deadline, _TryElsewhere when the events end without a last word.
    """
    try:
        async with asyncio.timeout_at(ends_s):
            return await anext(events)
    except TimeoutError as error:
        raise RequestError(504, "deadline_exceeded", "the request's time is over") from error
    except StopAsyncIteration as error:
        raise _TryElsewhere("link_lost", "the events ended early") from error
