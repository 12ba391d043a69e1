"""Doctor on two hosts of a LAN, with one leg broken after another: does it name the leg?"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.netns import Lan
from fixtures.peers import ROOT, PeerProcess, Peers

DOCTOR_LIMIT_S = 30.0
DOCTOR_PROMISED_S = 15.0
STARTUP_S = 5.0
"""For the interpreter on a busy machine."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def doctor(hosts: Lan, number: int, folder: Path, *flags: str) -> dict[str, Any]:
    """What `aivailable doctor --json` says on that host. Checks its exit code and its promise."""
    command = [sys.executable, "-m", "aivailable", "doctor", "--json", *flags]
    peer = PeerProcess(folder / f"home{number}", ())
    started_s = time.monotonic()
    ended = await asyncio.to_thread(
        subprocess.run,
        [*hosts.prefix(number), *command, "--home", str(peer.home)],
        capture_output=True,
        text=True,
        timeout=DOCTOR_LIMIT_S,
        env=peer.environment,
        cwd=ROOT,
    )
    took_s = time.monotonic() - started_s
    assert ended.returncode in (0, 1), ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    print(f"host {number}, {took_s:.1f} s: {report['summary']}")
    assert ended.returncode == (0 if report["healthy"] else 1)
    assert took_s < DOCTOR_PROMISED_S + STARTUP_S
    return report


def failed(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(c["leg"], c["name"]) for c in report["checks"] if c["verdict"] == "failed"]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


async def test_each_broken_leg_is_named(hosts: Lan, tmp_path: Path) -> None:
    one = PeerProcess(
        tmp_path / "home1",
        ("--devices", "cpu:64MiB"),
        prefix=hosts.prefix(1),
        host=hosts.address(1),
    )
    there = ("--peer", hosts.address(1))
    async with Peers([one]) as peers:
        one.start()
        await one.listening()
        await peers.until("founded", lambda s: s[0]["phase"] == "member" and s[0]["window_left_s"])

        at_home, refused = await asyncio.gather(
            doctor(hosts, 1, tmp_path),
            doctor(hosts, 2, tmp_path, *there, "--peer", hosts.address(3)),
        )
        assert at_home["healthy"]
        assert any(c["name"] == "phase" and c["verdict"] == "ok" for c in at_home["checks"])
        assert failed(refused) == [("node", "connection")], "of host 3; the way to host 1 is free"
        assert f"{hosts.address(3)}:8421 refused" in refused["summary"]
        assert any("window open" in c["found"] for c in refused["checks"])

        # Another subnet on the same wire: its announcement comes in, TCP finds no way.
        space, old = hosts.namespace(3), hosts.address(3)
        ip("-n", space, "addr", "del", f"{old}/24", "dev", "eth0")
        ip("-n", space, "addr", "add", "10.92.0.3/24", "dev", "eth0")
        routeless = await doctor(hosts, 3, tmp_path)
        assert failed(routeless) == [("node", "connection")]
        assert "in none of our networks (10.92.0.3/24" in routeless["summary"]

        # The other one's cable, then our own.
        hosts.cut(1)
        lost = await doctor(hosts, 2, tmp_path, *there)
        assert ("node", "connection") in failed(lost)
        assert "is its cable in" in lost["summary"]
        assert any("nobody announced" in c["found"] for c in lost["checks"])
        hosts.mend(1)
        hosts.cut(2)
        unplugged = await doctor(hosts, 2, tmp_path, *there)
        assert failed(unplugged)[0] == ("interfaces", "eth0")
        assert "no carrier" in unplugged["summary"]
