"""The line before the step loop: turns, places, ends, and a loop that goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fixtures.sessions import ListPort

from aivailable.errors import RequestError
from aivailable.wire.generation import Cancel, Generate
from aivailable.wire.worker import DeviceClaim, Load
from aivailable.worker.answer import Prepared
from aivailable.worker.engine_fake import FakeEngine
from aivailable.worker.generating import preparing
from aivailable.worker.generating.preparing import Preparing
from aivailable.worker.generating.step_loop import StepLoop

WAIT_S = 30.0


def ask(name: str, account: str = "", **more: Any) -> Generate:
    return Generate(name, "d", prompt_ids=(1, 2, 3), account=account, **more)


def line_of(*requests: Generate) -> tuple[Preparing[str], list[str]]:
    made: list[str] = []

    def make(request: Generate, arrived_s: float) -> str:
        made.append(request.request_id)
        return request.request_id

    line = Preparing(make, lambda: None)
    for request in requests:
        assert line.submit(request, 0.0) == ""
    return line, made


def test_accounts_take_turns() -> None:
    line, made = line_of(*(ask(f"a{n}", "a") for n in range(3)), ask("b0", "b"), ask("c0", "c"))
    line.settle()
    assert made == ["a0", "b0", "c0", "a1", "a2"]
    assert [ticket.ready for ticket in line.take()] == made
    assert not line


def test_a_full_line_refuses_the_last_one_of_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "LINE_MAX_REQUESTS", 4)
    line, made = line_of(*(ask(f"a{n}", "a") for n in range(4)))
    assert line.submit(ask("a4", "a"), 0.0) == "a4"
    assert line.submit(ask("b0", "b"), 0.0) == "a3"
    line.settle()
    assert made == ["a0", "b0", "a1", "a2"]


def test_what_is_dropped_or_late_is_not_made() -> None:
    line, made = line_of(ask("a"), ask("b"), ask("c", deadline_s=5.0))
    assert line.drop("a")
    assert not line.drop("a")
    assert line.expire(4.0) == []
    assert line.expire(5.0) == ["c"]
    line.settle()
    assert made == ["b"]


def test_what_is_dropped_when_it_is_ready_is_told_to_nobody() -> None:
    line, _ = line_of(ask("a"), ask("b"))
    line.settle()
    line.drop("a")
    assert [ticket.ready for ticket in line.take()] == ["b"]


def test_mistakes_are_refusals(caplog: pytest.LogCaptureFixture) -> None:
    def make(request: Generate, arrived_s: float) -> str:
        if request.request_id == "a":
            raise RequestError(400, "template_error", "no")
        raise KeyError("nobody thought of this")

    line = Preparing(make, lambda: None)
    line.submit(ask("a"), 0.0)
    line.submit(ask("b"), 0.0)
    line.settle()
    told = [(each.refused.code, each.refused.status) for each in line.take() if each.refused]
    assert told == [("template_error", 400), ("internal_error", 500)]
    assert "nobody thought of this" in caplog.text


class Gated(FakeEngine):
    """Requests named slow are made ready when the gate opens."""

    def __init__(self) -> None:
        device = DeviceClaim("sim0", "sim", 0, 1)
        super().__init__(Load("r", "fake", "", 4096, 3, (device,)), lambda phase, fraction: None)
        self.gate = threading.Event()
        self.begun = threading.Event()

    def prepare(self, request: Generate) -> Prepared:
        if request.request_id.startswith("slow"):
            self.begun.set()
            assert self.gate.wait(WAIT_S)
        return super().prepare(request)


class WakingPort(ListPort):
    """A port that another thread wakes."""

    def __init__(self, *messages: Any) -> None:
        super().__init__(*messages)
        self.woken = threading.Event()

    def wake(self) -> None:
        self.woken.set()


@pytest.fixture
def gated() -> Iterator[Gated]:
    engine = Gated()
    yield engine
    engine.gate.set()


def test_a_stream_steps_while_others_are_made_ready(gated: Gated) -> None:
    """Counted in steps: one token each, however long the preparation takes."""
    port = WakingPort(ask("stream", max_tokens=2000))
    loop = StepLoop(gated, port)
    loop._preparing.start()
    loop.serve_once()
    assert port.woken.wait(WAIT_S)
    loop.serve_once()
    port.inbox = [ask("slow1", max_tokens=3), ask("slow2", max_tokens=3)]
    steps = 200
    for _ in range(steps):
        loop.serve_once()
    assert gated.begun.wait(WAIT_S)
    before = sum(len(t.ids) for step in port.sent for t in step.tokens)
    for _ in range(steps):
        loop.serve_once()
    after = sum(len(t.ids) for step in port.sent for t in step.tokens)
    assert after - before == steps
    assert (port.sent[-1].slots_busy, port.sent[-1].waiting) == (1, 2)
    # One in the making and one in the line: both end at once when nobody waits for them.
    port.inbox = [Cancel("slow1"), Cancel("slow2")]
    loop.serve_once()
    assert [end.request_id for end in port.sent[-1].finished] == ["slow1", "slow2"]
    assert (port.sent[-1].slots_busy, port.sent[-1].waiting) == (1, 0)
