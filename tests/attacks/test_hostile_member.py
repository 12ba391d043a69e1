"""An admitted observer that says whatever it likes: the others elect, plan and stay members.

The attacker has a member's identity and its place in the cluster, and real links to the three
voters; its own peer has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.homes import Homes
from fixtures.mesh import Listener
from fixtures.peers import PeerProcess, Peers, State

from aivailable.core.ids import CommandId
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import Command, MarkDown, ReportInventory, SetRole, TakeControl
from aivailable.core.state.records import Backend, Control, Device, Inventory, Role
from aivailable.peer.home import FileHome
from aivailable.peer.joining.cluster_file import ClusterFile
from aivailable.peer.links import TlsLinks
from aivailable.peer.links.identity import Identity
from aivailable.peer.links.trust import Trust
from aivailable.raft import codec
from aivailable.wire.peer import Heartbeat, RaftMessage, RpcCall, RpcReply

DEVICES = "cpu:64MiB"
FAR = 2**62
WATCH_S = 2.0
"""The old code logged 350 refused commands in each second of this."""
ENTRIES_MAX = 60
"""Of an hour without work: what the members themselves report meanwhile."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Attacker:
    """A member's links, without a peer behind them."""

    def __init__(self, home: Path) -> None:
        identity = Identity.load_or_create(home)
        file = ClusterFile.load(FileHome(home))
        assert file is not None
        self.node = identity.node
        self._file = file
        self.listener = Listener()
        self.links = TlsLinks(
            *(identity, Trust(identity)),
            port=0,
            rng=random.Random(1),
            version="0.1.0",
            hosts=("127.0.0.1",),
        )
        self._seq = 10**9

    async def start(self, others: int) -> None:
        await self.links.start(self.listener)
        self.links.set_contacts(self._file.cluster_id, self._file.contacts())
        await self.listener.until(lambda: len(self.links.connected()) == others)

    def to_all(self, message: Any) -> None:
        for node in self.links.connected():
            self.links.send(node, message)

    def raft(self, message: dict[str, Any], term: int) -> None:
        self.to_all(RaftMessage(codec.encode(term, message)))

    def propose(self, body: Any, control: Control | None = None) -> None:
        self._seq += 1
        command = Command(CommandId(self.node, self._seq), body, "planner", control=control)
        entry = b"\x00" + encode_command(command)
        self.raft({"type": "submit", "command": entry}, 1)

    def storm(self, term: int) -> None:
        """All that moved a term, an election, the log or the planner."""
        append = {"type": "append_entries", "term": term, "commit_index": 1}
        vote = {"term": term, "last_log_term": term, "last_log_index": term}
        for message in (
            {**append, "serialized": None},
            {**append, "prevLogIdx": 1, "prevLogTerm": 0, "entries": ()},
            {"type": "request_vote", **vote},
            {"type": "request_vote", **vote, "transfer": True},
            {"type": "pre_vote", **vote, "round": 1},
            {"type": "timeout_now", "term": term},
            {"type": "newer_term"},
        ):
            self.raft(message, term)
        self.propose(TakeControl(self.node, term))
        self.propose(SetRole(self.node, Role.VOTER), Control(self.node, term))
        for node in self.links.connected():
            self.propose(MarkDown(node, True), Control(self.node, term))


@contextlib.asynccontextmanager
async def attacking(homes: Homes, peers: Peers, folder: Path) -> AsyncIterator[Attacker]:
    """Four members; the one that does not vote becomes the attacker, the others are `peers`."""
    await homes.start(peers, folder, 4, DEVICES)
    states = await peers.states()
    voters = states[0]["voters"]
    (gone,) = [p for p, s in zip(peers.peers, states, strict=True) if s["here"] not in voters]
    gone.kill()
    peers.peers.remove(gone)
    attacker = Attacker(gone.home)
    try:
        await attacker.start(len(voters))
        yield attacker
    finally:
        await attacker.links.stop()


def leading(states: list[State], peers: Peers) -> PeerProcess:
    leader = states[0]["leader"]
    return next(p for p, s in zip(peers.peers, states, strict=True) if s["here"] == leader)


async def test_a_member_that_does_not_vote_ends_no_election_and_no_planning(
    homes: Homes, peers: Peers, tmp_path: Path
) -> None:
    async with attacking(homes, peers, tmp_path) as attacker:
        states = await peers.states()
        term, version = states[0]["term"], states[0]["version"]
        for ahead in (1, 1000, 2**50, FAR):
            attacker.storm(term + ahead)
        await asyncio.sleep(WATCH_S)
        states = await peers.states()
        assert [state["term"] for state in states] == [term] * 3
        assert states[0]["version"] - version < ENTRIES_MAX
        leader = leading(states, peers)
        leader.kill()
        alive = [peer for peer in peers.peers if peer is not leader]
        for _ in range(20):
            attacker.storm(term + 1)
            attacker.storm(FAR)
            await asyncio.sleep(0.05)
        peers.peers = alive
        await peers.until("another leads", lambda s: all(one["quorum"] for one in s), limit_s=15.0)
        await peers.deploy_fake(alive[0], "after")


async def test_a_member_takes_no_vote_for_good_and_its_numbers_harm_nobody(
    homes: Homes, peers: Peers, tmp_path: Path
) -> None:
    async with attacking(homes, peers, tmp_path) as attacker:
        states = await peers.states()
        leader = states[0]["leader"]
        others = [node for node in states[0]["voters"] if node != leader]
        for number, node in enumerate(others * 2, start=1):
            attacker.links.send(leader, RpcCall(number, "retire", {"node": node}))
        attacker.to_all(Heartbeat(attacker.node, "i", FAR, FAR, term=FAR, window_left_s=FAR))
        wild = Device("d0", "x", "x", Backend.CPU, 0, 1 << 30, speed=float("inf"))
        attacker.propose(ReportInventory(Inventory(attacker.node, (wild,), ("fake",))))

        def refused() -> int:
            replies = [e[2] for e in attacker.listener.of("message") if isinstance(e[2], RpcReply)]
            return sum(not reply.ok for reply in replies)

        await attacker.listener.until(lambda: refused() >= 2)
        states = await peers.states()
        assert len(states[0]["voters"]) >= 2, "one vote at a time"
        await peers.deploy_fake(peers.peers[0], "after")

        def whole(found: list[State]) -> bool:
            return all(len(state["voters"]) == 3 for state in found)

        await peers.until("the vote comes back", whole, limit_s=40.0)
