"""Seats at the join channel and the rate of admissions: the greedy one is turned away."""

from __future__ import annotations

from fixtures.peer_ports import HandClock

from aivailable.peer.joining.visits import (
    ADMISSIONS_BURST,
    ADMISSIONS_PER_SOURCE_BURST,
    ADMISSIONS_PER_SOURCE_PERIOD_S,
    VISITS_PER_SOURCE_MAX,
    AdmissionRate,
    Seats,
)
from aivailable.peer.links.sources import is_here, source_of
from aivailable.wire.limits import JOIN_CONNECTIONS_MAX


class Guest:
    def __init__(self, source: str, *, silent: bool = True) -> None:
        self.source = source
        self.silent = silent
        self.ended = False

    def end(self) -> None:
        self.ended = True


def test_a_source_is_an_address_or_an_ipv6_network() -> None:
    assert source_of("192.0.2.7") == source_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert source_of("2001:db8::1") == source_of("2001:db8::2") != source_of("2001:db8:0:1::1")
    assert source_of("fe80::1%eth0") != source_of("fe80::2%eth0")
    assert source_of("not an address") == "not an address"
    assert is_here("127.0.0.1")
    assert is_here("::1")
    assert not is_here("192.0.2.7")


def test_the_oldest_silent_visit_of_a_source_gives_way_to_its_next() -> None:
    seats = Seats()
    mine = [Guest("192.0.2.7", silent=n != 0) for n in range(VISITS_PER_SOURCE_MAX)]
    assert all(seats.take(guest) for guest in mine)
    assert seats.take(Guest("192.0.2.7"))
    assert [guest.ended for guest in mine] == [False, True, False, False]


def test_a_source_whose_visits_all_speak_gets_no_more() -> None:
    seats = Seats()
    for _ in range(VISITS_PER_SOURCE_MAX):
        assert seats.take(Guest("192.0.2.7", silent=False))
    assert not seats.take(Guest("192.0.2.7"))
    assert seats.take(Guest("192.0.2.8"))


def test_when_all_seats_are_taken_the_greediest_gives_way() -> None:
    seats = Seats()
    honest = Guest("198.51.100.1")
    assert seats.take(honest)
    for number in range(JOIN_CONNECTIONS_MAX - 1):
        assert seats.take(Guest(f"192.0.2.{number // VISITS_PER_SOURCE_MAX}"))
    assert len(seats.visits) == JOIN_CONNECTIONS_MAX
    assert seats.take(Guest("198.51.100.2"))
    assert not honest.ended
    assert len(seats.visits) == JOIN_CONNECTIONS_MAX


def test_one_source_lets_in_a_few_and_then_one_at_a_time() -> None:
    clock = HandClock()
    rate = AdmissionRate(clock.monotonic)
    taken = [rate.take("192.0.2.7") for _ in range(22)]
    assert taken.count(0) == ADMISSIONS_PER_SOURCE_BURST
    assert taken[-1] == ADMISSIONS_PER_SOURCE_PERIOD_S
    assert rate.take("192.0.2.8") == 0, "another one is not kept waiting"
    clock.now_s += ADMISSIONS_PER_SOURCE_PERIOD_S
    assert rate.take("192.0.2.7") == 0
    assert rate.take("192.0.2.7") > 0
    rate.give_back("192.0.2.7")
    assert rate.take("192.0.2.7") == 0, "who was refused is not counted"


def test_all_sources_together_have_a_rate() -> None:
    rate = AdmissionRate(HandClock().monotonic)
    taken = [rate.take(f"192.0.2.{number}") for number in range(200)]
    assert taken.count(0) == ADMISSIONS_BURST
    assert rate.take("127.0.0.1") == 0, "this machine's own are not counted"
