"""Judges the way to other nodes, and this node's place in its cluster: findings in, checks out.

Pure, like `verdicts`. The legs of one node in the order a packet takes: connection, TLS, answer,
cluster, protocol, window; behind a failed leg the others are skipped.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Final

from aivailable.advice import ADMIT, DOCTOR, DOCTOR_PEER, LEAVE, STATUS, UP, UP_CLUSTER
from aivailable.core.serving.status import ClusterStatus, NodeStatus
from aivailable.peer.doctor.findings import (
    Attempt,
    Check,
    CheckVerdict,
    Fault,
    NodeFinding,
    Own,
    Stage,
)
from aivailable.wire.join import JoinOffer
from aivailable.wire.limits import PROTO_MAX, PROTO_MIN

STALL_WARNED_S: Final = 1.0
"""An event loop that stands still for this long can cost a heartbeat; after some seconds others
take the node for down."""
LEGS: Final = ("connection", "TLS", "answer", "cluster", "protocol", "window")


def node_checks(found: NodeFinding, own: Own) -> Iterator[Check]:
    """Leg by leg until one fails. A member that is off is a warning: machines sleep at night."""
    worst = CheckVerdict.WARNING if found.target.source == "member" else CheckVerdict.FAILED
    label = found.target.label
    reached = 0
    for name, (verdict, text, advice) in zip(LEGS, _legs(found, own, worst), strict=False):
        yield Check("node", name, verdict, text, advice, label)
        reached += 1
        if verdict is not CheckVerdict.OK:
            break
    for name in LEGS[reached:]:
        yield Check("node", name, CheckVerdict.SKIPPED, "not come so far", subject=label)


def may_change(found: NodeFinding, own: Own) -> bool:
    """Whether a node that has only just started would look like this: it has no cluster yet, or
    has not heard from the other members that the window is open."""
    offer = found.best.offer
    if offer is None:
        return found.best.stage is Stage.OFFER and found.best.fault is Fault.CLOSED
    if offer.window_open or own.keyed:
        return False
    failing = [
        check.name for check in node_checks(found, own) if check.verdict is not CheckVerdict.OK
    ]
    return failing == ["window"]


def tells_all(status: ClusterStatus) -> bool:
    """Whether our own node has heard what a node must hear after its start: the cluster's state,
    its own devices, a leader, and every member that is not known to be down. Who has no cluster
    waits for none of it."""
    if status.phase != "member":
        return True
    heard = all(node.state != "silent" or node.age_ms is not None for node in status.nodes)
    here = any(node.state == "here" and (node.devices or node.problems) for node in status.nodes)
    return heard and here and status.quorum


Leg = tuple[CheckVerdict, str, str]


def _legs(found: NodeFinding, own: Own, worst: CheckVerdict) -> Iterator[Leg]:
    best = found.best
    where = _at(best.address)
    if best.stage <= Stage.CONNECT:
        yield (worst, *_no_connection(found, own))
        return
    yield CheckVerdict.OK, f"TCP to {where} works", ""
    if best.stage is Stage.TLS:
        yield (CheckVerdict.FAILED, *_no_tls(best))
        return
    yield CheckVerdict.OK, "the handshake is done", ""
    offer = best.offer
    if offer is None:
        if found.target.seeking and best.fault is Fault.CLOSED:
            yield CheckVerdict.WARNING, "it looks for a cluster itself", "wait some seconds"
            return
        yield (CheckVerdict.FAILED, *_no_offer(best))
        return
    members = "member" if offer.members == 1 else "members"
    yield CheckVerdict.OK, f"node {offer.node[:8]}, {offer.members} {members}", ""
    yield _cluster(found, offer, own)
    yield _protocol(offer)
    yield _window(offer, own)


def _no_connection(found: NodeFinding, own: Own) -> tuple[str, str]:
    """Words for the address that says most: a refusal tells more than a silence."""
    order = (Fault.REFUSED, Fault.TIMED_OUT, Fault.UNREACHABLE, Fault.UNRESOLVED)
    attempt = min(found.attempts, key=lambda one: order.index(one.fault))
    host, port = attempt.address
    tried = ", ".join(_at(one.address) for one in found.attempts)
    match attempt.fault:
        case Fault.REFUSED:
            return (
                f"{tried} refused: the machine is there, nothing listens on TCP {port}",
                f"start {UP} there; if it runs with --port N, its link port is N + 1",
            )
        case Fault.TIMED_OUT if found.target.source == "heard":
            return (
                f"{tried} did not answer, though its announcement comes in: TCP is dropped",
                f"let TCP {port} in through that machine's firewall (and {port - 1} for the API)",
            )
        case Fault.TIMED_OUT:
            return (
                f"{tried} did not answer: it is off or unplugged, or a firewall drops our packets",
                f"is it on, is its cable in, is this its address? Then let TCP {port} in through "
                f"its firewall (and {port - 1} for the API)",
            )
        case Fault.UNREACHABLE if not _same_network(host, own):
            return (
                f"{tried} is in none of our networks ({', '.join(own.networks) or 'none'}): "
                f"{attempt.detail}",
                "connect both machines to the same network, or set up a route between them",
            )
        case Fault.UNREACHABLE:
            return (
                f"{tried} cannot be reached: {attempt.detail}",
                "is it switched on, is its cable in, is this its address? Isolation in the Wi-Fi "
                "or the switch looks like this too",
            )
    return (
        f"the name {host!r} has no address: {attempt.detail}",
        "check the spelling, or give its IP address",
    )


def _no_tls(best: Attempt) -> tuple[str, str]:
    where, port = _at(best.address), best.address[1]
    match best.fault:
        case Fault.TIMED_OUT:
            return (
                f"{where} takes the connection and says nothing",
                f"another program, or a hanging node: see what holds TCP {port} there, and "
                "start the node again",
            )
        case Fault.NOT_TLS:
            return (
                f"{where} does not speak TLS: another program, or the API's port",
                "give the link port: the API's port + 1, 8421 by default",
            )
        case Fault.CLOSED:
            return (
                f"{where} ended the connection during the handshake ({best.detail})",
                "another program, a proxy or firewall between, or a node that is stopping",
            )
    return (
        f"{where} refuses our TLS ({best.detail}): another program, or a firewall that reads along",
        f"see what holds TCP {port} there; the same version of AIvailable on both",
    )


def _no_offer(best: Attempt) -> tuple[str, str]:
    where = _at(best.address)
    if best.fault is Fault.CLOSED:
        return (
            f"{where} speaks TLS like a node and then ends the visit: it has no cluster yet, is "
            "stopping, or too many strangers ask at once",
            f"wait some seconds and run doctor again; {STATUS} there says what it does",
        )
    if best.fault is Fault.TIMED_OUT:
        return (
            f"{where} speaks TLS and then says nothing: not AIvailable, or it hangs",
            "see what listens there, or start that node again",
        )
    return (
        f"{where} speaks TLS, but not our protocol ({best.detail})",
        "another program listens there, or a version too far from ours: install the same one",
    )


def _cluster(found: NodeFinding, offer: JoinOffer, own: Own) -> Leg:
    named = f"cluster {offer.cluster_name!r} ({offer.cluster_id[:8]})"
    if offer.cluster_id == own.cluster_id:
        return CheckVerdict.OK, f"{named}, ours", ""
    if offer.cluster_name != own.cluster_name:
        if own.cluster_id and found.target.source == "heard":
            return CheckVerdict.SKIPPED, f"{named}, another beside ours ({own.cluster_name!r})", ""
        verdict = CheckVerdict.WARNING if found.target.source == "heard" else CheckVerdict.FAILED
        return (
            verdict,
            f"{named}; this machine is for {own.cluster_name!r}",
            "if they belong together, give both the same name: "
            f"{UP_CLUSTER.of(offer.cluster_name)} here"
            + (f", after {LEAVE}" if own.cluster_id else ""),
        )
    if own.cluster_id:
        return (
            CheckVerdict.FAILED,
            f"{named} has the name of ours ({own.cluster_id[:8]}), but is another one",
            "one with nothing deployed and one member gives itself up while the other's window "
            f"is open ({ADMIT} there); else {LEAVE} on one side, and {UP}",
        )
    return CheckVerdict.OK, f"{named}, the name that we look for", ""


def _protocol(offer: JoinOffer) -> Leg:
    theirs, ours = f"{offer.proto_min}–{offer.proto_max}", f"{PROTO_MIN}–{PROTO_MAX}"
    if offer.proto_max < PROTO_MIN or offer.proto_min > PROTO_MAX:
        older = "here" if offer.proto_min > PROTO_MAX else "there"
        return (
            CheckVerdict.FAILED,
            f"it speaks {theirs}, we speak {ours}",
            f"install the newer version {older}",
        )
    return CheckVerdict.OK, f"it speaks {theirs}, we speak {ours}", ""


def _window(offer: JoinOffer, own: Own) -> Leg:
    if offer.cluster_id == own.cluster_id:
        return CheckVerdict.OK, "not needed: we belong to it", ""
    if own.keyed and not offer.keyed:
        return (
            CheckVerdict.FAILED,
            "it has no join key, and with a key this machine joins only nodes that have it",
            "start it with the same key, or this machine without",
        )
    if own.keyed:
        return (
            CheckVerdict.OK,
            "both sides have a join key; joining shows whether it is the same",
            "",
        )
    if offer.window_open:
        return CheckVerdict.OK, f"open: {UP} here joins", ""
    key = ", or start this machine with its join key" if offer.keyed else ""
    return (
        CheckVerdict.FAILED,
        "closed: it admits nobody now",
        f"type {ADMIT} on one of its members, and {UP} here{key}",
    )


def membership_checks(own: Own) -> Iterator[Check]:
    """This node in its cluster, as the running node sees it."""
    status = own.status
    if status is None:
        if own.cluster_id:
            text = f"belongs to {own.cluster_name!r} ({own.cluster_id[:8]}), and does not run"
        else:
            text = f"no node runs here; it would look for {own.cluster_name!r}"
        yield _membership("phase", CheckVerdict.SKIPPED, text, f"start it: {UP}")
        return
    yield _phase(status, own)
    if own.longest_stall_s is not None:
        yield _loop(own.longest_stall_s)
    if status.phase != "member" or not status.nodes:
        return
    yield _quorum(status)
    yield from _others(status)


def _membership(name: str, verdict: CheckVerdict, found: str, advice: str = "") -> Check:
    return Check("membership", name, verdict, found, advice)


def _phase(status: ClusterStatus, own: Own) -> Check:
    cluster = f"{own.cluster_name!r} ({own.cluster_id[:8]})"
    match status.phase:
        case "member" if not status.nodes:
            return _membership(
                "phase",
                CheckVerdict.WARNING,
                f"belongs to {cluster}, whose state has not arrived yet",
                status.advice
                or "wait some seconds and run doctor again; if it stays so, bring the other "
                "members up: their log holds the state",
            )
        case "member":
            verdict = CheckVerdict.WARNING if status.advice else CheckVerdict.OK
            return _membership("phase", verdict, f"member of {cluster}", status.advice)
        case "waiting":
            advice = status.advice or f"type {ADMIT} on one of the cluster's members"
            return _membership(
                "phase", CheckVerdict.FAILED, "asks to join and is not let in", advice
            )
        case "seeking":
            # With advice something keeps it from joining, another join key for one.
            verdict = CheckVerdict.FAILED if status.advice else CheckVerdict.WARNING
            advice = status.advice or "wait some seconds; it founds one when nobody is there"
            return _membership("phase", verdict, "looks for a cluster", advice)
    advice = status.advice or f"start it again with {UP} to join anew"
    return _membership("phase", CheckVerdict.FAILED, f"{status.phase}: out of its cluster", advice)


def _loop(longest_stall_s: float) -> Check:
    text = f"stood still for at most {longest_stall_s:.1f} s in the last five minutes"
    if longest_stall_s < STALL_WARNED_S:
        return _membership("event loop", CheckVerdict.OK, text)
    return _membership(
        "event loop",
        CheckVerdict.WARNING,
        f"{text}: others may take this node for down",
        "its log names each such moment; give it processor and memory: end other programs or give "
        "them a lower priority, and see that the machine does not swap",
    )


def _quorum(status: ClusterStatus) -> Check:
    if status.quorum:
        voters = "voter" if len(status.voters) == 1 else "voters"
        text = f"there is one ({len(status.voters)} {voters})"
        return _membership("quorum", CheckVerdict.OK, text)
    need = len(status.voters) // 2 + 1
    return _membership(
        "quorum",
        CheckVerdict.FAILED,
        f"no majority of the {len(status.voters)} voters is heard: what runs goes on, changes wait",
        f"bring voters back until {need} are up",
    )


def _others(status: ClusterStatus) -> Iterator[Check]:
    for state, verdict in (("silent", CheckVerdict.WARNING), ("down", CheckVerdict.WARNING)):
        missing = [node for node in status.nodes if node.state == state]
        if missing:
            names = ", ".join(map(_missing, missing))
            yield _membership(
                f"{state} nodes",
                verdict,
                names,
                f"are they on? {DOCTOR_PEER} here tells the leg, {DOCTOR} there what it sees",
            )
    up = [node.name for node in status.nodes if node.state in ("here", "up")]
    yield _membership("nodes up", CheckVerdict.OK, ", ".join(up) or "none")


def _missing(node: NodeStatus) -> str:
    unheard = ""
    if node.state == "silent" and node.age_ms is None:
        unheard = ", not heard since our node has started"
    return f"{node.name} ({', '.join(node.addresses) or 'no address'}{unheard})"


def summary_of(checks: Sequence[Check]) -> str:
    """The first failing leg in one sentence with the next step."""
    for verdict in (CheckVerdict.FAILED, CheckVerdict.WARNING):
        for check in checks:
            if check.verdict is verdict:
                where = f"{check.leg} {check.subject}, " if check.subject else f"{check.leg}, "
                opening = "" if verdict is CheckVerdict.FAILED else "nothing failed; to note: "
                advice = f" → {check.advice}" if check.advice else ""
                return f"{opening}{where}{check.name}: {check.found}{advice}"
    return "nothing is wrong as far as doctor can see"


def _same_network(host: str, own: Own) -> bool:
    """Also true for what is no IP literal: then nothing can be said."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
        networks = [ipaddress.ip_interface(text).network for text in own.networks]
    except ValueError:
        return True
    return any(address in network for network in networks)


def _at(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
