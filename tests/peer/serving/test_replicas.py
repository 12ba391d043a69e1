"""One replica: fair order, its slots never exceeded, cancellation, and what a death costs."""

from __future__ import annotations

import asyncio
import random

import pytest
from fixtures.peer_ports import turns
from fixtures.replica_stage import RECORD, Reader, Stage, done
from fixtures.virtual_time import run
from hypothesis import given, settings
from hypothesis import strategies as st

from aivailable.core.state.records import Status
from aivailable.errors import RequestError, WorkerError
from aivailable.peer.serving.replicas import (
    EVENTS_MAX,
    EVENTS_PAUSE,
    EVENTS_RESUME,
    EXIT_GRACE_S,
    NOTE_MAX_CHARS,
    NOTES_MAX,
)
from aivailable.wire.generation import (
    Cancel,
    Failed,
    Finished,
    Generate,
    Started,
    Tokens,
)
from aivailable.wire.worker import Counters, Load, LoadFailed, Pause, Ready, Resume, Shutdown


def test_events_come_in_order_and_the_end_is_the_end() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        reader = stage.ask("r1")
        await turns()
        told = [Started("r1", 1, prompt_ids=(5,)), Tokens("r1", (7,), "a"), done("r1")]
        stage.worker.step(started=(told[0],), tokens=(told[1],), finished=(told[2],))
        await turns()
        assert reader.events == told
        assert reader.task.done()
        assert stage.worker.of(Cancel) == [], "what is over is not cancelled"
        assert stage.replica.entry.requests_in_flight == 0

    run(scenario())


def test_a_reader_that_leaves_cancels_in_the_worker_and_frees_its_slot_when_told() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        readers = [stage.ask(name) for name in ("a", "b", "c")]
        await turns()
        assert stage.worker.of(Generate) == ["a", "b"]
        await readers[0].leave()
        assert stage.worker.of(Cancel) == ["a"]
        assert stage.worker.of(Generate) == ["a", "b"], "the slot is busy until the worker says so"
        assert stage.replica.load().slots_busy == 2
        stage.worker.step(finished=(Finished("a", "cancelled"),), slots_busy=1)
        await turns()
        assert stage.worker.of(Generate) == ["a", "b", "c"]
        await readers[2].leave()
        await readers[1].leave()
        assert stage.worker.of(Cancel) == ["a", "c", "b"]

    run(scenario())


def test_leaving_the_queue_never_reaches_the_worker() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        readers = [stage.ask(name) for name in ("a", "b", "c")]
        await turns()
        assert stage.replica.load().waiting == 1
        await readers[2].leave()
        assert stage.replica.load().waiting == 0
        stage.worker.step(finished=(done("a"), done("b")))
        await turns()
        assert stage.worker.of(Generate) == ["a", "b"]
        assert stage.worker.of(Cancel) == []

    run(scenario())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        stage = Stage(queue_max=4)
        await stage.up()
        readers = [stage.ask(f"r{n}", account=f"k{n}") for n in range(6)]
        await turns()
        late = stage.ask("late", account="late")
        await turns()
        with pytest.raises(RequestError) as caught:
            await late.task
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert caught.value.retry_after_s
        assert not any(reader.task.done() for reader in readers)

    run(scenario())


def test_a_repeat_of_a_running_or_just_cancelled_request_is_refused() -> None:
    """The end of the cancelled one would else be taken for the end of the new one."""

    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        first = stage.ask("r1")
        await turns()
        for _ in range(2):
            again = stage.ask("r1")
            await turns()
            with pytest.raises(RequestError, match="runs already"):
                await again.task
            await first.leave()
        stage.worker.step(finished=(Finished("r1", "cancelled"),))
        await turns()
        third = stage.ask("r1")
        await turns()
        stage.worker.step(finished=(done("r1"),))
        await turns()
        assert third.events == [done("r1")]

    run(scenario())


def test_a_worker_that_dies_fails_every_open_request_and_tells_why() -> None:
    async def scenario() -> None:
        stage = Stage()
        life = await stage.up()
        readers = [stage.ask(name) for name in ("a", "b", "queued")]
        await turns()
        stage.worker.die("killed by SIGKILL: last words")
        assert await life == "killed by SIGKILL: last words"
        await turns()
        for reader in readers:
            (failed,) = reader.events
            assert isinstance(failed, Failed)
            assert failed.code == "worker_lost"
        late = stage.ask("late")
        await turns()
        with pytest.raises(RequestError) as caught:
            await late.task
        assert caught.value.code == "not_hosting"

    run(scenario())


def test_a_death_names_the_file_that_was_open() -> None:
    async def scenario() -> None:
        stage = Stage()
        load = Load("m#1.1", "fake", "/models/damaged.gguf", 64, 2, ())
        life = asyncio.ensure_future(stage.replica.run_worker(stage.launcher, load))
        await turns()
        stage.worker.die("killed by SIGABRT: GGML_ASSERT(n > 0) failed")
        said = await life
        assert said == "/models/damaged.gguf: killed by SIGABRT: GGML_ASSERT(n > 0) failed"

    run(scenario())


def test_what_the_engine_runs_with_travels_with_its_load_and_is_bounded() -> None:
    async def scenario() -> None:
        stage = Stage()
        life = stage.start()
        await turns()
        notes = ("threads=7 of 8", "x" * 500, *("more",) * 100)
        stage.worker.say(Ready("fake", 64, 2, {}, 1, 0, 0, 1, notes=notes))
        await turns()
        shown = stage.replica.load().notes
        assert shown[0] == "threads=7 of 8"
        assert (len(shown), len(shown[1])) == (NOTES_MAX, NOTE_MAX_CHARS)
        stage.worker.die("crashed")
        await life
        again = stage.start()
        await turns()
        assert stage.replica.load().notes == (), "another process may choose otherwise"
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    run(scenario())


def test_a_worker_that_lingers_without_its_socket_fails_requests_at_once_and_is_killed() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        life = await stage.up()
        reader = stage.ask("a")
        await turns()
        stage.worker.lingers = True
        stage.worker.die("dumping core")
        await turns()
        assert isinstance(reader.events[0], Failed)
        assert not life.done()
        since_s = loop.time()
        assert await life == "killed by SIGKILL"
        assert loop.time() - since_s == pytest.approx(EXIT_GRACE_S)

    run(scenario())


def test_a_new_worker_counts_from_nothing() -> None:
    async def scenario() -> None:
        stage = Stage()
        life = await stage.up()
        counted = Counters(3, 3, 2, generated_tokens=40, drafted_tokens=9, accepted_tokens=5)
        stage.worker.step(counters=counted)
        await turns()
        load = stage.replica.load()
        assert (load.finished, load.cancelled, load.generated_tokens) == (3, 2, 40)
        assert (load.drafted_tokens, load.accepted_tokens) == (9, 5)
        stage.worker.die("crashed")
        await life
        again = stage.start()
        await turns()
        load = stage.replica.load()
        assert (load.finished, load.generated_tokens, load.progress) == (0, 0, 0.0)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        assert stage.worker.killed

    run(scenario())


def test_a_load_that_fails_says_its_own_reason() -> None:
    async def scenario() -> None:
        stage = Stage()
        life = stage.start()
        await turns()
        stage.worker.say(LoadFailed("out_of_memory", "9 GiB"))
        stage.worker.die("exit code 1")
        assert await life == "out_of_memory: 9 GiB"
        stage.launcher.fails = 1
        with pytest.raises(WorkerError, match="cannot start"):
            await stage.start()

    run(scenario())


@pytest.mark.parametrize("when", ["launching", "loading", "ready"])
def test_kill_ends_the_process_whenever_it_comes(when: str) -> None:
    async def scenario() -> None:
        stage = Stage()
        if when == "launching":
            stage.launcher.held = asyncio.Event()
        life = stage.start()
        await turns()
        if when == "ready":
            stage.worker.ready()
            await turns()
        stage.replica.kill()
        if stage.launcher.held is not None:
            stage.launcher.held.set()
        await life
        assert stage.worker.killed
        if when == "ready":
            assert isinstance(stage.worker.sent[0], Shutdown)

    run(scenario())


def test_draining_refuses_new_requests_and_finishes_old_ones() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        old = stage.ask("old")
        await turns()
        stage.replica.become(Status.DRAINING)
        new = stage.ask("new")
        await turns()
        with pytest.raises(RequestError) as caught:
            await new.task
        assert caught.value.code == "draining"
        stage.worker.step(finished=(done("old"),))
        await turns()
        assert old.events == [done("old")]

    run(scenario())


STEPS = st.sampled_from(["ask", "leave", "end", "die"])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.lists(st.sampled_from(["ask", "leave", "end", "die"]), max_size=40)
)
def test_slots_are_never_exceeded_and_every_request_ends_once(seed: int, steps: list[str]) -> None:
    """What the worker was sent and has not ended is never more than its slots."""

    async def scenario() -> None:
        rng = random.Random(seed)
        stage = Stage(queue_max=3)
        life = await stage.up()
        readers: dict[str, Reader] = {}
        ended: dict[str, None] = {}

        def inside() -> list[str]:
            return [name for name in stage.worker.of(Generate) if name not in ended]

        for number, step in enumerate(steps):
            open_names = [name for name, reader in readers.items() if not reader.task.done()]
            if step == "ask":
                readers[f"r{number}"] = stage.ask(f"r{number}", account=rng.choice("ab"))
            elif step == "leave" and open_names:
                await readers[rng.choice(open_names)].leave()
            elif step == "end" and inside():
                name = rng.choice(inside())
                ended[name] = None
                stage.worker.step(finished=(done(name),))
            elif step == "die":
                stage.worker.die("crash")
                await life
                life = await stage.up()
            await turns(6)
            assert len(inside()) <= RECORD.slots
            assert stage.replica.load().slots_busy == len(inside())
        stage.worker.die("end")
        await life
        await turns()
        assert stage.replica.entry.requests_in_flight == 0
        for reader in readers.values():
            assert reader.task.done()
            # Refused (429) ends with an exception; retrieve it.
            if not reader.task.cancelled() and reader.task.exception() is None:
                assert len(reader.events) == 1

    run(scenario())


def test_a_reader_that_stops_pauses_its_request_alone_until_it_has_caught_up() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        stalled = stage.replica.generate(Generate("slow", "m", "m#1.1", prompt="x"))
        waiting = asyncio.ensure_future(anext(stalled))
        other = stage.ask("other")
        await turns()
        for number in range(EVENTS_PAUSE * 2):
            stage.worker.step(
                tokens=(Tokens("slow", (number,), "a"), Tokens("other", (number,), "a"))
            )
            await turns()
        assert (stage.worker.of(Pause), stage.worker.of(Resume)) == (["slow"], [])
        assert len(other.events) == EVENTS_PAUSE * 2
        read = [await waiting]
        while stage.worker.of(Resume) == []:
            read.append(await anext(stalled))
        assert len(read) == EVENTS_PAUSE * 2 - EVENTS_RESUME
        assert [event.ids for event in read if isinstance(event, Tokens)] == [
            (number,) for number in range(len(read))
        ]
        await stalled.aclose()
        assert stage.worker.of(Cancel) == ["slow"]

    run(scenario())


def test_a_worker_that_ignores_the_pause_has_its_request_ended() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        stalled = stage.replica.generate(Generate("slow", "m", "m#1.1", prompt="x"))
        first = asyncio.ensure_future(anext(stalled))
        await turns()
        tokens = tuple(Tokens("slow", (7,), "a") for _ in range(EVENTS_MAX * 2))
        stage.worker.step(tokens=tokens)
        await turns()
        assert stage.worker.of(Cancel) == ["slow"]
        events = [await first, *[event async for event in stalled]]
        assert len(events) == EVENTS_MAX + 1
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "slow_reader"

    run(scenario())


def test_warm_prefixes_are_told_with_the_load_and_forgotten_with_the_worker() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        stage.worker.step(prefixes=(3, 5))
        stage.worker.step()
        await turns()
        assert stage.replica.load().prefixes == (3, 5)
        stage.worker.die("")
        await turns()
        again = stage.start()
        await turns()
        assert stage.replica.load().prefixes == ()
        again.cancel()

    run(scenario())
