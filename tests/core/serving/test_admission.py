"""The fair queue: bounded, in turn by tokens, slots and places shared, nobody starves."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.serving.admission import (
    ACCOUNTS_MAX,
    RESERVED_SHARE,
    SLOT_PATIENCE_S,
    FairQueue,
    has_room,
    places_sure,
)


def anything(request_id: str) -> bool:
    return True


@dataclass
class Line:
    """A queue with a clock that the test moves; one slot unless told otherwise."""

    slots: int = 1
    length_max: int = 64
    now_s: float = 0.0
    queue: FairQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.slots, self.length_max)

    def push(self, name: str, account: str, cost: int = 100) -> bool:
        return self.queue.push(name, account, cost, self.now_s).taken

    def pop(self) -> str | None:
        return self.queue.pop(self.now_s)

    def end(self, name: str, used: int | None = None) -> None:
        self.queue.release(name, used, self.now_s)

    def drained(self) -> list[str]:
        """Every request in its turn, each at the end of the one before it."""
        order = []
        while (name := self.pop()) is not None:
            order.append(name)
            self.end(name)
        return order


def test_one_key_is_served_in_order_of_arrival() -> None:
    line = Line()
    assert all(line.push(f"r{i}", "k") for i in range(3))
    assert line.push("r1", "k"), "a repeat keeps its place"
    assert len(line.queue) == 3
    assert line.drained() == ["r0", "r1", "r2"]
    assert len(line.queue) == 0


def test_a_newcomer_goes_before_the_backlog_of_a_busy_key() -> None:
    line = Line()
    for i in range(5):
        line.push(f"busy{i}", "busy")
    assert line.pop() == "busy0"
    line.push("new", "other")
    line.end("busy0")
    assert line.drained()[0] == "new"


def test_turns_follow_tokens_not_requests() -> None:
    line = Line()
    for i in range(8):
        line.push(f"long{i}", "long", 300)
        line.push(f"short{i}", "short", 100)
    first = line.drained()[:8]
    assert [name[:-1] for name in first].count("short") == 6


def test_an_answer_is_charged_what_it_did_cost() -> None:
    """Both promise the same; one turns out to be four times as long."""
    line = Line()
    for i in range(8):
        line.push(f"long{i}", "long")
        line.push(f"short{i}", "short")
    order = []
    for _ in range(10):
        name = line.pop()
        assert name is not None
        order.append(name)
        line.end(name, 400 if name.startswith("long") else 100)
    assert [name[:-1] for name in order].count("short") == 8


def test_saving_up_is_not_possible() -> None:
    line = Line()
    for i in range(9):
        line.push(f"early{i}", "early")
    for _ in range(8):
        line.end(line.pop() or "")
    for i in range(4):
        line.push(f"late{i}", "late")
        line.push(f"more{i}", "early")
    assert [name[:4] for name in line.drained()][:4].count("late") == 2


def test_debts_of_a_time_when_nobody_waited_are_forgotten() -> None:
    line = Line()
    for i in range(20):
        line.push(f"alone{i}", "alone", 1000)
    line.drained()
    for i in range(4):
        line.push(f"alone-again{i}", "alone")
        line.push(f"new{i}", "new")
    order = line.drained()
    assert [name.startswith("alone") for name in order[:4]].count(True) == 2


def test_a_running_request_gives_its_key_no_credit() -> None:
    """Its turn was long ago; meanwhile others were served a hundred times as much."""
    line = Line(slots=2)
    line.push("endless", "quiet")
    assert line.pop() == "endless"
    for i in range(100):
        line.push(f"w{i}", "worker")
        line.end(line.pop() or "", 100)
    for i in range(6):
        line.push(f"w-more{i}", "worker")
        line.push(f"quiet{i}", "quiet")
    order = []
    for _ in range(6):
        order.append(line.pop() or "")
        line.end(order[-1], 100)
    assert [name.startswith("quiet") for name in order].count(True) == 3


def test_cancelled_requests_leave() -> None:
    line = Line()
    for i in range(3):
        line.push(f"r{i}", "k")
    assert line.queue.cancel("r1")
    assert not line.queue.cancel("r1")
    assert line.drained() == ["r0", "r2"]


def test_one_key_cannot_fill_the_line_and_a_full_one_sends_away_the_greediest() -> None:
    line = Line(length_max=8)
    assert [line.push(f"g{i}", "greedy") for i in range(10)] == [True] * 6 + [False] * 4
    assert line.push("a0", "a")
    assert line.push("b0", "b")
    push = line.queue.push("c0", "c", 1, 0.0)
    assert (push.taken, push.sent_away) == (True, "g5")
    assert not line.push("g6", "greedy")
    assert line.push("c1", "c")
    assert len(line.queue) == 8
    assert line.queue.cancel("g4") is False, "it was sent away"


def test_two_keys_do_not_take_one_place_from_each_other_for_ever() -> None:
    line = Line(length_max=3)
    assert line.push("a0", "a")
    assert line.push("a1", "a")
    assert line.push("b0", "b")
    assert not line.push("b1", "b")
    assert not line.push("a2", "a")


def test_an_only_place_goes_to_who_has_nothing_here() -> None:
    line = Line(slots=1, length_max=1)
    line.push("a0", "a")
    line.pop()
    line.push("a1", "a")
    push = line.queue.push("b0", "b", 1, 0.0)
    assert (push.taken, push.sent_away) == (True, "a1")


def test_a_key_alone_may_hold_every_slot() -> None:
    line = Line(slots=4)
    for i in range(5):
        line.push(f"r{i}", "k")
    assert [line.pop() for _ in range(5)] == ["r0", "r1", "r2", "r3", None]
    assert line.queue.held == 4
    assert line.queue.displace(1000.0, anything) is None, "nobody else waits"


def test_slots_that_never_come_free_are_asked_back_after_a_while() -> None:
    line = Line(slots=3)
    for i in range(5):
        line.push(f"endless{i}", "greedy")
    for _ in range(3):
        line.pop()
    line.now_s = 1.0
    line.push("modest", "modest")
    assert line.queue.patience_ends_s(line.now_s) == 1.0 + SLOT_PATIENCE_S
    assert line.queue.displace(line.now_s, anything) is None
    line.now_s = 1.0 + SLOT_PATIENCE_S
    assert line.queue.displace(line.now_s, lambda name: name != "endless2") == "endless1"
    assert line.queue.displace(line.now_s, anything) is None, "one for one who waits"
    assert line.pop() is None, "the slot is taken until the worker says so"
    line.end("endless1", 4000)
    line.queue.put_back("endless1", "greedy", 100, line.now_s)
    assert line.pop() == "modest"
    line.end("modest")
    assert line.pop() == "endless1", "before those of its key that never ran"


def test_nobody_gives_up_his_only_slot() -> None:
    line = Line(slots=2)
    for account in ("a", "b", "c"):
        line.push(f"{account}0", account)
    line.pop()
    line.pop()
    line.now_s = 1000.0
    assert line.queue.displace(line.now_s, anything) is None


def test_a_line_that_moves_is_not_impatience() -> None:
    """A key that had a slot a moment ago has not waited, however old its requests are."""
    line = Line(slots=1)
    for i in range(10):
        line.push(f"greedy{i}", "greedy")
    line.pop()
    line.now_s = 100.0
    line.push("new", "modest")
    line.end("greedy0")
    assert line.pop() == "new"


def test_who_lost_the_worker_is_not_counted_as_holding_slots() -> None:
    line = Line(slots=2)
    for i in range(4):
        line.push(f"r{i}", "k")
    line.pop()
    line.pop()
    line.queue.clear_held()
    assert line.queue.held == 0
    line.end("r0")
    assert [line.pop(), line.pop(), line.pop()] == ["r2", "r3", None]


def test_accounts_that_are_away_do_not_fill_the_memory() -> None:
    line = Line(slots=2)
    line.push("endless", "endless")
    line.pop()
    for i in range(ACCOUNTS_MAX * 2):
        line.push(f"r{i}", f"visitor{i}")
        line.end(line.pop() or "")
    assert len(line.queue._served) <= ACCOUNTS_MAX + 2


operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(0, 500)),
        st.tuples(st.just("pop"), st.just(""), st.just(0)),
        st.tuples(st.just("end"), st.just(""), st.integers(0, 500)),
        st.tuples(st.just("cancel"), st.just(""), st.integers(0, 30)),
        st.tuples(st.just("displace"), st.just(""), st.just(0)),
        st.tuples(st.just("wait"), st.just(""), st.integers(0, 10)),
    ),
    max_size=80,
)


@given(st.integers(1, 4), st.integers(1, 12), operations)
def test_is_bounded_works_while_it_can_and_loses_nothing(
    slots: int, length_max: int, todo: list[tuple[str, str, int]]
) -> None:
    line = Line(slots, length_max)
    queue = line.queue
    waiting: list[str] = []
    held: list[str] = []
    leaving: list[str] = []
    returned = 0
    for number, (kind, key, value) in enumerate(todo):
        if kind == "push":
            name = f"{key}{number}"
            push = queue.push(name, key, value, line.now_s)
            if push.taken:
                waiting.append(name)
            else:
                assert len(waiting) >= length_max - length_max // RESERVED_SHARE
            if push.sent_away:
                assert push.sent_away[0] != key
                waiting.remove(push.sent_away)
        elif kind == "pop":
            got = line.pop()
            assert (got is not None) == (bool(waiting) and len(held) < slots)
            if got is not None:
                assert got == next(name for name in waiting if name[0] == got[0])
                waiting.remove(got)
                held.append(got)
        elif kind == "end" and held:
            name = held.pop(value % len(held))
            line.end(name, value)
            if name in leaving:
                leaving.remove(name)
                queue.put_back(name, name[0], value, line.now_s)
                waiting.insert(0, name)
                returned += 1
        elif kind == "cancel" and waiting:
            name = waiting.pop(value % len(waiting))
            assert queue.cancel(name)
        elif kind == "displace":
            given_up = queue.displace(line.now_s, anything)
            if given_up is not None:
                assert len(held) == slots
                stays = [name for name in held if name not in leaving]
                others = [name for name in stays if name[0] == given_up[0] and name != given_up]
                assert others, "its account keeps a slot"
                assert any(name[0] not in {one[0] for one in held} for name in waiting)
                leaving.append(given_up)
        elif kind == "wait":
            line.now_s += value
        assert len(queue) == len(waiting) <= length_max + returned
        assert queue.held == len(held) <= slots
    while waiting or held:
        name = held.pop() if held else ""
        if name:
            line.end(name)
        while (got := line.pop()) is not None:
            waiting.remove(got)
            held.append(got)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_a_modest_key_waits_for_at_most_one_entry_of_a_greedy_one(
    greedy: list[int], modest: int
) -> None:
    line = Line(length_max=100)
    for number, cost in enumerate(greedy):
        line.push(f"g{number}", "greedy", cost)
    line.end(line.pop() or "")
    line.push("modest", "modest", modest)
    assert line.drained().index("modest") <= 1


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 400), st.booleans()), min_size=2, max_size=6
    ),
)
def test_nobody_starves(slots: int, accounts: list[tuple[int, int, bool]]) -> None:
    """Each account: how many it keeps waiting, what each costs, whether its answers ever end. As
    long as each second is told, every account gets its first slot within its patience and one
    round of the others; those that never end share what there is."""
    line = Line(slots, 4096)
    endless = [ends for _, _, ends in accounts].count(False)
    names: dict[str, tuple[int, bool]] = {}
    for who, (count, cost, ends) in enumerate(accounts):
        for number in range(count):
            name = f"{who}-{number}"
            names[name] = (cost, ends)
            line.push(name, str(who), cost)
    served: dict[str, None] = {}
    # A second each: patience, then one answer of each other account before it.
    for _ in range(int(SLOT_PATIENCE_S) + 2 * len(accounts) + 2):
        while (name := line.pop()) is not None:
            served[name.partition("-")[0]] = None
        while (name := line.queue.displace(line.now_s, anything)) is not None:
            cost, _ = names[name]
            line.end(name, cost)
            line.queue.put_back(name, name.partition("-")[0], cost, line.now_s)
        line.now_s += 1.0
        for name in list(line.queue._held):
            cost, ends = names[name]
            if ends:
                line.end(name, cost)
    if endless < slots:
        assert len(served) == len(accounts)
    else:
        assert len(served) >= slots


@given(
    st.integers(1, 64), st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=200)
)
def test_places_under_way_are_shared(total_max: int, steps: list[tuple[str, bool]]) -> None:
    own = dict.fromkeys("abcd", 0)
    for account, comes in steps:
        total = sum(own.values())
        if not comes:
            own[account] -= own[account] > 0
        elif has_room(own[account], total, total_max):
            own[account] += 1
        else:
            assert total == total_max or own[account] > 0, "a newcomer finds a place"
        assert sum(own.values()) <= total_max


def test_an_account_alone_takes_half_of_the_places_and_leaves_the_other_half() -> None:
    own = 0
    while has_room(own, own, 1024):
        own += 1
    assert own == 512
    assert has_room(0, own, 1024, 16)
    assert places_sure(16) == 4
    assert places_sure(1) == 1
