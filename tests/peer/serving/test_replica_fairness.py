"""One replica between several keys: turns, slots that are given up, places in its line."""

from __future__ import annotations

import asyncio

import pytest
from fixtures.peer_ports import turns
from fixtures.replica_stage import Stage, done
from fixtures.virtual_time import run

from aivailable.core.serving.admission import SLOT_PATIENCE_S
from aivailable.peer.serving.replicas import EVENTS_PAUSE, EVENTS_RESUME
from aivailable.wire.generation import Cancel, Failed, Finished, Generate, Started, Tokens
from aivailable.wire.worker import Pause


def test_the_queue_is_fair_between_accounts() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        for number in range(6):
            stage.ask(f"greedy{number}", "greedy", max_tokens=100)
        await turns()
        stage.ask("modest", "modest", max_tokens=100)
        await turns()
        stage.worker.step(finished=(done("greedy0"),))
        await turns()
        stage.worker.step(finished=(done("greedy1"),))
        await turns()
        order = stage.worker.of(Generate)
        assert order[2] == "modest", order

    run(scenario())


def test_an_answer_without_end_gives_up_its_slot_and_goes_on_later() -> None:
    """No token twice or missing, and the key that holds two slots keeps one."""

    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        greedy = [stage.ask(f"greedy{n}", "greedy") for n in range(3)]
        await turns()
        stage.worker.step(
            started=(Started("greedy0", 2, prompt_ids=(5, 6)), Started("greedy1", 1, 0, (5,))),
            tokens=(Tokens("greedy0", (7,), "a"), Tokens("greedy1", (8,), "b")),
        )
        modest = stage.ask("modest", "modest")
        await asyncio.sleep(SLOT_PATIENCE_S - 0.1)
        assert stage.worker.of(Cancel) == []
        await asyncio.sleep(0.2)
        assert stage.worker.of(Cancel) == ["greedy1"]
        assert stage.worker.of(Generate) == ["greedy0", "greedy1"], "its slot is not free yet"
        # What the worker had made before it read the word.
        stage.worker.step(tokens=(Tokens("greedy1", (9,), "c"),))
        stage.worker.step(finished=(Finished("greedy1", "cancelled", completion_tokens=2),))
        await turns()
        assert stage.worker.of(Generate)[2:] == ["modest"]
        stage.worker.step(finished=(done("modest"),))
        await turns()
        assert modest.events == [done("modest")]
        assert stage.worker.of(Generate)[3:] == ["greedy1"], "before what never had a slot"
        resumed = stage.worker.sent[-1]
        assert isinstance(resumed, Generate)
        assert (resumed.prompt, resumed.prompt_ids, resumed.generated_ids) == (None, (5,), (8, 9))
        stage.worker.step(
            started=(Started("greedy1", 1, prompt_ids=(5,)),),
            tokens=(Tokens("greedy1", (10,), "d"),),
            finished=(Finished("greedy1", "stop", completion_tokens=3),),
        )
        await turns()
        told = [event.ids for event in greedy[1].events if isinstance(event, Tokens)]
        assert told == [(8,), (9,), (10,)]
        assert isinstance(greedy[1].events[-1], Finished)
        assert not greedy[0].task.done()

    run(scenario())


def test_an_answer_that_ends_while_it_is_asked_to_give_way_is_whole() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        greedy = [stage.ask(f"greedy{n}", "greedy") for n in range(2)]
        await turns()
        stage.ask("modest", "modest")
        await asyncio.sleep(SLOT_PATIENCE_S + 0.1)
        assert stage.worker.of(Cancel) == ["greedy1"]
        stage.worker.step(finished=(done("greedy1"),))
        await turns()
        assert greedy[1].events == [done("greedy1")]
        assert stage.worker.of(Generate)[2:] == ["modest"]

    run(scenario())


def test_a_client_that_leaves_while_its_answer_gives_way_is_forgotten() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        greedy = [stage.ask(f"greedy{n}", "greedy") for n in range(2)]
        await turns()
        stage.ask("modest", "modest")
        await asyncio.sleep(SLOT_PATIENCE_S + 0.1)
        await greedy[1].leave()
        assert stage.worker.of(Cancel) == ["greedy1"], "told once"
        stage.worker.step(finished=(Finished("greedy1", "cancelled"),))
        await turns()
        assert stage.worker.of(Generate)[2:] == ["modest"]
        assert stage.replica.load().waiting == 0

    run(scenario())


def test_streams_that_nobody_reads_hold_no_slot_that_others_want() -> None:
    """It comes back to a slot when its reader does, not before."""

    async def scenario() -> None:
        stage = Stage()
        await stage.up()
        stage.ask("greedy", "greedy")
        await turns()
        unread = stage.replica.generate(
            Generate("unread", "m", "m#1.1", prompt="x", account="greedy")
        )
        first = asyncio.ensure_future(anext(unread))
        await turns()
        stage.worker.step(started=(Started("unread", 1, prompt_ids=(5,)),))
        await turns()
        assert await first == Started("unread", 1, prompt_ids=(5,))
        count = EVENTS_PAUSE + 1
        stage.worker.step(tokens=tuple(Tokens("unread", (n,), "a") for n in range(count)))
        await turns()
        assert stage.worker.of(Pause) == ["unread"]
        stage.ask("modest", "modest")
        await asyncio.sleep(SLOT_PATIENCE_S + 0.1)
        stage.worker.step(finished=(Finished("unread", "cancelled", completion_tokens=count),))
        await turns()
        stage.worker.step(finished=(done("modest"),))
        await turns()
        assert stage.worker.of(Generate) == ["greedy", "unread", "modest"]
        assert stage.replica.load().waiting == 0, "a free slot is not given to a stalled stream"
        for _ in range(count - EVENTS_RESUME):
            await anext(unread)
        assert stage.worker.of(Generate)[3:] == ["unread"]
        resumed = stage.worker.sent[-1]
        assert isinstance(resumed, Generate)
        assert resumed.generated_ids == tuple(range(count))
        await unread.aclose()

    run(scenario())


def test_a_full_queue_sends_away_the_newest_of_the_greediest() -> None:
    async def scenario() -> None:
        stage = Stage(queue_max=4)
        await stage.up()
        greedy = [stage.ask(f"greedy{n}", "greedy") for n in range(5)]
        stage.ask("b", "b")
        stage.ask("c", "c")
        await turns()
        with pytest.raises(asyncio.InvalidStateError):
            greedy[3].task.exception()
        (failed,) = greedy[4].events
        assert isinstance(failed, Failed)
        assert (failed.code, failed.status) == ("queue_full", 429)
        assert stage.replica.load().waiting == 4

    run(scenario())
