"""`aivailable runtime add|list|remove`: llama-cpp-python for one backend, beside what is there.

Owns options, words and the elapsed time before each line; what is done is `peer.runtimes`'s. Works
on the home of this machine and asks no node.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from aivailable import config
from aivailable.advice import DOCTOR, RUNTIME_ADD
from aivailable.cli import render
from aivailable.cli.target import HomeOption
from aivailable.core.state.records import Backend
from aivailable.errors import AivailableError

app = typer.Typer(help="Inference runtimes of this machine.", no_args_is_help=True)

BackendArgument = Annotated[str, typer.Argument(help="cuda, rocm, vulkan or cpu.", metavar="KIND")]


@app.command()
def add(
    backend: BackendArgument,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch", help="Build for this architecture (61, sm_61, gfx906). Default: cards seen."
        ),
    ] = None,
    wheels: Annotated[
        list[str] | None,
        typer.Option(
            "--find-links", metavar="PLACE", help="Folder or page with ready wheels: no compiling."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only what --find-links has.")] = False,
    home: HomeOption = None,
) -> None:
    """Make a runtime: minutes to hours. Broken off, the same command goes on from there."""
    from aivailable.peer.devices.architectures import architectures_seen
    from aivailable.peer.runtimes.adding import add as make

    kind = _backend(backend)
    began = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        render.note(f"{minutes:3d}:{seconds:02d} {text}")

    architectures, sources = tuple(arch or ()), tuple(wheels or ())
    made = asyncio.run(
        make(_home(home), kind, architectures, sources, offline, say, architectures_seen)
    )
    render.say(
        f"runtime {kind.value} with llama-cpp-python {made.version} is ready; "
        "a node that runs uses it from its next start"
    )


@app.command(name="list")
def list_runtimes(home: HomeOption = None) -> None:
    """What is there, and what is half made."""
    from aivailable.peer.runtimes.adding import BACKENDS, half_made, whole

    where, found = _home(home), False
    for kind in BACKENDS:
        runtime, steps = whole(where, kind), half_made(where, kind)
        if runtime is not None:
            day = datetime.datetime.fromtimestamp(runtime.made_at_ms / 1000, datetime.UTC).date()
            built = f", {' '.join(runtime.options)}" if runtime.options else ""
            render.say(
                f"{kind.value}: llama-cpp-python {runtime.version}, "
                f"Python {runtime.python}, made {day}{built}"
            )
        if steps is not None:
            after = f"after {', '.join(steps)}" if steps else "at its beginning"
            render.say(f"{kind.value}: half made, {after}; {RUNTIME_ADD.of(kind.value)} goes on")
        found = found or runtime is not None or steps is not None
    if not found:
        render.say(f"none besides this program's own interpreter; see {DOCTOR}")


@app.command()
def remove(backend: BackendArgument, home: HomeOption = None) -> None:
    """Take a runtime away. What runs from it goes on until it ends."""
    from aivailable.peer.runtimes.adding import remove as take_away

    kind = _backend(backend)
    gone = take_away(_home(home), kind)
    render.say(f"runtime {kind.value} is removed" if gone else f"there is no runtime {kind.value}")


def _backend(text: str) -> Backend:
    """Raises AivailableError."""
    known = ("cuda", "rocm", "vulkan", "cpu")
    if text.lower() not in known:
        raise AivailableError(f"there is no runtime {text!r}; {', '.join(known)} are")
    return Backend(text.lower())


def _home(home: Path | None) -> Path:
    return config.expanded(home) if home else config.default_home(os.environ)
