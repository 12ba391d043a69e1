"""Who gives way when there are too many connections, and how many there may be."""

from __future__ import annotations

import resource

import pytest

from aivailable.peer.api.door.descriptors import (
    CONNECTIONS_MAX,
    DESCRIPTORS_KEPT,
    connections_max,
    limit,
    raise_limit,
)
from aivailable.peer.api.door.places import LOOPBACK, LOOPBACK_SURE, ApiPlace, Places, caller_of

TOTAL = 80
SHARE = TOTAL // 8


def admitted(places: Places, source: str) -> ApiPlace:
    place, _ = places.admit(source)
    assert place is not None
    return place


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("127.0.0.9", LOOPBACK),
        ("::1", LOOPBACK),
        ("::ffff:127.0.0.1", LOOPBACK),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1::5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1:ffff::6", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_whose_a_connection_is(address: str, source: str) -> None:
    assert caller_of(address) == source


def test_of_one_source_the_longest_silent_gives_way_to_its_next() -> None:
    places = Places(TOTAL)
    first = admitted(places, "a")
    for _ in range(SHARE - 1):
        assert places.admit("a")[1] is None
    assert places.admit("a")[1] is first
    assert places.total == SHARE


def test_a_source_that_floods_never_takes_a_place_from_another() -> None:
    places = Places(TOTAL)
    honest = admitted(places, "honest")
    gone = [places.admit("greedy")[1] for _ in range(TOTAL * 3)]
    assert honest not in gone


def test_when_all_is_full_the_greediest_gives_way() -> None:
    places = Places(TOTAL)
    honest = admitted(places, "honest")
    for source in range(8):
        for _ in range(SHARE - 1 if source else SHARE):
            admitted(places, f"s{source}")
    while places.total < TOTAL:
        admitted(places, "filler")
    _, gone = places.admit("newcomer")
    assert gone is not None
    assert gone.source == "s0"
    assert gone is not honest


def test_busy_connections_stay_and_idle_ones_go_after_silent_ones() -> None:
    places = Places(TOTAL)
    busy, idle = admitted(places, "a"), admitted(places, "a")
    places.begin(busy)
    places.begin(idle)
    places.end(idle)
    gone = [places.admit("a")[1] for _ in range(2 * SHARE)]
    assert busy not in gone
    assert idle not in gone


def test_when_all_are_busy_a_newcomer_is_refused() -> None:
    places = Places(4)
    for number in range(4):
        places.begin(admitted(places, f"s{number}"))
    assert places.admit("newcomer") == (None, None)


def test_loopback_keeps_its_connections_when_many_sources_come() -> None:
    places = Places(TOTAL)
    own = [admitted(places, LOOPBACK) for _ in range(LOOPBACK_SURE)]
    gone = [places.admit(f"s{number}")[1] for number in range(3 * TOTAL)]
    assert not set(own) & set(gone)


def test_a_place_is_left_once() -> None:
    places = Places(TOTAL)
    place = admitted(places, "a")
    places.begin(place)
    places.leave(place)
    places.leave(place)
    places.end(place)
    assert places.total == 0


def test_connections_leave_descriptors_for_all_else() -> None:
    assert connections_max(1024) == 1024 - DESCRIPTORS_KEPT
    assert connections_max(256) == 128
    assert connections_max(1) == 1
    assert connections_max(1 << 20) == CONNECTIONS_MAX


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert raise_limit() == limit() > 512
        assert raise_limit() == limit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
