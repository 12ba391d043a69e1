"""Five hosts with real TLS under cuts (whole, one way, of one pair), kill -9, joins and removals:
a minute of lan.workload.

Ten minutes: `python tests/lan/workload.py --minutes 10 --seed 1` as root.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.netns import Lan, lan
from lan.workload import HOSTS, play

DURATION_S = 60.0
ANSWERED_MIN = 200
KINDS_MIN = 7
"""Of ten; a minute has room for about eleven injuries, in the seed's order."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def five(namespaces: None) -> Iterator[Lan]:
    with lan(HOSTS) as one:
        yield one


async def test_nothing_promised_is_lost(five: Lan, tmp_path: Path) -> None:
    """The seed is printed; the nemesis draws by it, real time does the rest."""
    report = await play(five, tmp_path, secrets.randbelow(1_000_000), DURATION_S)
    assert report.problems == [], report.line()
    assert len(report.injuries) >= KINDS_MIN, report.line()
    assert report.counts["writes acknowledged"] >= ANSWERED_MIN, report.line()
    assert report.counts["reads answered"] >= ANSWERED_MIN, report.line()
    assert report.counts["keys acknowledged"] > 0, report.line()
