"""Which interpreter serves a backend: `runtimes/<backend>` under home when it is whole, else ours.

Owns the folder's layout and its record (`runtime.json`, written last: a runtime without it is half
made and never used). A runtime has llama-cpp-python and what a worker needs beside it, but no copy
of this program: its site-packages hold a link to ours, so that peer and worker are always of one
version. The library that packs what they say to each other is lent to it likewise: one that was
made before workers needed it starts as it is. Must not make or judge a runtime.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from aivailable.core.state.records import Backend

RUNTIMES: Final = "runtimes"
"""The folder under home."""
RECORD: Final = "runtime.json"
DRAFT: Final = ".draft"
"""What a half-made runtime's folder ends with."""
BACKENDS: Final = (Backend.CUDA, Backend.ROCM, Backend.VULKAN, Backend.CPU)
RECORD_MAX_BYTES: Final = 64 * 1024
CODE: Final = Path(__file__).resolve().parents[2]
"""The package `aivailable` that runs now."""

LENT: Final = ("msgspec",)
"""Packages of ours that every runtime uses: they need no others, and fit each interpreter of our
version."""
LENT_FOLDER: Final = "lent"
"""In the runtime. Not its site-packages: pip would write through the links."""
_LENT_PATH: Final = f"../../../{LENT_FOLDER}\n"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A whole runtime, as its record says."""

    backend: Backend
    path: Path
    python: str
    """Version of the interpreter, as "3.11"."""
    version: str
    """Of llama-cpp-python."""
    made_at_ms: int
    """UTC, for people."""
    options: tuple[str, ...] = ()
    """CMake's, as it was built with."""

    @property
    def interpreter(self) -> str:
        return str(self.path / "bin" / "python")


class Interpreters:
    """The runtimes of one home, looked up anew at each question: they may come and go."""

    def __init__(self, home: Path | None, own: str = sys.executable) -> None:
        """`home`: None = our own interpreter only."""
        self._folder = None if home is None else home / RUNTIMES
        self.own = own

    def of(self, backend: str) -> str:
        """The interpreter for workers, dry runs and probes of this backend. "sim" is the CPU."""
        wanted = Backend.CPU if backend == Backend.SIM else backend
        found = self.find(Backend(wanted))
        return self.own if found is None else found.interpreter

    def find(self, backend: Backend) -> Runtime | None:
        """A whole runtime for the backend, with its link to our code set right."""
        if self._folder is None:
            return None
        runtime = read_runtime(self._folder / backend.value, backend)
        if runtime is not None:
            try:
                link_code(runtime.path)
            except OSError as error:
                log.warning("the runtime %s cannot be used: %s", backend.value, error)
                return None
        return runtime

    def whole(self) -> tuple[Runtime, ...]:
        """Every whole runtime, the faster backends first."""
        found = (self.find(backend) for backend in BACKENDS)
        return tuple(runtime for runtime in found if runtime is not None)


def read_runtime(path: Path, backend: Backend) -> Runtime | None:
    """What the record in this folder says; None where there is none or it is damaged."""
    try:
        with (path / RECORD).open(encoding="utf-8") as file:
            told: Any = json.loads(file.read(RECORD_MAX_BYTES))
        return Runtime(
            backend=backend,
            path=path,
            python=str(told["python"]),
            version=str(told["version"]),
            made_at_ms=int(told["made_at_ms"]),
            options=tuple(str(option) for option in told["options"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(folder: Path, runtime: Runtime) -> None:
    """Write `runtime`'s record into `folder`, which will become its path. Raises OSError."""
    told = {**asdict(runtime), "backend": runtime.backend.value, "path": str(runtime.path)}
    draft = folder / f"{RECORD}.tmp"
    draft.write_text(json.dumps(told, indent=2), encoding="utf-8")
    draft.replace(folder / RECORD)


def link_code(path: Path) -> None:
    """Let `aivailable` in the runtime be the one that runs now, with what it lends. Raises
    OSError."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = path / "lib" / version / "site-packages"
    _link(packages / "aivailable", CODE)
    (path / LENT_FOLDER).mkdir(exist_ok=True)
    for name in LENT:
        _link(path / LENT_FOLDER / name, _ours(name))
    listed = packages / "aivailable_lent.pth"
    with contextlib.suppress(OSError):
        if listed.read_text(encoding="utf-8") == _LENT_PATH:
            return
    draft = listed.with_name(f".{listed.name}.{os.getpid()}")
    draft.write_text(_LENT_PATH, encoding="utf-8")
    draft.replace(listed)


def _link(link: Path, target: Path) -> None:
    with contextlib.suppress(OSError):
        if link.readlink() == target:
            return
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)


def _ours(name: str) -> Path:
    """The folder of a package that we run with. Raises FileNotFoundError."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(2, "the package cannot be lent", name)
    return Path(found.submodule_search_locations[0])
