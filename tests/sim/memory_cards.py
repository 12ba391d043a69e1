"""Simulated cards that other programs use too, and that give memory back late.

Owns the truth of what lies on each card: our workers' bytes from their allocation on, what an ended
process has not given back yet, and other programs' bytes, which grow and shrink at random. It
judges every launch and every allocation by that truth alone: an allocation that the card cannot
hold fails, as a real one does, and is a breach unless another program took the room meanwhile.
Built by sim.memory_run; the peer sees free bytes only (sim.ports.SimDevices).
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace

from fixtures.virtual_time import elapse
from sim.hardware import Ledger, Machine, make_machine
from sim.world import World

from aivailable.core.state.records import Backend

LATE_MAX_S = 3.0
"""The driver has given a dead process's memory back after at most this long."""
BLINK_S = 0.1
"""What another program took so shortly before a launch, nobody could have seen."""
FOREIGN_SHARE_MAX = 0.6
FOREIGN_PAUSE_MAX_S = 2.0
IDLE_SHARE = 0.3
"""This often another program ends, and leaves nothing."""


@dataclass
class _Launched:
    """A worker between its launch and its end."""

    claims: dict[str, int]
    grown: dict[str, int]
    """How often other programs had grown on each device by then, as far as it could be seen."""
    allocated: bool = False


@dataclass
class Counts:
    """What happened on the cards of one machine."""

    launches: int = 0
    no_room: int = 0
    """Allocations that failed because another program had grown since the launch."""
    late: int = 0
    """Processes whose memory came back after their end."""
    grown: int = 0
    """Times that another program took memory."""
    fullest: float = 0.0
    """The largest share of a device that was in use."""


@dataclass
class _Foreign:
    used_bytes: int = 0
    grown: int = 0
    grown_at_s: float = field(default=float("-inf"))


class CardLedger(Ledger):
    """sim.hardware.Ledger, with other programs and late memory."""

    def __init__(self, name: str, totals: dict[str, int], rng: random.Random) -> None:
        super().__init__(name, totals)
        self._rng = rng
        self._foreign = {device_id: _Foreign() for device_id in sorted(totals)}
        self._launched: dict[int, _Launched] = {}
        self._lingering: dict[int, dict[str, int]] = {}
        self.counts = Counts()

    def held(self, device_id: str) -> int:
        """All that is not free: so that total - held is what a driver says."""
        lingering = sum(entry.get(device_id, 0) for entry in self._lingering.values())
        return super().held(device_id) + lingering + self._foreign[device_id].used_bytes

    def free(self, device_id: str) -> int:
        return self._totals[device_id] - self.held(device_id)

    def foreign(self, device_id: str) -> int:
        """Bytes of other programs."""
        return self._foreign[device_id].used_bytes

    def launched(self, worker: int, claims: dict[str, int]) -> None:
        """Nobody may start a load that, with those under way, needs more than is free."""
        now_s = asyncio.get_running_loop().time()
        self.counts.launches += 1
        for device_id, claim_bytes in sorted(claims.items()):
            under_way = sum(
                entry.claims.get(device_id, 0)
                for entry in self._launched.values()
                if not entry.allocated
            )
            free, grown_at_s = self.free(device_id), self._foreign[device_id].grown_at_s
            if claim_bytes + under_way > free and now_s - grown_at_s > BLINK_S:
                self.complain(
                    f"{device_id} of {self._name}: a load of {claim_bytes} bytes began with {free}"
                    f" free and {under_way} claimed by loads under way"
                )
        grown = {
            device_id: other.grown - (now_s - other.grown_at_s <= BLINK_S)
            for device_id, other in self._foreign.items()
        }
        self._launched[worker] = _Launched(claims, grown)

    def occupy(self, worker: int, used_bytes: dict[str, int]) -> bool:
        entry = self._launched[worker]
        for device_id, used in sorted(used_bytes.items()):
            if used > entry.claims.get(device_id, 0):
                self.complain(f"{device_id} of {self._name}: {used} bytes used, less claimed")
            if used > self.free(device_id):
                self.counts.no_room += 1
                if self._foreign[device_id].grown == entry.grown[device_id]:
                    self.complain(
                        f"{device_id} of {self._name}: {used} bytes allocated of"
                        f" {self.free(device_id)} free, and no other program grew meanwhile"
                    )
                return False
        entry.allocated = True
        super().occupy(worker, used_bytes)
        self._note()
        return True

    def release(self, worker: int) -> None:
        """The process is gone; its memory follows."""
        self._launched.pop(worker, None)
        used = self._held.pop(worker, None)
        if used is None:
            return
        self.counts.late += 1
        self._lingering[worker] = used
        late_s = self._rng.uniform(0.0, LATE_MAX_S)
        asyncio.get_running_loop().call_later(late_s, self._lingering.pop, worker, None)

    def release_all(self) -> None:
        """The peer's process is gone, and so are its workers: each has been released."""
        for worker in sorted(self._held):
            self.release(worker)
        self._launched.clear()

    def set_foreign(self, device_id: str, wanted_bytes: int) -> None:
        """Another program wants this much in all; it gets what is there."""
        other = self._foreign[device_id]
        before = other.used_bytes
        other.used_bytes = min(wanted_bytes, before + self.free(device_id))
        if other.used_bytes > before:
            other.grown += 1
            other.grown_at_s = asyncio.get_running_loop().time()
            self.counts.grown += 1
        self._note()

    def _note(self) -> None:
        """The physical bound itself."""
        for device_id in sorted(self._totals):
            held, total = self.held(device_id), self._totals[device_id]
            self.counts.fullest = max(self.counts.fullest, held / total)
            if held > total:
                self.complain(f"{device_id} of {self._name}: {held} bytes used of {total}")


def card_machine(number: int, rng: random.Random) -> Machine:
    """A machine whose devices are real cards to the product: a margin, and live free bytes."""
    machine = make_machine(number, rng)
    machine.devices = tuple(
        replace(device, backend=Backend.CUDA, vendor="nvidia", device_id=f"card{device.index}")
        for device in machine.devices
    )
    totals = {device.device_id: device.total_bytes for device in machine.devices}
    machine.ledger = CardLedger(machine.name, totals, random.Random(rng.random()))
    return machine


def ledger_of(machine: Machine) -> CardLedger:
    assert isinstance(machine.ledger, CardLedger)
    return machine.ledger


async def use_by_others(world: World, duration_s: float) -> None:
    """Other programs come, grow, shrink and go; what is there at the end stays."""
    rng = random.Random(f"foreign {world.seed}")
    end_s = world.loop.time() + duration_s
    while world.loop.time() < end_s:
        await elapse(rng.uniform(0.0, FOREIGN_PAUSE_MAX_S))
        machine = rng.choice(world.machines)
        device = rng.choice(machine.devices)
        share = 0.0 if rng.random() < IDLE_SHARE else rng.uniform(0.0, FOREIGN_SHARE_MAX)
        ledger_of(machine).set_foreign(device.device_id, round(share * device.total_bytes))
        told = f"others use {ledger_of(machine).foreign(device.device_id)} of {device.device_id}"
        world.trace.add(machine.name, told)
