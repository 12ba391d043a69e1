"""Files that are no models, named to a real peer by somebody with an admin key."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

from fixtures.peers import MIB, Peers, cluster_name, loopback_peer

from aivailable.gguf.header import HEADER_MAX_BYTES
from aivailable.gguf.reader import TEXTS_SKIPPED_MAX
from aivailable.peer.model_store.store import LOOKERS_MAX

ANSWER_LIMIT_S = 30.0
GROWTH_MAX_BYTES = LOOKERS_MAX * HEADER_MAX_BYTES + 50 * MIB
"""The headers that are read at the same time, and what else an answer takes."""


def header(count: int, kind: int, items: int) -> bytes:
    """A header that says `count` keys, and the first of them: an array of `items` of that kind."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, count)
    return head + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, items)


def sparse(path: Path, head: bytes) -> Path:
    """2 GiB that take no room on the disk."""
    path.write_bytes(head)
    os.truncate(path, 2 << 30)
    return path


async def test_no_file_holds_the_node_or_its_memory(peers: Peers, tmp_path: Path) -> None:
    peer = loopback_peer(tmp_path / "p", cluster_name(), devices="cpu:64MiB")
    peers.peers = [peer]
    peer.start()
    await peer.listening()
    await peers.until("it leads", lambda states: bool(states[0]["controller"]))
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    files = [
        pipe,
        tmp_path,
        Path("/dev/zero"),
        sparse(tmp_path / "texts.gguf", header(1, 8, 8 << 20)),
        sparse(tmp_path / "some.gguf", header(1, 8, TEXTS_SKIPPED_MAX)),
        sparse(tmp_path / "numbers.gguf", header(1000, 10, 8 << 20)),
        sparse(tmp_path / "long.gguf", header(1, 8, 1) + struct.pack("<Q", 1 << 62)),
    ]
    before = peer.rss_bytes()
    asked = [
        asyncio.ensure_future(
            peers.ask(peer, "POST", path, {"model": str(file)}, limit_s=ANSWER_LIMIT_S)
        )
        for file in files
        for path in ("/cluster/v1/fit", "/cluster/v1/deployments")
    ]
    # Meanwhile the node answers others.
    for _ in range(10):
        assert (await peers.ask(peer, "GET", "/healthz", limit_s=2.0)).status == 200
        await asyncio.sleep(0.05)
    for answer in await asyncio.gather(*asked):
        assert answer.status == 400, answer.body
        assert answer.body["error"]["code"] == "bad_model_file", answer.body
    assert peer.rss_bytes() - before < GROWTH_MAX_BYTES
    page = (await peers.ask(peer, "GET", "/metrics")).body
    (stall,) = [line for line in page.splitlines() if line.startswith("aivailable_loop_longest")]
    assert float(stall.split()[-1]) < 1.0, "the loop stood still"
