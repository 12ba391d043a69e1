"""Puts tests/ on the path, so that every layer can import `fixtures.*`; two processes at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# Nodes that tests start would measure their devices as soon as they are idle.
os.environ.setdefault("AIVAILABLE_BENCHMARK", "0")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from fixtures.halves import Halves

    return Halves(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        from fixtures.halves import ordered

        ordered(items)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if hasattr(item.config, "workerinput"):
        from fixtures.halves import yield_to_real_time

        yield_to_real_time(item)
