"""Doctor's probes against real sockets on loopback: each way to fail, and real join listeners."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import fcntl
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from fixtures.cluster_status import lab
from fixtures.join_house import Server
from fixtures.mesh import CLUSTER, make_node, stop_nodes

from aivailable.core.serving.status import ClusterStatus
from aivailable.errors import AivailableError
from aivailable.peer.devices.offload import Offload
from aivailable.peer.doctor import Case, DoctorReport, examine, machine, network, patience
from aivailable.peer.doctor.findings import Attempt, Fault, ProbeTarget, Stage
from aivailable.peer.joining.channel import JoinListener
from aivailable.peer.links.identity import Identity
from aivailable.wire.join import JoinOffer

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = ("127.0.0.1",)
SHORT_S = 0.3


@contextlib.asynccontextmanager
async def serving(speak: Speak, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that speaks so; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                await speak(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(1024):
        pass


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await silence(reader, writer)


async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What a server says that does not know TLS 1.3: fatal, protocol_version (RFC 8446 §6)."""
    await reader.read(1)
    writer.write(bytes([21, 3, 3, 0, 2, 2, 70]))
    await silence(reader, writer)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


def tls_of(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def foreign_pem(folder: Path) -> Path:
    """What a web server has: an RSA key."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "printer")])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=9000))
        .sign(key, hashes.SHA256())
    )
    path = folder / "foreign.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "TLS_LIMIT_S", SHORT_S)
    monkeypatch.setattr(network, "OFFER_LIMIT_S", SHORT_S)


async def attempt(port: int, host: str = "127.0.0.1") -> Attempt:
    found = await network.reach(ProbeTarget("it", "asked", ((host, port),)))
    (one,) = found.attempts
    return one


async def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        one = await attempt(taken.getsockname()[1])
    assert (one.stage, one.fault) == (Stage.CONNECT, Fault.REFUSED)


@pytest.mark.parametrize(
    ("speak", "fault"),
    [
        (silence, Fault.TIMED_OUT),
        (http, Fault.NOT_TLS),
        (alert, Fault.TLS_REFUSED),
        (hang_up, Fault.CLOSED),
    ],
)
async def test_servers_without_our_tls(
    speak: Speak, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is not Fault.TIMED_OUT:
        monkeypatch.setattr(network, "TLS_LIMIT_S", 10.0)
    async with serving(speak) as port:
        one = await attempt(port)
    assert (one.stage, one.fault) == (Stage.TLS, fault), one


async def test_tls_servers_that_are_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "TLS_LIMIT_S", 10.0)
    async with serving(silence, tls_of(foreign_pem(tmp_path))) as port:
        one = await attempt(port)
    assert (one.stage, one.fault) == (Stage.OFFER, Fault.FOREIGN)
    like_ours = tls_of(Identity.load_or_create(tmp_path).pem_path)
    for speak, fault in ((silence, Fault.TIMED_OUT), (http, Fault.FOREIGN)):
        async with serving(speak, like_ours) as port:
            one = await attempt(port)
        assert (one.stage, one.fault) == (Stage.OFFER, fault)


async def test_names_are_resolved_and_unknown_ones_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        if host == "unknown":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(network.socket, "getaddrinfo", resolve)
    async with serving(hang_up) as port:
        assert (await attempt(port, "known")).stage is Stage.TLS
        one = await attempt(port, "unknown")
    assert (one.stage, one.fault) == (Stage.NAME, Fault.UNRESOLVED)
    assert one.detail == "Name or service not known"


class AgeingServer(Server):
    """Answers its first visits like a node that has just started: silent or shut, as told."""

    def __init__(self, node: str, young_visits: int = 0, **offered: Any) -> None:
        super().__init__(node, **offered)
        self.young_visits = young_visits

    def offer(self, nonce: bytes) -> JoinOffer | None:
        if self.young_visits:
            self.young_visits -= 1
            if not self.young_visits:
                self.silent = False
                self.offered["window_open"] = True
        return super().offer(nonce)


@contextlib.asynccontextmanager
async def cluster(folder: Path, **changes: Any) -> AsyncIterator[int]:
    """A real join listener, which doctor asks for its offer only; its link port. `seeking`: it has
    nothing to offer."""
    seeking = changes.pop("seeking", False)
    listeners: list[JoinListener] = []
    node = make_node(folder / "node", stranger=lambda: listeners[0].protocol())
    listeners.append(JoinListener(node.identity))
    server = AgeingServer(node.id, members=2, pristine=False, **changes)
    server.silent = seeking
    listeners[0].open(server)
    await node.links.start(node.listener)
    try:
        yield node.links.port
    finally:
        await listeners[0].close()
        await stop_nodes([node])
    assert server.admitted == []


async def test_a_real_listener_tells_its_offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "TLS_LIMIT_S", 10.0)
    async with cluster(tmp_path) as port:
        one = await attempt(port)
    assert (one.stage, one.fault) == (Stage.DONE, Fault.NONE)
    assert one.offer is not None
    assert (one.offer.cluster_id, one.offer.cluster_name) == (CLUSTER, "lab")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is started, and loopback may take its time."""

    async def cpu_only(*_: Any) -> Offload:
        return Offload(False, "this llama-cpp-python build runs on the CPU only")

    monkeypatch.setattr(machine, "survey", cpu_only)
    monkeypatch.setattr(network, "TLS_LIMIT_S", 10.0)
    monkeypatch.setattr(network, "OFFER_LIMIT_S", 5.0)
    monkeypatch.setattr(patience, "NEWS_WAIT_S", SHORT_S)
    monkeypatch.setattr(patience, "ASK_AGAIN_S", 0.0)


async def examined(
    home: Path, port: int | None = None, listen_s: float = SHORT_S, **options: Any
) -> DoctorReport:
    peers = () if port is None else (("127.0.0.1", port),)
    case = Case(
        home, "lab", 0, 0, LOOPBACK, interfaces=LOOPBACK, peers=peers, listen_s=listen_s,
        devices=(("cpu", "CPU", 2**20),),
    )  # fmt: skip
    return await examine(case, **options)


def failed(report: DoctorReport) -> list[str]:
    """Without what multicast says: on this loopback other tests may be heard, or not."""
    return [
        check.name
        for check in report.checks
        if check.verdict == "failed" and check.leg != "multicast" and "127.0.0.1" in check.subject
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"window_open": False}, ["window"]),
        ({"cluster_name": "other"}, ["cluster"]),
        ({"seeking": True}, ["answer"]),
    ],
    ids=["open", "closed", "other-cluster", "seeking"],
)
async def test_the_whole_examination(
    tmp_path: Path, quick: None, changes: dict[str, Any], expected: list[str]
) -> None:
    home = tmp_path / "home"
    async with cluster(tmp_path, **changes) as port:
        report = await examined(home, port)
    assert failed(report) == expected
    assert not home.exists(), "doctor leaves no trace"
    legs = list(dict.fromkeys(check.leg for check in report.checks))
    assert legs == ["machine", "interfaces", "multicast", "node", "membership"]
    (group,) = [c for c in report.checks if c.leg == "multicast" and c.name == "lo"]
    assert group.verdict == "ok", group.found


@pytest.mark.parametrize("young", [{"seeking": True}, {"window_open": False}])
async def test_a_node_that_has_just_started_is_asked_again(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, young: dict[str, Any]
) -> None:
    """It founds, or hears from the others that the window is open, while doctor looks."""
    monkeypatch.setattr(patience, "NEWS_WAIT_S", 10.0)
    async with cluster(tmp_path, **young, young_visits=3) as port:
        report = await examined(tmp_path / "home", port)
    assert failed(report) == []
    (window,) = [c for c in report.checks if c.name == "window" and "127.0.0.1" in c.subject]
    assert window.verdict == "ok"


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """A process that runs from this home."""
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, b"4711")
        yield
    finally:
        os.close(lock)


async def test_our_own_node_that_has_just_started_is_asked_again(
    tmp_path: Path, quick: None
) -> None:
    """First its API is not there, then it has no state, no leader, and hears nobody."""
    empty = dataclasses.replace(lab(), nodes=(), voters=(), quorum=False, cluster_id="")
    deaf = dataclasses.replace(
        lab(),
        nodes=tuple(
            node if node.state == "here" else dataclasses.replace(node, state="silent", age_ms=None)
            for node in lab().nodes
        ),
    )
    answers: list[ClusterStatus | AivailableError | None] = [
        None, AivailableError("connection refused"), empty,
        dataclasses.replace(lab(), quorum=False), deaf, lab(), empty,
    ]  # fmt: skip

    async def ask() -> ClusterStatus | None:
        answer = answers.pop(0)
        if isinstance(answer, AivailableError):
            raise answer
        return answer

    with held(tmp_path):
        report = await examined(tmp_path, listen_s=2.0, ask_own=ask)
    assert answers == [empty], "asked until it told all, not longer"
    found = {check.name: check.verdict.value for check in report.checks}
    assert (found["home"], found["phase"], found["quorum"]) == ("ok", "ok", "ok")


async def test_an_own_node_that_tells_nothing_new_is_not_waited_for_long(
    tmp_path: Path, quick: None
) -> None:
    async def ask() -> ClusterStatus | None:
        return dataclasses.replace(lab(), quorum=False)

    with held(tmp_path):
        report = await examined(tmp_path, ask_own=ask)
    found = {check.name: check.verdict.value for check in report.checks}
    assert (found["phase"], found["quorum"]) == ("ok", "failed")


async def test_with_a_running_node_its_view_is_shown(tmp_path: Path, quick: None) -> None:
    async def status() -> ClusterStatus:
        return lab()

    report = await examined(tmp_path, ask_own=status)
    found = {check.name: check.verdict.value for check in report.checks}
    assert (found["phase"], found["quorum"], found["silent nodes"]) == ("ok", "ok", "warning")
    assert found["our node"] == "warning"
    assert found["ports"] == "ok"


async def test_a_node_that_holds_home_and_does_not_answer(tmp_path: Path, quick: None) -> None:
    async def nobody() -> ClusterStatus:
        raise AivailableError("connection refused")

    with held(tmp_path):
        report = await examined(tmp_path, ask_own=nobody)
    (home,) = [check for check in report.checks if check.name == "home"]
    assert (home.verdict, report.healthy) == ("failed", False)
    assert "process 4711" in home.found
    assert "connection refused" in home.found
    assert report.summary.startswith("machine, home: ")


@pytest.mark.parametrize("name", ["identity.pem", "cluster"])
async def test_damaged_files_in_home_are_named(tmp_path: Path, quick: None, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff rubbish")
    report = await examined(tmp_path)
    (home,) = [check for check in report.checks if check.name == "home"]
    assert home.verdict == "failed"
    assert name in home.found
    assert "damaged" in home.found


def test_ports_in_use_are_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        api, link = machine.look_at_ports(LOOPBACK, 0, taken.getsockname()[1])
    assert api.problem == ""
    assert "in use" in link.problem
