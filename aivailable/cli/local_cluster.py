"""The demo's peers: processes of this machine in a temporary folder, gone when the demo is.

Owns starting, watching and stopping them, and their folder. Must not know what the demo shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from aivailable.cli.target import ADMIN_KEY_FILE, API_FILE
from aivailable.errors import AivailableError

DEVICE_SIZES = ("1GiB", "2GiB", "4GiB")
"""Unequal, so that placement by memory can be seen."""
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 5.0
LOOK_EVERY_S = 0.1
LAST_WORDS_MAX_BYTES = 2000
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class LocalPeer:
    number: int
    home: Path
    process: subprocess.Popen[bytes]
    url: str = ""
    ended_said: bool = False

    def api_key(self) -> str:
        """Its admin key. Raises AivailableError when it has none yet."""
        try:
            return (self.home / ADMIN_KEY_FILE).read_text("utf-8").strip()
        except OSError as error:
            raise AivailableError(f"peer {self.number} has no admin key yet") from error

    def last_words(self) -> str:
        """The end of its log."""
        try:
            log = (self.home / "up.log").read_bytes()[-LAST_WORDS_MAX_BYTES:]
        except OSError:
            return ""
        lines = log.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


class LocalCluster:
    """Async context manager around `count` peers; leaving it stops them and removes the folder."""

    def __init__(
        self, count: int, program: Sequence[str] = (sys.executable, "-m", "aivailable")
    ) -> None:
        self._count = count
        self._program = tuple(program)
        self._folder = Path()
        self._cluster = f"demo-{secrets.token_hex(4)}"
        self.peers: list[LocalPeer] = []

    async def __aenter__(self) -> LocalCluster:
        self._folder = Path(tempfile.mkdtemp(prefix="aivailable-demo-"))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def start(self) -> LocalPeer:
        """Start all and wait until each serves and has its key; returns the first.

        Raises AivailableError with the last words of a peer that ended.
        """
        for number in range(1, self._count + 1):
            self.peers.append(self._spawn(number))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                for peer in self.peers:
                    while not self._serves(peer):
                        self.check()
                        await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise AivailableError(
                f"the peers did not start within {START_TIMEOUT_S:.0f} s{self.last_words()}"
            ) from None
        return self.peers[0]

    def check(self) -> None:
        """Raises AivailableError when a peer has ended."""
        for peer in self.peers:
            code = peer.process.poll()
            if code is not None:
                words = peer.last_words()
                raise AivailableError(
                    f"peer {peer.number} of the demo ended ({_ending(code)})"
                    + (f": {words}" if words else "")
                )

    def last_words(self) -> str:
        """The end of every peer's log, as the end of a sentence."""
        words = [
            f"peer {peer.number}: {text}" for peer in self.peers if (text := peer.last_words())
        ]
        return f" ({'; '.join(words)})" if words else ""

    async def until_all_ended(self, tell: Callable[[str], None]) -> None:
        """Stay while any peer lives; killing some to watch the others go on is part of the fun."""
        while any(peer.process.poll() is None for peer in self.peers):
            for peer in self.peers:
                code = peer.process.poll()
                if code is not None and not peer.ended_said:
                    peer.ended_said = True
                    tell(f"peer {peer.number} ended ({_ending(code)}); the others go on")
            await asyncio.sleep(LOOK_EVERY_S)

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those that linger, and the folder is removed."""
        alive = [peer for peer in self.peers if peer.process.poll() is None]
        try:
            for peer in alive:
                peer.process.terminate()
            deadline_s = time.monotonic() + STOP_GRACE_S
            for peer in alive:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    peer.process.wait(max(0.0, deadline_s - time.monotonic()))
        finally:
            for peer in alive:
                if peer.process.poll() is None:
                    # Its group, so that its workers go in the same moment.
                    os.killpg(peer.process.pid, signal.SIGKILL)
                    peer.process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self, number: int) -> LocalPeer:
        home = self._folder / str(number)
        home.mkdir(mode=0o700)
        device = f"cpu:{DEVICE_SIZES[(number - 1) % len(DEVICE_SIZES)]}"
        command = [
            *(*self._program, "up", "--home", str(home), "--port", "0"),
            *("--cluster", self._cluster, "--devices", device, "--name", f"peer{number}"),
            *("--bind", "127.0.0.1", "--interfaces", "127.0.0.1", "--join-window", "900"),
        ]
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("AIVAILABLE_")
        }
        with (home / "up.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited,
                # A group of its own: Ctrl-C reaches only us, and we stop them in order.
                process_group=0,
                preexec_fn=_die_with(os.getpid()),
            )
        return LocalPeer(number, home, process)

    def _serves(self, peer: LocalPeer) -> bool:
        try:
            peer.url = str(json.loads((peer.home / API_FILE).read_bytes())["url"]).rstrip("/")
        except (OSError, ValueError, KeyError):
            return False
        return (peer.home / ADMIN_KEY_FILE).exists()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _die_with(parent: int) -> Callable[[], None] | None:
    """For Popen: ask Linux to end the child when this process dies in any way."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return bind
