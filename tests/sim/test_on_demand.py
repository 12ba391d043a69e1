"""Real peers on virtual time: a model loads when somebody asks, and goes when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from fixtures.virtual_time import elapse
from sim.loop import SimLoop
from sim.run import unformed
from sim.workload import GIB, fake_deployment
from sim.world import Running, World

from aivailable.core.state.commands import Body, PutDeployment
from aivailable.core.state.records import Deployment, Status
from aivailable.core.state.state import State
from aivailable.errors import RequestError
from aivailable.peer.service import Routing
from aivailable.wire.generation import Finished, Generate

FORM_LIMIT_S = 90.0
LIMIT_S = 60.0
TTL_S = 20
SEED = 3


class Story:
    """Three machines that are one cluster."""

    def __init__(self, seed: int = SEED) -> None:
        self.world = World(seed, 3, SimLoop())
        self._count = 0

    def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            for name in self.world.names:
                self.world.boot(name)
            await self.until(lambda: not unformed(self.world), FORM_LIMIT_S)
            await scenario()

        try:
            self.world.loop.run(main(), limit_s=1500.0)
        finally:
            self.world.loop.close()
        assert self.world.checker.problems == []

    def state(self) -> State:
        return max(self.world.states().values(), key=lambda state: state.version)

    def runs(self, name: str) -> int:
        return sum(entry.status is Status.READY for entry in self.state().replicas_of(name))

    async def until(self, true: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        end_s = self.world.loop.time() + limit_s
        while not true():
            assert self.world.loop.time() < end_s, self.world.picture()
            await elapse(0.25)

    async def behalf(self, name: str, work: Callable[[Running], Awaitable[object]]) -> object:
        task = self.world.on_behalf(name, work)
        assert task is not None
        return await task

    async def deploy(self, wanted: Deployment) -> None:
        async def put(run: Running) -> None:
            body: Body = PutDeployment(wanted)
            await run.peer.changes.propose(body, actor="operator", reason="test")

        await self.behalf(self.world.leader() or "n1", put)
        states = self.world.states
        await self.until(lambda: all(wanted.name in s.deployments for s in states().values()))

    async def ask(self, at: str, deployment: str, *, wait_s: float = 60.0, tokens: int = 4) -> str:
        """How a request ended: done, or the code of its refusal."""
        self._count += 1
        request = Generate(
            f"ask-{self._count}", deployment, prompt="a b", max_tokens=tokens, deadline_s=90.0
        )

        async def answer(run: Running) -> str:
            routing = Routing(run.peer.node, wait_s=wait_s)
            try:
                async for event in run.peer.inference.generate(request, "", routing):
                    if isinstance(event, Finished):
                        return "done"
            except RequestError as error:
                return error.code
            return "nothing"

        return str(await self.behalf(at, answer))


def on_demand(name: str, need_bytes: int = GIB, **changes: object) -> Deployment:
    base = fake_deployment(name, need_bytes, 1)
    return replace(base, **{"replicas_min": 0, "idle_ttl_s": TTL_S, **changes})  # type: ignore[arg-type]


def test_loads_when_asked_answers_and_unloads_after_its_time() -> None:
    story = Story()

    async def scenario() -> None:
        await story.deploy(on_demand("chat"))
        await elapse(5.0)
        assert story.state().replicas == {}
        begun_s = story.world.loop.time()
        assert await story.ask("n2", "chat") == "done"
        assert story.world.loop.time() - begun_s < 8.0
        assert await story.ask("n3", "chat") == "done"
        used_s = story.world.loop.time()
        await story.until(lambda: not story.state().replicas)
        assert story.world.loop.time() - used_s == pytest.approx(TTL_S, abs=4.0)
        assert await story.ask("n1", "chat") == "done", "and again"

    story.play(scenario)


def test_the_load_goes_on_when_its_client_has_gone() -> None:
    story = Story()

    async def scenario() -> None:
        await story.deploy(on_demand("chat"))
        assert await story.ask("n2", "chat", wait_s=0.1) == "model_not_ready"
        await story.until(lambda: story.runs("chat") == 1)

    story.play(scenario)


def test_a_new_controller_keeps_what_was_just_used() -> None:
    story = Story()

    async def scenario() -> None:
        await story.deploy(on_demand("chat"))
        assert await story.ask("n2", "chat") == "done"
        used_s = story.world.loop.time()
        leader = story.world.leader()
        (held,) = story.state().replicas.values()
        assert leader is not None
        await elapse(TTL_S / 2)
        if story.world.machine(leader).node != held.node:
            story.world.kill(leader)
        while story.world.loop.time() < used_s + TTL_S - 2:
            assert story.runs("chat") == 1
            await elapse(0.5)
        await story.until(lambda: not story.state().replicas, TTL_S)

    story.play(scenario)


def test_two_models_that_fit_one_at_a_time_take_turns() -> None:
    story = Story()

    async def scenario() -> None:
        most = max(d.total_bytes for machine in story.world.machines for d in machine.devices)
        for name in ("left", "right"):
            await story.deploy(on_demand(name, most, idle_ttl_s=600))
        begun_s = story.world.loop.time()
        for turn, name in enumerate(("left", "right") * 2):
            assert await story.ask(story.world.names[turn % 3], name) == "done"
        assert story.world.loop.time() - begun_s < 60.0

    story.play(scenario)


def test_a_paused_machine_is_empty_until_its_time_is_over() -> None:
    story = Story()

    async def scenario() -> None:
        need = min(device.total_bytes for m in story.world.machines for device in m.devices)
        await story.deploy(replace(fake_deployment("chat", need, 3), replicas_max=3))
        await story.until(lambda: story.runs("chat") == 3)
        node = story.world.machine("n2").node

        async def pause(run: Running) -> object:
            return await run.peer.members.pause(node, 30)

        await story.behalf("n1", pause)
        begun_s = story.world.loop.time()
        launcher = story.world.running["n2"].launcher
        await story.until(lambda: not launcher.living(), 5.0)
        assert await story.ask("n2", "chat") == "done", "the others serve"
        while story.world.loop.time() < begun_s + 29.0:
            assert launcher.living() == []
            assert story.runs("chat") <= 2
            await elapse(0.5)
        await story.until(lambda: story.runs("chat") == 3, 15.0)

    story.play(scenario)


def test_requests_that_queue_bring_a_second_replica_that_goes_again() -> None:
    story = Story()

    async def scenario() -> None:
        await story.deploy(on_demand("chat", replicas_min=1, replicas_max=2))
        await story.until(lambda: story.runs("chat") == 1)
        asking = [
            asyncio.ensure_future(story.ask(story.world.names[n % 3], "chat", tokens=200))
            for n in range(16)
        ]
        await story.until(lambda: story.runs("chat") == 2)
        assert all(end == "done" for end in await asyncio.gather(*asking))
        await story.until(lambda: story.runs("chat") == 1, 2 * TTL_S)

    story.play(scenario)
