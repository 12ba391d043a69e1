"""Makes a runtime, step by step: venv, what a worker needs, llama-cpp-python, a trial, the record.

Owns the folder `runtimes/<backend>.draft` while it is half made, the list of the steps that are
done in it, and the children that do them. A step that was broken off is done again, those before it
are not, unless the recipe has changed. Only what has passed its trial gets the runtime's name, by
one rename; one that was there before serves until then.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aivailable.advice import RUNTIME_REMOVE
from aivailable.core.state.records import Backend
from aivailable.peer.runtimes.children import Child, run_child
from aivailable.peer.runtimes.interpreters import (
    DRAFT,
    RUNTIMES,
    Runtime,
    link_code,
    read_runtime,
    write_record,
)
from aivailable.peer.runtimes.recipes import (
    BESIDE,
    DISK_BYTES,
    ENGINE,
    GIB,
    JOB_BYTES,
    BuildTools,
    Recipe,
    RuntimeTrouble,
    missing,
)

STEPS_FILE: Final = "steps.json"
VENV_LIMIT_S: Final = 300.0
INSTALL_LIMIT_S: Final = 1800.0
BUILD_LIMIT_S: Final = 4 * 3600.0
"""Legacy cards live beside old processors: a CUDA build of many architectures takes hours there."""
CHECK_LIMIT_S: Final = 180.0
_IMPORT: Final = (
    "import aivailable.worker.__main__, jinja2, llama_cpp, sys; "
    "llama_cpp.llama_cpp.llama_backend_init(); print(llama_cpp.__version__)"
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the operator asked for. `wheels`: folders or addresses with ready wheels, tried first;
    `offline`: nothing else is asked."""

    backend: Backend
    wheels: tuple[str, ...] = ()
    offline: bool = False

    @property
    def compiles(self) -> bool:
        return not self.wheels


class Builder:
    """One runtime of one home."""

    def __init__(
        self, home: Path, request: BuildRequest, recipe: Recipe, tools: BuildTools, say: Say
    ) -> None:
        self._request = request
        self._recipe = recipe
        self._tools = tools
        self._say = say
        self._folder = home / RUNTIMES
        self._final = self._folder / request.backend.value
        self._draft = self._folder / f"{request.backend.value}{DRAFT}"
        self._log = self._folder / f"{request.backend.value}.log"
        self._python = str(self._draft / "bin" / "python")

    async def make(self) -> Runtime:
        """Make or go on. Raises RuntimeTrouble with what to do; what is done stays done."""
        lacking = missing(self._request.backend, self._tools, compiles=self._request.compiles)
        if lacking:
            raise RuntimeTrouble("; ".join(lacking))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _alone(self._folder / f"{self._request.backend.value}.lock"):
                self._refuse_small_disk()
                return await self._steps()
        except OSError as error:
            name = error.filename or self._folder
            raise RuntimeTrouble(f"{name}: {error.strerror or error}") from error

    async def _steps(self) -> Runtime:
        done = self._begin()
        steps: tuple[tuple[str, str, Callable[[], Awaitable[None]]], ...] = (
            ("venv", "making an environment", self._make_venv),
            ("beside", "installing what a worker needs", self._install_beside),
            ("source", f"getting {ENGINE}", self._get_source),
            ("wheel", "building it" if self._request.compiles else "taking it", self._make_wheel),
            ("engine", "installing it", self._install_engine),
        )
        for number, (name, text, step) in enumerate(steps, 1):
            if name in done:
                self._say(f"{number}/6 {text}: done before")
                continue
            self._say(f"{number}/6 {text}")
            await step()
            done.append(name)
            self._remember(done)
        self._say("6/6 trying it")
        version = await self._check()
        return self._finish(version)

    def _refuse_small_disk(self) -> None:
        needed = (
            DISK_BYTES[self._request.backend] if self._request.compiles else DISK_BYTES[Backend.CPU]
        )
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise RuntimeTrouble(
                f"{self._folder} has {free / GIB:.1f} GiB free, making this runtime needs "
                f"{needed / GIB:.0f} GiB: free some space, or choose another --home"
            )

    def _begin(self) -> list[str]:
        """Steps that are done already; none, in an empty folder, for another recipe."""
        known = _steps_in(self._draft)
        if known is not None and known[0] == self._fingerprint():
            return list(known[1])
        if self._draft.exists():
            self._say("what is half made is of another recipe: beginning anew")
            shutil.rmtree(self._draft)
        self._draft.mkdir()
        self._log.unlink(missing_ok=True)
        self._remember([])
        return []

    def _remember(self, done: Sequence[str]) -> None:
        document = {"fingerprint": self._fingerprint(), "done": list(done)}
        draft = self._draft / f"{STEPS_FILE}.tmp"
        draft.write_text(json.dumps(document), encoding="utf-8")
        draft.replace(self._draft / STEPS_FILE)

    def _fingerprint(self) -> str:
        told = [sys.version, sys.executable, ENGINE, *BESIDE, *self._recipe.options]
        told += [f"{name}={value}" for name, value in self._recipe.environment.items()]
        told += [*self._request.wheels, str(self._request.offline)]
        return hashlib.sha256("\0".join(told).encode()).hexdigest()

    async def _make_venv(self) -> None:
        # --clear: an interrupted attempt may have left half of one; the steps' file is kept.
        kept = (self._draft / STEPS_FILE).read_bytes()
        await self._run("venv", VENV_LIMIT_S, sys.executable, "-m", "venv", "--clear", self._draft)
        (self._draft / STEPS_FILE).write_bytes(kept)

    async def _install_beside(self) -> None:
        await self._pip(INSTALL_LIMIT_S, "install", *self._sources(), *BESIDE)

    async def _get_source(self) -> None:
        """The sources, unpacked at a place that stays: CMake begins anew for any other. Nothing
        when a ready wheel is to be taken."""
        if self._request.wheels:
            return
        folder = self._draft / "source"
        shutil.rmtree(folder, ignore_errors=True)
        await self._pip(
            INSTALL_LIMIT_S,
            *("download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)),
            ENGINE,
        )
        archives = sorted(folder.glob("*.tar.gz"))
        if len(archives) != 1:
            raise RuntimeTrouble(f"{folder} holds {len(archives)} archives, not one")
        await asyncio.to_thread(_unpack, archives[0], folder / "unpacked")
        archives[0].unlink()

    async def _make_wheel(self) -> None:
        """A wheel in the draft: a ready one, or built here. The folder of the build stays, so that
        one that was broken off goes on where it was."""
        made = ["-v", "wheel", "--no-deps", "--wheel-dir", str(self._draft / "wheels")]
        if self._request.wheels:
            await self._pip(INSTALL_LIMIT_S, *made, *self._sources(), ENGINE)
            return
        (source,) = (self._draft / "source" / "unpacked").iterdir()
        build = self._draft / "build"
        await self._pip(BUILD_LIMIT_S, *made, "-C", f"build-dir={build}", str(source))

    async def _install_engine(self) -> None:
        wheels = sorted((self._draft / "wheels").glob("*.whl"))
        if len(wheels) != 1:
            raise RuntimeTrouble(f"{self._draft / 'wheels'} holds {len(wheels)} wheels, not one")
        await self._pip(INSTALL_LIMIT_S, "install", *self._sources(), str(wheels[0]))

    def _sources(self) -> list[str]:
        found = ["--no-index"] if self._request.offline else []
        for place in self._request.wheels:
            found += ["--find-links", place]
        return found

    async def _check(self) -> str:
        """Its version, import and one decode on the CPU: a card has its own trial at each start."""
        link_code(self._draft)
        child = await self._run("import", CHECK_LIMIT_S, self._python, "-c", _IMPORT)
        version = child.last_line
        wanted = ENGINE.partition("==")[2]
        if version != wanted:
            raise RuntimeTrouble(
                f"it has llama-cpp-python {version or 'without a version'}, {wanted} is needed: "
                f"{RUNTIME_REMOVE.of(self._request.backend.value)} and add it again"
            )
        folder = self._draft / "trial"
        folder.mkdir(exist_ok=True)
        await self._run(
            "trial",
            CHECK_LIMIT_S,
            *(self._python, "-m", "aivailable.worker.trial", "--backend", "cpu"),
            *("--folder", folder),
        )
        shutil.rmtree(folder)
        return version

    def _finish(self, version: str) -> Runtime:
        """The record, then the name: before it nothing uses the runtime."""
        runtime = Runtime(
            self._request.backend,
            self._final,
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            version,
            int(time.time() * 1000),
            self._recipe.options if self._request.compiles else (),
        )
        for name in ("wheels", "build", "source"):
            shutil.rmtree(self._draft / name, ignore_errors=True)
        write_record(self._draft, runtime)
        before = self._folder / f"{self._request.backend.value}.before"
        shutil.rmtree(before, ignore_errors=True)
        if self._final.exists():
            self._final.rename(before)
        self._draft.rename(self._final)
        shutil.rmtree(before, ignore_errors=True)
        return runtime

    async def _pip(self, limit_s: float, *arguments: str) -> None:
        await self._run("pip", limit_s, self._python, "-m", "pip", "--no-input", *arguments)

    async def _run(self, name: str, limit_s: float, *command: str | Path) -> Child:
        """A child whose output goes to the log; progress to the operator. Raises RuntimeTrouble."""
        child = await run_child(
            [str(part) for part in command], self._environment(), self._log, limit_s, self._say
        )
        if child.trouble:
            raise RuntimeTrouble(f"{name}: {child.trouble}; all it said is in {self._log}")
        return child

    def _environment(self) -> Mapping[str, str]:
        quoted = " ".join(self._recipe.options)
        return {
            "CMAKE_BUILD_PARALLEL_LEVEL": str(_jobs()),
            **os.environ,
            **self._recipe.environment,
            "CMAKE_ARGS": quoted,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }


def _unpack(archive: Path, folder: Path) -> None:
    """Raises RuntimeTrouble for an archive that is damaged or leads elsewhere, OSError."""
    try:
        with tarfile.open(archive) as file:
            if hasattr(tarfile, "data_filter"):
                file.extractall(folder, filter="data")
            else:
                # Python before 3.11.4. pip has compared the archive with the index's digest.
                file.extractall(folder)
    except tarfile.TarError as error:
        raise RuntimeTrouble(f"{archive.name} cannot be unpacked: {error}") from error


def _jobs() -> int:
    """Compilers at once: one per core, as far as memory goes."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, memory // JOB_BYTES))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One at a time for each backend. Raises RuntimeTrouble, OSError."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeTrouble("another runtime command is at it: wait for its end") from None
        yield
    finally:
        os.close(handle)


def remove(home: Path, backend: Backend) -> bool:
    """Take a runtime away, whole or half made; False when there was none. Workers that run from
    it go on with what they have loaded. Raises RuntimeTrouble."""
    folder = home / RUNTIMES
    name = backend.value
    try:
        if not folder.is_dir():
            return False
        with _alone(folder / f"{name}.lock"):
            there = [one for one in (folder / name, folder / f"{name}{DRAFT}") if one.exists()]
            for one in there:
                gone = folder / f"{one.name}.gone"
                shutil.rmtree(gone, ignore_errors=True)
                one.rename(gone)
                shutil.rmtree(gone)
            (folder / f"{name}.log").unlink(missing_ok=True)
            return bool(there)
    except OSError as error:
        raise RuntimeTrouble(f"{error.filename or folder}: {error.strerror}") from error


def half_made(home: Path, backend: Backend) -> tuple[str, ...] | None:
    """The steps that are done of a runtime that is not whole yet; None when there is none."""
    known = _steps_in(home / RUNTIMES / f"{backend.value}{DRAFT}")
    return None if known is None else known[1]


def _steps_in(draft: Path) -> tuple[str, tuple[str, ...]] | None:
    """Fingerprint of the recipe, and what is done; None when nothing is there, or it was broken
    off while it was written."""
    try:
        told: Any = json.loads((draft / STEPS_FILE).read_text("utf-8"))
        return str(told["fingerprint"]), tuple(str(name) for name in told["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def whole(home: Path, backend: Backend) -> Runtime | None:
    """What is there and complete."""
    return read_runtime(home / RUNTIMES / backend.value, backend)
