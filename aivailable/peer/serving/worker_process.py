"""Starting worker processes and talking to them over a socket pair.

Owns: the process, its two ends of the socket, its captured log. Implements ports.WorkerLauncher.
It decides nothing: when to start, stop or give up is the agent's business.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from aivailable.errors import SchemaError, WorkerError
from aivailable.peer.runtimes import Interpreters, Starter
from aivailable.wire.limits import WORKER_FRAME_MAX_BYTES
from aivailable.wire.worker import FROM_WORKER, TO_WORKER, Load

log = logging.getLogger("aivailable.worker")

LOG_TAIL_LINES = 40
LOG_LINE_MAX_BYTES = 16 * 1024
LOG_FILE_MAX_BYTES = 4 * 1024 * 1024
LOG_FILES_KEPT = 32
"""Of workers, in all; each replica has its own, and those that wrote last are kept."""
HEADER_BYTES = 4


class WorkerProcess:
    """A running worker: ports.Worker."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log_path: Path | None,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._tail: collections.deque[str] = collections.deque(maxlen=LOG_TAIL_LINES)
        self._log_path = log_path
        self._log_task = asyncio.get_running_loop().create_task(self._follow_log())
        self.pid = process.pid

    def send(self, message: Any) -> None:
        """Queue one message. Nothing happens when the worker is gone already."""
        if self._writer.is_closing():
            return
        data = TO_WORKER.encode(message)
        if len(data) > WORKER_FRAME_MAX_BYTES:
            raise WorkerError(f"a message of {len(data)} bytes is over the worker's limit")
        self._writer.write(len(data).to_bytes(HEADER_BYTES, "big") + data)

    async def messages(self) -> AsyncIterator[Any]:
        """Until the worker ends or breaks the protocol (then it is killed)."""
        while True:
            try:
                header = await self._reader.readexactly(HEADER_BYTES)
                size = int.from_bytes(header, "big")
                if size > WORKER_FRAME_MAX_BYTES:
                    raise SchemaError(f"a frame of {size} bytes")
                message = FROM_WORKER.decode(await self._reader.readexactly(size))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            except SchemaError as error:
                log.error("worker %d broke the protocol: %s", self.pid, error)
                self.kill()
                return
            if message is not None:
                yield message

    async def exit_reason(self) -> str:
        """Waits for the end: "" when orderly, else how it ended and its last log line."""
        code = await self._process.wait()
        await asyncio.shield(self._log_task)
        self._writer.close()
        if code == 0:
            return ""
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        return f"{how}: {last[:200]}" if last else how

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _follow_log(self) -> None:
        """Keep the tail for explanations, and a capped file for people."""
        assert self._process.stderr is not None
        written = left_out = 0
        with contextlib.ExitStack() as stack:
            sink = None
            if self._log_path is not None:
                sink = stack.enter_context(self._log_path.open("ab", buffering=0))
                written = sink.tell()
            while True:
                try:
                    line = await self._process.stderr.readline()
                except ValueError:
                    # Longer than the reader's limit: asyncio has dropped it; go on.
                    continue
                if not line:
                    if sink is not None and left_out:
                        sink.write(f"… ({left_out} further lines left out)\n".encode())
                    return
                self._tail.append(line.decode(errors="replace").rstrip())
                if sink is not None and written < LOG_FILE_MAX_BYTES:
                    written += sink.write(line) or 0
                else:
                    left_out += 1


class SubprocessLauncher:
    """Starts `python -m aivailable.worker` with one end of a socket pair, by the interpreter of
    its devices' backend, seeing nothing but them."""

    def __init__(
        self, log_dir: Path | None, interpreter: str = "", *, starter: Starter | None = None
    ) -> None:
        """`interpreter`: of every worker, when there is no `starter`; "" = our own."""
        self._log_dir = log_dir
        own = Interpreters(None, interpreter) if interpreter else Interpreters(None)
        self._starter = starter or Starter(own)

    async def launch(self, load: Load) -> WorkerProcess:
        """Start a process and send it `load`. Raises WorkerError when it cannot be started."""
        start = self._starter.start(load.devices)
        ours, theirs = socket.socketpair()
        try:
            log_path = self._log_file(load.replica)
            process = await asyncio.create_subprocess_exec(
                start.interpreter,
                "-m",
                "aivailable.worker",
                "--fd",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=LOG_LINE_MAX_BYTES,
                pass_fds=(theirs.fileno(),),
                env=start.environment,
            )
        except OSError as error:
            ours.close()
            raise WorkerError(f"cannot start a worker: {error}") from error
        except asyncio.CancelledError:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            # Cancelled while starting: nobody would ever hold this process.
            process.kill()
            ours.close()
            await process.wait()
            raise
        worker = WorkerProcess(process, reader, writer, log_path)
        worker.send(replace(load, devices=start.devices))
        return worker

    def _log_file(self, replica: str) -> Path | None:
        if self._log_dir is None:
            return None
        self._log_dir.mkdir(parents=True, exist_ok=True)
        safe = "".join(char if char.isalnum() or char in "-_." else "_" for char in replica)
        path = self._log_dir / f"worker-{safe}.log"
        if path.exists() and path.stat().st_size >= LOG_FILE_MAX_BYTES:
            path.replace(path.with_suffix(".log.1"))
        others = [one for one in self._log_dir.glob("worker-*.log*") if one != path]
        for old in sorted(others, key=_written_ns)[: 1 - LOG_FILES_KEPT]:
            old.unlink(missing_ok=True)
        return path


def _written_ns(path: Path) -> int:
    return path.stat().st_mtime_ns


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
