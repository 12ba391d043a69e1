"""The simulation's own parts: a fault without effect or a blind checker would prove nothing."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fixtures.mesh import Listener
from fixtures.virtual_time import elapse
from sim.checks import Checker
from sim.faults import Damage
from sim.hardware import LINK_PORT, make_machine
from sim.links import SimLinks, Switchboard
from sim.loop import Process, SimLoop
from sim.network import Network
from sim.ports import SimHome
from sim.trace import Trace
from sim.worker import expected_answer, next_token, prompt_ids
from sim.workload import make_key

from aivailable.core.ids import CommandId
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import Command, PutKey
from aivailable.core.state.records import Cluster, CommandOutcome, Member
from aivailable.core.state.state import State
from aivailable.errors import LinkLost, StreamReset
from aivailable.peer.ports import Contact, MessageStream
from aivailable.wire.generation import Cancel, Generate, Tokens
from aivailable.wire.peer import RaftMessage

NAMES = ("a", "b")


class Echo:
    """Sends back what a stream brings. `resets`: the codes of streams that the other side ended."""

    def __init__(self) -> None:
        self.resets: list[str] = []

    async def __call__(self, node: str, first: Any, stream: MessageStream) -> None:
        try:
            while (message := await stream.receive()) is not None:
                await stream.send(message)
        except StreamReset as error:
            self.resets.append(error.code)


class Cable:
    """Two processes, a and b, and the network between them."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.damage = Damage(random.Random(1))
        self.trace = Trace(loop.time)
        self.network = Network(loop, random.Random(2), self.damage, self.trace)
        self.network.start()
        board = Switchboard(self.network)
        self.echo = Echo()
        self.listeners = {name: Listener(self.echo) for name in NAMES}
        self.processes = {name: Process(name, 1) for name in NAMES}
        self.links = {
            name: SimLinks(board, self.processes[name], name, f"ip {name}", "i", "1")
            for name in NAMES
        }

    def got(self, name: str) -> list[Any]:
        """The control messages that came to a process."""
        return [message for _, _, message in self.listeners[name].of("message")]

    async def connect(self, clusters: tuple[str, str] = ("c", "c")) -> None:
        for name, cluster in zip(NAMES, clusters, strict=True):
            await self.links[name].start(self.listeners[name])
            contacts = tuple(Contact(other, b"", ((f"ip {other}", LINK_PORT),)) for other in NAMES)
            self.links[name].set_contacts(cluster, contacts)
        await elapse(3.0)


def run(scenario: Callable[[Cable], Awaitable[None]]) -> None:
    loop = SimLoop()

    async def main() -> None:
        await scenario(Cable(loop))

    try:
        loop.run(main(), limit_s=120.0)
    finally:
        loop.close()


def test_links_need_one_cluster_and_carry_messages_in_order() -> None:
    async def scenario(cable: Cable) -> None:
        await cable.connect()
        assert cable.links["a"].connected() == ("b",)
        assert [node for _, node, _ in cable.listeners["b"].of("up")] == ["a"]
        for number in range(50):
            assert cable.links["a"].send("b", RaftMessage(bytes([number])))
        await elapse(1.0)
        assert [message.data[0] for message in cable.got("b")] == list(range(50))

    run(scenario)


def test_another_cluster_is_refused() -> None:
    async def scenario(cable: Cable) -> None:
        await cable.connect(("c", "other"))
        assert cable.links["a"].connected() == ()
        assert {code for *_, code in cable.listeners["a"].of("refused")} == {"other_cluster"}

    run(scenario)


def test_a_short_cut_delays_and_a_long_one_breaks() -> None:
    async def scenario(cable: Cable) -> None:
        await cable.connect()
        cable.damage.cut("a", "b", cable.loop.time())
        cable.links["a"].send("b", RaftMessage(b"late"))
        await elapse(1.0)
        assert cable.got("b") == []
        cable.damage.heal()
        await elapse(0.5)
        assert cable.got("b") == [RaftMessage(b"late")]
        cable.damage.cut("a", "b", cable.loop.time())
        await elapse(3.0)
        assert cable.links["b"].connected() == ()
        for listener in cable.listeners.values():
            assert [reason for *_, reason in listener.of("down")] == ["silent"]
        cable.damage.heal()
        await elapse(2.0)
        assert cable.links["b"].connected() == ("a",)

    run(scenario)


def test_loss_takes_control_messages_and_never_a_stream() -> None:
    async def scenario(cable: Cable) -> None:
        await cable.connect()
        cable.damage.loss = 0.5
        stream = await cable.links["a"].open_stream("b", Generate("r", "d"))
        for number in range(100):
            cable.links["a"].send("b", RaftMessage(b"x"))
            await stream.send(Tokens("r", (number,), ""))
            echo = await stream.receive()
            assert isinstance(echo, Tokens)
            assert echo.ids == (number,)
        stream.finish()
        assert await stream.receive() is None
        assert 20 < len(cable.got("b")) < 80

    run(scenario)


def test_a_stream_ends_by_reset_and_by_the_death_of_its_host() -> None:
    async def scenario(cable: Cable) -> None:
        await cable.connect()
        first = await cable.links["a"].open_stream("b", Generate("r", "d"))
        await elapse(0.5)
        first.reset("cancelled")
        await elapse(0.5)
        assert cable.echo.resets == ["cancelled"]
        second = await cable.links["a"].open_stream("b", Generate("r", "d"))
        await elapse(0.5)
        victim = cable.processes["b"]
        victim.alive = False
        cable.network.process_died(victim, power=False)
        cable.loop.kill(victim)
        with pytest.raises(LinkLost):
            await second.receive()
        with pytest.raises(LinkLost):
            await second.send(Cancel("r"))
        await elapse(0.5)
        assert victim.unfinished() == []

    run(scenario)


def test_a_dead_process_writes_nothing_more() -> None:
    machine, process = make_machine(1, random.Random(0)), Process("n1", 1)
    home = SimHome(machine, process)
    home.save("fact", b"old")
    process.alive = False
    home.save("fact", b"new")
    home.remove("fact")
    assert machine.files == {"fact": b"old"}


def test_the_ledger_complains_about_real_bytes() -> None:
    machine = make_machine(1, random.Random(0))
    heard: list[str] = []
    machine.ledger.complain = heard.append
    device = machine.devices[0]
    machine.ledger.occupy(1, {device.device_id: device.total_bytes})
    assert heard == []
    machine.ledger.occupy(2, {device.device_id: 1})
    assert len(heard) == 1
    machine.ledger.release(1)
    assert machine.ledger.held(device.device_id) == 1


def checker_of_two() -> tuple[Checker, Process, Process]:
    return Checker(Trace(lambda: 0.0)), Process("a", 1), Process("b", 1)


def command(reason: str) -> bytes:
    return encode_command(Command(CommandId("n", 1), PutKey(make_key(reason)), "op", reason))


def at_version(version: int) -> State:
    founder = Member("n", "n", b"certificate")
    return State(version=version, cluster=Cluster("c", "c", "n", 0), members={"n": founder})


def test_the_checker_sees_two_histories() -> None:
    checker, one, other = checker_of_two()
    accepted = CommandOutcome(accepted=True)
    checker.applied(one, command("x"), at_version(0), at_version(1), accepted)
    checker.applied(other, command("x"), at_version(0), at_version(1), accepted)
    assert checker.problems == []
    checker.applied(one, command("y"), at_version(1), at_version(2), accepted)
    checker.applied(other, command("z"), at_version(1), at_version(2), accepted)
    assert len(checker.problems) == 1


def test_the_checker_sees_lost_acknowledgements_and_two_leaders() -> None:
    checker, one, other = checker_of_two()
    checker.applied(
        one, command("kept"), at_version(0), at_version(1), CommandOutcome(accepted=True)
    )
    checker.acknowledged("c", "kept")
    checker.judge_promises("c")
    assert checker.problems == []
    checker.refused("c", "never")
    checker.judge_promises("c")
    assert checker.problems == []
    checker.acknowledged("c", "lost")
    checker.judge_promises("c")
    checker.leads(one, "c", 3)
    checker.leads(one, "c", 3)
    assert len(checker.problems) == 1
    checker.leads(other, "c", 3)
    assert len(checker.problems) == 2


def test_an_answer_is_a_function_of_its_prompt() -> None:
    ids = prompt_ids(Generate("r", "d", prompt="one two"))
    first = next_token(ids)
    second = next_token((*ids, first))
    assert expected_answer("one two", 2) == f"t{first} t{second} "
    assert expected_answer("two one", 2) != expected_answer("one two", 2)
