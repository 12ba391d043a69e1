"""The fair queue: bounded, in turn by tokens, nobody starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.admission import RESERVED_SHARE, FairQueue


def drained(queue: FairQueue) -> list[str]:
    order = []
    while (request := queue.pop()) is not None:
        order.append(request)
    return order


def test_one_key_is_served_in_order_of_arrival() -> None:
    queue = FairQueue(8)
    assert [queue.push(f"r{i}", "k", 100) for i in range(3)] == [0, 1, 2]
    assert queue.push("r1", "k", 100) == 1
    assert drained(queue) == ["r0", "r1", "r2"]
    assert len(queue) == 0


def test_a_newcomer_goes_before_the_backlog_of_a_busy_key() -> None:
    queue = FairQueue(16)
    for i in range(5):
        queue.push(f"busy{i}", "busy", 100)
    assert queue.pop() == "busy0"
    assert queue.push("new", "other", 100) == 0
    assert drained(queue)[0] == "new"


def test_turns_follow_tokens_not_requests() -> None:
    queue = FairQueue(64)
    for i in range(8):
        queue.push(f"long{i}", "long", 300)
        queue.push(f"short{i}", "short", 100)
    first = drained(queue)[:8]
    assert [name[:-1] for name in first].count("short") == 6


def test_saving_up_is_not_possible() -> None:
    queue = FairQueue(64)
    for i in range(9):
        queue.push(f"early{i}", "early", 100)
    for _ in range(8):
        queue.pop()
    for i in range(4):
        queue.push(f"late{i}", "late", 100)
        queue.push(f"more{i}", "early", 100)
    order = [name[:4] for name in drained(queue)]
    assert order[:4].count("late") == 2


def test_cancelled_requests_leave_and_positions_close_up() -> None:
    queue = FairQueue(8)
    for i in range(3):
        queue.push(f"r{i}", "k", 1)
    assert queue.cancel("r1")
    assert not queue.cancel("r1")
    assert queue.position("r1") is None
    assert queue.position("r2") == 1
    assert drained(queue) == ["r0", "r2"]


def test_a_full_queue_refuses_and_one_key_cannot_fill_it() -> None:
    queue = FairQueue(8)
    greedy = [queue.push(f"g{i}", "greedy", 1) for i in range(10)]
    assert greedy[5] is not None
    assert greedy[6:] == [None] * 4
    assert queue.push("a", "a", 1) is not None
    assert queue.push("b", "b", 1) is not None
    assert queue.push("c", "c", 1) is None
    assert len(queue) == 8


operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(0, 500)),
        st.tuples(st.just("pop"), st.just(""), st.just(0)),
        st.tuples(st.just("cancel"), st.just(""), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(st.integers(1, 12), operations)
def test_is_bounded_keeps_each_key_in_order_and_loses_nothing(
    length_max: int, todo: list[tuple[str, str, int]]
) -> None:
    queue = FairQueue(length_max)
    waiting: list[str] = []
    for number, (kind, key, value) in enumerate(todo):
        if kind == "push":
            name = f"{key}{number}"
            if queue.push(name, key, value) is None:
                assert len(queue) >= length_max - length_max // RESERVED_SHARE
            else:
                waiting.append(name)
        elif kind == "pop":
            got = queue.pop()
            assert (got is None) == (not waiting)
            if got is not None:
                assert got == next(name for name in waiting if name[0] == got[0])
                waiting.remove(got)
        elif waiting:
            name = waiting.pop(value % len(waiting))
            assert queue.cancel(name)
        assert len(queue) == len(waiting) <= length_max
        assert sorted(queue.position(name) or 0 for name in waiting) == list(range(len(waiting)))
    assert sorted(drained(queue)) == sorted(waiting)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_a_modest_key_waits_for_at_most_one_entry_of_a_greedy_one(
    greedy: list[int], modest: int
) -> None:
    queue = FairQueue(100)
    for number, cost in enumerate(greedy):
        queue.push(f"g{number}", "greedy", cost)
    queue.pop()
    queue.push("modest", "modest", modest)
    order = drained(queue)
    assert order.index("modest") <= 1
