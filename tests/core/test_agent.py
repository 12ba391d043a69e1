"""The agent's decisions, followed through the real `apply` with a shell of ten lines."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.cluster_state import (
    DIGEST,
    LORA,
    STYLED,
    cluster,
    deployed,
    deployment,
    device,
    replica,
    run,
    running,
)
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.agent import (
    DRAIN_DEADLINE_MS,
    WORKER_ATTEMPTS_MAX,
    WORKER_STABLE_MS,
    Fetch,
    FetchCopy,
    Kill,
    Launch,
    LocalWorker,
    Report,
    StopAccepting,
    after_failure,
    reconcile,
)
from aivailable.core.state.commands import Drain, ReportCopy, ReportReplica
from aivailable.core.state.records import Status
from aivailable.core.state.state import State

NAME = "chat#1.1"


def placed(
    status: Status = Status.PLACED, *, drain: bool = False, copies: str = "ab", styled: bool = False
) -> State:
    """`chat#1.1` on node b; the files, with `styled` two, lie on `copies`."""
    state = cluster({"a": (device(),), "b": (device(),)})
    state = deployed(state, deployment(**STYLED) if styled else deployment())
    state = replace(state, copies={digest: tuple(copies) for digest in state.files()})
    return running(state, replica(NAME, "b", status, drain=drain))


def steps(
    state: State, *workers: LocalWorker, held: tuple[str, ...] = (DIGEST,), now_ms: int = 0
) -> tuple[object, ...]:
    return reconcile("b", state, workers, held, now_ms)


def said(status: Status, reason: str = "") -> Report:
    return Report(ReportReplica(NAME, "b", status, reason))


def test_fetches_then_launches() -> None:
    state = placed(copies="a")
    assert steps(state, held=()) == (Fetch(NAME, DIGEST),)
    fetching = LocalWorker(NAME, Status.FETCHING)
    assert steps(state, fetching, held=()) == (said(Status.FETCHING),)
    assert Launch(NAME) in steps(state, fetching)
    assert Launch(NAME) in steps(state)


def test_a_file_outside_the_catalogue_needs_no_fetching() -> None:
    assert steps(replace(placed(copies=""), models={}), held=()) == (Launch(NAME),)


def test_fails_when_nobody_has_the_file() -> None:
    (action,) = steps(placed(copies=""), held=())
    assert action == said(Status.FAILED, "no other node holds the model file")


def test_fetches_what_is_not_here_of_model_and_companions() -> None:
    state = placed(copies="a", styled=True)
    both = (Fetch(NAME, DIGEST), Fetch(NAME, LORA))
    assert steps(state, held=()) == both
    here = replace(state, copies={DIGEST: ("a", "b"), LORA: ("a",)})
    assert steps(here) == (Fetch(NAME, LORA),)
    fetching = LocalWorker(NAME, Status.FETCHING)
    assert steps(here, fetching) == (said(Status.FETCHING),)
    assert Launch(NAME) in steps(here, fetching, held=(DIGEST, LORA))
    failed = LocalWorker(NAME, Status.FAILED, attempts=1, next_try_ms=5)
    assert Fetch(NAME, LORA) in steps(here, failed, now_ms=5)


def test_a_companion_that_nobody_has_is_named() -> None:
    state = replace(placed(styled=True), copies={DIGEST: ("a", "b")})
    (action,) = steps(state)
    assert action == said(Status.FAILED, "no other node holds the file of lora=style.gguf")
    # What runs has read it already.
    served = replace(placed(Status.READY, styled=True), copies={DIGEST: ("a", "b")})
    assert steps(served, LocalWorker(NAME, Status.READY)) == ()


def test_a_companion_is_told_and_copied_like_a_model() -> None:
    state = replace(placed(styled=True), copies={DIGEST: ("a", "b"), LORA: ("a",)}, replicas={})
    assert steps(state) == (FetchCopy(LORA),)
    assert Report(ReportCopy("b", LORA, True)) in steps(state, held=(DIGEST, LORA))


def test_reports_one_allowed_step_at_a_time() -> None:
    ready = LocalWorker(NAME, Status.READY, used_bytes={"gpu0": 7})
    assert steps(placed(), ready) == (said(Status.LOADING),)
    assert steps(placed(Status.LOADING), ready) == (
        Report(ReportReplica(NAME, "b", Status.READY, "", {"gpu0": 7})),
    )
    assert steps(placed(Status.READY), ready) == ()
    fetching = LocalWorker(NAME, Status.FETCHING)
    assert steps(placed(Status.READY, copies="a"), fetching, held=()) == (said(Status.LOADING),)


def test_kills_what_is_not_placed_here() -> None:
    stray = LocalWorker("old#1.1", Status.READY, requests_in_flight=3)
    assert steps(placed(Status.READY), stray)[0] == Kill("old#1.1", "no longer placed here")
    elsewhere = running(placed(), replica(NAME, "a"))
    assert steps(elsewhere, LocalWorker(NAME, Status.READY)) == (
        Kill(NAME, "no longer placed here"),
    )


def test_after_a_restart_what_was_ready_is_launched_again() -> None:
    state = placed(Status.READY)
    assert steps(state) == (Launch(NAME),)
    assert steps(state, LocalWorker(NAME, Status.LOADING)) == (said(Status.LOADING),)


def test_drains_by_refusing_waiting_killing_and_reporting() -> None:
    state = placed(Status.READY, drain=True)
    busy = LocalWorker(NAME, Status.READY, requests_in_flight=1)
    assert steps(state, busy) == (StopAccepting(NAME), said(Status.DRAINING))
    state = placed(Status.DRAINING, drain=True)
    draining = replace(busy, status=Status.DRAINING, since_ms=5)
    assert steps(state, draining, now_ms=DRAIN_DEADLINE_MS) == ()
    late = steps(state, draining, now_ms=DRAIN_DEADLINE_MS + 5)
    assert late == (Kill(NAME, "drain deadline passed"),)
    assert steps(state, replace(draining, requests_in_flight=0)) == (Kill(NAME, "drained"),)
    assert steps(state) == (said(Status.GONE, "drained"),)


@pytest.mark.parametrize("status", [Status.FETCHING, Status.LOADING, Status.FAILED])
def test_drains_what_serves_nobody_at_once(status: Status) -> None:
    state = placed(Status.LOADING, drain=True)
    assert steps(state, LocalWorker(NAME, status)) == (Kill(NAME, "drained before it was ready"),)


def test_a_crashed_worker_is_started_again_after_its_backoff() -> None:
    crashed = after_failure(LocalWorker(NAME, Status.READY), "killed by SIGSEGV", 1000, 0.0)
    assert (crashed.status, crashed.attempts, crashed.next_try_ms) == (Status.FAILED, 1, 2000)
    state = placed(Status.READY)
    told = said(Status.LOADING, "killed by SIGSEGV")
    assert steps(state, crashed, now_ms=1999) == (told,)
    assert steps(state, crashed, now_ms=2000) == (Launch(NAME), told)


def test_gives_up_after_so_many_failures_in_a_row() -> None:
    worker = LocalWorker(NAME, Status.LOADING)
    for _ in range(WORKER_ATTEMPTS_MAX):
        worker = after_failure(worker, "out of memory", 0, 0.5)
    state = placed(Status.LOADING)
    assert steps(state, worker) == (said(Status.FAILED, "out of memory"),)
    gone = run(state, ReportReplica(NAME, "b", Status.FAILED, "out of memory"), "b")
    assert steps(gone, worker) == (Kill(NAME, "no longer placed here"),)


def test_a_worker_that_served_long_starts_its_count_anew() -> None:
    worker = LocalWorker(NAME, Status.READY, since_ms=0, attempts=2)
    assert after_failure(worker, "", WORKER_STABLE_MS - 1, 0.0).attempts == 3
    assert after_failure(worker, "", WORKER_STABLE_MS, 0.0).attempts == 1


def test_reports_and_fetches_copies() -> None:
    state = replace(placed(copies="a"), replicas={})
    assert steps(state, held=()) == (FetchCopy(DIGEST),)
    assert steps(state) == (Report(ReportCopy("b", DIGEST, True)),)
    lost = replace(placed(copies="ab"), replicas={})
    assert steps(lost, held=()) == (Report(ReportCopy("b", DIGEST, False)),)


def test_one_that_is_no_member_only_ends_its_workers() -> None:
    state = replace(placed(), members={}, replicas={})
    assert steps(state, LocalWorker(NAME, Status.READY)) == (Kill(NAME, "no longer placed here"),)


class Shell:
    """Does what it is told, keeping apart what takes time: transfers, loads, requests."""

    def __init__(self, state: State, held: bool) -> None:
        self.state = state
        self.workers: dict[str, LocalWorker] = {}
        self.held = tuple(state.files()) if held else ()
        self.now_ms = 0

    def step(self) -> int:
        """Carries out the actions due; the number of those that changed something."""
        before = (self.state.replicas, self.state.copies, dict(self.workers))
        workers = tuple(self.workers.values())
        for action in reconcile("b", self.state, workers, self.held, self.now_ms):
            self._do(action)
        return before != (self.state.replicas, self.state.copies, self.workers)

    def _do(self, action: object) -> None:
        if isinstance(action, Launch):
            known = self.workers.get(action.replica)
            assert known is None or known.status in (Status.FETCHING, Status.FAILED)
            attempts = known.attempts if known is not None else 0
            self.workers[action.replica] = LocalWorker(
                action.replica, Status.LOADING, attempts=attempts
            )
        elif isinstance(action, Fetch):
            assert "a" in self.state.holders(action.digest), "nobody else has it"
            self.workers[action.replica] = LocalWorker(action.replica, Status.FETCHING)
        elif isinstance(action, StopAccepting):
            known = self.workers[action.replica]
            self.workers[action.replica] = replace(
                known, status=Status.DRAINING, since_ms=self.now_ms
            )
        elif isinstance(action, Kill):
            del self.workers[action.replica]
        elif isinstance(action, Report):
            self.state = run(self.state, action.body, "b")

    def world(self, event: str) -> None:
        """Something happens by itself: progress, a crash, a restart of the peer, time."""
        self.now_ms += 20_000
        worker = self.workers.get(NAME)
        if event == "restart":
            self.workers.clear()
        elif event == "progress" and worker is not None:
            if worker.status is Status.FETCHING:
                lacking = [digest for digest in self.state.files() if digest not in self.held]
                self.held = (*self.held, *lacking[:1])
            elif worker.status is Status.LOADING:
                self.workers[NAME] = replace(worker, status=Status.READY, since_ms=self.now_ms)
        elif event == "crash" and worker is not None and worker.status is not Status.FAILED:
            self.workers[NAME] = after_failure(worker, "crashed", self.now_ms, 0.0)
        elif event == "drain" and NAME in self.state.replicas:
            self.state = run(self.state, Drain(NAME))


@given(
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(["progress", "crash", "restart", "drain", "time"]), max_size=12),
)
def test_always_comes_to_rest_and_every_report_is_accepted(
    held: bool, styled: bool, events: list[str]
) -> None:
    shell = Shell(placed(copies="ab" if held else "a", styled=styled), held)
    for event in [*events, "progress", "progress", "progress", "time"]:
        shell.world(event)
        for _ in range(10):
            if not shell.step():
                break
        else:
            raise AssertionError("the agent does not come to rest")
    if NAME in shell.state.replicas:
        assert not shell.state.replicas[NAME].drain
        assert shell.workers[NAME].status == shell.state.replicas[NAME].status
    else:
        assert shell.workers == {}
