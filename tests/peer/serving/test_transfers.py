"""Model files between members: one transfer a digest, sources in turn, resumed, no storm."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.cluster_parts import FakeView
from fixtures.peer_ports import FakeStream, World, turns
from fixtures.states import DIGEST, equipped
from fixtures.virtual_time import elapse, run

from aivailable.core.state.commands import ReportCopy
from aivailable.core.state.state import State
from aivailable.errors import AivailableError, LinkLost, StreamReset, WorkerError
from aivailable.peer.ports import FileStatus
from aivailable.peer.serving.transfers import RETRY_S, SENDING_MAX, SOURCE_WAIT_S, Transfers
from aivailable.wire.peer import FetchFile

Ends = list[tuple[str, AivailableError | OSError | None]]


class Stage:
    """n1 holds nothing; n2 and n3 hold the file."""

    def __init__(self) -> None:
        self.world = World()
        cluster = equipped(3)
        cluster.must(ReportCopy("n2", DIGEST, True), by="n2")
        cluster.must(ReportCopy("n3", DIGEST, True), by="n3")
        self.state: State = cluster.state
        # n1 registered it, and is asked here as if it had lost the file.
        self.state = replace(self.state, copies={DIGEST: ("n2", "n3")})
        self.world.links.peers = ["n2", "n3"]
        self.ends: Ends = []
        self.transfers = Transfers(
            self.world.ports(),
            FakeView("n1", self),
            lambda digest, error: self.ends.append((digest, error)),
        )

    @property
    def asked(self) -> list[tuple[str, FetchFile]]:
        return [(node, first) for node, first, _ in self.world.links.opened]


def test_wanting_twice_fetches_once() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.store.gate = asyncio.Event()
        stage.transfers.want(DIGEST)
        stage.transfers.want(DIGEST)
        await turns()
        stage.transfers.want(DIGEST)
        stage.world.store.gate.set()
        await turns()
        assert stage.world.store.fetched == [DIGEST]
        assert stage.ends == [(DIGEST, None)]

    run(scenario())


def test_sources_are_tried_in_turn_and_resumed_where_it_stopped() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.store.partial[DIGEST] = 17
        stage.world.store.fetch_errors = [LinkLost("cut")]
        stage.transfers.want(DIGEST)
        await turns()
        assert stage.asked == [("n2", FetchFile(DIGEST, 17)), ("n3", FetchFile(DIGEST, 17))]
        assert stage.ends == [(DIGEST, None)]

    run(scenario())


def test_an_unreachable_source_and_a_damaged_file_are_only_one_source_lost() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.links.refuses = {"n2": "connection refused"}
        stage.transfers.want(DIGEST)
        await turns()
        assert stage.ends == [(DIGEST, None)]
        assert [node for node, _ in stage.asked] == ["n3"]

    run(scenario())


def test_the_last_error_is_told_and_no_retry_comes_too_early() -> None:
    async def scenario() -> None:
        stage = Stage()
        last = WorkerError("digest mismatch")
        stage.world.store.fetch_errors = [LinkLost("cut"), last]
        stage.transfers.want(DIGEST)
        await turns()
        assert stage.ends == [(DIGEST, last)]
        await elapse(1.0)
        stage.transfers.want(DIGEST)
        stage.transfers.want(DIGEST)
        await elapse(RETRY_S - 1.1)
        assert len(stage.asked) == 2
        await elapse(0.2)
        assert stage.ends[1:] == [(DIGEST, None)], "the wish was not lost"
        stage.transfers.want(DIGEST)
        await turns()
        assert len(stage.ends) == 2, "it is held"

    run(scenario())


def test_a_full_disk_ends_the_attempt_as_an_error() -> None:
    async def scenario() -> None:
        stage = Stage()
        error = OSError("no space left on device")
        stage.world.store.fetch_errors = [error]
        stage.transfers.want(DIGEST)
        await turns()
        assert stage.ends == [(DIGEST, error)]
        assert len(stage.asked) == 1, "another source would not help"

    run(scenario())


def test_a_holder_is_waited_for_but_not_for_ever() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stage = Stage()
        stage.world.links.peers = []
        stage.transfers.want(DIGEST)
        await elapse(SOURCE_WAIT_S - 1)
        stage.world.links.peers = ["n3"]
        await elapse(1.0)
        assert stage.ends == [(DIGEST, None)]
        stage.world.links.peers = []
        stage.world.store.files.clear()
        begun_s = loop.time()
        stage.transfers.want(DIGEST)
        await elapse(SOURCE_WAIT_S + 1)
        (_, error) = stage.ends[1]
        assert "no member that holds the file" in str(error)
        assert loop.time() - begun_s < SOURCE_WAIT_S + 2

    run(scenario())


def test_a_model_out_of_the_catalogue_is_not_fetched() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.transfers.want("ff" * 32)
        await turns()
        assert isinstance(stage.ends[0][1], WorkerError)
        assert stage.asked == []

    run(scenario())


def test_progress_is_a_share_of_the_file() -> None:
    async def scenario() -> None:
        stage = Stage()
        assert stage.transfers.progress({DIGEST: 60}) == 0.0
        stage.world.store.partial[DIGEST] = 45
        assert stage.transfers.progress({DIGEST: 60}) == pytest.approx(0.75)
        assert stage.transfers.progress({DIGEST: 60, "a1" * 32: 30}) == pytest.approx(0.5)
        stage.world.store.partial[DIGEST] = 1000
        assert stage.transfers.progress({DIGEST: 60}) == 1.0
        assert stage.transfers.progress({}) == 0.0

    run(scenario())


def test_what_is_held_is_sent_from_the_offset_and_what_is_not_is_refused() -> None:
    async def scenario() -> None:
        stage = Stage()
        near, far = FakeStream.pair()
        await stage.transfers.serve("n2", DIGEST, 0, far)
        with pytest.raises(StreamReset, match="not_held"):
            await near.receive()
        stage.world.store.files[DIGEST] = FileStatus(DIGEST, Path("/m"), 60)
        near, far = FakeStream.pair()
        await stage.transfers.serve("n2", DIGEST, 20, far)
        assert await near.receive() == (DIGEST, 20)
        assert await near.receive() is None

    run(scenario())


def test_only_so_many_are_sent_at_once() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.world.store.files[DIGEST] = FileStatus(DIGEST, Path("/m"), 60)
        stage.world.store.gate = asyncio.Event()
        sending = [
            asyncio.ensure_future(stage.transfers.serve("n2", DIGEST, 0, FakeStream.pair()[1]))
            for _ in range(SENDING_MAX)
        ]
        await turns()
        near, far = FakeStream.pair()
        await stage.transfers.serve("n3", DIGEST, 0, far)
        with pytest.raises(StreamReset, match="busy"):
            await near.receive()
        stage.world.store.gate.set()
        await asyncio.gather(*sending)
        near, far = FakeStream.pair()
        await stage.transfers.serve("n3", DIGEST, 0, far)
        assert await near.receive() == (DIGEST, 0)

    run(scenario())
