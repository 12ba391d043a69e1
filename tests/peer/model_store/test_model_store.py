"""Model files: registered in place, fetched from a peer, resumed, and never believed unhashed."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fixtures.mesh import introduce, linked, start_nodes, stop_nodes

from aivailable.errors import GgufError, LinkError, LinkLost, StreamReset, WorkerError
from aivailable.peer.home import FileHome
from aivailable.peer.model_store import FileModelStore, transfer
from aivailable.peer.ports import MessageStream
from aivailable.wire.limits import WEIGHTS_CHUNK_BYTES
from aivailable.wire.peer import FetchFile, FileChunk

BODY = b"GGUF" + bytes(range(256)) * 10_000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Canned:
    """A stream that brings what it was given, then ends or breaks."""

    def __init__(self, *messages: Any) -> None:
        self.messages = deque(messages)
        self.sent: list[Any] = []
        self.resets: list[str] = []
        self.finished = False

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def receive(self) -> Any | None:
        message = self.messages.popleft() if self.messages else None
        if isinstance(message, Exception):
            raise message
        return message

    def finish(self) -> None:
        self.finished = True

    def reset(self, code: str, message: str = "") -> None:
        self.resets.append(code)


def make_store(tmp_path: Path, name: str = "home", **options: Any) -> FileModelStore:
    home = FileHome(tmp_path / name)
    home.close()
    models = tmp_path / name / "models"
    return FileModelStore(home, models, blocking=asyncio.to_thread, sleep=asyncio.sleep, **options)


def chunks(body: bytes, start: int = 0, size: int = 1_000_000) -> list[FileChunk]:
    return [
        FileChunk(at, body[at : at + size], len(body), at + size >= len(body))
        for at in range(start, len(body), size)
    ]


async def test_a_registered_file_is_used_in_place_and_remembered(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(BODY)
    store = make_store(tmp_path)
    status = await store.register(path)
    assert (status.digest, status.path, status.size_bytes) == (DIGEST, path, len(BODY))
    assert make_store(tmp_path).held() == {DIGEST: status}


async def test_a_known_file_is_not_hashed_again_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(BODY)
    store = make_store(tmp_path)
    await store.register(path)
    hashed: list[int] = []
    original = transfer.hash_open

    def spy(file: BinaryIO) -> Any:
        hashed.append(file.tell())
        return original(file)

    monkeypatch.setattr("aivailable.peer.model_store.store.hash_open", spy)
    await store.register(path)
    assert hashed == []
    path.write_bytes(BODY + b"more")
    assert store.held() == {}
    assert (await store.register(path)).digest != DIGEST
    assert hashed == [0]


async def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = tmp_path / "notes.txt"
    path.write_bytes(b"hello")
    with pytest.raises(GgufError, match=r"notes\.txt is not a GGUF"):
        await store.register(path)
    with pytest.raises(FileNotFoundError):
        await store.register(tmp_path / "absent.gguf")
    with pytest.raises(GgufError, match="no regular file"):
        await store.register(tmp_path)


async def test_a_drive_that_hangs_costs_one_question_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aivailable.peer.model_store.store.LOOK_DEADLINE_S", 0.05)
    store, path, answers = make_store(tmp_path), tmp_path / "model.gguf", threading.Event()

    def hang(_path: Path) -> None:
        answers.wait()

    try:
        with pytest.raises(GgufError, match=r"model\.gguf: its header was not read within"):
            await store.look(hang, path)
        assert await store.look(lambda path: path.name, path) == "model.gguf"
        assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        answers.set()


async def test_a_vanished_file_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(BODY)
    store = make_store(tmp_path)
    await store.register(path)
    path.unlink()
    assert store.held() == {}


def test_a_damaged_index_is_an_empty_one(tmp_path: Path) -> None:
    make_store(tmp_path)
    (tmp_path / "home" / "models.json").write_bytes(b'{"x": 3')
    assert make_store(tmp_path).held() == {}


async def test_a_fetched_file_is_whole_durable_and_held(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    status = await store.fetch(DIGEST, len(BODY), Canned(*chunks(BODY)))
    assert status.path == tmp_path / "home" / "models" / f"{DIGEST}.gguf"
    assert status.path.read_bytes() == BODY
    assert store.held() == {DIGEST: status}
    assert store.partial_bytes(DIGEST) == 0


async def test_a_broken_transfer_is_resumed_where_it_ended(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(LinkLost):
        await store.fetch(DIGEST, len(BODY), Canned(*chunks(BODY)[:1], LinkLost("cut")))
    assert store.held() == {}
    assert store.partial_bytes(DIGEST) == 1_000_000
    again = make_store(tmp_path)
    rest = chunks(BODY, start=again.partial_bytes(DIGEST))
    assert (await again.fetch(DIGEST, len(BODY), Canned(*rest))).path.read_bytes() == BODY


async def test_a_partial_that_is_whole_needs_no_more_bytes(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / "home" / "models" / f"{DIGEST}.part").write_bytes(BODY)
    end = FileChunk(len(BODY), b"", len(BODY), last=True)
    assert (await store.fetch(DIGEST, len(BODY), Canned(end))).path.read_bytes() == BODY


async def test_a_wrong_digest_removes_the_partial(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    wrong = BODY[:-1] + b"x"
    with pytest.raises(WorkerError, match="arrived damaged"):
        await store.fetch(DIGEST, len(BODY), Canned(*chunks(wrong)))
    assert store.partial_bytes(DIGEST) == 0
    assert store.held() == {}
    assert os.listdir(tmp_path / "home" / "models") == []


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [FileChunk(5, b"x", len(BODY))],
        [FileChunk(0, b"x", len(BODY) + 1)],
        [FileChunk(0, b"x", len(BODY), last=True)],
        [FileChunk(0, BODY + b"x", len(BODY), last=True)],
        [FetchFile("d")],
        [StreamReset("not_held", "")],
    ],
    ids=["nothing", "gap", "other-size", "early-end", "too-much", "other-message", "reset"],
)
async def test_a_peer_that_misbehaves_is_a_link_error(tmp_path: Path, messages: list[Any]) -> None:
    source = Canned(*messages)
    with pytest.raises(LinkError):
        await make_store(tmp_path).fetch(DIGEST, len(BODY), source)
    assert source.resets == ["done"]


async def test_a_full_disk_is_told_before_and_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    with pytest.raises(OSError, match=r"no space for model file .* --models") as before:
        await store.fetch(DIGEST, 2**60, Canned())
    assert before.value.errno == errno.ENOSPC

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "SYNC_EVERY_BYTES", 1)
    monkeypatch.setattr(transfer.os, "fdatasync", full)
    with pytest.raises(OSError, match="no space for model file"):
        await store.fetch(DIGEST, len(BODY), Canned(*chunks(BODY)))


async def test_two_fetches_of_one_file_do_not_mix(tmp_path: Path) -> None:
    store = make_store(tmp_path)

    class Never(Canned):
        async def receive(self) -> Any | None:
            return await asyncio.get_running_loop().create_future()

    first = asyncio.ensure_future(store.fetch(DIGEST, len(BODY), Never()))
    await asyncio.wait([first], timeout=0)
    with pytest.raises(LinkError, match="being fetched already"):
        await store.fetch(DIGEST, len(BODY), Canned(*chunks(BODY)))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_the_pace_is_kept(tmp_path: Path) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    home = FileHome(tmp_path / "home")
    store = FileModelStore(
        home,
        tmp_path / "models",
        blocking=asyncio.to_thread,
        sleep=sleep,
        pace_bytes_per_s=1000,
    )
    await store.fetch(DIGEST, len(BODY), Canned(*chunks(BODY)))
    assert len(pauses) == 3
    assert pauses[-1] == pytest.approx(len(BODY) / 1000, rel=0.01)
    home.close()


async def test_sending_starts_at_the_offset_and_ends_with_last(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(BODY)
    store = make_store(tmp_path)
    await store.register(path)
    stream = Canned()
    await store.send(DIGEST, 7, stream)
    assert b"".join(chunk.data for chunk in stream.sent) == BODY[7:]
    assert stream.sent[0].offset == 7
    assert len(stream.sent[0].data) == WEIGHTS_CHUNK_BYTES
    assert [chunk.last for chunk in stream.sent] == [False, False, True]
    assert stream.finished


async def test_what_is_not_held_or_not_there_is_not_sent(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    stream = Canned()
    with pytest.raises(LinkError):
        await store.send(DIGEST, 0, stream)
    path = tmp_path / "model.gguf"
    path.write_bytes(BODY)
    await store.register(path)
    with pytest.raises(LinkError):
        await store.send(DIGEST, len(BODY) + 1, stream)
    assert stream.resets == ["not_held", "bad_offset"]


async def test_a_file_travels_over_a_weights_connection(tmp_path: Path) -> None:
    nodes = await start_nodes(tmp_path, 2)
    introduce(*nodes)
    await linked(*nodes)
    asker, holder = nodes
    path = tmp_path / "model.gguf"
    path.write_bytes(BODY)
    theirs, ours = make_store(tmp_path, "theirs"), make_store(tmp_path, "ours")
    await theirs.register(path)

    async def serve(node: str, first: FetchFile, stream: MessageStream) -> None:
        await theirs.send(first.digest, first.offset, stream)

    holder.listener.handler = serve
    part = tmp_path / "ours" / "models" / f"{DIGEST}.part"
    part.write_bytes(BODY[:1234])
    source = await asker.links.fetch_stream(
        holder.id, FetchFile(DIGEST, ours.partial_bytes(DIGEST))
    )
    status = await ours.fetch(DIGEST, len(BODY), source)
    assert status.path.read_bytes() == BODY
    missing = await asker.links.fetch_stream(holder.id, FetchFile("0" * 64))
    with pytest.raises(StreamReset, match="not_held"):
        await ours.fetch("0" * 64, 10, missing)
    await stop_nodes(nodes)
