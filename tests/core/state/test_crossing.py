"""Who may go from one cluster into another, and who may come in: the table, and its callers."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

import pytest

from aivailable.core.state.crossing import Arrival, Departure, Way, may_come, may_go

PEER = Path(__file__).parents[3] / "aivailable" / "peer"
ASKED_FOR = (Way.SEEKING, Way.ORDERED, Way.FOLLOWING, Way.REJOINING)
BOTH = (False, True)


@pytest.mark.parametrize("way", ASKED_FOR)
def test_what_is_asked_for_is_done_whatever_the_window(way: Way) -> None:
    assert all(may_go(Departure(way, *facts)) for facts in product(BOTH, repeat=4))


@pytest.mark.parametrize("other_open", BOTH)
@pytest.mark.parametrize("way", [Way.YIELDING, Way.MERGING])
def test_a_closed_window_never_gives_up_unasked(way: Way, other_open: bool) -> None:
    assert not may_go(Departure(way, True, window_open=False, other_open=other_open))


@pytest.mark.parametrize("way", [Way.YIELDING, Way.MERGING])
def test_what_is_used_never_gives_up_unasked(way: Way) -> None:
    assert not any(may_go(Departure(way, False, *facts)) for facts in product(BOTH, repeat=3))


def test_an_open_window_or_the_key_gives_up_what_nobody_used() -> None:
    assert may_go(Departure(Way.YIELDING, True, window_open=True))
    assert may_go(Departure(Way.YIELDING, True, keyed=True))
    assert may_go(Departure(Way.MERGING, True, window_open=True, other_open=True))
    assert not may_go(Departure(Way.MERGING, True, window_open=True))
    assert may_go(Departure(Way.MERGING, True, keyed=True))


def test_a_stranger_needs_an_open_window_the_key_or_to_be_expected() -> None:
    for facts in product(BOTH, repeat=3):
        assert may_come(Arrival(*facts)) == any(facts)


def _calls(function: ast.AST) -> frozenset[str]:
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = node.func
            found.add(called.attr if isinstance(called, ast.Attribute) else ast.unparse(called))
            if isinstance(called, ast.Attribute):
                found.add(f"{ast.unparse(called.value).rpartition('.')[2]}.{called.attr}")
    return frozenset(found)


def test_every_way_out_and_every_way_in_asks_the_rule() -> None:
    """A function that asks another cluster to let us in, or proposes to let one in, asks it."""
    ways = {"out": 0, "in": 0}
    for path in sorted(PEER.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            calls, at = _calls(function), f"{path.name}: {function.name}"
            if "join_client.join" in calls:
                ways["out"] += 1
                assert calls & {"may_go", "meet"}, at
            if calls & {"Admit", "Adopt"}:
                ways["in"] += 1
                assert "may_come" in calls, at
    assert ways == {"out": 5, "in": 2}
