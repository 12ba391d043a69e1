"""The step loop with an engine that fails when told to, and no process around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fixtures.sessions import ListPort, ids_of, run

from aivailable.wire.generation import Cancel, Failed, Finished, Generate, Sampling
from aivailable.wire.prefixes import digests
from aivailable.wire.worker import DeviceClaim, Load, Pause, Resume
from aivailable.worker.answer import Delta, PlainText, Prepared
from aivailable.worker.engine import CellsExhausted, DecodeFailed, Logits, Part
from aivailable.worker.engine_fake import FakeEngine
from aivailable.worker.generating.step_loop import StepLoop
from aivailable.worker.protocol import STALLED_WAIT_S


class Brittle(FakeEngine):
    """Fails every decode that holds a token `poison`, after having touched the caches."""

    poison = 666

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        rows = super().decode(parts)
        if any(self.poison in part.tokens for part in parts):
            raise DecodeFailed("poisoned")
        return rows


def engine(kind: type[FakeEngine] = FakeEngine) -> FakeEngine:
    device = DeviceClaim("sim0", "sim", 0, 1)
    return kind(Load("r", "fake", "", 128, 3, (device,)), lambda phase, fraction: None)


def request(name: str, *ids: int, **more: Any) -> Generate:
    return Generate(name, "d", prompt_ids=ids, **{"max_tokens": 6, **more})


def test_a_failed_decode_fails_only_the_request_to_blame() -> None:
    good = ListPort(request("a", 1, 2, 3), request("b", 4, 5))
    run(StepLoop(engine(), good), good, 2)
    port = ListPort(request("a", 1, 2, 3), request("bad", 9, 666, 9), request("b", 4, 5))
    session = StepLoop(engine(Brittle), port)
    ends = run(session, port, 3)
    failed = ends["bad"]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.status) == ("decode_failed", 500)
    for name in "ab":
        assert isinstance(ends[name], Finished)
        assert ids_of(port, name) == ids_of(good, name)
    # The slot of the failed request serves again.
    port.inbox = [request(f"n{number}", 1, 2, 3) for number in range(3)]
    assert all(isinstance(end, Finished) for end in run(session, port, 3).values())
    assert ids_of(port, "n2") == ids_of(good, "a")


class Surprised(FakeEngine):
    """Some requests meet a mistake of ours, before or after they have begun."""

    def prepare(self, request: Generate) -> Prepared:
        if request.request_id == "before":
            raise TypeError("nobody thought of this")
        prepared = super().prepare(request)
        if request.request_id == "after":
            return replace(prepared, parser=Stumbling)
        if request.request_id == "end":
            return replace(prepared, parser=Unfinished)
        return prepared


class Unfinished(PlainText):
    """Breaks at the end."""

    def finish(self) -> Delta:
        raise KeyError("nobody thought of this at last")


class Stumbling(PlainText):
    """Breaks at the third piece of text."""

    def __init__(self) -> None:
        self.left = 2

    def feed(self, text: str) -> Delta:
        self.left -= 1
        if self.left < 0:
            raise KeyError("nobody thought of this either")
        return Delta(text=text)


def test_a_mistake_of_ours_ends_its_own_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    good = ListPort(request("a", 1, 2, 3))
    run(StepLoop(engine(), good), good, 1)
    names = ("before", "after", "end")
    port = ListPort(*(request(name, 7) for name in names), request("a", 1, 2, 3), request("b", 4))
    session = StepLoop(engine(Surprised), port)
    ends = run(session, port, 5)
    for name in names:
        code = "internal_error" if name == "before" else "decode_failed"
        failed = ends[name]
        assert isinstance(failed, Failed)
        assert (failed.code, failed.status) == (code, 500)
        assert "its log says how" in failed.message
        assert "nobody thought of this" not in failed.message
    assert caplog.text.count("Traceback") == 3
    assert isinstance(ends["b"], Finished)
    assert ids_of(port, "a") == ids_of(good, "a")
    port.inbox = [request(f"n{number}", 1, 2, 3) for number in range(3)]
    assert all(isinstance(end, Finished) for end in run(session, port, 3).values())


def test_cancelled_requests_are_in_no_further_step_also_when_waiting() -> None:
    port = ListPort(*(request(f"r{number}", 1, max_tokens=100) for number in range(4)))
    session = StepLoop(engine(), port)
    session.serve_once()
    port.inbox = [Cancel("r0"), Cancel("r3"), Cancel("unknown")]
    session.serve_once()
    step = port.sent[-1]
    assert [end.request_id for end in step.finished] == ["r0", "r3"]
    assert [end.reason for end in step.finished] == ["cancelled", "cancelled"]
    assert {tokens.request_id for tokens in step.tokens} == {"r1", "r2"}
    assert (step.slots_busy, step.waiting, step.counters.cancelled) == (2, 0, 2)


def test_deadlines_end_running_and_waiting_requests() -> None:
    now = 0.0
    port = ListPort(*(request(f"r{n}", 1, max_tokens=100, deadline_s=5.0) for n in range(4)))
    session = StepLoop(engine(), port, clock=lambda: now)
    session.serve_once()
    now = 5.0
    session.serve_once()
    assert [end.code for end in port.sent[-1].failed] == ["deadline_exceeded"] * 4
    assert (port.sent[-1].slots_busy, port.sent[-1].waiting) == (0, 0)


def test_a_complete_continuation_ends_at_once_and_tells_nothing_twice() -> None:
    port = ListPort(request("a", 1, 2, sampling=Sampling(seed=1)))
    run(StepLoop(engine(), port), port, 1)
    ids = ids_of(port, "a")
    again = ListPort(request("a", 1, 2, generated_ids=tuple(ids)))
    end = run(StepLoop(engine(), again), again, 1)["a"]
    assert isinstance(end, Finished)
    assert (end.reason, end.completion_tokens, end.text) == ("length", 6, "")
    assert not ids_of(again, "a")


def test_a_stop_string_inside_replayed_text_ends_the_answer() -> None:
    port = ListPort(request("a", 1, 2))
    run(StepLoop(engine(), port), port, 1)
    ids = ids_of(port, "a")
    stop = f"tok{ids[1]} "
    stopped = ListPort(request("a", 1, 2, stop=(stop,)))
    run(StepLoop(engine(), stopped), stopped, 1)
    assert ids_of(stopped, "a") == ids[:2]
    again = ListPort(request("a", 1, 2, stop=(stop,), generated_ids=tuple(ids[:2])))
    end = run(StepLoop(engine(), again), again, 1)["a"]
    assert isinstance(end, Finished)
    assert (end.reason, end.text) == ("stop", "")


def test_one_request_id_cannot_run_twice() -> None:
    port = ListPort(request("a", 1, max_tokens=100), request("a", 1))
    session = StepLoop(engine(), port)
    session.serve_once()
    assert [(end.code, end.status) for end in port.sent[-1].failed] == [("invalid_request", 409)]


def test_sampling_parameters_are_checked() -> None:
    wrong = (Sampling(temperature=float("nan")), Sampling(repeat_penalty=0.0))
    port = ListPort(*(request(f"r{n}", 1, sampling=given) for n, given in enumerate(wrong)))
    session = StepLoop(engine(), port)
    session.serve_once()
    assert [(end.code, end.status) for end in port.sent[-1].failed] == [
        ("invalid_request", 400)
    ] * 2


def test_a_paused_request_gets_nothing_until_resumed_and_disturbs_nobody() -> None:
    alone = ListPort(request("a", 1, 2, 3))
    run(StepLoop(engine(), alone), alone, 1)
    port = ListPort(request("a", 1, 2, 3), request("b", 4, 5))
    session = StepLoop(engine(), port)
    session.serve_once()
    port.inbox = [Pause("a")]
    run(session, port, 1)
    assert len(ids_of(port, "a")) == 1
    assert len(ids_of(port, "b")) == 6
    assert port.sent[-1].slots_busy == 1
    port.inbox = [Resume("a")]
    run(session, port, 1)
    assert ids_of(port, "a") == ids_of(alone, "a")


def test_the_deadline_of_a_paused_request_runs_on() -> None:
    now = 0.0
    port = ListPort(request("a", 1, deadline_s=5.0))
    session = StepLoop(engine(), port, clock=lambda: now)
    session.serve_once()
    port.inbox = [Pause("a")]
    now = 5.0
    session.serve_once()
    assert [end.code for end in port.sent[-1].failed] == ["deadline_exceeded"]


def test_nothing_spins_while_every_reader_has_paused() -> None:
    port = ListPort(request("a", 1))
    session = StepLoop(engine(), port)
    session.serve_once()
    port.inbox = [Pause("a")]
    session.serve_once()
    assert port.waited_s == 0.0
    session.serve_once()
    assert port.waited_s == STALLED_WAIT_S
    port.inbox = [Resume("a")]
    session.serve_once()
    assert len(ids_of(port, "a")) == 2


class Cramped(FakeEngine):
    """Has fewer cells than its sequences could fill; shared ones count once for each."""

    cells = 60

    def decode(self, parts: Sequence[Part]) -> list[Logits]:
        if sum(map(len, self._cache)) + sum(len(part.tokens) for part in parts) > self.cells:
            raise CellsExhausted("full")
        return super().decode(parts)


def test_warm_prompts_give_way_to_what_was_admitted() -> None:
    port = ListPort(request("a", *range(30)))
    session = StepLoop(engine(Cramped), port)
    run(session, port, 1)
    port.inbox = [request("b", *range(100, 130))]
    assert isinstance(run(session, port, 1)["b"], Finished)
    port.inbox = [request("c", *range(30))]
    end = run(session, port, 1)["c"]
    assert isinstance(end, Finished)
    assert end.cached_tokens == 0


def test_without_room_for_all_some_wait_and_the_last_resort_fails_one() -> None:
    alone = ListPort(request("a", *range(30)))
    run(StepLoop(engine(), alone), alone, 1)
    port = ListPort(*(request(name, *range(n, n + 30)) for n, name in ((0, "a"), (100, "b"))))
    ends = run(StepLoop(engine(Cramped), port), port, 2)
    kinds = sorted(type(end).__name__ for end in ends.values())
    assert kinds == ["Failed", "Finished"]
    whole = next(name for name, end in ends.items() if isinstance(end, Finished))
    assert len(ids_of(port, whole)) == 6


def test_counters_tell_what_was_cached_and_prefixes_what_is_warm() -> None:
    port = ListPort(request("a", *range(100)))
    session = StepLoop(engine(), port)
    run(session, port, 1)
    prefixes = [step.prefixes for step in port.sent if step.prefixes is not None]
    assert prefixes == [tuple(sorted(digests(request("a", *range(100)))))]
    port.inbox = [request("b", *range(100))]
    run(session, port, 1)
    assert (port.sent[-1].counters.cached_tokens, port.sent[-1].counters.prompt_tokens) == (98, 102)
