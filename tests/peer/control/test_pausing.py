"""A pause: how long, by this node's clock, and who may ask for one."""

from __future__ import annotations

import pytest
from fixtures.cluster_parts import FakeCalls, FakeView
from fixtures.states import equipped
from fixtures.virtual_time import elapse, run
from sim.ports import SimClock

from aivailable.errors import AivailableError, LinkLost, RequestError
from aivailable.peer.control.pausing import PAUSE_MAX_S, OwnerPause, pause_node


def test_it_runs_out_and_can_be_ended_and_prolonged() -> None:
    async def scenario() -> None:
        told: list[int] = []
        pause = OwnerPause(SimClock(), lambda: told.append(1))
        assert pause.left_s() == 0
        pause.set(60)
        await elapse(0.5)
        assert pause.left_s() == 60, "rounded up: it is not over"
        await elapse(58.6)
        assert pause.left_s() == 1
        await elapse(1.0)
        assert pause.left_s() == 0
        pause.set(60)
        pause.set(3600)
        assert pause.left_s() == 3600
        pause.set(0)
        assert pause.left_s() == 0
        assert len(told) == 4

    run(scenario())


@pytest.mark.parametrize("given", ["", "-1", "1.5", "x", str(PAUSE_MAX_S + 1), "9" * 40])
def test_a_member_that_asks_for_nonsense_is_refused(given: str) -> None:
    async def scenario() -> None:
        pause = OwnerPause(SimClock(), lambda: None)
        with pytest.raises(AivailableError):
            await pause.called("n1", {"duration_s": given} if given else {})
        assert pause.left_s() == 0

    run(scenario())


def test_here_or_at_another_member() -> None:
    async def scenario() -> None:
        pause, calls = OwnerPause(SimClock(), lambda: None), FakeCalls()
        cluster = equipped(2)
        replica = cluster.place(node="n2")

        async def ask(node: str, duration_s: int, by: FakeCalls = calls) -> tuple[str, ...]:
            done = await pause_node(
                node,
                duration_s,
                cluster=FakeView("n1", cluster),
                pause=pause,
                rpc=by,  # type: ignore[arg-type]
            )
            return done.ending

        assert await ask("n1", 60) == ()
        assert pause.left_s() == 60
        assert await ask("n2", 60) == (replica,)
        assert calls.asked == [("n2", "pause", {"duration_s": "60"})]
        assert await ask("n2", 0) == ()
        with pytest.raises(RequestError) as caught:
            await ask("n2", 60, FakeCalls({"n2": LinkLost("no link")}))
        assert (caught.value.status, caught.value.code) == (503, "unreachable")
        with pytest.raises(RequestError) as caught:
            await ask("nobody", 60)
        assert caught.value.status == 404

    run(scenario())
