"""The operator who takes members out, replaces machines, and sees that they come back.

Owns what a person would do: `remove`, `leave`, a new machine in an old one's place, a restart of
what was taken out. Started by sim.run; sim.schedule asks it for one change at a time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from fixtures.virtual_time import elapse
from sim.converge import voters_wanted
from sim.world import Running, World

from aivailable.core.ids import NodeId
from aivailable.errors import AivailableError

LOOK_S = 1.0
UNLISTED_S = 6.0
"""A node that no other lists for this long is asked to leave, as its operator would."""
REINSTALL_MIN_S = 0.3
REINSTALL_MAX_S = 4.0


class Moves:
    """`whole` says when a change can be borne; `take_out` begins one; `run` never ends."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(f"moves {world.seed}")
        self._ghosts: list[NodeId] = []
        """Whose removal is wanted until nobody lists them."""
        self._leave: asyncio.Task[str] | None = None
        self._unlisted_s: dict[str, float] = {}
        self.busy = False
        """A change was begun, and the cluster has not been whole since."""
        self.done: dict[str, int] = {}

    def whole(self) -> bool:
        """Everybody runs, is a member, knows the same voters, and each voter's word counts."""
        world = self._world
        leaving = self._leave is not None and not self._leave.done()
        if len(world.running) < len(world.names) or self._ghosts or leaving:
            return False
        wanted: tuple[NodeId, ...] | None = None
        for name in world.names:
            session = world.running[name].peer.session
            if session is None or session.file.cluster_id != world.main:
                return False
            here, voters = world.machine(name).node, session.raft.voters
            if len(session.state.members) != len(world.names):
                return False
            if len(voters) != voters_wanted(len(world.names)) or voters != (wanted or voters):
                return False
            if not session.raft._opened or not (
                here not in voters or session.raft._consensus.counts_itself()
            ):
                return False
            wanted = voters
        return True

    def take_out(self) -> str:
        """Begin to take out a member in one of three ways; what, in words."""
        name = self._rng.choice(self._world.names)
        node = self._world.machine(name).node
        how = self._rng.choice(("removed", "leaves", "replaced"))
        self.busy = True
        self.done[how] = self.done.get(how, 0) + 1
        if how == "leaves":
            self._leave = self._ask(name, lambda run: run.peer.members.leave())
        else:
            self._ghosts.append(node)
        if how == "replaced":
            self._world.kill(name, power=True)
            self._world.machine(name).reinstall(self._rng)
            pause_s = self._rng.uniform(REINSTALL_MIN_S, REINSTALL_MAX_S)
            self._world.loop.call_later(pause_s, self._world.boot, name)
        return f"{name} {how}"

    async def run(self) -> None:
        """Look at every node now and then, and do what its operator would."""
        while True:
            await elapse(LOOK_S)
            if self.busy and self.whole():
                self.busy = False
            for node in tuple(self._ghosts):
                await self._remove(node)
            for name in self._world.names:
                self._look_after(name)

    async def _remove(self, node: NodeId) -> None:
        """Ask any member for it, once; unknown outcomes are asked again."""
        states = [state for state in self._world.states().values() if state.cluster is not None]
        newest = max(states, key=lambda state: state.version, default=None)
        if newest is not None and node not in newest.members:
            self._ghosts.remove(node)
            return
        asked = [name for name, state in self._world.states().items() if node in state.members]
        asked = [name for name in asked if self._world.machine(name).node != node]
        if asked:
            task = self._ask(
                self._rng.choice(asked),
                lambda run: run.peer.members.remove(node, actor="operator:sim"),
            )
            await asyncio.wait([task])
            if not task.cancelled() and task.result() == "":
                self._ghosts.remove(node)

    def _look_after(self, name: str) -> None:
        run = self._world.running.get(name)
        if run is None:
            return
        if run.peer.failure:
            self._world.checker.problem(f"{run.process!r} ended: {run.peer.failure}")
        gone = run.peer.session is None and run.peer.membership.phase == "removed"
        if run.peer.left.is_set() or gone:
            self._world.kill(name)
            if any(run.peer.node in one.removed for one in self._world.states().values()):
                self._world.machine(name).reinstall(self._rng)
            self._world.boot(name)
        elif run.peer.session is None or self._listed(name):
            self._unlisted_s.pop(name, None)
        else:
            now_s = self._world.loop.time()
            if now_s - self._unlisted_s.setdefault(name, now_s) >= UNLISTED_S:
                del self._unlisted_s[name]
                self._ask(name, lambda run: run.peer.members.leave())

    def _listed(self, name: str) -> bool:
        """Whether the newest state of its own cluster, or this node's lone one, has it."""
        states = [s for s in self._world.states().values() if s.cluster is not None]
        own = self._world.state_of(name)
        if own is None or own.cluster is None or own.cluster.cluster_id != self._world.main:
            return True
        ours = [s for s in states if s.cluster is not None and s.cluster == own.cluster]
        newest = max(ours, key=lambda state: state.version)
        return self._world.machine(name).node in newest.members

    def _ask(self, name: str, what: Callable[[Running], Awaitable[None]]) -> asyncio.Task[str]:
        """Ask at a node that runs; the task says why not, or ""."""

        async def ask(run: Running) -> str:
            try:
                await what(run)
            except AivailableError as error:
                self._world.trace.add(name, f"the operator is told: {error}")
                return str(error)
            return ""

        task = self._world.on_behalf(name, ask)
        assert task is not None
        return task
