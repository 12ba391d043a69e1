"""What doctor says of scripted findings: every failing leg has its name and its next step."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ifaddr
import pytest
from fixtures.cluster_status import NAS, RIG1, lab

from aivailable.core.state.records import Backend, Device
from aivailable.peer.doctor import Check, CheckVerdict, DoctorReport, network
from aivailable.peer.doctor.examine import Case, heard_targets, told_targets, with_announcement
from aivailable.peer.doctor.findings import (
    Attempt,
    Fault,
    HearingFinding,
    HomeFinding,
    InterfaceFinding,
    MachineFinding,
    MulticastFinding,
    NodeFinding,
    Own,
    PortFinding,
    ProbeTarget,
    Stage,
)
from aivailable.peer.doctor.machine import Remembered
from aivailable.peer.doctor.verdicts import interface_checks, machine_checks, multicast_checks
from aivailable.peer.doctor.verdicts_nodes import (
    LEGS,
    may_change,
    membership_checks,
    node_checks,
    summary_of,
    tells_all,
)
from aivailable.peer.ports import Sighting
from aivailable.wire.join import JoinOffer, Seat
from aivailable.wire.limits import PROTO_MAX

GIB = 2**30
OURS, THEIRS = "c" * 26, "d" * 26
HOME = HomeFinding("/home/x", True, True, 50 * GIB)
MACHINE = MachineFinding(
    python=(3, 12, 1),
    year=2026,
    home=HOME,
    ports=(PortFinding("API", 8420), PortFinding("link", 8421)),
    engine_missing=(),
    engine_problem="",
    devices=(Device("cuda0", "GTX 1080 Ti", "nvidia", Backend.CUDA, 0, 11 * GIB),),
    device_problems=(),
)
OWN = Own("a" * 52, "", "lab", ("192.168.1.5/24",), version="0.1.0")
MEMBER = dataclasses.replace(OWN, cluster_id=OURS)
RUNNING = dataclasses.replace(
    OWN, node=RIG1, cluster_id="k" * 26, status=lab(), states={RIG1: "here"}
)
OFFER = JoinOffer(b"n" * 32, "b" * 52, THEIRS, "lab", 3, False, True, 1, 1)
PLACE = ("192.168.1.9", 8421)
GROUP = MulticastFinding("eth0", "192.168.1.5", own_heard=True)
SIGHTING = Sighting("b" * 8, "i", THEIRS[:8], "lab", True, 8420, (PLACE,))


def node(
    stage: Stage,
    fault: Fault = Fault.NONE,
    *,
    source: str = "asked",
    place: tuple[str, int] = PLACE,
    detail: str = "",
    seeking: bool = False,
    **offer: Any,
) -> NodeFinding:
    told = dataclasses.replace(OFFER, **offer) if stage is Stage.DONE else None
    attempt = Attempt(place, stage, fault, detail, told)
    return NodeFinding(ProbeTarget("rig9", source, (place,), seeking), (attempt,))


def bad(checks: Any) -> list[tuple[str, str]]:
    return [(check.name, check.verdict.value) for check in checks if check.verdict != "ok"]


def the_one(checks: Any, name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_a_card_that_cannot_be_used_is_told_with_its_reason() -> None:
    problem = "P40 (24.0 GiB) is here, but cannot be used: CPU only; install one built with CUDA"
    (check,) = [
        check
        for check in machine_checks(dataclasses.replace(MACHINE, device_problems=(problem,)), OWN)
        if check.verdict != "ok"
    ]
    assert (check.verdict, check.found) == (CheckVerdict.WARNING, problem)


def test_a_sound_machine_has_nothing_to_do() -> None:
    checks = [*machine_checks(MACHINE, OWN)]
    assert bad(checks) == []
    assert [check.advice for check in checks] == [""] * len(checks)


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "words"),
    [
        ({"python": (3, 10, 9)}, "program", "failed", "Python 3.11"),
        ({"year": 1970}, "clock", "warning", "NTP"),
        ({"engine_missing": ("jinja2",)}, "engine", "warning", "aivailable[engine]"),
        ({"engine_problem": "fails to start (exit status -4)"}, "engine", "failed", "reinstall"),
        ({"devices": ()}, "device", "skipped", "--devices cpu:4GiB"),
        (
            {"devices": (), "device_problems": ("no NVIDIA GPU to be seen: no driver",)},
            "device",
            "skipped",
            "install its driver",
        ),
        (
            {"ports": (PortFinding("link", 8421, "port 8421 is in use by another program"),)},
            "link port",
            "failed",
            "--port",
        ),
    ],
)
def test_each_fault_of_the_machine(
    changes: dict[str, Any], name: str, verdict: str, words: str
) -> None:
    checks = [*machine_checks(dataclasses.replace(MACHINE, **changes), OWN)]
    assert bad(checks) == [(name, verdict)]
    assert words in the_one(checks, name).advice


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"writable": False}, "failed", "--home"),
        ({"free_bytes": 1024}, "failed", "free some space"),
        ({"free_bytes": GIB}, "warning", "--models"),
        ({"locked_by": "4711"}, "failed", "logs/aivailable.log"),
        ({"problem": "the identity is damaged: restore it"}, "failed", ""),
    ],
)
def test_each_fault_of_the_home(changes: dict[str, Any], verdict: str, words: str) -> None:
    machine = dataclasses.replace(MACHINE, home=dataclasses.replace(HOME, **changes))
    check = the_one(machine_checks(machine, OWN), "home")
    assert check.verdict == verdict
    assert words in check.advice


def test_a_running_node_holds_home_and_ports_and_shows_its_devices() -> None:
    machine = dataclasses.replace(
        MACHINE, home=dataclasses.replace(HOME, locked_by="4711"), ports=(), devices=()
    )
    checks = [*machine_checks(machine, RUNNING)]
    assert bad(checks) == []
    assert "our own node" in the_one(checks, "ports").found
    assert [c.found for c in checks if c.name == "device"] == [
        "GTX 1080 Ti (cuda), 11.0 GiB",
        "RX 580 (vulkan), 8.0 GiB",
    ]
    old = dataclasses.replace(RUNNING, running_version="0.0.9")
    assert "start the node again" in the_one(machine_checks(machine, old), "program").advice


def test_interfaces_used_left_out_and_unplugged() -> None:
    eth0 = InterfaceFinding("eth0", ("192.168.1.5/24", "fd00::5/64"), True)
    docker = InterfaceFinding("docker0", ("172.17.0.1/16",), False, "container")
    checks = [*interface_checks([eth0, docker])]
    assert bad(checks) == [("docker0", "skipped")]
    assert "IPv4 and IPv6" in checks[0].found
    assert "left out: container" in checks[1].found
    unplugged = dataclasses.replace(eth0, carrier=False)
    (check,) = interface_checks([unplugged])
    assert (check.verdict, "no carrier" in check.found) == (CheckVerdict.FAILED, True)
    assert bad(interface_checks([docker])) == [("docker0", "skipped"), ("network", "failed")]


def hearing(*sightings: Sighting, problem: str = "") -> HearingFinding:
    return HearingFinding(problem, sightings, 4.0)


def test_multicast_that_does_not_come_back_names_the_interface() -> None:
    deaf = dataclasses.replace(GROUP, own_heard=False)
    held = dataclasses.replace(GROUP, problem="Address already in use")
    checks = [*multicast_checks([deaf, held], hearing(SIGHTING), OWN, [])]
    assert bad(checks) == [("eth0", "failed"), ("eth0", "failed")]
    assert all("UDP 5353" in check.advice for check in checks[:2])


def test_nobody_heard_says_where_to_look() -> None:
    check = the_one(multicast_checks([GROUP], hearing(), OWN, []), "others")
    assert check.verdict is CheckVerdict.WARNING
    for words in ("same network", "isolation", "guest Wi-Fi", "VLAN", "UDP 5353", "--seed HOST"):
        assert words in check.advice
    chatty = dataclasses.replace(GROUP, others=("192.168.1.2",))
    check = the_one(multicast_checks([chatty], hearing(), OWN, []), "others")
    assert "other machines' mDNS comes in" in check.found
    assert "isolation" not in check.advice
    check = the_one(multicast_checks([], hearing(problem="no network"), OWN, []), "others")
    assert "no network" in check.found


def test_who_is_heard_is_shown_with_cluster_and_window() -> None:
    seeker = dataclasses.replace(SIGHTING, short_node="seeker77", cluster_prefix="")
    checks = [*multicast_checks([GROUP], hearing(SIGHTING, seeker), OWN, [])]
    assert bad(checks) == []
    told = the_one(checks, SIGHTING.short_node).found
    assert told == "192.168.1.9:8421: cluster 'lab' (dddddddd), window open, protocol 1"
    assert "looks for cluster 'lab'" in the_one(checks, "seeker77").found


def test_a_node_that_answers_but_is_not_heard_needs_a_seed() -> None:
    answered = node(Stage.DONE)
    check = the_one(multicast_checks([GROUP], hearing(), OWN, [answered]), "others")
    assert check.verdict is CheckVerdict.FAILED
    assert "--seed 192.168.1.9:8421" in check.advice
    for harmless in (
        dataclasses.replace(OWN, seeds=(PLACE,)),
        dataclasses.replace(OWN, node="b" * 52),
        dataclasses.replace(OWN, states={"b" * 52: "up"}),
    ):
        check = the_one(multicast_checks([GROUP], hearing(), harmless, [answered]), "others")
        assert check.verdict is CheckVerdict.WARNING
    assert bad(multicast_checks([GROUP], hearing(SIGHTING), OWN, [answered])) == []


def test_our_own_node_must_be_heard_too() -> None:
    ours = dataclasses.replace(SIGHTING, short_node=RIG1[:8])
    checks = [*multicast_checks([GROUP], hearing(ours), RUNNING, [])]
    assert bad(checks) == [("others", "warning")]
    checks = [*multicast_checks([GROUP], hearing(SIGHTING), RUNNING, [])]
    assert bad(checks) == [("our node", "warning")]


@pytest.mark.parametrize(
    ("found", "leg", "words"),
    [
        (node(Stage.NAME, Fault.UNRESOLVED), "connection", "spelling"),
        (node(Stage.CONNECT, Fault.REFUSED), "connection", "start `aivailable up` there"),
        (node(Stage.CONNECT, Fault.TIMED_OUT), "connection", "is it on, is its cable in"),
        (node(Stage.CONNECT, Fault.TIMED_OUT, source="heard"), "connection", "let TCP 8421 in"),
        (node(Stage.CONNECT, Fault.UNREACHABLE), "connection", "switched on"),
        (
            node(Stage.CONNECT, Fault.UNREACHABLE, place=("10.9.9.9", 8421)),
            "connection",
            "same network, or set up a route",
        ),
        (node(Stage.TLS, Fault.TIMED_OUT), "TLS", "what holds TCP 8421"),
        (node(Stage.TLS, Fault.NOT_TLS), "TLS", "API's port + 1"),
        (node(Stage.TLS, Fault.TLS_REFUSED), "TLS", "same version"),
        (node(Stage.TLS, Fault.CLOSED), "TLS", "proxy or firewall"),
        (node(Stage.OFFER, Fault.CLOSED), "answer", "wait some seconds"),
        (node(Stage.OFFER, Fault.TIMED_OUT), "answer", "what listens there"),
        (node(Stage.OFFER, Fault.FOREIGN), "answer", "another program"),
        (node(Stage.DONE, cluster_name="other"), "cluster", "--cluster other"),
        (node(Stage.DONE, proto_min=PROTO_MAX + 1, proto_max=PROTO_MAX + 1), "protocol", "here"),
        (node(Stage.DONE, proto_min=0, proto_max=0), "protocol", "there"),
        (node(Stage.DONE, window_open=False), "window", "`aivailable admit`"),
    ],
)
def test_each_leg_to_a_node_is_named(found: NodeFinding, leg: str, words: str) -> None:
    checks = [*node_checks(found, OWN)]
    assert [check.name for check in checks] == list(LEGS)
    assert [check.verdict.value for check in checks] == (
        ["ok"] * LEGS.index(leg) + ["failed"] + ["skipped"] * (5 - LEGS.index(leg))
    )
    assert words in the_one(checks, leg).advice
    assert summary_of(checks).startswith(f"node rig9, {leg}: ")


def test_a_way_that_works_has_no_advice() -> None:
    for own, offer in ((OWN, {}), (MEMBER, {"cluster_id": OURS, "window_open": False})):
        checks = [*node_checks(node(Stage.DONE, **offer), own)]
        assert [check.verdict.value for check in checks] == ["ok"] * len(LEGS)
        assert [check.advice for check in checks] == [""] * len(LEGS)


@pytest.mark.parametrize(
    ("ours", "theirs", "window_open", "verdict", "words"),
    [
        (True, True, False, "ok", ""),
        (True, False, True, "failed", "with the same key"),
        (False, True, True, "ok", ""),
        (False, True, False, "failed", "with its join key"),
    ],
)
def test_a_join_key_and_the_window(
    ours: bool, theirs: bool, window_open: bool, verdict: str, words: str
) -> None:
    own = dataclasses.replace(OWN, keyed=ours)
    found = node(Stage.DONE, keyed=theirs, window_open=window_open)
    check = the_one(node_checks(found, own), "window")
    assert check.verdict == verdict
    assert words in check.advice


def test_a_second_cluster_of_one_name_is_a_fault_of_another_is_not() -> None:
    same = the_one(node_checks(node(Stage.DONE, source="heard"), MEMBER), "cluster")
    assert same.verdict is CheckVerdict.FAILED
    assert "aivailable leave" in same.advice
    other = node(Stage.DONE, source="heard", cluster_name="other")
    beside = the_one(node_checks(other, MEMBER), "cluster")
    assert (beside.verdict, beside.advice) == (CheckVerdict.SKIPPED, "")
    assert the_one(node_checks(other, OWN), "cluster").verdict is CheckVerdict.WARNING


def test_a_member_that_is_off_and_a_seeker_are_no_faults() -> None:
    asleep = node(Stage.CONNECT, Fault.TIMED_OUT, source="member")
    assert the_one(node_checks(asleep, MEMBER), "connection").verdict is CheckVerdict.WARNING
    seeker = node(Stage.OFFER, Fault.CLOSED, source="heard", seeking=True)
    assert the_one(node_checks(seeker, OWN), "answer").verdict is CheckVerdict.WARNING


def test_the_best_of_several_addresses_counts() -> None:
    silent = node(Stage.CONNECT, Fault.TIMED_OUT, place=("10.0.0.1", 8421)).attempts
    refused = node(Stage.CONNECT, Fault.REFUSED).attempts
    both = NodeFinding(ProbeTarget("rig9", "heard", ()), (*silent, *refused))
    text = the_one(node_checks(both, OWN), "connection").found
    assert text.startswith("10.0.0.1:8421, 192.168.1.9:8421 refused")
    one_works = NodeFinding(both.target, (*silent, *node(Stage.DONE).attempts))
    assert bad(node_checks(one_works, OWN)) == []


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "words"),
    [
        ({"phase": "waiting"}, "phase", "failed", "`aivailable admit`"),
        ({"phase": "removed"}, "phase", "failed", "aivailable up"),
        ({"phase": "seeking"}, "phase", "warning", "wait"),
        (
            {"phase": "seeking", "advice": "it has another key"},
            "phase",
            "failed",
            "another key",
        ),
        ({"advice": "the disk is full"}, "phase", "warning", "the disk is full"),
        ({"quorum": False}, "quorum", "failed", "until 2 are up"),
        ({}, "silent nodes", "warning", "--peer HOST"),
    ],
)
def test_each_state_of_membership(
    changes: dict[str, Any], name: str, verdict: str, words: str
) -> None:
    own = dataclasses.replace(RUNNING, status=dataclasses.replace(lab(), **changes))
    check = the_one(membership_checks(own), name)
    assert check.verdict == verdict
    assert words in check.advice


@pytest.mark.parametrize(
    ("found", "own", "expected"),
    [
        (node(Stage.OFFER, Fault.CLOSED), OWN, True),
        (node(Stage.OFFER, Fault.TIMED_OUT), OWN, False),
        (node(Stage.CONNECT, Fault.REFUSED), OWN, False),
        (node(Stage.DONE, window_open=False), OWN, True),
        (node(Stage.DONE), OWN, False),
        (node(Stage.DONE, window_open=False), dataclasses.replace(OWN, keyed=True), False),
        (node(Stage.DONE, window_open=False, cluster_name="other"), OWN, False),
        (node(Stage.DONE, window_open=False, cluster_id=OURS), MEMBER, False),
    ],
)
def test_what_is_asked_again(found: NodeFinding, own: Own, expected: bool) -> None:
    assert may_change(found, own) is expected


def test_what_our_own_node_does_not_know_yet_is_no_finding() -> None:
    assert tells_all(lab())
    assert tells_all(dataclasses.replace(lab(), phase="seeking", nodes=(), quorum=False))
    assert not tells_all(dataclasses.replace(lab(), quorum=False))
    fresh = dataclasses.replace(lab(), cluster_id="", nodes=(), voters=(), quorum=False)
    assert not tells_all(fresh)
    own = dataclasses.replace(MEMBER, status=fresh)
    (check,) = membership_checks(own)
    assert (check.name, check.verdict) == ("phase", CheckVerdict.WARNING)
    assert "'lab' (cccccccc), whose state has not arrived yet" in check.found
    unheard = tuple(
        part if part.state == "here" else dataclasses.replace(part, state="silent", age_ms=None)
        for part in lab().nodes
    )
    deaf = dataclasses.replace(lab(), nodes=unheard)
    assert not tells_all(deaf)
    told = the_one(membership_checks(dataclasses.replace(RUNNING, status=deaf)), "silent nodes")
    assert "not heard since our node has started" in told.found


def test_a_named_node_may_be_announced_as_seeking() -> None:
    closed = node(Stage.OFFER, Fault.CLOSED)
    seeker = dataclasses.replace(SIGHTING, cluster_prefix="")
    assert the_one(node_checks(closed, OWN), "answer").verdict is CheckVerdict.FAILED
    seen = with_announcement(closed, hearing(seeker))
    assert the_one(node_checks(seen, OWN), "answer").verdict is CheckVerdict.WARNING
    for other in (hearing(), hearing(SIGHTING), hearing(seeker, SIGHTING)):
        assert not with_announcement(closed, other).target.seeking


def test_without_a_running_node_membership_is_what_home_remembers() -> None:
    (check,) = membership_checks(MEMBER)
    assert "belongs to 'lab' (cccccccc)" in check.found
    (check,) = membership_checks(OWN)
    assert "would look for 'lab'" in check.found


def test_the_summary_is_the_first_failure_in_packet_order() -> None:
    warning = Check("machine", "clock", CheckVerdict.WARNING, "says 1970", "set it")
    first = Check("node", "TLS", CheckVerdict.FAILED, "no", "do", "rig9")
    later = Check("membership", "quorum", CheckVerdict.FAILED, "none")
    assert summary_of([warning, first, later]) == "node rig9, TLS: no → do"
    assert summary_of([warning]) == "nothing failed; to note: machine, clock: says 1970 → set it"
    assert summary_of([]).startswith("nothing is wrong")
    assert not DoctorReport((warning, first), "").healthy
    assert DoctorReport((warning,), "").healthy


def case(**changes: Any) -> Case:
    return Case(Path("/home/x"), "lab", 8420, 8421, ("0.0.0.0",), **changes)


def test_who_is_tried_and_who_is_not() -> None:
    seats = tuple(Seat(name, b"", (f"192.168.1.{n}",), 8421, True)
                  for n, name in enumerate((RIG1, "b" * 52, NAS, "e" * 52)))  # fmt: skip
    known = Remembered(RIG1, "k" * 26, "lab", seats)
    told = told_targets(case(peers=(PLACE,), seeds=(PLACE, ("nas", 8421))), known, lab())
    assert [(target.source, target.addresses) for target in told] == [
        ("asked", (PLACE,)),
        ("seed", (("nas", 8421),)),
        ("member", (("192.168.1.2", 8421),)),
    ], "only the member that our node does not hear, and nobody twice"
    asleep = told_targets(case(), known, None)
    assert [target.label for target in asleep] == ["bbbbbbbb", "cccccccc", "eeeeeeee"]
    ours = dataclasses.replace(SIGHTING, short_node=RIG1[:8])
    again = dataclasses.replace(SIGHTING, instance="j", addresses=(("fd00::9", 8421),))
    heard = heard_targets(hearing(ours, SIGHTING, again), known, ())
    assert [(t.label, t.addresses) for t in heard] == [("b" * 8, (PLACE, ("fd00::9", 8421)))]
    assert heard_targets(hearing(SIGHTING), known, told) == ()


def adapter(name: str, index: int, *addresses: str) -> ifaddr.Adapter:
    ips = [ifaddr.IP((a, 0, 0) if ":" in a else a, 24, name) for a in addresses]
    return ifaddr.Adapter(name, name, ips, index=index)


def test_why_interfaces_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = [
        adapter("lo", 1, "127.0.0.1"),
        adapter("docker0", 2, "172.17.0.1"),
        adapter("eth0", 3, "fe80::1", "192.168.1.5"),
        adapter("eth1", 4, "fe80::2"),
    ]
    monkeypatch.setattr(network.ifaddr, "get_adapters", lambda: machine)
    names = [(3, "eth0"), (9, "wlan0")]
    monkeypatch.setattr(network.socket, "if_nameindex", lambda: names)
    plugged: Callable[[str], bool] = {"eth0": True}.__getitem__
    found = network.look_at_interfaces(carrier=plugged)
    assert [(one.name, one.used, one.left_out) for one in found] == [
        ("eth0", True, ""),
        ("docker0", False, "container, virtual machine or VPN"),
        ("eth1", False, "only a link-local IPv6 address"),
        ("lo", False, "this machine itself"),
        ("wlan0", False, "no address"),
    ]
    assert found[0].addresses == ("192.168.1.5/24",)
    assert {"fe80::1", "fe80::2", "172.17.0.1"} < network.own_addresses()
    named = network.look_at_interfaces(("127.0.0.1",), carrier=lambda name: True)
    assert (named[0].name, named[0].used) == ("lo", True)


async def test_none_of_our_own_addresses_is_another_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even one that is of no use to the LAN: packets come from it all the same."""
    machine = [adapter("eth0", 3, "192.168.1.5", "fe80::1")]
    monkeypatch.setattr(network.ifaddr, "get_adapters", lambda: machine)
    given: list[frozenset[str]] = []

    async def remember(one: Any, ours: frozenset[str], seconds: float) -> MulticastFinding:
        given.append(ours)
        return GROUP

    monkeypatch.setattr(network, "_try_group", remember)
    assert await network.try_groups((), 0.0) == (GROUP,)
    assert given == [frozenset({"192.168.1.5", "fe80::1"})]


def test_a_question_is_well_formed_dns() -> None:
    from zeroconf import DNSIncoming

    name = f"doctor-{random.Random(1).randbytes(12).hex()}.local."
    (question,) = DNSIncoming(network.dns_question(name, 16)).questions
    assert (question.name, question.type, question.class_) == (name, 16, 1)
