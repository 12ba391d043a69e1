"""Which network cards count: by name, by what a bridge carries, by where they lead."""

from __future__ import annotations

from pathlib import Path

import ifaddr
import pytest

from aivailable.peer.joining import cards
from aivailable.peer.joining.cards import left_out, own_addresses_towards, told

ROUTES = """\
Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
br-lan 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0
br-12ab 000012AC 00000000 0001 0 0 0 0000FFFF 0 0 0
"""
ZERO = "0" * 32
ROUTES_V6 = f"""\
{ZERO} 00 {ZERO} 00 {"1" * 32} 00000400 1 0 00000003 br6
{ZERO} 00 {ZERO} 00 {ZERO} ffffffff 1 0 00200200 br-12ab
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys/class/net, and no routes."""
    monkeypatch.setattr(cards, "SYS_NET", tmp_path / "net")
    monkeypatch.setattr(cards, "PROC_NET", tmp_path / "proc")
    (tmp_path / "proc").mkdir()
    (tmp_path / "net").mkdir()
    return tmp_path


def bridge(kernel: Path, name: str, *ports: str) -> None:
    (kernel / "net" / name / "bridge").mkdir(parents=True)
    for port in ports:
        (kernel / "net" / name / "brif" / port).mkdir(parents=True)


def test_a_bridge_counts_when_a_default_route_goes_through_it(kernel: Path) -> None:
    for name in ("br-lan", "br-12ab", "br6", "lab0"):
        bridge(kernel, name, "veth1")
    (kernel / "proc" / "route").write_text(ROUTES)
    (kernel / "proc" / "ipv6_route").write_text(ROUTES_V6)
    assert [name for name in ("br-lan", "br-12ab", "br6", "lab0") if not left_out(name)] == [
        "br-lan",
        "br6",
    ]
    assert "bridge" in left_out("br-12ab")


def test_a_bridge_counts_when_a_real_card_is_plugged_in(kernel: Path) -> None:
    """Also a VLAN on a bond of such."""
    bridge(kernel, "br0", "veth1", "eth0")
    bridge(kernel, "br-vlan", "bond0.7")
    bridge(kernel, "br-12ab", "veth2", "veth3")
    net = kernel / "net"
    (net / "eth0" / "device").mkdir(parents=True)
    (net / "bond0.7" / "lower_bond0").mkdir(parents=True)
    (net / "bond0" / "lower_eth0").mkdir(parents=True)
    assert (left_out("br0"), left_out("br-vlan")) == ("", "")
    assert left_out("br-12ab")


def test_cards_below_one_another_come_to_an_end(kernel: Path) -> None:
    bridge(kernel, "br0", "a0")
    (kernel / "net" / "a0" / "lower_b0").mkdir(parents=True)
    (kernel / "net" / "b0" / "lower_a0").mkdir(parents=True)
    assert left_out("br0")


def test_where_the_system_does_not_tell_the_name_decides(kernel: Path) -> None:
    names = ("br-12ab", "docker0", "wg0", "lo", "br0", "eth0")
    assert [name for name in names if not left_out(name)] == ["br0", "eth0"]


def test_the_way_to_an_address_is_asked_of_the_kernel_and_names_are_not_looked_up() -> None:
    assert own_addresses_towards(("127.0.0.1", "::1", "a name", "256.0.0.1", "")) == ()


def test_what_is_used_and_what_is_not_is_one_line(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["lo", "eth0", "wg0", "tun0", "br-12ab", *(f"veth{number}" for number in range(9))]
    machine = [
        ifaddr.Adapter(name, name, [ifaddr.IP(f"10.0.{number}.1", 24, name)], index=number)
        for number, name in enumerate(names)
    ]
    monkeypatch.setattr(cards.ifaddr, "get_adapters", lambda: machine)
    assert told((), ("10.0.1.1", "10.0.2.1")) == (
        "network cards in use: eth0 (10.0.1.1), wg0 (10.0.2.1); left out: br-12ab (a bridge with"
        " neither default route nor real card); left out: tun0, veth0, veth1, veth2 and 6 more"
        " (container, virtual machine or VPN)"
    )
    assert told(("eth0",), ()).startswith("network cards in use: none yet; left out: eth0, wg0,")
