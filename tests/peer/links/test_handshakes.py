"""How many handshakes go on at once, and whose: pure."""

from __future__ import annotations

from aivailable.peer.links.handshakes import HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX, Handshakes

MEMBER = "192.0.2.1"


def test_of_one_source_the_first_gives_way_to_its_next() -> None:
    some = Handshakes()
    mine = [some.begin("192.0.2.7") for _ in range(HANDSHAKES_PER_SOURCE_MAX)]
    assert all(gone is None for _, gone in mine)
    assert some.begin("192.0.2.7")[1] is mine[0][0]
    assert some.begin("192.0.2.8")[1] is None
    assert some.total == HANDSHAKES_PER_SOURCE_MAX + 1


def test_an_ipv6_network_is_one_source() -> None:
    some = Handshakes()
    first, _ = some.begin("2001:db8::1")
    for number in range(2, HANDSHAKES_PER_SOURCE_MAX + 1):
        assert some.begin(f"2001:db8::{number:x}")[1] is None
    assert some.begin("2001:db8::ffff")[1] is first
    assert some.begin("2001:db8:0:1::1")[1] is None


def test_when_all_is_full_the_greediest_source_gives_way() -> None:
    some = Handshakes()
    first, _ = some.begin("192.0.2.7")
    some.begin("192.0.2.7")
    number = 0
    while some.total < HANDSHAKES_MAX:
        number += 1
        some.begin(f"198.51.100.{number}")
    assert some.begin("203.0.113.1")[1] is first
    assert some.total == HANDSHAKES_MAX


def test_strangers_take_nothing_from_where_members_are() -> None:
    some = Handshakes()
    some.set_known(frozenset({MEMBER}))
    mine, _ = some.begin(MEMBER)
    for number in range(2 * HANDSHAKES_MAX):
        assert some.begin(f"198.51.100.{number}")[1] is not mine
    assert some.begin(MEMBER)[1] is None
    assert some.total == HANDSHAKES_MAX + 2


def test_an_address_that_is_no_members_any_more_frees_its_place() -> None:
    some = Handshakes()
    some.set_known(frozenset({MEMBER}))
    mine, _ = some.begin(MEMBER)
    some.set_known(frozenset())
    some.end(mine)
    some.end(mine)
    assert some.total == 0


def test_this_machine_has_only_the_bound_of_all() -> None:
    some = Handshakes()
    first, _ = some.begin("127.0.0.1")
    for _ in range(HANDSHAKES_MAX - 1):
        assert some.begin("127.0.0.1")[1] is None
    assert some.begin("127.0.0.1")[1] is first


def test_what_has_said_nothing_gives_way_before_what_has() -> None:
    some = Handshakes()
    mine = [some.begin("192.0.2.7")[0] for _ in range(HANDSHAKES_PER_SOURCE_MAX)]
    mine[0].has_spoken = True
    for silent in mine[1:]:
        assert some.begin("192.0.2.7")[1] is silent
    others = [some.begin("192.0.2.8")[0] for _ in range(HANDSHAKES_PER_SOURCE_MAX)]
    for one in others:
        one.has_spoken = True
    assert some.begin("192.0.2.8")[1] is others[0], "all have spoken"
