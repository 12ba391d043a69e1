"""Acceptance 1 of the first issue: the demo answers, says who took part, and leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.peers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DEMO_LIMIT_S = 120.0


def test_the_demo_answers_once_and_leaves_nothing(tmp_path: Path) -> None:
    """The folder of its own for temporary files marks every process that it starts."""
    path = os.pathsep.join(
        part for part in (str(ROOT), str(ROOT / "tui"), os.environ.get("PYTHONPATH", "")) if part
    )
    command = ["demo", "--peers", "3", "--once", "Say hello"]
    done = subprocess.run(
        [sys.executable, "-m", "aivailable", *command],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *answer, last = done.stdout.strip().splitlines()
    assert "".join(answer).strip(), done.stdout
    told = re.fullmatch(r"answered by (\w{8}), hosted by (\w{8})", last)
    assert told is not None, done.stdout
    assert told[1] != told[2], "the answer came through the host itself"
    assert "3 voters" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert _processes_with(f"TMPDIR={tmp_path}") == []


def _processes_with(variable: str) -> list[str]:
    """Command lines of the living processes that have this in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue  # It ended meanwhile, or is another user's.
    return found
