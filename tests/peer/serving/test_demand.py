"""What was asked for and not loaded: told to the others until it is, or nobody wants it."""

from __future__ import annotations

import asyncio

from fixtures.virtual_time import elapse, run
from sim.ports import SimClock

from aivailable.core.planning.idle_policy import ASKED_MAX_MS
from aivailable.peer.serving.demand import Demands
from aivailable.wire.limits import DEMANDS_MAX
from aivailable.wire.peer import Demand


def test_waiting_is_counted_and_the_ask_outlives_its_clients() -> None:
    async def scenario() -> None:
        told: list[float] = []
        demands = Demands(SimClock(), lambda: told.append(asyncio.get_running_loop().time()))
        demands.wait("chat")
        demands.wait("chat")
        assert len(told) == 1, "the second one is no news"
        assert demands.sample() == (Demand("chat", 2, 0),)
        await elapse(3.0)
        demands.leave("chat")
        assert demands.sample() == (Demand("chat", 1, 0),)
        demands.leave("chat")
        await elapse(2.0)
        assert demands.sample() == (Demand("chat", 0, 2000),)
        demands.wait("chat")
        assert len(told) == 2
        demands.served("chat")
        assert demands.pending() == ("chat",), "somebody waits still"
        demands.leave("chat")
        demands.served("chat")
        assert demands.pending() == ()
        demands.leave("chat")
        assert demands.sample() == ()

    run(scenario())


def test_what_nobody_wants_any_more_is_forgotten() -> None:
    async def scenario() -> None:
        demands = Demands(SimClock(), lambda: None)
        demands.wait("held")
        demands.wait("left")
        demands.leave("left")
        await elapse(ASKED_MAX_MS / 1000 - 1)
        assert demands.pending() == ("held", "left")
        await elapse(2.0)
        assert demands.pending() == ("held",)

    run(scenario())


def test_a_heartbeat_carries_the_waiting_and_the_latest_and_no_more() -> None:
    async def scenario() -> None:
        demands = Demands(SimClock(), lambda: None)
        demands.wait("waits")
        for number in range(DEMANDS_MAX + 5):
            await elapse(0.5)
            demands.wait(f"m{number}")
            demands.leave(f"m{number}")
        names = [demand.deployment for demand in demands.sample()]
        assert len(names) == DEMANDS_MAX
        assert "waits" in names
        assert f"m{DEMANDS_MAX + 4}" in names
        assert "m0" not in names

    run(scenario())
