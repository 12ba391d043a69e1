"""What doctor says of an event loop that stood still."""

from __future__ import annotations

import pytest
from fixtures.cluster_status import RIG1, lab

from aivailable.errors import LinkError
from aivailable.peer.doctor import Check, CheckVerdict
from aivailable.peer.doctor.findings import Own
from aivailable.peer.doctor.patience import ask_own_stall
from aivailable.peer.doctor.verdicts_nodes import STALL_WARNED_S, membership_checks


def told(longest_stall_s: float | None) -> list[Check]:
    own = Own(RIG1, "k" * 26, "lab", status=lab(), longest_stall_s=longest_stall_s)
    return [check for check in membership_checks(own) if check.name == "event loop"]


def test_a_short_stall_is_told_and_a_long_one_explained() -> None:
    for stall_s, verdict in ((0.0, CheckVerdict.OK), (STALL_WARNED_S, CheckVerdict.WARNING)):
        (check,) = told(stall_s)
        assert check.verdict is verdict
        assert f"{stall_s:.1f} s" in check.found
        assert bool(check.advice) is (verdict is CheckVerdict.WARNING)


def test_what_is_not_told_is_no_finding() -> None:
    assert told(None) == []


async def test_a_node_that_does_not_tell_costs_nothing_else() -> None:
    async def silent() -> float | None:
        raise LinkError("nobody answers")

    async def telling() -> float | None:
        return 0.5

    assert await ask_own_stall(None) is None
    assert await ask_own_stall(silent) is None
    assert await ask_own_stall(telling) == pytest.approx(0.5)
