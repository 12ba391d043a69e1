"""The seeded schedule of faults: what breaks when, for how long, and the healing at its end.

Owns the choice and the timing; sim.faults and sim.world do the damage. Run by sim.run.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from fixtures.virtual_time import elapse
from sim.hardware import nothing
from sim.moves import Moves
from sim.world import World

PAUSE_MIN_S = 0.3
PAUSE_MAX_S = 3.0
LASTS_MIN_S = 0.3
LASTS_MAX_S = 7.0
DOWN_MIN_S = 0.3
DOWN_MAX_S = 5.0
START_LASTS_S = 6.0
"""Founding and joining take about this long after the last boot."""
LOSS_MIN = 0.05
LOSS_MAX = 0.4
SLOW_SYNC_MIN_S = 0.05
SLOW_SYNC_MAX_S = 0.4
BLACKOUT_AFTER_MAX_S = 0.5
WRITES_MAX = 8
"""A machine that is to die between two writes does so after at most this many."""
PLOT_SHARE = 0.3
"""This many of the faults need a whole cluster, and wait for it ..."""
PLOT_WAIT_S = 6.0
"""... for at most this long."""
CLONE_LASTS_S = 4.0


class Faults:
    """Breaks things until told to stop; `heal` then repairs everything."""

    def __init__(self, world: World, moves: Moves) -> None:
        self._world = world
        self._moves = moves
        self._rng = random.Random(f"faults {world.seed}")
        self._kinds: tuple[Callable[[], None], ...] = (
            self._split,
            self._isolate_leader,
            self._isolate_leader,
            self._one_way,
            self._some_links,
            self._loss_burst,
            self._kill_one,
            self._kill_leader,
            self._kill_many,
            self._power_loss,
            self._blackout,
            self._kill_between_writes,
            self._slow_disks,
            self._move_addresses,
            self._crash_workers,
            self._crash_workers,
            self._failing_launches,
        )
        self._plots: tuple[Callable[[], None], ...] = (
            self._flip_a_bit,
            self._flip_a_bit,
            self._take_out,
            self._take_out,
            self._clone_a_disk,
        )
        self.count = 0
        self.seen: dict[str, int] = {}
        """Faults by kind."""

    async def run(self, duration_s: float) -> None:
        """Faults for this long, then everything is whole again."""
        end = self._world.loop.time() + duration_s
        while True:
            await elapse(self._rng.uniform(PAUSE_MIN_S, PAUSE_MAX_S))
            if self._world.loop.time() >= end:
                break
            kinds = self._kinds
            if self._rng.random() < PLOT_SHARE and await self._can_bear_a_plot():
                kinds = self._plots
            self.count += 1
            kind = self._rng.choice(kinds)
            self.seen[kind.__name__[1:]] = self.seen.get(kind.__name__[1:], 0) + 1
            self._world.trace.add("faults", kind.__name__[1:])
            kind()
            while self._world.clones:
                await elapse(PAUSE_MIN_S)
        self.heal()

    async def _can_bear_a_plot(self) -> bool:
        """Wait for a cluster that is whole, linked and without another plot."""
        polls = int(PLOT_WAIT_S / PAUSE_MIN_S)
        for _ in range(polls):
            if not self._moves.busy and self._moves.whole() and self._linked():
                return True
            await elapse(PAUSE_MIN_S)
        return False

    def _linked(self) -> bool:
        world = self._world
        links = [world.running[name].links.sound() for name in sorted(world.running)]
        armed = any(machine.wrote is not nothing for machine in world.machines)
        return world.damage.calm and not armed and all(n == len(world.names) - 1 for n in links)

    def break_the_start(self, boot_spread_s: float) -> None:
        """Kill some nodes while they look around, found or join."""
        for _ in self._world.names:
            name = self._rng.choice(self._world.names)
            at_s = self._rng.uniform(1.0, boot_spread_s + START_LASTS_S)
            self._later(at_s, self._killing(name))

    def heal(self) -> None:
        self._world.trace.add("faults", "heal")
        self._world.damage.heal()
        for machine in self._world.machines:
            machine.set_sync_s(machine.sync_s)
            machine.wrote = nothing
        for name in self._world.names:
            self._world.boot(name)

    # Cables.

    def _cut(self, pairs: list[tuple[str, str]], what: str) -> None:
        lasts_s = self._rng.uniform(LASTS_MIN_S, LASTS_MAX_S)
        self._world.trace.add("faults", f"{what}: {pairs} for {lasts_s:.3f} s")
        for source, target in pairs:
            self._world.damage.cut(source, target, self._world.loop.time())
        self._later(lasts_s, lambda: self._world.damage.mend(pairs))

    def _split(self) -> None:
        """Two groups that do not hear each other."""
        names = self._world.names
        group = self._rng.sample(names, self._rng.randint(1, len(names) // 2))
        self._cut([(a, b) for a in names for b in names if (a in group) != (b in group)], "split")

    def _isolate_leader(self) -> None:
        """The leader hears at most one other node."""
        names = self._world.names
        leader = self._world.leader() or names[0]
        kept = self._rng.choice([None, None, *names])
        others = [name for name in names if name not in (leader, kept)]
        both = [(leader, b) for b in others] + [(b, leader) for b in others]
        self._cut(both, "leader isolated")

    def _one_way(self) -> None:
        source, target = self._rng.sample(self._world.names, 2)
        self._cut([(source, target)], "one way")

    def _some_links(self) -> None:
        pairs: list[tuple[str, str]] = []
        for _ in self._world.names:
            a, b = self._rng.sample(self._world.names, 2)
            pairs.append((a, b))
            if self._rng.random() < 0.5:
                pairs.append((b, a))
        self._cut(pairs, "links")

    def _loss_burst(self) -> None:
        damage = self._world.damage
        damage.loss = self._rng.uniform(LOSS_MIN, LOSS_MAX)
        lasts_s = self._rng.uniform(LASTS_MIN_S, LASTS_MAX_S)
        self._world.trace.add("faults", f"loss {damage.loss:.3f} for {lasts_s:.3f} s")
        self._later(lasts_s, lambda: setattr(damage, "loss", 0.0))

    # Processes.

    def _kill(self, victims: list[str], *, power: bool = False) -> None:
        for name in victims:
            self._world.kill(name, power=power)
            self._later(self._rng.uniform(DOWN_MIN_S, DOWN_MAX_S), self._booting(name))

    def _killing(self, name: str) -> Callable[[], None]:
        def kill() -> None:
            if name in self._world.running:
                self._kill([name], power=self._rng.random() < 0.5)

        return kill

    def _booting(self, name: str) -> Callable[[], None]:
        return lambda: self._world.boot(name)

    def _kill_one(self) -> None:
        self._kill([self._rng.choice(self._world.names)])

    def _kill_leader(self) -> None:
        self._kill([self._world.leader() or self._world.names[0]])

    def _kill_many(self) -> None:
        names = self._world.names
        self._kill(self._rng.sample(names, self._rng.randint(len(names) // 2 + 1, len(names))))

    def _power_loss(self) -> None:
        names = self._world.names
        self._kill(self._rng.sample(names, self._rng.randint(1, len(names))), power=True)

    # Disks.

    def _blackout(self) -> None:
        """The power fails everywhere while disks are busy with what just came."""
        machines = self._world.machines
        for machine in machines:
            machine.set_sync_s(self._rng.uniform(SLOW_SYNC_MIN_S, SLOW_SYNC_MAX_S))
        self._later(self._rng.uniform(0.0, BLACKOUT_AFTER_MAX_S), self._all_dark)

    def _all_dark(self) -> None:
        self._kill(list(self._world.names), power=True)
        for machine in self._world.machines:
            machine.set_sync_s(machine.sync_s)

    def _kill_between_writes(self) -> None:
        """One machine dies right after one of its next writes."""
        name, power = self._rng.choice(self._world.names), self._rng.random() < 0.5
        machine, left = self._world.machine(name), self._rng.randint(1, WRITES_MAX)

        def wrote() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                machine.wrote = nothing
                self._kill([name], power=power)

        machine.wrote = wrote

    def _slow_disks(self) -> None:
        names = self._world.names
        slow = [self._world.machine(n) for n in self._rng.sample(names, self._rng.randint(1, 2))]
        for machine in slow:
            machine.set_sync_s(self._rng.uniform(SLOW_SYNC_MIN_S, SLOW_SYNC_MAX_S))
            self._later(
                self._rng.uniform(LASTS_MIN_S, LASTS_MAX_S),
                lambda machine=machine: machine.set_sync_s(machine.sync_s),
            )

    # Addresses.

    def _move_addresses(self) -> None:
        """New leases: for one, for all at once, or two that get each other's."""
        names = self._world.names
        dice = self._rng.random()
        if dice < 0.5:
            self._world.readdress([self._rng.choice(names)])
        elif dice < 0.75:
            self._world.readdress(self._rng.sample(names, 2), exchange=True)
        else:
            self._world.readdress(list(names))

    # Plots: they need a whole cluster, since each takes away what only one may lose at a time.

    def _flip_a_bit(self) -> None:
        """A machine dies, and a bit of what its disk kept of the log is another one."""
        name = self._rng.choice(self._world.names)
        self._moves.busy = True
        self._kill([name])
        what = self._world.machine(name).flip_bit(self._rng)
        self._world.checker.excused.setdefault(name, 0)
        self._world.trace.add("faults", f"{name}: {what} flipped")

    def _take_out(self) -> None:
        self._world.trace.add("faults", self._moves.take_out())

    def _clone_a_disk(self) -> None:
        """A second machine with the disk of a running one, for a while; nothing else breaks."""
        name = self._rng.choice(self._world.names)
        self._world.clone(name)
        self._later(CLONE_LASTS_S, lambda: self._world.end_clone(name))

    # Workers.

    def _crash_workers(self) -> None:
        for name in sorted(self._world.running):
            for worker in self._world.running[name].launcher.living():
                if self._rng.random() < 0.4:
                    worker.crash()

    def _failing_launches(self) -> None:
        for name in sorted(self._world.running):
            self._world.running[name].launcher.fail_next = self._rng.randint(0, 2)

    def _later(self, delay_s: float, call: Callable[[], object]) -> None:
        self._world.loop.call_later(delay_s, call)
