"""Addresses, cards and switches that change under running peers: identity does not.

Each host is `aivailable up` with the fake engine; the test pulls, renames and filters with `ip`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.netns import Lan, lan
from fixtures.peers import Peers, State, voting
from lan.workload import host_peer

FRESH = 101
"""The number of a host's new address."""
BACK_LIMIT_S = 20.0
"""From a new address to a node that all see, that follows the log and answers requests. The links
are dead after 2 s, interfaces are looked at every 3 s; the rest is for a busy machine."""
FORM_LIMIT_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def hosts_without_ipv4(namespaces: None) -> Iterator[Lan]:
    with lan(3, ipv6=True) as one:
        yield one


async def formed(hosts: Lan, peers: Peers) -> list[State]:
    """All started together, and members of one cluster."""
    for peer in peers.peers:
        peer.start()
    await asyncio.gather(*(peer.listening(FORM_LIMIT_S) for peer in peers.peers))
    return await peers.until("one cluster", voting(len(peers.peers)), limit_s=FORM_LIMIT_S)


def number_of(peers: Peers, node: str, states: list[State]) -> int:
    """The host whose peer is that node."""
    return next(n for n, state in enumerate(states, start=1) if state["here"] == node)


async def back(hosts: Lan, peers: Peers, number: int, since_s: float) -> None:
    """The host is seen by all at its new address only, follows the log and answers requests."""
    peer = peers.peers[number - 1]
    peer.host = hosts.url_host(number)
    node = ""

    def there(states: list[State]) -> bool:
        nonlocal node
        node = states[number - 1]["here"]
        return voting(3)(states) and all(
            tuple(entry["addresses"]) == (hosts.address(number),)
            and entry["state"] in ("up", "here")
            for state in states
            for entry in state["nodes"]
            if entry["node"] == node
        )

    left_s = BACK_LIMIT_S - (time.monotonic() - since_s)
    states = await peers.until(f"host {number} is back", there, limit_s=left_s)
    other = peers.peers[number % 3]
    made = await peers.ask(other, "POST", "/cluster/v1/keys", {"label": "after"})
    assert made.status == 201, made
    await peers.until(
        "its index advances", lambda s: s[0]["version"] > states[number - 1]["version"], [peer]
    )
    if states[0]["deployments"]:
        answer = await peers.complete(peer)
        assert answer.status == 200, answer
    print(f"host {number} back after {time.monotonic() - since_s:.1f} s")


async def new_addresses_for_all(hosts: Lan, peers: Peers) -> None:
    """Another router: nobody is where anybody knew it."""
    since_s = time.monotonic()
    for number in (1, 2, 3):
        hosts.readdress(number, FRESH + 10 + number)
        peers.peers[number - 1].host = hosts.url_host(number)
    for number in (1, 2, 3):
        await back(hosts, peers, number, since_s)


async def test_addresses_change_under_running_peers(hosts: Lan, tmp_path: Path) -> None:
    """A follower's and the controller's by DHCP; then a cable instead of Wi-Fi."""
    async with Peers([host_peer(hosts, number, tmp_path) for number in (1, 2, 3)]) as peers:
        states = await formed(hosts, peers)
        await peers.deploy_fake(peers.peers[0])
        controller = number_of(peers, states[0]["controller"], states)
        follower, other = (number for number in (1, 2, 3) if number != controller)

        since_s = time.monotonic()
        hosts.readdress(follower, FRESH)
        await back(hosts, peers, follower, since_s)

        since_s = time.monotonic()
        hosts.readdress(controller, FRESH + 1)
        await back(hosts, peers, controller, since_s)

        hosts.take_card(other)
        await missed(peers, other)
        since_s = time.monotonic()
        hosts.give_card(other, "wlan0", FRESH + 2)
        await back(hosts, peers, other, since_s)
        assert all(peer.alive for peer in peers.peers)


async def missed(peers: Peers, number: int) -> None:
    """The others see that the host is not there."""
    here = [peer for index, peer in enumerate(peers.peers, start=1) if index != number]
    await peers.until(
        "it is missed",
        lambda s: all(sum(n["state"] in ("up", "here") for n in x["nodes"]) == 2 for x in s),
        here,
    )


VIRTUAL = ("docker0", "veth12ab", "tun0", "wg0", "br-12ab")


def add_virtual_cards(hosts: Lan, number: int) -> None:
    """What containers and tunnels leave on a machine, each with an address and a partner."""
    for index, card in enumerate(VIRTUAL):
        hosts.ip(number, "link", "add", card, "type", "veth", "peer", "name", f"far{index}")
        hosts.ip(number, "addr", "add", f"172.30.{10 * number + index}.1/24", "dev", card)
        for end in (card, f"far{index}"):
            hosts.ip(number, "link", "set", end, "up")


async def test_cards_that_wake_up_late_and_cards_that_do_not_count(
    hosts_without_ipv4: Lan, tmp_path: Path
) -> None:
    """All but virtual cards have IPv6 only. Host 1 has virtual cards, host 2's card has no address
    yet, host 3's is down; later an address goes and comes back; then all get new ones."""
    hosts = hosts_without_ipv4
    add_virtual_cards(hosts, 1)
    hosts.take_address(2)
    hosts.ip(3, "link", "set", "eth0", "down")
    async with Peers([host_peer(hosts, number, tmp_path) for number in (1, 2, 3)]) as peers:
        for peer in peers.peers:
            peer.start()
        await asyncio.gather(*(peer.listening(FORM_LIMIT_S) for peer in peers.peers))
        await peers.until("host 1 founds", lambda s: s[0]["quorum"], peers.peers[:1])
        since_s = time.monotonic()
        hosts.give_address(2)
        hosts.ip(3, "link", "set", "eth0", "up")
        hosts.give_address(3)  # The kernel takes IPv6 addresses away with the card.
        states = await peers.until("one cluster", voting(3), limit_s=BACK_LIMIT_S)
        print(f"joined after {time.monotonic() - since_s:.1f} s")
        shown = {address for state in states for n in state["nodes"] for address in n["addresses"]}
        assert shown == {hosts.address(number) for number in (1, 2, 3)}

        hosts.take_address(2)
        await missed(peers, 2)
        since_s = time.monotonic()
        hosts.give_address(2)
        await back(hosts, peers, 2, since_s)
        await new_addresses_for_all(hosts, peers)
        assert all(peer.alive for peer in peers.peers)


async def test_a_bridge_that_carries_the_lan_counts_and_docker_s_does_not(
    hosts: Lan, tmp_path: Path
) -> None:
    """Both begin with `br-`, and `up` says which is used."""
    hosts.bridge_card(1, "br-lan")
    hosts.ip(1, "link", "add", "br-12ab", "type", "bridge")
    hosts.ip(1, "addr", "add", "172.30.1.1/24", "dev", "br-12ab")
    hosts.ip(1, "link", "set", "br-12ab", "up")
    async with Peers([host_peer(hosts, number, tmp_path) for number in (1, 2, 3)]) as peers:
        states = await formed(hosts, peers)
        shown = {address for state in states for n in state["nodes"] for address in n["addresses"]}
        assert shown == {hosts.address(number) for number in (1, 2, 3)}
        told = peers.peers[0].output()
        assert f"network cards in use: br-lan ({hosts.address(1)});" in told
        assert "left out: br-12ab (a bridge with neither default route nor real card)" in told


async def test_a_seed_is_enough_where_multicast_is_filtered(hosts: Lan, tmp_path: Path) -> None:
    """Two are told where the first one is; after a restart of all nobody is told anything. One
    whose address changes then finds the others by their old ones."""
    hosts.filter_multicast()
    seed = ("--seed", f"{hosts.address(1)}:8421")
    async with Peers([host_peer(hosts, number, tmp_path) for number in (1, 2, 3)]) as peers:
        plain = peers.peers[1].flags
        for peer in peers.peers[1:]:
            peer.flags = (*plain, *seed)
        states = await formed(hosts, peers)
        for peer in peers.peers:
            peer.kill()
            peer.flags = plain
        again = await formed(hosts, peers)
        assert again[0]["cluster_id"] == states[0]["cluster_id"]
        since_s = time.monotonic()
        hosts.readdress(2, FRESH)
        await back(hosts, peers, 2, since_s)
