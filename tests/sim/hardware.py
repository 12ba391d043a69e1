"""A simulated machine: what survives the death of the process, and what its devices really hold.

Owns disks, identity, and the ledger of actual device bytes, which is kept apart from every claim:
it counts what workers occupy and complains when a device would hold more than it has.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from aivailable.core.ids import NodeId, node_id
from aivailable.core.state.records import Backend, Device
from aivailable.raft.store import MemoryStore

GIB = 1 << 30
DEVICE_SIZES_GIB = (4, 6, 8, 11)
SYNC_MAX_S = 0.003
"""Measured fdatasync: p50 3 ms on a busy disk."""
LINK_PORT = 8421
SNAPSHOT_FLIP_SHARE = 0.4


def nothing() -> None:
    """What a machine does after a write: it goes on."""


class Ledger:
    """Actual bytes by device and worker."""

    def __init__(self, name: str, totals: dict[str, int]) -> None:
        self._name = name
        self._totals = totals
        self._held: dict[int, dict[str, int]] = {}
        self.complain: Callable[[str], None] = lambda text: None
        """Called with each breach (sim.world lets the checker hear it)."""

    def held(self, device_id: str) -> int:
        """Bytes that workers occupy on a device now."""
        return sum(entry.get(device_id, 0) for entry in self._held.values())

    def launched(self, worker: int, claims: dict[str, int]) -> None:
        """A process has started, and will allocate at most its claims."""

    def occupy(self, worker: int, used_bytes: dict[str, int]) -> bool:
        """A worker has allocated; more than the device has is a breach. False: it got nothing."""
        self._held[worker] = used_bytes
        for device_id in sorted(used_bytes):
            held, total = self.held(device_id), self._totals.get(device_id, 0)
            if held > total:
                self.complain(f"{device_id} of {self._name}: {held} bytes used of {total}")
        return True

    def release(self, worker: int) -> None:
        self._held.pop(worker, None)

    def release_all(self) -> None:
        self._held.clear()


@dataclass
class Machine:
    """One host."""

    name: str
    address: str
    certificate: bytes
    devices: tuple[Device, ...]
    ledger: Ledger
    sync_s: float
    files: dict[str, bytes] = field(default_factory=dict)
    model_files: dict[str, bytes] = field(default_factory=dict)
    partial_files: dict[str, bytes] = field(default_factory=dict)
    logs: dict[str, MemoryStore] = field(default_factory=dict)
    """Raft logs by cluster id."""
    starts: int = 0
    wrote: Callable[[], None] = nothing
    """Called after each write to the disk (sim.schedule lets the machine die between two)."""

    @property
    def node(self) -> NodeId:
        return node_id(self.certificate)

    def log_of(self, cluster_id: str) -> MemoryStore:
        if cluster_id not in self.logs:
            self.logs[cluster_id] = MemoryStore(latency_s=self.sync_s)
        return self.logs[cluster_id]

    def set_sync_s(self, sync_s: float) -> None:
        """How long the disk takes for a sync from now on."""
        for log in self.logs.values():
            log.latency_s = sync_s

    def flip_bit(self, rng: random.Random) -> str:
        """Damage one bit of one log or snapshot, anywhere; which one, "" when there is none."""
        if not self.logs:
            return ""
        log = self.logs[rng.choice(sorted(self.logs))]
        if log.snapshot is not None and rng.random() < SNAPSHOT_FLIP_SHARE:
            bit = rng.randrange(8 * len(log.snapshot))
            damaged = bytearray(log.snapshot)
            damaged[bit // 8] ^= 1 << bit % 8
            log.snapshot = bytes(damaged)
            return f"bit {bit} of the snapshot"
        if not log.journal:
            return ""
        bit = rng.randrange(8 * len(log.journal))
        log.journal[bit // 8] ^= 1 << bit % 8
        return f"bit {bit} of the journal"

    def reinstall(self, rng: random.Random) -> None:
        """A fresh disk and a new identity; only the model files, on a disk of their own, stay."""
        self.certificate = _certificate(self.name, rng)
        self.files.clear()
        self.logs.clear()

    def copied(self, address: str) -> Machine:
        """Another machine that was given a copy of this one's disk."""
        totals = {device.device_id: device.total_bytes for device in self.devices}
        logs = {}
        for cluster_id in sorted(self.logs):
            logs[cluster_id] = MemoryStore(latency_s=self.sync_s)
            logs[cluster_id].journal = bytearray(self.logs[cluster_id].journal)
            logs[cluster_id].snapshot = self.logs[cluster_id].snapshot
            logs[cluster_id].set_asides = self.logs[cluster_id].set_asides
        return Machine(
            name=f"{self.name}-clone",
            address=address,
            certificate=self.certificate,
            devices=self.devices,
            ledger=Ledger(f"{self.name}-clone", totals),
            sync_s=self.sync_s,
            files=dict(self.files),
            model_files=dict(self.model_files),
            partial_files=dict(self.partial_files),
            logs=logs,
        )


def make_machine(number: int, rng: random.Random) -> Machine:
    """Machine `number`, with one or two devices of the seed's choice."""
    name = f"n{number}"
    devices = tuple(
        Device(
            device_id=f"sim{index}",
            name="SimGPU",
            vendor="sim",
            backend=Backend.SIM,
            index=index,
            total_bytes=rng.choice(DEVICE_SIZES_GIB) * GIB,
        )
        for index in range(rng.randint(1, 2))
    )
    totals = {device.device_id: device.total_bytes for device in devices}
    return Machine(
        name=name,
        address=f"10.0.0.{number}",
        certificate=_certificate(name, rng),
        devices=devices,
        ledger=Ledger(name, totals),
        sync_s=rng.uniform(0.0, SYNC_MAX_S),
    )


def _certificate(name: str, rng: random.Random) -> bytes:
    return f"certificate of {name}".encode() + rng.randbytes(16)
