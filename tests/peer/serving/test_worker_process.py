"""The launcher against real worker processes with the fake engine: how they end, what they said."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.worker_process import fake_load

from aivailable.errors import WorkerError
from aivailable.peer.serving.worker_process import (
    LOG_FILE_MAX_BYTES,
    LOG_FILES_KEPT,
    SubprocessLauncher,
    WorkerProcess,
)
from aivailable.wire.generation import Finished, Generate
from aivailable.wire.worker import Hello, LoadFailed, Ready, Shutdown, Step

pytestmark = pytest.mark.timeout(60)


async def read_until(worker: WorkerProcess, kind: type[Any]) -> list[Any]:
    """Messages up to and with the first of this kind; fails when the worker ends before."""
    seen: list[Any] = []
    async for message in worker.messages():
        seen.append(message)
        if isinstance(message, kind):
            return seen
    raise AssertionError(f"ended after {seen}")


async def rest_of(worker: WorkerProcess) -> list[Any]:
    return [message async for message in worker.messages()]


def gone(pid: int) -> bool:
    """Ended, and waited for: not even a zombie is left."""
    return not Path(f"/proc/{pid}").exists()


async def test_a_worker_loads_answers_and_ends_in_order(tmp_path: Path) -> None:
    worker = await SubprocessLauncher(tmp_path / "logs").launch(fake_load())
    seen = await read_until(worker, Ready)
    assert isinstance(seen[0], Hello)
    assert seen[0].pid == worker.pid
    worker.send(Generate("r1", "m", prompt="a b", max_tokens=3))
    ended: list[Finished] = []
    while not ended:
        step = (await read_until(worker, Step))[-1]
        ended += step.finished
    assert (ended[0].reason, ended[0].completion_tokens) == ("length", 3)
    worker.send(Shutdown("enough"))
    await rest_of(worker)
    assert await worker.exit_reason() == ""
    assert gone(worker.pid)


async def test_a_killed_worker_names_its_signal_and_leaves_no_orphan() -> None:
    worker = await SubprocessLauncher(None).launch(fake_load(step_ms="50"))
    await read_until(worker, Ready)
    worker.kill()
    await rest_of(worker)
    assert await worker.exit_reason() == "killed by SIGKILL"
    assert gone(worker.pid)
    worker.kill()
    worker.send(Generate("late", "m", prompt="x"))


async def test_a_crash_tells_its_exit_code() -> None:
    worker = await SubprocessLauncher(None).launch(fake_load(crash_after="1"))
    await read_until(worker, Ready)
    worker.send(Generate("r1", "m", prompt="a b c", max_tokens=30))
    await rest_of(worker)
    assert (await worker.exit_reason()).startswith("exit code 70")


async def test_a_load_that_is_refused_says_why() -> None:
    worker = await SubprocessLauncher(None).launch(fake_load(fail_load="out_of_memory"))
    failed = (await read_until(worker, LoadFailed))[-1]
    assert failed.code == "out_of_memory"
    await rest_of(worker)
    await worker.exit_reason()


def interpreter(folder: Path, script: str) -> str:
    """A program that stands in for Python and does what the script says."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    return str(path)


async def test_the_last_words_of_a_worker_are_its_reason_and_in_its_log(tmp_path: Path) -> None:
    script = "import sys\nprint('x' * 100_000, file=sys.stderr)\n"
    script += "print('no such GPU', file=sys.stderr)\nprint('', file=sys.stderr)\nsys.exit(3)"
    launcher = SubprocessLauncher(tmp_path / "logs", interpreter(tmp_path, script))
    worker = await launcher.launch(fake_load())
    assert await rest_of(worker) == []
    assert await worker.exit_reason() == "exit code 3: no such GPU"
    assert "no such GPU" in (tmp_path / "logs" / "worker-r1.log").read_text()


async def test_a_worker_that_breaks_the_protocol_is_killed(tmp_path: Path) -> None:
    script = "import os, sys, time\nfd = int(sys.argv[sys.argv.index('--fd') + 1])\n"
    script += "os.write(fd, b'\\xff\\xff\\xff\\xff garbage')\ntime.sleep(60)"
    launcher = SubprocessLauncher(None, interpreter(tmp_path, script))
    worker = await launcher.launch(fake_load())
    assert await rest_of(worker) == []
    assert await worker.exit_reason() == "killed by SIGKILL"


async def test_what_cannot_be_started_is_a_worker_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="cannot start a worker"):
        await SubprocessLauncher(None, str(tmp_path / "nowhere")).launch(fake_load())
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(WorkerError, match="cannot start a worker"):
        await SubprocessLauncher(tmp_path / "logs").launch(fake_load())


async def test_a_launch_that_is_cancelled_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in does not heed the end of its socket: it has to be killed."""
    started: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
    start = asyncio.create_subprocess_exec

    async def remember(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*command, **options)
        started.put_nowait(process)
        return process

    async def never(**_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remember)
    monkeypatch.setattr(asyncio, "open_connection", never)
    launcher = SubprocessLauncher(None, interpreter(tmp_path, "import time\ntime.sleep(60)"))
    launching = asyncio.ensure_future(launcher.launch(fake_load()))
    process = await started.get()
    await asyncio.sleep(0)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert process.returncode == -signal.SIGKILL
    assert gone(process.pid)
    assert process.stderr is not None
    await process.stderr.read()


async def test_a_large_log_is_set_aside_and_names_are_safe(tmp_path: Path) -> None:
    log = tmp_path / "worker-.._a_b_1.1.log"
    log.write_bytes(b"x" * (LOG_FILE_MAX_BYTES + 1))
    found = SubprocessLauncher(tmp_path)._log_file("../a/b#1.1")
    assert found == log
    assert not log.exists()
    assert log.with_suffix(".log.1").exists()


def test_only_the_latest_logs_of_workers_are_kept(tmp_path: Path) -> None:
    for number in range(LOG_FILES_KEPT + 8):
        log = tmp_path / f"worker-old_{number}.log"
        log.write_text("said")
        os.utime(log, (number, number))
    (tmp_path / "aivailable.log").write_text("ours")
    SubprocessLauncher(tmp_path)._log_file("new")
    left = {one.name for one in tmp_path.iterdir()}
    assert len(left) == LOG_FILES_KEPT
    assert {"aivailable.log", "worker-old_9.log"} < left
    assert "worker-old_8.log" not in left


async def test_no_worker_outlives_its_peer() -> None:
    """The peer is killed with SIGKILL: it can tell nobody anything."""
    script = (
        "import asyncio, sys\n"
        "from fixtures.worker_process import fake_load\n"
        "from aivailable.peer.serving.worker_process import SubprocessLauncher\n"
        "async def main():\n"
        "    worker = await SubprocessLauncher(None).launch(fake_load(step_ms='50'))\n"
        "    print(worker.pid, flush=True)\n"
        "    async for _ in worker.messages(): pass\n"
        "asyncio.run(main())\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    peer = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert peer.stdout is not None
    pid = int(await peer.stdout.readline())
    watch = os.pidfd_open(pid)
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(watch, gone.set)
    try:
        os.kill(peer.pid, signal.SIGKILL)
        await peer.wait()
        async with asyncio.timeout(2.0):
            await gone.wait()
    finally:
        loop.remove_reader(watch)
        os.close(watch)
