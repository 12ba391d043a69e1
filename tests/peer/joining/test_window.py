"""The join window's time: never longer than the operator said, whatever happens to the node."""

from __future__ import annotations

from fixtures.peer_ports import HandClock
from hypothesis import given
from hypothesis import strategies as st

from aivailable.core.state.records import JoinWindow
from aivailable.peer.joining.window import INHERIT_GRACE_S, WindowClock

OPEN = JoinWindow(serial=1, open=True, duration_s=60)
SHUT = JoinWindow(serial=2)


def test_a_window_seen_live_ends_after_its_duration() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.see(OPEN, live=True)
    assert (window.left_s(OPEN), window.admits(OPEN), window.expired(OPEN)) == (60, True, False)
    clock.now_s += 59.5
    assert window.admits(OPEN)
    clock.now_s += 0.5
    assert (window.left_s(OPEN), window.admits(OPEN), window.expired(OPEN)) == (0, False, True)


def test_seeing_the_same_window_again_does_not_restart_it() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.see(OPEN, live=True)
    clock.now_s += 40
    window.see(OPEN, live=True)
    assert window.left_s(OPEN) == 20


def test_a_newcomer_keeps_what_it_heard_before_its_first_state() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.hear(30)
    clock.now_s += 10
    window.see(OPEN, live=False)
    assert window.left_s(OPEN) == 20
    clock.now_s += INHERIT_GRACE_S
    assert not window.expired(OPEN)


def test_what_was_heard_early_never_lengthens_a_window() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.hear(10_000)
    window.see(OPEN, live=False)
    assert window.left_s(OPEN) == OPEN.duration_s
    window.see(SHUT, live=False)
    assert window.left_s(SHUT) == 0


def test_after_a_restart_nobody_is_admitted_and_the_window_expires() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.see(OPEN, live=False)
    assert not window.admits(OPEN)
    assert not window.expired(OPEN)
    clock.now_s += INHERIT_GRACE_S
    assert window.expired(OPEN)
    assert not window.admits(OPEN)


def test_after_a_restart_a_heartbeat_tells_the_rest() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.see(OPEN, live=False)
    clock.now_s += INHERIT_GRACE_S - 1
    window.hear(25)
    assert (window.left_s(OPEN), window.admits(OPEN)) == (25, True)
    window.hear(50)
    assert window.left_s(OPEN) == 25, "what is known once is not prolonged"
    clock.now_s += 25
    assert window.expired(OPEN)


def test_locking_ends_it_and_a_late_heartbeat_does_not_open_it() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.see(OPEN, live=True)
    window.see(SHUT, live=True)
    window.hear(55)
    assert (window.left_s(SHUT), window.admits(SHUT), window.expired(SHUT)) == (0, False, False)
    again = JoinWindow(serial=3, open=True, duration_s=5)
    window.see(again, live=True)
    assert window.left_s(again) == 5


@given(
    st.integers(1, 1000),
    st.lists(
        st.one_of(
            st.tuples(st.just("hear"), st.integers(0, 5000)),
            st.tuples(st.just("see"), st.booleans()),
            st.tuples(st.just("pass"), st.integers(0, 300)),
            st.tuples(st.just("restart"), st.booleans()),
        ),
        max_size=20,
    ),
)
def test_no_window_outlives_its_duration_from_when_its_rest_became_known(
    duration_s: int, steps: list[tuple[str, int]]
) -> None:
    """Heartbeats of laggards may say anything: each process admits for `duration_s` at most."""
    clock = HandClock()
    window, record = WindowClock(clock), JoinWindow(7, True, duration_s)
    admitted_since: float | None = None
    for step, value in steps:
        if step == "pass":
            clock.now_s += value
        elif step == "hear":
            window.hear(value)
        elif step == "see":
            window.see(record, live=bool(value))
        else:
            window, admitted_since = WindowClock(clock), None
        if window.admits(record):
            admitted_since = clock.now_s if admitted_since is None else admitted_since
            assert clock.now_s - admitted_since < duration_s
            assert 0 <= window.left_s(record) <= duration_s


def test_what_this_process_opened_is_no_replay_however_young_it_is() -> None:
    clock = HandClock()
    window = WindowClock(clock)
    window.see(OPEN, live=False)
    window.opened_here(OPEN)
    assert window.left_s(OPEN) == OPEN.duration_s
    clock.now_s += 10
    window.opened_here(OPEN)
    assert window.left_s(OPEN) == OPEN.duration_s - 10, "once"
    window.see(SHUT, live=True)
    window.opened_here(OPEN)
    assert not window.admits(SHUT), "another window is the news now"
