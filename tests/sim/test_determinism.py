"""The same seed gives the same trace, whatever the hash seed of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sim.trace import first_difference

TESTS = Path(__file__).parents[1]
SEED = "4"
FAULTS_S = "20"


def trace_under(hash_seed: str, path: Path) -> list[str]:
    """The lines of SEED's trace, made by a process of its own."""
    paths = [str(TESTS.parent), str(TESTS)]
    command = [sys.executable, "-m", "sim.run", SEED, "--trace", str(path), "--faults-s", FAULTS_S]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path.read_text().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_trace_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    one = trace_under("1", tmp_path / "one")
    other = trace_under("2", tmp_path / "other")
    assert len(one) > 1000
    assert first_difference(one, other) == ""


def test_a_difference_is_found_and_shown() -> None:
    assert first_difference(["a", "b"], ["a", "c"]) == "line 1:\n  b\n  c"
    assert "goes on" in first_difference(["a"], ["a", "b"])
    assert first_difference(["a"], ["a"]) == ""
