"""Looks at this machine: home, ports, engine, devices, and what home says of our cluster.

Reads only: makes no file, no home, no identity. Must not judge.
"""

from __future__ import annotations

import asyncio
import datetime
import fcntl
import functools
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aivailable.errors import ConfigError, SchemaError
from aivailable.peer.devices import SystemDevices
from aivailable.peer.devices.offload import Offload, survey
from aivailable.peer.devices.system import ENGINE_MODULES
from aivailable.peer.devices.trial_cache import FILE as DEVICES_FILE
from aivailable.peer.devices.trial_cache import TrialCache
from aivailable.peer.doctor.findings import HomeFinding, MachineFinding, PortFinding
from aivailable.peer.home import LOCK_NAME
from aivailable.peer.joining.cluster_file import CLUSTER_FILE, ClusterFile
from aivailable.peer.links.identity import IDENTITY_NAME, Identity
from aivailable.peer.links.listening import bind
from aivailable.peer.runtimes import Interpreters
from aivailable.wire.join import Seat
from aivailable.wire.schema import unpack

ENGINE_LIMIT_S: Final = 9.0
"""To start llama-cpp-python in a throw-away process, also on an old disk."""
CLUSTER_FILE_MAX_BYTES: Final = 1024 * 1024
PID_MAX_CHARS: Final = 32


@dataclass(frozen=True, slots=True)
class Remembered:
    """What home knows of this node and its cluster, whether it runs or not."""

    node: str = ""
    cluster_id: str = ""
    cluster_name: str = ""
    seats: tuple[Seat, ...] = ()
    problem: str = ""


def remembered(home: Path) -> Remembered:
    """Empty for a home that was never used; `problem` for files that cannot be used."""
    node = ""
    try:
        if (home / IDENTITY_NAME).exists():
            node = Identity.load_or_create(home).node
        path = home / CLUSTER_FILE
        if not path.exists():
            return Remembered(node)
        if path.stat().st_size > CLUSTER_FILE_MAX_BYTES:
            return Remembered(node, problem=f"{path} is over {CLUSTER_FILE_MAX_BYTES} bytes")
        file = unpack(ClusterFile, path.read_bytes())
    except ConfigError as error:
        return Remembered(node, problem=str(error))
    except OSError as error:
        return Remembered(node, problem=f"{error.filename or home}: {error.strerror}")
    except SchemaError as error:
        return Remembered(
            node, problem=f"{home / CLUSTER_FILE} is damaged ({error}); remove it to join anew"
        )
    return Remembered(node, file.cluster_id, file.name, file.seats)


def look_at_home(home: Path, problem: str = "") -> HomeFinding:
    """Raises nothing: what cannot be read is a finding."""
    exists = home.is_dir()
    place = home
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free_bytes = shutil.disk_usage(place).free
    except OSError:
        free_bytes = 0
    if home.exists() and not exists:
        problem = f"{home} is not a directory; choose another with --home"
    return HomeFinding(
        path=str(home),
        exists=exists,
        writable=os.access(place, os.W_OK | os.X_OK),
        free_bytes=free_bytes,
        locked_by=_holder(home / LOCK_NAME),
        problem=problem,
    )


def _holder(path: Path) -> str:
    """Process id of who holds the lock, "" when nobody does. A shared lock for an instant: an
    `up` that starts in that instant is the only one who could notice."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(handle, PID_MAX_CHARS, 0).decode(errors="replace").strip()
        return owner if owner.isdecimal() else "unknown"
    finally:
        os.close(handle)
    return ""


def look_at_ports(hosts: tuple[str, ...], api: int, links: int) -> tuple[PortFinding, ...]:
    """Opens each for an instant."""
    found = []
    for purpose, port in (("API", api), ("link", links)):
        problem = ""
        try:
            for opened in bind(hosts, port):
                opened.close()
        except ConfigError as error:
            problem = str(error)
        found.append(PortFinding(purpose, port, problem))
    return tuple(found)


async def look_at_machine(
    home: HomeFinding,
    ports: tuple[PortFinding, ...],
    explicit: tuple[tuple[str, str, int], ...],
    now_ms: int,
) -> MachineFinding:
    """Engine and devices are asked here, within ENGINE_LIMIT_S. `now_ms`: UTC."""
    missing = tuple(name for name in ENGINE_MODULES if importlib.util.find_spec(name) is None)
    interpreters = Interpreters(Path(home.path))
    engine = asyncio.ensure_future(_surveyed(interpreters))
    devices = SystemDevices(
        explicit,
        held=dict,
        offload=functools.partial(_answer, engine),
        cache=TrialCache(functools.partial(_read, Path(home.path) / DEVICES_FILE)),
        runtimes=interpreters,
    )
    try:
        await devices.look()
        offload = await engine
    finally:
        engine.cancel()
        devices.close()
    inventory = devices.inventory("")
    missing = () if interpreters.whole() else missing
    starts = bool(
        offload.cuda
        or offload.offered
        or interpreters.whole()
        or offload.reason.startswith("this llama-cpp-python build")
    )
    return MachineFinding(
        python=sys.version_info[:3],
        year=_year(now_ms),
        home=home,
        ports=ports,
        engine_missing=missing,
        engine_problem="" if missing or starts else offload.reason,
        devices=inventory.devices,
        device_problems=inventory.problems,
        gpus=devices.gpus,
    )


async def _surveyed(interpreters: Interpreters) -> Offload:
    """Within ENGINE_LIMIT_S, however many runtimes there are."""
    count = 1 + len(interpreters.whole())
    return await survey(interpreters, ENGINE_LIMIT_S / count)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


async def _answer(engine: asyncio.Future[Offload]) -> Offload:
    return await engine


def _year(now_ms: int) -> int:
    """UTC year; clocks of dead boards are before or after what a date can be."""
    try:
        return datetime.datetime.fromtimestamp(now_ms / 1000, datetime.UTC).year
    except (ValueError, OverflowError, OSError):
        return 0
