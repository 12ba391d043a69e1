"""mDNS on the loopback interface: heard at once, updated, gone when gone."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import ifaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import DNSOutgoing, DNSText, Zeroconf

from aivailable.peer.joining import cards, discovery
from aivailable.peer.joining.cards import usable_interfaces
from aivailable.peer.joining.discovery import MdnsDiscovery, sighting_of
from aivailable.peer.ports import Endpoints, Sighting

DEADLINE_S = 15.0
LOOPBACK_ONLY = ("127.0.0.1",)


def sighting(number: int, **changes: Any) -> Sighting:
    plain = Sighting(f"node{number}", f"inst{number}", "", "lab", False, 8420 + number, ())
    return dataclasses.replace(plain, **changes)


def heard(number: int, **changes: Any) -> Sighting:
    return sighting(number, addresses=(("127.0.0.1", 9000 + number),), **changes)


async def until(port: MdnsDiscovery, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await port.changed()


@pytest.fixture
async def ports() -> AsyncIterator[list[MdnsDiscovery]]:
    started = [MdnsDiscovery(Endpoints(9000 + number), LOOPBACK_ONLY) for number in range(2)]
    for port in started:
        await port.start()
    yield started
    for port in started:
        await port.stop()


async def test_nodes_started_together_hear_each_other_soon(ports: list[MdnsDiscovery]) -> None:
    first, second = ports
    assert first.problem == ""
    await asyncio.gather(first.announce(sighting(0)), second.announce(sighting(1)))
    async with asyncio.timeout(3.0):
        await until(first, lambda: heard(1) in first.sightings())
        await until(second, lambda: heard(0) in second.sightings())
    assert heard(0) not in first.sightings()
    assert first.addresses() == LOOPBACK_ONLY


async def test_updates_and_goodbyes_are_heard(ports: list[MdnsDiscovery]) -> None:
    first, second = ports
    await first.announce(sighting(0))
    await second.announce(sighting(1))
    await until(first, lambda: heard(1) in first.sightings())
    member = {"cluster_prefix": "abcdefgh", "cluster_name": "Labor ö", "window_open": True}
    await second.announce(sighting(1, **member))
    await until(first, lambda: heard(1, **member) in first.sightings())
    await second.stop()
    await until(first, lambda: all(s.short_node != "node1" for s in first.sightings()))


async def test_an_outdated_announcement_is_not_sent_again(
    ports: list[MdnsDiscovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    def send(mdns: Zeroconf, out: DNSOutgoing, *_: Any, **__: Any) -> None:
        sent.extend(b"cid=abcdefgh" in one.text for one, _ in out.answers
                    if isinstance(one, DNSText))  # fmt: skip

    monkeypatch.setattr(discovery.Zeroconf, "async_send", send)
    first, _ = ports
    await first.announce(sighting(0))
    await first.announce(sighting(0, cluster_prefix="abcdefgh"))
    assert first._broadcasts is not None
    await first._broadcasts
    assert sent[-3:] == [True, True, True]
    assert sent == sorted(sent), "the old text came again after the new one"


async def test_a_text_that_comes_back_is_believed(
    ports: list[MdnsDiscovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that closes and opens again: the cache still holds the first text."""
    monkeypatch.setattr(discovery, "RESCAN_S", 0.01)
    first, _ = ports
    listener = MdnsDiscovery(lambda: 9002, LOOPBACK_ONLY)
    await listener.start()
    await first.announce(sighting(0, window_open=True))
    await until(listener, lambda: heard(0, window_open=True) in listener.sightings())
    await first.announce(sighting(0))
    await until(listener, lambda: heard(0) in listener.sightings())
    assert first._zeroconf is not None
    mdns = first._zeroconf.zeroconf
    again = first._announcement(sighting(0, window_open=True))
    # Without the addresses: the same packet within a second would count as a double.
    mdns.async_send(mdns.generate_service_broadcast(again, None, broadcast_addresses=False))
    await until(listener, lambda: heard(0, window_open=True) in listener.sightings())
    await listener.stop()


async def test_a_late_one_hears_who_was_there(ports: list[MdnsDiscovery]) -> None:
    first, _ = ports
    await first.announce(sighting(0))
    late = MdnsDiscovery(Endpoints(9002), LOOPBACK_ONLY)
    await late.start()
    await until(late, lambda: heard(0) in late.sightings())
    await late.stop()


async def test_no_address_is_a_problem_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "RESCAN_S", 0.01)
    monkeypatch.setattr(cards.ifaddr, "get_adapters", list)
    port = MdnsDiscovery(Endpoints(9000), LOOPBACK_ONLY)
    await port.start()
    assert "no network interface" in port.problem
    await port.announce(sighting(0))
    monkeypatch.undo()
    monkeypatch.setattr(discovery, "RESCAN_S", 0.01)
    await until(port, lambda: port.problem == "")
    assert port.addresses() == LOOPBACK_ONLY
    await port.stop()


async def test_a_failing_interface_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr(discovery, "RESCAN_S", 0.01)
    working = discovery.AsyncZeroconf
    monkeypatch.setattr(discovery, "AsyncZeroconf", fail)
    port = MdnsDiscovery(Endpoints(9000), LOOPBACK_ONLY)
    await port.start()
    assert "No such device" in port.problem
    monkeypatch.setattr(discovery, "AsyncZeroconf", working)
    await until(port, lambda: port.problem == "")
    await port.stop()


async def test_a_failed_announcement_is_made_again(
    ports: list[MdnsDiscovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise OSError(101, "Network is unreachable")

    first, second = ports
    with monkeypatch.context() as broken:
        broken.setattr(discovery.AsyncZeroconf, "async_register_service", fail)
        await first.announce(sighting(0))
    assert "Network is unreachable" in first.problem
    await first._rescan()
    assert first.problem == ""
    await until(second, lambda: heard(0) in second.sightings())


async def test_an_address_that_is_not_ours_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an IPv6 address that the kernel still checks for a double."""
    monkeypatch.setattr(discovery, "RESCAN_S", 0.01)
    with monkeypatch.context() as early:
        machine = [adapter("card0", 3, "192.0.2.77"), adapter("card1", 4, "2001:db8::77")]
        early.setattr(cards.ifaddr, "get_adapters", lambda: machine)
        port = MdnsDiscovery(Endpoints(9000), ("card0", "card1", *LOOPBACK_ONLY))
        await port.start()
        assert "no network interface" in port.problem
    await until(port, lambda: port.problem == "")
    assert port.addresses() == LOOPBACK_ONLY
    await port.stop()


async def test_what_leads_to_seeds_and_members_is_ours_and_is_not_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The LAN's addresses stay first, and the record has room for both."""
    ways = {"10.8.0.1": "10.8.0.2", "10.9.0.1": "10.9.0.2", "127.0.0.9": "127.0.0.1"}

    def towards(addresses: Iterable[str]) -> tuple[str, ...]:
        return tuple(ways[one] for one in addresses if one in ways)

    monkeypatch.setattr(discovery, "own_addresses_towards", towards)
    port = MdnsDiscovery(Endpoints(9000), LOOPBACK_ONLY, ("10.8.0.1",))
    await port.start()
    assert port.addresses() == ("127.0.0.1", "10.8.0.2")
    port.reach(("127.0.0.9", "10.9.0.1"))
    assert port.addresses() == ("127.0.0.1", "10.8.0.2", "10.9.0.2")
    assert port._announcement(sighting(0)).parsed_addresses() == ["127.0.0.1"]
    ways |= {f"10.{n}.0.1": f"10.{n}.0.2" for n in range(10, 30)}
    port.reach((*ways,))
    assert port.addresses()[0] == "127.0.0.1"
    assert len(port.addresses()) <= discovery.ADDRESSES_MAX
    port.reach(())
    assert port.addresses() == ("127.0.0.1", "10.8.0.2")
    await port.stop()


async def test_a_seed_s_name_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SEED_NAMES_S", 0.01)
    known = asyncio.Event()

    def towards(addresses: Iterable[str]) -> tuple[str, ...]:
        if "10.8.0.1" in addresses:
            known.set()
        return ()

    monkeypatch.setattr(discovery, "own_addresses_towards", towards)
    answers: list[Any] = [OSError("not yet"), UnicodeError("odd"), [(0, 0, 0, "", ("10.8.0.1", 0))]]

    async def getaddrinfo(host: str, port: None) -> Any:
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    port = MdnsDiscovery(Endpoints(9000), LOOPBACK_ONLY, ("a.vpn",))
    await port.start()
    async with asyncio.timeout(DEADLINE_S):
        await known.wait()
    await port.stop()


def adapter(name: str, index: int, *addresses: str) -> ifaddr.Adapter:
    ips = [ifaddr.IP((a, 0, 0) if ":" in a else a, 24, name) for a in addresses]
    return ifaddr.Adapter(name, name, ips, index=index)


def test_interfaces_of_the_lan_only_best_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = [
        adapter("lo", 1, "127.0.0.1", "::1"),
        adapter("docker0", 2, "172.17.0.1"),
        adapter("eth0", 3, "fe80::1", "fd00::5", "192.168.1.5"),
        adapter("wlan0", 4, "169.254.7.7", "192.168.2.5"),
        adapter("br-12ab", 5, "172.18.0.1"),
        adapter("tailscale0", 6, "100.64.0.1"),
    ]
    monkeypatch.setattr(cards.ifaddr, "get_adapters", lambda: machine)
    found = [(entry.name, entry.address) for entry in usable_interfaces()]
    assert found == [
        ("eth0", "192.168.1.5"),
        ("wlan0", "192.168.2.5"),
        ("eth0", "fd00::5"),
        ("wlan0", "169.254.7.7"),
    ]
    assert [entry.address for entry in usable_interfaces(LOOPBACK_ONLY)] == ["127.0.0.1"]


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"id", b"inst", b"cid", b"cn", b"api", b"win", b"other"]),
        st.none() | st.binary(max_size=20) | st.sampled_from([b"1", b"abc"]),
    ),
    st.integers(-1, 70000),
)
def test_foreign_announcements_are_read_or_left(
    properties: dict[bytes, bytes | None], port: int
) -> None:
    result = sighting_of(properties, ["10.0.0.1"], port)
    if result is not None:
        assert result.short_node.isalnum()
        assert result.addresses == (("10.0.0.1", port),)
