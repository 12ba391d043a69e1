"""What `aivailable doctor` asks for, prints and exits with; probing is scripted here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aivailable.cli import app
from aivailable.peer import doctor
from aivailable.peer.doctor import Case, Check, CheckVerdict, DoctorReport

SOUND = (
    Check("machine", "clock", CheckVerdict.OK, "says 2026"),
    Check("interfaces", "docker0", CheckVerdict.SKIPPED, "left out: container"),
    Check("node", "connection", CheckVerdict.OK, "TCP works", subject="rig2"),
    Check("node", "TLS", CheckVerdict.OK, "the handshake is done", subject="rig2"),
)
BROKEN = (
    *SOUND,
    Check("node", "connection", CheckVerdict.OK, "TCP works", subject="rig3"),
    Check("node", "TLS", CheckVerdict.FAILED, "not [TLS]", "give the link port", "rig3"),
    Check("node", "answer", CheckVerdict.SKIPPED, "not come so far", subject="rig3"),
)


@dataclasses.dataclass
class Examined:
    """Stands in for the probing; remembers what it was given."""

    report: DoctorReport = dataclasses.field(
        default_factory=lambda: DoctorReport(SOUND, "nothing is wrong")
    )
    case: Case | None = None
    seen: Any = None

    async def __call__(
        self, case: Case, ask_own: Any = None, ask_stall: Any = None
    ) -> DoctorReport:
        self.case = case
        self.seen = None if ask_own is None else await ask_own()
        return self.report


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Examined:
    found = Examined()
    monkeypatch.setattr(doctor, "examine", found)
    return found


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_a_sound_report_is_short_and_exits_0(client: Any, examined: Examined) -> None:
    result = run()
    assert result.exit_code == 0, result.stderr
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines == [
        "This machine",
        "●  clock           says 2026",
        "",
        "Network interfaces",
        "·  docker0         left out: container",
        "",
        "Node rig2",
        "●  works           TCP works; the handshake is done",
        "",
        "nothing is wrong",
    ]


def test_a_failing_leg_is_shown_with_its_advice_and_exits_1(
    client: Any, examined: Examined
) -> None:
    examined.report = DoctorReport(BROKEN, "node rig3, TLS: not [TLS] → give the link port")
    result = run()
    assert result.exit_code == 1
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    start = lines.index("Node rig3")
    assert lines[start + 1 :] == [
        "●  works           TCP works",
        "✕  TLS             not [TLS]",
        "                   → give the link port",
        "",
        "node rig3, TLS: not [TLS] → give the link port",
    ]


def test_json_holds_every_check(client: Any, examined: Examined) -> None:
    examined.report = DoctorReport(BROKEN, "TLS")
    result = run("--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["healthy"], document["summary"]) == (False, "TLS")
    assert document["checks"][5] == {
        "leg": "node",
        "name": "TLS",
        "verdict": "failed",
        "found": "not [TLS]",
        "advice": "give the link port",
        "subject": "rig3",
    }
    assert len(document["checks"]) == len(BROKEN)


def test_settings_and_peers_reach_the_examination(
    client: Any, examined: Examined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIVAILABLE_CLUSTER", "lab")
    monkeypatch.setenv("AIVAILABLE_SEEDS", "nas")
    monkeypatch.setenv("AIVAILABLE_KEY", "0123456789abcdef" * 2)
    (tmp_path / "config.toml").write_text('port = 9000\ndevices = "cpu:1GiB"\n')
    assert run("--peer", "rig7", "--peer", "[fd00::7]:9").exit_code == 0
    case = examined.case
    assert case is not None
    assert (case.home, case.cluster_name, case.port, case.link_port) == (
        tmp_path,
        "lab",
        9000,
        9001,
    )
    assert case.peers == (("rig7", 8421), ("fd00::7", 9))
    assert case.keyed
    assert "0123456789abcdef" not in repr(case)
    assert case.seeds == (("nas", 8421),)
    assert case.devices == (("cpu", "CPU", 2**30),)
    assert examined.seen is None, "no node runs from this home"


def test_a_running_node_is_asked_with_its_key(
    client: Any, examined: Examined, tmp_path: Path
) -> None:
    (tmp_path / "api.json").write_text('{"url": "http://127.0.0.1:9999", "version": "0.0.9"}')
    (tmp_path / "admin.key").write_text("aiv-own\n")
    assert run().exit_code == 0
    assert client.opened == [(["http://127.0.0.1:9999"], "aiv-own")]
    assert examined.seen == client.statuses[0]
    assert examined.case is not None
    assert examined.case.running_version == "0.0.9"


def test_wrong_options_are_usage_errors(client: Any, examined: Examined) -> None:
    assert run("--peer", "a b").exit_code == 2
    assert run(*["--peer", "x"] * 9).exit_code == 2
    assert examined.case is None
