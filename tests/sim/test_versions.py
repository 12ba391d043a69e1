"""Nodes that pack with the first version's code and nodes that pack with msgspec, in one cluster.

The checkers compare the states of all nodes at every version; a log entry that one version refuses
and the other takes, or that one of them writes in other bytes, would part them.
"""

from __future__ import annotations

from collections import Counter

import pytest
from fixtures.msgpack_damage import damage
from fixtures.written import table
from sim.loop import Process
from sim.run import run_seed
from sim.versions import both_versions

from aivailable.core.state.machine import apply_bytes
from aivailable.core.state.state import State, state_digest

SEEDS = (2, 3, 5)
DAMAGED_ENTRIES = 3
"""After each sound one."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_both_versions_in_one_cluster(seed: int) -> None:
    used: Counter[str] = Counter()
    with both_versions(used):
        result = run_seed(seed)
    assert not result.problems, result.message()
    assert result.stats["acknowledged"] > 100
    for version in ("old", "new"):
        for what in ("pack", "from_plain", "unpack", "encode", "decode"):
            assert used[f"{version} {what}"] > 0, (version, what)


def test_a_log_with_damaged_entries_leads_to_one_state() -> None:
    """Some of the damaged entries are commands all the same, and change the state."""
    processes = [Process(name, 1) for name in ("n1", "n2")]
    commands = table("commands")
    log = [data for name, data in commands.items() if name.startswith("log.")]
    log += [data for name, data in commands.items() if name.endswith(".usual")]
    states, accepted, used = [State(), State()], 0, Counter[str]()
    with both_versions(used):
        for number, sound in enumerate(log):
            for seed in range(DAMAGED_ENTRIES + 1):
                entry = damage(sound, 1000 * number + seed, 1) if seed else sound
                stepped = [
                    process.context.run(apply_bytes, state, entry)
                    for process, state in zip(processes, states, strict=True)
                ]
                states = [state for state, _ in stepped]
                (first, one), (second, other) = stepped
                assert first == second
                # Words about what is wrong are for people, and not in the state.
                assert (one.accepted, one.code) == (other.accepted, other.code)
                accepted += one.accepted and seed > 0
            digests = {
                p.context.run(state_digest, s) for p, s in zip(processes, states, strict=True)
            }
            assert len(digests) == 1
    assert accepted > 0
    assert used["old from_plain"] == used["new from_plain"] > len(log)
