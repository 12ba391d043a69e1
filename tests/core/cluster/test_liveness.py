"""Who counts as heard, and when a majority misses a node."""

from __future__ import annotations

from dataclasses import replace

from fixtures.cluster_state import liveness, load

from aivailable.core.cluster.liveness import (
    Heard,
    Liveness,
    device_load,
    is_alive,
    missing_members,
    replica_load,
    silent_ms,
)
from aivailable.wire.peer import DeviceLoad, Heartbeat

DOWN_MS = 3000


def without(heard: Liveness, *lost: str) -> Liveness:
    """`lost` have been silent for long; everybody else hears everybody else still."""
    kept = {
        node: entry if node not in lost else replace(entry, at_s=900.0)
        for node, entry in heard.heard.items()
    }
    return replace(heard, heard=kept, linked=tuple(n for n in heard.linked if n not in lost))


def hears(heard: Liveness, node: str, *others: str) -> Liveness:
    entry = heard.heard[node]
    fresh = replace(entry, heartbeat=replace(entry.heartbeat, hears=others))
    return replace(heard, heard={**heard.heard, node: fresh})


def missing_by_majority(heard: Liveness, members: str, node: str, after_ms: int) -> bool:
    return node in missing_members(heard, tuple(members), after_ms)


def test_silence_counts_from_the_last_heartbeat_or_our_start() -> None:
    heard = replace(liveness("ab"), started_s=990.0, known_s={"d": 999.0})
    assert silent_ms(heard, "a") == 0
    assert silent_ms(heard, "b") == 500
    assert silent_ms(heard, "c") == 10_500
    assert silent_ms(heard, "d") == 1_500


def test_alive_needs_a_fresh_heartbeat_except_for_ourselves() -> None:
    heard = without(liveness("abc"), "c")
    assert [is_alive(heard, node, DOWN_MS) for node in "abcd"] == [True, True, False, False]


def test_soft_state_of_a_silent_node_is_not_believed() -> None:
    heard = liveness(
        "ab", loads={"b": (load("chat#1.1"),)}, devices={"b": (DeviceLoad("gpu0", 7),)}
    )
    assert replica_load(heard, "b", "chat#1.1", DOWN_MS) == load("chat#1.1")
    assert device_load(heard, "b", "gpu0", DOWN_MS) == DeviceLoad("gpu0", 7)
    silent = without(heard, "b")
    assert replica_load(silent, "b", "chat#1.1", DOWN_MS) is None
    assert device_load(silent, "b", "gpu0", DOWN_MS) is None


def test_the_controller_alone_cannot_miss_a_node_that_others_hear() -> None:
    heard = without(liveness("abc"), "c")
    assert not missing_by_majority(heard, "abc", "c", DOWN_MS)
    assert missing_by_majority(hears(heard, "b", "a"), "abc", "c", DOWN_MS)


def test_a_majority_outvotes_our_own_ears() -> None:
    heard = hears(hears(liveness("abcd"), "b", "a", "c"), "c", "a", "b")
    assert missing_by_majority(heard, "abcd", "d", DOWN_MS)
    assert not missing_by_majority(hears(heard, "c", "a", "b", "d"), "abcd", "d", DOWN_MS)


def test_of_two_the_one_left_decides_alone() -> None:
    assert missing_by_majority(without(liveness("ab"), "b"), "ab", "b", DOWN_MS)
    assert not missing_by_majority(liveness("ab"), "ab", "b", DOWN_MS)


def test_silent_members_are_no_witnesses() -> None:
    heard = without(liveness("abcde"), "c", "d", "e")
    assert missing_by_majority(hears(heard, "b", "a"), "abcde", "e", DOWN_MS)


def test_nobody_is_missing_from_themselves() -> None:
    heard = hears(hears(liveness("abc"), "b", "c"), "c", "b")
    assert not missing_by_majority(heard, "abc", "a", DOWN_MS)


def test_grace_after_our_start_and_for_newcomers() -> None:
    just_started = Liveness("a", 1000.0, (), {}, 995.0)
    assert not missing_by_majority(just_started, "ab", "b", DOWN_MS)
    assert missing_by_majority(replace(just_started, now_s=1006.0), "ab", "b", DOWN_MS)
    newcomer = replace(just_started, started_s=0.0, known_s={"b": 995.0})
    assert not missing_by_majority(newcomer, "ab", "b", DOWN_MS)


def test_grace_ends_for_one_that_spoke_and_fell_silent() -> None:
    spoke = {"b": Heard("b", Heartbeat("b", "i", 1, 1), 996.0)}
    heard = Liveness("a", 999.5, (), spoke, 995.0)
    assert missing_by_majority(heard, "ab", "b", DOWN_MS)
