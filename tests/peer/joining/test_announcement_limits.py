"""What of the LAN's mDNS traffic the library gets to see, datagram by datagram."""

from __future__ import annotations

from fixtures.peer_ports import HandClock
from zeroconf import DNSOutgoing, DNSPointer, DNSText

from aivailable.peer.joining.announcement_limits import (
    ANSWERS_BURST,
    DATAGRAMS_BURST,
    NAME_KEPT_S,
    NAMES_MAX,
    NAMES_PER_SOURCE_MAX,
    RECORDS_MAX,
    TEXT_MAX_BYTES,
    AnnouncementLimits,
)
from aivailable.peer.joining.discovery import CLASS_IN, SERVICE_TYPE, TYPE_TXT

TYPE_PTR = 12
RESPONSE = 0x8400
QUESTION = 0x0000


def answer(*labels: str, text: bytes = b"", service: str = SERVICE_TYPE) -> bytes:
    out = DNSOutgoing(RESPONSE)
    for label in labels:
        name = f"{label}.{service}"
        out.add_answer_at_time(DNSPointer(service, TYPE_PTR, CLASS_IN, 60, name), 0)
        if text:
            out.add_answer_at_time(DNSText(name, TYPE_TXT, CLASS_IN, 60, text), 0)
    return out.packets()[0]


def limits(clock: HandClock | None = None) -> AnnouncementLimits:
    return AnnouncementLimits(SERVICE_TYPE, (clock or HandClock()).monotonic)


def test_a_node_and_a_question_pass() -> None:
    one = limits()
    assert one.admits(answer("abc-i1", text=b"\x03a=b"), "192.0.2.7")
    assert one.admits(DNSOutgoing(QUESTION).packets()[0], "192.0.2.7")


def test_what_is_not_ours_or_not_in_our_form_does_not() -> None:
    one = limits()
    assert not one.admits(answer("abc-i1", service="_ipp._tcp.local."), "192.0.2.7")
    assert not one.admits(answer("no dash here"), "192.0.2.7")
    assert not one.admits(answer("abc-i1", text=b"x" * (TEXT_MAX_BYTES + 1)), "192.0.2.7")
    assert not one.admits(answer(*(f"a-{n}" for n in range(RECORDS_MAX + 1))), "192.0.2.7")
    assert not one.admits(b"\0\0\x84\0" + b"\xff" * 40, "192.0.2.7")


def test_one_source_has_few_names_and_hides_nobody() -> None:
    clock = HandClock()
    one = limits(clock)
    heard = 0
    for number in range(100):
        clock.now_s += 0.1
        heard += one.admits(answer(f"flood-{number}"), "192.0.2.7")
    assert heard == NAMES_PER_SOURCE_MAX
    assert one.admits(answer("honest-i1"), "192.0.2.8")
    clock.now_s += NAME_KEPT_S + 1
    assert one.admits(answer("flood-new"), "192.0.2.7"), "a name without news gives way"


def test_all_sources_together_have_a_number_of_names_and_the_greediest_gives_way() -> None:
    clock = HandClock()
    one = limits(clock)
    for number in range(NAMES_MAX):
        clock.now_s += 0.05
        source = f"192.0.2.{number // NAMES_PER_SOURCE_MAX}"
        assert one.admits(answer(f"flood-{number}"), source)
    assert one.admits(answer("honest-i1"), "198.51.100.8")
    assert len(one._names) == NAMES_MAX


def test_a_sender_and_all_senders_have_a_rate() -> None:
    one = limits()
    same = [one.admits(answer("abc-i1"), "192.0.2.7") for _ in range(1000)]
    assert sum(same) == DATAGRAMS_BURST
    forged = [one.admits(answer("abc-i1"), f"198.51.100.{n % 250}") for n in range(2000)]
    assert sum(same) + sum(forged) == ANSWERS_BURST
