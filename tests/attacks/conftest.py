"""Real peers that are attacked: on the loopback interface, or as hosts on a bridge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fixtures.loopback_lab import homes, peers, three
from fixtures.netns import Lan, lan, missing

__all__ = ["homes", "hosts", "peers", "three"]


@pytest.fixture
def hosts() -> Iterator[Lan]:
    """Three hosts on one bridge; skipped with the reason where there are no namespaces."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with lan(3) as one:
        yield one
