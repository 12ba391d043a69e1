"""Where a request comes from, and the whole table of who is answered."""

from __future__ import annotations

import ipaddress
from itertools import product

import pytest
from multidict import CIMultiDict

from aivailable.peer.api.auth.rules import Asker, refusal
from aivailable.peer.api.auth.source import HOPS_MAX, source_of
from aivailable.peer.api.auth.web_pages import HostKind, OriginKind, host_kind, origin_kind

PROXIES = tuple(map(ipaddress.ip_network, ("127.0.0.1/32", "10.0.0.0/24")))
FOR = "X-Forwarded-For"


@pytest.mark.parametrize(
    ("peer", "headers", "address", "local"),
    [
        # Nobody is listed who sends these.
        ("127.0.0.2", [], "127.0.0.2", True),
        ("::1", [], "::1", True),
        ("192.168.1.9", [], "192.168.1.9", False),
        ("127.0.0.2", [(FOR, "127.0.0.1")], "127.0.0.2", False),
        ("192.168.1.9", [(FOR, "127.0.0.1")], "192.168.1.9", False),
        ("127.0.0.2", [("Via", "1.1 x")], "127.0.0.2", False),
        # A listed proxy that does not say for whom.
        ("127.0.0.1", [], "127.0.0.1", False),
        ("::ffff:127.0.0.1", [], "127.0.0.1", False),
        ("10.0.0.1", [("Via", "1.1 x")], "10.0.0.1", False),
        ("127.0.0.1", [(FOR, "")], "127.0.0.1", False),
        ("127.0.0.1", [(FOR, "unknown")], "127.0.0.1", False),
        ("127.0.0.1", [(FOR, ", ".join(["9.9.9.9"] * (HOPS_MAX + 1)))], "127.0.0.1", False),
        # The rightmost hop that is no proxy; left of it is the client's own word.
        ("127.0.0.1", [(FOR, "192.168.1.9")], "192.168.1.9", False),
        ("127.0.0.1", [(FOR, "127.0.0.1, 192.168.1.9")], "192.168.1.9", False),
        ("127.0.0.1", [(FOR, "::1, 192.168.1.9, 10.0.0.3")], "192.168.1.9", False),
        ("127.0.0.1", [(FOR, "::1"), (FOR, "192.168.1.9")], "192.168.1.9", False),
        ("127.0.0.1", [(FOR, "192.168.1.9:4711")], "192.168.1.9", False),
        ("127.0.0.1", [(FOR, "[2001:db8::1]:4711")], "2001:db8::1", False),
        ("127.0.0.1", [("Forwarded", 'for=127.0.0.1;by=x, For="[2001:db8::1]:1"')],
         "2001:db8::1", False),
        ("127.0.0.1", [("Forwarded", "for=127.0.0.1, proto=http")], "127.0.0.1", False),
        # This machine through a proxy of this machine; never through one elsewhere.
        ("127.0.0.1", [(FOR, "::1")], "::1", True),
        ("10.0.0.1", [(FOR, "::1")], "::1", False),
        ("127.0.0.1", [(FOR, "127.0.0.1, 127.0.0.1")], "127.0.0.1", False),
        ("127.0.0.1", [(FOR, "127.0.0.1, 10.0.0.7")], "127.0.0.1", False),
        # The client adds the header that its proxy does not write.
        ("127.0.0.1", [(FOR, "::1"), ("Forwarded", "for=192.168.1.9")], "127.0.0.1", False),
        ("127.0.0.1", [("Forwarded", "for=192.168.1.9"), (FOR, "192.168.1.9")],
         "192.168.1.9", False),
        ("nowhere", [], "None", False),
    ],
)  # fmt: skip
def test_a_source_is_believed_only_of_listed_proxies(
    peer: str, headers: list[tuple[str, str]], address: str, local: bool
) -> None:
    source = source_of(peer, CIMultiDict(headers), PROXIES)
    assert (str(source.address), source.local) == (address, local)


def test_who_comes_through_a_proxy_is_not_counted_with_the_people_here() -> None:
    own = source_of("127.0.0.1", CIMultiDict(), ()).account("node12345678")
    other = source_of("127.0.0.1", CIMultiDict(Via="x"), ()).account("node12345678")
    assert (own, other) == ("local:node1234", "address:127.0.0.1")


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        ([], HostKind.OWN),
        (["LOCALHOST."], HostKind.OWN),
        (["x.y.localhost:80"], HostKind.OWN),
        (["127.9.9.9"], HostKind.OWN),
        (["[::ffff:127.0.0.1]:1"], HostKind.OWN),
        (["host.docker.internal:8420"], HostKind.OWN),
        (["ai.lab"], HostKind.OWN),
        (["a.b.rigs:8420"], HostKind.OWN),
        (["rigs"], HostKind.NAME),
        (["0.0.0.0:8420"], HostKind.ADDRESS),
        (["192.168.1.9"], HostKind.ADDRESS),
        (["[2001:db8::1]"], HostKind.ADDRESS),
        (["evil.example"], HostKind.NAME),
        (["localhost.evil.example"], HostKind.NAME),
        (["evillocalhost"], HostKind.NAME),
        (["localhost:1@evil.example"], HostKind.NAME),
        (["localhost", "evil.example"], HostKind.NAME),
        (["pc1.local"], HostKind.NAME),
        ([""], HostKind.NAME),
    ],
)
def test_kinds_of_host(sent: list[str], kind: HostKind) -> None:
    assert host_kind(sent, frozenset({"ai.lab", "*.rigs"})) is kind


@pytest.mark.parametrize(
    ("origin", "host", "kind"),
    [
        ([], "localhost:8420", OriginKind.NONE),
        (["http://localhost:8420"], "localhost:8420", OriginKind.SAME),
        (["HTTP://LocalHost"], "localhost:80", OriginKind.SAME),
        (["https://[::1]"], "[::1]:443", OriginKind.SAME),
        (["http://localhost:3000"], "localhost:8420", OriginKind.FOREIGN),
        (["http://localhost"], "localhost:8420", OriginKind.FOREIGN),
        (["ftp://localhost:8420"], "localhost:8420", OriginKind.FOREIGN),
        (["null"], "localhost:8420", OriginKind.FOREIGN),
        (["file://"], "localhost:8420", OriginKind.FOREIGN),
        (["app://obsidian.md"], "localhost:8420", OriginKind.FOREIGN),
        (["https://chat.lab"], "localhost:8420", OriginKind.LISTED),
        (["https://chat.lab:444"], "localhost:8420", OriginKind.FOREIGN),
        (["http://[evil"], "localhost:8420", OriginKind.FOREIGN),
        (["https://chat.lab", "https://chat.lab"], "localhost:8420", OriginKind.FOREIGN),
    ],
)
def test_kinds_of_origin(origin: list[str], host: str, kind: OriginKind) -> None:
    assert origin_kind(origin, [host], frozenset({"https://chat.lab"})) is kind


def answered(asker: Asker, require_auth: bool) -> str:
    refused = refusal(asker, require_auth=require_auth)
    return "yes" if refused is None else f"{refused.status}"


OWN, ADDRESS, NAME = HostKind.OWN, HostKind.ADDRESS, HostKind.NAME
SAFE = (OriginKind.NONE, OriginKind.SAME, OriginKind.LISTED)
KEYLESS = {
    # (auth needed, local, host): what a request without a key gets, of a page that may and of a
    # foreign one
    (True, True, OWN): ("yes", "403"),
    (True, True, ADDRESS): ("401", "401"),
    (True, True, NAME): ("401", "401"),
    (True, False, OWN): ("401", "401"),
    (True, False, ADDRESS): ("401", "401"),
    (True, False, NAME): ("401", "401"),
    (False, True, OWN): ("yes", "403"),
    (False, True, ADDRESS): ("yes", "403"),
    (False, True, NAME): ("403", "403"),
    (False, False, OWN): ("yes", "403"),
    (False, False, ADDRESS): ("yes", "403"),
    (False, False, NAME): ("403", "403"),
}


@pytest.mark.parametrize("origin", list(OriginKind))
@pytest.mark.parametrize(("place", "expected"), KEYLESS.items())
def test_the_matrix_without_a_key(
    place: tuple[bool, bool, HostKind], expected: tuple[str, str], origin: OriginKind
) -> None:
    needed, local, host = place
    wanted = expected[0] if origin in SAFE else expected[1]
    assert answered(Asker(False, local, host, origin), needed) == wanted
    page = origin in (OriginKind.LISTED, OriginKind.FOREIGN)
    untyped = "415" if page and wanted == "yes" else wanted
    assert answered(Asker(False, local, host, origin, untyped_body=True), needed) == untyped


def test_the_matrix_with_a_key() -> None:
    places = product((True, False), (True, False), HostKind, OriginKind)
    for needed, local, host, origin in places:
        asker = Asker(True, local, host, origin)
        assert answered(asker, needed) == "yes"
        page = origin in (OriginKind.LISTED, OriginKind.FOREIGN)
        untyped = Asker(True, local, host, origin, untyped_body=True)
        assert answered(untyped, needed) == ("415" if page else "yes")
