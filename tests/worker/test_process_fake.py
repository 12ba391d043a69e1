"""A worker process with the fake engine, over a real socket pair."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys

import pytest
from fixtures.worker_process import WorkerProcess, fake_load

from aivailable.wire.generation import Failed, Finished, Generate, Sampling
from aivailable.wire.worker import LoadFailed, Ready, Shutdown

GONE_WITHIN_S = 2.0


def request(request_id: str, prompt: str = "a story about", **more: object) -> Generate:
    return Generate(request_id, "d", prompt=prompt, **more)  # type: ignore[arg-type]


def test_load_generate_and_counters() -> None:
    with WorkerProcess() as worker:
        ready = worker.load(fake_load())
        assert isinstance(ready, Ready)
        assert ready.used_bytes == {"sim0": 100 << 20}
        answers = worker.answers(
            request("a", max_tokens=10), request("b", "another prompt", max_tokens=10)
        )
        assert len(answers["a"].ids) == len(answers["b"].ids) == 10
        assert answers["a"].text == "".join(f"tok{token} " for token in answers["a"].ids)
        assert answers["a"].ids != answers["b"].ids
        end = answers["a"].end
        assert isinstance(end, Finished)
        assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("length", 3, 10)
        last = worker.steps[-1]
        assert last.counters is not None
        assert (last.slots_busy, last.waiting) == (0, 0)
        assert (last.counters.requests, last.counters.finished) == (2, 2)
        assert (last.counters.prompt_tokens, last.counters.generated_tokens) == (5, 20)


def test_continuation_is_exact_text_included() -> None:
    sampling = Sampling(seed=7)
    with WorkerProcess() as worker:
        worker.load(fake_load())
        whole = worker.answers(request("a", max_tokens=90, sampling=sampling))["a"]
        for cut in (1, 40):
            rest = worker.answers(
                Generate(
                    f"a{cut}",
                    "d",
                    prompt_ids=whole.prompt_ids,
                    generated_ids=tuple(whole.ids[:cut]),
                    max_tokens=90,
                    sampling=sampling,
                )
            )[f"a{cut}"]
            assert whole.ids[:cut] + rest.ids == whole.ids
            assert "".join(f"tok{token} " for token in whole.ids[:cut]) + rest.text == whole.text
            assert isinstance(rest.end, Finished)
            assert rest.end.completion_tokens == 90


def test_cancel_frees_the_slot_and_touches_nobody_else() -> None:
    with WorkerProcess() as worker:
        worker.load(fake_load(context=4096, step_ms="2"))
        worker.send(request("gone", "one", max_tokens=4000))
        worker.send(request("stays", "two", max_tokens=50))
        worker.send(request("waits", "three", max_tokens=5))
        worker.started("stays")
        worker.cancel("gone")
        answers = worker.collect("gone", "stays", "waits")
        end = answers["gone"].end
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert isinstance(answers["waits"].end, Finished)
        assert answers["stays"].end is not None
        assert worker.steps[-1].slots_busy == 0
        counters = [step.counters for step in worker.steps if step.counters][-1]
        assert (counters.cancelled, counters.finished) == (1, 2)


def test_refusals_are_named() -> None:
    with WorkerProcess() as worker:
        worker.load(fake_load(context=64))
        answers = worker.answers(
            request("long", " ".join(["word"] * 80)),
            request("none", ""),
            Generate("both", "d", prompt="a", prompt_ids=(1,)),
            Generate("ids", "d", prompt_ids=(1_000_000,)),
            request("late", deadline_s=0.0),
        )
        codes = {name: answer.end for name, answer in answers.items()}
        assert all(isinstance(end, Failed) for end in codes.values())
        long = codes["long"]
        assert isinstance(long, Failed)
        assert (long.code, long.status) == ("context_length_exceeded", 400)
        assert "80" in long.message
        assert "64" in long.message
        assert getattr(codes["ids"], "code", "") == "invalid_request"
        assert getattr(codes["late"], "code", "") == "deadline_exceeded"


def test_answer_ends_with_the_context() -> None:
    with WorkerProcess() as worker:
        worker.load(fake_load(context=64))
        answer = worker.answers(request("a", max_tokens=1000))["a"]
        assert isinstance(answer.end, Finished)
        assert (answer.end.reason, len(answer.ids)) == ("length", 61)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"fail_load": "out_of_memory"}, "out_of_memory"),
        ({"used_bytes": str(200 << 20)}, "over_claim"),
        ({"step_ms": "fast"}, "unsupported"),
        ({"colour": "red"}, "unsupported"),
    ],
)
def test_failed_load_is_told_and_ends_the_process(options: dict[str, str], code: str) -> None:
    with WorkerProcess() as worker:
        answer = worker.load(fake_load(**options))
        assert isinstance(answer, LoadFailed)
        assert answer.code == code
        assert worker.process.wait(5) == 1


def test_crash_is_seen_as_the_end_of_the_socket() -> None:
    with WorkerProcess() as worker:
        worker.load(fake_load(crash_after="3"))
        with pytest.raises(EOFError):
            worker.answers(request("a", max_tokens=50))


def test_shutdown_and_rubbish_end_the_process() -> None:
    with WorkerProcess() as worker:
        worker.load(fake_load())
        worker.send(Shutdown("test"))
        assert worker.process.wait(GONE_WITHIN_S) == 0
    with WorkerProcess() as worker:
        worker.load(fake_load(load_ms="0"))
        worker.socket.sendall(b"\xff" * 64)
        assert worker.process.wait(GONE_WITHIN_S) == 0


def test_worker_ends_while_loading_when_the_socket_ends() -> None:
    worker = WorkerProcess()
    worker.receive()
    worker.send(fake_load(load_ms="60000"))
    worker.receive()
    worker.socket.close()
    assert worker.process.wait(GONE_WITHIN_S) == 0


PARENT = """
import os, socket, sys
from fixtures.worker_process import WorkerProcess, fake_load
worker = WorkerProcess()
worker.load(fake_load())
with socket.socket(fileno=int(sys.argv[1])) as holder:
    socket.send_fds(holder, [str(worker.process.pid).encode()], [worker.socket.fileno()])
sys.stdin.read()
"""


def test_worker_is_gone_within_two_seconds_of_its_parents_death() -> None:
    held, holder = socket.socketpair()
    with held, holder:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(holder.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(holder.fileno(),),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        # We hold the peer's end of the worker's socket: only the death signal can end it.
        pid, descriptors, _, _ = socket.recv_fds(held, 32, 1)
        worker = os.pidfd_open(int(pid))
        parent.send_signal(signal.SIGKILL)
        parent.wait(5)
        readable, _, _ = select.select([worker], [], [], GONE_WITHIN_S)
        for descriptor in (worker, *descriptors):
            os.close(descriptor)
        assert parent.stdin is not None
        parent.stdin.close()
    assert readable, "the worker outlived its parent"
