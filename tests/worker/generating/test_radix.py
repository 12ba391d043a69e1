"""The radix tree against a dictionary of lists."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aivailable.worker.generating.radix import Match, RadixTree, common_length

TOKENS = st.lists(st.integers(0, 2), max_size=12)
SEQUENCES = st.integers(0, 5)


def test_the_longest_match_comes_first_and_names_everyone_who_shares_it() -> None:
    tree = RadixTree()
    tree.put(1, (1, 2, 3, 4))
    tree.put(2, (1, 2, 9))
    tree.put(3, (1, 2, 3, 4, 5, 6))
    assert tree.find((1, 2, 3, 4, 5, 7)) == [Match(5, (3,)), Match(4, (1, 3)), Match(2, (1, 2, 3))]
    assert tree.find((8,)) == []


def test_growing_sequences_part_where_they_differ() -> None:
    tree = RadixTree()
    tree.put(1, (1, 2))
    tree.put(2, (1, 2))
    tree.extend(1, (3,))
    tree.extend(2, (4,))
    assert tree.find((1, 2, 4)) == [Match(3, (2,)), Match(2, (1, 2))]
    tree.remove(1)
    assert tree.find((1, 2, 3)) == [Match(2, (2,))]
    assert tree.length(1) == 0


@given(TOKENS, TOKENS)
def test_common_length_is_the_longest_shared_beginning(left: list[int], right: list[int]) -> None:
    length = common_length(left, right)
    assert left[:length] == right[:length]
    assert length in (len(left), len(right)) or left[length] != right[length]


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree()
        self.held: dict[int, list[int]] = {}

    @rule(sequence=SEQUENCES, tokens=TOKENS)
    def put(self, sequence: int, tokens: list[int]) -> None:
        self.tree.put(sequence, tokens)
        self.held[sequence] = list(tokens)

    @rule(sequence=SEQUENCES, tokens=TOKENS)
    def extend(self, sequence: int, tokens: list[int]) -> None:
        if sequence in self.held:
            self.tree.extend(sequence, tokens)
            self.held[sequence] += tokens

    @rule(sequence=SEQUENCES)
    def remove(self, sequence: int) -> None:
        self.tree.remove(sequence)
        self.held.pop(sequence, None)

    @rule(tokens=TOKENS)
    def find(self, tokens: list[int]) -> None:
        shared = {name: common_length(held, tokens) for name, held in self.held.items()}
        best: dict[int, int] = {}
        for match in self.tree.find(tokens):
            for name in match.holders:
                best.setdefault(name, match.length)
        assert best == {name: length for name, length in shared.items() if length}

    @invariant()
    def lengths_are_known(self) -> None:
        for name, held in self.held.items():
            assert self.tree.length(name) == len(held)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
