"""The composition root: the real world's ports, the peer on them, and a run until told to stop.

Reads top to bottom. Nothing here decides anything; no other module builds a port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from aivailable import __version__
from aivailable.config import Config
from aivailable.core.ids import ClusterId
from aivailable.errors import ConfigError
from aivailable.peer.api.auth import AuthRules
from aivailable.peer.api.door.descriptors import raise_limit
from aivailable.peer.api.server import ApiServer
from aivailable.peer.deploying.memory_predictor import MemoryPredictor
from aivailable.peer.devices import Benchmark, SystemDevices, Trials, kept_in, survey
from aivailable.peer.devices.simulated import FILE_NAME, SimulatedUse
from aivailable.peer.home import ADMIN_KEY_FILE, FileHome
from aivailable.peer.joining.cards import told
from aivailable.peer.joining.channel import JoinListener, TlsJoinClient
from aivailable.peer.joining.discovery import MdnsDiscovery
from aivailable.peer.joining.join_key import JOIN_KEY_BYTES, JoinKey, make_join_key
from aivailable.peer.links import TlsLinks
from aivailable.peer.links.identity import Identity
from aivailable.peer.links.trust import Trust, api_context
from aivailable.peer.logs import log_to
from aivailable.peer.membership.new_identity import start_anew
from aivailable.peer.model_store import FileModelStore
from aivailable.peer.node import Peer
from aivailable.peer.ports import Endpoints, PeerConfig, Ports
from aivailable.peer.runtimes import Interpreters, Starter
from aivailable.peer.serving.worker_process import SubprocessLauncher
from aivailable.raft.settings import RaftSettings
from aivailable.raft.store import DiskThread, FileStore

log = logging.getLogger("aivailable")

API_FILE = "api.json"
STOP_DEADLINE_S = 10.0
NO_AUTH_WARNING = (
    "--no-auth: everyone who reaches this port is an admin of the whole cluster, without a key. "
    "They may use, deploy and remove models, register model files of this machine, make and revoke "
    "keys, let nodes in and take them out"
)


class SystemClock:
    """ports.Clock over the operating system's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class SystemRandomness:
    """ports.Randomness from the operating system."""

    def __init__(self) -> None:
        self.random: random.Random = random.SystemRandom()

    def token_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)


def run(config: Config, announce: Callable[[str], None], *, new_identity: bool = False) -> int:
    """Run one peer until SIGTERM or SIGINT. Returns the exit code. `new_identity`: as a new node.

    Raises ConfigError for a home, port or identity that cannot be used.
    """
    return asyncio.run(_run(config, announce, new_identity))


def new_join_key() -> str:
    """For `aivailable invite`: a fresh join key as people carry it."""
    return make_join_key(secrets.token_bytes(JOIN_KEY_BYTES))


async def _run(config: Config, announce: Callable[[str], None], new_identity: bool) -> int:
    key = _join_key(config)
    home = FileHome(config.home)
    try:
        log_to(config.home / "logs", config.log_level)
        raise_limit()
        if new_identity:
            start_anew(home, lambda cluster: _set_aside(config, cluster), announce)
        stop = _stop_on_signals()
        peer, listener, ports, benchmark = await _build(config, home, key, announce)
        api = ApiServer(
            peer,
            ports.clock,
            hosts=config.bind,
            port=config.port,
            rules=AuthRules(
                config.require_auth, config.trusted_proxies, config.hosts, config.origins
            ),
            tls=api_context(config.tls_certificate, config.tls_key),
        )
        try:
            await api.start()
            ports.endpoints.api_port = api.port
            listener.open(peer)
            await peer.start()
            _write_api_file(config, api.port)
            announce(_greeting(config, api.port))
            announce(_cards(config, ports.discovery.addresses()))
            measuring = asyncio.ensure_future(benchmark.run())
            try:
                await _first(stop, peer.left)
            finally:
                measuring.cancel()
                await _within(STOP_DEADLINE_S, _ended(measuring))
            if peer.failure:
                raise ConfigError(peer.failure)
            announce("stopping: handing over, ending workers …")
        finally:
            await _within(STOP_DEADLINE_S, api.stop())
            await _within(STOP_DEADLINE_S, listener.close())
            await _within(STOP_DEADLINE_S, peer.stop())
    finally:
        _remove_api_file(config)
        home.close()
    return 0


async def _build(
    config: Config, home: FileHome, key: JoinKey | None, announce: Callable[[str], None]
) -> tuple[Peer, JoinListener, Ports, Benchmark]:
    """Every port, from the bottom up; and what measures the devices beside the peer."""
    clock, randomness = SystemClock(), SystemRandomness()
    identity = Identity.load_or_create(home.path)
    trust = Trust(identity)
    listener = JoinListener(identity, key=key)
    links = TlsLinks(
        identity,
        trust,
        port=config.link_port,
        rng=randomness.random,
        version=__version__,
        stranger=listener.protocol,
        hosts=config.bind,
    )
    endpoints = Endpoints()
    peers: list[Peer] = []
    interpreters = Interpreters(config.home)
    starter = Starter(interpreters, places=lambda: devices.places())
    trials = Trials(starter)
    devices = SystemDevices(
        tuple((spec.kind, spec.name, spec.total_bytes) for spec in config.devices),
        held=lambda: _held_bytes(peers),
        offload=lambda: survey(interpreters),
        trials=trials,
        cache=kept_in(home),
        runtimes=interpreters,
        simulated=SimulatedUse(home.path / FILE_NAME),
    )
    await devices.look()
    ports = Ports(
        clock=clock,
        randomness=randomness,
        identity=identity,
        home=home,
        links=links,
        join_client=TlsJoinClient(identity, trust, key=key),
        discovery=MdnsDiscovery(
            endpoints, config.interfaces or (), tuple(host for host, _ in config.seeds)
        ),
        devices=devices,
        launcher=SubprocessLauncher(config.home / "logs", starter=starter),
        model_store=FileModelStore(
            home, config.models_dir, blocking=asyncio.to_thread, sleep=asyncio.sleep
        ),
        raft_store=lambda cluster: FileStore(_raft_folder(config, cluster), DiskThread()),
        drop_raft_store=lambda cluster: _set_aside(config, cluster),
        raft_settings=RaftSettings(),
        predict=MemoryPredictor(starter=starter, device=devices.largest_gpu).predict,
        endpoints=endpoints,
    )
    peer = Peer(
        PeerConfig(
            name=config.name,
            cluster_name=config.cluster,
            join_window_s=config.join_window_s,
            version=__version__,
            seeds=config.seeds,
            keyed=key is not None,
        ),
        ports,
        announce,
    )
    peers.append(peer)
    return peer, listener, ports, Benchmark(devices, trials)


def _join_key(config: Config) -> JoinKey | None:
    """Raises ConfigError for a key that is mistyped or a pattern."""
    if config.key is None:
        return None
    try:
        return JoinKey.of(config.key)
    except ValueError as error:
        raise ConfigError(f"--key: {error}") from error


def _held_bytes(peers: list[Peer]) -> Mapping[str, int]:
    """What our replicas claim, by device: all there is to know of cpu and sim devices."""
    if not peers or peers[0].session is None:
        return {}
    held: dict[str, int] = {}
    for replica in peers[0].session.state.replicas_on(peers[0].node):
        for claim in replica.claims:
            held[claim.device_id] = held.get(claim.device_id, 0) + claim.claim_bytes
    return held


def _raft_folder(config: Config, cluster: ClusterId) -> Path:
    return config.home / "raft" / cluster


def _set_aside(config: Config, cluster: ClusterId) -> None:
    """The log of a cluster we no longer belong to: kept once, out of the way."""
    folder = _raft_folder(config, cluster)
    if folder.exists():
        aside = folder.with_name(f"{cluster}.left")
        if not aside.exists():
            folder.rename(aside)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _api_url(config: Config, port: int) -> str:
    """The API as this machine reaches it."""
    scheme = "http" if config.tls_certificate is None else "https"
    everywhere = ("0.0.0.0", "::", "127.0.0.1")
    host = "127.0.0.1" if any(one in everywhere for one in config.bind) else config.bind[0]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _write_api_file(config: Config, port: int) -> None:
    """Tells the CLI and the monitor of this machine where the API is."""
    document = {"url": _api_url(config, port), "pid": os.getpid(), "version": __version__}
    path = config.home / API_FILE
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(document))
    draft.replace(path)


def _remove_api_file(config: Config) -> None:
    (config.home / API_FILE).unlink(missing_ok=True)


def _greeting(config: Config, port: int) -> str:
    everywhere = any(one in ("0.0.0.0", "::") for one in config.bind)
    others = " (and on this machine's other addresses)" if everywhere else ""
    text = f"API on {_api_url(config, port)}/v1{others}\nkey in {config.home / ADMIN_KEY_FILE}"
    return text if config.require_auth else f"{text}\n{NO_AUTH_WARNING}"


def _cards(config: Config, used: tuple[str, ...]) -> str:
    try:
        return told(config.interfaces or (), used)
    except OSError as error:
        return f"network cards: this machine does not tell ({error})"


async def _first(*events: asyncio.Event) -> None:
    """Returns when one of the events is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _ended(task: asyncio.Future[None]) -> None:
    """Waits for the end of a task; what it failed of is logged, for nothing hangs on it."""
    try:
        await task
    except asyncio.CancelledError:
        log.debug("measuring the devices was broken off")
    except OSError as error:
        log.error("measuring the devices failed: %s", error)


async def _within(seconds: float, work: Awaitable[None]) -> None:
    """Ending must end: what hangs is left behind, and said."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work
            return
    log.error("stopping took longer than %g s", seconds)
