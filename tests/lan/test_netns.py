"""The LAN itself: the test reaches its hosts, and nothing else of this machine is heard there."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.netns import Lan, lan

GROUP, PORT = "224.0.0.251", 15353
WEB_PORT = 8000
HEAR_LIMIT_S = 10.0
REACH_LIMIT_S = 10.0

LISTEN = f"""
import socket, struct, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", {PORT}))
group = socket.inet_aton("{GROUP}") + socket.inet_aton(sys.argv[1])
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
sock.settimeout({HEAR_LIMIT_S})
print("listening", flush=True)
print(sock.recv(100).decode(), flush=True)
"""
SAY = f"""
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
sock.sendto(sys.argv[2].encode(), ("{GROUP}", {PORT}))
"""


def say(words: str, address: str, *prefix: str) -> None:
    """One datagram to the group, from the interface that has the address."""
    subprocess.run([*prefix, sys.executable, "-c", SAY, address, words], check=True)


def test_multicast_of_this_machine_stays_out_and_a_hosts_is_heard(hosts: Lan) -> None:
    """Were the first word let in, it would come first: the way is shorter."""
    command = [*hosts.prefix(1), sys.executable, "-c", LISTEN, hosts.address(1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        say("from outside", hosts.test_address)
        say("from a host", hosts.address(2), *hosts.prefix(2))
        assert listener.stdout.readline() == "from a host\n"


@pytest.fixture(params=["IPv4", "IPv6"])
def either(request: pytest.FixtureRequest, namespaces: None) -> Iterator[Lan]:
    with lan(2, ipv6=request.param == "IPv6") as one:
        yield one


def reaches(address: str) -> bool:
    """Not while nobody listens, or IPv6 still looks for duplicates."""
    try:
        socket.create_connection((address, WEB_PORT), 1.0).close()
    except OSError:
        return False
    return True


def test_the_test_reaches_a_host_that_it_cannot_hear(either: Lan, tmp_path: Path) -> None:
    command = [*either.prefix(2), sys.executable, "-m", "http.server", str(WEB_PORT)]
    server = subprocess.Popen(
        [*command, "--bind", "::", "--directory", str(tmp_path)], stderr=subprocess.DEVNULL
    )
    deadline_s = time.monotonic() + REACH_LIMIT_S
    try:
        while not reaches(either.address(2)):
            assert time.monotonic() < deadline_s, either.address(2)
            time.sleep(0.05)
    finally:
        server.kill()
        server.wait()
