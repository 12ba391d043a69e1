"""Strangers at the join port and false announcements, against real peers on hosts of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.netns import Lan
from fixtures.peers import Peers
from lan.workload import host_peer

from aivailable.config import LINK_PORT_DEFAULT

SILENT_CONNECTIONS = 27
JOIN_LIMIT_S = 20.0
"""Of the newcomer beside the attack: looking around takes 4 s, a busy machine the rest."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HOLD = """
import socket, ssl, sys, time
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols([])
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []
print("ready", flush=True)
while True:
    while len(held) < count:
        try:
            raw = socket.create_connection((host, port), 5)
            held.append(context.wrap_socket(raw, server_hostname="join"))
        except OSError:
            time.sleep(0.05)
    time.sleep(0.2)
    for one in held[:]:
        one.setblocking(False)
        try:
            if one.recv(65536) == b"":
                held.remove(one)
        except ssl.SSLWantReadError:
            pass
        except OSError:
            held.remove(one)
"""


ANNOUNCE = """
import socket, sys, time
from zeroconf import ServiceInfo, Zeroconf
address, count = sys.argv[1], int(sys.argv[2])
silent = []
for _ in range(count):
    one = socket.socket()
    one.bind((address, 0))
    one.listen(64)
    silent.append(one)
speaker = Zeroconf(interfaces=[address])
kind = "_aivailable._tcp.local."
for number, one in enumerate(silent):
    label = f"aaaa{number}-i{number}"
    said = {"v": "1", "id": f"aaaa{number}", "inst": f"i{number}", "cid": f"0000000{number}",
            "cn": "default", "api": "1", "win": "1"}
    info = ServiceInfo(kind, f"{label}.{kind}", port=one.getsockname()[1], properties=said,
                       server=f"{label}.local.", parsed_addresses=[address])
    speaker.register_service(info, cooperating_responders=True)
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def attacker(hosts: Lan, number: int, program: str, *arguments: str) -> Iterator[None]:
    """That program on that host, until the end."""
    command = [*hosts.prefix(number), sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


async def _joined_beside(peers: Peers, limit_s: float) -> None:
    """The second peer comes in."""
    peers.peers[1].start()
    await peers.peers[1].listening()
    await peers.until("both are in", lambda states: all(
        len(state["nodes"]) == 2 for state in states), limit_s=limit_s)  # fmt: skip


async def test_silent_connections_keep_nobody_out(hosts: Lan, tmp_path: Path) -> None:
    async with Peers([host_peer(hosts, number, tmp_path) for number in (1, 2)]) as peers:
        founder = peers.peers[0]
        founder.start()
        await founder.listening()
        await peers.until("founded", lambda s: len(s[0]["nodes"]) == 1, [founder])
        with attacker(
            hosts, 3, HOLD, hosts.address(1), str(LINK_PORT_DEFAULT), str(SILENT_CONNECTIONS)
        ):
            await asyncio.sleep(2.0)
            await _joined_beside(peers, JOIN_LIMIT_S)


async def test_false_announcements_do_not_delay_a_newcomer(hosts: Lan, tmp_path: Path) -> None:
    """Six nodes with open windows and the smallest ids, whose ports stay silent."""
    async with Peers([host_peer(hosts, number, tmp_path) for number in (1, 2)]) as peers:
        founder = peers.peers[0]
        founder.start()
        await founder.listening()
        await peers.until("founded", lambda s: len(s[0]["nodes"]) == 1, [founder])
        with attacker(hosts, 3, ANNOUNCE, hosts.address(3), "6"):
            await _joined_beside(peers, JOIN_LIMIT_S)
