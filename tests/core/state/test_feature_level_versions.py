"""This code and the next version of it, each in its own process, on the same log and snapshots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.next_version import NEXT, next_version
from fixtures.states import Cluster, equipped

from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import RaiseFeatureLevel, UpdateMember
from aivailable.core.state.levels import LEVEL
from aivailable.core.state.machine import CODE_TOO_OLD, apply_bytes
from aivailable.core.state.state import State, decode_state, encode_state, state_digest
from aivailable.errors import CodeTooOld

RUN_LIMIT_S = 60.0
_REPLAY = """
import json, sys
from aivailable.core.state.codec import encode_command
from aivailable.core.state.commands import Command, SetNote
from aivailable.core.ids import CommandId
from aivailable.core.state.machine import apply_bytes
from aivailable.core.state.state import State, decode_state, encode_state, state_digest

state, steps = State(), []
for item in json.load(sys.stdin):
    if "note" in item:
        command = Command(CommandId("n1", item["note"]), SetNote("n1", "new"), "operator:k")
        payload = encode_command(command)
    elif "snapshot" in item:
        state = decode_state(bytes.fromhex(item["snapshot"]))
        continue
    else:
        payload = bytes.fromhex(item["entry"])
    state, outcome = apply_bytes(state, payload)
    steps.append({"entry": payload.hex(), "digest": state_digest(state), "code": outcome.code,
                  "snapshot": encode_state(state).hex()})
json.dump(steps, sys.stdout)
"""


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next_version(tmp_path_factory.mktemp("versions") / "next")


def replay(root: Path, items: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the code under `root` makes of these entries."""
    ended = subprocess.run(
        [sys.executable, "-c", _REPLAY],
        input=json.dumps(items).encode(),
        stdout=subprocess.PIPE,
        cwd=root,
        timeout=RUN_LIMIT_S,
        check=True,
    )
    steps: list[dict[str, str]] = json.loads(ended.stdout)
    return steps


def upgraded() -> Cluster:
    """A used cluster, each member of which says that it runs the next version."""
    cluster = equipped(2)
    for node in ("n1", "n2"):
        cluster.must(UpdateMember(node, node, (), 1, 2, "9", 1, 1, NEXT, "i"), by=node)
    cluster.must(RaiseFeatureLevel(LEVEL))
    return cluster


def test_both_make_the_same_of_one_log_until_the_level_rises(newer: Path) -> None:
    cluster = upgraded()
    log = [{"entry": encode_command(command).hex()} for command in cluster.log]
    rise = cluster.command(RaiseFeatureLevel(NEXT))
    tail: list[dict[str, Any]] = [
        {"note": 900}, {"note": 900}, {"entry": encode_command(rise).hex()}, {"note": 901},
    ]  # fmt: skip
    steps = replay(newer, [*log, *tail])
    state = State()
    for step in steps[:-2]:
        state, outcome = apply_bytes(state, bytes.fromhex(step["entry"]))
        assert (outcome.code, state_digest(state)) == (step["code"], step["digest"])
        assert encode_state(state).hex() == step["snapshot"]
    assert [step["code"] for step in steps[-4:]] == ["feature_level", "feature_level", "", ""]
    assert state.feature_level == LEVEL
    for step in steps[-2:]:
        after, outcome = apply_bytes(state, bytes.fromhex(step["entry"]))
        expected = CODE_TOO_OLD if step is steps[-2] else "feature_level"
        assert outcome.code == expected
        assert after is state or step is steps[-1]
        with pytest.raises(CodeTooOld):
            decode_state(bytes.fromhex(step["snapshot"]))


def test_snapshots_go_both_ways_below_the_level(newer: Path) -> None:
    cluster = upgraded()
    more = cluster.command(UpdateMember("n2", "again", (), 1, 2, "9", 1, 1, NEXT, "i"), by="n2")
    given = {"snapshot": encode_state(cluster.state).hex()}
    (step,) = replay(newer, [given, {"entry": encode_command(more).hex()}])
    cluster.submit(more)
    assert step["digest"] == state_digest(cluster.state)
    assert decode_state(bytes.fromhex(step["snapshot"])) == cluster.state
