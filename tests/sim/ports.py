"""The small simulated ports: clock, chance, home, identity, log store, model files, prediction.

Each belongs to one process and loses its effect at that process's death. What survives a death is
the `Machine` of sim.hardware that they are given. Built by sim.world, and by fixtures.peer_ports
for the tests of the peer's parts.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fixtures.virtual_time import elapse
from sim.hardware import Machine
from sim.loop import Process

from aivailable.core.ids import NodeId, node_id
from aivailable.core.state.records import Inventory
from aivailable.errors import LinkError, WorkerError
from aivailable.peer.ports import FileStatus, MessageStream, Prediction, PredictRequest
from aivailable.raft.store import MemoryStore, Operation, Stored
from aivailable.wire.peer import DeviceLoad, FileChunk

T = TypeVar("T")

WALL_START_MS = 1_800_000_000_000
WALL_SKEW_MAX_MS = 3_600_000
OFFSET_MAX_S = 10_000.0
CHUNK_BYTES = 8 * 1024
CHUNK_PAUSE_S = 0.02
"""Weights are sent paced, so that a fault can fall into the middle of a file."""
BYTES_PER_TOKEN = 1024


class SimClock:
    """The running loop's time. With `drawn`, monotonic time has an offset of its own per start,
    and the wall clock is wrong."""

    def __init__(self, offset_s: float = 0.0, skew_ms: int = 0) -> None:
        self._offset_s = offset_s
        self._skew_ms = skew_ms

    @classmethod
    def drawn(cls, rng: random.Random) -> SimClock:
        offset_s = rng.uniform(0.0, OFFSET_MAX_S)
        return cls(offset_s, rng.randint(-WALL_SKEW_MAX_MS, WALL_SKEW_MAX_MS))

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self._offset_s

    def wall_ms(self) -> int:
        passed_ms = round(asyncio.get_running_loop().time() * 1000)
        return WALL_START_MS + self._skew_ms + passed_ms


class SimRandomness:
    """Seeded dice."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    @property
    def random(self) -> random.Random:
        return self._random

    def token_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


@dataclass
class SimIdentity:
    """The same node at every start; another instance each time."""

    certificate: bytes
    instance_id: str
    node: NodeId = ""

    def __post_init__(self) -> None:
        self.node = self.node or node_id(self.certificate)

    @classmethod
    def named(cls, name: str) -> SimIdentity:
        """One that is known by a name only."""
        return cls(name.encode(), f"instance of {name}")


class SimHome:
    """Facts on the machine's disk: atomic and durable, as long as the process lives. `fails`: the
    next saves that raise OSError."""

    def __init__(self, machine: Machine, process: Process) -> None:
        self.files = machine.files
        self.fails = 0
        self._machine = machine
        self._process = process

    def load(self, name: str) -> bytes | None:
        return self.files.get(name)

    def save(self, name: str, data: bytes) -> None:
        if self.fails:
            self.fails -= 1
            raise OSError("no space left on device")
        if self._process.alive:
            self.files[name] = bytes(data)
            self._machine.wrote()

    def remove(self, name: str) -> None:
        if self._process.alive:
            self.files.pop(name, None)
            self._machine.wrote()


class SimStore:
    """One process's hold on the machine's log: a dead process writes nothing more."""

    def __init__(self, store: MemoryStore, machine: Machine, process: Process) -> None:
        self._store = store
        self._machine = machine
        self._process = process

    async def load(self) -> Stored:
        return await self._store.load()

    def put(self, operation: Operation) -> None:
        if self._process.alive:
            self._store.put(operation)

    async def sync(self) -> None:
        if self._process.alive:
            await self._store.sync()
            self._machine.wrote()

    async def set_aside(self) -> None:
        if self._process.alive:
            await self._store.set_aside()
            self._machine.wrote()

    async def close(self) -> None:
        if self._process.alive:
            await self._store.close()


class SimDevices:
    """ports.DevicePort: what the machine has, less what its workers hold."""

    def __init__(self, machine: Machine, engines: tuple[str, ...] = ("fake",)) -> None:
        self.engines = engines
        self._machine = machine

    def inventory(self, node: NodeId) -> Inventory:
        return Inventory(node=node, devices=self._machine.devices, engines=self.engines)

    def load(self) -> tuple[DeviceLoad, ...]:
        return tuple(
            DeviceLoad(
                device_id=device.device_id,
                free_bytes=device.total_bytes - self._machine.ledger.held(device.device_id),
            )
            for device in self._machine.devices
        )


class SimModelStore:
    """ports.ModelStore over the machine's model files."""

    def __init__(self, machine: Machine, process: Process) -> None:
        self._files = machine.model_files
        self._partial = machine.partial_files
        self._process = process

    def held(self) -> Mapping[str, FileStatus]:
        return {
            digest: FileStatus(digest, Path(f"/models/{digest}"), len(data))
            for digest, data in sorted(self._files.items())
        }

    async def register(self, path: Path) -> FileStatus:
        data = str(path).encode()
        digest = hashlib.sha256(data).hexdigest()
        self._files[digest] = data
        return FileStatus(digest, path, len(data))

    async def fetch(self, digest: str, size_bytes: int, source: MessageStream) -> FileStatus:
        """Goes on from what an interrupted attempt has left."""
        while True:
            chunk = await source.receive()
            if chunk is None:
                raise LinkError("the other side ended early")
            data = self._partial.get(digest, b"")
            if chunk.offset != len(data):
                raise WorkerError(f"a piece at {chunk.offset}, expected {len(data)}")
            if not self._process.alive:
                raise LinkError("this process is dead")
            self._partial[digest] = data + chunk.data
            if chunk.last:
                break
        source.finish()
        data = self._partial.pop(digest)
        if hashlib.sha256(data).hexdigest() != digest:
            raise WorkerError(f"the file {digest[:8]} arrived damaged")
        self._files[digest] = data
        return FileStatus(digest, Path(f"/models/{digest}"), len(data))

    async def send(self, digest: str, offset: int, stream: MessageStream) -> None:
        data = self._files.get(digest)
        if data is None:
            raise OSError(f"no file {digest[:8]}")
        at = offset
        while True:
            piece = data[at : at + CHUNK_BYTES]
            last = at + len(piece) >= len(data)
            await stream.send(FileChunk(at, piece, len(data), last))
            at += len(piece)
            if last:
                return
            await elapse(CHUNK_PAUSE_S)

    async def look(self, read: Callable[[Path], T], path: Path) -> T:
        return read(path)

    def partial_bytes(self, digest: str) -> int:
        return len(self._partial.get(digest, b""))


async def predict(request: PredictRequest) -> Prediction:
    """A formula of the same shape as the real one."""
    kv_bytes = request.context * request.slots * BYTES_PER_TOKEN
    return Prediction(weights_bytes=1 << 30, kv_bytes=kv_bytes, compute_bytes=0, by="formula")
