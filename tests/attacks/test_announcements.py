"""A flood of mDNS answers about our service, from a stranger on the LAN, against a real peer."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.netns import Lan
from fixtures.peers import Peers
from lan.workload import host_peer

MIB = 1 << 20
GROWTH_MAX_BYTES = 50 * MIB
CI_MIB = 24
FULL_MIB = 312
"""What took a peer from 154 to 640 MB."""
SETTLE_S = 2.0

FLOOD = """
import socket, struct, sys, time
address, left = sys.argv[1], int(sys.argv[2]) << 20
speaker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
speaker.bind((address, 0))
kind = b"\\x0b_aivailable\\x04_tcp\\x05local\\0"
number = 0
while left > 0:
    head = kind + struct.pack("!HHIH", 12, 1, 4500, 2 + 1 + 60) + b"\\x3c"
    records = [head + b"%060d" % (number + n) + b"\\xc0\\x0c" for n in range(80)]
    number += 80
    data = struct.pack("!HHHHHH", 0, 0x8400, 0, 80, 0, 0) + b"".join(records)
    speaker.sendto(data, ("224.0.0.251", 5353))
    left -= len(data)
    time.sleep(0.0008)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("flood_mib", [CI_MIB, pytest.param(FULL_MIB, marks=pytest.mark.long)])
async def test_a_flood_of_announcements_takes_little_memory(
    hosts: Lan, tmp_path: Path, flood_mib: int
) -> None:
    async with Peers([host_peer(hosts, 1, tmp_path)]) as peers:
        founder = peers.peers[0]
        founder.start()
        await founder.listening()
        await peers.until("founded", lambda states: len(states[0]["nodes"]) == 1)
        await asyncio.sleep(SETTLE_S)
        before = founder.rss_bytes()
        flood = (sys.executable, "-c", FLOOD, hosts.address(3), str(flood_mib))
        command = [*hosts.prefix(3), *flood]
        done = await asyncio.to_thread(subprocess.run, ["nice", "-n", "19", *command])
        assert done.returncode == 0
        await asyncio.sleep(SETTLE_S)
        grown = founder.rss_bytes() - before
        print(f"{flood_mib} MiB of answers: {before // MIB} MiB + {grown // MIB} MiB")
        assert grown < GROWTH_MAX_BYTES
        assert (await peers.ask(founder, "GET", "/cluster/v1/state")).status == 200
