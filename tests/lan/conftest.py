"""Three hosts on one bridge, each in a network namespace; skipped where that cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fixtures.netns import Lan, lan, missing


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips with the reason where there are no network namespaces to be had."""
    reason = missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def hosts(namespaces: None) -> Iterator[Lan]:
    with lan(3) as one:
        yield one
