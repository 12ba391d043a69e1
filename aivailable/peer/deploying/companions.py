"""The files that go with a model, from the words of a request to records of the deployment.

Owns finding, checking and hashing them on this node: LoRA adapters and projectors, as the engine
options name them. A relative path is beside the model's file. Proposes nothing.

Not to be confused with `gguf.companions`, which reads the headers of these files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aivailable.core.state.records import Companion, Deployment
from aivailable.errors import GgufError, RequestError
from aivailable.gguf.companion_options import LORA, PROJECTOR, files_named, lora_problem
from aivailable.gguf.companions import companion_path, read_adapter, read_projector
from aivailable.peer.control.cluster_view import ClusterView
from aivailable.peer.ports import ModelStore


@dataclass(frozen=True, slots=True)
class FoundCompanion:
    """A checked file. `path`: where it lies on this node; None = only elsewhere."""

    companion: Companion
    path: Path | None


class Companions:
    def __init__(self, store: ModelStore, cluster: ClusterView) -> None:
        self._store = store
        self._cluster = cluster

    async def find(
        self,
        options: Mapping[str, str],
        beside: Path | None,
        architecture: str,
        current: Deployment | None,
    ) -> tuple[FoundCompanion, ...]:
        """Every file that the options name, in their order, with a stand-in for a digest that is
        not known: a question hashes no gigabytes.

        `beside`: the model's file, if it is on this node. What is not here and is named as
        `current` names it is the file that it was when that was deployed. Raises RequestError.
        """
        problem = lora_problem(options.get(LORA, ""))
        if problem:
            raise RequestError(400, "invalid_options", f"engine option {LORA}: {problem}")
        known = {(e.option, e.path): e for e in current.companions} if current is not None else {}
        found = []
        for option, given in files_named(options):
            path = _path(beside, given)
            entry = known.get((option, given))
            if entry is not None and (path is None or not path.is_file()):
                file = self._store.held().get(entry.digest)
                found.append(FoundCompanion(entry, None if file is None else file.path))
            else:
                found.append(await self._checked(option, given, path, architecture))
        return tuple(found)

    async def _checked(
        self, option: str, given: str, path: Path | None, architecture: str
    ) -> FoundCompanion:
        if path is None:
            raise _bad(
                option,
                f"{given} would be beside the model's file, which is not on this node: deploy"
                " where both are, or give an absolute path on this node",
            )

        def read(path: Path) -> tuple[int, int]:
            compute_bytes = 0
            if option == PROJECTOR:
                compute_bytes = read_projector(path).compute_bytes
            else:
                read_adapter(path, architecture)
            return compute_bytes, path.stat().st_size

        try:
            compute_bytes, size_bytes = await self._store.look(read, path)
        except (GgufError, OSError) as error:
            raise _bad(option, str(error)) from error
        digest = self._digest(path, size_bytes)
        return FoundCompanion(Companion(option, given, digest, size_bytes, compute_bytes), path)

    def _digest(self, path: Path, size_bytes: int) -> str:
        for file in self._store.held().values():
            if file.size_bytes == size_bytes and same_file(file.path, path):
                return file.digest
        return hashlib.sha256(f"not hashed: {path}".encode()).hexdigest()

    async def hashed(self, found: tuple[FoundCompanion, ...]) -> tuple[FoundCompanion, ...]:
        """With the digests of what is here. Raises RequestError."""
        known = []
        for one in found:
            if one.path is None:
                known.append(one)
                continue
            try:
                file = await self._store.register(one.path)
            except (GgufError, OSError) as error:
                raise _bad(one.companion.option, str(error)) from error
            entry = replace(one.companion, digest=file.digest, size_bytes=file.size_bytes)
            known.append(FoundCompanion(entry, file.path))
        return tuple(known)


def same_file(held: Path, path: Path) -> bool:
    """A held file that has gone meanwhile is another one."""
    with contextlib.suppress(OSError):
        return held.samefile(path)
    return False


def _path(beside: Path | None, given: str) -> Path | None:
    if beside is not None:
        return Path(companion_path(beside, given))
    path = Path(os.path.expanduser(given))
    return path if path.is_absolute() else None


def _bad(option: str, why: str) -> RequestError:
    return RequestError(400, "bad_companion_file", f"engine option {option}: {why}")
