"""A child of a build: its output into a log, its progress to the operator, its end in one sentence.

Owns the process group, its time limit, and what compilers' last words mean.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

LINE_MAX_BYTES: Final = 1 << 20
LOG_MAX_BYTES: Final = 64 << 20
TAIL_LINES: Final = 60
WORDS_MAX_CHARS: Final = 300
SAY_EVERY_S: Final = 10.0
END_S: Final = 5.0
"""Between asking a child to end and ending it."""
_STEP = re.compile(r"^\s*\[\s*(\d+)/(\d+)\]")
"""ninja's counter."""
_MEANINGS: Final[Mapping[str, str]] = {
    "No space left on device": "the disk is full: free some space, and begin again from here",
    "unsupported GNU version": "nvcc does not know this newer gcc: install an older g++ and set "
    "CUDAHOSTCXX to it",
    "Unsupported gpu architecture": "this CUDA toolkit does not know the card's architecture: "
    "install an older or newer one beside it",
    "Killed signal terminated program": "memory ran out while compiling: set "
    "CMAKE_BUILD_PARALLEL_LEVEL=1",
    "No matching distribution found": "no package fits this Python and machine",
    "Could not find a version that satisfies": "no package fits this Python and machine",
    "Temporary failure in name resolution": "the package index cannot be reached",
    "Failed to establish a new connection": "the package index cannot be reached",
    "No CMAKE_CXX_COMPILER could be found": "there is no C++ compiler",
}


@dataclass(frozen=True, slots=True)
class Child:
    """How one ended. `trouble`: "" when well."""

    trouble: str
    last_line: str


async def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    limit_s: float,
    say: Callable[[str], None],
) -> Child:
    """Run to the end. When cancelled, the whole process group ends first. Raises OSError."""
    with log.open("ab") as file:
        file.write(f"\n$ {' '.join(command)}\n".encode())
        file.flush()
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            limit=LINE_MAX_BYTES,
        )
        tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        try:
            async with asyncio.timeout(limit_s):
                await _follow(child, file, tail, say)
                code = await child.wait()
        except TimeoutError:
            return Child(f"no end within {limit_s / 60:.0f} min", "")
        finally:
            await _end(child)
    last = next((line for line in reversed(tail) if line.strip()), "")
    return Child("" if code == 0 else _trouble(code, tail, last), last.strip())


async def _follow(
    child: asyncio.subprocess.Process,
    file: IO[bytes],
    tail: collections.deque[str],
    say: Callable[[str], None],
) -> None:
    assert child.stdout is not None
    said_s, written = time.monotonic(), 0
    while True:
        try:
            line = await child.stdout.readline()
        except ValueError:
            # Longer than the reader's limit: asyncio has dropped it; go on.
            continue
        if not line:
            return
        if written < LOG_MAX_BYTES:
            written += file.write(line)
        text = line.decode(errors="replace").rstrip()
        tail.append(text)
        step = _STEP.match(text)
        if step is not None and time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            say(f"    compiled {step[1]} of {step[2]}")


async def _end(child: asyncio.subprocess.Process) -> None:
    """Politely, then not: pip removes its temporary folders when asked."""
    if child.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), END_S)
            return


def _trouble(code: int, tail: Sequence[str], last: str) -> str:
    how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    text = "\n".join(tail)
    meaning = next((told for words, told in _MEANINGS.items() if words in text), "")
    said = next((line for line in reversed(tail) if "rror:" in line), last).strip()
    return ": ".join(part for part in (how, meaning, said[:WORDS_MAX_CHARS]) if part)
