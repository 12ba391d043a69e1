"""A request's way: elsewhere before the first byte, onwards after it, and an end in every case."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fixtures.cluster_parts import FakeView
from fixtures.peer_ports import FakeStream, World, turns
from fixtures.states import equipped
from fixtures.virtual_time import run

from aivailable.core.cluster.liveness import Heard, Liveness
from aivailable.core.state.records import Status
from aivailable.core.state.state import State
from aivailable.errors import RequestError, StreamReset
from aivailable.peer.service import Routing
from aivailable.peer.serving.router import ATTEMPTS_MAX, Router
from aivailable.peer.tasks import Tasks
from aivailable.wire.generation import (
    Cancel,
    Failed,
    Finished,
    Generate,
    GenerationEvent,
    Started,
    Tokens,
)
from aivailable.wire.peer import Heartbeat, ReplicaLoad

PROMPT = (11, 12)
ANSWER = tuple(range(100, 110))
REQUEST = Generate("q1", "tiny", prompt="two words", max_tokens=len(ANSWER), deadline_s=30.0)


def started() -> Started:
    return Started("q1", len(PROMPT), prompt_ids=PROMPT)


def token(number: int) -> Tokens:
    return Tokens("q1", (number,), f"{number} ")


def finished() -> Finished:
    return Finished("q1", "length", completion_tokens=len(ANSWER))


class FakeAgent:
    """This node's own replicas: none, unless a test adds a script."""

    def __init__(self) -> None:
        self.local: dict[str, Any] = {}

    def find(self, replica: str) -> Any:
        return self.local.get(replica)


class Stage:
    """n1 asks; n2 (replica tiny#1.1) and n3 (tiny#1.2) host. `hosts` plays them."""

    def __init__(self) -> None:
        self.world = World()
        cluster = equipped(3)
        self.replicas = {}
        for node in ("n2", "n3"):
            name = cluster.place(node=node)
            cluster.report(name, Status.LOADING, Status.READY, node=node)
            self.replicas[name] = node
        self.state: State = cluster.state
        self.status = dict.fromkeys(self.replicas, "ready")
        self.world.links.peers = ["n2", "n3"]
        self.agent = FakeAgent()
        self.routing = Routing("n1", wait_s=5.0)
        self.tasks = Tasks("test")
        self.router = Router(
            self.world.ports(),
            FakeView("n1", self, self.liveness),
            self.agent,  # type: ignore[arg-type]
            self.tasks,
        )

    def liveness(self) -> Liveness:
        now_s = asyncio.get_running_loop().time()
        heard = {"n1": Heard("n1", Heartbeat("n1", "i", 1, 1), now_s)}
        for name, node in self.replicas.items():
            load = ReplicaLoad(name, "tiny", self.status[name], 2)
            beat = Heartbeat(node, "i", 1, 1, replicas=(load,))
            heard[node] = Heard(node, beat, now_s)
        return Liveness("n1", now_s, self.world.links.connected(), heard, now_s - 100)

    def hosts(self, *scripts: Callable[[FakeStream], None]) -> None:
        """Each attempt is played by the next script; the last goes on playing."""
        left = list(scripts)

        def play(node: str, first: Any, far: FakeStream) -> None:
            script = left.pop(0) if len(left) > 1 else left[0]
            script(far)

        self.world.links.on_stream = play

    async def ask(self, request: Generate = REQUEST) -> list[GenerationEvent]:
        return [event async for event in self.router.run(request, self.routing)]

    @property
    def asked(self) -> list[tuple[str, Generate]]:
        return [(node, first) for node, first, _ in self.world.links.opened]


def says(*events: Any, then: str = "") -> Callable[[FakeStream], None]:
    """A host that says these; `then`: "" leaves it open, "lost" the link dies, else a reset."""

    def play(far: FakeStream) -> None:
        for event in events:
            far._tell(event)
        if then == "lost":
            far.lose()
        elif then:
            far.reset(then)

    return play


def test_a_forwarded_answer_comes_whole_and_its_stream_ends_in_order() -> None:
    async def scenario() -> None:
        stage = Stage()
        told = [started(), token(100), finished()]
        stage.hosts(says(*told))
        assert await stage.ask() == told
        ((node, first),) = stage.asked
        assert stage.replicas[first.replica] == node == stage.routing.host
        assert (stage.routing.attempts, stage.routing.replica) == (1, first.replica)
        assert await stage.world.links.opened[0][2].receive() is None, "finished, not reset"

    run(scenario())


@pytest.mark.parametrize("end", ["not_hosting", "draining", "queue_full", "worker_lost", "lost"])
def test_before_the_first_byte_another_replica_is_tried(end: str) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.hosts(says(then=end), says(started(), finished()))
        assert await stage.ask() == [started(), finished()]
        first, second = (request.replica for _, request in stage.asked)
        assert first != second
        assert stage.asked[1][1].prompt == REQUEST.prompt
        assert stage.routing.attempts == 2

    run(scenario())


@pytest.mark.parametrize("cut", range(len(ANSWER) + 1))
@pytest.mark.parametrize("how", ["lost", "failed"])
def test_a_continuation_gives_each_token_once_wherever_it_is_cut(cut: int, how: str) -> None:
    async def scenario() -> None:
        stage = Stage()
        head = [token(number) for number in ANSWER[:cut]]
        if how == "lost":
            dying = says(started(), *head, then="lost")
        else:
            dying = says(started(), *head, Failed("q1", "worker_lost", "died", 502))
        tail = [token(number) for number in ANSWER[cut:]]
        stage.hosts(dying, says(started(), *tail, finished()))
        events = await stage.ask()
        assert events.count(started()) == 1
        ids = [id_ for event in events if isinstance(event, Tokens) for id_ in event.ids]
        assert tuple(ids) == ANSWER
        assert events[-1] == finished()
        resumed = stage.asked[1][1]
        if cut:
            assert (resumed.prompt_ids, resumed.generated_ids) == (PROMPT, ANSWER[:cut])
            assert (resumed.prompt, resumed.messages) == (None, None)
            assert resumed.max_tokens == REQUEST.max_tokens
        else:
            assert (resumed.prompt, resumed.generated_ids) == (REQUEST.prompt, ())

    run(scenario())


def test_what_cannot_be_resumed_fails_and_is_not_begun_again() -> None:
    async def scenario() -> None:
        stage = Stage()
        empty = Started("q1", 0, prompt_ids=())
        stage.hosts(says(empty, token(100), then="lost"), says(empty, token(100), finished()))
        with pytest.raises(RequestError) as caught:
            await stage.ask()
        assert caught.value.code == "cannot_continue"
        assert len(stage.asked) == 1

    run(scenario())


def test_a_clients_own_fault_is_not_tried_elsewhere() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.hosts(says(Failed("q1", "context_length_exceeded", "too long", 400)))
        with pytest.raises(RequestError, match="too long") as caught:
            await stage.ask()
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
        assert len(stage.asked) == 1

    run(scenario())


def test_unknown_models_and_full_queues_are_refused_at_once() -> None:
    async def scenario() -> None:
        stage = Stage()
        with pytest.raises(RequestError) as caught:
            await stage.ask(replace(REQUEST, deployment="nobody"))
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
        stage.router._reserved = dict.fromkeys(stage.replicas, 1000)
        stage.router._under_way = {"": dict.fromkeys(stage.replicas, 1000)}
        with pytest.raises(RequestError) as caught:
            await stage.ask()
        assert caught.value.code == "queue_full"
        assert stage.asked == []

    run(scenario())


def test_a_chat_with_a_model_that_has_no_template_is_refused_at_once() -> None:
    async def scenario() -> None:
        stage = Stage()
        chat = replace(REQUEST, prompt=None, messages=({"role": "user", "content": "Hi"},))
        models = {
            digest: replace(model, facts=replace(model.facts, has_chat_template=False))
            for digest, model in stage.state.models.items()
        }
        stage.state = replace(stage.state, models=models)
        with pytest.raises(RequestError, match="/v1/completions") as caught:
            await stage.ask(chat)
        assert (caught.value.status, caught.value.code, stage.asked) == (400, "template_error", [])

    run(scenario())


def test_a_line_that_others_fill_is_asked_for_an_account_with_nothing_there() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.router._reserved = dict.fromkeys(stage.replicas, 1000)
        stage.router._under_way = {"key:greedy": dict.fromkeys(stage.replicas, 1000)}
        stage.hosts(says(started(), finished()))
        with pytest.raises(RequestError, match="full queue"):
            await stage.ask(replace(REQUEST, account="key:greedy"))
        await stage.ask(replace(REQUEST, account="key:modest"))
        ((_, forwarded),) = stage.asked
        assert forwarded.account == "key:modest"
        assert list(stage.router._under_way) == ["key:greedy"], "what has ended is not counted"

    run(scenario())


def test_a_model_on_its_way_is_waited_for_so_long_and_no_longer() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        stage.status = dict.fromkeys(stage.replicas, "loading")
        begun_s = loop.time()
        with pytest.raises(RequestError) as caught:
            await stage.ask()
        assert (caught.value.status, caught.value.code) == (503, "model_not_ready")
        assert caught.value.retry_after_s
        assert loop.time() - begun_s == pytest.approx(5.0)
        stage.hosts(says(started(), finished()))
        asking = asyncio.ensure_future(stage.ask())
        await turns()
        stage.status = dict.fromkeys(stage.replicas, "ready")
        since_s = loop.time()
        stage.router.nudge()
        assert await asking == [started(), finished()]
        assert loop.time() == since_s, "a nudge is enough"

    run(scenario())


def test_waiting_ends_at_the_requests_deadline_too() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        stage.status = dict.fromkeys(stage.replicas, "loading")
        begun_s = loop.time()
        with pytest.raises(RequestError) as caught:
            await stage.ask(replace(REQUEST, deadline_s=2.5))
        assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
        assert loop.time() - begun_s == pytest.approx(2.5)

    run(scenario())


def test_a_long_answer_may_wait_for_its_continuation() -> None:
    """Patience counts the time spent waiting, not the time spent answering."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()

        def slow(far: FakeStream) -> None:
            far._tell(started())
            far._tell(token(100))
            loop.call_later(20.0, far.lose)
            loop.call_later(20.0, stage.status.update, dict.fromkeys(stage.replicas, "loading"))
            loop.call_later(23.0, stage.status.update, dict.fromkeys(stage.replicas, "ready"))

        stage.hosts(slow, says(started(), token(101), finished()))
        events = await stage.ask()
        assert events == [started(), token(100), token(101), finished()]

    run(scenario())


def test_a_silent_host_does_not_outlast_the_deadline() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        stage.hosts(says(started()))
        begun_s = loop.time()
        with pytest.raises(RequestError) as caught:
            await stage.ask()
        assert caught.value.code == "deadline_exceeded"
        assert loop.time() - begun_s == pytest.approx(REQUEST.deadline_s)
        with pytest.raises(StreamReset):
            await stage.world.links.opened[0][2].receive()

    run(scenario())


def test_failing_hosts_are_not_tried_for_ever() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.routing.wait_s = 1000.0
        stage.hosts(says(then="worker_lost"))
        with pytest.raises(RequestError) as caught:
            await stage.ask(replace(REQUEST, deadline_s=1000.0))
        assert (caught.value.status, caught.value.code) == (502, "attempts_exhausted")
        assert len(stage.asked) == ATTEMPTS_MAX

    run(scenario())


def test_full_queues_are_waited_for_and_not_hammered() -> None:
    """Requests that waited for a load all come at once: turning them away ends none of them."""

    async def scenario() -> None:
        stage = Stage()
        turned_away = 3 * ATTEMPTS_MAX
        stage.routing.wait_s = 60.0
        stage.hosts(*[says(then="queue_full")] * turned_away, says(started(), finished()))
        assert await stage.ask(replace(REQUEST, deadline_s=100.0)) == [started(), finished()]
        assert len(stage.asked) == turned_away + 1

    run(scenario())


def test_a_queue_that_stays_full_is_told_as_such() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.hosts(says(then="queue_full"))
        with pytest.raises(RequestError, match="waited") as caught:
            await stage.ask()
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert caught.value.retry_after_s is not None
        assert len(stage.asked) < 30, "the pauses grow"

    run(scenario())


def test_a_client_that_leaves_resets_the_stream() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.hosts(says(started(), token(100)))
        events = stage.router.run(REQUEST, stage.routing)
        assert await anext(events) == started()
        await events.aclose()
        with pytest.raises(StreamReset, match="cancelled"):
            await stage.world.links.opened[0][2].receive()

    run(scenario())


class ScriptedReplica:
    """A local replica that starts, and ends when the test says so."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.closed = False
        self.error: RequestError | None = None

    async def generate(self, request: Generate) -> Any:
        if self.error is not None:
            raise self.error
        try:
            yield started()
            await self.go.wait()
            yield finished()
        finally:
            self.closed = True


def served(stage: Stage, replica: str) -> tuple[FakeStream, asyncio.Task[None]]:
    near, far = FakeStream.pair()
    serving = asyncio.ensure_future(stage.router.serve(replace(REQUEST, replica=replica), far))
    return near, serving


def test_a_host_relays_and_ends_in_order() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.agent.local["mine"] = mine = ScriptedReplica()
        near, serving = served(stage, "mine")
        assert await near.receive() == started()
        mine.go.set()
        assert await near.receive() == finished()
        assert await near.receive() is None
        near.finish()
        await serving

    run(scenario())


def test_a_host_without_the_replica_says_so() -> None:
    async def scenario() -> None:
        stage = Stage()
        near, serving = served(stage, "elsewhere")
        with pytest.raises(StreamReset, match="not_hosting"):
            await near.receive()
        await serving
        stage.agent.local["full"] = full = ScriptedReplica()
        full.error = RequestError(429, "queue_full", "full")
        near, serving = served(stage, "full")
        with pytest.raises(StreamReset, match="queue_full"):
            await near.receive()
        await serving

    run(scenario())


@pytest.mark.parametrize("how", ["reset", "cancel", "lost"])
def test_a_host_stops_working_when_the_ingress_ends_it(how: str) -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.agent.local["mine"] = mine = ScriptedReplica()
        near, serving = served(stage, "mine")
        assert await near.receive() == started()
        if how == "reset":
            near.reset("cancelled")
        elif how == "cancel":
            await near.send(Cancel("q1"))
        else:
            near.lose()
        await serving
        await turns()
        assert mine.closed

    run(scenario())


def test_a_host_that_stops_does_not_leave_the_ingress_waiting() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.agent.local["mine"] = ScriptedReplica()
        near, serving = served(stage, "mine")
        assert await near.receive() == started()
        await stage.tasks.stop()
        with pytest.raises(StreamReset, match="worker_lost"):
            await near.receive()
        await serving

    run(scenario())
