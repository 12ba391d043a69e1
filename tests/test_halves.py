"""`pytest -n 2` gives real time to one process, all of it, first and in its order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

halves = pytest.importorskip("fixtures.halves", reason="pytest-xdist is not installed")

IDS = [
    "tests/cli/test_fit.py::test_one",
    "tests/cluster/test_failures.py::test_two",
    "tests/peer/api/test_auth.py::test_three[a/b::c]",
    "tests/system/test_demo.py::test_four",
    "tests/test_tidy.py::test_five",
]


def test_real_time_is_one_unit_and_the_rest_goes_by_file_or_by_test() -> None:
    assert [halves.unit(one) for one in IDS] == [
        "tests/cli/test_fit.py",
        "real time",
        "tests/peer/api/test_auth.py",
        "real time",
        "tests/test_tidy.py",
    ]
    seeds = "tests/sim/test_seeds.py::test_a_cluster_survives_and_converges[1]"
    assert halves.unit(seeds) == seeds


def test_real_time_comes_first_and_nothing_else_changes_places() -> None:
    items = [SimpleNamespace(nodeid=one) for one in IDS]
    halves.ordered(items)
    assert [IDS.index(item.nodeid) for item in items] == [1, 3, 0, 2, 4]
